"""Geometry of JPEG images: block grids, minimum coded units (MCU), zigzag order (ITU-T T.81, A.1, A.2, A.6)."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np

__all__ = [
    "CHROMA",
    "COLUMNS_BACKWARDS",
    "DCT",
    "ROWS_BACKWARDS",
    "TRANSPOSED",
    "ZIGZAG",
    "Geometry",
    "Pairs",
    "block_grids",
    "mcu_grid",
    "num_blocks",
    "upright_size",
]

# fmt: off
#: ``ZIGZAG[k]`` is the natural (row-major) index of the ``k``-th coefficient of the file.
ZIGZAG = np.array([
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
])
# fmt: on
ZIGZAG.setflags(write=False)

#: The orthonormal DCT-II of length 8: rows are frequencies.
DCT = [
    [(math.sqrt(0.125) if u == 0 else 0.5) * math.cos((2 * m + 1) * u * math.pi / 16) for m in range(8)]
    for u in range(8)
]
#: Kinds of upsampling for subsampled chroma: libjpeg's triangle filter, or repeated samples.
CHROMA = ("fancy", "nearest")

Pairs: TypeAlias = tuple[tuple[int, int], ...]

#: Exif orientations whose stored rows and columns run backwards, and those whose axes change places after that.
ROWS_BACKWARDS, COLUMNS_BACKWARDS, TRANSPOSED = (3, 4, 6, 7), (2, 3, 7, 8), (5, 6, 7, 8)


class Geometry(NamedTuple):
    """Sampling, size and color space of an image: all that the shapes of its planes depend on.

    Attributes:
        sampling: ``K`` pairs of (vertical, horizontal) sampling factors.
        image_size: ``(H, W)`` in pixels.
        color_space: ``"gray"``, ``"ycbcr"``, ``"rgb"``, ``"cmyk"`` or ``"ycck"``.
    """

    sampling: Pairs
    image_size: tuple[int, int]
    color_space: str

    @property
    def blocks(self) -> Pairs:
        """``K`` pairs ``(Hb, Wb)``: rows and columns of blocks, without those that only complete an MCU."""
        return block_grids(self.image_size, self.sampling)


def upright_size(image_size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """``(H, W)`` as the picture is to be seen."""
    return (image_size[1], image_size[0]) if orientation in TRANSPOSED else image_size


def num_blocks(pixels: int, factor: int = 1, largest: int = 1) -> int:
    """Number of blocks along one axis of a component.

    The component has ``ceil(pixels * factor / largest)`` samples; ``ceil(ceil(x) / 8)`` is ``ceil(x / 8)``.

    Args:
        pixels: height or width of the image.
        factor: sampling factor of the component along this axis.
        largest: the largest sampling factor of all components along this axis.
    """
    return -(-pixels * factor // (8 * largest))


def block_grids(image_size: tuple[int, int], sampling: Pairs) -> Pairs:
    """``K`` pairs ``(Hb, Wb)`` for an image of ``(H, W)`` pixels; see :attr:`Geometry.blocks`."""
    tallest, widest = _largest(sampling)
    return tuple([(num_blocks(image_size[0], v, tallest), num_blocks(image_size[1], h, widest)) for v, h in sampling])


def mcu_grid(image_size: tuple[int, int], sampling: Pairs) -> tuple[int, int]:
    """Rows and columns of MCUs in a scan of all components."""
    tallest, widest = _largest(sampling)
    return num_blocks(image_size[0], 1, tallest), num_blocks(image_size[1], 1, widest)


def _largest(sampling: Pairs) -> tuple[int, int]:
    return max(vertical for vertical, _ in sampling), max(horizontal for _, horizontal in sampling)
