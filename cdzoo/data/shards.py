"""Streams in tar shards to latents, read front to back."""

from __future__ import annotations

from collections.abc import Callable

from cdzoo.codecs import MAX_IMAGE_PIXELS, Codec
from cdzoo.data._decode import MAX_STREAM_BYTES, OnError
from cdzoo.data._shards import SampleShards, ShardLabels
from cdzoo.data._stream_decoder import StreamDecoder
from cdzoo.data._webdataset import Paths
from cdzoo.types import Latent

__all__ = ["StreamShards"]


class StreamShards(SampleShards[Latent]):
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
        TypeError: labels of another kind, such as a list.
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
        decoder = StreamDecoder(codec, transform, max_pixels)
        super().__init__(
            shards,
            decoder,
            batch_size=batch_size,
            labels=labels,
            shuffle=shuffle,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
            drop_last=drop_last,
            max_pending=max_pending,
            max_stream_bytes=max_stream_bytes,
            on_error=on_error,
            num_replicas=num_replicas,
            rank=rank,
        )
        self._codec_name = decoder.codec.name

    def __repr__(self) -> str:
        return f"StreamShards({len(self.shards)} shards of {self._codec_name} streams)"
