"""The demonstration: a photograph is compressed, classified from its stream, and decoded so that you can see it."""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cdzoo._checks import check_size
from cdzoo._compose import CompressedDomainModel
from cdzoo._files import write_atomically
from cdzoo.coding.cdz_format import StreamHeader, read_header
from cdzoo.coding.rate_control import psnr
from cdzoo.images import read_image, to_pillow

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PHOTO", "DemoResult", "draw_channels", "load_photo", "run_demo", "strongest_channels"]

PHOTO = Path(__file__).parent / "assets" / "summer_palace.jpg"
"""A temple of the Summer Palace, Beijing, by Daniel Büchele, CC BY 2.0 (see ``assets/README.md``)."""

NUM_CHANNELS = 4


class DemoResult(NamedTuple):
    """Files and measurements of :func:`run_demo`.

    Attributes:
        stream: ``photo.cdz``, the compressed photograph.
        picture: ``demo.png``: the original, the decoded photograph, and four channels of its latent.
        header: the stream's header, with ``bpp`` and ``payload_bpp``.
        logits: ``(1, num_classes)``, from the stream in the file.
        psnr: PSNR of the decoded 8-bit RGB image in dB.
        channels: the latent channels in the picture, largest variance first.
        logits_seconds: time of stream -> latent -> logits, median of several runs after a warm-up.
        pixels_seconds: time of stream -> latent -> pixels, likewise.
        num_threads: threads that torch used.
    """

    stream: Path
    picture: Path
    header: StreamHeader
    logits: Tensor
    psnr: float
    channels: tuple[int, ...]
    logits_seconds: float
    pixels_seconds: float
    num_threads: int


def load_photo(size: int | None = None) -> Tensor:
    """The center square of the packaged photograph, ``(1, 3, H, H)`` in ``[0, 1]``.

    Args:
        size: its side in pixels, after resizing (antialiased bilinear); ``None`` leaves it at 427.

    Raises:
        ValueError: ``size`` is less than 1.
    """
    if size is not None:
        check_size("size", size)
    photo = read_image(PHOTO)
    height, width = photo.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    photo = photo[..., top : top + side, left : left + side]
    if size is not None:
        photo = F.interpolate(photo, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return (photo * 255).round() / 255


def run_demo(
    network: CompressedDomainModel, directory: str | os.PathLike[str], *, size: int | None = None, repeats: int = 5
) -> DemoResult:
    """Compress the photograph, classify it from its stream, decode it once, and draw a picture of all three.

    Only the center square is used, because the network's transform resizes every latent to a square; the whole 640x427
    photograph would be squeezed by a third.

    Args:
        network: a codec and a classifier of its latents, from :func:`cdzoo.compose`.
        directory: output folder for ``photo.cdz`` and ``demo.png``, which are replaced if they exist.
        size: side in pixels to which the square is resized; ``None`` keeps the photograph's own resolution.
        repeats: number of timed runs; the median is reported.

    Raises:
        OSError: the directory cannot be written.
        ValueError: ``size`` or ``repeats`` is less than 1.
    """
    check_size("repeats", repeats)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    codec, photo = network.codec, load_photo(size)
    stream, picture = directory / "photo.cdz", directory / "demo.png"
    write_atomically(stream, codec.compress(photo)[0])

    bits = [stream.read_bytes()]
    training = network.training
    network.eval()
    with torch.no_grad():
        logits, logits_seconds = _timed(lambda: network.from_streams(bits), repeats)
    network.train(training)
    decoded, pixels_seconds = _timed(lambda: codec.decode(codec.decompress(bits)), repeats)

    latent = codec.decompress(bits).y_hat[0].cpu()
    channels = strongest_channels(latent)
    header, quality = read_header(bits[0]), psnr(decoded.cpu(), photo)
    drawn = _draw(photo, decoded, latent, channels, header, quality)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    write_atomically(picture, buffer.getvalue())
    return DemoResult(
        stream, picture, header, logits, quality, channels, logits_seconds, pixels_seconds, torch.get_num_threads()
    )


def _timed(function: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    """A function's result, and the median of its times after a first call."""
    result = function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function().sum().item()  # waits for a GPU to finish
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def strongest_channels(latent: Tensor) -> tuple[int, ...]:
    """Numbers of the four channels of a latent ``(M, h, w)`` that vary most, largest variance first."""
    variances = latent.flatten(1).var(1, unbiased=False)
    return tuple(int(c) for c in variances.topk(min(NUM_CHANNELS, len(latent))).indices)


# -- the picture -------------------------------------------------------------------------------------------------

_MARGIN, _CAPTION, _FONT = 16, 48, 15


def _draw(
    photo: Tensor, decoded: Tensor, latent: Tensor, channels: Sequence[int], header: StreamHeader, quality: float
) -> Image.Image:
    """Draw original, decoded photograph and latent channels side by side, with captions."""
    from PIL import Image, ImageDraw, ImageFont

    side = max(int(photo.shape[-1]), 400)
    panels: list[tuple[Image.Image, str]] = [
        (to_pillow(photo), f"original, {header.image_size[1]}x{header.image_size[0]}"),
        (to_pillow(decoded), f"decoded from {header.num_bytes:,} bytes\n{header.bpp:.3f} bpp, PSNR {quality:.1f} dB"),
        (
            draw_channels(latent, channels, side),
            "input of the network instead: four of the latent's\n"
            f"{len(latent)} channels ({', '.join(map(str, channels))}), "
            f"{latent.shape[2]}x{latent.shape[1]} values each",
        ),
    ]
    width = len(panels) * (side + _MARGIN) + _MARGIN
    canvas = Image.new("RGB", (width, side + 2 * _MARGIN + _CAPTION), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT)
    for i, (panel, caption) in enumerate(panels):
        left = _MARGIN + i * (side + _MARGIN)
        resized = panel if panel.size == (side, side) else panel.resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(resized, (left, _MARGIN))
        draw.multiline_text((left, _MARGIN + side + 8), caption, fill="black", font=font, spacing=4)
    return canvas


def draw_channels(latent: Tensor, channels: Sequence[int], side: int) -> Image.Image:
    """Draw channels of a latent in rows of two.

    Zero is mid-gray, and each channel's largest magnitude is black or white.

    Args:
        latent: ``(M, h, w)``.
        channels: numbers of at most four channels.
        side: side of the picture in pixels; each channel is stretched to a square.
    """
    from PIL import Image

    square = Image.new("RGB", (side, side), "white")
    tile = (side - 4) // 2
    for i, channel in enumerate(channels):
        values = latent[channel]
        gray = 0.5 + values / (2 * values.abs().max().clamp(min=1e-9))
        image = to_pillow(gray.expand(3, -1, -1)).resize((tile, tile), Image.Resampling.NEAREST)
        square.paste(image, ((i % 2) * (side - tile), (i // 2) * (side - tile)))
    return square
