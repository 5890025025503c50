"""Datasets and collate functions for data in the compressed domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cdzoo.types import Latent

__all__ = ["collate_latents"]


def collate_latents(samples: Sequence[Latent] | Sequence[tuple[Latent, int]]) -> Latent | tuple[Latent, torch.Tensor]:
    """Collate function for latents of one image size, with or without labels.

    The default collate function would turn ``image_size`` into tensors.

    Args:
        samples: latents ``(b, M, h, w)`` of one size each, or pairs of such a latent and its integer label.

    Returns:
        one latent ``(B, M, h, w)``, or a pair of it and the labels ``(B,)`` int64.

    Raises:
        ValueError: no samples, unequal image sizes, or scales in some samples only.
    """
    if not samples:
        raise ValueError("collate_latents got no samples.")
    if not isinstance(samples[0], Latent):
        pairs: Sequence[tuple[Latent, int]] = samples  # type: ignore[assignment]
        latent = collate_latents([pair[0] for pair in pairs])
        assert isinstance(latent, Latent)
        return latent, torch.tensor([pair[1] for pair in pairs], dtype=torch.int64)
    latents: Sequence[Latent] = samples  # type: ignore[assignment]
    sizes = {latent.image_size for latent in latents}
    if len(sizes) > 1:
        raise ValueError(f"latents of unequal image sizes in one batch: {sorted(sizes)}; group samples by image_size.")
    scales = [latent.scales for latent in latents if latent.scales is not None]
    if scales and len(scales) != len(latents):
        raise ValueError(f"{len(scales)} of {len(latents)} latents have scales; all or none must.")
    return Latent(
        torch.cat([latent.y_hat for latent in latents]), torch.cat(scales) if scales else None, latents[0].image_size
    )
