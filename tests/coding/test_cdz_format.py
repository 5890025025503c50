"""The .cdz stream: layout, checksums, limits, atomic writing."""

from __future__ import annotations

import struct
import zlib

import pytest

from cdzoo.codecs import read_header
from cdzoo.coding.cdz_format import CODEC_NUMBERS, FIXED_BYTES, pack, unpack, unverified_image_size
from cdzoo.errors import BitstreamError
from cdzoo.types import MAX_IMAGE_PIXELS

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


# -- streams of codecs without a number --------------------------------------------------------------------------


@pytest.fixture
def named() -> bytes:
    return pack("tiny.codec-2", "0123456789abcdef", (480, 640), 0xDEADBEEF, PARTS)


def sealed(head: bytes, payload: bytes = b"".join(PARTS)) -> bytes:
    """A stream with a checksum that is right, whatever its header says."""
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def test_every_byte_of_a_name_is_where_the_format_says(stream: bytes, named: bytes) -> None:
    assert named[4] == 0
    assert named[:4] + named[5:34] == stream[:4] + stream[5:34]
    assert named[34:47] == b"\x0ctiny.codec-2"
    assert struct.unpack("<I", named[47:51])[0] == zlib.crc32(named[:47] + named[51:])
    assert named[51:] == b"".join(PARTS)
    header, parts = unpack(named)
    assert [bytes(p) for p in parts] == PARTS
    assert header == read_header(stream)._replace(codec="tiny.codec-2", num_bytes=len(named), header_bytes=51)
    assert header.bpp == 8 * len(named) / (480 * 640)
    assert header.payload_bpp == 8 * 32 / (480 * 640)


def test_every_truncation_and_flipped_bit_of_a_named_stream_is_seen(named: bytes) -> None:
    for length in range(len(named)):
        with pytest.raises(BitstreamError):
            read_header(named[:length])
    with pytest.raises(BitstreamError):
        read_header(named + b"\0")
    for bit in range(8 * len(named)):
        damaged = bytearray(named)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            read_header(bytes(damaged))


@pytest.mark.parametrize(
    "name", [b"", b"-x", b".x", b"a b", b"a\n", b"a\0", b"\xc3\xa9", b"../x", b"a" * 65, b"\xff" * 255, b"\x1b[2J"]
)
def test_forged_names_are_refused(name: bytes, named: bytes) -> None:
    with pytest.raises(BitstreamError, match="is no codec name") as caught:
        read_header(sealed(named[:34] + bytes([len(name)]) + name))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "é", "a b", "-x", "a" * 65, "naïve"])
def test_names_that_no_stream_can_carry_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot carry the codec name"):
        pack(name, "0" * 16, (1, 1), 0, [b""])


def test_a_numbered_codec_is_never_named(named: bytes) -> None:
    for name in CODEC_NUMBERS:
        with pytest.raises(BitstreamError, match=f"{name}.*by name"):
            read_header(sealed(named[:34] + bytes([len(name)]) + name.encode()))


def test_a_name_that_reaches_beyond_the_stream_is_seen(named: bytes) -> None:
    for claimed in (0, 1, 11, 13, 44, 200, 255):
        with pytest.raises(BitstreamError):
            read_header(sealed(named[:34] + bytes([claimed]) + named[35:47]))


def test_a_stream_has_up_to_255_parts() -> None:
    parts = [bytes([i]) * (i % 7) for i in range(255)]
    header, found = unpack(pack("many_parts", "0" * 16, (8, 8), 1, parts))
    assert [bytes(p) for p in found] == parts
    assert header.header_bytes == 26 + 4 * 255 + 11 + 4
    with pytest.raises(BitstreamError, match="0 parts"):
        read_header(sealed(b"CDZ\x01\0\0" + b"\0" * 8 + struct.pack("<III", 8, 8, 0) + b"\x01a", b""))


@pytest.mark.parametrize("codec", ["mbt2018_mean", "new_codec"])
def test_the_image_size_can_be_read_from_the_fixed_bytes(codec: str) -> None:
    stream = pack(codec, "0" * 16, (7, 9), 0, PARTS)
    assert unverified_image_size(stream[:FIXED_BYTES]) == (7, 9)
    for head in (b"", stream[: FIXED_BYTES - 1], b"CDZ\x02" + stream[4:]):
        with pytest.raises(BitstreamError, match=r"not a \.cdz stream"):
            unverified_image_size(head)
