"""Headers of JPEG files: all that stands before the first scan. Files often share one, which is parsed once."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.errors import JPEGError
from cdzoo.jpeg._markers import Scan, Segments
from cdzoo.jpeg._metadata import joined_profile, orientation
from cdzoo.jpeg._segments import Frame, JPEGKind
from cdzoo.jpeg.geometry import Geometry

__all__ = ["JPEGHeader", "Opening", "known_opening", "read_opening"]

#: Longer headers hold a color profile or a small picture, and are seldom the same.
_LONGEST_KEPT = 1 << 12


class JPEGHeader(NamedTuple):
    r"""Header of a JPEG file: everything before its first scan.

    Attributes:
        image_size: ``(H, W)`` in pixels, as stored: the orientation is not applied.
        sampling: ``K`` pairs of (vertical, horizontal) sampling factors; ``((1, 1),)`` for any file of one component.
        color_space: ``"gray"``, ``"ycbcr"``, ``"rgb"``, ``"cmyk"`` or ``"ycck"``.
        kind: ``"baseline"``, ``"extended"`` (sequential, Huffman) or ``"progressive"``.
        num_components: ``K``: 1, 3 or 4.
        block_sizes: ``K`` pairs ``(Hb, Wb)``, the shapes of the coefficient planes.
        precision: bits per sample: 8.
        orientation: orientation 1..8 from Exif or, where that has none, from XMP; 1 (upright) if neither has one.
        restart_interval: MCUs between restart markers in the first scan; 0 for none.
        exif: Exif data with the prefix ``b"Exif\0\0"``, as Pillow's ``info["exif"]`` and ``save(exif=...)`` have
            them and :func:`cdzoo.codecs.write_jpeg` takes them; ``None`` for none.
        icc_profile: color profile (ICC), joined from all its segments; ``None`` for none, or one that is incomplete.
    """

    image_size: tuple[int, int]
    sampling: tuple[tuple[int, int], ...]
    color_space: str
    kind: JPEGKind
    num_components: int
    block_sizes: tuple[tuple[int, int], ...]
    precision: int
    orientation: int
    restart_interval: int
    exif: bytes | None
    icc_profile: bytes | None

    @property
    def geometry(self) -> Geometry:
        """Sampling, size and color space: what the files of a batch share."""
        return Geometry(self.sampling, self.image_size, self.color_space)


class Opening(NamedTuple):
    """A parsed header with the first scan and its tables: where decoding begins. Files share it; it never changes."""

    geometry: Geometry
    frame: Frame
    scan: Scan
    marker: int  # the position of the first scan's SOS
    qtables: NDArray[np.int32] | None  # (K, 64), or None if a component has none yet
    huffman: tuple[bytes, ...]  # DHT payloads: four DC tables, four AC tables; empty for what is not defined
    flawless: bool  # true if nothing was wrong with it
    exif: bytes | None
    xmp: bytes | None
    icc: tuple[bytes, ...]

    @property
    def header(self) -> JPEGHeader:
        """The public part, with metadata; not needed to decode."""
        frame = self.frame
        return JPEGHeader(
            image_size=frame.image_size,
            sampling=frame.sampling,
            color_space=self.geometry.color_space,
            kind=frame.kind,
            num_components=len(frame.components),
            block_sizes=self.geometry.blocks,
            precision=8,
            orientation=orientation(self.exif, self.xmp),
            restart_interval=self.scan.restart_interval,
            exif=self.exif,
            icc_profile=joined_profile(self.icc) if self.icc else None,
        )


def read_opening(segments: Segments) -> Opening:
    """Read up to the first scan.

    Raises:
        JPEGError: the header is damaged or describes something that is not supported.
    """
    scan = segments.next_scan()
    frame = segments.frame
    if scan is None or frame is None:
        raise JPEGError("the file ends before any image", byte=segments.position)
    qtables = [segments.quantization.get(component.table) for component in frame.components]
    complete = [table for table in qtables if table is not None]
    geometry = Geometry(frame.sampling, frame.image_size, segments.color_space)
    huffman = segments.usable_tables()
    return Opening(
        geometry,
        frame,
        scan,
        scan.position - 8 - 2 * len(scan.header.components),
        np.concatenate(complete).reshape(-1, 64) if len(complete) == len(qtables) else None,
        tuple([huffman.get(kind + number, b"") for kind in (0, 16) for number in range(4)]),
        segments.complaint is None,
        segments.exif,
        segments.xmp,
        tuple(segments.icc),
    )


def known_opening(data: bytes) -> Opening | None:
    """The opening of a file that begins like another one before it; ``None`` if it has to be parsed."""
    start = data.find(b"\xff\xda", 0, _LONGEST_KEPT)
    if start < 0 or start + 4 > len(data):
        return None
    try:
        return _parse(data[: start + 2 + (data[start + 2] << 8 | data[start + 3])])
    except JPEGError:  # damaged, or FF DA was not a marker: the caller parses the file and reports the position
        return None


@lru_cache(maxsize=128)
def _parse(beginning: bytes) -> Opening:
    """The opening of all files that begin so: those bytes are the key, and all that is looked at."""
    opening = read_opening(Segments(beginning))
    if opening.scan.position != len(beginning):
        raise JPEGError("the beginning holds more than a header", byte=opening.scan.position)
    return opening
