"""Checks that weights are those that were saved: SHA-256 of the file, and of the tensors in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cdzoo.errors import WeightsError

__all__ = ["content_digest", "read_verified"]

_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar")


def read_verified(file: Path, sha256: str, *, label: str, stated_in: str) -> dict[str, Tensor]:
    """Read a safetensors file once its hash has been compared.

    Args:
        file: the file.
        sha256: hash that it must have, in hexadecimal.
        label: what error messages call the weights.
        stated_in: name of the file that states the hash.

    Returns:
        the tensors by name.

    Raises:
        WeightsError: the file is missing, has another hash, or is not in the safetensors format.
    """
    from safetensors.torch import load

    try:
        data = file.read_bytes()
    except OSError as error:
        pickled = sorted(f.name for f in file.parent.iterdir() if f.suffix in _PICKLES)
        why = f"; {pickled[0]} is a pickle, which can run any code and is never read" if pickled else ""
        raise WeightsError(
            f"{label}: cannot read {file} ({error.strerror}){why}; cdzoo.save_pretrained writes that file"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsError(
            f"{label}: {file.name} has SHA-256 {found}, but {stated_in} says {sha256}; "
            "the file is damaged or was replaced: fetch it again"
        )
    try:
        tensors: dict[str, Tensor] = load(data)
    except Exception as error:  # SafetensorError, or what the library raises for an unknown dtype
        raise WeightsError(
            f"{label}: {file.name} is not a safetensors file ({error}); pickled checkpoints are never read"
        ) from error
    return tensors


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values as a module holds them; a file of another precision may hold the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kept = tensor.detach().cpu().to(torch.float32 if tensor.is_floating_point() else torch.int64)
        digest.update(f"{name} {tuple(kept.shape)}\n".encode())
        digest.update(kept.contiguous().numpy().data)
    return digest.hexdigest()
