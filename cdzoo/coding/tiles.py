"""Convolutional transforms of large images, tile by tile, in bounded memory.

Each tile of the output is computed from the part of the input that it depends on. Beyond the image, a layer sees the
same padding as without tiles, so results are equal up to the rounding of a convolution's sums, which may depend on the
size of its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdzoo.coding.layers import GDN

__all__ = ["TILE", "Range", "analyze", "input_range", "pad_to_multiple", "synthesize"]

TILE = 1024
"""Rows and columns of a tile, in pixels. Images of more than two tiles are transformed tile by tile."""

Range = tuple[int, int]
"""Rows (or columns) from the first to before the second."""

_POINTWISE = (
    GDN, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh,
    nn.Sigmoid, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d,
)  # fmt: skip


def input_range(module: nn.Module, output: Range) -> Range | None:
    """The inputs on which a range of outputs depends, along one axis; it may reach beyond the image.

    Known are convolutions, transposed convolutions, functions of single positions, ``nn.Sequential`` of these, and
    modules that have a method ``input_range(output)`` themselves.

    Args:
        module: a layer or a chain of layers, in inference behavior.
        output: rows or columns of the output.

    Returns:
        rows or columns of the input; ``None`` if a layer is not known.
    """
    first, end = output
    if isinstance(module, nn.Sequential):
        found: Range | None = output
        for layer in reversed(module):
            found = None if found is None else input_range(layer, found)
        return found
    if isinstance(module, _POINTWISE):
        return output
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return _through_convolution(module, first, end)
    own = getattr(module, "input_range", None)
    return own(output) if callable(own) else None


def _through_convolution(module: nn.Conv2d | nn.ConvTranspose2d, first: int, end: int) -> Range | None:
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
    if module.padding_mode != "zeros" or any(isinstance(pair, str) or pair[0] != pair[1] for pair in geometry):
        return None
    kernel, stride, padding, dilation = (int(pair[0]) for pair in geometry)
    reach = dilation * (kernel - 1)
    if isinstance(module, nn.ConvTranspose2d):  # input i adds to the outputs from i * stride - padding on
        return -((reach - first - padding) // stride), (end - 1 + padding) // stride + 1
    return first * stride - padding, (end - 1) * stride - padding + reach + 1


def analyze(codec: Any, x: Tensor, *, like: Tensor) -> Tensor:
    """Images of any size to latents, by ``codec.analyze``; large images tile by tile.

    Args:
        codec: a codec in inference behavior.
        x: ``(B, 3, H, W)``.
        like: a tensor of the device and dtype in which the codec computes.

    Returns:
        ``(B, M, h, w)`` float32.
    """
    stride, (module, _) = codec.stride, codec.convolutions()
    size = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
    if not _in_tiles(module, size, stride):
        y: Tensor = codec.analyze(pad_to_multiple(x.to(like), stride)).float()
        return y
    y = torch.empty(x.shape[0], codec.latent_channels, *size, device=like.device)
    for image, rows, columns in _tiles(x.shape[0], size, stride):
        # whole latent samples, as far as the image reaches
        top, bottom = _clipped(module, rows, size[0], stride)
        left, right = _clipped(module, columns, size[1], stride)
        part = x[image : image + 1, :, stride * top : stride * bottom, stride * left : stride * right]
        part = codec.analyze(pad_to_multiple(part.to(like), stride))[0]
        part = part[:, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
        y[image, :, slice(*rows), slice(*columns)] = part
    return y


def synthesize(codec: Any, y_hat: Tensor, image_size: tuple[int, int], *, like: Tensor) -> Tensor:
    """Latents to images, by ``codec.synthesize``; large images tile by tile.

    Args:
        codec: a codec in inference behavior.
        y_hat: ``(B, M, h, w)``.
        image_size: ``(H, W)``.
        like: a tensor of the device and dtype in which the codec computes.

    Returns:
        ``(B, 3, H, W)`` float32, clamped to ``[0, 1]``.
    """
    stride, (_, module) = codec.stride, codec.convolutions()
    size = y_hat.shape[2], y_hat.shape[3]
    if not _in_tiles(module, size, stride):
        return codec.synthesize(y_hat.to(like))[..., : image_size[0], : image_size[1]].float().clamp(0, 1)  # type: ignore[no-any-return]
    x_hat = torch.empty(y_hat.shape[0], 3, *image_size, device=like.device)
    for image, rows, columns in _tiles(y_hat.shape[0], size, stride):
        above, beside = (stride * rows[0], stride * rows[1]), (stride * columns[0], stride * columns[1])
        top, bottom = _clipped(module, above, size[0])
        left, right = _clipped(module, beside, size[1])
        part = codec.synthesize(y_hat[image : image + 1, :, top:bottom, left:right].to(like))[0]
        target = x_hat[image, :, slice(*above), slice(*beside)]  # ends with the image
        part = part[:, above[0] - stride * top :, beside[0] - stride * left :]
        target.copy_(part[:, : target.shape[1], : target.shape[2]]).clamp_(0, 1)
    return x_hat


def _in_tiles(module: nn.Module | None, size: tuple[int, int], stride: int) -> bool:
    large = size[0] * size[1] * stride**2 > 2 * TILE**2
    return large and module is not None and input_range(module, (0, 1)) is not None


def _tiles(batch: int, size: tuple[int, int], stride: int) -> Iterator[tuple[int, Range, Range]]:
    """Every image, and ranges of rows and columns of latents that cover it."""
    side = max(1, TILE // stride)
    rows, columns = ([(start, min(start + side, n)) for start in range(0, n, side)] for n in size)
    return product(range(batch), rows, columns)


def _clipped(module: nn.Module | None, output: Range, length: int, unit: int = 1) -> Range:
    """The units of the input, of ``length`` in all, on which a range of outputs depends."""
    found = None if module is None else input_range(module, output)
    assert found is not None
    return max(0, found[0] // unit), min(length, -(-found[1] // unit))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad ``(B, C, H, W)`` at the bottom and on the right by replication until ``H, W`` are multiples."""
    bottom, right = (-x.shape[-2] % multiple, -x.shape[-1] % multiple)
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
