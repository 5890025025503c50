"""Train the three-block network of the paper on a folder of small JPEG files, from their coefficients.

    python examples/jpeg_resnet_paper/train.py --data cifar10 --cache runs/cifar10 --out runs/width1 --seeds 3

The network is in its fused form: one inverse DCT, then the layers on pixels. With exact ReLU this *is* the JPEG-domain
network, to rounding, at about the pixel network's cost; the other scripts read the result in all forms.

Augmentation: a horizontal flip, exact on coefficients, of half of the files of every batch; and a shift by up to four
pixels with grey coming in. The shift happens behind the entrance. On coefficients it would be exact only by whole
blocks of chroma, 16 pixels of 32; but it is a linear map of the image, so that of the coefficients it is one as well,
and since the entrance has undone the transform already, this is where it costs nothing.

A run that was killed goes on from its last epoch when it is started again with the same ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar import Split, add_data_arguments, batches, list_files, load, take
from torch import Tensor, nn

import cdzoo
from cdzoo.jpeg.transforms import horizontal_flip
from cdzoo.models.jpeg_resnet import JPEGResNetSmall, jpeg_resnet_small
from cdzoo.types import JPEGCoefficients

SHIFT = 4


def flip_half(coefficients: JPEGCoefficients) -> JPEGCoefficients:
    """Mirrors the first half of a batch, whose order is random."""
    half = len(coefficients.qtables) // 2
    mirrored = horizontal_flip(take(coefficients, slice(half)))
    rest = take(coefficients, slice(half, None))
    planes = zip(mirrored.planes, rest.planes, strict=True)
    return rest._replace(
        planes=tuple(torch.cat(pair) for pair in planes), qtables=torch.cat([mirrored.qtables, rest.qtables])
    )


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by up to ``SHIFT`` pixels along both axes; zeros (grey) come in."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (SHIFT,) * 4)
    corners = torch.randint(2 * SHIFT + 1, (len(x), 2), generator=generator).tolist()
    pairs = zip(padded, corners, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in pairs])


def logits_of_image(model: JPEGResNetSmall, x: Tensor) -> Tensor:
    """What the network makes of what its entrance puts out."""
    return model.forward_head(model.block3(model.block2(model.block1(x))))


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, *, batch: int = 200) -> float:
    """Share of files whose class is recognised, in percent."""
    model.eval()
    right = sum(int((model(c).argmax(1) == labels).sum()) for c, labels in batches(split, batch))
    return 100 * right / len(split)


def train(
    model: JPEGResNetSmall, data: Split, val: Split, out: Path, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Trains for ``args.epochs``, from the start or from the checkpoint; returns the time spent and the history."""
    model.to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0}],
        lr=args.lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(data) // args.batch
    state: dict[str, Any] = {"epoch": 0, "cpu_minutes": 0.0, "history": []}
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    while state["epoch"] < args.epochs:
        epoch, clock, total = state["epoch"], time.process_time(), 0.0
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order = torch.randperm(len(data), generator=generator)
        model.train()
        for step in range(steps):
            progress = (epoch + step / steps) / args.epochs
            lr = args.lr * min(progress / args.warmup, (1 - progress) / (1 - args.warmup))
            for group in optimizer.param_groups:
                group["lr"] = lr
            index = order[step * args.batch : (step + 1) * args.batch]
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
                x = shift(model.entrance(flip_half(take(data.coefficients, index))), generator)
                logits = logits_of_image(model, x.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits.float(), data.labels[index], label_smoothing=args.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        state["epoch"] += 1
        state["cpu_minutes"] += (time.process_time() - clock) / 60
        state["history"].append({"epoch": epoch + 1, "loss": total / steps, "top1": accuracy(model, val)})
        print(json.dumps({"seed": seed, **state["history"][-1], "cpu_minutes": state["cpu_minutes"]}), flush=True)
        everything = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
        torch.save(everything, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    return state


def main(arguments: list[str] | None = None) -> None:
    """Train one network for every seed, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, and a folder of weights for every seed")
    parser.add_argument("--seeds", type=int, default=1, help="networks to train, with seeds 0, 1, ...")
    parser.add_argument("--width", type=float, default=1.0, help="1 is 16, 32 and 64 channels")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="at its peak; it rises and falls linearly")
    parser.add_argument("--warmup", type=float, default=0.2, help="share of the steps during which it rises")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--bfloat16", action="store_true", help="autocast; twice as fast where the CPU has it")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that everything runs")
    args = parser.parse_args(arguments)
    if args.quick:
        args.epochs, args.batch, args.limit = 1, 8, args.limit or 64

    classes = list_files(args.data)[0]
    data, val = (load(args.data, split, cache=args.cache, limit=args.limit) for split in ("train", "val"))
    print(f"{len(data)} files for training, {len(val)} for validation", flush=True)
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        model = jpeg_resnet_small(num_classes=len(classes), width=args.width)
        out = args.out / f"seed{seed}"
        out.mkdir(parents=True, exist_ok=True)
        state = train(model, data, val, out, args, seed)
        # float16 rounds the parameters, so that what is saved is what is evaluated
        cdzoo.save_pretrained(model, out / "weights", dtype=torch.float16)
        top1 = accuracy(cdzoo.from_pretrained(out / "weights"), val)
        recipe = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        meta = {
            "classes": classes,
            "metrics": {f"validation, {len(val)} files": {"top-1 (%)": round(top1, 2)}},
            "recipe": f"examples/jpeg_resnet_paper/train.py, seed {seed}, {json.dumps(recipe)}",
            "time": f"{state['cpu_minutes']:.0f} minutes of one CPU core",
        }
        cdzoo.save_pretrained(model, out / "weights", dtype=torch.float16, meta=meta)
        print(f"seed {seed}: top-1 {top1:.2f} % of {len(val)} files; saved to {out / 'weights'}")


if __name__ == "__main__":
    main()
