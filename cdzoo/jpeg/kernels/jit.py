"""Compilation of the JPEG kernels, and machine instructions that Numba has no name for. Importing this imports Numba.

Assigning different arrays to one variable costs two atomic reference-count updates each time, which is slow for blocks
of 64 coefficients. So the intrinsics take addresses. The caller keeps the array alive and checks every index.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from cdzoo._numba import compiler, run

__all__ = ["int16s", "jit", "load", "popcount", "run", "store", "trailing_zeros"]

jit = compiler(Path(__file__).parent.glob("*.py"), error_model="numpy")

_WORD = ir.IntType(64)


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
    """Number of bits of a uint64 that are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """The number of the lowest bit that is set in a uint64; 64 if none is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate
