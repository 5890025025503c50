"""A folder of weights on disk: read and verified (:mod:`cdzoo.weights.integrity`), nothing is built.

config.json          how to build the module, the codec that it belongs to, SHA-256 of the tensors, the card's facts
model.safetensors    parameters and buffers; of a codec also its integers, under ``integer.``
README.md            the model card

Folders that stand beside each other may share tensors: ``shares`` in ``config.json`` names other folders, the
SHA-256 of each one's file, and the tensors that are taken from it (:func:`cdzoo.weights.sharing.share_tensors`).
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from cdzoo.errors import WeightsError
from cdzoo.transforms import InputTransform, transform_from_config
from cdzoo.weights.integrity import read_verified

__all__ = ["CARD", "CONFIG", "INTEGER_PREFIX", "TENSORS", "WeightsFolder", "check_config"]

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
INTEGER_PREFIX = "integer."
_CODEC_KEYS = ("fingerprint", "weights", "repo_id", "revision")


def check_config(config: Any, label: str) -> dict[str, Any]:
    """Refuse a configuration that lacks what loading needs.

    Args:
        config: ``config.json``, parsed.
        label: what error messages call the weights.

    Returns:
        the configuration, with every key of the codec's entry.

    Raises:
        WeightsError: a key is missing or of the wrong type.
    """
    for key, kind in {"kind": str, "builder": str, "arguments": dict, "sha256": str}.items():
        if not isinstance(config, dict) or not isinstance(config.get(key), kind):
            raise WeightsError(f"{label}: {CONFIG} has no {key!r} of type {kind.__name__}; was it made by cdzoo?")
    for key in ("codec", "meta", "transforms"):
        if not isinstance(config.get(key), dict | None):
            raise WeightsError(f"{label}: {key} in {CONFIG} must be an object or null, not {config[key]!r}")
    if config["kind"] not in ("codec", "model"):
        raise WeightsError(f"{label}: kind in {CONFIG} is {config['kind']!r}, neither 'codec' nor 'model'")
    shares = config.get("shares") or []
    if not isinstance(shares, list) or not all(map(_is_shares, shares)):
        raise WeightsError(
            f"{label}: shares in {CONFIG} must be a list of objects with folder (the name of a folder beside this "
            "one), sha256 and names"
        )
    codec = config.get("codec") or {}
    for owner, entry in (("", config), ("codec.", codec)):
        for key in _CODEC_KEYS:
            if not isinstance(entry.get(key), str | None):
                raise WeightsError(f"{label}: {owner}{key} in {CONFIG} must be a string, not {entry[key]!r}")
    return {**config, "codec": {**dict.fromkeys(_CODEC_KEYS), **codec}} if codec else config


@dataclass(frozen=True)
class WeightsFolder:
    """A local folder of weights.

    Attributes:
        path: the folder, which holds ``config.json`` and ``model.safetensors``.
        label: what error messages call it.
        hub: repository and commit that it was fetched from; ``None`` where ``config.json`` states them.
    """

    path: Path
    label: str
    hub: tuple[str, str] | None = None

    def __str__(self) -> str:
        return self.label

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> WeightsFolder:
        """A folder anywhere on this machine.

        Raises:
            WeightsError: not a folder.
        """
        if not os.path.isdir(path):
            what = "is a file" if os.path.exists(path) else "does not exist"
            raise WeightsError(
                f"{os.fspath(path)!r} {what}; weights are a folder with {CONFIG} and {TENSORS}, which "
                "cdzoo.save_pretrained writes; pickled checkpoints (.pth, .pt, .bin) are never read"
            )
        return cls(Path(path), f"folder {os.fspath(path)!r}")

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``, parsed and checked for the keys that loading needs.

        Raises:
            WeightsError: the file is missing, is not JSON, or lacks a key.
        """
        file = self.path / CONFIG
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise WeightsError(
                f"{self}: {file} does not exist; a folder of weights holds {CONFIG} and {TENSORS}"
            ) from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise WeightsError(f"{self}: {file} cannot be read as JSON ({error}); fetch or save it again") from error
        return check_config(config, str(self))

    @property
    def builder(self) -> str:
        """Name of the builder that these weights are for."""
        return str(self.config["builder"])

    @property
    def arguments(self) -> dict[str, Any]:
        """The builder's arguments, as they were when the weights were saved."""
        return {name: _tuples(value) for name, value in self.config["arguments"].items()}

    @property
    def meta(self) -> dict[str, Any]:
        """The facts of the model card, such as classes, metrics, recipe and license; a copy."""
        return copy.deepcopy(self.config.get("meta") or {})

    @property
    def transforms(self) -> InputTransform | None:
        """The transform of the network's input; ``None`` where the configuration states none.

        Raises:
            WeightsError: the configuration has a transform that this version does not know.
        """
        config = self.config.get("transforms")
        try:
            return None if config is None else transform_from_config(config)
        except (ValueError, TypeError, AttributeError) as error:
            raise WeightsError(f"{self}: {CONFIG} has unusable transforms: {error}") from error

    @property
    def repository(self) -> tuple[str | None, str | None]:
        """Repository and revision where these weights can be had again; ``None`` where they are not published."""
        return self.hub or (self.config.get("repo_id"), self.config.get("revision"))

    @property
    def codes(self) -> bool:
        """The weights are those of a codec, or of a model with a codec inside."""
        return self.config["kind"] == "codec" or self.config.get("fingerprint") is not None

    @property
    def codec_entry(self) -> dict[str, Any] | None:
        """Entry of the codec; this configuration for a codec, ``config["codec"]`` for a model, else ``None``."""
        return self.config if self.codes else self.config.get("codec")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, with those that are shared, once their SHA-256 has been compared with ``config.json``.

        Raises:
            WeightsError: a file is missing, has another hash, or is not in the safetensors format.
        """
        return self._shared_tensors() | self.own_tensors()

    def _shared_tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for shares in self.config.get("shares") or []:
            other = WeightsFolder(
                self.path.parent / shares["folder"], f"{self}: the shared folder {shares['folder']!r}"
            )
            tensors = other.own_tensors() if other.config["sha256"] == shares["sha256"] else {}
            missing = [name for name in shares["names"] if name not in tensors]
            if missing:
                raise WeightsError(
                    f"{other} lacks {len(missing)} tensors ({', '.join(map(str, missing[:3]))}, ...) or is of another "
                    "version; fetch all these folders again"
                )
            found |= {name: tensors[name] for name in shares["names"]}
        return found

    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors that this folder stores itself; see :meth:`tensors`, also for errors."""
        return read_verified(self.path / TENSORS, self.config["sha256"], label=str(self), stated_in=CONFIG)


def _is_shares(shares: Any) -> bool:
    """The entry has what it needs, and names no folder elsewhere on this machine."""
    if not isinstance(shares, dict) or not isinstance(shares.get("names"), list):
        return False
    folder, sha256 = shares.get("folder"), shares.get("sha256")
    if not isinstance(folder, str) or not isinstance(sha256, str):
        return False
    return folder not in ("", os.curdir, os.pardir) and os.path.basename(folder) == folder


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
