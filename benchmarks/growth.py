"""Cost of reading one image as images grow, in one thread: JPEG files, and streams of a learned codec.

cdzoo stops at coefficients and at latents, where its networks start; the peers go on to pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jpeg_reading import pillow_decode, torchvision_decode
from learned_codecs import Pair, coded, pair
from measuring import Options, Row, compare, torch_threads
from pictures import bits_per_pixel, images, jpeg_files

from cdzoo.codecs import read_jpeg

GROUP = "growth"
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
LONGEST = 10.0
"""Seconds of one call of a peer beyond which a size is left out."""


def jpeg(size: int, options: Options) -> Row:
    """One JPEG file."""
    (data,) = files = jpeg_files((size, size), 1, options.photo)
    tasks = {
        "cdzoo": lambda: read_jpeg(data),
        "torchvision": lambda: torchvision_decode(data),
        "Pillow": lambda: pillow_decode(data),
    }
    return compare(GROUP, _case("JPEG", size, files), tasks, options)


def learned(codecs: Pair, size: int, expected: float, options: Options) -> Row:
    """One image of the hyperprior codec that ships; without the peer where that is expected to take too long."""
    x = images((size, size), 1, options.photo)
    if expected > LONGEST:
        streams = codecs.ours.compress(x)
        tasks = {"cdzoo": lambda: codecs.ours.decompress(streams)}
        skipped = {"CompressAI": f"about {expected:.0f} s a call expected"}
        return compare(GROUP, _case(".cdz", size, streams), tasks, options, skipped=skipped)
    streams, packed = coded(codecs, x)
    tasks = {
        "cdzoo": lambda: codecs.ours.decompress(streams),
        "CompressAI": lambda: codecs.theirs.decompress(**packed)["x_hat"],
    }
    return compare(GROUP, _case(".cdz", size, streams), tasks, options)


def _case(source: str, size: int, files: list[bytes]) -> dict[str, str | int | float]:
    bits = bits_per_pixel(files, (size, size))
    return {"from": source, "size": size, "batch": 1, "threads": 1, "bits per pixel": bits}


@torch.no_grad()
def rows(options: Options) -> Iterator[Row]:
    """All of this group."""
    sizes = SIZES[:2] if options.quick else SIZES
    with torch_threads(1):
        for size in sizes:
            yield jpeg(size, options)
        codecs, expected = pair(), 0.0
        for size in sizes:
            found = learned(codecs, size, expected, options)
            if "CompressAI" in found.peers:
                expected = 4 * found.peers["CompressAI"].value / 1e3  # the next size has four times the pixels
            else:
                expected *= 4
            yield found
