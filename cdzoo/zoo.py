"""The catalogue of codecs and models: list them, build them by name, register your own.

    @cdzoo.register_model(TinyNet, num_params=115_274)
    def tinynet(*, weights: WeightsLike = None, **options: Unpack[TinyNetOptions]) -> TinyNet:
        \"\"\"One sentence for ``cdzoo list``.\"\"\"

registers the class ``TinyNet`` under the name ``tinynet``. Another package does so in a module that an entry point of
the group ``cdzoo.plugins`` names; it is imported when a name is first asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from torch import nn

from cdzoo._registry import Entry, Kind, add, find_entry, find_weight, listed, weights_enum
from cdzoo.weights.building import build
from cdzoo.weights.enums import WeightsEnum, WeightsLike
from cdzoo.weights.resolve import find_weights

if TYPE_CHECKING:
    from cdzoo.coding.base import Codec

__all__ = [
    "LatentInterface",
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

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


# -- registering -------------------------------------------------------------------------------------------------


def register_model(
    cls: type[nn.Module],
    *,
    make: Callable[..., nn.Module] | None = None,
    weights: type[WeightsEnum] | None = None,
    num_params: int | None = None,
    listed: bool = True,
    **preset: Any,
) -> Callable[[Builder], Builder]:
    """Register a model under the name of the decorated function.

    The function states the name, the types and the documentation; it has no body. The registered builder of the same
    name resolves ``weights``, refuses arguments that contradict them, builds the class and loads all tensors or none.
    Its signature shows the arguments and defaults of the class, which is the only place that states them.

    Args:
        cls: the class to build. Its arguments are keyword-only and can be written as JSON. A class that reads latents
            needs ``in_channels``, ``latent_stride`` and ``forward(latent)``; :class:`cdzoo.LatentClassifier` brings
            more. These attributes of the class are optional: ``unlearned_arguments``, names of arguments that weights
            fit whatever they are; ``derived_arguments(arguments)``, a static method that gives the values of arguments
            that are ``None`` because they follow from others.
        make: a function with further arguments that returns an instance of ``cls`` or of a subclass.
        weights: the enum of pretrained weights.
        num_params: number of parameters at the default arguments, for the documentation.
        listed: :func:`list_models` has the name. False suits a builder whose arguments have no defaults.
        **preset: arguments of the class that this builder fixes, such as ``layers``.

    Returns:
        a decorator for a function ``(*, weights=None, **options)``.

    Raises:
        TypeError: ``preset`` has a name that the class does not take.
        ValueError: the name is taken.
    """
    return _register("model", cls, make, weights, num_params, preset, listed=listed)


def register_codec(
    cls: type[nn.Module],
    *,
    make: Callable[..., nn.Module] | None = None,
    weights: type[WeightsEnum] | None = None,
    num_params: int | None = None,
    **preset: Any,
) -> Callable[[Builder], Builder]:
    """Register a codec under the name of the decorated function; as :func:`register_model`.

    Args:
        cls: a subclass of :class:`cdzoo.Codec`, whose ``name`` is that of the function: streams carry it, and it finds
            the builder again.
        make: as in :func:`register_model`, like ``weights``, ``num_params`` and ``preset``.

    Raises:
        TypeError: as :func:`register_model`.
        ValueError: the name is taken, or ``cls.name`` is another one.
    """
    return _register("codec", cls, make, weights, num_params, preset)


def _register(
    kind: Kind,
    cls: type[nn.Module],
    make: Callable[..., nn.Module] | None,
    weights: type[WeightsEnum] | None,
    num_params: int | None,
    preset: Mapping[str, Any],
    *,
    listed: bool = True,
) -> Callable[[Builder], Builder]:
    options = dict(_parameters(cls)) | dict(_parameters(make or cls))
    unknown = preset.keys() - options.keys()
    if unknown:
        raise TypeError(f"{cls.__name__} takes no argument {sorted(unknown)}; it takes {', '.join(options)}")
    options = {name: parameter for name, parameter in options.items() if name not in preset}

    def register(declared: Builder) -> Builder:
        name = declared.__name__
        if kind == "codec" and getattr(cls, "name", None) != name:
            raise ValueError(
                f"{cls.__name__}.name is {getattr(cls, 'name', None)!r}, but its builder is called {name!r}; both must "
                "be the same, since streams carry the one and the other finds the codec"
            )

        def builder(*, weights: WeightsLike = None, **options: Any) -> nn.Module:
            return build(entry, find_weights(weights, builder=entry.name), options)

        first = inspect.Parameter("weights", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="WeightsLike")
        returns = declared.__annotations__.get("return", cls)
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(builder, attribute, getattr(declared, attribute))
        builder.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [first, *options.values()], return_annotation=returns
        )
        builder.__annotations__ = {p.name: p.annotation for p in (first, *options.values())} | {"return": returns}
        entry = Entry(
            name=name,
            kind=kind,
            builder=builder,
            cls=cls,
            make=make or cls,
            preset=preset,
            weights=weights,
            num_params=num_params,
            options=options,
            listed=listed,
        )
        add(entry)
        return cast(Builder, builder)

    return register


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, inspect.Parameter]]:
    """The named parameters, as keyword-only ones."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            yield name, parameter.replace(kind=parameter.KEYWORD_ONLY)


# -- by name -----------------------------------------------------------------------------------------------------


def list_codecs(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Sorted names of the codecs that match an ``fnmatch`` pattern; with ``pretrained``, those that have weights."""
    return [entry.name for entry in listed("codec", pattern, pretrained=pretrained)]


def list_models(pattern: str = "*", *, pretrained: bool = False, codec: str | Codec | None = None) -> list[str]:
    """Sorted names of the models that match an ``fnmatch`` pattern.

    Args:
        pattern: such as ``"*resnet*"``.
        pretrained: list only those that have weights.
        codec: list only those that read the latents of this codec, given by its name or as a module. Build them with
            ``in_channels=codec.latent_channels`` and, where the builder takes it, ``latent_stride=codec.stride``, and
            :func:`cdzoo.compose` accepts the pair. Pretrained weights belong to one codec, ``weights.meta["codec"]``.

    Raises:
        ValueError: there is no codec of that name.
    """
    entries = listed("model", pattern, pretrained=pretrained)
    if codec is not None:
        gives = _codec_interface(find_entry(codec, "codec").cls if isinstance(codec, str) else codec)
        entries = [e for e in entries if (reads := latent_interface(e.name)) is not None and reads.fits(gives)]
    return [entry.name for entry in entries]


def get_builder(name: str, kind: Kind | None = None) -> Callable[..., nn.Module]:
    """The builder of that name.

    Raises:
        TypeError: the name is no string.
        ValueError: there is no such builder; the message suggests the nearest names.
    """
    return find_entry(name, kind).builder


def get_codec(name: str, **kwargs: Any) -> Codec:
    """Build a codec by name.

    Args:
        name: one of :func:`list_codecs`.
        **kwargs: arguments of its builder, ``weights`` among them.

    Returns:
        the codec, in training mode, as every builder returns it.

    Raises:
        ValueError: there is no such codec; the message suggests the nearest names. Otherwise what the builder raises.
    """
    return cast("Codec", get_builder(name, "codec")(**kwargs))


def get_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model by name.

    Args:
        name: one of :func:`list_models`.
        **kwargs: arguments of its builder, ``weights`` among them.

    Returns:
        the model, in training mode, as torchvision's and timm's builders return theirs; call ``.eval()`` to use it.

    Raises:
        ValueError: there is no such model; the message suggests the nearest names. Otherwise what the builder raises.
    """
    return get_builder(name, "model")(**kwargs)


def get_model_weights(name: str | Callable[..., nn.Module]) -> type[WeightsEnum]:
    """The weights enum of a builder, given by its name or as the function itself.

    Raises:
        TypeError: neither a name nor a function.
        ValueError: there is no such builder, or it has no enum.
    """
    found = name if isinstance(name, str) else getattr(name, "__name__", None)
    if not isinstance(found, str):
        raise TypeError(
            f"get_model_weights takes the name of a builder such as 'fa_cresnet39', or the function, not {name!r}; "
            "list_models(pretrained=True) has the names"
        )
    return cast(type[WeightsEnum], weights_enum(found))


def get_weight(name: str) -> WeightsEnum:
    """The enum member with a full name such as ``"FA_cResNet39_Weights.DEFAULT"``.

    Raises:
        ValueError: there is no such enum or member; the message suggests the nearest names.
        TypeError: ``name`` is no string.
    """
    return cast(WeightsEnum, find_weight(name))


# -- latents -----------------------------------------------------------------------------------------------------


class LatentInterface(NamedTuple):
    """The latents that a codec gives or a network reads, at the default arguments of its builder.

    Attributes:
        stride: pixels per latent sample, in each direction.
        scales: a codec's latents come with the hyperprior's scales; a network needs them.
        any_stride: a network's builder takes another ``latent_stride``.
    """

    stride: int
    scales: bool
    any_stride: bool = False

    def fits(self, codec: LatentInterface) -> bool:
        """True if a network can read the latents of a codec, once it is built for its channels and stride."""
        return (self.any_stride or self.stride == codec.stride) and (codec.scales or not self.scales)


def _codec_interface(codec: Any) -> LatentInterface:
    return LatentInterface(getattr(codec, "stride", 0), getattr(codec, "has_scales", False))


def latent_interface(name: str) -> LatentInterface | None:
    """The latent that the codec of that name gives, or that the network reads; ``None`` for other networks.

    Nothing is built: the class and its signature tell.
    """
    entry = find_entry(name)
    if entry.kind == "codec":
        return _codec_interface(entry.cls)
    stride = entry.defaults.get("latent_stride", getattr(entry.cls, "latent_stride", None))
    if stride is None:
        return None
    scales = entry.defaults.get("use_scales", getattr(entry.cls, "uses_scales", False))
    return LatentInterface(stride, scales, any_stride="latent_stride" in entry.options)
