"""Pixels to JPEG coefficients and back, on any device, without entropy coding and without files.

``encode_jpeg`` computes all steps of an encoder before Huffman coding. ``decode_jpeg`` is the linear decode: it never
rounds, and clamps only on request. A JPEG-domain network is called exact if it equals the pixel network on this decode.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cdzoo._checks import check_choice, integer
from cdzoo._torch import outside_autocast
from cdzoo.jpeg import dct
from cdzoo.jpeg.geometry import CHROMA
from cdzoo.jpeg.planes import LEVEL_SHIFT, check_coefficients, color_matrix, colors_of, component_planes, mix, to_ycbcr
from cdzoo.types import JPEGCoefficients

__all__ = ["SUBSAMPLINGS", "decode_jpeg", "encode_jpeg", "quality_tables"]

# (vertical, horizontal) sampling factors of the luma; the chroma has (1, 1).
SUBSAMPLINGS = {
    "4:4:4": (1, 1),
    "4:2:2": (1, 2),
    "4:2:0": (2, 2),
    "4:4:0": (2, 1),
    "4:1:1": (1, 4),
    "4:1:0": (2, 4),
}
# ITU-T T.81, tables K.1 (luminance) and K.2 (chrominance).
_LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMINANCE = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
]


def quality_tables(quality: int) -> Tensor:
    """The two quantization tables ``(2, 8, 8)`` int32 (luma, chroma; natural order) of libjpeg's quality scale.

    Args:
        quality: 1 (smallest file) to 100 (all entries 1).

    Raises:
        ValueError: ``quality`` is not an integer of 1 to 100.
    """
    number = integer(quality)
    if number is None or not 1 <= number <= 100:
        raise ValueError(f"quality={quality!r}: libjpeg's scale takes integers of 1 to 100")
    percent = 5000 // number if number < 50 else 200 - 2 * number
    base = torch.tensor([_LUMINANCE, _CHROMINANCE], dtype=torch.int32, device="cpu")
    return ((base * percent + 50) // 100).clamp(1, 255)


def encode_jpeg(x: Tensor, *, quality: int = 75, subsampling: str = "4:2:0") -> JPEGCoefficients:
    """Quantized JPEG coefficients of images, computed on the device of ``x``.

    Chroma is averaged over boxes. Images are padded to whole blocks by replication. Quantization tables are those of
    ITU-T T.81, Annex K, scaled by libjpeg's rule. libjpeg rounds colors to integers before the DCT and this function
    does not, so single coefficients may differ from libjpeg's by one.

    Args:
        x: ``(B, 3, H, W)`` RGB or ``(B, 1, H, W)`` gray, floating point in [0, 1]; values outside are clamped.
        quality: 1 to 100, libjpeg's scale.
        subsampling: ``"4:4:4"``, ``"4:2:2"``, ``"4:2:0"``, ``"4:4:0"``, ``"4:1:1"`` or ``"4:1:0"``; no effect on gray.

    Returns:
        coefficients of color space ``"ycbcr"`` or ``"gray"``, ``planes`` ``K x (B, Hb, Wb, 8, 8)`` int16, without a
        gradient.

    Raises:
        TypeError: ``x`` is not a tensor.
        ValueError: an unknown subsampling or quality, or an ``x`` that is not a batch of images.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"encode_jpeg takes a tensor, not {type(x).__name__}; torch.from_numpy makes one of an array")
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(
            f"encode_jpeg takes images (B, 3, H, W) or (B, 1, H, W) in floating point, not {x.dtype} {tuple(x.shape)}"
        )
    check_choice("subsampling", subsampling, SUBSAMPLINGS)
    if x.isnan().any():
        raise ValueError("encode_jpeg got images with NaN in them")
    tables = quality_tables(quality).to(x.device)
    with torch.no_grad(), outside_autocast(x.device):
        return _encoded(x, tables, subsampling)


def _encoded(x: Tensor, tables: Tensor, subsampling: str) -> JPEGCoefficients:
    levels = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(0, 1) * 255
    size = (x.shape[2], x.shape[3])
    if x.shape[1] == 1:
        components, factors = [levels[:, 0] - 128], [(1, 1)]
        sampling: tuple[tuple[int, int], ...] = ((1, 1),)
    else:
        y, *colors = to_ycbcr(levels.unbind(1))
        components, largest = [y - 128, *colors], SUBSAMPLINGS[subsampling]
        factors = [(1, 1), largest, largest]
        sampling = (largest, (1, 1), (1, 1))
    qtables = tables[[0, 1, 1][: len(components)]]
    planes = tuple(
        _quantize(_shrink(component, factor), table)
        for component, factor, table in zip(components, factors, qtables, strict=True)
    )
    batched = qtables.expand(x.shape[0], -1, -1, -1).contiguous()
    return JPEGCoefficients(planes, batched, sampling, size, "gray" if x.shape[1] == 1 else "ycbcr")


def decode_jpeg(
    coefficients: JPEGCoefficients,
    *,
    clamp: bool = True,
    chroma: str = "fancy",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Decode coefficients to RGB without rounding: the linear decode.

    Its steps are: dequantize, inverse DCT, level shift, chroma upsampling, YCbCr to RGB.

    Args:
        coefficients: a batch of files, ``planes`` ``K x (B, Hb, Wb, 8, 8)``, on any device. In CMYK and YCCK files,
            inks are inverted, as Adobe writes and Pillow reads them. Their decode is not linear: colors are multiplied
            by black.
        clamp: clamp the result to [0, 1], as every decoder does. ``False`` gives the affine map to which JPEG-domain
            networks are exact.
        chroma: ``"fancy"``, libjpeg's default, upsamples chroma by a triangle filter; ``"nearest"`` repeats samples.
        dtype: of the result.

    Returns:
        RGB ``(B, 3, H, W)``; three equal channels for gray files.

    Raises:
        JPEGError: sampling factors that don't divide each other, planes of a wrong shape.
        TypeError: not a :class:`~cdzoo.types.JPEGCoefficients`.
        ValueError: an unknown ``chroma``, or a ``dtype`` that is not floating-point.
    """
    check_coefficients(coefficients)
    check_choice("chroma", chroma, CHROMA)  # also where there is no chroma to upsample
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype}: the linear decode is in floating point; round it to integers afterwards")
    space = coefficients.color_space
    colors = {"cmyk": "rgb", "ycck": "ycbcr"}.get(space, space)
    matrix = ((1.0,),) * 3 if space == "gray" else color_matrix(colors, 3)
    # RGB files have each plane level-shifted; in YCbCr the shift of the luma alone reaches all three colors.
    shifts: tuple[float, ...] = (LEVEL_SHIFT,) * 3 if colors == "rgb" else (LEVEL_SHIFT, 0.0, 0.0)
    shifts = shifts[: len(matrix[0])] + (LEVEL_SHIFT,) * (colors != space)
    with outside_autocast(coefficients.qtables.device):
        if colors == space:
            x = colors_of(coefficients, shifts, matrix, chroma=chroma, dtype=dtype)
        else:
            planes = component_planes(coefficients, shifts, chroma=chroma, dtype=dtype, inks=True)
            x = mix(planes[:3], matrix, 1)
            x = (1 - x if space == "ycck" else x) * planes[3][:, None]  # YCC stands for the complement of the inks
    return x.clamp(0, 1) if clamp else x


def _shrink(component: Tensor, factor: tuple[int, int]) -> Tensor:
    """Means over boxes of ``factor``, completed to whole blocks by replication.

    In libjpeg's order: columns are replicated before averaging, rows of samples after it.
    """
    height, width = component.shape[-2:]
    padded = F.pad(component, (0, -width % (8 * factor[1]), 0, -height % factor[0]), mode="replicate")
    small = padded if factor == (1, 1) else F.avg_pool2d(padded, factor)
    return F.pad(small, (0, 0, 0, -small.shape[-2] % 8), mode="replicate")


def _quantize(component: Tensor, table: Tensor) -> Tensor:
    scaled = dct.dct2d(dct.blockify(component)) / table
    return torch.trunc(scaled + torch.copysign(scaled.new_tensor(0.5), scaled)).to(torch.int16)
