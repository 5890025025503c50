"""WebDataset shards: tar archives, their names, and the samples that their members make.

A sample is a run of files whose names agree up to the first dot after the last slash; the part after the dot is the
kind of the member. These are the conventions of the ``webdataset`` library (its ``tariterators`` module).

Archives are read forwards and strictly, and no member is loaded unasked. The standard library's reader takes a damaged
header in the middle of an archive, or the end of a truncated file, for the end of the archive without an error, so
samples would be missing. Here an archive that does not end with its end-of-archive block raises. Headers are still
parsed by ``tarfile.TarInfo.frombuf``. Format: POSIX.1-2017, "pax", sections "ustar Interchange Format" and "pax
Extended Header"; GNU long names.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, TypeVar

from cdzoo.errors import BitstreamError, CdzooError

__all__ = ["Member", "Paths", "ShardSample", "find_shards", "read_member", "read_members", "read_samples"]

T = TypeVar("T")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_KEY = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
_BUFFER_BYTES = 1 << 18
_MAX_LABEL_BYTES = 1024
_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME_BYTES = 1 << 20

# -- names of shards -------------------------------------------------------------------------------------------------


def find_shards(shards: Paths) -> list[str]:
    """Folders, paths, globs and brace lists (``train-{000..131}.tar``, ``{a,b}.tar``) to the paths of shards.

    Raises:
        FileNotFoundError: a path or pattern without any file, or a folder without any shard.
        ValueError: a file that is not called ``.tar``, or no shard at all.
    """
    paths: list[str] = []
    for pattern in [shards] if isinstance(shards, str | os.PathLike) else shards:
        for path in _expand_braces(os.fspath(pattern)):
            if os.path.isdir(path):
                found = sorted(str(file) for file in Path(path).iterdir() if file.suffix == ".tar")
            else:
                found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
            if not found:
                raise FileNotFoundError(
                    f"no shard at {path!r}; give .tar files, folders of them, globs, or ranges like {{000..131}}"
                )
            paths += found
    for path in paths:
        if not path.endswith(".tar"):
            raise ValueError(
                f"{path}: shards are plain .tar files; unpack .tar.gz (compressed images do not shrink), and "
                "for single files give their folder"
            )
    if not paths:
        raise ValueError("no shards: give at least one path")
    return paths


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        width = len(span[1]) if len(span[1]) == len(span[2]) or span[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [path for choice in choices for path in _expand_braces(before + choice + after)]


# -- tar archives ----------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A regular file in a tar archive: where its bytes are."""

    name: str
    offset: int
    size: int


def read_member(
    file: BinaryIO, shard: str, member: Member, limit: int, too_large: type[CdzooError] = BitstreamError
) -> bytes:
    """The bytes of one member. Errors name shard and member.

    Raises:
        BitstreamError: it is cut off.
        too_large: it is larger than ``limit``; nothing is read then.
    """
    if member.size > limit:
        raise too_large(
            f"{shard}: member {member.name!r} has {member.size} bytes, more than the limit of {limit}; "
            "if you trust the source, pass a larger max_stream_bytes"
        )
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) != member.size:
        raise BitstreamError(
            f"{shard}: truncated in member {member.name!r}; {len(data)} of {member.size} bytes are there"
        )
    return data


def read_members(file: BinaryIO, shard: str) -> Iterator[Member]:
    """The regular files in an open archive, in order. The caller may read elsewhere in it between two of them.

    Raises:
        BitstreamError: the archive is damaged or truncated; names it and the place. Complete members before that
            place have been given out.
    """
    total = os.fstat(file.fileno()).st_size
    position, place = 0, "at its very beginning"
    overrides: dict[str, str] = {}  # name and size of the next member, from the extended headers before it
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise BitstreamError(f"{shard}: truncated tar: it ends {place}, without an end-of-archive block")
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            name, size = overrides.get("path", info.name), int(overrides.get("size", info.size))
            if size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
                raise ValueError(f"member {name!r} is sparse or of negative size")
            position += _BLOCK
            if info.type in _EXTENSIONS:
                if size > _MAX_NAME_BYTES:
                    raise ValueError(f"an extended header of {size} bytes")
                header = read_member(file, shard, Member("extended header", position, size), size)
                overrides |= _parse_extension(info.type, header)
            else:
                overrides = {}
                if info.type not in _EMPTY and position + size > total:
                    raise BitstreamError(
                        f"{shard}: truncated in member {name!r}: {max(0, total - position)} of {size} bytes are there"
                    )
                if info.isreg():
                    yield Member(name, position, size)
                place = f"after member {name!r}"
        except BitstreamError:
            raise
        except (tarfile.HeaderError, ValueError) as error:
            packed = "; it is compressed by gzip, unpack it" if block[:2] == b"\x1f\x8b" else ""
            raise BitstreamError(f"{shard}: damaged tar, {place}: {error}{packed}") from error
        if info.type not in _EMPTY:
            position += -(-size // _BLOCK) * _BLOCK


_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, *_PAX)
_EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def _parse_extension(kind: bytes, data: bytes) -> dict[str, str]:
    """The next member's path and size in an extended header; raises ``ValueError`` if it is damaged."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while data and kind in _PAX:  # records "%d %s=%s\n" of length, keyword and value; the length counts its own digits
        digits = data[: data.index(b" ")]
        length = int(digits)
        keyword, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if length <= len(digits) or data[length - 1 : length] != b"\n":
            raise ValueError(f"a record of length {length} in an extended header")
        if keyword in (b"path", b"size"):
            found[keyword.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return found


# -- samples ---------------------------------------------------------------------------------------------------------


class ShardSample(NamedTuple, Generic[T]):
    """A sample of a shard.

    Attributes:
        member: the file wanted.
        data: the value that ``load`` returned for it.
        label: the class number in the sample's ``.cls`` member; 0 without labels.
    """

    member: Member
    data: T
    label: int


def read_samples(
    shard: str, suffixes: Sequence[str], load: Callable[[BinaryIO, Member], T], *, with_labels: bool
) -> Iterator[ShardSample[T] | CdzooError | OSError]:
    """The samples of one shard front to back, with an error in place of each one that cannot be read.

    Args:
        shard: its path.
        suffixes: extensions of the wanted member, with dots; samples without such a member are left out.
        load: reads the wanted member from the open shard.
        with_labels: read ``.cls`` members; a missing one is an error then.
    """
    empty = True
    try:
        with open(shard, "rb", buffering=_BUFFER_BYTES) as file:
            for key, members, twice in _read_groups(file, shard):
                try:
                    if twice is not None:
                        empty = False
                        raise BitstreamError(f"{shard}: member {twice!r} comes twice; a sample has one of each kind")
                    member = _pick(members, shard, suffixes)
                    if member is None:
                        continue
                    empty = False
                    label = _read_label(file, shard, key, members) if with_labels else 0
                    sample = ShardSample(member, load(file, member), label)
                except CdzooError as error:
                    yield error
                else:
                    yield sample
        if empty:
            wanted = " or ".join(suffixes)
            yield BitstreamError(f"{shard}: no sample has a {wanted} member; is it a shard of something else?")
    except (BitstreamError, OSError) as error:
        yield error


def _read_groups(file: BinaryIO, shard: str) -> Iterator[tuple[str, dict[str, Member], str | None]]:
    """Keys, members by extension, and the name of a member that comes twice, or ``None``.

    The last sample before a damaged place may lack members and is left out.
    """
    key, members, twice = "", dict[str, Member](), None
    for member in read_members(file, shard):
        match = _KEY.match(member.name)
        if match is None:  # hidden files, and files without an extension, belong to no sample
            continue
        if match[1] != key:
            if members:
                yield key, members, twice
            key, members, twice = match[1], {}, None
        if match[2].lower() in members:
            twice = member.name
        members[match[2].lower()] = member
    if members:
        yield key, members, twice


def _pick(members: dict[str, Member], shard: str, suffixes: Sequence[str]) -> Member | None:
    found = [members[suffix[1:]] for suffix in suffixes if suffix[1:] in members]
    if len(found) > 1:
        names = " and ".join(repr(member.name) for member in found)
        raise BitstreamError(f"{shard}: members {names} are one sample by their names; give each a name of its own")
    if found:
        return found[0]
    for extension, other in members.items():
        if extension.endswith(tuple(suffixes)):
            suffix = extension[extension.rindex(".") :]
            raise BitstreamError(
                f"{shard}: member {other.name!r} is a {extension!r} by WebDataset's rule, which takes all after "
                f"the first dot; name it without dots before {suffix!r}, as write_shards does"
            )
    return None


def _read_label(file: BinaryIO, shard: str, key: str, members: dict[str, Member]) -> int:
    if "cls" not in members:
        raise BitstreamError(f"{shard}: sample {key!r} has no .cls member; pass labels=None to do without")
    data = read_member(file, shard, members["cls"], _MAX_LABEL_BYTES)
    try:
        return int(data)
    except ValueError:
        name = members["cls"].name
        raise BitstreamError(f"{shard}: member {name!r} holds {data[:20]!r}, not a class number") from None
