"""Photographs of any size at the size of a network, from coefficients to coefficients.

Dequantization, inverse DCT, chroma upsampling, antialiased resizing, flips and crop are linear maps along one axis
each. Composed with the DCT of the result they are one banded matrix per axis and component, so that the linear decode
is resized exactly, and no picture of full size is ever made. On the CPU a compiled kernel does it
(:mod:`cdzoo.jpeg.kernels.resize`), elsewhere matrix products do.

The result is always ``"ycbcr"``, sampled 1x1, with float32 planes and tables of ones, so that files of every kind go
into one batch: gray files get chroma planes of zeros, RGB, CMYK and YCCK files are converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdzoo._threads import for_each
from cdzoo._torch import outside_autocast
from cdzoo.jpeg import dct
from cdzoo.jpeg.geometry import COLUMNS_BACKWARDS, ROWS_BACKWARDS, TRANSPOSED, num_blocks
from cdzoo.jpeg.planes import dequantized, pixels_per_sample, subsampling_factors, to_ycbcr, uses_fancy
from cdzoo.types import JPEGCoefficients

if TYPE_CHECKING:
    from cdzoo.jpeg.kernels.resize import Axis

__all__ = ["Placement", "resize_coefficients"]

_BLACK = -128.0
_BAND_PIXELS = 1 << 20  # of a CMYK picture, at a time


class Placement(NamedTuple):
    """A box of the upright picture, resized, and the part of the result that is kept.

    Attributes:
        top, left, height, width: the box, in pixels; it lies inside the picture.
        resized: ``(h, w)`` of the box after resizing.
        first: row and column of the resized box where the result begins; what lies outside the box is black.
        size: ``(h, w)`` of the result.
        mirrored: whether the result is mirrored left and right.
        cubic: bicubic filter in place of the triangle (bilinear) one; both antialiased.
    """

    top: int
    left: int
    height: int
    width: int
    resized: tuple[int, int]
    first: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool = False
    cubic: bool = False

    def stored_axes(self, image_size: tuple[int, int], orientation: int) -> list[_AxisPlacement]:
        """The vertical and the horizontal axis of the stored picture."""
        boxes = ((self.top, self.height), (self.left, self.width))
        mirrored = (False, self.mirrored)
        turned = (orientation in ROWS_BACKWARDS, orientation in COLUMNS_BACKWARDS)
        return [
            _AxisPlacement(
                image_size[stored],
                *boxes[upright],
                self.resized[upright],
                self.first[upright],
                self.size[upright],
                turned[stored],
                mirrored[upright],
                self.cubic,
            )
            for stored, upright in enumerate((1, 0) if orientation in TRANSPOSED else (0, 1))
        ]


class _AxisPlacement(NamedTuple):
    """One axis of a placement, see :func:`cdzoo.jpeg.kernels.resize.build_axis`."""

    length: int
    start: int
    extent: int
    resized: int
    first: int
    kept: int
    turned: bool
    mirrored: bool
    cubic: bool

    @property
    def flipped(self) -> bool:
        return self.turned != self.mirrored


def resize_coefficients(
    coefficients: JPEGCoefficients,
    placements: Sequence[Placement],
    *,
    chroma: str = "fancy",
    orientation: int = 1,
    num_threads: int = 1,
) -> JPEGCoefficients:
    """Resize each picture of a batch as its placement says.

    Args:
        coefficients: a batch of ``B`` files of any kind, on any device.
        placements: one for each, of one size; in the upright picture.
        chroma: ``"fancy"`` or ``"nearest"`` upsampling.
        orientation: the Exif orientation of all files, which is undone.
        num_threads: files that are resized at the same time on the CPU.

    Returns:
        ``"ycbcr"`` coefficients ``3 x (B, hb, wb, 8, 8)`` float32, of tables of ones, sampled 1x1.

    Raises:
        JPEGError: sampling factors that don't divide each other, planes of a wrong shape.
        ValueError: an unknown ``chroma``.
    """
    if coefficients.color_space in ("cmyk", "ycck"):
        return _resized_pixels(coefficients, placements, chroma, orientation)
    factors = subsampling_factors(coefficients)
    compiled = all(plane.is_cpu and plane.dtype == torch.int16 for plane in coefficients.planes)
    if not compiled:
        return _resized_on_device(coefficients, factors, placements, chroma, orientation)
    planes = [plane.contiguous().numpy() for plane in coefficients.planes]
    qtables = coefficients.qtables.to(torch.float32).numpy().reshape(len(placements), -1, 64)
    out = empty_result(len(placements), placements[0].size)
    geometry = (coefficients.sampling, coefficients.image_size, coefficients.color_space)

    def resize(i: int) -> None:
        plan = plan_resize(*geometry, chroma, orientation, placements[i])
        resize_planes([plane[i] for plane in planes], qtables[i], plan, [plane[i] for plane in out])

    for_each(resize, len(placements), num_threads)
    return as_result(out, placements[0].size)


class ResizePlan(NamedTuple):
    """The description of a file for the kernel.

    Attributes:
        axes: the vertical and the horizontal axis of each component.
        flips: int64 ``(3,)``: whether rows, columns run backwards in the result; whether it is transposed then.
        fills: the value of samples outside the picture, for each component.
        color_space: of the file.
    """

    axes: tuple[tuple[Axis, Axis], ...]
    flips: NDArray[np.int64]
    fills: tuple[float, ...]
    color_space: str


@lru_cache(maxsize=64)
def plan_resize(
    sampling: tuple[tuple[int, int], ...],
    image_size: tuple[int, int],
    color_space: str,
    chroma: str,
    orientation: int,
    placement: Placement,
) -> ResizePlan:
    """The plan of a file of this geometry.

    Raises:
        JPEGError: sampling factors that don't divide each other.
        ValueError: an unknown ``chroma``.
    """
    vertical, horizontal = placement.stored_axes(image_size, orientation)
    made: dict[tuple[tuple[int, int], bool], tuple[Axis, Axis]] = {}
    axes = []
    for factor in pixels_per_sample(sampling):
        fancy = uses_fancy(factor, image_size, chroma)
        if (factor, fancy) not in made:
            made[factor, fancy] = (_axis(vertical, factor[0], fancy), _axis(horizontal, factor[1], fancy))
        axes.append(made[factor, fancy])
    flips = np.array([vertical.flipped, horizontal.flipped, orientation in TRANSPOSED], np.int64)
    fills = (_BLACK,) * 3 if color_space == "rgb" else (_BLACK, 0.0, 0.0)
    return ResizePlan(tuple(axes), flips, fills[: len(axes)], color_space)


def resize_planes(
    planes: Sequence[NDArray[np.int16]],
    qtables: NDArray[np.float32],
    plan: ResizePlan,
    out: Sequence[NDArray[np.float32]],
) -> None:
    """Resize the planes ``(Hb, Wb, 8, 8)`` of one file into planes ``(hb, wb, 8, 8)``."""
    kernels, run = _load_kernels()
    for k, (vertical, horizontal) in enumerate(plan.axes):
        source = planes[k].reshape(*planes[k].shape[:2], 64)
        run(
            kernels.resize_plane,
            source,
            qtables[k],
            vertical,
            horizontal,
            plan.flips,
            plan.fills[k],
            out[k].reshape(-1),
        )
    finish_colors(plan.color_space, out)


def finish_colors(color_space: str, out: Sequence[NDArray[np.float32]]) -> None:
    """Make YCbCr of the planes of one file, in place."""
    if color_space == "gray":
        for plane in out[1:]:
            plane.fill(0)
    elif color_space == "rgb":
        for plane, converted in zip(out, to_ycbcr([torch.from_numpy(plane) for plane in out]), strict=True):
            plane[...] = converted.numpy()


def empty_result(batch: int, size: tuple[int, int]) -> list[NDArray[np.float32]]:
    """Planes for a batch of results."""
    shape = (batch, num_blocks(size[0]), num_blocks(size[1]), 8, 8)
    return [np.empty(shape, np.float32) for _ in range(3)]


def as_result(planes: Sequence[NDArray[np.float32] | Tensor], size: tuple[int, int]) -> JPEGCoefficients:
    """Coefficients of planes that are filled."""
    tensors = tuple(plane if isinstance(plane, Tensor) else torch.from_numpy(plane) for plane in planes)
    tables = torch.ones(len(planes[0]), 3, 8, 8, dtype=torch.int32, device=tensors[0].device)
    return JPEGCoefficients(tensors, tables, ((1, 1),) * 3, size, "ycbcr")


def _resized_on_device(
    coefficients: JPEGCoefficients,
    factors: Sequence[tuple[int, int]],
    placements: Sequence[Placement],
    chroma: str,
    orientation: int,
) -> JPEGCoefficients:
    """The same map as matrix products, for any dtype and device."""
    size, space = coefficients.image_size, coefficients.color_space
    with outside_autocast(coefficients.qtables.device):
        components = []
        for k, factor in enumerate(factors):
            blocks = dequantized(coefficients.planes[k], coefficients.qtables[:, k], torch.float32) * 255
            samples = dct.unblockify(blocks)
            shift = _BLACK if k == 0 or space == "rgb" else 0.0
            fancy = uses_fancy(factor, size, chroma)
            components.append(_mapped(samples, placements, size, orientation, shift, factor, fancy))
        if space == "rgb":
            components = to_ycbcr(components)
        planes = [dct.dct2d(dct.blockify(component)) for component in components]
    planes += [torch.zeros_like(planes[0]) for _ in range(3 - len(planes))]
    return as_result(planes, placements[0].size)


def _resized_pixels(
    coefficients: JPEGCoefficients, placements: Sequence[Placement], chroma: str, orientation: int
) -> JPEGCoefficients:
    """The way through pixels, since the conversion of CMYK is not linear: a band of each picture at a time."""
    with outside_autocast(coefficients.qtables.device):
        colors = []
        for i, placement in enumerate(placements):
            own = coefficients._replace(
                planes=tuple(plane[i : i + 1] for plane in coefficients.planes), qtables=coefficients.qtables[i : i + 1]
            )
            colors.append(_resized_bands(own, placement, chroma, orientation))
        components = to_ycbcr(torch.cat(colors).unbind(1))
        planes = [dct.dct2d(dct.blockify(component)) for component in components]
    return as_result(planes, placements[0].size)


def _resized_bands(coefficients: JPEGCoefficients, placement: Placement, chroma: str, orientation: int) -> Tensor:
    """RGB ``(1, 3, h, w)`` in levels of one picture, whose pixels never exist all at once."""
    from cdzoo.jpeg.pixels import decode_jpeg

    size, sampling = coefficients.image_size, coefficients.sampling
    axes = placement.stored_axes(size, orientation)
    rows, columns = (
        _dense(axis, 1, False, transformed=False)[:, :n].to(coefficients.qtables.device)
        for axis, n in zip(axes, size, strict=True)
    )
    step = 8 * max(vertical for vertical, _ in sampling)  # rows of pixels in a row of MCUs
    num_mcus, height = -(-size[0] // step), max(1, _BAND_PIXELS // (step * size[1]))
    total = rows.new_zeros(1, 3, len(rows), len(columns))
    for first in range(0, num_mcus, height):
        start, end = first * step, min((first + height) * step, size[0])
        if not rows[:, start:end].any():
            continue
        low, high = max(first - 1, 0), min(first + height + 1, num_mcus)  # chroma is interpolated across the edges
        planes = zip(coefficients.planes, sampling, strict=True)
        band = coefficients._replace(
            planes=tuple(plane[:, low * vertical : high * vertical] for plane, (vertical, _) in planes),
            image_size=(min(high * step, size[0]) - low * step, size[1]),
        )
        pixels = decode_jpeg(band, clamp=False, chroma=chroma)[:, :, start - low * step : end - low * step]
        total += rows[:, start:end] @ (pixels * 255 - 128) @ columns.T
    outside = (rows == 0).all(1)[:, None] | (columns == 0).all(1)
    total = torch.where(outside, _BLACK, total)
    return total.transpose(2, 3) if orientation in TRANSPOSED else total


def _mapped(
    samples: Tensor,
    placements: Sequence[Placement],
    image_size: tuple[int, int],
    orientation: int,
    fill: float,
    factor: tuple[int, int],
    fancy: bool,
) -> Tensor:
    """Upright samples ``(B, h, w)`` of a component, given as its coefficients ``(B, 8 Hb, 8 Wb)``."""
    alike = len(set(placements)) == 1
    out = []
    for i, placement in enumerate(placements[:1] if alike else placements):
        x = samples if alike else samples[i : i + 1]
        axes = placement.stored_axes(image_size, orientation)
        rows, columns = (_dense(axes[n], factor[n], fancy, transformed=True).to(x) for n in (0, 1))
        x = rows[:, : x.shape[1]] @ x @ columns[:, : x.shape[2]].T
        outside = (rows == 0).all(1)[:, None] | (columns == 0).all(1)
        out.append(torch.where(outside, fill, x))
    y = torch.cat(out)
    return y.transpose(1, 2) if orientation in TRANSPOSED else y


def _dense(axis: _AxisPlacement, factor: int, fancy: bool, *, transformed: bool) -> Tensor:
    """An axis as a matrix ``(count, 8 * blocks)``, in the order of the result."""
    banded = _axis(axis, factor, fancy, transformed=transformed)
    matrix = np.zeros((len(banded.outputs), len(banded.blocks) * 8), np.float32)
    for o, (first, count) in enumerate(banded.outputs.tolist()):
        matrix[o, 8 * first : 8 * (first + count)] = banded.weights[o, : 8 * count]
    if axis.flipped:
        matrix = matrix[::-1]
    return torch.from_numpy(matrix[: axis.kept].copy())


def _axis(axis: _AxisPlacement, factor: int, fancy: bool, *, transformed: bool = True) -> Axis:
    """The matrix of an axis, see :class:`cdzoo.jpeg.kernels.resize.Axis`, over coefficients or over samples."""
    kernels, run = _load_kernels()
    triangle = fancy and factor == 2
    room = -(-axis.kept // 8) * 8
    support = int((4 if axis.cubic else 2) * max(axis.extent / axis.resized, 1.0)) + 2  # pixels
    most = ((support - 1) // factor + 3) // 8 + 2  # blocks
    blocks = num_blocks(axis.length, 1, factor)
    arrays: Axis = kernels.Axis(
        np.empty((room, 2), np.int64),
        np.empty((blocks, 2), np.int64),
        np.empty(room // 8, np.int64),
        np.empty((room, 8 * most), np.float32),
    )
    basis = _DCT if transformed else _IDENTITY
    length, *others = axis
    run(kernels.build_axis, length, factor, triangle, *others, basis, *arrays)
    return arrays


def _load_kernels() -> tuple[Any, Any]:
    """The module of compiled code, and what calls it. Numba is imported on first use."""
    from cdzoo.jpeg.kernels import resize
    from cdzoo.jpeg.kernels.jit import run

    return resize, run


_DCT = dct.dct_matrix(device="cpu").numpy()
_IDENTITY = np.eye(8)
