"""Measure the top-1 accuracy of one ImageNet network over the bits of the photographs that it reads.

    python -m studies.imagenet_bits --imagenet photographs

Photographs are resized so that their shorter side has 256 pixels, and stored in several ways: as JPEG files (Pillow,
4:2:0, optimized Huffman tables) of several qualities, and as streams of the packaged hyperprior codec at its three
rates. EfficientNet-Lite0 reads the files from their coefficients, by both stems. It reads the streams after decoding,
and from their latents. Rates count whole files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from evaluate import imagenet_files, photograph
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm
from training import write_text

import cdzoo
from cdzoo.codecs import read_jpeg
from cdzoo.codecs.hyperprior import RATES
from cdzoo.models import JPEGEfficientNetLite0_Weights, LatentEfficientNetLite0_Weights

from .rate_distortion import coded

QUALITIES = (5, 10, 18, 30, 50, 75)
STEMS = {"JPEG, stem pixels": "IMAGENET1K_PIXELS", "JPEG, stem dct": "IMAGENET1K_DCT"}
SIDE = 256
RESULTS = Path(__file__).parent / "results" / "imagenet_bits.json"
Way = Callable[[Tensor], tuple[float, Tensor]]
"""From a photograph to its bits per pixel and logits."""


def jpeg_way(model: Any, quality: int) -> Way:
    """A JPEG file, read from its coefficients."""

    def way(x: Tensor) -> tuple[float, Tensor]:
        image = TF.to_pil_image(x[0])
        data = coded(image, "JPEG", quality)
        return 8 * len(data) / (image.width * image.height), model(read_jpeg(data, transform=model.transforms))

    return way


def decoded_way(codec: Any, pixels: Any) -> Way:
    """A stream, decoded to pixels; a file of the highest quality carries them to the pixel network."""

    def way(x: Tensor) -> tuple[float, Tensor]:
        [stream] = codec.compress(x)
        x_hat = codec.decode(codec.decompress([stream])).clamp(0, 1)
        exact = cdzoo.codecs.encode_jpeg(x_hat, quality=100, subsampling="4:4:4")
        return cdzoo.codecs.read_header(stream).bpp, pixels(pixels.transforms(exact))

    return way


def latent_way(composed: Any) -> Way:
    """A stream, read from its latents."""

    def way(x: Tensor) -> tuple[float, Tensor]:
        [stream] = composed.codec.compress(x)
        return cdzoo.codecs.read_header(stream).bpp, composed.from_streams([stream])

    return way


def ways() -> Iterator[tuple[str, str, Way]]:
    """Yield series, setting and way."""
    models = {
        name: cdzoo.models.jpeg_efficientnet_lite0(weights=JPEGEfficientNetLite0_Weights[member]).eval()
        for name, member in STEMS.items()
    }
    for name, model in models.items():
        for quality in QUALITIES:
            yield name, f"quality {quality}", jpeg_way(model, quality)
    for member in RATES:
        codec = cdzoo.get_codec("bmshj2018_hyperprior", weights=member).eval()
        yield "hyperprior, decoded", member.name, decoded_way(codec, models["JPEG, stem pixels"])
    for weights in LatentEfficientNetLite0_Weights:
        network = cdzoo.compose(weights.build_codec(), cdzoo.models.latent_efficientnet_lite0(weights=weights).eval())
        setting = weights.name.replace("IMAGENET1K", "IMAGENETTE")  # the codec's
        yield "hyperprior, latents", setting, latent_way(network)


@torch.inference_mode()
def measure(files: Sequence[tuple[Path, int]]) -> list[dict[str, Any]]:
    """A point for each way, of means over the photographs."""
    points: list[dict[str, Any]] = []
    for series, setting, way in ways():
        rates, right = 0.0, 0
        for path, label in tqdm(files, leave=False):
            bpp, logits = way(photograph(path, SIDE))
            rates, right = rates + bpp, right + int(logits.argmax() == label)
        figures = {"bpp": round(rates / len(files), 4), "top1": round(100 * right / len(files), 2)}
        points.append({"series": series, "setting": setting, **figures, "images": len(files)})
        print(points[-1], flush=True)
    return points


def plot(points: Sequence[dict[str, Any]], picture: Path) -> None:
    """Accuracy over bits, a line for each series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for series in dict.fromkeys(point["series"] for point in points):
        found = sorted((p["bpp"], p["top1"]) for p in points if p["series"] == series)
        axes.plot(*zip(*found, strict=True), marker="o", markersize=5, label=series)
    axes.set_xlabel("bits per pixel, whole files")
    axes.set_ylabel(f"top-1 (%) of {points[0]['images']} photographs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Measure, and write the raw file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet", type=Path, required=True, help="photographs, named as evaluate.py expects")
    parser.add_argument("--every", type=int, default=1, help="measure every so many photographs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    write_text(args.out, json.dumps(measure(imagenet_files(args.imagenet)[:: args.every]), indent=1) + "\n")


if __name__ == "__main__":
    main()
