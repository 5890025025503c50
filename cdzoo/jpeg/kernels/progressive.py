"""Entropy decoding of progressive JPEG scans (ITU-T T.81, Annex G), compiled by Numba.

Import on first use only: this imports Numba. See :mod:`cdzoo.jpeg.kernels.scan` for what makes it safe.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.jpeg.kernels.bits import (
    BAD_CODE,
    BAD_HISTORY,
    BAD_RUN,
    BAD_VALUE,
    LOOKUP_BITS,
    OK,
    TOO_SHORT,
    find_code,
    receive,
)
from cdzoo.jpeg.kernels.jit import int16s, jit, load, popcount, trailing_zeros
from cdzoo.jpeg.kernels.layout import NATURAL
from cdzoo.jpeg.kernels.mcu import enter_row

__all__ = ["decode_ac_first", "decode_ac_refine", "decode_dc"]

_TOP = np.uint64(64 - LOOKUP_BITS)
_ONE, _THREE, _EIGHT, _TWELVE, _FIFTEEN, _FULL, _LAST, _BYTE = (np.uint64(n) for n in (1, 3, 8, 12, 15, 56, 63, 255))
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@jit
def decode_dc(
    bits: Any, size: int, frame: Any, state: Any, num_blocks: int, columns: int, tables: Any, first: int, last: int
) -> Any:  # fmt: skip
    """Decode MCUs ``first`` to ``last`` of a scan of DC coefficients.

    Where the data end inside an MCU, the rest of it is decoded from zero bits, as libjpeg does.
    """
    blocks, predictions = state.blocks, state.predictions
    for i in range(4):
        predictions[i] = 0
    shift = state.scan[0].low
    refine = state.scan[0].high > 0
    clear = state.scan[0].clear > 0
    end = np.uint64(size) << _THREE
    pos, count, buf = np.uint64(7), _FULL, load(bits, np.uint64(0))
    y = first // columns
    x = first - y * columns
    mcu = first
    short = False
    while mcu < last:
        enter_row(frame, state, num_blocks, y)
        stop = min(last, mcu + columns - x)
        while mcu < stop:
            for b in range(num_blocks):
                info = blocks[np.uint64(b)]
                place = info.base + x * info.step
                if x >= info.limit or not info.begin <= x < info.end:
                    place = state.spare
                block = int16s(np.uint64(place))
                row = np.uint64(info.dc_row)
                code = np.uint64(0)
                if not refine:
                    code = np.uint64(tables[row, buf >> _TOP])
                buf |= load(bits, pos) >> count
                pos += (_LAST - count) >> _THREE
                count |= _FULL
                if refine:
                    block[np.uint64(0)] |= np.int64(buf >> _LAST) << shift
                    buf <<= _ONE
                    count -= _ONE
                else:
                    if code == 0:
                        code = find_code(tables, row, buf)
                        if code == 0:
                            return BAD_CODE, mcu, pos - (count >> _THREE)
                    length, width = code & _BYTE, code >> _EIGHT
                    c = np.uint64(info.component)
                    value = receive(buf << length, width) + predictions[c]
                    buf <<= length + width
                    count -= length + width
                    predictions[c] = value
                    value <<= shift
                    if value != np.int64(np.int16(value)):
                        return BAD_VALUE, mcu, pos - (count >> _THREE)
                    if clear:
                        for j in range(64):
                            block[np.uint64(j)] = 0
                    block[np.uint64(0)] = value
                if (pos << _THREE) - count > end:
                    short = True
                    pos, count, buf = np.uint64(size + 7), _FULL, np.uint64(0)
            if short:
                return TOO_SHORT, mcu, np.uint64(size)
            x += 1
            mcu += 1
        x = 0
        y += 1
    return OK, last, pos - (count >> _THREE)


@jit
def _wanted_in_row(state: Any, component: int, row: int, columns: int) -> Any:
    """The first block of a row that is wanted, and the one behind the last, as numbers in the component."""
    wanted = state.wanted[component]
    start = np.int64(row) * columns
    if row < wanted.first_row or row >= wanted.last_row:
        return start, start
    return start + wanted.first_column, start + min(wanted.last_column, columns)


@jit
def decode_ac_first(
    bits: Any, size: int, state: Any, columns: int, tables: Any, history: Any, first: int, last: int
) -> Any:
    """Decode the first scan of a band of AC coefficients; sets a bit in ``history`` for each that is not zero."""
    scan, part = state.scan[0], state.parts[0]
    start, stop, shift = np.uint64(scan.start), np.uint64(scan.end), scan.low
    row = np.uint64(part.ac_row)
    target = state.targets[part.component]
    blocks = scan.first_block
    end = np.uint64(size) << _THREE
    pos, count, buf = np.uint64(7), _FULL, load(bits, np.uint64(0))
    b = first
    row_ends: Any = 0
    begin, behind = np.int64(0), np.int64(0)
    while b < last:
        if b >= row_ends:
            begin, behind = _wanted_in_row(state, part.component, b // columns, columns)
            row_ends = (b // columns + 1) * columns
        block = int16s(np.uint64(target + b * 128 if begin <= b < behind else state.spare))
        found = np.uint64(0)
        empty: Any = 0  # further blocks in which the band is empty
        k = start - _ONE
        while k < stop:
            code = np.uint64(tables[row, buf >> _TOP])
            buf |= load(bits, pos) >> count
            pos += (_LAST - count) >> _THREE
            count |= _FULL
            if code == 0:
                code = find_code(tables, row, buf)
                if code == 0:
                    return BAD_CODE, b, pos - (count >> _THREE)
            length, width, run = code & _BYTE, code >> _EIGHT & _FIFTEEN, code >> _TWELVE
            if width == 0:
                buf <<= length
                count -= length
                if run == 15:
                    k += np.uint64(16)
                    continue
                empty = np.int64((_ONE << run) + (buf >> _ONE >> (_LAST - run))) - 1
                buf <<= run
                count -= run
                break
            value = receive(buf << length, width) << shift
            k += run + _ONE
            buf <<= length + width
            count -= length + width
            if value != np.int64(np.int16(value)):
                return BAD_VALUE, b, pos - (count >> _THREE)
            block[np.uint64(NATURAL[k])] = value
            found |= _ONE << (k & _LAST)
        if k > stop:
            return BAD_RUN, b, pos - (count >> _THREE)
        if (pos << _THREE) - count > end:
            return TOO_SHORT, b, np.uint64(size)
        history[np.uint64(blocks + b)] |= found
        b += 1 + empty
    return OK, last, pos - (count >> _THREE)


@jit
def _skip(word: Any, count: Any) -> Any:
    """Clear the lowest ``count`` bits that are set; up to three, the usual case, without a branch."""
    while count > 3:
        word &= word - _ONE
        count -= _ONE
    one = word & (word - _ONE)
    two = one & (one - _ONE)
    three = two & (two - _ONE)
    odd = three if count > 1 else one
    even = two if count > 1 else word
    return odd if count & _ONE else even


@jit
def decode_ac_refine(
    bits: Any, size: int, state: Any, columns: int, tables: Any, history: Any, damaged: Any, first: int, last: int
) -> Any:
    """Decode one more bit for a band of AC coefficients (T.81, G.1.2.3), with bit masks in place of coefficients.

    Correction bits stand in the order of the coefficients that are not zero, with codes between them. They are
    collected in one word and added at the end of the block.
    """
    scan, part = state.scan[0], state.parts[0]
    start, stop, shift = np.uint64(scan.start), np.uint64(scan.end), scan.low
    row = np.uint64(part.ac_row)
    target = state.targets[part.component]
    blocks = scan.first_block
    band = (_ALL >> (_LAST - stop)) & (_ALL << start)
    end = np.uint64(size) << _THREE
    pos, count, buf = np.uint64(7), _FULL, load(bits, np.uint64(0))
    empty = np.uint64(0)  # blocks, this one included, to which nothing is added
    row_ends: Any = 0
    begin, behind = np.int64(0), np.int64(0)
    for b in range(first, last):
        if damaged.size > 0 and damaged[b]:
            return BAD_HISTORY, b, pos - (count >> _THREE)
        old = history[np.uint64(blocks + b)] & band
        if empty > 0 and old == 0:
            empty -= _ONE
            continue
        if b >= row_ends:
            begin, behind = _wanted_in_row(state, part.component, b // columns, columns)
            row_ends = (b // columns + 1) * columns
        wanted = begin <= b < behind
        block = int16s(np.uint64(target + b * 128 if wanted else state.spare))
        status = OK
        zeros = ~old & band
        added = np.uint64(0)
        corrections = np.uint64(0)
        num = np.uint64(0)
        k = start
        while k <= stop:
            n = popcount(old >> k)  # at the end of a band every coefficient that is there gets its bit
            goal = np.uint64(64)
            code = np.uint64(tables[row, buf >> _TOP])
            buf |= load(bits, pos) >> count
            pos += (_LAST - count) >> _THREE
            count |= _FULL
            if empty == 0:
                if code == 0:
                    code = find_code(tables, row, buf)
                length, width, run = code & _BYTE, code >> _EIGHT & _FIFTEEN, code >> _TWELVE
                if width != 1 and (code == 0 or width > 1):
                    status = BAD_CODE
                    break
                buf <<= length
                count -= length
                if width == 0 and run < 15:
                    empty = (_ONE << run) + (buf >> _ONE >> (_LAST - run))
                    buf <<= run
                    count -= run
                else:
                    value = ((np.int64(buf >> _LAST) << 1) - 1) * np.int64(width) << shift
                    buf <<= width
                    count -= width
                    zeros = _skip(zeros, run)
                    goal = trailing_zeros(zeros)
                    if zeros != 0:
                        n = goal - k - run
                        zeros &= zeros - _ONE
                        block[np.uint64(NATURAL[goal])] = value
                        added |= width << goal
            num += n
            while n > 24:  # of 56 bits a code may have taken 30
                corrections = corrections << np.uint64(24) | buf >> np.uint64(40)
                buf <<= np.uint64(24)
                count -= np.uint64(24)
                n -= np.uint64(24)
                buf |= load(bits, pos) >> count
                pos += (_LAST - count) >> _THREE
                count |= _FULL
            corrections = corrections << n | buf >> _ONE >> (_LAST - n)
            buf <<= n
            count -= n
            if empty == 0 and goal > stop:
                status = BAD_RUN
                break
            k = goal + _ONE
        while num > 0 and wanted:
            num -= _ONE
            i = np.uint64(NATURAL[trailing_zeros(old)])
            old &= old - _ONE
            value = np.int64(block[i])
            sign = value >> 63
            block[i] = value + ((np.int64(corrections >> num & _ONE) << shift) ^ sign) - sign
        history[np.uint64(blocks + b)] |= added
        if status != OK:
            return status, b, pos - (count >> _THREE)
        if (pos << _THREE) - count > end:
            return TOO_SHORT, b, np.uint64(size)
        if empty > 0:
            empty -= _ONE
    return OK, last, pos - (count >> _THREE)
