"""cdzoo: networks that read what a codec stores, and never rebuild the pixels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cdzoo._version import __version__ as __version__

if TYPE_CHECKING:
    from cdzoo import codecs as codecs
    from cdzoo import data as data
    from cdzoo import errors as errors
    from cdzoo import interop as interop
    from cdzoo import models as models
    from cdzoo import ops as ops
    from cdzoo import transforms as transforms
    from cdzoo import types as types
    from cdzoo._compose import CompressedDomainModel as CompressedDomainModel
    from cdzoo._compose import compose as compose
    from cdzoo.bulk.classify import classify as classify
    from cdzoo.coding.base import Codec as Codec
    from cdzoo.hub import from_pretrained as from_pretrained
    from cdzoo.hub import push_to_hub as push_to_hub
    from cdzoo.hub import save_pretrained as save_pretrained
    from cdzoo.images import load_images as load_images
    from cdzoo.models.classifier import JPEGClassifier as JPEGClassifier
    from cdzoo.models.classifier import LatentClassifier as LatentClassifier
    from cdzoo.types import CodecOutput as CodecOutput
    from cdzoo.types import JPEGCoefficients as JPEGCoefficients
    from cdzoo.types import Latent as Latent
    from cdzoo.zoo import get_codec as get_codec
    from cdzoo.zoo import get_model as get_model
    from cdzoo.zoo import get_model_weights as get_model_weights
    from cdzoo.zoo import get_weight as get_weight
    from cdzoo.zoo import list_codecs as list_codecs
    from cdzoo.zoo import list_models as list_models
    from cdzoo.zoo import register_codec as register_codec
    from cdzoo.zoo import register_model as register_model

_SUBMODULES = ("codecs", "data", "errors", "interop", "models", "ops", "transforms", "types")
_HOMES = {
    "CompressedDomainModel": "cdzoo._compose",
    "compose": "cdzoo._compose",
    "classify": "cdzoo.bulk.classify",
    "Codec": "cdzoo.coding.base",
    "from_pretrained": "cdzoo.hub",
    "push_to_hub": "cdzoo.hub",
    "save_pretrained": "cdzoo.hub",
    "load_images": "cdzoo.images",
    "LatentClassifier": "cdzoo.models.classifier",
    "JPEGClassifier": "cdzoo.models.classifier",
    "CodecOutput": "cdzoo.types",
    "JPEGCoefficients": "cdzoo.types",
    "Latent": "cdzoo.types",
    "get_codec": "cdzoo.zoo",
    "get_model": "cdzoo.zoo",
    "get_model_weights": "cdzoo.zoo",
    "get_weight": "cdzoo.zoo",
    "list_codecs": "cdzoo.zoo",
    "list_models": "cdzoo.zoo",
    "register_codec": "cdzoo.zoo",
    "register_model": "cdzoo.zoo",
}
"""Name -> the file it comes from. Names are imported on first use: ``cdzoo --version`` does not wait for PyTorch."""


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"cdzoo.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'cdzoo' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *_SUBMODULES, *_HOMES})
