"""The engine: files are read, grouped into batches and processed; an error stays with its file.

A :class:`Task` says how one file is prepared and how a batch of prepared files is processed. :func:`process` runs it
over any number of files, for the command line, :func:`cdzoo.classify` and the workers of a cluster alike. Parts of an
archive (:mod:`cdzoo.bulk.plan`) go through :meth:`Task.write_part`: their results are one Parquet table, which takes
its name when it is complete, so that a part can be started again at any time.
"""

from __future__ import annotations

import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from cdzoo._files import read_file, write_atomically
from cdzoo._text import explain, printable
from cdzoo.bulk.plan import File, Part, read_part
from cdzoo.data._decode import MAX_STREAM_BYTES, bucketed
from cdzoo.errors import CdzooError
from cdzoo.types import MAX_IMAGE_PIXELS

__all__ = ["FILE_ERRORS", "Item", "Task", "process", "read_paths"]

FILE_ERRORS = (CdzooError, OSError, ValueError, MemoryError)
"""Errors that a damaged, huge or unsupported file can cause; any other error ends the run."""
_MAX_BATCH_PIXELS = 1 << 22
_MAX_PENDING_BYTES = 1 << 28


class Item(NamedTuple):
    """A file that is ready for a batch.

    Attributes:
        file: the file.
        key: items of one batch have equal keys, such as an image size.
        value: the input of :meth:`Task.run`.
        image_size: ``(H, W)`` for the size of batches, or ``None`` where it is unknown.
        num_bytes: memory that the item takes while it waits.
    """

    file: File
    key: Hashable
    value: Any
    image_size: tuple[int, int] | None
    num_bytes: int

    @property
    def pixels(self) -> int:
        """Pixels of the image; 1 if its size is unknown."""
        return 1 if self.image_size is None else max(1, math.prod(self.image_size))


class Task(ABC):
    """One operation on every file.

    Args:
        batch_size: largest number of files in a batch.
        max_pixels: refuse images of more pixels; ``None`` for no limit.
        max_stream_bytes: refuse files of more bytes.
        with_labels: parts have class numbers, which :meth:`write_part` passes on.

    Attributes:
        suffixes: suffixes of the files that it reads, in lower case.
        columns: names and types of the columns of its tables; ``"[int32]"`` is a list.

    Raises:
        ValueError: a limit below 1.
    """

    suffixes: tuple[str, ...] = ()
    columns: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        *,
        batch_size: int = 16,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        with_labels: bool = False,
    ) -> None:
        limits = {"batch_size": batch_size, "max_pixels": max_pixels, "max_stream_bytes": max_stream_bytes}
        for name, value in limits.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.batch_size, self.max_pixels, self.max_stream_bytes = batch_size, max_pixels, max_stream_bytes
        self.with_labels = with_labels

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the results depend on, JSON-ready."""
        limits = {"max_pixels": self.max_pixels, "max_stream_bytes": self.max_stream_bytes}
        return {"task": type(self).__name__, "batch_size": self.batch_size, "labels": self.with_labels, **limits}

    @abstractmethod
    def prepare(self, file: File) -> Item:
        """Read as much of a file as is needed to put it into a batch.

        Raises:
            ValueError: the file cannot be used; other errors of :data:`FILE_ERRORS` likewise.
        """

    @abstractmethod
    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        """Results of a batch, in order; an exception stands in place of a file that has none.

        If it raises, each file is tried again alone.
        """

    def to(self, device: torch.device | str) -> None:
        """Move the networks to a device."""
        raise NotImplementedError

    def row(self, file: File, result: Any) -> dict[str, Any]:
        """The columns of a file's row in a table, for a result that is not an error."""
        raise NotImplementedError

    def write_part(self, part: Part, output: Path) -> None:
        """Process a part of an archive and write its table."""
        rows: dict[int, dict[str, Any]] = {}
        for file, result in process(self.read(part), self):
            rows[file.number] = {"file": printable(file.name), **self.row_or_error(file, result)}
        self.write_table(part, output, rows)

    def read(self, part: Part) -> Iterator[File]:
        """The files of a part."""
        return read_part(part, self.suffixes, limit=self.max_stream_bytes, with_labels=self.with_labels)

    def row_or_error(self, file: File, result: Any) -> dict[str, Any]:
        """:meth:`row`, or the text of an error."""
        return {"error": explain(result)} if isinstance(result, Exception) else self.row(file, result)

    def write_table(self, part: Part, output: Path, rows: dict[int, dict[str, Any]]) -> None:
        """Write the rows in the order of the files. With its table, a part is finished."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        def kind(name: str) -> Any:
            return pa.list_(kind(name[1:-1])) if name[0] == "[" else pa.type_for_alias(name)

        columns = {"file": "string", **self.columns, "error": "string"}
        schema = pa.schema([(name, kind(own)) for name, own in columns.items()])
        ordered = [{"error": None, **rows[number]} for number in sorted(rows)]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ordered, schema), sink)
        write_atomically(output / part.table, sink.getvalue())


def read_paths(paths: Iterable[str | os.PathLike[str]], limit: int | None = MAX_STREAM_BYTES) -> Iterator[File]:
    """Files from paths, read as they are asked for; a file that cannot be read holds its error."""
    for number, path in enumerate(paths):
        try:
            data: bytes | Exception = read_file(path, limit)
        except FILE_ERRORS as error:
            data = error
        yield File(number, os.fspath(path), data)


def process(files: Iterable[File], choose: Task | Callable[[File], Task]) -> Iterator[tuple[File, Any]]:
    """Every file with its result or, in its place, its error; batches change the order.

    Args:
        files: files; one whose ``data`` is an exception has that error.
        choose: the task, or a function that gives each file its task. Errors of the function are the file's.

    Raises:
        Exception: an error that no file is to blame for, such as a full disk.
    """
    failed: list[tuple[File, Exception]] = []

    def prepared() -> Iterator[tuple[Task, Item]]:
        for file in files:
            try:
                if isinstance(file.data, Exception):
                    raise file.data
                task = choose if isinstance(choose, Task) else choose(file)
                item = task.prepare(file)
            except FILE_ERRORS as error:
                failed.append((file, error))
            else:
                yield task, item

    batches = bucketed(
        prepared(),
        lambda pair: (id(pair[0]), pair[1].key),
        size=lambda pair: max(1, min(pair[0].batch_size, _MAX_BATCH_PIXELS // pair[1].pixels)),
        weight=lambda pair: pair[1].num_bytes,
        max_pending=_MAX_PENDING_BYTES,
    )
    for batch in batches:
        yield from failed
        failed.clear()
        items = [item for _, item in batch]
        yield from zip([item.file for item in items], _results(batch[0][0], items), strict=True)
    yield from failed


def _results(task: Task, items: Sequence[Item]) -> Iterator[Any]:
    """Results of a batch; where it raises, of each file alone, so that one file does not affect the others."""
    try:
        results = task.run(items)
    except (*FILE_ERRORS, RuntimeError) as error:
        # OSError is a file's error while it is read, and here that of the machine
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        if isinstance(error, OSError) or not (isinstance(error, FILE_ERRORS) or out_of_memory):
            raise
        # without its frames, whose tensors would keep the memory that trying again needs
        failure: Exception = error.with_traceback(None)
        if not isinstance(error, FILE_ERRORS):
            failure = MemoryError(f"not enough memory: {error}")
    else:
        yield from results
        return
    if len(items) == 1:
        yield failure
        return
    for item in items:
        yield from _results(task, [item])
