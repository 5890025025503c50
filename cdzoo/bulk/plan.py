"""What the parts of an archive are, which of them are done, and what came out."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cdzoo._files import find_files, write_atomically
from cdzoo.data._sources import class_folders
from cdzoo.data._webdataset import Paths, find_shards

if TYPE_CHECKING:
    from cdzoo.bulk.task import Task

__all__ = ["BulkSummary", "Part", "make_plan", "summarise", "unfinished"]

_PLAN = "plan.json"


class Part(NamedTuple):
    """What one worker does in one go.

    Attributes:
        number: of the part.
        first: number of its first file among all, for the names of samples; 0 for a shard.
        shard: its path, or ``None``.
        folder: or the folder of the files.
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
    """What lies in an output folder.

    Attributes:
        parts: number of parts.
        skipped: how many of them were there before this run.
        files: files that were read, or should have been.
        failed: those of them that could not be; the column ``error`` of the tables says why.
    """

    parts: int
    skipped: int
    files: int
    failed: int


def make_plan(task: Task, source: Paths, output: Path, *, part_size: int) -> list[Part]:
    """The parts of a source; the output folder is made, and remembers what they are.

    Args:
        task: what is to be done.
        source: a folder of files, or shards.
        output: where results go.
        part_size: files of a folder that make a part.

    Raises:
        FileNotFoundError: no files of the task's kind.
        ValueError: ``part_size`` below 1, an output folder that belongs to another source or task, or is the source.
    """
    if part_size < 1:
        raise ValueError(f"part_size must be at least 1, not {part_size}.")
    parts = _parts(task, source, part_size)
    digest = hashlib.sha256()
    for part in parts:
        names = [part.shard, os.path.getsize(part.shard)] if part.shard is not None else [part.folder, *part.files]
        digest.update(json.dumps([names, part.labels]).encode())
    places = {os.path.realpath(os.path.dirname(part.shard) if part.shard else part.folder) for part in parts}
    above = {os.fspath(path) for path in (Path(os.path.realpath(output)), *Path(os.path.realpath(output)).parents)}
    inside = places & above if parts[0].shard is None else places & {os.path.realpath(output)}
    if inside:
        raise ValueError(f"{output}: results would lie among what is read; choose another folder.")
    facts = {"format": 1, "task": type(task).__name__, **task.facts, "parts": len(parts), "files": digest.hexdigest()}
    output.mkdir(parents=True, exist_ok=True)
    path = output / _PLAN
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        if any(output.glob("part-*")):
            raise ValueError(f"{output}: holds parts without a {_PLAN}; choose another folder.") from None
        write_atomically(path, json.dumps(facts, indent=2).encode())
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); choose another folder, or remove this one.") from error
    else:
        if not isinstance(known, dict):
            raise ValueError(f"{path}: damaged; choose another folder, or remove this one.")
        other = sorted(key for key in {*known, *facts} if known.get(key) != facts.get(key))
        if other:
            raise ValueError(
                f"{output}: holds results that differ from what is asked for in {', '.join(other)}; choose another "
                "folder, or remove this one. A run goes on only with the same files, weights and options."
            )
    return parts


def _parts(task: Task, source: Paths, part_size: int) -> list[Part]:
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        folder = Path(os.path.abspath(source))  # workers may stand elsewhere
        names = find_files(folder, task.suffixes)
        if names:
            if any(name.endswith(".tar") for name in os.listdir(folder)):
                raise ValueError(
                    f"{folder}: holds shards and files ({names[0]!r} and so on), and only one kind can be meant; name "
                    "the shards, as 'folder/*.tar', or move one kind elsewhere."
                )
            labels = class_folders(folder, names)[1] if task.with_labels else None
            return [
                Part(number, first, None, os.fspath(folder), tuple(names[first : first + part_size]),
                     None if labels is None else tuple(labels[first : first + part_size]))
                for number, first in enumerate(range(0, len(names), part_size))
            ]  # fmt: skip
    try:
        shards = find_shards(source)
    except FileNotFoundError as error:
        wanted = ", ".join(task.suffixes)
        raise FileNotFoundError(f"no file that ends in one of {wanted}, and {error}") from None
    if twice := [shard for shard, count in Counter(map(os.path.realpath, shards)).items() if count > 1]:
        raise ValueError(f"{twice[0]}: named twice; its files would come twice.")
    return [Part(number, 0, os.path.abspath(shard), "", (), None) for number, shard in enumerate(shards)]


def unfinished(parts: Sequence[Part], output: Path) -> list[Part]:
    """Parts without a result."""
    there = set(os.listdir(output))
    return [part for part in parts if part.table not in there]


def summarise(parts: Sequence[Part], output: Path, *, skipped: int) -> BulkSummary:
    """Counts of what the tables hold, from their footers."""
    import pyarrow.parquet as pq

    files = failed = 0
    for part in parts:
        footer = pq.read_metadata(output / part.table)
        files += footer.num_rows
        for group in map(footer.row_group, range(footer.num_row_groups)):
            failed += group.num_rows - group.column(group.num_columns - 1).statistics.null_count
    return BulkSummary(len(parts), skipped, files, failed)
