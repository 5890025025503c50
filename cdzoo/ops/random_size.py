"""Batches of images in a new size each time.

Source: Wang et al., Learning from the CNN-based Compressed Domain, WACV 2022, section 3.4.3.

A network that is to read latents of any size must have seen many. The images of one batch share a size, drawn anew for
each batch; the codec then makes latents of as many sizes. Latents themselves are never resized: that ruins them
(section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from cdzoo.types import Latent

__all__ = ["RandomSizeCollate", "resize_and_crop"]


def resize_and_crop(image: Tensor, size: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Bring the shorter side of an image to ``size``, and cut a square out at a random place along the longer one.

    Args:
        image: ``(C, H, W)``, float or uint8.
        size: pixels of both sides of the result.
        generator: source of the place; PyTorch's own unless given.

    Returns:
        ``(C, size, size)`` in the dtype of ``image``: bilinear, with antialiasing where it shrinks.
    """
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    resized = [max(size, round(side * scale)) for side in (height, width)]
    if resized != [height, width]:
        # PyTorch's antialiasing on the CPU knows no half precision
        exact = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
        image = F.interpolate(exact[None], size=resized, mode="bilinear", antialias=True)[0].to(image.dtype)
    top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in resized)
    return image[:, top : top + size, left : left + size]


class RandomSizeCollate:
    """Collate function for images of any sizes: one random size for each batch.

    The paper resizes and crops training images to a size between 224 and 448, and says no more; here the shorter side
    is resized and the longer one cropped at a random place (:func:`resize_and_crop`), so that images that are square
    already are resized only. Augment before: what the dataset gives is the image that is resized.

        loader = DataLoader(dataset, batch_size=64, collate_fn=RandomSizeCollate())
        for images, labels in loader:
            logits = compose(codec, model)(images)

    Args:
        min_size: least side of a batch, in pixels.
        max_size: greatest side of a batch.
        generator: source of sizes and places; PyTorch's own unless given. Workers of a ``DataLoader`` draw from one
            each, seeded with this one's seed and their own, since they all hold the same copy of it.

    Raises:
        ValueError: not ``1 <= min_size <= max_size``.
    """

    def __init__(self, min_size: int = 224, max_size: int = 448, *, generator: torch.Generator | None = None) -> None:
        if not 1 <= min_size <= max_size:
            raise ValueError(f"min_size={min_size} and max_size={max_size} must be in ascending order, from 1")
        self.min_size, self.max_size, self.generator = min_size, max_size, generator
        self._of_worker: torch.Generator | None = None

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Images ``(C, H, W)``, or tuples of an image, its label and whatever else, to a batch.

        Returns:
            ``(B, C, size, size)``, or a tuple of it and what ``torch.utils.data.default_collate`` makes of the rest.

        Raises:
            TypeError: the samples are no image tensors; latents are refused, since resizing ruins them.
            ValueError: no samples, or images without pixels.
        """
        if not len(samples):
            raise ValueError("RandomSizeCollate got no samples")
        generator = self._source()
        size = int(torch.randint(self.min_size, self.max_size + 1, (), generator=generator))
        if isinstance(samples[0], Tensor):
            return _resized(samples, size, generator)
        if isinstance(samples[0], tuple | list) and not isinstance(samples[0], Latent):
            images, *rest = zip(*samples, strict=True)
            return (_resized(images, size, generator), *(default_collate(list(field)) for field in rest))
        raise TypeError(_refusal(samples[0]))

    def _source(self) -> torch.Generator | None:
        worker = get_worker_info()
        if self.generator is None or worker is None:
            return self.generator
        if self._of_worker is None:  # a worker is a process, with a seed that differs in each worker and epoch
            self._of_worker = torch.Generator().manual_seed((self.generator.initial_seed() ^ worker.seed) % 2**63)
        return self._of_worker

    def __repr__(self) -> str:
        return f"RandomSizeCollate(min_size={self.min_size}, max_size={self.max_size})"


def _resized(images: Sequence[Any], size: int, generator: torch.Generator | None) -> Tensor:
    for image in images:
        if not isinstance(image, Tensor):
            raise TypeError(_refusal(image))
        if image.dim() != 3 or 0 in image.shape:
            raise ValueError(f"image of shape {tuple(image.shape)}, not (C, H, W) with sizes from 1")
    return torch.stack([resize_and_crop(image, size, generator=generator) for image in images])


def _refusal(sample: Any) -> str:
    if isinstance(sample, Latent):
        return (
            "RandomSizeCollate got a Latent, and latents are never resized; resize the images before the codec, or "
            "batch latents by their size with cdzoo.data.SizeBucketSampler and collate_latents"
        )
    return f"images must be tensors (C, H, W), not {type(sample).__name__}; add ToTensor to the dataset's transforms"
