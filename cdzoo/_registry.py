"""The names of codecs and models, and what is known of each of them without building it.

This file is the ground floor: it imports no other file of the package. Builders come to it by registration
(:mod:`cdzoo.zoo`). The package's own codecs and models, and those of other packages (entry points of the group
``cdzoo.plugins``), are imported when a name is first asked for.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import importlib.metadata
import inspect
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, get_args

from torch import nn

__all__ = ["PLUGINS", "Entry", "Kind", "add", "find_entry", "find_weight", "listed", "unknown_name", "weights_enum"]

Kind = Literal["codec", "model"]
PLUGINS = "cdzoo.plugins"
"""The group of entry points; each one names a module that registers codecs and models when it is imported."""

_OWN = ("cdzoo.codecs", "cdzoo.models")
_entries: dict[Kind, dict[str, Entry]] = {"codec": {}, "model": {}}
_lock = threading.RLock()
_loaded = False


@dataclass(frozen=True)
class Entry:
    """A registered codec or model.

    Attributes:
        name: of the builder.
        kind: ``"codec"`` or ``"model"``.
        builder: the function that users call.
        cls: the class that it returns, or the base of those.
        make: what is called with the arguments; ``cls`` itself, unless there is a choice of classes.
        preset: arguments of ``make`` that the builder fixes.
        weights: enum of the pretrained weights, if there is one.
        num_params: parameters at the default arguments, if stated.
        options: the builder's arguments besides ``weights``, with their defaults.
        listed: it is in the lists of names; otherwise it is found by its name only.
    """

    name: str
    kind: Kind
    builder: Callable[..., nn.Module]
    cls: type[nn.Module]
    make: Callable[..., nn.Module]
    preset: Mapping[str, Any] = field(default_factory=dict)
    weights: type[Enum] | None = None
    num_params: int | None = None
    options: Mapping[str, inspect.Parameter] = field(default_factory=dict)
    listed: bool = True

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the options that have one, and what is preset."""
        defaults = {name: p.default for name, p in self.options.items() if p.default is not p.empty}
        return {**defaults, **self.preset}

    @property
    def pretrained(self) -> bool:
        """Pretrained weights exist."""
        return self.weights is not None and len(self.weights) > 0


def add(entry: Entry) -> None:
    """Register a codec or a model.

    Defining the same function again, as in a notebook, replaces it.

    Raises:
        ValueError: the name, or the name of the weights enum, belongs to another one.
    """
    taken = _entries[entry.kind].get(entry.name)
    if taken is not None and not _redefined(taken.builder, entry.builder):
        raise ValueError(
            f"a {entry.kind} {entry.name!r} is registered already, by {taken.builder.__module__}; choose another name"
        )
    for other in _every(get_args(Kind)):
        theirs, ours = other.weights, entry.weights
        if theirs is None or ours is None or theirs.__name__ != ours.__name__ or _redefined(theirs, ours):
            continue
        raise ValueError(f"weights {ours.__name__} belong to {other.name} already; choose another name for the enum")
    _entries[entry.kind][entry.name] = entry


def _redefined(old: Any, new: Any) -> bool:
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _every(kinds: Iterable[Kind]) -> list[Entry]:
    return [entry for kind in kinds for entry in _entries[kind].values()]


def _load() -> None:
    """Import what registers: the package's own files, then the plugins."""
    global _loaded
    with _lock:
        if _loaded:
            return
        _loaded = True  # before the imports, since what registers may look up what is registered
        for module in _OWN:
            importlib.import_module(module)
        for plugin in importlib.metadata.entry_points(group=PLUGINS):
            try:
                plugin.load()
            except Exception as error:  # whatever a plugin raises is no reason to refuse everything else
                warnings.warn(
                    f"the plugin {plugin.name!r} ({plugin.value}) could not be loaded, and what it registers is "
                    f"missing: {type(error).__name__}: {error}",
                    stacklevel=3,
                )


def listed(kind: Kind, pattern: str = "*", *, pretrained: bool = False) -> list[Entry]:
    """Entries whose name matches an ``fnmatch`` pattern, in the order of names."""
    _load()
    found = [_entries[kind][name] for name in sorted(fnmatch.filter(_entries[kind], pattern))]
    return [entry for entry in found if entry.listed and (entry.pretrained or not pretrained)]


def find_entry(name: str, kind: Kind | None = None) -> Entry:
    """The entry of that name.

    Raises:
        TypeError: the name is no string.
        ValueError: there is no such entry; the message suggests the nearest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"a {kind or 'codec or model'} is named by a string, not by {name!r}")
    _load()
    kinds: tuple[Kind, ...] = get_args(Kind) if kind is None else (kind,)
    for k in kinds:
        if name in _entries[k]:
            return _entries[k][name]
    raise unknown_name(kind or "codec or model", name, sorted(entry.name for entry in _every(kinds)))


def weights_enum(name: str) -> type[Enum]:
    """The enum of a builder's pretrained weights.

    Raises:
        ValueError: there is no such builder, or it has no enum.
    """
    enum = find_entry(name).weights
    if enum is None:
        having = sorted(entry.name for entry in _every(get_args(Kind)) if entry.weights is not None)
        raise ValueError(f"{name} has no pretrained weights; those that have: {', '.join(having)}")
    return enum


def find_weight(name: str) -> Enum:
    """The member of a weights enum with a full name such as ``"FA_cResNet39_Weights.DEFAULT"``.

    Raises:
        ValueError: there is no such enum or member; the message suggests the nearest names.
        TypeError: ``name`` is no string.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"get_weight takes a full name such as 'FA_cResNet39_Weights.DEFAULT', not {name!r}; pass weights at hand, "
            "and None for random values, to a builder: get_model(..., weights=...)"
        )
    _load()
    enum_name, _, member = name.partition(".")
    enums = {entry.weights.__name__: entry.weights for entry in _every(get_args(Kind)) if entry.weights is not None}
    if enum_name not in enums:
        raise unknown_name("weights enum", enum_name, sorted(enums))
    members = enums[enum_name].__members__
    if not members:
        raise ValueError(f"no weights are published in {enum_name}, so there is no {name!r}")
    if member not in members:
        raise unknown_name(f"member of {enum_name}", member, sorted(members))
    return members[member]


def unknown_name(what: str, name: str, known: list[str]) -> ValueError:
    """The error for a name that is not in a list; its message suggests the nearest names."""
    folded = {k.casefold(): k for k in known}
    near = [folded[n] for n in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.4)]
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return ValueError(f"unknown {what} {name!r}; {hint}")
