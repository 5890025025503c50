"""Preprocessing of pretrained CNNs, as timm and torchvision describe it, for networks over JPEG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from cdzoo.transforms import CoefficientTransform

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocessing", "fixed_input_size", "read_preprocessing"]

Values: TypeAlias = float | Sequence[float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in ImageNet, in [0, 1]."""
_CROP_PCT = 0.875  # timm's, where a configuration has none


class Preprocessing(NamedTuple):
    """Preprocessing of a network's images.

    Attributes:
        transforms: resize and crop; ``None`` if they are not known.
        mean: subtracted from pixels in [0, 1].
        std: pixels are divided by it.
    """

    transforms: CoefficientTransform | None
    mean: Values
    std: Values


def read_preprocessing(
    model: nn.Module, transforms: Any, mean: Values | None, std: Values | None, chroma: str
) -> Preprocessing:
    """Preprocessing from its description; explicit ``mean`` and ``std`` win.

    Args:
        model: a network; where no transforms are given, timm's ``pretrained_cfg`` is looked for in it.
        transforms: the result of torchvision's ``weights.transforms()``, the dictionary of timm's
            ``resolve_data_config``, a :class:`cdzoo.transforms.CoefficientTransform`, or ``None``.
        mean, std: one number or one per channel.
        chroma: upsampling of chroma.

    Raises:
        TypeError: transforms of another kind.
        ValueError: mean or std are not known, or a way of resizing that has no equivalent.
    """
    found = Preprocessing(None, (), ())
    if isinstance(transforms, CoefficientTransform):
        found = Preprocessing(transforms, (), ())
    elif isinstance(transforms, Mapping):
        found = _from_timm(transforms, chroma)
    elif transforms is not None:
        found = _from_torchvision(transforms, chroma)
    elif (config := _timm_config(model)) is not None:
        found = _from_timm(config, chroma)
    mean, std = found.mean if mean is None else mean, found.std if std is None else std
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, tuple) and not value:
            raise ValueError(
                f"{name} is not known: a network's outputs are wrong without the {name} of its training; give mean and "
                "std (0 and 1 for pixels in [0, 1]), or transforms: torchvision's weights.transforms() or timm's "
                "resolve_data_config(...)"
            )
    return Preprocessing(found.transforms, mean, std)


def fixed_input_size(model: nn.Module) -> tuple[int, int] | None:
    """``(H, W)`` of the only images that a network takes, such as timm's and torchvision's Vision Transformers."""
    patches = getattr(model, "patch_embed", None)
    if isinstance(getattr(patches, "img_size", None), tuple):
        dynamic = not getattr(patches, "strict_img_size", True) or getattr(patches, "dynamic_img_pad", False)
        return None if dynamic else patches.img_size  # type: ignore[union-attr]
    side = getattr(model, "image_size", None)
    return (side, side) if isinstance(side, int) and hasattr(model, "conv_proj") else None


def _timm_config(model: nn.Module) -> Mapping[str, Any] | None:
    config = getattr(model, "pretrained_cfg", None)
    if config is not None and hasattr(config, "to_dict"):
        config = config.to_dict()
    return config if isinstance(config, Mapping) and config.get("mean") is not None else None


def _from_timm(config: Mapping[str, Any], chroma: str) -> Preprocessing:
    """As timm's evaluation transforms: the shorter side becomes ``floor(size / crop_pct)``, then the center is cut."""
    size = config.get("input_size")
    transforms = None
    if size is not None:
        height, width = (int(n) for n in tuple(size)[-2:])
        crop_pct = float(config.get("crop_pct") or _CROP_PCT)
        scaled = (math.floor(height / crop_pct), math.floor(width / crop_pct))
        mode = config.get("crop_mode") or "center"
        if mode not in ("center", "squash") or (mode == "center" and height != width):
            raise ValueError(
                f"crop_mode={mode!r} with {height}x{width} px: only the center of square images, and squash, have an "
                "equivalent for coefficients; give transforms=CoefficientTransform(resize=..., crop=...), mean and std"
            )
        transforms = CoefficientTransform(
            resize=scaled if mode == "squash" else scaled[0],
            crop=(height, width),
            interpolation=_interpolation(config.get("interpolation") or "bicubic"),
            chroma=chroma,
        )
    return Preprocessing(transforms, _values(config.get("mean")), _values(config.get("std")))


def _from_torchvision(transforms: Any, chroma: str) -> Preprocessing:
    """As the presets ``ImageClassification`` and ``SemanticSegmentation`` of torchvision."""
    if not (hasattr(transforms, "mean") and hasattr(transforms, "std")):
        raise TypeError(
            f"transforms={transforms!r}: give torchvision's weights.transforms(), the dictionary of timm's "
            "resolve_data_config(...), or a CoefficientTransform"
        )
    resize, crop = (_first(getattr(transforms, name, None)) for name in ("resize_size", "crop_size"))
    interpolation = getattr(transforms, "interpolation", "bilinear")
    found = CoefficientTransform(resize=resize, crop=crop, interpolation=_interpolation(interpolation), chroma=chroma)
    return Preprocessing(found, _values(transforms.mean), _values(transforms.std))


def _first(size: Any) -> Any:
    """A size as :class:`CoefficientTransform` takes it: torchvision's has one number or two."""
    if isinstance(size, list | tuple):
        return size[0] if len(size) == 1 else tuple(size)
    return size


def _interpolation(value: Any) -> str:
    name = str(getattr(value, "value", value))
    if name not in ("bilinear", "bicubic"):
        raise ValueError(
            f"interpolation={name!r}: coefficients are resized by bilinear or bicubic interpolation; give "
            "transforms=CoefficientTransform(...), mean and std"
        )
    return name


def _values(values: Any) -> tuple[float, ...]:
    return () if values is None else tuple(float(value) for value in values)
