"""ResNet-41 and ResNet-49: residual networks that read latents of images of any size.

Source: Wang et al., Learning from the CNN-based Compressed Domain, WACV 2022, section 3.2, table 1a, section 4.6.

ResNet-41 is for latents of images of usual size. A latent of stride 16 is half as large as the feature maps in stage
conv3 of a ResNet-50. So ResNet-41 doubles its height and width, maps it to the 256 channels that conv3 expects, and
continues as ResNet-50 from conv3, with a stride of 1 there. ResNet-49 is for large photographs. It enlarges nothing: a
ResNet-50 without its stem reads the latent.

    ResNet-41   y_hat (C, h, w) ─▶ upscale (C, 2h, 2w) ─▶ 1x1 (256, 2h, 2w) ─▶ layer2 (512, 2h, 2w)
                                ─▶ layer3 (1024, h, w) ─▶ layer4 (2048, h/2, w/2) ─▶ average ─▶ fc
    ResNet-49   y_hat (C, h, w) ─▶ layer1 (256, h, w) ─▶ layer2 (512, h/2, w/2) ─▶ layer3 ─▶ layer4 ─▶ average ─▶ fc

The paper is unclear in some details. This implementation chooses:

- "A deconvolutional layer and a pixel shuffle layer" are two ways to enlarge (both in a row would enlarge by four):
  a 4x4 transposed convolution of stride 2, or a 3x3 convolution to ``4 C`` channels and a pixel shuffle.
- The 1x1 convolution has batch norm and ReLU. So layer 2 reads values that are not negative, as in ResNet-50.
- The strides are in the 3x3 convolutions, as in torchvision's ResNet-50.
- With 256 latent channels, the shortcut of the first block of ResNet-49 is the identity, as the shape does not change.

The 41 counts ``upscale``, the 1x1 convolution and the 39 convolutions of the blocks, without shortcuts and ``fc``. The
49 counts ``fc`` as well.

Training recipe (section 3.4): the codec is trained first and then stays fixed. Each batch has a random image size of
224 to 448 pixels (:class:`cdzoo.ops.RandomSizeCollate`). Latents are never resized, and no mean is subtracted. The
networks can read a subset of the channels (section 3.4.4): see the argument ``channels`` and :mod:`cdzoo.ops.channels`.
``examples/recipes/wang2022.py`` implements it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

from torch import Tensor, nn

from cdzoo.models._resnet import bottleneck_stage, conv1x1_bn_relu, scaled_channels
from cdzoo.models._state_dict import LoadedNames, fits, load_named
from cdzoo.models.classifier import LatentClassifier, LatentOptions, init_resnet_weights
from cdzoo.ops.channels import select_channels
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.types import Latent
    from cdzoo.weights.enums import WeightsLike

__all__ = ["LatentResNet", "Upscale", "resnet41", "resnet49", "upscale_of_0_1_0", "upscaling"]

Upscale = Literal["pixel_shuffle", "deconv"]
"""Layers that enlarge a latent."""


def upscaling(channels: int, upscale: Upscale | None) -> nn.Module:
    """``(B, C, h, w)`` -> ``(B, C, 2h, 2w)``, or the identity for ``None``.

    Raises:
        ValueError: another word.
    """
    if upscale == "pixel_shuffle":
        return nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2))
    if upscale == "deconv":
        return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    if upscale is not None:
        raise ValueError(f"upscale must be 'pixel_shuffle', 'deconv' or None, not {upscale!r}")
    return nn.Identity()


def upscale_of_0_1_0(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in place of those that version 0.1.0 wrote, whose ``upscale="none"`` is ``None``."""
    return {"upscale": None} if arguments["upscale"] == "none" else {}


class LatentResNet(LatentClassifier):
    """ResNet-41 or ResNet-49, a classifier of latents; stages and blocks carry torchvision's names.

    Features are ``(B, num_features, h', w')`` with ``h' = ceil(2 h / 4)`` in ResNet-41, ``ceil(h / 4)`` without
    upscaling, ``ceil(h / 8)`` in ResNet-49; and likewise ``w'``.

    Args:
        layers: bottlenecks in conv3, conv4 and conv5, behind a 1x1 convolution and without a stride in conv3
            (ResNet-41); or in conv2 to conv5, of which conv2 reads the latent itself (ResNet-49).
        in_channels: latent channels ``C`` of the codec.
        num_classes: logits.
        width: multiplies all channel counts but the input's.
        upscale: ``"pixel_shuffle"``, ``"deconv"``, or ``None`` to leave the latent's size.
        channels: the channels that are read, of the ``in_channels`` that the latent has; all of them unless given.
        stride_in_1x1: the stride sits in the first 1x1 convolution of a bottleneck or in its 3x3 one (torchvision).
        latent_stride: pixels per latent sample; recorded so that codecs can be checked against it.

    Raises:
        ValueError: an argument that is none of these.
    """

    derived_arguments = staticmethod(upscale_of_0_1_0)

    def __init__(
        self,
        layers: Sequence[int] = (4, 6, 3),
        *,
        in_channels: int = 256,
        num_classes: int = 1000,
        width: float = 1.0,
        upscale: Upscale | None = "pixel_shuffle",
        channels: Sequence[int] | None = None,
        stride_in_1x1: bool = False,
        latent_stride: int = 16,
    ) -> None:
        super().__init__(in_channels=in_channels, latent_stride=latent_stride)
        if len(layers) not in (3, 4):
            raise ValueError(f"layers={tuple(layers)} must be three numbers, for conv3 to conv5, or four from conv2 on")
        n3, n4, n5 = layers[-3:]
        c2, c3, c4, c5 = (scaled_channels(planes, width) for planes in (64, 128, 256, 512))
        self.select = select_channels(channels, of=in_channels)
        read = in_channels if channels is None else len(channels)
        self.upscale = upscaling(read, upscale)
        self.match = conv1x1_bn_relu(read, 4 * c2) if len(layers) == 3 else None
        self.layer1 = bottleneck_stage(read, c2, layers[0]) if len(layers) == 4 else None
        stride = 1 if self.layer1 is None else 2
        self.layer2 = bottleneck_stage(4 * c2, c3, n3, stride=stride, stride_in_1x1=stride_in_1x1)
        self.layer3 = bottleneck_stage(4 * c3, c4, n4, stride=2, stride_in_1x1=stride_in_1x1)
        self.layer4 = bottleneck_stage(4 * c4, c5, n5, stride=2, stride_in_1x1=stride_in_1x1)
        stages = [("layer2", 4 * c3, stride), ("layer3", 4 * c4, 2), ("layer4", 4 * c5, 2)]
        stages = stages if self.layer1 is None else [("layer1", 4 * c2, 1), *stages]
        self.set_stages(*stages, enlarged=1 if isinstance(self.upscale, nn.Identity) else 2)
        self.set_classifier(4 * c5, num_classes)
        init_resnet_weights(self)

    def forward_stem(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)``, or a ``Latent`` -> the input of the first stage; twice as large with upscaling."""
        x, _ = self.check_input(y_hat, scales)
        x = x if self.select is None else self.select(x)
        x = self.upscale(x)
        matched: Tensor = x if self.match is None else self.match(x)
        return matched

    def load_torchvision(self, state_dict: Mapping[str, Tensor], *, classifier: bool = True) -> LoadedNames:
        """Copy the tensors that ResNet-50 has in common with this network: all behind its entrance.

        Of the first unit of ResNet-49, which reads the latent, only tensors of equal shape are copied. All else that
        has a torchvision name must be there and fit.

        Args:
            state_dict: of a ``torchvision.models.resnet50`` of this network's width.
            classifier: copy ``fc`` too. With ``False`` the present one stays, for another number of classes.

        Returns:
            the names that were taken, those of ``state_dict`` that have no place here (stem, and layer 1 of
            ResNet-41), and those that keep their values (``upscale``, ``match``, ...).

        Raises:
            WeightsError: a tensor is missing or has another shape. Nothing has been copied then.
        """
        own, prefixes = self.state_dict(), ("layer", "fc.") if classifier else ("layer",)
        names = [
            name
            for name in own
            if name.startswith(prefixes) and (not name.startswith("layer1.0.") or fits(own, state_dict, name))
        ]
        return load_named(
            self,
            state_dict,
            [(name, name) for name in names],
            source="torchvision's resnet50",
            way_out="use width=1.0 for the stages, and classifier=False for another number of classes",
        )


# -- weights and builders ----------------------------------------------------------------------------------------


class LatentResNetOptions(LatentOptions, total=False):
    """Options of the builders in this file; see :class:`LatentResNet`."""

    upscale: Upscale | None
    channels: Sequence[int] | None
    stride_in_1x1: bool


class ResNet41_Weights(WeightsEnum):
    """Weights of :func:`resnet41`."""

    IMAGENETTE_W025 = Weights("resnet41-w025-choi2019-imagenette")
    DEFAULT = IMAGENETTE_W025


class ResNet49_Weights(WeightsEnum):
    """Weights of :func:`resnet49`: none published yet."""


@register_model(LatentResNet, weights=ResNet41_Weights, layers=(4, 6, 3), num_params=27_757_032)
def resnet41(*, weights: WeightsLike = None, **options: Unpack[LatentResNetOptions]) -> LatentResNet:
    """ResNet-41 over latents of any size: 27.76 M parameters with a pixel shuffle, 26.45 M with a deconvolution."""


def _not_upscaled(*, upscale: Upscale | None = None, **arguments: Any) -> LatentResNet:
    return LatentResNet(upscale=upscale, **arguments)


@register_model(LatentResNet, make=_not_upscaled, weights=ResNet49_Weights, layers=(3, 4, 6, 3), num_params=25_542_888)
def resnet49(*, weights: WeightsLike = None, **options: Unpack[LatentResNetOptions]) -> LatentResNet:
    """ResNet-49 over latents of large photographs, by default without upscaling: 25.54 M parameters."""
