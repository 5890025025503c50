"""Normalization, addition and pooling of DCT coefficient maps (Ehrlich and Davis, sec. 4.3-4.5).

A coefficient map ``(B, C, Hb, Wb, 8, 8)`` is the orthonormal DCT of the 8x8 blocks of ``(B, C, H, W)``. Where ``H`` or
``W`` is not a multiple of 8, the last blocks are zero beyond the image. The layers take ``image_size=(H, W)``, count
only true pixels, and keep these zeros. Each layer equals inverse DCT, layer on pixels, DCT.

Errata of sec. 4.3 and 4.5, which work with one mean per block and a quantization step of 8 for the DC coefficient:

- The mean of a feature map is the average of *all* its DC coefficients, over 8. Setting each DC to zero would subtract
  from every block its own mean; what is subtracted is ``8 mean``, and "set the 0th position to beta" is "add 8 beta".
- Theorem 2 needs the whole map's mean removed first, not each block's.
- The running variance of ``BatchNorm2d`` is the unbiased one, and eq. 21 has no epsilon; this follows ``BatchNorm2d``.
- The DC coefficient *is* the mean only after division by 8. Quantization tables cancel between layers, so there are
  none here: dequantize once, at the entrance.
- Max-pooling, which its networks don't have, has no form in coefficients: inverse DCT, pool, DCT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdzoo._torch import outside_autocast
from cdzoo.jpeg import dct
from cdzoo.jpeg.nn.conv import Pair, flat_image, map_size

__all__ = [
    "JPEGBatchNorm2d",
    "JPEGGlobalAvgPool2d",
    "JPEGMaxPool2d",
    "jpeg_add",
    "jpeg_batch_norm",
    "jpeg_global_avg_pool",
    "jpeg_max_pool2d",
]


def jpeg_batch_norm(
    c: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    image_size: tuple[int, int] | None = None,
) -> Tensor:
    """Batch normalization of a coefficient map, from its coefficients alone (sec. 4.3).

    Args:
        c: ``(B, C, Hb, Wb, 8, 8)``, zero beyond the image.
        running_mean: ``(C,)``; updated in place when training, as by ``F.batch_norm``.
        running_var: ``(C,)``, unbiased; likewise.
        weight: the paper's gamma, ``(C,)``.
        bias: the paper's beta, ``(C,)``.
        training: whether statistics come from this batch. Without running statistics they always do.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.
        image_size: ``(H, W)`` in pixels where these are not multiples of 8.

    Returns:
        ``(B, C, Hb, Wb, 8, 8)`` in the dtype of ``c``, zero beyond the image. Half precision is computed in float32.

    Raises:
        ValueError: one value per channel in training, whose variance is not defined; ``image_size`` doesn't fit.
    """
    dtype, c = c.dtype, c.to(torch.promote_types(c.dtype, torch.float32))
    with outside_autocast(c.device):
        ones = flat_image(c, image_size)
    if training or running_mean is None or running_var is None:
        height, width = map_size(c, image_size)
        count = c.shape[0] * height * width
        if count == 1:
            raise ValueError("batch statistics need more than one value per channel; use eval() or a larger batch")
        # The DC coefficient is a block's sum over 8, partial blocks included: their zeros add nothing.
        mean = 8 * c[..., 0, 0].sum((0, 2, 3)) / count
        centered = c - _per_channel(mean) * ones
        var = centered.square().sum((0, 2, 3, 4, 5)) / count
        if running_mean is not None and running_var is not None and training:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    else:
        mean, var = running_mean.to(c.dtype), running_var.to(c.dtype)
        centered = c - _per_channel(mean) * ones
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    out: Tensor = centered * _per_channel(scale)
    return (out if bias is None else out + _per_channel(bias) * ones).to(dtype)


def jpeg_add(c: Tensor, other: Tensor) -> Tensor:
    """Sum of two maps ``(B, C, Hb, Wb, 8, 8)`` of images of one size (eq. 25).

    Raises:
        ValueError: the shapes differ: maps of different sizes have no pixelwise sum.
    """
    if c.shape != other.shape:
        raise ValueError(f"maps of shapes {tuple(c.shape)} and {tuple(other.shape)} can't be added; make them equal")
    return c + other


def jpeg_max_pool2d(
    c: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    *,
    image_size: tuple[int, int] | None = None,
) -> Tensor:
    """Max-pooling: inverse DCT, pool, DCT; the paper has no other form and there is none.

    Args:
        c: ``(B, C, Hb, Wb, 8, 8)``.
        kernel_size: rows and columns of the window, in pixels.
        stride: step in pixels; the window by default.
        padding: pixels of minus infinity on each side.
        dilation: distance of the window's elements in pixels.
        ceil_mode: whether windows may hang over the end.
        image_size: ``(H, W)`` in pixels where these are not multiples of 8.

    Returns:
        ``(B, C, Hb', Wb', 8, 8)``, zero beyond the pooled image.

    Raises:
        ValueError: the last two dimensions are not 8x8, or ``image_size`` doesn't fit.
    """
    x = dct.unblockify(dct.idct2d(c), image_size)
    return dct.dct2d(dct.blockify(F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)))


def jpeg_global_avg_pool(c: Tensor, *, image_size: tuple[int, int] | None = None) -> Tensor:
    """Global average pooling: an eighth of the mean DC coefficient (sec. 4.5).

    Args:
        c: ``(B, C, Hb, Wb, 8, 8)``, zero beyond the image.
        image_size: ``(H, W)`` in pixels where these are not multiples of 8.

    Returns:
        ``(B, C)``, means of pixels in the dtype of ``c``. Half precision is summed up in float32.

    Raises:
        ValueError: ``image_size`` doesn't fit.
    """
    height, width = map_size(c, image_size)
    total = c[..., 0, 0].sum((-2, -1), dtype=torch.promote_types(c.dtype, torch.float32))
    return (8 * total / (height * width)).to(c.dtype)


class JPEGBatchNorm2d(nn.BatchNorm2d):
    """:func:`jpeg_batch_norm` as a layer; arguments, parameters and statistics are those of ``nn.BatchNorm2d``."""

    def forward(self, c: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """``(B, C, Hb, Wb, 8, 8)`` to the same shape."""
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average
                momentum = 1.0 / float(self.num_batches_tracked)
        return jpeg_batch_norm(
            c,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=momentum,
            eps=self.eps,
            image_size=image_size,
        )


class JPEGMaxPool2d(nn.Module):
    """:func:`jpeg_max_pool2d` as a layer; arguments as there."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def forward(self, c: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """``(B, C, Hb, Wb, 8, 8)`` to ``(B, C, Hb', Wb', 8, 8)``."""
        return jpeg_max_pool2d(
            c,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
            image_size=image_size,
        )

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class JPEGGlobalAvgPool2d(nn.Module):
    """:func:`jpeg_global_avg_pool` as a layer: ``(B, C, Hb, Wb, 8, 8)`` to ``(B, C)``."""

    def forward(self, c: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """``(B, C, Hb, Wb, 8, 8)`` to ``(B, C)``."""
        return jpeg_global_avg_pool(c, image_size=image_size)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)
