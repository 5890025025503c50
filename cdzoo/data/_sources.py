"""Where samples come from when any of them may be asked for: a folder of files, or shards with an index."""

from __future__ import annotations

import os
import reprlib
import stat
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from cdzoo.data._decode import Decoder, in_threads
from cdzoo.data._tar import Member, read_member
from cdzoo.data._webdataset import Paths, find_shards, read_samples

__all__ = [
    "FolderSource",
    "ShardSource",
    "Source",
    "check_labels",
    "class_folders",
    "find_files",
    "open_source",
    "read_file",
]

_PIECE = 64
_THREADS = 16  # reading headers waits for the disk or the network, not for the processor


class FolderSource:
    """Every file of a decoder's kind in a folder and its subfolders (links to folders included), sorted by path.

    Args:
        root: the folder.
        decoder: of its files.
        unreadable: told of subfolders that cannot be read.

    Attributes:
        names: paths relative to the folder, with forward slashes.
    """

    def __init__(self, root: Path, decoder: Decoder[Any], unreadable: Callable[[Exception], None]) -> None:
        self.root, self._decoder = root, decoder
        self.names = find_files(root, decoder.suffixes, unreadable)

    def path(self, index: int) -> PurePath:
        """What a function for labels gets to see."""
        return self.root / self.names[index]

    def describe(self, index: int) -> str:
        """The name of a sample in messages."""
        return str(self.path(index))

    def read(self, index: int, limit: int) -> bytes:
        """A whole file.

        Raises:
            CdzooError: the decoder's: no regular file, or larger than ``limit``.
            OSError: it has gone, or may not be read.
        """
        return read_file(self.describe(index), limit, self._decoder.error)

    def bucket_keys(self) -> list[Hashable]:
        """Every file's bucket key, or, in its place, why there is none."""
        pieces = [range(first, min(first + _PIECE, len(self.names))) for first in range(0, len(self.names), _PIECE)]
        known: dict[Hashable, Hashable] = {}
        found = in_threads(lambda piece: [self._bucket_key(index) for index in piece], pieces, _THREADS)
        return [known.setdefault(key, key) for keys in found for key in keys]

    def class_labels(self) -> tuple[list[str], list[int]]:
        """See :func:`class_folders`."""
        return class_folders(self.root, self.names)

    def _bucket_key(self, index: int) -> Hashable:
        path = self.describe(index)

        def head(count: int) -> bytes:
            count = min(count, _size(path, self._decoder.error))
            with open(path, "rb", buffering=0) as file:
                return file.read(count)

        return self._decoder.peek(path, head)


class ShardSource:
    """Samples in tar shards, indexed by one pass over the tar headers, then read from where they lie.

    Attributes:
        names: member names.
        labels: what the ``.cls`` members hold, if ``with_labels``.

    Args:
        shards: paths.
        decoder: of the members wanted.
        with_labels: whether to read ``.cls`` members.
        policy: told of each sample or shard that cannot be read; returns to leave it out.
    """

    def __init__(
        self,
        shards: Sequence[str],
        decoder: Decoder[Any],
        *,
        with_labels: bool,
        policy: Callable[[Exception], None],
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
        """What a function for labels gets to see: the member's name."""
        return PurePosixPath(self.names[index])

    def describe(self, index: int) -> str:
        """The name of a sample in messages."""
        return f"{self.shards[self._places[index][0]]}: {self.names[index]}"

    def read(self, index: int, limit: int) -> bytes:
        """A whole member.

        Raises:
            CdzooError: larger than ``limit``, which is the decoder's error, or cut off.
            OSError: the shard has gone, or may not be read.
        """
        number, offset, size = self._places[index]
        with open(self.shards[number], "rb") as file:
            member = Member(self.names[index], offset, size)
            return read_member(file, self.shards[number], member, limit, self._decoder.error)

    def bucket_keys(self) -> list[Hashable]:
        """Every member's bucket key, or why there is none, as it was when the index was made."""
        return self._bucket_keys


Source = FolderSource | ShardSource


def check_labels(labels: object, words: str) -> None:
    """Whether ``labels`` is of a kind that datasets take; which strings fit is known where the files are.

    Raises:
        TypeError: neither a string, a mapping nor a function, nor ``None``.
    """
    if not (labels is None or isinstance(labels, str | Mapping) or callable(labels)):
        raise TypeError(
            f"labels must be {words}, a mapping from names to labels, a function or None, not the "
            f"{type(labels).__name__} {reprlib.repr(labels)}; for labels in the order of a dataset's names, pass "
            "dict(zip(dataset.names, labels))."
        )


def open_source(
    root: Paths, decoder: Decoder[Any], *, labels: object, policy: Callable[[Exception], None]
) -> FolderSource | ShardSource:
    """The folder of files, or the shards, that ``root`` names.

    Raises:
        FileNotFoundError: nothing of the decoder's kind there.
        ValueError: ``labels`` is a string that does not fit.
        TypeError: it is of another kind than datasets take.
    """
    check_labels(labels, "'auto', 'folder', 'cls'")
    files = None
    if isinstance(root, str | os.PathLike) and os.path.isdir(root):
        files = FolderSource(Path(root), decoder, policy)
    kind = "folder" if files is not None and files.names else "cls"
    if isinstance(labels, str) and labels not in ("auto", kind):
        raise ValueError(f"labels of {root} must be 'auto' or {kind!r}, a mapping, a function or None, not {labels!r}.")
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
        raise FileNotFoundError(f"no sample with a {wanted} member in {len(shards)} shards, first {shards[0]}.")
    return source


def _raise(error: Exception) -> None:
    raise error


def find_files(root: Path, suffixes: tuple[str, ...], unreadable: Callable[[Exception], None] = _raise) -> list[str]:
    """Files in a folder and its subfolders, links to folders included: paths below it with forward slashes, sorted.

    A link that leads back to a folder above itself is not followed.

    Args:
        root: the folder; where it cannot be read itself, that is raised.
        suffixes: what names end with, in lower case.
        unreadable: told of each subfolder that cannot be read; it is left out if this returns.
    """
    names: list[str] = []
    lines = {os.fspath(root): frozenset({_identity(root)})}  # a folder to come -> it and all above it
    os.scandir(root).close()
    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        relative = PurePath(folder).relative_to(root)
        names += [(relative / name).as_posix() for name in files if name.lower().endswith(suffixes)]
        line = lines.pop(folder)
        for path in [os.path.join(folder, name) for name in subfolders]:
            identity = None
            try:
                identity = _identity(path)
            except OSError as error:
                unreadable(error)
            if identity is None or identity in line:
                subfolders.remove(os.path.basename(path))
            else:
                lines[path] = line | {identity}
    return sorted(names)


def class_folders(root: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Class names (the folders right below the root, sorted), and each file's class.

    Raises:
        ValueError: no such folders, a file outside of them, or a folder without any file.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
    firsts = [name.partition("/")[0] for name in names]
    known, used = set(classes), set(firsts)
    advice = "pass labels=None to do without labels, or a mapping or function that knows them."
    outside = [name for name, first in zip(names, firsts, strict=True) if first not in known]
    if outside:
        raise ValueError(f"{root}: {len(outside)} files lie in no class folder, first {outside[0]!r}; {advice}")
    if used != known:  # to leave them out would number the classes otherwise than in another split of the data
        raise ValueError(f"{root}: class folders without files: {sorted(known - used)}; remove them, or {advice}")
    number = {name: position for position, name in enumerate(classes)}
    return classes, [number[first] for first in firsts]


def read_file(path: str, limit: int, refused: type[Exception]) -> bytes:
    """A whole file.

    Raises:
        refused: no regular file, or larger than ``limit``.
        OSError: it has gone, or may not be read.
    """
    size = _size(path, refused)
    if size > limit:
        raise refused(
            f"{path}: {size} bytes, more than the limit of {limit}; "
            "if you trust the source, pass a larger max_stream_bytes."
        )
    with open(path, "rb") as file:
        return file.read(size)  # a larger count would have Python allocate as much


def _size(path: str, refused: type[Exception]) -> int:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device would never end
        raise refused(f"{path}: not a regular file.")
    return status.st_size


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
