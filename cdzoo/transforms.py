"""What a network needs done to a codec's output, or to a file's coefficients, before it reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from cdzoo.types import JPEGCoefficients, Latent

__all__ = ["CoefficientTransform", "InputTransform", "LatentTransform", "transform_from_config"]


@dataclass(frozen=True)
class LatentTransform:
    """Prepare a :class:`~cdzoo.types.Latent` for a network: subtract channel means, resize by nearest neighbour.

    Deng and Karam (sec. 5.3) bring latents and scales to 28x28 by nearest neighbour; Torfason et al. (A.4)
    subtract the training set's mean of each latent channel; Wang et al. do neither. ``weights.transforms()`` returns
    the instance that a set of weights was trained with, and ``cdzoo.compose`` applies it.

    Attributes:
        size: rows and columns that latent and scales are resized to; ``None`` leaves them as they are.
        mean: one value per latent channel, subtracted from ``y_hat`` before resizing; ``None`` subtracts nothing.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None

    def __call__(self, latent: Latent) -> Latent:
        """``y_hat`` and ``scales`` ``(B, M, h, w)`` to ``(B, M, *size)``; ``image_size`` is kept.

        Raises:
            ValueError: ``mean`` has not got ``M`` values.
        """
        y_hat, scales = latent.y_hat, latent.scales
        if self.mean is not None:
            if len(self.mean) != y_hat.shape[1]:
                raise ValueError(
                    f"LatentTransform has a mean of {len(self.mean)} channels, but y_hat has {y_hat.shape[1]}: the "
                    "transform belongs to another codec; give one value per latent channel, or mean=None."
                )
            y_hat = y_hat - torch.tensor(self.mean, dtype=y_hat.dtype, device=y_hat.device).view(1, -1, 1, 1)
        if self.size is not None:
            y_hat = _nearest(y_hat, self.size)
            scales = None if scales is None else _nearest(scales, self.size)
        return latent._replace(y_hat=y_hat, scales=scales)

    def config(self) -> dict[str, object]:
        """A JSON-ready description; ``LatentTransform.from_config`` reads it back."""
        return {
            "size": None if self.size is None else list(self.size),
            "mean": None if self.mean is None else list(self.mean),
        }

    @classmethod
    def from_config(cls, config: dict[str, object]) -> LatentTransform:
        """The transform that :meth:`config` described.

        Raises:
            ValueError: an unknown key or a value of the wrong form.
        """
        unknown = set(config) - {"size", "mean"}
        if unknown:
            raise ValueError(f"LatentTransform has no setting {sorted(unknown)}; it has size and mean.")
        size, mean = config.get("size"), config.get("mean")
        if size is not None and not (
            isinstance(size, list | tuple) and len(size) == 2 and all(type(s) is int and s > 0 for s in size)
        ):
            raise ValueError(f"LatentTransform size must be two positive integers or None, not {size!r}.")
        if mean is not None and not isinstance(mean, list | tuple):
            raise ValueError(f"LatentTransform mean must be a list of numbers or None, not {mean!r}.")
        return cls(
            size=None if size is None else (size[0], size[1]),
            mean=None if mean is None else tuple(float(m) for m in mean),
        )


@dataclass(frozen=True)
class CoefficientTransform:
    """Prepare :class:`~cdzoo.types.JPEGCoefficients` for a network: bring a photograph near the size it was trained at.

    Sizes change without leaving the DCT domain, by the low-frequency corner of every block
    (:func:`cdzoo.data.scale`), and so by powers of two only; nothing is ever enlarged.

    Attributes:
        shorter_side: pixels that the shorter side comes closest to, in ratio; ``None`` keeps every file's own size.
    """

    shorter_side: int | None = None

    def __post_init__(self) -> None:
        side = self.shorter_side
        if side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < 1):
            raise ValueError(f"CoefficientTransform shorter_side must be a positive integer or None, not {side!r}.")

    def __call__(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files at 1, 1/2, 1/4 or 1/8 of its size."""
        factor = self.factor(coefficients.image_size)
        if factor == 1:
            return coefficients
        from cdzoo.jpeg.transforms import scale

        return scale(coefficients, factor)

    def factor(self, image_size: tuple[int, int]) -> int:
        """By how much images of this size ``(H, W)`` are reduced: 1, 2, 4 or 8."""
        if self.shorter_side is None:
            return 1
        ratio = min(image_size) / self.shorter_side
        return min((1, 2, 4, 8), key=lambda factor: abs(math.log(ratio / factor)))

    def config(self) -> dict[str, object]:
        """A JSON-ready description; ``CoefficientTransform.from_config`` reads it back."""
        return {"type": "CoefficientTransform", "shorter_side": self.shorter_side}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CoefficientTransform:
        """The transform that :meth:`config` described.

        Raises:
            ValueError: an unknown key or a value of the wrong form.
        """
        unknown = set(config) - {"type", "shorter_side"}
        if unknown:
            raise ValueError(f"CoefficientTransform has no setting {sorted(unknown)}; it has shorter_side.")
        return cls(config.get("shorter_side"))


InputTransform: TypeAlias = LatentTransform | CoefficientTransform


def transform_from_config(config: Mapping[str, Any]) -> InputTransform:
    """The transform that ``config()`` of either kind described; without a ``"type"`` it is one of latents.

    Raises:
        ValueError: an unknown type or setting, or a value of the wrong form.
    """
    kind = config.get("type", "LatentTransform")
    if kind == "CoefficientTransform":
        return CoefficientTransform.from_config(config)
    if kind != "LatentTransform":
        raise ValueError(f"unknown type {kind!r}; known are LatentTransform and CoefficientTransform.")
    return LatentTransform.from_config({key: value for key, value in config.items() if key != "type"})


def _nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size=size, mode="nearest")
