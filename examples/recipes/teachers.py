"""A pretrained CNN of timm or torchvision, cut in two at a module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer


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
