"""The ``.cdz`` stream: one self-contained bitstream per image (byte layout: ``docs/cdz_format.md``).

    offset  size  field
    0       4     magic "CDZ" and version 1
    4       1     codec number (``CODEC_NUMBERS``)
    5       1     number of parts P
    6       8     first 16 hex digits of the codec's fingerprint, as bytes
    14      4     image height H in pixels, uint32
    18      4     image width W in pixels, uint32
    22      4     CRC32 of the decoded symbols and table indexes
    26      4 P   length of each part in bytes, uint32
    26+4P   4     CRC32 of the header so far and of the payload
    30+4P         payload: the parts, in order

All integers are little-endian. Two parts (a hyperprior codec) make a header of 38 bytes, one part of 34.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cdzoo.errors import BitstreamError

__all__ = [
    "MAX_IMAGE_PIXELS",
    "StreamHeader",
    "atomic_file",
    "pack",
    "read_header",
    "remove_leftovers",
    "unpack",
    "write_atomically",
]

MAGIC = b"CDZ\x01"
MAX_IMAGE_PIXELS = 178_956_970
"""Images of more pixels than this are refused unless ``max_pixels`` says otherwise (Pillow's own error threshold)."""

CODEC_NUMBERS = {
    "bmshj2018_factorized": 1,
    "bmshj2018_hyperprior": 2,
    "mbt2018_mean": 3,
    "torfason2018": 4,
    "choi2019": 5,
    "icat_small": 6,
}
CODEC_NAMES = {number: name for name, number in CODEC_NUMBERS.items()}
MAX_PARTS = 2
FINGERPRINT_BYTES = 8
_FIXED = struct.Struct("<4sBB8sIII")
_CRC = struct.Struct("<I")


class StreamHeader(NamedTuple):
    """What a ``.cdz`` stream says of itself.

    Attributes:
        codec: name of the codec that wrote it.
        fingerprint: the writing codec's fingerprint (16 hex digits).
        image_size: ``(H, W)`` in pixels.
        num_bytes: length of the whole stream.
        header_bytes: how many of them are header; ``num_bytes - header_bytes`` is the payload.
        part_lengths: bytes of each entropy-coded part, in coding order.
        symbols_crc32: checksum of what the payload must decode to.
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
    """Put the entropy-coded parts of one image behind their header."""
    head = _FIXED.pack(
        MAGIC,
        CODEC_NUMBERS[codec],
        len(parts),
        bytes.fromhex(fingerprint)[:FINGERPRINT_BYTES],
        *image_size,
        symbols_crc32,
    ) + struct.pack(f"<{len(parts)}I", *map(len, parts))
    payload = b"".join(parts)
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def read_header(stream: bytes, *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> StreamHeader:
    """Read and verify the header of a ``.cdz`` stream; needs neither the codec nor its weights.

    The checksum over header and payload is verified too, so a header that comes back describes an undamaged stream.

    Args:
        stream: the whole stream (``bytes`` or anything with the buffer protocol).
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.

    Raises:
        BitstreamError: not a ``.cdz`` stream, of another version, truncated, damaged, or too large.
        TypeError: ``stream`` is not bytes-like.
    """
    return unpack(stream, max_pixels=max_pixels)[0]


def unpack(stream: bytes, *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> tuple[StreamHeader, tuple[memoryview, ...]]:
    """Split a stream into its header and its parts, after every check that needs no codec.

    Raises:
        BitstreamError: see :func:`read_header`. Nothing is allocated before the checks are through.
    """
    if max_pixels is not None and not hasattr(max_pixels, "__int__"):
        raise TypeError(f"max_pixels must be a number, or None for no limit, not {max_pixels!r}.")
    try:
        view = memoryview(stream).cast("B")
    except TypeError:
        raise TypeError(
            f"a .cdz stream is bytes-like, not {type(stream).__name__}; read the file with Path.read_bytes()."
        ) from None
    if len(view) == 0:
        raise BitstreamError("empty stream (0 bytes): a .cdz stream has at least 34; was the file written in full?")
    if bytes(view[:3]) != MAGIC[:3]:
        raise BitstreamError(
            f"not a .cdz stream: it starts with {bytes(view[:4])!r}, not {MAGIC[:3]!r}; "
            "other formats need their own reader."
        )
    if len(view) < _FIXED.size:
        raise BitstreamError(f"truncated stream: {len(view)} bytes, less than the fixed header of {_FIXED.size}.")
    magic, number, num_parts, fingerprint, height, width, symbols_crc32 = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise BitstreamError(f".cdz version {magic[3]} is not known to this cdzoo, which reads version 1; upgrade it.")
    if number not in CODEC_NAMES:
        raise BitstreamError(
            f"codec number {number} is not known to this cdzoo (it knows {sorted(CODEC_NAMES)}); "
            "the stream is damaged or from a newer version."
        )
    if not 1 <= num_parts <= MAX_PARTS:
        raise BitstreamError(f"damaged stream: {num_parts} parts, where 1 to {MAX_PARTS} are possible.")
    header_bytes = _FIXED.size + 4 * num_parts + _CRC.size
    if len(view) < header_bytes:
        raise BitstreamError(f"truncated stream: {len(view)} bytes, less than its header of {header_bytes}.")
    lengths = struct.unpack_from(f"<{num_parts}I", view, _FIXED.size)
    if header_bytes + sum(lengths) != len(view):
        raise BitstreamError(
            f"truncated or damaged stream: {len(view)} bytes, but its header announces {header_bytes + sum(lengths)}."
        )
    (crc,) = _CRC.unpack_from(view, header_bytes - _CRC.size)
    if zlib.crc32(view[header_bytes:], zlib.crc32(view[: header_bytes - _CRC.size])) != crc:
        raise BitstreamError("damaged stream: the CRC32 of header and payload does not match; fetch or write it again.")
    if height < 1 or width < 1:
        raise BitstreamError(f"damaged stream: image size {height}x{width}, where both must be at least 1.")
    if max_pixels is not None and height * width > max_pixels:
        raise BitstreamError(
            f"image of {height}x{width} pixels exceeds the limit of {max_pixels}; "
            "if you trust the source, pass a larger max_pixels."
        )
    header = StreamHeader(
        codec=CODEC_NAMES[number],
        fingerprint=fingerprint.hex(),
        image_size=(height, width),
        num_bytes=len(view),
        header_bytes=header_bytes,
        part_lengths=lengths,
        symbols_crc32=symbols_crc32,
    )
    parts, start = [], header_bytes
    for length in lengths:
        parts.append(view[start : start + length])
        start += length
    return header, tuple(parts)


_TEMPORARY = re.compile(r"\..{1,32}\.[0-9a-f]{16}\.tmp", re.DOTALL)
_LEFT_AFTER_S = 24 * 3600


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that is either there in full or not at all, whatever interrupts the writing.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name in one step; a file
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
    """Remove the temporary files of :func:`atomic_file` that killed processes left in a folder more than a day ago.

    Younger ones may belong to somebody who is writing. What cannot be removed stays; a folder that is not there has
    none.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFT_AFTER_S:
                        os.unlink(entry.path)
