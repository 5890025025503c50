"""Adapters: coefficients or latents to the features that a pretrained network has inside.

Source: Deng & Karam, arXiv:2305.08000, section 4.2, who put a small trained network between a codec's latent and the
later stages of a pretrained classifier. An adapter takes the place of the early stages; what follows stays as it is.
``examples/recipes/distill.py`` trains them, without labels, to give the features that the early stages give.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdzoo._torch import outside_autocast
from cdzoo.jpeg import dct
from cdzoo.jpeg.planes import (
    check_coefficients,
    component_size,
    pixel_blocks,
    subsampling_factors,
    to_ycbcr,
    upsample,
    uses_fancy,
)
from cdzoo.ops.entropy import SMALLEST_SCALE
from cdzoo.types import JPEGCoefficients

__all__ = ["Adapter", "BlockAdapter", "LatentAdapter", "LatentEntrance", "block_coefficients"]


class ResidualConv(nn.Module):
    """``x + relu(bn(conv3x3(x)))``, ``(B, C, h, w)`` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.bn(self.conv(x)))
        return x + y


class Adapter(nn.Module):
    """A 1x1 convolution, dense 3x3 convolutions with shortcuts, a linear 1x1 convolution.

    Args:
        in_channels: of what is read.
        out_channels: of the features.
        hidden: channels in between.
        depth: number of 3x3 convolutions; each of them sees one more place around.
        enlarge: 1, or 2 for features with twice the rows and columns of what is read.
    """

    def __init__(self, in_channels: int, out_channels: int, *, hidden: int, depth: int, enlarge: int = 1) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.conv_in = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn_in = nn.BatchNorm2d(hidden)
        self.blocks = nn.Sequential(*(ResidualConv(hidden) for _ in range(depth)))
        self.conv_out = nn.Conv2d(hidden, out_channels * enlarge**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, enlarge * h, enlarge * w)``."""
        y: Tensor = self.conv_out(self.blocks(F.relu(self.bn_in(self.conv_in(x)))))
        return y if self.enlarge == 1 else F.pixel_shuffle(y, self.enlarge)


class BlockAdapter(Adapter):
    """8x8 blocks of coefficients to features of stride 8.

    Coefficients are divided by typical deviations, which fall with the frequency; see :func:`typical_deviations`.
    Before the layers of :class:`Adapter` comes a wide 1x1 convolution with batch norm and ReLU, which sees single
    blocks: the first layers of a pixel network have hundreds of ReLUs in a block, too.

    Args:
        out_channels: of the features.
        block_channels: of the wide convolution.
        hidden: channels of the layers that follow.
        depth: number of 3x3 convolutions; each of them sees one more block around.
    """

    deviations: Tensor

    def __init__(self, out_channels: int, *, block_channels: int = 256, hidden: int = 96, depth: int = 4) -> None:
        super().__init__(block_channels, out_channels, hidden=hidden, depth=depth)
        self.conv_blocks = nn.Conv2d(192, block_channels, 1, bias=False)
        self.bn_blocks = nn.BatchNorm2d(block_channels)
        self.register_buffer("deviations", typical_deviations(), persistent=False)

    def forward(self, blocks: Tensor) -> Tensor:
        """Coefficients ``(B, Hb, Wb, 192)`` of :func:`block_coefficients` -> features ``(B, out_channels, Hb, Wb)``."""
        x = (blocks / self.deviations).to(self.conv_in.weight.dtype).permute(0, 3, 1, 2)
        return super().forward(F.relu(self.bn_blocks(self.conv_blocks(x))))


class LatentAdapter(Adapter):
    """Latents, and the logarithms of a hyperprior's scales, to features.

    Args:
        latent_channels: ``C`` of the codec.
        out_channels: of the features.
        use_scales: read the scales too.
        hidden: channels in between.
        depth: number of 3x3 convolutions.
        enlarge: the latent's stride over that of the features: 2 for latents of stride 16 and features of stride 8.
    """

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        *,
        use_scales: bool = True,
        hidden: int = 192,
        depth: int = 6,
        enlarge: int = 2,
    ) -> None:
        in_channels = (1 + use_scales) * latent_channels
        super().__init__(in_channels, out_channels, hidden=hidden, depth=depth, enlarge=enlarge)

    def forward(self, y_hat: Tensor, scales: Tensor | None = None) -> Tensor:
        """Latents and scales ``(B, C, h, w)`` -> features ``(B, out_channels, enlarge * h, enlarge * w)``."""
        return super().forward(with_log_scales(y_hat, scales))


class OctaveConv(nn.Module):
    """The linear entrance for images whose size is about ``2^octave`` times a base size.

    One cell of its output covers the same part of the picture for every octave. Within an octave the filters are linear
    in the logarithm of the size, ``weight + t * slope``: a pattern of so many pixels is another pattern once the
    picture is resized.

    Args:
        in_channels: of latents, with their scales.
        out_channels: of the result.
        octave: -1 for ``2h x 2w`` cells (1x1 convolution and pixel shuffle), 0 for ``h x w`` (1x1 convolution), 1 for
            ``h / 2 x w / 2``, rounded up (2x2 convolution of stride 2; the last row and column are repeated).
    """

    def __init__(self, in_channels: int, out_channels: int, octave: int) -> None:
        super().__init__()
        self.shuffle, self.side = (2, 1) if octave < 0 else (1, 1 << octave)
        shape = (out_channels * self.shuffle**2, in_channels, self.side, self.side)
        self.weight, self.slope = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
        self.bias, self.bias_slope = (nn.Parameter(torch.zeros(shape[0])) for _ in range(2))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    def forward(self, x: Tensor, t: float) -> Tensor:
        """``(B, in_channels, h, w)`` -> cells; ``t`` is the logarithm to base 2 of the size within the octave."""
        x = F.pad(x, (0, -x.shape[-1] % self.side, 0, -x.shape[-2] % self.side), mode="replicate")
        x = F.conv2d(x, self.weight + t * self.slope, self.bias + t * self.bias_slope, stride=self.side)
        return F.pixel_shuffle(x, self.shuffle)


class LatentEntrance(nn.Module):
    """Latents of images of any size to cells of their central square at one size.

    An entrance per octave of size (:class:`OctaveConv`) gives cells of nearly the size that is wanted; linear
    interpolation between cells does the rest. What follows is then the same for images of all sizes.

    Args:
        latent_channels: ``C`` of the codec.
        cell_channels: of the convolutions' output.
        latent_stride: pixels per latent sample.
        size: rows and columns of cells; even.
    """

    def __init__(
        self, latent_channels: int, cell_channels: int = 64, *, latent_stride: int = 16, size: int = 28
    ) -> None:
        super().__init__()
        self.latent_stride, self.size = latent_stride, size
        self.octaves = nn.ModuleList(OctaveConv(2 * latent_channels, cell_channels, octave) for octave in (-1, 0, 1))

    def forward(self, y_hat: Tensor, scales: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The cells of the square in the middle of the images.

        Args:
            y_hat: latents ``(B, C, h, w)``.
            scales: of the same shape.
            image_size: ``(H, W)`` of the images in pixels.

        Returns:
            ``(B, 4 * cell_channels, size / 2, size / 2)``: 2x2 neighbors are stacked.
        """
        side = min(image_size)
        top, left = ((n - side) / 2 for n in image_size)
        return self.square(with_log_scales(y_hat, scales), top, left, side)

    def square(self, x: Tensor, top: float, left: float, side: float) -> Tensor:
        """The cells of any square.

        Args:
            x: latents and logarithms of scales, ``(B, 2 * C, h, w)``.
            top: row of pixels where the square begins.
            left: column of pixels where it begins.
            side: pixels of its side.
        """
        position = math.log2(side / (self.latent_stride * self.size))
        octave = min(max(round(position), -1), 1)
        cells = self.octaves[octave + 1](x, min(max(position - octave, -1.0), 1.0))
        pixels = self.latent_stride * 2.0**octave  # of a cell
        rows, columns = (
            interpolation(n, first / pixels, side / pixels / self.size, self.size).to(cells)
            for n, first in zip(cells.shape[-2:], (top, left), strict=True)
        )
        return F.pixel_unshuffle(rows @ cells @ columns.T, 2)


def with_log_scales(y_hat: Tensor, scales: Tensor | None) -> Tensor:
    """Latents ``(B, C, h, w)``, followed by the logarithms of their scales if there are any."""
    return y_hat if scales is None else torch.cat([y_hat, scales.clamp_min(SMALLEST_SCALE).log()], 1)


def interpolation(length: int, first: float, step: float, size: int) -> Tensor:
    """The matrix ``(size, length)`` of antialiased linear interpolation.

    Args:
        length: number of samples; sample ``i`` covers ``[i, i + 1]``.
        first: where the result begins, in samples.
        step: samples per sample of the result.
        size: number of samples of the result. Beyond the ends, the first and the last sample are repeated.
    """
    centers = first + step * (torch.arange(size, dtype=torch.float64) + 0.5) - 0.5
    reach = math.ceil(max(step, 1.0)) + 1
    near = centers.floor()[:, None] + torch.arange(1 - reach, reach + 1)
    weights = (1 - (near - centers[:, None]).abs() / max(step, 1.0)).clamp_min(0)
    matrix = torch.zeros(size, length, dtype=torch.float64)
    matrix.scatter_add_(1, near.clamp(0, length - 1).long(), weights / weights.sum(1, keepdim=True))
    return matrix.float()


def typical_deviations() -> Tensor:
    """A number ``(192,)`` for each coefficient of Y, Cb and Cr: ``a / (1 + u + v)^b``, fitted to photographs."""
    curves = ((480.0, 1.7), (140.0, 2.5), (140.0, 2.5))  # a, b
    # numbers of Python: torch.arange, where networks are built without storage, would load PyTorch's compiler
    return torch.tensor([a / (1 + u + v) ** b for a, b in curves for u in range(8) for v in range(8)])


def block_coefficients(coefficients: JPEGCoefficients, *, chroma: str = "fancy") -> Tensor:
    """Dequantized coefficients of Y, Cb and Cr at the resolution of luma, one vector for each 8x8 block of the image.

    Components that are stored at the resolution of the image are taken as they are. Others are upsampled; their
    incomplete blocks repeat the last row and column.

    Args:
        coefficients: gray, YCbCr or RGB files.
        chroma: upsampling, ``"fancy"`` or ``"nearest"``.

    Returns:
        ``(B, ceil(H / 8), ceil(W / 8), 192)`` in float32 (float64 if the planes are), with 255 levels as the full
        range; natural order.

    Raises:
        TypeError: something else, such as pixels.
        JPEGError: CMYK files, or sampling factors that do not divide each other.
    """
    check_coefficients(coefficients)
    planes, qtables, _, size, space = coefficients
    blocks = []
    for k, factor in enumerate(subsampling_factors(coefficients)):
        dtype = torch.promote_types(planes[k].dtype, torch.float32)
        if factor == (1, 1):
            own = planes[k].to(dtype) * qtables[:, k, None, None].to(dtype)
        else:
            own = _at_full_size(planes[k], qtables[:, k], factor, size, dtype, chroma)
        blocks.append(own.flatten(-2))
    if space == "gray":
        return torch.cat([blocks[0], *[torch.zeros_like(blocks[0])] * 2], -1)
    if space == "rgb":  # the level shift of each color becomes that of luma and vanishes in the differences
        blocks = to_ycbcr(blocks)
    return torch.cat(blocks, -1)


def _at_full_size(
    plane: Tensor, qtable: Tensor, factor: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, chroma: str
) -> Tensor:
    """Coefficients ``(B, Hb, Wb, 8, 8)`` of a subsampled component after upsampling, in levels."""
    with outside_autocast(plane.device):
        pixels = pixel_blocks(plane[:, None], qtable[:, None], shifts=(0.0,), dtype=dtype)
        samples = dct.unblockify(pixels, component_size(size, factor))
        full = 255 * upsample(samples, factor, fancy=uses_fancy(factor, size, chroma), size=size)
        full = F.pad(full, (0, -size[1] % 8, 0, -size[0] % 8), mode="replicate")
        return dct.dct2d(dct.blockify(full)[:, 0])
