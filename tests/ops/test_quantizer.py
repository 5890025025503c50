"""Soft-to-hard quantization: hard values, soft gradients, and an entropy that is a histogram's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cdzoo.ops import SoftToHardQuantizer, nearest_center, soft_to_hard, soft_to_hard_entropy, target_entropy_loss


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 1.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softly(y: torch.Tensor, centers: torch.Tensor, sigma: float) -> torch.Tensor:
    """The weights of the centers as the definition writes them, ``(n, L)``."""
    weights = torch.stack([torch.exp(-sigma * (y.flatten() - c) ** 2) for c in centers], 1)
    return weights / weights.sum(1, keepdim=True)


def histogram_entropy(symbols: np.ndarray) -> float:
    _, counts = np.unique(symbols, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


@pytest.mark.parametrize("centers", [[-1.5, -0.5, 0.25, 2.0], [0.25, 2.0, -1.5, -0.5], [0.0, 1.0]])
def test_values_are_the_nearest_centers(centers: list[float]) -> None:
    y, c = draw(2, 3, 4, 5), torch.tensor(centers)
    y_hat = soft_to_hard(y, c.requires_grad_())
    expected = c.detach()[(y.unsqueeze(-1) - c.detach()).abs().argmin(-1)]
    assert torch.equal(y_hat, expected)
    with torch.no_grad():
        assert torch.equal(soft_to_hard(y, c), expected)
    assert torch.equal(c.detach()[nearest_center(y, c)], expected)


def test_of_two_equally_near_centers_the_smaller_is_taken() -> None:
    y = torch.tensor([-2.0, 0.5, 1.5, float("inf"), -float("inf")])
    assert nearest_center(y, torch.tensor([2.0, 1.0, 0.0])).tolist() == [2, 2, 1, 0, 2]


@pytest.mark.parametrize("sigma", [0.7, 3.0])
def test_gradients_are_those_of_the_soft_mean(sigma: float) -> None:
    y, c = draw(40, dtype=torch.float64), torch.tensor([-1.0, 0.3, 0.9], dtype=torch.float64)
    upstream = draw(40, seed=1, dtype=torch.float64)
    found = torch.autograd.grad(soft_to_hard(y.requires_grad_(), c.requires_grad_(), sigma=sigma), (y, c), upstream)
    expected = torch.autograd.grad((softly(y, c, sigma) * c).sum(1), (y, c), upstream)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
        assert theirs.abs().min() > 0


@pytest.mark.parametrize("shape", [(1000,), (3, 4, 5, 6)])
def test_entropy_is_that_of_the_histogram(shape: tuple[int, ...]) -> None:
    y, quantizer = draw(*shape), SoftToHardQuantizer(5)
    symbols = quantizer.symbols(y).numpy()
    assert quantizer.entropy(y).item() == pytest.approx(histogram_entropy(symbols), abs=1e-6)
    if len(shape) == 4:
        per_channel = [histogram_entropy(symbols[:, c]) for c in range(shape[1])]
        assert quantizer.entropy(y, per_channel=True).item() == pytest.approx(np.mean(per_channel), abs=1e-6)
        assert np.mean(per_channel) < histogram_entropy(symbols)


def test_entropy_lies_between_0_and_the_logarithm_of_the_levels() -> None:
    quantizer = SoftToHardQuantizer(6)
    assert quantizer.entropy(torch.full((2, 3), 0.7)).item() == 0
    assert quantizer.entropy(quantizer.centers.detach().repeat(7)).item() == pytest.approx(math.log2(6), abs=1e-6)


def test_the_gradient_of_entropy_is_that_of_the_mean_cost_of_a_symbol() -> None:
    y, c = draw(60, dtype=torch.float64).clamp(min=-2), torch.tensor([-4.0, -1.0, 0.3, 0.9], dtype=torch.float64)
    p = np.bincount(nearest_center(y, c).numpy(), minlength=4) / 60
    assert p[0] == 0
    cost = torch.from_numpy(-np.log2(np.maximum(p, 1 / 60)))
    found = torch.autograd.grad(soft_to_hard_entropy(y.requires_grad_(), c.requires_grad_(), sigma=0.3), (y, c))
    expected = torch.autograd.grad((softly(y, c, 0.3).mean(0) * cost).sum(), (y, c))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-15)


def test_descent_reaches_the_target_and_stops_there() -> None:
    quantizer, y = SoftToHardQuantizer(6), torch.nn.Parameter(draw(2, 4, 8, 8))
    optimizer = torch.optim.Adam([y, *quantizer.parameters()], lr=0.02)
    excess = []
    while not excess or excess[-1] > 0:
        assert len(excess) < 150
        loss = target_entropy_loss(quantizer.entropy(y), 1.265)
        excess.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert excess[0] > 1
    assert y.grad is not None
    assert not y.grad.any()


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_gradients_are_finite_far_from_every_center(scale: float) -> None:
    quantizer, y = SoftToHardQuantizer(6, sigma=50.0), (scale * draw(2, 3, 4)).requires_grad_()
    (quantizer(y).sum() + quantizer.entropy(y)).backward()
    assert all(bool(t.grad.isfinite().all()) for t in (y, quantizer.centers))  # type: ignore[union-attr]


def test_levels_start_evenly_between_2_and_minus_2() -> None:
    assert SoftToHardQuantizer().centers.tolist() == pytest.approx([-5 / 3, -1, -1 / 3, 1 / 3, 1, 5 / 3])
    assert SoftToHardQuantizer(2).centers.tolist() == [-1, 1]
    assert list(dict(SoftToHardQuantizer(4).named_parameters())) == ["centers"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_taken(dtype: torch.dtype) -> None:
    quantizer = SoftToHardQuantizer(6).to(dtype)
    y_hat = quantizer(draw(2, 3, 4).to(dtype))
    assert y_hat.dtype == dtype
    assert set(y_hat.flatten().tolist()) <= set(quantizer.centers.tolist())


def test_wrong_arguments_are_told_what_is_right() -> None:
    for levels in (1, 0, True, 2.5):
        with pytest.raises(ValueError, match="at least 2"):
            SoftToHardQuantizer(levels)  # type: ignore[arg-type]
    for sigma in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="sigma must be positive"):
            SoftToHardQuantizer(6, sigma=sigma)
    with pytest.raises(ValueError, match="no values"):
        SoftToHardQuantizer(6).entropy(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"\(B, C, \.\.\.\).*shape \(3,\)"):
        SoftToHardQuantizer(6).entropy(torch.zeros(3), per_channel=True)
