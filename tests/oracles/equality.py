"""Equality of results: latents, coefficients, and tuples of these."""

from __future__ import annotations

import torch


def same(one: object, other: object) -> bool:
    """Whether two latents, or two batches of coefficients, are equal in values, types and sizes."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
