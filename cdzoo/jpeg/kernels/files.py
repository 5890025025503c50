"""Decoding of whole JPEG files, one after another, in one call and without the GIL.

Import on first use only: this imports Numba. This is the fast path for files in order, and reads headers of scans by
itself. It accepts less than :mod:`cdzoo.jpeg._markers`: after the first scan only other scans, Huffman tables and the
end of the image. At anything else, damage included, it stops. The caller then reads the file again, scan by scan, and
finds the reason. All values that a kernel relies on are checked here as they are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.jpeg.kernels.bits import OK, TABLE_SIZE, build_table
from cdzoo.jpeg.kernels.jit import jit
from cdzoo.jpeg.kernels.layout import MAX_SCANS, UNSEEN
from cdzoo.jpeg.kernels.scan import decode_scan

__all__ = ["decode_files", "read_scan"]


@jit
def _read_tables(data: Any, position: Any, end: int, tables: Any, state: Any) -> bool:
    """Read a DHT segment into rows 0..3 (DC) and 4..7 (AC) of ``tables``; returns false if it is not in order."""
    while position < end:
        behind: Any = position + 17
        if behind > end:
            return False
        selector = np.int64(data[position])
        code: Any = 0
        for length in range(1, 17):
            count = np.int64(data[position + length])
            code = 2 * code + count
            if count > 0 and code >= 1 << length:
                return False
            behind += count
        if selector & 0xEC or behind > end or behind > position + 17 + 256:
            return False
        if selector < 16:
            for i in range(position + 17, behind):
                if data[i] > 15:
                    return False
        row = (selector >> 4) * 4 + (selector & 3)
        build_table(data, position + 1, tables, row)
        state.rows[row] = row
        position = behind
    return True


@jit
def read_scan(data: Any, position: int, end: int, frame: Any, state: Any) -> bool:
    """Read a SOS segment and check it against the scans before it; returns false if it is not in order."""
    count = np.int64(data[position])
    if count < 1 or count > 4 or end - position != 4 + 2 * count:
        return False
    start, stop = np.int64(data[end - 3]), np.int64(data[end - 2])
    high, low = np.int64(data[end - 1]) >> 4, np.int64(data[end - 1]) & 15
    if frame.progressive:
        last = 0 if start == 0 else 63
        if stop < start or stop > last or (start > 0 and count > 1) or low > 13 or (high > 0 and high != low + 1):
            return False
    elif start != 0 or stop != 63 or high != 0 or low != 0:
        return False
    scan = state.scan[0]
    scan.num_components = count
    scan.start = start
    scan.end = stop
    scan.high = high
    scan.low = low
    size = 0
    for i in range(count):
        c = -1
        for n in range(frame.components.size):
            used = False  # identifiers may repeat
            for j in range(i):
                used |= state.parts[j].component == n
            if c < 0 and not used and frame.components[n].identifier == data[position + 1 + 2 * i]:
                c = n
        if c < 0:
            return False
        part, component = state.parts[i], frame.components[c]
        part.component = c
        scan.first_block = component.first_block
        size += component.vertical * component.horizontal
        dc, ac = np.int64(data[position + 2 + 2 * i]) >> 4, np.int64(data[position + 2 + 2 * i]) & 15
        part.dc_row = state.rows[dc] if dc < 4 else -1
        part.ac_row = state.rows[4 + ac] if ac < 4 else -1
        if start == 0 and high == 0 and part.dc_row < 0:
            return False
        if stop > 0 and part.ac_row < 0:
            return False
        if start > 0 and state.progress[c, 0] == UNSEEN:
            return False
        for k in range(start, stop + 1):
            if state.progress[c, k] != (high if high > 0 else UNSEEN):
                return False
            state.progress[c, k] = low
    return count == 1 or size <= 10


@jit
def _decode_file(
    data: Any, position: Any, scratch: Any, frame: Any, state: Any, tables: Any, pairs: Any, skips: Any,
    history: Any, none: Any, needed: Any,
) -> Any:  # fmt: skip
    """Decode all scans from the SOS marker at ``position`` on; returns false if that is not possible here."""
    for c in range(frame.components.size):
        for k in range(64):
            state.progress[c, k] = UNSEEN
    num_scans = 0
    while position + 4 <= data.size and data[position] == 0xFF:
        code = data[position + 1]
        start = position + 4
        end = position + 2 + (np.int64(data[position + 2]) << 8 | np.int64(data[position + 3]))
        if code == 0xD9 or end <= start or end > data.size:
            break
        if code == 0xC4 and frame.progressive:
            if not _read_tables(data, start, end, tables, state):
                return False
            position = end
            continue
        num_scans += 1
        if code != 0xDA or num_scans > MAX_SCANS or not read_scan(data, start, end, frame, state):
            return False
        result = decode_scan(data, end, scratch, frame, state, tables, pairs, skips, history, none, none, needed)
        if result[0] != OK:
            return False
        position = result[1]
    ends = position + 2 <= data.size and data[position] == 0xFF and data[position + 1] == 0xD9
    for c in range(frame.components.size):
        ends &= state.progress[c, 0] != UNSEEN
    return ends


@jit
def decode_files(
    data: Any, bounds: Any, scratch: Any, frame: Any, interval: int, rows: Any, tables: Any, pairs: Any,
    skips: Any, state: Any, own_tables: Any, history: Any, none: Any, needed: Any, targets: Any, first: int, done: Any,
) -> None:  # fmt: skip
    """Decode files whose headers agree in all that decoding depends on.

    Args:
        data: the files, one behind the other, uint8.
        bounds: int64, two per file: the position of the first SOS marker in the file, and where it ends in ``data``.
        scratch: room for the longest file and ``SLACK`` bytes more, uint8.
        frame: :class:`~cdzoo.jpeg.kernels.layout.FrameFields`; ``interval`` is that of restart markers.
        rows: int64: the rows of ``tables`` with the four DC and four AC tables that are defined; -1 for none.
        tables, pairs, skips: see :mod:`cdzoo.jpeg.kernels.bits`; the last are empty if all blocks are wanted.
        state: :class:`~cdzoo.jpeg.kernels.layout.State`, to work with.
        own_tables: room for eight tables, to work with, if the files are progressive.
        history: uint64, room for all blocks of a file, to work with, if the files are progressive.
        none: uint8, empty.
        needed: int64 ``(4,)``: rows of blocks that are needed of each component, from the top; others hold anything.
        targets: int64: the addresses of four planes ``(B, Hb * Wb * 64)`` int16.
        first: the number of the first file in the planes.
        done: uint8: set to 1 for each file, by this number, unless it has to be decoded otherwise; its planes then
            hold anything.
    """
    state.scan[0].interval = interval
    state.scan[0].clear = 1
    start = 0
    for i in range(bounds.size // 2):
        end = bounds[2 * i + 1]
        for c in range(frame.components.size):
            size = frame.components[c].rows * frame.components[c].columns * 128
            state.targets[c] = targets[c] + (first + i) * size
        for row in range(8):
            state.rows[row] = rows[row]
        file_tables = tables
        if frame.progressive:
            file_tables = own_tables
            for block in range(history.size):
                history[block] = 0
            for row in range(8):
                if rows[row] >= 0:
                    state.rows[row] = row
                    for k in range(TABLE_SIZE):
                        own_tables[row, k] = tables[rows[row], k]
        done[first + i] = _decode_file(
            data[start:end], bounds[2 * i], scratch, frame, state, file_tables, pairs, skips, history, none, needed
        )
        start = end
