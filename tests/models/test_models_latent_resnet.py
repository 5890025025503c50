"""ResNet-41, ResNet-49 and MobileNetV2-45 (Wang et al.): the paper's shapes, torchvision's tensors, the contract."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from oracles.networks import count_parameters, multiply_adds, randomize
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cdzoo
from cdzoo.errors import PairingError, WeightsError
from cdzoo.models import mobilenet_v2_45, resnet41, resnet49
from cdzoo.models.latent_resnet import LatentResNet
from cdzoo.types import Latent

BUILDERS = (resnet41, resnet49, mobilenet_v2_45)
SMALL = {"width": 0.125, "in_channels": 6, "num_classes": 5}
UPSCALE = ("pixel_shuffle", "deconv", None)


def sizes(model, y_hat, *names):
    """Channels, rows and columns that each of the named modules puts out."""
    seen = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.shape[1:]}))
        for name in names
    ]
    with torch.no_grad():
        model.eval()(y_hat)
    for hook in hooks:
        hook.remove()
    return [tuple(seen[name]) for name in names]


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(1)
    return randomize(torchvision.models.resnet50(weights=None, num_classes=7)).eval()


@pytest.fixture(scope="module")
def their_mobilenet():
    torch.manual_seed(1)
    return randomize(torchvision.models.mobilenet_v2(weights=None, num_classes=7)).eval()


# -- table 1 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "upscale", "millions"),
    [(resnet41, "pixel_shuffle", 27.76), (resnet41, "deconv", 26.45), (resnet49, None, 25.54)],
)
def test_parameters_at_256_latent_channels(builder, upscale, millions):
    with torch.device("meta"):
        assert round(count_parameters(builder(upscale=upscale)) / 1e6, 2) == millions


def test_parameters_are_torchvisions_but_for_the_entrance():
    """Every parameter behind the entrance counts once in torchvision's networks, the rest follows from its shapes."""
    with torch.device("meta"):
        resnet, mobilenet = torchvision.models.resnet50(), torchvision.models.mobilenet_v2()
        stem = count_parameters(resnet.conv1) + count_parameters(resnet.bn1)
        upscale = {"pixel_shuffle": 9 * 256 * 1024, "deconv": 16 * 256 * 256, None: 0}
        for kind, entrance in upscale.items():
            rest = count_parameters(resnet) - stem - count_parameters(resnet.layer1)
            assert count_parameters(resnet41(upscale=kind)) == rest + entrance + 256 * 256 + 2 * 256
            rest = count_parameters(mobilenet) - count_parameters(mobilenet.features[:4])
            assert count_parameters(mobilenet_v2_45(upscale=kind)) == rest + entrance + 256 * 24 + 2 * 24
        # conv2 reads 256 channels in place of 64, and its first shortcut has nothing to do any more
        wider = (256 - 64) * 64 - count_parameters(resnet.layer1[0].downsample)
        assert count_parameters(resnet49()) == count_parameters(resnet) - stem + wider


@pytest.mark.parametrize(("builder", "layers"), [(resnet41, 41), (mobilenet_v2_45, 45), (resnet49, 49)])
def test_the_name_counts_the_layers(builder, layers):
    with torch.device("meta"):
        names = [n for n, module in builder().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    counted = [name for name in names if "downsample" not in name]
    assert len(counted) - (builder is not resnet49) == layers  # fc counts in the last name only


def test_sizes_of_table_1a():
    stages = ("upscale", "match", "layer2", "layer3", "layer4")
    expected = [(6, 28, 20), (32, 28, 20), (64, 28, 20), (128, 14, 10), (256, 7, 5)]
    for upscale in ("pixel_shuffle", "deconv"):
        assert sizes(resnet41(**SMALL, upscale=upscale), torch.randn(1, 6, 14, 10), *stages) == expected
    assert sizes(resnet41(**SMALL, upscale=None), torch.randn(1, 6, 28, 20), *stages) == expected
    assert sizes(resnet49(**SMALL), torch.randn(1, 6, 56, 40), "layer1", "layer2", "layer4") == [
        (32, 56, 40),
        (64, 28, 20),
        (256, 7, 5),
    ]


def test_sizes_of_table_1b():
    with torch.device("meta"):
        model, y_hat = mobilenet_v2_45(), torch.empty(1, 256, 14, 10)
    found = sizes(model, y_hat, "match", *(f"features.{n}" for n in range(4, 19)))
    rows = [(24, 28, 20), *[(32, 28, 20)] * 3, *[(64, 14, 10)] * 4, *[(96, 14, 10)] * 3, *[(160, 7, 5)] * 3]
    assert found == [*rows, (320, 7, 5), (1280, 7, 5)]


def test_multiply_adds_at_224_pixels():
    """From the shapes: 28x28 positions after upscaling, as ResNet-50 has them in conv3."""
    with torch.device("meta"):
        model, resnet = resnet41(), torchvision.models.resnet50().eval()
        entrance = 14 * 14 * 9 * 256 * 1024 + 28 * 28 * 256 * 256
        with FlopCounterMode(display=False) as counter:
            resnet.layer4(resnet.layer3(resnet.layer2(torch.empty(1, 256, 56, 56))))
        stages = counter.get_flop_counts()["Global"][torch.ops.aten.convolution] // 2
        # layer 2 has no stride here: only the first 1x1 of its first block ran on 56x56 positions there
        saved = (56 * 56 - 28 * 28) * 256 * 128
    assert multiply_adds(model, (1, 256, 14, 14), linear=True) == entrance + stages - saved + 2048 * 1000


# -- torchvision -------------------------------------------------------------------------------------------------------


def test_checkpoints_from_before_batches_were_counted(theirs):
    given = {name: value for name, value in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    model = resnet41(in_channels=8, num_classes=7)
    loaded = model.load_torchvision(given)
    assert "layer4.0.bn1.weight" in loaded.taken
    assert "layer4.0.bn1.num_batches_tracked" in loaded.kept
    assert all(torch.equal(model.state_dict()[name], given[name]) for name in loaded.taken)


@pytest.mark.parametrize("upscale", ["deconv", None])
def test_resnet41_takes_everything_behind_its_entrance(theirs, upscale):
    torch.manual_seed(0)
    model = resnet41(in_channels=8, num_classes=7, upscale=upscale).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded, given = model.load_torchvision(theirs.state_dict()), theirs.state_dict()
    after = model.state_dict()
    assert sorted(loaded.taken + loaded.kept) == sorted(after)
    assert all(torch.equal(after[name], given[name]) for name in loaded.taken)
    assert all(torch.equal(after[name], before[name]) for name in loaded.kept)
    assert {name.split(".")[0] for name in loaded.kept} == {"match"} | ({"upscale"} if upscale else set())
    assert set(loaded.unused) == {name for name in given if name.startswith(("conv1.", "bn1.", "layer1."))}
    x = torch.rand(1, 256, 12, 8)
    theirs.layer2[0].conv2.stride = theirs.layer2[0].downsample[0].stride = (1, 1)  # conv3 keeps the size
    try:
        with torch.no_grad():
            expected = theirs.fc(theirs.avgpool(theirs.layer4(theirs.layer3(theirs.layer2(x)))).flatten(1))
            found = model.forward_head(model.layer4(model.layer3(model.layer2(x))))
    finally:
        theirs.layer2[0].conv2.stride = theirs.layer2[0].downsample[0].stride = (2, 2)
    assert torch.equal(found, expected)
    assert found.std() > 1e-2


@pytest.mark.parametrize(
    ("in_channels", "kept"),
    [
        (256, {"layer1.0.conv1.weight"}),
        (12, {"layer1.0.conv1.weight", "layer1.0.downsample.0.weight"}),
        (64, set()),
    ],
)
def test_resnet49_takes_what_fits_the_latent(theirs, in_channels, kept):
    model = resnet49(in_channels=in_channels, num_classes=7).eval()
    loaded = model.load_torchvision(theirs.state_dict())
    assert set(loaded.kept) == kept
    assert all(torch.equal(model.state_dict()[name], theirs.state_dict()[name]) for name in loaded.taken)
    if not kept:  # then it is ResNet-50 without its stem
        x = torch.rand(2, 64, 9, 16)
        with torch.no_grad():
            features = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
            assert torch.equal(model(x), theirs.fc(theirs.avgpool(features).flatten(1)))


def test_mobilenet_takes_everything_behind_its_entrance(their_mobilenet):
    model = mobilenet_v2_45(in_channels=8, num_classes=7).eval()
    loaded, given = model.load_torchvision(their_mobilenet.state_dict()), their_mobilenet.state_dict()
    own = model.state_dict()
    assert {name.split(".")[0] for name in loaded.kept} == {"upscale", "match"}
    assert set(loaded.unused) == {name for name in given if name.startswith(tuple(f"features.{n}." for n in range(4)))}
    assert all(torch.equal(own[n], given[n.replace("fc.", "classifier.1.")]) for n in loaded.taken)
    x = torch.randn(2, 24, 8, 12)
    block = their_mobilenet.features[4].conv[1][0]
    block.stride = (1, 1)  # this row keeps the size here
    try:
        with torch.no_grad():
            expected = their_mobilenet.classifier(their_mobilenet.features[4:](x).mean((2, 3)))
    finally:
        block.stride = (2, 2)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_head(model.features(x)), expected)


def test_mobilenet_of_another_upscaled_width_keeps_its_first_block(their_mobilenet):
    model = mobilenet_v2_45(in_channels=8, num_classes=7, upscaled_channels=32)
    kept = {name for name in model.load_torchvision(their_mobilenet.state_dict()).kept if name.startswith("features")}
    assert {name.rpartition(".")[0] for name in kept} == {
        f"features.4.conv.{n}" for n in ("0.0", "0.1", "1.0", "1.1", 2)
    }


@pytest.mark.parametrize("builder", [resnet41, mobilenet_v2_45])
def test_loading_is_all_or_nothing(builder, theirs, their_mobilenet):
    own, other = (their_mobilenet, theirs) if builder is mobilenet_v2_45 else (theirs, their_mobilenet)
    model = builder(in_channels=8, num_classes=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    incomplete = dict(list(own.state_dict().items())[:-9]) | {"fc.weight": torch.zeros(1)}
    for state, message in (
        (own.state_dict(), r"shape \(7, .*needs \(10, .*classifier=False"),
        (incomplete, "tensors are not in the state dict"),
        (other.state_dict(), "tensors are not in the state dict"),
        ({f"module.{k}": v for k, v in own.state_dict().items()}, "without `module.`"),
    ):
        with pytest.raises(WeightsError, match=message):
            model.load_torchvision(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {"fc.weight", "fc.bias"} <= set(model.load_torchvision(own.state_dict(), classifier=False).kept)
    with pytest.raises(WeightsError, match=r"width=1\.0"):
        builder(**SMALL).load_torchvision(own.state_dict(), classifier=False)


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[(b, u) for b in BUILDERS for u in UPSCALE], ids=lambda p: f"{p[0].__name__}-{p[1]}")
def small(request):
    builder, upscale = request.param
    torch.manual_seed(0)
    return builder(**SMALL, upscale=upscale).eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (14, 9)])
def test_any_latent_size(small, size):
    y_hat = torch.randn(2, 6, *size)
    factor = 1 if isinstance(small.upscale, nn.Identity) else 2
    reduction = 8 if getattr(small, "layer1", None) else 4
    with torch.no_grad():
        features, logits = small.forward_features(y_hat), small(y_hat)
        expected = tuple(math.ceil(factor * side / reduction) for side in size)
        assert features.shape == (2, small.num_features, *expected)
        assert torch.equal(logits, small.forward_head(features))
        assert torch.equal(small.get_classifier()(small.forward_head(features, pre_logits=True)), logits)
        assert torch.equal(logits, small(Latent(y_hat, None, (16 * size[0], 16 * size[1]))))
    assert (small.in_channels, small.latent_stride, small.uses_scales) == (6, 16, False)


@pytest.mark.parametrize("builder", BUILDERS)
def test_upscaling_survives_saving_and_fights_weights(builder, tmp_path):
    """None means a network without upscaling, whatever the default is, and is told apart from not given."""
    for upscale in UPSCALE:
        folder = tmp_path / str(upscale)
        cdzoo.save_pretrained(builder(**SMALL, upscale=upscale), folder)
        loaded = builder(weights=folder)
        assert type(loaded.upscale) is type(builder(**SMALL, upscale=upscale).upscale)
        assert type(builder(weights=folder, upscale=upscale).upscale) is type(loaded.upscale)
        other = "deconv" if upscale is None else None
        with pytest.raises(ValueError, match=f"upscale={other!r} conflicts with weights"):
            builder(weights=folder, upscale=other)
    assert isinstance(builder(**SMALL).upscale, nn.Identity) is (builder is resnet49)


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_network_of_some_channels(builder, tmp_path):
    torch.manual_seed(0)
    model = builder(**SMALL, channels=torch.tensor([4, 0, 3])).eval()
    assert model.in_channels == 6  # what the codec has, which compose asks for
    y_hat, other = torch.randn(2, 2, 6, 9, 8)
    whole = builder(**{**SMALL, "in_channels": 3}).eval()
    whole.load_state_dict({n: t for n, t in model.state_dict().items() if n != "select.indices"})
    other[:, [4, 0, 3]] = y_hat[:, [4, 0, 3]]
    with torch.no_grad():
        assert torch.equal(model(y_hat), whole(y_hat[:, [4, 0, 3]]))
        assert torch.equal(model(y_hat), model(other))
        cdzoo.save_pretrained(model, tmp_path)
        loaded = cdzoo.from_pretrained(tmp_path)
        assert torch.equal(loaded(y_hat), model(y_hat))
    assert loaded.origin.arguments["channels"] == (4, 0, 3)
    assert loaded.state_dict()["select.indices"].tolist() == [4, 0, 3]
    with pytest.raises(ValueError, match=r"channels=\(0, 1\) conflicts"):
        builder(weights=tmp_path, channels=(0, 1))
    with pytest.raises(ValueError, match="channels has index 6, but the latent has 6 channels"):
        builder(**SMALL, channels=[6])
    with pytest.raises(ValueError, match="list of integers, not float"):
        builder(**SMALL, channels=[1.5])


def test_wrong_arguments_and_inputs_are_refused():
    for builder in BUILDERS:
        with pytest.raises(ValueError, match="upscale must be 'pixel_shuffle', 'deconv' or None, not 'bicubic'"):
            builder(**SMALL, upscale="bicubic")
        with pytest.raises(ValueError, match=r"\(1, 7, 4, 4\).*reads \(B, 6, h, w\)"):
            builder(**SMALL)(torch.randn(1, 7, 4, 4))
    with pytest.raises(ValueError, match=r"layers=\(4, 6\) must be three numbers"):
        LatentResNet((4, 6))


@pytest.mark.parametrize("builder", BUILDERS)
def test_pairs_with_codecs_of_stride_16(builder, make_codec, make_images):
    codec, images = make_codec("bmshj2018_factorized"), make_images(2, 50, 70)
    torch.manual_seed(0)
    model = builder(width=0.0625, in_channels=24, num_classes=3).eval()
    composed = cdzoo.compose(codec, model)
    with torch.no_grad():
        logits = composed.from_streams(codec.compress(images))
        assert torch.equal(logits, model(codec.encode(images)))
        assert logits.shape == (2, 3)
    with pytest.raises(PairingError, match=r"256 latent channels.*24.*in_channels=24"):
        cdzoo.compose(codec, builder(width=0.0625))
    with pytest.raises(PairingError, match=r"8 pixels per latent sample.*latent_stride=16"):
        cdzoo.compose(codec, builder(width=0.0625, in_channels=24, latent_stride=8))


def test_dropout_is_mobilenets_and_rests_in_evaluation():
    model, y_hat = mobilenet_v2_45(**SMALL, dropout=0.5), torch.randn(2, 6, 4, 4)
    assert mobilenet_v2_45(**SMALL).dropout.p == 0.2
    model.eval()
    assert torch.equal(model(y_hat), model(y_hat))
    features = model.forward_features(y_hat)
    assert torch.equal(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
    model.dropout.train()
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
