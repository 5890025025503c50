"""Eight float32 numbers at a time, for the resize kernels: LLVM's vectors, which every processor has some form of.

Import on first use only: this imports Numba. Arguments are addresses in bytes (uint64), as in
:mod:`cdzoo.jpeg.kernels.jit`: the caller keeps the arrays alive and vouches for every index. A *tile* is eight vectors,
one behind the other (256 bytes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from cdzoo.jpeg.geometry import DCT

__all__ = [
    "accumulate_block",
    "address",
    "dct_tile",
    "idct_tile",
    "mix_tiles",
    "transpose_tile",
    "weighted_sum",
]

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, 8)
_SHORTS = ir.VectorType(ir.IntType(16), 8)
_INDEX = ir.IntType(64)
_LANE = ir.IntType(32)
_BYTES = 32  # of a vector


def _at(builder: Any, base: Any, offset: Any) -> Any:
    return builder.add(base, _INDEX(offset) if isinstance(offset, int) else offset)


def _load(builder: Any, place: Any, kind: Any = _VECTOR, align: int = 4) -> Any:
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=align)


def _save(builder: Any, value: Any, place: Any) -> None:
    builder.store(value, builder.inttoptr(place, value.type.as_pointer()), align=4)


def _splat(builder: Any, place: Any) -> Any:
    """The float at ``place``, eight times."""
    lone = builder.insert_element(_VECTOR(ir.Undefined), _load(builder, place, _FLOAT), _LANE(0))
    return builder.shuffle_vector(lone, _VECTOR(ir.Undefined), ir.Constant(ir.VectorType(_LANE, 8), [0] * 8))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v8f32"), [a, b, c])


def _shuffle(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_LANE, 8), list(lanes)))


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """An 8x8 matrix, by vectors: pairs, then fours, then halves change places."""
    low, high = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
    pairs = []
    for i in range(0, 8, 2):
        pairs += [_shuffle(builder, rows[i], rows[i + 1], low), _shuffle(builder, rows[i], rows[i + 1], high)]
    low, high = (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)
    fours = []
    for i in (0, 1, 4, 5):
        fours += [_shuffle(builder, pairs[i], pairs[i + 2], low), _shuffle(builder, pairs[i], pairs[i + 2], high)]
    low, high = (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)
    return [_shuffle(builder, fours[i], fours[i + 4], halves) for halves in (low, high) for i in range(4)]


def _dct(builder: Any, x: list[Any]) -> list[Any]:
    """The orthonormal DCT-II over eight vectors.

    Even frequencies are those of the sums of opposite samples, odd ones those of the differences.
    """
    sums = [builder.fadd(x[i], x[7 - i]) for i in range(4)]
    differences = [builder.fsub(x[i], x[7 - i]) for i in range(4)]
    out = []
    for u in range(8):
        terms = differences if u % 2 else sums
        total = None
        for m, term in enumerate(terms):
            factor = ir.Constant(_VECTOR, [DCT[u][m]] * 8)
            total = builder.fmul(term, factor) if total is None else _multiply_add(builder, term, factor, total)
        out.append(total)
    return out


def _idct(builder: Any, c: list[Any]) -> list[Any]:
    """The inverse of :func:`_dct`: even frequencies are alike in opposite samples, odd ones opposite."""
    halves = []
    for parity in (0, 1):
        for m in range(4):
            total = None
            for u in range(parity, 8, 2):
                factor = ir.Constant(_VECTOR, [DCT[u][m]] * 8)
                total = builder.fmul(c[u], factor) if total is None else _multiply_add(builder, c[u], factor, total)
            halves.append(total)
    even, odd = halves[:4], halves[4:]
    first = [builder.fadd(even[m], odd[m]) for m in range(4)]
    return first + [builder.fsub(even[m], odd[m]) for m in reversed(range(4))]


@intrinsic  # type: ignore[untyped-decorator]
def address(typingctx: Any, array: Any) -> Any:
    """The address of an array's data."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(make_array(signature.args[0])(context, builder, arguments[0]).data, _INDEX)

    return types.uint64(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def accumulate_block(typingctx: Any, block: Any, table: Any, weights: Any, count: Any, target: Any, stride: Any) -> Any:
    """Add a block to ``count`` rows of eight columns: to row ``y``, ``sum_v weights[y, v] * table[v] * block[v]``.

    Args:
        block: 8x8 int16.
        table: 8x8 float32, multiplied with the block.
        weights: ``count`` times 8 float32.
        count: number of rows, at least 1.
        target: the first row, eight float32; the next one is ``stride`` bytes further.
        stride: in bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, table, weights, count, target, stride = arguments
        rows = []
        for v in range(8):
            integers = _load(builder, _at(builder, block, 16 * v), _SHORTS, 2)
            rows.append(
                builder.fmul(builder.sitofp(integers, _VECTOR), _load(builder, _at(builder, table, _BYTES * v)))
            )
        with cgutils.for_range(builder, count) as loop:
            place = _at(builder, target, builder.mul(loop.index, stride))
            own = _at(builder, weights, builder.mul(loop.index, _INDEX(_BYTES)))
            total = _load(builder, place)
            for v in range(8):
                total = _multiply_add(builder, rows[v], _splat(builder, _at(builder, own, 4 * v)), total)
            _save(builder, total, place)
        return context.get_dummy_value()

    return types.void(*[types.uint64] * 3, types.int64, types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def transpose_tile(typingctx: Any, source: Any, stride: Any, target: Any) -> Any:
    """Eight rows of eight float32, ``stride`` bytes from one to the next (may be negative), to a tile, transposed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, target = arguments
        rows = [_load(builder, _at(builder, source, builder.mul(stride, _INDEX(i)))) for i in range(8)]
        for i, row in enumerate(_transposed(builder, rows)):
            _save(builder, row, _at(builder, target, _BYTES * i))
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def weighted_sum(typingctx: Any, weights: Any, source: Any, count: Any, target: Any) -> Any:
    """``sum_i weights[i] * source[i]`` over ``8 * count`` vectors, one behind the other, into one vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, source, count, target = arguments
        totals = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * 8)) for _ in range(4)]
        for total in totals:
            builder.store(ir.Constant(_VECTOR, [0.0] * 8), total)
        with cgutils.for_range(builder, count) as loop:
            first = _at(builder, source, builder.mul(loop.index, _INDEX(8 * _BYTES)))
            own = _at(builder, weights, builder.mul(loop.index, _INDEX(_BYTES)))
            for i in range(8):
                total = totals[i % 4]
                vector = _load(builder, _at(builder, first, _BYTES * i))
                factor = _splat(builder, _at(builder, own, 4 * i))
                builder.store(_multiply_add(builder, vector, factor, builder.load(total)), total)
        a, b, c, d = (builder.load(total) for total in totals)
        _save(builder, builder.fadd(builder.fadd(a, b), builder.fadd(c, d)), target)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.int64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def dct_tile(typingctx: Any, source: Any, stride: Any, transposed: Any, target: Any) -> Any:
    """The 2-D DCT of eight vectors, which lie ``stride`` bytes apart (may be negative), into a tile.

    The vectors are columns: coefficients come as rows of horizontal frequencies; or, where ``transposed`` is not zero,
    as rows of vertical ones.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, transposed, target = arguments
        columns = [_load(builder, _at(builder, source, builder.mul(stride, _INDEX(i)))) for i in range(8)]
        with builder.if_else(builder.icmp_signed("!=", transposed, _INDEX(0))) as (then, otherwise):
            with then:
                half = _transposed(builder, _dct(builder, _transposed(builder, columns)))
                for i, row in enumerate(_dct(builder, half)):
                    _save(builder, row, _at(builder, target, _BYTES * i))
            with otherwise:
                half = _transposed(builder, _dct(builder, columns))
                for i, row in enumerate(_dct(builder, half)):
                    _save(builder, row, _at(builder, target, _BYTES * i))
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.int64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def idct_tile(typingctx: Any, block: Any, table: Any, target: Any) -> Any:
    """A block, 8x8 float32, times a table of the same shape, to its pixels: rows of a tile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, table, target = arguments
        rows = [
            builder.fmul(
                _load(builder, _at(builder, block, _BYTES * v)), _load(builder, _at(builder, table, _BYTES * v))
            )
            for v in range(8)
        ]
        half = _transposed(builder, _idct(builder, rows))
        for i, row in enumerate(_transposed(builder, _idct(builder, half))):
            _save(builder, row, _at(builder, target, _BYTES * i))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def mix_tiles(typingctx: Any, tiles: Any, factors: Any, target: Any, stride: Any) -> Any:
    """Three tiles, one behind the other, times one factor each, plus a constant: to eight rows of eight float32.

    Args:
        tiles: the first one.
        factors: four float32, the constant at the end.
        target: the first row; the next one is ``stride`` bytes further.
        stride: in bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tiles, factors, target, stride = arguments
        *weights, constant = [_splat(builder, _at(builder, factors, 4 * k)) for k in range(4)]
        for i in range(8):
            total = constant
            for k, weight in enumerate(weights):
                row = _load(builder, _at(builder, tiles, 8 * _BYTES * k + _BYTES * i))
                total = _multiply_add(builder, row, weight, total)
            _save(builder, total, _at(builder, target, builder.mul(stride, _INDEX(i))))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64, types.int64), generate
