"""cResNet-39, -51 and -72.

Source: Torfason et al., Towards Image Understanding from Deep Compression Without Decoding, ICLR 2018.

A ResNet without the root block and the stage above 28x28: what is left reads the latent of a codec of stride 8 (section
4.2, tables 1 and 3). To make up for the missing layers, -51 and -72 have more blocks in conv4; they cost what ResNet-50
and ResNet-71 (:mod:`cdzoo.models.rgb_resnet`) cost on pixels.

    y_hat (C, 28, 28) ─▶ layer2 (512, 28, 28) ─▶ layer3 (1024, 14, 14) ─▶ layer4 (2048, 7, 7) ─▶ average ─▶ fc
                         conv3 of the paper      conv4                    conv5

Where the paper is at odds with itself: the caption of table 3 gives conv3_1 a stride of 2, but its own output sizes and
multiply-adds need 1 there, which is what stands here. The number in the name counts the convolutions of the residual
units, without the shortcuts' and without ``fc``.

With ``use_scales`` it is the baseline of FA-cResNet (Deng & Karam, section 5.5): block 0 of layer 2 becomes two
parallel blocks, C->512 on the latent and C->4 on the hyperprior's scales, concatenated and mapped to 512 by a 1x1
convolution. That baseline has ``stride_in_1x1=False`` and ``latent_stride=16``.

Recipe (appendix A.4): 28 epochs, SGD with momentum 0.9, rate 0.025 divided by 10 after epochs 8, 16 and 24, weight
decay 1e-4, batch 64; random 28x28 crops of the latent and mirroring, channel means subtracted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cdzoo._registry import build, register_model
from cdzoo.models._classifier import LatentClassifier, init_resnet_weights
from cdzoo.models._resnet import (
    SCALES_CHANNELS,
    Bottleneck,
    bottleneck_stage,
    conv1x1_bn_relu,
    scaled_channels,
)
from cdzoo.weights.enums import Weights, WeightsEnum

if TYPE_CHECKING:
    from cdzoo.types import Latent
    from cdzoo.weights.enums import WeightsLike

__all__ = ["CResNet", "cresnet39", "cresnet51", "cresnet72"]

_LAYERS = {"cresnet39": (4, 6, 3), "cresnet51": (4, 10, 3), "cresnet72": (4, 17, 3)}


class CResNet(LatentClassifier):
    """cResNet, a classifier of latents; stages and blocks carry torchvision's names (``layer2`` is conv3).

    Args:
        layers: bottlenecks in conv3, conv4 and conv5.
        in_channels: latent channels ``C`` of the codec; the paper has 8, 16 and 32.
        num_classes: logits.
        width: multiplies all channel counts but the input's and the 4 of the scales' branch.
        use_scales: read the hyperprior's standard deviations too.
        stride_in_1x1: the stride sits in the first 1x1 convolution of a bottleneck (Torfason et al.) or in its 3x3
            one (Deng and Karam).
        latent_stride: pixels per latent sample; recorded so that codecs can be checked against it.

    Raises:
        ValueError: ``layers`` does not hold three numbers, or ``width`` is not positive.
    """

    def __init__(
        self,
        layers: Sequence[int] = _LAYERS["cresnet39"],
        *,
        in_channels: int = 32,
        num_classes: int = 1000,
        width: float = 1.0,
        use_scales: bool = False,
        stride_in_1x1: bool = True,
        latent_stride: int = 8,
    ) -> None:
        super().__init__()
        if len(layers) != 3:
            raise ValueError(f"layers={tuple(layers)} must be three numbers, for conv3, conv4 and conv5")
        self.in_channels, self.latent_stride, self.uses_scales = in_channels, latent_stride, use_scales
        n3, n4, n5 = layers
        c3, c4, c5 = (scaled_channels(planes, width) for planes in (128, 256, 512))
        if use_scales:
            self.block_y_hat = Bottleneck(in_channels, c3)
            self.block_scales = Bottleneck(in_channels, SCALES_CHANNELS // Bottleneck.expansion)
            self.fusion = conv1x1_bn_relu(4 * c3 + SCALES_CHANNELS, 4 * c3)
            self.layer2 = bottleneck_stage(4 * c3, c3, n3 - 1, first=1)
        else:
            self.layer2 = bottleneck_stage(in_channels, c3, n3)
        self.layer3 = bottleneck_stage(4 * c3, c4, n4, stride=2, stride_in_1x1=stride_in_1x1)
        self.layer4 = bottleneck_stage(4 * c4, c5, n5, stride=2, stride_in_1x1=stride_in_1x1)
        self._add_stages(("layer2", 4 * c3, 1), ("layer3", 4 * c4, 2), ("layer4", 4 * c5, 2))
        self._add_head(4 * c5, num_classes)
        init_resnet_weights(self)

    def forward_features(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)``, scales of that shape where used, or a ``Latent`` -> ``(B, num_features, h', w')``.

        ``h' = ceil(h / 4)`` and likewise ``w'``.
        """
        return self._run_stages(self._enter(y_hat, scales))

    def _enter(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        x, sigma = self._unpack(y_hat, scales)
        if self.uses_scales:
            x = self.fusion(torch.cat([self.block_y_hat(x), self.block_scales(sigma)], dim=1))
        return x


def _cresnet(builder: Callable[..., CResNet], weights: WeightsLike, **given: Any) -> CResNet:
    return build(builder, weights, CResNet, {"layers": _LAYERS[builder.__name__]}, **given)


class cResNet39_Weights(WeightsEnum):
    """Weights of :func:`cresnet39`."""

    IMAGENETTE_W025 = Weights("cresnet39-w025-torfason2018-imagenette")
    DEFAULT = IMAGENETTE_W025


@register_model(weights=cResNet39_Weights)
def cresnet39(
    *,
    weights: WeightsLike = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    width: float | None = None,
    use_scales: bool | None = None,
    stride_in_1x1: bool | None = None,
    latent_stride: int | None = None,
) -> CResNet:
    """cResNet-39: 2.96 G multiply-adds at 224 px.

    Arguments that are not given take the weights' value, else the default of :class:`CResNet`: 1000 classes, 32 latent
    channels, width 1.0, no scales, stride in the 1x1 convolution, latent stride 8.

    Raises:
        ValueError: an argument contradicts the weights.
    """
    return _cresnet(
        cresnet39,
        weights,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        use_scales=use_scales,
        stride_in_1x1=stride_in_1x1,
        latent_stride=latent_stride,
    )


class cResNet51_Weights(WeightsEnum):
    """Weights of :func:`cresnet51`: none published yet."""


@register_model(weights=cResNet51_Weights)
def cresnet51(
    *,
    weights: WeightsLike = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    width: float | None = None,
    use_scales: bool | None = None,
    stride_in_1x1: bool | None = None,
    latent_stride: int | None = None,
) -> CResNet:
    """cResNet-51: 3.83 G multiply-adds at 224 px, as ResNet-50 on pixels.

    Arguments that are not given take the weights' value, else the default of :class:`CResNet`: 1000 classes, 32 latent
    channels, width 1.0, no scales, stride in the 1x1 convolution, latent stride 8.

    Raises:
        ValueError: an argument contradicts the weights.
    """
    return _cresnet(
        cresnet51,
        weights,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        use_scales=use_scales,
        stride_in_1x1=stride_in_1x1,
        latent_stride=latent_stride,
    )


class cResNet72_Weights(WeightsEnum):
    """Weights of :func:`cresnet72`: none published yet."""


@register_model(weights=cResNet72_Weights)
def cresnet72(
    *,
    weights: WeightsLike = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    width: float | None = None,
    use_scales: bool | None = None,
    stride_in_1x1: bool | None = None,
    latent_stride: int | None = None,
) -> CResNet:
    """cResNet-72: 5.36 G multiply-adds at 224 px, as ResNet-71 on pixels.

    Arguments that are not given take the weights' value, else the default of :class:`CResNet`: 1000 classes, 32 latent
    channels, width 1.0, no scales, stride in the 1x1 convolution, latent stride 8.

    Raises:
        ValueError: an argument contradicts the weights.
    """
    return _cresnet(
        cresnet72,
        weights,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        use_scales=use_scales,
        stride_in_1x1=stride_in_1x1,
        latent_stride=latent_stride,
    )
