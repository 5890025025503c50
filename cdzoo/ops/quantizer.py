"""Scalar quantization to learned levels, hard on the way forward and soft on the way back.

Source: Torfason et al., "Towards image understanding from deep compression without decoding" (ICLR 2018), appendix
A.1, which changes Agustsson et al., "Soft-to-hard vector quantization" (NeurIPS 2017): scalars in place of vectors, and
no annealing, since the forward pass is hard from the first step on.

The paper gives neither the number of levels (here 6 by default), nor where they start (here evenly spread over
``(-2, 2)``), nor sigma (here 1). It takes the entropy of "a histogram"; the one here counts hard symbols, so that its
value is what an entropy coder can reach, while its gradient is that of the soft assignments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cdzoo._checks import integer
from cdzoo.ops.entropy import histogram_rows

__all__ = ["SoftToHardQuantizer", "nearest_center", "soft_to_hard", "soft_to_hard_entropy"]


def nearest_center(y: Tensor, centers: Tensor) -> Tensor:
    """The index of the center that is nearest to each value; of two equally near ones, the smaller center's.

    Args:
        y: values of any shape.
        centers: ``(L,)``, in any order, finite.

    Returns:
        int64 of the shape of ``y``, in ``[0, L)``. NaN counts as larger than every center.
    """
    ascending, order = centers.detach().to(y.dtype).sort(stable=True)
    boundaries = (ascending[1:] + ascending[:-1]) / 2
    return order[torch.bucketize(y.detach().contiguous(), boundaries)]


def soft_to_hard(y: Tensor, centers: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Each value's nearest center, with the gradient of the softly weighted mean of all centers.

    Args:
        y: values of any shape.
        centers: ``(L,)``.
        sigma: the weights are ``softmax(-sigma (y - centers)^2)``; the larger, the harder.

    Returns:
        values of ``centers``, in the shape of ``y``; differentiable with respect to both arguments.
    """
    hard = centers.detach()[nearest_center(y, centers)]
    if not torch.is_grad_enabled():
        return hard
    soft = (_assignments(y, centers, sigma) * centers).sum(-1)
    return hard + (soft - soft.detach())  # in this order the added term is exactly 0


def soft_to_hard_entropy(y: Tensor, centers: Tensor, *, sigma: float = 1.0, per_channel: bool = False) -> Tensor:
    """Entropy of the symbols that ``y`` is quantized to: the paper's ``H(q)``.

    The value is the entropy of the histogram of nearest centers. The gradient is that of the mean cost of a symbol,
    ``-log2`` of its frequency, under soft assignments; a center without a symbol costs what one symbol of it would.

    Args:
        y: latents before quantization, ``(B, C, ...)``, or any shape for one histogram.
        centers: ``(L,)``.
        sigma: as in :func:`soft_to_hard`.
        per_channel: the mean of one entropy per channel, in place of the entropy of one histogram for all channels.
            It is never larger, and it is what tables per channel cost.

    Returns:
        bits per symbol, 0-dimensional, between 0 and ``log2(L)``. For a codec of stride 8, ``H C / 64`` bits per pixel.

    Raises:
        ValueError: ``y`` is empty, or has no channels to take ``per_channel``.
    """
    rows = histogram_rows("y", y, per_channel)
    levels, channels = len(centers), len(rows)
    places = nearest_center(rows, centers) + levels * torch.arange(channels, device=y.device).unsqueeze(1)
    count, dtype = rows.shape[1], torch.promote_types(y.dtype, torch.float32)
    hard = torch.bincount(places.flatten(), minlength=channels * levels).view(channels, levels).to(dtype) / count
    cost = -hard.clamp_min(1 / count).log2()
    soft = _assignments(rows.to(dtype), centers.to(dtype), sigma).mean(1)
    return ((hard + (soft - soft.detach())) * cost).sum(1).mean()


def _assignments(y: Tensor, centers: Tensor, sigma: float) -> Tensor:
    """``(..., L)``: weights of the centers, for each value."""
    return torch.softmax(-sigma * (y.unsqueeze(-1) - centers).square(), dim=-1)


class SoftToHardQuantizer(nn.Module):
    """``levels`` learned centers, shared by all channels, as :func:`soft_to_hard` uses them.

    Args:
        levels: ``L``, at least 2.
        sigma: hardness of the soft assignments in the backward pass.

    Attributes:
        centers: ``(L,)`` parameter.

    Raises:
        ValueError: fewer than 2 levels, or a sigma that is not positive and finite.
    """

    def __init__(self, levels: int = 6, *, sigma: float = 1.0) -> None:
        super().__init__()
        found = integer(levels)
        if found is None or found < 2:
            raise ValueError(f"levels must be an integer of at least 2, not {levels!r}; one level carries no bits")
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma must be positive and finite, not {sigma!r}")
        self.levels = levels = found
        self.sigma = sigma
        self.centers = nn.Parameter(torch.linspace(-2, 2, 2 * levels + 1)[1::2].clone())

    def forward(self, y: Tensor) -> Tensor:
        """Values of any shape to centers, in the same shape."""
        return soft_to_hard(y, self.centers, sigma=self.sigma)

    def symbols(self, y: Tensor) -> Tensor:
        """Values of any shape to indices of centers, int64 in ``[0, L)``."""
        return nearest_center(y, self.centers)

    def entropy(self, y: Tensor, *, per_channel: bool = False) -> Tensor:
        """Bits per symbol of values before quantization, differentiable; see :func:`soft_to_hard_entropy`."""
        return soft_to_hard_entropy(y, self.centers, sigma=self.sigma, per_channel=per_channel)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"levels={self.levels}, sigma={self.sigma:g}"
