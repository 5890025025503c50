"""Torfason et al., Towards Image Understanding from Deep Compression Without Decoding, ICLR 2018.

The paper's experiments, in its order (A.1, A.4, A.5, A.8):

    torfason2018.py codec      --data imagenet --test kodak --rate 0.635 --out runs/codec
    torfason2018.py classifier --data imagenet --codec runs/codec/codec --model cresnet51 --out runs/classifier
    torfason2018.py classifier --data imagenet --codec runs/codec/codec --model resnet50 --out runs/pixels
    torfason2018.py segmenter  --data voc --codec runs/codec/codec --classifier runs/classifier/classifier
    torfason2018.py joint      --data imagenet --codec runs/codec/codec --classifier runs/classifier/classifier

``resnet50`` and ``resnet71`` read decoded images; the paper compares with them. It compares joint training with a
control of three steps (6.1): train the codec alone for longer; train a classifier from scratch on that codec; train the
classifier for nine more epochs:

    torfason2018.py joint      ... --train codec --out runs/control
    torfason2018.py classifier ... --codec runs/control/codec --out runs/control-classifier
    torfason2018.py joint      ... --train classifier --codec runs/control/codec \
                                   --classifier runs/control-classifier/classifier --out runs/control-longer

A segmenter of the joint network starts from ``--codec runs/joint/codec --classifier runs/joint/classifier``.

The paper leaves some details open. This recipe chooses:

- The codec is trained on crops of 160 pixels.
- beta and H_t in equation 1, for the codec alone, are those that A.8 gives for joint training. At 0.330 bits per pixel
  the paper gives neither: beta is 300, between those of the other rates, and H_t is 1.32 (H C / 64 = 0.330).
- The batch of joint training is 64, as in classification.

The paper's learning rate of joint training at 0.330 bits per pixel is 1e-5, a hundredth of the others. It is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from classification import (
    Classification,
    ClassifierInputs,
    add_input_options,
    load_codec,
    save_classifier,
    train_classifier,
)
from codec_training import CodecData, add_codec_options, add_init_option, init_codec, save_codec
from data import crop_and_flip
from evaluation import accuracy, count_correct
from schedules import constant, cosine, step_decay
from segmentation import add_mask_options, segmenter_of
from torch import Tensor, nn
from training import Run, add_command, fit, run_command

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.ops import joint_loss, target_rate_distortion_loss
from cdzoo.transforms import LatentTransform

RATES = {
    0.0983: {"latent_channels": 8, "beta": 600.0, "target_entropy": 0.8, "lr": 1e-3},
    0.330: {"latent_channels": 16, "beta": 300.0, "target_entropy": 1.32, "lr": 1e-5},
    0.635: {"latent_channels": 32, "beta": 150.0, "target_entropy": 1.265, "lr": 1e-3},
}
"""Operating points in bits per pixel (A.1, A.8)."""


class CodecTask(nn.Module):
    """Loss of the codec, equation 1."""

    def __init__(self, codec: nn.Module, *, beta: float, target_entropy: float, gamma: float = 1.0) -> None:
        super().__init__()
        self.codec, self.beta, self.target_entropy, self.gamma = codec, beta, target_entropy, gamma

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Loss, mean squared error on the scale 0 to 255, and bits per pixel."""
        output, y = self.codec.forward_with_y(images)
        entropy = self.codec.quantizer.entropy(y.float())
        parts = target_rate_distortion_loss(output, images, entropy, beta=self.beta, target_entropy=self.target_entropy)
        bpp = entropy * self.codec.latent_channels / self.codec.stride**2
        return {"loss": self.gamma * parts.loss, "mse": parts.distortion, "bpp": bpp}


class JointTask(nn.Module):
    """Loss of joint training, equation 2; the channel means that the classifier subtracts stay as they were."""

    def __init__(self, codec: nn.Module, model: nn.Module, mean: Tensor, weights: dict[str, float]) -> None:
        super().__init__()
        self.codec, self.model, self.weights = codec, model, weights
        self.register_buffer("mean", mean)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss, mean squared error, bits per pixel and cross-entropy."""
        output, y = self.codec.forward_with_y(images)
        entropy = self.codec.quantizer.entropy(y.float())
        logits = self.model(output.latent.y_hat - self.mean)
        parts = joint_loss(output, images, entropy, logits, labels, **self.weights)
        bpp = entropy * self.codec.latent_channels / self.codec.stride**2
        return {"loss": parts.loss, "mse": parts.distortion, "bpp": bpp, "cross_entropy": parts.cross_entropy}


def rate_of(args: argparse.Namespace) -> dict[str, float]:
    """Fill in the loss weights of the operating point that were not given."""
    rate = RATES[args.rate]
    return {k: rate[k] if getattr(args, k) is None else getattr(args, k) for k in ("beta", "target_entropy")}


def codec(args: argparse.Namespace) -> dict[str, Any]:
    """Train the codec for one of the paper's rates (A.1): Adam, batch 30, 600,000 steps."""
    run, rate = Run(args), RATES[args.rate]
    channels = args.latent_channels or rate["latent_channels"]
    net = cdzoo.codecs.torfason2018(latent_channels=int(channels), levels=args.levels, N=args.N)
    init_codec(run, net, args.init)
    images = CodecData(run, resize=None)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr or rate["lr"])
    task = CodecTask(net, **rate_of(args))
    # the paper has a constant rate; a short training is better off with a slow end
    schedule = cosine(constant_until=0.6, end=0.02) if args.small or args.smoke else constant
    trained = fit(run, task, images.train, optimizer, schedule, prepare=images, evaluate=images.evaluate)
    metrics = save_codec(run, trained.codec, images)
    return run.finish(metrics)


def classifier(args: argparse.Namespace) -> dict[str, Any]:
    """Train a classifier of latents, or of decoded images, from scratch (A.4): SGD, batch 64, 28 epochs."""
    run = Run(args)
    net = load_codec(run, _smoke_codec)
    latents = args.model.startswith("cresnet")
    inputs = ClassifierInputs(run, net, "latents" if latents else "decoded")
    sizes = {"in_channels": net.latent_channels, "latent_stride": net.stride} if latents else {}
    if latents:
        inputs.subtract_means()
    run.seed("weights")
    model = cdzoo.get_model(args.model, num_classes=len(inputs.classes), width=args.width, **sizes)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
    # a training of few epochs gets further with a cosine than with three steps
    schedule = cosine(warmup=0.03) if args.small or args.smoke else step_decay((8, 16, 24), of=28)
    trained = train_classifier(run, model, inputs, optimizer, schedule)
    metrics = save_classifier(run, trained, inputs)
    return run.finish(metrics)


def segmenter(args: argparse.Namespace) -> dict[str, Any]:
    """Train a segmenter that starts from a classifier (A.5): SGD, poly, batch 10, 20,000 steps.

    Crops are cut from the images, not from the latents, because images of unequal sizes do not fit into one batch.
    """
    run = Run(args)
    return segmenter_of(run, load_codec(run, _smoke_codec), latents=args.model.startswith("cresnet"), center=True)


def joint(args: argparse.Namespace) -> dict[str, Any]:
    """Continue the training of a codec and a classifier together (A.8), or of one as a control: SGD, 9 epochs."""
    run = Run(args)
    net = load_codec(run, _smoke_codec)
    images = CodecData(run, resize=args.size, labels=True)
    if args.classifier is None and not args.smoke:
        raise SystemExit("--classifier is missing: the folder that the classifier command wrote.")
    run.seed("weights")
    sizes = {"in_channels": net.latent_channels, "num_classes": len(images.classes), "latent_stride": net.stride}
    model = (
        cdzoo.from_pretrained(args.classifier) if args.classifier else cdzoo.models.cresnet39(width=0.05, **sizes)
    ).to(run.device)
    transform = getattr(model, "transforms", None) or LatentTransform(mean=(0.0,) * net.latent_channels)
    mean = torch.tensor(transform.mean, device=run.device).view(-1, 1, 1)
    weights = {**rate_of(args), "gamma": args.gamma}

    net.requires_grad_(args.train != "classifier")
    task: nn.Module
    if args.train == "both":
        task = JointTask(net, model, mean, weights)
    else:
        task = CodecTask(net, **weights) if args.train == "codec" else Classification(model)

    def prepare(batch: Any) -> tuple[Any, ...]:
        [x], labels = images(batch), batch[1].to(run.device)
        if args.train == "both":
            return x, labels
        return (x,) if args.train == "codec" else (net.encode(x).y_hat - mean, labels)

    def classify(codec: Codec, model: nn.Module) -> dict[str, float]:
        counts = []
        with torch.no_grad():
            for x, labels in images.validation():
                [y_hat] = crop_and_flip([codec.encode(x).y_hat - mean], args.crop // net.stride, train=False)
                counts.append(count_correct(model.eval()(y_hat), labels.to(run.device)))
        return accuracy(run, counts)

    def evaluate(task: nn.Module) -> dict[str, float]:
        found = {} if args.train == "classifier" else images.evaluate(task)
        return found if args.train == "codec" else found | classify(getattr(task, "codec", net), task.model)

    optimizer = torch.optim.SGD(
        [p for p in task.parameters() if p.requires_grad], args.lr, momentum=0.9, weight_decay=args.weight_decay
    )
    before = classify(net, model) if args.classifier else {}
    trained = fit(
        run, task, images.train, optimizer, step_decay((3, 6), of=9), prepare=prepare, evaluate=evaluate, clip=args.clip
    )
    metrics: dict[str, Any] = {f"{name}_before": value for name, value in before.items()}
    if args.train != "classifier":
        metrics |= save_codec(run, trained.codec, images)
        net = cdzoo.from_pretrained(run.out / "codec").to(run.device)
    if args.train != "codec":
        metrics |= classify(net, trained.model)
        if run.is_main:
            meta = {"classes": images.classes, "metrics": metrics, "recipe": run.command}
            cdzoo.save_pretrained(trained.model, run.out / "classifier", codec=net, transforms=transform, meta=meta)
    return run.finish(metrics)


def _smoke_codec() -> Codec:
    torch.manual_seed(0)
    return cdzoo.codecs.torfason2018(latent_channels=8, N=8)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    # where no weight decay is mentioned, there is none
    tiny = {"steps": 4, "batch": 4, "evaluate_every": 100.0, "log_every": 2}
    command = add_command(
        commands,
        codec,
        paper={"steps": 600_000, "batch": 30, "rate": 0.635},
        small={
            "rate": 0.330, "lr": 1e-3, "N": 32, "crop": 96, "batch": 16, "minutes": 12.0, "workers": 0, "ema": 0.998,
        },
        smoke={"N": 8, "crop": 64, "minutes": None, **tiny},
    )  # fmt: skip
    add_codec_options(command, crop=160)
    add_init_option(command)
    _add_rate_options(command)
    command.add_argument("--levels", type=int, default=6, help="centers of the quantizer")
    command.add_argument("--N", type=int, default=128, help="channels of the codec's residual units")
    command.add_argument("--latent-channels", type=int, help="default: the paper's for this rate")

    small = {"width": 0.125, "size": 128, "crop": 112, "views": 1, "batch": 32, "workers": 0, "minutes": 12.0}
    command = add_command(
        commands,
        classifier,
        paper={"epochs": 28.0, "batch": 64, "lr": 0.025, "weight_decay": 1e-4},
        small={**small, "lr": 0.05, "ema": 0.998, "cache": Path("runs/cache"), "evaluate_every": 4.0},
        smoke={"width": 0.05, "size": 64, "crop": 56, "views": 0, "cache": None, "minutes": None, **tiny},
    )
    add_input_options(command)
    command.add_argument("--model", default="cresnet51", choices=_CLASSIFIERS)
    command.add_argument("--width", type=float, default=1.0)

    command = add_command(
        commands,
        segmenter,
        paper={"steps": 20_000, "batch": 10, "lr": 1e-3, "weight_decay": 5e-4},
        small={"width": 0.25, "resize": 0.5, "crop": 160, "batch": 8, "minutes": 10.0, "lr": 0.01, "workers": 0},
        smoke={"width": 0.05, "resize": 1.0, "crop": 64, "minutes": None, **tiny},
    )
    add_mask_options(command)
    command.add_argument("--classifier", help="folder of a trained classifier to start from; else random values")
    command.add_argument("--model", default="cresnet51_d", choices=[f"{name}_d" for name in _CLASSIFIERS])
    command.add_argument("--width", type=float, default=1.0)

    command = add_command(
        commands,
        joint,
        paper={"epochs": 9.0, "batch": 64, "lr": 0.0025, "rate": 0.635},
        small={"rate": 0.330, "size": 128, "crop": 112, "batch": 32, "minutes": 8.0, "workers": 0},
        smoke={"size": 64, "crop": 56, "minutes": None, **tiny},
    )
    add_codec_options(command, crop=224)
    _add_rate_options(command)
    command.add_argument("--codec", help="folder of the codec to start from")
    command.add_argument("--classifier", help="folder of the classifier to start from")
    command.add_argument("--train", choices=("both", "codec", "classifier"), default="both")
    command.add_argument("--gamma", type=float, default=0.001)
    command.add_argument("--size", type=int, default=256, help="shorter side that images are brought to")
    command.add_argument("--clip", type=float, help="largest norm of the gradients; the paper mentions none")
    return run_command(parser, argv)


_CLASSIFIERS = ("cresnet39", "cresnet51", "cresnet72", "resnet50", "resnet71")


def _add_rate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rate", type=float, choices=sorted(RATES), help="operating point, bits per pixel")
    command.add_argument("--beta", type=float, help="default: the paper's for this rate")
    command.add_argument("--target-entropy", type=float, help="default: the paper's for this rate")


if __name__ == "__main__":
    main()
