"""The iterable dataset over tar shards, read front to back, on which the public ones are built."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath, PurePosixPath
from typing import Any, BinaryIO, Generic, Literal, NamedTuple, TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from cdzoo._checks import check_size
from cdzoo.data._decode import Decoder, ErrorPolicy, OnError, bucketed
from cdzoo.data._sources import check_labels
from cdzoo.data._webdataset import Member, Paths, find_shards, read_member, read_samples
from cdzoo.data.sampler import replica

__all__ = ["SampleShards", "ShardLabels"]

T = TypeVar("T")
ShardLabels = Literal["cls"] | Mapping[str, Any] | Callable[[PurePath], Any] | None


class _Raw(NamedTuple):
    """A sample before it is decoded."""

    name: str
    data: bytes
    label: Any


class SampleShards(IterableDataset[Any], Generic[T]):
    """Iterable dataset of the members of shards that a decoder reads; the subclasses describe the arguments."""

    def __init__(
        self,
        shards: Paths,
        decoder: Decoder[T],
        *,
        batch_size: int | None,
        labels: ShardLabels,
        shuffle: bool,
        shuffle_buffer: int,
        seed: int,
        drop_last: bool,
        max_pending: int,
        max_stream_bytes: int,
        on_error: OnError,
        num_replicas: int | None,
        rank: int | None,
    ) -> None:
        sizes = {"batch_size": batch_size, "shuffle_buffer": shuffle_buffer, "max_pending": max_pending}
        for name, value in sizes.items():
            if value is not None:
                check_size(name, value)
        check_labels(labels, "'cls'")
        if isinstance(labels, str) and labels != "cls":
            raise ValueError(f"labels must be 'cls', a mapping, a function or None, not {labels!r}")
        self.shards = find_shards(shards)
        self.batch_size, self.shuffle, self.shuffle_buffer = batch_size, shuffle, shuffle_buffer
        self.seed, self.drop_last, self.max_pending = seed, drop_last, max_pending
        self._labels, self._max_stream_bytes = labels, max_stream_bytes
        self._policy = ErrorPolicy(on_error)
        self._decoder = decoder
        self._asked = (num_replicas, rank)
        self._sent_from: tuple[int, int] | None = None
        # in shared memory, so that persistent workers see it change
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))
        self._check_shards()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration: before each epoch, with the same number on all ranks."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Any]:
        """Batches, or pairs of one and its labels; without ``batch_size``, samples, which are batches of one."""
        replicas, rank = self._check_shards()
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        epoch = int(self._epoch)
        shards = list(self.shards)
        if self.shuffle:
            random.Random(f"{self.seed} {epoch}").shuffle(shards)
        files = self._read(shards[rank::replicas][number::workers])
        if self.shuffle:
            files = self._shuffled(files, random.Random(f"{self.seed} {epoch} {rank} {number}"))
        for batch in self._batches(files):
            results = self._decoder([raw.name for raw in batch], [raw.data for raw in batch])
            samples: list[Any] = []
            for raw, sample in zip(batch, results, strict=True):
                if isinstance(sample, Exception):
                    self._policy(sample)
                else:
                    samples.append(sample if self._labels is None else (sample, raw.label))
            if samples:
                yield samples[0] if self.batch_size is None else self._decoder.collate(samples)

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker knows nothing of torch.distributed
        return {**self.__dict__, "_sent_from": self._place()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _shared(self._epoch)

    def _place(self) -> tuple[int, int]:
        initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._asked == (None, None) and not initialized and self._sent_from is not None:
            return self._sent_from
        return replica(*self._asked)

    def _check_shards(self) -> tuple[int, int]:
        replicas, rank = self._place()
        if len(self.shards) < replicas:
            raise ValueError(
                f"{len(self.shards)} shards for {replicas} ranks; write at least one for each, better many"
            )
        return replicas, rank

    def _read(self, shards: Iterable[str]) -> Iterator[_Raw]:
        suffixes = self._decoder.suffixes
        for shard in shards:
            for sample in read_samples(shard, suffixes, self._load(shard), with_labels=self._labels == "cls"):
                if isinstance(sample, Exception):
                    self._policy(sample)
                    continue
                name = sample.member.name
                label: Any = sample.label
                if isinstance(self._labels, Mapping):
                    if name not in self._labels:
                        wanted = " or ".join(suffixes)
                        raise ValueError(f"{shard}: labels lack {name!r}; keys are the names of the {wanted} members")
                    label = self._labels[name]
                elif callable(self._labels):
                    label = self._labels(PurePosixPath(name))
                yield _Raw(f"{shard}: {name}", sample.data, label)

    def _load(self, shard: str) -> Callable[[BinaryIO, Member], bytes]:
        return lambda file, member: read_member(file, shard, member, self._max_stream_bytes, self._decoder.error)

    def _shuffled(self, files: Iterator[_Raw], generator: random.Random) -> Iterator[_Raw]:
        buffer: list[_Raw] = []
        for raw in files:
            if len(buffer) < self.shuffle_buffer:
                buffer.append(raw)
                continue
            position = generator.randrange(len(buffer))
            yield buffer[position]
            buffer[position] = raw
        generator.shuffle(buffer)
        yield from buffer

    def _batches(self, files: Iterator[_Raw]) -> Iterator[list[_Raw]]:
        if self.batch_size is None:
            yield from ([raw] for raw in files)
            return
        yield from bucketed(
            files,
            lambda raw: self._decoder.batch_key(raw.data),
            size=self.batch_size,
            max_pending=self.max_pending,
            drop_last=self.drop_last,
        )


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.share_memory_()  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
