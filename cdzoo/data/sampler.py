"""Batches of samples that share an image size, or another value."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Sampler, Subset

from cdzoo._checks import check_size

__all__ = ["SizeBucketSampler", "replica"]


class SizeBucketSampler(Sampler[list[int]]):
    """Batch sampler whose batches hold images of one size only; JPEG files of one sampling and color space, too.

    The order depends on ``seed`` and on the epoch, and on nothing else: as with torch's ``DistributedSampler``, call
    ``set_epoch`` before each epoch, or every epoch goes through the data in the same order. ::

        sampler = SizeBucketSampler(dataset, batch_size=32, shuffle=True)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_latents, num_workers=4)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for latent, labels in loader: ...

    Args:
        data: a :class:`~cdzoo.data.StreamDataset` or :class:`~cdzoo.data.CoefficientDataset` (or a ``Subset`` or
            ``ConcatDataset`` of ``torch.utils.data`` of such), whose ``bucket_keys()`` are read from the files'
            headers; or such keys themselves: for each sample a hashable value, such as ``(H, W)``, that all samples of
            a batch share, or ``None`` to leave it out.
        batch_size: samples in a batch; the last batch of a key may have fewer.
        shuffle: put samples and batches into a random order.
        seed: seed of that order; the same on all ranks.
        drop_last: leave out the batches that have fewer samples.
        num_replicas: number of processes that share the data; by default torch.distributed's world size, 1 without it.
        rank: number of this process among them; by default torch.distributed's rank.
        even_ranks: give every rank the same number of batches, as synchronous training needs: some batches are
            repeated, or with ``drop_last`` the surplus is left out. Without it every sample comes exactly once, as
            evaluation needs.

    Raises:
        ValueError: a batch size below 1, or a rank outside ``[0, num_replicas)``.
        TypeError: ``data`` is neither such a dataset nor a sequence of keys.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
        even_ranks: bool = True,
    ) -> None:
        check_size("batch_size", batch_size)
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.num_replicas, self.rank = replica(num_replicas, rank)
        self.even_ranks = even_ranks
        self.epoch = 0
        buckets: dict[Hashable, list[int]] = {}
        for index, key in enumerate(_keys_of(data)):
            if key is not None:
                buckets.setdefault(tuple(key) if isinstance(key, list) else key, []).append(index)
        self._buckets = [torch.tensor(indices) for indices in buckets.values()]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration: before each epoch, with the same number on all ranks."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches that this rank gets."""
        total = sum(
            len(bucket) // self.batch_size if self.drop_last else -(-len(bucket) // self.batch_size)
            for bucket in self._buckets
        )
        if self.even_ranks:
            return total // self.num_replicas if self.drop_last else -(-total // self.num_replicas)
        return len(range(self.rank, total, self.num_replicas))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {self.epoch}").getrandbits(63))
        batches: list[torch.Tensor] = []
        for bucket in self._buckets:
            order = bucket[torch.randperm(len(bucket), generator=generator)] if self.shuffle else bucket
            pieces = torch.split(order, self.batch_size)
            batches += [piece for piece in pieces if len(piece) == self.batch_size or not self.drop_last]
        if self.shuffle:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        else:
            batches.sort(key=lambda batch: int(batch[0]))  # as close to the order of the data as batches allow
        if batches:  # without drop_last some ranks may lack one batch: repeat the first ones
            for position in range(self.rank, len(self) * self.num_replicas + self.rank, self.num_replicas):
                yield batches[position % len(batches)].tolist()


def replica(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Number of processes that share the data and the number of this one; torch.distributed's by default.

    Raises:
        ValueError: ``rank`` lies outside ``[0, num_replicas)``.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if num_replicas is None:
        num_replicas = torch.distributed.get_world_size() if distributed else 1
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if not 0 <= rank < num_replicas:
        raise ValueError(f"rank must be in [0, num_replicas), but is {rank} of {num_replicas}; pass both or neither")
    return num_replicas, rank


def _keys_of(data: Any) -> Sequence[Any]:
    if isinstance(data, Subset):
        keys = _keys_of(data.dataset)
        return [keys[index] for index in data.indices]
    if isinstance(data, ConcatDataset):
        return [key for part in data.datasets for key in _keys_of(part)]
    if hasattr(data, "bucket_keys"):
        found: Sequence[Any] = data.bucket_keys()
        return found
    if not isinstance(data, Sequence):
        raise TypeError(
            "SizeBucketSampler needs a StreamDataset, a CoefficientDataset or a list of keys such as (H, W), not "
            f"{type(data).__name__}; one like StreamShards sorts by size itself, with its batch_size"
        )
    return data
