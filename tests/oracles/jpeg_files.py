"""Pictures and JPEG files that the tests of reader, writer and damage share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Waves, an edge and noise: coefficients of every size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    layers = [128 + 90 * np.sin(x / (3 + c) + y / 17) * np.cos(y / (9 - c)) for c in range(3)]
    pixels = np.stack(layers, -1) + rng.normal(0, 12, (height, width, 3)) + 80 * (x > y)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, **options: object) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def two_classes(root: Path, count: int, suffixes: Sequence[str] = (".jpg",)) -> Path:
    """Write ``count`` files of 32x32 pixels, quality 75, 4:2:0, into each of the folders ``gray`` and ``color``."""
    for label, name in enumerate(("gray", "color")):
        (root / name).mkdir()
        for i in range(count):
            image = picture(32, 32, seed=100 * label + i)
            image = image if label else image.convert("L").convert("RGB")
            (root / name / f"{i:04}{suffixes[i % len(suffixes)]}").write_bytes(encode(image, quality=75))
    return root
