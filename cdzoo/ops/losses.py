"""Losses for training codecs, alone and together with networks.

Each loss is a function that returns its parts by name, and a module that keeps the function's weights. The papers
rarely state the units of their losses, but the weights depend on them. Here: distortion is the mean squared error on
the scale 0 to 255 (of images in ``[0, 1]``), rate is in bits, cross-entropy in nats. The papers' weights are meant for
these units. Only :func:`multi_task_loss` takes its parts in any unit. Half precision is computed in float32, float64
stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdzoo._checks import check_choice
from cdzoo.ops.entropy import at_least_float32, target_entropy_loss
from cdzoo.types import CodecOutput

__all__ = [
    "JointLoss",
    "MultiTaskLoss",
    "RateDistortionAccuracyLoss",
    "RateDistortionLoss",
    "TargetRateDistortionLoss",
    "bits_per_pixel",
    "joint_loss",
    "multi_task_loss",
    "rate_distortion_accuracy_loss",
    "rate_distortion_loss",
    "target_rate_distortion_loss",
]

Metric = Literal["mse", "ms-ssim"]


class RateDistortion(NamedTuple):
    """The parts of :func:`rate_distortion_loss`, 0-dimensional.

    Attributes:
        loss: to be minimized.
        distortion: mean squared error on the scale 0 to 255, or 1 - MS-SSIM.
        bpp: estimated bits per pixel.
    """

    loss: Tensor
    distortion: Tensor
    bpp: Tensor


class TargetRateDistortion(NamedTuple):
    """The parts of :func:`target_rate_distortion_loss`, 0-dimensional.

    Attributes:
        loss: to be minimized.
        distortion: mean squared error on the scale 0 to 255.
        excess: bits per symbol above the target.
    """

    loss: Tensor
    distortion: Tensor
    excess: Tensor


class Joint(NamedTuple):
    """The parts of :func:`joint_loss`, 0-dimensional.

    Attributes:
        loss: to be minimized.
        distortion: mean squared error on the scale 0 to 255.
        excess: bits per symbol above the target.
        cross_entropy: in nats.
    """

    loss: Tensor
    distortion: Tensor
    excess: Tensor
    cross_entropy: Tensor


class RateDistortionAccuracy(NamedTuple):
    """The parts of :func:`rate_distortion_accuracy_loss`, 0-dimensional.

    Attributes:
        loss: to be minimized.
        distortion: mean squared error on the scale 0 to 255.
        bpp: estimated bits per pixel; 0 without likelihoods.
        cross_entropy: in nats.
    """

    loss: Tensor
    distortion: Tensor
    bpp: Tensor
    cross_entropy: Tensor


def bits_per_pixel(output: CodecOutput) -> Tensor:
    """The estimated rate: ``-log2`` of all likelihoods, per pixel of the images.

    Args:
        output: of a codec with an entropy model, for images ``(B, 3, H, W)``.

    Returns:
        bits per pixel, the mean of the batch; 0-dimensional, float32 (of float64, float64).

    Raises:
        ValueError: there are no likelihoods.
    """
    if not output.likelihoods:
        raise ValueError(
            "no likelihoods to take a rate from: this codec has no entropy model; use its entropy with "
            "TargetRateDistortionLoss (torfason2018) or gaussian_entropy_loss with MultiTaskLoss (choi2019)"
        )
    batch, _, height, width = output.x_hat.shape
    bits = [-at_least_float32(likelihood).log2().sum() for likelihood in output.likelihoods.values()]
    return sum(bits[1:], bits[0]) / (batch * height * width)


def _alike(x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, that of the finer; float32 at least."""
    dtype = torch.promote_types(torch.promote_types(x_hat.dtype, x.dtype), torch.float32)
    return x_hat.to(dtype), x.to(dtype)


def _mse255(x_hat: Tensor, x: Tensor) -> Tensor:
    return 255**2 * F.mse_loss(*_alike(x_hat, x))


def rate_distortion_loss(output: CodecOutput, x: Tensor, *, lmbda: float, metric: Metric = "mse") -> RateDistortion:
    """``lmbda D + R``, CompressAI's loss.

    Args:
        output: of a codec with an entropy model.
        x: the images, ``(B, 3, H, W)`` in ``[0, 1]``.
        lmbda: weight of the distortion; ``cdzoo.codecs.hyperprior.LAMBDAS`` has CompressAI's.
        metric: ``"mse"`` on the scale 0 to 255, or ``"ms-ssim"`` for 1 - MS-SSIM, which takes images of more than 160
            pixels in either direction.

    Returns:
        the loss and its parts, 0-dimensional, differentiable.

    Raises:
        ValueError: another metric, images that are too small for it, or a codec without likelihoods.
    """
    check_choice("metric", metric, get_args(Metric))
    if metric == "mse":
        distortion = _mse255(output.x_hat, x)
    elif min(x.shape[-2:]) <= 160:
        raise ValueError(f"MS-SSIM takes images of more than 160 pixels a side, not {tuple(x.shape[-2:])}; use 'mse'")
    else:
        msssim = import_module("pytorch_msssim")  # on first use
        distortion = 1 - msssim.ms_ssim(*_alike(output.x_hat, x), data_range=1.0)
    bpp = bits_per_pixel(output)
    return RateDistortion(lmbda * distortion + bpp, distortion, bpp)


def target_rate_distortion_loss(
    output: CodecOutput, x: Tensor, entropy: Tensor, *, beta: float, target_entropy: float
) -> TargetRateDistortion:
    """``MSE + beta max(H - H_t, 0)`` (Torfason et al., ICLR 2018, equation 1).

    Args:
        output: of the codec.
        x: the images, ``(B, 3, H, W)`` in ``[0, 1]``; the MSE is on the scale 0 to 255, which the paper's ``beta``
            needs: on ``[0, 1]`` the entropy would weigh 65,025 times more.
        entropy: ``H(q)`` in bits per symbol, 0-dimensional; ``codec.quantizer.entropy(y)``.
        beta: weight of the entropy above the target; in the paper 150 with 32 channels, 600 with 8. It gives both
            weights for equation 2 (A.8), and none for the codec's own training.
        target_entropy: bits per symbol; in the paper 1.265 with 32 channels (0.635 bits per pixel), 0.8 with 8
            (0.0983).

    Returns:
        the loss and its parts, 0-dimensional, differentiable.

    Raises:
        TypeError: ``entropy`` is no tensor.
    """
    distortion, excess = _mse255(output.x_hat, x), target_entropy_loss(entropy, target_entropy)
    return TargetRateDistortion(distortion + beta * excess, distortion, excess)


def joint_loss(
    output: CodecOutput,
    x: Tensor,
    entropy: Tensor,
    logits: Tensor,
    target: Tensor,
    *,
    beta: float,
    target_entropy: float,
    gamma: float = 0.001,
    ignore_index: int = -100,
) -> Joint:
    """``gamma (MSE + beta max(H - H_t, 0)) + cross-entropy`` (Torfason et al., ICLR 2018, equation 2).

    Args:
        output, x, entropy: as in :func:`target_rate_distortion_loss`.
        logits: ``(B, num_classes)``, or ``(B, num_classes, H, W)`` of a segmenter.
        target: class indices, ``(B,)`` or ``(B, H, W)``.
        beta, target_entropy: as there.
        gamma: weight of the codec's loss; 0.001 in the paper (A.8).
        ignore_index: class of targets that are left out, such as the 255 of PASCAL VOC's borders.

    Returns:
        the loss and its parts, 0-dimensional, differentiable.

    Raises:
        TypeError: ``entropy`` is no tensor.
    """
    codec = target_rate_distortion_loss(output, x, entropy, beta=beta, target_entropy=target_entropy)
    cross_entropy = F.cross_entropy(at_least_float32(logits), target, ignore_index=ignore_index)
    return Joint(gamma * codec.loss + cross_entropy, codec.distortion, codec.excess, cross_entropy)


def multi_task_loss(rate: Tensor, tasks: Sequence[Tensor], betas: Sequence[float]) -> Tensor:
    """``L_CompNet + beta_1 L_RecNet + beta_2 L_ClsNet + ...`` (Wang et al., WACV 2022, equation 1).

    Args:
        rate: what stands for the entropy of the latent, :func:`cdzoo.ops.gaussian_entropy_loss` in the paper.
        tasks: one loss per task; in the paper the mean squared error of the reconstruction (its scale is not given),
            and cross-entropies.
        betas: their weights, none negative. The paper says that they lie in ``[0, 1]``, but trains its codecs with
            ``beta_1`` of 20, 50, 100 and 200 (and the others 0) for 0.098, 0.30, 0.49 and 0.72 bits per pixel.

    Returns:
        the weighted sum; 0-dimensional if its parts are.

    Raises:
        ValueError: not one weight per task.
    """
    if len(tasks) != len(betas):
        raise ValueError(f"{len(tasks)} task losses, but {len(betas)} weights; there must be one per task")
    loss = rate
    for task, beta in zip(tasks, betas, strict=True):
        loss = loss + beta * task
    return loss


def rate_distortion_accuracy_loss(
    output: CodecOutput, x: Tensor, logits: Tensor, target: Tensor, *, alpha: float, beta: float
) -> RateDistortionAccuracy:
    """``alpha cross-entropy + beta MSE + R`` (Bai et al., AAAI 2022, equation 6).

    The equation sums squared errors and natural logarithms; like the codecs that the paper builds on, this takes the
    mean squared error on the scale 0 to 255 and bits per pixel, for which the paper's weights are of the right size.

    Args:
        output: of the codec; without likelihoods the rate is 0, as in the first of the paper's two steps of training.
        x: the images, ``(B, 3, H, W)`` in ``[0, 1]``, before any normalization.
        logits: ``(B, num_classes)``.
        target: class indices ``(B,)``, or class probabilities as mixup makes them.
        alpha: weight of the cross-entropy: 1 in the first step; then 0.1, 0.3 or 0.6, which sets the rate.
        beta: weight of the distortion: 0.001 in the first step; then a hundredth of ``alpha``.

    Returns:
        the loss and its parts, 0-dimensional, differentiable.
    """
    distortion, cross_entropy = _mse255(output.x_hat, x), F.cross_entropy(at_least_float32(logits), target)
    bpp = bits_per_pixel(output) if output.likelihoods else distortion.new_zeros(())
    return RateDistortionAccuracy(alpha * cross_entropy + beta * distortion + bpp, distortion, bpp, cross_entropy)


# -- as modules --------------------------------------------------------------------------------------------------


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be finite and not negative, not {value!r}")


class RateDistortionLoss(nn.Module):
    """:func:`rate_distortion_loss` with a fixed weight and metric.

    Args:
        lmbda: weight of the distortion, 0 or more.
        metric: ``"mse"`` or ``"ms-ssim"``.

    Raises:
        ValueError: a weight that is negative or not finite, or another metric.
    """

    def __init__(self, lmbda: float, metric: Metric = "mse") -> None:
        super().__init__()
        _check_weights(lmbda=lmbda)
        check_choice("metric", metric, get_args(Metric))
        self.lmbda, self.metric = lmbda, metric

    def forward(self, output: CodecOutput, x: Tensor) -> RateDistortion:
        """See :func:`rate_distortion_loss`."""
        return rate_distortion_loss(output, x, lmbda=self.lmbda, metric=self.metric)


class TargetRateDistortionLoss(nn.Module):
    """:func:`target_rate_distortion_loss` with fixed weights.

    Args:
        beta: weight of the entropy above the target, 0 or more.
        target_entropy: bits per symbol, 0 or more.

    Raises:
        ValueError: a number that is negative or not finite.
    """

    def __init__(self, *, beta: float, target_entropy: float) -> None:
        super().__init__()
        _check_weights(beta=beta, target_entropy=target_entropy)
        self.beta, self.target_entropy = beta, target_entropy

    def forward(self, output: CodecOutput, x: Tensor, entropy: Tensor) -> TargetRateDistortion:
        """See :func:`target_rate_distortion_loss`."""
        return target_rate_distortion_loss(output, x, entropy, beta=self.beta, target_entropy=self.target_entropy)


class JointLoss(nn.Module):
    """:func:`joint_loss` with fixed weights.

    Args:
        beta: weight of the entropy above the target, 0 or more.
        target_entropy: bits per symbol, 0 or more.
        gamma: weight of the codec's loss, 0 or more.
        ignore_index: class of targets that are left out.

    Raises:
        ValueError: a number that is negative or not finite.
    """

    def __init__(self, *, beta: float, target_entropy: float, gamma: float = 0.001, ignore_index: int = -100) -> None:
        super().__init__()
        _check_weights(beta=beta, target_entropy=target_entropy, gamma=gamma)
        self.beta, self.target_entropy, self.gamma, self.ignore_index = beta, target_entropy, gamma, ignore_index

    def forward(self, output: CodecOutput, x: Tensor, entropy: Tensor, logits: Tensor, target: Tensor) -> Joint:
        """See :func:`joint_loss`."""
        weights = {"beta": self.beta, "target_entropy": self.target_entropy, "gamma": self.gamma}
        return joint_loss(output, x, entropy, logits, target, **weights, ignore_index=self.ignore_index)


class MultiTaskLoss(nn.Module):
    """:func:`multi_task_loss` with fixed weights.

    Args:
        betas: weights of the tasks, 0 or more, in the order in which their losses will be given.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    def __init__(self, betas: Sequence[float]) -> None:
        super().__init__()
        _check_weights(**{f"beta_{number}": beta for number, beta in enumerate(betas, 1)})
        self.betas = tuple(betas)

    def forward(self, rate: Tensor, *tasks: Tensor) -> Tensor:
        """See :func:`multi_task_loss`."""
        return multi_task_loss(rate, tasks, self.betas)


class RateDistortionAccuracyLoss(nn.Module):
    """:func:`rate_distortion_accuracy_loss` with fixed weights.

    Args:
        alpha: weight of the cross-entropy, 0 or more.
        beta: weight of the distortion, 0 or more.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    def __init__(self, *, alpha: float, beta: float) -> None:
        super().__init__()
        _check_weights(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def forward(self, output: CodecOutput, x: Tensor, logits: Tensor, target: Tensor) -> RateDistortionAccuracy:
        """See :func:`rate_distortion_accuracy_loss`."""
        return rate_distortion_accuracy_loss(output, x, logits, target, alpha=self.alpha, beta=self.beta)
