"""Entropy decoding of JPEG scans, sequential and progressive (ITU-T T.81, Annexes F and G), compiled by Numba.

Import on first use only: this imports Numba. One call decodes one scan, without the GIL. No index is checked; safe are

* all that comes from markers: every field has been checked before (:mod:`cdzoo.codecs._jpeg_markers`),
* reads: from a copy without byte stuffing, with more zero bytes behind it than any block can eat, checked per block,
* zigzag positions: looked up in a table padded beyond the longest run, checked per block,
* writes: blocks which only complete an MCU are decoded into a spare one.

A segment is what lies between two restart markers. The decoders of segments return a status, the MCU they reached, and
the bytes they used. Bit buffers hold the next bits on top; ``count`` of them are valid, those below are either zero or
what the next load puts there again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.codecs._jpeg_bits import (
    BAD_CODE,
    BAD_HISTORY,
    BAD_RESTART,
    BAD_RUN,
    BAD_VALUE,
    LOOKUP_BITS,
    OK,
    TOO_LONG,
    TOO_SHORT,
    find_symbol,
    load,
    open_segment,
    receive,
    resume,
)
from cdzoo.codecs._jpeg_jit import jit
from cdzoo.codecs._jpeg_markers import ZIGZAG

__all__ = ["AC_FIRST", "AC_REFINE", "DC_FIRST", "DC_REFINE", "SEQUENTIAL", "decode_scan"]

SEQUENTIAL, DC_FIRST, DC_REFINE, AC_FIRST, AC_REFINE = range(5)

_ZIGZAG = ZIGZAG.astype(np.uint8)
_NATURAL = np.concatenate([_ZIGZAG, np.full(32, 63, np.uint8)])

# The number of a single set bit, by multiplication with a de Bruijn sequence: Numba has no count of trailing zeros.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_NUMBER = np.zeros(64, np.uint8)
_BIT_NUMBER[[(0x03F79D71B4CB0A89 << bit & 0xFFFFFFFFFFFFFFFF) >> 58 for bit in range(64)]] = np.arange(64)

_TOP = np.uint64(64 - LOOKUP_BITS)
_ONE = np.uint64(1)


@jit
def _decode_blocks(
    mode: int, bits: Any, size: int, tables: Any, pairs: Any, layout: Any,
    planes: Any, spare: Any, first: int, last: int,
) -> Any:  # fmt: skip
    """MCUs ``first`` to ``last`` of a sequential scan, or of a progressive scan of DC coefficients."""
    predictions = np.zeros(4, np.int64)
    columns, shift = layout[1], layout[7]
    y = first // columns
    x = first - y * columns
    pos: Any = 0
    count: Any = 0
    buf = np.uint64(0)
    for mcu in range(first, last):
        for c in range(layout[0]):
            vertical = layout[8 + 8 * c]
            horizontal = layout[9 + 8 * c]
            dc_row = np.uint64(layout[12 + 8 * c])
            ac_row = np.uint64(layout[13 + 8 * c])
            for i in range(vertical * horizontal):
                row = y * vertical + i // horizontal
                column = x * horizontal + i % horizontal
                block = spare
                o = np.uint64(0)
                if row < layout[10 + 8 * c] and column < layout[11 + 8 * c]:
                    block = planes[c]
                    o = np.uint64((row * layout[11 + 8 * c] + column) * 64)
                buf |= load(bits, pos) >> np.uint64(count)
                pos += (63 - count) >> 3
                count |= 56

                if mode == DC_REFINE:
                    block[o] |= np.int64(buf >> np.uint64(63)) << shift
                    buf <<= _ONE
                    count -= 1
                    if pos * 8 - count > size * 8:
                        return TOO_SHORT, mcu, size
                    continue

                entry = np.int64(tables[dc_row, buf >> _TOP])
                value = entry >> 16
                used = entry & 255
                if value == 0:
                    symbol = find_symbol(tables, dc_row, entry, buf)
                    if symbol < 0:
                        return BAD_CODE, mcu, pos - (count >> 3)
                    used = symbol >> 8
                    symbol &= 255
                    if symbol > 0:
                        value = receive(buf << np.uint64(used), symbol)
                        used += symbol
                buf <<= np.uint64(used)
                count -= used
                value += predictions[c]
                predictions[c] = value
                value <<= shift
                if value != np.int64(np.int16(value)):
                    return BAD_VALUE, mcu, pos - (count >> 3)
                if mode == DC_FIRST:
                    block[o] = value
                    if pos * 8 - count > size * 8:
                        return TOO_SHORT, mcu, size
                    continue

                for j in range(64):
                    block[o + np.uint64(j)] = 0
                block[o] = value
                k = 0
                while k < 63:
                    if count < 32:
                        buf |= load(bits, pos) >> np.uint64(count)
                        pos += (63 - count) >> 3
                        count |= 56
                    pair = pairs[ac_row, buf >> _TOP]
                    used = pair & 255
                    if pair >> 16:
                        k += (pair >> 16) & 255
                        block[o + np.uint64(_NATURAL[np.uint64(k)])] = pair >> 32
                        if k >= 63:  # what follows is another block's
                            used = (pair >> 8) & 255
                            buf <<= np.uint64(used)
                            count -= used
                            break
                        buf <<= np.uint64(used)
                        count -= used
                        k += (pair >> 24) & 255
                        if k >= 128:
                            break
                        block[o + np.uint64(_NATURAL[np.uint64(k)])] = pair >> 48
                        continue
                    if used:
                        buf <<= np.uint64(used)
                        count -= used
                        break
                    symbol = find_symbol(tables, ac_row, np.int64(tables[ac_row, buf >> _TOP]), buf)
                    if symbol < 0:
                        return BAD_CODE, mcu, pos - (count >> 3)
                    used = symbol >> 8
                    buf <<= np.uint64(used)
                    count -= used
                    width = symbol & 15
                    if width == 0:
                        if symbol & 255 == 0xF0:
                            k += 16
                            continue
                        if symbol & 255 == 0:
                            break
                        return BAD_CODE, mcu, pos - (count >> 3)
                    k += ((symbol & 255) >> 4) + 1
                    block[o + np.uint64(_NATURAL[np.uint64(k)])] = receive(buf, width)
                    buf <<= np.uint64(width)
                    count -= width
                if k & 127 > 63:
                    return BAD_RUN, mcu, pos - (count >> 3)
                if pos * 8 - count > size * 8:
                    return TOO_SHORT, mcu, size
        x += 1
        if x == columns:
            x = 0
            y += 1
    return OK, last, pos - (count >> 3)


@jit
def _decode_ac_first(
    bits: Any, size: int, tables: Any, layout: Any, plane: Any, history: Any, first: int, last: int
) -> Any:
    """The first scan of a band of AC coefficients; notes in ``history``, one bit each, which are not zero."""
    start, end, shift = layout[4], layout[5], layout[7]
    ac_row = np.uint64(layout[13])
    pos: Any = 0
    count: Any = 0
    buf = np.uint64(0)
    b = first
    while b < last:
        o = np.uint64(b * 64)
        found = np.uint64(0)
        empty: Any = 0  # further blocks in which the band is empty
        k = start - 1
        while k < end:
            if count < 32:
                buf |= load(bits, pos) >> np.uint64(count)
                pos += (63 - count) >> 3
                count |= 56
            entry = np.int64(tables[ac_row, buf >> _TOP])
            value = entry >> 16
            if value != 0:
                used = entry & 255
                k += (entry >> 8) & 255
            else:
                symbol = find_symbol(tables, ac_row, entry, buf)
                if symbol < 0:
                    return BAD_CODE, b, pos - (count >> 3)
                used = symbol >> 8
                width = symbol & 15
                run = (symbol >> 4) & 15
                if width == 0:
                    if run < 15:
                        empty = (1 << run) - 1
                        if run > 0:
                            empty += np.int64(buf << np.uint64(used) >> np.uint64(64 - run))
                        used += run
                        buf <<= np.uint64(used)
                        count -= used
                        break
                    k += 16
                    buf <<= np.uint64(used)
                    count -= used
                    continue
                k += run + 1
                value = receive(buf << np.uint64(used), width)
                used += width
            buf <<= np.uint64(used)
            count -= used
            value <<= shift
            if value != np.int64(np.int16(value)):
                return BAD_VALUE, b, pos - (count >> 3)
            plane[o + np.uint64(_NATURAL[np.uint64(k)])] = value
            found |= _ONE << np.uint64(k & 63)
        if k > end:
            return BAD_RUN, b, pos - (count >> 3)
        if pos * 8 - count > size * 8:
            return TOO_SHORT, b, size
        history[np.uint64(b)] |= found
        b += 1 + empty
    if b > last:
        return BAD_RUN, last, pos - (count >> 3)
    return OK, last, pos - (count >> 3)


@jit
def _decode_ac_refine(
    bits: Any, size: int, tables: Any, layout: Any, plane: Any, history: Any, damaged: Any, first: int, last: int
) -> Any:
    """One more bit for a band of AC coefficients (T.81, G.1.2.3), walking over bit masks instead of coefficients."""
    start, end, shift = layout[4], layout[5], layout[7]
    ac_row = np.uint64(layout[13])
    band = ((_ONE << np.uint64(end)) << _ONE) - (_ONE << np.uint64(start))
    pos: Any = 0
    count: Any = 0
    buf = np.uint64(0)
    empty: Any = 0  # blocks, this one included, to which nothing is added
    for b in range(first, last):
        if damaged.size > 0 and damaged[b]:
            return BAD_HISTORY, b, pos - (count >> 3)
        o = np.uint64(b * 64)
        old = history[np.uint64(b)] & band
        if empty > 0 and old == 0:
            empty -= 1
            continue
        k = start
        while k <= end:
            value: Any = 0
            target: Any = 255  # at the end of a band every coefficient that is there gets its bit
            if empty == 0:
                if count < 32:
                    buf |= load(bits, pos) >> np.uint64(count)
                    pos += (63 - count) >> 3
                    count |= 56
                entry = np.int64(tables[ac_row, buf >> _TOP])
                value = entry >> 16
                used = entry & 255
                run = ((entry >> 8) & 255) - 1
                if value == 0:
                    symbol = find_symbol(tables, ac_row, entry, buf)
                    used = symbol >> 8
                    run = (symbol >> 4) & 15
                    width = symbol & 15
                    if symbol < 0 or width > 1:
                        return BAD_CODE, b, pos - (count >> 3)
                    if width == 1:
                        value = receive(buf << np.uint64(used), 1)
                        used += 1
                    elif run < 15:
                        empty = 1 << run
                        if run > 0:
                            empty += np.int64(buf << np.uint64(used) >> np.uint64(64 - run))
                        used += run
                elif value != 1 and value != -1:
                    return BAD_CODE, b, pos - (count >> 3)
                buf <<= np.uint64(used)
                count -= used
                if empty == 0:
                    target = k + run  # if none of those it passes is there; each one that is moves it on
            passed = old >> np.uint64(k) << np.uint64(k)
            while passed != 0:
                n = np.int64(_BIT_NUMBER[((passed & (~passed + _ONE)) * _DE_BRUIJN) >> np.uint64(58)])
                if n > target:
                    break
                target += 1
                passed &= passed - _ONE
                if count < 1:
                    buf |= load(bits, pos) >> np.uint64(count)
                    pos += (63 - count) >> 3
                    count |= 56
                i = o + np.uint64(_ZIGZAG[np.uint64(n)])
                old_value = np.int64(plane[i])
                sign = old_value >> 63
                plane[i] = old_value + ((np.int64(buf >> np.uint64(63)) << shift) ^ sign) - sign
                buf <<= _ONE
                count -= 1
            if empty > 0:
                break
            if target > end:
                return BAD_RUN, b, pos - (count >> 3)
            if value != 0:
                plane[o + np.uint64(_ZIGZAG[np.uint64(target)])] = value << shift
                history[np.uint64(b)] |= _ONE << np.uint64(target)
            k = target + 1
        if pos * 8 - count > size * 8:
            return TOO_SHORT, b, size
        if empty > 0:
            empty -= 1
    if empty > 0:
        return BAD_RUN, last, pos - (count >> 3)
    return OK, last, pos - (count >> 3)


@jit
def decode_scan(
    mode: int, data: Any, pos: int, scratch: Any, tables: Any, pairs: Any, layout: Any,
    plane0: Any, plane1: Any, plane2: Any, plane3: Any, history: Any, damaged: Any, missing: Any,
) -> Any:  # fmt: skip
    """Decode the scan whose entropy-coded data begin at ``pos``.

    Arguments:
        mode: ``SEQUENTIAL`` and so on.
        data, scratch: the file, and room for as many bytes and ``SLACK`` more; uint8.
        tables, pairs: Huffman tables, see :mod:`cdzoo.codecs._jpeg_bits`.
        layout: int64: components, MCU columns, MCUs, restart interval or 0, Ss, Se, Ah, Al; then per component
            vertical and horizontal blocks in an MCU, Hb, Wb, row of the DC table, row of the AC table, 0, 0.
        plane0 ... plane3: int16, ``Hb * Wb * 64``, one for each component of the scan, and any for the others.
        history: uint64 per block, the coefficients that are not zero; for AC scans.
        damaged: per block, whether a refinement must stop there; empty if there is none.
        missing: per MCU, set to 1 where nothing could be decoded; or empty: then decoding stops at the first damage.

    Returns:
        The first status that is not ``OK``; the position of the marker that ends the scan; where the damaged segment
        begins, how many bytes of it (without stuffing) had been used, and the MCU that had been reached.
    """
    num_mcus = layout[2]
    interval = layout[3] if layout[3] > 0 else num_mcus
    num_segments = (num_mcus + interval - 1) // interval
    planes = (plane0, plane1, plane2, plane3)
    spare = np.zeros(64, np.int16)
    failure = (OK, 0, 0, 0)
    segment = 0
    while True:
        first = segment * interval
        last = min(first + interval, num_mcus)
        size, marker = open_segment(data, pos, scratch)
        if mode == AC_FIRST:
            result = _decode_ac_first(scratch, size, tables, layout, plane0, history, first, last)
        elif mode == AC_REFINE:
            result = _decode_ac_refine(scratch, size, tables, layout, plane0, history, damaged, first, last)
        else:
            result = _decode_blocks(mode, scratch, size, tables, pairs, layout, planes, spare, first, last)
        status, reached, used = result
        if status == OK and used < size:
            status = TOO_LONG
        if status != OK:
            if failure[0] == OK:
                failure = (status, pos, used, reached)
            if missing.size == 0:
                break
            missing[reached:last] = 1
        if segment + 1 == num_segments:
            break
        if marker < data.size and data[marker + 1] == 0xD0 + (segment & 7):
            pos = marker + 2
            segment += 1
            continue
        if failure[0] == OK:
            failure = (BAD_RESTART, marker, 0, last)
        if missing.size == 0:
            break
        pos, segment = resume(data, marker, segment, num_segments)
        missing[last : min(segment * interval, num_mcus)] = 1
        if segment >= num_segments:
            missing[last:] = 1
            marker = pos
            break
    return failure[0], marker, failure[1], failure[2], failure[3]
