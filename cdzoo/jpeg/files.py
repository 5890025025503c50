"""JPEG files as coefficients: entropy decoding and coding only, no pixels (ITU-T T.81).

Baseline, extended and progressive Huffman files of 8 bits a sample, with 1, 3 or 4 components, any sampling, restart
markers and any order of scans. The coefficients are exactly the integers that a file stores. The entropy coder is our
own: it reads from memory into a caller's buffer, releases the GIL, and raises on truncated or inconsistent data.

Letters: ``B`` files, ``K`` components, ``Hb Wb`` rows and columns of blocks, see :class:`cdzoo.types.JPEGCoefficients`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cdzoo._checks import thread_count
from cdzoo._threads import for_each
from cdzoo._torch import untraced
from cdzoo.errors import JPEGError
from cdzoo.jpeg._markers import Segments
from cdzoo.jpeg._metadata import metadata_segments
from cdzoo.jpeg._reader import JPEGFile, MissingBlocks, decode_files
from cdzoo.jpeg._resized_files import read_transformed
from cdzoo.jpeg._sources import (
    Fallback,
    JPEGSource,
    NamedBytes,
    check_fallback,
    is_source,
    read_beginning,
    read_source,
    source_name,
    transcoded,
)
from cdzoo.jpeg._writer import write_image
from cdzoo.jpeg.geometry import Geometry
from cdzoo.jpeg.header import JPEGHeader, read_opening
from cdzoo.jpeg.planes import check_coefficients
from cdzoo.types import MAX_IMAGE_PIXELS, JPEGCoefficients

__all__ = ["JPEGHeader", "JPEGWarning", "read_header_or_decode", "read_jpeg", "read_jpeg_header", "write_jpeg"]

_HEADER_BYTES = 1 << 16


class JPEGWarning(UserWarning):
    """A damaged file was read with ``strict=False``.

    Args:
        reason: position and kind of the first damage.
        num_missing: number of blocks that are missing or incomplete.
        name: the file: a path, or its place in a batch.
    """

    def __init__(self, reason: str, num_missing: int = 0, *, name: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.num_missing = num_missing
        self.name = name

    def __str__(self) -> str:
        return self.reason if self.name is None else f"{self.name}, {self.reason}"


@untraced
def read_jpeg_header(source: JPEGSource, *, strict: bool = True) -> JPEGHeader:
    """Read size, sampling, kind, color space, orientation and metadata of a JPEG file, and none of its image data.

    Args:
        source: a path, the bytes of a file, or a file that is open in binary mode and can seek: its position stays
            where it is. As a rule, only the beginning of a file is read.
        strict: refuse all damage, or only what ``read_jpeg(strict=False)`` refuses, too.

    Returns:
        the header.

    Raises:
        JPEGError: the header is damaged, or describes something that ``read_jpeg`` does not support.
        OSError: the file cannot be read.
        TypeError: ``source`` is something else.
    """
    name = source_name(source, None)
    data = read_beginning(source, _HEADER_BYTES)
    try:
        return _parse_header(data, name, strict)
    except JPEGError:
        if len(data) != _HEADER_BYTES:
            raise
    return _parse_header(read_beginning(source, -1), name, strict)


def read_header_or_decode(
    data: bytes, name: str, *, strict: bool, max_pixels: int | None, fallback: Fallback | None
) -> tuple[JPEGHeader, bytes]:
    """The header of a file and its bytes; with ``fallback="decode"``, those of a JPEG file made of any other image.

    Raises:
        JPEGError: as :func:`read_jpeg`.
    """
    try:
        return read_jpeg_header(data, strict=strict), data
    except JPEGError as error:
        if fallback is None or not error.unsupported:
            raise
    data = transcoded(data, name, max_pixels=max_pixels)
    return read_jpeg_header(data), data


@untraced
def read_jpeg(
    source: JPEGSource | Sequence[JPEGSource],
    *,
    transform: Callable[[JPEGCoefficients], JPEGCoefficients] | None = None,
    out: JPEGCoefficients | None = None,
    strict: bool = True,
    num_threads: int | None = None,
    max_pixels: int | None = MAX_IMAGE_PIXELS,
    fallback: Fallback | None = None,
) -> JPEGCoefficients:
    """Read the quantized DCT coefficients of one JPEG file, or of a batch of one geometry.

    JPEG has no checksum. Data that end early or contradict themselves are found, but a flipped bit that leaves a valid
    file gives other coefficients without an error, here as in every reader.

    Args:
        source: a path, the bytes of a file, a file that is open in binary mode, or a sequence of these; a single file
            is a batch of one. The files of a batch agree in size, sampling and color space, unless a transform gives
            them one geometry; quality and kind may differ.
        transform: applied to each file before they become one batch, such as a
            :class:`cdzoo.transforms.CoefficientTransform`, which brings files of any kind to one size, upright.
        out: coefficients whose tensors are overwritten instead of fresh ones: CPU, contiguous, of the shapes and
            dtypes that the result has. After an error their contents are undefined.
        strict: if true, damage raises. If false, a file is decoded as far as possible, with a ``JPEGWarning``. Missing
            blocks hold zeros. Decoding goes on at the next restart marker. Where data end inside an MCU, it keeps what
            libjpeg keeps. Blocks of a progressive file lack what the damaged scans would have added. Most damage in
            the header raises all the same. With a transform that crops, rows below the crop are not decoded: damage
            that only they have is not reported, and the result is the same.
        num_threads: files of a batch decoded at the same time; ``torch.get_num_threads()`` by default, which is 1 in
            the workers of a ``DataLoader``.
        max_pixels: the largest ``H * W`` that is accepted, against files made to exhaust memory; ``None`` for any.
        fallback: ``"decode"`` lets Pillow decode a file that is no JPEG file (PNG, WebP and so on, whatever its name)
            or a JPEG file of a kind that is not supported, and turns its pixels into coefficients: upright, YCbCr
            4:4:4, tables of ones. Rounding to integers changes pixels by 0.5 of 255 levels (RMS). ``None`` raises.

    Returns:
        coefficients with ``planes`` ``K x (B, Hb, Wb, 8, 8)`` int16, ``qtables`` ``(B, K, 8, 8)`` int32.

    Raises:
        JPEGError: a file is damaged, of a kind that is not supported, or too large. The message names the file (path,
            or index), the position, and the reason; of several bad files the first is named.
        TypeError: ``source``, ``out`` or ``num_threads`` is something else.
        ValueError: the files' geometries differ (after the transform if there is one), ``out`` does not fit, or
            ``fallback`` is another value.
        OSError: a file cannot be read.
    """
    single = is_source(source)
    if not single and not isinstance(source, Sequence):
        raise TypeError(
            f"read_jpeg takes a path, the bytes of a file, an open file or a sequence of these, not "
            f"{type(source).__name__}: pass bytes(array) of an array, tensor.numpy().tobytes() of a tensor"
        )
    sources: list[JPEGSource] = [source] if single else list(source)  # type: ignore[list-item, arg-type]
    if not sources:
        raise ValueError("read_jpeg: the batch is empty; give at least one file")
    threads = thread_count(num_threads)
    if out is not None and not isinstance(out, JPEGCoefficients):
        raise TypeError(f"out must be JPEGCoefficients, such as an earlier call returned, not {type(out).__name__}")
    check_fallback(fallback)

    def open_file(i: int) -> JPEGFile:
        name = source_name(sources[i], None if single else i)
        data = read_source(sources[i])
        try:
            return JPEGFile(data, name, strict=strict, max_pixels=max_pixels)
        except JPEGError as error:
            if fallback is None or not error.unsupported:
                raise
        return JPEGFile(transcoded(data, name, max_pixels=max_pixels), name, strict=True, max_pixels=max_pixels)

    # All headers before any allocation: one small file must not make a large tensor for a whole batch.
    in_memory = all(isinstance(data, bytes | bytearray | memoryview | NamedBytes) for data in sources)
    files = for_each(open_file, len(sources), 1 if in_memory else threads)
    if transform is not None:
        if out is not None:
            raise ValueError("out does not go with transform: the result of a transform is made anew")
        transformed, losses = read_transformed(files, transform, threads)
        _warn(files, losses)
        return transformed
    geometry = _common_geometry(files)
    planes, qtables = _fresh(files) if out is None else _reused(out, files)
    _warn(files, decode_files(files, planes, qtables, threads))
    return JPEGCoefficients(planes, qtables, *geometry)


@untraced
def write_jpeg(
    coefficients: JPEGCoefficients,
    *,
    exif: bytes | None = None,
    icc_profile: bytes | None = None,
    comment: bytes | str | None = None,
) -> list[bytes]:
    r"""Write coefficients as JPEG files: sequential, interleaved where that is allowed, with optimal Huffman tables.

    Reading a file back gives the same integers. Markers tell any decoder the color space: JFIF for ``"gray"`` and
    ``"ycbcr"``, Adobe for the others. Coefficients have no metadata. To keep the orientation and the colors of a file,
    pass ``exif`` and ``icc_profile`` from :func:`read_jpeg_header`.

    Args:
        coefficients: ``planes`` ``K x (B, Hb, Wb, 8, 8)`` int16, on any device.
        exif: Exif data for every file, with or without the prefix ``b"Exif\0\0"``, at most 65533 bytes with it.
        icc_profile: a color profile for every file.
        comment: text (UTF-8) or bytes for every file, at most 65533 bytes.

    Returns:
        ``B`` files.

    Raises:
        TypeError: pixels, or the output of the default collate function; metadata that are no bytes.
        ValueError: shapes, sampling and size contradict each other; a quantization entry lies outside 1..65535; an AC
            coefficient needs more than 10 bits or a DC difference more than 11, which 8-bit JPEG cannot store;
            metadata are too long.
    """
    check_coefficients(coefficients)
    metadata = metadata_segments(exif, icc_profile, comment)
    coefficients = coefficients.to("cpu")
    return [write_image(coefficients, i, metadata) for i in range(coefficients.qtables.shape[0])]


def _parse_header(data: bytes, name: str, strict: bool) -> JPEGHeader:
    try:
        return read_opening(Segments(data, strict=strict)).header
    except JPEGError as error:
        raise error.named(name) from None


def _warn(files: Sequence[JPEGFile], losses: Sequence[MissingBlocks | None]) -> None:
    for file, loss in zip(files, losses, strict=True):
        if loss is not None:
            warnings.warn(JPEGWarning(loss.reason, loss.num_blocks, name=file.name), stacklevel=4)


def _common_geometry(files: list[JPEGFile]) -> Geometry:
    geometry = files[0].opening.geometry
    for file in files[1:]:
        if file.opening.geometry != geometry:
            raise ValueError(
                f"the files of a batch must have the same geometry: {file.name} has {file.opening.geometry}, but "
                f"{files[0].name} has {geometry}; pass transform=CoefficientTransform(resize=256, crop=224) to "
                "bring them to one size, or read them one by one"
            )
    return geometry


def _shapes(files: list[JPEGFile]) -> list[tuple[int, ...]]:
    """The shapes of the planes and, last, of the quantization tables."""
    components = files[0].opening.frame.components
    shapes = [(len(files), component.rows, component.columns, 8, 8) for component in components]
    return [*shapes, (len(files), len(components), 8, 8)]


def _fresh(files: list[JPEGFile]) -> tuple[tuple[Tensor, ...], Tensor]:
    *shapes, last = _shapes(files)  # by way of NumPy, which is quicker
    planes = tuple([torch.from_numpy(np.empty(shape, np.int16)) for shape in shapes])
    return planes, torch.from_numpy(np.empty(last, np.int32))


def _reused(out: JPEGCoefficients, files: list[JPEGFile]) -> tuple[tuple[Tensor, ...], Tensor]:
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
