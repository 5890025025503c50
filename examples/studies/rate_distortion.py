"""Measure rate and distortion of codecs, JPEG, JPEG 2000, WebP and AVIF on a folder of photographs.

    python -m studies.rate_distortion --test kodak                                   # packaged codecs, all formats
    python -m studies.rate_distortion --test kodak --codecs FOLDER --no-formats      # adds a codec to the same file

Each point is one setting of a codec: the mean rate, PSNR and MS-SSIM over the photographs. Rates count whole files:
``.cdz`` streams with their headers, and files of Pillow without metadata. JPEG has optimized Huffman tables and 4:2:0,
JPEG 2000 is irreversible at a given compression ratio, WebP and AVIF have a quality (AVIF at speed 6). The packaged
codecs are small and were trained for minutes, on photographs that were JPEG files. An existing output file keeps the
points that are not measured again.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from codec_training import named_codec
from data import images_below, read
from evaluation import measure_codec, psnr, similarity
from PIL import Image, features
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm
from training import Run, write_text

import cdzoo

FORMATS: dict[str, tuple[str, dict[str, Any], str, tuple[float, ...]]] = {
    "JPEG": ("JPEG", {"optimize": True, "subsampling": "4:2:0"}, "quality", (4, 8, 12, 18, 25, 40, 60, 80)),
    "JPEG 2000": (
        "JPEG2000",
        {"irreversible": True, "mct": 1, "quality_mode": "rates"},
        "quality_layers",
        (240, 160, 96, 64, 40, 24, 16),
    ),
    "WebP": ("WEBP", {"method": 6}, "quality", (0, 5, 15, 30, 50, 75)),
    "AVIF": ("AVIF", {"speed": 6}, "quality", (5, 15, 25, 35, 45, 55)),
}
"""Pillow's name of the format, what stays, what varies, and its values from small files to large ones."""
LARGEST_BPP = 1.2
"""Right end of the plot."""


def coded(image: Image.Image, name: str, value: float) -> bytes:
    """One photograph in one of :data:`FORMATS`."""
    kind, fixed, varied, _ = FORMATS[name]
    buffer = io.BytesIO()
    image.save(buffer, kind, **fixed, **{varied: [value] if varied == "quality_layers" else value})
    return buffer.getvalue()


def measure_format(files: list[Path], name: str) -> Iterator[dict[str, Any]]:
    """A point for each setting of a format."""
    for value in FORMATS[name][3]:
        rows = []
        for file in files:
            x = read(file)[None] / 255
            with Image.open(file) as image:
                data = coded(image.convert("RGB"), name, value)
            with Image.open(io.BytesIO(data)) as again:
                x_hat = TF.pil_to_tensor(again.convert("RGB"))[None] / 255
            rows.append({"bpp": 8 * len(data) / x[0, 0].numel(), "psnr": float(psnr(x_hat, x)), **similarity(x_hat, x)})
        yield {"codec": name, "setting": value, **_mean(rows)}


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0]} | {"images": len(rows)}


def measure_named(run: Run, source: str, files: list[Path]) -> dict[str, Any]:
    """The point of one learned codec, by the name of its weights or its folder."""
    codec = named_codec(source)
    found: dict[str, Any] = measure_codec(run, codec, files)
    found["bpp"], setting = found.pop("bpp_real"), source.rpartition("_Weights.")[2]
    if Path(source).is_dir():
        folder = Path(source)
        setting = folder.parent.name if folder.name in ("codec", "final", "icat") else folder.name
    return {"codec": codec.name, "setting": setting, "fingerprint": codec.fingerprint, **found}


def plot(points: list[dict[str, Any]], picture: Path) -> None:
    """Draw PSNR and MS-SSIM (in decibels) over the rate, of codecs that have a point at a rate of the plot."""
    from matplotlib.figure import Figure

    points = [p for p in points if any(q["codec"] == p["codec"] and q["bpp"] <= LARGEST_BPP for q in points)]
    figure = Figure(figsize=(6.4, 8), layout="constrained")
    decibels: Callable[[float], float] = lambda v: float(-10 * torch.log10(torch.tensor(1 - v, dtype=torch.float64)))  # noqa: E731
    panels = (("psnr", "PSNR (dB)", float), ("ms_ssim", "MS-SSIM, -10 log10(1 - x) (dB)", decibels))
    for axes, (metric, label, scale) in zip(figure.subplots(2, 1), panels, strict=True):
        for codec in dict.fromkeys(point["codec"] for point in points):
            own = sorted((p["bpp"], scale(p[metric])) for p in points if p["codec"] == codec and metric in p)
            style = {"marker": "o", "linestyle": "none"} if codec not in FORMATS else {"marker": ".", "linewidth": 1}
            axes.plot(*zip(*own, strict=True), label=codec, **style)
        axes.set_xlim(0, LARGEST_BPP)
        axes.set_xlabel("bits per pixel, whole files")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Measure, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--test", type=Path, help="folder of photographs; without it, nothing is measured, only plotted")
    add("--codecs", nargs="*", help="names of weights, folders or Hub repositories; default: all that ship")
    add("--no-formats", action="store_true", help="learned codecs only")
    add("--out", type=Path, default=Path(__file__).parent / "results" / "rate_distortion.json")
    args = parser.parse_args()
    args.device, args.threads, args.seed = "cpu", 1, 0
    points = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
    if args.test:
        files = images_below(args.test)
        run = Run(argparse.Namespace(**{**vars(args), "out": args.out.parent}))
        shipped = [str(w) for name in cdzoo.list_codecs(pretrained=True) for w in cdzoo.get_model_weights(name)]
        found = [measure_named(run, s, files) for s in tqdm(shipped if args.codecs is None else args.codecs)]
        known = [n for n in FORMATS if n != "AVIF" or features.check("avif")]
        for name in tqdm([] if args.no_formats else known):
            found += measure_format(files, name)
        again = {(p["codec"], p["setting"]) for p in found}
        points = [p for p in points if (p["codec"], p["setting"]) not in again] + found
        write_text(args.out, "[\n" + ",\n".join(f" {json.dumps(point)}" for point in points) + "\n]\n")
    plot(points, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
