"""Layers of learned codecs: convolutions, GDN, and the two entropy models of Ballé et al. (2018).

Sources:

* GDN: Ballé, Laparra and Simoncelli, "Density modeling of images using a generalized normalization transformation"
  (ICLR 2016, arXiv:1511.06281), with the reparametrization of "Efficient nonlinear transforms for lossy image
  compression" (PCS 2018, arXiv:1802.00847).
* Entropy bottleneck and Gaussian conditional: Ballé, Minnen, Singh, Hwang and Johnston, "Variational image compression
  with a scale hyperprior" (ICLR 2018, arXiv:1802.01436), section 3 and appendix 6.1; means from Minnen, Ballé and
  Toderici (NeurIPS 2018, arXiv:1809.02736).

Parameters and buffers have CompressAI's names, initial values and order of random numbers, so that its checkpoints
load. Probability tables equal CompressAI's entry by entry, because bits depend on them: every operation on the way to
a table has the order that it has there. Tables are derived in float32 on the CPU. ``torch.compile`` and
``torch.export`` trace every forward pass.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cdzoo._torch import autocast_enabled, outside_autocast
from cdzoo.coding.tables import SymbolTables
from cdzoo.ops.entropy import SMALLEST_LIKELIHOOD, SMALLEST_SCALE, at_least_float32

__all__ = [
    "GDN",
    "EntropyBottleneck",
    "GaussianConditional",
    "LowerBound",
    "NonNegative",
    "conv",
    "deconv",
    "gaussian_tables",
    "image_transforms",
    "pmf_to_quantized_cdf",
    "scale_table",
]

_PEDESTAL = (2.0**-18) ** 2  # keeps the gradient of a square root away from infinity
_TAIL_MASS = SMALLEST_LIKELIHOOD  # also the probability outside a table
_PRECISION = 16  # bits of a probability in a table


def conv(in_channels: int, out_channels: int, kernel_size: int = 5, stride: int = 2) -> nn.Conv2d:
    """Convolution ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)


def deconv(in_channels: int, out_channels: int, kernel_size: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """Transposed convolution ``(B, in_channels, h, w)`` to ``(B, out_channels, stride h, stride w)``."""
    return nn.ConvTranspose2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, output_padding=stride - 1
    )


def image_transforms(N: int, M: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Analysis and synthesis of Ballé et al. (2018), figure 4: four 5x5 layers of stride 2 with (inverse) GDN between.

    Args:
        N: channels of the hidden layers.
        M: channels of the latent.

    Returns:
        ``g_a``, ``(B, 3, H, W)`` to ``(B, M, H / 16, W / 16)``, and ``g_s``, which goes back.
    """
    g_a = nn.Sequential(conv(3, N), GDN(N), conv(N, N), GDN(N), conv(N, N), GDN(N), conv(N, M))
    g_s = nn.Sequential(
        deconv(M, N), GDN(N, inverse=True), deconv(N, N), GDN(N, inverse=True), deconv(N, N), GDN(N, inverse=True),
        deconv(N, 3),
    )  # fmt: skip
    return g_a, g_s


# -- bounds ------------------------------------------------------------------------------------------------------


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.max(x, bound)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (x, bound) = grads, ctx.saved_tensors
        return ((x >= bound) | (grad < 0)) * grad, None


class LowerBound(nn.Module):
    """``max(x, bound)``, elementwise, whose gradient also passes where it lifts ``x`` towards the bound.

    The gradient of ``torch.clamp`` is 0 below the bound, so that ``x`` would stay there for ever.

    Args:
        bound: the smallest value.
    """

    bound: Tensor
    constant_buffers: ClassVar[tuple[str, ...]] = ("bound",)

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([float(bound)]))

    def forward(self, x: Tensor) -> Tensor:
        """Bound ``x``, of any shape."""
        bounded: Tensor = _LowerBound.apply(x, self.bound)
        return bounded


class NonNegative(nn.Module):
    """Parameters that stay at or above a minimum: the square of what is stored, which has a lower bound.

    ``value = max(stored, sqrt(minimum + pedestal))^2 - pedestal``, with a pedestal of ``2^-36``.

    Args:
        minimum: the smallest value; 0 or more.
    """

    pedestal: Tensor
    constant_buffers: ClassVar[tuple[str, ...]] = ("pedestal",)

    def __init__(self, minimum: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("pedestal", torch.tensor([_PEDESTAL]))
        self.lower_bound = LowerBound((minimum + _PEDESTAL) ** 0.5)

    @staticmethod
    def stored(value: float) -> float:
        """The number to store for a value of 0 or more, in float32: the inverse of :meth:`forward`."""
        return float(np.sqrt(np.float32(value) + np.float32(_PEDESTAL)))

    def forward(self, stored: Tensor) -> Tensor:
        """The value of a stored parameter, of any shape."""
        bounded: Tensor = self.lower_bound(stored)
        return bounded**2 - self.pedestal


class GDN(nn.Module):
    """Generalized divisive normalization: ``y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)`` over channels.

    Args:
        in_channels: ``C``.
        inverse: multiply by the root instead, as synthesis transforms do.
    """

    def __init__(self, in_channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta_reparam = NonNegative(minimum=1e-6)
        self.beta = nn.Parameter(torch.full((in_channels,), self.beta_reparam.stored(1)))
        self.gamma_reparam = NonNegative()
        gamma = torch.full((in_channels, in_channels), self.gamma_reparam.stored(0))
        self.gamma = nn.Parameter(gamma.fill_diagonal_(self.gamma_reparam.stored(0.1)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(B, C, H, W)``; the shape stays."""
        gamma: Tensor = self.gamma_reparam(self.gamma)
        norm = F.conv2d(x**2, gamma[:, :, None, None], self.beta_reparam(self.beta))
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


# -- entropy models ----------------------------------------------------------------------------------------------


P = ParamSpec("P")
R = TypeVar("R")


def _in_float32(forward: Callable[P, R]) -> Callable[P, R]:
    """Compute in float32 inside autocast, too: rounding and small probabilities need all digits."""

    @functools.wraps(forward)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value.device for value in args if isinstance(value, Tensor))
        if not autocast_enabled(device):
            return forward(*args, **kwargs)
        with outside_autocast(device):
            values = [at_least_float32(value) if isinstance(value, Tensor) else value for value in args]
            return forward(*values, **kwargs)  # type: ignore[arg-type]

    return call


def _quantize(values: Tensor, means: Tensor | None, training: bool) -> Tensor:
    """Values with uniform noise of width 1 in training, otherwise rounded around their means."""
    if training:
        return values + torch.empty_like(values).uniform_(-0.5, 0.5)
    if means is None:
        return torch.round(values)
    return (torch.round(values - means) + means).to(values.dtype)


class EntropyBottleneck(nn.Module):
    """One learned distribution per channel, for values that nothing else predicts.

    The cumulative distribution of a channel is a small monotone network, ``sigmoid(logits(x))``; the probability of a
    value is its increase over an interval of width 1 around it.

    Args:
        channels: ``C``.

    Attributes:
        quantiles: ``(C, 1, 3)``, the ends of the tables and, between them, the medians. :meth:`loss` trains them.
    """

    target: Tensor
    _widths = (1, 3, 3, 3, 3, 1)
    constant_buffers: ClassVar[tuple[str, ...]] = ("target",)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.likelihood_lower_bound = LowerBound(_TAIL_MASS)
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        init_scale = 10.0
        layers = len(self._widths) - 1
        scale = init_scale ** (1 / layers)
        for i, (before, after) in enumerate(zip(self._widths, self._widths[1:], strict=False)):
            weight = math.log(math.expm1(1 / scale / after))  # before softplus
            self.matrices.append(nn.Parameter(torch.full((channels, after, before), weight)))
            self.biases.append(nn.Parameter(nn.init.uniform_(torch.empty(channels, after, 1), -0.5, 0.5)))
            if i < layers - 1:
                self.factors.append(nn.Parameter(torch.zeros(channels, after, 1)))
        self.quantiles = nn.Parameter(torch.tensor([[[-init_scale, 0.0, init_scale]]] * channels))
        target = math.log(2 / _TAIL_MASS - 1)
        self.register_buffer("target", torch.tensor([-target, 0.0, target]))

    @_in_float32
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize values and give their probabilities.

        Args:
            z: ``(B, C, ...)``.

        Returns:
            ``z_hat`` and likelihoods, of the shape of ``z``. ``z_hat`` is noisy in training mode; in evaluation mode it
            is rounded, so that it lies a whole number from its channel's median. Likelihoods are at least 1e-9.
        """
        values = z.transpose(0, 1).contiguous()
        z_hat = _quantize(values.reshape(self.channels, 1, -1), self.quantiles[:, :, 1:2], self.training)
        lower, upper = self.logits_cumulative(z_hat - 0.5), self.logits_cumulative(z_hat + 0.5)
        likelihood: Tensor = self.likelihood_lower_bound(torch.sigmoid(upper) - torch.sigmoid(lower))
        back = (t.reshape(values.shape).transpose(0, 1).contiguous() for t in (z_hat, likelihood))
        return next(back), next(back)

    def logits_cumulative(self, x: Tensor, *, stop_gradient: bool = False) -> Tensor:
        """Logits of the cumulative distributions.

        Args:
            x: ``(C, 1, K)``, values of each channel.
            stop_gradient: give no gradient to the distributions' parameters, only to ``x``.

        Returns:
            ``(C, 1, K)``; ``sigmoid`` of it is the probability of a smaller value.
        """
        logits = x
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            factor = self.factors[i] if i < len(self.factors) else None
            if stop_gradient:
                matrix, bias, factor = matrix.detach(), bias.detach(), None if factor is None else factor.detach()
            logits = torch.matmul(F.softplus(matrix), logits) + bias
            if factor is not None:
                logits = logits + torch.tanh(factor) * torch.tanh(logits)
        return logits

    def loss(self) -> Tensor:
        """Auxiliary loss, a scalar: distance of the logits of the quantiles from those of tail mass 1e-9 and median.

        An optimizer of its own minimizes it. Only ``quantiles`` have a gradient.
        """
        with outside_autocast(self.quantiles.device):
            logits = self.logits_cumulative(self.quantiles, stop_gradient=True)
            return torch.abs(logits - self.target).sum()

    @torch.no_grad()
    def tables(self) -> SymbolTables:
        """One probability table per channel, from quantile to quantile, around the median.

        Raises:
            ValueError: the parameters give no probabilities.
        """
        twin = copy.deepcopy(self).cpu().float()
        with torch.device("cpu"):
            ends = twin.quantiles[:, 0]
            medians = ends[:, 1]
            below = torch.clamp(torch.ceil(medians - ends[:, 0]).int(), min=0)
            above = torch.clamp(torch.ceil(ends[:, 2] - medians).int(), min=0)
            start, lengths = medians - below, above + below + 1
            samples = torch.arange(int(lengths.max()))[None, :] + start[:, None, None]
            lower, upper = twin.logits_cumulative(samples - 0.5), twin.logits_cumulative(samples + 0.5)
            pmf = (torch.sigmoid(upper) - torch.sigmoid(lower))[:, 0]
            # The upper tail is taken at the end of the longest table, for all of them, as CompressAI does.
            tail = torch.sigmoid(lower[:, 0, :1]) + torch.sigmoid(-upper[:, 0, -1:])
        return _symbol_tables(pmf, tail, lengths, -below)


class GaussianConditional(nn.Module):
    """Gaussians with given scales (and means), for values that a hyperprior predicts."""

    scale_bound: Tensor
    constant_buffers: ClassVar[tuple[str, ...]] = ("scale_bound",)

    def __init__(self) -> None:
        super().__init__()
        self.likelihood_lower_bound = LowerBound(_TAIL_MASS)
        self.lower_bound_scale = LowerBound(SMALLEST_SCALE)
        self.register_buffer("scale_bound", torch.tensor([SMALLEST_SCALE]))

    @_in_float32
    def forward(self, y: Tensor, scales: Tensor, means: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Quantize values and give their probabilities.

        Args:
            y: ``(B, M, h, w)``.
            scales: standard deviations ``(B, M, h, w)``; below 0.11 they count as 0.11.
            means: ``(B, M, h, w)``; 0 if left out.

        Returns:
            ``y_hat`` and likelihoods, ``(B, M, h, w)``. ``y_hat`` is noisy in training mode; in evaluation mode it is
            rounded, so that it lies a whole number from its mean. Likelihoods are at least 1e-9.
        """
        y_hat = _quantize(y, means, self.training)
        distance = torch.abs(y_hat if means is None else y_hat - means)
        likelihood: Tensor = self.likelihood_lower_bound(_interval(distance, self.lower_bound_scale(scales)))
        return y_hat, likelihood


def _normal_cdf(x: Tensor) -> Tensor:
    """Cumulative standard normal distribution; precise in the lower tail."""
    return 0.5 * torch.erfc(-(2**-0.5) * x)


def _interval(distance: Tensor, scales: Tensor) -> Tensor:
    """Probability of an interval of width 1 at a distance of 0 or more from the mean."""
    return _normal_cdf((0.5 - distance) / scales) - _normal_cdf((-0.5 - distance) / scales)


# -- tables ------------------------------------------------------------------------------------------------------


def scale_table() -> Tensor:
    """The standard deviations that have a table, ``(64,)``, 0.11 to 256; float32 whatever the default dtype."""
    steps = torch.linspace(math.log(SMALLEST_SCALE), math.log(256), 64, dtype=torch.float32, device="cpu")
    return torch.exp(steps)


@functools.cache
def gaussian_tables() -> SymbolTables:
    """One probability table for each standard deviation of :func:`scale_table`, with a tail mass of 1e-9."""
    scales = scale_table()
    with torch.device("cpu"):
        centers = torch.ceil(scales * -NormalDist().inv_cdf(_TAIL_MASS / 2)).int()
        lengths = 2 * centers + 1
        distance = torch.abs(torch.arange(int(lengths.max())).int() - centers[:, None]).float()
        lower = _normal_cdf((-0.5 - distance) / scales[:, None])
        return _symbol_tables(_interval(distance, scales[:, None]), 2 * lower[:, :1], lengths, -centers)


def _symbol_tables(pmf: Tensor, tail: Tensor, lengths: Tensor, offsets: Tensor) -> SymbolTables:
    """Tables of probabilities ``(T, L)``, of which ``lengths`` count, and of the escape, ``tail`` ``(T, 1)``."""
    rows = zip(pmf.numpy(), tail.numpy(), lengths.tolist(), strict=True)
    cdfs = [pmf_to_quantized_cdf(np.concatenate([row[:length], end])) for row, end, length in rows]
    return SymbolTables.from_rows(cdfs, offsets.numpy())


def pmf_to_quantized_cdf(pmf: Sequence[float] | NDArray[np.float32]) -> NDArray[np.int64]:
    """Cumulative counts, from 0 to 65536, of float32 probabilities; every symbol has a count of 1 or more.

    Probabilities are rounded to 16 bits and scaled to a sum of 65536. Symbols whose count is 0 then take 1 each from
    those of the smallest counts above 1, the first of them first.

    Args:
        pmf: ``(K,)``, probabilities, whose sum need not be 1.

    Returns:
        ``(K + 1,)``, strictly ascending.

    Raises:
        ValueError: a probability is negative or not finite, all round to 0, or there are more symbols than counts.
    """
    probabilities = np.asarray(pmf, dtype=np.float32).astype(np.float64)
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        raise ValueError("probabilities must be finite and at least 0; the entropy model's parameters are damaged")
    counts = np.floor(probabilities * 2**_PRECISION + 0.5).astype(np.int64)  # halves go up, as in C
    if not counts.any():
        raise ValueError("all probabilities round to 0; the entropy model's parameters are damaged")
    counts = counts * 2**_PRECISION // counts.sum()
    counts[-1] += 2**_PRECISION - counts.sum()
    without = counts == 0
    donors = np.argsort(counts, kind="stable")
    spare = np.maximum(counts[donors] - 1, 0)
    if spare.sum() < without.sum():
        raise ValueError(f"{len(counts)} symbols share {2**_PRECISION} counts; each needs one")
    counts[donors] -= np.clip(without.sum() - (np.cumsum(spare) - spare), 0, spare)
    counts[without] = 1
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
