"""Entropy decoding of JPEG scans, sequential and progressive (ITU-T T.81, Annexes F and G), compiled by Numba.

Import on first use only: this imports Numba. One call decodes one scan, without the GIL. No index is checked; safe are

* all that comes from markers: every field has been checked before (:mod:`cdzoo.jpeg._markers`, or
  :mod:`cdzoo.jpeg.kernels.files`),
* reads: from a copy without byte stuffing, with more zero bytes behind it than any block can eat, checked per block,
* zigzag positions: looked up in a table padded beyond the longest run, checked per block,
* writes: blocks which only complete an MCU are decoded into a spare one.

A segment is what lies between two restart markers. The decoders of segments return a status, the MCU they reached, and
the bytes they used. Bit buffers hold the next bits on top; ``count`` of them are valid, those below are either zero or
what the next load puts there again. A load leaves at least 56 valid bits. It stands between a lookup and what needs
more bits than the lookup: so neither waits for the other, and there is no branch to mispredict.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.jpeg.kernels.bands import decode_ac_first, decode_ac_refine
from cdzoo.jpeg.kernels.bits import (
    BAD_CODE,
    BAD_RESTART,
    BAD_RUN,
    BAD_VALUE,
    BLOCK_ENDS,
    LOOK_FURTHER,
    LOOKUP_BITS,
    MOST_PADDING,
    OK,
    TOO_LONG,
    TOO_SHORT,
    find_code,
    open_segment,
    receive,
    resume,
)
from cdzoo.jpeg.kernels.jit import int16s, jit, load
from cdzoo.jpeg.kernels.layout import (
    AC_ROW,
    AC_ROWS,
    BASE,
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    BLOCKS_DOWN,
    BLOCKS_RIGHT,
    CLEAR,
    COLUMNS,
    COMPONENT,
    COUNT,
    DC_ROW,
    DC_ROWS,
    DOWN,
    HIGH,
    HORIZONTAL,
    INTERVAL,
    LIMIT,
    LOW,
    NATURAL,
    NUMBERS,
    PREDICTIONS,
    PROGRESSIVE,
    RIGHT,
    ROWS,
    SCAN,
    SPARE,
    START,
    STEP,
    TARGETS,
    VERTICAL,
)

__all__ = ["decode_scan"]

_TOP = np.uint64(64 - LOOKUP_BITS)
_ONE, _THREE, _EIGHT, _TWELVE, _FIFTEEN, _FULL, _LAST, _BYTE = (np.uint64(n) for n in (1, 3, 8, 12, 15, 56, 63, 255))


@jit
def _list_blocks(frame: Any, state: Any) -> Any:
    """Write down the blocks of an MCU in the order of the file; how many there are."""
    n = 0
    for i in range(state[SCAN, COUNT]):
        c = state[SCAN, NUMBERS + i]
        vertical, horizontal = frame[8 * c + VERTICAL], frame[8 * c + HORIZONTAL]
        if state[SCAN, COUNT] == 1:
            vertical = horizontal = 1
        for j in range(vertical * horizontal):
            state[n, COMPONENT] = c
            state[n, DC_ROW] = state[SCAN, DC_ROWS + i]
            state[n, AC_ROW] = state[SCAN, AC_ROWS + i]
            state[n, DOWN] = j // horizontal
            state[n, RIGHT] = j % horizontal
            state[n, BLOCKS_DOWN] = vertical
            state[n, BLOCKS_RIGHT] = horizontal
            n += 1
    return n


@jit
def _enter_row(frame: Any, state: Any, num_blocks: int, y: int) -> None:
    """Work out where the blocks of a row of MCUs go: those of the first MCU, and from one to the next."""
    for n in range(num_blocks):
        c = state[n, COMPONENT]
        row = y * state[n, BLOCKS_DOWN] + state[n, DOWN]
        columns = frame[8 * c + BLOCK_COLUMNS]
        step = state[n, BLOCKS_RIGHT]
        state[n, BASE] = state[TARGETS, c] + (row * columns + state[n, RIGHT]) * 128
        state[n, STEP] = step * 128
        state[n, LIMIT] = (columns - state[n, RIGHT] + step - 1) // step if row < frame[8 * c + BLOCK_ROWS] else 0


@jit
def _decode_sequential(
    bits: Any, size: int, frame: Any, state: Any, num_blocks: int, columns: int, tables: Any, pairs: Any,
    first: int, last: int,
) -> Any:  # fmt: skip
    """Decode MCUs ``first`` to ``last`` of a sequential scan.

    Where the data end inside an MCU, the rest of it is decoded from zero bits, as libjpeg does.
    """
    for i in range(4):
        state[PREDICTIONS, i] = 0
    end = np.uint64(size) << _THREE
    pos, count, buf = np.uint64(7), _FULL, load(bits, np.uint64(0))
    y = first // columns
    x = first - y * columns
    mcu = first
    short = False
    while mcu < last:
        _enter_row(frame, state, num_blocks, y)
        stop = min(last, mcu + columns - x)
        while mcu < stop:
            for b in range(num_blocks):
                n = np.uint64(b)
                place = state[n, BASE] + x * state[n, STEP]
                if x >= state[n, LIMIT]:
                    place = state[TARGETS, SPARE]
                block = int16s(np.uint64(place))
                for j in range(64):
                    block[np.uint64(j)] = 0
                ac_row = np.uint64(state[n, AC_ROW])

                row = np.uint64(state[n, DC_ROW])
                code = np.uint64(tables[row, buf >> _TOP])
                buf |= load(bits, pos) >> count
                pos += (_LAST - count) >> _THREE
                count |= _FULL
                if code == 0:
                    code = find_code(tables, row, buf)
                    if code == 0:
                        return BAD_CODE, mcu, pos - (count >> _THREE)
                length, width = code & _BYTE, code >> _EIGHT
                c = np.uint64(state[n, COMPONENT])
                value = receive(buf << length, width) + state[PREDICTIONS, c]
                buf <<= length + width
                count -= length + width
                state[PREDICTIONS, c] = value
                if value != np.int64(np.int16(value)):
                    return BAD_VALUE, mcu, pos - (count >> _THREE)
                block[np.uint64(0)] = value

                k = np.uint64(0)
                while True:
                    pair = pairs[ac_row, buf >> _TOP]
                    buf |= load(bits, pos) >> count
                    pos += (_LAST - count) >> _THREE
                    count |= _FULL
                    value = receive(buf << (pair >> np.uint64(16) & _BYTE), pair >> np.uint64(24) & _BYTE)
                    k += pair >> np.uint64(32) & _BYTE
                    if k >= _LAST:
                        used = pair >> _EIGHT & _BYTE
                        if pair >> np.uint64(32) & _BYTE != LOOK_FURTHER:  # all that follows is another block's
                            buf <<= used
                            count -= used
                            if k < BLOCK_ENDS:
                                block[np.uint64(NATURAL[k])] = value
                            break
                        k -= np.uint64(LOOK_FURTHER)
                        code = np.uint64(tables[ac_row, buf >> _TOP])
                        if code == 0:
                            code = find_code(tables, ac_row, buf)
                            if code == 0:
                                return BAD_CODE, mcu, pos - (count >> _THREE)
                        length, width = code & _BYTE, code >> _EIGHT & _FIFTEEN
                        if width == 0 and code >> _EIGHT != 0xF0:
                            buf <<= length
                            count -= length
                            if code >> _EIGHT == 0:
                                break
                            return BAD_CODE, mcu, pos - (count >> _THREE)
                        k += (code >> _TWELVE) + _ONE
                        if width > 0:
                            block[np.uint64(NATURAL[k])] = receive(buf << length, width)
                        buf <<= length + width
                        count -= length + width
                        if k >= _LAST:
                            break
                        continue
                    block[np.uint64(NATURAL[k])] = value
                    buf <<= pair & _BYTE
                    count -= pair & _BYTE
                    k += pair >> np.uint64(40) & _BYTE
                    second = np.int64(pair) >> 48
                    if k >= _LAST:
                        if k < BLOCK_ENDS:
                            block[np.uint64(NATURAL[k])] = second
                        break
                    block[np.uint64(NATURAL[k])] = second if second != 0 else value
                if k & np.uint64(127) > _LAST:
                    return BAD_RUN, mcu, pos - (count >> _THREE)
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
def _decode_dc(
    bits: Any, size: int, frame: Any, state: Any, num_blocks: int, columns: int, tables: Any, first: int, last: int
) -> Any:  # fmt: skip
    """Decode MCUs ``first`` to ``last`` of a progressive scan of DC coefficients; data that end early as below."""
    for i in range(4):
        state[PREDICTIONS, i] = 0
    shift = state[SCAN, LOW]
    refine = state[SCAN, HIGH] > 0
    clear = state[SCAN, CLEAR] > 0
    end = np.uint64(size) << _THREE
    pos, count, buf = np.uint64(7), _FULL, load(bits, np.uint64(0))
    y = first // columns
    x = first - y * columns
    mcu = first
    short = False
    while mcu < last:
        _enter_row(frame, state, num_blocks, y)
        stop = min(last, mcu + columns - x)
        while mcu < stop:
            for b in range(num_blocks):
                n = np.uint64(b)
                place = state[n, BASE] + x * state[n, STEP]
                if x >= state[n, LIMIT]:
                    place = state[TARGETS, SPARE]
                block = int16s(np.uint64(place))
                row = np.uint64(state[n, DC_ROW])
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
                    c = np.uint64(state[n, COMPONENT])
                    value = receive(buf << length, width) + state[PREDICTIONS, c]
                    buf <<= length + width
                    count -= length + width
                    state[PREDICTIONS, c] = value
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
def _mark(missing: Any, first: int, last: int) -> None:
    for mcu in range(first, last):
        missing[mcu] = 1


@jit
def decode_scan(
    data: Any, pos: int, scratch: Any, frame: Any, state: Any, tables: Any, pairs: Any,
    history: Any, damaged: Any, missing: Any,
) -> Any:  # fmt: skip
    """Decode the scan whose entropy-coded data begin at ``pos``.

    Arguments:
        data, scratch: the file, and room for as many bytes and ``SLACK`` more; uint8.
        frame, state: see :mod:`cdzoo.jpeg.kernels.layout`; of the state, the scan and the addresses are read. Planes
            are int16, ``Hb * Wb * 64``, contiguous.
        tables, pairs: Huffman tables, see :mod:`cdzoo.jpeg.kernels.bits`.
        history: uint64 per block, the coefficients that are not zero; for AC scans.
        damaged: per block, whether a refinement must stop there; empty if there is none.
        missing: per MCU, set to 1 where nothing could be decoded; or empty: then decoding stops at the first damage.

    Returns:
        The first status that is not ``OK``; the position of the marker that ends the scan; where the damaged segment
        begins, how many bytes of it (without stuffing) had been used, and the MCU that had been reached.
    """
    columns, num_mcus = frame[COLUMNS], frame[COLUMNS] * frame[ROWS]
    if state[SCAN, COUNT] == 1:
        c = 8 * state[SCAN, NUMBERS]
        columns, num_mcus = frame[c + BLOCK_COLUMNS], frame[c + BLOCK_COLUMNS] * frame[c + BLOCK_ROWS]
    num_blocks = _list_blocks(frame, state)
    interval = state[SCAN, INTERVAL] if state[SCAN, INTERVAL] > 0 else num_mcus
    num_segments = (num_mcus + interval - 1) // interval
    failure: Any = (OK, 0, 0, 0)
    segment = 0
    at, left = np.int64(0), np.int64(0)  # of restart markers
    while True:
        first = segment * interval
        last = min(first + interval, num_mcus)
        size, marker = open_segment(data, pos, scratch)
        if frame[PROGRESSIVE] == 0:
            result = _decode_sequential(scratch, size, frame, state, num_blocks, columns, tables, pairs, first, last)
        elif state[SCAN, START] == 0:
            result = _decode_dc(scratch, size, frame, state, num_blocks, columns, tables, first, last)
        elif state[SCAN, HIGH] == 0:
            result = decode_ac_first(scratch, size, state, tables, history, first, last)
        else:
            result = decode_ac_refine(scratch, size, state, tables, history, damaged, first, last)
        status, reached, used = result[0], result[1], np.int64(result[2])
        if status == OK and used + MOST_PADDING < size:
            status = TOO_LONG
        if status != OK:
            if failure[0] == OK:
                failure = (status, pos, used, reached)
            if missing.size == 0:
                break
            _mark(missing, reached, last)
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
        pos, segment, at, left = resume(data, marker, segment, num_segments, at, left)
        _mark(missing, last, min(segment * interval, num_mcus))
        if segment >= num_segments:
            _mark(missing, last, num_mcus)
            marker = pos
            break
    return failure[0], marker, failure[1], failure[2], failure[3]
