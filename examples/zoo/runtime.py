"""What 001's and 002's networks compute for an image of 224 pixels, and how long that takes: figures 6 and 12; table 2.

    runtime.py
    runtime.py --device cuda --batch 256
    runtime.py --paper 002

At the published sizes, with random weights: 001's codec of 0.098 bits per pixel with its 8 latent channels and its
networks; a hyperprior of 128 and 192 channels, FA-cResNet-39 and ResNet-50, with the time from bits to a latent
(``reading``) and to pixels (``decoding``). Each time is the median over rounds in which all take turns: of CPU times in
one thread, or of times on the wall of a device, in 32 bits (TF32 in convolutions, which is PyTorch's default). 001's
times are of a GPU and batches of 256, 002's of single images on a device that it does not name.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jpeg_resnet_paper"))

import torch
from cost import count_of
from reports import now
from torch import Tensor
from training import write_text

import cdzoo
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent

RESULTS = Path(__file__).resolve().parent / "results"
LATENTS = ("cresnet39", "cresnet51", "cresnet72")
PIXELS = ("resnet50", "resnet71")


def works(size: int, batch: int, device: str, **codec: int) -> dict[str, Callable[[], Tensor]]:
    """What is measured, by name: networks on what they read, and the decoder."""
    torch.manual_seed(0)
    net = cdzoo.codecs.torfason2018(**{"latent_channels": 8, **codec}).eval().to(device)
    images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    latent = net.encode(images)
    y_hat = latent.y_hat.contiguous(memory_format=torch.channels_last)
    found: dict[str, Callable[[], Tensor]] = {"decoder": lambda: net.decode(Latent(y_hat, None, latent.image_size))}
    sizes = {"in_channels": net.latent_channels, "latent_stride": net.stride}
    for name in (*LATENTS, *PIXELS):
        model = cdzoo.get_model(name, **sizes if name in LATENTS else {})
        model.eval().to(device, memory_format=torch.channels_last)
        found[name] = functools.partial(model, y_hat if name in LATENTS else images)
    return found


@torch.no_grad()
def works_002(size: int, batch: int, device: str, **codec: int) -> dict[str, Callable[[], Any]]:
    """Likewise, with what it takes to get from bits to a latent, and to pixels."""
    torch.manual_seed(0)
    net = cdzoo.codecs.bmshj2018_hyperprior(**{"N": 128, "M": 192, **codec}).eval().to(device)
    images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    streams = net.compress(images)
    latent = LatentTransform(size=(28, 28))(net.decompress(streams))
    ours = cdzoo.models.fa_cresnet39(in_channels=net.latent_channels, latent_stride=net.stride)
    rival = cdzoo.models.resnet50(stride_in_1x1=False)
    for model in (ours, rival):
        model.eval().to(device, memory_format=torch.channels_last)
    return {
        "reading": lambda: net.decompress(streams),
        "decoding": lambda: net.decode(net.decompress(streams)),
        "fa_cresnet39": functools.partial(ours, latent.y_hat, latent.scales),
        "resnet50": functools.partial(rival, images),
    }


PAPERS: dict[str, Callable[..., dict[str, Callable[[], Any]]]] = {"001": works, "002": works_002}
BATCHES = {"001": 8, "002": 1}


@torch.no_grad()
def measure(
    paper: str = "001", size: int = 224, batch: int | None = None, rounds: int = 9, device: str = "cpu", **codec: int
) -> list[dict[str, Any]]:
    """Giga multiply-adds and milliseconds of each, for one image."""
    batch = batch or BATCHES[paper]
    todo = PAPERS[paper](size, batch, device, **codec)
    times: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(1 + rounds):
        for name, work in todo.items():
            start = now(device)
            work()
            if turn:  # the first is to warm up
                times[name].append((now(device) - start) / batch)
    return [
        {
            "network": name,
            "reads": "pixels" if name in PIXELS else "bits" if name in ("reading", "decoding") else "latents",
            "gmacs": round(count_of(work)[""] / batch, 4),
            "milliseconds": round(1e3 * statistics.median(times[name]), 2 if device == "cpu" else 4),
            "batch": batch,
            **({"device": torch.cuda.get_device_name(device)} if device != "cpu" else {}),
        }
        for name, work in todo.items()
    ]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", default="001", choices=PAPERS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="images at a time; default: 8 for 001, 1 for 002")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = (
        "runtime" + ("" if args.paper == "001" else f"-{args.paper}") + ("" if args.device == "cpu" else "-accelerator")
    )
    rows = measure(args.paper, batch=args.batch, device=args.device)
    write_text(args.out or RESULTS / f"{name}.json", json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
