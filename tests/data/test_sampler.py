"""Batches of one key, over epochs and ranks."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from oracles.dataset_files import SIZES, Streams

from cdzoo.data import (
    SizeBucketSampler,
)

MIXED = [random.Random(1).choice(SIZES) for _ in range(103)]


def test_sampler_orders() -> None:
    sampler = SizeBucketSampler(MIXED, 8, shuffle=True, seed=5)
    first = list(sampler)
    assert sorted(i for batch in first for i in batch) == list(range(103))
    assert all(len({MIXED[i] for i in batch}) == 1 for batch in first)
    assert len(sampler) == len(first)
    assert list(sampler) == first == list(SizeBucketSampler(MIXED, 8, shuffle=True, seed=5))
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(map(sorted, second)) != sorted(map(sorted, first))
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(SizeBucketSampler(MIXED, 8, shuffle=True, seed=6)) not in (first, second)
    plain = list(SizeBucketSampler(MIXED, 8))
    assert plain == sorted(plain)
    assert all(batch == sorted(batch) for batch in plain)
    full = SizeBucketSampler(MIXED, 8, shuffle=True, drop_last=True)
    assert [len(batch) for batch in full] == [8] * sum(n // 8 for n in Counter(MIXED).values())
    assert len(full) == len(list(full))


@pytest.mark.parametrize("ranks", [1, 2, 4, 40])
@pytest.mark.parametrize("drop_last", [False, True])
def test_sampler_ranks(ranks: int, drop_last: bool) -> None:
    def lists(even: bool) -> list[list[list[int]]]:
        samplers = [
            SizeBucketSampler(
                MIXED, 8, shuffle=True, drop_last=drop_last, num_replicas=ranks, rank=rank, even_ranks=even
            )
            for rank in range(ranks)
        ]
        assert [len(list(s)) for s in samplers] == [len(s) for s in samplers]
        return [list(s) for s in samplers]

    whole = list(SizeBucketSampler(MIXED, 8, shuffle=True, drop_last=drop_last))
    uneven = [batch for batches in lists(False) for batch in batches]
    assert sorted(uneven) == sorted(whole)
    even = lists(True)
    assert len({len(batches) for batches in even}) == 1
    flat = [batch for batches in even for batch in batches]
    assert len(flat) == (len(whole) // ranks if drop_last else -(-len(whole) // ranks)) * ranks
    if not drop_last:
        assert {i for batch in flat for i in batch} == set(range(103))


def test_sampler_takes_its_rank_from_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    assert list(SizeBucketSampler(MIXED, 8)) == list(SizeBucketSampler(MIXED, 8, num_replicas=3, rank=2))


def test_sampler_refusals(streams: Streams) -> None:
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        SizeBucketSampler(MIXED, 0)
    with pytest.raises(ValueError, match=r"is 2 of 2"):
        SizeBucketSampler(MIXED, 8, num_replicas=2, rank=2)
    with pytest.raises(TypeError, match="StreamShards sorts by size itself"):
        SizeBucketSampler(streams.shards(streams.shard_folder), 8)
    assert list(SizeBucketSampler([None, None], 8)) == list(SizeBucketSampler([], 8, num_replicas=2, rank=1)) == []
