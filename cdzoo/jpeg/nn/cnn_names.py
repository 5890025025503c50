"""CNNs of timm and torchvision by name: the name of a network at hand, and the network of a name, without downloads."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn

__all__ = ["Library", "NetworkSource", "build_network", "describe_structure", "find_source"]

Library: TypeAlias = Literal["timm", "torchvision"]


class NetworkSource(NamedTuple):
    """Arguments of :func:`build_network` for a network.

    Attributes:
        library: ``"timm"`` or ``"torchvision"``.
        architecture: its name there, such as ``"resnet50"``.
        num_classes: number of outputs.
    """

    library: Library
    architecture: str
    num_classes: int


def find_source(network: nn.Module) -> NetworkSource | None:
    """The source of a network; ``None`` for one that neither library has, or that was changed.

    timm writes the name of the architecture into its networks. torchvision does not, so that those of the same file are
    built without memory until one has the same tensors.
    """
    config = getattr(network, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
    num_classes = getattr(network, "num_classes", None)
    if isinstance(name, str) and isinstance(num_classes, int):
        return NetworkSource("timm", name, num_classes)
    shapes = _shapes(network)
    if not type(network).__module__.startswith("torchvision.models.") or not shapes:
        return None
    models: Any = sys.modules["torchvision.models"]
    for name in models.list_models():
        if models.get_model_builder(name).__module__ != type(network).__module__:
            continue
        source = NetworkSource("torchvision", name, list(shapes.values())[-1][0])  # the bias of the last layer
        with torch.device("meta"):
            found = _shapes(build_network(*source))
        if found == shapes:
            return source
    return None


def build_network(library: str, architecture: str, num_classes: int, channels: int = 3) -> nn.Module:
    """Build a network with random weights.

    Args:
        library: ``"timm"`` or ``"torchvision"``.
        architecture: its name there.
        num_classes: number of outputs.
        channels: of its input, 3 or, for timm's, 1.

    Raises:
        ImportError: the library is not installed.
        ValueError: an unknown library or name.
    """
    if library not in ("timm", "torchvision"):
        raise ValueError(f"library={library!r}: networks are built by 'timm' or 'torchvision'")
    try:
        models: Any = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except ImportError as error:
        raise ImportError(
            f"{architecture} is a network of {library}, which is not installed; pip install {library}"
        ) from error
    # timm takes names that make it download or open files, too
    if architecture not in models.list_models():
        raise ValueError(f"{library} has no architecture {architecture!r}; upgrade {library}, or check the name")
    options: dict[str, Any] = {"num_classes": num_classes}
    if library == "timm":
        options |= {"pretrained": False, "in_chans": channels}
        return models.create_model(architecture, **options)  # type: ignore[no-any-return]
    if "weights_backbone" in inspect.signature(models.get_model_builder(architecture)).parameters:
        options["weights_backbone"] = None  # pretrained ones by default
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of other random values
        return models.get_model(architecture, weights=None, **options)  # type: ignore[no-any-return]


def describe_structure(network: nn.Module) -> list[str]:
    """The layers of a network as they are printed, and their plain attributes.

    Networks of one architecture with equal descriptions and tensors compute the same function.
    """
    lines = repr(network).splitlines()
    for name, module in network.named_modules():
        for key, value in sorted(vars(module).items()):
            if key != "training" and not key.startswith("_") and _is_plain(value):
                lines.append(f"{name}.{key} = {value!r}")
    return lines


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
