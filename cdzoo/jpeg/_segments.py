"""Frame headers, scan headers and quantization tables of a JPEG file (ITU-T T.81, B.2): parsed and checked.

Equal payloads give the same object.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cdzoo.errors import JPEGError
from cdzoo.jpeg.geometry import ZIGZAG, block_grids, mcu_grid

__all__ = ["Component", "Frame", "JPEGKind", "ScanHeader", "parse_frame", "parse_quantization", "parse_scan"]

JPEGKind: TypeAlias = Literal["baseline", "extended", "progressive"]


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
    """Frame header (SOF); ``components`` in the order of the file."""

    kind: JPEGKind
    image_size: tuple[int, int]
    components: tuple[Component, ...]
    sampling: tuple[tuple[int, int], ...]
    mcus: tuple[int, int]  # rows and columns in an interleaved scan
    num_blocks: int


class ScanHeader(NamedTuple):
    """Scan header (SOS); ``components`` are indices into the frame's."""

    components: tuple[int, ...]
    dc: tuple[int, ...]
    ac: tuple[int, ...]
    start: int  # Ss
    end: int  # Se
    high: int  # Ah
    low: int  # Al


@lru_cache(maxsize=1024)
def parse_frame(kind: JPEGKind, payload: bytes) -> Frame:
    """The payload of a frame header (SOF).

    Raises:
        JPEGError: a header that is impossible or not supported; ``byte`` counts from the payload.
    """
    if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
        raise JPEGError("a frame header (SOF) of impossible length", byte=-4)
    precision, height, width, num_components = struct.unpack_from(">BHHB", payload)
    if precision != 8:
        reason = f"{precision}-bit samples are not supported, only 8-bit ones"
        raise JPEGError(reason, byte=0, unsupported=True)
    if height == 0 or width == 0:
        raise JPEGError(f"an image of {width} x {height} pixels: both are at least 1", byte=1)
    if num_components not in (1, 3, 4):
        reason = f"{num_components} components are not supported, only 1, 3 or 4"
        raise JPEGError(reason, byte=5, unsupported=True)
    fields = [payload[i : i + 3] for i in range(6, len(payload), 3)]
    sampling = tuple((field[1] & 15, field[1] >> 4) for field in fields)
    if not all(1 <= factor <= 4 for pair in sampling for factor in pair):
        raise JPEGError(f"sampling factors (vertical, horizontal) {sampling}: they lie between 1 and 4", byte=6)
    if num_components == 1:
        sampling = ((1, 1),)  # relative to itself no component is subsampled, and its scans are never interleaved
    size = (height, width)
    grids = block_grids(size, sampling)
    components = tuple(
        Component(field[0], *factors, field[2], *grid)
        for field, factors, grid in zip(fields, sampling, grids, strict=True)
    )
    return Frame(kind, size, components, sampling, mcu_grid(size, sampling), sum(rows * cols for rows, cols in grids))


@lru_cache(maxsize=1024)
def parse_scan(frame: Frame, payload: bytes) -> ScanHeader:
    """The payload of a scan header (SOS) of a frame.

    Raises:
        JPEGError: an impossible header; ``byte`` counts from the payload.
    """
    count = payload[0] if payload else 0
    if not 1 <= count <= 4 or len(payload) != 4 + 2 * count:
        raise JPEGError("a scan header (SOS) of impossible length", byte=-4)
    components: list[int] = []
    for i in range(1, 1 + 2 * count, 2):
        alike = [n for n, component in enumerate(frame.components) if component.identifier == payload[i]]
        index = next((n for n in alike if n not in components), -1)  # identifiers may repeat
        if index < 0:
            reason = f"a scan (SOS) of component {payload[i]}, which is not in the frame, or twice in the scan"
            raise JPEGError(reason, byte=i)
        components.append(index)
    if count > 1 and sum(frame.components[n].vertical * frame.components[n].horizontal for n in components) > 10:
        raise JPEGError("a scan (SOS) with more than 10 blocks in an MCU", byte=0)
    first, last, high, low = payload[-3], payload[-2], payload[-1] >> 4, payload[-1] & 15
    if frame.kind == "progressive" and not (
        (last == 0 if first == 0 else first <= last <= 63 and count == 1) and low <= 13 and high in (0, low + 1)
    ):
        raise JPEGError(f"an impossible progressive scan (SOS): Ss {first}, Se {last}, Ah {high}, Al {low}", byte=0)
    selectors = payload[2:-3:2]
    dc = tuple(selector >> 4 for selector in selectors)
    ac = tuple(selector & 15 for selector in selectors)
    return ScanHeader(tuple(components), dc, ac, first, last, high, low)


@lru_cache(maxsize=256)
def parse_quantization(payload: bytes) -> NDArray[np.int32]:
    """The payload of a DQT (8 or 16 bits an entry) in natural order, read-only. An entry of 0 is kept."""
    zigzag: NDArray[Any] = np.frombuffer(payload, np.uint8 if len(payload) == 64 else ">u2")
    table = np.empty(64, np.int32)
    table[ZIGZAG] = zigzag
    table.setflags(write=False)
    return table
