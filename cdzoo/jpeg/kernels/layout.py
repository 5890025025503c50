"""Data that the JPEG kernels share with Python: named fields, as NamedTuples of scalars and of arrays of records."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdzoo.jpeg.geometry import ZIGZAG

__all__ = [
    "BLOCK", "COMPONENT", "EVERYTHING", "MAX_SCANS", "NATURAL", "PART", "SCAN", "UNSEEN", "WANTED", "FrameFields",
    "State",
]  # fmt: skip

#: Scans that a file may have. Real ones have about ten; 64 coefficients in 14 steps would make 896 per component.
MAX_SCANS = 1000

#: The state of a coefficient of which no scan has been read.
UNSEEN = 255

#: Natural index by zigzag position, for positions that have been checked, and for those that will be.
NATURAL = np.concatenate([ZIGZAG, np.full(64, 63)]).astype(np.uint8)


def _record(*names: str) -> np.dtype[Any]:
    return np.dtype([(name, np.int64) for name in names], align=True)


#: A component of a frame: identifier, sampling factors, rows and columns of blocks, number of blocks before it.
COMPONENT = _record("identifier", "vertical", "horizontal", "rows", "columns", "first_block")

#: A scan: number of components; Ss, Se, Ah, Al; MCUs between restart markers, or 0; the first block of ``history``; 1
#: if the first DC scan has to set all other coefficients to zero.
SCAN = _record("num_components", "start", "end", "high", "low", "interval", "first_block", "clear")

#: A component of a scan: its number in the frame, and the rows of its Huffman tables.
PART = _record("component", "dc_row", "ac_row")

#: A block of an MCU: component, rows of its tables, its place in the MCU, blocks of this component in an MCU. The last
#: five are valid for one row of MCUs: address of the first block, step to the next one in bytes, number of them, and
#: the range of those that are wanted.
BLOCK = _record(
    "component", "dc_row", "ac_row", "down", "right", "blocks_down", "blocks_right", "base", "step", "limit",
    "begin", "end",
)  # fmt: skip

#: The blocks of a component that are wanted: ranges of rows and of columns. Others are decoded, but not stored.
WANTED = _record("first_row", "last_row", "first_column", "last_column")

#: All blocks of any component, those included that only complete an MCU.
EVERYTHING = np.array((0, 1 << 40, 0, 1 << 40), WANTED)


#: The bit buffer between two calls: 1 if the next call goes on there; position in the segment, valid bits, the bits.
RESUME = _record("resumed", "position", "count", "buffer")


class FrameFields(NamedTuple):
    """A frame; see :class:`cdzoo.jpeg._segments.Frame`."""

    progressive: bool
    rows: int  # of MCUs in an interleaved scan
    columns: int
    components: NDArray[Any]  # K times COMPONENT


class State(NamedTuple):
    """Arrays that change while a file is decoded."""

    scan: NDArray[Any]  # one SCAN
    parts: NDArray[Any]  # 4 times PART
    blocks: NDArray[Any]  # 10 times BLOCK
    predictions: NDArray[np.int64]  # of DC coefficients, 4
    targets: NDArray[np.int64]  # addresses of four planes
    spare: int  # address of a block for what only completes an MCU, or is not wanted
    rows: NDArray[np.int64]  # of four DC and four AC tables; -1: not defined
    progress: NDArray[np.int64]  # (4, 64): Al of the last scan, or UNSEEN
    resume: NDArray[Any]  # one RESUME, for sequential scans
    wanted: NDArray[Any]  # 4 times WANTED

    @classmethod
    def empty(cls, spare: int) -> State:
        """A new state."""
        return cls(
            np.zeros(1, SCAN),
            np.zeros(4, PART),
            np.zeros(10, BLOCK),
            np.zeros(4, np.int64),
            np.zeros(4, np.int64),
            spare,
            np.zeros(8, np.int64),
            np.zeros((4, 64), np.int64),
            np.zeros(1, RESUME),
            np.full(4, EVERYTHING, WANTED),
        )
