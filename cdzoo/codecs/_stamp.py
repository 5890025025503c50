"""A cheap sum of what a tensor's memory holds, to see that somebody has written to it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["position_sum"]

_MOST_ROWS = 4096


def position_sum(tensor: Tensor) -> Tensor:
    """A number that a change of values changes, and of their order, at the cost of adding them up; int64, 0-dim.

    The memory is cut into some thousand rows; the sum of each counts as often as its place says.
    """
    words = _words(tensor)
    width = max(1, words.numel() // _MOST_ROWS)
    count = words.numel() // width
    rows = words[: count * width].view(count, width).sum(1)
    odd = 2 * torch.arange(count, device=rows.device) + 1  # an even factor would lose the highest bit
    return (rows * odd).sum() + words[count * width :].sum()


def _words(tensor: Tensor) -> Tensor:
    """``(n,)``: int64, which adds up fastest, or integers as wide as the tensor's numbers."""
    strides: tuple[int, ...] = tensor.stride()
    by_stride = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    flat = tensor.detach().permute(by_stride).reshape(-1)  # no copy, whatever the memory format
    size = flat.element_size()
    if flat.nbytes % 8 == 0 and flat.storage_offset() * size % 8 == 0:
        return flat.view(torch.int64)
    return flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[size])
