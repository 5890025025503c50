"""What stands before the first scan of a JPEG file. Files of one origin often agree in it: it is parsed once."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.jpeg._markers import Damage, Frame, Scan, Segments

__all__ = ["Geometry", "Header", "known_header", "read_header"]

#: Longer headers hold a colour profile or a small picture, and are seldom the same.
_LONGEST_KEPT = 1 << 12


class Geometry(NamedTuple):
    """What the files of one batch have in common."""

    sampling: tuple[tuple[int, int], ...]
    image_size: tuple[int, int]
    color_space: str


class Header(NamedTuple):
    """A header. Files share it: nothing of it ever changes."""

    frame: Frame
    geometry: Geometry
    scan: Scan
    marker: int  # the position of the first scan's SOS
    qtables: NDArray[np.int32] | None  # (K, 64), or None if a component has none yet
    huffman: tuple[bytes, ...]  # DHT payloads: four DC tables, four AC tables; empty for what is not defined
    flawless: bool  # whether nothing was wrong with it, not even a little


def read_header(segments: Segments) -> Header:
    """Read up to the first scan.

    Raises:
        Damage: the header is damaged or describes something that is not supported.
    """
    scan = segments.next_scan()
    frame = segments.frame
    if scan is None or frame is None:
        raise Damage(segments.position, "the file ends before any image")
    qtables = [segments.quantization.get(component.table) for component in frame.components]
    complete = [table for table in qtables if table is not None]
    return Header(
        frame,
        Geometry(frame.sampling, (frame.height, frame.width), segments.color_space),
        scan,
        scan.position - 8 - 2 * len(scan.header.components),
        np.concatenate(complete).reshape(-1, 64) if len(complete) == len(qtables) else None,
        tuple([segments.huffman.get(kind + number, b"") for kind in (0, 16) for number in range(4)]),
        segments.complaint is None,
    )


def known_header(data: bytes) -> Header | None:
    """The header of a file that begins like another one before it; ``None`` if it has to be parsed."""
    start = data.find(b"\xff\xda", 0, _LONGEST_KEPT)
    if start < 0 or start + 4 > len(data):
        return None
    try:
        return _parse(data[: start + 2 + (data[start + 2] << 8 | data[start + 3])])
    except Damage:  # or these two bytes were no marker; a file that is read from its beginning tells the position
        return None


@lru_cache(maxsize=128)
def _parse(beginning: bytes) -> Header:
    """The header of all files that begin so: those bytes are the key, and all that is looked at."""
    header = read_header(Segments(beginning))
    if header.scan.position != len(beginning):
        raise Damage(header.scan.position, "the beginning holds more than a header")
    return header
