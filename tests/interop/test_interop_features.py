"""Maps of several scales: feature_info says what comes out, and running the stages one by one changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.slow import one_of_each_class
from oracles.small_modules import small
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor

import cdzoo
from cdzoo.codecs import encode_jpeg
from cdzoo.models.classifier import Classifier, selected_stages
from cdzoo.types import Latent

SIZE = (96, 64)
CLASSIFIERS = [name for name in cdzoo.list_models() if not name.endswith(("_d", "_seg"))]


def inputs(model: Any) -> Any:
    """What a network reads, of an image of 96x64 pixels."""
    torch.manual_seed(1)
    if model.origin.builder.startswith("jpeg_"):
        return encode_jpeg(torch.rand(2, 3, *SIZE))
    if model.latent_stride is None:
        return torch.rand(2, model.in_channels, *SIZE)
    shape = (2, model.in_channels, *(n // model.latent_stride for n in SIZE))
    return Latent(torch.randn(shape), torch.rand(shape), SIZE)


def test_every_classifier_is_among_them() -> None:
    built = {name: cdzoo.get_model(name, width=0.0625, num_classes=3) for name in cdzoo.list_models()}
    assert {name for name, model in built.items() if isinstance(model, Classifier)} == set(CLASSIFIERS)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_maps_are_what_feature_info_says(name: str) -> None:
    model: Any = small(name).eval()
    x = inputs(model)
    with torch.no_grad():
        features = model.forward_features(x)
        final, maps = model.forward_intermediates(x)
        alone = model.forward_intermediates(x, [0, -1], intermediates_only=True)
    assert torch.equal(final, features)
    assert len(maps) == len(model.feature_info)
    size = (224, 224) if name == "latent_efficientnet_lite0" else SIZE  # which resizes to the size of the features
    for info, found in zip(model.feature_info, maps, strict=True):
        model.get_submodule(info["module"])
        assert found.shape == (2, info["num_chs"], *(-(-n // info["reduction"]) for n in size)), info
    assert [info["reduction"] for info in model.feature_info] == sorted(
        info["reduction"] for info in model.feature_info
    )
    assert len(alone) == 2
    assert torch.equal(alone[0], maps[0])
    assert torch.equal(alone[1], maps[-1])
    if features.dim() == 4:
        assert torch.equal(maps[-1], features)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_maps_are_what_the_named_modules_put_out(name: str) -> None:
    model: Any = small(name).eval()
    seen: dict[str, Tensor] = {}
    for info in model.feature_info:
        module = model.get_submodule(info["module"])
        module.register_forward_hook(lambda _, __, out, key=info["module"]: seen.__setitem__(key, out.clone()))
    with torch.no_grad():
        maps = model.forward_intermediates(inputs(model), intermediates_only=True)
    for info, found in zip(model.feature_info, maps, strict=True):
        out = seen[info["module"]]
        assert torch.equal(found, out if out.dim() == 4 else out[:, 1:].transpose(1, 2).reshape(found.shape))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_pruned_networks_give_the_same_maps(name: str) -> None:
    model: Any = small(name).eval()
    x = inputs(model)
    last = len(model.feature_info) - 2
    with torch.no_grad():
        (expected,) = model.forward_intermediates(x, [last], intermediates_only=True)
        before = sum(p.numel() for p in model.parameters())
        assert model.prune_intermediate_layers([last]) == [last]
        assert sum(p.numel() for p in model.parameters()) < before
        assert len(model.feature_info) == last + 1
        final, (found,) = model.forward_intermediates(x, 1)
        assert torch.equal(found, expected)
        model.reset_classifier(4)  # a classifier over the last map that is left
        assert model.forward_head(final).shape == (2, 4)


PLAIN = [name for name in cdzoo.list_models() if not name.startswith(("jpeg_", "icat_", "latent_"))]
"""Networks whose layers do not depend on values or sizes, as ``torch.fx`` needs."""


@pytest.mark.parametrize("name", [*one_of_each_class(PLAIN), "channels"])
def test_torchvision_extracts_features(name: str) -> None:
    """``torch.fx`` traces every network over latents or pixels, and what it makes computes the same."""
    model: Any = (
        cdzoo.models.resnet41(width=0.0625, in_channels=8, channels=[3, 1]) if name == "channels" else small(name)
    )
    latent = inputs(model.eval())
    x = (latent.y_hat, latent.scales) if isinstance(latent, Latent) else (latent,)
    last = "backbone.layer3" if hasattr(model, "backbone") else model.feature_info[-2]["module"]
    extractor = create_feature_extractor(model, [last])
    whole = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        caught: list[Tensor] = []
        model.get_submodule(last).register_forward_hook(lambda module, args, output: caught.append(output))
        expected = model(*x)
        assert torch.equal(extractor(*x)[last], caught[0])
        assert torch.equal(whole(*x), expected)


@pytest.mark.parametrize(("name", "pooling"), [("cresnet39", "avg"), ("jpeg_resnet18", "avg"), ("icat_small", "token")])
def test_classifiers_are_reset_as_in_timm(name: str, pooling: str) -> None:
    model: Any = small(name)
    for arguments in ((5,), (6, pooling), (7, None)):
        model.reset_classifier(*arguments)
        assert model.get_classifier().out_features == arguments[0]
    for other in ("max", "", "avgmax"):
        with pytest.raises(ValueError, match=f"global_pool='{other}': this network keeps its pooling, '{pooling}'"):
            model.reset_classifier(5, other)
    assert model.num_classes == 7


@pytest.mark.parametrize("num_classes", [5.0, "5", True, -1, None])
def test_numbers_of_classes(num_classes: Any) -> None:
    for name in ("cresnet39", "resnet50", "cresnet39_d"):
        model: Any = small(name)
        before = model.get_classifier()
        with pytest.raises(ValueError, match="num_classes must be an integer that is not negative, not"):
            model.reset_classifier(num_classes)
        assert model.get_classifier() is before


def test_scales_are_tensors() -> None:
    model: Any = small("fa_cresnet39")
    with pytest.raises(TypeError, match="scales must be a tensor of the shape of y_hat, not list"):
        model(inputs(model).y_hat, [1])


def test_stopping_early_runs_no_more() -> None:
    model: Any = small("resnet50").eval()
    model.layer3.register_forward_hook(lambda *_: pytest.fail("layer3 was run"))
    x = inputs(model)
    final, (found,) = model.forward_intermediates(x, [2], stop_early=True)
    assert final is found
    model.forward_intermediates(x, [2], intermediates_only=True)


def test_scales_of_tensors() -> None:
    model: Any = small("fa_cresnet39").eval()
    latent = inputs(model)
    ours = model.forward_intermediates(latent.y_hat, 2, intermediates_only=True, scales=latent.scales)
    for a, b in zip(ours, model.forward_intermediates(latent, 2, intermediates_only=True), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="standard deviations"):
        model.forward_intermediates(latent.y_hat)


def test_tokens_as_maps_or_lists() -> None:
    model: Any = small("icat_small").eval()
    x = inputs(model)
    with torch.no_grad():
        tokens = model.forward_features(x)
        _, (grid,) = model.forward_intermediates(x, 1, norm=True)
        _, (listed,) = model.forward_intermediates(x, 1, norm=True, output_fmt="NLC")
    assert torch.equal(listed, tokens[:, 1:])
    assert torch.equal(grid.flatten(2).transpose(1, 2), listed)
    with pytest.raises(ValueError, match="NHWC"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_coefficient_maps_hold_the_same_pixels() -> None:
    fused: Any = cdzoo.models.jpeg_resnet18(width=0.0625, num_classes=3).double().eval()
    factored: Any = cdzoo.models.jpeg_resnet18(width=0.0625, num_classes=3, mode="factored").double().eval()
    factored.load_state_dict(fused.state_dict())
    x = inputs(fused)
    with torch.no_grad():
        expected = fused.forward_intermediates(x, intermediates_only=True)
        for a, b in zip(factored.forward_intermediates(x, intermediates_only=True), expected, strict=True):
            torch.testing.assert_close(a.pixels(), b, rtol=0, atol=1e-9)


def test_segmenters_backbones_know_their_stride() -> None:
    model: Any = cdzoo.models.cresnet39_d(width=0.0625, in_channels=8, num_classes=3).eval()
    assert [info["reduction"] for info in model.backbone.feature_info] == [8, 8, 8]
    _, maps = model.backbone.forward_intermediates(torch.randn(1, 8, 12, 8))
    assert {tuple(found.shape[2:]) for found in maps} == {(12, 8)}


def test_indices_are_timms() -> None:
    from timm.models._features import feature_take_indices

    for indices in (None, 1, 3, [0, -1], [2, 1], (4,)):
        assert selected_stages(indices, 5) == feature_take_indices(5, indices)[0]
    for indices in (0, 6, [5], [-6], []):
        with pytest.raises(ValueError, match="5 stages"):
            selected_stages(indices, 5)


@pytest.mark.slow
def test_features_compile_and_export() -> None:
    class Backbone(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> list[Tensor]:
            maps: list[Tensor] = self.model.forward_intermediates(x, [1, 2], intermediates_only=True)
            return maps

    model: Any = small("jpeg_resnet18").eval()
    x, backbone = inputs(model), Backbone(model)
    expected = backbone(x)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)(x)
    exported = torch.export.export(backbone, (x,)).module()(x)
    for a, b, c in zip(expected, compiled, exported, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
