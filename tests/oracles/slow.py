"""Tests of one kind over many cases, of which one case runs by default and the others are marked as slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from cdzoo._registry import find_entry


def one_of_each_class(names: Iterable[str]) -> list[Any]:
    """The names of builders in their order; the second and later ones of a class are marked as slow."""
    seen, marked = set(), list[Any]()
    for name in names:
        cls = find_entry(name).cls
        marked.append(pytest.param(name, marks=pytest.mark.slow) if cls in seen else name)
        seen.add(cls)
    return marked


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
