"""Copying tensors of another network by name: all that are asked for, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cdzoo.errors import WeightsError

__all__ = ["LoadedNames", "fits", "load_named"]


class LoadedNames(NamedTuple):
    """The names on both sides, by what was done with their tensors.

    Attributes:
        taken: names in this network that were filled.
        unused: names in the given state dict that have no place here.
        kept: names in this network that still hold what they held before.
    """

    taken: list[str]
    unused: list[str]
    kept: list[str]


def fits(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], name: str) -> bool:
    """True if both sides have a tensor of that name, of equal shape."""
    return name in state_dict and state_dict[name].shape == own[name].shape


def load_named(
    module: nn.Module, state_dict: Mapping[str, Tensor], names: Iterable[tuple[str, str]], *, source: str, way_out: str
) -> LoadedNames:
    """Copy ``state_dict[theirs]`` into the tensor ``ours`` of a module, for every pair of ``names`` or for none.

    Args:
        module: what is filled; its own dtypes and devices stay.
        state_dict: where the values come from.
        names: pairs ``(ours, theirs)``.
        source: what error messages call the network that ``state_dict`` should come from.
        way_out: the last words of the message where a shape differs.

    Raises:
        WeightsError: a tensor is missing or has another shape; nothing has been copied then. Batch norms of old
            checkpoints have no ``num_batches_tracked``; the module keeps its own then.
    """
    own = module.state_dict()
    pairs = [pair for pair in names if pair[1] in state_dict or not pair[1].endswith(".num_batches_tracked")]
    missing = [theirs for _, theirs in pairs if theirs not in state_dict]
    if missing:
        raise WeightsError(
            f"{len(missing)} of {len(pairs)} tensors are not in the state dict, the first is {missing[0]!r}: it must "
            f"be that of {source}, in full; pass the state dict of the bare model, without `module.` or `_orig_mod.`; "
            "nothing was loaded"
        )
    for ours, theirs in pairs:
        have, need = tuple(state_dict[theirs].shape), tuple(own[ours].shape)
        if have != need:
            raise WeightsError(
                f"{theirs} has shape {have}, but this network needs {need}; it must come from {source}: {way_out}; "
                "nothing was loaded"
            )
    with torch.no_grad():
        for ours, theirs in pairs:
            own[ours].copy_(state_dict[theirs])
    taken, used = {ours for ours, _ in pairs}, {theirs for _, theirs in pairs}
    return LoadedNames(
        [ours for ours, _ in pairs],
        [name for name in state_dict if name not in used],
        [name for name in own if name not in taken],
    )
