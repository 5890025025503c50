"""Files on disk: find them, read them whole, and write them in full or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

__all__ = [
    "JPEG_SUFFIXES",
    "atomic_file",
    "file_size",
    "find_files",
    "read_file",
    "remove_leftovers",
    "write_atomically",
]

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
"""File name suffixes of JPEG files, in lower case."""

# -- find --------------------------------------------------------------------------------------------------------


def _raise(error: Exception) -> None:
    raise error


def find_files(
    root: str | os.PathLike[str], suffixes: tuple[str, ...], unreadable: Callable[[OSError], None] = _raise
) -> list[str]:
    """Search a folder and its subfolders for files by suffix.

    Links to folders are followed, except one that leads back to a folder above itself. Hidden files and folders, whose
    names begin with a dot, are left out.

    Args:
        root: the folder.
        suffixes: file name suffixes in lower case; the case of names is ignored.
        unreadable: called with the error of each subfolder that cannot be read. The subfolder is left out if this
            returns; by default the error is raised.

    Returns:
        paths below the folder with forward slashes, sorted.

    Raises:
        OSError: the folder itself cannot be read.
    """
    names: list[str] = []
    above = {os.fspath(root): frozenset({_identity(root)})}  # a folder not yet visited -> it and all folders above it
    os.scandir(root).close()
    for folder, subfolders, files in os.walk(os.fspath(root), onerror=unreadable, followlinks=True):
        relative = PurePath(folder).relative_to(root)
        names += [(relative / name).as_posix() for name in files if name[0] != "." and name.lower().endswith(suffixes)]
        chain = above.pop(folder)
        for name in list(subfolders):
            path, identity = os.path.join(folder, name), None
            if name[0] != ".":
                try:
                    identity = _identity(path)
                except OSError as error:
                    unreadable(error)
            if identity is None or identity in chain:
                subfolders.remove(name)
            else:
                above[path] = chain | {identity}
    return sorted(names)


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


# -- read --------------------------------------------------------------------------------------------------------


def file_size(path: str | os.PathLike[str], refused: type[Exception] = ValueError) -> int:
    """Size of a regular file in bytes.

    Raises:
        refused: the path is a pipe, a device or a folder. Reading a pipe may never end.
        OSError: it does not exist, or may not be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise refused(f"{os.fspath(path)}: not a regular file; pass a file that is stored on disk")
    return status.st_size


def read_file(path: str | os.PathLike[str], limit: int | None = None, refused: type[Exception] = ValueError) -> bytes:
    """Read a whole file.

    Args:
        path: the file.
        limit: largest size in bytes; ``None`` for no limit.
        refused: type of the error for a file that is not read.

    Raises:
        refused: it is not a regular file, or larger than ``limit``.
        OSError: it does not exist, or may not be read.
    """
    size = file_size(path, refused)
    if limit is not None and size > limit:
        raise refused(
            f"{os.fspath(path)}: {size} bytes, more than the limit of {limit}; if you trust the source, pass a larger "
            "max_stream_bytes"
        )
    with open(path, "rb") as file:
        return file.read(size)  # Python would allocate as much as a larger count


# -- write -------------------------------------------------------------------------------------------------------

_TEMPORARY = re.compile(r"\..{1,32}\.[0-9a-f]{16}\.tmp", re.DOTALL)
_LEFT_AFTER_S = 24 * 3600


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name in one step. A file
    that was there before stays whole until that moment.

    Raises:
        OSError: the folder does not exist, is not writable, or the disk is full; no temporary file stays behind.
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

    Younger ones may belong to a process that is writing. Files that cannot be removed stay; a folder that does not
    exist is ignored.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFT_AFTER_S:
                        os.unlink(entry.path)
