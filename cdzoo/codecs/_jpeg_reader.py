"""One JPEG file, from bytes to coefficients: between the markers and the kernels."""

from __future__ import annotations

import threading
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.codecs._jpeg_markers import Damage, Frame, Scan, ScanHeader, Segments
from cdzoo.errors import JPEGError

__all__ = ["File", "Geometry", "Loss"]

_REASONS = (
    "",
    "bits that are no Huffman code",
    "a run of zeros that does not fit",
    "a coefficient of more than 16 bits",
    "the data of a scan end too early",
    "data are left over behind the last block",
    "the next restart marker is missing",
    "a refinement of lost coefficients",
)
_NONE = np.zeros(0, np.uint8)
_NO_HISTORY = np.zeros(0, np.uint64)
_KEPT_SCRATCH = 1 << 22

_local = threading.local()


class Geometry(NamedTuple):
    """What the files of one batch have in common."""

    sampling: tuple[tuple[int, int], ...]
    image_size: tuple[int, int]
    color_space: str


class Loss(NamedTuple):
    """What could not be decoded of a damaged file, if that was allowed."""

    message: str
    num_blocks: int


class File:
    """A JPEG file whose header has been read and found decodable.

    Args:
        data: the file's bytes.
        name: what errors call it.
        strict: whether damage raises or is survived.
        max_pixels: the largest ``H * W`` accepted; ``None`` for any.

    Raises:
        JPEGError: the header is damaged or describes something that is not supported; the image is too large; or,
            if strict, the file is too short to hold it.
    """

    def __init__(self, data: bytes | bytearray, name: str, *, strict: bool, max_pixels: int | None) -> None:
        self.name = name
        self.strict = strict
        try:
            self.segments = Segments(data, strict=strict)
            scan = self.segments.next_scan()
            if scan is None or self.segments.frame is None:
                raise Damage(self.segments.position, "the file ends before any image")
        except Damage as damage:
            raise self._error(damage) from None
        self.frame: Frame = self.segments.frame
        self._scan: Scan | None = scan
        height, width = self.frame.height, self.frame.width
        if max_pixels is not None and height * width > max_pixels:
            raise JPEGError(
                f"{name}: {width} x {height} pixels are more than max_pixels={max_pixels}; if you trust the file, "
                "pass a larger number, or None"
            )
        # Every block costs at least a bit, and two if it is not progressive. This comes before any allocation.
        num_blocks = self.frame.num_blocks
        num_bytes = len(data) - scan.position
        if strict and 8 * num_bytes < num_blocks * (1 if self.progressive else 2):
            raise self._error(Damage(len(data), f"{num_bytes} bytes of data are too few for {num_blocks} blocks"))
        self._lost: dict[int, NDArray[np.bool_]] = {}  # blocks that are missing or incomplete, by component
        self._stop: dict[int, NDArray[np.uint8]] = {}  # blocks whose AC coefficients cannot be refined any more

    @property
    def progressive(self) -> bool:
        return self.frame.kind == "progressive"

    @property
    def geometry(self) -> Geometry:
        frame = self.frame
        return Geometry(frame.sampling, (frame.height, frame.width), self.segments.color_space)

    def _error(self, damage: Damage) -> JPEGError:
        return JPEGError(f"{self.name}, byte {damage.position}: {damage.reason}")

    def decode(self, planes: list[NDArray[np.int16]], qtables: NDArray[np.int32], *, clean: bool) -> Loss | None:
        """Decode, once.

        Args:
            planes: per component ``Hb * Wb * 64``, contiguous.
            qtables: ``(K, 64)``.
            clean: whether ``planes`` hold zeros.

        Returns:
            What was lost, if that was allowed and anything was.
        """
        segments = self.segments
        if not clean and (self.progressive or not self.strict):
            for plane in planes:
                plane.fill(0)
        history: dict[int, NDArray[np.uint64]] = {}
        scan = self._scan
        try:
            while scan is not None:
                segments.position = self._decode_scan(scan, planes, history)
                scan = segments.next_scan()
            segments.finish()
        except Damage as damage:
            if self.strict:
                raise self._error(damage) from None
            segments.complaints.append(damage)
            unfinished = segments.unfinished()
        else:
            unfinished = segments.unseen()
        for n in unfinished:
            self._lost[n] = np.ones(planes[n].size // 64, np.bool_)
        for n in range(len(planes)):
            qtables[n] = segments.qtables.get(n, 1)
        if not segments.complaints:
            return None
        for n, lost in self._lost.items():
            if not self.progressive:  # what the damage made of them
                planes[n].reshape(-1, 64)[lost] = 0
        first = segments.complaints[0]
        count = sum(int(lost.sum()) for lost in self._lost.values())
        total = self.frame.num_blocks
        return Loss(f"{self._error(first)}; {count} of {total} blocks are missing or incomplete", count)

    def _decode_scan(self, scan: Scan, planes: list[NDArray[np.int16]], history: dict[int, NDArray[np.uint64]]) -> int:
        """Decode one scan; the position behind it."""
        kernels = _load_kernels()
        header = scan.header
        data = self.segments.data
        tables, pairs, rows = _tables(scan.dc + scan.ac, self.progressive)
        layout = _layout(
            self.frame,
            header,
            scan.restart_interval,
            tuple([rows[payload] for payload in scan.dc]),
            tuple([rows[payload] for payload in scan.ac]),
        )
        num_mcus = int(layout[2])
        mode = kernels.huffman.SEQUENTIAL
        masks = _NO_HISTORY
        stop = _NONE
        if self.progressive:
            mode += 1 + 2 * (header.start > 0) + (header.high > 0)  # DC_FIRST, DC_REFINE, AC_FIRST, AC_REFINE
            if header.start > 0:
                n = header.components[0]
                masks = history.get(n, _NO_HISTORY)
                if masks.size == 0:
                    masks = history[n] = np.zeros(num_mcus, np.uint64)
                stop = self._stop.get(n, _NONE)
        missing = _NONE if self.strict else np.zeros(num_mcus, np.uint8)
        targets = [planes[n] for n in header.components]
        targets += targets[:1] * (4 - len(targets))
        status, end, segment, used, mcu = kernels.run(
            kernels.huffman.decode_scan,
            mode,
            np.frombuffer(data, np.uint8),
            scan.position,
            _scratch(len(data) + kernels.bits.SLACK),
            tables,
            pairs,
            layout,
            *targets,
            masks,
            stop,
            missing,
        )
        if status:
            self.segments.complain(
                _position(data, segment, used), f"{_REASONS[status]} (MCU {mcu} of {num_mcus} of the scan)"
            )
            self._note(header, missing.reshape(-1, layout[1]))
        return int(end)

    def _note(self, header: ScanHeader, missing: NDArray[np.uint8]) -> None:
        """Turn missing MCUs into lost blocks."""
        for n in header.components:
            component = self.frame.components[n]
            mask = missing
            if len(header.components) > 1:
                mask = mask.repeat(component.vertical, axis=0).repeat(component.horizontal, axis=1)
            lost = mask[: component.rows, : component.columns].reshape(-1)
            self._lost[n] = self._lost.get(n, False) | lost.astype(np.bool_)
            if header.start > 0:
                self._stop[n] = self._stop.get(n, np.uint8(0)) | lost


class _Kernels(NamedTuple):
    bits: Any
    huffman: Any
    run: Any


@cache
def _load_kernels() -> _Kernels:
    """Numba is imported here."""
    from cdzoo.codecs import _jpeg_bits, _jpeg_jit, jpeg_huffman

    return _Kernels(_jpeg_bits, jpeg_huffman, _jpeg_jit.run)


def _position(data: bytes | bytearray, start: int, used: int) -> int:
    """Where ``used`` bytes behind ``start`` end, with byte stuffing counted."""
    position = start
    while True:
        stuffing = data.find(b"\xff\x00", position, start + used)
        if stuffing < 0:
            return min(start + used, len(data))
        position = stuffing + 2
        used += 1


def _scratch(size: int) -> NDArray[np.uint8]:
    """A buffer for one segment without its stuffing; each thread keeps one."""
    buffer: NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size + size // 4, np.uint8)
        if buffer.size <= _KEPT_SCRATCH:
            _local.buffer = buffer
    return buffer


@lru_cache(maxsize=256)
def _layout(
    frame: Frame, header: ScanHeader, restart_interval: int, dc_rows: tuple[int, ...], ac_rows: tuple[int, ...]
) -> NDArray[np.int64]:
    """The geometry of a scan, as :func:`cdzoo.codecs.jpeg_huffman.decode_scan` wants it."""
    components = [frame.components[n] for n in header.components]
    rows, columns = frame.rows, frame.columns
    if len(components) == 1:
        rows, columns = components[0].rows, components[0].columns
    layout = [len(components), columns, rows * columns, restart_interval]
    layout += [header.start, header.end, header.high, header.low]
    for i, component in enumerate(components):
        layout += (component.vertical, component.horizontal) if len(components) > 1 else (1, 1)
        layout += (component.rows, component.columns)
        layout += (dc_rows[i] if dc_rows else 0, ac_rows[i] if ac_rows else 0, 0, 0)
    return np.array(layout, np.int64)


@lru_cache(maxsize=256)
def _tables(payloads: tuple[bytes, ...], progressive: bool) -> tuple[Any, Any, dict[bytes, int]]:
    """Decoding tables for the DHT payloads of a scan: the rows, the pair tables, and which row a payload has."""
    bits, _, run = _load_kernels()
    rows = {payload: row for row, payload in enumerate(dict.fromkeys(payloads))}
    tables = np.zeros((len(rows) or 1, bits.TABLE_SIZE), np.int32)
    pairs = np.zeros((len(rows) or 1, 0 if progressive else bits.LOOKUP_SIZE), np.int64)
    for payload, row in rows.items():
        run(bits.build_table, np.frombuffer(payload, np.uint8), tables[row], pairs[row])
    return tables, pairs, rows
