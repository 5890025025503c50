"""Folders of weights that have tensors in common, stored once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from cdzoo._files import write_atomically
from cdzoo._registry import find_entry
from cdzoo.weights.card import model_card
from cdzoo.weights.folder import CARD, CONFIG, TENSORS, WeightsFolder

__all__ = ["share_tensors"]


def share_tensors(folder: str | os.PathLike[str], other: str | os.PathLike[str]) -> list[str]:
    """Drop the tensors of a folder that another folder beside it has too; loading takes them from there.

    Args:
        folder: weights; ``config.json``, ``model.safetensors`` and ``README.md`` are written anew.
        other: weights that hold all of their tensors themselves.

    Returns:
        the names of the tensors that are shared: those of equal name, type and values.

    Raises:
        ValueError: the two are not beside each other, or ``other`` shares tensors itself.
        WeightsError: a folder cannot be read.
    """
    from safetensors.torch import save

    source, shared = WeightsFolder.from_path(folder), WeightsFolder.from_path(other)
    if source.path.resolve().parent != shared.path.resolve().parent:
        raise ValueError(f"{source} and {shared} must be beside each other, so that one finds the other")
    if shared.config.get("shares"):
        raise ValueError(f"{shared} takes tensors from another folder itself; name that one")
    tensors, there = source.tensors(), shared.tensors()
    names = sorted(
        name
        for name in tensors.keys() & there.keys()
        if tensors[name].dtype == there[name].dtype and torch.equal(tensors[name], there[name])
    )
    data = save({name: tensor for name, tensor in tensors.items() if name not in names}, metadata={"format": "pt"})
    shares = {"folder": Path(other).resolve().name, "sha256": shared.config["sha256"], "names": names}
    config = {**source.config, "sha256": hashlib.sha256(data).hexdigest(), "shares": shares}
    tag = getattr(find_entry(source.builder).cls, "pipeline_tag", None)
    card = model_card({**config, "arguments": source.arguments}, tensors, len(data), pipeline_tag=tag)
    write_atomically(source.path / TENSORS, data)
    write_atomically(source.path / CARD, card.encode())
    write_atomically(source.path / CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
    return names
