"""cResNet-39, -51 and -72: ResNets without their first layers, which read the latent of a codec.

Source: Torfason et al., Towards Image Understanding from Deep Compression Without Decoding, ICLR 2018.

An image of 224x224 pixels has a latent of 28x28 samples (stride 8). That is the size of the feature maps in stage conv3
of a ResNet. So cResNet drops the stem and stage conv2 and starts with conv3 (section 4.2, tables 1 and 3). cResNet-51
and -72 get more blocks in conv4: they need as many multiply-adds as ResNet-50 and ResNet-71 on pixels
(:mod:`cdzoo.models.rgb_resnet`).

    y_hat (C, 28, 28) ─▶ layer2 (512, 28, 28) ─▶ layer3 (1024, 14, 14) ─▶ layer4 (2048, 7, 7) ─▶ average ─▶ fc
                         conv3 of the paper      conv4                    conv5

The number in the name counts the convolutions of the residual blocks, without shortcuts and without ``fc``.

One detail differs from the text of the paper. The caption of table 3 gives conv3_1 a stride of 2, but the output sizes
and multiply-adds in the same table need a stride of 1. This implementation has a stride of 1.

With ``use_scales=True`` the network is the baseline of FA-cResNet (Deng & Karam, arXiv:2305.08000, section 5.5). Block
0 of layer 2 is replaced by two parallel blocks: one maps the latent to 512 channels, the other maps the hyperprior's
scales (one standard deviation per latent value) to 4 channels. Both outputs are concatenated, and a 1x1 convolution
maps them to 512 channels. The baseline also has ``stride_in_1x1=False`` and ``latent_stride=16``.

Training recipe (appendix A.4): 28 epochs of SGD with momentum 0.9 and weight decay 1e-4, batches of 64, a learning rate
of 0.025 that is divided by 10 after epochs 8, 16 and 24. Training uses random 28x28 crops of the latent and random
mirroring. The mean of each channel is subtracted. ``examples/recipes/torfason2018.py`` implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from cdzoo.models._resnet import SCALES_CHANNELS, Bottleneck, bottleneck_stage, conv1x1_bn_relu, scaled_channels
from cdzoo.models.classifier import LatentClassifier, LatentOptions, init_resnet_weights
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.types import Latent
    from cdzoo.weights.enums import WeightsLike

__all__ = ["CResNet", "cresnet39", "cresnet51", "cresnet72"]


class CResNet(LatentClassifier):
    """cResNet, a classifier of latents; stages and blocks carry torchvision's names (``layer2`` is conv3).

    Features are ``(B, num_features, ceil(h / 4), ceil(w / 4))``.

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
        layers: Sequence[int] = (4, 6, 3),
        *,
        in_channels: int = 32,
        num_classes: int = 1000,
        width: float = 1.0,
        use_scales: bool = False,
        stride_in_1x1: bool = True,
        latent_stride: int = 8,
    ) -> None:
        super().__init__(in_channels=in_channels, latent_stride=latent_stride)
        if len(layers) != 3:
            raise ValueError(f"layers={tuple(layers)} must be three numbers, for conv3, conv4 and conv5")
        self.uses_scales = use_scales
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
        self.set_stages(("layer2", 4 * c3, 1), ("layer3", 4 * c4, 2), ("layer4", 4 * c5, 2))
        self.set_classifier(4 * c5, num_classes)
        init_resnet_weights(self)

    def forward_stem(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)``, or a ``Latent`` -> the input of layer 2: the latent, or ``(B, 4 c3, h, w)`` with scales."""
        x, sigma = self.check_input(y_hat, scales)
        if self.uses_scales:
            x = self.fusion(torch.cat([self.block_y_hat(x), self.block_scales(sigma)], dim=1))
        return x


# -- weights and builders ----------------------------------------------------------------------------------------


class CResNetOptions(LatentOptions, total=False):
    """Options of the builders in this file; see :class:`CResNet`."""

    use_scales: bool
    stride_in_1x1: bool


class cResNet39_Weights(WeightsEnum):
    """Weights of :func:`cresnet39`."""

    IMAGENETTE_W025 = Weights("cresnet39-w025-torfason2018-imagenette")
    DEFAULT = IMAGENETTE_W025


class cResNet51_Weights(WeightsEnum):
    """Weights of :func:`cresnet51`: none published yet."""


class cResNet72_Weights(WeightsEnum):
    """Weights of :func:`cresnet72`: none published yet."""


@register_model(CResNet, weights=cResNet39_Weights, layers=(4, 6, 3), num_params=25_188_328)
def cresnet39(*, weights: WeightsLike = None, **options: Unpack[CResNetOptions]) -> CResNet:
    """cResNet-39: 2.96 G multiply-adds at 224 px."""


@register_model(CResNet, weights=cResNet51_Weights, layers=(4, 10, 3), num_params=29_657_064)
def cresnet51(*, weights: WeightsLike = None, **options: Unpack[CResNetOptions]) -> CResNet:
    """cResNet-51: 3.83 G multiply-adds at 224 px, as ResNet-50 on pixels."""


@register_model(CResNet, weights=cResNet72_Weights, layers=(4, 17, 3), num_params=37_477_352)
def cresnet72(*, weights: WeightsLike = None, **options: Unpack[CResNetOptions]) -> CResNet:
    """cResNet-72: 5.36 G multiply-adds at 224 px, as ResNet-71 on pixels."""
