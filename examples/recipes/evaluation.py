"""Metrics of recipes: quality and rate of codecs, accuracy of classifiers, mean intersection over union (mIoU).

The rate of a codec is given twice. ``bpp_estimated`` follows from probabilities: the likelihoods of the entropy model,
or, without an entropy model, the entropy of the histogram of one image's symbols. ``bpp_real`` counts the bytes of
whole ``.cdz`` files. They have a header of about 40 bytes, which matters for small images, probabilities of 16 bits,
and whole bytes at the end of each part. Without an entropy model they use the tables of the training images, since a
decoder does not know those of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from data import read
from torch import Tensor
from training import Run

from cdzoo.codecs import Codec, read_header
from cdzoo.ops import bits_per_pixel, discrete_entropy


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``(B,)``, of images in ``[0, 1]`` after rounding to 8 bits."""
    x_hat, x = (t.mul(255).round().clamp(0, 255) for t in (x_hat, x))
    error = (x_hat - x).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error)


def similarity(x_hat: Tensor, x: Tensor) -> dict[str, float]:
    """Mean SSIM, and MS-SSIM where the image has more than 160 pixels in each direction, of pytorch_msssim."""
    try:
        import pytorch_msssim
    except ImportError:
        return {}
    result = {"ssim": float(pytorch_msssim.ssim(x_hat, x, data_range=1.0))}
    if min(x.shape[-2:]) > 160:
        result["ms_ssim"] = float(pytorch_msssim.ms_ssim(x_hat, x, data_range=1.0))
    return result


def estimated_bpp(codec: Codec, x: Tensor) -> float:
    """Bits per pixel by the codec's probabilities, without a file; one image."""
    output = codec.eval()(x)
    if output.likelihoods:
        return float(bits_per_pixel(output))
    symbols = codec.encode(x).y_hat
    return float(discrete_entropy(symbols, per_channel=True)) * symbols.numel() / (x.shape[-2] * x.shape[-1])


@torch.no_grad()
def measure_codec(run: Run, codec: Codec, files: Sequence[Path]) -> dict[str, float]:
    """Mean figures over images, each in its own size: rates, PSNR, SSIM, MS-SSIM."""
    codec = codec.to(run.device).eval()
    rows: list[dict[str, float]] = []
    for file in files[run.rank :: run.world]:
        x = read(file)[None].to(run.device) / 255
        [stream] = codec.compress(x)
        x_hat = codec.decode(codec.decompress([stream]))
        row = {"bpp_real": read_header(stream).bpp, "bpp_estimated": estimated_bpp(codec, x)}
        rows.append({**row, "psnr": float(psnr(x_hat, x)), **similarity(x_hat, x)})
    names = ["bpp_real", "bpp_estimated", "psnr", "ssim", "ms_ssim"]
    have = [[row[name] for row in rows if name in row] for name in names]
    sums = run.sum(torch.tensor([[math.fsum(values), len(values)] for values in have], dtype=torch.float64))
    means = {name: round(float(total / n), 4) for name, (total, n) in zip(names, sums, strict=True) if n}
    return {**means, "images": int(sums[0, 1])}


def count_correct(logits: Tensor, labels: Tensor, ranks: Sequence[int] = (1, 5)) -> Tensor:
    """The number of labels among the best ``k`` logits, for each ``k``, and the number of all labels: float64."""
    best = logits.topk(min(max(ranks), logits.shape[1])).indices
    hits = (best == labels[:, None]).cumsum(1)
    return torch.tensor([*(int(hits[:, min(k, hits.shape[1]) - 1].sum()) for k in ranks), len(labels)]).double()


def accuracy(run: Run, counts: Iterable[Tensor]) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, from :func:`count_correct` of every batch of every process."""
    top1, top5, images = run.sum(sum(counts, torch.zeros(3, dtype=torch.float64))).tolist()
    return {"top1": round(100 * top1 / images, 2), "top5": round(100 * top5 / images, 2)}


class ConfusionMatrix:
    """Counts of pixels by true class (rows) and predicted class (columns).

    Args:
        num_classes: true classes from this number on, and negative ones, are void: they are not counted.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.parts: list[Tensor] = []

    def add(self, predicted: Tensor, true: Tensor) -> None:
        """Classes of pixels, two tensors of one shape: those of one image, if the error of a mean is asked for."""
        n = self.num_classes
        valid = (true >= 0) & (true < n)
        places = n * true[valid] + predicted[valid]
        self.parts.append(torch.bincount(places, minlength=n * n).view(n, n).double().cpu())

    def metrics(self, run: Run) -> dict[str, float]:
        """Mean intersection over union of the classes that occur, and the share of pixels that are right, in percent.

        A class that is neither true nor predicted anywhere has no union, and is left out of the mean. One process also
        gives ``miou_error``, the standard error over images: the deviation between draws of as many of them, with
        replacement (bootstrap).
        """
        n = self.num_classes
        parts = torch.stack([torch.zeros(n, n, dtype=torch.float64), *self.parts])
        counts = run.sum(parts.sum(0))
        share = counts.diagonal().sum() / counts.sum()
        found = {"miou": round(100 * float(_mean_iou(counts)), 2), "pixel_accuracy": round(100 * float(share), 2)}
        images = len(self.parts)
        if run.world == 1 and images > 1:
            drawn = torch.randint(images, (1000, images), generator=torch.Generator().manual_seed(0))
            times = torch.zeros(1000, images, dtype=torch.float64).scatter_add_(
                1, drawn, torch.ones(drawn.shape).double()
            )
            found["miou_error"] = round(100 * float(_mean_iou(torch.tensordot(times, parts[1:], 1)).std()), 2)
        return found


def _mean_iou(counts: Tensor) -> Tensor:
    """Mean IoU of confusion matrices ``(..., n, n)``, over the classes that have a union."""
    right = counts.diagonal(dim1=-2, dim2=-1)
    return (right / (counts.sum(-1) + counts.sum(-2) - right)).nanmean(-1)
