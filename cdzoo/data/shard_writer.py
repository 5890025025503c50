"""Streams and JPEG files to WebDataset shards."""

from __future__ import annotations

import contextlib
import glob
import io
import operator
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cdzoo._files import JPEG_SUFFIXES, atomic_file, remove_leftovers
from cdzoo.codecs import read_header, read_jpeg
from cdzoo.errors import BitstreamError, JPEGError

__all__ = ["open_shard", "sample_members", "write_shards"]

_BLOCK = tarfile.BLOCKSIZE


def write_shards(
    streams: Iterable[str | os.PathLike[str] | tuple[str | os.PathLike[str], int]],
    directory: str | os.PathLike[str],
    *,
    pattern: str = "shard-{:06d}.tar",
    max_count: int = 10_000,
    max_bytes: int = 1_000_000_000,
) -> list[Path]:
    """Pack ``.cdz`` files, or JPEG files, into WebDataset shards.

    Shards are plain tar files with ``key.cdz`` or ``key.jpg`` and, with labels, ``key.cls``. Keys are running numbers
    with the files' stems, so that they are unique. Shuffle the files first: a reader shuffles within a buffer only. The
    same files give the same bytes. A shard takes its name when it is complete; shards completed before an error stay.

    Args:
        streams: paths, or pairs of a path and its class number. Files called ``.jpg``, ``.jpeg``, ``.jpe`` or ``.jfif``
            are JPEG files.
        directory: output directory; created if it does not exist.
        pattern: file name of a shard, with one ``{}`` field for its number.
        max_count: samples in a shard, at most.
        max_bytes: size of a shard in bytes, at most, unless a single sample has more.

    Returns:
        the shards, in order.

    Raises:
        BitstreamError: a file is not an undamaged ``.cdz`` stream; the message names it.
        JPEGError: likewise, for JPEG files.
        FileExistsError: the directory already has such shards.
        OSError: a file cannot be read, or a shard not be written.
        ValueError: limits below 1, a pattern without a number, files of both kinds, or with and without labels.
    """
    directory = Path(directory)
    if max_count < 1 or max_bytes < 1:
        raise ValueError(f"max_count and max_bytes must be at least 1, not {max_count} and {max_bytes}")
    if not re.fullmatch(r"[^/{}]*\{(:0?\d*d?)?\}[^/{}]*\.tar", pattern):
        raise ValueError(f"pattern must be a file name like 'shard-{{:06d}}.tar', with one number, not {pattern!r}")
    directory.mkdir(parents=True, exist_ok=True)
    existing = sorted(directory.glob(re.sub(r"\{[^{}]*\}", "*", glob.escape(pattern))))
    if existing:
        raise FileExistsError(f"{existing[0]} already exists, and old and new shards would mix; use another directory")
    remove_leftovers(directory)
    written: list[Path] = []
    samples = _samples(streams)
    sample = next(samples, None)
    while sample is not None:
        path = directory / pattern.format(len(written))
        with open_shard(path) as tar:
            count = 0
            while sample is not None and count < max_count:
                headers = sum(len(info.tobuf(tarfile.PAX_FORMAT)) for info, _ in sample)
                size = tar.offset + headers + sum(len(data) + -len(data) % _BLOCK for _, data in sample)
                # an archive ends with two blocks, and then fills up its last record
                if count and size + 2 * _BLOCK + -(size + 2 * _BLOCK) % tarfile.RECORDSIZE > max_bytes:
                    break
                for info, data in sample:
                    tar.addfile(info, io.BytesIO(data))
                count += 1
                sample = next(samples, None)
        written.append(path)
    return written


def _samples(streams: Iterable[Any]) -> Iterator[list[tuple[tarfile.TarInfo, bytes]]]:
    labeled: bool | None = None
    kind = ""
    for number, item in enumerate(streams):
        source, label = (item, None) if isinstance(item, str | os.PathLike) else item
        if labeled not in (None, label is not None):
            raise ValueError(f"{source}: streams come with labels and without; give all of them one, or none")
        labeled = label is not None
        suffix = ".jpg" if os.fspath(source).lower().endswith(JPEG_SUFFIXES) else ".cdz"
        if kind not in ("", suffix):
            # a dataset ignores the other kind
            raise ValueError(f"{source}: streams and JPEG files in the same shards; write shards for each")
        kind = suffix
        stream = Path(source).read_bytes()
        try:
            if kind == ".jpg":
                read_jpeg(stream, max_pixels=None)
            else:
                read_header(stream, max_pixels=None)
        except (BitstreamError, JPEGError) as error:
            raise error.named(os.fspath(source)) from error
        # WebDataset's key ends at the first dot
        key = f"{number:08d}-{Path(source).stem.replace('.', '_')}"
        yield sample_members(key, kind, stream, label)


def sample_members(key: str, suffix: str, data: bytes, label: int | None) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of one sample: its file and, with a label, ``.cls``."""
    members = [_member(f"{key}{suffix}", data)]
    if label is not None:
        members.append(_member(f"{key}.cls", str(operator.index(label)).encode()))
    return members


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[tarfile.TarFile]:
    """A shard to add members to, which takes its name when it is complete."""
    with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        yield tar


def _member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data
