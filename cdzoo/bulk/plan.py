"""Parts of an archive: their files, which of them are finished, and counts of the results."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cdzoo._checks import check_size
from cdzoo._files import find_files, read_file, write_atomically
from cdzoo.data._sources import class_folders
from cdzoo.data._webdataset import Member, Paths, find_shards, read_member, read_samples

__all__ = ["BulkSummary", "File", "Part", "make_plan", "read_part", "summarize", "unfinished"]

_PLAN = "plan.json"


class File(NamedTuple):
    """A file to process.

    Attributes:
        number: its place among the files of the run or part.
        name: its name in reports.
        data: its content, or the error that reading it raised.
        sample: its name in a shard, without suffix.
        label: its class number, or ``None``.
    """

    number: int
    name: str
    data: bytes | Exception
    sample: str = ""
    label: int | None = None

    @property
    def content(self) -> bytes:
        """``data`` of a file that could be read."""
        assert isinstance(self.data, bytes)
        return self.data


class Part(NamedTuple):
    """The unit of work of one worker: a shard, or some files of a folder.

    Attributes:
        number: the part's number.
        first: number of its first file among all, for the names of samples; 0 for a shard.
        shard: path of the shard, or ``None``.
        folder: the folder of the files, where there is no shard.
        files: their paths below it.
        labels: their class numbers, or ``None``.
    """

    number: int
    first: int
    shard: str | None
    folder: str
    files: tuple[str, ...]
    labels: tuple[int, ...] | None

    @property
    def table(self) -> str:
        """File name of its result."""
        return f"part-{self.number:06d}.parquet"


class BulkSummary(NamedTuple):
    """Counts of the results in an output folder.

    Attributes:
        parts: number of parts.
        skipped: parts that were finished before this run.
        files: files in all parts.
        failed: files that could not be processed; the column ``error`` of the tables holds the reasons.
    """

    parts: int
    skipped: int
    files: int
    failed: int


def make_plan(
    source: Paths,
    output: Path,
    *,
    suffixes: tuple[str, ...],
    facts: Mapping[str, Any],
    with_labels: bool,
    part_size: int,
) -> list[Part]:
    """Divide a source into parts; create the output folder, which records the plan.

    Args:
        source: a folder of files, or shards.
        output: folder for the results.
        suffixes: suffixes of the wanted files, in lower case.
        facts: everything that the results depend on, JSON-ready.
        with_labels: give the files of a folder the numbers of their class folders.
        part_size: number of files of a folder in a part.

    Raises:
        FileNotFoundError: no such files.
        ValueError: ``part_size`` below 1, or an output folder that belongs to another source or task, or is the source.
    """
    check_size("part_size", part_size)
    parts = _parts(source, suffixes, with_labels, part_size)
    digest = hashlib.sha256()
    for part in parts:
        names = [part.shard, os.path.getsize(part.shard)] if part.shard is not None else [part.folder, *part.files]
        digest.update(json.dumps([names, part.labels]).encode())
    places = {os.path.realpath(os.path.dirname(part.shard) if part.shard else part.folder) for part in parts}
    above = {os.fspath(path) for path in (Path(os.path.realpath(output)), *Path(os.path.realpath(output)).parents)}
    inside = places & above if parts[0].shard is None else places & {os.path.realpath(output)}
    if inside:
        raise ValueError(f"{output}: results would lie among the files that are read; choose another folder")
    facts = {"format": 1, **facts, "parts": len(parts), "files": digest.hexdigest()}
    output.mkdir(parents=True, exist_ok=True)
    path = output / _PLAN
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        if any(output.glob("part-*")):
            raise ValueError(f"{output}: holds parts without a {_PLAN}; choose another folder") from None
        write_atomically(path, json.dumps(facts, indent=2).encode())
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); choose another folder, or remove this one") from error
    else:
        if not isinstance(known, dict):
            raise ValueError(f"{path}: damaged; choose another folder, or remove this one")
        other = sorted(key for key in {*known, *facts} if known.get(key) != facts.get(key))
        if other:
            raise ValueError(
                f"{output}: holds results of a run that differs in {', '.join(other)}; choose another folder, or "
                "remove this one (a run continues only with the same files, weights and options)"
            )
    return parts


def _parts(source: Paths, suffixes: tuple[str, ...], with_labels: bool, part_size: int) -> list[Part]:
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        folder = Path(os.path.abspath(source))  # workers may have another current folder
        names = find_files(folder, suffixes)
        if names:
            if any(name.endswith(".tar") for name in os.listdir(folder)):
                raise ValueError(
                    f"{folder}: holds shards and files ({names[0]!r} and so on); name the shards, as 'folder/*.tar', "
                    "or move one kind elsewhere"
                )
            labels = class_folders(folder, names)[1] if with_labels else None
            return [
                Part(number, first, None, os.fspath(folder), tuple(names[first : first + part_size]),
                     None if labels is None else tuple(labels[first : first + part_size]))
                for number, first in enumerate(range(0, len(names), part_size))
            ]  # fmt: skip
    try:
        shards = find_shards(source)
    except FileNotFoundError as error:
        wanted = ", ".join(suffixes)
        raise FileNotFoundError(f"no file that ends in one of {wanted}, and {error}") from None
    if twice := [shard for shard, count in Counter(map(os.path.realpath, shards)).items() if count > 1]:
        raise ValueError(f"{twice[0]}: named twice; name every shard once")
    return [Part(number, 0, os.path.abspath(shard), "", (), None) for number, shard in enumerate(shards)]


def unfinished(parts: Sequence[Part], output: Path) -> list[Part]:
    """Parts without a result."""
    there = set(os.listdir(output))
    return [part for part in parts if part.table not in there]


def summarize(parts: Sequence[Part], output: Path, *, skipped: int) -> BulkSummary:
    """Counts of the results, from the footers of the tables."""
    import pyarrow.parquet as pq

    files = failed = 0
    for part in parts:
        footer = pq.read_metadata(output / part.table)
        files += footer.num_rows
        for group in map(footer.row_group, range(footer.num_row_groups)):
            failed += group.num_rows - group.column(group.num_columns - 1).statistics.null_count
    return BulkSummary(len(parts), skipped, files, failed)


def read_part(part: Part, suffixes: tuple[str, ...], *, limit: int, with_labels: bool) -> Iterator[File]:
    """Read the files of a part, one after the other; a file that cannot be read holds its error.

    Raises:
        FileNotFoundError: the whole source is missing on this machine.
    """
    place = part.folder if part.shard is None else os.path.dirname(part.shard)
    if not os.path.isdir(place):
        raise FileNotFoundError(errno.ENOENT, "this machine does not see the source", place)
    if part.shard is None:
        for index, name in enumerate(part.files):
            try:
                data: bytes | Exception = read_file(os.path.join(part.folder, name), limit)
            except (OSError, ValueError) as error:
                data = error
            sample = f"{part.first + index:09d}-{Path(name).stem.replace('.', '_')}"
            yield File(index, name, data, sample, None if part.labels is None else part.labels[index])
        return
    shard = part.shard

    def load(file: BinaryIO, member: Member) -> bytes:
        return read_member(file, shard, member, limit)

    for index, found in enumerate(read_samples(shard, suffixes, load, with_labels=with_labels)):
        if isinstance(found, Exception):
            yield File(index, os.path.basename(shard), found)
            continue
        folder, slash, base = found.member.name.rpartition("/")
        key = folder + slash + base.partition(".")[0]  # WebDataset's key ends at the first dot
        yield File(index, found.member.name, found.data, key, found.label if with_labels else None)
