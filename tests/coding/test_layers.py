"""Layers and codecs against what CompressAI made of small random models, and what its layers cannot do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles.make_compressai import EXPECTED, NAMES, outputs_and_gradients, random_codec
from safetensors.torch import load_file

import cdzoo
from cdzoo.coding.layers import (
    GDN,
    EntropyBottleneck,
    GaussianConditional,
    LowerBound,
    gaussian_tables,
    pmf_to_quantized_cdf,
)
from cdzoo.coding.tables import SymbolTables

Part = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, Part]]:
    """Name -> part -> tensors."""
    found: dict[str, dict[str, Part]] = {}
    for key, tensor in load_file(EXPECTED).items():
        name, part, rest = key.split("/")
        found.setdefault(name, {}).setdefault(part, {})[rest] = tensor
    return found


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest, golden: dict[str, dict[str, Part]]) -> tuple[Any, dict[str, Part]]:
    """A codec with recorded weights, and what CompressAI makes of them."""
    expected = golden[request.param]
    codec = cdzoo.get_codec(request.param, N=4, M=6).eval()
    codec.load_compressai(expected["weights"])
    return codec, expected


def assert_tables(tables: SymbolTables, expected: Part) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(getattr(tables, name), array.numpy())


def test_tables(pair: tuple[Any, dict[str, Part]], golden: dict[str, dict[str, Part]]) -> None:
    codec, expected = pair
    assert_tables(codec.entropy_bottleneck.tables(), expected["bottleneck"])
    assert_tables(gaussian_tables(), golden["mbt2018_mean"]["gaussian"])


def test_bytes(pair: tuple[Any, dict[str, Part]]) -> None:
    codec, expected = pair
    strings = [part[0] for part in codec.compressai_strings(expected["images"]["x"] / 255)]
    assert strings == [bytes(tensor.tolist()) for tensor in expected["strings"].values()]
    assert max(map(len, strings)) > 100


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_outputs_and_gradients(mode: str, pair: tuple[Any, dict[str, Part]]) -> None:
    codec, expected = pair
    found = outputs_and_gradients(codec, expected["images"]["x"] / 255, training=mode == "train")
    assert set(found) == set(expected[mode])
    for name, tensor in found.items():
        other = expected[mode][name]
        assert (tensor - other).abs().max() <= 2e-3 * other.abs().max(), name  # machines round differently


def test_initial_values(golden: dict[str, dict[str, Part]]) -> None:
    for name in NAMES:
        for key, tensor in random_codec(name).state_dict().items():
            assert torch.allclose(tensor, golden[name]["weights"][key], rtol=1e-5, atol=1e-6), key


def test_lower_bound_lets_gradients_through_that_lift() -> None:
    x = torch.tensor([0.5, 2.0, 0.5, 2.0], requires_grad=True)
    bounded = LowerBound(1.0)(x)
    assert bounded.tolist() == [1.0, 2.0, 1.0, 2.0]
    bounded.backward(torch.tensor([1.0, 1.0, -1.0, -1.0]))  # descent lowers the first two
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, -1.0, -1.0]


def test_gdn_is_its_equation() -> None:
    torch.manual_seed(0)
    layer, x = GDN(3), torch.randn(1, 3, 2, 2)
    with torch.no_grad():
        layer.gamma.copy_(torch.rand(3, 3) + 0.1)
        beta, gamma = layer.beta_reparam(layer.beta), layer.gamma_reparam(layer.gamma)
        expected = x / torch.sqrt(beta.view(3, 1, 1) + torch.einsum("ij,bjhw->bihw", gamma, x**2))
        assert torch.allclose(layer(x), expected, atol=1e-6)
        back = GDN(3, inverse=True)
        back.load_state_dict(layer.state_dict())
        assert torch.allclose(back(x), x**2 / expected, atol=1e-5)


def test_likelihoods_are_those_of_the_noisy_values() -> None:
    model = GaussianConditional().train()
    y = torch.full((1, 1, 200, 200), 0.3)
    y_hat, likelihoods = model(y, torch.full_like(y, 2.0), torch.full_like(y, 1.0))
    assert (y_hat - y).abs().max() <= 0.5
    assert (y_hat - y).std() == pytest.approx(1 / math.sqrt(12), rel=0.02)
    normal = torch.distributions.Normal(1.0, 2.0)
    assert torch.allclose(likelihoods, normal.cdf(y_hat + 0.5) - normal.cdf(y_hat - 0.5), atol=1e-6)


def test_the_bottlenecks_probabilities_add_up_to_one() -> None:
    torch.manual_seed(0)
    model = EntropyBottleneck(5).eval()
    medians = model.quantiles.detach()[:, 0, 1].view(1, 5, 1)
    with torch.no_grad():
        z_hat, likelihoods = model(torch.arange(-400, 401).float().expand(1, 5, -1) + medians)
    assert torch.allclose(likelihoods.sum(-1), torch.ones(1, 5), atol=1e-3)
    assert torch.equal(z_hat, torch.round(z_hat - medians) + medians)


@pytest.mark.parametrize("training", [True, False])
def test_entropy_models_keep_all_digits_inside_autocast(training: bool) -> None:
    torch.manual_seed(0)
    bottleneck, gaussian = EntropyBottleneck(4).train(training), GaussianConditional().train(training)
    z, y, scales = torch.randn(2, 4, 3, 5) * 9, torch.randn(2, 4, 3, 5) * 90, torch.rand(2, 4, 3, 5) * 40
    for model, given in ((bottleneck, (z,)), (gaussian, (y, scales))):
        torch.manual_seed(1)
        expected = model(*(value.bfloat16().float() for value in given))
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):  # in which convolutions give values of 16 bits
            found = model(*(value.bfloat16() for value in given))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = bottleneck.loss()
    torch.testing.assert_close(found, bottleneck.loss(), rtol=0, atol=0)


@pytest.mark.parametrize("pmf", [[0.5, -0.1], [0.5, math.nan], [math.inf], [0.0, 1e-9], [1.0] * 70000])
def test_what_is_no_distribution_has_no_table(pmf: list[float]) -> None:
    with pytest.raises(ValueError, match=r"probabilities|counts"):
        pmf_to_quantized_cdf(pmf)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compile_and_export(training: bool) -> None:
    z = torch.randn(2, 4, 3, 5)
    layers = ((EntropyBottleneck(4), (z,)), (GaussianConditional(), (z, z.abs(), z + 0.2)), (GDN(4), (z,)))
    for layer, given in layers:
        layer.train(training)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        exported = torch.export.export(layer, given).module()
        torch.manual_seed(0)
        expected = layer(*given)
        for traced in (compiled, exported):
            torch.manual_seed(0)
            found = traced(*given)
            torch.testing.assert_close(found, expected)
