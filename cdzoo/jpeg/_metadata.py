"""Metadata of a JPEG file: Exif, XMP and color profile, read from marker segments and written to them.

Sources: Exif 3.0 (CIPA DC-008), 4.5 and 4.7; Adobe's XMP specification, part 3, 1.1.3; ICC.1:2022, annex B.4.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

__all__ = ["EXIF", "ICC", "XMP", "joined_profile", "metadata_segments", "orientation"]

EXIF, XMP, ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4  # types of a TIFF field
_XMP_ORIENTATION = re.compile(rb"""<tiff:Orientation>\s*(\d+)\s*<|\btiff:Orientation\s*=\s*["']\s*(\d+)\s*["']""")
_LONGEST = 65533  # bytes of a segment's payload


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """The orientation 1..8 of an image, 1 for upright.

    Args:
        exif: payload of the Exif segment, or ``None``. Its tag has precedence, as in Pillow.
        xmp: the XMP packet, or ``None``. It is used where Exif has no tag: attribute or element ``tiff:Orientation``.

    Returns:
        the number in the file; 1 where there is none, or one outside 1..8.
    """
    value = None if exif is None else _exif_orientation(exif[len(EXIF) :])
    if value is None and xmp is not None and (match := _XMP_ORIENTATION.search(xmp)):
        value = int(match[1] or match[2])
    return value if value is not None and 1 <= value <= 8 else 1


def _exif_orientation(tiff: bytes) -> int | None:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return None
    (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
    if offset + 2 > len(tiff):
        return None
    (count,) = struct.unpack_from(f"{order}H", tiff, offset)
    for entry in range(offset + 2, min(offset + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", tiff, entry)
        if tag == _ORIENTATION:
            if number != 1 or kind not in (_SHORT, _LONG):
                return 0
            return int(struct.unpack_from(order + ("H" if kind == _SHORT else "I"), tiff, entry + 8)[0])
    return None


def joined_profile(chunks: Sequence[bytes]) -> bytes | None:
    """A color profile from the payloads of its segments, in any order; ``None`` if one is missing."""
    parts = {chunk[12]: chunk[14:] for chunk in chunks if len(chunk) >= 14}
    counts = {chunk[13] for chunk in chunks if len(chunk) >= 14}
    if len(counts) != 1 or sorted(parts) != list(range(1, counts.pop() + 1)):
        return None
    return b"".join(parts[number] for number in sorted(parts))


def metadata_segments(
    exif: bytes | None, icc_profile: bytes | None, comment: bytes | str | None
) -> list[tuple[int, bytes]]:
    r"""Marker codes and payloads for metadata.

    Args:
        exif: a TIFF structure, with or without ``b"Exif\0\0"`` in front.
        icc_profile: a profile of any length; it is cut into chunks.
        comment: text (UTF-8) or bytes.

    Raises:
        TypeError: an argument has another type.
        ValueError: an argument is too long for its segments, or ``exif`` is no TIFF structure.
    """
    segments = []
    if exif is not None:
        payload = _checked("exif", exif)
        if not payload.startswith(EXIF):
            payload = EXIF + payload
        if payload[6:10] not in (b"II*\0", b"MM\0*"):
            raise ValueError(
                f"exif begins with {exif[:10]!r}: it must be a TIFF structure (II*\\0 or MM\\0*), with or without "
                "Exif\\0\\0 in front, such as read_jpeg_header(...).exif or PIL.Image.Exif().tobytes()"
            )
        if len(payload) > _LONGEST:
            raise ValueError(
                f"exif has {len(payload)} bytes, and a segment holds {_LONGEST}: remove its thumbnail or maker notes"
            )
        segments.append((0xE1, payload))
    if icc_profile is not None:
        profile = _checked("icc_profile", icc_profile)
        size = _LONGEST - len(ICC) - 2
        chunks = [profile[i : i + size] for i in range(0, len(profile), size)]
        if not 1 <= len(chunks) <= 255:
            raise ValueError(f"icc_profile has {len(profile)} bytes: a JPEG file holds 1 to {255 * size}; pass None")
        segments += [(0xE2, ICC + bytes([n, len(chunks)]) + chunk) for n, chunk in enumerate(chunks, 1)]
    if comment is not None:
        text = _checked("comment", comment.encode() if isinstance(comment, str) else comment)
        if len(text) > _LONGEST:
            raise ValueError(f"comment has {len(text)} bytes, and a segment holds {_LONGEST}: shorten it")
        segments.append((0xFE, text))
    return segments


def _checked(name: str, value: object) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        way_out = "; call its method tobytes()" if hasattr(value, "tobytes") else ""
        raise TypeError(f"{name} must be bytes, not {type(value).__name__}{way_out}")
    return bytes(value)
