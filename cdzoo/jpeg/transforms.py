"""Exact transforms over JPEG coefficients: flips, rotations, block-aligned crops, and sizes reduced by 2, 4 or 8.

Each transform ``f`` commutes with the linear decode: ``decode_jpeg(f(c)) == f(decode_jpeg(c))``. To mirror a block, its
odd frequencies are negated. To transpose a block, its coefficients are transposed. Whole blocks are moved unchanged.
Nothing is decoded. Integers stay integers, so that the result can be written as a file without loss.

The block grid starts at the top left corner of an image. After mirroring, the last blocks come first, so they must be
complete: the size must be a multiple of :func:`alignment` pixels (16 for the usual 4:2:0 files). Otherwise the
transform raises an error, or trims the image first.

Letters: ``B`` files, ``K`` components, ``Hb Wb`` rows and columns of blocks, see :class:`cdzoo.types.JPEGCoefficients`.
The same transforms as modules are in :mod:`cdzoo.jpeg.transform_modules`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from cdzoo._checks import integer
from cdzoo._torch import outside_autocast
from cdzoo.jpeg.dct import dct_matrix
from cdzoo.jpeg.geometry import COLUMNS_BACKWARDS, ROWS_BACKWARDS, TRANSPOSED, num_blocks
from cdzoo.types import JPEGCoefficients

__all__ = [
    "alignment",
    "center_crop",
    "checked_factor",
    "crop",
    "downscale",
    "gray_to_ycbcr",
    "horizontal_flip",
    "rotate",
    "scale",
    "size_pair",
    "transpose",
    "upright",
    "vertical_flip",
]


def alignment(coefficients: JPEGCoefficients) -> tuple[int, int]:
    """Size of a cell of the block grid, ``(rows, columns)`` in pixels: ``(16, 16)`` for 4:2:0.

    Blocks of every component begin at multiples of it.
    """
    rows, columns = ([pair[axis] for pair in coefficients.sampling] for axis in (0, 1))
    return 8 * max(rows) // math.gcd(*rows), 8 * max(columns) // math.gcd(*columns)


def horizontal_flip(coefficients: JPEGCoefficients, *, trim: bool = False) -> JPEGCoefficients:
    """Mirror left and right: reverse the order of the blocks, and the sign of odd horizontal frequencies.

    Args:
        coefficients: a batch of files.
        trim: first cut off columns on the right until only whole blocks are left; if ``False``, other widths raise.

    Raises:
        ValueError: the width is not a multiple of the alignment and ``trim`` is false, or nothing would be left.
    """
    return _flip(coefficients, 1, trim)


def vertical_flip(coefficients: JPEGCoefficients, *, trim: bool = False) -> JPEGCoefficients:
    """Mirror top and bottom; arguments and errors as for :func:`horizontal_flip`, with rows for columns."""
    return _flip(coefficients, 0, trim)


def transpose(coefficients: JPEGCoefficients) -> JPEGCoefficients:
    """Mirror at the main diagonal, ``(H, W)`` to ``(W, H)``; exact for every size."""
    height, width = coefficients.image_size
    return coefficients._replace(
        planes=tuple(plane.permute(0, 2, 1, 4, 3).contiguous() for plane in coefficients.planes),
        qtables=coefficients.qtables.transpose(-1, -2).contiguous(),
        sampling=tuple((columns, rows) for rows, columns in coefficients.sampling),
        image_size=(width, height),
    )


def rotate(coefficients: JPEGCoefficients, angle: int, *, trim: bool = False) -> JPEGCoefficients:
    """Rotate counter-clockwise, as torchvision does.

    Args:
        coefficients: a batch of files.
        angle: degrees, a multiple of 90.
        trim: as for :func:`horizontal_flip`, for the side that becomes the top or the left.

    Raises:
        ValueError: another angle, or a size that is not aligned where it must be.
    """
    if angle % 90:
        raise ValueError(f"angle={angle}: only multiples of 90 degrees are exact on coefficients")
    turns = angle // 90 % 4
    if turns == 1:
        return vertical_flip(transpose(_trimmed(coefficients, 1, trim, "rotate")))
    if turns == 2:
        return vertical_flip(horizontal_flip(coefficients, trim=trim), trim=trim)
    return horizontal_flip(transpose(_trimmed(coefficients, 0, trim, "rotate"))) if turns else coefficients


def upright(coefficients: JPEGCoefficients, orientation: int, *, trim: bool = True) -> JPEGCoefficients:
    """Undo an Exif orientation, as :func:`cdzoo.codecs.read_jpeg_header` reports it.

    Args:
        coefficients: a batch of files of this orientation.
        orientation: 1 to 8; 1 is upright already.
        trim: as for :func:`horizontal_flip`; true by default, for photographs of any size.

    Raises:
        ValueError: another number, or a size that is not aligned where it must be.
    """
    if orientation not in range(1, 9):
        raise ValueError(f"orientation={orientation}: Exif knows 1 to 8")
    if orientation in COLUMNS_BACKWARDS:
        coefficients = horizontal_flip(coefficients, trim=trim)
    if orientation in ROWS_BACKWARDS:
        coefficients = vertical_flip(coefficients, trim=trim)
    return transpose(coefficients) if orientation in TRANSPOSED else coefficients


def crop(coefficients: JPEGCoefficients, top: int, left: int, height: int, width: int) -> JPEGCoefficients:
    """Cut out a box, as torchvision's ``crop`` does; its top left corner must be on the block grid.

    Coefficients are exact. Decoded pixels at the edges of the box may differ if chroma is upsampled by ``"fancy"``,
    which also reads the samples just outside the box.

    Args:
        coefficients: a batch of files.
        top: first row, a multiple of the alignment.
        left: first column, likewise.
        height: rows, any number.
        width: columns, any number.

    Raises:
        ValueError: the corner is not aligned, or the box does not lie within the image.
    """
    cells = alignment(coefficients)
    size = coefficients.image_size
    if top % cells[0] or left % cells[1]:
        raise ValueError(
            f"crop at ({top}, {left}): blocks of these files begin at multiples of {cells[0]} rows and {cells[1]} "
            "columns; round the corner down to them"
        )
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"crop of {height}x{width} at ({top}, {left}) does not lie within {size[0]}x{size[1]} pixels")
    planes = []
    for plane, rows, columns in zip(coefficients.planes, *_axes(coefficients), strict=True):
        y, x = _share(top, rows) // 8, _share(left, columns) // 8
        hb, wb = num_blocks(height, *rows), num_blocks(width, *columns)
        planes.append(plane[:, y : y + hb, x : x + wb].contiguous())
    return coefficients._replace(planes=tuple(planes), image_size=(height, width))


def center_crop(coefficients: JPEGCoefficients, size: int | tuple[int, int]) -> JPEGCoefficients:
    """Cut out the middle, moved up and left to the block grid; smaller images are kept whole along that axis.

    Args:
        coefficients: a batch of files.
        size: (rows, columns) to keep, or one number for both.

    Raises:
        ValueError: ``size`` is less than 1.
    """
    box, cells = size_pair(size), alignment(coefficients)
    kept = tuple(min(n, whole) for n, whole in zip(box, coefficients.image_size, strict=True))
    spare = tuple(whole - n for whole, n in zip(coefficients.image_size, kept, strict=True))
    top, left = (room // 2 // cell * cell for room, cell in zip(spare, cells, strict=True))
    return crop(coefficients, top, left, *kept)


def downscale(coefficients: JPEGCoefficients, factor: int) -> JPEGCoefficients:
    """Reduce images to ``1 / factor`` of their size, from the low frequencies of every block.

    The lowest ``n x n`` frequencies of an 8x8 block (``n = 8 / factor``) are the DCT of a block of ``n x n`` pixels.
    One linear map combines ``factor x factor`` such blocks into an 8x8 block; no pixels are computed. The results are
    not integers: planes become floating-point, with quantization tables of ones. Networks accept them.

    Args:
        coefficients: a batch of files.
        factor: 1, 2, 4 or 8; 8 leaves the means of the blocks.

    Returns:
        coefficients of ``(ceil(H / factor), ceil(W / factor))``, ``planes`` in float32 (float64 stays), of the same
        sampling; unchanged if the factor is 1.

    Raises:
        ValueError: another factor.
    """
    factor = checked_factor(factor)
    if factor == 1:
        return coefficients
    height, width = (-(-n // factor) for n in coefficients.image_size)
    dtype = torch.float64 if coefficients.planes[0].dtype == torch.float64 else torch.float32
    along = _shrinking(factor).to(device=coefficients.qtables.device, dtype=dtype)
    planes = []
    for k, (plane, rows, columns) in enumerate(zip(coefficients.planes, *_axes(coefficients), strict=True)):
        hb, wb = num_blocks(height, *rows), num_blocks(width, *columns)
        kept = 8 // factor
        c = plane[..., :kept, :kept].to(dtype) * coefficients.qtables[:, k, None, None, :kept, :kept].to(dtype)
        c = F.pad(c, (0, 0, 0, 0, 0, factor * wb - c.shape[2], 0, factor * hb - c.shape[1]))
        c = c.view(len(c), hb, factor, wb, factor, kept, kept)
        with outside_autocast(c.device):
            planes.append(torch.einsum("aim,cjn,bhiwjmn->bhwac", along, along, c).contiguous())
    return coefficients._replace(
        planes=tuple(planes), qtables=torch.ones_like(coefficients.qtables), image_size=(height, width)
    )


def gray_to_ycbcr(
    coefficients: JPEGCoefficients, sampling: tuple[tuple[int, int], ...] = ((2, 2), (1, 1), (1, 1))
) -> JPEGCoefficients:
    """Convert gray files to YCbCr with chroma planes of zeros, so that they share batches with color files.

    Args:
        coefficients: gray files; others are returned unchanged.
        sampling: (vertical, horizontal) factors of Y, Cb and Cr; those of Y are the largest.

    Raises:
        ValueError: ``sampling`` is not three pairs of which the first is the largest.
    """
    if coefficients.color_space != "gray":
        return coefficients
    if len(sampling) != 3 or not all(1 <= pair[axis] <= sampling[0][axis] for pair in sampling for axis in (0, 1)):
        raise ValueError(f"sampling={sampling}: give three pairs from 1 on, the first of them, for luma, the largest")
    plane, size = coefficients.planes[0], coefficients.image_size
    planes = [plane]
    for pair in sampling[1:]:
        blocks = (num_blocks(size[axis], pair[axis], sampling[0][axis]) for axis in (0, 1))
        planes.append(plane.new_zeros(len(plane), *blocks, 8, 8))
    return JPEGCoefficients(tuple(planes), coefficients.qtables.repeat(1, 3, 1, 1), sampling, size, "ycbcr")


def scale(coefficients: JPEGCoefficients, factor: int) -> JPEGCoefficients:
    """Another name of :func:`downscale`: ``scale(c, 2)`` makes images smaller."""
    return downscale(coefficients, factor)


_Ratio = tuple[int, int]


def _axes(coefficients: JPEGCoefficients) -> tuple[list[_Ratio], list[_Ratio]]:
    """For rows and for columns, each component's samples in relation to the image's pixels, as a fraction."""
    sampling = coefficients.sampling
    largest = [max(pair[axis] for pair in sampling) for axis in (0, 1)]
    return [(pair[0], largest[0]) for pair in sampling], [(pair[1], largest[1]) for pair in sampling]


def _share(pixels: int, ratio: _Ratio) -> int:
    return -(-pixels * ratio[0] // ratio[1])


def _trimmed(coefficients: JPEGCoefficients, axis: int, trim: bool, name: str) -> JPEGCoefficients:
    """The image without the incomplete cell of the block grid at the end of ``axis``."""
    size, cell = list(coefficients.image_size), alignment(coefficients)[axis]
    if size[axis] % cell == 0:
        return coefficients
    what = ("height", "width")[axis]
    if not trim:
        raise ValueError(
            f"{name}: a {what} of {size[axis]} is no multiple of {cell}, so that the last blocks are incomplete and "
            f"can't come first; pass trim=True, or crop to {size[axis] // cell * cell} first"
        )
    size[axis] -= size[axis] % cell
    if size[axis] == 0:
        raise ValueError(f"{name}: a {what} of {coefficients.image_size[axis]} has no whole cell of {cell} to keep")
    return crop(coefficients, 0, 0, *size)


def _flip(coefficients: JPEGCoefficients, axis: int, trim: bool) -> JPEGCoefficients:
    coefficients = _trimmed(coefficients, axis, trim, ("vertical_flip", "horizontal_flip")[axis])
    planes = []
    for plane in coefficients.planes:
        signs = torch.tensor([1, -1] * 4, dtype=plane.dtype, device=plane.device)
        planes.append(plane.flip(1 + axis) * (signs[:, None] if axis == 0 else signs))
    return coefficients._replace(planes=tuple(planes))


def checked_factor(factor: int) -> int:
    """1, 2, 4 or 8.

    Raises:
        ValueError: another value.
    """
    number = integer(factor)
    if number not in (1, 2, 4, 8):
        raise ValueError(f"factor={factor}: blocks of 8x8 shrink by 1, 2, 4 or 8")
    return number


def _shrinking(factor: int) -> Tensor:
    """``(8, factor, 8 / factor)``: coefficients of 8 pixels from the kept ones of ``factor`` blocks, along one axis."""
    n = 8 // factor
    index = torch.arange(n, dtype=torch.float64, device="cpu")
    small = torch.cos((2 * index[:, None] + 1) * index * math.pi / (2 * n)) * math.sqrt(2 / n)
    small[:, 0] = math.sqrt(1 / n)
    # orthonormal coefficients grow with the square root of the length
    return torch.einsum("ajm,mf->ajf", dct_matrix(device="cpu").view(8, factor, n), small / math.sqrt(factor))


def size_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """``(rows, columns)``, in pixels, from one number or a pair.

    Raises:
        ValueError: less than 1 pixel, or something else.
    """
    one = integer(size)
    given = tuple(size) if one is None and isinstance(size, Iterable) else (one, one)
    pair = tuple(n for n in map(integer, given) if n is not None and n >= 1)
    if len(given) != 2 or len(pair) != 2:
        raise ValueError(f"size={size!r}: give at least 1 pixel, as one whole number or as (rows, columns)")
    return pair[0], pair[1]
