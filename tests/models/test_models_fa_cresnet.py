"""FA-cResNet-39 and its attention (Deng & Karam): the paper's numbers and equations, its two stages, the contract."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cdzoo.errors import WeightsError
from cdzoo.models import fa_cresnet39
from cdzoo.models.fa_cresnet import FAcResNet
from cdzoo.ops import ChannelAttention, FeatureAdaptation, FeatureEnhancement
from cdzoo.ops.feature_adaptation import AttentionPool2d
from cdzoo.types import Latent

SMALL = {"width": 0.125, "in_channels": 6, "num_classes": 5, "num_convs": (1, 1, 1)}
TABLE_2 = {  # quality of bmshj2018-hyperprior: arguments, parameters, 10^9 multiply-adds, 10^6 bytes of pass size
    1: ({"in_channels": 192, "num_convs": (2, 3, 4)}, 38_888_475, 4.533, 107.81),
    4: ({"in_channels": 192, "num_convs": (3, 4, 5)}, 41_986_854, 4.880, 110.63),
    8: ({"in_channels": 320, "num_convs": (3, 4, 5)}, 42_103_302, 4.945, 110.63),
}


@pytest.fixture
def small():
    torch.manual_seed(0)
    return fa_cresnet39(**SMALL).eval()


def randomize(model):
    """Batch norms that a swap or an omission would show."""
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if tensor.is_floating_point() and ("running" in name or "bn" in name):
            tensor.data.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def torchvision_state():
    torch.manual_seed(1)
    return randomize(torchvision.models.resnet50(weights=None, num_classes=23)).state_dict()


# -- table 2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", TABLE_2)
def test_parameters_multiply_adds_and_pass_size_of_table_2(quality):
    """Pass size by torchinfo's rule: outputs of all leaf modules with parameters, 4 bytes, once for each direction."""
    arguments, parameters, giga_macs, mega_bytes = TABLE_2[quality]
    pass_bytes = 0

    def add_output(module, inputs, output):
        nonlocal pass_bytes
        pass_bytes += 2 * 4 * output.numel()

    with torch.device("meta"):
        model = fa_cresnet39(num_classes=23, **arguments).eval()
        for module in model.modules():
            if not list(module.children()) and list(module.parameters()):
                module.register_forward_hook(add_output)
        with FlopCounterMode(display=False) as counter:
            model(*torch.empty(2, 1, model.in_channels, 28, 28))
    flops = counter.get_flop_counts()["Global"]
    macs = (flops[torch.ops.aten.convolution] + flops[torch.ops.aten.addmm]) // 2
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert round(macs / 1e9, 3) == giga_macs
    assert round(pass_bytes / 1e6, 2) == mega_bytes


@pytest.mark.parametrize(("quality", "parameters"), [(1, 40_890_348), (4, 43_988_727), (8, 44_105_175)])
def test_parameters_with_1000_classes(quality, parameters):
    with torch.device("meta"):
        model = fa_cresnet39(**TABLE_2[quality][0])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_adaptation_stands_behind_block_0():
    with torch.device("meta"):
        model = fa_cresnet39()
    assert list(model.layer2._modules) == ["1", "2", "3"]
    assert list(model.layer3._modules) == ["0", "fa", "1", "2", "3", "4", "5"]
    assert list(model.layer4._modules) == ["0", "fa", "1", "2"]
    strides = [model.get_submodule(f"layer{i}.0").conv2.stride for i in (3, 4)]
    assert strides == [(2, 2), (2, 2)]
    hidden = [
        fa.enhancement.reduce[0].out_channels
        for fa in (model.fa_y_hat, model.layer3.fa, model.layer4.fa, model.fa_scales)
    ]
    assert hidden == [128, 256, 512, 1]
    assert [len(fa.enhancement.convs) for fa in (model.fa_scales, model.layer3.fa, model.layer4.fa)] == [3, 4, 5]


# -- section 4.1 -------------------------------------------------------------------------------------------------------


def test_attention_pooling_is_equation_5():
    torch.manual_seed(0)
    pool, f = AttentionPool2d(3).double(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for image in range(2):
        logits = {
            (i, j): math.fsum((pool.conv.weight[0, :, 0, 0] * f[image, :, i, j]).tolist())
            for i in range(4)
            for j in range(5)
        }  # the convolution's bias cancels in the softmax
        total = math.fsum(math.exp(value) for value in logits.values())
        for (i, j), value in logits.items():
            expected[image] += math.exp(value) / total * f[image, :, i, j]
    torch.testing.assert_close(pool(f), expected, rtol=1e-12, atol=1e-12)


def test_attention_pooling_lies_between_average_and_maximum():
    pool, f = AttentionPool2d(1).double(), torch.randn(2, 1, 4, 5, dtype=torch.float64)
    nn.init.zeros_(pool.conv.weight)
    torch.testing.assert_close(pool(f), f.mean((2, 3)))
    nn.init.constant_(pool.conv.weight, 1e4)
    torch.testing.assert_close(pool(f), f.amax((2, 3)))


def test_channel_attention_is_equations_2_to_4():
    torch.manual_seed(0)
    attention, f = ChannelAttention(96).double(), torch.randn(2, 96, 3, 4, dtype=torch.float64)

    def branch(pool, mlp):
        first, norm, _, second = mlp
        assert first.out_features == 6
        hidden = pool(f) @ first.weight.T + first.bias
        hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
        return hidden.clamp(min=0) @ second.weight.T + second.bias

    w = 1 / (1 + torch.exp(-branch(attention.weight_pool, attention.weight_mlp)))
    b = branch(attention.bias_pool, attention.bias_mlp)
    expected = torch.einsum("bc,bchw->bchw", w, f) + b.reshape(2, 96, 1, 1)
    torch.testing.assert_close(attention(f), expected, rtol=1e-10, atol=1e-10)


def test_channel_attention_keeps_four_hidden_units():
    assert ChannelAttention(32).weight_mlp[0].out_features == 4
    assert ChannelAttention(192).weight_mlp[0].out_features == 12
    assert ChannelAttention(192, reduction=2).bias_mlp[0].out_features == 96


@pytest.mark.parametrize(("in_channels", "projected"), [(8, False), (6, True)])
def test_feature_enhancement_is_a_residual_unit(in_channels, projected):
    torch.manual_seed(0)
    unit = FeatureEnhancement(in_channels, 8, num_convs=3).eval()
    nn.init.zeros_(unit.expand[1].weight)  # silences the branch, so that the skip connection is left
    f = torch.randn(2, in_channels, 4, 5)
    assert isinstance(unit.skip, nn.Sequential) is projected
    assert torch.equal(unit(f), unit.skip(f).clamp(min=0))
    receptive = torch.zeros(1, in_channels, 15, 15, requires_grad=True)
    nn.init.ones_(unit.expand[1].weight)
    unit.double()(receptive.double() + 1.0)[0, :, 7, 7].sum().backward()
    touched = receptive.grad.abs().sum(1)[0].nonzero()
    assert touched.amin().item() >= 7 - 3
    assert touched.amax().item() <= 7 + 3


def test_gradients_of_the_adaptation_module():
    torch.manual_seed(0)
    module = FeatureAdaptation(5, 8, num_convs=1).double().eval()
    f = torch.randn(1, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (f,))


# -- section 4.2 -------------------------------------------------------------------------------------------------------


def test_init_from_resnet50_copies_layers_2_to_4_and_fc(torchvision_state):
    model = fa_cresnet39(in_channels=8, num_classes=23)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    filled = model.init_from_resnet50(torchvision_state)
    after = model.state_dict()
    # a block has 3 convolutions and 3 batch norms of 5 tensors, the two blocks 0 also a shortcut of 6, fc 2
    assert len(filled) == len(set(filled)) == (3 + 6 + 3) * 18 + 2 * 6 + 2
    assert all(torch.equal(after[name], torchvision_state[name]) for name in filled)
    assert all(torch.equal(after[name], before[name]) for name in before if name not in filled)
    unused = {name for name in torchvision_state if name not in filled}
    assert all(name.startswith(("conv1.", "bn1.", "layer1.", "layer2.0.")) for name in unused)
    rest = {name.rsplit(".", 1)[0].split("attention")[0].split("enhancement")[0] for name in set(after) - set(filled)}
    assert rest == {"fa_y_hat.", "fa_scales.", "fusion.0", "fusion.1", "layer3.fa.", "layer4.fa."}


def test_initialized_stages_compute_what_the_resnet_computes(torchvision_state):
    """With the adaptation modules out of the way, layers 2 (from block 1) to 4 and fc are ResNet-50's."""
    theirs = torchvision.models.resnet50(weights=None, num_classes=23).eval()
    theirs.load_state_dict(torchvision_state)
    ours = fa_cresnet39(in_channels=8, num_classes=23).eval()
    ours.init_from_resnet50(torchvision_state)
    ours.layer3.fa, ours.layer4.fa = nn.Identity(), nn.Identity()
    x = torch.rand(1, 512, 8, 8)
    with torch.no_grad():
        expected = theirs.fc(theirs.avgpool(theirs.layer4(theirs.layer3(theirs.layer2[1:](x)))).flatten(1))
        assert torch.equal(ours.forward_head(ours.layer4(ours.layer3(ours.layer2(x)))), expected)


def test_init_from_resnet50_is_all_or_nothing(torchvision_state):
    model = fa_cresnet39(in_channels=8, num_classes=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"fc\.weight has shape \(23, 2048\).*needs \(10, 2048\).*classifier=False"):
        model.init_from_resnet50(torchvision_state)
    incomplete = {name: tensor for name, tensor in torchvision_state.items() if not name.startswith("layer4.2.bn3")}
    with pytest.raises(WeightsError, match=r"4 of 227 tensors.*'layer4\.2\.bn3\.weight'"):
        model.init_from_resnet50(incomplete, classifier=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(model.init_from_resnet50(torchvision_state, classifier=False)) == 228
    with pytest.raises(WeightsError, match=r"layer2\.1\.conv1\.weight.*the other's width"):
        fa_cresnet39(**SMALL).init_from_resnet50(torchvision_state, classifier=False)


def changed_after_a_step(model, groups):
    """Names in the state dict that one step of training moved; weight decay moves what has a gradient of 0 as well."""
    torch.manual_seed(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1)
    model(torch.randn(4, 6, 8, 8), torch.rand(4, 6, 8, 8)).square().sum().backward()
    optimizer.step()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("classifier", [True, False])
def test_stage_1_trains_the_adaptation_modules_alone(small, classifier):
    """Parameters and batch norm statistics of everything else stay, whatever order train() is called in."""
    small.freeze_pretrained(classifier=classifier)
    small.train()
    changed = changed_after_a_step(small, small.parameter_groups(1, classifier=classifier))
    trained = {name for name in small.state_dict() if name.startswith(("fa_", "fusion.")) or ".fa." in name}
    assert changed == (trained if classifier else trained | {"fc.weight", "fc.bias"})


def test_stage_2_trains_everything(small):
    small.train().freeze_pretrained()
    assert not small.layer3.get_submodule("0").bn1.training
    small.unfreeze()
    groups = small.parameter_groups(2)
    assert [group["name"] for group in groups] == ["adaptation", "pretrained"]
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(small.parameters()))
    assert changed_after_a_step(small, groups) == set(small.state_dict())
    with pytest.raises(ValueError, match=r"stage must be 1 .* or 2 .*, got 3"):
        small.parameter_groups(3)


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (9, 4), (28, 28)])
def test_any_latent_size(small, size):
    y_hat, scales = torch.randn(2, 6, *size), torch.rand(2, 6, *size)
    with torch.no_grad():
        features, logits = small.forward_features(y_hat, scales), small(y_hat, scales)
    assert features.shape == (2, small.num_features, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert torch.equal(logits, small.forward_head(features))
    assert torch.equal(logits, small(Latent(y_hat, scales, (16 * size[0], 16 * size[1]))))


def test_each_image_is_judged_alone(small):
    y_hat, scales = torch.randn(3, 6, 5, 4), torch.rand(3, 6, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(small(y_hat, scales)[1:2], small(y_hat[1:2], scales[1:2]), rtol=1e-4, atol=1e-5)


def test_wrong_inputs_are_refused(small):
    y_hat = torch.randn(2, 6, 5, 4)
    assert small.uses_scales
    with pytest.raises(ValueError, match=r"reads \(B, 6, h, w\)"):
        small(torch.randn(2, 192, 5, 4), torch.rand(2, 192, 5, 4))
    with pytest.raises(ValueError, match="got none"):
        small(y_hat)
    with pytest.raises(ValueError, match="must be equal"):
        small(y_hat, torch.rand(1, 6, 5, 4))
    with pytest.raises(ValueError, match=r"num_convs=\(3, 4\) must be 3 integers, for layers 2 to 4"):
        FAcResNet(num_convs=(3, 4))
    with pytest.raises(ValueError, match=r"num_convs=-1 must not be negative"):
        FAcResNet(num_convs=(3, 4, -1), width=0.125)


def test_state_dict_round_trip(small):
    other = fa_cresnet39(**SMALL).eval()
    other.load_state_dict(small.state_dict(), strict=True)
    y_hat, scales = torch.randn(1, 6, 3, 3), torch.rand(1, 6, 3, 3)
    assert torch.equal(other(y_hat, scales), small(y_hat, scales))


def test_width_leaves_the_scales_branch_alone():
    with torch.device("meta"):
        model = fa_cresnet39(width=0.25, in_channels=64, num_classes=10)
    assert (model.num_features, model.latent_stride, model.in_channels) == (512, 16, 64)
    assert model.fa_scales.enhancement.expand[0].weight.shape == (4, 1, 1, 1)
    assert model.fusion[0].weight.shape == (128, 132, 1, 1)
    assert model.fa_y_hat.attention.weight_mlp[0].out_features == 4


def test_attention_starts_near_the_average_of_a_raw_latent() -> None:
    # a saturated softmax looks at one position in 784, and the network hardly learns
    torch.manual_seed(0)
    pools = [m for m in fa_cresnet39(in_channels=64, num_classes=3, width=0.125).modules()
             if isinstance(m, AttentionPool2d)]  # fmt: skip
    assert len(pools) == 8
    for pool in pools:
        f = 10 * torch.randn(4, pool.conv.in_channels, 28, 28)
        share = pool.conv(f).detach().flatten(2).softmax(-1).amax(-1)
        assert float(share.max()) < 0.25
