"""Blocks of EfficientNet-Lite with timm's names, and the stem that reads DCT coefficients in place of pixels.

The blocks are written here rather than imported because importing timm takes longer than classifying a photograph. The
tests compare them with timm's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdzoo._torch import outside_autocast
from cdzoo.jpeg import dct
from cdzoo.jpeg.planes import (
    LUMA,
    component_size,
    pixel_blocks,
    subsampling_factors,
    upsample,
    uses_fancy,
)
from cdzoo.types import JPEGCoefficients

__all__ = ["STAGES", "BlockStem", "Conv2dSame", "batch_norm", "block_coefficients", "lite_stages"]

STAGES = ((16, 1, 3, 1), (24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 4, 5, 2), (320, 1, 3, 1))
"""Of ``blocks.0`` to ``blocks.6``: channels, number of blocks, kernel size, stride of the first block."""


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's padding ``"SAME"``: outputs are ``ceil(size / stride)``, odd padding lies behind.

    Strides above 1 pad by an amount that depends on the input's size, which :class:`torch.nn.Conv2d` cannot do.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, ceil(h / stride), ceil(w / stride))``."""
        if self.stride[0] > 1:
            rows, columns = (
                max((-(-n // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - n, 0) for n in x.shape[-2:]
            )
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with TensorFlow's epsilon."""
    return nn.BatchNorm2d(channels, eps=1e-3)


class DepthwiseSeparable(nn.Module):
    """Depthwise, linear 1x1; the input is added if shapes agree.

    ``(B, in_channels, h, w)`` -> ``(B, out_channels, ceil(h / stride), ceil(w / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.conv_dw = Conv2dSame(in_channels, in_channels, kernel_size, stride=stride, groups=in_channels)
        self.bn1 = batch_norm(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
        return x + y if self.residual else y


class InvertedResidual(nn.Module):
    """1x1 to six times the channels, depthwise, linear 1x1; the input is added if shapes agree.

    ``(B, in_channels, h, w)`` -> ``(B, out_channels, ceil(h / stride), ceil(w / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int) -> None:
        super().__init__()
        hidden = 6 * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.conv_pw = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = batch_norm(hidden)
        self.conv_dw = Conv2dSame(hidden, hidden, kernel_size, stride=stride, groups=hidden)
        self.bn2 = batch_norm(hidden)
        self.conv_pwl = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self.bn1(self.conv_pw(x)))
        hidden = F.relu6(self.bn2(self.conv_dw(hidden)))
        y: Tensor = self.bn3(self.conv_pwl(hidden))
        return x + y if self.residual else y


def lite_stages(in_channels: int, channels: Iterable[int], first: int = 0) -> nn.Sequential:
    """Stages ``first`` to 6 of EfficientNet-Lite0, named by their numbers.

    Args:
        in_channels: of the map that stage ``first`` reads.
        channels: of each stage from ``first`` on.
        first: number of the first stage.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (out_channels, (_, depth, kernel_size, stride)) in enumerate(
        zip(channels, STAGES[first:], strict=True), first
    ):
        kind: type[InvertedResidual] | type[DepthwiseSeparable] = InvertedResidual if number else DepthwiseSeparable
        blocks = [kind(in_channels, out_channels, kernel_size, stride=stride)]
        blocks += [kind(out_channels, out_channels, kernel_size, stride=1) for _ in range(depth - 1)]
        stages[str(number)] = nn.Sequential(*blocks)
        in_channels = out_channels
    return nn.Sequential(stages)


class ResidualConv(nn.Module):
    """``x + relu(bn(conv3x3(x)))``, ``(B, C, h, w)`` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.bn(self.conv(x)))
        return x + y


class BlockStem(nn.Module):
    """8x8 blocks of coefficients to the features of a pretrained network at stride 8.

    One 1x1 convolution over the 192 coefficients at a place, dense 3x3 convolutions with shortcuts, a linear 1x1.
    Coefficients are divided by typical deviations, which fall with the frequency; see :func:`typical_deviations`.

    Args:
        out_channels: of the features.
        hidden: channels in between.
        depth: number of 3x3 convolutions; each of them sees one more block around.
    """

    deviations: Tensor

    def __init__(self, out_channels: int, *, hidden: int = 80, depth: int = 4) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(192, hidden, 1, bias=False)
        self.bn_in = nn.BatchNorm2d(hidden)
        self.blocks = nn.Sequential(*(ResidualConv(hidden) for _ in range(depth)))
        self.conv_out = nn.Conv2d(hidden, out_channels, 1)
        self.register_buffer("deviations", typical_deviations(), persistent=False)

    def forward(self, blocks: Tensor) -> Tensor:
        """Coefficients ``(B, Hb, Wb, 192)`` -> features ``(B, out_channels, Hb, Wb)``."""
        x = (blocks / self.deviations).to(self.conv_in.weight.dtype).permute(0, 3, 1, 2)
        out: Tensor = self.conv_out(self.blocks(F.relu(self.bn_in(self.conv_in(x)))))
        return out


def typical_deviations() -> Tensor:
    """A number ``(192,)`` for each coefficient of Y, Cb and Cr: ``a / (1 + u + v)^b``, fitted to photographs."""
    u = torch.arange(8, dtype=torch.float64)
    frequency = 1 + u[:, None] + u
    deviations = [(a / frequency**b).flatten() for a, b in ((480.0, 1.7), (140.0, 2.5), (140.0, 2.5))]
    return torch.cat(deviations).float()


def block_coefficients(coefficients: JPEGCoefficients, *, chroma: str = "fancy") -> Tensor:
    """Dequantised coefficients of Y, Cb and Cr at the resolution of luma, one vector for each 8x8 block of the image.

    Components that are stored at the resolution of the image are taken as they are. Others are upsampled; their
    incomplete blocks repeat the last row and column.

    Args:
        coefficients: grey, YCbCr or RGB files.
        chroma: upsampling, ``"fancy"`` or ``"nearest"``.

    Returns:
        ``(B, ceil(H / 8), ceil(W / 8), 192)`` in float32 (float64 if the planes are), with 255 levels as the full
        range; natural order.

    Raises:
        JPEGError: CMYK files, or sampling factors that do not divide each other.
    """
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
        red, green, blue = blocks
        luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        blocks = [luma, (blue - luma) / 1.772, (red - luma) / 1.402]
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
