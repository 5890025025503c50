"""Streams in tar shards to latents, read front to back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from cdzoo.codecs import MAX_IMAGE_PIXELS, Codec
from cdzoo.data._decode import MAX_STREAM_BYTES, ErrorPolicy, OnError, StreamDecoder, peek_image_size
from cdzoo.data._tar import Member, read_member
from cdzoo.data._webdataset import Paths, find_shards, read_samples
from cdzoo.data.collate import collate_latents
from cdzoo.data.sampler import replica
from cdzoo.types import Latent

__all__ = ["StreamShards"]

ShardLabels = Literal["cls"] | Mapping[str, Any] | Callable[[PurePath], Any] | None


class _Raw(NamedTuple):
    """A sample before it is decoded."""

    name: str
    stream: bytes
    label: Any


class StreamShards(IterableDataset[Any]):
    """Iterable dataset of ``.cdz`` streams in WebDataset shards (tar files with ``key.cdz``, ``key.cls``), that gives
    latents, in batches of one image size.

    Batches are made here, because streams of one size decode together; the loader gets ``batch_size=None``::

        shards = StreamShards("train-{000..131}.tar", codec, batch_size=32, shuffle=True)
        loader = DataLoader(shards, batch_size=None, collate_fn=collate_latents, num_workers=4)
        for epoch in range(epochs):
            shards.set_epoch(epoch)
            for latent, labels in loader: ...

    Shards are dealt out to the ranks of torch.distributed and to the loader's workers, forked or spawned, each of
    which decodes on the CPU with a copy of the codec and one thread: every sample comes exactly once. How many batches
    a rank gets depends on its shards; synchronous training over several ranks has to stop at the same step on all.

    The order depends on ``seed``, the epoch, the number of ranks and of workers: call ``set_epoch`` before each epoch,
    or every epoch goes through the data in the same order. It reaches persistent workers too.

    Args:
        shards: paths, globs, brace lists, a sequence of these, or a folder of ``.tar`` files.
        codec: the codec that wrote the streams.
        batch_size: streams in a batch; a batch may have fewer, see ``max_pending``. ``None`` for single samples in
            their own order, of any sizes.
        labels: ``"cls"`` for the integer in the ``.cls`` member, a mapping from names of ``.cdz`` members, a
            function of that name as a path, or ``None`` for latents alone.
        transform: applied to each latent ``(1, M, h, w)``.
        shuffle: read the shards in random order, and draw samples at random from a buffer.
        shuffle_buffer: streams in that buffer, per worker; it holds them compressed.
        seed: of the random order; the same on all ranks.
        drop_last: leave out batches with fewer than ``batch_size`` streams.
        max_pending: how many streams wait, per worker, until their batches are full; when more do, the fullest batch
            goes out as it is. What waits at the end goes out then.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
        max_stream_bytes: refuse members of more bytes than this, before they are read.
        on_error: what happens where a stream, its label, or a shard cannot be read: ``"raise"``; ``"skip"``, which
            logs a warning (logger ``cdzoo.data``) and leaves out the sample or the rest of the shard; or a function of
            the error, which leaves it out too unless the function raises. Messages begin with the shard's path.
        num_replicas: number of processes that share the shards; by default torch.distributed's world size.
        rank: which of them this is; by default torch.distributed's rank.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: unknown options, or fewer shards than ranks.
    """

    def __init__(
        self,
        shards: Paths,
        codec: Codec,
        *,
        batch_size: int | None = None,
        labels: ShardLabels = "cls",
        transform: Callable[[Latent], Latent] | None = None,
        shuffle: bool = False,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        drop_last: bool = False,
        max_pending: int = 4096,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        on_error: OnError = "raise",
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        sizes = {"batch_size": batch_size, "shuffle_buffer": shuffle_buffer, "max_pending": max_pending}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if isinstance(labels, str) and labels != "cls":
            raise ValueError(f"labels must be 'cls', a mapping, a function or None, not {labels!r}.")
        self.shards = find_shards(shards)
        self.batch_size, self.shuffle, self.shuffle_buffer = batch_size, shuffle, shuffle_buffer
        self.seed, self.drop_last, self.max_pending = seed, drop_last, max_pending
        self._labels, self._max_stream_bytes = labels, max_stream_bytes
        self._policy = ErrorPolicy(on_error)
        self._decoder = StreamDecoder(codec, transform, max_pixels)
        self._asked = (num_replicas, rank)
        self._sent_from: tuple[int, int] | None = None
        # in shared memory, so that persistent workers see it change
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))
        self._check_shards()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration: before each epoch, with the same number on all ranks."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Any]:
        """Latents ``(B, M, h, w)`` or pairs of one and its labels; without ``batch_size``, samples (``B = 1``)."""
        replicas, rank = self._check_shards()
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        epoch = int(self._epoch)
        shards = list(self.shards)
        if self.shuffle:
            random.Random(f"{self.seed} {epoch}").shuffle(shards)
        streams = self._read(shards[rank::replicas][number::workers])
        if self.shuffle:
            streams = self._shuffled(streams, random.Random(f"{self.seed} {epoch} {rank} {number}"))
        for batch in self._batches(streams):
            results = self._decoder([raw.name for raw in batch], [raw.stream for raw in batch])
            samples = []
            for raw, latent in zip(batch, results, strict=True):
                if isinstance(latent, Exception):
                    self._policy(latent)
                else:
                    samples.append(latent if self._labels is None else (latent, raw.label))
            if samples:
                yield samples[0] if self.batch_size is None else collate_latents(samples)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker knows nothing of torch.distributed
        return {**self.__dict__, "_sent_from": self._place()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _shared(self._epoch)

    def __repr__(self) -> str:
        return f"StreamShards({len(self.shards)} shards of {self._decoder.codec.name} streams)"

    def _place(self) -> tuple[int, int]:
        initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._asked == (None, None) and not initialized and self._sent_from is not None:
            return self._sent_from
        return replica(*self._asked)

    def _check_shards(self) -> tuple[int, int]:
        replicas, rank = self._place()
        if len(self.shards) < replicas:
            raise ValueError(
                f"{len(self.shards)} shards for {replicas} ranks; write at least one for each, better many."
            )
        return replicas, rank

    def _read(self, shards: Iterable[str]) -> Iterator[_Raw]:
        for shard in shards:
            for sample in read_samples(shard, ".cdz", self._load(shard), with_labels=self._labels == "cls"):
                if isinstance(sample, Exception):
                    self._policy(sample)
                    continue
                name = sample.member.name
                label: Any = sample.label
                if isinstance(self._labels, Mapping):
                    if name not in self._labels:
                        raise ValueError(f"{shard}: labels lack {name!r}; keys are the names of the .cdz members.")
                    label = self._labels[name]
                elif callable(self._labels):
                    label = self._labels(PurePosixPath(name))
                yield _Raw(f"{shard}: {name}", sample.data, label)

    def _load(self, shard: str) -> Callable[[BinaryIO, Member], bytes]:
        return lambda file, member: read_member(file, shard, member, self._max_stream_bytes)

    def _shuffled(self, streams: Iterator[_Raw], generator: random.Random) -> Iterator[_Raw]:
        buffer: list[_Raw] = []
        for raw in streams:
            if len(buffer) < self.shuffle_buffer:
                buffer.append(raw)
                continue
            position = generator.randrange(len(buffer))
            yield buffer[position]
            buffer[position] = raw
        generator.shuffle(buffer)
        yield from buffer

    def _batches(self, streams: Iterator[_Raw]) -> Iterator[list[_Raw]]:
        if self.batch_size is None:
            yield from ([raw] for raw in streams)
            return
        buckets: dict[tuple[int, int] | None, list[_Raw]] = {}
        pending = 0
        for raw in streams:
            size = peek_image_size(raw.stream)
            bucket = buckets.setdefault(size, [])
            bucket.append(raw)
            pending += 1
            if len(bucket) < self.batch_size:
                if pending <= self.max_pending:
                    continue
                size = max(buckets, key=lambda key: len(buckets[key]))
            full = buckets.pop(size)
            pending -= len(full)
            if len(full) == self.batch_size or not self.drop_last:
                yield full
        if not self.drop_last:
            yield from buckets.values()


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.share_memory_()  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
