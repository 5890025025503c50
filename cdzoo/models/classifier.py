"""Bases of the classifiers: stages, the linear head and its replacement, the check of the input."""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypedDict

import torch.fx
from torch import Tensor, nn

from cdzoo._checks import check_size
from cdzoo.ops.feature_adaptation import AttentionPool2d
from cdzoo.transforms import CoefficientTransform, InputTransform
from cdzoo.types import JPEGCoefficients, Latent, Origin

if TYPE_CHECKING:
    from cdzoo.jpeg.nn.entrance import JPEGEntrance

__all__ = [
    "Classifier",
    "ClassifierOptions",
    "JPEGClassifier",
    "LatentClassifier",
    "LatentOptions",
    "init_resnet_weights",
    "linear_classifier",
    "record_classes",
    "selected_stages",
]

_NAMES_OF_CLASSES = ("classes", "class_names", "wnids")


class ClassifierOptions(TypedDict, total=False):
    """Options of every classifier's builder."""

    num_classes: int
    in_channels: int
    width: float


class LatentOptions(ClassifierOptions, total=False):
    """Options of every builder of a network over latents."""

    latent_stride: int


def linear_classifier(num_features: int, num_classes: int) -> nn.Module:
    """A linear layer, or the identity for ``num_classes=0``.

    Raises:
        ValueError: ``num_classes`` is not an integer, or negative.
    """
    check_size("num_classes", num_classes, smallest=0)
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()


def init_resnet_weights(model: nn.Module) -> None:
    """Initialize as torchvision's ResNets: convolutions normal with He's fan-out variance, the rest as PyTorch.

    Attention pooling, whose convolutions have one output followed by a softmax, keeps its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in model.modules():
        if isinstance(module, AttentionPool2d):
            module.reset_parameters()


def selected_stages(indices: int | Sequence[int] | None, of: int) -> list[int]:
    """Numbers of stages as timm selects them: all for ``None``, the last ``n``, or those listed, -1 the last.

    Raises:
        ValueError: there is no such stage.
    """
    if indices is None:
        return list(range(of))
    listed = range(-indices, 0) if isinstance(indices, int) else indices
    if not listed or not all(-of <= i < of for i in listed):
        raise ValueError(f"indices={indices!r}: the network has {of} stages; give how many of the last, or a list")
    return [i % of for i in listed]


def record_classes(model: Any, num_classes: int) -> None:
    """State a new number of classes in ``num_classes`` and ``origin``, and drop the names of classes from ``meta``."""
    model.num_classes = num_classes
    if model.origin is not None:
        model.origin = model.origin.with_arguments(num_classes=num_classes)
    model.meta = {key: value for key, value in model.meta.items() if key not in _NAMES_OF_CLASSES}


class Classifier(nn.Module, ABC):
    """Stages, global average pooling and one linear layer (``avgpool``, ``fc``).

    A subclass calls :meth:`set_stages` and :meth:`set_classifier` in its constructor, and provides
    :meth:`forward_stem`.

    Args:
        in_channels: ``C`` of the input.

    Attributes:
        in_channels: ``C`` of the input.
        latent_stride: pixels per latent sample of the input, ``None`` for pixels.
        uses_scales: the network reads the hyperprior's standard deviations.
        num_features: channels in front of the linear layer.
        num_classes: logits; 0 after ``reset_classifier(0)``.
        feature_info: a dictionary for each map that :meth:`forward_intermediates` gives, as in timm: ``num_chs``
            (channels), ``reduction`` (pixels of the *image* per sample of the map, for latents too) and ``module``.
        global_pool: the pooling in front of the linear layer, in timm's words.
        origin: how a builder made the module, see :class:`cdzoo.types.Origin`; ``None`` without a builder.
        meta: the facts of the model card that the weights came with; ``{}`` without weights.
        transforms: the transform of the input that the weights were trained with, or ``None``.
        pipeline_tag: the task, in the words of the Hugging Face Hub.
    """

    feature_info: list[dict[str, Any]]
    in_channels: int
    latent_stride: int | None = None
    uses_scales: bool = False
    num_features: int
    num_classes: int
    global_pool: str = "avg"
    avgpool: nn.Module
    fc: nn.Module
    origin: Origin | None = None
    meta: dict[str, Any]
    transforms: InputTransform | None = None
    codec_fingerprint: str | None = None
    pipeline_tag: ClassVar[str] = "image-classification"

    def __init__(self, *, in_channels: int) -> None:
        super().__init__()
        check_size("in_channels", in_channels)
        self.in_channels, self.meta = in_channels, {}

    def forward_stem(self, x: Any, scales: Tensor | None = None) -> Tensor:
        """The network's input -> the input of its first stage, ``(B, C, h, w)``."""
        raise NotImplementedError(
            f"define forward_stem(x, scales) in {type(self).__name__}; it returns the input of the first stage"
        )

    def set_stages(self, *stages: tuple[str, int, int], enlarged: int = 1) -> None:
        """State the stages in their order, as name of the module, channels of its output, and its stride.

        Args:
            *stages: one after the other.
            enlarged: the factor by which the stem enlarges a latent.
        """
        self.feature_info, reduction = [], max(1, (self.latent_stride or 1) // enlarged)
        for module, channels, stride in stages:
            reduction *= stride
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": module})

    def for_inference(self, *, inplace: bool = False) -> Self:
        """A copy, or with ``inplace`` this network, for the fastest run on CPUs; its logits differ by rounding only.

        It is in evaluation mode. The EfficientNets fold their batch norms into the convolutions
        (``cdzoo.models._folding``). Names of parameters change then, so the result is not for training or saving.

        Args:
            inplace: change and return this network itself, which saves the time and memory of a copy.

        Returns:
            a network of the same class, in evaluation mode.
        """
        return (self if inplace else copy.deepcopy(self)).eval()

    def stage_modules(self, stage: str) -> list[str]:
        """Names of the modules that a stage consists of, in order."""
        return [stage]

    def run_stages(self, x: Tensor, first: int = 0, end: int | None = None) -> Tensor:
        """``(B, C, h, w)`` -> the output of stages ``first`` to ``end - 1``, by default of all."""
        for info in self.feature_info[first:end]:
            for name in self.stage_modules(info["module"]):
                x = self.get_submodule(name)(x)
        return x

    def forward_intermediates(
        self,
        x: Any,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        scales: Tensor | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of several scales, for detectors and segmenters; the arguments are timm's.

        Args:
            x: what the network reads.
            indices: which maps of ``feature_info``: all for ``None``, the last ``n``, or those listed.
            norm: for Transformers; without effect here.
            stop_early: do not run the layers after the last of them; with ``intermediates_only`` they are never run.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the maps alone.
            scales: as in ``forward``, where ``x`` is a tensor of latents.

        Returns:
            the maps ``(B, num_chs, h', w')`` in the order of the network (of a JPEG network that is not ``"fused"``,
            coefficient maps). Unless ``intermediates_only``, before them the output of ``forward_features``, or of the
            last stage that was run.

        Raises:
            ValueError: no such map or format, or as ``forward``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: the maps of this network are NCHW")
        taken = selected_stages(indices, len(self.feature_info))
        end = 1 + max(taken) if stop_early or intermediates_only else len(self.feature_info)
        maps = []
        x = self.forward_stem(x, scales)
        for index in range(end):
            x = self.run_stages(x, index, index + 1)
            if index in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Delete the stages after the last of the wanted maps; the arguments are timm's.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: for Transformers; without effect here.
            prune_head: drop the classifier as well.

        Returns:
            the numbers of the maps.

        Raises:
            ValueError: no such map.
        """
        taken = selected_stages(indices, len(self.feature_info))
        for info in self.feature_info[1 + max(taken) :]:
            for name in self.stage_modules(info["module"]):
                owner, _, child = name.rpartition(".")
                delattr(self.get_submodule(owner), child)
        self.feature_info = self.feature_info[: 1 + max(taken)]
        self.num_features = self.feature_info[-1]["num_chs"]
        if prune_head:
            self.reset_classifier(0)
        return taken

    def set_classifier(self, num_features: int, num_classes: int) -> None:
        """Add global average pooling and the linear layer; ``num_classes=0`` gives features instead of logits."""
        self.num_features, self.num_classes = num_features, num_classes
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = linear_classifier(num_features, num_classes)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h', w')`` -> logits ``(B, num_classes)``; with ``pre_logits`` the input of ``fc``."""
        x: Tensor = self.avgpool(features).flatten(1)
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        """The last linear layer; ``nn.Identity`` after ``reset_classifier(0)``."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a freshly initialized classifier in place; with 0 classes the network returns pooled features.

        The names of the former classes are dropped from ``meta``. The arguments are timm's.

        Args:
            num_classes: logits.
            global_pool: the pooling of the network, which stays: ``"avg"``, of Transformers ``"token"``.

        Raises:
            ValueError: ``num_classes`` is not an integer, or negative; another pooling.
        """
        if global_pool not in (None, self.global_pool):
            raise ValueError(
                f"global_pool={global_pool!r}: this network keeps its pooling, {self.global_pool!r}; leave it out, or "
                "pool the output of forward_features"
            )
        reference = next(self.parameters())
        self.fc = linear_classifier(self.num_features, num_classes).to(reference.device, reference.dtype)
        self.fc.train(self.training)
        record_classes(self, int(num_classes))


class JPEGClassifier(Classifier):
    """Base of the classifiers that read JPEG coefficients, most of them through an ``entrance``."""

    entrance: JPEGEntrance
    transforms: InputTransform | None = CoefficientTransform()
    unlearned_arguments: ClassVar[tuple[str, ...]] = ("mode", "relu", "num_frequencies", "chroma", "memory_budget")
    """Arguments that weights fit whatever they are: how the network computes."""

    def forward(self, coefficients: JPEGCoefficients) -> Tensor:
        """Logits ``(B, num_classes)`` of a batch of files of one geometry.

        Raises:
            JPEGError: CMYK files, or sampling factors that don't divide each other.
            MemoryError: ``"explicit"`` mode, and maps for this image size above the memory budget.
        """
        return self.forward_head(self.forward_features(coefficients))

    def forward_features(self, coefficients: JPEGCoefficients) -> Tensor:
        """Files to ``(B, num_features, H', W')``; a coefficient map of that shape unless fused."""
        return self.run_stages(self.forward_stem(coefficients))


class LatentClassifier(Classifier):
    """Base of the classifiers that read a latent, and its scales where ``uses_scales``.

    Args:
        in_channels: latent channels ``C`` of the codec.
        latent_stride: pixels per latent sample; recorded, so that :func:`cdzoo.compose` can compare it with the codec.

    Attributes:
        codec_fingerprint: fingerprint of the codec on whose latents the weights were trained; ``None`` if unknown.
    """

    latent_stride: int

    def __init__(self, *, in_channels: int, latent_stride: int = 16) -> None:
        super().__init__(in_channels=in_channels)
        check_size("latent_stride", latent_stride)
        self.latent_stride = latent_stride

    def forward_features(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)``, scales of that shape where used, or a ``Latent`` -> ``(B, num_features, h', w')``."""
        return self.run_stages(self.forward_stem(y_hat, scales))

    def forward(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """Logits of a batch of latents of one size.

        Args:
            y_hat: latent values ``(B, C, h, w)``, ``C = in_channels``, any ``h, w >= 1``; or a
                :class:`~cdzoo.types.Latent`, which brings its own scales.
            scales: the hyperprior's standard deviations ``(B, C, h, w)``. Networks that don't use them ignore them.

        Returns:
            ``(B, num_classes)``.

        Raises:
            ValueError: wrong number of channels, missing scales, or scales of another shape than ``y_hat``.
            TypeError: neither a tensor nor a ``Latent``; scales that are no tensor.
        """
        return self.forward_head(self.forward_features(y_hat, scales))

    def check_input(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The two tensors of a latent, checked; ``None`` in place of scales that the network does not use.

        Raises:
            ValueError, TypeError: as :meth:`forward`.
        """
        if isinstance(y_hat, Latent):
            if scales is not None:
                raise ValueError("scales were given twice: a Latent brings its own; pass the Latent alone")
            y_hat, scales, _ = y_hat
        y_hat = _checked_latent(y_hat, self.in_channels)
        return y_hat, _checked_scales(scales, y_hat) if self.uses_scales else None


@torch.fx.wrap
def _checked_latent(y_hat: Any, in_channels: int) -> Tensor:
    if not isinstance(y_hat, Tensor):
        raise TypeError(
            f"y_hat must be a tensor (B, {in_channels}, h, w) or a Latent, not {type(y_hat).__name__}; of what "
            "codec(x) returns pass output.latent"
        )
    if y_hat.dim() != 4 or y_hat.shape[1] != in_channels:
        raise ValueError(
            f"y_hat has shape {tuple(y_hat.shape)}, this network reads (B, {in_channels}, h, w): take a codec of "
            f"{in_channels} latent channels, or build the network with in_channels of your codec's number"
        )
    return y_hat


@torch.fx.wrap
def _checked_scales(scales: Any, y_hat: Tensor) -> Tensor:
    if scales is None:
        raise ValueError(
            "this network also reads the hyperprior's standard deviations and got none: call model(y_hat, scales), or "
            "pass the Latent of a codec with a hyperprior"
        )
    if not isinstance(scales, Tensor):
        raise TypeError(f"scales must be a tensor of the shape of y_hat, not {type(scales).__name__}")
    if scales.shape != y_hat.shape:
        raise ValueError(
            f"scales have shape {tuple(scales.shape)}, y_hat has {tuple(y_hat.shape)}: they must be equal, so crop and "
            "resize both alike"
        )
    return scales
