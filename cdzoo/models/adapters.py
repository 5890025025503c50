"""Adapters: coefficients or latents to the features that a pretrained network has inside.

Source: Deng & Karam, arXiv:2305.08000, section 4.2, who put a small trained network between a codec's latent and the
later stages of a pretrained classifier. An adapter takes the place of the early stages; what follows stays as it is.
``examples/recipes/distill.py`` trains them, without labels, to give the features that the early stages give.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdzoo._torch import outside_autocast
from cdzoo.jpeg import dct
from cdzoo.jpeg.planes import LUMA, component_size, pixel_blocks, subsampling_factors, upsample, uses_fancy
from cdzoo.types import JPEGCoefficients

__all__ = ["Adapter", "BlockAdapter", "LatentAdapter", "block_coefficients"]


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

    def adapt(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, enlarge * h, enlarge * w)``."""
        y: Tensor = self.conv_out(self.blocks(F.relu(self.bn_in(self.conv_in(x)))))
        return y if self.enlarge == 1 else F.pixel_shuffle(y, self.enlarge)


class BlockAdapter(Adapter):
    """8x8 blocks of coefficients to features of stride 8.

    Coefficients are divided by typical deviations, which fall with the frequency; see :func:`typical_deviations`.

    Args:
        out_channels: of the features.
        hidden: channels in between.
        depth: number of 3x3 convolutions; each of them sees one more block around.
    """

    deviations: Tensor

    def __init__(self, out_channels: int, *, hidden: int = 80, depth: int = 4) -> None:
        super().__init__(192, out_channels, hidden=hidden, depth=depth)
        self.register_buffer("deviations", typical_deviations(), persistent=False)

    def forward(self, blocks: Tensor) -> Tensor:
        """Coefficients ``(B, Hb, Wb, 192)`` of :func:`block_coefficients` -> features ``(B, out_channels, Hb, Wb)``."""
        return self.adapt((blocks / self.deviations).to(self.conv_in.weight.dtype).permute(0, 3, 1, 2))


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
        return self.adapt(y_hat if scales is None else torch.cat([y_hat, scales.clamp_min(0.11).log()], 1))


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
