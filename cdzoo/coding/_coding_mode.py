"""Inference behaviour for the time of a call, whatever mode a module is in, and with any number of calls at once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cdzoo._torch import outside_autocast

__all__ = ["inference_layers", "without_autocast"]

_MODAL_LAYERS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)

_lock = threading.Lock()
_switched: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = weakref.WeakKeyDictionary()
"""Per module that is in use: by how many calls, and the layers that go back to training when the last one ends."""


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Compute in the dtypes that tensors have, on a device and on the CPU, where tables are made."""
    with outside_autocast(device), outside_autocast(torch.device("cpu")):
        yield


@contextmanager
def inference_layers(module: nn.Module) -> Iterator[None]:
    """Make layers that behave differently in training behave as in inference, until the last such context ends.

    Only these layers are switched, which for most codecs are none: another thread may be training this very module.
    Where there are some, a thread that trains meanwhile finds them in inference too.
    """
    modal: list[nn.Module] = [m for m in module.modules() if _is_modal(m)]
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


def _is_modal(module: nn.Module) -> bool:
    # stochastic depth is no kind of dropout to PyTorch, but every implementation of it has a drop_prob
    return isinstance(module, _MODAL_LAYERS) or hasattr(module, "drop_prob")
