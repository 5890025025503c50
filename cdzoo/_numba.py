"""Numba: how kernels are compiled, cached and announced. Importing this imports Numba.

A kernel is compiled on its first call, or when it is decorated if it has a signature. Machine code is kept on disk. Its
key covers the sources of all kernels that belong together: by itself Numba notices a change only in the file of the
kernel that is called, not in the files of those that it calls.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import event
from numba.core.caching import FunctionCache

__all__ = ["compiler", "run"]

logger = logging.getLogger(__name__)

#: Seconds that compilation may take without a message.
PATIENCE = 2.0

_lock = threading.RLock()


def compiler(sources: Iterable[Path], **options: Any) -> Callable[..., Any]:
    """A decorator that compiles functions without the GIL.

    Args:
        sources: the files of all kernels that call each other.
        options: for ``numba.njit``.

    Returns:
        ``decorate(function, signature=None)``. With a signature, the kernel is compiled at once.
    """
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.name.encode() + path.read_bytes())
    key = digest.hexdigest()

    def decorate(function: Callable[..., Any], signature: Any = None) -> Any:
        with _compiling():
            kernel = numba.njit(nogil=True, **options)(function)
            with suppress(RuntimeError):  # neither the package nor the user has a writable folder
                kernel._cache = _FolderCache(function, key)
            if signature is not None:
                kernel.compile(signature)
                kernel.disable_compile()
        return kernel

    return decorate


def run(kernel: Any, *arguments: Any) -> Any:
    """Call a kernel, which may have to be compiled first."""
    if kernel.overloads:
        return kernel(*arguments)
    with _compiling():
        return kernel(*arguments)


class _FolderCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache with a further part in its keys."""

    def __init__(self, function: Callable[..., Any], key: str) -> None:
        super().__init__(function)
        self._key = key

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), self._key)


class _Announcement(event.Listener):  # type: ignore[misc]
    """Tells the user why a program waits. Numba's event is for compiling; loading from the cache has none."""

    def __init__(self) -> None:
        self._timers: list[threading.Timer] = []

    def on_start(self, start: Any) -> None:
        name = start.data["dispatcher"].__name__
        message = "compiling the kernel %r: several seconds, once per machine (set NUMBA_CACHE_DIR if it comes back)"
        timer = threading.Timer(PATIENCE, logger.warning, (message, name))
        timer.daemon = True
        if not self._timers:  # the kernels that it calls are compiled with it
            timer.start()
        self._timers.append(timer)

    def on_end(self, end: Any) -> None:
        self._timers.pop().cancel()


@contextmanager
def _compiling() -> Iterator[None]:
    """A context in which Numba decorates or compiles.

    ``NUMBA_DISABLE_JIT``, which is set to debug other code, is ignored.
    """
    with _lock, event.install_listener("numba:compile", _Announcement()):
        disabled = numba.config.DISABLE_JIT
        numba.config.DISABLE_JIT = 0
        try:
            yield
        finally:
            numba.config.DISABLE_JIT = disabled
