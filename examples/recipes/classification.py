"""Classifiers on the output of a frozen codec: on latents, or on decoded images for networks of the pixel domain."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from codec_training import named_codec
from data import (
    Cached,
    Images,
    batches,
    cache,
    crop_and_flip,
    generate_classes,
    list_classes,
    random_view,
    whole,
    widened,
)
from evaluation import accuracy, count_correct
from schedules import Schedule, part_of
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from training import Run, fit, growing, read_history

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent

Kind = Literal["latents", "decoded", "original"]
Augment = Callable[..., list[Tensor | None]]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, for networks of the pixel domain."""


class Classification(nn.Module):
    """Cross-entropy of a network; the last input is the labels.

    A batch norm whose weight is frozen keeps its statistics.
    """

    def __init__(self, model: nn.Module, *, smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        """Loss, and the share of the batch that is right."""
        *x, labels = inputs
        logits = self.model(*x)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == labels).float().mean()}

    def train(self, mode: bool = True) -> Classification:
        """Set the mode, as in PyTorch; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self


class ClassifierInputs:
    """Datasets of a training, and the function from their batches to the inputs of a network.

    Images are brought to squares of ``--size`` pixels and encoded, once if there is a ``--cache``; the network reads
    crops of ``--crop`` pixels of the latent or of the decoded image, in validation the one at the center. With
    ``--views``, a cache holds as many random views of each training image, besides the whole one.
    """

    def __init__(
        self, run: Run, codec: Codec | None, kind: Kind, *, augment: Augment = crop_and_flip, size: int | None = None
    ) -> None:
        args = run.args
        self.run, self.codec, self.kind, self.augment = run, codec, kind, augment
        self.cached = args.cache is not None
        if args.held and not self.cached:
            raise SystemExit("--held is about what is kept in --cache: give both, or leave it out.")
        self.transform = LatentTransform(size=None if size is None else (size, size))
        self.crop, self.crops = args.crop, getattr(args, "crops", None)
        root = args.data
        if args.smoke and root is None:
            with run.one_after_the_other():
                root = generate_classes(run.out / "images")
        if root is None:
            raise SystemExit("--data is missing: a folder with one sub-folder of images for each class.")
        self.classes, self.files = list_classes(root, args.limit)
        self.train, self.val = (self._dataset(split) for split in ("train", "val"))

    def _dataset(self, split: str) -> Any:
        args, files = self.run.args, self.files[split]
        random = random_view(args.size) if args.views else whole(args.size)
        if not self.cached:
            return Images(files, random if split == "train" else whole(args.size))
        home, decoded = Path(args.cache), self.kind == "decoded"
        codec = None if self.kind == "original" else self.codec
        views = args.views if split == "train" else 0
        names = [f"{split}{args.size}-{view}" for view in range(1 + views)]
        made = [whole(args.size), *[random] * views]
        return Cached(
            [
                cache(self.run, codec, files, view, home / name, decoded=decoded)
                for name, view in zip(names, made, strict=True)
            ],
            self.run.device if args.held else None,
        )

    def subtract_means(self) -> None:
        """Subtract the mean of each latent channel over a few hundred training images."""
        count = min(len(self.train), 320)
        some = torch.utils.data.Subset(self.train, range(0, len(self.train), max(1, len(self.train) // count)))
        self.run.seed("means")
        sums = [self._read(batch, self.train)[0].double().mean((0, 2, 3)) for batch in batches(some, 32)]
        mean = torch.stack(sums).mean(0)
        self.transform = LatentTransform(size=self.transform.size, mean=tuple(round(float(m), 5) for m in mean))

    def _read(self, batch: Any, dataset: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """A batch after the codec: latents (or images), scales, labels."""
        if self.cached:
            batch = dataset.look_up(batch)
        *tensors, labels = (t.to(self.run.device, non_blocking=True) for t in batch)
        if self.cached:
            scales = widened(tensors[1]) if len(tensors) > 1 and tensors[1].numel() else None
            return widened(tensors[0]), scales, labels
        if self.kind == "original":
            return tensors[0], None, labels
        assert self.codec is not None
        latent = self.codec.encode(tensors[0])
        return (*latent[:2], labels) if self.kind == "latents" else (self.codec.decode(latent), None, labels)

    def __call__(self, batch: Any, *, train: bool = True) -> tuple[Any, ...]:
        """A batch of the datasets to the inputs of :class:`Classification`."""
        first, scales, labels = self._read(batch, self.train if train else self.val)
        stride = self.codec.stride if self.codec is not None and self.kind == "latents" else 1
        side = self.crop
        if train and self.crops:
            side = growing(self.crops, self.run.args.crop_shares, self.run.progress)
        first, scales = self.augment([first, scales], side // stride, train=train)
        if self.kind == "latents":
            transform = self.transform
            if transform.size is not None and side != self.crop:  # by the same factor as the whole crop
                size = tuple(round(n * side / self.crop) for n in transform.size)
                transform = dataclasses.replace(transform, size=size)
            latent = transform(Latent(first, scales, (0, 0)))
            return latent.y_hat.contiguous(memory_format=torch.channels_last), latent.scales, labels
        return TF.normalize(first, MEAN, STD).contiguous(memory_format=torch.channels_last), labels

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Top-1 and top-5 accuracy on the validation split, in percent."""
        counts = []
        with torch.no_grad():
            for batch in batches(self.val, 32, rank=self.run.rank, world=self.run.world):
                *x, labels = self(batch, train=False)
                counts.append(count_correct(model.eval()(*x), labels))
        return accuracy(self.run, counts)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: weight decay acts on matrices and kernels, not on biases and norms."""
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]


def train_classifier(
    run: Run,
    model: nn.Module,
    inputs: ClassifierInputs,
    optimizer: torch.optim.Optimizer,
    schedules: Schedule | Sequence[Schedule],
    *,
    stage: str = "",
    share: float = 1.0,
    after: int = 0,
) -> nn.Module:
    """Train a network on prepared inputs; see :func:`training.fit`."""
    trained = fit(
        run,
        Classification(model, smoothing=run.args.smoothing),
        inputs.train,
        optimizer,
        schedules,
        prepare=inputs,
        evaluate=lambda task: inputs.evaluate(task.model),
        stage=stage,
        share=share,
        after=after,
    )
    return trained.model


def train_in_stages(
    run: Run,
    model: nn.Module,
    inputs: ClassifierInputs,
    known: Sequence[nn.Parameter],
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    *,
    rates: tuple[float, float],
    schedules: tuple[Schedule, Schedule],
    frozen: float,
    share: float = 1.0,
    stages: tuple[str, str] = ("stage1", "stage2"),
) -> nn.Module:
    """Train without the parameters in ``known``, for a share ``frozen`` of the whole, and then with them.

    The second stage continues the order of the images, with a new optimizer.

    Args:
        known: some of the network's parameters; where there are none, ``frozen`` is 0.
        make: an optimizer of groups of parameters.
        rates: of what is new, and of what is known.
        schedules: likewise, each over both stages.
        frozen: the first stage's share, 0 to 1.
        share: see :func:`training.fit`.
        stages: names of folders.

    Raises:
        ValueError: where ``frozen`` is no share, or nothing would be frozen.
    """
    if not 0 <= frozen <= 1 or (frozen and not known):
        raise ValueError(f"frozen must be 0 to 1, and 0 where nothing is known, not {frozen} of {len(known)} tensors.")
    ids = {id(parameter) for parameter in known}
    new = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    before = run.steps
    for first, stage, start, end in ((True, stages[0], 0.0, frozen), (False, stages[1], frozen, 1.0)):
        if start == end:
            continue
        for parameter in known:
            parameter.requires_grad_(not first)
        groups = [{"params": new, "lr": rates[0]}]
        groups += [{"params": list(known), "lr": rates[1]}] if known and not first else []
        parts = [part_of(schedule, start, end) for schedule in schedules[: len(groups)]]
        more = {"stage": stage, "share": share * (end - start), "after": run.steps - before}
        trained = train_classifier(run, model, inputs, make(groups), parts, **more)
        if first:
            model.load_state_dict(trained.state_dict())
    return trained


def save_classifier(
    run: Run, model: nn.Module, inputs: ClassifierInputs, *, folder: str = "classifier"
) -> dict[str, Any]:
    """Measure a network that a builder of cdzoo made, write it, and read it again."""
    metrics = inputs.evaluate(model)
    if run.is_main:
        latents = inputs.kind == "latents"
        cdzoo.save_pretrained(
            model,
            run.out / folder,
            codec=inputs.codec if latents else None,
            transforms=inputs.transform if latents else None,
            meta={
                "classes": inputs.classes,
                "metrics": {**metrics, "split": "validation", "images": len(inputs.files["val"])},
                "input": {"reads": inputs.kind, "size": run.args.size, "crop": run.args.crop},
                "recipe": run.command,
                "history": [row for row in read_history(run.out) if "top1" in row],
            },
        )
    with run.one_after_the_other():
        again = cdzoo.from_pretrained(run.out / folder).to(run.device)
    check_same(again, model)
    return {**metrics, "images": len(inputs.files["val"]), "classes": len(inputs.classes)}


def check_same(read: nn.Module, written: nn.Module) -> None:
    """Refuse weights that differ after saving and loading."""
    theirs = written.state_dict()
    wrong = [name for name, tensor in read.state_dict().items() if not torch.equal(tensor, theirs[name])]
    if wrong:
        raise RuntimeError(f"{', '.join(wrong[:3])} are not what was saved.")


def add_input_options(command: argparse.ArgumentParser) -> None:
    """Options of :class:`ClassifierInputs`."""
    add = command.add_argument
    add("--codec", help="folder or Hub repository of a codec's weights")
    add("--cache", type=Path, help="folder for squares of the images, and latents or decoded images, made once")
    add("--held", action="store_true", help="hold all of --cache in the memory of the device")
    add("--views", type=int, default=0, help="random views of each image; 0 for the whole image only")
    add("--size", type=int, default=256, help="pixels of the squares that are encoded")
    add("--crop", type=int, default=224, help="pixels that the network sees")
    add("--smoothing", type=float, default=0.0, help="of labels")


def load_codec(run: Run, smoke: Callable[[], Any]) -> Codec:
    """The codec that ``--codec`` names; in a smoke run without one, what ``smoke()`` builds."""
    if run.args.codec is None and not run.args.smoke:
        raise SystemExit("--codec is missing: the folder of a codec's weights, as the codec command writes it.")
    codec: Codec = smoke() if run.args.codec is None else named_codec(run.args.codec)
    return codec.to(run.device).eval().requires_grad_(False)
