"""Correlation of a latent's log-variance with its entropy: figure 2 of Wang et al. (WACV 2022), on Kodak.

    python -m studies.entropy_correlation --data kodak --codec BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64 \
        --codec Choi2019_Weights.IMAGENETTE_N48_M64 --out studies/results/entropy_correlation.json

Each image gives one point per codec and reading of the paper, ``log(variance)`` against entropy in bits per element:

* ``whole``: ``gaussian_entropy_loss(y_hat)`` and ``discrete_entropy(y_hat)``, one variance and one histogram for all
  elements of a latent. This is what the paper's formula says, and what it trains with.
* ``maps``: both of each feature map (channel) by itself, averaged over those that have more than one value.

``--out`` gets the points and Pearson's r of each codec, and beside it a plot, with the line on which latents would lie
that are Gaussian with a deviation of many steps: ``H = (log(variance) + log(2 pi e)) / (2 log 2)``.

"Their linear correlation is close to 99%", the paper says of the features of Kodak. It leaves open what a point of the
figure is (an image, or a feature map), which of its four codecs it shows, or whether all at once (rates lie far apart,
so that they correlate better together than each alone: ``pooled``), and whether the variance is that from before or
after quantization. Here it is after it, for the paper's ``z`` is what is entropy coded; in training it is before. The
base of the logarithm and the unit of entropy do not matter to Pearson's r.

A codec that was trained with another rate term has no reason to make the whole of its latent one Gaussian: a channel
that holds the brightness has most of the variance and few of the bits, and ``whole`` tells little, while ``maps`` still
does. Codecs that add real-valued means to their symbols, such as ``mbt2018_mean``, have no histogram to speak of.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.ops import discrete_entropy, gaussian_entropy_loss

IMAGES = (".bmp", ".jpg", ".jpeg", ".png", ".webp")
READINGS = {"whole": "One Gaussian for the latent", "maps": "One for each feature map, averaged"}


def load_codec(name: str) -> Codec:
    """A codec by the name of its weights, or from a folder or repository."""
    if "_Weights." in name and not Path(name).exists():
        return cdzoo.get_weight(name).build_codec()
    codec = cdzoo.from_pretrained(name)
    if not isinstance(codec, Codec):
        raise SystemExit(f"{name} holds a {type(codec).__name__}, not a codec.")
    return codec


def measure(y_hat: Tensor) -> dict[str, Any]:
    """Logarithm of the variance, and bits per element, of one latent ``(1, M, h, w)`` in both readings."""
    maps = y_hat[0][y_hat[0].flatten(1).std(1, correction=0) > 0]
    pairs = {
        "whole": (gaussian_entropy_loss(y_hat), discrete_entropy(y_hat)),
        "maps": (gaussian_entropy_loss(maps), discrete_entropy(maps[None], per_channel=True)),
    }
    return {reading: [round(float(value), 5) for value in pair] for reading, pair in pairs.items()}


def pearson(points: list[dict[str, Any]]) -> dict[str, float]:
    """The linear correlation of both quantities, for each reading."""
    columns = {reading: np.array([point[reading] for point in points]).T for reading in READINGS}
    return {reading: round(float(np.corrcoef(pairs)[0, 1]), 4) for reading, pairs in columns.items()}


def draw(series: list[dict[str, Any]], path: Path) -> None:
    """One panel per reading, one color per codec."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, (reading, title) in zip(panels, READINGS.items(), strict=True):
        ends = []
        for entry in series:
            x, y = zip(*(point[reading] for point in entry["points"]), strict=True)
            axes.plot(x, y, "o", markersize=4, label=f"{entry['codec']}, r = {entry['pearson'][reading]:.3f}")
            ends += [min(x), max(x)]
        line = np.array([min(ends), max(ends)])
        gaussian = (line + np.log(2 * np.pi * np.e)) / (2 * np.log(2))
        axes.plot(line, gaussian, "--", color="gray", linewidth=1, label="Gaussian, fine steps")
        axes.set(title=title, xlabel="log of the variance", ylabel="entropy, bits per element")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument("--codec", action="append", required=True, help="name of weights, or folder; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the plot lies beside it")
    args = parser.parse_args()
    files = sorted(f for f in args.data.rglob("*") if f.suffix.lower() in IMAGES)
    if len(files) < 2:
        raise SystemExit(f"{args.data} has {len(files)} images, and a correlation takes at least two.")
    series = []
    for name in args.codec:
        codec, points = load_codec(name), []
        for file in tqdm(files, desc=codec.name):
            x = pil_to_tensor(Image.open(file).convert("RGB"))[None] / 255
            points.append({"image": file.relative_to(args.data).as_posix(), **measure(codec.encode(x).y_hat)})
        weights = name if "_Weights." in name else None
        facts = {"codec": codec.name, "weights": weights, "fingerprint": codec.fingerprint}
        series.append({**facts, "pearson": pearson(points), "points": points})
        print(f"{codec.name} {codec.fingerprint}: r = {series[-1]['pearson']}")
    result: dict[str, Any] = {"paper": 0.99, "images": len(files)}
    if len(series) > 1:
        result["pooled"] = pearson([point for entry in series for point in entry["points"]])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**result, "series": series}, indent=1) + "\n", encoding="utf-8")
    draw(series, args.out.with_suffix(".png"))


if __name__ == "__main__":
    with torch.no_grad():
        main()
