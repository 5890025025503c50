"""cResNet and its pixel baselines (Torfason et al.): the paper's numbers, torchvision's tensors, and the contract."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from oracles.networks import count_parameters, multiply_adds

import cdzoo
from cdzoo.models import cresnet39, cresnet51, cresnet72, resnet50, resnet71
from cdzoo.models.cresnet import CResNet
from cdzoo.models.rgb_resnet import RGBResNet
from cdzoo.types import CodecOutput, Latent

SMALL = {"width": 0.125, "in_channels": 6, "num_classes": 5}
SCALES_002 = {"use_scales": True, "stride_in_1x1": False, "latent_stride": 16}


@pytest.fixture
def small():
    torch.manual_seed(0)
    return cresnet39(**SMALL).eval()


@pytest.fixture
def small_with_scales():
    torch.manual_seed(0)
    return cresnet39(**SMALL, **SCALES_002).eval()


# -- the paper's numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "in_channels", "parameters"),
    [
        (cresnet39, 8, 25_172_968),
        (cresnet39, 16, 25_178_088),
        (cresnet39, 32, 25_188_328),
        (cresnet51, 8, 29_641_704),
        (cresnet51, 16, 29_646_824),
        (cresnet51, 32, 29_657_064),
        (cresnet72, 8, 37_461_992),
        (cresnet72, 16, 37_467_112),
        (cresnet72, 32, 37_477_352),
    ],
)
def test_parameters(builder, in_channels, parameters):
    with torch.device("meta"):
        assert count_parameters(builder(in_channels=in_channels)) == parameters


@pytest.mark.parametrize(
    ("builder", "in_channels", "giga"),
    [
        (cresnet39, 16, 2.950),
        (cresnet39, 32, 2.958),
        (cresnet51, 16, 3.823),
        (cresnet51, 32, 3.831),
        (cresnet72, 16, 5.352),
        (cresnet72, 32, 5.360),
    ],
)
def test_multiply_adds_of_a_28x28_latent(builder, in_channels, giga):
    with torch.device("meta"):
        model = builder(in_channels=in_channels)
    assert round(multiply_adds(model, (1, in_channels, 28, 28)) / 1e9, 3) == giga


@pytest.mark.parametrize(("builder", "giga"), [(resnet50, 3.856), (resnet71, 5.3845)])
def test_multiply_adds_of_the_pixel_baselines(builder, giga):
    with torch.device("meta"):
        model = builder()
    macs = multiply_adds(model, (1, 3, 224, 224))
    assert macs / 1e9 == pytest.approx(giga, abs=5e-4 if giga == 3.856 else 5e-5)


@pytest.mark.parametrize(("builder", "k"), [(cresnet39, 39), (cresnet51, 51), (cresnet72, 72)])
def test_the_name_counts_the_convolutions_of_the_residual_units(builder, k):
    with torch.device("meta"):
        names = [name for name, module in builder().named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert sum("downsample" not in name for name in names) == k


def test_parameters_of_the_baseline_with_scales():
    """Deng & Karam compare FA-cResNet with a cResNet-39 of 23.555 M parameters."""
    with torch.device("meta"):
        model = cresnet39(in_channels=192, num_classes=23, **SCALES_002)
    assert round(count_parameters(model) / 1e6, 3) == 23.555
    assert (model.uses_scales, model.latent_stride) == (True, 16)


# -- torchvision -------------------------------------------------------------------------------------------------------


def test_resnet50_is_torchvisions_with_the_stride_in_the_3x3():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None, num_classes=7).double().eval()
    for name, buffer in theirs.named_buffers():  # statistics that would show a swapped batch norm
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    with torch.device("meta"):
        ours = resnet50(num_classes=7, stride_in_1x1=False)
    ours = ours.to_empty(device="cpu").double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 70, 45, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_the_stride_of_the_paper_sits_in_the_first_1x1():
    with torch.device("meta"):
        paper, modern = resnet50().layer3[0], resnet50(stride_in_1x1=False).layer3[0]
    assert [paper.conv1.stride, paper.conv2.stride, paper.downsample[0].stride] == [(2, 2), (1, 1), (2, 2)]
    assert [modern.conv1.stride, modern.conv2.stride, modern.downsample[0].stride] == [(1, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize("arguments", [{}, SCALES_002])
def test_stages_carry_torchvisions_names(arguments):
    with torch.device("meta"):
        theirs = torchvision.models.resnet50(weights=None).state_dict()
        ours = cresnet39(**arguments).state_dict()
    first = {name for name in theirs if name.startswith("layer2.0.")}
    common = {name for name in theirs if name.startswith(("layer2.", "layer3.", "layer4.", "fc."))} - first
    rest = ("layer2.0.",) if not arguments else ("block_y_hat.", "block_scales.", "fusion.")
    assert common <= set(ours)
    assert all(name.startswith(rest) for name in set(ours) - common)
    assert all(ours[name].shape == theirs[name].shape for name in common)


def test_initialization_is_he_normal_with_fan_out():
    torch.manual_seed(0)
    model = cresnet39(num_classes=10)
    conv = model.layer3[1].conv1  # 1024 -> 256
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert model.layer3[1].bn3.weight.eq(1).all()


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (9, 4), (28, 28)])
@pytest.mark.parametrize("name", ["small", "small_with_scales"])
def test_any_latent_size(request, name, size):
    model = request.getfixturevalue(name)
    y_hat, scales = torch.randn(2, 6, *size), torch.rand(2, 6, *size)
    with torch.no_grad():
        features = model.forward_features(y_hat, scales)
        logits = model(y_hat, scales)
    assert features.shape == (2, model.num_features, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert torch.equal(logits, model.forward_head(features))
    assert torch.equal(model.get_classifier()(model.forward_head(features, pre_logits=True)), logits)
    assert torch.allclose(model.forward_head(features, pre_logits=True), features.mean((2, 3)), atol=1e-6)


def test_a_latent_is_the_same_as_its_tensors(small, small_with_scales):
    latent = Latent(torch.randn(2, 6, 5, 4), torch.rand(2, 6, 5, 4), (80, 64))
    with torch.no_grad():
        assert torch.equal(small(latent), small(latent.y_hat))
        assert torch.equal(small_with_scales(latent), small_with_scales(latent.y_hat, latent.scales))
        assert not torch.equal(small_with_scales(latent), small_with_scales(latent.y_hat, 2 * latent.scales))


def test_wrong_inputs_are_refused(small, small_with_scales):
    y_hat = torch.randn(2, 6, 5, 4)
    with pytest.raises(ValueError, match=r"\(2, 7, 5, 4\).*reads \(B, 6, h, w\).*in_channels"):
        small(torch.randn(2, 7, 5, 4))
    with pytest.raises(ValueError, match=r"reads \(B, 6, h, w\)"):
        small(y_hat[0])
    with pytest.raises(ValueError, match="standard deviations and got none"):
        small_with_scales(y_hat)
    with pytest.raises(ValueError, match="standard deviations and got none"):
        small_with_scales(Latent(y_hat, None, (40, 32)))
    with pytest.raises(ValueError, match=r"scales have shape \(2, 6, 5, 5\)"):
        small_with_scales(y_hat, torch.rand(2, 6, 5, 5))
    for wrong in ((y_hat, None, (80, 64)), CodecOutput(y_hat, Latent(y_hat, None, (80, 64)), {}), None):
        with pytest.raises(TypeError, match=rf"or a Latent, not {type(wrong).__name__}; .*output\.latent"):
            small(wrong)
    with pytest.raises(ValueError, match="given twice"):
        small_with_scales(Latent(y_hat, y_hat, (40, 32)), y_hat)
    with pytest.raises(ValueError, match=r"reads \(B, 3, H, W\)"):
        resnet50(width=0.125)(torch.randn(1, 4, 32, 32))


def test_state_dict_round_trip(small_with_scales):
    other = cresnet39(**SMALL, **SCALES_002).eval()
    other.load_state_dict(small_with_scales.state_dict(), strict=True)
    y_hat, scales = torch.randn(1, 6, 3, 3), torch.rand(1, 6, 3, 3)
    assert torch.equal(other(y_hat, scales), small_with_scales(y_hat, scales))


def test_reset_classifier(small):
    small.double().reset_classifier(9)
    y_hat = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    assert small(y_hat).shape == (2, 9)
    assert small.num_classes == small.origin.arguments["num_classes"] == 9
    small.reset_classifier(0)
    assert isinstance(small.get_classifier(), torch.nn.Identity)
    assert small(y_hat).shape == (2, small.num_features)
    with pytest.raises(ValueError, match="num_classes must be an integer that is not negative, not -1"):
        small.reset_classifier(-1)


def test_width_scales_every_stage_but_the_input_and_the_scales_branch():
    with torch.device("meta"):
        model = cresnet39(in_channels=192, width=0.3, **SCALES_002)
    assert model.num_features == 4 * 152  # 0.3 * 512 = 153.6, and the nearest multiple of 8 is 152
    assert model.block_y_hat.conv1.weight.shape == (40, 192, 1, 1)
    assert model.block_scales.conv3.weight.shape == (4, 1, 1, 1)
    assert all(module.out_channels % 8 == 0 for module in model.layer3.modules() if isinstance(module, torch.nn.Conv2d))
    for width in (0.0, -1.0):
        with pytest.raises(ValueError, match="must be positive"):
            cresnet39(width=width)


def test_pixel_baselines_on_odd_sizes():
    model = resnet71(width=0.125, num_classes=4).eval()
    assert (model.latent_stride, model.uses_scales, model.in_channels) == (None, False, 3)
    for height, width in ((1, 1), (33, 64), (97, 45)):
        with torch.no_grad():
            features = model.forward_features(torch.randn(1, 3, height, width))
        assert features.shape == (1, 256, math.ceil(height / 32), math.ceil(width / 32))


@pytest.mark.parametrize("name", ["resnet50", "resnet71_d"])
def test_pixel_baselines_read_pixels(name):
    latent = cdzoo.Latent(torch.zeros(1, 3, 8, 8), None, (64, 64))
    with pytest.raises(TypeError, match=r"reads pixels .*not Latent: decode it first"):
        cdzoo.get_model(name, width=0.125, num_classes=3)(latent)


def test_layers_must_fit_the_stages():
    with pytest.raises(ValueError, match=r"layers=\(4, 6\) must be three numbers"):
        CResNet((4, 6))
    with pytest.raises(ValueError, match=r"layers=\(4, 6, 3\) must be four numbers"):
        RGBResNet((4, 6, 3))


def test_torchvisions_state_dict_is_refused_where_it_would_be_another_network():
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet50(weights=None, num_classes=7, width_per_group=64).state_dict()
    paper = resnet50(num_classes=7)
    before = {name: tensor.clone() for name, tensor in paper.state_dict().items()}
    with pytest.raises(ValueError, match=r"torchvision's has its strides in the 3x3 .* stride_in_1x1=False"):
        paper.load_state_dict(theirs)
    with pytest.raises(ValueError, match="stride_in_1x1=False"):
        cdzoo.models.resnet50_d(num_classes=3).load_classifier(theirs)
    assert all(torch.equal(before[name], tensor) for name, tensor in paper.state_dict().items())
    paper.load_state_dict(dict(theirs))  # nothing tells whose it is
    resnet50(num_classes=7).load_state_dict(paper.state_dict())
    resnet50(num_classes=7, stride_in_1x1=False).load_state_dict(theirs)
