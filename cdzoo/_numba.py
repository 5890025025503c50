"""Numba's compiler for the coders, which need it where ``NUMBA_DISABLE_JIT`` is set, too. Imports Numba."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba

__all__ = ["compiling"]

_lock = threading.RLock()


@contextmanager
def compiling() -> Iterator[None]:
    """Wherever Numba decorates or compiles: its switch is on meanwhile, and left as it was found."""
    with _lock:
        disabled = numba.config.DISABLE_JIT
        numba.config.DISABLE_JIT = 0
        try:
            yield
        finally:
            numba.config.DISABLE_JIT = disabled
