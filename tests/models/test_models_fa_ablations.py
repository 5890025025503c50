"""Table 3 of FA-cResNet (Deng & Karam): each variant differs from the network in what its row says, and in no more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cdzoo
from cdzoo.models import fa_cresnet39, fa_cresnet39_ablation, fa_resnet50
from cdzoo.ops import ChannelAttention, FeatureAdaptation

SMALL = {"width": 0.0625, "num_classes": 3, "in_channels": 12}
CHANGES: list[dict[str, object]] = [
    {"use_scales": False},
    {"parts": "attention"},
    {"parts": "enhancement"},
    {"fa_position": "post"},
    *({"pooling": pooling} for pooling in ("max", "avg", "max+avg", "shared")),
    *({"position": position} for position in ("skip", "inner", "post")),
    *({"transform": transform} for transform in ("scale", "bias")),
    *({"reduction": reduction} for reduction in ("1fc", 1, 2, 4, 8, 32, 64)),
    *({"num_convs": convs} for convs in ((2, 2, 2), (1, 2, 3), (4, 5, 6))),
]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_without_changes_it_is_the_network_itself():
    torch.manual_seed(0)
    network = fa_cresnet39(**SMALL).eval()
    ablation = fa_cresnet39_ablation(**SMALL).eval()
    ablation.load_state_dict(network.state_dict())
    y_hat, scales = torch.randn(2, 12, 9, 9), torch.rand(2, 12, 9, 9)
    assert torch.equal(ablation(y_hat, scales), network(y_hat, scales))


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_row_runs_and_trains(change):
    network = fa_cresnet39_ablation(**SMALL, **change)
    inputs = (torch.randn(2, 12, 9, 9), torch.rand(2, 12, 9, 9))[: 1 if change == {"use_scales": False} else 2]
    network(*inputs).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_pretrained_layers_find_their_places(change):
    state = cdzoo.models.resnet50(width=0.0625, num_classes=3, stride_in_1x1=False).state_dict()
    network = fa_cresnet39_ablation(**SMALL, **change)
    names = network.init_from_resnet50(state)
    assert {name.split(".")[0] for name in names} == {"layer2", "layer3", "layer4", "fc"}
    assert not any(".fa." in name for name in names)


def test_parameters_of_the_full_network_change_as_the_rows_say():
    with torch.device("meta"):
        full = count(fa_cresnet39_ablation())
        assert full == 43_988_727 == count(fa_cresnet39())
        units = [m.attention for m in fa_cresnet39_ablation().modules() if isinstance(m, FeatureAdaptation)]
        sizes = [unit.weight_mlp[0].in_features for unit in units]
        assert sorted(sizes) == [192, 192, 1024, 2048]
        pool = sum(c + 1 for c in sizes)
        assert count(fa_cresnet39_ablation(pooling="shared")) == full - pool
        assert count(fa_cresnet39_ablation(pooling="avg")) == full - 2 * pool
        assert count(fa_cresnet39_ablation(pooling="max+avg")) == full - 2 * pool
        mlp = sum(count(unit.weight_mlp) for unit in units)
        assert count(fa_cresnet39_ablation(transform="scale")) == full - pool - mlp
        assert count(fa_cresnet39_ablation(transform="bias")) == full - pool - mlp
        assert count(fa_cresnet39_ablation(reduction="1fc")) == full - 2 * mlp + 2 * sum(c * c + c for c in sizes)
        assert count(fa_cresnet39_ablation(position="skip")) == full
        assert count(fa_cresnet39_ablation(parts="enhancement")) == full - 2 * (pool + mlp)


def test_position_of_the_modules():
    before, after = fa_cresnet39_ablation(**SMALL), fa_cresnet39_ablation(**SMALL, fa_position="post")
    assert [list(dict(stage.named_children())) for stage in (before.layer2, before.layer3, before.layer4)] == [
        ["1", "2", "3"], ["0", "fa", "1", "2", "3", "4", "5"], ["0", "fa", "1", "2"]
    ]  # fmt: skip
    assert [list(dict(stage.named_children())) for stage in (after.layer2, after.layer3, after.layer4)] == [
        ["1", "2", "3", "fa"], ["0", "1", "2", "3", "4", "5", "fa"], ["0", "1", "2", "fa"]
    ]  # fmt: skip


@pytest.mark.parametrize("pooling", ["max", "avg", "max+avg", "shared"])
@pytest.mark.parametrize("transform", ["affine", "scale", "bias"])
def test_variants_of_the_attention_unit(pooling, transform):
    torch.manual_seed(0)
    unit = ChannelAttention(8, pooling=pooling, transform=transform).double()
    f = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    flat = f.flatten(2)
    vectors = {"max": [flat.amax(2)], "avg": [flat.mean(2)], "max+avg": [flat.amax(2), flat.mean(2)]}.get(pooling)
    if vectors is None:
        k = torch.softmax((unit.pool.conv.weight.flatten() @ flat), -1)
        vectors = [(flat * k[:, None]).sum(2)]
    w, b = torch.ones(2, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64)
    if transform != "bias":
        w = torch.sigmoid(torch.stack([unit.weight_mlp(v) for v in vectors]).sum(0))
    if transform != "scale":
        b = torch.stack([unit.bias_mlp(v) for v in vectors]).sum(0)
    torch.testing.assert_close(unit(f), w[..., None, None] * f + b[..., None, None], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("position", ["pre", "skip", "inner", "post"])
def test_positions_of_the_attention_unit(position):
    torch.manual_seed(0)
    module = FeatureAdaptation(6, 8, num_convs=1, position=position).double().eval()
    f = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    a, feu = module.attention, module.enhancement
    expected = {
        "pre": lambda: feu.enhanced(a(f)) + feu.skip(a(f)),
        "skip": lambda: feu.enhanced(f) + feu.skip(a(f)),
        "inner": lambda: a(feu.enhanced(f)) + feu.skip(f),
        "post": lambda: a(feu.enhanced(f) + feu.skip(f)),
    }[position]()
    torch.testing.assert_close(module(f), expected.clamp(min=0))


def test_units_alone():
    attention = FeatureAdaptation(8, 8, num_convs=1, parts="attention")
    f = torch.randn(2, 8, 4, 5)
    assert torch.equal(attention(f), attention.attention(f))
    assert FeatureAdaptation(6, 8, num_convs=1, parts="attention")(f[:, :6]).shape == (2, 8, 4, 5)
    enhancement = FeatureAdaptation(8, 8, num_convs=1, parts="enhancement").eval()
    assert torch.equal(enhancement(f), enhancement.enhancement(f))


def test_pixel_network_with_adaptation():
    network, plain = fa_resnet50(width=0.0625, num_classes=3), cdzoo.models.resnet50(width=0.0625, num_classes=3)
    assert network(torch.rand(2, 3, 64, 48)).shape == (2, 3)
    added = {name for name, _ in network.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert {name.rpartition(".fa.")[0] for name in added} == {"layer1", "layer2", "layer3", "layer4"}
    # what is not added keeps its name
    assert {name for name, _ in plain.named_parameters()} <= {name for name, _ in network.named_parameters()}
    assert [len(network.get_submodule(f"layer{i}").fa.enhancement.convs) for i in (1, 2, 3, 4)] == [2, 3, 4, 5]


def test_options_that_are_none():
    for change in (
        {"pooling": "sum"}, {"transform": "linear"}, {"position": "before"}, {"parts": "none"}, {"fa_position": "mid"},
        {"reduction": 0}, {"reduction": "2fc"}, {"num_convs": (1, 2)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(change))):
            fa_cresnet39_ablation(**SMALL, **change)
    with pytest.raises(ValueError, match="must be 4 integers, for layers 1 to 4"):
        fa_resnet50(num_convs=(1, 2, 3))
