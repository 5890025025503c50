r"""One training procedure for all classifiers: the same images, views, epochs and search.

    heads.py classifier --small --data imagenette --codec CODEC --model fa_cresnet39 --enlarge 2 --out runs/latents
    heads.py classifier --small --data imagenette --codec CODEC --model resnet50 --out runs/decoded
    heads.py classifier --small --data imagenette --model mobilenet_v2 --out runs/original
    heads.py classifier --small --data imagenette --codec CODEC --model fa_cresnet39 --enlarge 2 \
        --start runs/decoded/classifier --frozen 3.4 --out runs/started

CODEC is a folder, a Hub repository or a name of weights (``BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64``).

Each paper trains its networks with its own procedure on its own data, so the tables of two papers cannot be compared.
Here networks over latents, over decoded images and over original images see the same squares of ``--size`` pixels: each
image as a whole and in ``--views`` random views. They train on random crops of ``--crop`` pixels, mirrored half the
time, and are validated on the center crop. With ``--crops``, the side of the training crops grows instead; latents are
then enlarged by the same factor as the whole latent.

The optimizer is AdamW, which gets further in a few epochs than the papers' SGD. The search tries every learning rate of
``--rates`` for ``--search-epochs`` and takes the one with the smallest training loss in the last of them. Rates follow
a cosine in both.

``--start`` takes over all layers of a trained network that have the same name and shape. They are frozen for
``--frozen`` epochs (in the search for all of it) and then trained at a tenth of the rate. Deng & Karam train in this
way, from the ResNet-50 of decoded images, with SGD and 15 of 35 epochs (``fa_cresnet2023.py``).

``--enlarge`` resizes latents by a factor with nearest neighbor, as Deng & Karam do to read latents of stride 16 with a
network for stride 8. ResNet-41 and MobileNetV2-45 enlarge latents themselves.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from classification import ClassifierInputs, add_input_options, load_codec, save_classifier, train_in_stages
from data import Images, batches, crop_and_flip, list_classes, thinned, whole
from schedules import cosine
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training import Run, add_command, read_history, run_command, take_over, write_text

import cdzoo
from cdzoo.codecs import Codec, read_header
from cdzoo.ops import rank_channels

LATENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cresnet39": ("cresnet39", {}),
    "cresnet51": ("cresnet51", {}),
    "cresnet72": ("cresnet72", {}),
    "cresnet39+scales": ("cresnet39", {"use_scales": True, "stride_in_1x1": False}),
    "fa_cresnet39": ("fa_cresnet39", {}),
    "fa_cresnet39+few": ("fa_cresnet39", {"num_convs": (2, 3, 4)}),
    "fa_cresnet39-scales": ("fa_cresnet39_ablation", {"use_scales": False}),
    "fa_cresnet39+last": ("fa_cresnet39_ablation", {"fa_position": "post"}),
    "fa_cresnet39+pool-max": ("fa_cresnet39_ablation", {"pooling": "max"}),
    "fa_cresnet39+pool-avg": ("fa_cresnet39_ablation", {"pooling": "avg"}),
    "fa_cresnet39+pool-max-avg": ("fa_cresnet39_ablation", {"pooling": "max+avg"}),
    "fa_cresnet39+pool-shared": ("fa_cresnet39_ablation", {"pooling": "shared"}),
    "fa_cresnet39+cau-skip": ("fa_cresnet39_ablation", {"position": "skip"}),
    "fa_cresnet39+cau-inner": ("fa_cresnet39_ablation", {"position": "inner"}),
    "fa_cresnet39+cau-post": ("fa_cresnet39_ablation", {"position": "post"}),
    "fa_cresnet39+scale": ("fa_cresnet39_ablation", {"transform": "scale"}),
    "fa_cresnet39+bias": ("fa_cresnet39_ablation", {"transform": "bias"}),
    "fa_cresnet39+1fc": ("fa_cresnet39_ablation", {"reduction": "1fc"}),
    "fa_cresnet39+r1": ("fa_cresnet39_ablation", {"reduction": 1}),
    "fa_cresnet39+convs444": ("fa_cresnet39_ablation", {"num_convs": (4, 4, 4)}),
    "cresnet39+scales+attention": ("fa_cresnet39_ablation", {"parts": "attention"}),
    "cresnet39+scales+enhancement": ("fa_cresnet39_ablation", {"parts": "enhancement"}),
    "resnet41": ("resnet41", {}),
    "mobilenet_v2_45": ("mobilenet_v2_45", {}),
}
"""Networks that read latents, by name: builder and options.

``+few`` is for the lowest rate of Deng & Karam; other names with a plus are changes of their table 3.
"""
PIXELS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("resnet50", {}),
    "resnet50v1.5": ("resnet50", {"stride_in_1x1": False}),
    "fa_resnet50": ("fa_resnet50", {}),
    "resnet71": ("resnet71", {}),
    "mobilenet_v2": ("mobilenet_v2", {}),
}
"""Networks that read images. ResNet-50 v1.5, which Deng & Karam use, has its strides in the 3x3 convolutions."""


def build(run: Run, args: argparse.Namespace, codec: Codec | None, classes: int) -> nn.Module:
    """The network of ``--model`` with ``--width`` of its channels, from values that follow from the seed."""
    run.seed("weights")
    if args.model == "mobilenet_v2":
        from torchvision.models import mobilenet_v2

        return mobilenet_v2(num_classes=classes, width_mult=args.width)
    if args.model in PIXELS:
        builder, how = PIXELS[args.model]
        return cdzoo.get_model(builder, num_classes=classes, width=args.width, **how)
    assert codec is not None
    builder, how = LATENTS[args.model]
    sizes = {"in_channels": codec.latent_channels, "latent_stride": codec.stride, "width": args.width}
    if args.channels:
        how = {**how, "channels": best_channels(codec, args)}
    return cdzoo.get_model(builder, num_classes=classes, **sizes, **how)


def best_channels(codec: Codec, args: argparse.Namespace) -> tuple[int, ...]:
    """Return the ``--channels`` with the largest variance over a thousand training images (Wang et al., 3.4.4)."""
    files = thinned(list_classes(args.data)[1]["train"], 1000)
    latents = (codec.encode(x) for x, _ in batches(Images(files, whole(args.size)), 32))
    return tuple(rank_channels(latents)[: args.channels].tolist())


def real_rate(run: Run, codec: Codec, files: Sequence[Any]) -> float:
    """Mean bits per pixel, in whole files, of validation images at ``--size`` pixels; measured once for each codec."""
    known = Path(run.args.cache or run.out) / f"rate{run.args.size}-{codec.fingerprint}.json"
    if not known.exists():
        rates = []
        for x, _ in batches(Images(files, whole(run.args.size)), 16):
            rates += [read_header(stream).bpp for stream in codec.compress(x.to(run.device))]
        known.parent.mkdir(parents=True, exist_ok=True)
        write_text(known, json.dumps({"bpp": sum(rates) / len(rates)}))
    return float(json.loads(known.read_text())["bpp"])


def train(
    run: Run, inputs: ClassifierInputs, codec: Codec | None, rate: float, *, warmup: float, searched: bool = False
) -> tuple[nn.Module, int]:
    """Train a network, or search with it; return it and the number of its parameters that were taken over."""
    args = run.args
    model = build(run, args, codec, len(inputs.classes))
    known = take_over(model, cdzoo.from_pretrained(args.start).state_dict()) if args.start else []
    if args.start and not known:
        raise SystemExit(f"--start {args.start} has no tensor that {args.model} could take over.")
    frozen = (1.0 if searched else args.frozen / args.epochs) if known else 0.0
    stage = f"search-{rate}"
    trained = train_in_stages(
        run,
        model,
        inputs,
        known,
        lambda groups: torch.optim.AdamW(groups, weight_decay=args.weight_decay, fused=run.device.type == "cuda"),
        rates=(rate, rate / 10),
        schedules=(cosine(warmup=warmup),) * 2,
        frozen=frozen,
        share=args.search_epochs / args.epochs if searched else 1.0,
        stages=(stage, stage) if searched else ("frozen", "training"),
    )
    return trained, sum(parameter.numel() for parameter in known)


def search(run: Run, inputs: ClassifierInputs, codec: Codec | None) -> dict[float, float]:
    """Return the training loss in the last of ``--search-epochs``, for each rate of ``--rates``."""
    args, found = run.args, {}
    for rate in args.rates if len(args.rates) > 1 else ():
        train(run, inputs, codec, rate, warmup=0.1, searched=True)
        rows = [r for r in read_history(run.out / f"search-{rate}") if r["epoch"] > args.search_epochs - 1]
        found[rate] = sum(r["loss"] for r in rows) / len(rows)
    return found


def classifier(args: argparse.Namespace) -> dict[str, Any]:
    """Train a network on latents, on decoded or on original images: AdamW, the best of a few rates."""
    if args.epochs is None:
        raise SystemExit("--epochs is missing: the search and the frozen epochs are shares of it.")
    if not 0 <= args.frozen <= args.epochs or (args.frozen and not args.start):
        raise SystemExit(f"--frozen {args.frozen} needs --start, and is at most the {args.epochs} epochs of --epochs.")
    run = Run(args)
    torch.backends.cudnn.benchmark = True  # all images have one size
    latents = args.model in LATENTS
    codec = load_codec(run, _smoke_codec) if latents or args.codec or args.smoke else None
    kind: Any = "latents" if latents else "original" if codec is None else "decoded"
    side = None
    if latents and args.enlarge > 1:
        assert codec is not None
        side = args.crop // codec.stride * args.enlarge
    augment = functools.partial(crop_and_flip, mirror=args.mirror or not latents)
    inputs = ClassifierInputs(run, codec, kind, augment=augment, size=side)
    if latents and args.centre:
        inputs.subtract_means()
    losses = search(run, inputs, codec)
    rate = min(losses, key=lambda r: losses[r]) if losses else args.rates[0]
    run.minutes, run.steps = 0.0, 0  # of the training itself
    trained, taken_over = train(run, inputs, codec, rate, warmup=0.05)
    if getattr(trained, "origin", None):
        metrics = save_classifier(run, trained, inputs)
    else:  # torchvision's
        metrics = {**inputs.evaluate(trained), "images": len(inputs.files["val"]), "classes": len(inputs.classes)}
        torch.save(trained.state_dict(), run.out / "classifier.pt")
    [*x, _] = inputs(next(iter(batches(inputs.val, 1))), train=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trained.eval()(*x)
    metrics |= {"reads": kind, "mmacs": round(counter.get_total_flops() / 2e6, 2)}
    metrics |= {"parameters": sum(p.numel() for p in trained.parameters()), "lr": rate, "epochs": args.epochs}
    metrics |= {"taken_over": taken_over, "frozen": args.frozen} if args.start else {}
    metrics |= {"search": {str(rate): round(loss, 4) for rate, loss in losses.items()}, "seed": args.seed}
    if codec is not None:
        metrics |= {"bpp": round(real_rate(run, codec, inputs.files["val"]), 4), "codec": codec.name}
        metrics |= {"fingerprint": codec.fingerprint}
    return run.finish(metrics)


def _smoke_codec() -> Codec:
    torch.manual_seed(0)
    return cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = add_command(
        commands,
        classifier,
        paper={"epochs": 30.0, "batch": 64, "weight_decay": 0.05},
        small={
            "width": 0.125, "size": 128, "crop": 112, "views": 1, "batch": 32, "epochs": 8.0, "ema": 0.998,
            "workers": 0, "evaluate_every": 4.0, "checkpoint_minutes": 1.0,
        },
        smoke={
            "width": 0.05, "size": 64, "crop": 48, "views": 0, "batch": 4, "epochs": 1.0, "search_epochs": 1.0,
            "cache": None, "log_every": 2,
        },
    )  # fmt: skip
    add_input_options(command)
    add = command.add_argument
    add("--model", default="cresnet39", choices=(*LATENTS, *PIXELS))
    add("--width", type=float, default=1.0)
    add("--enlarge", type=int, default=1, help="latents are brought to so many times their size")
    add("--centre", action="store_true", help="subtract each latent channel's mean, as Torfason et al. do")
    add(
        "--mirror", action=argparse.BooleanOptionalAction, default=True,
        help="mirror latents half the time, as Torfason et al. do; images always are",
    )  # fmt: skip
    add("--channels", type=int, help="read so many latent channels, those of most variance")
    add("--rates", type=float, nargs="+", default=(1e-3, 4e-3), help="learning rates to choose from")
    add("--crops", type=int, nargs="+", help="pixels of the training crops, in turn, in place of --crop")
    add("--crop-shares", type=float, nargs="+", help="share of the training for each of --crops")
    add("--search-epochs", type=float, default=1.0)
    add("--start", help="folder of a trained network whose layers are taken over where name and shape agree")
    add("--frozen", type=float, default=0.0, help="epochs for which they are not trained")
    return run_command(parser, argv)


if __name__ == "__main__":
    main()
