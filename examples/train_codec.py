"""Train a learned codec on a folder of images, and measure it on another.

    python examples/train_codec.py --data imagenette --test kodak --out runs/codec --minutes 62

Minimises ``lambda * 255^2 * MSE + bits per pixel`` on random crops, mirrored half the time: Adam at ``--lr``, reached
in 200 steps, constant for 35 % of the time, then a cosine down to a hundredth; gradients clipped to norm 1; the
quantiles of the entropy model by their own optimiser. What is kept is an exponential moving average of the weights.

Files whose name's SHA-256 starts with eight hex digits divisible by ten are held out. A run that was killed goes on
from its last checkpoint when it is started again with the same ``--out``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
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
from tqdm import tqdm

import cdzoo
from cdzoo.codecs import Codec, read_header

CODECS = ("bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean")  # those with an entropy model


def load_images(root: Path, min_size: int) -> list[np.ndarray]:
    """Every image that is not held out, decoded once, as ``(H, W, 3)`` uint8."""
    files = [f for f in sorted(root.rglob("*")) if f.suffix.lower() in (".jpg", ".jpeg", ".png")]
    files = [f for f in files if int(hashlib.sha256(f.name.encode()).hexdigest()[:8], 16) % 10]
    images = [np.asarray(Image.open(f).convert("RGB")) for f in tqdm(files, desc="reading", mininterval=10)]
    return [image for image in images if min(image.shape[:2]) >= min_size]


def random_batch(images: list[np.ndarray], rng: np.random.Generator, batch: int, crop: int) -> Tensor:
    """``(batch, 3, crop, crop)`` float32 in ``[0, 1]``, channels last."""
    crops = []
    for index in rng.integers(0, len(images), batch):
        image = images[index]
        top, left = (int(rng.integers(0, side - crop + 1)) for side in image.shape[:2])
        piece = image[top : top + crop, left : left + crop]
        crops.append(piece[:, ::-1] if rng.random() < 0.5 else piece)
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div_(255)
    return pixels.contiguous(memory_format=torch.channels_last)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in ``[0, 1]``, after rounding to 8 bits."""
    a, b = (x.mul(255).round().div(255) for x in (a, b))
    return -10 * math.log10(float(F.mse_loss(a, b)))


def measure(codec: Codec, folder: Path) -> dict[str, float]:
    """Real bits and PSNR of a codec, and PSNR of Pillow's JPEG at the same rate, averaged over a folder of images.

    JPEG has optimised Huffman tables; its figure is interpolated between qualities. All figures are means over images.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg", ".png"))
    ours, jpeg = [], {q: [] for q in (5, 10, 15, 20, 25, 30, 40, 50, 60, 75)}
    for file in tqdm(files, desc="measuring", mininterval=10):
        image = Image.open(file).convert("RGB")
        x = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 255
        (stream,) = codec.compress(x)
        header = read_header(stream)
        ours.append((header.bpp, header.payload_bpp, psnr(codec.decode(codec.decompress([stream])), x)))
        for quality, rows in jpeg.items():
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, optimize=True)
            decoded = torch.from_numpy(np.asarray(Image.open(buffer))).permute(2, 0, 1)[None] / 255
            rows.append((8 * buffer.tell() / (image.width * image.height), psnr(decoded, x)))
    bpp, payload, quality = np.mean(ours, axis=0)
    curve = np.array([np.mean(rows, axis=0) for rows in jpeg.values()])
    return {
        "images": len(files),
        "bpp": round(float(bpp), 4),
        "payload_bpp": round(float(payload), 4),
        "psnr": round(float(quality), 3),
        "jpeg_psnr_at_this_bpp": round(float(np.interp(bpp, curve[:, 0], curve[:, 1])), 3),
    }


def main() -> None:
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of training images, searched recursively")
    parser.add_argument("--test", type=Path, help="folder of images to measure the result on")
    parser.add_argument("--out", type=Path, default=Path("runs/codec"))
    parser.add_argument("--codec", default="bmshj2018_hyperprior", choices=CODECS)
    parser.add_argument("--N", type=int, default=48)
    parser.add_argument("--M", type=int, default=64)
    parser.add_argument("--lmbda", type=float, default=0.006)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=62.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    codec = cdzoo.get_codec(args.codec, N=args.N, M=args.M)
    assert isinstance(codec, Codec)
    codec = codec.train().to(memory_format=torch.channels_last)
    weights = [p for n, p in codec.named_parameters() if not n.endswith(".quantiles")]
    quantiles = [p for n, p in codec.named_parameters() if n.endswith(".quantiles")]
    optimizer = torch.optim.Adam(weights, lr=args.lr)
    quantile_optimizer = torch.optim.Adam(quantiles, lr=1e-3)
    average = {n: p.detach().clone() for n, p in codec.named_parameters()}

    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, spent, step = args.out / "checkpoint.pt", 0.0, 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        codec.load_state_dict(saved["codec"])
        optimizer.load_state_dict(saved["optimizer"])
        quantile_optimizer.load_state_dict(saved["quantile_optimizer"])
        average, spent, step = saved["average"], saved["spent"], saved["step"]
    rng = np.random.default_rng([args.seed, step])
    images = load_images(args.data, args.crop)
    recent: list[tuple[float, float]] = []
    clock = time.monotonic()
    while spent < args.minutes:
        progress = spent / args.minutes
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - 0.35) / 0.65)) * 0.99 + 0.01
        lr = args.lr * min(1.0, (step + 1) / 200) * (1.0 if progress < 0.35 else cosine)
        for group in optimizer.param_groups:
            group["lr"] = lr

        x = random_batch(images, rng, args.batch, args.crop)
        out = codec(x)
        bpp = sum(-v.log2().sum() for v in out.likelihoods.values()) / (x.numel() / 3)
        mse = F.mse_loss(out.x_hat, x)
        optimizer.zero_grad()
        (args.lmbda * 255**2 * mse + bpp).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        quantile_optimizer.zero_grad()
        codec.aux_loss().backward()
        quantile_optimizer.step()

        step += 1
        with torch.no_grad():
            keep = min(0.999, (1 + step) / (10 + step))
            for name, parameter in codec.named_parameters():
                average[name].lerp_(parameter, 1 - keep)
        recent.append((float(bpp), float(mse)))
        now = time.monotonic()
        spent, clock = spent + (now - clock) / 60, now
        if step % 200 == 0:
            rate, error = np.mean(recent, axis=0)
            row = {"minutes": round(spent, 1), "step": step, "lr": lr, "bpp": rate, "psnr": -10 * math.log10(error)}
            print(json.dumps(row), flush=True)
            recent.clear()
        if step % 1000 == 0 or spent >= args.minutes:
            state = {"codec": codec.state_dict(), "average": average, "spent": spent, "step": step}
            state |= {"optimizer": optimizer.state_dict(), "quantile_optimizer": quantile_optimizer.state_dict()}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    codec.load_state_dict({**codec.state_dict(), **average})
    codec = codec.eval().to(memory_format=torch.contiguous_format)
    cdzoo.save_pretrained(codec, args.out / "final", dtype=torch.float16)
    if args.test:
        saved = cdzoo.from_pretrained(args.out / "final")
        metrics = measure(saved, args.test)
        recipe = f"examples/train_codec.py, {step} steps of {args.batch} crops of {args.crop}, {spent:.0f} minutes"
        cdzoo.save_pretrained(
            codec, args.out / "final", dtype=torch.float16, meta={"metrics": metrics, "recipe": recipe}
        )
        print(json.dumps(metrics))


if __name__ == "__main__":
    main()
