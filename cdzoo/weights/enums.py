"""Pretrained weights: what they are, where they come from, and the only way in which they enter a module.

A set of weights is a Hub-shaped folder: ``config.json`` (how to build the module, which codec it belongs to, what it
reaches), ``model.safetensors`` and ``README.md`` (the model card). It may lie in the package, in any local folder, or
in a repository of the Hugging Face Hub. Loading is strict and hash-checked, and never falls back to random values.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdzoo._registry import get_model_weights, get_weight, unknown_name
from cdzoo.transforms import InputTransform, LatentTransform
from cdzoo.weights.folder import WeightsFolder

if TYPE_CHECKING:
    from cdzoo.codecs import Codec

__all__ = ["Weights", "WeightsEnum", "WeightsFolder", "WeightsLike", "resolve_weights"]

PACKAGED = Path(__file__).parents[1] / "pretrained"


@dataclass(frozen=True)
class Weights:
    """One published set of weights; a member of a :class:`WeightsEnum` holds one.

    What it says of itself is read from the folder's ``config.json`` when asked for, so that no fact stands twice.

    Attributes:
        folder: name of the folder inside the package, which is also the name of the Hub repository.
    """

    folder: str

    @cached_property
    def source(self) -> WeightsFolder:
        """The folder inside the package, which resolves with no network."""
        return WeightsFolder(PACKAGED / self.folder, self.folder)

    @property
    def repo_id(self) -> str:
        """``owner/name`` on the Hub."""
        return str(self.source.config["repo_id"])

    @property
    def revision(self) -> str:
        """The Hub revision that these weights correspond to."""
        return str(self.source.config["revision"])

    @property
    def sha256(self) -> str:
        """SHA-256 of ``model.safetensors``, hexadecimal."""
        return str(self.source.config["sha256"])

    @property
    def meta(self) -> dict[str, Any]:
        """``classes``, ``metrics``, ``recipe``, ``license``, ``codec``, ... as stated on the model card."""
        return {**self.source.meta, "codec": copy.deepcopy(self.source.config.get("codec"))}

    def transforms(self) -> InputTransform:
        """What acts on a ``Latent``, or on ``JPEGCoefficients``, before the network reads it; maybe the identity."""
        return self.source.transforms or LatentTransform()

    def build_codec(self) -> Codec:
        """The codec whose latents these weights were trained on, with its weights; for a codec's weights, itself.

        Raises:
            WeightsError: the weights belong to no learned codec (a pixel or JPEG network), or it cannot be had.
        """
        return self.source.build_codec()


class WeightsEnum(Enum):
    """Base of the enums of pretrained weights: one per builder, one member per published set, ``DEFAULT`` the best."""

    value: Weights

    @property
    def repo_id(self) -> str:
        """See :attr:`Weights.repo_id`."""
        return self.value.repo_id

    @property
    def revision(self) -> str:
        """See :attr:`Weights.revision`."""
        return self.value.revision

    @property
    def sha256(self) -> str:
        """See :attr:`Weights.sha256`."""
        return self.value.sha256

    @property
    def meta(self) -> dict[str, Any]:
        """See :attr:`Weights.meta`."""
        return self.value.meta

    def transforms(self) -> InputTransform:
        """See :meth:`Weights.transforms`."""
        return self.value.transforms()

    def build_codec(self) -> Codec:
        """See :meth:`Weights.build_codec`."""
        return self.value.build_codec()

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    __str__ = __repr__


WeightsLike = WeightsEnum | WeightsFolder | str | os.PathLike[str] | None


def resolve_weights(builder: str, weights: WeightsLike) -> WeightsFolder | None:
    """Turn what a user passes as ``weights=`` into a folder on disk, fetching it if need be.

    Args:
        builder: name of the builder that asks; weights of another one are refused.
        weights: ``None``, an enum member, a member's name (``"DEFAULT"`` or ``"Enum.MEMBER"``),
            ``"hf://owner/repo@revision"``, or a local folder. A member's name goes before a folder's.

    Raises:
        ValueError: an unknown name, or weights that belong to another builder.
        WeightsError: the folder or the repository cannot be had.
    """
    if weights is None:
        return None
    if isinstance(weights, WeightsFolder):
        source = weights
    elif isinstance(weights, WeightsEnum):
        source = weights.value.source
        source = WeightsFolder(source.path, str(weights))
    elif isinstance(weights, str) and weights.startswith("hf://"):
        from cdzoo.hub import download

        repo_id, _, revision = weights.removeprefix("hf://").partition("@")
        source = WeightsFolder.from_hub(download(repo_id, revision=revision or None), repo_id, revision or None)
    elif isinstance(weights, str) and (weights in _members(builder) or not os.path.exists(weights)):
        member = _named(builder, weights)
        source = WeightsFolder(member.value.source.path, str(member))
    elif isinstance(weights, str | os.PathLike):
        source = WeightsFolder.from_path(weights)
    else:
        raise TypeError(
            f"weights must be an enum member, a name, 'hf://owner/repo@revision', a folder or None, not {weights!r}."
        )
    if source.config["builder"] != builder:
        raise ValueError(
            f"weights {source} are for {source.config['builder']}, not for {builder}; "
            f"use {source.config['builder']}(weights=...) or choose other weights."
        )
    return source


def _members(builder: str) -> dict[str, WeightsEnum]:
    try:
        return dict(get_model_weights(builder).__members__)
    except ValueError:
        return {}  # no pretrained weights, which is no reason to refuse a folder


def _named(builder: str, name: str) -> WeightsEnum:
    members = _members(builder)
    if name in members:
        return members[name]
    enum_name, dot, _ = name.partition(".")
    if dot and enum_name.isidentifier():
        return get_weight(name)
    hint = f"; a Hub repository is written 'hf://{name}'" if "/" in name else ""
    if not members:
        raise ValueError(
            f"no weights of {builder} are published, and {name!r} is no folder either{hint}; pass a folder, "
            "'hf://owner/repo', or weights=None for random values."
        )
    raise unknown_name(f"weights of {builder} (no folder either{hint})", name, sorted(members))
