"""Coefficients of a picture to those of the resized picture, compiled by Numba: no pixel of full size, no GIL.

Import on first use only: this imports Numba. Dequantization, inverse DCT, chroma upsampling, resizing, flips and crop
are linear and separable: one matrix for each axis, whose row of one output sample covers the few blocks that the
sample depends on (:class:`Axis`). A row of blocks is added to the output rows that it touches as soon as it is there
(:func:`add_block_row`), which shrinks it along the vertical axis. When eight output rows are complete, they are shrunk
along the horizontal axis and transformed to blocks of coefficients (:func:`finish_rows`). The eight rows are the lanes
of the vectors, so that no step needs anything but multiplications and additions of whole vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.jpeg.kernels.jit import jit
from cdzoo.jpeg.kernels.vectors import accumulate_block, address, dct_tile, transpose_tile, weighted_sum

__all__ = ["Axis", "add_block_row", "build_axis", "finish_rows", "resize_plane", "ring_rows"]

_TILE = 256  # bytes


class Axis(NamedTuple):
    """One axis of a component: how output samples, in the order of the stored ones, depend on its blocks.

    The number of output samples is completed to a multiple of eight; those without weights depend on nothing.

    Attributes:
        outputs: int64 ``(n, 2)``: the first block that a sample depends on, and how many.
        blocks: int64 ``(Hb, 2)``: the first output sample that depends on a block, and the one behind the last.
        groups: int64 ``(n / 8,)``: the last block that each eight samples depend on; never falls.
        weights: float32 ``(n, 8 * most)``: coefficients of the blocks of ``outputs`` to the sample.
    """

    outputs: NDArray[np.int64]
    blocks: NDArray[np.int64]
    groups: NDArray[np.int64]
    weights: NDArray[np.float32]


@jit
def _kernel(x: float, cubic: bool) -> float:
    """The triangle filter, or Keys' cubic one with a = -0.5, as Pillow's and PyTorch's antialiased resizing have it."""
    x = abs(x)
    if not cubic:
        return max(0.0, 1.0 - x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@jit
def build_axis(
    length: int, factor: int, fancy: bool, start: int, extent: int, resized: int, first: int, count: int,
    turned: bool, mirrored: bool, cubic: bool, basis: Any, outputs: Any, blocks: Any, groups: Any, weights: Any,
) -> None:  # fmt: skip
    """Fill the arrays of an :class:`Axis`.

    Args:
        length: of the picture, in pixels.
        factor: pixels per sample of the component.
        fancy: whether the component is upsampled by libjpeg's triangle filter, which is for factors of 2.
        start: first pixel of the box that is resized, in the upright picture.
        extent: length of that box.
        resized: its length after resizing.
        first: the sample of the resized box where the crop begins; may be negative.
        count: length of the crop.
        turned: whether the upright picture runs against the stored one.
        mirrored: whether the crop is mirrored.
        cubic: the filter.
        basis: float64 ``(8, 8)``: the DCT; row = frequency.
        outputs, blocks, groups, weights: to be filled.
    """
    samples = (length + factor - 1) // factor
    scale = extent / resized
    wide = max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * wide
    room = outputs.shape[0]
    pixels = np.zeros(int(2.0 * support) + 4, np.float64)
    own = np.zeros(weights.shape[1] + 8, np.float64)
    for b in range(blocks.shape[0]):
        blocks[b, 0] = room
        blocks[b, 1] = 0
    last = -1
    for o in range(room):
        p = room - 1 - o if turned != mirrored else o
        q = first + (count - 1 - p if mirrored else p)
        outputs[o, 0] = outputs[o, 1] = 0
        if 0 <= p < count and 0 <= q < resized:
            center = scale * (q + 0.5)
            low = max(int(center - support + 0.5), 0)
            high = max(min(int(center + support + 0.5), extent), low + 1)
            total = 0.0
            for i in range(low, high):
                pixels[i - low] = _kernel((i - center + 0.5) / wide, cubic)
                total += pixels[i - low]
            left, right = start + low, start + high - 1  # upright pixels
            if turned:
                left, right = length - 1 - right, length - 1 - left
            left, right = left // factor, right // factor
            if fancy:
                left, right = left - 1, right + 1
            left, right = max(left, 0) // 8, min(right, samples - 1) // 8  # blocks
            for k in range(8 * (right - left + 1)):
                own[k] = 0.0
            for i in range(low, high):
                weight = pixels[i - low] / total
                pixel = start + i
                if turned:
                    pixel = length - 1 - pixel
                sample = pixel // factor
                if fancy:
                    near = min(max(sample + (1 if pixel % 2 else -1), 0), samples - 1)
                    own[sample - 8 * left] += 0.75 * weight
                    own[near - 8 * left] += 0.25 * weight
                else:
                    own[sample - 8 * left] += weight
            outputs[o, 0] = left
            outputs[o, 1] = right - left + 1
            for b in range(right - left + 1):
                for u in range(8):
                    value = 0.0
                    for m in range(8):
                        value += basis[u, m] * own[8 * b + m]
                    weights[o, 8 * b + u] = value
                blocks[left + b, 0] = min(blocks[left + b, 0], o)
                blocks[left + b, 1] = max(blocks[left + b, 1], o + 1)
            last = max(last, right)
        groups[o // 8] = last


@jit
def ring_rows(vertical: Any) -> int:
    """The largest number of output rows that are incomplete at the same time, rounded up to a multiple of 8."""
    rows = 8
    for b in range(vertical.blocks.shape[0]):
        rows = max(rows, (vertical.blocks[b, 1] + 7) // 8 * 8 - vertical.blocks[b, 0] // 8 * 8)
    return rows


@jit
def add_block_row(source: Any, b: int, vertical: Any, first: int, last: int, table: Any, ring: Any, spare: Any) -> None:
    """Add blocks ``first`` to ``last`` of row ``b`` to the output rows that depend on them.

    Args:
        source: the address of the row of blocks, int16.
        b: its number.
        vertical: the :class:`Axis`.
        first, last: the blocks that are needed.
        table: float32 ``(64,)``: the quantization table.
        ring: float32 ``(rows, 8 * (last - first))``: incomplete output rows; row ``o`` is at ``o % rows``.
        spare: float32 ``(n, 8)``, to work with.
    """
    begin, end = vertical.blocks[b, 0], vertical.blocks[b, 1]
    for o in range(begin, end):
        k = 8 * (b - vertical.outputs[o, 0])
        for v in range(8):
            spare[o - begin, v] = vertical.weights[o, k + v]
    rows = ring.shape[0]
    stride = np.uint64(4 * ring.shape[1])
    o = begin
    while o < end:
        run = min(end - o, rows - o % rows)
        target = address(ring) + np.uint64(o % rows) * stride
        weights = address(spare) + np.uint64(32 * (o - begin))
        for x in range(first, last):
            block = np.uint64(source + 128 * x)
            place = target + np.uint64(32 * (x - first))
            accumulate_block(block, address(table), weights, run, place, stride)
        o += run


@jit
def finish_rows(
    g: int, vertical: Any, horizontal: Any, first: int, last: int, ring: Any, flips: Any, fill: float,
    columns: Any, samples: Any, out: Any,
) -> None:  # fmt: skip
    """Complete output rows ``8 * g`` and the next seven, to a row of blocks, and empty their place in the ring.

    Args:
        g: their number, in eights.
        vertical, horizontal: the axes.
        first, last: the blocks that are in the ring.
        ring: see :func:`add_block_row`.
        flips: int64 ``(3,)``: whether rows, columns run backwards in the result; whether it is transposed then.
        fill: the value of samples that lie outside the picture.
        columns: float32, room for ``8 * (last - first)`` vectors.
        samples: float32 ``(n, 8)``, to work with.
        out: float32, the component's blocks.
    """
    width = 8 * (last - first)
    row = 8 * g % ring.shape[0]
    step = np.int64(4 * ring.shape[1])
    start = address(ring) + np.uint64(row * step)
    if flips[0]:
        start += np.uint64(7 * step)
        step = -step
    for x in range(last - first):
        transpose_tile(start + np.uint64(32 * x), step, address(columns) + np.uint64(_TILE * x))
    num_outputs = horizontal.outputs.shape[0]
    stride = 4 * horizontal.weights.shape[1]
    for o in range(num_outputs):
        weighted_sum(
            address(horizontal.weights) + np.uint64(o * stride),
            address(columns) + np.uint64(_TILE * max(horizontal.outputs[o, 0] - first, 0)),
            horizontal.outputs[o, 1],
            address(samples) + np.uint64(32 * o),
        )
    if fill != 0.0:
        for o in range(num_outputs):
            for i in range(8):
                y = 8 * g + (7 - i if flips[0] else i)
                if vertical.outputs[y, 1] == 0 or horizontal.outputs[o, 1] == 0:
                    samples[o, i] = fill
    num_groups, num_columns = vertical.groups.size, num_outputs // 8
    down = num_groups - 1 - g if flips[0] else g
    for j in range(num_columns):
        right = num_columns - 1 - j if flips[1] else j
        place = right * num_groups + down if flips[2] else down * num_columns + right
        tile = address(samples) + np.uint64(_TILE * j + (224 if flips[1] else 0))
        dct_tile(tile, np.int64(-32 if flips[1] else 32), flips[2], address(out) + np.uint64(_TILE * place))
    for y in range(row, row + 8):
        for x in range(width):
            ring[y, x] = 0.0


@jit
def span(axis: Any) -> Any:
    """The first block that any output depends on, and the one behind the last."""
    first, last = axis.blocks.shape[0], 0
    for b in range(axis.blocks.shape[0]):
        if axis.blocks[b, 1] > 0:
            first = min(first, b)
            last = b + 1
    return (first, last) if last > 0 else (0, 1)


@jit
def resize_plane(source: Any, table: Any, vertical: Any, horizontal: Any, flips: Any, fill: float, out: Any) -> None:
    """One component.

    Args:
        source: int16 ``(Hb, Wb, 64)``.
        table: float32 ``(64,)``: the quantization table.
        vertical, horizontal: the axes.
        flips, fill: see :func:`finish_rows`.
        out: float32, the component's blocks in the result.
    """
    first, last = span(horizontal)
    width = 8 * (last - first)
    ring = np.zeros((ring_rows(vertical), width), np.float32)
    columns = np.empty((width, 8), np.float32)
    samples = np.empty((horizontal.outputs.shape[0], 8), np.float32)
    spare = np.empty((vertical.outputs.shape[0], 8), np.float32)
    g = 0
    for b in range(-1, source.shape[0]):
        if b >= 0 and vertical.blocks[b, 1] > 0:
            row = np.int64(address(source)) + b * source.shape[1] * 128
            add_block_row(row, b, vertical, first, last, table, ring, spare)
        while g < vertical.groups.size and vertical.groups[g] <= b:
            finish_rows(g, vertical, horizontal, first, last, ring, flips, fill, columns, samples, out)
            g += 1
