"""What holds for every builder, because it is registered: to add a line to the registry is to be tested here.

Saving and loading of every builder is in ``test_saving.py``, its arguments and names are in ``test_registry.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.slow import one_of_each_class
from oracles.small_modules import CALIBRATED, small
from torch import Tensor, nn

import cdzoo
from cdzoo import zoo
from cdzoo._registry import find_entry
from cdzoo.codecs import Codec, encode_jpeg
from cdzoo.errors import PairingError
from cdzoo.models import Segmenter
from cdzoo.models._resnet import Bottleneck
from cdzoo.models.icat import ICAT
from cdzoo.types import Latent
from cdzoo.zoo import latent_interface

MODELS, CODECS = cdzoo.list_models(), cdzoo.list_codecs()
READERS = [name for name in MODELS if latent_interface(name) is not None]
MakeCodec = Callable[..., Codec]
MakeImages = Callable[..., Tensor]

NO_DYNAMIC_SIZE = {
    name: "the sizes of a file are numbers, not tensors, and make a graph of their own" for name in MODELS
    if name.startswith("jpeg_")
} | {"latent_efficientnet_lite0": "latents of each size have their own way to the size of the features"}  # fmt: skip
SAME_LAYERS = {
    **dict.fromkeys(("cresnet51", "cresnet72"), "cresnet39"),
    **dict.fromkeys(("cresnet51_d", "cresnet72_d"), "cresnet39_d"),
    "resnet71": "resnet50", "resnet71_d": "resnet50_d",
}  # fmt: skip
"""Networks that differ from another one in how often a block is repeated; see :func:`shortened`."""
REPEATED = (Bottleneck, nn.Sequential)  # of Sequentials, the 3x3 convolutions of a feature enhancement unit
TRACED = [name for name in MODELS if name not in SAME_LAYERS]
CANCELS = ("_pool.conv.bias", "fa_scales.enhancement")
"""Parameters whose gradient is 0 up to rounding: a bias in a softmax, the scale of one channel in front of a norm."""
OTHER_SIZES = ("entrance.octaves.1", "entrance.octaves.2")
"""Parameters that read images of other sizes than those of the tests."""
EXACT_SIZE = ["latent_efficientnet_lite0"]
"""Networks to whom the missing part of a last row and column of latents makes a difference."""
PAIRED = ("torfason2018", "bmshj2018_hyperprior")
"""Codecs of both strides, without and with scales: the default run pairs them with a network of every class."""
VARIANTS = [
    ("cresnet39", {"use_scales": True, "stride_in_1x1": False}),
    *((name, {"upscale": "deconv"}) for name in ("resnet41", "mobilenet_v2_45", "resnet49")),
    *((name, {"upscale": None}) for name in ("resnet41", "mobilenet_v2_45")),
]
"""Other arguments, by which layers come or go."""


def shortened(module: nn.Module) -> nn.Module:
    """The module without blocks that repeat the one before: they take time, and show nothing new to a tracer."""
    for stage in [m for m in module.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]:
        seen = ""
        for name, block in list(stage.named_children()):
            if isinstance(block, REPEATED) and repr(block) == seen:
                delattr(stage, name)
            seen = repr(block)
    if isinstance(module, ICAT):
        module.prune_intermediate_layers([4], prune_head=False)  # three blocks rebuild, the others only classify
    return module.eval()


def inputs(module: nn.Module, batch: int = 2, size: tuple[int, int] = (9, 10)) -> tuple[Any, ...]:
    """What a small module of :func:`small` reads: coefficients, pixels, or a latent of ``size``."""
    generator = torch.Generator().manual_seed(0)
    if getattr(module, "latent_stride", None) is not None:
        y_hat = 3 * torch.randn(batch, module.in_channels, *size, generator=generator)
        return (y_hat, y_hat.abs()) if module.uses_scales else (y_hat,)
    x = torch.rand(batch, 3, 8 * size[0], 8 * size[1] - 3, generator=generator)
    return (encode_jpeg(x),) if "jpeg" in str(module.origin.builder) else (x,)


def as_latent(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same input as a ``Latent``, where it is one; its images lack some of the last row and column."""
    stride = getattr(module, "latent_stride", None)
    if stride is None:
        return given
    height, width = (stride * side - 3 for side in given[0].shape[2:])
    return (Latent(given[0], given[1] if module.uses_scales else None, (height, width)),)


# -- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *CODECS])
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        module = zoo.get_builder(name)()
    assert sum(p.numel() for p in module.parameters()) == find_entry(name).num_params


@pytest.mark.parametrize("name", MODELS)
def test_forward_is_features_and_head(name: str) -> None:
    module = small(name).eval()
    given = inputs(module)
    with torch.no_grad():
        features = module.forward_features(*given)
        logits, pooled = module.forward_head(features), module.forward_head(features, pre_logits=True)
        found, of_latent = module(*given), module(*as_latent(module, given))
        assert torch.equal(module.get_classifier()(pooled), logits)
    if isinstance(module, Segmenter):
        size = given[0].shape[2:] if module.latent_stride is None else [module.latent_stride * s for s in (9, 10)]
        assert found.shape == (2, 3, *size)
        assert torch.equal(of_latent, found[..., : of_latent.shape[2], : of_latent.shape[3]])
    else:
        assert pooled.shape == (2, module.num_features)
        assert logits.shape == (2, 3)
        assert torch.equal(found, logits)
        if name in EXACT_SIZE:
            of_latent = module(Latent(*given, tuple(module.latent_stride * n for n in given[0].shape[2:])))
        assert torch.equal(of_latent, logits)
    assert found.std() > 0
    assert module.num_classes == 3
    module.reset_classifier(0)
    assert isinstance(module.get_classifier(), nn.Identity)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*(pytest.param(name, {}, marks=[pytest.mark.slow] * (name in SAME_LAYERS)) for name in MODELS), *VARIANTS],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_every_parameter_gets_a_gradient(name: str, arguments: dict[str, Any]) -> None:
    module = small(name).train()
    if arguments:
        module = zoo.get_builder(name)(width=0.0625, num_classes=3, in_channels=12, **arguments).train()
    for layer in module.modules():
        if hasattr(layer, "drop_prob"):  # which leaves whole blocks out
            layer.drop_prob = 0.0
    for seed in range(3):  # a unit of a few hidden values may be silent for one batch
        torch.manual_seed(seed)
        if isinstance(module, Codec):  # the whole network of icat_small
            out = module(torch.rand(2, 3, 40, 60))
            terms = [out.x_hat, out.logits, *(-likelihood.log() for likelihood in out.likelihoods.values())]
            loss = sum(term.square().mean() for term in terms) + module.aux_loss()
        else:
            given = inputs(module, 4)
            noise = [g + torch.rand_like(g) for g in given if isinstance(g, Tensor)]
            loss = module(*(noise or given)).square().mean()
        loss.backward()
    read = [(n, p) for n, p in module.named_parameters() if not n.startswith(OTHER_SIZES)]
    assert [n for n, p in read if p.grad is None] == []
    zero = [n for n, p in read if not p.grad.any()]
    assert [n for n in zero if not any(part in n for part in CANCELS)] == []


@pytest.mark.parametrize("name", SAME_LAYERS)
def test_networks_that_need_not_be_traced_are_another_one_with_more_blocks(name: str) -> None:
    one, other = shortened(small(name)), shortened(small(SAME_LAYERS[name]))
    assert type(one) is type(other)
    assert repr(one) == repr(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_export_with_dynamic_sizes(name: str) -> None:
    module = shortened(small(name))
    given, other = inputs(module), inputs(module, 3, (17, 12))
    if name in NO_DYNAMIC_SIZE:
        shapes, other = None, given
    else:
        # PyTorch traces sizes of 1 apart: these are the least for which the last stage has at least 2
        low = 65 if getattr(module, "latent_stride", None) is None else 9
        dims = {0: torch.export.Dim("b", min=2), 2: torch.export.Dim("h", min=low), 3: torch.export.Dim("w", min=low)}
        shapes = (dims,) * len(given)
    with torch.no_grad():
        program = torch.export.export(module, given, dynamic_shapes=shapes).module()
        torch.testing.assert_close(program(*other), module(*other))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_compiles_without_graph_breaks(name: str) -> None:
    module = shortened(small(name))
    given = as_latent(module, inputs(module))
    with torch.no_grad():
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*given), module(*given))


# -- codecs ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["untrained", "trained"])
def codec_of(request: pytest.FixtureRequest, make_codec: MakeCodec, make_images: MakeImages) -> Callable[[str], Codec]:
    """A small codec as the builder makes it; or with latents of many symbols, and tables that were measured."""

    def make(name: str) -> Codec:
        if request.param == "untrained":
            torch.manual_seed(0)
            return cdzoo.get_codec(name, **{"N": 8, "latent_channels" if name in CALIBRATED else "M": 12})
        codec = make_codec(name)
        codec.calibrate([make_images(2, 64, 96), make_images(1, 33, 50, seed=1)])
        return codec

    return make


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 33), (64, 64), (101, 223)])
def test_bits_come_back_as_the_latent_that_was_encoded(
    name: str, size: tuple[int, int], codec_of: Callable[[str], Codec], make_images: MakeImages
) -> None:
    codec, x = codec_of(name), make_images(3, *size)
    latent, expected = codec.decompress(codec.compress(x)), codec.encode(x)
    assert torch.equal(latent.y_hat, expected.y_hat)
    assert (latent.scales is not None) == codec.has_scales
    if latent.scales is not None:
        assert torch.equal(latent.scales, expected.scales)
    assert latent.image_size == expected.image_size == size
    assert latent.y_hat.shape == (3, codec.latent_channels, *(-(-n // codec.stride) for n in size))
    assert latent.y_hat.dtype == torch.float32
    x_hat = codec.decode(latent)
    assert x_hat.shape == x.shape
    assert x_hat.min() >= 0
    assert x_hat.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_codecs_are_traced_whole(name: str, make_images: MakeImages) -> None:
    codec = small(name).eval()
    x, other = make_images(2, 128, 192), make_images(3, 192, 128)
    # whether there is something to pad is decided while tracing; 64 is what a hyperprior divides by
    sides = {axis: 64 * torch.export.Dim(side, min=2) for axis, side in ((2, "h"), (3, "w"))}
    shapes = ({0: torch.export.Dim("b", min=2), **sides},)
    with torch.no_grad():
        program = torch.export.export(codec, (x,), dynamic_shapes=shapes).module()
        compiled = torch.compile(codec, backend="eager", fullgraph=True)
        for found, expected in ((program(other), codec(other)), (compiled(x[..., :61, :70]), codec(x[..., :61, :70]))):
            torch.testing.assert_close(found.x_hat, expected.x_hat)
            torch.testing.assert_close(found.latent.y_hat, expected.latent.y_hat)
            assert tuple(found.latent.image_size) == expected.latent.image_size
            torch.testing.assert_close(found.likelihoods, expected.likelihoods)


# -- codecs with networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *CODECS])
def test_what_is_told_of_latents_without_building_is_so(name: str) -> None:
    told = latent_interface(name)
    if name in CODECS:
        codec = small(name)
        assert told == (codec.stride, codec.has_scales, False)
        assert cdzoo.list_models(codec=codec) == cdzoo.list_models(codec=name)
        return
    with torch.device("meta"):
        model = zoo.get_builder(name)()
    stride = getattr(model, "latent_stride", None)
    assert (None if told is None else told.stride) == stride
    if told is not None:
        assert told.scales == model.uses_scales
        assert told.any_stride == ("latent_stride" in inspect.signature(zoo.get_builder(name)).parameters)


def test_networks_of_a_codec_are_found_by_its_name_or_itself() -> None:
    assert cdzoo.list_models("cresnet*", codec="torfason2018") == cdzoo.list_models("cresnet*")
    for name in ("icat_small", "fa_cresnet39", "resnet50", "jpeg_resnet18"):  # stride, scales, pixels, coefficients
        assert name not in cdzoo.list_models(codec="torfason2018")
    assert "fa_cresnet39" in cdzoo.list_models(codec="bmshj2018_hyperprior")
    assert "fa_cresnet39" in cdzoo.list_models(codec=small("icat_small"))
    fitting, pretrained = cdzoo.list_models(codec="mbt2018_mean"), cdzoo.list_models(pretrained=True)
    assert cdzoo.list_models(codec="mbt2018_mean", pretrained=True) == sorted({*fitting} & {*pretrained})
    assert "fa_cresnet39" in fitting
    assert "jpeg_resnet18" not in fitting
    with pytest.raises(ValueError, match="unknown codec 'torfason'; did you mean 'torfason2018'"):
        cdzoo.list_models(codec="torfason")


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    """A small codec of each kind."""
    return {name: small(name) for name in CODECS}


def head(name: str, in_channels: int, stride: int) -> nn.Module:
    """A small network, for latents of so many channels and this stride where its builder lets choose."""
    known = inspect.signature(zoo.get_builder(name)).parameters
    given = {"in_channels": in_channels} if name in READERS else {}
    given |= {"latent_stride": stride} if "latent_stride" in known else {}
    torch.manual_seed(0)
    return cdzoo.get_model(name, width=0.0625, num_classes=3, **given).eval()


@pytest.mark.parametrize("name", one_of_each_class(MODELS))
@pytest.mark.parametrize(
    "codec_name",
    [name if name in PAIRED else pytest.param(name, marks=pytest.mark.slow) for name in CODECS],
)
def test_pairs(codec_name: str, name: str, codecs: dict[str, Codec], make_images: MakeImages) -> None:
    codec = codecs[codec_name]
    model = head(name, codec.latent_channels, codec.stride)
    if name not in READERS:
        with pytest.raises(TypeError, match="does not read latents"):
            cdzoo.compose(codec, model)
    elif name in cdzoo.list_models(codec=codec_name):
        pair, images = cdzoo.compose(codec, model), make_images(2, 41, 70)
        with torch.no_grad():
            logits = pair.from_streams(codec.compress(images))
            assert torch.equal(logits, pair(images))
        assert logits.shape == ((2, 3, 41, 70) if isinstance(model, Segmenter) else (2, 3))
        with torch.device("meta"):
            others = [head(name, codec.latent_channels + 1, codec.stride)]
            others += [head(name, codec.latent_channels, 24 - codec.stride)]
        for other in others:
            if (other.in_channels, other.latent_stride) != (model.in_channels, model.latent_stride):
                with pytest.raises(PairingError, match=codec.fingerprint):
                    cdzoo.compose(codec, other)
    else:
        with pytest.raises(PairingError, match=codec.fingerprint):
            cdzoo.compose(codec, model)
