"""Wang et al., Learning from the CNN-based Compressed Domain, WACV 2022.

    wang2022.py codec      --data imagenet --test kodak --beta1 100 --out runs/codec          # 20, 50, 100, 200
    wang2022.py classifier --data imagenet --codec runs/codec/codec --model resnet41 --out runs/classifier
    wang2022.py classifier --data imagenet --codec runs/codec/codec --channels 32 --out runs/few     # 32 or 16 of 256
    wang2022.py classifier --data imagenet --codec runs/codec/codec --model resnet50 --out runs/pixels
    wang2022.py segmenter  --data voc --codec runs/codec/codec --classifier runs/classifier/classifier
    wang2022.py multitask  --data imagenet --masks voc --codec runs/codec/codec --betas 100 1 1

Each batch of a classifier's training has a random image size of 224 to 448 pixels (3.4.3). Accuracy is measured on
images of their own size, one by one (3.4.2). ``--min-size 224 --max-size 224`` is the fixed size of table 3. resnet49
takes 672 to 1120 pixels, and images enlarged by three (``--enlarge 3``, 4.6). Latents are never resized. ``resnet50``
learns after reconstruction, for comparison: images of the same sizes are coded, decoded and resized to 224x224 (4.2).
MobileNetV2 after reconstruction (table 2) and validation at 224x224 (tables 5 and 6) are in ``heads.py``, at one size.

The paper leaves some details open. This recipe chooses:

- Classifiers are trained by SGD, as torchvision trains ResNet-50: 90 epochs, batches of 256, a learning rate of 0.1
  divided by 10 every 30 epochs, weight decay 1e-4. MobileNetV2 has a rate of 0.05, a cosine schedule and weight decay
  4e-5.
- The codec is trained for 1,000,000 steps of 16 images. The learning rate stays at 1e-4, and gradients are clipped to
  norm 1 (``--clip``).
- The squared error is that of images in [-1, 1], summed over the colors: 12 times the mean in [0, 1] (``--mse-scale``).
  On this scale ``beta1`` from 20 to 200 balances rate and distortion. On [0, 1] the rate would dominate, on 0 to 255
  the distortion.
- Segmentation has the settings of Torfason et al., with whom the paper compares.
- The paper states equation 1 with all tasks but does not train it. ``multitask`` trains it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import torch.nn.functional as F
from classification import MEAN, STD, Classification, load_codec
from codec_training import CodecData, add_codec_options, add_init_option, init_codec, save_codec
from data import Images, Masks, batches, generate_classes, generate_masks, list_classes, list_masks, thinned
from evaluation import ConfusionMatrix, accuracy, count_correct
from schedules import constant, cosine, step_decay
from segmentation import add_mask_options, segmenter_of
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from training import Run, add_command, fit, read_history, run_command

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.ops import RandomSizeCollate, gaussian_entropy_loss, multi_task_loss, rank_channels


class CodecTask(nn.Module):
    """Loss of the codec: equation 1 without classification and segmentation."""

    def __init__(self, codec: nn.Module, *, beta1: float, mse_scale: float) -> None:
        super().__init__()
        self.codec, self.beta1, self.mse_scale = codec, beta1, mse_scale

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Loss, the estimate of the rate, and the mean squared error on the scale 0 to 255."""
        output, y = self.codec.forward_with_y(images)
        rate, mse = gaussian_entropy_loss(y.float()), F.mse_loss(output.x_hat.float(), images)
        loss = multi_task_loss(rate, [self.mse_scale * mse], [self.beta1])
        return {"loss": loss, "log_variance": rate, "mse": 255**2 * mse}


class MultiTask(nn.Module):
    """Loss of all tasks: equation 1 with reconstruction, classification and segmentation."""

    def __init__(
        self, codec: nn.Module, classifier: nn.Module, segmenter: nn.Module | None, *, betas: Sequence[float],
        mse_scale: float, void: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.codec, self.classifier, self.segmenter = codec, classifier, segmenter
        self.betas, self.mse_scale, self.void = tuple(betas), mse_scale, void

    def forward(self, images: Tensor, labels: Tensor, scenes: Tensor | None, masks: Tensor | None) -> dict[str, Tensor]:
        """All terms; the codec sees the images of both data sets."""
        output, y = self.codec.forward_with_y(images)
        rate, mse = gaussian_entropy_loss(y.float()), F.mse_loss(output.x_hat.float(), images)
        tasks = [self.mse_scale * mse, F.cross_entropy(self.classifier(output.latent).float(), labels)]
        terms = {"log_variance": rate, "mse": 255**2 * mse, "cross_entropy": tasks[1]}
        if self.segmenter is not None and scenes is not None:
            latent = self.codec.forward_with_y(scenes)[0].latent
            tasks.append(F.cross_entropy(self.segmenter(latent).float(), masks, ignore_index=self.void))
            terms["segmentation"] = tasks[2]
        return {"loss": multi_task_loss(rate, tasks, self.betas[: len(tasks)]), **terms}


def codec(args: argparse.Namespace) -> dict[str, Any]:
    """Train the codec for one rate (3.3, 4.1): Adam, rate 1e-4, random views of 256 pixels, beta1 of 20 to 200."""
    run = Run(args)
    net = cdzoo.get_codec("choi2019", latent_channels=args.latent_channels, N=args.N)
    view = v2.Compose([v2.RandomResizedCrop(args.crop, scale=(0.2, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    init_codec(run, net, args.init)
    images = CodecData(run, resize=None, view=view)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    task = CodecTask(net, beta1=args.beta1, mse_scale=args.mse_scale)
    schedule = cosine(warmup=0.02, constant_until=0.6, end=0.02) if args.small or args.smoke else constant
    trained = fit(
        run, task, images.train, optimizer, schedule, prepare=images, evaluate=images.evaluate, clip=args.clip
    )
    metrics = save_codec(run, trained.codec, images)
    return run.finish(metrics)


class AnySizeInputs:
    """Inputs from images of any size: latents of a frozen codec, or decoded and resized images."""

    def __init__(self, run: Run, codec: Codec, *, latents: bool) -> None:
        args, root = run.args, run.args.data
        self.run, self.codec, self.latents, self.side = run, codec, latents, args.pixel_size
        if args.smoke and root is None:
            with run.one_after_the_other():
                root = generate_classes(run.out / "images")
        if root is None:
            raise SystemExit("--data is missing: a folder with one sub-folder of images for each class.")
        self.classes, self.files = list_classes(root, args.limit)
        # what the collate function brings to one size for each batch
        view = v2.Compose([v2.RandomResizedCrop(args.max_size, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()])
        self.train, self.val = Images(self.files["train"], view), Images(self.files["val"], self._enlarge)
        self.collate = RandomSizeCollate(args.min_size, args.max_size)

    def _enlarge(self, image: Tensor) -> Tensor:
        args = self.run.args
        if args.mixed_sizes:
            (low, high), share = args.mixed_sizes, crc32(image.numpy().tobytes()) / 2**32
            return TF.resize(image, [round(low * (high / low) ** share)], antialias=True)
        factor = args.enlarge
        return image if factor == 1 else TF.resize(image, [round(factor * side) for side in image.shape[-2:]])

    def __call__(self, batch: Any) -> tuple[Any, ...]:
        """A batch of the datasets to the inputs of :class:`classification.Classification`."""
        images, labels = (t.to(self.run.device) for t in batch)
        latent = self.codec.encode(images)
        if self.latents:
            return latent, labels
        x = TF.resize(self.codec.decode(latent), [self.side], antialias=True)  # the shorter side
        x = TF.center_crop(x, [self.side, self.side])
        return TF.normalize(x, MEAN, STD).contiguous(memory_format=torch.channels_last), labels

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Top-1 and top-5 accuracy on validation images in their own sizes, in percent."""
        counts = []
        with torch.no_grad():
            for batch in batches(self.val, 1, rank=self.run.rank, world=self.run.world):
                x, labels = self(batch)
                counts.append(count_correct(model.eval()(x), labels))
        return accuracy(self.run, counts)

    def best_channels(self, count: int) -> tuple[int, ...]:
        """The channels of largest variance over a thousand training images (3.4.4)."""
        files = thinned(self.files["train"], 2000)
        latents = (self.codec.encode(x.to(self.run.device)) for x, _ in batches(Images(files, self._enlarge), 1))
        return tuple(rank_channels(latents)[:count].tolist())


SGD = {"resnet": {"lr": 0.1, "weight_decay": 1e-4}, "mobile": {"lr": 0.05, "weight_decay": 4e-5}}


def classifier(args: argparse.Namespace) -> dict[str, Any]:
    """Train a classifier on latents of many sizes (3.4.3), or after reconstruction: SGD, 90 epochs."""
    run = Run(args)
    net = load_codec(run, _smoke_codec)
    inputs = AnySizeInputs(run, net, latents=args.model != "resnet50")
    sizes: dict[str, Any] = {}
    if inputs.latents:
        channels = inputs.best_channels(args.channels) if args.channels else None
        sizes = {"in_channels": net.latent_channels, "channels": channels, "latent_stride": net.stride}
        sizes |= {} if args.upscale is None else {"upscale": args.upscale}
    run.seed("weights")
    model = cdzoo.get_model(args.model, num_classes=len(inputs.classes), width=args.width, **sizes)
    settings = SGD[args.model[:6]]
    rate, decay = (settings[k] if getattr(args, k) is None else getattr(args, k) for k in ("lr", "weight_decay"))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay)
    plain = not (args.small or args.smoke) and args.model.startswith("resnet")
    schedule = step_decay((30, 60), of=90) if plain else cosine(warmup=0.03)
    task = fit(
        run,
        Classification(model),
        inputs.train,
        optimizer,
        schedule,
        prepare=inputs,
        collate=inputs.collate,
        evaluate=lambda task: inputs.evaluate(task.model),
    )
    metrics = {**inputs.evaluate(task.model), "images": len(inputs.files["val"])}
    if run.is_main:
        meta = {"classes": inputs.classes, "metrics": metrics, "recipe": run.command}
        meta |= {"history": [row for row in read_history(run.out) if "top1" in row]}
        cdzoo.save_pretrained(task.model, run.out / "classifier", codec=net if inputs.latents else None, meta=meta)
    return run.finish(metrics)


def segmenter(args: argparse.Namespace) -> dict[str, Any]:
    """Train a segmenter with a ResNet-41 as backbone, or with a ResNet-50 on decoded images."""
    run = Run(args)
    return segmenter_of(run, load_codec(run, _smoke_codec), latents=args.model == "resnet41_seg")


class ClassesAndScenes(Dataset[Any]):
    """An image with a class, and an image with a mask, chosen at random."""

    def __init__(self, classes: Dataset[Any], scenes: Dataset[Any] | None) -> None:
        self.classes, self.scenes = classes, scenes

    def __len__(self) -> int:
        return len(self.classes)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if self.scenes is None:
            return self.classes[index]
        other = int(torch.randint(len(self.scenes), ()))  # type: ignore[arg-type]
        return *self.classes[index], *self.scenes[other]


def multitask(args: argparse.Namespace) -> dict[str, Any]:
    """Train codec, classifier and (with --masks) segmenter by equation 1 as a whole."""
    run = Run(args)
    net = _smoke_codec() if args.smoke else cdzoo.get_codec("choi2019", latent_channels=args.latent_channels, N=args.N)
    if args.codec:
        net = cdzoo.from_pretrained(args.codec)
    images = CodecData(run, resize=args.size, labels=True)
    masks = args.masks
    if args.smoke:
        with run.one_after_the_other():
            masks = generate_masks(run.out / "scenes")
    num_classes, void, pairs = list_masks(masks, args.limit) if masks else (0, 0, {})
    scenes = Masks(pairs["train"], crop=args.crop, void=void) if masks else None
    run.seed("weights")
    sizes = {"in_channels": net.latent_channels, "latent_stride": net.stride, "width": args.width}
    classifier = cdzoo.models.resnet41(num_classes=len(images.classes), **sizes)
    segmenter = cdzoo.models.resnet41_seg(num_classes=num_classes, **sizes) if masks else None
    betas, scale = args.betas, args.mse_scale
    task = MultiTask(net, classifier, segmenter, betas=betas, mse_scale=scale, void=void)

    def prepare(batch: Any) -> tuple[Any, ...]:
        tensors = [t.to(run.device) for t in batch]
        return (*tensors, None, None)[:4]

    def evaluate(task: nn.Module) -> dict[str, float]:
        counts, codec = [], task.codec.eval()
        with torch.no_grad():
            for x, labels in images.validation():
                counts.append(count_correct(task.classifier.eval()(codec.encode(x)), labels.to(run.device)))
            found = images.evaluate(task) | accuracy(run, counts)
            if masks:
                confusion = ConfusionMatrix(num_classes)
                whole_scenes = Masks(pairs["val"], crop=None, void=void)
                for x, mask in batches(whole_scenes, 1, rank=run.rank, world=run.world):
                    logits = task.segmenter.eval()(codec.encode(x.to(run.device)))
                    confusion.add(logits.argmax(1), mask.to(run.device))
                found |= confusion.metrics(run)
        return found

    optimizer = torch.optim.Adam(task.parameters(), lr=args.lr)
    data = ClassesAndScenes(images.train, scenes)
    trained = fit(run, task, data, optimizer, cosine(warmup=0.02), prepare=prepare, evaluate=evaluate, clip=args.clip)
    metrics = evaluate(trained) | save_codec(run, trained.codec, images)
    if run.is_main:
        saved, meta = cdzoo.from_pretrained(run.out / "codec"), {"metrics": metrics, "classes": images.classes}
        cdzoo.save_pretrained(trained.classifier, run.out / "classifier", codec=saved, meta=meta)
        if masks:
            cdzoo.save_pretrained(trained.segmenter, run.out / "segmenter", codec=saved, meta={"metrics": metrics})
    return run.finish(metrics)


def _smoke_codec() -> Codec:
    torch.manual_seed(0)
    return cdzoo.get_codec("choi2019", latent_channels=8, N=8)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tiny = {"steps": 4, "batch": 4, "evaluate_every": 100.0, "log_every": 2, "minutes": None}

    command = add_command(
        commands,
        codec,
        paper={"steps": 1_000_000, "batch": 16, "lr": 1e-4},
        small={"N": 32, "latent_channels": 64, "crop": 96, "lr": 1e-3, "minutes": 10.0, "ema": 0.998, "workers": 0},
        smoke={"N": 8, "latent_channels": 8, "crop": 64, **tiny},
    )
    add_codec_options(command, crop=256)
    add_init_option(command)
    add = command.add_argument
    add("--beta1", type=float, default=100.0, help="weight of the reconstruction: 20, 50, 100, 200 in the paper")
    _add_codec_sizes(command)

    command = add_command(
        commands,
        classifier,
        paper={"epochs": 90.0, "batch": 256, "lr": None, "weight_decay": None},
        small={
            "width": 0.125, "min_size": 96, "max_size": 192, "pixel_size": 128, "batch": 32, "lr": 0.05, "ema": 0.998,
            "workers": 0, "minutes": 10.0, "evaluate_every": 2.0,
        },
        smoke={"width": 0.05, "min_size": 40, "max_size": 64, "pixel_size": 48, **tiny},
    )  # fmt: skip
    add = command.add_argument
    add("--codec", help="folder or Hub repository of a codec's weights")
    add("--model", default="resnet41", choices=("resnet41", "resnet49", "mobilenet_v2_45", "resnet50"))
    add("--width", type=float, default=1.0)
    add("--upscale", choices=("pixel_shuffle", "deconv"), help="how latents are enlarged; default: the network's")
    add("--channels", type=int, help="read so many channels, those of most variance: 32 or 16 in the paper")
    add("--min-size", type=int, default=224, help="least pixels of a batch of images")
    add("--max-size", type=int, default=448, help="greatest pixels of a batch of images")
    add("--pixel-size", type=int, default=224, help="what decoded images are brought to for resnet50")
    add("--enlarge", type=float, default=1.0, help="factor for validation images")
    add(
        "--mixed-sizes", type=int, nargs=2, metavar=("LOW", "HIGH"),
        help="bring validation images to shorter sides between these, each to its own: for data of one size",
    )  # fmt: skip

    command = add_command(
        commands,
        segmenter,
        paper={"steps": 20_000, "batch": 10, "lr": 1e-3, "weight_decay": 5e-4},
        small={"width": 0.125, "resize": 0.5, "crop": 160, "batch": 8, "minutes": 10.0, "lr": 0.01, "workers": 0},
        smoke={"width": 0.05, "resize": 1.0, "crop": 64, **tiny},
    )
    add_mask_options(command)
    command.add_argument("--classifier", help="folder of a trained classifier to start from; else random values")
    command.add_argument("--model", default="resnet41_seg", choices=("resnet41_seg", "resnet50_d"))
    command.add_argument("--width", type=float, default=1.0)

    command = add_command(
        commands,
        multitask,
        paper={"epochs": 30.0, "batch": 64, "lr": 1e-4},
        small={
            "width": 0.125, "N": 32, "latent_channels": 64, "size": 128, "crop": 112, "batch": 16, "lr": 5e-4,
            "minutes": 10.0, "workers": 0,
        },
        smoke={"width": 0.05, "size": 64, "crop": 64, "N": 8, "latent_channels": 8, **tiny},
    )  # fmt: skip
    add_codec_options(command, crop=256)
    _add_codec_sizes(command)
    add = command.add_argument
    add("--codec", help="folder of a codec to start from; else random values")
    add("--masks", type=Path, help="CamVid's or PASCAL VOC's folder, for the segmenter")
    add("--betas", type=float, nargs=3, default=(100.0, 1.0, 1.0), help="reconstruction, classification, segmentation")
    add("--size", type=int, default=256, help="shorter side that images are brought to")
    add("--width", type=float, default=1.0)
    return run_command(parser, argv)


def _add_codec_sizes(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--N", type=int, default=256, help="hidden channels of the codec")
    add("--latent-channels", type=int, default=256)
    add("--mse-scale", type=float, default=12.0, help="times the mean squared error of images in [0, 1]")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients")


if __name__ == "__main__":
    main()
