"""Files found, read whole, and written in full or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cdzoo._files import find_files, read_file, remove_leftovers, write_atomically


def test_links_that_lead_back_and_hidden_names_are_left_out(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.JPG", "sub/c.png", ".hidden.jpg", ".cache/d.jpg", "other/e.jpg"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "f.jpg").touch()
    (tmp_path / "root" / "sub" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "g.jpg").symlink_to(tmp_path / "elsewhere" / "f.jpg")
    assert find_files(tmp_path / "root", (".jpg",)) == ["a.jpg", "g.jpg", "link/f.jpg", "other/e.jpg", "sub/b.JPG"]
    with pytest.raises(FileNotFoundError):
        find_files(tmp_path / "nowhere", (".jpg",))


def test_files_are_read_whole_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a") == read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(KeyError, match="5 bytes, more than the limit of 4"):
        read_file(tmp_path / "a", 4, KeyError)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            read_file(path)


def test_writing_replaces_a_file_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "a.cdz"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdz"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.cdz"
    write_atomically(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdz"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    for name in ("n" * 251, "😀" * 62, os.fsdecode(b"\xff" * 251)):
        write_atomically(tmp_path / f"{name}.cdz", b"new")
        assert (tmp_path / f"{name}.cdz").read_bytes() == b"new"


def test_what_killed_processes_left_is_removed_a_day_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: Path, target: Path) -> None:
        raise SystemExit

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda *args, **options: None)
    for name in ("a.cdz", "new\nline.cdz", "b" * 200, "young"):
        with pytest.raises(SystemExit):
            write_atomically(tmp_path / name, b"half")
    left = sorted(tmp_path.iterdir())
    assert len(left) == 4
    for name in (".a.cdz.tmp", "a.0123456789abcdef.tmp", ".notes.0123456789abcdef.txt"):  # somebody else's
        (tmp_path / name).touch()
    old = [path for path in tmp_path.iterdir() if "young" not in path.name]
    for path in old:
        os.utime(path, (time.time() - 90_000,) * 2)
    remove_leftovers(tmp_path)
    assert {path for path in left if path.exists()} == {path for path in left if "young" in path.name}
    assert len(list(tmp_path.iterdir())) == 4
    remove_leftovers(tmp_path / "nowhere")


def test_files_have_the_mode_that_open_would_give(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
