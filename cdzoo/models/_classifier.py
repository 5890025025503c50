"""What all convolutional classifiers share: stages, the linear head, its replacement, the check of a latent input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.fx
from torch import Tensor, nn

from cdzoo._registry import check_sizes
from cdzoo.ops.attention import AttentionPool2d
from cdzoo.types import Latent

if TYPE_CHECKING:
    from cdzoo.transforms import LatentTransform

__all__ = ["Classifier", "LatentClassifier", "init_resnet_weights", "linear_classifier", "taken_indices"]

_NAMES_OF_CLASSES = ("classes", "class_names", "wnids")


def linear_classifier(num_features: int, num_classes: int) -> nn.Module:
    """A linear layer, or the identity for ``num_classes=0``.

    Raises:
        ValueError: ``num_classes`` is no integer, or negative.
    """
    check_sizes({"num_classes": num_classes})
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()


def init_resnet_weights(model: nn.Module) -> None:
    """torchvision's initialisation of ResNets: convolutions normal with He's fan-out variance, the rest as PyTorch.

    Attention pooling, whose convolutions have one output and a softmax behind it, keeps its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in model.modules():
        if isinstance(module, AttentionPool2d):
            module.reset_parameters()


def taken_indices(indices: int | Sequence[int] | None, of: int) -> list[int]:
    """Which of ``of`` stages are meant, as timm has it: all for ``None``, the last ``n``, or those listed, -1 the last.

    Raises:
        ValueError: there is no such stage.
    """
    if indices is None:
        return list(range(of))
    listed = range(-indices, 0) if isinstance(indices, int) else indices
    if not listed or not all(-of <= i < of for i in listed):
        raise ValueError(f"indices={indices!r}: the network has {of} stages; give how many of the last, or a list")
    return [i % of for i in listed]


class Classifier(nn.Module, ABC):
    """Stages, global average pooling and one linear layer (``avgpool``, ``fc``).

    Attributes:
        in_channels: ``C`` of the input.
        latent_stride: pixels per latent sample of the input, ``None`` for pixels.
        uses_scales: whether the network reads the hyperprior's standard deviations.
        num_features: channels in front of the linear layer.
        num_classes: logits; 0 after ``reset_classifier(0)``.
        feature_info: a dictionary for each map that :meth:`forward_intermediates` gives, as in timm: ``num_chs``
            (channels), ``reduction`` (pixels of the *image* per sample of the map, for latents too) and ``module``.
    """

    feature_info: list[dict[str, Any]]
    in_channels: int
    latent_stride: int | None = None
    uses_scales: bool = False
    num_features: int
    num_classes: int
    _pooling: str = "avg"  # in timm's words
    avgpool: nn.Module
    fc: nn.Module
    # set by builders and by weights, where there are any
    builder: str
    arguments: dict[str, Any]
    meta: dict[str, Any]

    def _enter(self, x: Any, scales: Tensor | None = None) -> Tensor:
        """What the first stage reads, from what the network reads."""
        raise NotImplementedError(f"{type(self).__name__} has not said of which stages it consists")

    def _add_stages(self, *stages: tuple[str, int, int], enlarged: int = 1) -> None:
        """Say what follows what: name of the module, channels that it puts out, and its stride.

        ``enlarged``: by how much the entrance enlarges a latent.
        """
        self.feature_info, reduction = [], max(1, (self.latent_stride or 1) // enlarged)
        for module, channels, stride in stages:
            reduction *= stride
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": module})

    def _stage_modules(self, stage: str) -> list[str]:
        """Names of the modules that a stage consists of, in order."""
        return [stage]

    def _run_stages(self, x: Tensor, first: int = 0, end: int | None = None) -> Tensor:
        for info in self.feature_info[first:end]:
            for name in self._stage_modules(info["module"]):
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
            stop_early: don't run what lies behind the last of them; with ``intermediates_only`` it is never run.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the maps alone.
            scales: as in ``forward``, where ``x`` is a tensor of latents.

        Returns:
            the maps ``(B, num_chs, h', w')`` in the order of the network (of a JPEG network that is not ``"fused"``,
            coefficient maps); in front of them, unless ``intermediates_only``, what ``forward_features`` returns, or
            what the last stage that was run puts out.

        Raises:
            ValueError: no such map or format, or as ``forward``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: the maps of this network are NCHW")
        taken = taken_indices(indices, len(self.feature_info))
        end = 1 + max(taken) if stop_early or intermediates_only else len(self.feature_info)
        maps = []
        x = self._enter(x, scales)
        for index in range(end):
            x = self._run_stages(x, index, index + 1)
            if index in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last of the maps that are wanted, for good; the arguments are timm's.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: for Transformers; without effect here.
            prune_head: drop the classifier as well.

        Returns:
            the numbers of the maps.

        Raises:
            ValueError: no such map.
        """
        taken = taken_indices(indices, len(self.feature_info))
        for info in self.feature_info[1 + max(taken) :]:
            for name in self._stage_modules(info["module"]):
                owner, _, child = name.rpartition(".")
                delattr(self.get_submodule(owner), child)
        self.feature_info = self.feature_info[: 1 + max(taken)]
        self.num_features = self.feature_info[-1]["num_chs"]
        if prune_head:
            self.reset_classifier(0)
        return taken

    def _add_head(self, num_features: int, num_classes: int) -> None:
        self.num_features, self.num_classes = num_features, num_classes
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = linear_classifier(num_features, num_classes)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h', w')`` -> logits ``(B, num_classes)``; with ``pre_logits`` what ``fc`` reads."""
        x: Tensor = self.avgpool(features).flatten(1)
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        """The last linear layer; ``nn.Identity`` after ``reset_classifier(0)``."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a freshly initialised classifier in place; with 0 classes the network returns pooled features.

        What ``meta`` says of the former classes (their names, their identifiers) is dropped. The arguments are timm's.

        Args:
            num_classes: logits.
            global_pool: the pooling that the network has, which stays: ``"avg"``, of Transformers ``"token"``.

        Raises:
            ValueError: ``num_classes`` is no integer, or negative; another pooling.
        """
        if global_pool not in (None, self._pooling):
            raise ValueError(
                f"global_pool={global_pool!r}: this network keeps its pooling, {self._pooling!r}; leave it out, or "
                "pool what forward_features returns."
            )
        reference = next(self.parameters())
        self.fc = linear_classifier(self.num_features, num_classes).to(reference.device, reference.dtype)
        self.fc.train(self.training)
        self.num_classes = num_classes = int(num_classes)
        arguments = getattr(self, "arguments", None)
        if arguments is not None:
            arguments["num_classes"] = num_classes
        meta = getattr(self, "meta", None)
        if meta is not None:
            self.meta = {key: value for key, value in meta.items() if key not in _NAMES_OF_CLASSES}


class LatentClassifier(Classifier):
    """A classifier that reads a latent, and its scales where ``uses_scales``."""

    latent_stride: int
    # set by weights
    codec_fingerprint: str | None
    transforms: LatentTransform

    @abstractmethod
    def forward_features(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, num_features, h', w')``."""

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

    def _unpack(self, y_hat: Tensor | Latent, scales: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The two tensors of a latent, checked; ``None`` in place of scales that the network does not use."""
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
