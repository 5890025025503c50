"""Shards as ``write_shards`` writes them, by the standard library's reader."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cdzoo import Latent
from cdzoo.data import (
    write_shards,
)
from cdzoo.errors import BitstreamError

LATENTS = dict[str, Latent]


def test_written_shards_are_plain_tar_in_webdataset_layout(
    shards: tuple[Path, LATENTS], written: tuple[Path, LATENTS], tmp_path: Path
) -> None:
    paths = sorted(shards[0].iterdir())
    assert [path.name for path in paths] == [f"shard-{i:06d}.tar" for i in range(5)]
    found = []
    for path in paths:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            found += [(m.name, tar.extractfile(m).read()) for m in members]  # type: ignore[union-attr]
            assert len(members) in (4, 8)
            assert {m.mtime for m in members} == {0}
    expected = []
    for i, name in enumerate(written[1]):
        key = f"{i:08d}-{Path(name).stem}"
        expected += [(f"{key}.cdz", (written[0] / name).read_bytes()), (f"{key}.cls", b"%d" % (i // 6))]
    assert found == expected
    again = write_shards([(written[0] / n, i // 6) for i, n in enumerate(written[1])], tmp_path, max_count=4)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_shards_keep_within_their_limits(written: tuple[Path, LATENTS], tmp_path: Path) -> None:
    files = [written[0] / name for name in written[1]]
    # tar fills up its last record of 10240 bytes, so that 15000 bytes have room for one record as well
    for limit in (10240, 15000):
        paths = write_shards(files, tmp_path / str(limit), pattern="v-{:03d}.tar", max_bytes=limit)
        assert len(paths) > 1
        assert {path.stat().st_size for path in paths} == {10240}
        for path in paths:
            with tarfile.open(path) as tar:
                assert all(name.endswith(".cdz") for name in tar.getnames())
    assert len(write_shards(files[:3], tmp_path / "single", max_bytes=1)) == 3
    assert write_shards([], tmp_path / "none") == []


def test_shards_that_cannot_be_written_leave_no_trace(written: tuple[Path, LATENTS], tmp_path: Path) -> None:
    files: list[Any] = [written[0] / name for name in written[1]]
    bad = tmp_path / "bad.cdz"
    bad.write_bytes(files[0].read_bytes()[:-1])
    with pytest.raises(BitstreamError, match=r"bad\.cdz: truncated"):
        write_shards([*files[:5], bad], tmp_path / "a", max_count=3)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["shard-000000.tar"]
    with pytest.raises(FileExistsError, match=r"shard-000000\.tar"):
        write_shards(files, tmp_path / "a")
    with pytest.raises(ValueError, match="with labels and without"):
        write_shards([files[0], (files[1], 3)], tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        write_shards([tmp_path / "gone.cdz"], tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
    # what a killed writer with the same process number left is neither in the way nor touched
    left = tmp_path / "b" / f".shard-000000.tar.{os.getpid()}.tmp"
    left.touch()
    write_shards(files[:2], tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [left.name, "shard-000000.tar"]
    for pattern in ("shard.tar", "a/{}.tar", "{:06d}.zip", "{}{}.tar", "{name}.tar"):
        with pytest.raises(ValueError, match="pattern must be a file name"):
            write_shards(files, tmp_path / "c", pattern=pattern)
    with pytest.raises(ValueError, match="at least 1"):
        write_shards(files, tmp_path / "c", max_count=0)
