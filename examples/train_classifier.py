"""Train a classifier on the latents of a frozen codec, on a folder of images with one sub-folder per class.

    python examples/train_classifier.py --data imagenette --codec DEFAULT --out runs/classifier --minutes 60

The images are encoded once per view (the whole image, then random resized crops of it, mirrored half the time) and the
latents are kept in ``--cache``, so that epochs cost nothing but the network. Each step takes a random crop of the
cached latents and its scales by one box, which grows from ``--crops`` to the full latent over the run, and doubles its
sides by nearest neighbour: the same scale at which the network later sees the whole latent at 28x28.

An image belongs to the validation split when the first eight hex digits of the SHA-256 of its file name are divisible
by ten. A run that was killed goes on from its last checkpoint when it is started again with the same ``--out``.
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
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

import cdzoo
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent


def list_images(root: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """Class folders and, for each split, pairs of file and class number."""
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and any(p.glob("*.JPEG")))
    splits: dict[str, list[tuple[Path, int]]] = {"train": [], "val": []}
    for label, name in enumerate(classes):
        for file in sorted((root / name).glob("*.JPEG")):
            held_out = int(hashlib.sha256(file.name.encode()).hexdigest()[:8], 16) % 10 == 0
            splits["val" if held_out else "train"].append((file, label))
    return classes, splits


def cache_view(
    codec: cdzoo.codecs.Codec, files: list[tuple[Path, int]], path: Path, *, random_crop: bool, seed: int, size: int
) -> None:
    """Encode one view of every image and keep the latents as int8 and the scales as float16."""
    if path.with_suffix(".labels.npy").exists():
        return
    torch.manual_seed(seed)
    if random_crop:
        view = v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    else:
        view = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    to_tensor = v2.Compose([v2.ToImage(), view, v2.ToDtype(torch.float32, scale=True)])
    side = -(-size // codec.stride)
    shape = (len(files), codec.latent_channels, side, side)
    y_hat = np.lib.format.open_memmap(path.with_suffix(".y.npy"), "w+", np.int8, shape)
    scales = np.lib.format.open_memmap(path.with_suffix(".scales.npy"), "w+", np.float16, shape)
    for start in tqdm(range(0, len(files), 16), desc=f"encoding {path.name}", mininterval=10):
        images = torch.stack([to_tensor(Image.open(f).convert("RGB")) for f, _ in files[start : start + 16]])
        latent = codec.encode(images)
        y_hat[start : start + 16] = latent.y_hat.clamp(-127, 127).numpy()
        if latent.scales is not None:
            scales[start : start + 16] = latent.scales.numpy()
    y_hat.flush()
    scales.flush()
    np.save(path.with_suffix(".labels.npy"), np.array([label for _, label in files]))


def load_view(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, scales and labels of a cached view, memory-mapped."""
    return (
        np.load(path.with_suffix(".y.npy"), mmap_mode="r"),
        np.load(path.with_suffix(".scales.npy"), mmap_mode="r"),
        np.load(path.with_suffix(".labels.npy")),
    )


def to_latent(y_hat: np.ndarray, scales: np.ndarray, size: int) -> Latent:
    """Cached arrays as the float32 latent that the codec gave."""
    return Latent(torch.from_numpy(y_hat.astype(np.float32)), torch.from_numpy(scales.astype(np.float32)), (size, size))


@torch.no_grad()
def evaluate(
    model: nn.Module, view: tuple[np.ndarray, ...], transform: LatentTransform, size: int
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy on a cached view, in percent."""
    model.eval()
    y_hat, scales, labels = view
    top1 = top5 = 0
    for start in range(0, len(labels), 64):
        part = slice(start, start + 64)
        logits: Tensor = model(transform(to_latent(y_hat[part], scales[part], size)))
        ranked = logits.topk(5).indices == torch.from_numpy(labels[part])[:, None]
        top1 += int(ranked[:, 0].sum())
        top5 += int(ranked.any(1).sum())
    model.train()
    return 100 * top1 / len(labels), 100 * top5 / len(labels)


def main() -> None:
    """Cache, train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one sub-folder of images per class")
    parser.add_argument("--codec", default="DEFAULT", help="weights of bmshj2018_hyperprior: a name or a folder")
    parser.add_argument("--cache", type=Path, default=Path("runs/latents"))
    parser.add_argument("--out", type=Path, default=Path("runs/classifier"))
    parser.add_argument("--model", default="fa_cresnet39")
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--views", type=int, default=4, help="random views of each training image, besides the whole")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--crops", type=int, nargs="+", default=[10, 12, 14], help="sides of the latent crops, in turn")
    parser.add_argument(
        "--crop-shares", type=float, nargs="+", default=[0.45, 0.3, 0.25], help="share of the time each"
    )
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--init", type=Path, help="state dict (.pt) of an earlier run to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=4, help="epochs between evaluations and checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    classes, splits = list_images(args.data)
    codec = cdzoo.get_codec("bmshj2018_hyperprior", weights=args.codec)
    assert isinstance(codec, cdzoo.codecs.Codec)
    args.cache.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    prefix = args.cache / codec.fingerprint
    cache_view(codec, splits["val"], Path(f"{prefix}-val"), random_crop=False, seed=0, size=args.size)
    cache_view(codec, splits["train"], Path(f"{prefix}-whole"), random_crop=False, seed=0, size=args.size)
    names = [f"{prefix}-view{k}" for k in range(args.views)]
    for k, name in enumerate(names):
        if args.cache_only or k == 0:
            cache_view(codec, splits["train"], Path(name), random_crop=True, seed=k + 1, size=args.size)
    if args.cache_only:
        return

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    transform = LatentTransform(size=(28, 28))
    model = cdzoo.get_model(args.model, in_channels=codec.latent_channels, num_classes=len(classes), width=args.width)
    model = model.to(memory_format=torch.channels_last)
    if args.init:
        model.load_state_dict(torch.load(args.init, weights_only=True)["model"])
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}], lr=args.lr
    )
    # an exponential moving average that forgets the random start quickly
    average = torch.optim.swa_utils.AveragedModel(
        model,
        avg_fn=lambda mean, new, count: mean + (new - mean) * max(0.002, 9 / (10 + float(count))),
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

    val = load_view(Path(f"{prefix}-val"))
    whole = load_view(Path(f"{prefix}-whole"))
    ends = np.cumsum(args.crop_shares) / sum(args.crop_shares)
    clock = time.monotonic()
    while spent < args.minutes:
        # each image's view of this epoch; views still being cached by another process join when they are there
        views = [whole] + [load_view(Path(n)) for n in names if Path(n).with_suffix(".labels.npy").exists()]
        choice = rng.integers(0, len(views), len(whole[2]))
        order = rng.permutation(len(whole[2]))
        losses = []
        for start in range(0, len(order) - args.batch + 1, args.batch):
            now = time.monotonic()
            spent, clock = spent + (now - clock) / 60, now
            progress = spent / args.minutes
            if progress >= 1:
                break
            warm = min(1.0, (step + 1) / 300)
            lr = args.lr * warm * (0.5 * (1 + math.cos(math.pi * progress)) * 0.995 + 0.005)
            for group in optimizer.param_groups:
                group["lr"] = lr
            index = order[start : start + args.batch]
            y_hat = np.stack([views[choice[i]][0][i] for i in index])
            scales = np.stack([views[choice[i]][1][i] for i in index])
            side = min(args.crops[min(int(np.searchsorted(ends, progress)), len(args.crops) - 1)], y_hat.shape[-1])
            top, left = rng.integers(0, y_hat.shape[-1] - side + 1, 2)
            y_hat, scales = (a[:, :, top : top + side, left : left + side] for a in (y_hat, scales))
            if rng.random() < 0.5:
                y_hat, scales = y_hat[..., ::-1], scales[..., ::-1]
            crop = LatentTransform(size=(2 * side, 2 * side))
            latent = crop(to_latent(y_hat, scales, args.size))
            labels = torch.from_numpy(whole[2][index])
            logits = model(
                latent.y_hat.contiguous(memory_format=torch.channels_last),
                latent.scales.contiguous(memory_format=torch.channels_last),
            )
            loss = F.cross_entropy(logits, labels, label_smoothing=args.label_smoothing)
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
        top1, top5 = evaluate(average.module, val, transform, args.size)
        history.append({"minutes": spent, "epoch": epoch, "loss": float(np.mean(losses)), "top1": top1, "top5": top5})
        print(json.dumps({**history[-1], "views": len(views), "crop": int(side), "lr": lr}), flush=True)
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"spent": spent, "step": step, "epoch": epoch, "history": history}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    best = average.module
    top1, top5 = evaluate(best, val, transform, args.size)
    meta = {
        "classes": classes,
        "metrics": {"top1": round(top1, 2), "top5": round(top5, 2), "split": "validation", "images": len(val[2])},
        "recipe": f"examples/train_classifier.py, {step} steps of batch {args.batch}, {spent:.0f} minutes",
        "history": history,
    }
    best.builder, best.arguments, best.transforms = model.builder, model.arguments, transform
    cdzoo.save_pretrained(best, args.out / "final", dtype=torch.float16, codec=codec, meta=meta)
    print(f"top-1 {top1:.2f} %, top-5 {top5:.2f} % on {len(val[2])} images; saved to {args.out / 'final'}")


if __name__ == "__main__":
    main()
