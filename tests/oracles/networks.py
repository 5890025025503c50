"""Counts of a network's parameters and multiply-adds, and batch norms that are not those of initialization."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, *shapes: tuple[int, ...], linear: bool = False) -> int:
    """Multiply-adds of convolutions, and of linear layers if asked for, from the shapes of the inputs alone."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model.eval()(*(torch.empty(shape) for shape in shapes))
    flops = counter.get_flop_counts()["Global"]
    operations = flops[torch.ops.aten.convolution] + (flops[torch.ops.aten.addmm] if linear else 0)
    return operations // 2  # PyTorch counts two for each


def randomize(model: NetworkT) -> NetworkT:
    """Batch norms that a swap or an omission would show."""
    for name, tensor in model.state_dict().items():
        if "running_mean" in name:
            tensor.uniform_(-0.2, 0.2)
        elif "running_var" in name:
            tensor.uniform_(0.5, 1.5)
    return model
