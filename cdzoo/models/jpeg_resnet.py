"""Residual networks that read JPEG coefficients.

Source: Ehrlich & Davis, Deep Residual Learning in the JPEG Transform Domain, ICCV 2019.

    JPEGCoefficients ─▶ entrance ─▶ convolution, batch norm, ReLU, shortcut ... ─▶ average ─▶ fc

All layers but the entrance are PyTorch's. There are three modes, with the same parameters; all can be trained:

- ``mode="fused"``: the entrance applies the inverse DCT once, together with the first convolution where that is
  possible. All other layers get plain tensors. With exact ReLU, this is the paper's network after all adjacent pairs of
  DCT and inverse DCT have cancelled.
- ``mode="factored"`` and ``mode="explicit"``: layers get a :class:`~cdzoo.jpeg.nn.maps.CoefficientMap` and run in the
  JPEG domain. ReLU is exact, or approximated by the paper's ASM or APX (section 4.2).

``jpeg_resnet_small`` is the network of section 5.1: three residual blocks, the last two with stride 2. So 32x32 pixels
end in one block of 8x8. Figure 3 of the paper shows blocks and sizes. It leaves open what this implementation chooses:
16, 32 and 64 channels; two 3x3 convolutions per block, each with batch norm; a 1x1 convolution with batch norm on every
shortcut, since every block changes the number of channels; no stem.

``jpeg_resnet18`` and ``jpeg_resnet50`` are torchvision's networks, with stem and max pooling, and load its weights.

The paper trains on "losslessly compressed" images, whose coefficients are not integers. To do the same, pass
floating-point planes with quantization tables of ones. The paper also claims that the JPEG domain is faster than
pixels. For the explicit network that is not so: it takes 77 times the multiply-adds of the pixel network
(see :mod:`cdzoo.jpeg.nn.convert`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from torch import Tensor

from cdzoo.errors import WeightsError
from cdzoo.jpeg.nn.conv import DEFAULT_MEMORY_BUDGET
from cdzoo.jpeg.nn.entrance import JPEGEntrance, make_convolutions_explicit
from cdzoo.jpeg.nn.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from cdzoo.models._resnet import BasicBlock, StemmedResNet, scaled_channels
from cdzoo.models.classifier import ClassifierOptions, JPEGClassifier, init_resnet_weights
from cdzoo.types import JPEGCoefficients
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.weights.enums import WeightsLike

__all__ = ["JPEGResNet", "JPEGResNetSmall", "jpeg_resnet18", "jpeg_resnet50", "jpeg_resnet_small"]


def _finish(network: JPEGClassifier, num_features: int, num_classes: int) -> None:
    network.set_classifier(num_features, num_classes)
    init_resnet_weights(network)
    if network.entrance.mode == "explicit":
        make_convolutions_explicit(network)


class JPEGResNetSmall(JPEGClassifier):
    """The three-block network of section 5.1; features are ``(B, num_features, ceil(H / 4), ceil(W / 4))``.

    Args:
        num_classes: logits.
        in_channels: 3 (RGB), or 1 (luma), as for MNIST padded to 32x32.
        width: multiplies 16, 32 and 64 channels, rounded to multiples of 8.
        mode: ``"fused"``, ``"factored"`` or ``"explicit"``.
        relu: ``"exact"``, ``"asm"`` or ``"apx"``; the last two not with ``"fused"``.
        num_frequencies: 1 to 15 spatial frequencies of ASM and APX.
        chroma: ``"nearest"`` or ``"fancy"`` upsampling.
        mean: of pixels in [0, 1], one number or one per channel.
        std: pixels are divided by it, likewise.
        memory_budget: bytes that the explicit maps may take, for one image size; 32x32 RGB needs 2.9 GiB.

    Raises:
        ValueError: an option that is none of these.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        mode: str = "fused",
        relu: str = "exact",
        num_frequencies: int = 15,
        chroma: str = "nearest",
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
    ) -> None:
        super().__init__(in_channels=in_channels)
        self.entrance = JPEGEntrance(
            channels=in_channels,
            mode=mode,
            relu=relu,
            num_frequencies=num_frequencies,
            chroma=chroma,
            mean=mean,
            std=std,
            memory_budget=memory_budget,
        )
        c1, c2, c3 = (scaled_channels(channels, width) for channels in (16, 32, 64))
        self.set_stages(("block1", c1, 1), ("block2", c2, 2), ("block3", c3, 2))
        self.block1 = BasicBlock(in_channels, c1)
        self.block2 = BasicBlock(c1, c2, stride=2)
        self.block3 = BasicBlock(c2, c3, stride=2)
        _finish(self, c3, num_classes)

    def forward_stem(self, coefficients: JPEGCoefficients, scales: Tensor | None = None) -> Tensor:
        """Files to the input of the first stage; a coefficient map of that shape unless fused."""
        self.entrance.check_memory(self, coefficients)
        x: Tensor = self.entrance(coefficients, dtype=self.block1.conv1.weight.dtype)
        return x


class JPEGResNet(JPEGClassifier, StemmedResNet):
    """torchvision's ResNet over coefficients; all parameter names are torchvision's.

    Features are ``(B, num_features, ceil(H / 32), ceil(W / 32))``.

    Args:
        layers: blocks in ``layer1`` to ``layer4``.
        bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, else of two 3x3 ones.
        num_classes: logits.
        in_channels: 3 (RGB) or 1 (luma).
        width: multiplies all channel counts but the input's, rounded to multiples of 8.
        mode: ``"fused"``, ``"factored"`` or ``"explicit"`` (which full-size images never fit).
        relu: ``"exact"``, ``"asm"`` or ``"apx"``; the last two not with ``"fused"``.
        num_frequencies: 1 to 15 spatial frequencies of ASM and APX.
        chroma: ``"nearest"`` or ``"fancy"`` upsampling.
        mean: of pixels in [0, 1]; torchvision's for ImageNet by default, 0.5 for luma.
        std: pixels are divided by it; likewise.
        memory_budget: bytes that the explicit maps may take, for one image size.

    Raises:
        ValueError: ``layers`` does not hold four numbers, or an option that is none of these.
    """

    @staticmethod
    def derived_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Mean and deviation of pixels, where they are ``None``."""
        rgb = arguments["in_channels"] == 3
        usual = {"mean": IMAGENET_MEAN if rgb else 0.5, "std": IMAGENET_STD if rgb else 0.5}
        return {name: value if arguments[name] is None else arguments[name] for name, value in usual.items()}

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2, 2),
        *,
        bottleneck: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        mode: str = "fused",
        relu: str = "exact",
        num_frequencies: int = 15,
        chroma: str = "nearest",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
    ) -> None:
        super().__init__(in_channels=in_channels)
        statistics = self.derived_arguments({"in_channels": in_channels, "mean": mean, "std": std})
        self.entrance = JPEGEntrance(
            channels=in_channels,
            mode=mode,
            relu=relu,
            num_frequencies=num_frequencies,
            chroma=chroma,
            mean=statistics["mean"],
            std=statistics["std"],
            memory_budget=memory_budget,
        )
        _finish(self, self.set_trunk(layers, width, bottleneck=bottleneck), num_classes)

    def forward_stem(self, coefficients: JPEGCoefficients, scales: Tensor | None = None) -> Tensor:
        """Files to the input of the first stage; a coefficient map of that shape unless fused."""
        self.entrance.check_memory(self, coefficients)
        stem: Tensor = self.bn1(self.entrance(coefficients, self.conv1))
        return stem

    def load_torchvision(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the state dict of torchvision's ``resnet18`` or ``resnet50``, all of it or nothing.

        Args:
            state_dict: of a network of the same depth, width and number of classes. Checkpoints from before batch norms
                counted their batches are read too, as PyTorch does.

        Raises:
            WeightsError: names or shapes differ; no parameter has been changed then.
        """
        own = self.state_dict()
        counters = {name: tensor for name, tensor in own.items() if name.endswith(".num_batches_tracked")}
        state_dict = {**counters, **state_dict}
        wrong = [f"{name} is missing" for name in own.keys() - state_dict.keys()]
        wrong += [f"{name} has no place" for name in state_dict.keys() - own.keys()]
        wrong += [
            f"{name} is {tuple(state_dict[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own.keys() & state_dict.keys()
            if state_dict[name].shape != own[name].shape
        ]
        if wrong:
            raise WeightsError(
                f"not the state dict of torchvision's network of this depth, width and number of classes: "
                f"{'; '.join(sorted(wrong)[:4])} ({len(wrong)} in all); for another number of classes load first, "
                "then call reset_classifier"
            )
        self.load_state_dict(state_dict)


# -- weights and builders ----------------------------------------------------------------------------------------


class JPEGOptions(ClassifierOptions, total=False):
    """Options of the builders in this file; see :class:`JPEGResNet` and :class:`JPEGResNetSmall`."""

    mode: str
    relu: str
    num_frequencies: int
    chroma: str
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    memory_budget: int


class JPEGResNetSmall_Weights(WeightsEnum):
    """Weights of :func:`jpeg_resnet_small`."""

    CIFAR10 = Weights("jpeg-resnet-small-cifar10")
    DEFAULT = CIFAR10


class JPEGResNet18_Weights(WeightsEnum):
    """Weights of :func:`jpeg_resnet18`."""

    IMAGENETTE_W0375 = Weights("jpeg-resnet18-w0375-imagenette")
    DEFAULT = IMAGENETTE_W0375


class JPEGResNet50_Weights(WeightsEnum):
    """Weights of :func:`jpeg_resnet50`: none published yet."""


@register_model(JPEGResNetSmall, weights=JPEGResNetSmall_Weights, num_params=140_136)
def jpeg_resnet_small(*, weights: WeightsLike = None, **options: Unpack[JPEGOptions]) -> JPEGResNetSmall:
    """The three-block network of Ehrlich and Davis for 32x32 pixels; it takes any size."""


@register_model(JPEGResNet, weights=JPEGResNet18_Weights, layers=(2, 2, 2, 2), bottleneck=False, num_params=11_689_512)
def jpeg_resnet18(*, weights: WeightsLike = None, **options: Unpack[JPEGOptions]) -> JPEGResNet:
    """ResNet-18 of torchvision over JPEG coefficients; ``load_torchvision`` takes its weights."""


@register_model(JPEGResNet, weights=JPEGResNet50_Weights, layers=(3, 4, 6, 3), bottleneck=True, num_params=25_557_032)
def jpeg_resnet50(*, weights: WeightsLike = None, **options: Unpack[JPEGOptions]) -> JPEGResNet:
    """ResNet-50 of torchvision over JPEG coefficients; ``load_torchvision`` takes its weights."""
