"""Entropy decoding of one JPEG scan, segment by segment (ITU-T T.81, Annexes E, F and G), compiled by Numba.

Import on first use only: this imports Numba. One call decodes one scan, without the GIL. No index is checked; these
are safe:

* all that comes from markers: every field has been checked before (:mod:`cdzoo.jpeg._markers`, or
  :mod:`cdzoo.jpeg.kernels.files`),
* reads: from a copy without byte stuffing, with more zero bytes behind it than any block can eat, checked per block,
* zigzag positions: looked up in a table padded beyond the longest run, checked per block,
* writes: blocks which only complete an MCU, or are not wanted, are decoded into a spare one.

A segment lies between two restart markers. The decoders of segments return a status, the MCU they reached, and
the bytes they used. Bit buffers hold the next bits on top; ``count`` of them are valid, those below are either zero or
what the next load puts there again. A load leaves at least 56 valid bits. Each loop iteration first looks up the code,
then loads bits, then uses them. Lookup and load are independent, so they overlap, and no branch is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.jpeg.kernels.bits import BAD_RESTART, MOST_PADDING, OK, TOO_LONG, next_marker, open_segment, resume
from cdzoo.jpeg.kernels.jit import jit
from cdzoo.jpeg.kernels.mcu import list_blocks
from cdzoo.jpeg.kernels.progressive import decode_ac_first, decode_ac_refine, decode_dc
from cdzoo.jpeg.kernels.sequential import decode_sequential

__all__ = ["decode_scan"]


@jit
def _mark(missing: Any, first: int, last: int) -> None:
    """Note MCUs as missing."""
    for mcu in range(first, last):
        missing[mcu] = 1


@jit
def decode_scan(
    data: Any, pos: int, scratch: Any, frame: Any, state: Any, tables: Any, pairs: Any,
    skips: Any, history: Any, damaged: Any, missing: Any, needed: Any,
) -> Any:  # fmt: skip
    """Decode the scan whose entropy-coded data begin at ``pos``.

    Args:
        data, scratch: the file, and room for as many bytes and ``SLACK`` more; uint8.
        frame, state: see :mod:`cdzoo.jpeg.kernels.layout`. Of the state, the scan, its parts and the addresses are
            read. Planes are int16, ``Hb * Wb * 64``, contiguous.
        tables, pairs, skips: Huffman tables, see :mod:`cdzoo.jpeg.kernels.bits`.
        history: uint64 per block, the coefficients that are not zero; for AC scans.
        damaged: per block, whether a refinement must stop there; empty if there is none.
        missing: per MCU, set to 1 where nothing could be decoded; or empty: then decoding stops at the first damage.
        needed: int64 ``(4,)``: rows of blocks that are needed of each component, from the top. Of what follows, only
            the markers are looked at.

    Returns:
        the first status that is not ``OK``; the position of the marker that ends the scan; where the damaged segment
        begins, how many bytes of it (without stuffing) had been used, and the MCU that had been reached.
    """
    scan = state.scan[0]
    columns, num_mcus = np.int64(frame.columns), np.int64(frame.columns * frame.rows)
    if scan.num_components == 1:
        component = frame.components[state.parts[0].component]
        columns, num_mcus = component.columns, component.columns * component.rows
    rows = np.int64(0)
    for i in range(scan.num_components):
        c = state.parts[i].component
        height = frame.components[c].vertical if scan.num_components > 1 else 1
        rows = max(rows, (needed[c] + height - 1) // height)
    limit = min(num_mcus, rows * columns)
    num_blocks = list_blocks(frame, state)
    state.resume[0].resumed = 0
    interval = scan.interval if scan.interval > 0 else num_mcus
    num_segments = (num_mcus + interval - 1) // interval
    failure: Any = (OK, 0, 0, 0)
    segment = 0
    at, left = np.int64(0), np.int64(0)  # of restart markers
    while True:
        first = segment * interval
        last = min(first + interval, num_mcus)
        end = min(last, limit)
        if end > first:
            size, marker = open_segment(data, pos, scratch)
            if not frame.progressive:
                result = decode_sequential(
                    scratch, size, frame, state, num_blocks, columns, tables, pairs, skips, first, end
                )
            elif scan.start == 0:
                result = decode_dc(scratch, size, frame, state, num_blocks, columns, tables, first, end)
            elif scan.high == 0:
                result = decode_ac_first(scratch, size, state, columns, tables, history, first, end)
            else:
                result = decode_ac_refine(scratch, size, state, columns, tables, history, damaged, first, end)
            status, reached, used = result[0], result[1], np.int64(result[2])
            if status == OK and end == last and used + MOST_PADDING < size:
                status = TOO_LONG
        else:
            marker = next_marker(data, pos)
            status, reached, used = OK, last, np.int64(0)
        if status != OK:
            if failure[0] == OK:
                failure = (status, pos, used, reached)
            if missing.size == 0:
                break
            _mark(missing, reached, last)
        if segment + 1 == num_segments:
            break
        if marker < data.size and data[marker + 1] == 0xD0 + (segment & 7):
            pos = marker + 2
            segment += 1
            continue
        if failure[0] == OK:
            failure = (BAD_RESTART, marker, 0, last)
        if missing.size == 0:
            break
        pos, segment, at, left = resume(data, marker, segment, num_segments, at, left)
        _mark(missing, last, min(segment * interval, num_mcus))
        if segment >= num_segments:
            _mark(missing, last, num_mcus)
            marker = pos
            break
    return failure[0], marker, failure[1], failure[2], failure[3]
