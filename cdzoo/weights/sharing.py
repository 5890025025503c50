"""Folders of weights that have tensors in common, stored once."""

from __future__ import annotations

import hashlib
import json
import os

import torch

from cdzoo._files import write_atomically
from cdzoo._registry import find_entry
from cdzoo.weights.card import model_card
from cdzoo.weights.folder import CARD, CONFIG, TENSORS, WeightsFolder

__all__ = ["share_tensors"]


def share_tensors(folder: str | os.PathLike[str], *others: str | os.PathLike[str]) -> list[str]:
    """Drop the tensors of a folder that folders beside it have too; loading takes them from there.

    Args:
        folder: weights; ``config.json``, ``model.safetensors`` and ``README.md`` are written anew.
        others: weights beside it. Only tensors that they store themselves are shared, for a shared folder is never
            looked for behind another one.

    Returns:
        the names of the tensors that are shared: those of equal name, type and values.

    Raises:
        ValueError: the folders are not beside each other.
        WeightsError: a folder cannot be read.
    """
    from safetensors.torch import save

    source, sources = WeightsFolder.from_path(folder), [WeightsFolder.from_path(other) for other in others]
    for shared in sources:
        if source.path.resolve().parent != shared.path.resolve().parent:
            raise ValueError(f"{source} and {shared} must be beside each other, so that one finds the other")
    tensors = source.tensors()
    own, entries = dict(tensors), []
    for shared in sources:
        names = sorted(
            name
            for name, there in shared.own_tensors().items()
            if name in own and own[name].dtype == there.dtype and torch.equal(own[name], there)
        )
        for name in names:
            del own[name]
        entries.append({"folder": shared.path.resolve().name, "sha256": shared.config["sha256"], "names": names})
    data = save(own, metadata={"format": "pt"})
    config = {**source.config, "sha256": hashlib.sha256(data).hexdigest(), "shares": entries}
    tag = getattr(find_entry(source.builder).cls, "pipeline_tag", None)
    card = model_card({**config, "arguments": source.arguments}, tensors, len(data), pipeline_tag=tag)
    write_atomically(source.path / TENSORS, data)
    write_atomically(source.path / CARD, card.encode())
    write_atomically(source.path / CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
    return sorted(tensors.keys() - own.keys())
