"""Codecs with a learned entropy model, on which other papers build: Ballé et al. 2018, Minnen et al. 2018.

    hyperprior.py codec --data imagenet --test kodak --quality 4 --out runs/codec
    hyperprior.py codec --data imagenet --test kodak --model mbt2018_mean --metric ms-ssim --out runs/mean

Deng & Karam read the latents of a scale hyperprior, with the published weights for MS-SSIM of tensorflow-compression;
Bai et al. compare with the mean-scale one, and name no implementation. CompressAI's procedure is the default here:
``lmbda D + R`` with its weights for qualities 1 to 8, batches of 16 crops of 256 pixels, Adam at 1e-4, gradients
clipped to norm 1, and the quantiles of the entropy bottleneck at a rate of their own, 1e-3. CompressAI lowers the rate
when the loss no longer falls. This recipe needs a fixed length: the rate is constant for most of the training and then
falls by a cosine. ``--optimizer soap --lr 2e-3`` needs fewer steps; ``--amp bf16`` is several times faster where the
processor multiplies such matrices.

``--init`` starts from the weights of another codec: of the next rate, of another metric, or of a scale hyperprior for a
mean-scale one. All tensors of equal name and shape are copied.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from codec_training import CodecData, add_codec_options, add_init_option, init_codec, save_codec
from schedules import constant, cosine
from soap import SOAP
from torch import Tensor, nn
from training import Run, add_command, fit, run_command

import cdzoo
from cdzoo.codecs.hyperprior import LAMBDAS
from cdzoo.ops import rate_distortion_loss

OPTIMIZERS = {"adam": torch.optim.Adam, "soap": SOAP}


class CodecTask(nn.Module):
    """``lmbda D + R``, and the loss of the quantiles, which has parameters of its own."""

    def __init__(self, codec: nn.Module, *, lmbda: float, metric: Any) -> None:
        super().__init__()
        self.codec, self.lmbda, self.metric = codec, lmbda, metric

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Loss, distortion (mean squared error on the scale 0 to 255, or 1 - MS-SSIM) and bits per pixel."""
        parts = rate_distortion_loss(self.codec(images), images, lmbda=self.lmbda, metric=self.metric)
        auxiliary = self.codec.aux_loss()
        terms = {"distortion": parts.distortion, "bpp": parts.bpp, "auxiliary": auxiliary}
        return {"loss": parts.loss + auxiliary, **terms}


def codec(args: argparse.Namespace) -> dict[str, Any]:
    """Train a codec for one rate: batch 16, crops of 256 pixels."""
    run = Run(args)
    sizes = {name: getattr(args, name) for name in ("N", "M") if getattr(args, name) is not None}
    net = cdzoo.get_codec(args.model, quality=args.quality, metric=args.metric, **sizes)
    init_codec(run, net, args.init)
    images = CodecData(run, resize=None)
    named = list(net.named_parameters())
    groups = [
        {"params": [p for n, p in named if not n.endswith(".quantiles")], "lr": args.lr},
        {"params": [p for n, p in named if n.endswith(".quantiles")], "lr": 1e-3, "clip": False, "rotate": False},
    ]
    lmbda = LAMBDAS[args.metric][args.quality - 1] if args.lmbda is None else args.lmbda
    task = CodecTask(net, lmbda=lmbda, metric=args.metric)
    trained = fit(
        run, task, images.train, OPTIMIZERS[args.optimizer](groups),
        [cosine(warmup=0.02, constant_until=0.5, end=0.01), constant],
        prepare=images, evaluate=images.evaluate, clip=args.clip,
    )  # fmt: skip
    metrics = save_codec(run, trained.codec, images)
    return run.finish(metrics)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = add_command(
        commands,
        codec,
        paper={"steps": 1_000_000, "batch": 16, "lr": 1e-4},
        small={"N": 48, "M": 64, "crop": 128, "batch": 8, "lr": 1e-3, "minutes": 12.0, "ema": 0.998, "workers": 0},
        smoke={
            "N": 8, "M": 12, "crop": 64, "steps": 4, "batch": 4, "evaluate_every": 100.0, "log_every": 2,
            "minutes": None,
        },
    )  # fmt: skip
    add_codec_options(command, crop=256)
    add_init_option(command)
    add = command.add_argument
    models = ("bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean")
    add("--model", default="bmshj2018_hyperprior", choices=models)
    add("--quality", type=int, default=4, choices=range(1, 9), help="sets N, M and the weight of the distortion")
    add("--metric", default="mse", choices=sorted(LAMBDAS))
    add("--lmbda", type=float, help="weight of the distortion in place of the quality's")
    add("--N", type=int, help="hidden channels in place of the quality's")
    add("--M", type=int, help="latent channels in place of the quality's")
    add("--optimizer", default="adam", choices=OPTIMIZERS, help="soap needs fewer steps; its --lr is about 2e-3")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients")
    return run_command(parser, argv)


if __name__ == "__main__":
    main()
