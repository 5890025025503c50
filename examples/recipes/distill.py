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
from muon import Muon, parameter_groups
from schedules import cosine
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from training import Run, add_command, fit, run_command

import cdzoo
from cdzoo.jpeg import dct
from cdzoo.models.adapters import BlockAdapter, LatentAdapter

BICUBIC = v2.InterpolationMode.BICUBIC

# -- the teacher, cut in two -------------------------------------------------------------------------------------


def load_teacher(name: str, weights: Path | None, *, pretrained: bool = True) -> tuple[nn.Module, int, Any, Any]:
    """A network ``timm/NAME`` or ``torchvision/NAME``, the size of its input, mean and deviation of its pixels."""
    library, _, name = name.partition("/")
    pretrained = pretrained and weights is None
    if library == "timm":
        import timm

        network = timm.create_model(name, pretrained=pretrained)
        config = timm.data.resolve_data_config({}, model=network)
        size, mean, std = config["input_size"][-1], config["mean"], config["std"]
    elif library == "torchvision":
        import torchvision

        network = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        size, mean, std = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    else:
        raise SystemExit(f"--teacher {library}/{name}: write timm/NAME or torchvision/NAME.")
    if weights is not None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False), size, mean, std


def stage_of_stride(network: nn.Module, size: int, stride: int) -> str:
    """The last module, one or two names deep, whose output is the input's size over ``stride``."""
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.dim() == 4 and out.shape[-1] == -(-size // stride):
                found.append(name)

        return hook

    names = [name for name, _ in network.named_modules() if name and name.count(".") < 2]
    hooks = [network.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    if not found:
        raise SystemExit(f"--stride {stride}: no stage of this network puts that out; name one with --cut.")
    return found[-1]


def split(network: nn.Module, cut: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """``(front, trunk)`` with ``network(x) == trunk(front(x))``; the front ends with the module ``cut``.

    Both keep the network's names. They share its parameters.
    """
    front, last = _traced(network, cut)
    (output,) = (node for node in front.nodes if node.op == "output")
    output.args = (last,)
    trunk, last = _traced(network, cut)
    image = next(iter(trunk.nodes))
    with trunk.inserting_after(image):
        last.replace_all_uses_with(trunk.placeholder("features"))
    modules = [fx.GraphModule(network, graph) for graph in (front, trunk)]
    for module in modules:
        module.graph.eliminate_dead_code()
    image = next(iter(modules[1].graph.nodes))
    if image.users:
        raise SystemExit(f"--cut {cut}: what follows also reads what lies before; cut where one map passes.")
    modules[1].graph.erase_node(image)
    for module in modules:
        module.recompile()
        module.delete_all_unused_submodules()
    return modules[0], modules[1]


def _traced(network: nn.Module, cut: str) -> tuple[fx.Graph, fx.Node]:
    """The network's graph and the last node of a module in it."""
    from timm.models import get_notrace_functions, get_notrace_modules

    tracer = NodePathTracer(autowrap_functions=tuple(get_notrace_functions()), leaf_modules=list(get_notrace_modules()))
    graph = tracer.trace(network)
    inside = [node for node, name in tracer.node_to_qualname.items() if name == cut or name.startswith(f"{cut}.")]
    if not inside:
        names = [name for name, _ in network.named_children()]
        raise SystemExit(f"--cut {cut}: the network has no such module; it begins with {', '.join(names[:8])}.")
    return graph, inside[-1]


# -- what the student reads --------------------------------------------------------------------------------------


def blocks_of(images: Tensor) -> tuple[Tensor]:
    """DCT coefficients ``(B, H/8, W/8, 192)`` of Y, Cb and Cr of images in [0, 1], as resizing between blocks gives."""
    red, green, blue = images.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack([luma - 128 / 255, (blue - luma) / 1.772, (red - luma) / 1.402], 1)
    return (255 * dct.dct2d(dct.blockify(planes)).permute(0, 2, 3, 1, 4, 5).flatten(3),)


def latents_by(codec: cdzoo.codecs.Codec) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function from images to latents, and scales where the codec has them."""

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        latent = codec.encode(images)
        return (latent.y_hat,) if latent.scales is None else (latent.y_hat, latent.scales)

    return encode


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
    network, size, mean, std = load_teacher(args.teacher, args.teacher_weights, pretrained=not args.smoke)
    size = args.size or size
    cut = args.cut or stage_of_stride(network, size, args.stride)
    front, trunk = (part.to(run.device, memory_format=torch.channels_last) for part in split(network, cut))
    mean, std = (torch.tensor(values, device=run.device).view(-1, 1, 1) for values in (mean, std))
    channels, stride = _shape_of(front, size, run.device)
    run.seed("weights")
    adapter, read = _student(args, channels, stride, run.device)

    roots = args.images
    if not roots and args.smoke:
        with run.one_after_the_other():
            roots = [generate_classes(run.out / "images")]
    if not roots:
        raise SystemExit("--images is missing: one or more folders of photographs.")
    files = [(file, 0) for root in roots for file in images_below(root)]
    train = thinned([f for f in files if not held_out(f[0].name)], args.limit)
    val = thinned([f for f in files if held_out(f[0].name)], args.held_out)
    dataset = Images(train, random_view(size, least=args.least, reduced=args.reduced), torch.uint8)
    pool = Pool(args.pool)

    def targets(images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(run.device, memory_format=torch.channels_last)
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        with run.autocast():
            features = front((images - mean) / std)
            scores = trunk(features)
        return (features.float(), scores.float(), *read(images))

    def prepare(batch: Any) -> tuple[Tensor, ...]:
        if args.reuse == 1:
            return targets(batch[0])
        new = targets(batch[0][: max(1, len(batch[0]) // args.reuse)])
        return tuple(pool.mixed(new, len(batch[0])))

    run.seed("statistics")
    with torch.no_grad():
        some = torch.stack([dataset[i][0] for i in range(min(64, len(dataset)))])
        maps = torch.cat([targets(part)[0] for part in some.split(16)]).transpose(0, 1).flatten(1)
    statistics = torch.stack([maps.mean(1), maps.std(1).clamp_min(1e-6)])

    def evaluate(task: nn.Module) -> dict[str, float]:
        sums = torch.zeros(3)
        for images, _ in batches(Images(val, whole(size)), 16, rank=run.rank, world=run.world):
            features, scores, *given = targets(images)
            found = task.adapter.eval()(*given)  # type: ignore[union-attr,operator]
            error = (found - (features - statistics[0][:, None, None]) / statistics[1][:, None, None]).square().mean()
            agrees = task.logits(found).argmax(1) == scores.argmax(1)  # type: ignore[operator]
            sums += torch.tensor([len(images), len(images) * float(error), float(agrees.sum())])
        count, error, agrees = run.sum(sums).tolist()
        return {"features (held out)": error / max(1, count), "agreement (%)": 100 * agrees / max(1, count)}

    own = copy.deepcopy(trunk)
    stages = [("features", 0.0, args.shares[0]), ("logits", args.kl, args.shares[1])]
    if args.unfreeze:
        stages.append(("trunk", args.kl, args.shares[2]))
    total = sum(share for _, _, share in stages)
    for name, kl, share in stages:
        if not share:
            continue
        trained = name == "trunk"
        groups = parameter_groups(adapter, args.lr if name == "features" else args.lr / 3)
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
    _fold(adapter, statistics)
    if run.is_main:
        _save(run, adapter, own, cut)
    return run.finish(metrics)


def _shape_of(front: nn.Module, size: int, device: torch.device) -> tuple[int, int]:
    with torch.no_grad():
        shape = front(torch.zeros(1, 3, size, size, device=device)).shape
    return shape[1], round(size / shape[2])


def _student(args: argparse.Namespace, channels: int, stride: int, device: torch.device) -> tuple[Any, Any]:
    """The adapter, and the function from images to what it reads."""
    if args.input == "jpeg":
        if stride != 8:
            raise SystemExit(f"the features at the cut have stride {stride}; blocks of coefficients need stride 8.")
        return BlockAdapter(channels, hidden=args.hidden or 80, depth=args.depth or 4), blocks_of
    codec = named_codec(args.input).to(device).eval().requires_grad_(False)
    enlarge, rest = divmod(codec.stride, stride)
    if rest or not enlarge:
        raise SystemExit(f"latents of stride {codec.stride} do not reach features of stride {stride}; see --cut.")
    adapter = LatentAdapter(
        codec.latent_channels,
        channels,
        use_scales=codec.has_scales,
        hidden=args.hidden or 192,
        depth=args.depth or 6,
        enlarge=enlarge,
    )
    return adapter, latents_by(codec)


@torch.no_grad()
def _fold(adapter: Any, statistics: Tensor) -> None:
    """Make the adapter give the teacher's features instead of normalized ones."""
    mean, std = (values.repeat_interleave(adapter.enlarge**2) for values in statistics)
    adapter.conv_out.weight.mul_(std[:, None, None, None])
    adapter.conv_out.bias.mul_(std).add_(mean)


def _save(run: Run, adapter: nn.Module, trunk: nn.Module, cut: str) -> None:
    """``student.pt``: names and tensors; of the zoo's own pair also a folder of weights."""
    args = run.args
    settings = {"teacher": args.teacher, "input": args.input, "cut": cut}
    tensors = {"adapter": adapter.state_dict(), "trunk": trunk.state_dict()}
    torch.save({**settings, **tensors}, run.out / "student.pt")
    if (args.teacher, args.input, cut) == ("timm/tf_efficientnet_lite0", "jpeg", "blocks.2") and not args.hidden:
        model = cdzoo.models.jpeg_efficientnet_lite0()
        model.load_timm(trunk.state_dict())
        model.stem.load_state_dict(adapter.state_dict())
        cdzoo.save_pretrained(model, run.out / "classifier", meta={"recipe": run.command})


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
    add = command.add_argument
    add("--teacher", default="timm/tf_efficientnet_lite0", help="timm/NAME or torchvision/NAME")
    add("--teacher-weights", type=Path, help="a state dict, in place of the published weights")
    add("--input", default="jpeg", help="jpeg, or a codec: a folder, hf://OWNER/NAME, or a name of weights")
    add("--images", type=Path, nargs="+", help="folders of photographs; nobody needs to have labeled them")
    add("--cut", help="the last module of the front, such as blocks.2 or layer2")
    add("--stride", type=int, default=8, help="of the features at the cut, where --cut is not given")
    add("--size", type=int, help="of the views; the teacher's own by default")
    add("--hidden", type=int, help="channels of the adapter (80 for jpeg, 192 for latents)")
    add("--depth", type=int, help="3x3 convolutions of the adapter (4 for jpeg, 6 for latents)")
    add("--least", type=float, default=0.35, help="smallest share of a photograph that a view shows")
    add("--reduced", type=float, default=0.2, help="share of views that are reduced, and mirrored at their edges")
    add("--kl", type=float, default=1.0, help="weight of the divergence of class probabilities")
    add("--shares", type=float, nargs=3, default=[0.5, 0.4, 0.1], help="of the three stages in the whole length")
    add("--unfreeze", nargs="*", help="parts of the trunk that the third stage trains")
    add("--reuse", type=int, default=1, help="how often a view is used, on average")
    add("--pool", type=int, default=4096, help="views that are kept for that")
    add("--held-out", type=int, default=512, help="photographs to measure agreement with the teacher on")
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(parser, words if words[:1] == ["distill"] else ["distill", *words])


if __name__ == "__main__":
    main()
