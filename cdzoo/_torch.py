"""Helpers around PyTorch: functions that are not traced, contexts without autocast or training, types to be saved."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils import _pytree

__all__ = [
    "autocast_enabled",
    "inference_layers",
    "inner_module",
    "outside_autocast",
    "reference_tensor",
    "register_serializable",
    "untraced",
    "without_autocast",
]

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Keep the compiler out of entropy coding, parsing, and bookkeeping about parameters.

    ``torch.compiler.disable`` imports the compiler, which takes seconds even in programs that compile nothing.
    So this uses it only while a program is being compiled.
    """
    disabled: Callable[P, R] = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def autocast_enabled(device: torch.device) -> bool:
    """Return true inside autocast for ``device``."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast for ``device`` is off; nothing at all where it is off already."""
    return torch.autocast(device.type, enabled=False) if autocast_enabled(device) else nullcontext()


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """A context in which autocast is off both for ``device`` and for the CPU, where probability tables are made."""
    with outside_autocast(device), outside_autocast(torch.device("cpu")):
        yield


_MODAL_LAYERS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
_lock = threading.Lock()
_switched: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = weakref.WeakKeyDictionary()
"""Modules inside the context below: the number of calls, and the layers that return to training after the last one."""


@contextmanager
def inference_layers(module: nn.Module) -> Iterator[None]:
    """A context in which batch norm, dropout and stochastic depth behave as in inference, whatever the module's mode.

    Several threads may be inside at once: layers return to training when the last of them leaves. Saving and restoring
    ``training`` in each call would not do, since a call that began first may end first. Only layers of these kinds
    are switched. A thread that trains the module at the same time finds them in inference behavior, too.
    """
    modal = [m for m in module.modules() if isinstance(m, _MODAL_LAYERS) or hasattr(m, "drop_prob")]
    if not modal:
        yield
        return
    with _lock:
        calls, layers = _switched.get(module, (0, []))
        training = [m for m in modal if m.training]
        for layer in training:
            layer.training = False
        _switched[module] = (calls + 1, layers + training)
    try:
        yield
    finally:
        with _lock:
            calls, layers = _switched.pop(module)
            if calls > 1:
                _switched[module] = (calls - 1, layers)
            else:
                for layer in layers:
                    layer.training = True


def register_serializable(*types: type[tuple[object, ...]]) -> None:
    """Let ``torch.export.save`` write programs that take or return these NamedTuples, and ``torch.load`` read both."""
    torch.serialization.add_safe_globals([*types])
    for cls in types:
        _pytree._register_namedtuple(cls, serialized_type_name=f"{cls.__module__}.{cls.__name__}")


def reference_tensor(module: nn.Module) -> Tensor | None:
    """A floating-point parameter of a module, for its device and dtype; ``None`` where there is none.

    Replicas of ``nn.DataParallel`` hold plain tensors instead of parameters; these are searched as well.
    """
    for child in module.modules():
        for tensor in (*child._parameters.values(), *getattr(child, "_former_parameters", {}).values()):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                return tensor
    return None


def inner_module(module: nn.Module) -> nn.Module | None:
    """The module inside a compiled, a data parallel or an averaged one."""
    inner = getattr(module, "_orig_mod", getattr(module, "module", None))
    return inner if isinstance(inner, nn.Module) else None
