"""The report of a command: collected file by file, printed once, as text or as JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cdzoo._text import explain, one_line
from cdzoo.errors import CdzooError

if TYPE_CHECKING:
    from cdzoo.coding.cdz_format import StreamHeader

__all__ = ["EXPECTED", "Report", "UsageError", "name_list", "stream_sizes", "table", "width_x_height"]

EXPECTED = (OSError, CdzooError, ValueError, TypeError, MemoryError, ImportError)
"""Errors that files, weights and arguments can cause; any other error is a bug."""


class UsageError(Exception):
    """Wrong usage; exit status 2."""


class Report:
    """Collects facts about a run and about each file.

    Attributes:
        per_file: the command's result is a list of files.
        status: the exit status so far.
        facts: facts about the whole run, JSON-ready.
    """

    def __init__(self, command: str, *, as_json: bool, per_file: bool) -> None:
        self.command, self.as_json, self.per_file = command, as_json, per_file
        self.status = 0
        self.facts: dict[str, Any] = {}
        self._files: list[tuple[int, dict[str, Any]]] = []

    @property
    def files(self) -> list[dict[str, Any]]:
        """One JSON-ready object per file, in order; those that failed have an ``"error"``."""
        return [entry for _, entry in sorted(self._files, key=lambda pair: pair[0])]

    def add(self, entry: dict[str, Any], number: int = -1) -> None:
        """Report a file; ``number`` is its place in the order."""
        self._files.append((number, entry))

    def fail(self, file: str | os.PathLike[str], error: Exception, number: int = -1) -> None:
        """Report a file as failed."""
        name, reason = os.fspath(file), explain(error)
        self.status = self.status or 1
        self.add({"file": name, "error": reason}, number)
        self.note(reason if name in reason else f"{one_line(name)}: {reason}")

    def abort(self, reason: str, *, status: int) -> None:
        """Report that the whole run failed."""
        self.status = status
        self.facts["error"] = reason
        self.note(f"error: {reason}")

    def note(self, text: str) -> None:
        """Print a line on standard error, above a progress bar if there is one."""
        from tqdm import tqdm

        tqdm.write(_printable(f"cdzoo {self.command}: {text}", sys.stderr), file=sys.stderr)

    def good(self) -> list[dict[str, Any]]:
        """The files that did not fail."""
        return [entry for entry in self.files if "error" not in entry]

    def print(self, render: Callable[[Report], str]) -> None:
        """Write the result to standard output: one JSON document, or the text that ``render`` makes of it."""
        if self.as_json:
            files = {"files": self.files} if self.per_file else {}
            text = json.dumps({"command": self.command, **self.facts, **files}, indent=2)
        else:
            cut_short = "error" in self.facts or ("interrupted" in self.facts and not self.per_file)
            text = "" if cut_short else render(self)
        if text and sys.stdout is None:  # closed before this process began
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if text:
            print(_printable(text, sys.stdout), flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text; those whose name starts with ``>`` are aligned to the right."""
    lines = [[title.removeprefix(">") for title in header], *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    right = [title.startswith(">") for title in header]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def stream_sizes(header: StreamHeader) -> dict[str, Any]:
    """Sizes and rates of a stream, JSON-ready."""
    return {
        "image_size": list(header.image_size),
        "bytes": header.num_bytes,
        "bpp": header.bpp,
        "payload_bpp": header.payload_bpp,
    }


def width_x_height(image_size: Sequence[int]) -> str:
    """``(H, W)`` as text, width first."""
    return f"{image_size[1]}x{image_size[0]}"


def name_list(names: Iterable[str | Path]) -> str:
    """A few names, quoted, for an error message."""
    quoted = [repr(os.fspath(name)) for name in names]
    return ", ".join(quoted[:4]) + (f" and {len(quoted) - 4} more" if len(quoted) > 4 else "")


_CONTROL = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f]")


def _printable(text: str, stream: TextIO) -> str:
    """Text with escapes for control characters and for characters that the stream cannot encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
