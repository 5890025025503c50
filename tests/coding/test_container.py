"""The .cdz stream: layout, checksums, limits, atomic writing."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import pytest

from cdzoo.codecs import read_header
from cdzoo.coding.container import CODEC_NUMBERS, MAX_IMAGE_PIXELS, pack, remove_leftovers, unpack, write_atomically
from cdzoo.errors import BitstreamError

PARTS = [b"abcd" * 3, b"wxyz" * 5]


@pytest.fixture
def stream() -> bytes:
    return pack("bmshj2018_hyperprior", "0123456789abcdef", (480, 640), 0xDEADBEEF, PARTS)


def test_every_byte_is_where_the_format_says(stream: bytes) -> None:
    assert stream[:4] == b"CDZ\x01"
    assert stream[4] == CODEC_NUMBERS["bmshj2018_hyperprior"] == 2
    assert stream[5] == 2
    assert stream[6:14].hex() == "0123456789abcdef"
    assert struct.unpack("<II", stream[14:22]) == (480, 640)
    assert struct.unpack("<I", stream[22:26]) == (0xDEADBEEF,)
    assert struct.unpack("<II", stream[26:34]) == (12, 20)
    assert struct.unpack("<I", stream[34:38])[0] == zlib.crc32(stream[:34] + stream[38:])
    assert stream[38:] == b"".join(PARTS)


def test_headers_take_at_most_40_bytes() -> None:
    for parts in (1, 2):
        empty = pack("mbt2018_mean", "0" * 16, (1, 1), 0, [b""] * parts)
        assert len(empty) == read_header(empty).header_bytes == 30 + 4 * parts <= 40


def test_codec_numbers_never_change() -> None:
    # streams on somebody's disk depend on these
    assert CODEC_NUMBERS == {
        "bmshj2018_factorized": 1,
        "bmshj2018_hyperprior": 2,
        "mbt2018_mean": 3,
        "torfason2018": 4,
        "choi2019": 5,
        "icat_small": 6,
    }


def test_header_and_parts_come_back(stream: bytes) -> None:
    header, parts = unpack(stream)
    assert [bytes(p) for p in parts] == PARTS
    assert header == read_header(stream)
    assert (header.codec, header.fingerprint, header.image_size) == (
        "bmshj2018_hyperprior",
        "0123456789abcdef",
        (480, 640),
    )
    assert header.bpp == 8 * len(stream) / (480 * 640)
    assert header.payload_bpp == 8 * 32 / (480 * 640)


def test_every_truncation_is_seen(stream: bytes) -> None:
    for length in range(len(stream)):
        with pytest.raises(BitstreamError):
            read_header(stream[:length])
    with pytest.raises(BitstreamError):
        read_header(stream + b"\0")


def test_every_flipped_bit_is_seen(stream: bytes) -> None:
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            read_header(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not a .cdz"),
        (b"CDZ\x02" + b"\0" * 40, "version 2"),
        (b"CDZ", "trunc"),
    ],
)
def test_what_is_no_stream_is_called_by_its_name(data: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        read_header(data)


def test_the_pixel_limit_holds_and_can_be_raised() -> None:
    huge = pack("mbt2018_mean", "0" * 16, (20_000, 20_000), 0, PARTS)
    with pytest.raises(BitstreamError, match=f"{MAX_IMAGE_PIXELS}.*max_pixels"):
        read_header(huge)
    assert read_header(huge, max_pixels=None).image_size == (20_000, 20_000)
    assert read_header(huge, max_pixels=400_000_000).image_size == (20_000, 20_000)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(BitstreamError, match="0x5"):
        read_header(pack("mbt2018_mean", "0" * 16, (0, 5), 0, PARTS))


def test_text_is_no_stream() -> None:
    with pytest.raises(TypeError, match="read_bytes"):
        read_header("photo.cdz")  # type: ignore[arg-type]


def test_bytearrays_and_memoryviews_are_read(stream: bytes) -> None:
    assert read_header(bytearray(stream)) == read_header(memoryview(stream)) == read_header(stream)  # type: ignore[arg-type]


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
