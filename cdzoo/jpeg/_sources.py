"""Sources of JPEG data: paths, bytes, open files; and image files of other formats, as JPEG files."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, Literal, TypeAlias

from cdzoo.errors import JPEGError

__all__ = [
    "Fallback",
    "JPEGSource",
    "NamedBytes",
    "check_fallback",
    "is_source",
    "read_beginning",
    "read_source",
    "source_name",
    "transcoded",
]

JPEGSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
Fallback: TypeAlias = Literal["decode"]

_BYTES = (bytes, bytearray, memoryview)


def is_source(value: object) -> bool:
    """Return true for a path, bytes, or an open file, and not for a sequence of them."""
    return isinstance(value, (*_BYTES, str, os.PathLike)) or hasattr(value, "read")


def source_name(source: JPEGSource, index: int | None) -> str:
    """The name of a source in errors; ``index`` is its place in a batch.

    Raises:
        TypeError: the source is something else.
    """
    if isinstance(source, str) or (not isinstance(source, _BYTES) and isinstance(source, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None)
    if isinstance(name, str):
        return name
    if not is_source(source):
        raise TypeError(f"a JPEG source is a path, the bytes of a file, or an open file, not {type(source).__name__}")
    return "JPEG data" if index is None else f"source[{index}]"


class NamedBytes(io.BytesIO):
    """The bytes of a file in memory, as an open file with a name for errors and warnings.

    Args:
        data: the bytes.
        name: of the file.
    """

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def read_source(source: JPEGSource) -> bytes:
    """Read all bytes of a source.

    Raises:
        IsADirectoryError: the path is that of a folder.
        OSError: the file cannot be read.
        TypeError: the file is open in text mode.
    """
    if isinstance(source, _BYTES):
        return bytes(source)
    if isinstance(source, NamedBytes):
        return source.getvalue()  # whatever has been read of it
    if isinstance(source, str | os.PathLike):
        with _opened(source) as file:
            return file.read()
    return _binary(source, -1)


def read_beginning(source: JPEGSource, size: int) -> bytes:
    """Read at most ``size`` bytes of a path or an open file, whose position stays where it was; bytes are given whole.

    Raises:
        OSError, TypeError: as :func:`read_source`.
    """
    if isinstance(source, _BYTES):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        with _opened(source) as file:
            return file.read(size)
    position = source.tell()
    try:
        return _binary(source, size)
    finally:
        source.seek(position)


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError:
        if os.path.isdir(path):
            raise IsADirectoryError(
                f"{os.fspath(path)!r} is a folder, and this reads files: "
                "cdzoo.data.CoefficientDataset reads all JPEG files of a folder"
            ) from None
        raise


def _binary(source: BinaryIO, size: int) -> bytes:
    text = isinstance(source, io.TextIOBase)  # reading it would raise UnicodeDecodeError
    data = "" if text else source.read(size)
    if not isinstance(data, bytes):
        raise TypeError(f'an open file gave {type(data).__name__} instead of bytes: open it in mode "rb"')
    return data


def check_fallback(fallback: Any) -> None:
    """Refuse an unknown way to read files that are no JPEG files.

    Raises:
        ValueError: neither ``"decode"`` nor ``None``.
    """
    if fallback not in (None, "decode"):
        raise ValueError(
            f'fallback={fallback!r}: it is "decode" or None; "decode" lets Pillow decode files that are no JPEG files, '
            "None refuses them"
        )


def transcoded(data: bytes, name: str, *, max_pixels: int | None) -> bytes:
    """An image file that Pillow decodes, as a JPEG file with quantization tables of ones and without subsampling.

    The picture is read as by :func:`cdzoo.images.read_image`: upright, RGB, transparent images on white.

    Raises:
        JPEGError: Pillow cannot decode it, or it is too large.
    """
    from cdzoo.images import decode_image
    from cdzoo.jpeg._writer import write_image
    from cdzoo.jpeg.pixels import encode_jpeg

    try:
        pixels = decode_image(data, max_pixels=max_pixels)
        return write_image(encode_jpeg(pixels, quality=100, subsampling="4:4:4"), 0)
    except ValueError as error:
        raise JPEGError(f"no JPEG file that is supported, and Pillow cannot decode it: {error}", name=name) from error
