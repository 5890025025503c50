"""Sequential JPEG files to the coefficients of the resized picture, in one pass, compiled by Numba.

Import on first use only: this imports Numba. A row of MCUs is decoded into a small buffer and added to the output rows
that depend on it (:mod:`cdzoo.jpeg.kernels.resize`), so that the coefficients of the whole picture never exist: that
takes 3 bytes a pixel of memory, and more time than the resizing. As in :mod:`cdzoo.jpeg.kernels.files`, this is the
quick way for files in order: one scan of all components, then the end of the image. It gives up at anything else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.jpeg.kernels.bits import MOST_PADDING, OK, next_marker, open_segment
from cdzoo.jpeg.kernels.files import read_scan
from cdzoo.jpeg.kernels.jit import jit
from cdzoo.jpeg.kernels.layout import UNSEEN
from cdzoo.jpeg.kernels.mcu import list_blocks
from cdzoo.jpeg.kernels.resize import Axis, add_block_row, finish_rows, ring_rows, span
from cdzoo.jpeg.kernels.sequential import decode_sequential
from cdzoo.jpeg.kernels.vectors import address

__all__ = ["Target", "decode_resized"]


class Target(NamedTuple):
    """One component on its way into the result.

    Attributes:
        vertical, horizontal: the axes, see :class:`cdzoo.jpeg.kernels.resize.Axis`.
        table: float32 ``(64,)``: the quantization table.
        fill: the value of samples outside the picture.
        out: float32: the component's blocks in the result.
    """

    vertical: Axis
    horizontal: Axis
    table: NDArray[np.float32]
    fill: float
    out: NDArray[np.float32]


@jit
def _room(target: Any) -> Any:
    """Buffers of a component: its incomplete output rows, their columns, their samples, weights of a row of blocks."""
    first, last = span(target.horizontal)
    width = 8 * (last - first)
    return (
        np.zeros((ring_rows(target.vertical), width), np.float32),
        np.empty((width, 8), np.float32),
        np.empty((target.horizontal.outputs.shape[0], 8), np.float32),
        np.empty((target.vertical.outputs.shape[0], 8), np.float32),
    )


@jit
def _add(target: Any, room: Any, source: Any, b: int, flips: Any, g: Any) -> Any:
    """Add row ``b`` of blocks, finish the output rows that are complete then; how many eights of them are finished."""
    ring, columns, samples, spare = room
    vertical, horizontal = target.vertical, target.horizontal
    first, last = span(horizontal)
    for done in range(b - 1, b + 1):  # rows that depend on nothing are complete before the first row of blocks
        if done == b and vertical.blocks[b, 1] > 0:
            add_block_row(source, b, vertical, first, last, target.table, ring, spare)
        while g < vertical.groups.size and vertical.groups[g] <= done:
            finish_rows(g, vertical, horizontal, first, last, ring, flips, target.fill, columns, samples, target.out)
            g += 1
    return g


@jit
def _ends(data: Any, marker: Any, segment: Any, last: Any) -> Any:
    """Return true if, from the marker behind ``segment`` on, those of the others and the end of the image follow."""
    while segment < last:
        if marker + 1 >= data.size or data[marker + 1] != 0xD0 + (segment & 7):
            return False
        marker = next_marker(data, marker + 2)
        segment += 1
    return marker + 1 < data.size and data[marker] == 0xFF and data[marker + 1] == 0xD9


@jit
def decode_resized(
    data: Any, marker: int, scratch: Any, frame: Any, interval: int, rows: Any, tables: Any, pairs: Any, skips: Any,
    state: Any, band: Any, targets: Any, flips: Any, whole: bool,
) -> Any:  # fmt: skip
    """Decode and resize a file.

    Args:
        data: the file, uint8.
        marker: the position of its first SOS marker.
        scratch, frame, interval, rows, tables, pairs, skips, state: see :func:`cdzoo.jpeg.kernels.files.decode_files`.
        band: int16: room for one row of MCUs.
        targets: three of :class:`Target`; of gray files the first one counts.
        flips: see :func:`cdzoo.jpeg.kernels.resize.finish_rows`.
        whole: decode the file to its end. Otherwise decoding stops behind the last row that is needed, and only the
            markers that follow are looked at: files that end too early are found.

    Returns:
        whether that worked; if not, the result holds anything.
    """
    num_components = frame.components.size
    for c in range(num_components):
        for k in range(64):
            state.progress[c, k] = UNSEEN
    for row in range(8):
        state.rows[row] = rows[row]
    pos = marker + 2 + (np.int64(data[marker + 2]) << 8 | np.int64(data[marker + 3]))
    if pos > data.size or not read_scan(data, marker + 4, pos, frame, state):
        return False
    if state.scan[0].num_components != num_components:
        return False
    columns, num_rows = np.int64(frame.columns), np.int64(frame.rows)
    if num_components == 1:
        columns, num_rows = frame.components[0].columns, frame.components[0].rows
    num_blocks = list_blocks(frame, state)
    length: Any = interval if interval > 0 else columns * num_rows  # of a segment
    rooms = (_room(targets[0]), _room(targets[1]), _room(targets[2]))
    heights, sizes, finished = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
    start = np.int64(address(band))
    places = np.zeros(4, np.int64)
    for c in range(num_components):
        heights[c] = frame.components[c].vertical if num_components > 1 else 1
        sizes[c] = frame.components[c].columns * 128
        places[c] = start
        start += heights[c] * sizes[c]
        wanted = state.wanted[c]
        wanted.first_row, wanted.last_row = span(targets[c].vertical)
        wanted.first_column, wanted.last_column = span(targets[c].horizontal)
    last_segment = (columns * num_rows - 1) // length
    mcu: Any = 0
    segment = 0
    size, behind = open_segment(data, pos, scratch)
    state.resume[0].resumed = 0
    for y in range(num_rows):
        for c in range(num_components):
            state.targets[c] = places[c] - y * heights[c] * sizes[c]
        while mcu < (y + 1) * columns:
            last = min((y + 1) * columns, (segment + 1) * length)
            status, _, used = decode_sequential(
                scratch, size, frame, state, num_blocks, columns, tables, pairs, skips, mcu, last
            )
            if status != OK:
                return False
            state.resume[0].resumed = 1
            mcu = last
            if last == (segment + 1) * length or last == columns * num_rows:
                if np.int64(used) + MOST_PADDING < size:
                    return False
                if last < columns * num_rows:
                    if behind >= data.size or data[behind + 1] != 0xD0 + (segment & 7):
                        return False
                    segment += 1
                    size, behind = open_segment(data, behind + 2, scratch)
                    state.resume[0].resumed = 0
        complete = True
        for c in range(num_components):
            for down in range(heights[c]):
                b = y * heights[c] + down
                if b < frame.components[c].rows:
                    finished[c] = _add(targets[c], rooms[c], places[c] + down * sizes[c], b, flips, finished[c])
            complete &= finished[c] == targets[c].vertical.groups.size
        if complete and not whole:
            break
    return _ends(data, behind, segment, last_segment)
