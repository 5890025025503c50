"""From weights to modules: arguments, construction, tensors, and the module's ``origin``.

A module is built with all of its tensors, or not at all; random values are never a fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cdzoo._registry import Entry, find_entry, find_weight
from cdzoo._version import __version__
from cdzoo.errors import WeightsError
from cdzoo.types import Origin
from cdzoo.weights.download import PREFIX, fetch
from cdzoo.weights.folder import CONFIG, INTEGER_PREFIX, WeightsFolder
from cdzoo.weights.integrity import content_digest

if TYPE_CHECKING:
    from cdzoo.coding.base import Codec

__all__ = ["build", "build_codec", "load", "planned"]


def build(entry: Entry, source: WeightsFolder | None, options: Mapping[str, Any]) -> nn.Module:
    """Build a module as its builder does, in training mode.

    Args:
        entry: what is registered.
        source: the weights, or ``None`` for random values.
        options: the arguments that the caller gave. An argument that is left out has the value that the weights were
            trained with, else the builder's preset, else the default of the class.

    Returns:
        the module, with ``origin``, ``meta`` and ``transforms``.

    Raises:
        TypeError: an argument that the builder does not take.
        ValueError: an argument that differs from what the weights were trained with, or that the class refuses.
        WeightsError: the weights do not fit.
    """
    for name in options:
        if name not in entry.options:
            raise TypeError(
                f"{entry.name}() got an unexpected keyword argument {name!r}; it takes weights, "
                f"{', '.join(entry.options)}"
            )
    given = {name: _plain(value) for name, value in options.items()}
    if source is None:
        arguments = _complete(entry, {**entry.preset, **given})
        module = entry.make(**arguments)
        _state_origin(module, Origin(entry.name, arguments))
        return module
    stored = source.arguments
    try:
        _check_stored(entry, stored)
        trained = _complete(entry, {**entry.defaults, **stored})
        arguments = _complete(entry, {**entry.preset, **stored})
    except (TypeError, ValueError) as error:
        raise _misfit(entry, source, error) from error
    unlearned = getattr(entry.cls, "unlearned_arguments", ())
    for name, value in given.items():
        if (name in stored or name not in unlearned) and name in trained and not _same(trained[name], value):
            raise ValueError(
                f"{entry.name}: {name}={value!r} conflicts with weights {source}, which were made with "
                f"{name}={trained[name]!r}; leave {name} out, or pass weights=None to start from random values"
            )
    arguments |= given
    return _filled(entry, source, arguments)


def load(source: WeightsFolder) -> nn.Module:
    """The module that the weights are for, in evaluation mode.

    Raises:
        WeightsError: no builder of that name is registered, or the weights do not fit.
    """
    try:
        entry = find_entry(source.builder, source.config["kind"])
    except ValueError as error:
        raise WeightsError(
            f"{source}: {error}; upgrade cdzoo if the weights are newer than {__version__}, or install the package "
            "that registers this name"
        ) from error
    return build(entry, source, {}).eval()


def build_codec(source: WeightsFolder) -> Codec:
    """The codec itself, or the codec on whose latents a model was trained; with weights, in evaluation mode.

    Raises:
        WeightsError: the model reads no learned codec's latents, or its codec cannot be had.
    """
    entry = source.codec_entry
    if not entry:
        raise WeightsError(f"{source}: these weights read no learned codec's latents, so there is none to build")
    if source.codes:
        codec = cast("Codec", load(source))
    elif entry.get("weights"):
        try:
            member: Any = find_weight(entry["weights"])
        except ValueError as error:
            raise WeightsError(f"{source}: this version of cdzoo has not got the codec's weights: {error}") from error
        codec = member.build_codec()
    elif entry.get("repo_id"):
        codec = cast("Codec", load(fetch(PREFIX + entry["repo_id"], revision=entry.get("revision"))))
    else:
        raise WeightsError(
            f"{source}: the codec with fingerprint {entry['fingerprint']} was not published; load it from where it was "
            "saved, and pair the two with cdzoo.compose(codec, model)"
        )
    found = getattr(codec, "fingerprint", "none")
    if found != entry.get("fingerprint"):
        raise WeightsError(
            f"{source}: trained on latents of the codec with fingerprint {entry.get('fingerprint')}, but "
            f"the published codec has fingerprint {found}; ask whoever published them"
        )
    return codec


_INITIALIZERS: Any = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)
_METHODS: Any = (Tensor.normal_, Tensor.uniform_)


class _WithoutRandomValues(TorchFunctionMode):
    """Zeros in place of the random first values of layers, which take time; weights replace them.

    On the meta device the calls are skipped, because they would import PyTorch's compiler, which takes seconds. On
    other devices only ``nn.init`` functions are replaced: code may call ``Tensor.normal_`` in a loop until a condition
    holds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _INITIALIZERS or func in _METHODS:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
            if func in _INITIALIZERS:
                return tensor.detach().zero_()
        return func(*args, **(kwargs or {}))


def planned(entry: Entry, arguments: Mapping[str, Any]) -> nn.Module | None:
    """The module of these arguments, without memory for its values.

    Returns:
        a module on the meta device; ``None`` for a class that cannot be built there.

    Raises:
        TypeError, ValueError, OverflowError: the class refuses the arguments.
    """
    try:
        with torch.device("meta"), _WithoutRandomValues():
            return entry.make(**arguments)
    except RuntimeError as error:
        if "meta" in str(error):  # a layer computes with its first values
            return None
        raise ValueError(f"that makes more numbers than there can be: {error}") from error


# -- arguments ---------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's, which JSON can hold, and sequences as tuples, which nobody changes."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple | range | Iterator):
        return tuple(map(_plain, value))
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _same(a: Any, b: Any) -> bool:
    """True if two arguments mean the same; one number may stand for as many as the other has."""
    if isinstance(a, tuple) != isinstance(b, tuple):
        many, one = (a, b) if isinstance(a, tuple) else (b, a)
        return len(many) > 0 and all(v == one for v in many)
    return bool(a == b)


def _complete(entry: Entry, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with the values of those that follow from others."""
    derive: Callable[[dict[str, Any]], Mapping[str, Any]] | None = getattr(entry.cls, "derived_arguments", None)
    return arguments if derive is None else {**arguments, **derive({**entry.defaults, **arguments})}


def _check_stored(entry: Entry, stored: Mapping[str, Any]) -> None:
    for name, value in stored.items():
        if name in entry.preset and value != entry.preset[name]:
            raise ValueError(f"{name}={value!r}, but {entry.name} has {name}={entry.preset[name]!r}")
        if name not in entry.preset and name not in entry.options:
            raise TypeError(f"unexpected argument {name!r}")


# -- tensors -----------------------------------------------------------------------------------------------------


def _misfit(entry: Entry, source: WeightsFolder, error: Exception) -> WeightsError:
    return WeightsError(
        f"{source}: the arguments in {CONFIG} do not fit {entry.name} of this version of cdzoo ({error}); upgrade "
        "cdzoo, or fix the file"
    )


def _filled(entry: Entry, source: WeightsFolder, arguments: dict[str, Any]) -> nn.Module:
    """Build the class and load every tensor; names and shapes are compared before memory is taken."""
    if torch.empty(0).is_meta:
        raise WeightsError(
            f"{source}: {entry.name} is being built on the meta device, where there is no memory to load weights into; "
            "build it outside of torch.device('meta') and move it afterwards"
        )
    tensors = {k: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for k, t in source.tensors().items()}
    integers = {k.removeprefix(INTEGER_PREFIX): v for k, v in tensors.items() if k.startswith(INTEGER_PREFIX)}
    own = {k: v for k, v in tensors.items() if not k.startswith(INTEGER_PREFIX)}
    try:
        plan = planned(entry, arguments)
        if plan is not None:
            _check_tensors(entry, source, plan.state_dict(), own)
        with _WithoutRandomValues():
            module: Any = entry.make(**arguments)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _misfit(entry, source, error) from error
    except ImportError as error:
        raise WeightsError(f"{source}: {error}") from error
    _check_tensors(entry, source, module.state_dict(), own)
    codes = hasattr(module, "load_integer_state")
    if codes and any(p.itemsize < 4 for p in module.parameters()):
        module.float()  # the default dtype made it narrow; rounded to it, this would be another codec
    if integers and not codes:
        raise WeightsError(f"{source}: has coding tables, but {entry.name} is not a codec")
    module.load_state_dict(own, strict=True)
    if codes:
        _load_integers(module, source, integers)
    repo_id, revision = source.repository
    origin = Origin(
        builder=entry.name,
        arguments=arguments,
        weights=str(source),
        repo_id=repo_id,
        revision=revision,
        fingerprint=source.config.get("fingerprint"),
        codec=None if codes else source.config.get("codec"),
        meta=source.meta,
        digest=content_digest(tensors),
    )
    _state_origin(module, origin, source)
    return cast(nn.Module, module)


def _check_tensors(entry: Entry, source: WeightsFolder, own: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    misfit = [
        f"{k}: {tuple(tensors[k].shape)} {tensors[k].dtype} for {tuple(own[k].shape)} {own[k].dtype}"
        for k in sorted(own.keys() & tensors.keys())
        if own[k].shape != tensors[k].shape or own[k].is_floating_point() != tensors[k].is_floating_point()
    ]
    if missing or unexpected or misfit:
        parts = [("missing", missing), ("unexpected", unexpected), ("of the wrong shape or kind", misfit)]
        what = "; ".join(f"{len(names)} {label} ({', '.join(names[:3])}, ...)" for label, names in parts if names)
        raise WeightsError(f"{source}: tensors do not fit {entry.name}: {what}; nothing was loaded")


def _load_integers(module: Any, source: WeightsFolder, integers: dict[str, Tensor]) -> None:
    try:
        module.load_integer_state(integers)
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{source}: coding tables do not fit: {error}") from error
    recorded, found = source.config.get("fingerprint"), module.fingerprint
    if recorded != found:
        raise WeightsError(
            f"{source}: the loaded codec has fingerprint {found}, but {CONFIG} records {recorded}; streams written "
            "with these weights could not be read: fetch the folder again, or upgrade cdzoo"
        )


def _state_origin(module: Any, origin: Origin, source: WeightsFolder | None = None) -> None:
    """Set what every built module has: ``origin``, ``meta``, ``transforms`` and, of a model, ``codec_fingerprint``."""
    module.origin = origin
    module.meta = {} if source is None else source.meta
    module.transforms = (None if source is None else source.transforms) or getattr(module, "transforms", None)
    if not hasattr(module, "load_integer_state"):
        module.codec_fingerprint = (origin.codec or {}).get("fingerprint")
