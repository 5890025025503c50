"""Whole numbers among arguments: Python's, NumPy's, and whatever else counts as one."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["integer"]


def integer(value: Any) -> int | None:
    """The integer that ``value`` is, or ``None``: floating-point numbers and booleans are none."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
