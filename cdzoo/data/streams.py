"""Streams on disk to latents, any of them at any time."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

from torch.utils.data import Dataset

from cdzoo.codecs import MAX_IMAGE_PIXELS, Codec
from cdzoo.data._decode import HEAD_BYTES, MAX_STREAM_BYTES, ErrorPolicy, OnError, StreamDecoder, peek_image_size
from cdzoo.data._sources import FolderSource, ShardSource, Source
from cdzoo.data._webdataset import Paths, find_shards
from cdzoo.errors import BitstreamError
from cdzoo.types import Latent

__all__ = ["StreamDataset"]

Sample = Latent | tuple[Latent, Any]
Labels = Literal["auto", "folder", "cls"] | Mapping[str, Any] | Callable[[PurePath], Any] | None


class StreamDataset(Dataset[Sample]):
    """Map-style dataset of ``.cdz`` streams, in a folder or in WebDataset shards, that gives latents.

    Made for batches of one image size, which decode together::

        dataset = StreamDataset("imagenet-cdz/train", codec)
        sampler = SizeBucketSampler(dataset, batch_size=32, shuffle=True)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_latents, num_workers=4)

    Worker processes may be forked or spawned. They decode on the CPU with a copy of the codec, one thread each.

    A folder is searched with all its subfolders. Shards are indexed when the dataset is made, by a pass over their
    tar headers, and then read at random; :class:`~cdzoo.data.StreamShards` reads them front to back, without an
    index, where random access is slow or the shards are too many.

    Args:
        root: a folder of ``.cdz`` files or of ``.tar`` shards; or shards as a path, a glob, a brace list
            (``"train-{000..131}.tar"``), or a sequence of these.
        codec: the codec that wrote the streams.
        labels: ``"auto"``: class subfolders for a folder (``"folder"``, numbered in alphabetical order as in
            torchvision's ``ImageFolder``), ``.cls`` members for shards (``"cls"``). Or a mapping from each sample's
            name to its label, a function of its path (for shards, of its member's name), both called on making the
            dataset; or ``None`` for latents alone.
        transform: applied to each latent ``(1, M, h, w)``.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
        max_stream_bytes: refuse files and members of more bytes than this, before they are read.
        on_error: what happens to a batch in which a stream is damaged, of another codec, or cannot be read:
            ``"raise"``; ``"skip"``, which logs a warning (logger ``cdzoo.data``) and leaves the sample out; or a
            function of the error, which leaves it out too unless the function raises. A batch of which nothing is
            left repeats the sample that its worker read last, and raises if there is none. ``dataset[index]``
            raises always. Messages name the file.

    Attributes:
        names: each sample's name: its path below the folder, or its member's name.
        targets: each sample's label, or ``None`` without labels.
        classes: names of the classes, where the labels are class subfolders, otherwise ``None``.
        class_to_idx: their numbers, or ``None``.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: labels that do not fit, or unknown options.
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
        self._policy = ErrorPolicy(on_error)
        self._decoder = StreamDecoder(codec, transform, max_pixels)
        self._max_stream_bytes = max_stream_bytes
        self._source = _open_source(root, labels, self._policy)
        self._last_readable: int | None = None
        self._sizes: list[tuple[int, int] | None] | None = None
        self.names = self._source.names
        self.classes: list[str] | None = None
        self.class_to_idx: dict[str, int] | None = None
        self.targets: list[Any] | None = self._find_targets(labels)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """One latent ``(1, M, h, w)``, or a pair of it and its label; raises where it cannot be read."""
        (sample,) = self._load([operator.index(index)])
        if isinstance(sample, Exception):
            raise sample
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of one batch, in order, decoded together; ``DataLoader`` calls this."""
        samples: list[Sample] = []
        error: Exception | None = None
        for index, sample in zip(indices, self._load(indices), strict=True):
            if isinstance(sample, Exception):
                self._policy(sample)
                error = sample
            else:
                samples.append(sample)
                self._last_readable = index
        if samples or error is None:
            return samples
        # A DataLoader cannot leave out a batch, and loss functions have no use for an empty one. A sample that this
        # process was asked for before belongs to the same subset of the data.
        if self._last_readable is None:
            raise error
        return [self[self._last_readable]]

    def image_sizes(self) -> list[tuple[int, int] | None]:
        """``(H, W)`` of every image, from the first bytes of its stream; read once and kept.

        What cannot be read raises, or is ``None`` and left out by :class:`~cdzoo.data.SizeBucketSampler`, as
        ``on_error`` says.

        Raises:
            BitstreamError: a file that does not begin as a ``.cdz`` stream.
            OSError: a file that cannot be read.
        """
        if self._sizes is None:
            sizes: list[tuple[int, int] | None] = []
            for index, head in enumerate(self._source.heads(HEAD_BYTES)):
                size = None if isinstance(head, OSError) else peek_image_size(head)
                if isinstance(head, OSError):
                    self._policy(head)
                elif size is None:
                    name = self._source.describe(index)
                    self._policy(BitstreamError(f"{name}: not a .cdz stream, it begins with {head[:4]!r}."))
                sizes.append(size)
            self._sizes = sizes
        return list(self._sizes)

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f" of {len(self.classes)} classes"
        where = self._source.root if isinstance(self._source, FolderSource) else f"{len(self._source.shards)} shards"
        return f"StreamDataset({len(self)} {self._decoder.codec.name} streams{classes} in {where})"

    def _find_targets(self, labels: Labels) -> list[Any] | None:
        source = self._source
        if labels is None:
            return None
        if isinstance(labels, Mapping):
            missing = [name for name in self.names if name not in labels]
            if missing:
                raise ValueError(
                    f"labels lack {missing[0]!r} and {len(missing) - 1} more; keys are names below the folder, with "
                    "forward slashes and suffix, or names of shard members."
                )
            return [labels[name] for name in self.names]
        if callable(labels):
            return [labels(source.path(index)) for index in range(len(self))]
        if isinstance(source, ShardSource):
            return source.labels
        self.classes, targets = source.class_labels()
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        return targets

    def _load(self, indices: Sequence[int]) -> list[Sample | Exception]:
        names = [self._source.describe(index) for index in indices]
        latents = self._decoder(names, [self._read(index) for index in indices])
        if self.targets is None:
            return list(latents)
        return [
            latent if isinstance(latent, Exception) else (latent, self.targets[index])
            for index, latent in zip(indices, latents, strict=True)
        ]

    def _read(self, index: int) -> bytes | Exception:
        try:
            return self._source.read(index, self._max_stream_bytes)
        except (BitstreamError, OSError) as error:
            return error


def _open_source(root: Paths, labels: Labels, policy: ErrorPolicy) -> Source:
    files = FolderSource(Path(root), ".cdz") if isinstance(root, str | os.PathLike) and os.path.isdir(root) else None
    kind = "folder" if files is not None and files.names else "cls"
    if isinstance(labels, str) and labels not in ("auto", kind):
        raise ValueError(f"labels of {root} must be 'auto' or {kind!r}, a mapping, a function or None, not {labels!r}.")
    if files is not None and files.names:
        return files
    shards = find_shards(root)
    source = ShardSource(shards, ".cdz", head_bytes=HEAD_BYTES, with_labels=isinstance(labels, str), policy=policy)
    if not source.names:
        raise FileNotFoundError(f"no sample with a .cdz member in {len(shards)} shards, first {shards[0]}.")
    return source
