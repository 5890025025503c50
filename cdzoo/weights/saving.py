"""Writing a codec or a model down, so that it comes back bit for bit."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdzoo._files import write_atomically
from cdzoo._registry import get_builder, get_model_weights, list_codecs
from cdzoo._version import __version__
from cdzoo.coding.base import Codec
from cdzoo.errors import PairingError, WeightsError
from cdzoo.transforms import CoefficientTransform, InputTransform, LatentTransform
from cdzoo.weights.card import model_card
from cdzoo.weights.folder import CARD, CONFIG, INTEGER_PREFIX, TENSORS, WeightsFolder, content_digest

__all__ = ["save_pretrained"]

_FULL_PRECISION = ("entropy_bottleneck.", "gaussian_conditional.", "quantizer.")
_DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OUTLIVES_TRAINING = ("license", "datasets", "data", "classes", "class_names", "wnids")


def save_pretrained(
    module: nn.Module,
    directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    codec: Codec | None = None,
    transforms: InputTransform | None = None,
    meta: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    revision: str = "main",
    card: str | None = None,
) -> Path:
    """Write ``config.json``, ``model.safetensors`` and ``README.md``, each of them in full or not at all.

    Args:
        module: a codec or model that a builder of cdzoo made; it is not changed.
        directory: the folder, made if need be; files of these three names are replaced.
        dtype: ``torch.float16`` or ``torch.bfloat16`` halves the size: parameters of networks are rounded, while
            running statistics and entropy models stay as they are. A codec whose parameters are rounded is another
            codec, with its own fingerprint: train networks on what :func:`from_pretrained` gives back.
        codec: for a model, the codec on whose latents it was trained. Without it, what the model's own weights said.
        transforms: for a model, what is done to its input before it reads it. Without it, ``module.transforms``.
        meta: facts for the model card, JSON-ready: ``license``, ``datasets``, ``data``, ``recipe``, ``time``,
            ``metrics``, ``limits``, ``classes``, ... Without it, ``module.meta``; of what that has from the weights
            which the module was loaded from, values that are no longer the same (trained further, or rounded by
            ``dtype``) leave only the licence, the data and the classes.
        repo_id, revision: where on the Hub these weights are to be published; recorded for whoever loads them.
        card: the text of ``README.md``, in place of the generated one.

    Returns:
        ``directory`` as a path.

    Raises:
        TypeError: ``module`` was not made by a builder of cdzoo, ``codec`` is not a codec, or ``transforms`` is of a
            kind that cannot be written down.
        PairingError: the network does not read as many channels as the codec has.
        ValueError: what would be written could not be loaded again, does not fit ``dtype``, or is nothing that the
            model card can hold.
        OSError: the folder cannot be written.
    """
    module = getattr(module, "_orig_mod", module)  # inside what torch.compile returns
    builder = getattr(module, "builder", None)
    if not isinstance(builder, str) or not isinstance(getattr(module, "arguments", None), dict):
        raise TypeError(
            f"{type(module).__name__} was not made by a builder of cdzoo, so nobody knows how to build it again; save "
            "the .codec or .model of a composed module, the .module of a parallel one, or build yours with "
            "cdzoo.get_model(...) and load your tensors into that."
        )
    if codec is not None and not isinstance(codec, Codec):
        raise TypeError(f"codec must be a codec of cdzoo, not {type(codec).__name__}; cdzoo.list_codecs() names them.")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}: weights are written as {', '.join(map(str, _DTYPES[1:]))}, or as they are.")
    transforms = getattr(module, "transforms", None) if transforms is None else transforms
    if not isinstance(transforms, LatentTransform | CoefficientTransform | None):
        raise TypeError(
            f"transforms of type {type(transforms).__name__} cannot be written down; a LatentTransform and a "
            "CoefficientTransform can. Set module.transforms = None to save the module without, and say in meta what "
            "its input needs."
        )
    if isinstance(module, Codec):
        tensors, fingerprint = _codec_tensors(module, dtype)
        belongs: dict[str, Any] = {"fingerprint": fingerprint}
    else:
        tensors, belongs = _state(module, dtype), {"codec": _codec_entry(module, codec)}
    config: dict[str, Any] = {
        "library": f"cdzoo {__version__}",
        "kind": "codec" if builder in list_codecs() else "model",  # one that is both is found among the models
        "builder": builder,
        "arguments": module.arguments,
        "repo_id": repo_id,
        "revision": revision,
        "transforms": None if transforms is None else transforms.config(),
        "meta": _inherited_meta(module, tensors) if meta is None else dict(meta),
        **belongs,
    }
    from safetensors.torch import save

    data = save(tensors, metadata={"format": "pt"})
    config["sha256"] = hashlib.sha256(data).hexdigest()
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments or meta of {builder} cannot be written as JSON: {error}.") from error
    _check_loadable(json.loads(text), tensors)
    if card is None:
        _check_meta(config["meta"])
        card = model_card(config, tensors, len(data))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / TENSORS, data)
    write_atomically(directory / CARD, card.encode())
    # last: until it is there, a folder that was interrupted is refused, for want of a file or because of the hash
    write_atomically(directory / CONFIG, text.encode())
    return directory


def _check_meta(meta: Mapping[str, Any]) -> None:
    """What the model card reads has to be what it takes it for."""
    for names, kind, what in (
        (("metrics",), Mapping, "a mapping from names to values, or from data sets to such mappings"),
        (("classes", "datasets", "tags"), list | tuple, "a list"),
    ):
        for name in names:
            if not isinstance(meta.get(name), kind | None):
                raise ValueError(f"meta[{name!r}] is {meta[name]!r}, and must be {what}.")


def _inherited_meta(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a module's ``meta`` still says truly of the values that are to be written."""
    meta: dict[str, Any] = getattr(module, "meta", None) or {}
    loaded: dict[str, Any] | None = getattr(module, "pretrained_meta", None)
    if loaded is None or getattr(module, "pretrained_digest", None) == content_digest(tensors):
        return dict(meta)
    # what the caller has written into module.meta since is about the module as it is
    return {k: v for k, v in meta.items() if k in _OUTLIVES_TRAINING or k not in loaded or v != loaded[k]}


def _state(module: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state dict as it goes into the file: on the CPU, contiguous, each tensor with memory of its own.

    ``dtype`` is for the parameters of networks. Running statistics and other buffers keep their type, for they are few
    and their range is not that of weights; so do entropy models, which are coded with.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state = {}
    for name, tensor in module.state_dict().items():
        narrow = dtype is not None and name in parameters and not name.startswith(_FULL_PRECISION)
        kept = tensor.detach().cpu()
        kept = kept.to(dtype) if narrow and kept.is_floating_point() else kept
        if kept.dtype != tensor.dtype and not torch.equal(kept.isfinite(), tensor.detach().cpu().isfinite()):
            raise ValueError(
                f"{name} has values up to {float(tensor.abs().max()):g}, which {dtype} cannot hold; save it with "
                "torch.bfloat16, or without dtype."
            )
        state[name] = kept.contiguous().clone()
    return state


def _codec_tensors(codec: Codec, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], str]:
    """Parameters and integers of a codec, and the fingerprint of what they make when loaded."""
    cast = sorted({str(p.dtype) for p in codec.parameters() if p.dtype != torch.float32})
    before, tensors, integers = _state(codec), _state(codec, dtype), codec.integer_state()
    twin = copy.deepcopy(codec).cpu()
    if any(not torch.equal(before[name], tensors[name].to(before[name].dtype)) for name in tensors):
        # integers that were derived from the unrounded parameters would otherwise be taken for those of the rounded
        twin.load_state_dict(tensors)
        twin._derived = None
        integers = twin.integer_state()
    else:
        twin.load_integer_state(integers)
        cast = cast or ["float32 once more"] * (twin.fingerprint != codec.fingerprint)
    if cast:
        raise ValueError(
            f"the parameters of {codec.name} were cast to {', '.join(cast)}, but its fingerprint {codec.fingerprint} "
            "belongs to what they were before; save the codec before the cast, with dtype=torch.float16 for a smaller "
            "file."
        )
    return tensors | {INTEGER_PREFIX + n: t.cpu().contiguous() for n, t in integers.items()}, twin.fingerprint


def _codec_entry(model: nn.Module, codec: Codec | None) -> dict[str, Any] | None:
    """What a model's configuration says of the codec that it belongs to."""
    if codec is None:
        fingerprint = getattr(model, "codec_fingerprint", None)
        known = getattr(model, "pretrained_codec", None)
        if known is not None and known.get("fingerprint") == fingerprint:
            return dict(known)
        return None if fingerprint is None else _published_codec(fingerprint)
    channels = getattr(model, "in_channels", None)
    if getattr(model, "latent_stride", None) is not None and channels != codec.latent_channels:
        raise PairingError(
            f"the network reads {channels} latent channels, but {codec.name} (fingerprint {codec.fingerprint}) has "
            f"{codec.latent_channels}; name the codec that it was trained with."
        )
    entry = _published_codec(codec.fingerprint)
    source = getattr(codec, "pretrained_source", None) or {}
    if entry["weights"] is None and source.get("fingerprint") == codec.fingerprint:
        entry.update(repo_id=source["repo_id"], revision=source["revision"])
    return entry


def _published_codec(fingerprint: str) -> dict[str, Any]:
    for name in list_codecs(pretrained=True):
        for member in get_model_weights(name):
            try:
                found = member.value.source.config.get("fingerprint")
            except WeightsError:
                continue  # another set of weights that is damaged is no reason not to save this one
            if found == fingerprint:
                names = {"weights": str(member), "repo_id": member.repo_id, "revision": member.revision}
                return {"fingerprint": fingerprint, **names}
    return {"fingerprint": fingerprint, "weights": None, "repo_id": None, "revision": None}


@dataclass(frozen=True)
class _Plan(WeightsFolder):
    """Weights that are not written yet: enough for a builder to build, and nothing to load."""

    plan: dict[str, Any] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        return self.plan

    def load_into(self, module: nn.Module) -> None:
        """Leave the module as it is: only its names and shapes are asked for."""

    def _shapes(self) -> list[tuple[int, ...]]:
        return self.shapes


def _check_loadable(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write what a builder could not read: a replaced layer, an argument that was changed afterwards."""
    name, shapes = config["builder"], [tuple(tensor.shape) for tensor in tensors.values()]
    # random values are drawn for nothing, and must not change what a training run that saves draws next
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            twin = get_builder(name, config["kind"])(weights=_Plan(Path(), name, plan=config, shapes=shapes))
        except (ValueError, WeightsError) as error:
            raise ValueError(f"{name}(**{config['arguments']}) cannot be built again: {error}") from error
    need = {n: tuple(t.shape) for n, t in twin.state_dict().items()}
    have = {n: tuple(t.shape) for n, t in tensors.items() if not n.startswith(INTEGER_PREFIX)}
    wrong = sorted(n for n in need.keys() | have.keys() if need.get(n) != have.get(n))
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors ({', '.join(wrong[:3])}, ...) are not what {name}(**{config['arguments']}) has, so "
            "the weights could not be loaded again; was a layer replaced by hand? Where there is a "
            "reset_classifier(num_classes), use that."
        )
