"""The networks of Ehrlich & Davis over coefficients: equal in every mode, torchvision's weights, and the contract."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import cdzoo
from cdzoo.errors import WeightsError
from cdzoo.jpeg.nn.entrance import explicit_bytes
from cdzoo.jpeg.pixels import decode_jpeg, encode_jpeg
from cdzoo.models.jpeg_resnet import jpeg_resnet18, jpeg_resnet50, jpeg_resnet_small
from cdzoo.types import JPEGCoefficients

MODES = ("fused", "factored", "explicit")
SMALL = {"num_classes": 10, "width": 0.5}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def files(*size: int, batch: int = 2, channels: int = 3) -> JPEGCoefficients:
    return encode_jpeg(torch.rand(batch, channels, *size))


def test_they_are_registered() -> None:
    assert cdzoo.list_models("jpeg_resnet*") == ["jpeg_resnet18", "jpeg_resnet50", "jpeg_resnet_small"]


def test_small_ends_in_one_block_of_32_pixels() -> None:
    model = jpeg_resnet_small(num_classes=10)
    assert model.forward_features(files(32, 32)).shape == (2, 64, 8, 8)
    # 3x3, 3x3 and 1x1 convolutions of each block, batch norm after each, and the classifier
    widths = [3, 16, 32, 64]
    blocks = sum(9 * i * o + 9 * o * o + i * o + 6 * o for i, o in pairwise(widths))
    assert sum(p.numel() for p in model.parameters()) == blocks + 64 * 10 + 10


def test_small_explicit_maps_fit_the_default_budget_at_32_pixels() -> None:
    model = jpeg_resnet_small(mode="explicit")
    c = files(32, 32)
    model.entrance.check_memory(model, c)
    assert round(explicit_bytes(model, c) / 2**30, 2) == 2.94
    with pytest.raises(MemoryError, match="64x64 px"):
        model.forward_features(files(64, 64))


@pytest.mark.parametrize("size", [(16, 16), pytest.param((13, 18), marks=pytest.mark.slow)], ids=str)
def test_small_is_one_function_in_every_mode(size: tuple[int, int]) -> None:
    models = {mode: jpeg_resnet_small(mode=mode, **SMALL).double() for mode in MODES}
    for model in models.values():
        model.load_state_dict(models["fused"].state_dict())
    c, labels = files(*size), torch.tensor([1, 7])
    for training in (True, False):
        outputs = {mode: model.train(training)(c) for mode, model in models.items()}
        for mode in MODES:
            torch.testing.assert_close(outputs[mode], outputs["fused"], rtol=0, atol=1e-11)
    for model in models.values():
        F.cross_entropy(model.train()(c), labels).backward()
    for mode in MODES:
        for name, parameter in models[mode].named_parameters():
            expected = models["fused"].get_parameter(name).grad
            torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("relu", ["asm", "apx"])
def test_small_trains_with_an_approximated_relu(relu: str) -> None:
    model = jpeg_resnet_small(mode="factored", relu=relu, num_frequencies=6, **SMALL)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    c, labels = files(32, 32, batch=4), torch.arange(4)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(c), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_small_reads_floating_point_coefficients() -> None:
    """The paper's "losslessly compressed" inputs: nothing rounded, tables of ones."""
    c = files(16, 16)
    exact = c._replace(
        planes=tuple(plane * c.qtables[:, k, None, None].float() for k, plane in enumerate(c.planes)),
        qtables=torch.ones_like(c.qtables),
    )
    for mode in MODES:
        model = jpeg_resnet_small(mode=mode, **SMALL).eval()
        torch.testing.assert_close(model(exact), model(c), rtol=1e-4, atol=1e-5)


def test_luma_networks_read_gray_files() -> None:
    model = jpeg_resnet_small(in_channels=1, **SMALL)
    assert model(files(32, 32, channels=1)).shape == (2, 10)


@pytest.mark.parametrize("mode", ["fused", "factored"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights(name: str, mode: str) -> None:
    pixel = getattr(torchvision.models, name)().eval()
    model = {"resnet18": jpeg_resnet18, "resnet50": jpeg_resnet50}[name](mode=mode).eval()
    model.load_torchvision(pixel.state_dict())
    assert model.state_dict().keys() == pixel.state_dict().keys()
    c = files(65, 48, batch=1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = pixel((decode_jpeg(c, clamp=False, chroma="nearest") - mean) / std)
        assert (model(c) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_checkpoints_from_before_batches_were_counted() -> None:
    pixel, model = torchvision.models.resnet18(), jpeg_resnet18()
    state = {name: value for name, value in pixel.state_dict().items() if not name.endswith("num_batches_tracked")}
    pixel.load_state_dict(state)  # PyTorch takes them
    model.load_torchvision(state)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in pixel.state_dict().items())


def test_torchvision_weights_load_in_full_or_not_at_all() -> None:
    model = jpeg_resnet18(num_classes=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"fc\.bias is \(1000,\) instead of \(10,\).*reset_classifier"):
        model.load_torchvision(torchvision.models.resnet18().state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("builder", [jpeg_resnet_small, jpeg_resnet18, jpeg_resnet50])
def test_classifier_contract(builder) -> None:  # type: ignore[no-untyped-def]
    model = builder(num_classes=7, width=0.125).eval()
    c = files(40, 40)
    features = model.forward_features(c)
    assert features.shape[:2] == (2, model.num_features)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    torch.testing.assert_close(model(c), model.get_classifier()(pooled))
    model.reset_classifier(3)
    assert model(c).shape == (2, 3)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="relu='asm'"):
        jpeg_resnet18(relu="asm")
    with pytest.raises(ValueError, match="channels=4"):
        jpeg_resnet_small(in_channels=4)
    with pytest.raises(TypeError):
        jpeg_resnet18(num_class=10)  # type: ignore[call-arg]
