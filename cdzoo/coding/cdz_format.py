"""The ``.cdz`` stream: one self-contained bitstream per image (byte layout: ``docs/cdz_format.md``).

    offset  size  field
    0       4     magic "CDZ" and version 1
    4       1     codec number (``CODEC_NUMBERS``), or 0: the codec's name follows the lengths
    5       1     number of parts P
    6       8     first 16 hex digits of the codec's fingerprint, as bytes
    14      4     image height H in pixels, uint32
    18      4     image width W in pixels, uint32
    22      4     CRC32 of the decoded symbols and table indexes
    26      4 P   length of each part in bytes, uint32
    26+4P   1+L   with codec number 0 only: L, and the codec's name of L bytes
    then    4     CRC32 of the header so far and of the payload
    then          payload: the parts, in order

All integers are little-endian. A numbered codec's header has 38 bytes with two parts (a hyperprior codec) and 34 bytes
with one part.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from cdzoo._limits import MAX_IMAGE_PIXELS
from cdzoo.errors import BitstreamError

__all__ = ["FIXED_BYTES", "MAGIC", "StreamHeader", "pack", "read_header", "unpack", "unverified_image_size"]

MAGIC = b"CDZ\x01"
CODEC_NUMBERS = {
    "bmshj2018_factorized": 1,
    "bmshj2018_hyperprior": 2,
    "mbt2018_mean": 3,
    "torfason2018": 4,
    "choi2019": 5,
    "icat_small": 6,
}
"""Codecs of version 0.1.0. The table is closed: streams of every later codec carry its name."""
CODEC_NAMES = {number: name for name, number in CODEC_NUMBERS.items()}
FINGERPRINT_BYTES = 8
_NAMED = 0  # in place of a codec number
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_FIXED = struct.Struct("<4sBB8sIII")
_CRC = struct.Struct("<I")
FIXED_BYTES = _FIXED.size
"""Bytes at the start of a stream that hold its image size."""


class StreamHeader(NamedTuple):
    """The header of a ``.cdz`` stream.

    Attributes:
        codec: name of the codec that wrote the stream.
        fingerprint: fingerprint of that codec (16 hex digits).
        image_size: ``(H, W)`` in pixels.
        num_bytes: length of the whole stream.
        header_bytes: length of the header; ``num_bytes - header_bytes`` is the payload.
        part_lengths: bytes of each entropy-coded part, in coding order.
        symbols_crc32: checksum of the symbols and table indexes that the payload decodes to.
    """

    codec: str
    fingerprint: str
    image_size: tuple[int, int]
    num_bytes: int
    header_bytes: int
    part_lengths: tuple[int, ...]
    symbols_crc32: int

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole stream, header included."""
        return 8 * self.num_bytes / (self.image_size[0] * self.image_size[1])

    @property
    def payload_bpp(self) -> float:
        """Bits per pixel of the entropy-coded payload alone, the figure that papers quote."""
        return 8 * (self.num_bytes - self.header_bytes) / (self.image_size[0] * self.image_size[1])


def pack(
    codec: str, fingerprint: str, image_size: tuple[int, int], symbols_crc32: int, parts: Sequence[bytes]
) -> bytes:
    """Put the entropy-coded parts of one image behind their header.

    Args:
        codec: the codec's name. A name without a number is written into the stream.
        fingerprint: the codec's fingerprint, 16 hex digits.
        image_size: ``(H, W)`` in pixels.
        symbols_crc32: checksum of symbols and table indexes.
        parts: 1 to 255 entropy-coded parts.

    Raises:
        ValueError: a name that no stream can carry.
    """
    number, name = CODEC_NUMBERS.get(codec, _NAMED), b""
    if number == _NAMED:
        if not _NAME.fullmatch(codec):
            raise ValueError(
                f"a stream cannot carry the codec name {codec!r}; use 1 to 64 ASCII letters, digits, '_', '-' or '.', "
                "with a letter, a digit or '_' at the start"
            )
        name = bytes([len(codec)]) + codec.encode("ascii")
    head = _FIXED.pack(
        MAGIC, number, len(parts), bytes.fromhex(fingerprint)[:FINGERPRINT_BYTES], *image_size, symbols_crc32
    )
    head += struct.pack(f"<{len(parts)}I", *map(len, parts)) + name
    payload = b"".join(parts)
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def read_header(stream: bytes, *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> StreamHeader:
    """Read and verify the header of a ``.cdz`` stream. Neither the codec nor its weights are needed.

    The checksum over header and payload is verified too, so a header that is returned describes an undamaged stream.

    Args:
        stream: the whole stream (``bytes`` or anything with the buffer protocol).
        max_pixels: refuse images with more pixels; ``None`` for no limit.

    Raises:
        BitstreamError: not a ``.cdz`` stream, of another version, truncated, damaged, or too large.
        TypeError: ``stream`` is not bytes-like, or ``max_pixels`` is not a number.
    """
    return unpack(stream, max_pixels=max_pixels)[0]


def unverified_image_size(head: bytes) -> tuple[int, int]:
    """``(H, W)`` from the first ``FIXED_BYTES`` bytes of a stream, without any check of the rest.

    Raises:
        BitstreamError: the bytes do not begin a ``.cdz`` stream.
    """
    if len(head) < FIXED_BYTES or head[: len(MAGIC)] != MAGIC:
        raise BitstreamError(f"not a .cdz stream: it begins with {head[:4]!r}, not {MAGIC!r}")
    *_, height, width, _ = _FIXED.unpack_from(head)
    return height, width


def unpack(stream: bytes, *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> tuple[StreamHeader, tuple[memoryview, ...]]:
    """Split a stream into its header and its parts, after every check that needs no codec.

    Raises:
        BitstreamError: see :func:`read_header`. Nothing is allocated before the checks have passed.
        TypeError: ``stream`` is not bytes-like, or ``max_pixels`` is not a number.
    """
    if max_pixels is not None and not hasattr(max_pixels, "__int__"):
        raise TypeError(f"max_pixels must be a number, or None for no limit, not {max_pixels!r}")
    try:
        view = memoryview(stream).cast("B")
    except TypeError:
        raise TypeError(
            f"a .cdz stream is bytes-like, not {type(stream).__name__}; read the file with Path.read_bytes()"
        ) from None
    if len(view) == 0:
        raise BitstreamError("empty stream (0 bytes): a .cdz stream has at least 34; was the file written in full?")
    if bytes(view[:3]) != MAGIC[:3]:
        raise BitstreamError(
            f"not a .cdz stream: it starts with {bytes(view[:4])!r}, not {MAGIC[:3]!r}; "
            "other formats need their own reader"
        )
    if len(view) < FIXED_BYTES:
        raise BitstreamError(f"truncated stream: {len(view)} bytes, less than the fixed header of {FIXED_BYTES}")
    magic, number, num_parts, fingerprint, height, width, symbols_crc32 = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise BitstreamError(f".cdz version {magic[3]} is not known to this cdzoo, which reads version 1; upgrade it")
    if number != _NAMED and number not in CODEC_NAMES:
        raise BitstreamError(
            f"codec number {number} is not known to this cdzoo (it knows {sorted(CODEC_NAMES)}); "
            "the stream is damaged or from a newer version"
        )
    if num_parts < 1:
        raise BitstreamError("damaged stream: 0 parts, where at least 1 is needed; fetch or write it again")
    name_at = FIXED_BYTES + 4 * num_parts
    crc_at = name_at
    if number == _NAMED:  # a stream that ends before the name gets the length of the shortest name
        crc_at += 1 + (view[name_at] if len(view) > name_at else 1)
    header_bytes = crc_at + _CRC.size
    if len(view) < header_bytes:
        raise BitstreamError(f"truncated stream: {len(view)} bytes, less than its header of {header_bytes}")
    lengths = struct.unpack_from(f"<{num_parts}I", view, FIXED_BYTES)
    if header_bytes + sum(lengths) != len(view):
        raise BitstreamError(
            f"truncated or damaged stream: {len(view)} bytes, but its header announces {header_bytes + sum(lengths)}"
        )
    (crc,) = _CRC.unpack_from(view, crc_at)
    if zlib.crc32(view[header_bytes:], zlib.crc32(view[:crc_at])) != crc:
        raise BitstreamError("damaged stream: the CRC32 of header and payload does not match; fetch or write it again")
    if height < 1 or width < 1:
        raise BitstreamError(f"damaged stream: image size {height}x{width}, where both must be at least 1")
    if max_pixels is not None and height * width > max_pixels:
        raise BitstreamError(
            f"image of {height}x{width} pixels exceeds the limit of {max_pixels}; "
            "if you trust the source, pass a larger max_pixels"
        )
    header = StreamHeader(
        codec=CODEC_NAMES[number] if number != _NAMED else _checked_name(bytes(view[name_at + 1 : crc_at])),
        fingerprint=fingerprint.hex(),
        image_size=(height, width),
        num_bytes=len(view),
        header_bytes=header_bytes,
        part_lengths=lengths,
        symbols_crc32=symbols_crc32,
    )
    bounds = itertools.accumulate(lengths, initial=header_bytes)
    return header, tuple(view[start:end] for start, end in itertools.pairwise(bounds))


def _checked_name(field: bytes) -> str:
    """The codec name in a header.

    Raises:
        BitstreamError: the field holds no name that :func:`pack` writes.
    """
    name = field.decode("ascii", "backslashreplace")
    if not _NAME.fullmatch(name):
        raise BitstreamError(f"damaged stream: {name!r} is no codec name; fetch or write it again")
    if name in CODEC_NUMBERS:
        raise BitstreamError(
            f"damaged stream: codec {name!r} is written as number {CODEC_NUMBERS[name]}, not by name; "
            "fetch or write it again"
        )
    return name
