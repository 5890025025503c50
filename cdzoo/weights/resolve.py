"""The one way from what a user calls weights to a folder on disk."""

from __future__ import annotations

import os
from typing import Any, cast

from cdzoo._registry import find_entry, find_weight, unknown_name, weights_enum
from cdzoo.weights.download import PREFIX, fetch
from cdzoo.weights.enums import WeightsEnum, WeightsLike
from cdzoo.weights.folder import WeightsFolder

__all__ = ["find_weights", "member_with", "members"]


def members(builder: str) -> dict[str, WeightsEnum]:
    """The published weights of a builder by name, ``DEFAULT`` and other aliases included; none for unknown builders."""
    try:
        return dict(cast(type[WeightsEnum], weights_enum(builder)).__members__)
    except ValueError:
        return {}


def member_with(fingerprint: str, builder: str) -> WeightsEnum | None:
    """The published weights of a codec, or of a network on its latents, by its fingerprint; ``None`` without any."""
    found = (m for m in members(builder).values() if (m.source.codec_entry or {}).get("fingerprint") == fingerprint)
    return next(found, None)


def find_weights(
    weights: WeightsLike, *, builder: str | None = None, default: str | None = None, **hub: Any
) -> WeightsFolder | None:
    """Turn weights in any form into a folder on disk, fetching it if need be.

    Args:
        weights: an enum member; its name (``"DEFAULT"``, ``"Enum.MEMBER"``); ``"hf://owner/name@revision"``; a local
            folder; or ``None``. The bare name of a member goes before a folder of that name.
        builder: the builder that the weights are for; those of another one are refused.
        default: without ``builder``, the one whose members may be named without their enum.
        **hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``, as in
            :func:`cdzoo.weights.download.download`; for repositories only.

    Returns:
        the folder, or ``None`` for ``None``.

    Raises:
        ValueError: an unknown name, or weights of another builder.
        WeightsError: the folder or the repository cannot be had.
        TypeError: nothing of these.
    """
    if weights is None:
        return None
    owner = builder or default
    known = {} if owner is None else members(owner)
    if isinstance(weights, WeightsFolder):
        source = weights
    elif isinstance(weights, WeightsEnum):
        source = weights.source
    elif not isinstance(weights, str | os.PathLike):
        raise TypeError(
            f"weights must be an enum member, a name, 'hf://owner/name@revision', a folder or None, not {weights!r}"
        )
    elif isinstance(weights, str) and weights in known:
        source = known[weights].source
    elif isinstance(weights, str) and weights.startswith(PREFIX):
        source = fetch(weights, **hub)
    elif isinstance(weights, os.PathLike) or os.path.exists(weights):
        if hub.get("revision") is not None:
            raise ValueError(
                f"{os.fspath(weights)!r} is a local folder, which has no revision {hub['revision']!r}; leave revision "
                "out"
            )
        source = WeightsFolder.from_path(weights)
    else:
        source = _named(weights, owner, known).source
    if builder is not None and source.builder != builder:
        raise ValueError(
            f"weights {source} are for {source.builder}, not for {builder}; use {source.builder}(weights=...) or "
            "choose other weights"
        )
    return source


def _named(name: str, builder: str | None, known: dict[str, WeightsEnum]) -> WeightsEnum:
    enum_name, dot, _ = name.partition(".")
    if dot and enum_name.isidentifier():
        return cast(WeightsEnum, find_weight(name))
    hint = f"; a Hub repository is written '{PREFIX}{name}'" if "/" in name else ""
    if builder is not None and not known:
        find_entry(builder)
        raise ValueError(
            f"no weights of {builder} are published, and {name!r} is no folder either{hint}; pass a folder, "
            f"'{PREFIX}owner/name', or weights=None for random values"
        )
    raise unknown_name(f"weights{f' of {builder}' if builder else ''} (no folder either{hint})", name, sorted(known))
