"""What a network needs done to a codec's output before it reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cdzoo.types import Latent

__all__ = ["LatentTransform"]


@dataclass(frozen=True)
class LatentTransform:
    """Prepare a :class:`~cdzoo.types.Latent` for a network: subtract channel means, resize by nearest neighbour.

    Deng and Karam (sec. 5.3) bring latents and scales to 28x28 by nearest neighbour; Torfason et al. (sec. 4.2)
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
            isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)
        ):
            raise ValueError(f"LatentTransform size must be two positive integers or None, not {size!r}.")
        if mean is not None and not isinstance(mean, list | tuple):
            raise ValueError(f"LatentTransform mean must be a list of numbers or None, not {mean!r}.")
        return cls(
            size=None if size is None else (size[0], size[1]),
            mean=None if mean is None else tuple(float(m) for m in mean),
        )


def _nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size=size, mode="nearest")
