"""MobileNetV2-45: a small network that reads latents of images of any size.

Source: Wang et al., Learning from the CNN-based Compressed Domain, WACV 2022, section 3.2, table 1b. The blocks are
those of Sandler et al., MobileNetV2, CVPR 2018.

The network doubles the height and width of a latent of stride 16, as ResNet-41 does
(:mod:`cdzoo.models.latent_resnet`). It maps the result to 24 channels and continues as MobileNetV2 without its stem and
its first two rows of blocks:

    y_hat (C, h, w) ─▶ upscale (C, 2h, 2w) ─▶ 1x1 (24, 2h, 2w) ─▶ blocks 4 to 6 (32, 2h, 2w) ─▶ 7 to 10 (64, h, w)
                    ─▶ 11 to 13 (96, h, w) ─▶ 14 to 16 (160, h/2, w/2) ─▶ 17 (320) ─▶ 1x1 (1280) ─▶ average ─▶ fc

The number 45 counts ``upscale``, the 1x1 convolution, the 42 convolutions of the 14 blocks and the last 1x1
convolution, without ``fc``.

The paper is unclear in some details. This implementation chooses:

- Table 1b prints its fifth row like the fourth: 96 channels, stride 1. But the sizes beside it are halved in that row,
  and MobileNetV2 has 160 channels and stride 2 there. So has this network.
- Table 1b gives the upscaled latent 320 channels, but the next block of MobileNetV2 reads 24. The argument
  ``upscaled_channels`` sets the number; it is 24 by default.
- The 1x1 convolution before the blocks has batch norm and no ReLU, since MobileNetV2 passes linear values from block to
  block.
- The paper does not mention dropout. MobileNetV2 has a dropout of 0.2 before its classifier, and so has this network.

Training recipe: as for ResNet-41.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from torch import Tensor, nn

from cdzoo._checks import check_size
from cdzoo.models._resnet import scaled_channels
from cdzoo.models._state_dict import LoadedNames, fits, load_named
from cdzoo.models.classifier import LatentClassifier, LatentOptions, init_resnet_weights
from cdzoo.models.latent_resnet import Upscale, upscale_of_0_1_0, upscaling
from cdzoo.ops.channels import select_channels
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.types import Latent
    from cdzoo.weights.enums import WeightsLike

__all__ = ["MobileNetV245", "mobilenet_v2_45"]

# channels, blocks, stride of the first: table 1b, with MobileNetV2's fifth row
_ROWS = ((32, 3, 1), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_FIRST_BLOCK = 4  # MobileNetV2 calls its stem 0 and the blocks that are left out 1 to 3
_LAST_CHANNELS = 1280
_EXPANSION = 6
_STAGES = {"features.6": (4, 6), "features.13": (7, 13), "features.17": (14, 17), "features.18": (18, 18)}


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 to six times the channels, depthwise 3x3, linear 1x1; names as in torchvision.

    ``(B, in_channels, h, w)`` -> ``(B, out_channels, ceil(h / stride), ceil(w / stride))``; the input is added where
    the shapes are equal.

    Args:
        in_channels: ``C`` of the input.
        out_channels: ``C`` of the output.
        stride: of the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        hidden = _EXPANSION * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            _conv_bn_relu6(in_channels, hidden, 1),
            _conv_bn_relu6(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, h', w')``."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV245(LatentClassifier):
    """MobileNetV2-45, a classifier of latents; blocks carry torchvision's names, ``features.4`` to ``features.18``.

    Features are ``(B, num_features, h', w')`` with ``h' = ceil(2 h / 4)``, ``ceil(h / 4)`` without upscaling; and
    likewise ``w'``.

    Args:
        in_channels: latent channels ``C`` of the codec.
        num_classes: logits.
        width: multiplies all channel counts but the input's, rounded to multiples of 8; the last 1280 too.
        upscale: ``"pixel_shuffle"``, ``"deconv"``, or ``None`` to leave the latent's size.
        upscaled_channels: of the map that the first block reads; ``width`` multiplies it too.
        channels: the channels that are read, of the ``in_channels`` that the latent has; all of them unless given.
        dropout: probability in front of ``fc``.
        latent_stride: pixels per latent sample; recorded so that codecs can be checked against it.

    Raises:
        ValueError: an argument that is none of these.
    """

    derived_arguments = staticmethod(upscale_of_0_1_0)

    def __init__(
        self,
        *,
        in_channels: int = 256,
        num_classes: int = 1000,
        width: float = 1.0,
        upscale: Upscale | None = "pixel_shuffle",
        upscaled_channels: int = 24,
        channels: Sequence[int] | None = None,
        dropout: float = 0.2,
        latent_stride: int = 16,
    ) -> None:
        super().__init__(in_channels=in_channels, latent_stride=latent_stride)
        check_size("upscaled_channels", upscaled_channels)
        self.select = select_channels(channels, of=in_channels)
        read = in_channels if channels is None else len(channels)
        c = scaled_channels(upscaled_channels, width)
        self.upscale = upscaling(read, upscale)
        self.match = nn.Sequential(nn.Conv2d(read, c, 1, bias=False), nn.BatchNorm2d(c))
        blocks: list[nn.Module] = []
        for planes, num_blocks, first_stride in _ROWS:
            for stride in (first_stride, *[1] * (num_blocks - 1)):
                blocks.append(InvertedResidual(c, scaled_channels(planes, width), stride=stride))
                c = scaled_channels(planes, width)
        num_features = scaled_channels(_LAST_CHANNELS, width)
        blocks.append(_conv_bn_relu6(c, num_features, 1))
        self.features = nn.Sequential(OrderedDict((str(n), block) for n, block in enumerate(blocks, _FIRST_BLOCK)))
        c6, c13, c17 = (scaled_channels(planes, width) for planes in (32, 96, 320))
        self.set_stages(
            ("features.6", c6, 1),
            ("features.13", c13, 2),
            ("features.17", c17, 2),
            ("features.18", num_features, 1),
            enlarged=1 if isinstance(self.upscale, nn.Identity) else 2,
        )
        self.set_classifier(num_features, num_classes)
        self.dropout = nn.Dropout(dropout)
        init_resnet_weights(self)
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def forward_stem(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)``, or a ``Latent`` -> the input of block 4, ``(B, upscaled_channels, h', w')``."""
        x, _ = self.check_input(y_hat, scales)
        x = x if self.select is None else self.select(x)
        matched: Tensor = self.match(self.upscale(x))
        return matched

    def stage_modules(self, stage: str) -> list[str]:
        """The blocks up to the one that the stage is called after, the last of its size."""
        first, last = _STAGES[stage]
        return [f"features.{block}" for block in range(first, last + 1)]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h', w')`` -> logits ``(B, num_classes)``; with ``pre_logits`` the pooled features."""
        x: Tensor = self.avgpool(features).flatten(1)
        return x if pre_logits else self.fc(self.dropout(x))

    def load_torchvision(self, state_dict: Mapping[str, Tensor], *, classifier: bool = True) -> LoadedNames:
        """Copy the tensors that MobileNetV2 has in common with this network: all behind its entrance.

        Of the first block, which reads ``upscaled_channels``, only tensors of equal shape are copied: with the 24 of
        MobileNetV2, all of them. All else that has a torchvision name must be there and fit.

        Args:
            state_dict: of a ``torchvision.models.mobilenet_v2`` of this network's width.
            classifier: copy ``fc`` too, ``classifier.1`` there. With ``False`` the present one stays.

        Returns:
            the names that were taken, those of ``state_dict`` that have no place here (``features.0`` to
            ``features.3``), and those that keep their values (``upscale``, ``match``).

        Raises:
            WeightsError: a tensor is missing or has another shape. Nothing has been copied then.
        """
        own, first = self.state_dict(), f"features.{_FIRST_BLOCK}."
        names = [
            (name, name)
            for name in own
            if name.startswith("features.") and (not name.startswith(first) or fits(own, state_dict, name))
        ]
        if classifier:
            names += [(name, name.replace("fc.", "classifier.1.")) for name in own if name.startswith("fc.")]
        return load_named(
            self,
            state_dict,
            names,
            source="torchvision's mobilenet_v2",
            way_out="use width=1.0 for the blocks, and classifier=False for another number of classes",
        )


class MobileNetV2_45_Weights(WeightsEnum):
    """Weights of :func:`mobilenet_v2_45`."""

    IMAGENETTE_W05 = Weights("mobilenet-v2-45-w05-imagenette")
    DEFAULT = IMAGENETTE_W05


class MobileNetV245Options(LatentOptions, total=False):
    """Options of the builder; see :class:`MobileNetV245`."""

    upscale: Upscale | None
    upscaled_channels: int
    channels: Sequence[int] | None
    dropout: float


@register_model(MobileNetV245, weights=MobileNetV2_45_Weights, num_params=5_854_568)
def mobilenet_v2_45(*, weights: WeightsLike = None, **options: Unpack[MobileNetV245Options]) -> MobileNetV245:
    """MobileNetV2-45 over latents of any size: 5.85 M parameters, 2.36 M of them in the pixel shuffle's convolution."""
