"""Ehrlich and Davis, Deep Residual Learning in the JPEG Transform Domain, ICCV 2019.

    ehrlich2019.py classifier  --data cifar10 --cache runs/cifar10 --amp bf16 --out runs/seed0
    ehrlich2019.py photographs --data imagenette --out runs/jpeg_resnet18

``classifier`` trains the paper's network of three blocks (5.1) on small JPEG files that fit into memory. The network is
in its fused form: one inverse DCT, then layers on pixels. With the exact ReLU this form equals the JPEG-domain network
up to float32 rounding, at about the cost of the pixel network. ``studies/jpeg_domain`` reads the result in all forms.
Each batch is augmented in two ways. Half of its files are flipped, which is exact on coefficients. All are shifted by
up to four pixels with gray coming in; the shift acts behind the entrance, since on coefficients it is exact only by
whole blocks of chroma, which are 16 pixels of 32.

``photographs`` trains a ResNet-18 or ResNet-50 on the coefficients of larger files, which are read in every epoch. All
augmentations act on coefficients: a block-aligned crop whose side grows over the training (``--sides``), a mirror
image, now and then the whole image at half its size, an erased rectangle of blocks, and contrast and saturation, which
are factors of the quantization tables. Files have one size and one sampling; gray files among color files are allowed.

The paper does not give the optimizer or the length of its trainings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from classification import Classification, decay_groups
from data import JPEG, generate_classes, held_out, list_classes, thinned
from evaluation import accuracy, count_correct
from jpeg_files import Split, load, parts, take
from schedules import cosine, triangle
from torch import Tensor, nn
from training import Run, add_command, fit, growing, read_history, run_command

import cdzoo
from cdzoo.data import (
    CoefficientDataset,
    RandomCrop,
    RandomHorizontalFlip,
    alignment,
    collate_coefficients,
    downscale,
)
from cdzoo.jpeg.transforms import horizontal_flip
from cdzoo.models.jpeg_resnet import JPEGResNetSmall, jpeg_resnet_small
from cdzoo.transforms import CoefficientTransform
from cdzoo.types import JPEGCoefficients

SHIFT = 4
"""Pixels."""
Evaluate = Callable[[nn.Module], dict[str, float]]


def flip_half(coefficients: JPEGCoefficients) -> JPEGCoefficients:
    """Mirror the first half of a batch, whose order is random."""
    half = len(coefficients.qtables) // 2
    mirrored = horizontal_flip(take(coefficients, slice(half)))
    rest = take(coefficients, slice(half, None))
    planes = zip(mirrored.planes, rest.planes, strict=True)
    return rest._replace(
        planes=tuple(torch.cat(pair) for pair in planes), qtables=torch.cat([mirrored.qtables, rest.qtables])
    )


def shift(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Move each image by up to :data:`SHIFT` pixels along both axes; zeros (gray) come in."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (SHIFT,) * 4)
    corners = torch.randint(2 * SHIFT + 1, (len(x), 2), generator=generator).tolist()
    pairs = zip(padded, corners, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in pairs])


def logits_of_image(model: JPEGResNetSmall, x: Tensor) -> Tensor:
    """Compute the logits of the output of the network's entrance."""
    return model.forward_head(model.block3(model.block2(model.block1(x))))


@torch.no_grad()
def top1(model: nn.Module, split: Split, *, batch: int = 200) -> float:
    """Top-1 accuracy on a split, in percent."""
    model.eval()
    right = sum(int((model(c).argmax(1) == labels).sum()) for c, labels in parts(split, batch))
    return 100 * right / len(split)


class BehindEntrance(nn.Module):
    """The layers behind the entrance of the network, which stays a part of it."""

    def __init__(self, model: JPEGResNetSmall) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)``."""
        return logits_of_image(self.model, x)


def _files(args: argparse.Namespace, run: Run, side: int) -> Path:
    if args.smoke and args.data is None:
        with run.one_after_the_other():
            return generate_classes(run.out / "images", side=side, suffix=".jpg")
    if args.data is None:
        raise SystemExit("--data is missing: a folder with one sub-folder of JPEG files for each class")
    root: Path = args.data
    return root


def _save(run: Run, model: nn.Module, classes: list[str], evaluate: Evaluate, images: int, **more: Any) -> Any:
    """Write the network with weights of 16 bits, measure what was written, and add the figures."""
    folder, more = run.out / "classifier", {"dtype": torch.float16, **more}
    if run.is_main:
        cdzoo.save_pretrained(model, folder, **more)
    with run.one_after_the_other():
        written = cdzoo.from_pretrained(folder).to(run.device)
    figures = evaluate(written)
    if run.is_main:
        meta = {"classes": classes, "metrics": {**figures, "split": "validation", "images": images}}
        meta |= {"recipe": run.command, "history": [row for row in read_history(run.out) if "top1" in row]}
        cdzoo.save_pretrained(written, folder, meta=meta, **more)
    return run.finish({**figures, "images": images, "classes": len(classes)})


def classifier(args: argparse.Namespace) -> dict[str, Any]:
    """Train the network of three blocks on small files (5.1): SGD with Nesterov's momentum, 6 epochs."""
    run = Run(args)
    root = _files(args, run, 32)
    classes = list_classes(root, suffixes=JPEG, by_path=True)[0]
    data, val = (load(root, split, cache=args.cache, limit=args.limit) for split in ("train", "val"))
    run.seed("weights")
    model = jpeg_resnet_small(num_classes=len(classes), width=args.width)

    def prepare(index: Tensor) -> tuple[Tensor, Tensor]:
        files = flip_half(take(data.coefficients, index)).to(run.device)
        x = shift(task.model.model.entrance(files))
        return x.contiguous(memory_format=torch.channels_last), data.labels[index].to(run.device)

    def evaluate(network: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            pairs = list(parts(val, 200))[run.rank :: run.world]
            return accuracy(run, [count_correct(network.eval()(c.to(run.device)).cpu(), y) for c, y in pairs])

    task = Classification(BehindEntrance(model), smoothing=args.smoothing)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(decay_groups(model, args.weight_decay), args.lr, momentum=0.9, nesterov=True)
    trained = fit(
        run, task, range(len(data)), optimizer, triangle(0.2),
        prepare=prepare, evaluate=lambda task: evaluate(task.model.model),
    )  # fmt: skip
    transforms = CoefficientTransform(shorter_side=min(data.coefficients.image_size))
    return _save(run, trained.model.model, classes, evaluate, len(val), transforms=transforms)


# -- photographs ---------------------------------------------------------------------------------------------------


def erase(sample: JPEGCoefficients, share: float) -> JPEGCoefficients:
    """Make a random rectangle of whole blocks gray, in place; its sides are at most ``share`` of the image's."""
    cells = [-(-n // a) for n, a in zip(sample.image_size, alignment(sample), strict=True)]
    sides = [1 + int(torch.randint(max(1, int(n * share)), ())) for n in cells]
    start = [int(torch.randint(n - side + 1, ())) for n, side in zip(cells, sides, strict=True)]
    for plane in sample.planes:
        per_cell = [-(-plane.shape[1 + axis] // cells[axis]) for axis in (0, 1)]
        rows, columns = (slice(s * k, (s + n) * k) for s, n, k in zip(start, sides, per_cell, strict=True))
        plane[:, rows, columns] = 0
    return sample


def jitter(batch: JPEGCoefficients, strength: float) -> JPEGCoefficients:
    """Draw contrast and saturation for each image; both are factors of its quantization tables."""
    gain = 1 + strength * (2 * torch.rand(len(batch.qtables), 2) - 1)
    gain = torch.stack((gain[:, 0], gain[:, 0] * gain[:, 1], gain[:, 0] * gain[:, 1]), 1)
    return batch._replace(qtables=batch.qtables * gain[:, :, None, None])


def augmented(samples: Sequence[tuple[JPEGCoefficients, int]], side: int) -> tuple[JPEGCoefficients, Tensor]:
    """Augment files of one geometry: crops of ``side`` pixels, or (every fifth time) all of them at half their size."""
    whole = float(torch.rand(())) < 0.2
    flip, cut = RandomHorizontalFlip(), RandomCrop(side)
    changed = []
    for sample, label in samples:
        sample = flip(sample if whole else cut(sample))
        if float(torch.rand(())) < 0.25:
            sample = erase(sample._replace(planes=tuple(plane.clone() for plane in sample.planes)), 0.5)
        changed.append((sample, label))
    batch, labels = collate_coefficients(changed)
    return jitter(downscale(batch, 2) if whole else batch, 0.3), labels


def photographs(args: argparse.Namespace) -> dict[str, Any]:
    """Train a ResNet on the coefficients of photographs: AdamW, crops that grow."""
    run = Run(args)
    dataset = CoefficientDataset(_files(args, run, 64), gray="ycbcr")
    if not dataset.classes:
        raise SystemExit(f"{args.data} has no sub-folders of JPEG files, one for each class")
    indices: dict[bool, list[int]] = {False: [], True: []}
    for index, name in enumerate(dataset.names):
        indices[held_out(Path(name).name)].append(index)
    train, val = (torch.utils.data.Subset(dataset, thinned(indices[held], args.limit)) for held in (False, True))
    run.seed("weights")
    model = cdzoo.get_model(args.model, num_classes=len(dataset.classes), width=args.width)

    def prepare(samples: Any) -> tuple[JPEGCoefficients, Tensor]:
        batch, labels = augmented(samples, growing(args.sides, args.side_shares, run.progress))
        return batch.to(run.device), labels.to(run.device)

    @torch.no_grad()
    def evaluate(network: nn.Module) -> dict[str, float]:
        counts = []
        for start in range(64 * run.rank, len(val), 64 * run.world):
            rows = [val[index] for index in range(start, min(start + 64, len(val)))]
            batch, labels = collate_coefficients(rows)
            counts.append(count_correct(network.eval()(batch.to(run.device)).cpu(), labels))
        return accuracy(run, counts)

    task = Classification(model, smoothing=args.smoothing)
    trained = fit(
        run, task, train, torch.optim.AdamW(decay_groups(model, args.weight_decay), args.lr),
        cosine(warmup=0.04, end=0.005), prepare=prepare, collate=list, evaluate=lambda task: evaluate(task.model),
        clip=5.0,
    )  # fmt: skip
    transforms = CoefficientTransform(shorter_side=224)
    return _save(run, trained.model, dataset.classes, evaluate, len(val), transforms=transforms)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tiny = {"steps": 4, "batch": 4, "evaluate_every": 100.0, "log_every": 2, "minutes": None, "workers": 0}

    command = add_command(
        commands,
        classifier,
        paper={"epochs": 6.0, "batch": 128, "lr": 0.1, "weight_decay": 5e-4, "workers": 0},
        small={},
        smoke={"width": 0.25, **tiny},
    )
    add = command.add_argument
    add("--cache", type=Path, help="file that keeps the coefficients of each split between runs")
    add("--width", type=float, default=1.0, help="1 is 16, 32 and 64 channels")
    add("--smoothing", type=float, default=0.0, help="of labels")

    command = add_command(
        commands,
        photographs,
        paper={"epochs": 57.0, "batch": 64, "lr": 3e-3, "weight_decay": 0.05, "ema": 0.997},
        small={"width": 0.375, "minutes": 80.0, "evaluate_every": 4.0, "workers": 0},
        smoke={"width": 0.0625, "sides": [32, 48], "side_shares": [0.5, 0.5], **tiny},
    )
    add = command.add_argument
    add("--model", default="jpeg_resnet18", choices=("jpeg_resnet18", "jpeg_resnet50"))
    add("--width", type=float, default=1.0)
    add("--sides", type=int, nargs="+", default=[128, 160, 192, 224], help="pixels of the crops, in turn")
    add("--side-shares", type=float, nargs="+", default=[0.4, 0.3, 0.2, 0.1], help="share of the training for each")
    add("--smoothing", type=float, default=0.1, help="of labels")
    return run_command(parser, argv)


if __name__ == "__main__":
    main()
