"""Where samples come from when any of them may be asked for: a folder of files, or shards with an index."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from cdzoo.data._tar import Member, read_member
from cdzoo.data._webdataset import read_samples
from cdzoo.errors import BitstreamError

__all__ = ["FolderSource", "ShardSource", "Source"]

_PIECE = 64
_THREADS = 16  # reading headers waits for the disk or the network, not for the processor


class FolderSource:
    """Every file with a suffix in a folder and its subfolders (links to folders included), sorted by path.

    Attributes:
        names: paths relative to the folder, with forward slashes.
    """

    def __init__(self, root: Path, suffix: str) -> None:
        self.root = root
        self.names: list[str] = []
        for folder, _, files in os.walk(root, onerror=_raise, followlinks=True):
            relative = PurePath(folder).relative_to(root)
            self.names += [(relative / name).as_posix() for name in files if name.lower().endswith(suffix)]
        self.names.sort()

    def path(self, index: int) -> PurePath:
        """What a function for labels gets to see."""
        return self.root / self.names[index]

    def describe(self, index: int) -> str:
        """The name of a sample in messages."""
        return str(self.path(index))

    def read(self, index: int, limit: int) -> bytes:
        """A whole file.

        Raises:
            BitstreamError: no regular file, or larger than ``limit``.
            OSError: it has gone, or may not be read.
        """
        path = self.describe(index)
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device would never end
            raise BitstreamError(f"{path}: not a regular file.")
        if status.st_size > limit:
            raise BitstreamError(
                f"{path}: {status.st_size} bytes, more than the limit of {limit}; "
                "if you trust the source, pass a larger max_stream_bytes."
            )
        with open(path, "rb") as file:
            return file.read(limit)

    def heads(self, count: int) -> list[bytes | OSError]:
        """The first bytes of every file, or why they cannot be read."""
        pieces = [range(first, min(first + _PIECE, len(self.names))) for first in range(0, len(self.names), _PIECE)]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda piece: [self._head(index, count) for index in piece], pieces)
            return [head for heads in found for head in heads]

    def class_labels(self) -> tuple[list[str], list[int]]:
        """Class names (the folders right below the root, sorted), and each file's class.

        Raises:
            ValueError: no such folders, a file outside of them, or a folder without any file.
        """
        classes = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name[0] != ".")
        firsts = [name.partition("/")[0] for name in self.names]
        known, used = set(classes), set(firsts)
        advice = "pass labels=None for latents without labels, or a mapping or function that knows them."
        outside = [name for name, first in zip(self.names, firsts, strict=True) if first not in known]
        if outside:
            raise ValueError(
                f"{self.root}: {len(outside)} files lie in no class folder, first {outside[0]!r}; {advice}"
            )
        if used != known:  # to leave them out would number the classes otherwise than in another split of the data
            raise ValueError(
                f"{self.root}: class folders without files: {sorted(known - used)}; remove them, or {advice}"
            )
        number = {name: position for position, name in enumerate(classes)}
        return classes, [number[first] for first in firsts]

    def _head(self, index: int, count: int) -> bytes | OSError:
        path = self.describe(index)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return b""
            with open(path, "rb", buffering=0) as file:
                return file.read(count)
        except OSError as error:
            return error


class ShardSource:
    """Samples in tar shards, indexed by one pass over the tar headers, then read from where they lie.

    Attributes:
        names: member names.
        labels: what the ``.cls`` members hold, if ``with_labels``.

    Args:
        shards: paths.
        suffix: extension of the members wanted, with its dot.
        head_bytes: how much of each member to keep, for its image size.
        with_labels: whether to read ``.cls`` members.
        policy: told of each sample or shard that cannot be read; returns to leave it out.
    """

    def __init__(
        self,
        shards: Sequence[str],
        suffix: str,
        *,
        head_bytes: int,
        with_labels: bool,
        policy: Callable[[Exception], None],
    ) -> None:
        def load(file: BinaryIO, member: Member) -> bytes:
            file.seek(member.offset)
            return file.read(min(head_bytes, member.size))

        self.shards = list(shards)
        self.names: list[str] = []
        self.labels: list[int] = []
        self._places: list[tuple[int, int, int]] = []
        self._heads: list[bytes | OSError] = []
        for number, shard in enumerate(self.shards):
            for sample in read_samples(shard, suffix, load, with_labels=with_labels):
                if isinstance(sample, Exception):
                    policy(sample)
                    continue
                self.names.append(sample.member.name)
                self.labels.append(sample.label)
                self._places.append((number, sample.member.offset, sample.member.size))
                self._heads.append(sample.data)

    def path(self, index: int) -> PurePath:
        """What a function for labels gets to see: the member's name."""
        return PurePosixPath(self.names[index])

    def describe(self, index: int) -> str:
        """The name of a sample in messages."""
        return f"{self.shards[self._places[index][0]]}: {self.names[index]}"

    def read(self, index: int, limit: int) -> bytes:
        """A whole member.

        Raises:
            BitstreamError: larger than ``limit``, or cut off.
            OSError: the shard has gone, or may not be read.
        """
        number, offset, size = self._places[index]
        with open(self.shards[number], "rb") as file:
            return read_member(file, self.shards[number], Member(self.names[index], offset, size), limit)

    def heads(self, count: int) -> list[bytes | OSError]:
        """The first bytes of every member, as they were when the index was made."""
        return self._heads


Source = FolderSource | ShardSource


def _raise(error: OSError) -> None:
    raise error
