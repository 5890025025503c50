"""The ablations of FA-cResNet-39 (Deng & Karam, arXiv:2305.08000, section 5.7, table 3).

``fa_cresnet39_ablation`` is :func:`~cdzoo.models.fa_cresnet39` with arguments for all rows of table 3:

    table 3                      argument                            the paper's choice
    input                        use_scales=False                    True
    FA module                    parts="attention", "enhancement"    "both"
    FA position                  fa_position="post"                  "pre"
    CAU pooling function         pooling="max", "avg", "max+avg",    "attention" (two of them)
                                 "shared"
    CAU position                 position="skip", "inner", "post"    "pre"
    CAU module                   transform="scale", "bias"           "affine"
    CAU bottleneck architecture  reduction=1 ... 64, or "1fc"        16
    FEU architecture             num_convs=(2, 2, 2) ... (4, 5, 6)   (3, 4, 5)

FA is a feature adaptation module. It consists of a channel attention unit (CAU) and a feature enhancement unit (FEU).

``fa_resnet50`` is a ResNet-50 on pixels with FA modules, for the rows "FA effect".

The paper leaves two details open. With ``fa_position="post"``, layer 2 begins as in the cResNet-39 that reads scales:
with two parallel bottlenecks and the fusion. The four modules of ``fa_resnet50`` have 2, 3, 4 and 5 3x3 convolutions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Unpack

from torch import Tensor, nn

from cdzoo._checks import check_choice
from cdzoo.models._resnet import SCALES_CHANNELS, Bottleneck, scaled_channels
from cdzoo.models.classifier import ClassifierOptions, init_resnet_weights
from cdzoo.models.fa_cresnet import FAcResNet, FAcResNetOptions, check_num_convs
from cdzoo.models.rgb_resnet import RGBResNet
from cdzoo.ops.feature_adaptation import FeatureAdaptation
from cdzoo.weights.enums import WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.types import Latent
    from cdzoo.weights.enums import WeightsLike

__all__ = ["AblatedFAcResNet", "FAResNet", "fa_cresnet39_ablation", "fa_resnet50"]


class AblatedFAcResNet(FAcResNet):
    """FA-cResNet-39 with variants of its adaptation modules. By default it has the parameters of FA-cResNet-39.

    Args:
        in_channels: latent channels ``C``.
        num_classes: logits.
        width: multiplier of channel counts.
        num_convs: 3x3 convolutions in the modules of layers 2, 3, 4.
        latent_stride: pixels per latent sample.
        use_scales: read the scales, too; otherwise the network reads ``y_hat`` alone and has no fusion.
        fa_position: modules follow the first block of a layer (``"pre"``) or its last (``"post"``).
        pooling: see :class:`~cdzoo.ops.ChannelAttention`.
        transform: likewise.
        reduction: likewise.
        position: see :class:`~cdzoo.ops.FeatureAdaptation`.
        parts: likewise.

    Raises:
        ValueError: an option that is none of its choices.
    """

    def __init__(
        self,
        *,
        in_channels: int = 192,
        num_classes: int = 1000,
        width: float = 1.0,
        num_convs: Sequence[int] = (3, 4, 5),
        latent_stride: int = 16,
        use_scales: bool = True,
        fa_position: str = "pre",
        pooling: str = "attention",
        transform: str = "affine",
        reduction: int | str = 16,
        position: str = "pre",
        parts: str = "both",
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_classes=num_classes,
            width=width,
            num_convs=num_convs,
            latent_stride=latent_stride,
        )
        check_choice("fa_position", fa_position, ("pre", "post"))
        fa = partial(
            FeatureAdaptation, pooling=pooling, transform=transform, reduction=reduction, position=position, parts=parts
        )
        n2, n3, n4 = check_num_convs(num_convs, (3, 4, 5))
        c2, c3, c4 = (Bottleneck.expansion * scaled_channels(planes, width) for planes in (128, 256, 512))
        self.layer3.add_module("fa", fa(c3, c3, num_convs=n3))
        self.layer4.add_module("fa", fa(c4, c4, num_convs=n4))
        if fa_position == "pre":
            self.add_module("fa_y_hat", fa(in_channels, c2, num_convs=n2))
            self.add_module("fa_scales", fa(in_channels, SCALES_CHANNELS, num_convs=n2))
        else:
            self.add_module("fa_y_hat", Bottleneck(in_channels, c2 // Bottleneck.expansion))
            self.add_module("fa_scales", Bottleneck(in_channels, SCALES_CHANNELS // Bottleneck.expansion))
            self.layer2.add_module("fa", fa(c2, c2, num_convs=n2))
            self.layer3, self.layer4 = (_with_fa_last(stage) for stage in (self.layer3, self.layer4))
        self.uses_scales = use_scales
        if not use_scales:
            del self.fa_scales, self.fusion
        init_resnet_weights(self)

    def forward_stem(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)``, twice with scales, or a ``Latent`` -> the input of layer 2, ``(B, 4 c2, h, w)``."""
        if self.uses_scales:
            return super().forward_stem(y_hat, scales)
        adapted: Tensor = self.fa_y_hat(self.check_input(y_hat, scales)[0])
        return adapted


class FAResNet(RGBResNet):
    """ResNet-50 on pixels, with an adaptation module after the first block of each of its four layers.

    Args:
        in_channels: ``C`` of the image.
        num_classes: logits.
        width: multiplies all channel counts but the input's.
        num_convs: 3x3 convolutions in the modules of layers 1 to 4.

    Raises:
        ValueError: ``num_convs`` does not hold four numbers, or ``width`` is not positive.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        width: float = 1.0,
        num_convs: Sequence[int] = (2, 3, 4, 5),
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, width=width, stride_in_1x1=False)
        check_num_convs(num_convs, (2, 3, 4, 5))
        for name, n in zip(("layer1", "layer2", "layer3", "layer4"), num_convs, strict=True):
            (zero, first), *rest = self.get_submodule(name).named_children()
            assert isinstance(first, Bottleneck)
            channels = first.conv3.out_channels
            fa = FeatureAdaptation(channels, channels, num_convs=n)
            setattr(self, name, nn.Sequential(OrderedDict([(zero, first), ("fa", fa), *rest])))
        init_resnet_weights(self)


def _with_fa_last(stage: nn.Sequential) -> nn.Sequential:
    blocks = [(name, block) for name, block in stage.named_children() if name != "fa"]
    return nn.Sequential(OrderedDict([*blocks, ("fa", stage.get_submodule("fa"))]))


# -- weights and builders ----------------------------------------------------------------------------------------


class AblationOptions(FAcResNetOptions, total=False):
    """Options of the builder of :class:`AblatedFAcResNet`."""

    use_scales: bool
    fa_position: str
    pooling: str
    transform: str
    reduction: int | str
    position: str
    parts: str


class FAResNetOptions(ClassifierOptions, total=False):
    """Options of the builder of :class:`FAResNet`."""

    num_convs: Sequence[int]


class FA_cResNet39_Ablation_Weights(WeightsEnum):
    """Weights of :func:`fa_cresnet39_ablation`: none published yet."""


class FA_ResNet50_Weights(WeightsEnum):
    """Weights of :func:`fa_resnet50`: none published yet."""


@register_model(AblatedFAcResNet, weights=FA_cResNet39_Ablation_Weights, num_params=43_988_727)
def fa_cresnet39_ablation(*, weights: WeightsLike = None, **options: Unpack[AblationOptions]) -> AblatedFAcResNet:
    """FA-cResNet-39 with one of the changes of table 3; see the module for which."""


@register_model(FAResNet, weights=FA_ResNet50_Weights, num_params=44_441_424)
def fa_resnet50(*, weights: WeightsLike = None, **options: Unpack[FAResNetOptions]) -> FAResNet:
    """ResNet-50 on pixels with feature adaptation, of the rows "FA effect" of table 3."""
