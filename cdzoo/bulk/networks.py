"""The network that classifies a file: one that was asked for, or a packaged one for the kind of file."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torch import nn

from cdzoo._compose import CompressedDomainModel, compose
from cdzoo._registry import find_entry, listed
from cdzoo.codecs import Codec
from cdzoo.errors import PairingError, WeightsError
from cdzoo.transforms import CoefficientTransform
from cdzoo.weights import resolve
from cdzoo.weights.building import build_codec, load
from cdzoo.weights.download import PREFIX
from cdzoo.weights.enums import WeightsEnum, WeightsLike
from cdzoo.weights.folder import WeightsFolder

__all__ = [
    "JPEG_MODEL",
    "STREAM_MODELS",
    "Network",
    "default_network",
    "find_network",
    "packaged_codec",
    "packaged_names",
    "weights_or_default",
]

JPEG_MODEL = "jpeg_efficientnet_lite0"
"""Builder of the network that classifies JPEG files by default."""
STREAM_MODELS = {
    "bmshj2018_hyperprior": "latent_efficientnet_lite0",
    "choi2019": "resnet41",
    "torfason2018": "cresnet39",
}
"""Name of a codec -> builder of the network that classifies its streams by default."""


class Network(NamedTuple):
    """A network that reads files, and facts about it for reports.

    Attributes:
        module: a network over coefficients, or one over latents behind its codec.
        facts: ``builder`` or class, ``weights``, number of ``classes``, ``codec``; JSON-ready.
    """

    module: nn.Module
    facts: dict[str, Any]

    def __str__(self) -> str:
        classes = self.facts["classes"]
        parts = [self.facts["builder"]]
        parts += [f"weights {self.facts['weights']}"] if self.facts["weights"] is not None else []
        parts += [f"{classes} classes"] if classes is not None else []
        parts += [f"on latents of {self.facts['codec']['name']}"] if "codec" in self.facts else []
        return ", ".join(parts)


def packaged_names(kind: str, fingerprint: str | None = None) -> tuple[str, WeightsEnum | None]:
    """The packaged network for one kind of file, by name.

    Args:
        kind: ``"jpeg"``, or the name of the codec that wrote a stream.
        fingerprint: of that codec.

    Returns:
        the builder, and the weights that were trained with this very codec; ``None`` if there are no such weights.

    Raises:
        PairingError: no packaged network reads latents of that codec.
    """
    builder = JPEG_MODEL if kind == "jpeg" else STREAM_MODELS.get(kind)
    if builder is None:
        raise PairingError(
            f"no packaged network reads latents of {kind} (there are networks for {', '.join(sorted(STREAM_MODELS))}); "
            "name weights that were trained on its latents"
        )
    return builder, None if fingerprint is None else resolve.member_with(fingerprint, builder)


def default_network(kind: str, codec: Codec | None = None) -> Network:
    """The packaged network for one kind of file, loaded.

    Args:
        kind: ``"jpeg"``, or the name of the codec that wrote a stream.
        codec: the codec that wrote it; by default, the packaged one.

    Raises:
        PairingError: no packaged network reads latents of that codec.
    """
    return find_network(*packaged_names(kind, None if codec is None else codec.fingerprint), codec)


def find_network(model: str | nn.Module | None, weights: WeightsLike = None, codec: Codec | None = None) -> Network:
    """The network that was asked for, in evaluation mode, behind its codec if it reads latents.

    Args:
        model: a builder's name, ``"timm/NAME"``, a module, or ``None`` for the builder of the weights.
        weights: weights in any form; by default the builder's ``DEFAULT``.
        codec: the codec whose latents the network reads; by default the codec that the weights belong to.

    Raises:
        ImportError: a package that the network or its codec needs is not installed.
        PairingError: network and codec do not fit.
        TypeError: ``model`` is a codec, or no name and no module.
        ValueError: an unknown name, weights of something else than a network, or weights beside a module.
        WeightsError: the weights cannot be found or loaded.
    """
    if isinstance(model, Codec) or not (model is None or isinstance(model, str | nn.Module)):
        raise TypeError(
            f"model is a builder's name, a module that gives logits, or timm/NAME, not {type(model).__name__}; "
            "cdzoo.compose(codec, network) puts a network behind a codec"
        )
    if isinstance(model, nn.Module):
        if weights is not None:
            raise ValueError("weights go with a builder's name; load them into the module, or pass its builder's name")
        return _described(model, type(model).__name__, None, codec)
    if model is not None and model.startswith("timm/"):
        if weights is not None:
            raise ValueError(f"{model} comes with timm's weights; leave weights out, or pass the module itself")
        return _described(_from_timm(model.removeprefix("timm/")), model, None, None)
    if model is not None:
        _check_builder(model)
    source = weights_or_default(weights, model)
    if source.config["kind"] != "model":
        raise ValueError(f"weights {source} are for {source.builder}, which is a codec; name a network's")
    if codec is None and source.codec_entry:
        codec = build_codec(source)  # before the network: the codec is the part that may be missing
    return _described(load(source), source.builder, str(source), codec)


def packaged_codec(name: str, fingerprint: str) -> Codec:
    """The packaged codec that wrote a stream.

    Raises:
        PairingError: no packaged codec has the stream's fingerprint.
    """
    if (member := resolve.member_with(fingerprint, name)) is not None:
        return member.build_codec()
    raise PairingError(
        f"written by {name} with fingerprint {fingerprint}, which no packaged weights have; name the weights that "
        "wrote it with --weights FOLDER or --weights hf://owner/repo"
    )


def weights_or_default(weights: WeightsLike, builder: str | None) -> WeightsFolder:
    """The folder of weights in any form; ``None`` means the builder's ``DEFAULT``.

    Raises:
        ValueError: an unknown name, or weights of another builder.
        WeightsError: the weights cannot be had.
    """
    if builder is None and _is_plain_name(weights):
        members = [
            f"{entry.weights.__name__}.{weights}"
            for entry in listed("model", pretrained=True)
            if entry.weights is not None and weights in entry.weights.__members__
        ]
        hint = f"; did you mean one of {', '.join(members)}?" if members else ""
        raise ValueError(
            f"unknown weights {weights!r}; weights are Enum.MEMBER, hf://owner/repo or a folder that exists{hint}"
        )
    if builder is not None and weights is None:
        entry = find_entry(builder)
        if not entry.pretrained:
            raise ValueError(
                f"no weights of {builder} are published; name weights (a folder or hf://owner/name), or take one of "
                f"{', '.join(e.name for e in listed(entry.kind, pretrained=True))}"
            )
    elif builder is not None:
        find_entry(builder)  # distinguishes an unknown builder from unknown weights
    source = resolve.find_weights("DEFAULT" if weights is None else weights, builder=builder)
    assert source is not None
    return source


def _is_plain_name(weights: WeightsLike) -> bool:
    """A string that is neither a folder, nor an address on the Hub, nor ``Enum.MEMBER``."""
    if not isinstance(weights, str) or weights.startswith(PREFIX) or os.path.exists(weights):
        return False
    enum, dot, _ = weights.partition(".")
    return not (dot and enum.isidentifier())


def _check_builder(name: str) -> None:
    """Raise the error for an unknown builder; where timm has a network of this name, the error suggests it."""
    try:
        find_entry(name)
    except ValueError as error:
        try:
            import timm
        except ImportError:
            raise error from None
        if timm.is_model(name):
            text, there = str(error), f"'timm/{name}' (a network of timm, for JPEG files)"
            text = f"{text[:-1]}, or {there}?" if text.endswith("?") else f"{text}, {there}"
            raise ValueError(text) from None
        raise


def _described(module: nn.Module, builder: str, weights: str | None, codec: Codec | None) -> Network:
    network = module.model if isinstance(module, CompressedDomainModel) else module
    if codec is not None and getattr(module, "latent_stride", None) is not None:
        module = compose(codec, module)
    classes = getattr(network, "num_classes", None)
    facts: dict[str, Any] = {"builder": builder, "weights": weights}
    facts["classes"] = classes if isinstance(classes, int) else None
    if isinstance(module, CompressedDomainModel):
        facts["codec"] = {"name": module.codec.name, "fingerprint": module.codec.fingerprint}
    return Network(module, facts)


def _from_timm(name: str) -> nn.Module:
    """A pretrained network of timm over coefficients, with the names of its classes where timm knows them."""
    try:
        import timm
        from timm.data import ImageNetInfo, infer_imagenet_subset
    except ImportError as error:
        raise ImportError(f"model='timm/{name}' needs timm, which is not installed; pip install timm") from error
    from cdzoo.ops import to_jpeg_domain

    try:
        network = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # the exceptions of the Hub's client have no common base
        if str(error).startswith(("Unknown model", "Invalid pretrained tag")):
            raise ValueError(
                f"model='timm/{name}': {error}; timm.list_models(pretrained=True) has the names"
            ) from error
        client = type(error).__module__.partition(".")[0] in ("huggingface_hub", "httpx", "requests", "urllib3")
        if not (client or isinstance(error, OSError)) or isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise WeightsError(
            f"the weights of timm/{name} could not be downloaded or read ({type(error).__name__}: {reason}); check the "
            "connection, or pass 'timm/local-dir:FOLDER' for a folder that has config.json and model.safetensors"
        ) from error
    config = network.pretrained_cfg
    module: Any = to_jpeg_domain(network, mean=config["mean"], std=config["std"]).eval()
    module.num_classes = network.num_classes
    if getattr(module, "transforms", None) is None:
        module.transforms = CoefficientTransform(shorter_side=config["input_size"][1])
    if (subset := infer_imagenet_subset(network)) is not None:
        info = ImageNetInfo(subset)
        module.meta = {
            "classes": info.label_names(),
            "class_names": [info.index_to_description(i) for i in range(network.num_classes)],
        }
    return module  # type: ignore[no-any-return]
