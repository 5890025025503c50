"""JPEG files, from bytes to coefficients: headers are parsed, kernels are called, damage is reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdzoo._threads import for_each
from cdzoo.errors import JPEGError
from cdzoo.jpeg._markers import Scan, Segments
from cdzoo.jpeg._segments import ScanHeader
from cdzoo.jpeg.header import Opening, known_opening, read_opening
from cdzoo.jpeg.kernels.layout import EVERYTHING
from cdzoo.jpeg.kernels.plan import (
    NO_SKIPS,
    WORKSPACE,
    Plan,
    enter_scan,
    frame_fields,
    load_kernels,
    make_plan,
    make_tables,
)

__all__ = ["ALL_ROWS", "JPEGFile", "MissingBlocks", "decode_files"]

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
_NO_TARGETS = (0, 0, 0, 0)
ALL_ROWS = np.full(4, 1 << 32, np.int64)

#: Bytes of files that are decoded in one call: enough to hide its cost, and not too many to copy.
_FEWEST_BYTES, _MOST_BYTES = 1 << 16, 1 << 21


class MissingBlocks(NamedTuple):
    """Loss of a damaged file that was decoded as far as possible: the first reason and the number of blocks."""

    reason: str
    num_blocks: int


class JPEGFile:
    """A JPEG file whose header has been read and found decodable.

    Args:
        data: the file's bytes.
        name: its name in errors.
        strict: raise for damage, instead of decoding what is left.
        max_pixels: the largest ``H * W`` accepted; ``None`` for any.

    Raises:
        JPEGError: the header is damaged or describes something that is not supported; the image is too large; or,
            if strict, the file is too short to hold it.
    """

    def __init__(self, data: bytes, name: str, *, strict: bool, max_pixels: int | None) -> None:
        self.data = data
        self.name = name
        self.strict = strict
        self.opening = known_opening(data) or self._open()[1]
        frame, scan = self.opening.frame, self.opening.scan
        height, width = frame.image_size
        if max_pixels is not None and height * width > max_pixels:
            raise JPEGError(
                f"{width} x {height} pixels are more than max_pixels={max_pixels}, which keeps hostile files from "
                "taking all memory; a file that you trust can be read with a larger limit",
                name=name,
            )
        # Every block costs at least a bit, and two if it is not progressive. This comes before any allocation.
        num_bytes = len(data) - scan.position
        if strict and 8 * num_bytes < frame.num_blocks * (1 if frame.kind == "progressive" else 2):
            reason = f"{num_bytes} bytes of data are too few for {frame.num_blocks} blocks"
            raise JPEGError(reason, name=name, byte=len(data))

    def _open(self) -> tuple[Segments, Opening]:
        try:
            segments = Segments(self.data, strict=self.strict)
            return segments, read_opening(segments)
        except JPEGError as error:
            raise error.named(self.name) from None

    def decode(self, planes: list[NDArray[np.int16]], qtables: NDArray[np.int32]) -> MissingBlocks | None:
        """Decode scan by scan, looking for damage.

        Args:
            planes: per component ``Hb * Wb * 64``, contiguous.
            qtables: ``(K, 64)``.

        Returns:
            the loss; ``None`` for a file in order.
        """
        if self.opening.frame.kind == "progressive" or not self.strict:
            for plane in planes:
                plane.fill(0)
        segments, opening = self._open()
        return _Decoder(self, segments, planes).decode(opening.scan, qtables)


class _Decoder:
    """Decodes a file scan by scan, if :func:`decode_files` has no fast path for it."""

    def __init__(self, file: JPEGFile, segments: Segments, planes: list[NDArray[np.int16]]) -> None:
        self.file = file
        self.frame = file.opening.frame
        self.segments = segments
        self.planes = planes
        self.targets = [plane.ctypes.data for plane in planes]
        self.history: dict[int, NDArray[np.uint64]] = {}  # by component and block: which coefficients are not zero
        self.lost: dict[int, NDArray[np.bool_]] = {}  # blocks that are missing or incomplete, by component
        self.stop: dict[int, NDArray[np.uint8]] = {}  # blocks whose AC coefficients cannot be refined any more

    def decode(self, scan: Scan | None, qtables: NDArray[np.int32]) -> MissingBlocks | None:
        segments, planes = self.segments, self.planes
        try:
            while scan is not None:
                segments.position = self._decode_scan(scan)
                scan = segments.next_scan()
            segments.finish()
        except JPEGError as error:
            if self.file.strict:
                raise error.named(self.file.name) from None
            segments.complain(error)
            unfinished = segments.unfinished()
        else:
            unfinished = segments.unseen()
        for n in unfinished:
            self.lost[n] = np.ones(planes[n].size // 64, np.bool_)
        for n in range(len(planes)):
            qtables[n] = segments.qtables.get(n, 1)
        first = segments.complaint
        if first is None:
            return None
        count = sum(int(lost.sum()) for lost in self.lost.values())
        total = self.frame.num_blocks
        return MissingBlocks(f"{first.named(None)}; {count} of {total} blocks are missing or incomplete", count)

    def _decode_scan(self, scan: Scan) -> int:
        """Decode one scan; returns the position behind it."""
        kernels = load_kernels()
        header = scan.header
        data = self.file.data
        tables, pairs, rows = make_tables(scan.dc, scan.ac, self.frame.kind == "progressive")
        state = WORKSPACE.state
        state.wanted[:] = EVERYTHING
        enter_scan(scan, rows, state)
        state.targets[: len(self.targets)] = self.targets
        n = header.components[0]
        rows_of_mcus, columns = self.frame.mcus
        num_mcus = rows_of_mcus * columns
        if len(header.components) == 1:
            columns = self.frame.components[n].columns
            num_mcus = columns * self.frame.components[n].rows
        history = _NO_HISTORY
        stop = _NONE
        if header.start > 0:
            history = self.history.setdefault(n, history)
            if history.size == 0:
                history = self.history[n] = np.zeros(num_mcus, np.uint64)
            stop = self.stop.get(n, _NONE)
        missing = _NONE if self.file.strict else np.zeros(num_mcus, np.uint8)
        status, end, segment, used, mcu = kernels.run(
            kernels.scan.decode_scan,
            np.frombuffer(data, np.uint8),
            scan.position,
            WORKSPACE.segment(len(data)),
            frame_fields(self.frame),
            state,
            tables,
            pairs,
            NO_SKIPS,
            history,
            stop,
            missing,
            ALL_ROWS,
        )
        if status:
            reason = f"{_REASONS[status]} (MCU {mcu} of {num_mcus} of the scan)"
            self.segments.complain(JPEGError(reason, byte=_position(data, segment, used)))
            self._note(header, missing.reshape(-1, columns))
        return int(end)

    def _note(self, header: ScanHeader, missing: NDArray[np.uint8]) -> None:
        """Turn missing MCUs into lost blocks."""
        for n in header.components:
            component = self.frame.components[n]
            mask = missing
            if len(header.components) > 1:
                mask = mask.repeat(component.vertical, axis=0).repeat(component.horizontal, axis=1)
            lost = mask[: component.rows, : component.columns].reshape(-1)
            self.lost[n] = self.lost.get(n, False) | lost.astype(np.bool_)
            if header.start > 0:
                self.stop[n] = self.stop.get(n, np.uint8(0)) | lost


def decode_files(
    files: Sequence[JPEGFile],
    planes: Sequence[Tensor],
    qtables: Tensor,
    num_threads: int,
    needed: NDArray[np.int64] = ALL_ROWS,
    wanted: NDArray[Any] = EVERYTHING,
) -> list[MissingBlocks | None]:
    """Decode files of one geometry.

    Args:
        planes: per component ``(B, Hb, Wb, 8, 8)`` int16, contiguous, on the CPU.
        qtables: ``(B, K, 8, 8)`` int32.
        num_threads: threads that decode.
        needed: ``(4,)``: rows of blocks that are needed of each component, from the top; the others may hold anything,
            and damage in them may stay unnoticed.
        wanted: of each component, see :data:`cdzoo.jpeg.kernels.layout.WANTED`: others may hold anything. Only
            progressive files are read faster for it.

    Returns:
        the loss of each file; ``None`` for those in order.

    Raises:
        JPEGError: a strict file is damaged: the first one of them.
    """
    plans = [make_plan(file.opening) for file in files]
    pieces = _cut([len(file.data) for file in files], plans, num_threads)
    targets = np.array([*[plane.data_ptr() for plane in planes], *_NO_TARGETS[len(planes) :]], np.int64)
    tables = qtables.numpy().reshape(len(files), -1, 64)
    done = np.zeros(len(files), np.uint8)

    def decode(i: int) -> list[MissingBlocks | None]:
        first, last = pieces[i]
        plan = plans[first]
        if plan is not None:
            _decode_alike(files[first:last], plan, needed, wanted, targets, first, done)
        losses: list[MissingBlocks | None] = [None] * (last - first)
        for n in range(first, last):
            if not done[n]:
                losses[n - first] = files[n].decode([plane[n].numpy().reshape(-1) for plane in planes], tables[n])
            else:
                tables[n] = files[n].opening.qtables
        return losses

    return [loss for losses in for_each(decode, len(pieces), num_threads) for loss in losses]


def _cut(sizes: list[int], plans: list[Plan | None], num_threads: int) -> list[tuple[int, int]]:
    """Cut a batch into pieces ``(first, last)`` of one plan each: four for every thread, so that none waits long."""
    longest = _MOST_BYTES
    if num_threads > 1:
        longest = max(_FEWEST_BYTES, min(_MOST_BYTES, -(-sum(sizes) // (4 * num_threads))))
    pieces = []
    first = total = 0
    for i, size in enumerate(sizes):
        if i > first and (total + size // 2 > longest or plans[i] is not plans[first] or plans[i] is None):
            pieces.append((first, i))
            first, total = i, 0
        total += size
    return [*pieces, (first, len(sizes))]


def _decode_alike(
    files: Sequence[JPEGFile],
    plan: Plan,
    needed: NDArray[np.int64],
    wanted: NDArray[Any],
    targets: NDArray[np.int64],
    first: int,
    done: NDArray[np.uint8],
) -> None:
    """Decode files of one plan; the first has number ``first`` in the batch. Sets ``done`` for those decoded."""
    kernels = load_kernels()
    bounds: list[int] = []
    end = longest = 0
    for file in files:
        size = len(file.data)
        end += size
        longest = max(longest, size)
        bounds += (file.opening.marker, end)
    frame = files[0].opening.frame
    WORKSPACE.state.wanted[:] = wanted if frame.kind == "progressive" else EVERYTHING
    data = files[0].data if len(files) == 1 else b"".join([file.data for file in files])
    kernels.run(
        kernels.files.decode_files,
        np.frombuffer(data, np.uint8),
        np.array(bounds, np.int64),
        WORKSPACE.segment(longest),
        *plan,
        WORKSPACE.state,
        WORKSPACE.tables(frame),
        WORKSPACE.history(frame),
        _NONE,
        needed,
        targets,
        first,
        done,
    )


def _position(data: bytes, start: int, used: int) -> int:
    """The position behind ``used`` bytes from ``start`` on, with byte stuffing counted."""
    position = start
    while True:
        stuffing = data.find(b"\xff\x00", position, start + used)
        if stuffing < 0:
            return min(start + used, len(data))
        position = stuffing + 2
        used += 1
