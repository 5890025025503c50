"""A cheap sum of what a tensor's memory holds, to see that somebody has written to it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["position_sum"]


def position_sum(tensor: Tensor) -> Tensor:
    """A number that a change of values changes, and of their order, at little more than it costs to add them up.

    Returns:
        int64, 0-dimensional, on the tensor's device: the sum of its words, each as often as its place says.
    """
    words = _words(tensor)
    count = words.numel()
    odd = _odd_numbers(1 << count.bit_length(), words.device)  # few sizes, for many tensors to share
    return (words * odd[:count]).sum()


@lru_cache(maxsize=64)
def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """``1, 3, 5, ...``: an even factor would lose the highest bit."""
    with torch.inference_mode(False):
        return 2 * torch.arange(count, device=device) + 1


def _words(tensor: Tensor) -> Tensor:
    """``(n,)``: int64, which adds up fastest, or integers as wide as the tensor's numbers."""
    strides: tuple[int, ...] = tensor.stride()
    by_stride = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    flat = tensor.detach().permute(by_stride).reshape(-1)  # no copy, whatever the memory format
    size = flat.element_size()
    if flat.nbytes % 8 == 0 and flat.storage_offset() * size % 8 == 0:
        return flat.view(torch.int64)
    return flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[size])
