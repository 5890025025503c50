"""cdzoo inside other libraries, one module each, named after the library and imported by that name.

    cdzoo.interop.timm          classifiers in timm's registry
    cdzoo.interop.torchvision   coefficients and latents in torchvision's transforms v2
    cdzoo.interop.datasets      image columns of Hugging Face datasets to coefficients, latents and streams
    cdzoo.interop.compressai    CompressAI's models as codecs
    cdzoo.interop.ray           archives compressed and classified on a cluster, by Ray

Each is imported on first use; nothing here is imported by ``import cdzoo``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = ("compressai", "datasets", "ray", "timm", "torchvision")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cdzoo.interop' has no attribute {name!r}")
    return import_module(f"cdzoo.interop.{name}")


def __dir__() -> list[str]:
    return list(_MODULES)
