"""Differences between the codecs and CompressAI's models, at every quality, as a table.

In ``tests/``:

python -m oracles.compare_compressai
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from oracles.compressai_models import CLASSES, compressai_model
from oracles.make_compressai import outputs_and_gradients, tables
from torch import Tensor

import cdzoo
from cdzoo.coding.layers import gaussian_tables
from cdzoo.coding.tables import SymbolTables


class Difference(NamedTuple):
    """The largest differences: table entries, unlike bytes, values, and gradients relative to a parameter's largest."""

    tables: int
    bytes: int
    values: float
    gradients: float


def _of_tables(ours: SymbolTables, model: torch.nn.Module) -> int:
    other = tables(model._quantized_cdf, model._cdf_length, model._offset)
    if any(getattr(ours, name).shape != tensor.shape for name, tensor in other.items()):
        return 1 << 16
    return max(int(abs(getattr(ours, name) - tensor.numpy()).max()) for name, tensor in other.items())


def _of_tensors(ours: Tensor, theirs: Tensor, *, relative: bool) -> float:
    difference = float((ours - theirs).abs().max())
    return difference / max(float(theirs.abs().max()), 1e-30) if relative and difference else difference


def compare(name: str, quality: int, metric: str) -> Difference:
    """The differences for random weights of one quality's sizes and one seed for each metric."""
    torch.manual_seed(2 * quality + (metric == "mse"))
    codec = cdzoo.get_codec(name, quality=quality, metric=metric)
    with torch.no_grad():
        codec.g_a[-1].weight.mul_(100)
        for parameter in codec.entropy_bottleneck.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model = compressai_model(name, codec)
    x = torch.rand(1, 3, 64, 64)
    found = [_of_tables(codec.entropy_bottleneck.tables(), model.entropy_bottleneck)]
    if codec.has_scales:
        found.append(_of_tables(gaussian_tables(), model.gaussian_conditional))
    with torch.no_grad():
        pairs = zip(codec.compressai_strings(x), model.compress(x)["strings"], strict=True)
    unlike = sum(a != b for ours, theirs in pairs for a, b in zip(b"".join(ours), b"".join(theirs), strict=True))
    values, gradients = 0.0, 0.0
    for training in (True, False):
        ours, theirs = (outputs_and_gradients(module, x, training=training) for module in (codec, model))
        for key, tensor in theirs.items():
            if key.startswith("gradients."):
                gradients = max(gradients, _of_tensors(ours[key], tensor, relative=True))
            else:
                values = max(values, _of_tensors(ours[key], tensor, relative=False))
    return Difference(max(found), unlike, values, gradients)


if __name__ == "__main__":
    print("| codec | quality | metric | tables | bytes | values | gradients |\n|---|---:|---|---:|---:|---:|---:|")
    for name in CLASSES:
        for quality in range(1, 9):
            for metric in ("mse", "ms-ssim"):
                cells = (name, quality, metric, *compare(name, quality, metric))
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
