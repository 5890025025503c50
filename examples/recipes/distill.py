"""A pretrained CNN that reads JPEG coefficients or a codec's latents, by distillation and without labels.

    distill.py --teacher timm/tf_efficientnet_lite0 --input jpeg --images photos --out runs/jpeg
    distill.py --teacher torchvision/resnet50 --input CODEC --cut layer2 --images photos more_photos --out runs/latents

The teacher is cut in two. Its front is replaced by an adapter, which learns to give the features that the front gives;
what follows the cut, the trunk, stays. This is the adaptation of Deng & Karam (arXiv:2305.08000, section 4.2), learned
from the teacher instead of from labels, in three stages:

1. features: the adapter alone, mean squared error of normalized features. Nothing behind the cut is run.
2. logits: also the divergence from the teacher's class probabilities, through the frozen trunk.
3. trunk (``--unfreeze blocks.3 blocks.4``): the first parts of the trunk are trained as well.

``--cut`` names the last module of the front; left out, it is the last stage of ``--stride`` 8, which 8x8 blocks and
latents of stride 16 can give. ``--teacher`` is any CNN of timm or torchvision that torch.fx can trace, with its
published weights or those of ``--teacher-weights``. ``--input`` is ``jpeg``, or a codec: a folder, a Hub repository or
a name.

Latents of one size are read as they are. With several ``--sizes``, such as 160 224 300 448 600 896, the codec sees each
batch at one of these sizes, and the adapter learns to give the features of the teacher's size for all of them.

The teacher's front costs more than the adapter, so views can be used several times: with ``--reuse 6`` one sixth of
each batch is new, and the rest comes from a pool of ``--pool`` views in memory. The pool is filled again after a kill,
so only runs without reuse go on exactly as they would have.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from classification import named_codec
from data import Images, batches, generate_classes, held_out, images_below, thinned, whole
from data import read as read_image
from muon import Muon, parameter_groups
from PIL import Image
from schedules import cosine
from student import ADAPTERS, AnySizeAdapter
from teachers import PACKAGED, Teacher, load_teacher, split, stage_of_stride
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm
from training import Run, add_command, fit, run_command

import cdzoo
from cdzoo.jpeg import dct
from cdzoo.models.adapters import BlockAdapter

BICUBIC = v2.InterpolationMode.BICUBIC
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that it cannot read."""

# -- what the student reads --------------------------------------------------------------------------------------


def blocks_of(images: Tensor) -> tuple[Tensor]:
    """DCT coefficients ``(B, H/8, W/8, 192)`` of Y, Cb and Cr of images in [0, 1], as resizing between blocks gives."""
    red, green, blue = images.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack([luma - 128 / 255, (blue - luma) / 1.772, (red - luma) / 1.402], 1)
    return (255 * dct.dct2d(dct.blockify(planes)).permute(0, 2, 3, 1, 4, 5).flatten(3),)


def latents_by(codec: cdzoo.codecs.Codec, *, sided: bool = False) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function from images to latents, scales where the codec has them, and the images' side if ``sided``."""

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        latent = codec.encode(images)
        sides = [images.new_full((len(images), 1), images.shape[-1])] if sided else []
        return (latent.y_hat, *([] if latent.scales is None else [latent.scales]), *sides)

    return encode


def resized(images: Tensor, size: int) -> Tensor:
    """Square images in [0, 1] at another size."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def random_view(size: int, *, least: float, reduced: float) -> Callable[[Tensor], Tensor]:
    """A random crop, mirrored half the time; a share ``reduced`` of them is smaller, and mirrored at its edges.

    Photographs of few pixels are enlarged by crops, which leaves no fine detail; reduced ones have it.
    """

    def view(image: Tensor) -> Tensor:
        side = size
        if torch.rand(()) < reduced:
            side = int(torch.randint(size // 2, 3 * size // 4, ()))
        crop = v2.RandomResizedCrop(side, scale=(least, 1.0), interpolation=BICUBIC, antialias=True)
        image = crop(image)
        if side < size:
            left, top = (int(torch.randint(size - side + 1, ())) for _ in range(2))
            image = TF.pad(image, [left, top, size - side - left, size - side - top], padding_mode="symmetric")
        return image.flip(-1) if torch.rand(()) < 0.5 else image

    return view


def readable(file: Path) -> bool:
    """Tell whether an image can be decoded; an unreadable one is reported."""
    try:
        read_image(file)
    except UNREADABLE as error:
        tqdm.write(f"{file} is left out: {error}")
        return False
    return True


class ReadableImages(Images):
    """Images of which unreadable files (a link to nothing, a file that ends early) are left out.

    In place of an unreadable image, the next readable one is given.

    Attributes:
        unreadable: true for each file that was found to be unreadable, in memory that workers share.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], transform: Any, dtype: torch.dtype) -> None:
        super().__init__(files, transform, dtype)
        self.unreadable = torch.zeros(len(files), dtype=torch.bool).share_memory_()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for number in range(index, index + len(self)):
            place = number % len(self)
            if self.unreadable[place]:
                continue
            try:
                return super().__getitem__(place)
            except UNREADABLE as error:
                self.unreadable[place] = True
                tqdm.write(f"{self.files[place][0]} is left out: {error}")
        raise SystemExit(f"none of the {len(self)} photographs can be read; give other folders by --images")


# -- training ----------------------------------------------------------------------------------------------------


class Pool:
    """Views with all that is computed of them, in float16; each batch is drawn from them."""

    def __init__(self, size: int) -> None:
        self.size, self.made, self.rows = size, 0, list[Tensor]()

    def mixed(self, new: Sequence[Tensor], batch: int) -> list[Tensor]:
        """Put new rows in, the oldest out, and draw ``batch`` rows."""
        if not self.rows:
            self.rows = [torch.empty(self.size, *t.shape[1:], dtype=torch.float16, device=t.device) for t in new]
        where = torch.arange(self.made, self.made + len(new[0])) % self.size
        self.made += len(new[0])
        drawn = torch.randint(min(self.made, self.size), (batch,))
        for row, t in zip(self.rows, new, strict=True):
            row[where] = t.half()
        return [row[drawn].float() for row in self.rows]


class Distillation(nn.Module):
    """The losses of a stage; holds the adapter, and the trunk where that is trained too."""

    def __init__(self, adapter: nn.Module, trunk: nn.Module, statistics: Tensor, *, kl: float, trained: bool) -> None:
        super().__init__()
        self.adapter, self.kl = adapter, kl
        self.statistics = [statistics]
        self.trunk = trunk if trained else None
        self.frozen = [trunk]

    def train(self, mode: bool = True) -> Distillation:
        """Batch norms of the trunk keep their statistics."""
        super().train(mode)
        self.frozen[0].eval()
        if self.trunk is not None:
            self.trunk.eval()
        return self

    def logits(self, normalized: Tensor) -> Tensor:
        """Class scores of normalized features."""
        mean, std = self.statistics[0]
        trunk = self.frozen[0] if self.trunk is None else self.trunk
        scores: Tensor = trunk(normalized * std[:, None, None] + mean[:, None, None])
        return scores

    def forward(self, features: Tensor, scores: Tensor, *given: Tensor) -> dict[str, Tensor]:
        """Losses by name, for a batch of features ``(B, C, h, w)``, scores and inputs of the adapter."""
        mean, std = self.statistics[0]
        found = self.adapter(*given)
        losses = {"features": (found - (features - mean[:, None, None]) / std[:, None, None]).square().mean()}
        losses["loss"] = losses["features"]
        if self.kl:
            divergence = F.kl_div(self.logits(found).log_softmax(1), scores.softmax(1), reduction="batchmean")
            losses |= {"divergence": divergence, "loss": losses["features"] + self.kl * divergence}
        return losses


def distill(args: argparse.Namespace) -> dict[str, Any]:
    """Train an adapter in front of the later stages of a pretrained CNN."""
    run = Run(args)
    teacher = load_teacher(args.teacher, args.teacher_weights, pretrained=not args.smoke)
    size = args.size or teacher.size
    cut = args.cut or stage_of_stride(teacher.network, size, args.stride)
    front, trunk = (part.to(run.device, memory_format=torch.channels_last) for part in split(teacher.network, cut))
    mean, std = (torch.tensor(values, device=run.device).view(-1, 1, 1) for values in (teacher.mean, teacher.std))
    channels, stride, num_classes = _shape_of(front, trunk, size, run.device)
    classes = _class_names(args.classes, num_classes)
    run.seed("weights")
    sizes = args.sizes or [size]
    largest = max(*sizes, size)
    reads, arguments, codec = _student(args, channels, stride, size)
    adapter, read = ADAPTERS[reads](**arguments), blocks_of
    if codec is not None:
        read = latents_by(codec.to(run.device), sided=reads == "latents of any size")

    roots = args.images
    if not roots and args.smoke:
        with run.one_after_the_other():
            roots = [generate_classes(run.out / "images")]
    if not roots:
        raise SystemExit("--images is missing: give one or more folders of photographs")
    files = [(file, 0) for root in roots for file in images_below(root)]
    train = thinned([f for f in files if not held_out(f[0].name)], args.limit)
    val = [f for f in files if held_out(f[0].name)]
    if len(val) < args.held_out:
        run.say(f"--held-out {args.held_out}: {len(val)} of {len(files)} photographs are held out by their names")
    chosen = thinned(val, args.held_out)
    val = [f for f in chosen if readable(f[0])]
    view = random_view(largest, least=args.least, reduced=args.reduced)
    dataset = ReadableImages(train, view, torch.uint8)
    pools = {side: Pool(args.pool // len(sizes)) for side in sizes}

    def targets(images: Tensor, side: int) -> tuple[Tensor, ...]:
        images = images.to(run.device, memory_format=torch.channels_last)
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        with run.autocast():
            features = front((resized(images, size) - mean) / std)
            scores = trunk(features)
        return (features.float(), scores.float(), *read(resized(images, side)))

    def prepare(batch: Any) -> tuple[Tensor, ...]:
        side = sizes[int(torch.randint(len(sizes), ()))]
        if args.reuse == 1:
            return targets(batch[0], side)
        new = targets(batch[0][: max(1, len(batch[0]) // args.reuse)], side)
        return tuple(pools[side].mixed(new, len(batch[0])))

    run.seed("statistics")
    with torch.no_grad():
        some = torch.stack([dataset[i][0] for i in range(min(64, len(dataset)))])
        maps = torch.cat([targets(part, size)[0] for part in some.split(16)]).transpose(0, 1).flatten(1)
    statistics = torch.stack([maps.mean(1), maps.std(1).clamp_min(1e-6)])

    def evaluate(task: nn.Module) -> dict[str, float]:
        sums = torch.zeros(len(sizes), 3)
        for images, _ in batches(Images(val, whole(largest)), 16, rank=run.rank, world=run.world):
            for number, side in enumerate(sizes):
                features, scores, *given = targets(images, side)
                found = task.adapter.eval()(*given)  # type: ignore[union-attr,operator]
                normal = (features - statistics[0][:, None, None]) / statistics[1][:, None, None]
                agrees = task.logits(found).argmax(1) == scores.argmax(1)  # type: ignore[operator]
                error = float((found - normal).square().mean())
                sums[number] += torch.tensor([len(images), len(images) * error, float(agrees.sum())])
        sums = run.sum(sums)
        count, error, agrees = sums.sum(0).tolist()
        figures = {"features (held out)": error / max(1, count), "agreement (%)": 100 * agrees / max(1, count)}
        if len(sizes) > 1:
            each = zip(sizes, sums.tolist(), strict=True)
            figures |= {f"agreement at {side} pixels (%)": 100 * row[2] / max(1, row[0]) for side, row in each}
        return figures

    own = copy.deepcopy(trunk)
    stages = [("features", 0.0, args.shares[0]), ("logits", args.kl, args.shares[1])]
    if args.unfreeze:
        stages.append(("trunk", args.kl, args.shares[2]))
    total = sum(share for _, _, share in stages)
    for name, kl, share in stages:
        if not share:
            continue
        trained = name == "trunk"
        first = name == "features"
        groups = parameter_groups(adapter, args.lr if first else args.lr / 10, orthogonal=first)
        if trained:
            parts = [own.get_submodule(part) for part in args.unfreeze]
            opened = [p.requires_grad_() for part in parts for p in part.parameters()]
            groups.append({"params": opened, "lr": args.lr / 300, "orthogonal": False})
        task = Distillation(adapter, own, statistics, kl=kl, trained=trained)
        options: dict[str, Any] = {"stage": name, "share": share / total, "after": run.steps, "evaluate": evaluate}
        task = fit(run, task, dataset, Muon(groups), cosine(warmup=0.02), prepare=prepare, **options)
        adapter, own = task.adapter, task.trunk if trained else own
    with torch.no_grad():
        metrics = {**evaluate(task), "images": len(train), "held out": len(val), "cut": cut}
    unreadable = int((run.sum(dataset.unreadable.long()) > 0).sum()) + len(chosen) - len(val)
    if unreadable:
        metrics["unreadable"] = unreadable
        run.say(f"{unreadable} photographs could not be read and were left out")
    _fold(adapter, statistics)
    if run.is_main:
        settings: dict[str, Any] = {"teacher": args.teacher, "cut": cut, "num_classes": num_classes, "classes": classes}
        settings |= {"size": size, "mean": list(teacher.mean), "std": list(teacher.std), "input": args.input}
        settings |= {"reads": reads, "adapter_arguments": arguments, "transforms": _transforms(teacher, size, codec)}
        if codec is not None:
            settings |= {"codec": codec.fingerprint, "uses_scales": codec.has_scales}
            settings |= {"latent_channels": codec.latent_channels, "latent_stride": codec.stride}
        _save(run, adapter, own, settings, codec)
    return run.finish(metrics)


def _shape_of(front: nn.Module, trunk: nn.Module, size: int, device: torch.device) -> tuple[int, int, int]:
    """Channels and stride of the features, and the number of classes."""
    with torch.no_grad():
        features = front(torch.zeros(1, 3, size, size, device=device))
        return features.shape[1], round(size / features.shape[2]), trunk(features).shape[1]


def _class_names(file: Path | None, num_classes: int) -> list[str] | None:
    """The names in a file; without one, ImageNet's for 1,000 classes and none for other numbers."""
    if file is None:
        return cdzoo.models.JPEGEfficientNetLite0_Weights.DEFAULT.meta["classes"] if num_classes == 1000 else None
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != num_classes:
        raise SystemExit(f"--classes {file}: {len(names)} names for {num_classes} classes; write one name a line")
    return names


def _transforms(teacher: Teacher, size: int, codec: cdzoo.codecs.Codec | None) -> dict[str, Any] | None:
    """Arguments of the transform of JPEG files: the teacher's preprocessing."""
    resize = round(teacher.resize * size / teacher.size)
    return None if codec is not None else {"resize": resize, "crop": size, "interpolation": teacher.interpolation}


def _student(
    args: argparse.Namespace, channels: int, stride: int, size: int
) -> tuple[str, dict[str, Any], cdzoo.codecs.Codec | None]:
    """The adapter's kind (a name in ``ADAPTERS``), its arguments, and the codec of its latents."""
    if args.input == "jpeg":
        if stride != 8:
            raise SystemExit(f"the features at the cut have stride {stride}; blocks of coefficients need stride 8")
        if args.sizes:
            raise SystemExit("--sizes are of a codec's images; JPEG files are resized on the way to the network")
        return "blocks", {"out_channels": channels, "hidden": args.hidden or 96, "depth": args.depth or 4}, None
    codec = named_codec(args.input).eval().requires_grad_(False)
    shape: dict[str, Any] = {"latent_channels": codec.latent_channels, "hidden": args.hidden or 192}
    if args.sizes:
        if not codec.has_scales:
            raise SystemExit(f"--sizes needs a codec with a hyperprior, and {codec.name} has none; leave it out")
        shape |= {"latent_stride": codec.stride, "channels": channels, "size": size // stride}
        return "latents of any size", {**shape, "depth": args.depth or 7}, codec
    enlarge, rest = divmod(codec.stride, stride)
    if rest or not enlarge:
        raise SystemExit(f"latents of stride {codec.stride} do not reach features of stride {stride}; see --cut")
    shape |= {"out_channels": channels, "use_scales": codec.has_scales, "enlarge": enlarge}
    return "latents", {**shape, "depth": args.depth or 6}, codec


@torch.no_grad()
def _fold(adapter: Any, statistics: Tensor) -> None:
    """Make the adapter give the teacher's features instead of normalized ones."""
    adapter = getattr(adapter, "adapter", adapter)
    mean, std = (values.repeat_interleave(adapter.enlarge**2) for values in statistics)
    adapter.conv_out.weight.mul_(std[:, None, None, None])
    adapter.conv_out.bias.mul_(std).add_(mean)


def _save(
    run: Run, adapter: nn.Module, trunk: nn.Module, settings: dict[str, Any], codec: cdzoo.codecs.Codec | None
) -> None:
    """``student.pt``, which ``student.load_student`` reads; of the zoo's own networks also a folder of weights."""
    args = run.args
    torch.save({**settings, "adapter": adapter.state_dict(), "trunk": trunk.state_dict()}, run.out / "student.pt")
    if (args.teacher, settings["cut"]) != (PACKAGED, "blocks.2") or args.hidden or args.depth:
        return
    meta: dict[str, Any] = {"recipe": run.command}
    if settings["classes"]:
        meta["classes"] = settings["classes"]
    options = {"num_classes": settings["num_classes"]}
    if isinstance(adapter, BlockAdapter):
        model: Any = cdzoo.models.jpeg_efficientnet_lite0(**options)
        model.stem.load_state_dict(adapter.state_dict())
    elif isinstance(adapter, AnySizeAdapter):
        assert codec is not None
        options |= {"in_channels": codec.latent_channels, "latent_stride": codec.stride}
        model = cdzoo.models.latent_efficientnet_lite0(**options)
        model.load_state_dict(adapter.state_dict(), strict=False)
        meta["shorter_side"] = [min(args.sizes), max(args.sizes)]
    else:
        return
    model.load_timm(trunk.state_dict())
    cdzoo.save_pretrained(model, run.out / "classifier", meta=meta, codec=codec)


def main(argv: Sequence[str] | None = None) -> Any:
    """Distil."""
    import sys

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    paper: dict[str, Any] = {"epochs": 40, "batch": 64, "lr": 0.03, "ema": 0.995}
    smoke = {
        "steps": 6,
        "minutes": None,
        "batch": 4,
        "evaluate_every": 100.0,
        "log_every": 2,
        "teacher": "timm/test_efficientnet",
    }
    smoke |= {"size": 64, "pool": 16, "hidden": 16, "depth": 1, "unfreeze": ["blocks.3"]}
    small = {"epochs": None, "minutes": 60, "batch": 32, "reuse": 6, "workers": 0}
    command = add_command(commands, distill, paper=paper, small=small, smoke=smoke)
    command.prog = parser.prog  # the command's name may be left out
    add = command.add_argument
    add("--teacher", default="timm/tf_efficientnet_lite0", help="timm/NAME or torchvision/NAME")
    add("--teacher-weights", type=Path, help="a file with a state dict, in place of published weights")
    add("--input", default="jpeg", help="jpeg, or a codec: a folder, hf://OWNER/NAME, or a name of weights")
    add("--images", type=Path, nargs="+", help="folders of photographs; nobody needs to have labeled them")
    add("--classes", type=Path, help="names of the teacher's classes, one a line; ImageNet's for 1,000 classes")
    add("--cut", help="the last module of the front, such as blocks.2 or layer2")
    add("--stride", type=int, default=8, help="of the features at the cut, where --cut is not given")
    add("--size", type=int, help="of the views; the teacher's own by default")
    add("--sizes", type=int, nargs="+", help="of the codec's images; several for an adapter that takes any size")
    add("--hidden", type=int, help="channels of the adapter (96 for jpeg, 192 for latents)")
    add("--depth", type=int, help="3x3 convolutions of the adapter (4 for JPEG; 7 for latents with --sizes, 6 without)")
    add("--least", type=float, default=0.35, help="smallest share of a photograph that a view shows")
    add("--reduced", type=float, default=0.2, help="share of views that are reduced, and mirrored at their edges")
    add("--kl", type=float, default=0.2, help="weight of the divergence of class probabilities")
    add("--shares", type=float, nargs=3, default=[0.5, 0.4, 0.1], help="of the three stages in the whole length")
    add("--unfreeze", nargs="*", help="parts of the trunk that the third stage trains")
    add("--reuse", type=int, default=1, help="how often a view is used, on average")
    add("--pool", type=int, default=4096, help="views that are kept for that")
    add("--held-out", type=int, default=512, help="photographs to measure agreement with the teacher on")
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(parser, words if words[:1] == ["distill"] else ["distill", *words])


if __name__ == "__main__":
    main()
