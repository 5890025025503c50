"""Small modules of every registered builder, and how to compare them."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from cdzoo import zoo

SMALL = {"N": 8, "M": 12, "latent_channels": 8, "width": 0.0625, "num_classes": 3, "in_channels": 12}
"""Sizes for tests; each builder takes those that it knows."""
EXACTLY: dict[str, dict[str, object]] = {
    # the pixels' three channels are not a size
    **{
        name: {"width": 0.0625, "num_classes": 3}
        for name in ("resnet50", "resnet71", "resnet50_d", "resnet71_d", "fa_resnet50")
    },
    # a codec inside is what is special about it
    "icat_small": {"width": 0.0625, "num_classes": 3, "in_channels": 12, "hyperprior": True},
    **{
        name: {"width": 0.0625, "num_classes": 3}
        for name in ("jpeg_resnet18", "jpeg_resnet50", "jpeg_resnet_small", "jpeg_efficientnet_lite0")
    },
}
"""Builders whose small arguments are not the plain ones, and why."""

CALIBRATED = ["torfason2018", "choi2019"]
"""Codecs whose tables are measured, not learned."""


def small(name: str, *, seed: int = 0) -> nn.Module:
    """A small module with values that no initialization gives, buffers included."""
    builder = zoo.get_builder(name)
    known = inspect.signature(builder).parameters
    torch.manual_seed(seed)
    module = builder(**EXACTLY.get(name, {k: v for k, v in SMALL.items() if k in known}))
    with torch.no_grad():
        for tensor_name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not tensor_name.startswith("entropy_bottleneck."):
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
    return module


def assert_same(one: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert list(state) == list(one.state_dict())
    for name, tensor in one.state_dict().items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name
