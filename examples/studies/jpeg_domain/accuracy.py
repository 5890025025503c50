"""Figures 4b and 4c: accuracy with approximated ReLUs, after conversion and after training with them.

    python -m studies.jpeg_domain.accuracy --data cifar10 --weights runs/seed*/classifier

For every number of spatial frequencies and for ASM and APX:

converted     (4b) networks trained with the exact ReLU, all of their ReLUs replaced
recalibrated  the same with the statistics of batch norm taken anew, under the approximation, and no weight changed
adapted       the first network, converted, then trained further with the approximation for ``--adapt-steps``
scratch       (4c) a network trained with the approximation from random values for ``--scratch-steps``

The last two get the same steps, order of files and learning rates for every line, the exact ReLU included, and far
fewer steps than a full training: only within each of the two are accuracies comparable. All run in the pixel form of
``block_relu.py``; the difference of its logits from the library's ``mode="factored"`` is reported with the rest.

What is in ``--out`` already is not computed again, so that a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from data import JPEG, list_classes
from ehrlich2019 import flip_half, logits_of_image, shift, top1
from jpeg_files import Split, add_data_arguments, load, take
from torch import nn

from cdzoo.models.jpeg_resnet import JPEGResNetSmall, jpeg_resnet_small

from ..reports import write_report
from . import RESULTS
from .block_relu import approximated


def recalibrated(model: JPEGResNetSmall, data: Split, *, num_batches: int = 20, batch: int = 128) -> JPEGResNetSmall:
    """A copy whose batch norms know the mean and variance that training files give them."""
    model = copy.deepcopy(model).train()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # a plain average of the batches
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for index in order[: num_batches * batch].split(batch):
            model(take(data.coefficients, index))
    return model


def trained(model: JPEGResNetSmall, data: Split, *, steps: int, lr: float, args: argparse.Namespace) -> JPEGResNetSmall:
    """A copy after ``steps`` of SGD whose learning rate rises during a fifth of them, then falls to zero."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        progress = (step + 1) / (steps + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(progress / 0.2, (1 - progress) / 0.8)
        index = torch.randint(len(data), (args.batch,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            x = shift(model.entrance(flip_half(take(data.coefficients, index))), generator)
            logits = logits_of_image(model, x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), data.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def difference_from_factored(folder: Path, kind: str, num_frequencies: int, files: Split, dtype: torch.dtype) -> float:
    """Largest difference between the logits of the pixel form and of the library's factored form."""
    ours = approximated(jpeg_resnet_small(weights=folder).eval().to(dtype), kind, num_frequencies)
    theirs = jpeg_resnet_small(weights=folder, mode="factored", relu=kind, num_frequencies=num_frequencies).eval()
    few = take(files.coefficients, slice(40))
    return float((ours(few) - theirs.to(dtype)(few)).abs().max())


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, write after every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="folders that the recipe wrote")
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy.json")
    parser.add_argument("--frequencies", type=int, nargs="+", default=list(range(1, 16)))
    parser.add_argument("--scratch-frequencies", type=int, nargs="+", default=[1, 2, 4, 6, 8, 10, 12, 15])
    parser.add_argument("--adapt-steps", type=int, default=200)
    parser.add_argument("--scratch-steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--bfloat16", action="store_true", help="autocast, for training only")
    parser.add_argument("--quick", action="store_true", help="two numbers of frequencies, few steps and files")
    args = parser.parse_args(arguments)
    if args.quick:
        args.frequencies, args.scratch_frequencies, args.weights = [4, 15], [4], args.weights[:1]
        args.adapt_steps, args.scratch_steps, args.batch, args.limit = 2, 2, 8, args.limit or 40

    data, val = (load(args.data, split, cache=args.cache, limit=args.limit) for split in ("train", "val"))
    networks = [jpeg_resnet_small(weights=folder).eval() for folder in args.weights]
    torch.manual_seed(0)
    width = networks[0].origin.arguments.get("width", 1.0)
    fresh = jpeg_resnet_small(num_classes=len(list_classes(args.data, suffixes=JPEG, by_path=True)[0]), width=width)
    settings = {"files": len(val), "steps": {"adapted": args.adapt_steps, "scratch": args.scratch_steps}}
    settings |= {"batch": args.batch, "bfloat16": args.bfloat16, "width": width}
    rows: list[dict[str, Any]] = []
    if args.out.exists():
        kept = json.loads(args.out.read_text())
        if {name: kept.get(name) for name in settings} != settings:
            raise SystemExit(f"{args.out} was made with other settings; move it away, or give another --out")
        rows = kept["accuracy"]

    def measure(how: str, kind: str, n: int, seed: int, make: Callable[[], nn.Module]) -> None:
        key = {"how": how, "relu": kind, "frequencies": n, "network": seed}
        if any(key.items() <= row.items() for row in rows):
            return
        rows.append({**key, "top1": round(top1(make(), val), 3)})
        print(json.dumps(rows[-1]), flush=True)
        write_report(args.out, {**settings, "accuracy": rows}, quiet=True)

    for n in args.frequencies:
        for kind in ("asm", "apx") if n < 15 else ("exact",):
            relu = "asm" if kind == "exact" else kind  # with 15 frequencies both are exact
            for i, network in enumerate(networks):
                model = approximated(network, relu, n)
                measure("converted", kind, n, i, lambda model=model: model)
                measure("recalibrated", kind, n, i, lambda model=model: recalibrated(model, data))
    for n in args.frequencies:
        for kind in ("asm", "apx") if n < 15 else ("exact",):
            relu = "asm" if kind == "exact" else kind
            adapt = {"steps": args.adapt_steps, "lr": 0.02, "args": args}
            scratch = {"steps": args.scratch_steps, "lr": 0.1, "args": args}
            start, blank = approximated(networks[0], relu, n), approximated(fresh, relu, n)
            measure("adapted", kind, n, 0, lambda start=start, o=adapt: trained(start, data, **o))
            if n in args.scratch_frequencies:
                measure("scratch", kind, n, 0, lambda blank=blank, o=scratch: trained(blank, data, **o))
    pairs = [(kind, n) for kind in ("asm", "apx") for n in args.frequencies]
    differences: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.float64):
        found = {f"{kind} {n}": difference_from_factored(args.weights[0], kind, n, val, dtype) for kind, n in pairs}
        print(f"pixel and factored form in {dtype}: logits differ by at most {max(found.values()):.1e}")
        differences[str(dtype).removeprefix("torch.")] = found
    write_report(args.out, {**settings, "accuracy": rows, "difference_from_factored": differences})


if __name__ == "__main__":
    main()
