"""The progress of a command over files, on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Progress", "readable_rate"]


def readable_rate(megapixels_per_second: float) -> str:
    """A speed for people."""
    return f"{megapixels_per_second:{'.2f' if megapixels_per_second >= 1 else '.2g'}} megapixels/s"


class Progress:
    """A bar with the remaining time, which follows from the sizes of the files that are left.

    There is none for a single file, and where standard error is not a terminal.

    Args:
        command: name of the command.
        files: the files to read.
    """

    def __init__(self, command: str, files: Sequence[Path]) -> None:
        self._command, self._total, self._seen = command, len(files), 0
        self._bar: Any = None
        if len(files) < 2 or not sys.stderr.isatty():
            return
        from tqdm import tqdm

        self._sizes = [_size(file) for file in files]
        self._bar = tqdm(
            total=sum(self._sizes) or 1,
            file=sys.stderr,
            smoothing=0.05,  # files differ
            bar_format="{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]",
        )
        self._bar.set_description_str(f"{command} 0/{self._total}")

    def skip(self, number: int) -> None:
        """Leave out a file that takes no time: it says nothing about the time of others."""
        if self._bar is not None:
            self._bar.total = max(1, self._bar.total - self._sizes[number])
            self._count()

    def finish(self, number: int, rate: float | None) -> None:
        """Count a file.

        Args:
            number: position of the file.
            rate: megapixels per second so far, or ``None`` before the first.
        """
        if self._bar is not None:
            if rate is not None:
                self._bar.set_postfix_str(readable_rate(rate), refresh=False)
            self._count()
            self._bar.update(self._sizes[number])

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _count(self) -> None:
        self._seen += 1
        self._bar.set_description_str(f"{self._command} {self._seen}/{self._total}", refresh=False)


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # reading it will report this
        return 0
