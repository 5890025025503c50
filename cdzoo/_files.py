"""Files that are written in full or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_file", "remove_leftovers", "write_atomically"]

_TEMPORARY = re.compile(r"\..{1,32}\.[0-9a-f]{16}\.tmp", re.DOTALL)
_LEFTOVER_AGE = 24 * 3600  # seconds


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that exists in full or not at all, even if the process is killed.

    The bytes go to a temporary file in the same folder and reach the disk. Then the file takes its name in one step.
    A file that had the name before stays whole until that moment.

    Raises:
        OSError: the folder does not exist or is not writable, or the disk is full. No temporary file stays behind.
    """
    path = Path(path)
    # 32 characters are 128 bytes at most, of the 255 that a name may have
    temporary = path.parent / f".{path.name[:32]}.{secrets.token_hex(8)}.tmp"
    # created exclusively, with the mode that open() would give
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in full or not at all; see :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files of :func:`atomic_file` that killed processes left in a folder more than a day ago.

    Younger files may belong to a process that is writing. Files that cannot be removed stay, and a folder that does
    not exist is ignored.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFTOVER_AGE:
                        os.unlink(entry.path)
