"""Entropies against closed forms, likelihoods, and bits that a coder has written."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch

from cdzoo.codecs import Codec, read_header
from cdzoo.coding.layers import GaussianConditional
from cdzoo.ops import GaussianEntropyLoss, discrete_entropy, gaussian_bits, gaussian_entropy_loss, target_entropy_loss


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- of histograms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ([3.0] * 5, 0.0),
        ([0.0, 1.0], 1.0),
        ([0.5, 0.5, -0.25, 7.0], 1.5),
        ([0.0, -0.0, 1.0, 1.0], 1.0),  # rounding makes negative zeros
        ([float(i) for i in range(8)], 3.0),
    ],
)
def test_entropy_of_a_histogram(values: list[float], bits: float) -> None:
    assert float(discrete_entropy(torch.tensor(values))) == pytest.approx(bits, abs=1e-7)


def test_entropy_per_channel_is_a_mean_over_channels() -> None:
    y_hat = torch.stack([torch.zeros(4, 8), torch.arange(32.0).view(4, 8), torch.arange(32.0).view(4, 8) % 2], 1)
    assert y_hat.shape == (4, 3, 8)
    assert float(discrete_entropy(y_hat, per_channel=True)) == pytest.approx((0 + 5 + 1) / 3)
    p = np.array([32 + 1 + 16, 1 + 16, *[1] * 30]) / 96
    assert float(discrete_entropy(y_hat)) == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-6)


def test_entropy_has_no_gradient_and_needs_values() -> None:
    assert not discrete_entropy(gauss(3, 4).requires_grad_().round()).requires_grad
    with pytest.raises(ValueError, match="no values"):
        discrete_entropy(torch.zeros(0))
    with pytest.raises(ValueError, match=r"\(B, C, \.\.\.\).*shape \(3,\)"):
        discrete_entropy(torch.zeros(3), per_channel=True)


def test_only_entropy_above_the_target_costs() -> None:
    entropy = torch.tensor([0.5, 1.265, 2.0], requires_grad=True)
    loss = target_entropy_loss(entropy, 1.265)
    assert loss.tolist() == pytest.approx([0, 0, 0.735])
    loss.sum().backward()
    assert entropy.grad is not None
    assert entropy.grad.tolist()[0::2] == [0, 1]
    with pytest.raises(TypeError, match=r"entropy must be a tensor.*not 1\.5; .*torch\.tensor\(number\)"):
        target_entropy_loss(1.5, 1.0)  # type: ignore[arg-type]


# -- of variances ------------------------------------------------------------------------------------------------


def test_the_gaussian_loss_is_the_logarithm_of_each_images_variance() -> None:
    y = gauss(3, 4, 5, 6) * torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1, 1) + 7
    expected = np.mean([np.log(image.numpy().astype(np.float64).var()) for image in y])
    assert float(gaussian_entropy_loss(y)) == pytest.approx(expected, abs=1e-4)
    assert float(GaussianEntropyLoss()(y)) == float(gaussian_entropy_loss(y))
    # two values at distance 2: variance 1, with division by N
    assert float(gaussian_entropy_loss(torch.tensor([[-1.0, 1.0]]))) == 0


def test_the_gaussian_loss_keeps_double_precision() -> None:
    y = gauss(3, 4, 5).double().requires_grad_()
    loss = GaussianEntropyLoss()(y)
    assert loss.dtype == torch.float64
    assert float(loss.detach()) == pytest.approx(np.log(y.detach().numpy().var((1, 2))).mean(), rel=1e-13)
    assert torch.autograd.gradcheck(gaussian_entropy_loss, y)
    assert gaussian_entropy_loss(1000 * y.half()).dtype == torch.float32  # whose squares half precision cannot hold


@pytest.mark.parametrize("sigma", [4.0, 10.0, 40.0])
def test_the_gaussian_loss_tells_the_entropy_of_rounded_gaussians(sigma: float) -> None:
    # Cover and Thomas, theorem 8.3.1: H -> h = log(2 pi e sigma^2) / 2 for steps of 1
    y = sigma * gauss(1, 400_000)
    bits = (float(gaussian_entropy_loss(y)) + math.log(2 * math.pi * math.e)) / (2 * math.log(2))
    assert float(discrete_entropy(y.round())) == pytest.approx(bits, abs=0.01)


def test_a_variance_of_0_is_guarded() -> None:
    y = torch.full((2, 3, 4), 5.0, requires_grad=True)
    loss = gaussian_entropy_loss(y, eps=1e-6)
    assert loss.item() == pytest.approx(math.log(1e-6))
    loss.backward()
    assert y.grad is not None
    assert not y.grad.any()
    assert GaussianEntropyLoss(eps=1e-3)(y).item() == pytest.approx(math.log(1e-3))
    assert math.isfinite(gaussian_entropy_loss(y).item())


def test_without_a_distortion_the_gaussian_loss_falls_for_ever() -> None:
    # what its docstring warns of: no bit is left to save, and it still rewards
    y = 0.01 * gauss(1, 1000)
    assert not y.round().any()
    assert gaussian_entropy_loss(y / 10) < gaussian_entropy_loss(y) - 4


def test_the_gaussian_loss_takes_batches_only() -> None:
    for shape in ((4,), (0, 3), ()):
        with pytest.raises(ValueError, match="batch of latents"):
            gaussian_entropy_loss(torch.zeros(shape))
    with pytest.raises(ValueError, match="eps must be positive"):
        gaussian_entropy_loss(torch.zeros(1, 2), eps=0.0)
    with pytest.raises(ValueError, match="eps must be positive"):
        GaussianEntropyLoss(eps=0)
    assert gaussian_entropy_loss(gauss(1, 5).half()).dtype == torch.float32


# -- of Gaussians over unit intervals ----------------------------------------------------------------------------


def test_gaussian_bits_are_those_of_the_normal_distribution() -> None:
    y_hat, scales = torch.tensor([0.0, 1.0, -3.0, 4.0]), torch.tensor([0.2, 1.0, 2.5, 1.5])
    expected = []
    for y, scale in zip(y_hat.tolist(), scales.tolist(), strict=True):
        normal = NormalDist(0, scale)
        expected.append(-math.log2(normal.cdf(y + 0.5) - normal.cdf(y - 0.5)))
    assert gaussian_bits(y_hat, scales).tolist() == pytest.approx(expected, rel=1e-4)


def test_gaussian_bits_are_the_conditionals_likelihoods() -> None:
    y_hat = (8 * gauss(2, 5, 6, 7)).round()
    scales = 4 * gauss(2, 5, 6, 7, seed=1)  # negative and tiny ones too, as a hyper-decoder puts them out
    bits = gaussian_bits(y_hat, scales)
    assert torch.allclose(bits, -GaussianConditional().eval()(y_hat, scales)[1].log2(), atol=1e-4)
    assert float(bits.max()) == pytest.approx(-math.log2(1e-9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gaussian_bits_of_other_types(dtype: torch.dtype) -> None:
    y_hat, scales = torch.tensor([0.0, 1.0, 3.0, 50.0]), torch.tensor([0.01, 0.5, 2.0, 1.0])
    bits = gaussian_bits(y_hat.to(dtype), scales.to(dtype))  # half precision has no 1e-9
    assert bits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(bits.float(), gaussian_bits(y_hat, scales), atol=1e-4)


def test_gaussian_bits_broadcast_and_have_gradients() -> None:
    y_hat, scale = (3 * gauss(2, 3, 4)).round(), torch.tensor(1.0, requires_grad=True)
    bits = gaussian_bits(y_hat, scale)
    assert bits.shape == y_hat.shape
    bits.sum().backward()
    assert scale.grad is not None
    assert scale.grad < 0  # too small for what it has to describe


def test_gaussian_bits_are_what_the_coder_writes(
    make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    codec, x = copy.deepcopy(make_codec("bmshj2018_hyperprior", gain=0.25)), make_images(1, 256, 256)
    with torch.no_grad():  # scales that fit the latent, so that hardly a symbol lies outside its table
        codec.h_s[-2].weight.mul_(0.02)
        codec.h_s[-2].bias.fill_(1.0)
    latent = codec.encode(x)
    assert latent.scales is not None
    coded = read_header(codec.compress(x)[0]).part_lengths[1] - 8  # the coder's final state
    assert coded == pytest.approx(float(gaussian_bits(latent.y_hat, latent.scales).sum()) / 8, rel=0.02)


def test_missing_scales_are_told() -> None:
    with pytest.raises(TypeError, match="scales is None: the codec has no hyperprior"):
        gaussian_bits(torch.zeros(2), None)  # type: ignore[arg-type]
