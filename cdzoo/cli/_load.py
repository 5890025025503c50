"""From what stands on the command line to codecs and networks with their weights."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from cdzoo._registry import get_builder, get_model_weights, get_weight, list_codecs, list_models
from cdzoo.cli._report import UsageError
from cdzoo.codecs import Codec
from cdzoo.errors import PairingError
from cdzoo.hub import download
from cdzoo.weights.enums import WeightsFolder, resolve_weights

__all__ = ["find_weights", "get_device", "load", "load_codec", "load_writer", "shown_source"]


def find_weights(builder: str | None, weights: str, *, default: str) -> WeightsFolder:
    """The folder that ``--weights`` means.

    Args:
        builder: the name given on the command line; ``None`` where it is left to the weights to say.
        weights: ``"DEFAULT"`` or another member's name, ``"Enum.MEMBER"``, ``"hf://owner/repo@revision"``, a folder.
        default: the builder whose member is meant by a bare member's name.

    Raises:
        UsageError: an unknown name, or weights of another builder.
        WeightsError: the weights cannot be had.
    """
    try:
        if builder is not None:
            get_builder(builder)  # an unknown name should be told from unknown weights
            _check_published(builder, weights)
        elif weights.startswith("hf://"):
            repo_id, _, revision = weights.removeprefix("hf://").partition("@")
            return WeightsFolder.from_hub(download(repo_id, revision=revision or None), repo_id, revision or None)
        elif weights not in _member_names(default):
            if os.path.isdir(weights):
                return WeightsFolder.from_path(weights)
            if weights.partition(".")[0].isidentifier() and "." in weights:
                member = get_weight(weights)
                return WeightsFolder(member.value.source.path, str(member))
        source = resolve_weights(builder or default, weights)
    except ValueError as error:
        raise UsageError(str(error)) from error
    assert source is not None
    return source


def load(source: WeightsFolder) -> nn.Module:
    """The module that the weights are for, in evaluation mode."""
    return get_builder(source.config["builder"], source.config["kind"])(weights=source).eval()


def load_codec(builder: str | None, weights: str) -> Codec:
    """A codec with weights; arguments as in :func:`find_weights`."""
    if builder is not None:
        _check_codec(builder)
    source = find_weights(builder, weights, default="bmshj2018_hyperprior")
    if source.codec_entry is not source.config:
        raise UsageError(f"weights {source} are for {source.config['builder']}, which is no codec.")
    codec = load(source)
    assert isinstance(codec, Codec)
    return codec


def _check_codec(builder: str) -> None:
    """Tell of codecs what :func:`find_weights` tells of codecs and networks, in words that fit a command.

    Raises:
        UsageError: an unknown name.
    """
    if builder not in list_models():  # among which there is one that codes, too
        try:
            get_builder(builder, "codec")
        except ValueError as error:
            raise UsageError(str(error)) from error


def _check_published(builder: str, weights: str) -> None:
    """Refuse the default weights of what has none, in words that fit a command.

    Raises:
        UsageError: that is what was asked for.
    """
    if weights == "DEFAULT" and not _member_names(builder):
        known = list_codecs(pretrained=True) if builder in list_codecs() else list_models(pretrained=True)
        raise UsageError(
            f"no weights of {builder} are published; name some with --weights FOLDER or --weights hf://owner/repo, or "
            f"take one of {', '.join(known)}."
        )


def load_writer(codec: str, fingerprint: str) -> Codec:
    """The codec that wrote a stream, among those that come with the package.

    Raises:
        PairingError: none of them has the stream's fingerprint.
    """
    for name in [*list_codecs(codec, pretrained=True), *list_models(codec, pretrained=True)]:
        for member in get_model_weights(name):
            if member.value.source.config.get("fingerprint") == fingerprint:
                return member.build_codec()
    raise PairingError(
        f"written by {codec} with fingerprint {fingerprint}, which no packaged weights have; "
        "name the weights that wrote it with --weights FOLDER or --weights hf://owner/repo."
    )


def get_device(name: str) -> torch.device:
    """The device of that name, once it has been seen to work."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # which one that holds no data ("meta") cannot do
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def shown_source(source: WeightsFolder) -> dict[str, Any]:
    """What a result says of the weights that made it."""
    return {"builder": source.config["builder"], "weights": str(source)}


def _member_names(builder: str) -> set[str]:
    try:
        return set(get_model_weights(builder).__members__)
    except ValueError:
        return set()
