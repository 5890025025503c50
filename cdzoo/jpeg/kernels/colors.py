"""Coefficients that are all stored at the size of the image, such as resized ones, to colors. Compiled by Numba.

Import on first use only: this imports Numba. A block of each component goes through the inverse DCT and the color
matrix while it is in the cache, and its rows into those of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.jpeg.kernels.jit import jit
from cdzoo.jpeg.kernels.vectors import address, idct_tile, mix_tiles

__all__ = ["combine"]

_TILE = 256  # bytes


@jit
def combine(first: Any, second: Any, third: Any, tables: Any, matrix: Any, out: Any) -> None:
    """Colors of one image.

    Args:
        first, second, third: float32 ``(Hb, Wb, 8, 8)``, contiguous: the components.
        tables: float32 ``(3, 64)``: multiplied with their blocks.
        matrix: float32 ``(C, 4)``: for each color the factors of the components, and a constant.
        out: float32 ``(C, 8 * Hb, 8 * Wb)``, contiguous.
    """
    tiles = np.empty((3, 64), np.float32)
    start, table = address(tiles), address(tables)
    stride = np.int64(4 * out.shape[2])
    for y in range(first.shape[0]):
        for x in range(first.shape[1]):
            block = np.uint64(_TILE * (y * first.shape[1] + x))
            idct_tile(address(first) + block, table, start)
            idct_tile(address(second) + block, table + np.uint64(_TILE), start + np.uint64(_TILE))
            idct_tile(address(third) + block, table + np.uint64(2 * _TILE), start + np.uint64(2 * _TILE))
            for c in range(out.shape[0]):
                place = (c * out.shape[1] + 8 * y) * stride + 32 * x
                mix_tiles(start, address(matrix) + np.uint64(16 * c), address(out) + np.uint64(place), stride)
