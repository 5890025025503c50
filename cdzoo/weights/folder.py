"""A folder of weights, on disk: read, verify, load in full or not at all."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from cdzoo._registry import get_builder, get_weight
from cdzoo.errors import WeightsError
from cdzoo.transforms import InputTransform, transform_from_config

if TYPE_CHECKING:
    from cdzoo.codecs import Codec

__all__ = ["CARD", "CONFIG", "INTEGER_PREFIX", "TENSORS", "WeightsFolder", "content_digest"]

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
INTEGER_PREFIX = "integer."
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar")
M = TypeVar("M", bound=nn.Module)


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values as a module holds them: a file of another precision may hold the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kept = tensor.detach().cpu().to(torch.float32 if tensor.is_floating_point() else torch.int64)
        digest.update(f"{name} {tuple(kept.shape)}\n".encode())
        digest.update(kept.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class WeightsFolder:
    """A local folder of the Hub's shape.

    Attributes:
        path: the folder, holding ``config.json`` and ``model.safetensors``.
        label: what error messages call it.
        hub: repository and revision that it was fetched from; ``None`` where ``config.json`` is to say.
    """

    path: Path
    label: str
    hub: tuple[str, str] | None = None

    @classmethod
    def from_hub(cls, path: Path, repo_id: str, revision: str | None) -> WeightsFolder:
        """A folder as :func:`cdzoo.hub.download` returns it."""
        label = f"hf://{repo_id}" + (f"@{revision}" if revision else "")
        return cls(path, label, (repo_id, path.name))  # the cache names a snapshot's folder after its commit

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
                f"{os.fspath(path)!r} {what}; weights are a folder with {CONFIG} and {TENSORS}, which is what "
                "cdzoo.save_pretrained writes. Pickled checkpoints (.pth, .pt, .bin) are never read."
            )
        return cls(Path(path), f"folder {os.fspath(path)!r}")

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``, parsed and checked for the keys that loading needs.

        Raises:
            WeightsError: the file is missing, not JSON, or lacks a key.
        """
        file = self.path / CONFIG
        try:
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise WeightsError(
                f"{self}: {file} does not exist; a folder of weights holds {CONFIG} and {TENSORS}."
            ) from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise WeightsError(f"{self}: {file} cannot be read as JSON ({error}); fetch or save it again.") from error
        required = {"kind": str, "builder": str, "arguments": dict, "sha256": str}
        for key, kind in required.items():
            if not isinstance(config, dict) or not isinstance(config.get(key), kind):
                raise WeightsError(f"{self}: {CONFIG} has no {key!r} of type {kind.__name__}; was it made by cdzoo?")
        for key in ("codec", "meta", "transforms"):
            if not isinstance(config.get(key), dict | None):
                raise WeightsError(f"{self}: {key} in {CONFIG} must be an object or null, not {config[key]!r}.")
        if config["kind"] not in ("codec", "model"):
            raise WeightsError(f"{self}: kind in {CONFIG} is {config['kind']!r}, neither 'codec' nor 'model'.")
        codec = config.get("codec") or {}
        for owner, entry in (("", config), ("codec.", codec)):
            for key in ("fingerprint", "weights", "repo_id", "revision"):
                if not isinstance(entry.get(key), str | None):
                    raise WeightsError(f"{self}: {owner}{key} in {CONFIG} must be a string, not {entry[key]!r}.")
        if codec:
            config["codec"] = {**dict.fromkeys(("fingerprint", "weights", "repo_id", "revision")), **codec}
        return config

    @property
    def arguments(self) -> dict[str, Any]:
        """The builder's arguments, as they were when the weights were saved."""
        return {name: _tuples(value) for name, value in self.config["arguments"].items()}

    @property
    def meta(self) -> dict[str, Any]:
        """Whatever the model card states, as classes, metrics, recipe, licence."""
        return copy.deepcopy(self.config.get("meta") or {})  # nobody's changes reach anybody else

    @property
    def transforms(self) -> InputTransform | None:
        """What the network's input needs done, or ``None`` where the configuration does not say."""
        config = self.config.get("transforms")
        try:
            return None if config is None else transform_from_config(config)
        except (ValueError, TypeError, AttributeError) as error:
            raise WeightsError(f"{self}: {CONFIG} has unusable transforms: {error}") from error

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, once their SHA-256 has been checked against ``config.json``.

        Raises:
            WeightsError: the file is missing, has another hash, or is not in the safetensors format.
        """
        from safetensors.torch import load

        file, expected = self.path / TENSORS, self.config["sha256"]
        try:
            data = file.read_bytes()
        except OSError as error:
            pickled = sorted(f.name for f in self.path.iterdir() if f.suffix in _PICKLES)
            why = f"; {pickled[0]} is a pickle, which can run any code and is never read" if pickled else ""
            raise WeightsError(
                f"{self}: cannot read {file} ({error.strerror}){why}; cdzoo.save_pretrained writes that file."
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise WeightsError(
                f"{self}: {TENSORS} has SHA-256 {found}, but {CONFIG} says {expected}; "
                "the file is damaged or was replaced: fetch it again."
            )
        try:
            tensors: dict[str, Tensor] = load(data)
        except Exception as error:  # SafetensorError, or what an unknown dtype makes the library raise
            raise WeightsError(
                f"{self}: {TENSORS} is not a safetensors file ({error}); pickled checkpoints are never read."
            ) from error
        return tensors

    @property
    def origin(self) -> dict[str, str | None]:
        """Where the weights can be had again, by ``repo_id`` and ``revision``; and a codec's ``fingerprint``."""
        repo_id, revision = self.hub or (self.config.get("repo_id"), self.config.get("revision"))
        return {"repo_id": repo_id, "revision": revision, "fingerprint": self.config.get("fingerprint")}

    @property
    def codec_entry(self) -> dict[str, Any] | None:
        """What is said of the codec, the configuration itself where the module codes, else what it names; or ``None``.

        A model with a fingerprint of its own is one with a codec inside.
        """
        codes = self.config["kind"] == "codec" or self.config.get("fingerprint") is not None
        return self.config if codes else self.config.get("codec")

    def build_codec(self) -> Codec:
        """The codec itself, or the codec on whose latents a model was trained; with weights, in evaluation mode.

        Raises:
            WeightsError: the model reads no learned codec's latents, or its codec cannot be had.
        """
        from cdzoo.coding.base import Codec
        from cdzoo.hub import from_pretrained

        config = self.config
        entry = self.codec_entry
        if not entry:
            raise WeightsError(f"{self}: these weights read no learned codec's latents, so there is none to build.")
        if entry is config:
            codec = get_builder(config["builder"], config["kind"])(weights=self).eval()
        elif entry.get("weights"):
            try:
                codec = get_weight(entry["weights"]).build_codec()
            except ValueError as error:
                raise WeightsError(f"{self}: this version of cdzoo has not got the codec's weights: {error}") from error
        elif entry.get("repo_id"):
            codec = from_pretrained(entry["repo_id"], revision=entry.get("revision"))
        else:
            raise WeightsError(
                f"{self}: the codec with fingerprint {entry['fingerprint']} was not published; load it from where it "
                "was saved, and pair the two with cdzoo.compose(codec, model)."
            )
        if not isinstance(codec, Codec) or codec.fingerprint != entry.get("fingerprint"):
            found = codec.fingerprint if isinstance(codec, Codec) else "no codec"
            raise WeightsError(
                f"{self}: trained on latents of the codec with fingerprint {entry.get('fingerprint')}, but what is "
                f"published in its place has {found}; ask whoever published them."
            )
        return codec

    def instantiate(self, cls: Callable[..., M], arguments: Mapping[str, Any]) -> M:
        """``cls(**arguments)``, with a clear error when the configuration holds what the class does not take.

        A configuration that asks for more than the file of tensors has is refused before any memory is.
        """
        if torch.empty(0).is_meta:
            raise WeightsError(
                f"{self}: {self.config['builder']} is being built on the meta device, where there is no memory to load "
                "weights into; build it outside of torch.device('meta') and move it afterwards."
            )
        try:
            self._check_memory(cls, arguments)
            return cls(**arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise WeightsError(
                f"{self}: the arguments in {CONFIG} do not fit {self.config['builder']} of this version of cdzoo "
                f"({error}); upgrade cdzoo, or fix the file."
            ) from error

    def _check_memory(self, cls: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
        shapes = self._shapes()
        if not shapes:
            return  # whatever is wrong with the file, loading it says so
        largest = max((size for shape in shapes for size in shape), default=0)
        some = arguments.get("channels") is not None  # then no tensor has all of them
        for name in ("N", "M", "num_classes", *(() if some else ("latent_channels", "in_channels"))):
            if int(arguments.get(name) or 0) > largest:
                raise ValueError(f"{name}={arguments[name]!r}, but no tensor of the file has more than {largest} rows")
        if sum(arguments.get("layers", ())) > len(shapes):
            raise ValueError(f"layers={arguments['layers']!r}, but the file has {len(shapes)} tensors")
        # a network of the published width has hundreds of megabytes at most; codecs cannot be built without memory
        if arguments.get("width", 1) > 1 and not self.config.get("fingerprint"):
            try:
                with torch.device("meta"):
                    planned = sum(tensor.numel() for tensor in cls(**arguments).state_dict().values())
            except RuntimeError as error:  # more numbers than can be counted
                raise ValueError(f"that makes more numbers than there can be: {error}") from error
            if planned > 2**20 + 2 * (stored := sum(map(math.prod, shapes))):  # loading tells the rest in detail
                raise ValueError(f"that makes {planned:,} numbers, and the file has {stored:,}")

    def _shapes(self) -> list[tuple[int, ...]]:
        """Of the tensors in the file, as its header has them; none where it cannot be read."""
        from safetensors import safe_open

        try:
            with safe_open(self.path / TENSORS, framework="pt") as file:
                return [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118  not a mapping
        except Exception:  # no file, or SafetensorError
            return []

    def load_into(self, module: nn.Module) -> None:
        """Copy every tensor into ``module``; all of them or none, no name left over on either side.

        Raises:
            WeightsError: names, shapes or kinds of dtype differ, or a codec's fingerprint is not the recorded one.
        """
        own, tensors = module.state_dict(), self.tensors()
        digest = content_digest(tensors)
        integers = {k.removeprefix(INTEGER_PREFIX): v for k, v in tensors.items() if k.startswith(INTEGER_PREFIX)}
        tensors = {k: v for k, v in tensors.items() if not k.startswith(INTEGER_PREFIX)}
        missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
        misfit = [
            f"{k}: {tuple(tensors[k].shape)} {tensors[k].dtype} for {tuple(own[k].shape)} {own[k].dtype}"
            for k in sorted(set(own) & set(tensors))
            if own[k].shape != tensors[k].shape or own[k].is_floating_point() != tensors[k].is_floating_point()
        ]
        if missing or unexpected or misfit:
            parts = [("missing", missing), ("unexpected", unexpected), ("of the wrong shape or kind", misfit)]
            what = "; ".join(f"{len(names)} {label} ({', '.join(names[:3])}, ...)" for label, names in parts if names)
            raise WeightsError(f"{self}: tensors do not fit {self.config['builder']}: {what}. Nothing was loaded.")
        transforms, codec = self.transforms, self.config.get("codec") or {}
        if hasattr(module, "load_integer_state") and next(module.parameters()).itemsize < 4:
            module.float()  # made so by the default dtype; rounded to it, this would be another codec
        if integers or hasattr(module, "load_integer_state"):
            # the integers can be checked only together with the parameters that they belong to
            self._load_integers(copy.deepcopy(module), tensors, integers)
            self._load_integers(module, tensors, integers)
        else:
            module.load_state_dict(tensors, strict=True)
        # setattr: these are facts about this instance, not part of every nn.Module's type
        facts: dict[str, Any] = {"meta": self.meta, "pretrained_source": self.origin}
        # what save_pretrained needs to tell whether these facts still hold
        facts |= {"pretrained_meta": self.meta, "pretrained_digest": digest}
        if not hasattr(module, "load_integer_state"):
            facts |= {"codec_fingerprint": codec.get("fingerprint"), "pretrained_codec": copy.deepcopy(codec) or None}
        if transforms is not None:
            facts["transforms"] = transforms
        for name, value in facts.items():
            setattr(module, name, value)

    def _load_integers(self, module: nn.Module, tensors: dict[str, Tensor], integers: dict[str, Tensor]) -> None:
        load: Callable[[dict[str, Tensor]], None] | None = getattr(module, "load_integer_state", None)
        if load is None:
            raise WeightsError(f"{self}: has coding tables, but {self.config['builder']} is not a codec.")
        module.load_state_dict(tensors, strict=True)
        try:
            load(integers)
        except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
            raise WeightsError(f"{self}: coding tables do not fit: {error}") from error
        recorded, found = self.config.get("fingerprint"), module.fingerprint
        if recorded != found:
            raise WeightsError(
                f"{self}: the loaded codec has fingerprint {found}, but {CONFIG} records {recorded}; streams written "
                "with these weights could not be read: fetch the folder again, or upgrade cdzoo."
            )


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
