"""What JPEG entropy decoding stands on: table layout, byte stuffing, restart markers. Compiled by Numba.

Import on first use only: this imports Numba. After a change here, touch ``jpeg_huffman.py`` too: of a cached kernel
Numba watches only the file that it stands in, not those that it calls into, and would go on with the old code.

A Huffman table is one row of ``TABLE_SIZE`` int32. Its first 2**10 entries are indexed by the next ten bits:

====================  ======================  =================  ============================================
bits 31..16           bits 15..8              bits 7..0          where
====================  ======================  =================  ============================================
value, not zero       zero run + 1            bits of both       code and value fit in ten bits
0                     symbol                  bits of the code   the code fits
0                     0                       0                  the code is longer, or there is none
====================  ======================  =================  ============================================

Behind them stand 18 limits and 18 offsets for the search by length (ITU-T T.81, figure F.16), and the 256 symbols.

A pair table serves AC coefficients: 2**10 int64, two coefficients per lookup, or one and the end of block:

==============  ==============  ======================================  ============  ==============  ============
bits 63..48     bits 47..32     bits 31..24                             bits 23..16   bits 15..8      bits 7..0
==============  ==============  ======================================  ============  ==============  ============
second value    first value     second run + 1, 0: none, 128: block     first run     bits of the     bits of both
                                ends                                    + 1           first
==============  ==============  ======================================  ============  ==============  ============

With no first run, bits 7..0 are the length of a bare end of block; an entry of 0 sends the reader to the other table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.codecs._jpeg_jit import jit

LOOKUP_BITS = 10
LOOKUP_SIZE = 1 << LOOKUP_BITS
LIMITS = LOOKUP_SIZE
OFFSETS = LIMITS + 18
SYMBOLS = OFFSETS + 18
TABLE_SIZE = SYMBOLS + 256

#: Zero bytes behind a segment: 248 for the longest block, 8 that are loaded at once, 16 to spare.
SLACK = 272

OK, BAD_CODE, BAD_RUN, BAD_VALUE, TOO_SHORT, TOO_LONG, BAD_RESTART, BAD_HISTORY = range(8)


@jit
def build_table(payload: Any, row: Any, pairs: Any) -> None:
    """Fill one zeroed row and its pair table from a DHT payload that has been checked: 16 counts, then symbols."""
    code = 0
    index = 0
    for length in range(1, 17):
        row[OFFSETS + length] = index - code
        for _ in range(payload[length - 1]):
            symbol = np.int64(payload[16 + index])
            row[SYMBOLS + index] = symbol
            size = symbol & 15
            free = LOOKUP_BITS - length
            if free >= 0:
                for rest in range(1 << free):
                    entry: Any = (symbol << 8) | length
                    if 0 < size <= free:
                        value = rest >> (free - size)
                        if value < 1 << (size - 1):
                            value -= (1 << size) - 1
                        entry = (value << 16) | (((symbol >> 4) + 1) << 8) | (length + size)
                    row[(code << free) + rest] = entry
            code += 1
            index += 1
        row[LIMITS + length] = code << (16 - length)
        code <<= 1
    for bits in range(pairs.size):
        first = np.int64(row[bits])
        used = first & 255
        if first >> 16 == 0:
            pairs[bits] = used if first >> 8 == 0 else 0
            continue
        second = np.int64(row[(bits << used) & (LOOKUP_SIZE - 1)])
        total = used + (second & 255)
        entry = (((first >> 16) & 0xFFFF) << 32) | (((first >> 8) & 255) << 16) | (used << 8)
        if second == 0 or total > LOOKUP_BITS or (second >> 16 == 0 and second >> 8 != 0):
            entry |= ((first >> 16) << 48) | used
        elif second >> 16 == 0:
            entry |= (128 << 24) | total
        else:
            entry |= ((second >> 16) << 48) | (((second >> 8) & 255) << 24) | total
        pairs[bits] = entry


@jit
def open_segment(data: Any, pos: Any, out: Any) -> Any:
    """Copy entropy-coded bytes up to the next marker, without stuffing, zeros behind; (bytes, position of the marker).

    Where the file ends first, the position is the file's size.
    """
    end = data.size
    n: Any = 0
    marker = -1
    while marker < 0:
        while pos + 8 <= end:
            i = np.uint64(pos)
            word: Any = (
                np.uint64(data[i])
                | np.uint64(data[i + np.uint64(1)]) << np.uint64(8)
                | np.uint64(data[i + np.uint64(2)]) << np.uint64(16)
                | np.uint64(data[i + np.uint64(3)]) << np.uint64(24)
                | np.uint64(data[i + np.uint64(4)]) << np.uint64(32)
                | np.uint64(data[i + np.uint64(5)]) << np.uint64(40)
                | np.uint64(data[i + np.uint64(6)]) << np.uint64(48)
                | np.uint64(data[i + np.uint64(7)]) << np.uint64(56)
            )
            # An FF among eight bytes is a zero byte of the complement: the classic test with the complement folded in.
            if (~word - np.uint64(0x0101010101010101)) & word & np.uint64(0x8080808080808080):
                break
            o = np.uint64(n)
            out[o] = np.uint8(word)
            out[o + np.uint64(1)] = np.uint8(word >> np.uint64(8))
            out[o + np.uint64(2)] = np.uint8(word >> np.uint64(16))
            out[o + np.uint64(3)] = np.uint8(word >> np.uint64(24))
            out[o + np.uint64(4)] = np.uint8(word >> np.uint64(32))
            out[o + np.uint64(5)] = np.uint8(word >> np.uint64(40))
            out[o + np.uint64(6)] = np.uint8(word >> np.uint64(48))
            out[o + np.uint64(7)] = np.uint8(word >> np.uint64(56))
            n += 8
            pos += 8
        stop = min(pos + 8, end)
        while pos < stop:
            byte = data[np.uint64(pos)]
            if byte == 0xFF:
                while pos + 1 < end and data[np.uint64(pos + 1)] == 0xFF:  # any number of FF may fill up to a marker
                    pos += 1
                if pos + 1 >= end:
                    pos = end
                    break
                if data[np.uint64(pos + 1)] != 0:
                    marker = pos
                    break
                pos += 1
            out[np.uint64(n)] = byte
            n += 1
            pos += 1
        if pos >= end:
            marker = end
    for beyond in range(n, n + SLACK):
        out[np.uint64(beyond)] = 0
    return n, marker


@jit
def load(bits: Any, pos: Any) -> Any:
    """Eight bytes, the first one on top."""
    i = np.uint64(pos)
    return (
        np.uint64(bits[i]) << np.uint64(56)
        | np.uint64(bits[i + np.uint64(1)]) << np.uint64(48)
        | np.uint64(bits[i + np.uint64(2)]) << np.uint64(40)
        | np.uint64(bits[i + np.uint64(3)]) << np.uint64(32)
        | np.uint64(bits[i + np.uint64(4)]) << np.uint64(24)
        | np.uint64(bits[i + np.uint64(5)]) << np.uint64(16)
        | np.uint64(bits[i + np.uint64(6)]) << np.uint64(8)
        | np.uint64(bits[i + np.uint64(7)])
    )


@jit
def find_symbol(tables: Any, row: Any, entry: int, buf: Any) -> Any:
    """The symbol in bits 7..0 and the length of its code above them, for an ``entry`` without a value; or -1."""
    if entry != 0:
        return np.int64((entry >> 8) | ((entry & 255) << 8))
    code = np.int64(buf >> np.uint64(48))
    for length in range(LOOKUP_BITS + 1, 17):
        if code < tables[row, LIMITS + length]:
            index = tables[row, OFFSETS + length] + (code >> (16 - length))
            return np.int64(tables[row, SYMBOLS + index]) | (length << 8)
    return -1


@jit
def receive(buf: Any, size: int) -> Any:
    """The signed value in the ``size`` bits on top (T.81, RECEIVE and EXTEND); ``size`` is at least 1."""
    value = np.int64(buf >> np.uint64(64 - size))
    if value < 1 << (size - 1):
        value -= (1 << size) - 1
    return value


@jit
def next_marker(data: Any, pos: Any) -> Any:
    """The position of the next marker, or the file's size."""
    while pos + 1 < data.size:
        if data[pos] == 0xFF and data[pos + 1] != 0 and data[pos + 1] != 0xFF:
            return pos
        pos += 1
    return np.int64(data.size)


@jit
def ends_scan(data: Any, marker: int) -> Any:
    """Whether this looks like a marker that an encoder wrote, and not like damage that happens to hold an FF."""
    if marker + 5 >= data.size:
        return True
    code = data[marker + 1]
    if code == 0xD9:
        return True
    length = (np.int64(data[marker + 2]) << 8) | np.int64(data[marker + 3])
    if code == 0xDA:
        return 1 <= data[marker + 4] <= 4 and length == 6 + 2 * np.int64(data[marker + 4])
    if code < 0xC0 or 0xD0 <= code < 0xDA or length < 2:
        return False
    after = marker + 2 + length
    return after + 1 < data.size and data[after] == 0xFF and data[after + 1] >= 0xC0


@jit
def resume(data: Any, marker: int, segment: Any, num_segments: int) -> Any:
    """Where to go on, and with which segment, after ``segment`` of a damaged scan; the last one + 1 if nowhere.

    Restart markers count modulo 8, so a number tells how many segments are lost, unless it is the number itself that
    is damaged: then there are still as many markers as there should be, and their order is trusted.
    """
    while True:
        while marker < data.size and not 0xD0 <= data[marker + 1] < 0xD8:
            if ends_scan(data, marker):
                return marker, num_segments
            marker = next_marker(data, marker + 2)
        if marker >= data.size:
            return marker, num_segments
        ahead = (np.int64(data[marker + 1]) - 0xD0 - segment) & 7
        if ahead == 0:
            return marker + 2, segment + 1
        left = 0
        other: Any = marker
        while other < data.size and 0xD0 <= data[other + 1] < 0xD8:
            left += 1
            other = next_marker(data, other + 2)
        if left == num_segments - 1 - segment:
            return marker + 2, segment + 1
        if ahead < 6:
            return marker + 2, segment + 1 + ahead
        marker = next_marker(data, marker + 2)  # it lies behind what has been decoded: drop what follows it
