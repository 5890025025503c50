"""WebDataset's conventions: what shards are called, and which of their members make a sample.

A sample is a run of files whose names agree up to the first dot after the last slash; what follows the dot says which
of its members a file is. The conventions are those of the ``webdataset`` library (its ``tariterators`` module).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, TypeVar

from cdzoo.data._tar import Member, read_member, read_members
from cdzoo.errors import BitstreamError, CdzooError

__all__ = ["Paths", "ShardSample", "find_shards", "read_samples"]

T = TypeVar("T")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_KEY = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
_BUFFER_BYTES = 1 << 18
_MAX_LABEL_BYTES = 1024


class ShardSample(NamedTuple, Generic[T]):
    """A sample of a shard.

    Attributes:
        member: the file wanted.
        data: what was made of it.
        label: the class number in the sample's ``.cls`` member, 0 if not asked for.
    """

    member: Member
    data: T
    label: int


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
                    f"no shard at {path!r}; give .tar files, folders of them, globs, or ranges like {{000..131}}."
                )
            paths += found
    for path in paths:
        if not path.endswith(".tar"):
            raise ValueError(
                f"{path}: shards are plain .tar files; unpack .tar.gz (what is in them does not shrink), and of single "
                "files give the folder."
            )
    if not paths:
        raise ValueError("no shards: give at least one path.")
    return paths


def read_samples(
    shard: str, suffixes: Sequence[str], load: Callable[[BinaryIO, Member], T], *, with_labels: bool
) -> Iterator[ShardSample[T] | CdzooError | OSError]:
    """The samples of one shard front to back, with errors in the place of what cannot be read.

    Args:
        shard: its path.
        suffixes: extensions that the member wanted may have, with dots; samples without one are passed over.
        load: reads what is needed of a member from the open shard.
        with_labels: whether to read ``.cls`` members; their absence is an error then.
    """
    empty = True
    try:
        with open(shard, "rb", buffering=_BUFFER_BYTES) as file:
            for key, members, twice in _read_groups(file, shard):
                try:
                    if twice is not None:
                        empty = False
                        raise BitstreamError(f"{shard}: member {twice!r} comes twice; a sample has one of each kind.")
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
    """Keys, members by extension, and the name of one that comes twice.

    The last sample before a damaged place may lack members, and is not given out.
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
        raise BitstreamError(f"{shard}: members {names} are one sample by their names; give each a name of its own.")
    if found:
        return found[0]
    for extension, other in members.items():
        if extension.endswith(tuple(suffixes)):
            suffix = extension[extension.rindex(".") :]
            raise BitstreamError(
                f"{shard}: member {other.name!r} is a {extension!r} by WebDataset's rule, which takes all after "
                f"the first dot; name it without dots before {suffix!r}, as write_shards does."
            )
    return None


def _read_label(file: BinaryIO, shard: str, key: str, members: dict[str, Member]) -> int:
    if "cls" not in members:
        raise BitstreamError(f"{shard}: sample {key!r} has no .cls member; pass labels=None to do without.")
    data = read_member(file, shard, members["cls"], _MAX_LABEL_BYTES)
    try:
        return int(data)
    except ValueError:
        name = members["cls"].name
        raise BitstreamError(f"{shard}: member {name!r} holds {data[:20]!r}, not a class number.") from None


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
