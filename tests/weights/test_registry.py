"""The registry: names, suggestions, and the one form that every builder has."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cdzoo
from cdzoo import _registry, zoo
from cdzoo.weights.enums import Weights, WeightsEnum

KINDS = {"codec": (cdzoo.list_codecs, cdzoo.codecs), "model": (cdzoo.list_models, cdzoo.models)}
BUILDERS = [(kind, name) for kind, (names, _) in KINDS.items() for name in names()]


@pytest.fixture
def registry(monkeypatch):
    """The registry, to be filled with things that are gone after the test."""
    monkeypatch.setattr(_registry, "_entries", {kind: dict(b) for kind, b in _registry._entries.items()})


class Toy_Weights(WeightsEnum):
    SMALL = Weights("toy-small")
    LARGE = Weights("toy-large")
    DEFAULT = LARGE


class Toy(nn.Module):
    def __init__(self, *, size: int = 4, sizes: tuple[int, ...] = (1, 2), depth: int = 1) -> None:
        super().__init__()
        self.depth = depth
        self.fc = nn.Linear(size, sum(sizes))


@pytest.fixture
def toy(registry):
    @cdzoo.register_model(Toy, weights=Toy_Weights, num_params=15, depth=2)
    def toy(*, weights=None, **options) -> Toy:
        """A toy."""

    return toy


# -- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [cdzoo.list_codecs, cdzoo.list_models])
def test_lists_are_sorted_and_take_patterns(names):
    assert names() == sorted(set(names()))
    assert names("*") == names()
    first = names()[0]
    assert names(first) == [first]
    assert names(f"{first[:5]}*") == [n for n in names() if n.startswith(first[:5])]
    assert names("no such thing*") == []


def test_patterns_of_the_zoo():
    assert cdzoo.list_codecs("bmshj2018_*") == ["bmshj2018_factorized", "bmshj2018_hyperprior"]
    assert {"cresnet39", "cresnet51", "cresnet72"} <= set(cdzoo.list_models("cresnet??"))
    assert not set(cdzoo.list_models()) & set(cdzoo.list_codecs())


def test_pretrained_lists_those_with_members(toy):
    class Empty_Weights(WeightsEnum):
        pass

    @cdzoo.register_model(Toy, weights=Empty_Weights)
    def toy_without(*, weights=None, **options):
        pass

    @cdzoo.register_model(Toy)
    def toy_alone(*, weights=None, **options):
        pass

    assert cdzoo.list_models("toy*") == ["toy", "toy_alone", "toy_without"]
    assert cdzoo.list_models("toy*", pretrained=True) == ["toy"]
    assert set(cdzoo.list_models(pretrained=True)) <= set(cdzoo.list_models())


# -- builders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), BUILDERS)
def test_a_builder_is_a_plain_function_with_keywords(kind, name):
    builder = zoo.get_builder(name, kind)
    assert inspect.isfunction(builder)
    assert builder.__name__ == name
    assert not hasattr(builder, "__wrapped__")
    assert getattr(KINDS[kind][1], name) is builder, "what is registered is what the package exports"
    parameters = inspect.signature(builder).parameters
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert next(iter(parameters)) == "weights"
    assert parameters["weights"].default is None
    assert all(p.default is not inspect.Parameter.empty for p in parameters.values())
    assert builder.__doc__


@pytest.mark.parametrize(("kind", "name"), BUILDERS)
def test_the_signature_shows_the_arguments_and_defaults_of_the_class(kind, name):
    entry = _registry.find_entry(name, kind)
    parameters = inspect.signature(entry.builder).parameters
    own = inspect.signature(entry.cls).parameters
    for argument in set(own) - set(entry.preset):
        if entry.make is entry.cls:
            assert parameters[argument].default == own[argument].default
            assert parameters[argument].annotation == own[argument].annotation
    assert set(parameters) == {"weights", *entry.options}
    assert entry.num_params is not None
    assert inspect.signature(entry.builder).return_annotation in {c.__name__ for c in entry.cls.__mro__}


def test_a_builder_may_have_another_default_than_the_class():
    assert inspect.signature(cdzoo.models.resnet49).parameters["upscale"].default is None
    assert inspect.signature(cdzoo.models.resnet41).parameters["upscale"].default == "pixel_shuffle"


def declared_options(kind, name):
    """Keys of the typed dictionary in the source of a builder, and its builder."""
    builder = zoo.get_builder(name, kind)
    source = ast.parse(Path(inspect.getfile(_registry.find_entry(name, kind).cls)).read_text())
    module = inspect.getmodule(_registry.find_entry(name, kind).cls)
    if builder.__module__ != module.__name__:
        module = importlib.import_module(builder.__module__)
        source = ast.parse(Path(module.__file__).read_text())
    (function,) = [n for n in source.body if isinstance(n, ast.FunctionDef) and n.name == name]
    annotation = ast.unparse(function.args.kwarg.annotation)
    return getattr(module, annotation.removeprefix("Unpack[").removesuffix("]")).__annotations__


@pytest.mark.parametrize(("kind", "name"), BUILDERS)
def test_the_typed_dictionary_has_the_arguments_of_the_class(kind, name):
    assert declared_options(kind, name).keys() == _registry.find_entry(name, kind).options.keys()


def test_a_signature_has_what_is_not_preset(toy):
    assert str(inspect.signature(toy)).replace("'", "") == (
        "(*, weights: WeightsLike = None, size: int = 4, sizes: tuple[int, ...] = (1, 2)) -> Toy"
    )
    assert toy.__name__ == "toy"
    assert toy.__doc__ == "A toy."
    assert toy().depth == 2
    with pytest.raises(TypeError, match=r"toy\(\) got an unexpected keyword argument 'depth'; it takes weights, size"):
        toy(depth=1)


def test_a_preset_that_the_class_does_not_take_is_refused(registry):
    with pytest.raises(TypeError, match=r"Toy takes no argument \['dept'\]; it takes size, sizes, depth"):
        cdzoo.register_model(Toy, dept=2)


def test_a_taken_name_is_refused(toy):
    def cresnet39(*, weights=None, **options):
        pass

    with pytest.raises(ValueError, match=r"a model 'cresnet39' is registered already, by cdzoo\.models\.cresnet"):
        cdzoo.register_model(Toy)(cresnet39)

    class Other(WeightsEnum):
        pass

    Other.__name__ = "Toy_Weights"

    def toy_too(*, weights=None, **options):
        pass

    with pytest.raises(ValueError, match="weights Toy_Weights belong to toy already"):
        cdzoo.register_model(Toy, weights=Other)(toy_too)
    assert "toy_too" not in cdzoo.list_models()


def test_the_same_function_may_be_defined_again(registry):
    for size in (1, 2):

        @cdzoo.register_model(Toy, size=size)
        def again(*, weights=None, **options):
            pass

    assert cdzoo.get_model("again").fc.in_features == 2


@pytest.mark.parametrize("enum", [cdzoo.get_model_weights(name) for _, name in BUILDERS])
def test_enums_have_a_default_among_their_members(enum):
    assert enum.__name__.endswith("_Weights")
    if len(enum):
        assert enum.__members__["DEFAULT"] in list(enum)


def test_arguments_reach_the_builder():
    model = cdzoo.get_model("cresnet39", width=0.0625, num_classes=3)
    assert isinstance(model, cdzoo.models.cresnet.CResNet)
    assert model.num_classes == 3
    assert model.origin.builder == "cresnet39"
    with pytest.raises(TypeError, match="num_clases"):
        cdzoo.get_model("cresnet39", num_clases=3)
    with pytest.raises(TypeError, match="positional"):
        cdzoo.models.cresnet39("DEFAULT")


def test_what_is_built_has_the_type_that_callers_need():
    # a codec's methods, without a cast; of what a folder holds nobody knows before it is read
    assert inspect.signature(cdzoo.get_codec).return_annotation == "Codec"
    assert inspect.signature(cdzoo.from_pretrained).return_annotation == "Any"


# -- names that do not exist -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cdzoo.get_model("cresnet93"), r"unknown model 'cresnet93'; did you mean .*'cresnet39'"),
        (lambda: cdzoo.get_model("cResNet_39"), r"unknown model 'cResNet_39'; did you mean 'cresnet39'"),
        (lambda: cdzoo.get_model("fa_cresnet"), r"did you mean 'fa_cresnet39'"),
        (lambda: cdzoo.get_model("zzz"), r"unknown model 'zzz'; known: .*cresnet39, "),
        (lambda: cdzoo.get_codec("bmshj2018"), r"unknown codec 'bmshj2018'; did you mean 'bmshj2018_"),
        (lambda: cdzoo.get_codec("cresnet39"), r"unknown codec 'cresnet39'; "),
        (lambda: cdzoo.get_model("mbt2018_mean"), r"unknown model 'mbt2018_mean'"),
        (lambda: cdzoo.get_model_weights("cresnet93"), r"unknown codec or model 'cresnet93'; did you mean"),
        (
            lambda: cdzoo.get_weight("Toy_Weights.LARGER"),
            r"unknown member of Toy_Weights 'LARGER'; did you mean 'LARGE'",
        ),
        (
            lambda: cdzoo.get_weight("Toys_Weights.LARGE"),
            r"unknown weights enum 'Toys_Weights'; did you mean 'Toy_Weights'",
        ),
        (lambda: cdzoo.get_weight("Toy_Weights"), r"unknown member of Toy_Weights ''; known: DEFAULT, LARGE, SMALL"),
    ],
)
def test_unknown_names_suggest_the_nearest(call, message, toy):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", [3, None, b"cresnet39"])
def test_weights_of_what_is_no_name(name):
    with pytest.raises(TypeError, match=rf"the name of a builder .* not {name!r}; list_models\(pretrained=True\)"):
        cdzoo.get_model_weights(name)


# -- weights by name ---------------------------------------------------------------------------------------------


def test_weights_by_name(toy):
    assert cdzoo.get_model_weights("toy") is cdzoo.get_model_weights(toy) is Toy_Weights
    assert cdzoo.get_weight("Toy_Weights.SMALL") is Toy_Weights.SMALL
    assert cdzoo.get_weight("Toy_Weights.DEFAULT") is Toy_Weights.LARGE
    assert cdzoo.get_weight(str(Toy_Weights.SMALL)) is Toy_Weights.SMALL
    for name in (None, Toy_Weights.SMALL, 3):
        with pytest.raises(TypeError, match=r"takes a full name such as 'FA_.*', not .*; .*weights=\.\.\."):
            cdzoo.get_weight(name)


def test_a_builder_without_weights_says_who_has_some(toy):
    @cdzoo.register_model(Toy)
    def toy_alone(*, weights=None, **options):
        pass

    with pytest.raises(ValueError, match=r"toy_alone has no pretrained weights; those that have: .*toy"):
        cdzoo.get_model_weights(toy_alone)
    with pytest.raises(ValueError, match="no weights of toy_alone are published, and 'DEFAULT' is no folder"):
        toy_alone(weights="DEFAULT")


@pytest.mark.parametrize(("kind", "name"), BUILDERS)
def test_every_builder_has_an_enum_and_says_so_when_it_is_empty(kind, name):
    enum = cdzoo.get_model_weights(name)
    assert issubclass(enum, WeightsEnum)
    assert (name in KINDS[kind][0](pretrained=True)) == (len(enum) > 0)
    if len(enum) == 0:
        with pytest.raises(ValueError, match=f"no weights of {name} are published, and 'DEFAULT' is no folder"):
            zoo.get_builder(name, kind)(weights="DEFAULT")
        with pytest.raises(
            ValueError, match=f"no weights are published in {enum.__name__}, so there is no '{enum.__name__}.DEFAULT'"
        ):
            cdzoo.get_weight(f"{enum.__name__}.DEFAULT")


# -- arguments and weights ---------------------------------------------------------------------------------------


def test_arguments_are_defaults_then_weights_then_the_callers(toy, tmp_path):
    assert toy().origin.arguments == {"depth": 2}
    trained = toy(size=3, sizes=(2, 5))
    assert trained.origin.arguments == {"size": 3, "sizes": (2, 5), "depth": 2}
    cdzoo.save_pretrained(trained, tmp_path)
    for loaded in (toy(weights=tmp_path), toy(weights=tmp_path, size=3, sizes=(2, 5))):
        assert loaded.origin.arguments == {"size": 3, "sizes": (2, 5), "depth": 2}
        assert torch.equal(loaded.fc.weight, trained.fc.weight)


def test_arguments_that_fight_the_weights_raise(toy, tmp_path):
    cdzoo.save_pretrained(toy(size=3), tmp_path)
    with pytest.raises(ValueError, match=r"toy: size=4 conflicts with weights folder .* size=3; leave size out"):
        toy(weights=tmp_path, size=4)


def test_arguments_of_the_zoo_that_fight_the_weights_raise(tmp_path):
    cdzoo.save_pretrained(cdzoo.models.cresnet39(width=0.0625, num_classes=3), tmp_path)
    assert cdzoo.models.cresnet39(weights=tmp_path, num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match=r"cresnet39: num_classes=5 conflicts with weights .* num_classes=3"):
        cdzoo.models.cresnet39(weights=tmp_path, num_classes=5)


@pytest.mark.parametrize(
    ("name", "argument", "value", "trained"),
    [
        ("cresnet39", "stride_in_1x1", False, "True"),
        ("cresnet39", "use_scales", True, "False"),
        ("resnet41", "stride_in_1x1", True, "False"),
        ("resnet41", "upscale", None, "'pixel_shuffle'"),
        ("resnet41", "channels", [0, 1], "None"),
        ("cresnet39_d", "stride_in_1x1", False, "True"),
        ("fa_cresnet39", "latent_stride", 8, "16"),
        ("fa_cresnet39", "num_convs", (1, 1, 1), r"\(3, 4, 5\)"),
        ("mobilenet_v2_45", "upscaled_channels", 64, "24"),
        ("jpeg_resnet18", "mean", 0.0, r"\(0.485, 0.456, 0.406\)"),
        ("jpeg_resnet18", "bottleneck", None, None),
        ("choi2019", "channels", [0, 1], "None"),
    ],
)
def test_so_do_arguments_that_the_weights_left_at_their_defaults(name, argument, value, trained):
    """The configuration of weights has only what was said; what was not is a fact about them all the same."""
    builder = cdzoo.get_model if name in cdzoo.list_models() else cdzoo.get_codec
    if trained is None:
        with pytest.raises(TypeError, match=argument):  # no argument of this builder
            builder(name, weights="DEFAULT", **{argument: value})
        return
    with pytest.raises(ValueError, match=rf"{argument}=.* conflicts with weights .* made with {argument}={trained}"):
        builder(name, weights="DEFAULT", **{argument: value})


def test_what_means_the_same_or_is_not_learned_may_be_said():
    said = {"mean": [0.485, 0.456, 0.406], "std": (0.229, 0.224, 0.225), "in_channels": np.int64(3)}
    model = cdzoo.get_model("jpeg_resnet18", weights="DEFAULT", mode="factored", chroma="fancy", **said)
    assert model.entrance.mode == "factored"
    small = cdzoo.get_model("jpeg_resnet_small", weights="DEFAULT", mean=(0.5, 0.5, 0.5), relu="exact")
    assert small.origin.arguments["width"] == 2
    assert cdzoo.get_model("resnet41", weights="DEFAULT", upscale="pixel_shuffle", latent_stride=16).num_classes == 10


@pytest.mark.parametrize(
    "mean", [np.array([0.485, 0.456, 0.406]), torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)]
)
def test_arrays_are_compared_by_value(mean):
    assert cdzoo.get_model("jpeg_resnet18", weights="DEFAULT", mean=mean).origin.arguments["mean"] == tuple(
        mean.tolist()
    )
    with pytest.raises(ValueError, match=r"mean=.* conflicts with weights"):
        cdzoo.get_model("jpeg_resnet18", weights="DEFAULT", mean=mean + 1)


@pytest.mark.parametrize("num_convs", [range(1, 4), iter([1, 2, 3]), np.array([1, 2, 3]), torch.tensor([1, 2, 3])])
def test_sequences_of_any_kind_can_be_saved(num_convs, tmp_path):
    model = cdzoo.get_model("fa_cresnet39", in_channels=4, num_classes=3, width=0.0625, num_convs=num_convs)
    cdzoo.save_pretrained(model, tmp_path)
    assert cdzoo.from_pretrained(tmp_path).origin.arguments["num_convs"] == (1, 2, 3)
    model.reset_classifier(np.int64(5))
    cdzoo.save_pretrained(model, tmp_path)
    assert cdzoo.from_pretrained(tmp_path).num_classes == 5


def test_numpy_numbers_can_be_saved(tmp_path):
    sizes = {"in_channels": np.int64(8), "num_classes": np.uint8(3), "width": np.float32(0.0625)}
    model = cdzoo.get_model("cresnet39", **sizes)
    cdzoo.save_pretrained(model, tmp_path)
    assert cdzoo.from_pretrained(tmp_path).origin.arguments == model.origin.arguments == {"layers": (4, 6, 3), **sizes}


@pytest.mark.parametrize("name", [3, None, b"cresnet39"])
def test_names_are_strings(name):
    for get in (cdzoo.get_model, cdzoo.get_codec):
        with pytest.raises(TypeError, match=r"named by a string, not by"):
            get(name)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("num_classes", v) for v in (-1, True, 2.5, float("nan"), "10")]
    + [("in_channels", v) for v in (-3, 0, True, 12.0)]
    + [("width", v) for v in (float("nan"), float("inf"), -float("inf"), 0, -0.5, True, "0.5", 1j)],
)
def test_sizes_that_no_model_has_are_refused(argument, value):
    rule = "positive and finite" if argument == "width" else "an integer that is not negative"
    rule = "a positive integer" if argument == "in_channels" else rule
    with pytest.raises(ValueError, match=rf"^{argument} must be {rule}, not {re.escape(repr(value))}"):
        cdzoo.models.cresnet39(**{argument: value})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in cdzoo.list_codecs()
        for argument in inspect.signature(zoo.get_builder(name)).parameters
        if argument in ("N", "M", "latent_channels")
    ],
)
@pytest.mark.parametrize("value", [-1, 0, True, 8.0])
def test_sizes_that_no_codec_has_are_refused(name, argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} must be a positive integer, not {value!r}"):
        cdzoo.get_codec(name, **{argument: value})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in cdzoo.list_models()
        for argument in inspect.signature(zoo.get_builder(name)).parameters
        if argument in ("latent_stride", "upscaled_channels")
    ],
)
@pytest.mark.parametrize("value", [-8, 0, True, 8.0])
def test_strides_and_channels_that_no_model_has_are_refused(name, argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} must be a positive integer, not {value!r}"):
        cdzoo.get_model(name, width=0.0625, **{argument: value})


def test_sizes_may_come_from_numpy_and_classes_may_be_none():
    model = cdzoo.models.cresnet39(width=np.float64(0.0625), num_classes=np.int64(3), in_channels=np.int32(12))
    assert model.fc.out_features == 3
    assert isinstance(cdzoo.models.cresnet39(width=0.0625, num_classes=0).fc, nn.Identity)


def test_impossible_sizes_beside_or_inside_weights(tmp_path):
    cdzoo.save_pretrained(cdzoo.models.cresnet39(width=0.0625, num_classes=3), tmp_path)
    with pytest.raises(ValueError, match=r"width=nan conflicts with weights"):
        cdzoo.models.cresnet39(weights=tmp_path, width=float("nan"))
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"]["width"] = float("nan")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(cdzoo.errors.WeightsError, match=r"do not fit cresnet39 .*width must be .*, not nan"):
        cdzoo.models.cresnet39(weights=tmp_path)
