"""Entropy coding of sequential JPEG scans (ITU-T T.81, Annexes F.1 and K.2), compiled by Numba.

Import on first use only: this imports Numba. A scan goes through two kernels: the first one makes tokens and counts
their symbols, the second one writes them with codes made for those counts. A token is an int32: 8 bits of symbol, the
number of the table above them, and 16 bits with the value above that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.jpeg.geometry import ZIGZAG
from cdzoo.jpeg.kernels.jit import jit

__all__ = ["SCAN_COMPONENT", "ScanLayout", "huffman_table", "tokenize", "write_tokens"]

MAX_AC_BITS = 10
MAX_DC_BITS = 11

_ZIGZAG = ZIGZAG.astype(np.uint8)

#: A component of a scan: blocks in an MCU, rows and columns of blocks, numbers of its DC and AC table.
SCAN_COMPONENT = np.dtype(
    [(name, np.int64) for name in ("vertical", "horizontal", "rows", "columns", "dc_table", "ac_table")]
)


class ScanLayout(NamedTuple):
    """Layout of a scan to be written."""

    rows: int  # of MCUs
    columns: int
    components: NDArray[Any]  # SCAN_COMPONENT


@jit
def _token(table: int, run: int, value: int) -> Any:
    """A value, its zero run and its size; negative values are stored as the format wants them, minus one."""
    magnitude = abs(value)
    size = 0
    while magnitude:
        size += 1
        magnitude >>= 1
    if value < 0:
        value -= 1
    return ((value & ((1 << size) - 1)) << 12) | (table << 8) | (run << 4) | size


@jit
def tokenize(layout: Any, plane0: Any, plane1: Any, plane2: Any, plane3: Any, tokens: Any, counts: Any) -> Any:
    """Make the tokens of a scan.

    Returns:
        their number; or ``-1 - 4 * block - component`` for a block that has a value out of range.

    Args:
        layout: :class:`ScanLayout`.
        plane0, plane1, plane2, plane3: coefficients int16 of the components, natural order, contiguous; any array for
            those that are not there.
        tokens: int32, to be filled, 64 per block, those that only complete an MCU included.
        counts: ``(4, 256)`` zeros int64: how often each table's symbols occur.
    """
    planes = (plane0, plane1, plane2, plane3)
    predictions = np.zeros(4, np.int64)
    n = 0
    for y in range(layout.rows):
        for x in range(layout.columns):
            for c in range(layout.components.size):
                component = layout.components[c]
                horizontal = component.horizontal
                dc = component.dc_table
                ac = component.ac_table
                plane = planes[c]
                for i in range(component.vertical * horizontal):
                    row = y * component.vertical + i // horizontal
                    column = x * horizontal + i % horizontal
                    if row >= component.rows or column >= component.columns:
                        tokens[n] = dc << 8  # no difference, and an end of block: the least that completes an MCU
                        tokens[n + 1] = ac << 8
                        counts[dc, 0] += 1
                        counts[ac, 0] += 1
                        n += 2
                        continue
                    o = (row * component.columns + column) * 64
                    value = np.int64(plane[o])
                    token = _token(dc, 0, value - predictions[c])
                    predictions[c] = value
                    if token & 15 > MAX_DC_BITS or (token >> 4) & 15:
                        return -1 - (o >> 6) * 4 - c
                    tokens[n] = token
                    counts[dc, token & 255] += 1
                    n += 1
                    run = 0
                    for k in range(1, 64):
                        value = np.int64(plane[o + np.int64(_ZIGZAG[k])])
                        if value == 0:
                            run += 1
                            continue
                        if abs(value) >> MAX_AC_BITS:
                            return -1 - (o >> 6) * 4 - c
                        while run > 15:
                            tokens[n] = (ac << 8) | 0xF0
                            counts[ac, 0xF0] += 1
                            n += 1
                            run -= 16
                        token = _token(ac, run, value)
                        tokens[n] = token
                        counts[ac, token & 255] += 1
                        n += 1
                        run = 0
                    if run > 0:
                        tokens[n] = ac << 8
                        counts[ac, 0] += 1
                        n += 1
    return n


@jit
def huffman_table(counts: Any, payload: Any, codes: Any) -> Any:
    """Make the best codes of at most 16 bits for 256 counts (T.81, K.2); no code is all ones.

    Args:
        counts: int64, how often each symbol occurs.
        payload: 16 + 256 zeros, which become the payload of a DHT.
        codes: 256 zeros, which become the codes, with their lengths above bit 16.

    Returns:
        the length of the payload.
    """
    weights = np.zeros(257, np.int64)
    for i in range(256):  # an assignment of slices takes Numba four seconds to compile
        weights[i] = counts[i]
    weights[256] = 1  # holds the place of the code of all ones
    lengths = np.zeros(257, np.int64)
    chain = np.full(257, -1, np.int64)
    while True:
        one: Any = -1  # the least weight, and the next; of equal ones the last symbol
        two: Any = -1
        for i in range(257):
            if weights[i] > 0:
                if one < 0 or weights[i] <= weights[one]:
                    two = one
                    one = i
                elif two < 0 or weights[i] <= weights[two]:
                    two = i
        if two < 0:
            break
        weights[one] += weights[two]
        weights[two] = 0
        lengths[one] += 1
        while chain[one] >= 0:
            one = chain[one]
            lengths[one] += 1
        chain[one] = two
        lengths[two] += 1
        while chain[two] >= 0:
            two = chain[two]
            lengths[two] += 1
    bits = np.zeros(258, np.int64)
    for i in range(257):
        bits[lengths[i]] += 1
    for length in range(256, 16, -1):  # no code is longer than 16: figure K.3
        while bits[length] > 0:
            shorter = length - 2
            while bits[shorter] == 0:
                shorter -= 1
            bits[length] -= 2
            bits[length - 1] += 1
            bits[shorter + 1] += 2
            bits[shorter] -= 1
    longest = 16
    while bits[longest] == 0:
        longest -= 1
    bits[longest] -= 1
    n = 0
    for length in range(1, 257):  # by length before the limit: the order of likelihood
        for i in range(256):
            if lengths[i] == length:
                payload[16 + n] = i
                n += 1
    code = 0
    n = 0
    for length in range(1, 17):
        payload[length - 1] = bits[length]
        for _ in range(bits[length]):
            codes[payload[16 + n]] = (length << 16) | code
            code += 1
            n += 1
        code <<= 1
    return 16 + n


@jit
def write_tokens(tokens: Any, codes: Any, out: Any) -> Any:
    """Write tokens with ``codes`` ``(4, 256)``, with stuffing and padding; returns the number of bytes in ``out``."""
    buf = np.uint64(0)
    count: Any = 0
    n = 0
    for i in range(tokens.size):
        token = np.int64(tokens[i])
        entry = np.int64(codes[(token >> 8) & 3, token & 255])
        size = token & 15
        buf = (buf << np.uint64((entry >> 16) + size)) | np.uint64(((entry & 0xFFFF) << size) | (token >> 12))
        count += (entry >> 16) + size
        while count >= 8:
            count -= 8
            byte = np.uint8(buf >> np.uint64(count))
            out[n] = byte
            n += 1
            if byte == 0xFF:
                out[n] = 0
                n += 1
    if count > 0:
        byte = np.uint8((buf << np.uint64(8 - count)) | np.uint64((1 << (8 - count)) - 1))
        out[n] = byte
        n += 1
        if byte == 0xFF:
            out[n] = 0
            n += 1
    return n
