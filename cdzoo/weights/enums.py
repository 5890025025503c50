"""Enums of pretrained weights, torchvision style.

A set of weights is a folder (:mod:`cdzoo.weights.folder`) in the package, anywhere on this machine, or in a repository
of the Hugging Face Hub. Loading is strict and hash-checked, and never falls back to random values. The file
of each network states its ``DEFAULT``; names are resolved in :mod:`cdzoo.weights.resolve`.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cdzoo.transforms import InputTransform, LatentTransform
from cdzoo.weights.building import build_codec
from cdzoo.weights.folder import WeightsFolder
from cdzoo.weights.packaged import PACKAGED

if TYPE_CHECKING:
    from cdzoo.coding.base import Codec

__all__ = ["PACKAGED", "Weights", "WeightsEnum", "WeightsLike"]


@dataclass(frozen=True)
class Weights:
    """The place of one published set of weights; the value of a member of a :class:`WeightsEnum`.

    Attributes:
        folder: name of the folder inside the package, which is also the name of the Hub repository. For weights of
            another package, the absolute path of a folder.
    """

    folder: str


class WeightsEnum(Enum):
    """Base of the enums of pretrained weights: one per builder, one member per published set, ``DEFAULT`` the best.

    The facts are read from the folder's ``config.json`` when they are asked for.
    """

    value: Weights

    @cached_property
    def source(self) -> WeightsFolder:
        """The folder, which error messages call by the member's name."""
        return WeightsFolder(PACKAGED / self.value.folder, str(self))

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
        """``classes``, ``metrics``, ``recipe``, ``license``, ``codec``, ... of the model card; a copy."""
        return {**self.source.meta, "codec": copy.deepcopy(self.source.config.get("codec"))}

    def transforms(self) -> InputTransform:
        """The transform of a ``Latent``, or of ``JPEGCoefficients``, that the network needs; maybe the identity."""
        return self.source.transforms or LatentTransform()

    def build_codec(self) -> Codec:
        """The codec whose latents these weights were trained on, with its weights; for a codec's weights, itself.

        Returns:
            the codec, in evaluation mode.

        Raises:
            WeightsError: the weights belong to no learned codec (a pixel or JPEG network), or it cannot be had.
        """
        return build_codec(self.source)

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    __str__ = __repr__


WeightsLike = WeightsEnum | WeightsFolder | str | os.PathLike[str] | None
