"""Image files to the tensors that codecs take, and back: the only place where pixels meet the file system."""

from __future__ import annotations

import io
import os
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from cdzoo.types import MAX_IMAGE_PIXELS

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "decode_image",
    "image_size",
    "is_own_png",
    "png_bytes",
    "read_image",
    "read_image_size",
    "to_pillow",
]

IMAGE_SUFFIXES = frozenset(
    {
        ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif",
        ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
        ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""What counts as an image where a folder is searched; a file that is named outright may have any suffix."""
_ORIENTATION = 0x0112  # of Exif
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
_SOFTWARE = "cdzoo"  # in the PNG files that are written here


def read_image(path: str | os.PathLike[str], *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> Tensor:
    """Read an image file as a codec takes it.

    The picture is turned as its Exif orientation says. Grey, palette and CMYK images become RGB by Pillow's plain
    conversion; colour profiles (ICC) are not applied. Transparent images are laid on white. Grey images of 16 bits
    keep their precision; colour images of 16 bits come out of Pillow with 8. Of an animation, the first frame is read.

    Args:
        path: a file of any format that Pillow reads.
        max_pixels: refuse images of more pixels than this, before they take memory; ``None`` leaves only Pillow's
            own limit, twice ``PIL.Image.MAX_IMAGE_PIXELS``.

    Returns:
        ``(1, 3, H, W)`` float32, RGB, in ``[0, 1]``.

    Raises:
        OSError: the file cannot be opened: it does not exist, is a folder, or may not be read.
        ValueError: it is no image, is truncated or damaged, or has too many pixels.
    """
    with open(path, "rb") as file:
        return _decoded(file, repr(os.fspath(path)), max_pixels)


def decode_image(data: bytes, *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> Tensor:
    """:func:`read_image` of a file's content.

    Raises:
        ValueError: as :func:`read_image`.
    """
    return _decoded(io.BytesIO(data), f"an image of {len(data)} bytes", max_pixels)


def image_size(data: bytes) -> tuple[int, int]:
    """``(H, W)`` of an image file as :func:`decode_image` would give it, from its header.

    Raises:
        ValueError: it is no image, or so large that Pillow refuses it.
    """
    return _size(io.BytesIO(data), f"an image of {len(data)} bytes")


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """:func:`image_size` of a file.

    Raises:
        OSError: as :func:`read_image`.
        ValueError: as :func:`image_size`.
    """
    with open(path, "rb") as file:
        return _size(file, repr(os.fspath(path)))


def _size(file: BinaryIO, name: str) -> tuple[int, int]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file) as image:
                width, height = image.size
                if image.format == "TIFF":  # which some versions of Pillow have turned by now
                    width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
                turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        except Exception as error:
            raise ValueError(f"{name} has no header that can be read ({error}).") from error
    return (width, height) if turned else (height, width)


def _decoded(file: BinaryIO, name: str, max_pixels: int | None) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    # Pillow warns of oddities (broken Exif data, half its limit) that do no harm, or raise by themselves
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file) as image:
                width, height = image.size
                if max_pixels is not None and width * height > max_pixels:
                    raise Image.DecompressionBombError(f"{width}x{height} pixels exceed the limit of {max_pixels}")
                image.load()
                array = _rgb(_upright(image))
        except UnidentifiedImageError:
            what = (
                "is empty"
                if file.seek(0, os.SEEK_END) == 0
                else "is not an image in a format that Pillow reads, or is damaged"
            )
            raise ValueError(f"{name} {what}; was it written in full?") from None
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name} is too large: {error}; if you trust it, read it with a larger limit.") from None
        except MemoryError:
            raise
        except Exception as error:  # each of Pillow's decoders has its own way to fail on damaged data
            raise ValueError(
                f"{name} cannot be decoded ({error}); the file is truncated or damaged, or of a kind that is not read."
            ) from error
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def to_pillow(x: Tensor) -> Image.Image:
    """One image ``(1, 3, H, W)`` or ``(3, H, W)`` in ``[0, 1]`` as an 8-bit RGB image of Pillow.

    Raises:
        ValueError: another shape.
    """
    from PIL import Image

    if x.shape[:-2] not in ((3,), (1, 3)):
        raise ValueError(f"x must be one image (3, H, W) or (1, 3, H, W), not {tuple(x.shape)}.")
    pixels = x.detach().reshape(3, *x.shape[-2:]).permute(1, 2, 0).clamp(0, 1).mul(255).round()
    return Image.fromarray(pixels.to("cpu", torch.uint8).contiguous().numpy())


def png_bytes(x: Tensor) -> bytes:
    """One image ``(1, 3, H, W)`` or ``(3, H, W)`` in ``[0, 1]`` as the bytes of an 8-bit RGB PNG file.

    Raises:
        ValueError: another shape.
    """
    from PIL.PngImagePlugin import PngInfo

    buffer, text = io.BytesIO(), PngInfo()
    text.add_text("Software", _SOFTWARE)
    to_pillow(x).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def is_own_png(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as :func:`png_bytes` does.

    Raises:
        OSError: the file cannot be opened.
    """
    from PIL import Image

    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=("PNG",)) as image:
                return bool(image.info.get("Software") == _SOFTWARE)
        except Exception:  # whatever it is, it is something else
            return False


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Exif data that cannot be parsed: show the pixels as they lie, as viewers do
        return image


def _rgb(image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``(H, W, 3)`` float32 in ``[0, 1]``."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image, dtype=np.float32) / np.float32(1 if image.mode == "F" else 65535)
        if not (grey.min() >= 0 and grey.max() <= 1):
            raise ValueError(f"grey values of mode {image.mode} outside {'[0, 1]' if image.mode == 'F' else '16 bits'}")
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    scaled: np.ndarray[Any, np.dtype[np.float32]] = np.divide(pixels, np.float32(255))
    return scaled
