"""How the JPEG kernels are compiled: Numba, without the GIL, cached on disk. Importing this imports Numba."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba

__all__ = ["jit", "run"]

logger = logging.getLogger(__name__)


def jit(function: Callable[..., Any]) -> Any:
    """Compile on first call, release the GIL, keep the machine code where Numba finds a writable cache folder."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available": neither the package nor the user has a folder that can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


def run(kernel: Any, *arguments: Any) -> Any:
    """Call a kernel, with a word to the user where that means waiting for the compiler."""
    if kernel.overloads:
        return kernel(*arguments)
    with _announcement(kernel.__name__):
        return kernel(*arguments)


@contextmanager
def _announcement(name: str) -> Iterator[None]:
    message = "compiling the JPEG kernel %r: several seconds, once per machine (set NUMBA_CACHE_DIR if it comes back)"
    timer = threading.Timer(2.0, logger.warning, (message, name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
