"""JPEG markers (ITU-T T.81, Annex B): everything that is known about a file before its entropy-coded data are read.

Every field that a kernel will rely on is checked here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ZIGZAG", "Component", "Damage", "Frame", "Kind", "Scan", "ScanHeader", "Segments", "quantization_table"]

#: Scans that a file may have; real ones have about ten, and 64 coefficients in 14 steps would make 896 a component.
MAX_SCANS = 1000

# fmt: off
#: ``ZIGZAG[k]`` is the natural (row-major) index of the ``k``-th coefficient of the file.
ZIGZAG = np.array([
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
])
# fmt: on

Kind: TypeAlias = Literal["baseline", "extended", "progressive"]

_KINDS: dict[int, Kind] = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_UNSUPPORTED = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE, 0xDE, 0xDF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCC), "arithmetic-coded"),
}
_UNSEEN = 255


class Damage(Exception):
    """Something is wrong at a position of a file; the reader adds the file's name and makes it a ``JPEGError``."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason


class Component(NamedTuple):
    """A component of a frame; ``rows`` and ``columns`` count its blocks, without those that only complete an MCU."""

    identifier: int
    vertical: int
    horizontal: int
    table: int
    rows: int
    columns: int


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """What a frame header (SOF) says; ``components`` in the order of the file. Equal headers give the same object."""

    kind: Kind
    height: int
    width: int
    components: tuple[Component, ...]
    rows: int  # of MCUs in an interleaved scan
    columns: int
    num_blocks: int
    sampling: tuple[tuple[int, int], ...]


class ScanHeader(NamedTuple):
    """What a scan header (SOS) says; ``components`` are numbers of the frame's."""

    components: tuple[int, ...]
    dc: tuple[int, ...]
    ac: tuple[int, ...]
    start: int  # Ss
    end: int  # Se
    high: int  # Ah
    low: int  # Al


class Scan(NamedTuple):
    """A scan, with the tables and the restart interval that hold at that point."""

    header: ScanHeader
    dc: tuple[bytes, ...]  # DHT payloads, one per component; empty where none is needed
    ac: tuple[bytes, ...]
    restart_interval: int
    position: int  # where entropy-coded data begin


class Segments:
    """Walks over the marker segments of one file.

    ``next_scan`` goes on to the next scan; whoever decodes that sets ``position`` to the marker behind it. With
    ``strict=False``, ``complaint`` is the first thing that was wrong, and that a decoder can live with.
    """

    def __init__(self, data: bytes | bytearray, *, strict: bool = True) -> None:
        self.data = data
        self.strict = strict
        self.position = 2
        self.frame: Frame | None = None
        self.restart_interval = 0
        self.exif: tuple[int, int] | None = None
        self.huffman: dict[int, bytes] = {}  # DHT payloads, by selector
        self.quantization: dict[int, NDArray[np.int32]] = {}  # by selector
        self.qtables: dict[int, NDArray[np.int32]] = {}  # by component, as of its first scan
        self.progress: list[bytearray] = []  # by component and coefficient: Al of the last scan, or _UNSEEN
        self.complaint: Damage | None = None
        self._jfif = False
        self._adobe: int | None = None
        self._num_scans = 0
        if data[:2] != b"\xff\xd8":
            raise Damage(0, "no JPEG file: it does not begin with FF D8" if data else "the file is empty")

    def complain(self, position: int, reason: str) -> None:
        """Raise, or if not strict remember the first."""
        damage = Damage(position, reason)
        if self.strict:
            raise damage
        self.complaint = self.complaint or damage

    @property
    def color_space(self) -> str:
        """What the components mean, by the rules of libjpeg: JFIF, then Adobe, then the components' identifiers."""
        assert self.frame is not None
        identifiers = bytes(component.identifier for component in self.frame.components)
        if len(identifiers) == 1:
            return "gray"
        if len(identifiers) == 4:
            return "cmyk" if self._adobe in (None, 0) else "ycck"
        if self._jfif:
            return "ycbcr"
        if self._adobe is not None:
            return "rgb" if self._adobe == 0 else "ycbcr"
        return "rgb" if identifiers == b"RGB" else "ycbcr"

    def next_scan(self) -> Scan | None:
        """Read up to the next scan's entropy-coded data; ``None`` at the end of the image."""
        data = self.data
        position = self.position
        size = len(data)
        while True:
            if position + 1 >= size:
                raise Damage(position, "the file ends where a marker should be")
            if data[position] != 0xFF:
                raise Damage(position, f"a marker should be here, not the byte {data[position]:02X}")
            code = data[position + 1]
            if code == 0xFF:
                position += 1
                continue
            if code == 0xD9:
                self.position = position + 2
                return None
            if 0xD0 <= code <= 0xD7:
                # some encoders end the last interval, too, by a restart marker, which libjpeg skips
                if self._num_scans == 0:
                    self.complain(position, f"the marker FF {code:02X} has no place here")
                position += 2
                continue
            if code < 0xC0 or code == 0xD8:
                raise Damage(position, f"the marker FF {code:02X} has no place here")
            if position + 4 > size:
                raise Damage(position, "the file ends in a marker segment")
            start = position + 4
            end = position + 2 + (data[position + 2] << 8 | data[position + 3])
            if end < start:
                raise Damage(position, f"a marker segment of impossible length {end - position - 2}")
            if end > size:
                raise Damage(position, f"the segment of marker FF {code:02X} is longer than the file")
            if code == 0xC4:
                self._read_huffman(start, end)
            elif code == 0xDB:
                self._read_quantization(start, end)
            elif code == 0xDA:
                scan = self._read_scan(start, end)
                self.position = end
                return scan
            elif code == 0xDD:
                if end - start != 2:
                    raise Damage(position, "a restart interval (DRI) of impossible length")
                self.restart_interval = data[start] << 8 | data[start + 1]
            elif code in _KINDS:
                self._read_frame(code, start, end)
            elif code in _UNSUPPORTED:
                raise Damage(
                    position,
                    f"{_UNSUPPORTED[code]} JPEG is not supported, only Huffman-coded DCT",
                )
            elif code == 0xDC:
                self._read_lines(start, end)
            elif code == 0xE0:
                self._jfif = self._jfif or (data[start : start + 5] == b"JFIF\0" and end - start >= 14)
            elif code == 0xE1:
                if self.exif is None and data[start : start + 6] == b"Exif\0\0":
                    self.exif = (start + 6, end)
            elif code == 0xEE:
                if data[start : start + 5] == b"Adobe" and end - start >= 12:
                    self._adobe = data[start + 11]
            elif not (0xE2 <= code <= 0xEF or code == 0xFE):
                raise Damage(position, f"the marker FF {code:02X} is reserved")
            position = end

    def finish(self) -> None:
        """Check that the scans up to the end of the image, taken together, hold every component."""
        for index in self.unseen():
            self.complain(self.position, f"no scan holds component {index}")

    def unseen(self) -> list[int]:
        """The components of which no scan has been read."""
        return [index for index, seen in enumerate(self.progress) if seen[0] == _UNSEEN]

    def unfinished(self) -> list[int]:
        """The components of which some coefficient has not been read in full precision."""
        return [index for index, seen in enumerate(self.progress) if seen.count(0) < 64]

    def _read_huffman(self, start: int, end: int) -> None:
        data = self.data
        position = start
        while position < end:
            behind = position + 17
            if behind <= end:
                behind += sum(data[position + 1 : behind])
            if behind > end:
                raise Damage(position, "a Huffman table (DHT) is longer than its segment")
            selector = data[position]
            payload = bytes(data[position + 1 : behind])
            if selector & 0xEC or not _is_huffman_table(payload, selector < 16):
                raise Damage(position, f"a Huffman table (DHT) that cannot be, with selector {selector:02X}")
            self.huffman[selector] = payload
            position = behind

    def _read_quantization(self, start: int, end: int) -> None:
        data = self.data
        position = start
        while position < end:
            selector = data[position]
            behind = position + 1 + (64 << (selector >> 4))
            if selector & 0xEC or behind > end:
                raise Damage(
                    position,
                    f"a quantisation table (DQT) that cannot be, with selector {selector:02X}",
                )
            table = quantization_table(bytes(data[position + 1 : behind]))
            if table is None:
                raise Damage(position, "a quantisation table (DQT) with an entry of 0")
            self.quantization[selector & 15] = table
            position = behind

    def _read_frame(self, code: int, start: int, end: int) -> None:
        if self.frame is not None:
            raise Damage(start - 4, "a second frame header (SOF)")
        try:
            self.frame = _parse_frame(_KINDS[code], bytes(self.data[start:end]))
        except Damage as damage:
            raise Damage(start + damage.position, damage.reason) from None
        self.progress = [bytearray([_UNSEEN]) * 64 for _ in self.frame.components]

    def _read_lines(self, start: int, end: int) -> None:
        """A number of lines (DNL) may stand behind a scan, but it is no news: the frame has had one from the start."""
        lines = int.from_bytes(self.data[start:end], "big")
        if self.frame is None or self._num_scans == 0 or end - start != 2 or lines != self.frame.height:
            self.complain(
                start - 4, "a number of lines (DNL) that the frame header (SOF) does not have is not supported"
            )

    def _read_scan(self, start: int, end: int) -> Scan:
        frame = self.frame
        if frame is None:
            raise Damage(start - 4, "a scan (SOS) before any frame header (SOF)")
        self._num_scans += 1
        if self._num_scans > MAX_SCANS:
            raise Damage(start - 4, f"more than {MAX_SCANS} scans")
        try:
            header = _parse_scan(frame, bytes(self.data[start:end]))
        except Damage as damage:
            raise Damage(start + damage.position, damage.reason) from None
        if frame.kind != "progressive":
            if (header.start, header.end, header.high, header.low) != (0, 63, 0, 0):
                self.complain(end - 3, "a sequential scan (SOS) with the parameters of a progressive one")
            header = header._replace(start=0, end=63, high=0, low=0)
        dc: tuple[bytes, ...] = ()
        ac: tuple[bytes, ...] = ()
        if header.start == 0 and header.high == 0:
            dc = tuple([self._table("DC", selector, start) for selector in header.dc])
        if header.end > 0:
            ac = tuple([self._table("AC", selector, start) for selector in header.ac])
        self._advance(start, header)
        for n in header.components:
            if n not in self.qtables:
                table = self.quantization.get(frame.components[n].table)
                if table is None:
                    raise Damage(start, f"component {n} has no quantisation table ({frame.components[n].table})")
                self.qtables[n] = table
        return Scan(header, dc, ac, self.restart_interval, end)

    def _advance(self, start: int, header: ScanHeader) -> None:
        """Check a scan against those before it: no coefficient is coded twice, and refinements go down by one bit."""
        first, count = header.start, header.end + 1 - header.start
        before = header.high or _UNSEEN
        for n in header.components:
            seen = self.progress[n]
            if seen.count(before, first, first + count) != count or (first > 0 and seen[0] == _UNSEEN):
                raise Damage(start, f"a scan (SOS) of component {n} that does not follow from those before it")
            seen[first : first + count] = bytes([header.low]) * count

    def _table(self, kind: str, selector: int, start: int) -> bytes:
        payload = self.huffman.get(selector | (0x10 if kind == "AC" else 0))
        if payload is None:
            raise Damage(start, f"the scan needs the {kind} Huffman table {selector}, which is not defined")
        return payload

    def orientation(self) -> int:
        """The Exif orientation, 1..8; 1 where there is none, or none that makes sense."""
        if self.exif is None:
            return 1
        tiff = bytes(self.data[slice(*self.exif)])
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
        if order is None or len(tiff) < 8:
            return 1
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        if offset + 2 > len(tiff):
            return 1
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for entry in range(offset + 2, min(offset + 2 + 12 * count, len(tiff) - 11), 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == 0x0112:
                return int(value) if kind == 3 and number == 1 and 1 <= value <= 8 else 1
        return 1


@lru_cache(maxsize=1024)
def _parse_frame(kind: Kind, payload: bytes) -> Frame:
    if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
        raise Damage(-4, "a frame header (SOF) of impossible length")
    precision, height, width, num_components = struct.unpack_from(">BHHB", payload)
    if precision != 8:
        raise Damage(0, f"{precision}-bit samples are not supported, only 8-bit ones")
    if height == 0:
        raise Damage(1, "a height of 0, to be defined by a number of lines (DNL), is not supported")
    if width == 0:
        raise Damage(3, "a width of 0")
    if num_components not in (1, 3, 4):
        raise Damage(5, f"{num_components} components are not supported, only 1, 3 or 4")
    fields = [payload[i : i + 3] for i in range(6, len(payload), 3)]
    sampling = tuple((field[1] & 15, field[1] >> 4) for field in fields)
    if not all(1 <= factor <= 4 for pair in sampling for factor in pair):
        raise Damage(6, f"sampling factors (vertical, horizontal) {sampling}: they lie between 1 and 4")
    if len({field[0] for field in fields}) < num_components:
        raise Damage(6, "two components have the same identifier")
    if num_components == 1:
        sampling = ((1, 1),)  # relative to itself no component is subsampled, and its scans are never interleaved
    tallest = 8 * max(vertical for vertical, _ in sampling)
    widest = 8 * max(horizontal for _, horizontal in sampling)
    # The size of a component is ceil(height * vertical / tallest), and ceil(ceil(x) / 8) is ceil(x / 8).
    components = tuple(
        Component(field[0], v, h, field[2], -(-height * v // tallest), -(-width * h // widest))
        for field, (v, h) in zip(fields, sampling, strict=True)
    )
    num_blocks = sum(component.rows * component.columns for component in components)
    return Frame(kind, height, width, components, -(-height // tallest), -(-width // widest), num_blocks, sampling)


@lru_cache(maxsize=1024)
def _parse_scan(frame: Frame, payload: bytes) -> ScanHeader:
    count = payload[0] if payload else 0
    if not 1 <= count <= 4 or len(payload) != 4 + 2 * count:
        raise Damage(-4, "a scan header (SOS) of impossible length")
    components: list[int] = []
    for i in range(1, 1 + 2 * count, 2):
        index = next((n for n, component in enumerate(frame.components) if component.identifier == payload[i]), -1)
        if index < 0 or index in components:
            raise Damage(i, f"a scan (SOS) of component {payload[i]}, which is not in the frame, or twice in the scan")
        components.append(index)
    if count > 1 and sum(frame.components[n].vertical * frame.components[n].horizontal for n in components) > 10:
        raise Damage(0, "a scan (SOS) with more than 10 blocks in an MCU")
    first, last, high, low = payload[-3], payload[-2], payload[-1] >> 4, payload[-1] & 15
    if frame.kind == "progressive" and not (
        (last == 0 if first == 0 else first <= last <= 63 and count == 1) and low <= 13 and high in (0, low + 1)
    ):
        raise Damage(0, f"an impossible progressive scan (SOS): Ss {first}, Se {last}, Ah {high}, Al {low}")
    selectors = payload[2:-3:2]
    dc = tuple(selector >> 4 for selector in selectors)
    ac = tuple(selector & 15 for selector in selectors)
    return ScanHeader(tuple(components), dc, ac, first, last, high, low)


@lru_cache(maxsize=256)
def _is_huffman_table(payload: bytes, dc: bool) -> bool:
    """Whether these are code lengths that leave the code of all ones free, and symbols of a size that there is."""
    code = 0
    for length in range(1, 17):
        code = 2 * code + payload[length - 1]
        if code >= 1 << length and payload[length - 1]:
            return False
    return len(payload) <= 16 + 256 and (not dc or max(payload[16:], default=0) <= 15)


@lru_cache(maxsize=256)
def quantization_table(payload: bytes) -> NDArray[np.int32] | None:
    """The payload of a DQT (8 or 16 bits an entry) in natural order, read-only; ``None`` if it has an entry of 0."""
    zigzag: NDArray[Any] = np.frombuffer(payload, np.uint8 if len(payload) == 64 else ">u2")
    if not zigzag.all():
        return None
    table = np.empty(64, np.int32)
    table[ZIGZAG] = zigzag
    table.setflags(write=False)
    return table
