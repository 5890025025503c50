"""Writing a codec or a model down, so that it comes back bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdzoo._files import write_atomically
from cdzoo._registry import Entry, find_entry, listed
from cdzoo._version import __version__
from cdzoo.coding.base import Codec
from cdzoo.errors import PairingError, WeightsError
from cdzoo.transforms import CoefficientTransform, InputTransform, LatentTransform
from cdzoo.types import Origin
from cdzoo.weights.building import planned
from cdzoo.weights.card import model_card
from cdzoo.weights.enums import WeightsEnum
from cdzoo.weights.folder import CARD, CONFIG, INTEGER_PREFIX, TENSORS
from cdzoo.weights.integrity import content_digest

__all__ = ["save_pretrained"]

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
        module: a codec or model that a registered builder made; it is not changed.
        directory: the folder, made if need be; files of these three names are replaced.
        dtype: ``torch.float16`` or ``torch.bfloat16`` halves the size: parameters of networks are rounded, while
            running statistics and entropy models stay as they are. A codec whose parameters are rounded is another
            codec, with its own fingerprint: train networks on the codec that :func:`from_pretrained` gives back.
        codec: for a model, the codec on whose latents it was trained; by default the one that its own weights named.
        transforms: for a model, the transform of its input; by default ``module.transforms``.
        meta: facts for the model card, JSON-ready: ``license``, ``datasets``, ``data``, ``recipe``, ``time``,
            ``metrics``, ``limits``, ``classes``, ... By default ``module.meta``. If the values have changed since the
            module was loaded (by training, or by rounding to ``dtype``), only the license, the data and the classes of
            the loaded facts are kept.
        repo_id: the repository on the Hub where these weights will be published; recorded for whoever loads them.
        revision: its revision.
        card: the text of ``README.md``, in place of the generated one.

    Returns:
        ``directory`` as a path.

    Raises:
        TypeError: no registered builder made ``module``, ``codec`` is not a codec, or ``transforms`` is of a kind that
            cannot be written down.
        PairingError: the network does not read as many channels as the codec has.
        ValueError: the folder could not be loaded again, a value does not fit ``dtype``, or a fact does not fit the
            model card.
        OSError: the folder cannot be written.
    """
    module = getattr(module, "_orig_mod", module)  # inside what torch.compile returns
    origin = getattr(module, "origin", None)
    if not isinstance(origin, Origin):
        what = "save the .codec or .model of a composed module, the .module of a parallel one, or register its class"
        if isinstance(module, Codec):
            what = "register a subclass that makes its own layers"
        register = "register_codec" if isinstance(module, Codec) else "register_model"
        raise TypeError(
            f"{type(module).__name__} was not made by a registered builder, so it cannot be built again; "
            f"{what} with cdzoo.{register} and build it by name"
        )
    if codec is not None and not isinstance(codec, Codec):
        raise TypeError(f"codec must be a codec of cdzoo, not {type(codec).__name__}; cdzoo.list_codecs() names them")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}: weights are written as {', '.join(map(str, _DTYPES[1:]))}, or as they are")
    transforms = getattr(module, "transforms", None) if transforms is None else transforms
    if not isinstance(transforms, LatentTransform | CoefficientTransform | None):
        raise TypeError(
            f"transforms of type {type(transforms).__name__} cannot be written down; a LatentTransform and a "
            "CoefficientTransform can; set module.transforms = None to save the module without, and say in meta what "
            "its input needs"
        )
    entry = find_entry(origin.builder)
    if isinstance(module, Codec):
        tensors, fingerprint = _codec_tensors(module, entry, origin, dtype)
        belongs: dict[str, Any] = {"fingerprint": fingerprint}
    else:
        tensors, belongs = _state(module, dtype), {"codec": _codec_entry(module, origin, codec)}
    config: dict[str, Any] = {
        "library": f"cdzoo {__version__}",
        "kind": entry.kind,
        "builder": origin.builder,
        "arguments": dict(origin.arguments),
        "repo_id": repo_id,
        "revision": revision,
        "transforms": None if transforms is None else transforms.config(),
        "meta": _inherited_meta(module, origin, tensors) if meta is None else dict(meta),
        **belongs,
    }
    from safetensors.torch import save

    data = save(tensors, metadata={"format": "pt"})
    config["sha256"] = hashlib.sha256(data).hexdigest()
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments or meta of {origin.builder} cannot be written as JSON: {error}") from error
    _check_loadable(entry, origin, module, tensors)
    if card is None:
        _check_meta(config["meta"])
        card = model_card(config, tensors, len(data), pipeline_tag=getattr(entry.cls, "pipeline_tag", None))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / TENSORS, data)
    write_atomically(directory / CARD, card.encode())
    # last: until it is there, a folder that was interrupted is refused, for want of a file or because of the hash
    write_atomically(directory / CONFIG, text.encode())
    return directory


def _check_meta(meta: Mapping[str, Any]) -> None:
    """Refuse facts that the model card cannot hold."""
    for names, kind, what in (
        (("metrics",), Mapping, "a mapping from names to values, or from data sets to such mappings"),
        (("classes", "datasets", "tags"), list | tuple, "a list"),
    ):
        for name in names:
            if not isinstance(meta.get(name), kind | None):
                raise ValueError(f"meta[{name!r}] is {meta[name]!r}, and must be {what}")


def _inherited_meta(module: nn.Module, origin: Origin, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The facts in ``module.meta`` that are still true of the values to be written."""
    meta: Mapping[str, Any] = getattr(module, "meta", {})
    if origin.digest is None or origin.digest == content_digest(tensors):
        return dict(meta)
    # keep facts that the caller has added or changed since loading
    loaded = origin.meta
    return {k: v for k, v in meta.items() if k in _OUTLIVES_TRAINING or k not in loaded or v != loaded[k]}


def _state(module: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state dict as it goes into the file: on the CPU, contiguous, each tensor with memory of its own.

    ``dtype`` is for the parameters of networks. Buffers keep their type, for they are few and their range is not that
    of weights; so do the parameters that a class lists as ``full_precision_prefixes``.
    """
    exact: tuple[str, ...] = getattr(module, "full_precision_prefixes", ())
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state = {}
    for name, tensor in module.state_dict().items():
        narrow = dtype is not None and name in parameters and not name.startswith(exact)
        kept = tensor.detach().cpu()
        kept = kept.to(dtype) if narrow and kept.is_floating_point() else kept
        if kept.dtype != tensor.dtype and not torch.equal(kept.isfinite(), tensor.detach().cpu().isfinite()):
            raise ValueError(
                f"{name} has values up to {float(tensor.abs().max()):g}, which {dtype} cannot hold; save it with "
                "torch.bfloat16, or without dtype"
            )
        state[name] = kept.contiguous().clone()
    return state


def _codec_tensors(
    codec: Codec, entry: Entry, origin: Origin, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], str]:
    """Parameters and integers of a codec, and the fingerprint of the codec that loading them gives."""
    cast_to = sorted({str(p.dtype) for p in codec.parameters() if p.dtype != torch.float32})
    before, tensors, integers = _state(codec), _state(codec, dtype), codec.integer_state()
    rounded = any(not torch.equal(before[name], tensors[name].to(before[name].dtype)) for name in tensors)
    # building draws random values; restore the generator so that training goes on unchanged
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), _building_again(entry, origin):
        twin: Any = entry.make(**origin.arguments).float()
    _check_same_tensors(entry, origin, twin.state_dict(), tensors)
    twin.load_state_dict(tensors)
    if rounded:  # integers of the unrounded parameters are not those of the rounded ones
        integers = twin.integer_state()
    else:
        twin.load_integer_state(integers)
        cast_to = cast_to or ["float32 once more"] * (twin.fingerprint != codec.fingerprint)
    if cast_to:
        raise ValueError(
            f"the parameters of {codec.name} were cast to {', '.join(cast_to)}, but its fingerprint "
            f"{codec.fingerprint} belongs to what they were before; save the codec before the cast, with "
            "dtype=torch.float16 for a smaller file"
        )
    return tensors | {INTEGER_PREFIX + n: t.cpu().contiguous() for n, t in integers.items()}, twin.fingerprint


def _codec_entry(model: nn.Module, origin: Origin, codec: Codec | None) -> dict[str, Any] | None:
    """The entry of the codec that a model belongs to."""
    if codec is None:
        fingerprint = getattr(model, "codec_fingerprint", None)
        if origin.codec is not None and origin.codec.get("fingerprint") == fingerprint:
            return dict(origin.codec)
        return None if fingerprint is None else _published_codec(fingerprint)
    channels = getattr(model, "in_channels", None)
    if getattr(model, "latent_stride", None) is not None and channels != codec.latent_channels:
        raise PairingError(
            f"the network reads {channels} latent channels, but {codec.name} (fingerprint {codec.fingerprint}) has "
            f"{codec.latent_channels}; name the codec that it was trained with"
        )
    entry, source = _published_codec(codec.fingerprint), getattr(codec, "origin", None)
    if entry["weights"] is None and isinstance(source, Origin) and source.fingerprint == codec.fingerprint:
        entry.update(repo_id=source.repo_id, revision=source.revision)
    return entry


def _published_codec(fingerprint: str) -> dict[str, Any]:
    for entry in listed("codec", pretrained=True):
        for member in cast(type[WeightsEnum], entry.weights):
            try:
                found = member.source.config.get("fingerprint")
            except WeightsError:
                continue  # another set of weights that is damaged is no reason not to save this one
            if found == fingerprint:
                names = {"weights": str(member), "repo_id": member.repo_id, "revision": member.revision}
                return {"fingerprint": fingerprint, **names}
    return {"fingerprint": fingerprint, "weights": None, "repo_id": None, "revision": None}


@contextmanager
def _building_again(entry: Entry, origin: Origin) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{entry.name}(**{dict(origin.arguments)}) cannot be built again: {error}") from error


def _check_loadable(entry: Entry, origin: Origin, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write what a builder could not read: a replaced layer, an argument that was changed afterwards."""
    with _building_again(entry, origin):
        plan = planned(entry, origin.arguments)
    if plan is None:
        return
    _check_same_tensors(entry, origin, plan.state_dict(), tensors)
    check: Any = getattr(module, "check_rebuilt", None)
    if check is not None:
        check(plan)


def _check_same_tensors(entry: Entry, origin: Origin, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    need = {n: tuple(t.shape) for n, t in own.items()}
    have = {n: tuple(t.shape) for n, t in tensors.items() if not n.startswith(INTEGER_PREFIX)}
    wrong = sorted(n for n in need.keys() | have.keys() if need.get(n) != have.get(n))
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors ({', '.join(wrong[:3])}, ...) are not what {entry.name}(**{dict(origin.arguments)}) "
            "has, so the weights could not be loaded again; was a layer replaced by hand? Where there is a "
            "reset_classifier(num_classes), use that"
        )
