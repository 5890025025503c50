"""Training a codec: images, options, and the folder of weights, which is measured."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from data import Images, batches, generate_classes, held_out, images_below, list_classes, random_crop, thinned, whole
from evaluation import estimated_bpp, measure_codec, psnr
from torch import Tensor, nn
from torchvision.transforms import v2
from training import Run, take_over

import cdzoo
from cdzoo.codecs import Codec

_VALIDATED = 48
_CALIBRATED = 256


class CodecData:
    """Random crops of ``--crop`` pixels for training, and whole images that were held out.

    Args:
        resize: shorter side that images are brought to before they are cropped; ``None`` for their own.
        view: a function of training images, in place of cropping.
        labels: whether images are sorted into classes, one folder each; otherwise all images below ``--data`` count.
    """

    def __init__(self, run: Run, *, resize: int | None, view: Any = None, labels: bool = False) -> None:
        args, self.run, self.classes = run.args, run, list[str]()
        root = args.data
        if args.smoke and root is None:
            with run.one_after_the_other():
                root = generate_classes(run.out / "images")
        if root is None:
            raise SystemExit("--data is missing: a folder of images.")
        if labels:
            self.classes, files = list_classes(root, args.limit)
        else:
            found = [(f, 0) for f in images_below(root)]
            files = {"train": [f for f in found if not held_out(f[0].name)]}
            files["val"] = [f for f in found if held_out(f[0].name)]
            files = {split: thinned(pairs, args.limit) for split, pairs in files.items()}
        self.files = files
        view = view or v2.Compose([*([v2.Resize(resize, antialias=True)] if resize else []), random_crop(args.crop)])
        self.train, self.side = Images(files["train"], view), resize

    def __call__(self, batch: Any) -> tuple[Tensor, ...]:
        """A batch of the loader to images on the device."""
        return (batch[0].to(self.run.device, memory_format=torch.channels_last),)

    def validation(self, limit: int | None = None) -> Iterator[Any]:
        """Center squares of held-out images, and their classes: this process's share."""
        files = thinned(self.files["val"], limit)
        view = whole(self.side or self.run.args.crop)
        for x, labels in batches(Images(files, view), 16, rank=self.run.rank, world=self.run.world):
            yield x.to(self.run.device), labels

    def evaluate(self, task: nn.Module) -> dict[str, float]:
        """PSNR and estimated rate of ``task.codec`` on some held-out images, as it stands in training."""
        codec, rows = task.codec.eval(), []
        for x, _ in self.validation(_VALIDATED):
            x_hat = codec.decode(codec.encode(x))
            rows += [[float(psnr(a[None], b[None])), estimated_bpp(codec, b[None]), 1] for a, b in zip(x_hat, x)]  # noqa: B905
        total = self.run.sum(torch.tensor(rows, dtype=torch.float64).sum(0))
        return {"val_psnr": float(total[0] / total[2]), "val_bpp": float(total[1] / total[2])}


def init_codec(run: Run, codec: Codec, source: str | None) -> None:
    """Start from another codec's weights (a folder or a Hub repository): copy all tensors of equal name and shape."""
    if source is None:
        return
    taken = take_over(codec, named_codec(source).state_dict())
    if all(parameter.dim() < 2 for parameter in taken):  # a bias or two fit anywhere
        raise SystemExit(f"{source} has no tensor of the names and sizes of {codec.name}; leave --init out.")
    run.say(f"{len(taken)} of {sum(1 for _ in codec.parameters())} parameters from {source}")


def named_codec(source: str) -> Codec:
    """A codec from a folder, a Hub repository, or the name of weights that ship with cdzoo.

    Such names are ``Enum.MEMBER``; ``MEMBER`` is enough where one codec alone has it.
    """
    if source.partition(".")[0].endswith("_Weights"):
        found = [cdzoo.get_weight(source)]
    else:
        enums = [cdzoo.get_model_weights(builder) for builder in cdzoo.list_codecs(pretrained=True)]
        found = [enum[source] for enum in enums if source in enum.__members__]
    if len(found) > 1:
        names = " or ".join(map(str, found))
        raise SystemExit(f"{source} is what weights of several codecs are called; choose {names}.")
    if found:
        return cdzoo.get_codec(found[0].source.config["builder"], weights=found[0])
    codec = cdzoo.from_pretrained(source)
    if not isinstance(codec, Codec):
        raise SystemExit(f"{source} holds no codec.")
    return codec


def save_codec(run: Run, codec: Codec, images: CodecData, *, folder: str = "codec", **meta: Any) -> dict[str, Any]:
    """Measure a codec's symbol tables, write it, and measure what is read back, on ``--test`` or held-out images."""
    args = run.args
    if args.test is None:
        tests = [file for file, _ in thinned(images.files["val"], _VALIDATED)]
    else:
        tests = images_below(args.test)
    dtype = torch.float16 if args.half else None
    if run.is_main:
        cdzoo.save_pretrained(codec.eval(), run.out / folder, dtype=dtype)
        rounded = cdzoo.from_pretrained(run.out / folder).to(run.device)
        run.seed("calibration")
        some = Images(thinned(images.files["train"], _CALIBRATED), images.train.transform)
        rounded.calibrate(x.to(run.device) for x, _ in batches(some, 16))
        cdzoo.save_pretrained(rounded, run.out / folder, dtype=dtype)
    with run.one_after_the_other():
        again = cdzoo.from_pretrained(run.out / folder)
    metrics = measure_codec(run, again, tests)
    metrics["measured_on"] = "held-out images" if args.test is None else args.test.name  # type: ignore[assignment]
    if run.is_main:
        cdzoo.save_pretrained(
            again, run.out / folder, dtype=dtype, meta={"metrics": metrics, "recipe": run.command, **meta}
        )
    return metrics


def add_codec_options(command: argparse.ArgumentParser, *, crop: int) -> None:
    """Options of :class:`CodecData` and :func:`save_codec`."""
    command.add_argument("--crop", type=int, default=crop, help="pixels of the training images")
    command.add_argument(
        "--half", action="store_true", help="write weights of 16 bits, which make a codec of their own"
    )
    command.add_argument("--test", type=Path, help="folder of images to measure the codec on; else held-out ones")


def add_init_option(command: argparse.ArgumentParser) -> None:
    """The option of :func:`init_codec`."""
    command.add_argument("--init", help="folder or Hub repository of a codec whose weights to start from")
