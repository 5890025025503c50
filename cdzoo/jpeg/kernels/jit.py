"""How the JPEG kernels are compiled: Numba, without the GIL, cached on disk. Importing this imports Numba.

The intrinsics are machine instructions that Numba has no name for, and addresses: to hold now this array, now that one
in a variable costs Numba two atomic reference counts a time, which is much for a block of 64 coefficients. Whoever
takes an address keeps the array alive, and vouches for every index.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from cdzoo._numba import compiling

__all__ = ["int16s", "jit", "load", "popcount", "run", "store", "trailing_zeros"]

logger = logging.getLogger(__name__)

_WORD = ir.IntType(64)


def jit(function: Callable[..., Any]) -> Any:
    """Compile on first call, release the GIL, keep the machine code where Numba finds a writable cache folder."""
    with compiling():
        try:
            return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
        except RuntimeError:  # "no locator available": neither the package nor the user has a writable folder
            return numba.njit(nogil=True, error_model="numpy")(function)


def _word_at(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _WORD.as_pointer())


def _big_endian(builder: Any, word: Any) -> Any:
    return builder.bswap(word) if sys.byteorder == "little" else word


@intrinsic  # type: ignore[untyped-decorator]
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """``load(array, index)``: eight bytes of a contiguous uint8 array as a uint64, the first one on top."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _word_at(context, builder, signature.args[0], *arguments)
        return _big_endian(builder, builder.load(place, align=1))

    return types.uint64(array, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typingctx: Any, array: Any, index: Any, word: Any) -> Any:
    """``store(array, index, word)``: the opposite of ``load``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _word_at(context, builder, signature.args[0], *arguments[:2])
        builder.store(_big_endian(builder, arguments[2]), place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def int16s(typingctx: Any, address: Any) -> Any:
    """``int16s(address)[index]``: the integers at an address, to read and to write."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(16).as_pointer())

    return types.CPointer(types.int16)(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def popcount(typingctx: Any, word: Any) -> Any:
    """How many bits of a uint64 are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """The number of the lowest bit that is set in a uint64; 64 if none is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


def run(kernel: Any, *arguments: Any) -> Any:
    """Call a kernel, with a word to the user where that means waiting for the compiler."""
    if kernel.overloads:
        return kernel(*arguments)
    with _announcement(kernel.__name__), compiling():
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
