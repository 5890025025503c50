"""Losses against the papers' equations worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from pytorch_msssim import ms_ssim

import cdzoo
from cdzoo.ops import (
    JointLoss,
    MultiTaskLoss,
    RateDistortionAccuracyLoss,
    RateDistortionLoss,
    TargetRateDistortionLoss,
    bits_per_pixel,
    gaussian_entropy_loss,
)
from cdzoo.types import CodecOutput, Latent

# two images of 4x8 pixels, every value off by 2 of 255; 64 symbols of one bit each and 8 of three
X = torch.full((2, 3, 4, 8), 0.5)
LATENT = Latent(torch.zeros(2, 4, 2, 4), None, (4, 8))
LIKELIHOODS = {"y": torch.full((2, 4, 2, 4), 0.5), "z": torch.full((2, 4, 1, 1), 0.125)}
OUTPUT = CodecOutput(X + 2 / 255, LATENT, LIKELIHOODS)
BARE = OUTPUT._replace(likelihoods={})
MSE, BPP = 4.0, (64 * 1 + 8 * 3) / 64
LOGITS, LABELS = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
CROSS_ENTROPY = math.log(1 + math.exp(-2)) + 1  # the mean of log(1 + e^-2) and log(1 + e^2)


def test_bits_per_pixel() -> None:
    assert float(bits_per_pixel(OUTPUT)) == pytest.approx(BPP)
    with pytest.raises(ValueError, match=r"no entropy model.*TargetRateDistortionLoss.*gaussian_entropy_loss"):
        bits_per_pixel(BARE)


@pytest.mark.parametrize(
    ("entropy", "excess"),
    [(1.265 + 0.1, 0.1), (1.0, 0.0)],
)
def test_equation_1_of_torfason(entropy: float, excess: float) -> None:
    loss = TargetRateDistortionLoss(beta=150, target_entropy=1.265)(BARE, X, torch.tensor(entropy))
    assert float(loss.distortion) == pytest.approx(MSE, rel=1e-5)
    assert float(loss.excess) == pytest.approx(excess, abs=1e-6)
    assert float(loss.loss) == pytest.approx(MSE + 150 * excess, rel=1e-4)


def test_equation_2_of_torfason() -> None:
    loss = JointLoss(beta=600, target_entropy=0.8)(BARE, X, torch.tensor(0.9), LOGITS, LABELS)
    assert float(loss.cross_entropy) == pytest.approx(CROSS_ENTROPY)
    assert float(loss.loss) == pytest.approx(0.001 * (MSE + 600 * 0.1) + CROSS_ENTROPY, rel=1e-5)
    dense = JointLoss(beta=600, target_entropy=0.8, gamma=0.5)
    logits, labels = LOGITS[:, :, None, None].expand(2, 2, 4, 8), LABELS[:, None, None].expand(2, 4, 8)
    loss = dense(BARE, X, torch.tensor(0.5), logits, labels)
    assert float(loss.loss) == pytest.approx(0.5 * MSE + CROSS_ENTROPY, rel=1e-5)
    # PASCAL VOC has 255 where nobody knows the class
    void, labels = JointLoss(beta=600, target_entropy=0.8, gamma=0.5, ignore_index=255), labels.clone()
    labels[1] = 255
    loss = void(BARE, X, torch.tensor(0.5), logits, labels)
    assert float(loss.cross_entropy) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)


def test_equation_1_of_wang() -> None:
    rate, reconstruction, classes = torch.tensor(-1.5), torch.tensor(0.01), torch.tensor(2.0)
    assert float(MultiTaskLoss([50])(rate, reconstruction)) == pytest.approx(-1.0)
    assert float(MultiTaskLoss([50, 0.25])(rate, reconstruction, classes)) == pytest.approx(-0.5)
    assert float(MultiTaskLoss([])(rate)) == -1.5
    with pytest.raises(ValueError, match="1 task losses, but 2 weights"):
        MultiTaskLoss([50, 0.25])(rate, reconstruction)


def test_equation_6_of_bai() -> None:
    loss = RateDistortionAccuracyLoss(alpha=0.3, beta=0.003)(OUTPUT, X, LOGITS, LABELS)
    assert float(loss.loss) == pytest.approx(0.3 * CROSS_ENTROPY + 0.003 * MSE + BPP, rel=1e-5)
    assert [float(v) for v in loss[1:]] == pytest.approx([MSE, BPP, CROSS_ENTROPY], rel=1e-5)
    first_step = RateDistortionAccuracyLoss(alpha=1, beta=0.001)(BARE, X, LOGITS, LABELS)
    assert float(first_step.loss) == pytest.approx(CROSS_ENTROPY + 0.001 * MSE, rel=1e-5)
    mixed = RateDistortionAccuracyLoss(alpha=1, beta=0)(BARE, X, LOGITS, torch.full((2, 2), 0.5))
    assert mixed.loss.item() == pytest.approx(math.log(1 + math.exp(-2)) + 1)


def test_half_precision_is_no_reason_to_overflow() -> None:
    output = BARE._replace(x_hat=(X + 2 / 255).half())
    loss = TargetRateDistortionLoss(beta=150, target_entropy=1.265)(output, X, torch.tensor(1.0))
    assert loss.loss.dtype == torch.float32
    assert float(loss.loss) == pytest.approx(MSE, rel=0.1)


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_double_precision_is_kept(metric: Literal["mse", "ms-ssim"], make_images: Callable[..., torch.Tensor]) -> None:
    x, noise = make_images(1, 176, 192).double(), torch.randn(1, 3, 176, 192).double()
    likelihoods = {"y": torch.rand(1, 4, 11, 12).double() + 1e-3}
    output = CodecOutput(x + 0.05 * noise, LATENT, likelihoods)
    x_hat = output.x_hat
    distortion = 255**2 * F.mse_loss(x_hat, x) if metric == "mse" else 1 - ms_ssim(x_hat, x, data_range=1.0)
    expected = 0.013 * distortion - likelihoods["y"].log2().sum() / (176 * 192)
    ours = RateDistortionLoss(0.013, metric)(output, x)
    assert ours.loss.dtype == ours.distortion.dtype == ours.bpp.dtype == expected.dtype == torch.float64
    assert float(ours.loss) == pytest.approx(float(expected), rel=1e-12)
    x_hat = output.x_hat.float().requires_grad_()
    mixed = RateDistortionLoss(0.013, metric)(output._replace(x_hat=x_hat), x)
    assert mixed.loss.item() == pytest.approx(float(expected), rel=1e-4)
    mixed.loss.backward()
    assert x_hat.grad is not None
    assert x_hat.grad.dtype == torch.float32


def test_gradients_in_double_precision() -> None:
    x = X.double()
    entropy = torch.tensor(1.5).double()

    def losses(x_hat: torch.Tensor, likelihood: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = CodecOutput(x_hat, LATENT, {"y": likelihood})
        rate = gaussian_entropy_loss(x_hat)
        return (
            RateDistortionLoss(0.013)(output, x).loss,
            JointLoss(beta=150, target_entropy=1.265)(output, x, entropy, logits, LABELS).loss,
            RateDistortionAccuracyLoss(alpha=0.3, beta=0.003)(output, x, logits, LABELS).loss,
            MultiTaskLoss([20.0, 1.0])(rate, F.mse_loss(x_hat, x), F.cross_entropy(logits, LABELS)),
        )

    torch.manual_seed(0)
    tensors = [0.1 + torch.rand(shape).double() for shape in (X.shape, (2, 2, 1, 2), LOGITS.shape)]
    for tensor in tensors:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(losses, tensors)
    assert {loss.dtype for loss in losses(*tensors)} == {torch.float64}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RateDistortionLoss(-1.0), "lmbda must be finite and not negative, not -1"),
        (lambda: RateDistortionLoss(0.01, "psnr"), "metric='psnr': choose one of mse, ms-ssim"),  # type: ignore[arg-type]
        (lambda: TargetRateDistortionLoss(beta=math.nan, target_entropy=1.0), "beta must be finite"),
        (lambda: JointLoss(beta=1, target_entropy=1, gamma=math.inf), "gamma must be finite"),
        (lambda: MultiTaskLoss([1.0, -2.0]), "beta_2 must be finite and not negative, not -2.0"),
        (lambda: RateDistortionAccuracyLoss(alpha=1, beta=-1), "beta must be finite"),
        (lambda: cdzoo.ops.rate_distortion_loss(OUTPUT, X, lmbda=1, metric="l1"), "metric='l1': choose"),  # type: ignore[arg-type]
    ],
)
def test_wrong_weights_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_joint_training_reaches_codec_and_classifier(make_images: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    codec = cdzoo.codecs.torfason2018(latent_channels=8, N=8).train()
    model = cdzoo.models.cresnet39(in_channels=8, num_classes=2, width=0.0625).train()
    x = make_images(2, 64, 64)
    output, y = codec.forward_with_y(x)
    loss = JointLoss(beta=600, target_entropy=0.8)(
        output, x, codec.quantizer.entropy(y), model(output.latent.y_hat), LABELS
    )
    assert loss.excess > 0.5
    loss.loss.backward()
    for module in (codec, model):
        assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_codec_without_an_entropy_model_trains_with_the_gaussian_loss(
    make_images: Callable[..., torch.Tensor],
) -> None:
    torch.manual_seed(0)
    codec, x = cdzoo.codecs.choi2019(latent_channels=8, N=8).train(), make_images(2, 64, 64)
    optimizer, loss = torch.optim.Adam(codec.parameters(), lr=1e-3), MultiTaskLoss([200.0])
    losses = []
    for _ in range(12):
        output, y = codec.forward_with_y(x)
        value = loss(gaussian_entropy_loss(y), F.mse_loss(output.x_hat, x))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert [n for n, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert losses[-1] < losses[0] - 1


def test_ms_ssim_says_which_sizes_it_takes() -> None:
    x = torch.rand(1, 3, 160, 200)
    output = cdzoo.codecs.bmshj2018_hyperprior(N=4, M=6)(x)
    with pytest.raises(ValueError, match=r"more than 160 pixels a side, not \(160, 200\)"):
        cdzoo.ops.rate_distortion_loss(output, x, lmbda=1.0, metric="ms-ssim")
