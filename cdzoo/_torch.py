"""What PyTorch's tools have to be told: what not to trace or to round, what can be saved, where parameters are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils import _pytree

__all__ = ["outside_autocast", "reference_tensor", "register_serializable", "untraced"]

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """``torch.compiler.disable`` for entropy coding, parsing, and bookkeeping about parameters.

    The original would load the compiler, seconds, for those, too, who compile nothing.
    """
    disabled: Callable[P, R] = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast for ``device`` is off; nothing at all where it is off already."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def register_serializable(*types: type[tuple[object, ...]]) -> None:
    """Let ``torch.export.save`` write programs that take or return these NamedTuples, and ``torch.load`` read both."""
    torch.serialization.add_safe_globals([*types])
    for cls in types:
        _pytree._register_namedtuple(cls, serialized_type_name=f"{cls.__module__}.{cls.__name__}")


def reference_tensor(module: nn.Module) -> Tensor | None:
    """A floating-point parameter of a module, for its device and dtype; ``None`` where there is none.

    Replicas of ``nn.DataParallel`` have no parameters, but what those came to.
    """
    for child in module.modules():
        for tensor in (*child._parameters.values(), *getattr(child, "_former_parameters", {}).values()):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                return tensor
    return None
