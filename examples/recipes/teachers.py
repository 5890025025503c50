"""A pretrained CNN of timm or torchvision, cut in two at a module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

import cdzoo

PACKAGED = "timm/tf_efficientnet_lite0"
"""The teacher whose weights ship with cdzoo."""


class Teacher(NamedTuple):
    """A pretrained network and the preprocessing of its images."""

    network: nn.Module
    size: int  # of its input
    mean: Any  # of pixels in [0, 1]
    std: Any
    resize: int  # pixels of the shorter side, before the center of that size is cut out
    interpolation: str


def load_teacher(name: str, weights: Path | None, *, pretrained: bool = True) -> Teacher:
    """A network ``timm/NAME`` or ``torchvision/NAME`` with its published weights, or with those of a file.

    The weights of ``PACKAGED`` come with cdzoo. Others are downloaded.
    """
    state = torch.load(weights, map_location="cpu", weights_only=True) if weights is not None else None
    if state is None and pretrained and name == PACKAGED:
        state = packaged_weights()
    network = build_network(name, pretrained=pretrained and state is None)
    if state is not None:
        heads = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
        classes = state.get(f"{heads[-1]}.bias") if heads else None
        if classes is not None and len(classes) != network.get_submodule(heads[-1]).out_features:
            network = build_network(name, len(classes))
        network.load_state_dict(state)
    library, _, name = name.partition("/")
    if library == "timm":
        import timm

        config = timm.data.resolve_data_config({}, model=network)
        size, resize = config["input_size"][-1], int(config["input_size"][-1] / config["crop_pct"])
        mean, std, interpolation = config["mean"], config["std"], config["interpolation"]
    else:
        import torchvision

        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        size, resize, interpolation = preset.crop_size[0], preset.resize_size[0], preset.interpolation.value
        mean, std = preset.mean, preset.std
    interpolation = interpolation if interpolation == "bilinear" else "bicubic"
    return Teacher(network.eval().requires_grad_(False), size, mean, std, resize, interpolation)


def build_network(name: str, num_classes: int | None = None, *, pretrained: bool = False) -> nn.Module:
    """A network ``timm/NAME`` or ``torchvision/NAME``; with random values unless ``pretrained``."""
    library, _, architecture = name.partition("/")
    options = {} if num_classes is None else {"num_classes": num_classes}
    if library == "timm":
        import timm

        network: nn.Module = timm.create_model(architecture, pretrained=pretrained, **options)
    elif library == "torchvision":
        import torchvision

        network = torchvision.models.get_model(architecture, weights="DEFAULT" if pretrained else None, **options)
    else:
        raise SystemExit(f"--teacher {name}: write timm/NAME or torchvision/NAME")
    return network.eval()


def packaged_weights() -> dict[str, Tensor]:
    """The state dict of ``PACKAGED`` with timm's names, from the weights in cdzoo."""
    weights = cdzoo.models.JPEGEfficientNetLite0_Weights.IMAGENET1K_PIXELS
    state = cdzoo.models.jpeg_efficientnet_lite0(weights=weights).state_dict()
    return {f"classifier.{key[3:]}" if key.startswith("fc.") else key: value for key, value in state.items()}


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
        raise SystemExit(f"--stride {stride}: no stage of this network puts that out; name one with --cut")
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
        raise SystemExit(f"--cut {cut}: what follows also reads what lies before; cut where one map passes")
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
        raise SystemExit(f"--cut {cut}: the network has no such module; it begins with {', '.join(names[:8])}")
    return graph, inside[-1]
