"""cdzoo's classifiers in timm's registry.

    import timm
    from cdzoo.interop.timm import register

    register()
    timm.list_models("cdzoo_*", pretrained=True)
    model = timm.create_model("cdzoo_jpeg_resnet18", pretrained=True, num_classes=5)
    backbone = timm.create_model("cdzoo_jpeg_resnet18.imagenette_w0375", pretrained=True, features_only=True)

A slash in a name belongs to the Hub in timm, hence the prefix. Networks read the same input as in cdzoo: coefficients,
latents (those that need scales a ``Latent``), or pixels. Repositories of cdzoo on the Hub are not timm's: load them
with :func:`cdzoo.from_pretrained`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import nn

from cdzoo._registry import Entry, listed
from cdzoo.models.classifier import Classifier
from cdzoo.weights.enums import WeightsEnum
from cdzoo.weights.resolve import members

__all__ = ["PREFIX", "register"]

PREFIX = "cdzoo_"
default_cfgs: dict[str, Any] = {}
"""Facts about the weights that this module registers; timm reads them here."""


def register() -> list[str]:
    """Register every classifier of cdzoo with timm, under its name behind ``cdzoo_``.

    ``timm.create_model(name, ...)`` then takes the arguments of cdzoo's builder (``width``, ``in_channels``, ...) and
    these of timm's: ``pretrained`` (the default weights, or those that a tag names: ``cdzoo_NAME.TAG``),
    ``num_classes`` (another number than the weights' gets a new classifier), ``in_chans``, and ``features_only`` with
    ``out_indices``: a module that gives a list of maps, with ``feature_info.channels()`` and
    ``feature_info.reduction()``, of which all are given by default. Other arguments raise ``TypeError``. Weights that
    don't exist raise ``ValueError``; nothing falls back to random values.

    Returns:
        the names; registering again changes nothing.
    """
    names = []
    for entry in listed("model"):
        if not issubclass(entry.cls, Classifier):
            continue
        name = PREFIX + entry.name
        names.append(name)
        if timm.is_model(name):
            continue
        cfgs = {f"{name}.{tag}": _describe(member) for tag, member in _tagged(entry).items()}
        default_cfgs.update(generate_default_cfgs(cfgs or {name: {"classifier": "fc"}}))
        entrypoint = _entrypoint(name, entry)
        setattr(sys.modules[__name__], name, entrypoint)  # timm lists it in __all__
        register_model(entrypoint)
    return names


def _tagged(entry: Entry) -> dict[str, WeightsEnum]:
    """Weights by tag, the default ones first, which makes them timm's default."""
    known = members(entry.name)
    default = known.get("DEFAULT")
    return {m.name.lower(): m for m in sorted(set(known.values()), key=lambda m: (m is not default, m.name))}


def _describe(member: WeightsEnum) -> dict[str, Any]:
    meta = member.meta
    classes = meta.get("classes") or ()
    facts = {"num_classes": len(classes), "label_names": tuple(classes)} if classes else {}
    return {"hf_hub_id": member.repo_id, "license": meta.get("license"), "classifier": "fc", **facts}


def _entrypoint(name: str, entry: Entry) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,  # weights of the registry lie in the package
        *,
        features_only: bool = False,
        out_indices: int | Sequence[int] | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        **arguments: Any,
    ) -> nn.Module:
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        if out_indices is not None and not features_only:
            raise TypeError(f"{name}: out_indices={out_indices!r} goes with features_only=True")
        if in_chans is not None:
            arguments["in_channels"] = in_chans
        if pretrained:
            member = _tagged(entry).get(cfg.tag or "")
            if cfg.url or cfg.file or (member is not None and cfg.hf_hub_id != member.repo_id):
                raise ValueError(f"{name} loads the weights of cdzoo; for others build it and use load_state_dict")
            model: Any = entry.builder(weights="DEFAULT" if member is None else member, **arguments)
            if num_classes is not None and num_classes != model.num_classes:
                model.reset_classifier(num_classes)
        else:
            if num_classes is not None:
                arguments["num_classes"] = num_classes
            model = entry.builder(**arguments)
        if features_only:
            every = tuple(range(len(model.feature_info)))
            model = FeatureGetterNet(model, out_indices=every if out_indices is None else out_indices)
        model.pretrained_cfg = model.default_cfg = cfg.to_dict()
        module: nn.Module = model
        return module

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"cdzoo's ``{entry.name}`` as timm builds its models; see :func:`register`."
    return create
