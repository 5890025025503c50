"""Parts of all segmenters: strides turned into dilations, the head, and logits at the size of the image.

Sources: Chen et al., DeepLab, TPAMI 2018; Torfason et al., ICLR 2018, section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from cdzoo._checks import check_size
from cdzoo._registry import listed
from cdzoo.models._resnet import Bottleneck
from cdzoo.models._state_dict import LoadedNames, load_named
from cdzoo.models.classifier import Classifier, LatentClassifier, record_classes
from cdzoo.transforms import InputTransform, LatentTransform
from cdzoo.types import Latent, Origin

__all__ = ["ASPPHead", "LatentSegmenter", "Segmenter", "strides_to_dilations"]

DILATIONS = (6, 12, 18, 24)


def strides_to_dilations(stages: Iterable[nn.Module]) -> None:
    """Set all strides of stages to 1, and dilate the 3x3 convolutions that follow instead.

    Parameters do not change. At every ``s``-th position, where ``s`` is the product of the strides, the output is the
    output of the stages with strides. A 3x3 convolution that has a stride of its own therefore gets the dilation of
    the layers before it; a 3x3 convolution after a strided 1x1 convolution gets the larger dilation.

    Args:
        stages: one behind the other; changed in place.
    """
    dilation = 1
    for stage in stages:
        for block in stage.children():
            assert isinstance(block, Bottleneck)
            before = dilation
            dilation *= block.conv1.stride[0] * block.conv2.stride[0]
            own = before if block.conv2.stride[0] > 1 else dilation
            block.conv2.dilation = block.conv2.padding = (own, own)
            block.conv1.stride = block.conv2.stride = (1, 1)
            if block.downsample is not None:
                cast(nn.Conv2d, block.downsample[0]).stride = (1, 1)


class ASPPHead(nn.Module):
    """The head of DeepLab v2: the sum of 3x3 convolutions to the classes, each with its own dilation.

    ``(B, C, h, w)`` -> ``(B, num_classes, h, w)``. It replaces the linear layer of the classifier.

    Args:
        in_channels: ``C`` of the features.
        num_classes: logits.
        rates: dilation of each convolution.
    """

    def __init__(self, in_channels: int, num_classes: int, *, rates: Sequence[int] = DILATIONS) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )
        for conv in self.convs:
            nn.init.normal_(cast(Tensor, conv.weight), std=0.01)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, num_classes, h, w)``."""
        first, *others = (conv(features) for conv in self.convs)
        logits: Tensor = sum(others, start=first)
        return logits


class Segmenter(nn.Module):
    """A classifier's layers without their last strides (``backbone``), and a head at every position (``classifier``).

    Attributes:
        in_channels: ``C`` of the input.
        latent_stride: pixels per latent sample of the input, ``None`` for pixels.
        uses_scales: whether the network reads the hyperprior's standard deviations.
        output_stride: pixels per position of the features, in each direction.
        num_features: channels of the features.
        num_classes: logits; 0 after ``reset_classifier(0)``.
        origin, meta, transforms, codec_fingerprint, pipeline_tag: as of a classifier.
    """

    latent_stride: int | None = None
    origin: Origin | None = None
    meta: dict[str, Any]
    transforms: InputTransform | None = None
    codec_fingerprint: str | None = None
    pipeline_tag: ClassVar[str] = "image-segmentation"

    def __init__(
        self, backbone: Classifier, dilated: Iterable[nn.Module], *, num_classes: int, output_stride: int
    ) -> None:
        super().__init__()
        self.meta = {}
        strides_to_dilations(dilated)
        for info in backbone.feature_info:
            info["reduction"] = min(info["reduction"], output_stride)
        self.backbone, self.output_stride = backbone, output_stride
        self.in_channels, self.uses_scales = backbone.in_channels, backbone.uses_scales
        self.num_features, self.num_classes = backbone.num_features, num_classes
        self.classifier = self._head(num_classes)

    def _head(self, num_classes: int) -> nn.Module:
        check_size("num_classes", num_classes, smallest=0)
        return ASPPHead(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h', w')`` -> logits ``(B, num_classes, h', w')``; with ``pre_logits`` the features."""
        return features if pre_logits else self.classifier(features)

    def get_classifier(self) -> nn.Module:
        """The head; ``nn.Identity`` after ``reset_classifier(0)``."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Put a freshly initialized head in place; with 0 classes the network returns upsampled features.

        The names of the former classes are dropped from ``meta``.

        Raises:
            ValueError: ``num_classes`` is not an integer, or negative.
        """
        reference = next(self.backbone.parameters())
        self.classifier = self._head(num_classes).to(reference.device, reference.dtype).train(self.training)
        record_classes(self, int(num_classes))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for an optimizer: ``{"name": "backbone", "params": ...}`` and ``{"name": "classifier", ...}``.

        Torfason et al. train the head at ten times the rate of the backbone.
        """
        return [
            {"name": name, "params": list(module.parameters())}
            for name, module in (("backbone", self.backbone), ("classifier", self.classifier))
        ]

    def _upsample(self, logits: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """Logits of all pixels: bilinear, each position standing for ``output_stride`` pixels, then cropped."""
        logits = F.interpolate(logits, scale_factor=self.output_stride, mode="bilinear", align_corners=False)
        return logits if image_size is None else logits[..., : image_size[0], : image_size[1]]

    # -- from a classifier -----------------------------------------------------------------------------------------

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> LoadedNames:
        """Take over the parameters of a trained classifier, all of them but its linear layer; the head stays.

        Args:
            state_dict: of the network whose name this one has without its ending, built with the same arguments:
                ``cresnet51`` for ``cresnet51_d``. With ``stride_in_1x1=False``, ``resnet50_d`` takes torchvision's.

        Returns:
            the names that were taken (here, with ``backbone.`` in front), that found no place (``fc``), and that keep
            their values (the head).

        Raises:
            WeightsError: a tensor is missing or has another shape. Nothing has been copied then.
        """
        names = [(f"backbone.{name}", name) for name in self.backbone.state_dict()]
        return load_named(
            self,
            state_dict,
            names,
            source="the classifier that belongs to this segmenter",
            way_out="build both with the same in_channels, width and other arguments",
        )

    @staticmethod
    def from_classifier(model: nn.Module, *, num_classes: int = 21) -> Segmenter:
        """The segmenter that belongs to a trained classifier, with its parameters and a head that is to be trained.

        It is as if made by its own builder (``cresnet39_d`` for a ``cresnet39``), on the device and in the dtype of the
        classifier, and knows the codec that the classifier was trained for. Of a
        :class:`~cdzoo.transforms.LatentTransform` the means are kept but no size: what is segmented keeps its own.

        Args:
            model: a ``cresnet39``, ``cresnet51``, ``cresnet72``, ``resnet41``, ``resnet50`` or ``resnet71``.
            num_classes: of the segmentation, by default the 20 objects and the background of PASCAL VOC.

        Returns:
            the segmenter; it trains or evaluates as the classifier does.

        Raises:
            TypeError: another model.
        """
        model = getattr(model, "_orig_mod", model)  # inside what torch.compile returns
        endings, origin = ("_d", "_seg"), getattr(model, "origin", None)
        known = [e for e in listed("model") if issubclass(e.cls, Segmenter) and e.name.endswith(endings)]
        entry = next((e for e in known if origin and e.name.rpartition("_")[0] == origin.builder), None)
        if entry is None or origin is None or not isinstance(model, Classifier):
            raise TypeError(
                f"{type(model).__name__} has no segmenter; the builders "
                f"{', '.join(e.name.rpartition('_')[0] for e in known)} make networks that have one"
            )
        given = {**origin.arguments, "num_classes": num_classes}
        given = {argument: value for argument, value in given.items() if argument in entry.options}
        segmenter = cast(Segmenter, entry.builder(**given))
        segmenter.load_classifier(model.state_dict())
        reference = next(model.parameters())
        segmenter.to(reference.device, reference.dtype).train(model.training)
        segmenter.codec_fingerprint, transforms = model.codec_fingerprint, model.transforms
        segmenter.transforms = replace(transforms, size=None) if isinstance(transforms, LatentTransform) else transforms
        if segmenter.origin is not None:
            segmenter.origin = replace(segmenter.origin, codec=origin.codec)
        return segmenter


class LatentSegmenter(Segmenter):
    """A segmenter that reads a latent, and its scales where ``uses_scales``."""

    latent_stride: int
    backbone: LatentClassifier

    def __init__(
        self, backbone: LatentClassifier, dilated: Iterable[nn.Module], *, num_classes: int, output_stride: int
    ) -> None:
        super().__init__(backbone, dilated, num_classes=num_classes, output_stride=output_stride)
        self.latent_stride = backbone.latent_stride

    def forward_features(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)``, scales of that shape where used, or a ``Latent`` -> ``(B, num_features, h', w')``.

        ``h' = h latent_stride / output_stride`` and likewise ``w'``.
        """
        return self.backbone.forward_features(y_hat, scales)

    def forward(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """Logits of every pixel.

        Args:
            y_hat: latent values ``(B, C, h, w)``, ``C = in_channels``, any ``h, w >= 1``; or a
                :class:`~cdzoo.types.Latent`, which brings its own scales and the size of its images.
            scales: the hyperprior's standard deviations ``(B, C, h, w)``. Networks that don't use them ignore them.

        Returns:
            ``(B, num_classes, H, W)`` of a ``Latent``, cropped to its ``image_size``; of tensors, with all that the
            latent covers, ``H = h latent_stride`` and ``W = w latent_stride``.

        Raises:
            ValueError: wrong number of channels, missing scales, scales of another shape than ``y_hat``, or a latent
                that does not cover its images.
        """
        image_size = None
        if isinstance(y_hat, Latent):
            image_size, stride = y_hat.image_size, self.latent_stride
            expected = tuple(-(-side // stride) for side in image_size)
            if tuple(y_hat.y_hat.shape[-2:]) != expected:
                raise ValueError(
                    f"latent of {tuple(y_hat.y_hat.shape[-2:])} samples for images of {image_size} pixels, which at "
                    f"{stride} pixels per sample have {expected}: a segmenter reads latents that were not resized; of "
                    "a cropped latent, crop image_size too"
                )
        return self._upsample(self.forward_head(self.forward_features(y_hat, scales)), image_size)
