"""Samples to batches."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from cdzoo.types import Latent

__all__ = ["collate_latents"]


def collate_latents(samples: Sequence[Latent] | Sequence[tuple[Latent, Any]]) -> Latent | tuple[Latent, Any]:
    """Collate function for latents of one image size, with or without labels.

    The default collate function would turn ``image_size`` into tensors. What is a batch already, as the items of
    :class:`~cdzoo.data.StreamShards` with a ``batch_size``, passes through.

    Args:
        samples: latents ``(b, M, h, w)`` of one size each, or pairs of such a latent (``b = 1``) and its label.

    Returns:
        one latent ``(B, M, h, w)``, or a pair of it and the labels: ``(B,)`` int64 if all are integers, otherwise
        what ``torch.utils.data.default_collate`` makes of them.

    Raises:
        ValueError: no samples, unequal image sizes, or scales in some samples only.
    """
    if isinstance(samples, Latent) or (len(samples) == 2 and _is_batch(samples)):
        return samples  # type: ignore[return-value]
    if not samples:
        raise ValueError("collate_latents got no samples.")
    if not isinstance(samples[0], Latent):
        pairs: Sequence[tuple[Latent, Any]] = samples  # type: ignore[assignment]
        latent = collate_latents([pair[0] for pair in pairs])
        assert isinstance(latent, Latent)
        return latent, _collate_labels([pair[1] for pair in pairs])
    latents: Sequence[Latent] = samples  # type: ignore[assignment]
    sizes = {latent.image_size for latent in latents}
    if len(sizes) > 1:
        raise ValueError(
            f"latents of unequal image sizes in one batch: {sorted(sizes)}; group samples by image_size, "
            "as cdzoo.data.SizeBucketSampler does."
        )
    scales = [latent.scales for latent in latents if latent.scales is not None]
    if scales and len(scales) != len(latents):
        raise ValueError(f"{len(scales)} of {len(latents)} latents have scales; all or none must.")
    return Latent(
        torch.cat([latent.y_hat for latent in latents]), torch.cat(scales) if scales else None, latents[0].image_size
    )


def _is_batch(samples: Any) -> bool:
    """A pair of a latent and its labels, as opposed to two samples."""
    return isinstance(samples, tuple) and isinstance(samples[0], Latent) and not isinstance(samples[1], Latent)


def _collate_labels(labels: list[Any]) -> Any:
    try:
        return torch.tensor([operator.index(label) for label in labels], dtype=torch.int64)
    except TypeError:
        return default_collate(labels)
