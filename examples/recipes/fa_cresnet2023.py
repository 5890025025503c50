"""Deng & Karam, DNN-Compressed Domain Visual Recognition with Feature Adaptation, arXiv:2305.08000.

The paper's order (5.2, 5.3), with its schedule for ImageNet (the default) or for MINC-2500 (``--schedule minc``):

    fa_cresnet2023.py anchor     --data imagenet --images original --pretrained torchvision --out runs/anchor1
    fa_cresnet2023.py anchor     --data imagenet --codec CODEC --pretrained runs/anchor1/classifier --out runs/anchor2
    fa_cresnet2023.py classifier --data imagenet --codec CODEC --pretrained runs/anchor2/classifier --out runs/fa
    fa_cresnet2023.py classifier --data imagenet --codec CODEC --model cresnet39 --out runs/cresnet
    fa_cresnet2023.py classifier --data minc --codec CODEC --schedule minc --ablation pooling=max --out runs/max

Stage 1 trains the layers for which the pixel network has no weights; all other layers are frozen, with their batch
norms. Stage 2 trains all layers. Without ``--pretrained`` nothing is frozen, and stage 2 takes the whole training.

CODEC is a folder, a Hub repository, or the name of weights of bmshj2018_hyperprior that ship with cdzoo. The paper uses
the models for MS-SSIM of tensorflow-compression, qualities 1 to 8. CompressAI's checkpoints of the same design and
metric can replace them: load them by ``codec.load_compressai(state_dict)`` and save them by ``cdzoo.save_pretrained``.
Give ``--lowest-rate`` for quality 1, where the network has fewer convolutions. ``--ablation`` builds the networks of
table 3 (see fa_ablation.py). The pixel network among them has the schedule of MINC-2500's anchors; the paper starts it
from random values.

The paper codes original images (5.2, 5.3). This recipe first crops and resizes them to squares of ``--size`` pixels
(256 by default), so that batches have one size. Rates, and the sizes of latents before resizing to 28x28, are those of
squares.

The paper leaves some details open. This recipe chooses:

- Latents are mirrored only with ``--mirror``.
- The learning rate of pretrained layers on ImageNet, 1e-4, does not decay. On MINC all layers share one schedule.
- cResNet-39, with which the paper compares, is trained like FA-cResNet-39, from the same weights if ``--pretrained`` is
  given.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from classification import ClassifierInputs, add_input_options, load_codec, save_classifier, train_in_stages
from fa_ablation import NAMES, build_ablation
from schedules import Schedule, constant, cosine, step_decay
from torch import Tensor, nn
from training import Run, add_command, run_command, take_over

import cdzoo
from cdzoo.codecs import Codec


class Recipe(NamedTuple):
    """Attributes: epochs in all and before everything is trained; rates of new and of pretrained layers; the rest."""

    epochs: float
    frozen: float
    lr: float
    pretrained_lr: float
    schedule: Schedule
    pretrained_schedule: Schedule
    batch: int
    weight_decay: float


_MINC = step_decay((40, 60), of=70)
CLASSIFIER = {
    "imagenet": Recipe(35, 15, 0.01, 1e-4, step_decay((10, 25), of=35), constant, 64, 5e-4),
    "minc": Recipe(70, 20, 0.01, 0.01, _MINC, _MINC, 32, 1e-3),
}
_FROM_SCRATCH = step_decay((60, 80), of=90)
ANCHOR = {
    "imagenet": Recipe(5, 0, 1e-4, 1e-4, constant, constant, 64, 1e-4),
    "minc": Recipe(90, 0, 0.01, 0.01, _FROM_SCRATCH, _FROM_SCRATCH, 32, 1e-3),
}


def random_resized_crop(size: int, *, bilinear: bool, mirror: bool) -> Any:
    """Crops of 8 to 100 % of the area, proportions 3/4 to 4/3, resized to ``size``; another one for each sample."""

    def augment(tensors: Sequence[Tensor | None], side: int, *, train: bool) -> list[Tensor | None]:
        first = next(t for t in tensors if t is not None)
        batch, height, width = len(first), *first.shape[-2:]
        if not train:
            if not bilinear:
                return list(tensors)  # the transform brings whole latents to their size
            top, left = (height - size) // 2, (width - size) // 2
            return [None if t is None else t[..., top : top + size, left : left + size] for t in tensors]
        area = height * width * torch.empty(batch).uniform_(0.08, 1.0)
        ratio = torch.empty(batch).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
        rows = (area / ratio).sqrt().round().clamp(1, height).long()
        columns = (area * ratio).sqrt().round().clamp(1, width).long()
        tops, lefts = (((n - k + 1) * torch.rand(batch)).long() for n, k in ((height, rows), (width, columns)))
        flips = (torch.rand(batch) < 0.5).tolist() if mirror else [False] * batch
        boxes = list(zip(*(t.tolist() for t in (tops, lefts, rows, columns)), flips, strict=True))
        mode = {"mode": "bilinear", "antialias": True} if bilinear else {"mode": "nearest"}

        def cut(t: Tensor) -> Tensor:
            pieces = [
                F.interpolate(t[i : i + 1, :, a : a + h, b : b + w].flip(-1) if flip else
                              t[i : i + 1, :, a : a + h, b : b + w], size=(size, size), **mode)
                for i, (a, b, h, w, flip) in enumerate(boxes)
            ]  # fmt: skip
            return torch.cat(pieces)

        return [None if t is None else cut(t) for t in tensors]

    return augment


def pretrained_state(run: Run) -> dict[str, Tensor]:
    """Tensors of the ResNet-50 that ``--pretrained`` names, under torchvision's names; none without it."""
    source = run.args.pretrained
    if source is None:
        return {}
    if source == "torchvision":
        from torchvision.models import ResNet50_Weights, resnet50

        with run.one_after_the_other():
            return resnet50(weights=ResNet50_Weights.IMAGENET1K_V1).state_dict()
    return cdzoo.from_pretrained(source).state_dict()


def train_by(run: Run, recipe: Recipe, model: nn.Module, inputs: ClassifierInputs, known: list[Any]) -> nn.Module:
    """Train in stage 1 without the parameters in ``known`` (if there are any), in stage 2 with all."""
    args = run.args
    decay = recipe.weight_decay if args.weight_decay is None else args.weight_decay
    schedules = (recipe.schedule, recipe.pretrained_schedule)
    if (args.small or args.smoke) and not known:
        schedules = (cosine(warmup=0.03), cosine(warmup=0.03))
    return train_in_stages(
        run,
        model,
        inputs,
        known,
        lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=decay),
        rates=(recipe.lr if args.lr is None else args.lr, recipe.pretrained_lr),
        schedules=schedules,
        frozen=recipe.frozen / recipe.epochs if known else 0.0,
    )


def _apply_recipe(args: argparse.Namespace, recipe: Recipe) -> None:
    for name in ("epochs", "batch"):
        if getattr(args, name) is None and not (name == "epochs" and (args.steps or args.minutes)):
            setattr(args, name, getattr(recipe, name))


def anchor(args: argparse.Namespace) -> dict[str, Any]:
    """Train a pixel-domain ResNet-50 on original images (anchor 1) or on decoded ones (anchor 2)."""
    recipe = ANCHOR[args.schedule]
    _apply_recipe(args, recipe)
    run = Run(args)
    codec = load_codec(run, _smoke_codec) if args.images == "decoded" else None
    crop = random_resized_crop(args.crop, bilinear=True, mirror=True)
    inputs = ClassifierInputs(run, codec, args.images, augment=crop)
    run.seed("weights")
    model = cdzoo.models.resnet50(num_classes=len(inputs.classes), width=args.width, stride_in_1x1=False)
    known = take_over(model, pretrained_state(run))
    model = train_by(run, recipe, model, inputs, known)
    metrics = save_classifier(run, model, inputs)
    return run.finish(metrics)


def classifier(args: argparse.Namespace) -> dict[str, Any]:
    """Train FA-cResNet-39, the cResNet-39 it is compared with, or a network of table 3 in two stages."""
    pixels = args.ablation == "effect=fa_resnet"
    recipe = ANCHOR["minc"] if pixels else CLASSIFIER[args.schedule]
    _apply_recipe(args, recipe)
    run = Run(args)
    codec = load_codec(run, _smoke_codec)
    crop = random_resized_crop(args.crop if pixels else args.latent_size, bilinear=pixels, mirror=args.mirror or pixels)
    kind: Any = "decoded" if pixels else "latents"
    inputs = ClassifierInputs(run, codec, kind, augment=crop, size=None if pixels else args.latent_size)
    run.seed("weights")
    sizes: dict[str, Any] = {"in_channels": codec.latent_channels, "num_classes": len(inputs.classes)}
    sizes |= {"width": args.width, "latent_stride": codec.stride}
    num_convs = (2, 3, 4) if args.lowest_rate else (3, 4, 5)
    if args.ablation:
        model = build_ablation(args.ablation, num_convs=num_convs, **sizes)
    elif args.model == "cresnet39":
        model = cdzoo.models.cresnet39(use_scales=True, stride_in_1x1=False, **sizes)
    else:
        model = cdzoo.models.fa_cresnet39(num_convs=num_convs, **sizes)
    known = take_over(model, pretrained_state(run))
    model = train_by(run, recipe, model, inputs, known)
    if not args.ablation:
        metrics = save_classifier(run, model, inputs)
    else:  # made to be compared, not to be published
        metrics = {**inputs.evaluate(model), "images": len(inputs.files["val"])}
        if run.is_main:
            torch.save(model.state_dict(), run.out / "classifier.pt")
    return run.finish(metrics)


def _smoke_codec() -> Codec:
    torch.manual_seed(0)
    return cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tiny = {"steps": 4, "batch": 4, "evaluate_every": 100.0, "log_every": 2, "minutes": None, "cache": None}
    unset = {"batch": None, "weight_decay": None, "lr": None}
    small = {"width": 0.125, "batch": 32, "minutes": 12.0, "ema": 0.998, "views": 1, "workers": 0, "lr": 0.05}
    smoke = {"width": 0.05, "size": 64, "views": 0, **tiny}

    command = add_command(
        commands,
        anchor,
        paper=unset,
        small={**small, "size": 128, "crop": 112, "evaluate_every": 4.0},
        smoke={**smoke, "crop": 56, "images": "original"},
    )
    _add_options(command)
    command.add_argument("--images", choices=("original", "decoded"), default="decoded")

    command = add_command(
        commands,
        classifier,
        paper=unset,
        small={**small, "size": 224, "evaluate_every": 4.0, "mirror": True},
        smoke={**smoke, "latent_size": 8},
    )
    _add_options(command)
    add = command.add_argument
    add("--model", choices=("fa_cresnet39", "cresnet39"), default="fa_cresnet39")
    add("--ablation", choices=NAMES, help="a network of table 3 in place of --model")
    add("--latent-size", type=int, default=28, help="rows and columns that latents are brought to")
    add("--lowest-rate", action="store_true", help="2, 3 and 4 convolutions in place of 3, 4 and 5")
    add("--mirror", action="store_true", help="mirror latents half the time")
    return run_command(parser, argv)


def _add_options(command: argparse.ArgumentParser) -> None:
    add_input_options(command)
    command.add_argument("--schedule", choices=("imagenet", "minc"), default="imagenet")
    command.add_argument("--pretrained", help="'torchvision', or the folder of an anchor, to start from")
    command.add_argument("--width", type=float, default=1.0)


if __name__ == "__main__":
    main()
