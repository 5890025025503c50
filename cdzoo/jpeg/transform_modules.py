"""Exact transforms over JPEG coefficients as modules, for pipelines: see :mod:`cdzoo.jpeg.transforms`.

The random ones draw from PyTorch's generator, once for a batch.
"""

from __future__ import annotations

import torch
from torch import nn

from cdzoo.jpeg.transforms import (
    alignment,
    center_crop,
    checked_factor,
    crop,
    downscale,
    horizontal_flip,
    rotate,
    size_pair,
    vertical_flip,
)
from cdzoo.types import JPEGCoefficients

__all__ = [
    "CenterCrop",
    "Downscale",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation90",
    "RandomVerticalFlip",
    "Scale",
]


class RandomHorizontalFlip(nn.Module):
    """:func:`horizontal_flip` with probability ``p``; sizes that are not aligned are trimmed, flipped or not.

    Args:
        p: probability.

    Raises:
        ValueError: ``p`` lies outside ``[0, 1]``.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p}: a probability lies in [0, 1]")
        self.p = p

    def forward(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files, all flipped or none."""
        return _random_flip(coefficients, 1, self.p)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"p={self.p}"


class RandomVerticalFlip(RandomHorizontalFlip):
    """:func:`vertical_flip` with probability ``p``; sizes that are not aligned are trimmed, flipped or not."""

    def forward(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files, all flipped or none."""
        return _random_flip(coefficients, 0, self.p)


class RandomRotation90(nn.Module):
    """:func:`rotate` by 0, 90, 180 or 270 degrees, each as likely.

    Both sides are trimmed to whole cells of the coarser grid, for every angle. So square images whose sampling is equal
    in rows and columns keep one geometry. Other images swap their sides at 90 and 270 degrees.
    """

    def forward(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files, all by the same angle; unchanged if they are smaller than one cell."""
        turns = int(torch.randint(4, ()))
        cell = max(alignment(coefficients))
        height, width = (n - n % cell for n in coefficients.image_size)
        if min(height, width) == 0:
            return coefficients
        return rotate(crop(coefficients, 0, 0, height, width), 90 * turns)


class RandomCrop(nn.Module):
    """:func:`crop` at a random corner of the block grid; smaller images are kept whole along that axis.

    Args:
        size: (rows, columns) to keep, or one number for both.

    Raises:
        ValueError: ``size`` is less than 1 pixel, or neither an integer nor a pair.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = size_pair(size)

    def forward(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files, all cut at the same corner."""
        kept = tuple(min(n, whole) for n, whole in zip(self.size, coefficients.image_size, strict=True))
        top, left = (
            int(torch.randint((whole - n) // cell + 1, ())) * cell
            for whole, n, cell in zip(coefficients.image_size, kept, alignment(coefficients), strict=True)
        )
        return crop(coefficients, top, left, *kept)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"size={self.size}"


class CenterCrop(RandomCrop):
    """:func:`center_crop` to ``size``.

    Args:
        size: as for :class:`RandomCrop`.

    Raises:
        ValueError: as :class:`RandomCrop`.
    """

    def forward(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files, all cut alike."""
        return center_crop(coefficients, self.size)


class Downscale(nn.Module):
    """:func:`downscale` by ``factor``.

    Args:
        factor: 1, 2, 4 or 8.

    Raises:
        ValueError: another factor.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = checked_factor(factor)

    def forward(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files."""
        return downscale(coefficients, self.factor)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"factor={self.factor}"


class Scale(Downscale):
    """Another name of :class:`Downscale`."""


def _random_flip(coefficients: JPEGCoefficients, axis: int, p: float) -> JPEGCoefficients:
    flips = float(torch.rand(())) < p
    size, cell = list(coefficients.image_size), alignment(coefficients)[axis]
    size[axis] -= size[axis] % cell
    if size[axis] == 0:  # nothing to mirror by whole blocks
        return coefficients
    whole = crop(coefficients, 0, 0, *size)
    return (vertical_flip, horizontal_flip)[axis](whole) if flips else whole
