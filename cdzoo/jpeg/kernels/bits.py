"""Foundations of JPEG entropy decoding: Huffman tables, byte stuffing, restart markers. Compiled by Numba.

Import on first use only: this imports Numba.

A Huffman table is one row of ``TABLE_SIZE`` int32. Its first 2**10 entries are indexed by the next ten bits, and hold
the length of the code in bits 7..0 and the symbol above them; 0 where the code is longer, or there is none. Behind them
stand 18 limits and 18 offsets for the search by length (ITU-T T.81, figure F.16), and the 256 symbols.

A pair table serves the AC coefficients of sequential scans: 2**10 uint64, indexed like the others. One lookup gives
one coefficient, of which the value may lie beyond the ten bits, and often all of a second one, or the end of the block.

==============  =============  =============  ============  =============  =============  ============
bits 63..48     bits 47..40    bits 39..32    bits 31..24   bits 23..16    bits 15..8     bits 7..0
==============  =============  =============  ============  =============  =============  ============
second value    second run     first run      bits of the   bits of the    bits of the    bits of both
                + 1; 0: none   + 1            first value   first code     first
==============  =============  =============  ============  =============  =============  ============

A run of ``BLOCK_ENDS`` stands for the end of the block; a first run of ``LOOK_FURTHER`` for anything else.

A skip table serves blocks whose AC coefficients nobody wants: 2**12 uint16, indexed by the next twelve bits. One lookup
passes over all coefficients whose codes begin and end there: their bits in bits 4..0, whether the block ends with them
in bit 5, how far they advance in the block above that; an advance of ``LOOK_FURTHER`` stands for anything else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.jpeg.kernels.jit import jit, load, store

LOOKUP_BITS = 10
LOOKUP_SIZE = 1 << LOOKUP_BITS
LIMITS = LOOKUP_SIZE
OFFSETS = LIMITS + 18
SYMBOLS = OFFSETS + 18
TABLE_SIZE = SYMBOLS + 256

SKIP_BITS = 12

#: Larger than any position in a block, together with the runs before it; see the module's docstring.
LOOK_FURTHER, BLOCK_ENDS = 64, 128

#: Zero bytes behind a segment: 248 for the longest block, 8 that are loaded at once, 16 to spare.
SLACK = 272

#: Bytes behind the last block of a segment that libjpeg drops without a word.
MOST_PADDING = 3

OK, BAD_CODE, BAD_RUN, BAD_VALUE, TOO_SHORT, TOO_LONG, BAD_RESTART, BAD_HISTORY = range(8)


@jit
def build_table(data: Any, position: int, tables: Any, row: int) -> None:
    """Fill a row from a checked DHT payload (16 counts, then symbols) at a position of ``data``."""
    code = 0
    index = 0
    end = 0
    for length in range(1, 17):
        tables[row, OFFSETS + length] = index - code
        for _ in range(data[position + length - 1]):
            symbol = np.int32(data[position + 16 + index])
            tables[row, SYMBOLS + index] = symbol
            if length <= LOOKUP_BITS:
                for place in range(end, end + (LOOKUP_SIZE >> length)):
                    tables[row, place] = symbol << 8 | length
                end += LOOKUP_SIZE >> length
            code += 1
            index += 1
        tables[row, LIMITS + length] = code << (16 - length)
        code <<= 1
    for place in range(end, LOOKUP_SIZE):
        tables[row, place] = 0


@jit
def _value(bits: Any, used: Any, size: Any) -> Any:
    """The signed value of ``size`` bits behind the first ``used`` of ten."""
    value = (bits >> (LOOKUP_BITS - used - size)) & ((1 << size) - 1)
    if value < 1 << (size - 1):
        value -= (1 << size) - 1
    return value


@jit
def build_pairs(tables: Any, pairs: Any, row: int) -> None:
    """Fill the pair table of a row."""
    for bits in range(LOOKUP_SIZE):
        code = np.int64(tables[row, bits])
        length = code & 255
        size = (code >> 8) & 15
        used = length + size
        entry: Any = (code >> 12) + 1
        if size == 0:
            entry = BLOCK_ENDS if 0 < code < 256 else LOOK_FURTHER
        entry = entry << 32 | size << 24 | length << 16 | used << 8 | used
        if size > 0 and used < LOOKUP_BITS:
            code = np.int64(tables[row, (bits << used) & (LOOKUP_SIZE - 1)])
            length = code & 255
            size = (code >> 8) & 15
            total = used + length + size
            if code != 0 and total <= LOOKUP_BITS:
                if size > 0:
                    entry += total - used | ((code >> 12) + 1) << 40 | _value(bits, used + length, size) << 48
                elif code < 256:
                    entry += total - used | BLOCK_ENDS << 40
        pairs[row, bits] = entry


@jit
def build_skips(tables: Any, skips: Any, row: int) -> None:
    """Fill the skip table of a row."""
    for bits in range(1 << SKIP_BITS):
        used: Any = 0
        advance: Any = 0
        ends: Any = 0
        while used < SKIP_BITS and not ends:
            code = np.int64(tables[row, ((bits << used) & ((1 << SKIP_BITS) - 1)) >> (SKIP_BITS - LOOKUP_BITS)])
            length = code & 255
            size = (code >> 8) & 15
            if code == 0 or used + length > SKIP_BITS or (size == 0 and code >= 256):
                break
            used += length + size  # the bits of the last value may lie behind the twelve
            if size == 0:
                ends = 1
            else:
                advance += (code >> 12) + 1
        skips[row, bits] = used | ends << 5 | (advance if used > 0 else LOOK_FURTHER) << 6


@jit
def open_segment(data: Any, pos: Any, out: Any) -> Any:
    """Copy entropy-coded bytes up to the next marker, without stuffing; returns their number and the marker's position.

    Zeros follow the copy. If the file ends first, the position is the file's size.
    """
    end = data.size
    n: Any = 0
    marker = -1
    while marker < 0:
        while pos + 8 <= end:
            word = load(data, np.uint64(pos))
            # An FF among eight bytes is a zero byte of the complement: the classic test with the complement folded in.
            if (~word - np.uint64(0x0101010101010101)) & word & np.uint64(0x8080808080808080):
                break
            store(out, np.uint64(n), word)
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
def find_code(tables: Any, row: Any, buf: Any) -> Any:
    """Find a code of more than ten bits: its length in bits 7..0 and its symbol above them, or 0 for none."""
    code = np.int64(buf >> np.uint64(48))
    for length in range(LOOKUP_BITS + 1, 17):
        if code < tables[row, LIMITS + length]:
            index = tables[row, OFFSETS + length] + (code >> (16 - length))
            return np.uint64(np.int64(tables[row, SYMBOLS + index]) << 8 | length)
    return np.uint64(0)


@jit
def receive(buf: Any, size: Any) -> Any:
    """The signed value in the ``size`` bits on top (T.81, RECEIVE and EXTEND), 0 for none; without a branch."""
    flip = ~np.uint64(np.int64(buf) >> 63)  # all ones if the value is negative: its complement is stored
    value = ((buf ^ flip) >> np.uint64(1)) >> ((np.uint64(63) - size) & np.uint64(63))
    return np.int64((value ^ flip) - flip)


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
    """Return true if this looks like a marker that an encoder wrote, and not like damage with an FF in it."""
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
def restarts(data: Any, marker: Any, at: Any, left: Any) -> Any:
    """Count the restart markers that follow each other from ``marker`` on, which is the first of them.

    An earlier call has found ``left`` of them from ``at`` on. A run of markers is counted only once, even if many
    segments are damaged, so that the time for a file is proportional to its size.
    """
    while left > 0 and at < marker:
        left -= 1
        at = next_marker(data, at + 2)
    if left > 0 and at == marker:
        return left
    left = np.int64(0)
    while marker < data.size and 0xD0 <= data[marker + 1] < 0xD8:
        left += 1
        marker = next_marker(data, marker + 2)
    return left


@jit
def resume(data: Any, marker: Any, segment: Any, num_segments: int, at: Any, left: Any) -> Any:
    """Find the place to go on after damage in ``segment`` of a scan.

    Restart markers count modulo 8, so a number tells how many segments are lost. If the number itself is damaged, there
    are still as many markers as there should be, and their order is used.

    Returns:
        the position; the number of the segment there, or ``num_segments`` if there is none; and ``at`` and ``left``,
        see :func:`restarts`, for the next call.
    """
    while True:
        while marker < data.size and not 0xD0 <= data[marker + 1] < 0xD8:
            if ends_scan(data, marker):
                return marker, num_segments, at, left
            marker = next_marker(data, marker + 2)
        if marker >= data.size:
            return marker, num_segments, at, left
        ahead = (np.int64(data[marker + 1]) - 0xD0 - segment) & 7
        if ahead == 0:
            return marker + 2, segment + 1, at, left
        left = restarts(data, marker, at, left)
        at = marker
        if left == num_segments - 1 - segment:
            return marker + 2, segment + 1, at, left
        if ahead < 6:
            return marker + 2, segment + 1 + ahead, at, left
        marker = next_marker(data, marker + 2)  # it lies behind what has been decoded: drop what follows it
