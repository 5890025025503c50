"""JPEG files as coefficients: entropy decoding and coding only, no pixels (ITU-T T.81).

Baseline, extended and progressive Huffman files of 8 bits a sample, with 1, 3 or 4 components, any sampling, restart
markers and any order of scans. What is read is what the file stores, integer for integer. The entropy coder is our own:
it reads from memory into a caller's buffer, leaves the GIL to others, and raises on truncated or inconsistent data.

Letters: ``B`` files, ``K`` components, ``Hb Wb`` rows and columns of blocks, see :class:`cdzoo.types.JPEGCoefficients`.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from cdzoo.codecs._jpeg_markers import Damage, Kind, Segments
from cdzoo.codecs._jpeg_reader import File, Geometry, Loss
from cdzoo.codecs._jpeg_writer import write_image
from cdzoo.errors import JPEGError
from cdzoo.types import JPEGCoefficients

__all__ = ["MAX_IMAGE_PIXELS", "JPEGHeader", "JPEGWarning", "read_jpeg", "read_jpeg_header", "write_jpeg"]

#: ``H * W`` beyond which a file is refused by default: a quarter of a gigabyte of 24-bit pixels, as in Pillow.
MAX_IMAGE_PIXELS = 1024**3 // 4 // 3

JPEGSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview

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


def read_jpeg_header(source: JPEGSource) -> JPEGHeader:
    """Read size, sampling, kind, colour space and orientation of a JPEG file, and none of its image data.

    Arguments:
        source: a path, or the bytes of a file. Of a path only the beginning is read, as a rule.

    Raises:
        JPEGError: the header is damaged, or describes something that ``read_jpeg`` does not support.
        OSError: the file cannot be read.
    """
    name = _name(source, None)
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            data = file.read(_HEADER_BYTES)
            try:
                return _parse_header(data, name)
            except JPEGError:
                if len(data) < _HEADER_BYTES:
                    raise
            data += file.read()
    else:
        data = bytes(source)
    return _parse_header(data, name)


def read_jpeg(
    source: JPEGSource | Sequence[JPEGSource],
    *,
    out: JPEGCoefficients | None = None,
    strict: bool = True,
    num_threads: int | None = None,
    max_pixels: int | None = MAX_IMAGE_PIXELS,
) -> JPEGCoefficients:
    """Read the quantised DCT coefficients of one JPEG file, or of a batch of one geometry.

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
        ValueError: the files' geometries differ, or ``out`` does not fit.
        OSError: a file cannot be read.
    """
    single = isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)
    sources: list[JPEGSource] = [source] if single else list(source)  # type: ignore[list-item, arg-type]
    if not sources:
        raise ValueError("read_jpeg: the batch is empty; give at least one file")
    if num_threads is None:
        num_threads = torch.get_num_threads()
    elif num_threads < 1:
        raise ValueError(f"num_threads={num_threads}: give 1 or more, or None")
    count = len(sources)
    files: list[File | None] = [None] * count

    def open_file(i: int) -> None:
        data = sources[i]
        name = _name(data, None if single else i)
        if isinstance(data, str | os.PathLike):
            with open(data, "rb") as stream:
                data = stream.read()
        files[i] = File(bytes(data), name, strict=strict, max_pixels=max_pixels)

    # All headers before any allocation: one small file must not make a large tensor for a whole batch.
    _for_each(open_file, count, num_threads)
    opened = [file for file in files if file is not None]
    geometry = _common_geometry(opened)
    zeros = out is None and not (strict and not any(file.progressive for file in opened))
    arrays = _fresh(opened[0], count, zeros) if out is None else _reused(out, opened[0], count)
    planes = [array.reshape(count, -1) for array in arrays[:-1]]
    qtables = arrays[-1].reshape(count, len(planes), 64)
    losses: list[Loss | None] = [None] * count

    def decode_file(i: int) -> None:
        losses[i] = opened[i].decode([plane[i] for plane in planes], qtables[i], clean=zeros)

    _for_each(decode_file, count, num_threads)
    for loss in losses:
        if loss is not None:
            warnings.warn(JPEGWarning(loss.message, loss.num_blocks), stacklevel=2)
    if out is not None:
        return JPEGCoefficients(out.planes, out.qtables, *geometry)
    tensors = [torch.from_numpy(array) for array in arrays]
    return JPEGCoefficients(tuple(tensors[:-1]), tensors[-1], *geometry)


def write_jpeg(coefficients: JPEGCoefficients) -> list[bytes]:
    """Write coefficients as JPEG files: sequential, interleaved where that is allowed, with optimal Huffman tables.

    Reading a file back gives the same integers. Markers tell any decoder the colour space: JFIF for ``"gray"`` and
    ``"ycbcr"``, Adobe for the others. Orientation, colour profiles and other metadata are not part of coefficients.

    Arguments:
        coefficients: ``planes`` ``K x (B, Hb, Wb, 8, 8)`` int16, on any device.

    Returns:
        ``B`` files.

    Raises:
        ValueError: shapes, sampling and size contradict each other; a quantisation entry lies outside 1..65535; an AC
            coefficient needs more than 10 bits or a DC difference more than 11, which 8-bit JPEG cannot store.
    """
    coefficients = coefficients.to("cpu")
    return [write_image(coefficients, i) for i in range(coefficients.qtables.shape[0])]


def _parse_header(data: bytes, name: str) -> JPEGHeader:
    try:
        segments = Segments(data)
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
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if not isinstance(source, bytes | bytearray | memoryview):
        raise TypeError(f"a JPEG source is a path or the bytes of a file, not {type(source).__name__}")
    return "JPEG data" if index is None else f"source[{index}]"


def _for_each(work: Callable[[int], None], count: int, num_threads: int) -> None:
    """Call ``work`` with 0..count-1 from several threads; of the exceptions, raise that of the lowest number."""
    errors: dict[int, BaseException] = {}
    numbers = itertools.count()

    def loop() -> None:
        while not errors and (i := next(numbers)) < count:
            try:
                work(i)
            except BaseException as error:
                errors[i] = error

    others = min(num_threads, count) - 1
    if others == 0:
        loop()
    else:
        # Threads of this call only: a pool that outlives it would not survive a fork into DataLoader workers.
        with ThreadPoolExecutor(others, thread_name_prefix="cdzoo-jpeg") as pool:
            for _ in range(others):
                pool.submit(loop)
            loop()
    if errors:  # numbers are given out in order, and whatever was given out has been tried
        raise errors[min(errors)]


def _common_geometry(files: list[File]) -> Geometry:
    geometry = files[0].geometry
    for file in files[1:]:
        if file.geometry != geometry:
            raise ValueError(
                f"the files of a batch must have the same geometry: {file.name} has {file.geometry}, but "
                f"{files[0].name} has {geometry}; read them one by one, or group them by read_jpeg_header"
            )
    return geometry


def _wanted(file: File, count: int) -> list[tuple[tuple[int, ...], type[np.signedinteger[Any]]]]:
    """Shapes and dtypes of the planes and, last, of the quantisation tables."""
    components = file.frame.components
    planes = [((count, component.rows, component.columns, 8, 8), np.int16) for component in components]
    return [*planes, ((count, len(components), 8, 8), np.int32)]


def _fresh(file: File, count: int, zeros: bool) -> list[NDArray[Any]]:
    new = np.zeros if zeros else np.empty
    return [new(shape, dtype) for shape, dtype in _wanted(file, count)]


def _reused(out: JPEGCoefficients, file: File, count: int) -> list[NDArray[Any]]:
    tensors = [*out.planes, out.qtables]
    if not all(tensor.is_cpu for tensor in tensors):
        raise ValueError("out does not fit: its tensors must be on the CPU; copy the result to its device afterwards")
    arrays = [tensor.numpy() for tensor in tensors]
    wanted = _wanted(file, count)
    if [(array.shape, array.dtype) for array in arrays] != wanted:
        found = ", ".join(f"{array.shape} {array.dtype}" for array in arrays)
        needed = ", ".join(f"{shape} {dtype.__name__}" for shape, dtype in wanted)
        raise ValueError(f"out does not fit: planes and qtables must be {needed}, and are {found}")
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("out does not fit: its tensors must be contiguous; pass none of them as a view")
    return arrays
