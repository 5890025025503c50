"""Pictures and JPEG files that the tests of reader, writer and damage share."""

from __future__ import annotations

import io

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
