"""Streams to latents: a decoder, a map-style dataset, and an iterable dataset over shards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from cdzoo.codecs import MAX_IMAGE_PIXELS, Codec
from cdzoo.coding.cdz_format import FIXED_BYTES, unverified_image_size
from cdzoo.coding.rans import load_kernels
from cdzoo.data._dataset import Labels, SampleDataset
from cdzoo.data._decode import MAX_STREAM_BYTES, Decoder, OnError
from cdzoo.data._shards import SampleShards, ShardLabels
from cdzoo.data._webdataset import Paths
from cdzoo.data.collate import collate_latents
from cdzoo.errors import BitstreamError, CdzooError, PairingError
from cdzoo.types import Latent

__all__ = ["StreamDataset", "StreamDecoder", "StreamShards"]


class StreamDecoder(Decoder[Latent]):
    """Decode streams of any sizes, those of one size together.

    Keeps a copy of the codec on the CPU: worker processes must not touch an accelerator, and the caller may go on to
    train its own codec. An ``owned`` codec, which nobody else uses, is not copied.

    Raises:
        TypeError: ``codec`` is not a codec.
    """

    suffixes = (".cdz",)
    error = BitstreamError
    head_sizes = (FIXED_BYTES,)
    collate = staticmethod(collate_latents)

    def __init__(
        self,
        codec: Codec,
        transform: Callable[[Latent], Latent] | None,
        max_pixels: int | None,
        *,
        owned: bool = False,
    ) -> None:
        super().__init__(transform)
        if not isinstance(codec, Codec):
            raise TypeError(f"codec must be a cdzoo codec, not {type(codec).__name__}; build one with cdzoo.get_codec")
        self.codec = (codec if owned else copy.deepcopy(codec)).cpu().eval().requires_grad_(False)
        self.codec.fingerprint  # noqa: B018  (derives the coding tables once, and not in every forked worker)
        self._max_pixels = max_pixels

    def bucket_key(self, head: bytes) -> tuple[int, int]:
        """``(H, W)``, unverified."""
        return unverified_image_size(head)

    def decode(self, files: Sequence[bytes], names: Sequence[str] | None = None) -> list[Latent | CdzooError]:
        """Latent or error of each stream; streams of one image size are decoded together."""
        results: dict[int, Latent | CdzooError] = {}
        groups: dict[tuple[int, int], list[int]] = {}
        for position, stream in enumerate(files):
            try:
                groups.setdefault(self.bucket_key(stream), []).append(position)
            except BitstreamError:  # decompressing raises a more precise error
                results[position] = self._decode_group([stream])[0]
        for positions in groups.values():
            results.update(zip(positions, self._decode_group([files[p] for p in positions]), strict=True))
        return [results[position] for position in range(len(files))]

    def _decode_group(self, streams: Sequence[bytes]) -> list[Latent | CdzooError]:
        try:
            latent = self.codec.decompress(streams, max_pixels=self._max_pixels)
        except (BitstreamError, PairingError) as error:
            if len(streams) == 1:
                return [error]
            # one damaged stream must not affect the others
            return [result for stream in streams for result in self._decode_group([stream])]
        scales = [None] * len(streams) if latent.scales is None else torch.split(latent.scales, 1)
        return [Latent(y, s, latent.image_size) for y, s in zip(torch.split(latent.y_hat, 1), scales, strict=True)]


class StreamDataset(SampleDataset[Latent]):
    """Map-style dataset of ``.cdz`` streams, in a folder or in WebDataset shards, that gives latents.

    Streams of images of one size decode together, so use batches of one size::

        dataset = StreamDataset("imagenet-cdz/train", codec)
        sampler = SizeBucketSampler(dataset, batch_size=32, shuffle=True)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_latents, num_workers=4)

    Worker processes may be forked or spawned. They decode on the CPU with a copy of the codec, one thread each.

    A folder is searched with all its subfolders; hidden files are left out. Shards are indexed when the dataset is
    made, by a pass over their tar headers, and then read at random. Where random access is slow or there are very many
    shards, use :class:`~cdzoo.data.StreamShards`, which reads them front to back without an index.

    Args:
        root: a folder of ``.cdz`` files or of ``.tar`` shards; or shards as a path, a glob, a brace list
            (``"train-{000..131}.tar"``), or a sequence of these.
        codec: the codec that wrote the streams.
        labels: ``"auto"``: class subfolders for a folder (``"folder"``, numbered in alphabetical order as in
            torchvision's ``ImageFolder``), ``.cls`` members for shards (``"cls"``). Or a mapping from each sample's
            name to its label, or a function of its path (for shards, of its member's name); both are called when the
            dataset is made. ``None`` gives latents alone.
        transform: applied to each latent ``(1, M, h, w)``.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
        max_stream_bytes: refuse files and members of more bytes than this, before they are read.
        on_error: the treatment of a stream that is damaged, of another codec, or cannot be read: ``"raise"``;
            ``"skip"``, which logs a warning (logger ``cdzoo.data``) and leaves the sample out of the batch; or a
            function of the error, which also leaves it out unless the function raises. If no sample of a batch is left,
            the batch repeats the sample that its worker read last; if there is none, the error is raised.
            ``dataset[index]`` always raises. Messages name the file. A subfolder that cannot be read is treated alike
            when the dataset is made. A class folder of which nothing can be read raises, since leaving it out would
            change the numbers of the other classes.

    Attributes:
        names: each sample's name: its path below the folder, or its member's name.
        targets: each sample's label, or ``None`` without labels.
        classes: names of the classes, where the labels are class subfolders, otherwise ``None``.
        class_to_idx: their numbers, or ``None``.

    Raises:
        FileNotFoundError: no stream or shard there.
        ValueError: labels that do not fit, or unknown options.
        TypeError: labels of another kind, such as a list.
        BitstreamError: a damaged shard (with ``on_error="raise"``).
    """

    def __init__(
        self,
        root: Paths,
        codec: Codec,
        *,
        labels: Labels = "auto",
        transform: Callable[[Latent], Latent] | None = None,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        on_error: OnError = "raise",
    ) -> None:
        decoder = StreamDecoder(codec, transform, max_pixels)
        load_kernels()  # once, and not in every forked worker
        super().__init__(root, decoder, labels=labels, max_stream_bytes=max_stream_bytes, on_error=on_error)
        self._codec_name = decoder.codec.name

    def image_sizes(self) -> list[tuple[int, int] | None]:
        """``(H, W)`` of every image, from the first bytes of its stream."""
        return self.bucket_keys()

    def __repr__(self) -> str:
        return self._describe(f"{self._codec_name} streams")


class StreamShards(SampleShards[Latent]):
    """Iterable dataset of ``.cdz`` streams in WebDataset shards, that gives latents in batches of one image size.

    Shards are tar files with ``key.cdz`` and ``key.cls``. The dataset makes the batches, because streams of one size
    decode together; give the loader ``batch_size=None``::

        shards = StreamShards("train-{000..131}.tar", codec, batch_size=32, shuffle=True)
        loader = DataLoader(shards, batch_size=None, collate_fn=collate_latents, num_workers=4)
        for epoch in range(epochs):
            shards.set_epoch(epoch)
            for latent, labels in loader: ...

    Shards are divided among the ranks of torch.distributed and the loader's workers, forked or spawned. Each worker
    decodes on the CPU with a copy of the codec and one thread. Every sample comes exactly once. The number of batches
    of a rank depends on its shards: synchronous training over several ranks must stop at the same step on all of them.

    The order depends on ``seed``, the epoch, the number of ranks and of workers. Call ``set_epoch`` before each epoch,
    or every epoch has the same order. Persistent workers see the call too.

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
        seed: seed of the random order; the same on all ranks.
        drop_last: leave out batches with fewer than ``batch_size`` streams.
        max_pending: number of streams, per worker, that may wait for their batches to fill. When more wait, the
            fullest batch is given out as it is. Those that wait at the end are given out then.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
        max_stream_bytes: refuse members of more bytes than this, before they are read.
        on_error: the treatment of a stream, label or shard that cannot be read: ``"raise"``; ``"skip"``, which logs a
            warning (logger ``cdzoo.data``) and leaves out the sample or the rest of the shard; or a function of the
            error, which also leaves it out unless the function raises. Messages begin with the shard's path.
        num_replicas: number of processes that share the shards; by default torch.distributed's world size.
        rank: number of this process among them; by default torch.distributed's rank.

    Raises:
        FileNotFoundError: no shard there.
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
        load_kernels()  # once, and not in every forked worker
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
