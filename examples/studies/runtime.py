"""Count multiply-adds and measure run times of networks for an image of 224 pixels.

    python -m studies.runtime
    python -m studies.runtime --device cuda --batch 256
    python -m studies.runtime --paper deng2023

All networks have the published size and random weights. ``torfason2018`` (figures 6 and 12) is the codec of 0.098 bits
per pixel with 8 latent channels and its networks; the paper measures batches of 256 on a GPU. ``deng2023`` (table 2) is
a hyperprior of 128 and 192 channels, FA-cResNet-39 and ResNet-50, with the time from bits to a latent (``reading``) and
from bits to pixels (``decoding``); the paper measures single images on a device that it does not name.

All networks take turns in each round, and the median over rounds counts: CPU time of one thread, or wall-clock time on
a device, in float32 (with TF32 in convolutions, PyTorch's default).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training import write_text

import cdzoo
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent

from .cost import count_of
from .reports import now

RESULTS = Path(__file__).resolve().parent / "results"
LATENTS = ("cresnet39", "cresnet51", "cresnet72")
PIXELS = ("resnet50", "resnet71")


def works(size: int, batch: int, device: str, **codec: int) -> dict[str, Callable[[], Tensor]]:
    """The measured functions by name: networks on their input, and the decoder."""
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
def works_deng(size: int, batch: int, device: str, **codec: int) -> dict[str, Callable[[], Any]]:
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


PAPERS: dict[str, Callable[..., dict[str, Callable[[], Any]]]] = {"torfason2018": works, "deng2023": works_deng}
BATCHES = {"torfason2018": 8, "deng2023": 1}


@torch.no_grad()
def measure(
    paper: str = "torfason2018",
    size: int = 224,
    batch: int | None = None,
    rounds: int = 9,
    device: str = "cpu",
    **codec: int,
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
    parser.add_argument("--paper", default="torfason2018", choices=PAPERS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="images at a time; default: 8 for torfason2018, 1 for deng2023")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = (
        "runtime" + ("" if args.paper == "torfason2018" else "-002") + ("" if args.device == "cpu" else "-accelerator")
    )
    rows = measure(args.paper, batch=args.batch, device=args.device)
    write_text(args.out or RESULTS / f"{name}.json", json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
