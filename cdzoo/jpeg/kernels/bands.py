"""Entropy decoding of AC coefficients in progressive JPEG scans (ITU-T T.81, Annex G), compiled by Numba.

Import on first use only: this imports Numba. See :mod:`cdzoo.jpeg.kernels.scans` for what makes it safe, and touch
that file and ``_jpeg_scans.py`` after a change here.
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
from cdzoo.jpeg.kernels.layout import AC_ROWS, END, HISTORY, LOW, NATURAL, NUMBERS, SCAN, START, TARGETS

__all__ = ["decode_ac_first", "decode_ac_refine"]

_TOP = np.uint64(64 - LOOKUP_BITS)
_ONE, _THREE, _EIGHT, _TWELVE, _FIFTEEN, _FULL, _LAST, _BYTE = (np.uint64(n) for n in (1, 3, 8, 12, 15, 56, 63, 255))
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@jit
def decode_ac_first(bits: Any, size: int, state: Any, tables: Any, history: Any, first: int, last: int) -> Any:
    """The first scan of a band of AC coefficients; notes in ``history``, one bit each, which are not zero."""
    start, stop, shift = np.uint64(state[SCAN, START]), np.uint64(state[SCAN, END]), state[SCAN, LOW]
    row = np.uint64(state[SCAN, AC_ROWS])
    target = state[TARGETS, state[SCAN, NUMBERS]]
    blocks = state[SCAN, HISTORY]
    end = np.uint64(size) << _THREE
    pos, count, buf = np.uint64(7), _FULL, load(bits, np.uint64(0))
    b = first
    while b < last:
        block = int16s(np.uint64(target + b * 128))
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
    """Clear as many of the lowest bits that are set; for up to three, which is the rule, without a branch."""
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
    bits: Any, size: int, state: Any, tables: Any, history: Any, damaged: Any, first: int, last: int
) -> Any:
    """One more bit for a band of AC coefficients (T.81, G.1.2.3), walking over bit masks instead of coefficients.

    The bits for coefficients that are there stand in the order of these, with codes between them. They are collected
    in one word and added at the end of the block.
    """
    start, stop, shift = np.uint64(state[SCAN, START]), np.uint64(state[SCAN, END]), state[SCAN, LOW]
    row = np.uint64(state[SCAN, AC_ROWS])
    target = state[TARGETS, state[SCAN, NUMBERS]]
    blocks = state[SCAN, HISTORY]
    band = (_ALL >> (_LAST - stop)) & (_ALL << start)
    end = np.uint64(size) << _THREE
    pos, count, buf = np.uint64(7), _FULL, load(bits, np.uint64(0))
    empty = np.uint64(0)  # blocks, this one included, to which nothing is added
    for b in range(first, last):
        if damaged.size > 0 and damaged[b]:
            return BAD_HISTORY, b, pos - (count >> _THREE)
        old = history[np.uint64(blocks + b)] & band
        if empty > 0 and old == 0:
            empty -= _ONE
            continue
        block = int16s(np.uint64(target + b * 128))
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
        while num > 0:
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
