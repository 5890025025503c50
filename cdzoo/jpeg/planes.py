"""From quantized coefficients to component planes and color: the linear decode (Ehrlich and Davis, eq. 9-10).

The steps are: dequantize, inverse DCT, level shift, chroma upsampling, YCbCr to RGB. Nothing is rounded or clamped, so
all steps together are one affine map. Samples are in units of the full range (1 is 255 levels), without the level
shift: a plane is ``sample / 255 - 128 / 255``, which is 0 for neutral chroma.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cdzoo._checks import check_choice
from cdzoo._threads import for_each
from cdzoo._torch import outside_autocast
from cdzoo.errors import JPEGError
from cdzoo.jpeg import dct
from cdzoo.jpeg.geometry import CHROMA, num_blocks
from cdzoo.types import JPEGCoefficients

__all__ = [
    "LEVEL_SHIFT",
    "color_matrix",
    "colors_of",
    "component_planes",
    "mix",
    "neutral_planes",
    "subsampling_factors",
]

LEVEL_SHIFT = 128 / 255
LUMA = (0.299, 0.587, 0.114)
YCBCR_TO_RGB = (
    (1.0, 0.0, 1.402),
    (1.0, -LUMA[2] * 1.772 / LUMA[1], -LUMA[0] * 1.402 / LUMA[1]),
    (1.0, 1.772, 0.0),
)
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def check_coefficients(coefficients: object) -> None:
    """Raise ``TypeError`` for what is given by mistake, such as pixels."""
    if not isinstance(coefficients, JPEGCoefficients):
        raise TypeError(
            f"this reads JPEGCoefficients, not {type(coefficients).__name__}: read files with cdzoo.codecs.read_jpeg, "
            "or make coefficients of pixels with cdzoo.codecs.encode_jpeg"
        )


def subsampling_factors(coefficients: JPEGCoefficients, *, inks: bool = False) -> tuple[tuple[int, int], ...]:
    """The (rows, columns) of the image that one sample of each component covers.

    Args:
        coefficients: a batch of files.
        inks: whether CMYK and YCCK files are accepted, whose decode to RGB is not linear.

    Raises:
        JPEGError: the sampling factors don't divide the largest, the planes don't fit the image size, or the color
            space is not accepted.
    """
    check_coefficients(coefficients)
    planes, qtables, sampling, image_size, color_space = coefficients
    expected = {"gray": 1, "ycbcr": 3, "rgb": 3, **({"cmyk": 4, "ycck": 4} if inks else {})}.get(color_space)
    if expected is None:
        raise JPEGError(
            f"color_space={color_space!r}: only gray, ycbcr and rgb files have a linear decode to RGB; give read_jpeg "
            "a CoefficientTransform with resize or crop, which converts others, or convert the file"
        )
    if len(planes) != expected or len(sampling) != expected:
        raise JPEGError(
            f"{color_space} files have {expected} components, not {len(planes)} planes, sampling {sampling}"
        )
    factors = pixels_per_sample(sampling)
    for index, (plane, factor) in enumerate(zip(planes, factors, strict=True)):
        blocks = tuple(num_blocks(n, 1, f) for n, f in zip(image_size, factor, strict=True))
        if plane.dim() != 5 or tuple(plane.shape[1:]) != (*blocks, 8, 8):
            raise JPEGError(
                f"component {index} of an image of {image_size[0]}x{image_size[1]} px must be a plane (B, {blocks[0]}, "
                f"{blocks[1]}, 8, 8), not {tuple(plane.shape)}; blocks that only complete an MCU are left out"
            )
    if not torch.compiler.is_compiling():  # would tie batch sizes together that are traced one by one
        batch = len(planes[0])
        if tuple(qtables.shape) != (batch, len(planes), 8, 8) or any(len(plane) != batch for plane in planes):
            raise JPEGError(
                f"planes of {[len(plane) for plane in planes]} files with qtables {tuple(qtables.shape)}: for {batch} "
                f"files all must be {batch}, and qtables must be {(batch, len(planes), 8, 8)}"
            )
    return factors


def pixels_per_sample(sampling: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The (rows, columns) of the image that one sample of each component covers.

    Raises:
        JPEGError: a sampling factor does not divide the largest one.
    """
    largest = (max(pair[0] for pair in sampling), max(pair[1] for pair in sampling))
    if any(largest[axis] % pair[axis] for pair in sampling for axis in (0, 1)):
        raise JPEGError(f"sampling {sampling}: each factor must divide the largest, {largest}; re-encode the file")
    return tuple((largest[0] // pair[0], largest[1] // pair[1]) for pair in sampling)


def component_size(image_size: tuple[int, int], factor: tuple[int, int]) -> tuple[int, int]:
    """``(H, W)`` of a component in its own samples."""
    return -(-image_size[0] // factor[0]), -(-image_size[1] // factor[1])


def uses_fancy(factor: tuple[int, int], image_size: tuple[int, int], chroma: str) -> bool:
    """True if libjpeg's "fancy" upsampling applies: factor 2, and more than two columns if these are interpolated.

    Raises:
        ValueError: an unknown ``chroma``.
    """
    check_choice("chroma", chroma, CHROMA)
    wide = component_size(image_size, factor)[1] > 2
    return chroma == "fancy" and (factor == (2, 1) or (factor in ((1, 2), (2, 2)) and wide))


def dequantized(plane: Tensor, qtable: Tensor, dtype: torch.dtype) -> Tensor:
    """Coefficients ``(B, Hb, Wb, 8, 8)`` of ``sample / 255``, from integers and their tables ``(B, 8, 8)``."""
    return plane.to(dtype) * (qtable.to(dtype) / 255)[:, None, None]


def pixel_blocks(
    planes: Tensor, qtables: Tensor, *, shifts: tuple[float, ...], dtype: torch.dtype, basis: Tensor | None = None
) -> Tensor:
    """Dequantized inverse DCT of components of one size, plus a shift for each, as one batched matrix product.

    Args:
        planes: ``(B, k, Hb, Wb, 8, 8)`` integers.
        qtables: ``(B, k, 8, 8)``; multiplied into the basis, one per image and component.
        shifts: ``k`` numbers, added to the samples of each component.
        dtype: of the result; half precision is computed in float32, whose range and precision DC terms need.
        basis: :func:`cdzoo.jpeg.dct.basis_matrix`, where the caller keeps it on the device.

    Returns:
        pixels ``(B, k, Hb, Wb, 8, 8)`` in ``dtype``.
    """
    exact, device = torch.promote_types(dtype, torch.float32), planes.device
    if basis is None:
        basis = dct.basis_matrix(dtype=exact, device=device)
    with outside_autocast(device):
        coefficients = planes.flatten(4).flatten(2, 3).flatten(0, 1).to(exact)
        scale = qtables.flatten(2).flatten(0, 1).to(exact) / 255
        shift = scale.new_tensor(shifts).repeat(planes.shape[0]).view(-1, 1, 1)
        pixels = torch.baddbmm(shift, coefficients, scale[..., None] * basis.to(exact))
    return pixels.to(dtype).view(planes.shape)


def upsample(x: Tensor, factor: tuple[int, int], *, fancy: bool, size: tuple[int, int]) -> Tensor:
    """Samples ``(..., h, w)`` enlarged by whole factors and cropped to ``size``.

    Args:
        x: samples; integer factors, so each one becomes ``factor`` rows and columns.
        factor: (rows, columns).
        fancy: libjpeg's triangle filter, 3/4 of the nearest sample and 1/4 of the next, edges replicated; otherwise
            replication.
        size: ``(H, W)`` kept of the result.
    """
    for dim, n in ((-2, factor[0]), (-1, factor[1])):
        if n == 1:
            continue
        if fancy:
            last = x.shape[dim] - 1
            before = torch.cat((x.narrow(dim, 0, 1), x.narrow(dim, 0, last)), dim)
            after = torch.cat((x.narrow(dim, 1, last), x.narrow(dim, last, 1)), dim)
            phases = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after]
        else:
            phases = [x] * n
        x = torch.stack(phases, dim).flatten(dim - 1, dim)
    return x[..., : size[0], : size[1]]


def component_planes(
    coefficients: JPEGCoefficients,
    shifts: tuple[float, ...],
    *,
    chroma: str,
    dtype: torch.dtype,
    basis: Tensor | None = None,
    inks: bool = False,
) -> list[Tensor]:
    """Every component at the size of the image.

    Args:
        coefficients: a batch of files.
        shifts: added to the samples of each component; further ones are constant planes, see :func:`neutral_planes`.
        chroma: ``"nearest"`` or ``"fancy"`` upsampling.
        dtype: of the planes.
        basis: as for :func:`pixel_blocks`.
        inks: as for :func:`subsampling_factors`.

    Returns:
        as many planes ``(B, H, W)`` as there are shifts.
    """
    planes, qtables, _, size, _ = coefficients
    factors = subsampling_factors(coefficients, inks=inks)
    out: list[Tensor] = []
    for k, shift in enumerate(shifts):
        if k >= len(planes):
            out.append(out[0].new_full((1, 1, 1), shift).expand_as(out[0]))
            continue
        blocks = pixel_blocks(planes[k][:, None], qtables[:, k : k + 1], shifts=(shift,), dtype=dtype, basis=basis)
        own = dct.unblockify(blocks[:, 0], component_size(size, factors[k]))
        out.append(upsample(own, factors[k], fancy=uses_fancy(factors[k], size, chroma), size=size))
    return out


def colors_of(
    coefficients: JPEGCoefficients,
    shifts: tuple[float, ...],
    matrix: Sequence[Sequence[float]],
    *,
    chroma: str,
    dtype: torch.dtype,
    basis: Tensor | None = None,
) -> Tensor:
    """Linear combinations of the components at the size of the image.

    Args:
        coefficients, shifts, chroma, dtype, basis: see :func:`component_planes`.
        matrix: a row of factors for each color, one factor for each shift.

    Returns:
        ``(B, C, H, W)``.
    """
    planes, qtables, _, size, _ = coefficients
    plain = all(factor == (1, 1) for factor in subsampling_factors(coefficients))
    if not plain or not len(planes) == len(shifts) == 3:
        return mix(component_planes(coefficients, shifts, chroma=chroma, dtype=dtype, basis=basis), matrix, 1)
    if _compilable(planes, dtype):
        return _compiled_colors(coefficients, shifts, matrix)
    # nothing is upsampled: two matrix products, and one copy from blocks to rows
    blocks = pixel_blocks(torch.stack(planes, 1), qtables, shifts=shifts, dtype=dtype, basis=basis)
    colors = blocks.new_tensor(matrix) @ blocks.flatten(2)
    return dct.unblockify(colors.view(len(colors), len(matrix), *blocks.shape[2:]), size).contiguous()


def _compilable(planes: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Return true for what the kernel takes: resized coefficients on the CPU, outside of traces and derivatives."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or dtype != torch.float32:
        return False
    return all(
        type(plane) is Tensor and plane.is_cpu and plane.dtype == torch.float32 and _is_plain(plane) for plane in planes
    )


def _is_plain(tensor: Tensor) -> bool:
    """Return true for numbers in memory that no derivative follows; transforms of ``torch.func`` wrap theirs."""
    if tensor.requires_grad or forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def _compiled_colors(
    coefficients: JPEGCoefficients, shifts: tuple[float, ...], matrix: Sequence[Sequence[float]]
) -> Tensor:
    """:func:`colors_of` by a compiled kernel, which takes a fifth of the time of matrix products."""
    from cdzoo.jpeg.kernels import colors
    from cdzoo.jpeg.kernels.jit import run

    planes, qtables, _, size, _ = coefficients
    arrays = [plane.contiguous().numpy() for plane in planes]
    tables = qtables.to(torch.float32).numpy().reshape(-1, 3, 64)
    factors = np.array([[w / 255 for w in row] + [float(np.dot(row, shifts))] for row in matrix], np.float32)
    batch, rows, columns = planes[0].shape[:3]
    out = torch.empty(batch, len(matrix), 8 * rows, 8 * columns, dtype=torch.float32, device="cpu")
    images = out.numpy()

    def combine(i: int) -> None:
        run(colors.combine, *(array[i] for array in arrays), tables[i], factors, images[i])

    for_each(combine, batch, torch.get_num_threads())
    return out[..., : size[0], : size[1]].contiguous()


def color_matrix(color_space: str, channels: int) -> tuple[tuple[float, ...], ...]:
    """The matrix from component planes to ``channels`` colors, 3 (RGB) or 1 (luma): a row per color.

    Rows may be wider than a gray file has components: its chroma planes are then constant.
    """
    if channels == 3:
        return _IDENTITY if color_space == "rgb" else YCBCR_TO_RGB
    return (LUMA,) if color_space == "rgb" else ((1.0,),)


def neutral_planes(color_space: str, colors: tuple[float, ...]) -> tuple[float, ...]:
    """Plane values of a pixel with the given RGB or luma in [0, 1]: the inverse of :func:`color_matrix`."""
    shifted = tuple(color - LEVEL_SHIFT for color in colors)
    if len(colors) == 1:
        return shifted * (3 if color_space == "rgb" else 1)
    if color_space == "rgb":
        return shifted
    y = sum(weight * color for weight, color in zip(LUMA, shifted, strict=True))
    return y, (shifted[2] - y) / 1.772, (shifted[0] - y) / 1.402


def to_ycbcr(colors: Sequence[Tensor]) -> list[Tensor]:
    """Luma and chroma of three planes or coefficients (RGB) of one shape; all three may have a level shift."""
    red, green, blue = colors
    y = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return [y, (blue - y) / 1.772, (red - y) / 1.402]


def mix(planes: list[Tensor], matrix: Sequence[Sequence[float]], dim: int) -> Tensor:
    """Linear combinations of ``K`` planes of one shape, one per row of ``matrix`` ``(n, K)``, stacked along ``dim``."""
    rows = []
    for row in matrix:
        terms = [weight * plane for weight, plane in zip(row, planes, strict=True) if weight]
        rows.append(torch.stack(terms).sum(0) if len(terms) > 2 else sum(terms[1:], terms[0]))
    return torch.stack(rows, dim)
