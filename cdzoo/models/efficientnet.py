"""EfficientNet-Lite0 over JPEG coefficients: 1,000 ImageNet classes, without decoding.

Source: the network is EfficientNet-Lite0 (Tan & Le, EfficientNet, ICML 2019; Lite: github.com/tensorflow/tpu), with
timm's names and padding. The stem on coefficients is trained by distillation, as Deng & Karam (arXiv:2305.08000,
section 4.2) adapt a pretrained network to latents: it learns to give the features that the pixel network has at stride
8, and the rest of the pretrained network follows it.

    stem="dct":     JPEGCoefficients ─▶ 8x8 blocks (192, H/8, W/8) ─▶ stem (40, H/8, W/8) ─▶ blocks.3 ... ─▶ fc
    stem="pixels":  JPEGCoefficients ─▶ entrance (3, H, W) ─▶ conv_stem ─▶ blocks.0 ... ─▶ blocks.3 ... ─▶ fc

``"pixels"`` is the exact pixel network; pixels outside [0, 1] are clamped, as decoders do. The stem of ``"dct"``
replaces the layers up to ``blocks.2``, which take two thirds of the pixel network's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor, nn

from cdzoo._checks import check_choice
from cdzoo.jpeg.nn.entrance import JPEGEntrance
from cdzoo.models._efficientnet_blocks import CUT, STAGES, Conv2dSame, LiteTrunk, batch_norm, lite_stages
from cdzoo.models._resnet import scaled_channels
from cdzoo.models.adapters import BlockAdapter, block_coefficients
from cdzoo.models.classifier import JPEGClassifier
from cdzoo.transforms import CoefficientTransform, InputTransform
from cdzoo.types import JPEGCoefficients
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.weights.enums import WeightsLike

__all__ = ["JPEGEfficientNetLite0", "jpeg_efficientnet_lite0"]

_STEM_CHANNELS = 32


class JPEGEfficientNetLite0(LiteTrunk, JPEGClassifier):
    """EfficientNet-Lite0 that reads JPEG coefficients; names of parameters are timm's, but for ``stem`` and ``fc``.

    Args:
        stem: ``"dct"``, a distilled stem on 8x8 blocks, or ``"pixels"``, the exact pixel network.
        num_classes: logits.
        width: multiplies all channel counts but the input's, rounded to multiples of 8.
        chroma: ``"fancy"`` or ``"nearest"`` upsampling of subsampled chroma.
        mean: of pixels in [0, 1], for ``stem="pixels"``; one number or one per channel.
        std: pixels are divided by it, likewise.

    Raises:
        ValueError: an option that is none of these.
    """

    unlearned_arguments = ()
    transforms: InputTransform | None = CoefficientTransform(resize=256, crop=224, interpolation="bicubic")
    black: Tensor
    white: Tensor

    def __init__(
        self,
        *,
        stem: str = "dct",
        num_classes: int = 1000,
        width: float = 1.0,
        chroma: str = "fancy",
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__(in_channels=3)
        check_choice("stem", stem, ("dct", "pixels"))
        # checks its arguments for both stems
        entrance = JPEGEntrance(chroma=chroma, mean=mean, std=std)
        self.reads_blocks, self.chroma = stem == "dct", chroma
        channels = [scaled_channels(row[0], width) for row in STAGES]
        if self.reads_blocks:
            wide, hidden = (scaled_channels(n, width) for n in (256, 96))
            self.stem = BlockAdapter(channels[CUT - 1], block_channels=wide, hidden=hidden)
            self.blocks = lite_stages(channels[CUT - 1], channels[CUT:], CUT)
            stages = [("stem", channels[CUT - 1], 8)]
        else:
            first = scaled_channels(_STEM_CHANNELS, width)
            self.entrance = entrance
            bounds = [[(v - m) / s for m, s in zip(entrance.mean, entrance.std, strict=True)] for v in (0.0, 1.0)]
            self.register_buffer("black", torch.tensor(bounds[0]).view(3, 1, 1), persistent=False)
            self.register_buffer("white", torch.tensor(bounds[1]).view(3, 1, 1), persistent=False)
            self.conv_stem = Conv2dSame(3, first, 3, stride=2)
            self.bn1 = batch_norm(first)
            self.act1 = nn.ReLU6(inplace=True)
            self.blocks = lite_stages(first, channels)
            stages = [("blocks.0", channels[0], 2), ("blocks.1", channels[1], 2), ("blocks.2", channels[2], 2)]
        self.set_head(channels[6], width, num_classes)
        stages += [("blocks.4", channels[4], 2), ("blocks.6", channels[6], 2), ("act2", self.num_features, 1)]
        self.set_stages(*stages)

    def forward_stem(self, coefficients: JPEGCoefficients, scales: Tensor | None = None) -> Tensor:
        """Blocks of coefficients ``(B, Hb, Wb, 192)`` for the DCT stem, else the normalized image ``(B, 3, H, W)``."""
        if self.reads_blocks:
            return block_coefficients(coefficients, chroma=self.chroma)
        image = self.entrance(coefficients, dtype=self.conv_stem.weight.dtype)
        return torch.clamp(image, self.black, self.white)


class JPEGEfficientNetLite0_Weights(WeightsEnum):
    """Weights of :func:`jpeg_efficientnet_lite0`, 1,000 classes of ImageNet."""

    IMAGENET1K_PIXELS = Weights("jpeg-efficientnet-lite0-pixels-imagenet1k")
    IMAGENET1K_DCT = Weights("jpeg-efficientnet-lite0-dct-imagenet1k")
    DEFAULT = IMAGENET1K_DCT


class JPEGEfficientNetOptions(TypedDict, total=False):
    """Options of the builder; see :class:`JPEGEfficientNetLite0`."""

    stem: str
    num_classes: int
    width: float
    chroma: str
    mean: float | Sequence[float]
    std: float | Sequence[float]


@register_model(JPEGEfficientNetLite0, weights=JPEGEfficientNetLite0_Weights, num_params=5_007_360)
def jpeg_efficientnet_lite0(
    *, weights: WeightsLike = None, **options: Unpack[JPEGEfficientNetOptions]
) -> JPEGEfficientNetLite0:
    """EfficientNet-Lite0 over JPEG coefficients, by default with a distilled stem on 8x8 blocks."""
