"""The compiled inner loops of :mod:`cdzoo.coding.rans`; importing this file imports numba and compiles.

The coder is rANS with a 64-bit state and 32-bit words (Duda 2013, arXiv:1311.2540; the arithmetic follows Fabian
Giesen's public-domain ``ryg_rans``, variant ``rans64``), in the bit format of CompressAI's ``compressai.ans``:

* the state ``x`` lives in ``[2**31, 2**63)``, starts at ``2**31`` and is flushed as two words, the low one first;
* symbols are put last to first, words grow downwards, so that the decoder reads both forwards;
* a table holds ``length - 2`` values and an escape symbol; probabilities are counts out of ``2**16``;
* a value ``v`` outside the table (counted from the table's offset) is the escape symbol followed by the number of
  4-bit groups and then the groups, least significant first, of ``-2 v - 1`` below or ``2 (v - length + 2)`` above.

Nothing here checks an index, a table or a buffer size: the public functions do, before they call. What depends on
the bytes of a stream is checked here, at every step. Unsigned integers are typed by hand because numba promotes
``uint64`` with ``int64`` to ``float64``, and unsigned indexing avoids the code for negative indices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from cdzoo._numba import compiler

__all__ = ["decode_rows", "encode_rows"]

_U64, _I64 = np.uint64, np.int64
_ZERO, _ONE, _TWO, _FOUR = _U64(0), _U64(1), _U64(2), _U64(4)
_WORD, _PRECISION = _U64(32), _U64(16)
_MASK, _GROUP = _U64(0xFFFF), _U64(15)
_LOW, _HIGH = _U64(1 << 31), _U64(1 << 63)
_PUT_SHIFT = _U64(47)  # a symbol of count f can be put without overflow while x < f << 47
_PUT_GROUP_MAX = _U64(1 << 59)  # and 4 raw bits while x < 2**59
_MAX_GROUPS = _U64(5)  # |symbol - offset| <= 3 * 2**15, hence escaped values have at most 18 bits
_INT16_MIN, _INT16_MAX = _I64(-(1 << 15)), _I64((1 << 15) - 1)


def _high_product(_: Any, a: Any, b: Any) -> Any:
    """Upper 64 bits of the 128-bit product: one instruction, which Python arithmetic on ``uint64`` cannot name."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


_mulhi: Any = intrinsic(_high_product)


def _encode_rows(
    symbols: Any, indexes: Any, step: Any, count: Any, first: Any, last: Any,
    entries: Any, starts: Any, limits: Any, offsets: Any, words: Any, begins: Any,
) -> None:  # fmt: skip
    """Encode rows ``first`` to ``last`` into ``words``, backwards from its end; row ``i`` begins at ``begins[i]``.

    ``entries`` holds two uint64 per table entry: the reciprocal of its count, and start | count << 16 | shift << 32.
    """
    position = _U64(len(words))
    row = _U64(last)
    while row > _U64(first):
        row -= _ONE
        x = _LOW
        base = row * _U64(count)
        index_base = row * _U64(step)
        j = _U64(count)
        while j > _ZERO:
            j -= _ONE
            table = _U64(indexes[index_base + j])
            limit = _I64(limits[table])
            value = _I64(symbols[base + j]) - _I64(offsets[table])
            if value < 0 or value >= limit:
                raw = _U64(_I64(-2) * value - _I64(1)) if value < 0 else _U64(_I64(2) * (value - limit))
                value = limit
                groups = _ZERO
                while raw >> (groups * _FOUR) != _ZERO:
                    groups += _ONE
                # Put backwards: the groups, most significant first, then their number.
                left = groups + _ONE
                while left > _ZERO:
                    left -= _ONE
                    put = (raw >> ((left - _ONE) * _FOUR)) & _GROUP if left > _ZERO else groups
                    if x >= _PUT_GROUP_MAX:
                        position -= _ONE
                        words[position] = np.uint32(x)
                        x >>= _WORD
                    x = (x << _FOUR) | put
            at = (_U64(starts[table]) + _U64(value)) * _TWO
            packed = entries[at + _ONE]
            frequency = (packed >> _PRECISION) & _MASK
            if x >= frequency << _PUT_SHIFT:
                position -= _ONE
                words[position] = np.uint32(x)
                x >>= _WORD
            quotient = _mulhi(x << _ONE, entries[at]) >> (packed >> _WORD)
            # (quotient << 16) + remainder + start, with the remainder written out
            x = x + (packed & _MASK) + quotient * (_U64(1 << 16) - frequency)
        position -= _TWO
        words[position] = np.uint32(x)
        words[position + _ONE] = np.uint32(x >> _WORD)
        begins[row] = _I64(position)


def _decode_row(
    words: Any, position: Any, end: Any, indexes: Any, index_base: Any, count: Any,
    modes: Any, buckets: Any, entries: Any, starts: Any, limits: Any, offsets: Any, out: Any, base: Any,
) -> Any:  # fmt: skip
    """Decode one stream of at least two words; return (outcome, position of the symbol, value for the message)."""
    x = _U64(words[position]) | (_U64(words[position + _ONE]) << _WORD)
    position += _TWO
    if x < _LOW or x >= _HIGH:
        return _I64(1), _I64(0), x
    for j in range(_U64(count)):
        table = _U64(indexes[index_base + j])
        cumulative = x & _MASK
        # A value with more than half of its table is tried first: nothing here waits for a load that depends on x.
        mode = modes[table]
        frequency = (mode >> _PRECISION) & _MASK
        inside = cumulative - (mode & _MASK)
        if inside < frequency:
            x = frequency * (x >> _PRECISION) + inside
            if x < _LOW:
                if position >= end:
                    return _I64(2), _I64(j), x
                x = (x << _WORD) | _U64(words[position])
                position += _ONE
            out[base + j] = np.int16(_I64(mode >> _WORD) + _I64(offsets[table]))
            continue
        start = _U64(starts[table])
        # The bucket gives the last entry that starts at or before its first count; walk on from there. The walk
        # ends inside the table because the counts of a table add up to 2**16.
        at = start + _U64(buckets[(table << _U64(8)) | (cumulative >> _U64(8))])
        packed = _U64(entries[at])
        inside = cumulative - (packed & _MASK)
        frequency = packed >> _PRECISION
        while inside >= frequency:
            at += _ONE
            inside -= frequency
            frequency = _U64(entries[at]) >> _PRECISION
        x = frequency * (x >> _PRECISION) + inside
        if x < _LOW:
            if position >= end:
                return _I64(2), _I64(j), x
            x = (x << _WORD) | _U64(words[position])
            position += _ONE
        limit = _I64(limits[table])
        value = _I64(at - start)
        if value == limit:
            raw = _ZERO
            groups = _ZERO
            # The first of the 4-bit reads is the number of those that follow.
            read = _ZERO
            while read <= groups:
                group = x & _GROUP
                x >>= _FOUR
                if x < _LOW:
                    if position >= end:
                        return _I64(2), _I64(j), x
                    x = (x << _WORD) | _U64(words[position])
                    position += _ONE
                if read == _ZERO:
                    if group > _MAX_GROUPS:
                        return _I64(3), _I64(j), group
                    groups = group
                else:
                    raw |= group << ((read - _ONE) * _FOUR)
                read += _ONE
            if groups > _ZERO and raw >> ((groups - _ONE) * _FOUR) == _ZERO:
                return _I64(5), _I64(j), raw
            half = _I64(raw >> _ONE)
            value = -half - _I64(1) if raw & _ONE else half + limit
        value += _I64(offsets[table])
        if value < _INT16_MIN or value > _INT16_MAX:
            return _I64(4), _I64(j), _U64(value)
        out[base + j] = np.int16(value)
    if position != end:
        return _I64(6), _I64(count), end - position
    if x != _LOW:
        return _I64(7), _I64(count), x
    return _I64(0), _I64(0), _ZERO


def _decode_rows(
    words: Any, bounds: Any, indexes: Any, step: Any, count: Any, first: Any, last: Any,
    modes: Any, buckets: Any, entries: Any, starts: Any, limits: Any, offsets: Any, out: Any, outcomes: Any,
) -> None:  # fmt: skip
    """Decode streams ``first`` to ``last``; stream ``i`` is ``words[bounds[i]:bounds[i + 1]]``, two words at least."""
    for i in range(_U64(first), _U64(last)):
        outcome, position, value = _decode_row(
            words, _U64(bounds[i]), _U64(bounds[i + _ONE]), indexes, i * _U64(step), count,
            modes, buckets, entries, starts, limits, offsets, out, i * _U64(count),
        )  # fmt: skip
        outcomes[i, _ZERO] = outcome
        outcomes[i, _ONE] = position
        outcomes[i, _TWO] = _I64(value)


def _array(dtype: Any, dimensions: int = 1, *, readonly: bool = True) -> Any:
    # A writable array passes for a read-only one, not the reverse, so one signature serves both.
    return types.Array(dtype, dimensions, "C", readonly=readonly)


_compile = compiler([Path(__file__)])
_INDEXES = _array(types.uint16)
_TABLES = (_array(types.int32), _array(types.int32), _array(types.int32))
_SPAN = (types.int64,) * 4  # index step, symbols per stream, first stream, last stream
_decode_row = _compile(_decode_row)
encode_rows = _compile(
    _encode_rows,
    types.void(
        _array(types.int16), _INDEXES, *_SPAN, _array(types.uint64), *_TABLES,
        _array(types.uint32, readonly=False), _array(types.int64, readonly=False),
    ),
)  # fmt: skip
decode_rows = _compile(
    _decode_rows,
    types.void(
        _array(types.uint32), _array(types.int64), _INDEXES, *_SPAN,
        _array(types.uint64), _array(types.uint16), _array(types.uint32), *_TABLES,
        _array(types.int16, readonly=False), _array(types.int64, 2, readonly=False),
    ),
)  # fmt: skip
