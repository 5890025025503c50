"""The map-style dataset over files or shards, on which the public ones are built."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Generic, Literal, TypeVar

from torch.utils.data import Dataset

from cdzoo.data._decode import Decoder, ErrorPolicy, OnError, in_threads
from cdzoo.data._sources import FolderSource, ShardSource, class_folders, open_source
from cdzoo.data._webdataset import Paths
from cdzoo.errors import CdzooError

__all__ = ["Labels", "SampleDataset"]

T = TypeVar("T")
Labels = Literal["auto", "folder", "cls"] | Mapping[str, Any] | Callable[[PurePath], Any] | None


class SampleDataset(Dataset[T | tuple[T, Any]], Generic[T]):
    """Map-style dataset of the files that a decoder reads; the subclasses describe arguments and attributes."""

    def __init__(
        self, root: Paths, decoder: Decoder[T], *, labels: Labels, max_stream_bytes: int, on_error: OnError
    ) -> None:
        self._policy = ErrorPolicy(on_error)
        self._decoder = decoder
        self._max_stream_bytes = max_stream_bytes
        self._source = open_source(root, decoder, labels=labels, policy=self._policy)
        self._last_readable: int | None = None
        self._bucket_keys: list[Any] | None = None
        self.names = self._source.names
        self.classes: list[str] | None = None
        self.class_to_idx: dict[str, int] | None = None
        self.targets: list[Any] | None = self._find_targets(labels)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> T | tuple[T, Any]:
        """One sample, a batch of one, or a pair of it and its label; raises where it cannot be read."""
        (sample,) = self._load([operator.index(index)])
        if isinstance(sample, Exception):
            raise sample
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[T | tuple[T, Any]]:
        """The samples of one batch, in order, decoded together; ``DataLoader`` calls this."""
        samples: list[T | tuple[T, Any]] = []
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
        # A DataLoader cannot skip a batch, and losses fail on an empty one. So the batch repeats the sample read last,
        # which belongs to the same subset.
        if self._last_readable is None:
            raise error
        return [self[self._last_readable]]

    def bucket_keys(self) -> list[Any]:
        """The value that all files of a batch must share, for every file; read once and kept.

        A file that cannot be read raises, or has the key ``None`` and is left out by
        :class:`~cdzoo.data.SizeBucketSampler`, according to ``on_error``.

        Raises:
            CdzooError: a file that does not begin like its kind of file.
            OSError: a file that cannot be read.
        """
        if self._bucket_keys is None:
            keys: list[Hashable] = []
            for key in self._source.bucket_keys():
                if isinstance(key, Exception):
                    self._policy(key)
                keys.append(None if isinstance(key, Exception) else key)
            self._bucket_keys = keys
        return list(self._bucket_keys)

    def _describe(self, what: str) -> str:
        classes = "" if self.classes is None else f" of {len(self.classes)} classes"
        where = self._source.root if isinstance(self._source, FolderSource) else f"{len(self._source.shards)} shards"
        return f"{type(self).__name__}({len(self)} {what}{classes} in {where})"

    def _find_targets(self, labels: Labels) -> list[Any] | None:
        source = self._source
        if labels is None:
            return None
        if isinstance(labels, Mapping):
            missing = [name for name in self.names if name not in labels]
            if missing:
                raise ValueError(
                    f"labels lack {missing[0]!r} and {len(missing) - 1} more; keys are names below the folder, with "
                    "forward slashes and suffix, or names of shard members"
                )
            return [labels[name] for name in self.names]
        if callable(labels):
            return [labels(source.path(index)) for index in range(len(self))]
        if isinstance(source, ShardSource):
            return source.labels
        if labels == "auto" and not any("/" in name for name in self.names):  # no class folders
            return None
        self.classes, targets = class_folders(source.root, source.names)
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        return targets

    def _load(self, indices: Sequence[int]) -> list[T | tuple[T, Any] | Exception]:
        names = [self._source.describe(index) for index in indices]
        samples = self._decoder(names, in_threads(self._read, indices, self._decoder.num_threads))
        if self.targets is None:
            return list(samples)
        return [
            sample if isinstance(sample, Exception) else (sample, self.targets[index])
            for index, sample in zip(indices, samples, strict=True)
        ]

    def _read(self, index: int) -> bytes | Exception:
        try:
            return self._source.read(index, self._max_stream_bytes)
        except (CdzooError, OSError) as error:
            return error
