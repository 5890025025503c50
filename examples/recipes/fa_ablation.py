"""The networks of table 3 of Deng & Karam (arXiv:2305.08000, section 5.7), put together from FA-cResNet-39's parts.

Each name is ``experiment=setting``; the setting that the paper chose is what :func:`cdzoo.models.fa_cresnet39` builds.
What the table leaves open: attention that is alone where channels change is followed by a 1x1 convolution with batch
norm and ReLU; ``max&avg`` adds the two; without scales nothing is left to be fused, and the fusion goes too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cdzoo.models import cresnet39, fa_cresnet39, resnet50
from cdzoo.models.fa_cresnet import FAcResNet
from cdzoo.ops import ChannelAttention, FeatureAdaptation
from cdzoo.types import Latent

ABLATIONS = {
    "input": ["y_hat"],
    "effect": ["fa_resnet"],
    "module": ["cau", "feu"],
    "position": ["post"],
    "pooling": ["max", "avg", "max&avg", "1att"],
    "cau_position": ["skip", "inner", "post"],
    "cau": ["scale", "bias"],
    "bottleneck": ["1fc", "r1", "r2", "r4", "r8", "r32", "r64"],
    "feu": ["2/2/2", "1/2/3", "3/3/3", "2/3/4", "4/4/4", "3/4/5", "5/5/5", "4/5/6"],
}
NAMES = [f"{experiment}={setting}" for experiment, settings in ABLATIONS.items() for setting in settings]


class WithoutScales(FAcResNet):
    """FA-cResNet-39 that reads the latent alone."""

    uses_scales = False

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        del self.fa_scales, self.fusion

    def forward_features(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, num_features, ceil(h / 4), ceil(w / 4))``."""
        x: Tensor = self.layer2(self.fa_y_hat(self._unpack(y_hat, scales)[0]))
        return self.layer4(self.layer3(x))


class Pool(nn.Module):
    """``(B, C, h, w)`` -> ``(B, C)`` without weights: ``"max"``, ``"avg"``, or ``"max&avg"`` for their sum."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, f: Tensor) -> Tensor:
        """One value for each map."""
        parts = {"max": f.amax((2, 3)), "avg": f.mean((2, 3))}
        return sum((parts[name] for name in self.kind.split("&")), torch.zeros_like(parts["max"]))


class PartOfAffine(nn.Module):
    """Attention with its weight (``"scale"``) or its bias alone."""

    def __init__(self, attention: ChannelAttention, part: str) -> None:
        super().__init__()
        self.part = part
        kind = "weight" if part == "scale" else "bias"
        self.pool, self.mlp = getattr(attention, f"{kind}_pool"), getattr(attention, f"{kind}_mlp")

    def forward(self, f: Tensor) -> Tensor:
        """``w f`` or ``f + b``."""
        vector = self.mlp(self.pool(f))[:, :, None, None]
        return vector.sigmoid() * f if self.part == "scale" else f + vector


class MovedAttention(nn.Module):
    """Feature enhancement with the attention in its skip connection, before its addition, or behind it."""

    def __init__(self, fa: FeatureAdaptation, place: str) -> None:
        super().__init__()
        self.place, self.enhancement = place, fa.enhancement
        out_channels = fa.enhancement.expand[0].out_channels
        self.attention = fa.attention if place == "skip" else ChannelAttention(out_channels)

    def forward(self, f: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, h, w)``."""
        e = self.enhancement
        if self.place == "post":
            return self.attention(e(f))
        enhanced = e.expand(e.convs(e.reduce(f)))
        if self.place == "skip":
            return e.relu(enhanced + e.skip(self.attention(f)))
        return e.relu(self.attention(enhanced) + e.skip(f))


def with_adaptation(stage: nn.Sequential, position: int, num_convs: int) -> nn.Sequential:
    """A stage of bottlenecks with an adaptation module behind so many of them."""
    blocks = list(stage.named_children())
    channels = blocks[-1][1].conv3.out_channels
    fa = ("fa", FeatureAdaptation(channels, channels, num_convs=num_convs))
    return nn.Sequential(OrderedDict([*blocks[:position], fa, *blocks[position:]]))


def build_ablation(name: str, *, num_convs: tuple[int, int, int], **sizes: Any) -> nn.Module:
    """A network of table 3; ``effect=fa_resnet`` reads images, all others latents.

    Args:
        name: one of :data:`NAMES`.
        num_convs: of the enhancement units in layers 2, 3 and 4, unless the name says it.
        sizes: ``in_channels``, ``num_classes``, ``width``, ``latent_stride``.
    """
    experiment, _, setting = name.partition("=")
    if setting not in ABLATIONS.get(experiment, []):
        raise ValueError(f"no ablation {name!r} in table 3; known are {', '.join(NAMES)}.")
    if experiment == "feu":
        return fa_cresnet39(num_convs=tuple(map(int, setting.split("/"))), **sizes)
    if experiment == "input":
        return WithoutScales(num_convs=num_convs, **sizes)
    if experiment == "effect":
        pixel = {key: sizes[key] for key in ("num_classes", "width") if key in sizes}
        model: nn.Module = resnet50(stride_in_1x1=False, **pixel)
        for layer, n in zip((1, 2, 3, 4), (num_convs[0], *num_convs), strict=True):
            setattr(model, f"layer{layer}", with_adaptation(getattr(model, f"layer{layer}"), 1, n))
        return model
    if experiment == "position":
        model = cresnet39(use_scales=True, stride_in_1x1=False, **sizes)
        for layer, n in zip((2, 3, 4), num_convs, strict=True):
            stage = getattr(model, f"layer{layer}")
            setattr(model, f"layer{layer}", with_adaptation(stage, len(stage), n))
        return model
    model = fa_cresnet39(num_convs=num_convs, **sizes)
    change = _CHANGES[experiment]
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, FeatureAdaptation):
                setattr(parent, child_name, change(child, setting))
    return model


def _one_unit(fa: FeatureAdaptation, setting: str) -> nn.Module:
    if setting == "feu":
        fa.attention = nn.Identity()  # type: ignore[assignment]
    else:
        into, out = fa.enhancement.reduce[0].in_channels, fa.enhancement.expand[0].out_channels
        projection = [nn.Conv2d(into, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        fa.enhancement = nn.Identity() if into == out else nn.Sequential(*projection)  # type: ignore[assignment]
    return fa


def _pooling(fa: FeatureAdaptation, setting: str) -> nn.Module:
    attention = fa.attention
    if setting == "1att":
        attention.bias_pool = attention.weight_pool
    else:
        attention.weight_pool, attention.bias_pool = Pool(setting), Pool(setting)  # type: ignore[assignment]
    return fa


def _cau(fa: FeatureAdaptation, setting: str) -> nn.Module:
    fa.attention = PartOfAffine(fa.attention, setting)  # type: ignore[assignment]
    return fa


def _bottleneck(fa: FeatureAdaptation, setting: str) -> nn.Module:
    channels = fa.enhancement.reduce[0].in_channels
    if setting == "1fc":
        fa.attention.weight_mlp = nn.Linear(channels, channels)  # type: ignore[assignment]
        fa.attention.bias_mlp = nn.Linear(channels, channels)  # type: ignore[assignment]
    else:
        fa.attention = ChannelAttention(channels, reduction=int(setting[1:]))
    return fa


_CHANGES: dict[str, Callable[[FeatureAdaptation, str], nn.Module]] = {
    "module": _one_unit,
    "pooling": _pooling,
    "cau_position": MovedAttention,
    "cau": _cau,
    "bottleneck": _bottleneck,
}
