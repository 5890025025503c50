"""Semantic segmentation of latents and of pixels: cResNet-d, ResNet-d, and ResNet-41 with the same head.

Sources: Torfason et al., Towards Image Understanding from Deep Compression Without Decoding, ICLR 2018, section 5.1 and
appendix A.5; Wang et al., Learning from the CNN-based Compressed Domain, WACV 2022, section 3.2 (ResNet-41).

A segmenter is a trained classifier with three changes, as in DeepLab:

1. The strides of the last two stages become 1, so that features stay at 1/8 of the image. The 3x3 convolutions of these
   stages are dilated instead (by 2 in conv4, by 4 in conv5), so that each sees the same part of the image as before.
   Parameters do not change.
2. Four dilated 3x3 convolutions, whose outputs are added, replace the linear layer. They give logits at every position.
3. Logits are upsampled to the size of the image.

    y_hat (C, H/8, W/8) ─▶ layer2 ─▶ layer3, dilation 2 ─▶ layer4, dilation 4 (2048, H/8, W/8)
                        ─▶ 3x3 with dilation 6 + 12 + 18 + 24 (classes, H/8, W/8) ─▶ bilinear (classes, H, W)

Example::

    segmenter = Segmenter.from_classifier(cresnet39(weights=...))
    compose(codec, segmenter).from_streams(streams).argmax(1)

The papers leave three details open. Each of the four convolutions has a bias, as in the published code of DeepLab.
Upsampling uses ``align_corners=False``, as torchvision's segmenters do. Wang et al. only say that ResNet-41 is the
backbone of their segmentation networks; here it is changed like the networks of Torfason et al.

Training recipe (Torfason et al., A.5): 20,000 steps of SGD with momentum 0.9 and weight decay 5e-4, batches of 10, a
learning rate of 0.001 (0.01 for the head, see ``parameter_groups``) times ``(1 - step / 20000) ** 0.9``
(``torch.optim.lr_scheduler.PolynomialLR``). Training uses random crops of 320x320 pixels (40x40 latent samples) and
random mirroring. The mean of each channel is subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

import torch.nn.functional as F
from torch import Tensor

from cdzoo.models._segmenter import ASPPHead, LatentSegmenter, Segmenter
from cdzoo.models._state_dict import LoadedNames
from cdzoo.models.cresnet import CResNet, CResNetOptions
from cdzoo.models.latent_resnet import LatentResNet, LatentResNetOptions, Upscale, upscale_of_0_1_0
from cdzoo.models.rgb_resnet import RGBResNet, RGBResNetOptions
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.weights.enums import WeightsLike

__all__ = [
    "ASPPHead",
    "CResNetD",
    "LatentResNetSegmenter",
    "RGBResNetD",
    "Segmenter",
    "cresnet39_d",
    "cresnet51_d",
    "cresnet72_d",
    "resnet41_seg",
    "resnet50_d",
    "resnet71_d",
]


class CResNetD(LatentSegmenter):
    """A cResNet that segments; its features have the size of the latent.

    Args:
        layers: bottlenecks in conv3, conv4 and conv5.
        in_channels, width, use_scales, stride_in_1x1, latent_stride: as in :class:`~cdzoo.models.cresnet.CResNet`.
        num_classes: logits; 21 for PASCAL VOC.
    """

    def __init__(
        self,
        layers: Sequence[int] = (4, 6, 3),
        *,
        in_channels: int = 32,
        num_classes: int = 21,
        width: float = 1.0,
        use_scales: bool = False,
        stride_in_1x1: bool = True,
        latent_stride: int = 8,
    ) -> None:
        net = CResNet(
            layers,
            in_channels=in_channels,
            num_classes=0,
            width=width,
            use_scales=use_scales,
            stride_in_1x1=stride_in_1x1,
            latent_stride=latent_stride,
        )
        super().__init__(net, (net.layer3, net.layer4), num_classes=num_classes, output_stride=latent_stride)


class LatentResNetSegmenter(LatentSegmenter):
    """A ResNet-41 that segments; its features have the size of the upscaled latent.

    Args:
        in_channels, width, upscale, channels, stride_in_1x1, latent_stride: as in
            :class:`~cdzoo.models.latent_resnet.LatentResNet`.
        num_classes: logits; 21 for PASCAL VOC.

    Raises:
        ValueError: an argument that is none of these, or an odd ``latent_stride`` together with ``upscale``.
    """

    derived_arguments = staticmethod(upscale_of_0_1_0)

    def __init__(
        self,
        *,
        in_channels: int = 256,
        num_classes: int = 21,
        width: float = 1.0,
        upscale: Upscale | None = "pixel_shuffle",
        channels: Sequence[int] | None = None,
        stride_in_1x1: bool = False,
        latent_stride: int = 16,
    ) -> None:
        net = LatentResNet(
            in_channels=in_channels,
            num_classes=0,
            width=width,
            upscale=upscale,
            channels=channels,
            stride_in_1x1=stride_in_1x1,
            latent_stride=latent_stride,
        )
        factor = 1 if upscale is None else 2
        if latent_stride % factor:
            raise ValueError(f"latent_stride={latent_stride} must be even where the latent is upscaled by two")
        super().__init__(net, (net.layer3, net.layer4), num_classes=num_classes, output_stride=latent_stride // factor)


class RGBResNetD(Segmenter):
    """A ResNet that segments pixels; its features are at 1/8 of the image.

    Args:
        layers: bottlenecks in conv2, conv3, conv4 and conv5.
        in_channels, width, stride_in_1x1: as in :class:`~cdzoo.models.rgb_resnet.RGBResNet`.
        num_classes: logits; 21 for PASCAL VOC.
    """

    backbone: RGBResNet

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        *,
        in_channels: int = 3,
        num_classes: int = 21,
        width: float = 1.0,
        stride_in_1x1: bool = True,
    ) -> None:
        net = RGBResNet(layers, in_channels=in_channels, num_classes=0, width=width, stride_in_1x1=stride_in_1x1)
        super().__init__(net, (net.layer3, net.layer4), num_classes=num_classes, output_stride=8)

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> LoadedNames:
        """As :meth:`Segmenter.load_classifier`; torchvision's state dict needs ``stride_in_1x1=False``.

        Raises:
            ValueError: a state dict of torchvision, and strides in the 1x1 convolutions.
            WeightsError: a tensor is missing or has another shape. Nothing has been copied then.
        """
        self.backbone.check_version(getattr(state_dict, "_metadata", {}).get("", {}).get("version"))
        return super().load_classifier(state_dict)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, num_features, ceil(H / 8), ceil(W / 8))``."""
        return self.backbone.forward_features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)``, normalized as the weights expect, any size -> ``(B, num_classes, H, W)``.

        Raises:
            ValueError: wrong number of channels.
        """
        logits = self._upsample(self.forward_head(self.forward_features(x)), None)
        # negative padding crops like a slice, but torch.export needs no proof that there is something to crop
        bottom, right = (-x.shape[axis] % self.output_stride for axis in (2, 3))
        return F.pad(logits, (0, -right, 0, -bottom))


# -- weights and builders ----------------------------------------------------------------------------------------


class cResNet39_D_Weights(WeightsEnum):
    """Weights of :func:`cresnet39_d`."""

    CAMVID_W0125 = Weights("cresnet39-d-w0125-torfason2018-camvid")
    DEFAULT = CAMVID_W0125


class cResNet51_D_Weights(WeightsEnum):
    """Weights of :func:`cresnet51_d`: none published yet."""


class cResNet72_D_Weights(WeightsEnum):
    """Weights of :func:`cresnet72_d`: none published yet."""


class ResNet50_D_Weights(WeightsEnum):
    """Weights of :func:`resnet50_d`: none published yet."""


class ResNet71_D_Weights(WeightsEnum):
    """Weights of :func:`resnet71_d`: none published yet."""


class ResNet41_Seg_Weights(WeightsEnum):
    """Weights of :func:`resnet41_seg`: none published yet."""


@register_model(CResNetD, weights=cResNet39_D_Weights, layers=(4, 6, 3), num_params=24_687_700)
def cresnet39_d(*, weights: WeightsLike = None, **options: Unpack[CResNetOptions]) -> CResNetD:
    """cResNet-39-d, segmentation from latents with the layers of cResNet-39."""


@register_model(CResNetD, weights=cResNet51_D_Weights, layers=(4, 10, 3), num_params=29_156_436)
def cresnet51_d(*, weights: WeightsLike = None, **options: Unpack[CResNetOptions]) -> CResNetD:
    """cResNet-51-d, segmentation from latents with the layers of cResNet-51."""


@register_model(CResNetD, weights=cResNet72_D_Weights, layers=(4, 17, 3), num_params=36_976_724)
def cresnet72_d(*, weights: WeightsLike = None, **options: Unpack[CResNetOptions]) -> CResNetD:
    """cResNet-72-d, segmentation from latents with the layers of cResNet-72."""


@register_model(RGBResNetD, weights=ResNet50_D_Weights, layers=(3, 4, 6, 3), num_params=25_056_404)
def resnet50_d(*, weights: WeightsLike = None, **options: Unpack[RGBResNetOptions]) -> RGBResNetD:
    """ResNet-50-d, segmentation of pixels with the layers of ResNet-50."""


@register_model(RGBResNetD, weights=ResNet71_D_Weights, layers=(3, 4, 13, 3), num_params=32_876_692)
def resnet71_d(*, weights: WeightsLike = None, **options: Unpack[RGBResNetOptions]) -> RGBResNetD:
    """ResNet-71-d, segmentation of pixels with the layers of ResNet-71."""


@register_model(LatentResNetSegmenter, weights=ResNet41_Seg_Weights, num_params=27_256_404)
def resnet41_seg(*, weights: WeightsLike = None, **options: Unpack[LatentResNetOptions]) -> LatentResNetSegmenter:
    """Segmentation from latents of stride 16 with the layers of ResNet-41 (Wang et al.)."""
