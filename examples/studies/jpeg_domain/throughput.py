"""Figure 5: images per second of every form, from files to logits, for inference and for training.

    python -m studies.jpeg_domain.throughput --data cifar10 --weights runs/seed0/classifier

The rivals are the same network on pixels, behind libjpeg-turbo as torchvision and as Pillow call it. All start from the
bytes of the files in memory, 40 at a time as in the paper, in one thread (set ``OMP_NUM_THREADS=1``). Every round runs
each form once, in turn; the medians of the processor times are compared, which a busy machine disturbs less than the
time on the wall. With ``--device cuda`` files are still read by one thread of the CPU, networks run on the device, and
times are on the wall, until the logits are back.
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from data import JPEG, list_classes
from jpeg_files import add_data_arguments
from PIL import Image
from torch import Tensor, nn
from torchvision.io import decode_jpeg

from cdzoo.codecs import read_jpeg
from cdzoo.models.jpeg_resnet import JPEGResNetSmall, jpeg_resnet_small
from cdzoo.types import JPEGCoefficients

from ..reports import now, write_report
from . import RESULTS
from .block_relu import approximated
from .conversion_deviation import logits_of_pixels


def torchvision_pixels(files: list[bytes], device: str = "cpu") -> Tensor:
    """RGB ``(B, 3, H, W)`` in [0, 1], channels last."""
    images = [decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)) for data in files]
    return torch.stack(images).to(device).contiguous(memory_format=torch.channels_last) / 255


def pillow_pixels(files: list[bytes], device: str = "cpu") -> Tensor:
    """RGB ``(B, 3, H, W)`` in [0, 1], channels last."""
    images = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files])
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2) / 255


def coefficients(files: list[bytes], device: str = "cpu") -> JPEGCoefficients:
    """Coefficients of all files, quantized as they are."""
    return read_jpeg(files, num_threads=1).to(device)


def forms(
    weights: Path, *, explicit: bool, device: str = "cpu"
) -> dict[str, tuple[nn.Module, Callable[[list[bytes]], Tensor]]]:
    """Name to the network and what takes files to its logits; each has parameters of its own."""

    def network(mode: str = "fused", **options: Any) -> JPEGResNetSmall:
        model = jpeg_resnet_small(weights=weights, mode=mode, **options).to(device)
        return model.to(memory_format=torch.channels_last) if mode == "fused" else model

    found: dict[str, tuple[nn.Module, Callable[[list[bytes]], Tensor]]] = {}
    for name, decode in (("pixels, torchvision", torchvision_pixels), ("pixels, Pillow", pillow_pixels)):
        model = network()
        found[name] = (model, lambda files, m=model, d=decode: logits_of_pixels(m, d(files, device)))
    fused, asm = network(), approximated(network(), "asm", 8)
    found["JPEG, fused"] = (fused, lambda files: fused(coefficients(files, device)))
    found["JPEG, fused, ASM"] = (asm, lambda files: asm(coefficients(files, device)))
    modes: dict[str, dict[str, Any]] = {
        "JPEG, factored": {"mode": "factored"},
        "JPEG, factored, ASM": {"mode": "factored", "relu": "asm", "num_frequencies": 8},
    }
    if explicit:
        modes["JPEG, explicit"] = {"mode": "explicit"}
    for name, options in modes.items():
        model = network(**options)
        found[name] = (model, lambda files, m=model: m(coefficients(files, device)))
    return found


def infer(model: nn.Module, logits: Callable[[list[bytes]], Tensor], files: list[bytes]) -> None:
    """One batch without gradients."""
    model.eval()
    with torch.inference_mode():
        logits(files).cpu()


def learn(model: nn.Module, logits: Callable[[list[bytes]], Tensor], files: list[bytes]) -> None:
    """One step of SGD; the labels are of no matter."""
    model.train()
    scores = logits(files)
    F.cross_entropy(scores, torch.zeros(len(files), dtype=torch.int64, device=scores.device)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-6 * parameter.grad
            parameter.grad = None


def milliseconds(actions: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, float]:
    """Median time of each action over ``rounds`` rounds, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            start = now(device)
            action()
            if turn:
                times[name].append(1000 * (now(device) - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main(arguments: list[str] | None = None) -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--weights", type=Path, required=True, help="a folder that the recipe wrote")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--explicit-rounds", type=int, default=2, help="explicit maps take 3 GB, to train 9 GB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="one round of 4 files, no explicit form")
    args = parser.parse_args(arguments)
    if args.quick:
        args.batch, args.rounds, args.explicit_rounds = 4, 1, 0

    paths = [file for file, _ in list_classes(args.data, suffixes=JPEG, by_path=True)[1]["val"]]
    batch = [file.read_bytes() for file in paths[:: max(1, len(paths) // args.batch)][: args.batch]]
    if len(batch) < args.batch:
        raise SystemExit(f"{args.data} has {len(paths)} files for validation; take a --batch of at most that")
    candidates = forms(args.weights, explicit=args.explicit_rounds > 0, device=args.device)
    readers: dict[str, Callable[[], object]] = {
        "libjpeg-turbo, torchvision": lambda: torchvision_pixels(batch),
        "libjpeg-turbo, Pillow": lambda: pillow_pixels(batch),
        "read_jpeg": lambda: coefficients(batch),
    }
    results: dict[str, dict[str, float]] = {"reading": milliseconds(readers, args.rounds, args.device)}
    for kind, action in (("inference", infer), ("training", learn)):
        actions = {n: (lambda m=m, f=f, action=action: action(m, f, batch)) for n, (m, f) in candidates.items()}
        slow = {name: actions.pop(name) for name in list(actions) if "explicit" in name}
        fast = milliseconds(actions, args.rounds, args.device)
        results[kind] = fast | milliseconds(slow, args.explicit_rounds, args.device)
    for kind, found in results.items():
        print(f"{kind}, milliseconds for {args.batch} files and share of the first one's speed")
        reference = next(iter(found.values()))
        for name, value in found.items():
            print(f"  {name:28s} {value:10.2f} {reference / value:8.3g}x")
    size = sum(len(data) for data in batch) / len(batch)
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(args.device)} if args.device != "cpu" else {}
    report |= {"batch": args.batch, "rounds": args.rounds, "bytes_per_file": round(size), "milliseconds": results}
    name = "throughput.json" if args.device == "cpu" else "throughput-accelerator.json"
    write_report(args.out or RESULTS / name, report)


if __name__ == "__main__":
    main()
