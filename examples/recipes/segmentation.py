"""Segmenters on the output of a frozen codec: on latents, or on decoded images."""

from __future__ import annotations

import argparse
from typing import Any, Literal

import torch
import torch.nn.functional as F
from classification import MEAN, STD, check_same
from data import Masks, batches, generate_masks, list_masks
from evaluation import ConfusionMatrix
from schedules import polynomial
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from training import Run, fit, read_history

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent


class Segmentation(nn.Module):
    """Cross-entropy of all pixels but the void ones."""

    def __init__(self, model: nn.Module, *, void: int) -> None:
        super().__init__()
        self.model, self.void = model, void

    def forward(self, x: Any, mask: Tensor) -> dict[str, Tensor]:
        """Loss, and the share of pixels that are right."""
        logits = self.model(x).float()
        right = (logits.detach().argmax(1) == mask)[mask != self.void].float().mean()
        return {"loss": F.cross_entropy(logits, mask, ignore_index=self.void), "pixel_accuracy": right}


class SegmenterInputs:
    """Datasets of a training, and the function from their batches to the inputs of a network.

    Training crops have ``--crop`` pixels; the validation images are whole, and go one by one.
    """

    def __init__(self, run: Run, codec: Codec, kind: Literal["latents", "decoded"]) -> None:
        args, root = run.args, run.args.data
        self.run, self.codec, self.kind, self.transform = run, codec, kind, LatentTransform()
        if args.smoke and root is None:
            with run.one_after_the_other():
                root = generate_masks(run.out / "images")
        if root is None:
            raise SystemExit("--data is missing: CamVid's or PASCAL VOC's folder.")
        self.num_classes, self.void, self.pairs = list_masks(root, args.limit)
        self.train = Masks(self.pairs["train"], crop=args.crop, void=self.void, resize=args.resize)
        self.val = Masks(self.pairs["val"], crop=None, void=self.void, resize=args.resize)

    def subtract_means(self) -> None:
        """Subtract the mean of each latent channel over some training crops."""
        self.run.seed("means")
        some = torch.utils.data.Subset(self.train, range(min(len(self.train), 64)))
        sums = [self.codec.encode(x.to(self.run.device)).y_hat.double().mean((0, 2, 3)) for x, _ in batches(some, 16)]
        self.transform = LatentTransform(mean=tuple(round(float(m), 5) for m in torch.stack(sums).mean(0)))

    def __call__(self, batch: Any) -> tuple[Latent | Tensor, Tensor]:
        """A batch of the datasets to the inputs of :class:`Segmentation`."""
        images, masks = (t.to(self.run.device) for t in batch)
        latent = self.codec.encode(images)
        if self.kind == "latents":
            return self.transform(latent), masks
        x = TF.normalize(self.codec.decode(latent), MEAN, STD)
        return x.contiguous(memory_format=torch.channels_last), masks

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean intersection over union on the validation split, in percent."""
        confusion = ConfusionMatrix(self.num_classes)
        with torch.no_grad():
            for batch in batches(self.val, 1, rank=self.run.rank, world=self.run.world):
                x, mask = self(batch)
                confusion.add(model.eval()(x).argmax(1), mask)
        return confusion.metrics(self.run)


def segmenter_of(run: Run, codec: Codec, *, latents: bool, center: bool = False) -> dict[str, Any]:
    """Train a segmenter, from a classifier or from random values, by the recipe of DeepLab and Torfason et al. (A.5).

    Args:
        latents: whether the network reads latents; decoded images otherwise.
        center: subtract the mean of each latent channel; a classifier brings its own.
    """
    args, inputs = run.args, SegmenterInputs(run, codec, "latents" if latents else "decoded")
    if args.classifier:
        classifier = cdzoo.from_pretrained(args.classifier)
        model = cdzoo.models.Segmenter.from_classifier(classifier, num_classes=inputs.num_classes)
        inputs.transform = getattr(model, "transforms", None) or inputs.transform
    else:
        if latents and center:
            inputs.subtract_means()
        run.seed("weights")
        sizes = {"in_channels": codec.latent_channels, "latent_stride": codec.stride} if latents else {}
        model = cdzoo.get_model(args.model, num_classes=inputs.num_classes, width=args.width, **sizes)
    rates = {"backbone": args.lr, "classifier": 10 * args.lr}
    optimizer = torch.optim.SGD(
        [{"params": group["params"], "lr": rates[group["name"]]} for group in model.parameter_groups()],
        momentum=0.9,
        weight_decay=args.weight_decay,
    )
    task = fit(
        run,
        Segmentation(model, void=inputs.void),
        inputs.train,
        optimizer,
        polynomial(0.9),
        prepare=inputs,
        evaluate=lambda task: inputs.evaluate(task.model),
    )
    metrics = save_segmenter(run, task.model, inputs)
    return run.finish(metrics)


def save_segmenter(run: Run, model: nn.Module, inputs: SegmenterInputs) -> dict[str, Any]:
    """Measure a network that a builder of cdzoo made, write it, and read it again."""
    metrics, folder = inputs.evaluate(model), run.out / "segmenter"
    latents = inputs.kind == "latents"
    if run.is_main:
        cdzoo.save_pretrained(
            model,
            folder,
            codec=inputs.codec if latents else None,
            transforms=inputs.transform if latents else None,
            meta={
                "metrics": {**metrics, "split": "validation", "images": len(inputs.pairs["val"])},
                "recipe": run.command,
                "history": [row for row in read_history(run.out) if "miou" in row],
            },
        )
    with run.one_after_the_other():
        again = cdzoo.from_pretrained(folder).to(run.device)
    check_same(again, model)
    return {**metrics, "images": len(inputs.pairs["val"])}


def add_mask_options(command: argparse.ArgumentParser, *, crop: int = 320) -> None:
    """Options of :class:`SegmenterInputs`."""
    command.add_argument("--codec", help="folder or Hub repository of a codec's weights")
    command.add_argument("--crop", type=int, default=crop, help="pixels of the training images")
    command.add_argument("--resize", type=float, default=1.0, help="factor for all images, before anything else")
