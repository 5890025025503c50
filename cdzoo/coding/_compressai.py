"""What the codecs take from CompressAI: its layers and entropy models, its checkpoints' names, its way of coding."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cdzoo.coding.rans import SymbolTables

__all__ = [
    "TABLE_BUFFERS",
    "compressai",
    "current_name",
    "prefixes_with_tables",
    "scale_table",
    "tables_at",
    "tables_of",
    "through_bottleneck",
    "without_tables",
]

TABLE_BUFFERS = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
"""Buffers of CompressAI's entropy models that are derived from parameters, and whose sizes vary."""


def compressai() -> Any:
    """CompressAI's layers and entropy models, imported on first use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside CompressAI that its users can do nothing about
            import compressai.entropy_models
            import compressai.layers
            import compressai.models.utils
    except ImportError as error:
        raise ImportError(
            "the bmshj2018, mbt2018 and choi2019 codecs and icat_small(hyperprior=True) need CompressAI, which is not "
            "installed; 'pip install compressai' works on Python below 3.13. Other models, ops and everything JPEG run "
            "without it."
        ) from error
    return compressai


def without_tables(entropy_model: nn.Module) -> nn.Module:
    """Keep derived tables out of the state dict, where their varying sizes make checkpoints fail to load."""
    for name in TABLE_BUFFERS:
        if name in dict(entropy_model.named_buffers(recurse=False)):
            entropy_model.register_buffer(name, getattr(entropy_model, name), persistent=False)
    return entropy_model


def through_bottleneck(bottleneck: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """What ``bottleneck(z)`` of an ``EntropyBottleneck`` returns, noise included: ``z_hat`` and likelihoods.

    CompressAI's own forward pass permutes dimensions by the values of a tensor, which neither ``torch.compile`` nor
    ``torch.export`` can trace.
    """
    values = z.transpose(0, 1).contiguous()
    outputs = bottleneck.quantize(
        values.flatten(1).unsqueeze(1), "noise" if bottleneck.training else "dequantize", bottleneck._get_medians()
    )
    likelihood, _, _ = bottleneck._likelihood(outputs)
    if bottleneck.use_likelihood_bound:
        likelihood = bottleneck.likelihood_lower_bound(likelihood)
    z_hat, likelihood = (t.reshape(values.shape).transpose(0, 1).contiguous() for t in (outputs, likelihood))
    return z_hat, likelihood


def scale_table() -> Tensor:
    """The 64 standard deviations, from 0.11 to 256, that CompressAI tabulates; float32 whatever the default dtype."""
    steps = torch.linspace(math.log(0.11), math.log(256), 64, dtype=torch.float32, device="cpu")
    return torch.exp(steps)


def current_name(name: str) -> str:
    """A name in a CompressAI state dict, as its present version has it."""
    name = name.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("_orig_mod.")
    for kind, plural in (("matrix", "matrices"), ("bias", "biases"), ("factor", "factors")):
        for old in (f"entropy_bottleneck._{plural}.", f"entropy_bottleneck._{kind}"):
            if name.startswith(old):
                return f"entropy_bottleneck.{plural}.{name.removeprefix(old)}"
    return name


def prefixes_with_tables(tables: Mapping[str, Tensor]) -> list[str]:
    """Names of the entropy models whose tables are filled in, as ``update()`` does."""
    return sorted({name.rpartition(".")[0] for name, tensor in tables.items() if tensor.numel()})


def tables_at(prefix: str, tables: Mapping[str, Tensor]) -> SymbolTables:
    """The tables that a state dict holds for the entropy model of that name."""
    return SymbolTables.from_padded(*(tables[f"{prefix}.{n}"] for n in ("_quantized_cdf", "_cdf_length", "_offset")))


def tables_of(entropy_model: Any) -> SymbolTables:
    """The tables of an entropy model after ``update()``."""
    return SymbolTables.from_padded(entropy_model._quantized_cdf, entropy_model._cdf_length, entropy_model._offset)
