"""FA-cResNet-39: a cResNet with attention modules that adapt latents to a pretrained ResNet-50.

Source: Deng & Karam, DNN-Compressed Domain Visual Recognition with Feature Adaptation, arXiv:2305.08000.

The network reads the latent of a hyperprior codec **and** the latent's scales: the standard deviations that the
hyperprior predicts, one for each latent value. It is a ResNet-50 without stem and layer 1. Feature adaptation (FA)
modules (section 4.1, :class:`cdzoo.ops.FeatureAdaptation`) replace block 0 of layer 2, and follow block 0 of layers 3
and 4. Each FA module weights the channels by attention and adds the output of a few 3x3 convolutions.

    y_hat  ─▶ FA C->512 ─┐
                         ├─▶ concat ─▶ 1x1 516->512 ─▶ layer 2 ─▶ layer 3 ─▶ layer 4 ─▶ average ─▶ fc
    scales ─▶ FA C->4  ──┘                             blocks     blocks     blocks
                                                       1-3        0,FA,1-5   0,FA,1-2

The FA modules exist because a pretrained ResNet-50 has never seen latents: all other layers start from its weights
(section 4.2, :meth:`FAcResNet.init_from_resnet50`).

The paper leaves three details open. This implementation chooses:

- The "convolutional block" after the concatenation (the fusion) is a 1x1 convolution with batch norm and ReLU. It has
  no pretrained weights, so it is trained in stage 1 as well.
- The strides are in the 3x3 convolutions, as in the ResNet-50 that the weights come from.
- Equation 9 writes ``+`` for the concatenation.

Parameters, multiply-adds and feature map sizes are those of table 2.

Training recipe (section 5.3): 35 epochs on ImageNet with SGD, momentum 0.9, weight decay 5e-4, batches of 64. Latents
and scales are cropped by the same box and resized to 28x28 by nearest neighbor. FA modules and fusion have a learning
rate of 0.01, divided by 10 after epochs 10 and 25. All other layers are frozen for 15 epochs (stage 1). Then they are
trained with a rate of 1e-4 (stage 2). ``examples/recipes/fa_cresnet2023.py`` implements it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from cdzoo.models._resnet import SCALES_CHANNELS, bottleneck_stage, conv1x1_bn_relu, scaled_channels
from cdzoo.models._state_dict import load_named
from cdzoo.models.classifier import LatentClassifier, LatentOptions, init_resnet_weights
from cdzoo.ops.feature_adaptation import FeatureAdaptation
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.types import Latent
    from cdzoo.weights.enums import WeightsLike

__all__ = ["FA_cResNet39_Weights", "FAcResNet", "fa_cresnet39"]


def check_num_convs(num_convs: Sequence[int], like: Sequence[int]) -> Sequence[int]:
    """Check numbers of 3x3 convolutions: as many integers as ``like`` has, for the last layers up to the fourth.

    Raises:
        ValueError: they are not.
    """
    integers = isinstance(num_convs, list | tuple) and all(type(n) is int for n in num_convs)
    if not integers or len(num_convs) != len(like):
        raise ValueError(
            f"num_convs={num_convs!r} must be {len(like)} integers, for layers {5 - len(like)} to 4, such as {like}"
        )
    return num_convs


def _adapted_stage(in_channels: int, planes: int, num_blocks: int, *, num_convs: int) -> nn.Sequential:
    """A stage of stride 2, with an adaptation module ``fa`` after block 0 (equation 10)."""
    blocks = list(bottleneck_stage(in_channels, planes, num_blocks, stride=2).named_children())
    fa = FeatureAdaptation(4 * planes, 4 * planes, num_convs=num_convs)
    return nn.Sequential(OrderedDict([blocks[0], ("fa", fa), *blocks[1:]]))


class FAcResNet(LatentClassifier):
    """FA-cResNet-39, a classifier of hyperprior latents.

    Blocks carry the names that they have in torchvision's ResNet-50 (``layer2.1`` ... ``layer4.2``, ``fc``).
    Features are ``(B, num_features, ceil(h / 4), ceil(w / 4))``.

    Args:
        in_channels: latent channels ``C`` of the codec: 192 for qualities 1 to 5 of bmshj2018, 320 for 6 to 8.
        num_classes: logits.
        width: multiplies all channel counts but the input's and the 4 of the scales' branch.
        num_convs: 3x3 convolutions in the adaptation modules of layers 2, 3, 4; the paper has (2, 3, 4) at its lowest
            rate and (3, 4, 5) elsewhere.
        latent_stride: pixels per latent sample; recorded so that codecs can be checked against it.

    Raises:
        ValueError: ``num_convs`` does not hold three numbers, or ``width`` is not positive.
    """

    uses_scales = True

    def __init__(
        self,
        *,
        in_channels: int = 192,
        num_classes: int = 1000,
        width: float = 1.0,
        num_convs: Sequence[int] = (3, 4, 5),
        latent_stride: int = 16,
    ) -> None:
        super().__init__(in_channels=in_channels, latent_stride=latent_stride)
        n2, n3, n4 = check_num_convs(num_convs, (3, 4, 5))
        c2, c3, c4 = (scaled_channels(planes, width) for planes in (128, 256, 512))
        self.fa_y_hat = FeatureAdaptation(in_channels, 4 * c2, num_convs=n2)
        self.fa_scales = FeatureAdaptation(in_channels, SCALES_CHANNELS, num_convs=n2)
        self.fusion = conv1x1_bn_relu(4 * c2 + SCALES_CHANNELS, 4 * c2)
        self.layer2 = bottleneck_stage(4 * c2, c2, 3, first=1)
        self.layer3 = _adapted_stage(4 * c2, c3, 6, num_convs=n3)
        self.layer4 = _adapted_stage(4 * c3, c4, 3, num_convs=n4)
        self.set_stages(("layer2", 4 * c2, 1), ("layer3", 4 * c3, 2), ("layer4", 4 * c4, 2))
        self.set_classifier(4 * c4, num_classes)
        init_resnet_weights(self)

    def forward_stem(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)`` twice, or a ``Latent`` -> the input of layer 2, ``(B, 4 c2, h, w)``: equations 8 and 9."""
        x, sigma = self.check_input(y_hat, scales)
        fused: Tensor = self.fusion(torch.cat([self.fa_y_hat(x), self.fa_scales(sigma)], dim=1))
        return fused

    # -- Section 4.2: start from a network of the pixel domain ------------------------------------------------------

    def _pretrained_modules(self, classifier: bool) -> Iterator[tuple[str, nn.Module]]:
        """Names and modules for which a ResNet-50 has weights: all but the adaptation modules and the fusion."""
        for stage in ("layer2", "layer3", "layer4"):
            for name, block in self.get_submodule(stage).named_children():
                if name != "fa":
                    yield f"{stage}.{name}", block
        if classifier:
            yield "fc", self.fc

    def init_from_resnet50(self, state_dict: Mapping[str, Tensor], *, classifier: bool = True) -> list[str]:
        """Copy layers 2-4 and the classifier of a pixel-domain ResNet-50 (equations 6 and 7).

        Args:
            state_dict: of a ``torchvision.models.resnet50`` of this network's width. The paper trains it on decoded
                images. Its stem, layer 1 and block 0 of layer 2 have no counterpart here and stay unused.
            classifier: copy ``fc`` too. With ``False`` the present one stays, for another number of classes; then
                give ``classifier=False`` to :meth:`freeze_pretrained` and :meth:`parameter_groups` as well.

        Returns:
            the names of the parameters and buffers that were filled, in this network and in ``state_dict`` alike.

        Raises:
            WeightsError: a tensor is missing or has another shape. Nothing has been copied then.
        """
        prefixes = tuple(f"{name}." for name, _ in self._pretrained_modules(classifier))
        names = [(name, name) for name in self.state_dict() if name.startswith(prefixes)]
        return load_named(
            self, state_dict, names, source="a ResNet-50 of this network's width (layers 2-4 and fc)",
            way_out="pass classifier=False to keep the present fc, and build the network with the other's width",
        ).taken  # fmt: skip

    def parameter_groups(self, stage: int, *, classifier: bool = True) -> list[dict[str, Any]]:
        """Parameters for an optimizer, to which the rates of the recipe can be added.

        Args:
            stage: 1 for the adaptation modules and the fusion alone; 2 for a second group with everything else.
            classifier: whether ``fc`` was taken from the pretrained network; otherwise it is trained from stage 1 on.

        Returns:
            groups ``{"name": "adaptation", "params": [...]}`` and, in stage 2, ``{"name": "pretrained", ...}``.
            Nothing is frozen: see :meth:`freeze_pretrained`.

        Raises:
            ValueError: ``stage`` is neither 1 nor 2.
        """
        if stage not in (1, 2):
            raise ValueError(f"stage must be 1 (adaptation modules alone) or 2 (everything), got {stage}")
        pretrained = [p for _, module in self._pretrained_modules(classifier) for p in module.parameters()]
        known = {id(parameter) for parameter in pretrained}
        adaptation = [parameter for parameter in self.parameters() if id(parameter) not in known]
        groups = [{"name": "adaptation", "params": adaptation}, {"name": "pretrained", "params": pretrained}]
        return groups[:stage]

    def freeze_pretrained(self, *, classifier: bool = True) -> None:
        """Stage 1: freeze the pretrained modules; their batch norms keep their statistics.

        Args:
            classifier: freeze ``fc`` too; ``True`` where it was copied.
        """
        for _, module in self._pretrained_modules(classifier):
            module.requires_grad_(False)
        self.train(self.training)

    def unfreeze(self) -> None:
        """Stage 2: train all modules; batch norms follow the module's mode again."""
        self.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> FAcResNet:
        """Set the mode, as in PyTorch; but batch norms whose weight is frozen stay in evaluation mode.

        Otherwise their statistics would drift in stage 1.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self


class FA_cResNet39_Weights(WeightsEnum):
    """Weights of :func:`fa_cresnet39`."""

    IMAGENETTE_W0125 = Weights("fa-cresnet39-w0125-imagenette")
    DEFAULT = IMAGENETTE_W0125


class FAcResNetOptions(LatentOptions, total=False):
    """Options of the builder; see :class:`FAcResNet`."""

    num_convs: Sequence[int]


@register_model(FAcResNet, weights=FA_cResNet39_Weights, num_params=43_988_727)
def fa_cresnet39(*, weights: WeightsLike = None, **options: Unpack[FAcResNetOptions]) -> FAcResNet:
    """FA-cResNet-39 over the latent and the scales of a hyperprior codec."""
