"""Train a ResNet on the DCT coefficients of JPEG files, in a folder with one sub-folder of files per class.

    python examples/train_jpeg_classifier.py --data imagenette --out runs/jpeg_resnet18 --minutes 80

No file is decoded: entropy decoding gives coefficients, every augmentation acts on these, and the network's entrance
folds what is left of the decoder into its first convolution. Augmentations are a block-aligned crop whose side grows
over the run, a mirror image, now and then the whole image at half its size, an erased rectangle of blocks, and
contrast and saturation, which are factors of the quantisation tables.

Files of one geometry are expected (grey ones among colour ones are fine). An image belongs to the validation split when
the first eight hex digits of the SHA-256 of its file name are divisible by ten. A run that was killed goes on from its
last checkpoint when it is started again with the same ``--out``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import cdzoo
from cdzoo.data import CoefficientDataset, RandomCrop, RandomHorizontalFlip, alignment, collate_coefficients, scale
from cdzoo.transforms import CoefficientTransform
from cdzoo.types import JPEGCoefficients


def held_out(name: str) -> bool:
    """Whether an image is for validation."""
    return int(hashlib.sha256(Path(name).name.encode()).hexdigest()[:8], 16) % 10 == 0


def erase(sample: JPEGCoefficients, share: float) -> JPEGCoefficients:
    """Make a rectangle of whole blocks grey, of sides up to ``share`` of the image's."""
    cells = [-(-n // a) for n, a in zip(sample.image_size, alignment(sample), strict=True)]
    sides = [1 + int(torch.randint(max(1, int(n * share)), ())) for n in cells]
    start = [int(torch.randint(n - side + 1, ())) for n, side in zip(cells, sides, strict=True)]
    for plane in sample.planes:
        per_cell = [-(-plane.shape[1 + axis] // cells[axis]) for axis in (0, 1)]
        rows, columns = (slice(s * k, (s + n) * k) for s, n, k in zip(start, sides, per_cell, strict=True))
        plane[:, rows, columns] = 0
    return sample


def jitter(batch: JPEGCoefficients, strength: float) -> JPEGCoefficients:
    """Contrast and saturation, drawn for each image: every coefficient is proportional to its table's entry."""
    gain = 1 + strength * (2 * torch.rand(len(batch.qtables), 2) - 1)
    gain = torch.stack((gain[:, 0], gain[:, 0] * gain[:, 1], gain[:, 0] * gain[:, 1]), 1)
    return batch._replace(qtables=batch.qtables * gain[:, :, None, None])


def training_batch(dataset: CoefficientDataset, index: list[int], side: int) -> tuple[JPEGCoefficients, Tensor]:
    """Read files and augment them; crops of ``side`` pixels, or all of them whole at half the size."""
    samples = dataset.__getitems__(index)
    whole = float(torch.rand(())) < 0.2
    flip, cut = RandomHorizontalFlip(), RandomCrop(side)
    augmented = []
    for sample, label in samples:
        sample = flip(sample if whole else cut(sample))
        if float(torch.rand(())) < 0.25:
            sample = erase(sample._replace(planes=tuple(plane.clone() for plane in sample.planes)), 0.5)
        augmented.append((sample, label))
    batch, labels = collate_coefficients(augmented)
    return jitter(scale(batch, 2) if whole else batch, 0.3), labels


@torch.no_grad()
def evaluate(model: nn.Module, dataset: CoefficientDataset, index: list[int]) -> tuple[float, float]:
    """Top-1 and top-5 accuracy at the files' own size, in percent, in float32."""
    model.eval()
    top1 = top5 = 0
    for start in range(0, len(index), 64):
        batch, labels = collate_coefficients(dataset.__getitems__(index[start : start + 64]))
        ranked = model(batch).topk(5).indices == labels[:, None]
        top1 += int(ranked[:, 0].sum())
        top5 += int(ranked.any(1).sum())
    model.train()
    return 100 * top1 / len(index), 100 * top5 / len(index)


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one sub-folder of JPEG files per class")
    parser.add_argument("--out", type=Path, default=Path("runs/jpeg_resnet18"))
    parser.add_argument("--model", default="jpeg_resnet18")
    parser.add_argument("--width", type=float, default=0.375)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[128, 160, 192, 224], help="sides of the crops, in turn"
    )
    parser.add_argument("--side-shares", type=float, nargs="+", default=[0.4, 0.3, 0.2, 0.1], help="share of time each")
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=4, help="epochs between evaluations and checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    dataset = CoefficientDataset(args.data, gray="ycbcr", on_error="skip")
    assert dataset.classes is not None
    splits: dict[bool, list[int]] = {False: [], True: []}
    for index, name in enumerate(dataset.names):
        splits[held_out(name)].append(index)
    train, val = np.array(splits[False]), splits[True]
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    model = cdzoo.get_model(args.model, num_classes=len(dataset.classes), width=args.width)
    model = model.to(memory_format=torch.channels_last)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}], lr=args.lr
    )
    # an exponential moving average that forgets the random start quickly
    average = torch.optim.swa_utils.AveragedModel(
        model,
        avg_fn=lambda mean, new, count: mean + (new - mean) * max(0.003, 9 / (10 + float(count))),
        use_buffers=True,
    )
    spent, step, epoch, history = 0.0, 0, 0, []
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, step, epoch, history = saved["spent"], saved["step"], saved["epoch"], saved["history"]
        rng = np.random.default_rng([args.seed, epoch])
        torch.manual_seed(args.seed + 1000 * epoch)

    ends = np.cumsum(args.side_shares) / sum(args.side_shares)
    clock = time.monotonic()
    while spent < args.minutes:
        order = rng.permutation(train)
        losses = []
        starts = range(0, len(order) - args.batch + 1, args.batch)
        for start in tqdm(starts, desc=f"epoch {epoch + 1}", mininterval=10, leave=False):
            now = time.monotonic()
            spent, clock = spent + (now - clock) / 60, now
            progress = spent / args.minutes
            if progress >= 1:
                break
            warm = min(1.0, (step + 1) / 300)
            lr = args.lr * warm * (0.5 * (1 + math.cos(math.pi * progress)) * 0.995 + 0.005)
            for group in optimizer.param_groups:
                group["lr"] = lr
            side = args.sides[min(int(np.searchsorted(ends, progress)), len(args.sides) - 1)]
            batch, labels = training_batch(dataset, order[start : start + args.batch].tolist(), side)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not args.float32):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=args.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            average.update_parameters(model)
            losses.append(loss.item())
            step += 1
        epoch += 1
        if epoch % args.evaluate_every and spent < args.minutes:
            continue
        top1, top5 = evaluate(average.module, dataset, val)
        history.append({"minutes": spent, "epoch": epoch, "loss": float(np.mean(losses)), "top1": top1, "top5": top5})
        print(json.dumps({**history[-1], "side": side, "lr": lr}), flush=True)
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"spent": spent, "step": step, "epoch": epoch, "history": history}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    best = average.module
    top1, top5 = evaluate(best, dataset, val)
    meta = {
        "classes": dataset.classes,
        "metrics": {"top1": round(top1, 2), "top5": round(top5, 2), "split": "validation", "images": len(val)},
        "recipe": f"examples/train_jpeg_classifier.py, {step} steps of batch {args.batch}, {spent:.0f} minutes",
        "history": history,
    }
    best.builder, best.arguments, best.transforms = (
        model.builder,
        model.arguments,
        CoefficientTransform(shorter_side=224),
    )
    cdzoo.save_pretrained(best, args.out / "final", dtype=torch.float16, meta=meta)
    print(f"top-1 {top1:.2f} %, top-5 {top5:.2f} % on {len(val)} images; saved to {args.out / 'final'}")


if __name__ == "__main__":
    main()
