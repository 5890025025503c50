"""Sparsity of latents: the share of channels that carry values, of Deng and Karam's figure 2, as numbers.

    python -m studies.sparsity --data imagenette --codecs Choi2019_Weights.DEFAULT runs/zoo/codec-low/codec --limit 400

For each codec, over held-out images: the share of latent values that are zero; the shares of channels in which all of
an image's values are zero, and of those in which less than a twentieth is not (means over images); and the share of all
variance that the best eighth of the channels has, ranked as in 3.4.4 of Wang et al.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from codec_training import named_codec
from data import Images, batches, list_classes, thinned, whole
from training import write_text


@torch.no_grad()
def measure(source: str, images: Images) -> dict[str, Any]:
    """The figures of one codec."""
    codec = named_codec(source)
    zeros, silent, empty, count = 0.0, 0.0, 0.0, 0
    variance = torch.zeros(codec.latent_channels, dtype=torch.float64)
    for x, _ in batches(images, 16):
        y_hat = codec.encode(x).y_hat.double()
        zero = y_hat == 0
        zeros += float(zero.double().mean((1, 2, 3)).sum())
        filled = 1 - zero.double().mean((2, 3))
        silent += float((filled == 0).double().mean(1).sum())
        empty += float((filled < 0.05).double().mean(1).sum())
        variance += y_hat.var((2, 3), correction=0).sum(0)
        count += len(x)
    best = variance.sort(descending=True).values[: codec.latent_channels // 8]
    folder = Path(source)
    return {
        "codec": codec.name,
        "setting": folder.parent.name if folder.is_dir() else source.rpartition("_Weights.")[2],
        "fingerprint": codec.fingerprint,
        "channels": codec.latent_channels,
        "zero_values": round(zeros / count, 4),
        "silent_channels": round(silent / count, 4),
        "empty_channels": round(empty / count, 4),
        "variance_of_best_eighth": round(float(best.sum() / variance.sum()), 4),
        "images": count,
    }


def main() -> None:
    """Measure each codec."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--codecs", nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sparsity.json")
    args = parser.parse_args()
    images = Images(thinned(list_classes(args.data)[1]["val"], args.limit), whole(224))
    rows = [measure(source, images) for source in args.codecs]
    write_text(args.out, "[\n" + ",\n".join(f" {json.dumps(row)}" for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
