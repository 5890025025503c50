"""JPEG files as coefficients: entropy decoding and coding only, no pixels (ITU-T T.81).

Baseline, extended and progressive Huffman files of 8 bits a sample, with 1, 3 or 4 components, any sampling, restart
markers and any order of scans. What is read is what the file stores, integer for integer. The entropy coder is our own:
it reads from memory into a caller's buffer, leaves the GIL to others, and raises on truncated or inconsistent data.

Letters: ``B`` files, ``K`` components, ``Hb Wb`` rows and columns of blocks, see :class:`cdzoo.types.JPEGCoefficients`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cdzoo._checks import thread_count
from cdzoo._threads import for_each
from cdzoo._torch import untraced
from cdzoo.errors import JPEGError
from cdzoo.jpeg._markers import Damage, Kind, Segments
from cdzoo.jpeg._reader import File, Geometry, decode_files
from cdzoo.jpeg._writer import write_image
from cdzoo.jpeg.planes import check_coefficients
from cdzoo.types import MAX_IMAGE_PIXELS, JPEGCoefficients

__all__ = ["JPEGHeader", "JPEGWarning", "read_jpeg", "read_jpeg_header", "write_jpeg"]

JPEGSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview

_BYTES = (bytes, bytearray, memoryview)
_SOURCES = (*_BYTES, str, os.PathLike)

_HEADER_BYTES = 1 << 16


class JPEGWarning(UserWarning):
    """A damaged file was read with ``strict=False``; ``num_missing`` blocks of it are missing or incomplete."""

    def __init__(self, message: str, num_missing: int = 0) -> None:
        super().__init__(message)
        self.num_missing = num_missing


class JPEGHeader(NamedTuple):
    """What stands before the first scan of a JPEG file.

    Attributes:
        image_size: ``(H, W)`` in pixels, as stored: the Exif orientation is not applied.
        sampling: ``K`` pairs of (vertical, horizontal) sampling factors; ``((1, 1),)`` for any file of one component.
        color_space: ``"gray"``, ``"ycbcr"``, ``"rgb"``, ``"cmyk"`` or ``"ycck"``.
        kind: ``"baseline"``, ``"extended"`` (sequential, Huffman) or ``"progressive"``.
        num_components: ``K``: 1, 3 or 4.
        block_sizes: ``K`` pairs ``(Hb, Wb)``, the shapes of the coefficient planes.
        precision: bits per sample: 8.
        orientation: the Exif orientation 1..8; 1, upright, where the file says nothing sensible.
        restart_interval: MCUs between restart markers in the first scan; 0 for none.
    """

    image_size: tuple[int, int]
    sampling: tuple[tuple[int, int], ...]
    color_space: str
    kind: Kind
    num_components: int
    block_sizes: tuple[tuple[int, int], ...]
    precision: int
    orientation: int
    restart_interval: int


@untraced
def read_jpeg_header(source: JPEGSource, *, strict: bool = True) -> JPEGHeader:
    """Read size, sampling, kind, colour space and orientation of a JPEG file, and none of its image data.

    Arguments:
        source: a path, or the bytes of a file. Of a path only the beginning is read, as a rule.
        strict: refuse all damage, or only what ``read_jpeg(strict=False)`` refuses, too.

    Raises:
        JPEGError: the header is damaged, or describes something that ``read_jpeg`` does not support.
        OSError: the file cannot be read.
    """
    name = _name(source, None)
    if not isinstance(source, _BYTES):
        with open(source, "rb") as file:
            data = file.read(_HEADER_BYTES)
            try:
                return _parse_header(data, name, strict)
            except JPEGError:
                if len(data) < _HEADER_BYTES:
                    raise
            data += file.read()
    else:
        data = bytes(source)
    return _parse_header(data, name, strict)


@untraced
def read_jpeg(
    source: JPEGSource | Sequence[JPEGSource],
    *,
    out: JPEGCoefficients | None = None,
    strict: bool = True,
    num_threads: int | None = None,
    max_pixels: int | None = MAX_IMAGE_PIXELS,
) -> JPEGCoefficients:
    """Read the quantised DCT coefficients of one JPEG file, or of a batch of one geometry.

    JPEG has no checksum. Data that end early or contradict themselves are found, but a flipped bit that leaves a valid
    file gives other coefficients without a word, here as in every reader.

    Arguments:
        source: a path, the bytes of a file, or a sequence of either; a single file is a batch of one. The files of a
            batch agree in size, sampling and colour space; quality and kind may differ.
        out: coefficients whose tensors are overwritten instead of fresh ones: CPU, contiguous, of the shapes and
            dtypes that the result has. After an error their contents are undefined.
        strict: if true, damage raises. If false, a file is decoded as far as it goes, with a ``JPEGWarning``: missing
            blocks hold zeros, decoding goes on at the next restart marker, and blocks of a progressive file lack what
            the damaged scans would have added. Damage in the header raises all the same.
        num_threads: files of a batch decoded at the same time; ``torch.get_num_threads()`` by default, which is 1 in
            the workers of a ``DataLoader``.
        max_pixels: the largest ``H * W`` that is accepted, against files made to exhaust memory; ``None`` for any.

    Returns:
        Coefficients with ``planes`` ``K x (B, Hb, Wb, 8, 8)`` int16, ``qtables`` ``(B, K, 8, 8)`` int32.

    Raises:
        JPEGError: a file is damaged, of a kind that is not supported, or too large. The message names the file (path,
            or index), the position, and the reason; of several bad files the first is named.
        TypeError: ``source``, ``out`` or ``num_threads`` is something else.
        ValueError: the files' geometries differ, or ``out`` does not fit.
        OSError: a file cannot be read.
    """
    single = isinstance(source, _SOURCES)
    if not single and not isinstance(source, Sequence):  # an open file would be taken for a sequence of lines
        raise TypeError(
            f"read_jpeg takes a path, the bytes of a file or a sequence of either, not {type(source).__name__}: pass "
            "file.read() of an open file, bytes(array) of an array, tensor.numpy().tobytes() of a tensor"
        )
    sources: list[JPEGSource] = [source] if single else list(source)  # type: ignore[list-item, arg-type]
    if not sources:
        raise ValueError("read_jpeg: the batch is empty; give at least one file")
    threads = thread_count(num_threads)
    if out is not None and not isinstance(out, JPEGCoefficients):
        raise TypeError(f"out must be JPEGCoefficients, such as an earlier call returned, not {type(out).__name__}")

    def open_file(i: int) -> File:
        data = sources[i]
        name = _name(data, None if single else i)
        if not isinstance(data, _BYTES):
            with open(data, "rb") as stream:
                data = stream.read()
        return File(bytes(data), name, strict=strict, max_pixels=max_pixels)

    # All headers before any allocation: one small file must not make a large tensor for a whole batch.
    in_memory = all(isinstance(data, _BYTES) for data in sources)
    files = for_each(open_file, len(sources), 1 if in_memory else threads)
    geometry = _common_geometry(files)
    planes, qtables = _fresh(files) if out is None else _reused(out, files)
    for loss in decode_files(files, planes, qtables, threads):
        if loss is not None:
            warnings.warn(JPEGWarning(loss.message, loss.num_blocks), stacklevel=2)
    return JPEGCoefficients(planes, qtables, *geometry)


@untraced
def write_jpeg(coefficients: JPEGCoefficients) -> list[bytes]:
    """Write coefficients as JPEG files: sequential, interleaved where that is allowed, with optimal Huffman tables.

    Reading a file back gives the same integers. Markers tell any decoder the colour space: JFIF for ``"gray"`` and
    ``"ycbcr"``, Adobe for the others. Orientation, colour profiles and other metadata are not part of coefficients.

    Arguments:
        coefficients: ``planes`` ``K x (B, Hb, Wb, 8, 8)`` int16, on any device.

    Returns:
        ``B`` files.

    Raises:
        TypeError: pixels, or what the default collate function makes of coefficients.
        ValueError: shapes, sampling and size contradict each other; a quantisation entry lies outside 1..65535; an AC
            coefficient needs more than 10 bits or a DC difference more than 11, which 8-bit JPEG cannot store.
    """
    check_coefficients(coefficients)
    coefficients = coefficients.to("cpu")
    return [write_image(coefficients, i) for i in range(coefficients.qtables.shape[0])]


def _parse_header(data: bytes, name: str, strict: bool) -> JPEGHeader:
    try:
        segments = Segments(data, strict=strict)
        scan = segments.next_scan()
        frame = segments.frame
        if scan is None or frame is None:
            raise Damage(segments.position, "the file ends before any image")
    except Damage as damage:
        raise JPEGError(f"{name}, byte {damage.position}: {damage.reason}") from None
    return JPEGHeader(
        image_size=(frame.height, frame.width),
        sampling=frame.sampling,
        color_space=segments.color_space,
        kind=frame.kind,
        num_components=len(frame.components),
        block_sizes=tuple((component.rows, component.columns) for component in frame.components),
        precision=8,
        orientation=segments.orientation(),
        restart_interval=scan.restart_interval,
    )


def _name(source: JPEGSource, index: int | None) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return "JPEG data" if index is None else f"source[{index}]"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    raise TypeError(f"a JPEG source is a path or the bytes of a file, not {type(source).__name__}")


def _common_geometry(files: list[File]) -> Geometry:
    geometry = files[0].header.geometry
    for file in files[1:]:
        if file.header.geometry != geometry:
            raise ValueError(
                f"the files of a batch must have the same geometry: {file.name} has {file.header.geometry}, but "
                f"{files[0].name} has {geometry}; read them one by one, or group them by read_jpeg_header"
            )
    return geometry


def _shapes(files: list[File]) -> list[tuple[int, ...]]:
    """The shapes of the planes and, last, of the quantisation tables."""
    components = files[0].header.frame.components
    shapes = [(len(files), component.rows, component.columns, 8, 8) for component in components]
    return [*shapes, (len(files), len(components), 8, 8)]


def _fresh(files: list[File]) -> tuple[tuple[Tensor, ...], Tensor]:
    *shapes, last = _shapes(files)  # by way of NumPy, which is quicker
    planes = tuple([torch.from_numpy(np.empty(shape, np.int16)) for shape in shapes])
    return planes, torch.from_numpy(np.empty(last, np.int32))


def _reused(out: JPEGCoefficients, files: list[File]) -> tuple[tuple[Tensor, ...], Tensor]:
    tensors = [*out.planes, out.qtables]
    if not all(tensor.is_cpu for tensor in tensors):
        raise ValueError("out does not fit: its tensors must be on the CPU; copy the result to its device afterwards")
    shapes = _shapes(files)
    dtypes = [torch.int16] * (len(shapes) - 1) + [torch.int32]
    if [tensor.shape for tensor in tensors] != shapes or [tensor.dtype for tensor in tensors] != dtypes:
        found = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)
        needed = ", ".join(f"{shape} {dtype}" for shape, dtype in zip(shapes, dtypes, strict=True))
        raise ValueError(f"out does not fit: planes and qtables must be {needed}, and are {found}")
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("out does not fit: its tensors must be contiguous; pass none of them as a view")
    return out.planes, out.qtables
