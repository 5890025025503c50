"""Image files to the tensors that codecs take, and back."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cdzoo._checks import integer
from cdzoo.types import MAX_IMAGE_PIXELS

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "decode_image",
    "image_size",
    "load_images",
    "png_bytes",
    "read_image",
    "read_image_size",
    "reduced",
    "reduced_size",
    "to_pillow",
]

IMAGE_SUFFIXES = frozenset(
    {
        ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif",
        ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
        ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""Suffixes of image files where a folder is searched; a file that is named itself may have any suffix."""
_ORIENTATION = 0x0112  # of Exif
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
_ROWS = 256  # that are rounded at once, so that large images take little memory beside themselves


def read_image(path: str | os.PathLike[str], *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> Tensor:
    """Read an image file as the input of a codec.

    The picture is turned as its Exif orientation says. Gray, palette and CMYK images become RGB by Pillow's plain
    conversion; color profiles (ICC) are not applied. Transparent images are put on white. Gray images of 16 bits
    keep their precision; color images of 16 bits get 8 bits from Pillow. Of an animation, the first frame is read.

    Args:
        path: a file of any format that Pillow reads.
        max_pixels: refuse images of more pixels than this, before they take memory; ``None`` leaves only Pillow's
            own limit, twice ``PIL.Image.MAX_IMAGE_PIXELS``.

    Returns:
        ``(1, 3, H, W)`` float32, RGB, in ``[0, 1]``.

    Raises:
        OSError: the file cannot be opened: it does not exist, is a folder, or may not be read.
        ValueError: it is not an image, is truncated or damaged, or has too many pixels; with Pillow's own message.
    """
    with open(path, "rb") as file:
        return _decoded(file, repr(os.fspath(path)), max_pixels)


def load_images(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: int | None = None,
    max_pixels: int | None = MAX_IMAGE_PIXELS,
) -> Tensor:
    """Read image files into one batch, upright, as :func:`read_image` reads each of them.

    Args:
        paths: a file, or a sequence of files.
        size: resize the shorter side to this many pixels (bilinear, antialiased) and crop the center square, as
            ``Resize(size)`` and ``CenterCrop(size)`` of ``torchvision.transforms.v2`` do. ``None`` keeps the images as
            they are; they must have equal sizes then.
        max_pixels: refuse images of more pixels; ``None`` for no limit.

    Returns:
        ``(B, 3, H, W)`` float32, RGB, in ``[0, 1]``; ``H = W = size`` where ``size`` is given.

    Raises:
        OSError: a file cannot be opened.
        TypeError: something that is not a path, such as the content of a file.
        ValueError: no paths, images of unequal sizes without ``size``, ``size`` below 1, or not an image.
    """
    if size is not None and (integer(size) or 0) < 1:
        raise ValueError(f"size must be an integer of at least 1, or None, not {size!r}")
    names = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not names:
        raise ValueError("no paths: pass at least one image file")
    for name in names:
        if not isinstance(name, str | os.PathLike):
            raise TypeError(f"load_images takes paths of image files, not {type(name).__name__}")
    images = [read_image(name, max_pixels=max_pixels) for name in names]
    if size is not None:
        images = [_resized(x, size) for x in images]
    for name, x in zip(names, images, strict=True):
        if x.shape != images[0].shape:
            (first, other) = (f"{y.shape[2]}x{y.shape[3]}" for y in (images[0], x))
            raise ValueError(
                f"images of unequal sizes (H x W) make no batch: {os.fspath(names[0])!r} has {first} pixels and "
                f"{os.fspath(name)!r} has {other}; pass size= to resize and crop them"
            )
    return torch.cat(images)


def _resized(x: Tensor, size: int) -> Tensor:
    height, width = x.shape[-2:]
    shorter = min(height, width)
    height, width = int(size * height / shorter), int(size * width / shorter)
    x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return x[..., top : top + size, left : left + size]


def reduced_size(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """``(H, W)`` of an image whose longer side is at most ``max_side``; ``None`` keeps the size."""
    longer = max(size)
    if max_side is None or longer <= max_side:
        return size
    height, width = (max(1, round(n * max_side / longer)) for n in size)
    return height, width


def reduced(x: Tensor, max_side: int | None) -> Tensor:
    """Images ``(B, 3, H, W)`` in ``[0, 1]``, reduced to :func:`reduced_size` (bicubic, antialiased)."""
    height, width = x.shape[-2:]
    size = reduced_size((height, width), max_side)
    return x if size == (height, width) else F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def decode_image(data: bytes, *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> Tensor:
    """:func:`read_image` of a file's content.

    Raises:
        ValueError: as :func:`read_image`.
    """
    return _decoded(io.BytesIO(data), f"an image of {len(data)} bytes", max_pixels)


def image_size(data: bytes) -> tuple[int, int]:
    """``(H, W)`` of an image file as :func:`decode_image` would give it, from its header.

    Raises:
        ValueError: it is not an image, or so large that Pillow refuses it.
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
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file) as image:
                width, height = image.size
                if image.format == "TIFF":  # which some versions of Pillow have turned by now
                    width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
                turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        except UnidentifiedImageError:
            raise _unidentified(name) from None
        except Exception as error:
            raise ValueError(f"{name}: {error}") from error
    return (width, height) if turned else (height, width)


def _decoded(file: BinaryIO, name: str, max_pixels: int | None) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    # Pillow warns of harmless oddities, such as broken Exif data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file) as image:
                width, height = image.size
                if max_pixels is not None and width * height > max_pixels:
                    raise ValueError(
                        f"{width}x{height} pixels exceed the limit of {max_pixels}; if you trust the file, pass a "
                        "larger max_pixels"
                    )
                image.load()
                planes = _rgb(_upright(image))
        except MemoryError:
            raise
        except UnidentifiedImageError:
            raise _unidentified(name) from None
        except Exception as error:  # Pillow's decoders raise errors of many types for damaged data
            raise ValueError(f"{name}: {error}") from error
    return torch.from_numpy(planes)[None]


def _unidentified(name: str) -> ValueError:
    """The error for a file that Pillow does not know; Pillow's own text holds an object's address."""
    return ValueError(f"{name}: cannot identify image file; Pillow does not read its format")


def to_pillow(x: Tensor) -> Image.Image:
    """One image ``(1, 3, H, W)`` or ``(3, H, W)`` in ``[0, 1]`` as an 8-bit RGB image of Pillow.

    Raises:
        ValueError: another shape.
    """
    from PIL import Image

    if x.shape[:-2] not in ((3,), (1, 3)):
        raise ValueError(f"x must be one image (3, H, W) or (1, 3, H, W), not {tuple(x.shape)}")
    x = x.detach().reshape(3, *x.shape[-2:])
    pixels = torch.empty(*x.shape[1:], 3, dtype=torch.uint8)
    for top in range(0, x.shape[1], _ROWS):
        rows = slice(top, top + _ROWS)
        pixels[rows].copy_(x[:, rows].clamp(0, 1).mul(255).round().permute(1, 2, 0))
    return Image.fromarray(pixels.numpy())


def png_bytes(x: Tensor) -> bytes:
    """One image ``(1, 3, H, W)`` or ``(3, H, W)`` in ``[0, 1]`` as the bytes of an 8-bit RGB PNG file.

    Raises:
        ValueError: another shape.
    """
    buffer = io.BytesIO()
    to_pillow(x).save(buffer, "PNG")
    return buffer.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Exif data that cannot be parsed: keep the stored orientation, as viewers do
        return image


def _rgb(image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``(3, H, W)`` float32 in ``[0, 1]``."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        gray = np.asarray(image, dtype=np.float32) / np.float32(1 if image.mode == "F" else 65535)
        if not (gray.min() >= 0 and gray.max() <= 1):
            raise ValueError(f"gray values of mode {image.mode} outside {'[0, 1]' if image.mode == 'F' else '16 bits'}")
        return np.repeat(gray[None], 3, axis=0)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    planes = np.empty((3, *pixels.shape[:2]), np.float32)
    # no other array of this size, which for large images is most of the memory
    np.divide(pixels.transpose(2, 0, 1), np.float32(255), out=planes, dtype=np.float32)
    return planes
