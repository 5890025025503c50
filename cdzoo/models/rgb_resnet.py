"""ResNet-50 and ResNet-71 on pixels: the baselines of Torfason et al. (ICLR 2018, section 4.1, tables 1 and 3).

ResNet-50 is the network of He et al. ResNet-71 has 13 blocks in conv4, where ResNet-50 has 6. It needs as many
multiply-adds as cResNet-72.

    x (3, 224, 224) ─▶ 7x7/2, max pool/2 (64, 56, 56) ─▶ layer1 (256, 56, 56) ─▶ layer2 (512, 28, 28)
                    ─▶ layer3 (1024, 14, 14) ─▶ layer4 (2048, 7, 7) ─▶ average ─▶ fc

The paper follows He et al.: a block of stride 2 has its stride in the first 1x1 convolution. torchvision has it in the
3x3 convolution. Names and shapes are the same in both, but they compute different functions. To load torchvision's
weights, build the network with ``stride_in_1x1=False``; otherwise ``load_state_dict`` refuses them.

The number 71 counts conv1 and ``fc``. Counted like cResNet-39 it would be 69.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch.fx
from torch import Tensor

from cdzoo.models._resnet import StemmedResNet
from cdzoo.models.classifier import ClassifierOptions, init_resnet_weights
from cdzoo.weights.enums import WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.weights.enums import WeightsLike

__all__ = ["RGBResNet", "resnet50", "resnet71"]


class RGBResNet(StemmedResNet):
    """A ResNet of bottlenecks on pixels, with torchvision's names.

    Args:
        layers: bottlenecks in conv2, conv3, conv4 and conv5 (``layer1`` ... ``layer4``).
        in_channels: ``C`` of the image.
        num_classes: logits.
        width: multiplies all channel counts but the input's.
        stride_in_1x1: the stride sits in the first 1x1 convolution of a bottleneck (Torfason et al.) or in its 3x3 one
            (torchvision).

    Raises:
        ValueError: ``layers`` does not hold four numbers, or ``width`` is not positive.
    """

    _version = 2  # in the metadata of a state dict; torchvision's ResNet has 1, PyTorch's default

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        width: float = 1.0,
        stride_in_1x1: bool = True,
    ) -> None:
        super().__init__(in_channels=in_channels)
        self.stride_in_1x1 = stride_in_1x1
        self.set_classifier(self.set_trunk(layers, width, stride_in_1x1=stride_in_1x1), num_classes)
        init_resnet_weights(self)

    def check_version(self, version: int | None) -> None:
        """Refuse a state dict of torchvision where the strides are in the 1x1 convolutions.

        Names and shapes are the same, but the networks compute different functions. Only the version that PyTorch
        keeps in a state dict tells them apart, so a plain dictionary is not checked.

        Args:
            version: of the module that the state dict was taken from; ``None`` if unknown.

        Raises:
            ValueError: the strides are in the 1x1 convolutions, and the state dict is not one of this class.
        """
        if self.stride_in_1x1 and version is not None and version < self._version:
            raise ValueError(
                "this state dict was not saved by cdzoo's ResNet; torchvision's has its strides in the 3x3 "
                "convolutions and computes another function: build the network with stride_in_1x1=False; a state dict "
                "of cdzoo 0.1.0 loads as dict(state_dict)"
            )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *rest: Any
    ) -> None:
        self.check_version(local_metadata.get("version"))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, num_features, ceil(H / 32), ceil(W / 32))``.

        Raises:
            TypeError: no tensor, but a ``Latent``, say.
            ValueError: wrong number of channels.
        """
        return self.run_stages(self.forward_stem(x))

    def forward_stem(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """``(B, 3, H, W)`` -> the input of the stem's ReLU, ``(B, c2, ceil(H / 2), ceil(W / 2))``."""
        stem: Tensor = self.bn1(self.conv1(_checked_pixels(x, self.in_channels)))
        return stem

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)``, normalized as the weights expect, any size -> logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


@torch.fx.wrap
def _checked_pixels(x: Any, in_channels: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"this network reads pixels (B, {in_channels}, H, W), not {type(x).__name__}: decode it first, with "
            "codec.decode or cdzoo.codecs.decode_jpeg"
        )
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, this network reads (B, {in_channels}, H, W): convert the images, or build "
            "the network with another in_channels"
        )
    return x


class RGBResNetOptions(ClassifierOptions, total=False):
    """Options of the builders in this file; see :class:`RGBResNet`."""

    stride_in_1x1: bool


class ResNet50_Weights(WeightsEnum):
    """Weights of :func:`resnet50`: none published yet."""


class ResNet71_Weights(WeightsEnum):
    """Weights of :func:`resnet71`: none published yet."""


@register_model(RGBResNet, weights=ResNet50_Weights, layers=(3, 4, 6, 3), num_params=25_557_032)
def resnet50(*, weights: WeightsLike = None, **options: Unpack[RGBResNetOptions]) -> RGBResNet:
    """ResNet-50 on pixels: 3.86 G multiply-adds at 224 px."""


@register_model(RGBResNet, weights=ResNet71_Weights, layers=(3, 4, 13, 3), num_params=33_377_320)
def resnet71(*, weights: WeightsLike = None, **options: Unpack[RGBResNetOptions]) -> RGBResNet:
    """ResNet-71 on pixels: 5.39 G multiply-adds at 224 px."""
