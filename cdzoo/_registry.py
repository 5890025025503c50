"""Name -> builder, for codecs and for models, and the one way in which builders turn arguments into a module.

A builder registers itself with a decorator that returns it unchanged. To be registered is to be listed, tested and
documented: nothing else keeps a list of names.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast, overload

from torch import nn

if TYPE_CHECKING:
    from cdzoo.codecs import Codec
    from cdzoo.weights.enums import WeightsEnum, WeightsLike

__all__ = [
    "LatentInterface",
    "build",
    "get_builder",
    "get_codec",
    "get_model",
    "get_model_weights",
    "get_weight",
    "latent_interface",
    "list_codecs",
    "list_models",
    "register_codec",
    "register_model",
]

Kind = Literal["codec", "model"]
Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
M = TypeVar("M", bound=nn.Module)

_BUILDERS: dict[Kind, dict[str, Callable[..., nn.Module]]] = {"codec": {}, "model": {}}
_WEIGHTS: dict[str, type[WeightsEnum]] = {}


def _register(kind: Kind, weights: type[WeightsEnum] | None) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        _BUILDERS[kind][builder.__name__] = builder
        if weights is not None:
            _WEIGHTS[builder.__name__] = weights
        return builder

    return register


@overload
def register_model(builder: Builder, /) -> Builder: ...
@overload
def register_model(*, weights: type[WeightsEnum]) -> Callable[[Builder], Builder]: ...
def register_model(
    builder: Builder | None = None, /, *, weights: type[WeightsEnum] | None = None
) -> Builder | Callable[[Builder], Builder]:
    """Register a model builder under its own name, with the enum of its pretrained weights."""
    return _register("model", weights)(builder) if builder is not None else _register("model", weights)


@overload
def register_codec(builder: Builder, /) -> Builder: ...
@overload
def register_codec(*, weights: type[WeightsEnum]) -> Callable[[Builder], Builder]: ...
def register_codec(
    builder: Builder | None = None, /, *, weights: type[WeightsEnum] | None = None
) -> Builder | Callable[[Builder], Builder]:
    """Register a codec builder under its own name, with the enum of its pretrained weights."""
    return _register("codec", weights)(builder) if builder is not None else _register("codec", weights)


def unknown_name(what: str, name: str, known: list[str]) -> ValueError:
    """The error for a name that is not in a list: it names the nearest ones."""
    folded = {k.casefold(): k for k in known}
    near = [folded[n] for n in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.4)]
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known) or 'none'}."
    return ValueError(f"unknown {what} {name!r}; {hint}")


def _list(kind: Kind, pattern: str, pretrained: bool) -> list[str]:
    names = fnmatch.filter(_BUILDERS[kind], pattern)
    return sorted(n for n in names if not pretrained or (n in _WEIGHTS and len(_WEIGHTS[n]) > 0))


def list_codecs(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Sorted names of the codecs that match an ``fnmatch`` pattern; with ``pretrained``, those that have weights."""
    return _list("codec", pattern, pretrained)


def list_models(pattern: str = "*", *, pretrained: bool = False, codec: str | Codec | None = None) -> list[str]:
    """Sorted names of the models that match an ``fnmatch`` pattern.

    Args:
        pattern: such as ``"*resnet*"``.
        pretrained: only those that have weights.
        codec: only those that read the latents of this codec, given by name or as such: the ones that
            :func:`cdzoo.compose` puts together with it if they are built with ``in_channels=codec.latent_channels``
            and, where the builder has it, ``latent_stride=codec.stride``. Weights are another matter: they belong to
            one codec, which is ``weights.meta["codec"]``.

    Raises:
        ValueError: ``codec`` is the name of none.
    """
    names = _list("model", pattern, pretrained)
    if codec is None:
        return names
    if isinstance(codec, str):
        get_builder(codec, "codec")
        gives = latent_interface(codec)
        assert gives is not None
    else:
        gives = LatentInterface(codec.stride, codec.has_scales)
    return [name for name in names if (reads := latent_interface(name)) is not None and reads.fits(gives)]


def get_builder(name: str, kind: Kind | None = None) -> Callable[..., nn.Module]:
    """The builder of that name.

    Raises:
        TypeError: the name is no string.
        ValueError: no such builder; the message suggests the nearest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"a {kind or 'codec or model'} is named by a string, not by {name!r}.")
    kinds: tuple[Kind, ...] = ("codec", "model") if kind is None else (kind,)
    for k in kinds:
        if name in _BUILDERS[k]:
            return _BUILDERS[k][name]
    raise unknown_name(kind or "codec or model", name, sorted(n for k in kinds for n in _BUILDERS[k]))


class LatentInterface(NamedTuple):
    """What passes between a codec and a network, at the default arguments of their builders.

    Attributes:
        stride: pixels per latent sample, in each direction.
        scales: whether a codec's latents come with a hyperprior's scales; whether a network needs them.
        any_stride: whether a network's builder takes another ``latent_stride``.
    """

    stride: int
    scales: bool
    any_stride: bool = False

    def fits(self, codec: LatentInterface) -> bool:
        """Whether a network can read what a codec gives, if it is built for its channels and stride."""
        return (self.any_stride or self.stride == codec.stride) and (codec.scales or not self.scales)


def latent_interface(name: str) -> LatentInterface | None:
    """What the codec or network of that name gives or reads; ``None`` for networks that read no latents.

    Nothing is built, and nothing that only building needs is imported: all is told from the class that the builder
    says it returns.
    """
    builder = get_builder(name)
    cls = builder.__globals__.get(str(inspect.get_annotations(builder).get("return")))
    if not isinstance(cls, type):
        return None
    if name in _BUILDERS["codec"]:
        return LatentInterface(getattr(cls, "stride", 0), getattr(cls, "has_scales", False))
    defaults = {parameter.name: parameter.default for parameter in inspect.signature(cls).parameters.values()}
    stride = defaults.get("latent_stride", getattr(cls, "latent_stride", None))
    if stride is None:
        return None
    scales = defaults.get("use_scales", getattr(cls, "uses_scales", False))
    return LatentInterface(stride, scales, any_stride="latent_stride" in defaults)


def get_codec(name: str, **kwargs: Any) -> Codec:
    """Build a codec by name; keyword arguments go to its builder.

    Raises:
        ValueError: no such codec; the message suggests the nearest names. What the builder raises.
    """
    return cast("Codec", get_builder(name, "codec")(**kwargs))


def get_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model by name, in training mode, as every builder does; keyword arguments go to its builder.

    Raises:
        ValueError: no such model; the message suggests the nearest names. What the builder raises.
    """
    return get_builder(name, "model")(**kwargs)


def get_model_weights(name: str | Callable[..., nn.Module]) -> type[WeightsEnum]:
    """The weights enum of a builder, given by name or as the function itself.

    Raises:
        ValueError: no such builder, or one for which no enum is defined.
    """
    key = name if isinstance(name, str) else getattr(name, "__name__", repr(name))
    get_builder(key)
    if key not in _WEIGHTS:
        raise ValueError(f"{key} has no pretrained weights; those that have: {', '.join(sorted(_WEIGHTS))}.")
    return _WEIGHTS[key]


def get_weight(name: str) -> WeightsEnum:
    """The enum member with a full name such as ``"FA_cResNet39_Weights.DEFAULT"``.

    Raises:
        ValueError: no such enum or member; the message suggests the nearest names.
        TypeError: ``name`` is no string.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"get_weight takes a full name such as 'FA_cResNet39_Weights.DEFAULT', not {name!r}; weights at hand, and "
            "None for random values, go to a builder as they are: get_model(..., weights=...)."
        )
    enum_name, _, member = name.partition(".")
    enums = {enum.__name__: enum for enum in _WEIGHTS.values()}
    if enum_name not in enums:
        raise unknown_name("weights enum", enum_name, sorted(enums))
    members = enums[enum_name].__members__
    if not members:
        raise ValueError(f"no weights are published in {enum_name}, so there is no {name!r}.")
    if member not in members:
        raise unknown_name(f"member of {enum_name}", member, sorted(members))
    return members[member]


# -- building ----------------------------------------------------------------------------------------------------

_POSITIVE = ("N", "M", "latent_channels", "in_channels", "latent_stride", "upscaled_channels")
_SMALLEST = {**dict.fromkeys(_POSITIVE, 1), "num_classes": 0}


def check_sizes(arguments: Mapping[str, Any]) -> None:
    """The sizes that builders share follow one rule each; what else there is, classes check themselves."""
    for name, smallest in _SMALLEST.items():
        value = arguments.get(name, smallest)
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < smallest:
            kind = "a positive integer" if smallest else "an integer that is not negative"
            hint = "" if smallest else "; 0 gives features instead of logits"
            raise ValueError(f"{name} must be {kind}, not {value!r}{hint}.")
    width = arguments.get("width", 1.0)
    if isinstance(width, bool) or not isinstance(width, Real) or not (math.isfinite(width) and float(width) > 0):
        raise ValueError(f"width must be positive and finite, not {width!r}; 1.0 is the full width.")


_UNLEARNED = ("drop_path", "mode", "relu", "num_frequencies", "chroma", "memory_budget")
"""Arguments that weights fit whatever they are: how a network computes, and what is asked of it in training."""


def defaults_of(cls: Callable[..., object]) -> dict[str, Any]:
    """The defaults in a signature, by name."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


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
    """Whether two arguments mean the same; one number may stand for as many as the other has."""
    if isinstance(a, tuple) != isinstance(b, tuple):
        many, one = (a, b) if isinstance(a, tuple) else (b, a)
        return len(many) > 0 and all(v == one for v in many)
    return bool(a == b)


def build(
    builder: Callable[..., nn.Module],
    weights: WeightsLike,
    cls: Callable[..., M],
    defaults: Mapping[str, Any],
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda arguments: {},
    /,
    **given: Any,
) -> M:
    """Instantiate ``cls`` for a builder: its defaults, then what the weights say, then what the caller said.

    Arguments that are ``None`` count as not given. ``implied`` tells what ``cls`` takes for arguments that nobody gave,
    from the others, where its signature does not. The module remembers how it was built (``module.builder``,
    ``module.arguments``), which is what ``save_pretrained`` writes down.

    Raises:
        ValueError: the caller gave an argument that differs from what the weights were trained with (but for how a
            network computes: ``mode``, ``relu``, ``num_frequencies``, ``chroma``, ``memory_budget``, ``drop_path``, if
            the weights leave that open), or a size (``N``, ``M``, ``latent_channels``, ``in_channels``,
            ``latent_stride``, ``upscaled_channels``, ``num_classes``, ``width``) that nothing can have.
        WeightsError: the weights cannot be had or loaded.
    """
    from cdzoo.weights.enums import resolve_weights  # the two files know each other; import late to break the circle

    source = resolve_weights(builder.__name__, weights)
    stored = {} if source is None else source.arguments
    said = {name: _plain(value) for name, value in given.items() if value is not None}
    check_sizes(said)
    if source is not None:
        trained = {**defaults_of(cls), **defaults}
        trained = {**trained, **implied({**trained, **stored}), **stored}
        for name, value in said.items():
            if (name in stored or name not in _UNLEARNED) and name in trained and not _same(trained[name], value):
                raise ValueError(
                    f"{builder.__name__}: {name}={value!r} conflicts with weights {source}, which were made with "
                    f"{name}={trained[name]!r}; leave {name} out, or pass weights=None to start from random values."
                )
    arguments = {**defaults, **stored, **said}

    def make(**sizes: Any) -> M:
        check_sizes(sizes)
        return cls(**sizes)

    module = cls(**arguments) if source is None else source.instantiate(make, arguments)
    module.builder = builder.__name__  # type: ignore[assignment]
    module.arguments = arguments  # type: ignore[assignment]
    if source is not None:
        source.load_into(module)
    return module
