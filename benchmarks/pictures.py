"""Images of any size with a photograph's detail in every pixel: one photograph, continued by its mirror image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdzoo.demo import PHOTO


def picture(size: tuple[int, int], number: int = 0, photo: Path | None = None) -> Image.Image:
    """One RGB image of ``(H, W)`` pixels; images of different numbers differ."""
    with Image.open(PHOTO if photo is None else photo) as image:
        pixels = np.asarray(image.convert("RGB"))
    corner = (pixels.shape[0] // 3 + 11 * number, pixels.shape[1] // 3 + 37 * number)
    missing = [max(0, c + n - have) for c, n, have in zip(corner, size, pixels.shape, strict=False)]
    whole = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    return Image.fromarray(whole[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]])


def jpeg_files(
    size: tuple[int, int], count: int, photo: Path | None = None, *, quality: int = 75, progressive: bool = False
) -> list[bytes]:
    """``count`` JPEG files, 4:2:0."""
    files = []
    for number in range(count):
        buffer = io.BytesIO()
        options = {"quality": quality, "subsampling": "4:2:0", "progressive": progressive}
        picture(size, number, photo).save(buffer, "JPEG", **options)
        files.append(buffer.getvalue())
    return files


def images(size: tuple[int, int], count: int, photo: Path | None = None) -> Tensor:
    """``(count, 3, H, W)`` in ``[0, 1]``."""
    found = [torch.from_numpy(np.array(picture(size, number, photo))) for number in range(count)]
    return torch.stack(found).permute(0, 3, 1, 2).float() / 255


def bits_per_pixel(streams: list[bytes], size: tuple[int, int]) -> float:
    """Mean over whole files or streams."""
    return round(8 * sum(map(len, streams)) / (len(streams) * size[0] * size[1]), 2)
