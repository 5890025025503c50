"""Markers of a JPEG file (ITU-T T.81, Annex B): all that is known before entropy-coded data are read.

Every field that a kernel relies on is checked here. Where files break the standard and libjpeg reads them without a
word, they are read here, too; where libjpeg warns, ``strict=False`` does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.errors import JPEGError
from cdzoo.jpeg._huffman import STANDARD_TABLES, is_huffman_table
from cdzoo.jpeg._metadata import EXIF, ICC, XMP
from cdzoo.jpeg._segments import Frame, JPEGKind, ScanHeader, parse_frame, parse_quantization, parse_scan
from cdzoo.jpeg.kernels.layout import MAX_SCANS, UNSEEN

__all__ = ["Scan", "Segments"]

_KINDS: dict[int, JPEGKind] = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_UNSUPPORTED = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE, 0xDE, 0xDF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic-coded"),
}
#: Segments that are skipped, as in libjpeg: DAC, DNL (see ``_number_of_lines``), comments.
_SKIPPED = (0xCC, 0xDC, 0xFE)


class Scan(NamedTuple):
    """A scan, with the tables and the restart interval that are valid for it."""

    header: ScanHeader
    dc: tuple[bytes, ...]  # DHT payloads, one per component; empty where none is needed
    ac: tuple[bytes, ...]
    restart_interval: int
    position: int  # where entropy-coded data begin


class Segments:
    """Walk over the marker segments of one file.

    ``next_scan`` goes on to the next scan. The caller decodes it and sets ``position`` to the marker behind it. With
    ``strict=False``, ``complaint`` is the first defect that decoding could go on after.
    """

    def __init__(self, data: bytes | bytearray, *, strict: bool = True) -> None:
        self.data = data
        self.strict = strict
        self.position = 2
        self.frame: Frame | None = None
        self.restart_interval = 0
        self.exif: bytes | None = None  # payload of the segment
        self.xmp: bytes | None = None
        self.icc: list[bytes] = []
        self.huffman: dict[int, bytes] = {}  # DHT payloads, by selector
        self.quantization: dict[int, NDArray[np.int32]] = {}  # by selector
        self.qtables: dict[int, NDArray[np.int32]] = {}  # by component, as of its first scan
        self.progress: list[bytearray] = []  # by component and coefficient: Al of the last scan, or UNSEEN
        self.complaint: JPEGError | None = None
        self._jfif = False
        self._adobe: int | None = None
        self._num_scans = 0
        if data[:2] != b"\xff\xd8":
            if not data:
                raise JPEGError("the file is empty", byte=0)
            reason = 'no JPEG file: it does not begin with FF D8; fallback="decode" lets Pillow decode other formats'
            raise JPEGError(reason, byte=0, unsupported=True)

    def complain(self, error: JPEGError) -> None:
        """Raise the error, or if not strict remember the first one."""
        if self.strict:
            raise error
        self.complaint = self.complaint or error

    @property
    def color_space(self) -> str:
        """Color space of the components, by the rules of libjpeg: JFIF, then Adobe, then the identifiers."""
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
                raise JPEGError("the file ends where a marker should be", byte=position)
            code = data[position + 1]
            if data[position] != 0xFF or code == 0:
                position = self._skip_stray(position)
                continue
            if code == 0xFF:
                position += 1
                continue
            if code == 0xD9:
                self.position = position + 2
                return None
            if 0xD0 <= code <= 0xD7 or code == 0x01:  # RST, TEM
                position += 2
                continue
            if code < 0xC0 or code == 0xD8 or 0xF0 <= code < 0xFE:
                raise JPEGError(f"the marker FF {code:02X} has no place here", byte=position)
            if position + 4 > size:
                raise JPEGError("the file ends in a marker segment", byte=position)
            start = position + 4
            end = position + 2 + (data[position + 2] << 8 | data[position + 3])
            if end < start:
                if code not in _SKIPPED and not 0xE0 <= code <= 0xEF:
                    raise JPEGError(f"a marker segment of impossible length {end - position - 2}", byte=position)
                end = start
            if end > size:
                raise JPEGError(f"the segment of marker FF {code:02X} is longer than the file", byte=position)
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
                    raise JPEGError("a restart interval (DRI) of impossible length", byte=position)
                self.restart_interval = data[start] << 8 | data[start + 1]
            elif code in _KINDS:
                self._read_frame(code, start, end)
            elif code in _UNSUPPORTED:
                raise JPEGError(
                    f"{_UNSUPPORTED[code]} JPEG is not supported, only Huffman-coded DCT",
                    byte=position,
                    unsupported=True,
                )
            elif code not in _SKIPPED:
                self._read_application(code, start, end)
            position = end

    def finish(self) -> None:
        """Check that the scans up to the end of the image, taken together, hold every component."""
        for index in self.unseen():
            self.complain(JPEGError(f"no scan holds component {index}", byte=self.position))

    def unseen(self) -> list[int]:
        """Components of which no scan has been read."""
        return [index for index, seen in enumerate(self.progress) if seen[0] == UNSEEN]

    def unfinished(self) -> list[int]:
        """Components of which some coefficient has not been read in full precision."""
        return [index for index, seen in enumerate(self.progress) if seen.count(0) < 64]

    def _skip_stray(self, position: int) -> int:
        """The position of the next marker, if bytes that belong to nothing may stand before it."""
        marker = _next_marker(self.data, position)
        found = f"{self.data[position]:02X}"
        if marker < 0:
            raise JPEGError(f"a marker should be here, not the byte {found}, and none follows", byte=position)
        count = marker - position
        self.complain(
            JPEGError(f"a marker should be here, not the byte {found}; it follows {count} bytes behind", byte=position)
        )
        return marker

    def _read_application(self, code: int, start: int, end: int) -> None:
        """Read application data (APP0 to APP15)."""
        data = self.data
        if code == 0xE0:
            self._jfif = self._jfif or (data[start : start + 5] == b"JFIF\0" and end - start >= 14)
        elif code == 0xE1:
            if self.exif is None and data[start : start + 6] == EXIF:
                self.exif = bytes(data[start:end])
            elif self.xmp is None and data[start : start + len(XMP)] == XMP:
                self.xmp = bytes(data[start + len(XMP) : end])
        elif code == 0xE2:
            if data[start : start + 12] == ICC:
                self.icc.append(bytes(data[start:end]))
        elif code == 0xEE and data[start : start + 5] == b"Adobe" and end - start >= 12:
            self._adobe = data[start + 11]

    def _read_huffman(self, start: int, end: int) -> None:
        """Read Huffman tables (DHT). Their codes are checked when a scan uses them."""
        data = self.data
        position = start
        while position < end:
            behind = position + 17
            if behind <= end:
                behind += sum(data[position + 1 : behind])
            if behind > end:
                raise JPEGError("a Huffman table (DHT) is longer than its segment", byte=position)
            selector = data[position]
            payload = bytes(data[position + 1 : behind])
            if selector & 0xEC or len(payload) > 16 + 256:
                raise JPEGError(f"a Huffman table (DHT) that cannot be, with selector {selector:02X}", byte=position)
            self.huffman[selector] = payload
            position = behind

    def _read_quantization(self, start: int, end: int) -> None:
        data = self.data
        position = start
        while position < end:
            selector = data[position]
            behind = position + 1 + (64 << (selector >> 4))
            if selector & 0xEC or behind > end:
                raise JPEGError(
                    f"a quantization table (DQT) that cannot be, with selector {selector:02X}", byte=position
                )
            self.quantization[selector & 15] = parse_quantization(bytes(data[position + 1 : behind]))
            position = behind

    def _read_frame(self, code: int, start: int, end: int) -> None:
        if self.frame is not None:
            raise JPEGError("a second frame header (SOF)", byte=start - 4)
        payload = bytes(self.data[start:end])
        if payload[1:3] == b"\0\0":
            payload = payload[:1] + self._number_of_lines(start, end) + payload[3:]
        try:
            self.frame = parse_frame(_KINDS[code], payload)
        except JPEGError as error:
            raise _moved(error, start) from None
        self.progress = [bytearray([UNSEEN]) * 64 for _ in self.frame.components]

    def _number_of_lines(self, start: int, end: int) -> bytes:
        """The height of a frame without one: in the segment DNL, which follows the first scan (B.2.5)."""
        data = self.data
        marker = _next_marker(data, end)
        while 0 <= marker <= len(data) - 6 and data[marker + 1] != 0xD9:
            code = data[marker + 1]
            length = data[marker + 2] << 8 | data[marker + 3]
            if code == 0xDC and length == 4:
                return bytes(data[marker + 4 : marker + 6])
            marker = _next_marker(data, marker + 2 + (0 if 0xD0 <= code <= 0xD7 or code == 0x01 else length))
        raise JPEGError("a height of 0, which no number of lines (DNL) behind the scan replaces", byte=start + 1)

    def _read_scan(self, start: int, end: int) -> Scan:
        frame = self.frame
        if frame is None:
            raise JPEGError("a scan (SOS) before any frame header (SOF)", byte=start - 4)
        self._num_scans += 1
        if self._num_scans > MAX_SCANS:
            raise JPEGError(f"more than {MAX_SCANS} scans", byte=start - 4)
        try:
            header = parse_scan(frame, bytes(self.data[start:end]))
        except JPEGError as error:
            raise _moved(error, start) from None
        if frame.kind != "progressive":
            if (header.start, header.end, header.high, header.low) != (0, 63, 0, 0):
                self.complain(
                    JPEGError("a sequential scan (SOS) with the parameters of a progressive one", byte=end - 3)
                )
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
                    raise JPEGError(
                        f"component {n} has no quantization table ({frame.components[n].table})", byte=start
                    )
                self.qtables[n] = table
        return Scan(header, dc, ac, self.restart_interval, end)

    def _advance(self, start: int, header: ScanHeader) -> None:
        """Check a scan against those before it: no coefficient is coded twice, and refinements go down by one bit."""
        first, count = header.start, header.end + 1 - header.start
        before = header.high or UNSEEN
        for n in header.components:
            seen = self.progress[n]
            if seen.count(before, first, first + count) != count:
                raise JPEGError(f"a scan (SOS) of component {n} that does not follow from those before it", byte=start)
            if first > 0 and seen[0] == UNSEEN:
                reason = f"a scan (SOS) of AC coefficients of component {n} before any of its DC coefficients"
                self.complain(JPEGError(f"{reason} does not follow the order of scans", byte=start))
            seen[first : first + count] = bytes([header.low]) * count

    def usable_tables(self) -> dict[int, bytes]:
        """Huffman tables by selector, without those that cannot be; standard ones where sequential files have none."""
        assert self.frame is not None
        tables = self.huffman if self.frame.kind == "progressive" else {**STANDARD_TABLES, **self.huffman}
        return {selector: table for selector, table in tables.items() if is_huffman_table(table, selector < 16)}

    def _table(self, kind: str, number: int, start: int) -> bytes:
        assert self.frame is not None
        selector = number | (0x10 if kind == "AC" else 0)
        payload = self.huffman.get(selector)
        if payload is None and self.frame.kind != "progressive":
            payload = STANDARD_TABLES.get(selector)
        if payload is None:
            raise JPEGError(f"the scan needs the {kind} Huffman table {number}, which is not defined", byte=start)
        if not is_huffman_table(payload, kind == "DC"):
            raise JPEGError(f"the scan needs the {kind} Huffman table {number}, a table that cannot be", byte=start)
        return payload


def _next_marker(data: bytes | bytearray, position: int) -> int:
    """The position of the next FF that is followed by neither 00 nor FF; -1 for none."""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            return -1
        if data[position + 1] not in (0, 0xFF):
            return position
        position += 1


def _moved(error: JPEGError, start: int) -> JPEGError:
    """An error about a part of the file that begins at ``start``."""
    return JPEGError(error.reason, byte=start + (error.byte or 0), unsupported=error.unsupported)
