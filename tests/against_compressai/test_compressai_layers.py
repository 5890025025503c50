"""Layers against CompressAI's: the same initial values, tables, outputs and gradients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles.compressai_models import entropy_models, pmf_to_quantized_cdf, theirs
from torch import Tensor, nn

from cdzoo.coding import layers
from cdzoo.coding.tables import SymbolTables

pytestmark = pytest.mark.compressai


def same_tables(ours: SymbolTables, model: nn.Module) -> bool:
    other = SymbolTables.from_padded(model._quantized_cdf, model._cdf_length, model._offset).state()
    return all(np.array_equal(array, other[name]) for name, array in ours.state().items())


def same_state(ours: nn.Module, model: nn.Module) -> bool:
    tables = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
    other = {name: tensor for name, tensor in model.state_dict().items() if name not in tables}
    own = ours.state_dict()
    return list(own) == list(other) and all(torch.equal(tensor, other[name]) for name, tensor in own.items())


def run(module: nn.Module, *inputs: Tensor | None) -> list[Tensor]:
    """Outputs, and the gradients of what goes in and of all parameters, with the same noise each time."""
    torch.manual_seed(1)
    given = [None if x is None else x.clone().requires_grad_() for x in inputs]
    found = module(*given)
    outputs = found if isinstance(found, tuple) else (found,)
    loss = sum(((1 + i) * output.sin()).sum() for i, output in enumerate(outputs))
    leaves = [*(x for x in given if x is not None), *(p for p in module.parameters() if p.shape[-1:] != (3,))]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [*outputs, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn(inverse: bool) -> None:
    ours, model = layers.GDN(6, inverse=inverse), theirs.GDN(6, inverse=inverse)
    assert same_state(ours, model)
    with torch.no_grad():
        ours.gamma.add_(0.05 * torch.randn(6, 6))  # some fall below the bound
        ours.beta[0] = 0.0
    model.load_state_dict(ours.state_dict())
    x = 3 * torch.randn(2, 6, 5, 7)
    found, expected = run(ours, x), run(model, x)
    assert len(found) == 4
    assert all(map(torch.equal, found, expected))


def test_convolutions() -> None:
    for ours, model in ((layers.conv, theirs.conv), (layers.deconv, theirs.deconv)):
        for options in ({}, {"kernel_size": 3, "stride": 1}):
            torch.manual_seed(0)
            one = ours(3, 4, **options)
            torch.manual_seed(0)
            other = model(3, 4, **options)
            assert same_state(one, other)
            assert torch.equal(one(torch.ones(1, 3, 9, 7)), other(torch.ones(1, 3, 9, 7)))


@pytest.mark.parametrize("channels", [3, 192, 320])
def test_entropy_bottleneck(channels: int) -> None:
    torch.manual_seed(channels)
    ours = layers.EntropyBottleneck(channels)
    torch.manual_seed(channels)
    model = entropy_models.EntropyBottleneck(channels)
    assert same_state(ours, model)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        ours.quantiles.mul_(1 + 2 * torch.rand_like(ours.quantiles))
    model.load_state_dict({**model.state_dict(), **ours.state_dict()})
    model.update(force=True)
    assert same_tables(ours.tables(), model)
    z = 8 * torch.randn(2, channels, 3, 5)
    for training in (True, False):
        found, expected = run(ours.train(training), z), run(model.train(training), z)
        assert all(map(torch.equal, found, expected))
    losses = [torch.autograd.grad(bottleneck.loss(), bottleneck.quantiles) for bottleneck in (ours, model)]
    assert torch.equal(ours.loss(), model.loss())
    assert torch.equal(*(loss[0] for loss in losses))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_means", [True, False])
def test_gaussian_conditional(with_means: bool, training: bool) -> None:
    ours, model = layers.GaussianConditional().train(training), entropy_models.GaussianConditional(None).train(training)
    assert same_state(ours, model)
    y, scales = 20 * torch.randn(2, 6, 4, 5), 3 * torch.randn(2, 6, 4, 5)  # some scales are below the bound
    means = torch.randn(2, 6, 4, 5) if with_means else None
    found, expected = run(ours, y, scales, means), run(model, y, scales, means)
    assert len(found) == (5 if with_means else 4)
    assert all(map(torch.equal, found, expected))


def test_gaussian_tables() -> None:
    model = entropy_models.GaussianConditional(None)
    model.update_scale_table(theirs.get_scale_table())
    assert torch.equal(layers.scale_table(), model.scale_table)
    assert same_tables(layers.gaussian_tables(), model)


def test_counts_of_probabilities() -> None:
    rng = np.random.default_rng(0)
    zeros = 0
    for _ in range(2000):
        pmf = rng.exponential(size=rng.integers(1, 400)) ** rng.integers(1, 12)
        pmf = (pmf / pmf.sum() * rng.choice([0.2, 1.0, 3.0])).astype(np.float32)
        cdf = layers.pmf_to_quantized_cdf(pmf)
        assert cdf.tolist() == list(pmf_to_quantized_cdf(pmf.tolist(), 16))
        assert all(a < b for a, b in pairwise(cdf.tolist()))
        zeros += int((pmf * 65536 < 0.5).sum())
    assert zeros > 1000
