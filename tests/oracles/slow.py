"""Tests of one kind over many cases, of which one case runs by default and the others are marked as slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def all_but_one(cases: Iterable[Any], kept: Any) -> list[Any]:
    """The cases in their order, all but one of them marked as slow.

    Args:
        cases: values for ``pytest.mark.parametrize``.
        kept: the case that runs by default.

    Raises:
        ValueError: ``kept`` is not among the cases.
    """
    listed = list(cases)
    listed.index(kept)
    return [
        case if case == kept else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in listed
    ]
