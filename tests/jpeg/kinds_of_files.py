"""Kinds of JPEG files, each with what happens to it: the list that the tests check and that the documentation shows.

A kind is made from a file of Pillow's by editing its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from oracles.jpeg_files import encode, picture

READ, WARNED = "read", "warning"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: its description, as in the documentation.
        change: from the bytes of the plain file to those of this kind.
        strict: ``READ``, or a pattern of the error of ``read_jpeg(file)``.
        lenient: ``READ``, ``WARNED``, or a pattern of the error of ``read_jpeg(file, strict=False)``.
        options: how Pillow writes the plain file.
        equal: true if the coefficients are those of the plain file; else only Pillow is the reference.
        pillow: true if Pillow decodes it, to the same pixels as what ``write_jpeg`` makes of the coefficients.
        group: heading in the documentation.
    """

    name: str
    change: Callable[[bytes], bytes]
    strict: str = READ
    lenient: str = READ
    options: dict[str, Any] = field(default_factory=dict)
    equal: bool = True
    pillow: bool = True
    group: str = "against the standard"


def _end_of_segment(data: bytes, marker: int) -> int:
    return marker + 2 + int.from_bytes(data[marker + 2 : marker + 4], "big")


def scan_end(data: bytes, scan: int) -> int:
    """The position of the marker behind a scan, whose SOS stands at ``scan``."""
    end = _end_of_segment(data, scan)
    while data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
        end += 1
    return end


def scans(data: bytes) -> list[int]:
    """The positions of all SOS markers."""
    found, position = [], 2
    while data[position + 1] != 0xD9:
        if data[position + 1] == 0xDA:
            found.append(position)
            position = scan_end(data, position)
        else:
            position = _end_of_segment(data, position)
    return found


def without(data: bytes, code: int) -> bytes:
    """The file without any segment of a marker."""
    position = 2
    while data[position + 1] != 0xD9:
        scan, end = data[position + 1] == 0xDA, _end_of_segment(data, position)
        if data[position + 1] == code:
            data = data[:position] + data[end:]
        else:
            position = scan_end(data, position) if scan else end
    return data


def before(code: int, extra: bytes) -> Callable[[bytes], bytes]:
    """A change that puts bytes before the first segment of a marker."""

    def change(data: bytes) -> bytes:
        position = 2
        while data[position + 1] != code:
            position = _end_of_segment(data, position)
        return data[:position] + extra + data[position:]

    return change


def behind_scan(extra: bytes) -> Callable[[bytes], bytes]:
    """A change that puts bytes behind the first scan."""

    def change(data: bytes) -> bytes:
        end = scan_end(data, data.index(b"\xff\xda"))
        return data[:end] + extra + data[end:]

    return change


def _patched(find: bytes, offset: int, value: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        position = data.index(find) + offset
        return data[:position] + value + data[position + len(value) :]

    return change


def _frame(data: bytes) -> int:
    return next(data.index(bytes([0xFF, code])) for code in (0xC0, 0xC1, 0xC2) if bytes([0xFF, code, 0, 0x11]) in data)


def _plain(data: bytes) -> bytes:
    return data


def _height_from_dnl(data: bytes) -> bytes:
    start = _frame(data) + 5
    lines = data[start : start + 2]
    return behind_scan(b"\xff\xdc\x00\x04" + lines)(data[:start] + b"\0\0" + data[start + 2 :])


def _zero_in_table(data: bytes) -> bytes:
    start = data.index(b"\xff\xdb") + 5
    return data[: start + 63] + b"\0" + data[start + 64 :]


def _zero_in_unused_table(data: bytes) -> bytes:
    return before(0xC0, b"\xff\xdb\x00\x43\x03" + bytes(64))(data)


def _same_identifiers(data: bytes) -> bytes:
    frame, scan = _frame(data), data.index(b"\xff\xda")
    changed = bytearray(data)
    for n in range(3):
        changed[frame + 10 + 3 * n] = changed[scan + 5 + 2 * n] = 1
    return bytes(changed)


def _without_dc(data: bytes) -> bytes:
    """A progressive gray file without its scans of DC coefficients."""
    for scan in reversed(scans(data)):
        if data[scan + 7] == 0:  # Ss
            data = data[:scan] + data[scan_end(data, scan) :]
    return data


def _dc_last(data: bytes) -> bytes:
    """A progressive gray file whose first DC scan stands behind its first AC scan."""
    first, second = scans(data)[:2]
    start = scan_end(data, first)
    end = scan_end(data, second)
    table = data[data.index(b"\xff\xc4") : first]
    return data[: first - len(table)] + data[start:end] + table + data[first:start] + data[end:]


def _longer_run(data: bytes) -> bytes:
    """A gray progressive file whose only AC scan is an end-of-band run past the last block."""
    first = scans(data)[0]
    table = b"\xff\xc4\x00\x14\x10\x01" + bytes(15) + b"\xe0"  # one code of one bit: a run of 2**14 and 14 bits more
    scan = b"\xff\xda\x00\x08\x01" + data[first + 5 : first + 6] + b"\x00\x01\x3f\x00" + b"\x00\x01"
    return data[: scan_end(data, first)] + table + scan + b"\xff\xd9"


def _no_ac(data: bytes) -> bytes:
    """The plain file for the former: its DC scan alone."""
    return data[: scan_end(data, scans(data)[0])] + b"\xff\xd9"


def _one_scan_each(data: bytes) -> bytes:
    """A file without the data of its last component: a gray scan in a frame of three."""
    scan = data.index(b"\xff\xda")
    return data[:scan] + b"\xff\xda\x00\x0a\x02" + data[scan + 5 : scan + 9] + b"\x00\x3f\x00" + data[scan + 14 :]


def _cut(part: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        start = _end_of_segment(data, data.index(b"\xff\xda"))
        return data[: start + int(part * (len(data) - start))]

    return change


def _lossless(data: bytes) -> bytes:
    """A lossless file, with a Huffman table before its frame header that only such files can have."""
    table = b"\xff\xc4\x00\x15\x00\x01\x01" + bytes(14) + b"\x10\x11"
    return before(0xC3, table)(_patched(b"\xff\xc0", 1, b"\xc3")(data))


_GRAY = {"mode": "L"}
_STRAY = r"a marker should be here"
_RESTARTS = {"restart_marker_blocks": 2}

_PROGRESSIVE = {"progressive": True}
_GRAY_PROGRESSIVE = {"mode": "L", "progressive": True}


def _standard(name: str, change: Callable[[bytes], bytes] = _plain, **fields: Any) -> Kind:
    return Kind(name, change, group="by the standard", **fields)


def _stray(name: str, change: Callable[[bytes], bytes], strict: str = _STRAY, **fields: Any) -> Kind:
    return Kind(name, change, strict, WARNED, **fields)


def _damaged(name: str, change: Callable[[bytes], bytes], strict: str, lenient: str = "", **fields: Any) -> Kind:
    return Kind(name, change, strict, lenient or strict, pillow=False, group="damaged", **fields)


def _unsupported(name: str, change: Callable[[bytes], bytes], error: str) -> Kind:
    return Kind(name, change, error, error, pillow=False, group="not supported")


KINDS = [
    _standard("baseline"),
    _standard("baseline, optimized Huffman tables", options={"optimize": True}),
    _standard("extended sequential (SOF1), Huffman", _patched(b"\xff\xc0", 1, b"\xc1")),
    _standard("progressive", options=_PROGRESSIVE),
    _standard("restart markers", options=_RESTARTS),
    _standard("chroma 4:4:4", options={"subsampling": 0}),
    _standard("chroma 4:2:2", options={"subsampling": 1}),
    _standard("gray", options=_GRAY),
    _standard("RGB without conversion to YCbCr", options={"keep_rgb": True}),
    _standard("CMYK (Adobe)", options={"mode": "CMYK"}),
    _standard("YCCK (Adobe)", _patched(b"Adobe", 11, b"\2"), options={"mode": "CMYK"}),
    _standard("number of lines (DNL) equal to the height", behind_scan(b"\xff\xdc\x00\x04\x00\x20")),
    _standard("height 0, number of lines (DNL) behind the first scan", _height_from_dnl, pillow=False),
    _standard("height 0, number of lines (DNL), progressive", _height_from_dnl, options=_PROGRESSIVE, pillow=False),
    _standard("marker TEM", before(0xC0, b"\xff\x01"), pillow=False),
    Kind("number of lines (DNL) unequal to the height: ignored", behind_scan(b"\xff\xdc\x00\x04\x00\x09")),
    Kind("no Huffman tables (Motion JPEG): those of T.81, K.3 to K.6", lambda data: without(data, 0xC4)),
    Kind("0 in a quantization table", _zero_in_table, equal=False, pillow=False),
    Kind("0 in a quantization table that no component uses", _zero_in_unused_table),
    Kind("component identifiers that repeat", _same_identifiers),
    Kind("conditioning of an arithmetic coder (DAC) in a Huffman file", before(0xC0, b"\xff\xcc\x00\x04\x00\x10")),
    Kind("application segment of length 0", before(0xC0, b"\xff\xe5\x00\x00")),
    Kind("comment of length 1", before(0xC0, b"\xff\xfe\x00\x01")),
    Kind(
        "Huffman table without a valid code that no scan uses",
        before(0xDA, b"\xff\xc4\x00\x16\x03\x03" + bytes(15) + b"\1\2\3"),
    ),
    Kind(
        "DC Huffman table with sizes above 15 that no scan uses",
        before(0xDA, b"\xff\xc4\x00\x15\x03\x01\x01" + bytes(14) + b"\x10\x11"),
    ),
    Kind("restart markers before the first scan", before(0xC0, b"\xff\xd0\xff\xd7")),
    Kind("restart marker behind the last interval", behind_scan(b"\xff\xd3"), options=_RESTARTS),
    Kind("1 to 3 bytes behind the last block", behind_scan(b"\x12\x34\x56")),
    Kind(
        "1 to 3 bytes before a restart marker",
        lambda data: data.replace(b"\xff\xd1", b"\x12\x34\xff\xd1", 1),
        options=_RESTARTS,
    ),
    Kind("end-of-band run past the last block", _longer_run, options=_GRAY_PROGRESSIVE, equal=False),
    _stray("more bytes behind the last block", behind_scan(b"\x12\x34\x56\x78"), "left over"),
    _stray("stray bytes between header segments", before(0xC0, b"\x01\x02\x03\x04\x05\x06\x07")),
    _stray("FF 00 between header segments", before(0xDB, b"\xff\x00")),
    _stray("16 bytes behind the application data", before(0xDB, bytes(16))),
    _stray("stray bytes between scans", behind_scan(b"\xff\xd0\x12"), options=_PROGRESSIVE),
    _stray(
        "progressive, AC scans without a DC scan",
        _without_dc,
        "before any of its DC",
        options=_GRAY_PROGRESSIVE,
        equal=False,
    ),
    _stray(
        "progressive, first AC scan before the first DC scan",
        _dc_last,
        "before any of its DC",
        options=_GRAY_PROGRESSIVE,
    ),
    _damaged(
        "restart marker with a wrong number",
        lambda data: data.replace(b"\xff\xd1", b"\xff\xd5", 1),
        "restart marker",
        WARNED,
        options=_RESTARTS,
        equal=False,
    ),
    _damaged("no end marker", lambda data: data[:-2], "marker should be", WARNED),
    _damaged("truncated", _cut(0.6), "too early", WARNED, equal=False),
    _damaged(
        "a component without a scan",
        _one_scan_each,
        "no scan holds component 2|too early|left over|no Huffman|not fit",
        WARNED,
        equal=False,
    ),
    _damaged("invalid Huffman table that a scan uses", _patched(b"\xff\xc4", 5, b"\x03"), "cannot be|longer than"),
    _damaged("no quantization table", lambda data: without(data, 0xDB), "no quantization table"),
    _damaged(
        "second frame header (SOF)",
        lambda data: before(0xDA, data[_frame(data) : _frame(data) + 19])(data),
        "second frame",
    ),
    _unsupported("lossless (SOF3)", _lossless, "lossless"),
    _unsupported("arithmetic-coded (SOF9)", _patched(b"\xff\xc0", 1, b"\xc9"), "arithmetic"),
    _unsupported("hierarchical (SOF5)", _patched(b"\xff\xc0", 1, b"\xc5"), "hierarchical"),
    _unsupported("12 bits a sample", _patched(b"\xff\xc0", 4, b"\x0c"), "12-bit"),
    _unsupported(
        "2 or more than 4 components",
        lambda data: _patched(b"\xff\xc0", 9, b"\2")(_patched(b"\xff\xc0", 3, b"\x0e")(data)),
        "2 components",
    ),
    _unsupported("more than 10 blocks in an MCU", _patched(b"\xff\xc0", 11, b"\x44"), "more than 10 blocks"),
    _unsupported("PNG, WebP and other formats, by whatever name", lambda data: b"\x89PNG\r\n\x1a\n" + data, "no JPEG"),
]


def make(kind: Kind) -> bytes:
    """A file of this kind."""
    return kind.change(plain_file(kind))


def plain_file(kind: Kind) -> bytes:
    """The file of Pillow's that a kind is made from, 48 x 32 pixels."""
    options = dict(kind.options)
    return encode(picture(48, 32, options.pop("mode", "RGB")), **options)
