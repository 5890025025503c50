"""The entrance of a ``fused`` network: files to the output of its first convolution, without an RGB image.

The decode is affine and a convolution is linear. So dequantization, inverse DCT, level shift, chroma upsampling, color
conversion, normalization and the first convolution are one affine map. Two parts of it are merged, where that is
faster:

- Color conversion and normalization go into the filters, so that the convolution reads component planes. Zero padding
  of a normalized image is padding with the mean color. So planes are shifted such that the mean color is 0.
- A stride ``s`` becomes space-to-depth by ``s`` and a convolution of stride 1. The inverse DCT of luma is written
  directly into ``s x s`` channels at 1/s of the size. A chroma plane subsampled by ``f`` needs only ``s/f x s/f``
  channels, each with the sum of the filter taps that would have read its copies: it is never upsampled. For the 7x7/2
  convolution of a ResNet and 4:2:0 files that is one 4x4 convolution of 4 + 2 channels, with a third of the arithmetic
  saved.

The result is exact for every stride, padding, dilation, kernel and sampling. Where a subsampled plane cannot be grouped
with the stride (stride 1, odd image sizes, "fancy" upsampling), that plane is upsampled first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cdzoo._torch import outside_autocast
from cdzoo.jpeg import dct
from cdzoo.jpeg.nn.conv import Pair, axis_padding, conv_output_size, flat_image, pair
from cdzoo.jpeg.planes import (
    LEVEL_SHIFT,
    color_matrix,
    component_size,
    dequantized,
    mix,
    neutral_planes,
    pixel_blocks,
    subsampling_factors,
    upsample,
    uses_fancy,
)
from cdzoo.types import JPEGCoefficients

__all__ = ["jpeg_coefficient_image", "jpeg_stem_conv2d"]


def jpeg_stem_conv2d(
    coefficients: JPEGCoefficients,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
    chroma: str = "nearest",
    basis: Tensor | None = None,
) -> Tensor:
    """A convolution of the normalized linear decode, computed from the coefficients.

    Args:
        coefficients: a batch of gray, YCbCr or RGB files.
        weight: filters ``(C', 3, kh, kw)`` that expect RGB, or ``(C', 1, kh, kw)`` that expect luma.
        bias: ``(C',)`` or ``None``.
        stride: step in pixels.
        padding: zeros around the normalized image in pixels, ``"same"`` or ``"valid"``.
        dilation: distance of filter taps in pixels.
        mean: of each color, in [0, 1].
        std: of each color.
        chroma: ``"nearest"`` or ``"fancy"`` upsampling.
        basis: :func:`cdzoo.jpeg.dct.basis_matrix` in at least float32, where the caller keeps it on the device.

    Returns:
        ``(B, C', H', W')``, equal to ``F.conv2d((decode_jpeg(coefficients, clamp=False) - mean) / std, weight, ...)``.

    Raises:
        JPEGError: as :func:`cdzoo.codecs.decode_jpeg`.
    """
    planes, qtables, _, size, space = coefficients
    steps, gaps = pair(stride), pair(dilation)
    kernel = (weight.shape[2], weight.shape[3])
    pads = axis_padding(padding, kernel, gaps)
    out_size = conv_output_size(size, kernel, stride=stride, padding=padding, dilation=dilation)
    factors = subsampling_factors(coefficients)
    matrix = color_matrix(space, weight.shape[1])
    shifts = tuple(-plane for plane in neutral_planes(space, mean))
    # Components that are subsampled alike go together; those that a gray file lacks come last.
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for k in range(len(shifts)):
        groups.setdefault(factors[k] if k < len(factors) else None, []).append(k)
    channels: list[Tensor] = []
    filters: list[Tensor] = []
    for factor, members in groups.items():
        values = tuple(shifts[k] for k in members)
        if factor is None:
            channel, grouped = _constant_channels(channels[0], values, size, steps)
        else:
            stacked = torch.stack([planes[k] for k in members], 1)
            blocks = pixel_blocks(stacked, qtables[:, members], shifts=values, dtype=weight.dtype, basis=basis)
            channel, grouped = _component_channels(blocks, factor, size, steps, chroma)
        mixing = weight.new_tensor([[row[k] / std[c] for k in members] for c, row in enumerate(matrix)])
        rows, columns = (_tap_groups(kernel[i], steps[i], pads[i][0], gaps[i], grouped[i], like=weight) for i in (0, 1))
        channels.append(channel)
        filters.append(torch.einsum("ocij,ck,iap,jbq->okpqab", weight, mixing, rows, columns).flatten(1, 3))
    x, folded = torch.cat(channels, 1), torch.cat(filters, 1)
    edges = []
    for i in (1, 0):
        before = -(-pads[i][0] // steps[i])
        edges += [before, out_size[i] + folded.shape[2 + i] - 1 - before - x.shape[2 + i]]
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(F.pad(x, edges), folded, bias)
    # The network is in channels_last and would be slowed down by another layout. Kernels for it like multiples of 8.
    empty = -x.shape[1] % 8
    x, folded = F.pad(x, [*edges, 0, empty]), F.pad(folded, [0, 0, 0, 0, 0, empty])
    layout = torch.channels_last
    return F.conv2d(x.contiguous(memory_format=layout), folded.contiguous(memory_format=layout), bias)


def _component_channels(
    blocks: Tensor, factor: tuple[int, int], size: tuple[int, int], steps: tuple[int, int], chroma: str
) -> tuple[Tensor, tuple[int, int]]:
    """Planes at 1/steps of the image, ``(B, k * phases, H', W')``, and how many pixels one of their samples groups."""
    fancy = uses_fancy(factor, size, chroma)
    grouped = (1, 1) if fancy else _grouping(factor, steps, size)
    own = component_size(size, factor)
    phases = (steps[0] // grouped[0], steps[1] // grouped[1])
    if grouped == factor:
        return _depth_from_blocks(blocks, phases, own), grouped
    needed = (size[0] // grouped[0], size[1] // grouped[1])
    missing = (factor[0] // grouped[0], factor[1] // grouped[1])
    enlarged = upsample(dct.unblockify(blocks, own), missing, fancy=fancy, size=needed)
    return _space_to_depth(enlarged, phases), grouped


def _constant_channels(
    like: Tensor, values: tuple[float, ...], size: tuple[int, int], steps: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The chroma of gray files: one value inside the image, zero beyond."""
    grouped = _grouping(steps, steps, size)
    inside = like.new_tensor(values).view(1, -1, 1, 1).expand(-1, -1, size[0] // grouped[0], size[1] // grouped[1])
    packed = _space_to_depth(inside, (steps[0] // grouped[0], steps[1] // grouped[1]))
    return packed.expand(like.shape[0], -1, -1, -1), grouped


def _grouping(factor: tuple[int, int], steps: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Pixels that may share one sample per axis: they must fall into one step, and end where the image ends."""
    # not math.gcd, which stops torch.compile once it has made the factors symbolic; they are 1 to 4
    shared = [max(n for n in (1, 2, 3, 4) if f % n == 0 and s % n == 0) for f, s in zip(factor, steps, strict=True)]
    rows, columns = (g if n % g == 0 else 1 for g, n in zip(shared, size, strict=True))
    return rows, columns


def _tap_groups(kernel: int, step: int, pad: int, gap: int, grouped: int, *, like: Tensor) -> Tensor:
    """``(taps, groups, phases)``: the group of ``step`` pixels, and the sample within it, that each tap reads."""
    first = -pad % step
    groups = (first + gap * (kernel - 1)) // step + 1
    phases = step // grouped
    sample = (first + gap * torch.arange(kernel, device=like.device)) // grouped
    hits = sample[:, None] == torch.arange(groups * phases, device=like.device)
    return hits.to(like.dtype).view(kernel, groups, phases)


def _depth_from_blocks(blocks: Tensor, steps: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Blocks ``(B, k, Hb, Wb, 8, 8)`` to what :func:`_space_to_depth` gives for their planes, in one copy."""
    if 8 % steps[0] or 8 % steps[1]:
        return _space_to_depth(dct.unblockify(blocks, size), steps)
    (rows, columns), (batch, members, hb, wb) = steps, blocks.shape[:4]
    split = blocks.view(batch, members, hb, wb, 8 // rows, rows, 8 // columns, columns)
    channels = members * rows * columns  # spelled out, for batches of nothing
    x = split.permute(0, 1, 5, 7, 2, 4, 3, 6).reshape(batch, channels, hb * 8 // rows, wb * 8 // columns)
    x = x[..., : -(-size[0] // rows), : -(-size[1] // columns)]
    if size[0] % rows == 0 and size[1] % columns == 0:
        return x
    return x * _space_to_depth(blocks.new_ones((1, members, *size)), steps)


def _space_to_depth(x: Tensor, steps: tuple[int, int]) -> Tensor:
    """``(B, k, H, W)`` to ``(B, k * steps, ceil(H / step), ceil(W / step))``, filled with zeros."""
    rows, columns = steps
    if steps == (1, 1):
        return x
    x = F.pad(x, (0, -x.shape[3] % columns, 0, -x.shape[2] % rows))
    split = x.reshape(x.shape[0], x.shape[1], x.shape[2] // rows, rows, x.shape[3] // columns, columns)
    return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def jpeg_coefficient_image(
    coefficients: JPEGCoefficients,
    *,
    channels: int = 3,
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
    chroma: str = "nearest",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The normalized linear decode as a coefficient map: no inverse DCT, and no pixel, on the way.

    Upsampling and cropping are linear along each axis, so they are a matrix between coefficient vectors (eq. 11 for
    one axis); color and normalization act on every coefficient alike.

    Args:
        coefficients: a batch of gray, YCbCr or RGB files.
        channels: 3 for RGB, 1 for luma.
        mean: of each color, in [0, 1].
        std: of each color.
        chroma: ``"nearest"`` or ``"fancy"`` upsampling.
        dtype: of the map.

    Returns:
        ``(B, channels, Hb, Wb, 8, 8)``, zero beyond the image.
    """
    size, space = coefficients.image_size, coefficients.color_space
    with outside_autocast(coefficients.qtables.device):
        components = []
        for k, factor in enumerate(subsampling_factors(coefficients)):
            c = dequantized(coefficients.planes[k], coefficients.qtables[:, k], dtype)
            if factor != (1, 1) or size[0] % 8 or size[1] % 8:
                fancy = uses_fancy(factor, size, chroma)
                rows, columns = (_axis_map(size[i], factor[i], fancy=fancy, like=c) for i in (0, 1))
                c = torch.einsum("YaIm,XcJn,bIJmn->bYXac", rows, columns, c)
            components.append(c)
        used = len(components) if channels == 3 or space == "rgb" else 1
        matrix = [[weight / std[i] for weight in row[:used]] for i, row in enumerate(color_matrix(space, channels))]
        offsets = components[0].new_tensor([(LEVEL_SHIFT - m) / s for m, s in zip(mean, std, strict=True)])
        ones = flat_image(components[0], size)
        return mix(components[:used], matrix, 1) + offsets.view(-1, 1, 1, 1, 1) * ones


def _axis_map(n: int, factor: int, *, fancy: bool, like: Tensor) -> Tensor:
    """``(blocks, 8, component blocks, 8)``: upsampling and cropping of coefficient vectors along one axis."""
    samples = torch.eye(-(-n // factor), dtype=torch.float64, device=like.device)
    enlarged = upsample(samples, (factor, 1), fancy=fancy, size=(n, samples.shape[1]))
    d = dct.dct_matrix(device=like.device)
    return torch.einsum("am,YXmn,bn->YaXb", d, dct.blockify(enlarged), d).to(like.dtype)
