"""Entropies of latents: measured, modeled, and as losses.

Sources: Torfason et al., ICLR 2018 (equation 1); Wang et al., "Learning from the CNN-based compressed domain" (WACV
2022), section 3.3, which takes the logarithm of a variance for the entropy of a latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["GaussianEntropyLoss", "discrete_entropy", "gaussian_bits", "gaussian_entropy_loss", "target_entropy_loss"]

SMALLEST_SCALE = 0.11
SMALLEST_LIKELIHOOD = 1e-9


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision and integers as float32, which holds sums and squares of them; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def histogram_rows(name: str, y: Tensor, per_channel: bool) -> Tensor:
    """Values of which a histogram each is made, ``(C, n)`` of latents ``(B, C, ...)`` or ``(1, n)``.

    Raises:
        ValueError: ``y`` is empty, or has no channels to take ``per_channel``.
    """
    if y.numel() == 0:
        raise ValueError(f"the entropy of no values is not defined: {name} has shape {tuple(y.shape)}.")
    if per_channel and y.dim() < 2:
        raise ValueError(f"per_channel takes latents (B, C, ...), not values of shape {tuple(y.shape)}.")
    return y.transpose(0, 1).flatten(1) if per_channel else y.reshape(1, -1)


def discrete_entropy(y_hat: Tensor, *, per_channel: bool = False) -> Tensor:
    """Entropy of quantized values, from their histogram.

    It is what an ideal coder with a table of exactly these values' frequencies would spend. Equal values are one
    symbol; a codec that adds real-valued means to its symbols (``mbt2018_mean``) has hardly any equal ones, and its
    rate is in its likelihoods.

    Args:
        y_hat: values of any shape; for one image's entropy, pass one image.
        per_channel: the mean of one entropy per channel of ``(B, C, ...)``, in place of one of all values.

    Returns:
        bits per symbol, float32, 0-dimensional, without a gradient.

    Raises:
        ValueError: ``y_hat`` is empty, or has no channels to take ``per_channel``.
    """
    rows = histogram_rows("y_hat", y_hat.detach(), per_channel)
    values, symbols = torch.unique(rows, return_inverse=True)
    places = symbols + len(values) * torch.arange(len(rows), device=rows.device).unsqueeze(1)
    counts = torch.bincount(places.flatten(), minlength=len(rows) * len(values)).view(len(rows), -1)
    nats: Tensor = torch.special.entr(counts.double() / rows.shape[1]).sum(1).mean()
    return (nats / math.log(2)).float()


def target_entropy_loss(entropy: Tensor, target: float) -> Tensor:
    """``max(H - H_t, 0)``: only entropy above a target costs (Torfason et al., equation 1).

    Args:
        entropy: bits per symbol, of any shape.
        target: bits per symbol. The paper has 1.265 with 32 channels (0.635 bits per pixel) and 0.8 with 8 (0.0983), in
            joint training (A.8): at stride 8, ``H C / 64`` bits per pixel.

    Returns:
        the excess, in the shape of ``entropy``.

    Raises:
        TypeError: ``entropy`` is no tensor, which could not be minimized.
    """
    if not isinstance(entropy, Tensor):
        raise TypeError(
            f"entropy must be a tensor, such as codec.quantizer.entropy(y), not {entropy!r}; for a number, pass "
            "torch.tensor(number)"
        )
    return (entropy - target).clamp_min(0)


def gaussian_entropy_loss(y: Tensor, *, eps: float = 1e-9) -> Tensor:
    """``log(sigma^2)``, a stand-in for the entropy of a latent that is roughly Gaussian (Wang et al., section 3.3).

    A Gaussian's differential entropy is half of this and a constant, in nats. All elements of an image's latent count
    as samples of one Gaussian. The paper leaves the base of the logarithm open; here it is e.

    Over photographs, its linear correlation with the discrete entropy is close to 1 if each feature map has its own
    Gaussian (``gaussian_entropy_loss(y[0])`` takes the maps of one image for a batch). With one for the whole latent it
    may be weak where training had another rate term: see ``examples/studies/entropy_correlation.py``.

    As a loss it rewards shrinking the latent long after every symbol is 0 and no bit is left to
    save. Combine it with a distortion; the loss cannot fall below ``log(eps)``.

    Args:
        y: latents before or after quantization, ``(B, ...)``.
        eps: smallest variance; below it the loss is ``log(eps)``, without a gradient.

    Returns:
        the mean over the batch, 0-dimensional, float32 (of float64, float64); natural logarithm, to be minimized.

    Raises:
        ValueError: ``y`` has no batch dimension or no elements, or ``eps`` is not positive.
    """
    if y.dim() < 2 or y.numel() == 0:
        raise ValueError(f"y must be a batch of latents (B, ...), not of shape {tuple(y.shape)}")
    _check_eps(eps)
    variance = at_least_float32(y).flatten(1).var(1, correction=0)
    return variance.clamp_min(eps).log().mean()


def _check_eps(eps: float) -> None:
    if not eps > 0:
        raise ValueError(f"eps must be positive, not {eps!r}: the logarithm of a variance of 0 is not finite")


class GaussianEntropyLoss(nn.Module):
    """:func:`gaussian_entropy_loss` as a module.

    Args:
        eps: smallest variance.

    Raises:
        ValueError: ``eps`` is not positive.
    """

    def __init__(self, *, eps: float = 1e-9) -> None:
        super().__init__()
        _check_eps(eps)
        self.eps = eps

    def forward(self, y: Tensor) -> Tensor:
        """``(B, ...)`` to the mean logarithm of the images' variances."""
        return gaussian_entropy_loss(y, eps=self.eps)


def gaussian_bits(y_hat: Tensor, scales: Tensor) -> Tensor:
    """The bits of each symbol under a Gaussian of mean 0, integrated over the symbol's unit interval.

    Scales below 0.11 and probabilities below 1e-9 (29.9 bits) are raised to these values, as CompressAI's coders do;
    ``Latent.scales`` come without a bound.

    Args:
        y_hat: integers, any shape; for a codec with means, ``y_hat`` less the means.
        scales: standard deviations, of a shape that broadcasts with ``y_hat``.

    Returns:
        bits, in the shape of both together, float32 (of float64, float64); their sum estimates the payload's ``y``
        part.

    Raises:
        TypeError: no scales.
    """
    if scales is None:
        raise TypeError("scales is None: the codec has no hyperprior; discrete_entropy(y_hat) needs no scales")
    y_hat, scales = at_least_float32(y_hat), at_least_float32(scales)
    # The difference of two tails on the left, where erfc keeps its precision.
    inverse = 0.5**0.5 / scales.clamp_min(SMALLEST_SCALE)
    distance = y_hat.abs()
    upper, lower = (0.5 * torch.erfc((distance + offset) * inverse) for offset in (-0.5, 0.5))
    return -(upper - lower).clamp_min(SMALLEST_LIKELIHOOD).log2()
