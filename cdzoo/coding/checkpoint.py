"""Checkpoints of CompressAI: names of its versions, tables of its entropy models, and whether they fit a codec."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cdzoo.coding.rans import SymbolTables

__all__ = ["TABLE_BUFFERS", "check_fit", "has_tables", "prefixes_with_tables", "split_checkpoint", "tables_at"]

TABLE_BUFFERS = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
"""Buffers of CompressAI's entropy models that its ``update()`` derives from parameters. Their sizes vary."""


def split_checkpoint(state_dict: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take a checkpoint apart: parameters and fixed buffers, and tables, under the names of CompressAI's last version.

    Args:
        state_dict: of a CompressAI model of any version; it may come from ``DataParallel`` or ``torch.compile``.

    Returns:
        weights and tables, both by name.

    Raises:
        TypeError: not a mapping of names to tensors.
    """
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise TypeError(f"state_dict must be what torch.load(path) or model.state_dict() gives, not {kind}")
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            nested = next((n for n, value in state_dict.items() if isinstance(value, Mapping)), None)
            advice = "torch.from_numpy makes tensors of arrays" if nested is None else f"pass checkpoint[{nested!r}]"
            raise TypeError(f"state_dict must map names to tensors, not {name!r} to {type(tensor).__name__}; {advice}")
    renamed = {_current_name(name): tensor for name, tensor in state_dict.items()}
    tables = {name: tensor for name, tensor in renamed.items() if _is_table(name)}
    return {name: tensor for name, tensor in renamed.items() if name not in tables}, tables


def _is_table(name: str) -> bool:
    return name.rpartition(".")[2] in TABLE_BUFFERS


def has_tables(state_dict: Mapping[str, object]) -> bool:
    """Whether a state dict has entries for tables, filled in or empty; only CompressAI's have."""
    return any(isinstance(name, str) and _is_table(name) for name in state_dict)


def _current_name(name: str) -> str:
    """A name in a CompressAI state dict, as its last version has it."""
    name = name.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("_orig_mod.")
    for kind, plural in (("matrix", "matrices"), ("bias", "biases"), ("factor", "factors")):
        for old in (f"entropy_bottleneck._{plural}.", f"entropy_bottleneck._{kind}"):
            if name.startswith(old):
                return f"entropy_bottleneck.{plural}.{name.removeprefix(old)}"
    return name


def check_fit(codec: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Check that weights are those of a codec, with its sizes, and finite.

    Args:
        codec: name and sizes, for the message.
        own: the codec's state dict.
        weights: from :func:`split_checkpoint`.

    Raises:
        ValueError: names or shapes differ, or values are not finite.
    """
    problem = f"the checkpoint does not fit {codec}"
    missing, unknown = [n for n in own if n not in weights], [n for n in weights if n not in own]
    if missing or unknown:
        parts = [f"it has no {_some(missing)}"] if missing else []
        parts += [f"it has {_some(unknown)}, which the codec has not"] if unknown else []
        raise ValueError(f"{problem}: {' and '.join(parts)}; take the codec that has the name of the model")
    wrong = [name for name in own if own[name].shape != weights[name].shape]
    if wrong:
        shapes = [weights[name].shape for name in ("g_a.0.weight", "g_a.6.weight")]
        n, m = (shape[0] if shape else 0 for shape in shapes)
        raise ValueError(
            f"{problem}: it has N={n}, M={m} (the first sizes of g_a.0.weight and g_a.6.weight) and other shapes in "
            f"{_some(wrong)}; build the codec that has the name of the model, with these sizes"
        )
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(
            f"the checkpoint has values that are no finite numbers in {_some(broken)}, so training has failed; "
            "take an earlier checkpoint"
        )


def _some(names: list[str]) -> str:
    """The first names of a list, and how many there are beyond them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def prefixes_with_tables(tables: Mapping[str, Tensor]) -> list[str]:
    """Names of the entropy models whose tables are filled in, as ``update()`` does."""
    return sorted({name.rpartition(".")[0] for name, tensor in tables.items() if tensor.numel()})


def tables_at(prefix: str, tables: Mapping[str, Tensor]) -> SymbolTables:
    """The tables of the entropy model of that name.

    Raises:
        KeyError, ValueError: they are incomplete or invalid.
    """
    return SymbolTables.from_padded(*(tables[f"{prefix}.{n}"] for n in ("_quantized_cdf", "_cdf_length", "_offset")))
