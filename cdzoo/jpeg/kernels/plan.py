"""Plans: frames, scans and tables as the JPEG kernels read them. Numba is imported on first use."""

from __future__ import annotations

import threading
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.jpeg._markers import Scan
from cdzoo.jpeg._segments import Frame
from cdzoo.jpeg.header import Opening
from cdzoo.jpeg.kernels.layout import COMPONENT, FrameFields, State

__all__ = ["NO_SKIPS", "WORKSPACE", "Plan", "enter_scan", "frame_fields", "load_kernels", "make_plan", "make_tables"]

NO_SKIPS = np.empty((0, 0), np.uint16)

_KEPT_BYTES = 1 << 22


class Kernels(NamedTuple):
    """Modules of compiled code, and the function that calls a kernel."""

    bits: Any
    scan: Any
    files: Any
    run: Any


@cache
def load_kernels() -> Kernels:
    """Import the compiled code."""
    from cdzoo._numba import run
    from cdzoo.jpeg.kernels import bits, files, scan

    return Kernels(bits, scan, files, run)


class Plan(NamedTuple):
    """Tables and fields that files share, see :func:`cdzoo.jpeg.kernels.files.decode_files`; read-only."""

    frame: FrameFields
    restart_interval: int
    rows: NDArray[np.int64]
    tables: NDArray[np.int32]
    pairs: NDArray[np.uint64]
    skips: NDArray[np.uint16]


def make_plan(opening: Opening, *, all_wanted: bool = True) -> Plan | None:
    """The plan for files with such an opening, the same object for equal ones; ``None`` if there is no fast path.

    It has skip tables if not all blocks are wanted.
    """
    if not opening.flawless or opening.qtables is None:
        return None
    return _make_plan(opening.frame, opening.scan.restart_interval, opening.huffman, all_wanted)


@lru_cache(maxsize=64)
def _make_plan(frame: Frame, restart_interval: int, huffman: tuple[bytes, ...], all_wanted: bool) -> Plan:
    dc, ac = huffman[:4], huffman[4:]
    tables, pairs, row_of = make_tables(dc, ac, frame.kind == "progressive")
    rows = np.array([row_of.get(payload, -1) for payload in huffman], np.int64)
    skips = NO_SKIPS if all_wanted else _make_skips(dc, ac)
    return Plan(frame_fields(frame), restart_interval, rows, tables, pairs, skips)


@lru_cache(maxsize=64)
def _make_skips(dc: tuple[bytes, ...], ac: tuple[bytes, ...]) -> NDArray[np.uint16]:
    bits, _, _, run = load_kernels()
    tables, pairs, _ = make_tables(dc, ac, False)
    skips = np.empty((len(pairs), 1 << bits.SKIP_BITS), np.uint16)
    for row in range(len(pairs)):
        run(bits.build_skips, tables, skips, row)
    return skips


@lru_cache(maxsize=64)
def make_tables(
    dc: tuple[bytes, ...], ac: tuple[bytes, ...], progressive: bool
) -> tuple[NDArray[np.int32], NDArray[np.uint64], dict[bytes, int]]:
    """Decoding tables for DHT payloads: the rows, the pair tables, and the row of each payload."""
    bits, _, _, run = load_kernels()
    rows = {payload: row for row, payload in enumerate(dict.fromkeys(filter(None, ac + dc)))}
    tables = np.empty((len(rows) or 1, bits.TABLE_SIZE), np.int32)
    for payload, row in rows.items():
        run(bits.build_table, np.frombuffer(payload, np.uint8), 0, tables, row)
    num_pairs = 0 if progressive else len(set(filter(None, ac)))
    pairs = np.empty((num_pairs, bits.LOOKUP_SIZE), np.uint64)
    for row in range(num_pairs):
        run(bits.build_pairs, tables, pairs, row)
    return tables, pairs, rows


@lru_cache(maxsize=256)
def frame_fields(frame: Frame) -> FrameFields:
    """A frame as the kernels read it."""
    components = np.zeros(len(frame.components), COMPONENT)
    num_blocks = 0
    for fields, component in zip(components, frame.components, strict=True):
        for name in ("identifier", "vertical", "horizontal", "rows", "columns"):
            fields[name] = getattr(component, name)
        fields["first_block"] = num_blocks
        num_blocks += component.rows * component.columns
    return FrameFields(frame.kind == "progressive", *frame.mcus, components)


def enter_scan(scan: Scan, rows: dict[bytes, int], state: State) -> None:
    """Write a scan to ``state``. Its planes must be full of zeros."""
    header = scan.header
    state.scan[0] = (
        len(header.components), header.start, header.end, header.high, header.low, scan.restart_interval, 0, 0,
    )  # fmt: skip
    for i, component in enumerate(header.components):
        dc, ac = (rows[payloads[i]] if payloads else -1 for payloads in (scan.dc, scan.ac))
        state.parts[i] = (component, dc, ac)


class _Workspace(threading.local):
    """Buffers of the kernels of one thread, kept from call to call as long as they are small."""

    def __init__(self) -> None:
        self._spare = np.zeros(64, np.int16)
        self._segment = np.empty(0, np.uint8)
        self._history = np.empty(0, np.uint64)
        self._tables = np.empty((0, 0), np.int32)
        self._band = np.empty(0, np.int16)
        self.state = State.empty(self._spare.ctypes.data)

    def segment(self, size: int) -> NDArray[np.uint8]:
        """A buffer for a segment of ``size`` bytes without its stuffing."""
        size += load_kernels().bits.SLACK
        buffer = self._segment
        if buffer.size < size:
            buffer = np.empty(size + size // 4, np.uint8)
            if buffer.nbytes <= _KEPT_BYTES:
                self._segment = buffer
        return buffer

    def history(self, frame: Frame) -> NDArray[np.uint64]:
        """A word for each block."""
        buffer = self._history
        if frame.kind != "progressive":
            return buffer[:0]
        if buffer.size < frame.num_blocks:
            buffer = np.empty(frame.num_blocks, np.uint64)
            if buffer.nbytes <= _KEPT_BYTES:
                self._history = buffer
        return buffer[: frame.num_blocks]

    def tables(self, frame: Frame) -> NDArray[np.int32]:
        """Room for eight Huffman tables."""
        if self._tables.size == 0 and frame.kind == "progressive":
            self._tables = np.empty((8, load_kernels().bits.TABLE_SIZE), np.int32)
        return self._tables

    def band(self, frame: Frame) -> NDArray[np.int16]:
        """Room for a row of MCUs."""
        size = sum(component.vertical * component.columns * 64 for component in frame.components)
        if self._band.size < size:
            self._band = np.empty(size, np.int16)
        return self._band


WORKSPACE = _Workspace()
