"""Bai et al., Towards End-to-End Image Compression and Analysis with Transformers, AAAI 2022.

Training from random values in one step does not converge. The paper trains in two steps, and compares with others:

    icat2022.py first  --data imagenet --out runs/first
    icat2022.py second --data imagenet --init runs/first/icat --alpha 0.3 --test kodak --out runs/second
    icat2022.py rival  --data imagenet --codec MBT --rival deit_small_patch16_224 --alpha 0.3 --out runs/rival
    icat2022.py pixels --data imagenet --rival deit_small_patch16_224 --out runs/pixels

The first step has no quantization and no rate. It uses DeiT's augmentations (``--small`` runs are too short for them
and use those of the second step). The second step uses ``--alpha`` of 0.1, 0.3 and 0.6, and ``--ratio`` (alpha / beta)
of 100; the ablation uses 50 and 200. It uses only mirrored random resized crops, since other augmentations harm the
hyperprior. ``--schedule inat19`` is the paper's schedule for that data set; its first step starts from one of ImageNet
(``--init``).

``rival`` is ``mbt2018_mean`` followed by a network of timm that reads decoded images (``resnet50``,
``deit_small_patch16_224``, ``swin_tiny_patch4_window7_224``). Both are trained together; with ``--frozen``, neither is
trained (the paper's first comparison). MBT is a folder, a Hub repository or a name of weights. ``pixels`` trains such a
network alone on original images, as the first step does (table 1).

The paper's batches have 1024 images (512 on INat19) in all processes together; ``--batch`` is per process. The paper
leaves open: gradient clipping (here norm 1), the learning rate of the quantiles' optimizer (1e-3), the weight decay
(0.05, DeiT's). DeiT shows each image three times in a batch; this recipe does not. ``--amp`` is for the first step and
for classifiers of ``rival``. Codecs are trained in float32, because likelihoods need it.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from codec_training import CodecData, add_codec_options, named_codec, save_codec
from data import Images, batches
from evaluation import accuracy, count_correct, psnr
from schedules import constant, cosine
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from training import Run, add_command, fit, read_history, run_command

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.ops import bits_per_pixel, rate_distortion_accuracy_loss
from cdzoo.types import CodecOutput, Latent

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCHEDULES = {
    "imagenet": {"first": (300.0, 1024, 1e-3, 5.0), "second": (300.0, 1024, 1e-4, 5.0)},
    "inat19": {"first": (100.0, 512, 5e-4, 2.0), "second": (300.0, 512, 1e-4, 2.0)},
}
"""Epochs, batch, learning rate, epochs of warm-up."""


class Analysis(nn.Module):
    """Loss of equation 6, for a network that classifies and rebuilds, or for a codec and a classifier."""

    def __init__(self, codec: nn.Module, network: nn.Module | None, *, alpha: float, beta: float) -> None:
        super().__init__()
        self.codec, self.network, self.alpha, self.beta = codec, network, alpha, beta
        self.codec_is_coded = isinstance(codec, Codec)

    def outputs(self, x: Tensor) -> tuple[Any, Tensor]:
        """The output of the codec, and logits."""
        # likelihoods want all digits
        with torch.autocast(x.device.type, enabled=False) if self.codec_is_coded else contextlib.nullcontext():
            output = self.codec(x)
        if self.network is None:
            return output, output.logits
        return output, self.network(TF.normalize(output.x_hat, MEAN, STD))

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """All terms; the loss of the quantiles has parameters of its own, and is added."""
        output, logits = self.outputs(x)
        parts = rate_distortion_accuracy_loss(output, x, logits, target, alpha=self.alpha, beta=self.beta)
        terms = {"mse": parts.distortion, "cross_entropy": parts.cross_entropy}
        if not output.likelihoods:
            return {"loss": parts.loss, **terms}
        auxiliary = self.codec.aux_loss()
        return {"loss": parts.loss + auxiliary, **terms, "bpp": parts.bpp, "auxiliary": auxiliary}


class Originals(nn.Module):
    """A stand-in for a codec that returns images unchanged."""

    def forward(self, x: Tensor) -> CodecOutput:
        """Images ``(B, 3, H, W)`` as a :class:`~cdzoo.types.CodecOutput` without likelihoods."""
        return CodecOutput(x, Latent(x, None, (x.shape[-2], x.shape[-1])), {})


class AnalysisInputs:
    """Images, their classes, and the evaluation of an :class:`Analysis`."""

    def __init__(self, run: Run, *, deit: bool) -> None:
        args, self.run = run.args, run
        crop = v2.Compose([v2.RandomResizedCrop(args.crop, antialias=True), v2.RandomHorizontalFlip()])
        self.images = CodecData(run, resize=args.crop, view=_deit_view(args.crop) if deit else crop, labels=True)
        self.classes, self.train = self.images.classes, self.images.train
        self.mixup = None
        if deit:
            from timm.data import Mixup

            self.mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=len(self.classes))

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """A batch of the loader to the inputs of :class:`Analysis`; with mixup, classes become probabilities."""
        [x], labels = self.images(batch), batch[1].to(self.run.device)
        return (x, labels) if self.mixup is None else self.mixup(x, labels)

    @torch.no_grad()
    def evaluate(self, task: Analysis) -> dict[str, float]:
        """Accuracy, PSNR and estimated rate on center crops of the validation split."""
        task.eval()
        side, counts, sums = self.run.args.crop, [], torch.zeros(3, dtype=torch.float64)
        view = v2.Compose([v2.Resize(round(side / 0.875), antialias=True), v2.CenterCrop(side)])
        dataset = Images(self.images.files["val"], view)
        for x, labels in batches(dataset, 16, rank=self.run.rank, world=self.run.world):
            output, logits = task.outputs(x.to(self.run.device))
            counts.append(count_correct(logits, labels.to(self.run.device)))
            bpp = len(x) * float(bits_per_pixel(output)) if output.likelihoods else 0.0
            quality = float(psnr(output.x_hat.clamp(0, 1), x.to(self.run.device)).sum())
            sums += torch.tensor([quality, bpp, len(x)], dtype=torch.float64)
        quality, bpp, number = self.run.sum(sums).tolist()
        rate = {"val_bpp": round(bpp / number, 4)} if bpp else {}
        rebuilt = {} if isinstance(task.codec, Originals) else {"val_psnr": round(quality / number, 3)}
        return {**accuracy(self.run, counts), **rebuilt, **rate}


def _deit_view(size: int) -> Any:
    """Training augmentations of timm with DeiT's settings; images ``(3, size, size)`` in ``[0, 1]``."""
    from timm.data import create_transform

    augment = create_transform(
        size, is_training=True, color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
        re_prob=0.25, re_mode="pixel", mean=MEAN, std=STD,
    )  # fmt: skip
    for transform in augment.transforms:
        for operation in getattr(transform, "ops", ()):
            operation.magnitude_max = 9.9  # at 10 posterising leaves 0 bits, which Pillow refuses
    mean, std = (torch.tensor(constants).view(3, 1, 1) for constants in (MEAN, STD))
    return lambda image: (augment(TF.to_pil_image(image)) * std + mean).clamp(0, 1)


def parameter_groups(task: nn.Module, rate: float, weight_decay: float) -> tuple[list[dict[str, Any]], int]:
    """Groups of weights, of parameters without decay and of quantiles (constant rate), and the number of groups."""
    named = [(n, p) for n, p in task.named_parameters() if p.requires_grad]
    quantiles = [p for n, p in named if n.endswith(".quantiles")]
    rest = [(n, p) for n, p in named if not n.endswith(".quantiles")]
    plain = [p for n, p in rest if p.dim() <= 1 or n.endswith(("cls_token", "pos_embed"))]
    ids = {id(p) for p in plain}
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in rest if id(p) not in ids], "lr": rate, "weight_decay": weight_decay},
        {"params": plain, "lr": rate, "weight_decay": 0.0},
    ]
    if quantiles:
        groups.append({"params": quantiles, "lr": 1e-3, "weight_decay": 0.0, "clip": False})
    return groups, len(groups)


def _train(run: Run, task: Analysis, inputs: AnalysisInputs, optimizer: Any, *, warmup: float) -> Analysis:
    args = run.args
    groups, count = parameter_groups(task, args.lr, args.weight_decay)
    schedule = cosine(warmup=warmup, end=0.01)
    trained = fit(
        run, task, inputs.train, optimizer(groups), [schedule, schedule, constant][:count],
        prepare=inputs, evaluate=inputs.evaluate, clip=args.clip,
    )  # fmt: skip
    assert isinstance(trained, Analysis)
    if run.is_main and trained.network is not None:
        torch.save(trained.network.state_dict(), run.out / "classifier.pt")
    return trained


def _apply_schedule(args: argparse.Namespace, step: str) -> float:
    """Fill in the options that were not given, and return the share of the training that warms up."""
    epochs, batch, rate, warmup = SCHEDULES[args.schedule][step]
    args.batch, args.lr = args.batch or batch, args.lr or rate
    if args.epochs is None and not (args.steps or args.minutes):
        args.epochs = epochs
    return warmup / epochs


def first(args: argparse.Namespace) -> dict[str, Any]:
    """Train without quantization and rate: AdamW, 300 epochs, DeiT's augmentations, alpha 1, beta 0.001."""
    warmup = _apply_schedule(args, "first")
    run = Run(args)
    inputs = AnalysisInputs(run, deit=args.augment == "deit")
    run.seed("weights")
    if args.init:
        model = cdzoo.from_pretrained(args.init).train()
        model.reset_classifier(len(inputs.classes))
    else:
        how = {"width": args.width, "aggregation": args.aggregation}
        model = cdzoo.models.icat_small(num_classes=len(inputs.classes), **how)
    task = Analysis(model, None, alpha=args.alpha, beta=args.beta)
    trained = _train(run, task, inputs, torch.optim.AdamW, warmup=warmup)
    metrics = {**inputs.evaluate(trained), "images": len(inputs.images.files["val"])}
    if run.is_main:
        meta = {"classes": inputs.classes, "metrics": metrics, "recipe": run.command}
        meta["history"] = [row for row in read_history(run.out) if "top1" in row]
        cdzoo.save_pretrained(trained.codec, run.out / "icat", meta=meta)
    return run.finish(metrics)


def second(args: argparse.Namespace) -> dict[str, Any]:
    """Train with quantization and hyperprior, from the first step: Adam, 300 epochs, beta a hundredth of alpha."""
    warmup = _apply_schedule(args, "second")
    run = Run(args)
    inputs = AnalysisInputs(run, deit=False)
    run.seed("weights")
    if args.init:
        start = cdzoo.from_pretrained(args.init)
        arguments = {**start.origin.arguments, "hyperprior": True}
        model = cdzoo.models.icat_small(**arguments)
        model.init_from_first_step(start.state_dict())
    elif args.smoke:
        model = cdzoo.models.icat_small(num_classes=len(inputs.classes), width=args.width, hyperprior=True)
    else:
        raise SystemExit("--init is missing: the folder that the first step wrote.")
    task = Analysis(model, None, alpha=args.alpha, beta=args.alpha / args.ratio)
    trained = _train(run, task, inputs, torch.optim.Adam, warmup=warmup)
    found = inputs.evaluate(trained)
    metrics = found | save_codec(run, trained.codec, inputs.images, folder="icat", classes=inputs.classes, **found)
    return run.finish(metrics)


def pixel_network(run: Run, classes: int) -> nn.Module:
    """The network of ``--rival``."""
    import timm

    args = run.args
    sizes = {} if args.rival.startswith("resnet") else {"img_size": args.crop}
    if args.width != 1 and not args.rival.startswith("deit_small"):
        raise SystemExit(f"--width {args.width} is for deit_small networks; with {args.rival}, pass --width 1.")
    if args.width != 1 and args.pretrained:
        raise SystemExit("timm's weights are of --width 1; pass that, or leave --pretrained out.")
    if args.rival.startswith("deit_small"):
        with torch.device("meta"):
            ours = cdzoo.models.icat_small(width=args.width)
        sizes |= {"embed_dim": ours.num_features, "num_heads": ours.blocks[0].attn.num_heads}
    with run.one_after_the_other():  # weights may have to be fetched
        network: nn.Module = timm.create_model(args.rival, pretrained=args.pretrained, num_classes=classes, **sizes)
    if args.weights:
        network.load_state_dict(torch.load(args.weights, weights_only=True))
    return network


def pixels(args: argparse.Namespace) -> dict[str, Any]:
    """Train a classifier of original images as the first step trains the network, but for stochastic depth."""
    warmup = _apply_schedule(args, "first")
    run = Run(args)
    inputs = AnalysisInputs(run, deit=args.augment == "deit")
    run.seed("weights")
    task = Analysis(Originals(), pixel_network(run, len(inputs.classes)), alpha=args.alpha, beta=0.0)
    trained = _train(run, task, inputs, torch.optim.AdamW, warmup=warmup)
    return run.finish({**inputs.evaluate(trained), "images": len(inputs.images.files["val"])})


def rival(args: argparse.Namespace) -> dict[str, Any]:
    """Train mbt2018_mean and a classifier of decoded images together, by the second step's loss and schedule."""
    warmup = _apply_schedule(args, "second")
    run = Run(args)
    inputs = AnalysisInputs(run, deit=False)
    run.seed("weights")
    if args.codec is None and not args.smoke:
        raise SystemExit("--codec is missing: a folder or Hub repository of weights of mbt2018_mean.")
    codec: Codec = named_codec(args.codec) if args.codec else cdzoo.codecs.mbt2018_mean(N=8, M=12)
    network = pixel_network(run, len(inputs.classes))
    task = Analysis(codec.train(), network, alpha=args.alpha, beta=args.alpha / args.ratio)
    before = inputs.evaluate(task.to(run.device))
    if args.frozen:
        return run.finish(before)
    trained = _train(run, task, inputs, torch.optim.Adam, warmup=warmup)
    metrics = inputs.evaluate(trained) | {f"{name}_before": value for name, value in before.items()}
    metrics |= save_codec(run, trained.codec, inputs.images)
    return run.finish(metrics)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = {"crop": 64, "width": 0.34, "batch": 32, "workers": 0}
    smoke = {
        "crop": 64,
        "width": 0.17,
        "steps": 4,
        "batch": 4,
        "evaluate_every": 100.0,
        "log_every": 2,
        "minutes": None,
    }

    alike: dict[str, Any] = {
        "paper": {"batch": None, "weight_decay": 0.05},
        "small": {**common, "augment": "crop", "minutes": 18.0, "lr": 1e-3},
        "smoke": {**smoke, "augment": "deit"},
    }
    command = add_command(commands, first, **alike)
    _add_first_step_options(command)
    add = command.add_argument
    add("--beta", type=float, default=0.001, help="weight of the mean squared error, 0 to 255")
    add("--init", help="folder of a first step on other data to start from")
    add("--width", type=float, default=1.0)
    add("--aggregation", action=argparse.BooleanOptionalAction, default=True, help="equation 9, or from z_0 alone")

    command = add_command(commands, pixels, **alike)
    _add_first_step_options(command)
    _add_rival_options(command)

    small = {**common, "minutes": 14.0, "lr": 5e-4}
    command = add_command(commands, second, paper={"batch": None}, small=small, smoke=smoke)
    _add_options(command, alpha=0.3)
    command.add_argument("--ratio", type=float, default=100.0, help="alpha / beta")
    command.add_argument("--init", help="folder of the first step")
    command.add_argument("--width", type=float, default=1.0, help="in a smoke run; otherwise that of the first step")

    small = {**common, "minutes": 32.0, "lr": 5e-4}
    command = add_command(commands, rival, paper={"batch": None}, small=small, smoke=smoke)
    _add_options(command, alpha=0.3)
    _add_rival_options(command)
    add = command.add_argument
    add("--ratio", type=float, default=100.0, help="alpha / beta")
    add("--codec", help="folder, Hub repository or name of weights of mbt2018_mean")
    add("--frozen", action="store_true", help="measure, and train nothing")
    return run_command(parser, argv)


def _add_options(command: argparse.ArgumentParser, *, alpha: float) -> None:
    add_codec_options(command, crop=224)
    add = command.add_argument
    add("--alpha", type=float, default=alpha, help="weight of the cross-entropy")
    add("--schedule", choices=sorted(SCHEDULES), default="imagenet")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients")


def _add_first_step_options(command: argparse.ArgumentParser) -> None:
    _add_options(command, alpha=1.0)
    add = command.add_argument
    add("--augment", choices=("deit", "crop"), default="deit", help="crop: the second step's, for a few epochs")


def _add_rival_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--rival", default="deit_small_patch16_224", help="a network of timm, by name")
    add("--width", type=float, default=1.0, help="of DeiT-S: as many heads as icat_small of that width")
    add("--pretrained", action="store_true", help="start from timm's own weights")
    add("--weights", help="state dict of the network to start from")


if __name__ == "__main__":
    main()
