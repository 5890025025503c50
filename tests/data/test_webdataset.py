"""Damaged shards and unusual tar archives: no sample is lost without an error."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from oracles.dataset_files import Streams, make_tar
from oracles.equality import same

from cdzoo.codecs import Codec
from cdzoo.data import (
    StreamDataset,
    StreamShards,
)
from cdzoo.errors import BitstreamError

READERS: dict[str, Any] = {
    "shards": lambda path, codec, **o: list(StreamShards(path, codec, labels=None, **o)),
    "random": lambda path, codec, **o: (lambda d: [d[i] for i in range(len(d))])(
        StreamDataset(path, codec, labels=None, **o)
    ),
}


@pytest.fixture
def codec(streams: Streams) -> Codec:
    return streams.codec


@pytest.fixture
def three(streams: Streams) -> list[bytes]:
    return [(streams.root / name).read_bytes() for name in list(streams.samples)[:3]]


@pytest.mark.parametrize("reader", READERS)
def test_a_truncated_shard_is_never_taken_for_a_whole_one(
    codec: Codec, three: list[bytes], tmp_path: Path, reader: str
) -> None:
    path = make_tar(tmp_path / "x.tar", [(f"{i}.cdz", stream) for i, stream in enumerate(three)])
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = [member.offset_data for member in tar]
    ends = [o + len(s) + -len(s) % 512 for o, s in zip(offsets, three, strict=True)]
    for length in {
        0,
        100,
        512,
        700,
        offsets[1],
        offsets[1] + 5,
        ends[0],
        ends[1],
        ends[1] + 30,
        ends[2],
        ends[2] + 511,
    }:
        path.write_bytes(data[:length])
        with pytest.raises(BitstreamError, match=r"x\.tar: truncated"):
            READERS[reader](path, codec)
    path.write_bytes(data[: offsets[1] + 5])
    with pytest.raises(BitstreamError, match=f"truncated in member '1.cdz': 5 of {len(three[1])} bytes"):
        READERS[reader](path, codec)
    path.write_bytes(data[: offsets[2] + 5])
    assert len(READERS[reader](path, codec, on_error="skip")) == 1
    path.write_bytes(data[: ends[2] + 512])
    assert len(READERS[reader](path, codec)) == 3


@pytest.mark.parametrize("reader", READERS)
def test_damaged_headers_raise_where_tarfile_stops_in_silence(
    codec: Codec, three: list[bytes], tmp_path: Path, reader: str
) -> None:
    path = make_tar(tmp_path / "x.tar", [(f"{i}.cdz", stream) for i, stream in enumerate(three)])
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        data[tar.getmembers()[1].offset + 2] ^= 1
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 1
    with pytest.raises(BitstreamError, match=r"x\.tar: damaged tar, after member '0\.cdz': bad checksum"):
        READERS[reader](path, codec)
    path.write_bytes(subprocess.run(["gzip", "-c", path], capture_output=True, check=True).stdout)
    with pytest.raises(BitstreamError, match="compressed by gzip"):
        READERS[reader](path, codec)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("reader", READERS)
def test_tar_formats(codec: Codec, three: list[bytes], tmp_path: Path, form: int, reader: str) -> None:
    long = "d" * 90 + "/" + "n" * 60 if form == tarfile.USTAR_FORMAT else "ö" * 300
    names = [f"./{long}.cdz", "v1.0/b.cdz", "c.CDZ"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("v1.0")
            info.type, info.linkname, info.size = kind, "nowhere" * 30 if form != tarfile.USTAR_FORMAT else "x", 0
            tar.addfile(info)
        for name, data in [*zip(names, three, strict=True), ("._c.cdz", b"?"), ("README", b"?"), ("c.json", b"{}")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))
    assert [same(a, codec.decompress([s])) for a, s in zip(READERS[reader](path, codec), three, strict=True)] == [
        True
    ] * 3
    assert StreamDataset(path, codec, labels=None).names == names


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("1.b.cdz", b""), r"member '1\.b\.cdz' is a 'b\.cdz' by WebDataset's rule"),
        (("0.cdz", b""), r"member '0\.cdz' comes twice"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_samples_that_would_be_lost_raise(
    codec: Codec, three: list[bytes], tmp_path: Path, reader: str, member: tuple[str, bytes], message: str
) -> None:
    path = make_tar(tmp_path / "x.tar", [("0.cdz", three[0]), member])
    with pytest.raises(BitstreamError, match=message):
        READERS[reader](path, codec)


@pytest.mark.parametrize("reader", [StreamDataset, lambda *a, **o: list(StreamShards(*a, **o))])
def test_missing_or_odd_labels(codec: Codec, three: list[bytes], tmp_path: Path, reader: Any) -> None:
    path = make_tar(tmp_path / "x.tar", [("0.cdz", three[0]), ("0.cls", b" 7\n"), ("1.cls", b"1"), ("2.cdz", three[1])])
    with pytest.raises(BitstreamError, match=r"x\.tar: sample '2' has no \.cls member"):
        reader(path, codec)
    errors: list[Exception] = []
    ((_, label),) = reader(path, codec, on_error=errors.append)
    assert label == 7
    assert len(errors) == 1
    path = make_tar(tmp_path / "y.tar", [("0.cdz", three[0]), ("0.cls", b"dog")])
    with pytest.raises(BitstreamError, match=r"'0\.cls' holds b'dog', not a class number"):
        reader(path, codec)
    path = make_tar(tmp_path / "z.tar", [("0.jpg", b""), ("0.cls", b"1")])
    with pytest.raises(BitstreamError, match=r"z\.tar: no sample has a \.cdz member"):
        reader(path, codec)


def test_members_beyond_the_limit_are_not_loaded(codec: Codec, three: list[bytes], tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", [("0.cdz", three[0]), ("0.jpg", bytes(10**6)), ("1.cdz", bytes(5000))])
    for read in READERS.values():
        with pytest.raises(
            BitstreamError, match=r"x\.tar: member '1\.cdz' has 5000 bytes, more than the limit of 4000"
        ):
            read(path, codec, max_stream_bytes=4000)
    # an extended header of 2 MB, which tarfile would load
    huge = make_tar(tmp_path / "y.tar", [("n" * (2 << 20) + ".cdz", three[0])])
    with pytest.raises(BitstreamError, match="an extended header of"):
        list(StreamShards(huge, codec, labels=None))
