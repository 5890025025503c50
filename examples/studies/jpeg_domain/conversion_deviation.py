"""Table 1: what conversion to the JPEG domain changes, on real files.

    python -m studies.jpeg_domain.conversion_deviation --data cifar10 --weights runs/seed*/classifier

Every network is run on pixels and in its JPEG-domain forms. Three comparisons, which the paper's table does not tell
apart:

linear     pixels by the linear decode (no rounding, no clamping). Here the forms are exact, to rounding.
libjpeg    pixels by libjpeg-turbo (Pillow): rounded, clamped, with "fancy" upsampling of chroma. Here they are not.
lossless   images that were never compressed, as coefficients that are not integers, the paper's own inputs:
           ``--lossless`` is a folder or a tar of PNG files, each a 32x32 image or a batch of one image per row
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ehrlich2019 import logits_of_image
from jpeg_files import Split, add_data_arguments, load, take
from PIL import Image
from torch import Tensor

from cdzoo.codecs import decode_jpeg
from cdzoo.jpeg.planes import LEVEL_SHIFT, color_matrix
from cdzoo.models.jpeg_resnet import JPEGResNetSmall, jpeg_resnet_small
from cdzoo.ops import blockify, dct2d
from cdzoo.types import JPEGCoefficients

from ..reports import write_report
from . import RESULTS


def logits_of_pixels(model: JPEGResNetSmall, x: Tensor) -> Tensor:
    """The pixel network: RGB ``(B, 3, H, W)`` in [0, 1] to logits."""
    mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (model.entrance.mean, model.entrance.std))
    return logits_of_image(model, (x - mean) / std)


def libjpeg_pixels(files: list[Path]) -> Tensor:
    """RGB ``(B, 3, H, W)`` in [0, 1] as libjpeg-turbo decodes it."""
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


def read_lossless(path: Path) -> Tensor:
    """RGB ``(N, 3, 32, 32)`` in [0, 1] from the PNG files of a folder or a tar."""
    if path.is_dir():
        contents = [file.read_bytes() for file in sorted(path.rglob("*.png"))]
    else:
        with tarfile.open(path) as archive:
            members = sorted((m for m in archive if m.name.endswith(".png")), key=lambda m: m.name)
            contents = [archive.extractfile(m).read() for m in members]  # type: ignore[union-attr]
    images = [np.asarray(Image.open(io.BytesIO(c)).convert("RGB")).reshape(-1, 32, 32, 3) for c in contents]
    return torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2) / 255


def lossless_coefficients(x: Tensor) -> JPEGCoefficients:
    """Coefficients of YCbCr without subsampling that are not rounded, with quantization tables of ones."""
    to_ycbcr = torch.linalg.inv(torch.tensor(color_matrix("ycbcr", 3), dtype=torch.float64)).to(x.dtype)
    shifted = torch.einsum("ij,bjhw->ibhw", to_ycbcr, x - LEVEL_SHIFT) * 255
    planes = tuple(dct2d(blockify(component)) for component in shifted)
    tables = torch.ones(len(x), 3, 8, 8, dtype=torch.int32)
    return JPEGCoefficients(planes, tables, ((1, 1),) * 3, (x.shape[2], x.shape[3]), "ycbcr")


class Comparison:
    """Sums over batches of how two logits of the same files differ."""

    def __init__(self) -> None:
        self.files, self.changed, self.right, self.total, self.worst = 0, 0, [0, 0], 0.0, 0.0

    def add(self, ours: Tensor, pixels: Tensor, labels: Tensor | None = None) -> None:
        """Counts one batch of logits ``(B, classes)``."""
        self.files += len(ours)
        self.changed += int((ours.argmax(1) != pixels.argmax(1)).sum())
        self.total += float((ours - pixels).abs().mean(1).sum())
        self.worst = max(self.worst, float((ours - pixels).abs().max()))
        if labels is not None:
            self.right[0] += int((pixels.argmax(1) == labels).sum())
            self.right[1] += int((ours.argmax(1) == labels).sum())

    def result(self) -> dict[str, Any]:
        """Accuracies (where there were labels), share of other decisions, and differences between logits."""
        found = {"files": self.files, "changed_decisions": self.changed}
        if any(self.right):
            found |= {"top1_pixels": 100 * self.right[0] / self.files, "top1_jpeg": 100 * self.right[1] / self.files}
        return found | {"mean_logit_difference": self.total / self.files, "largest_logit_difference": self.worst}


@torch.no_grad()
def compare(
    model: JPEGResNetSmall, pixel_model: JPEGResNetSmall, data: Split, pixels: Callable[[Split], Tensor], batch: int
) -> dict[str, Any]:
    """``model`` on coefficients against ``pixel_model`` on what ``pixels`` makes of the same files."""
    found = Comparison()
    for start in range(0, len(data), batch):
        part = slice(start, start + batch)
        files = Split(take(data.coefficients, part), data.labels[part], data.files[part])
        found.add(model(files.coefficients), logits_of_pixels(pixel_model, pixels(files)), files.labels)
    return found.result()


def main(arguments: list[str] | None = None) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="folders that the recipe wrote")
    parser.add_argument("--lossless", type=Path, help="folder or tar of PNG files")
    parser.add_argument("--explicit-files", type=int, default=100, help="explicit maps take 3 GB at width 1; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS / "conversion_deviation.json")
    parser.add_argument("--quick", action="store_true", help="40 files, one network, no explicit form")
    args = parser.parse_args(arguments)
    if args.quick:
        args.limit, args.explicit_files, args.weights = args.limit or 40, 0, args.weights[:1]

    val = load(args.data, "val", cache=args.cache, limit=args.limit)
    rows: list[dict[str, Any]] = []

    def linear(files: Split) -> Tensor:
        return decode_jpeg(files.coefficients, clamp=False, chroma="nearest")

    def note(network: int, against: str, form: str, found: dict[str, Any]) -> None:
        rows.append({"network": network, "against": against, "form": form, **found})
        print(rows[-1], flush=True)

    for i, folder in enumerate(args.weights):
        pixel_model = jpeg_resnet_small(weights=folder).eval()
        forms = {mode: jpeg_resnet_small(weights=folder, mode=mode).eval() for mode in ("fused", "factored")}
        for mode, model in forms.items():
            note(i, "linear", mode, compare(model, pixel_model, val, linear, 200))
        for chroma in ("nearest", "fancy"):
            model = jpeg_resnet_small(weights=folder, chroma=chroma).eval()
            found = compare(model, pixel_model, val, lambda files: libjpeg_pixels(files.files), 200)
            note(i, "libjpeg", f"fused, {chroma} chroma", found)
        if args.lossless is not None:
            images = read_lossless(args.lossless)[: args.limit]
            found = Comparison()
            with torch.no_grad():
                for x in images.split(200):
                    found.add(forms["factored"](lossless_coefficients(x)), logits_of_pixels(pixel_model, x))
            note(i, "lossless", "factored", found.result())
    few = slice(args.explicit_files)
    some = Split(take(val.coefficients, few), val.labels[few], val.files[few])
    if len(some):
        model = jpeg_resnet_small(weights=args.weights[0], mode="explicit").eval()
        pixel_model = jpeg_resnet_small(weights=args.weights[0]).eval()
        note(0, "linear", "explicit", compare(model, pixel_model, some, linear, 20))
    write_report(args.out, {"rows": rows})


if __name__ == "__main__":
    main()
