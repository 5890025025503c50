"""Sources of samples with random access: a folder of files, or shards with an index."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from cdzoo._files import file_size, find_files, read_file
from cdzoo.data._decode import Decoder, in_threads
from cdzoo.data._webdataset import Member, Paths, find_shards, read_member, read_samples

__all__ = ["FolderSource", "ShardSource", "Source", "check_labels", "class_folders", "open_source"]

_PIECE = 64
_THREADS = 16  # reading headers waits for the disk or the network, not for the CPU


class FolderSource:
    """All files of a decoder's kind in a folder and its subfolders, sorted by path.

    Args:
        root: the folder.
        decoder: the decoder of its files.
        unreadable: called with the error of each subfolder that cannot be read.

    Attributes:
        names: paths relative to the folder, with forward slashes.
    """

    def __init__(self, root: Path, decoder: Decoder[Any], unreadable: Callable[[Exception], None]) -> None:
        self.root, self._decoder = root, decoder
        self.names = find_files(root, decoder.suffixes, unreadable)

    def path(self, index: int) -> PurePath:
        """The path that a ``labels`` function receives."""
        return self.root / self.names[index]

    def describe(self, index: int) -> str:
        """The name of a sample in messages."""
        return str(self.path(index))

    def read(self, index: int, limit: int) -> bytes:
        """A whole file.

        Raises:
            CdzooError: not a regular file, or larger than ``limit``; the decoder's kind of error.
            OSError: it does not exist any more, or may not be read.
        """
        return read_file(self.describe(index), limit, self._decoder.error)

    def bucket_keys(self) -> list[Hashable]:
        """Every file's bucket key, or the error in its place."""
        pieces = [range(first, min(first + _PIECE, len(self.names))) for first in range(0, len(self.names), _PIECE)]
        known: dict[Hashable, Hashable] = {}
        found = in_threads(lambda piece: [self._bucket_key(index) for index in piece], pieces, _THREADS)
        return [known.setdefault(key, key) for keys in found for key in keys]

    def _bucket_key(self, index: int) -> Hashable:
        path = self.describe(index)

        def head(count: int) -> bytes:
            count = min(count, file_size(path, self._decoder.error))
            with open(path, "rb", buffering=0) as file:
                return file.read(count)

        return self._decoder.peek(path, head)


class ShardSource:
    """Samples in tar shards: one pass over the tar headers makes an index, then members are read at random.

    Attributes:
        names: member names.
        labels: numbers in the ``.cls`` members, if ``with_labels``.

    Args:
        shards: paths.
        decoder: the decoder of the wanted members.
        with_labels: read ``.cls`` members.
        policy: called with the error of each sample or shard that cannot be read; it is left out if this returns.
    """

    def __init__(
        self, shards: Sequence[str], decoder: Decoder[Any], *, with_labels: bool, policy: Callable[[Exception], None]
    ) -> None:
        def load(file: BinaryIO, member: Member) -> Hashable:
            def head(count: int) -> bytes:
                file.seek(member.offset)
                return file.read(min(count, member.size))

            return decoder.peek(f"{shard}: {member.name}", head)

        self.shards, self._decoder = list(shards), decoder
        self.names: list[str] = []
        self.labels: list[int] = []
        self._places: list[tuple[int, int, int]] = []
        self._bucket_keys: list[Hashable] = []
        known: dict[Hashable, Hashable] = {}
        for number, shard in enumerate(self.shards):
            for sample in read_samples(shard, decoder.suffixes, load, with_labels=with_labels):
                if isinstance(sample, Exception):
                    policy(sample)
                    continue
                self.names.append(sample.member.name)
                self.labels.append(sample.label)
                self._places.append((number, sample.member.offset, sample.member.size))
                self._bucket_keys.append(known.setdefault(sample.data, sample.data))

    def path(self, index: int) -> PurePath:
        """The path that a ``labels`` function receives: the member's name."""
        return PurePosixPath(self.names[index])

    def describe(self, index: int) -> str:
        """The name of a sample in messages."""
        return f"{self.shards[self._places[index][0]]}: {self.names[index]}"

    def read(self, index: int, limit: int) -> bytes:
        """A whole member.

        Raises:
            CdzooError: larger than ``limit`` (the decoder's kind of error), or cut off.
            OSError: the shard does not exist any more, or may not be read.
        """
        number, offset, size = self._places[index]
        with open(self.shards[number], "rb") as file:
            member = Member(self.names[index], offset, size)
            return read_member(file, self.shards[number], member, limit, self._decoder.error)

    def bucket_keys(self) -> list[Hashable]:
        """Every member's bucket key, or the error in its place, as they were when the index was made."""
        return self._bucket_keys


Source = FolderSource | ShardSource


def check_labels(labels: object, words: str) -> None:
    """Check the type of ``labels``; the source checks the value of a string.

    Raises:
        TypeError: not a string, mapping, function or ``None``.
    """
    if not (labels is None or isinstance(labels, str | Mapping) or callable(labels)):
        raise TypeError(
            f"labels must be {words}, a mapping from names to labels, a function or None, not the "
            f"{type(labels).__name__} {reprlib.repr(labels)}; for labels in the order of a dataset's names, pass "
            "dict(zip(dataset.names, labels))"
        )


def open_source(
    root: Paths, decoder: Decoder[Any], *, labels: object, policy: Callable[[Exception], None]
) -> FolderSource | ShardSource:
    """The folder of files, or the shards, that ``root`` names.

    Raises:
        FileNotFoundError: nothing of the decoder's kind there.
        ValueError: ``labels`` is a string that does not fit the source.
        TypeError: ``labels`` has an unsupported type.
    """
    check_labels(labels, "'auto', 'folder', 'cls'")
    files = None
    if isinstance(root, str | os.PathLike) and os.path.isdir(root):
        files = FolderSource(Path(root), decoder, policy)
    kind = "folder" if files is not None and files.names else "cls"
    if isinstance(labels, str) and labels not in ("auto", kind):
        raise ValueError(f"labels of {root} must be 'auto' or {kind!r}, a mapping, a function or None, not {labels!r}")
    if files is not None and files.names:
        return files
    wanted = " or ".join(decoder.suffixes)
    try:
        shards = find_shards(root)
    except FileNotFoundError as error:
        if files is None:
            raise
        raise FileNotFoundError(f"no {wanted} file in {root}, and {error}") from None
    source = ShardSource(shards, decoder, with_labels=isinstance(labels, str), policy=policy)
    if not source.names:
        raise FileNotFoundError(f"no sample with a {wanted} member in {len(shards)} shards, first {shards[0]}")
    return source


def class_folders(root: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Class names (the folders directly below the root, sorted), and the number of each file's class.

    Raises:
        ValueError: no such folders, a file outside of them, or a folder without any file.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
    firsts = [name.partition("/")[0] for name in names]
    known, used = set(classes), set(firsts)
    advice = "pass labels=None to do without labels, or a mapping or function that knows them"
    outside = [name for name, first in zip(names, firsts, strict=True) if first not in known]
    if outside:
        raise ValueError(f"{root}: {len(outside)} files lie in no class folder, first {outside[0]!r}; {advice}")
    if used != known:  # leaving them out would number the classes unlike another split of the data
        raise ValueError(f"{root}: class folders without files: {sorted(known - used)}; remove them, or {advice}")
    number = {name: position for position, name in enumerate(classes)}
    return classes, [number[first] for first in firsts]
