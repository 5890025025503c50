"""Codecs and devices from command-line arguments."""

from __future__ import annotations

import os

import torch

from cdzoo.bulk.networks import weights_or_default
from cdzoo.cli._report import UsageError
from cdzoo.cli._targets import CODEC
from cdzoo.codecs import Codec
from cdzoo.weights.building import load
from cdzoo.zoo import get_builder, list_models

__all__ = ["get_device", "load_codec", "load_given_codec"]


def load_codec(builder: str | None, weights: str | None) -> Codec:
    """A codec with weights, in evaluation mode.

    Args:
        builder: ``--codec``, a builder's name; by default the builder of the weights, or the default codec.
        weights: ``--weights``, in any form; by default the builder's default weights.

    Raises:
        UsageError: an unknown name, weights of another builder, or of something else than a codec.
        WeightsError: the weights cannot be had.
    """
    if builder is None and (weights is None or (weights.isidentifier() and not os.path.exists(weights))):
        builder = CODEC
    try:
        if builder is not None and builder not in list_models():  # one model is a codec, too
            get_builder(builder, "codec")
        source = weights_or_default(weights, builder)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not source.codes:
        raise UsageError(f"weights {source} are for {source.builder}, which is not a codec")
    codec = load(source)
    assert isinstance(codec, Codec)
    return codec


def load_given_codec(given: str | None) -> Codec | None:
    """The codec that ``--codec`` names: a builder with its default weights, ``Enum.MEMBER``, ``hf://...`` or a folder.

    Raises:
        UsageError, WeightsError: as :func:`load_codec`.
    """
    if given is None:
        return None
    is_weights = given.startswith("hf://") or os.path.isdir(given) or "." in given or os.sep in given
    return load_codec(None, given) if is_weights else load_codec(given, None)


def get_device(name: str) -> torch.device:
    """The device of that name, after a test that it works.

    Raises:
        UsageError: it does not exist or does not hold data.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # fails for "meta", which holds no data
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
