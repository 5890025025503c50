"""Convolution of DCT coefficient maps (Ehrlich and Davis, sec. 4.1).

A convolution C of pixels becomes the map ``Xi = J C J~`` of coefficients (eq. 11). ``"factored"`` applies the three
in turn; ``"explicit"`` multiplies them out into one dense matrix (eq. 12-13). Both are the same linear map.

The paper claims that the dense map is cheaper. It is not: the map has no shift structure that a convolution could use.
A 3x3 layer takes ``(64 Hb Wb)^2`` multiply-adds per pair of channels instead of ``9 H W``, and as much memory. For a
ResNet-50 at 256 px this is 830 times the arithmetic of the pixel network, and terabytes per layer. So
:func:`jpeg_conv2d_map` raises an error above a memory budget. Use ``"explicit"`` to study the paper, and ``"factored"``
for everything else.

The map is built without the paper's J~. Each filter tap shifts rows and columns. A shift along one axis is a matrix
between coefficient vectors. ``Xi`` is the sum over taps of the weight times the Kronecker product of two such matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdzoo._torch import outside_autocast
from cdzoo.jpeg import dct
from cdzoo.jpeg.geometry import num_blocks

__all__ = ["JPEGConv2d", "jpeg_conv2d", "jpeg_conv2d_map", "jpeg_conv2d_map_bytes"]

Pair = int | tuple[int, int]
DEFAULT_MEMORY_BUDGET = 4 * 2**30


def jpeg_conv2d(
    c: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    image_size: tuple[int, int] | None = None,
    mode: str = "factored",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Tensor:
    """2-D convolution of a coefficient map: the DCT of ``F.conv2d`` of the pixels, exactly.

    Args:
        c: coefficients ``(B, C, Hb, Wb, 8, 8)``, orthonormal.
        weight: filters ``(C', C / groups, kh, kw)`` of the pixel domain.
        bias: ``(C',)`` or ``None``.
        stride: step in pixels.
        padding: zeros on each side in pixels, or ``"same"`` or ``"valid"``, as in ``F.conv2d``.
        dilation: distance of filter taps in pixels.
        groups: number of groups of channels.
        image_size: ``(H, W)`` in pixels where these are not multiples of 8; what lies beyond is ignored.
        mode: ``"factored"`` (inverse DCT, convolution, DCT) or ``"explicit"`` (one dense product, no inverse DCT).
        memory_budget: bytes that the dense map may take.

    Returns:
        ``(B, C', Hb', Wb', 8, 8)`` for an image of :func:`conv_output_size`, with zeros beyond it.

    Raises:
        ValueError: an unknown mode, or shapes that don't fit.
        MemoryError: the dense map would need more than ``memory_budget`` bytes.
    """
    check_mode(mode)
    if mode == "explicit":
        size = map_size(c, image_size)
        xi = jpeg_conv2d_map(
            weight, size, stride=stride, padding=padding, dilation=dilation, memory_budget=memory_budget
        )
        out_size = conv_output_size(size, tuple(weight.shape[2:]), stride=stride, padding=padding, dilation=dilation)
        return _apply_map(c, xi, bias, groups, out_size)
    x = dct.unblockify(dct.idct2d(c), image_size)
    return dct.dct2d(dct.blockify(F.conv2d(x, weight, bias, stride, padding, dilation, groups)))


def jpeg_conv2d_map(
    weight: Tensor,
    image_size: tuple[int, int],
    *,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Tensor:
    """The map Xi of eq. 13 for one image size; differentiable with respect to the filters.

    Args:
        weight: filters ``(C', C / groups, kh, kw)``.
        image_size: ``(H, W)`` of the input in pixels; partial blocks are cropped and masked by the map itself.
        stride: step in pixels.
        padding: as :func:`jpeg_conv2d`.
        dilation: distance of filter taps in pixels.
        memory_budget: bytes that the map may take.

    Returns:
        ``(C', Hb', Wb', 8, 8, C / groups, Hb, Wb, 8, 8)``.

    Raises:
        MemoryError: the map needs more than ``memory_budget`` bytes.
    """
    kernel = (weight.shape[2], weight.shape[3])
    out_size = conv_output_size(image_size, kernel, stride=stride, padding=padding, dilation=dilation)
    num_bytes = jpeg_conv2d_map_bytes(
        weight.shape[0], weight.shape[1], image_size, out_size, itemsize=weight.element_size()
    )
    if num_bytes > memory_budget:
        raise MemoryError(
            f"the explicit map of a {weight.shape[1]} -> {weight.shape[0]} channel convolution at {image_size[0]}x"
            f"{image_size[1]} px needs {format_bytes(num_bytes)}, over the memory budget of "
            f'{format_bytes(memory_budget)}; use mode="factored" or "fused", a smaller image, or raise memory_budget'
        )
    pads = axis_padding(padding, kernel, pair(dilation))
    rows, columns = (
        _tap_maps(image_size[i], out_size[i], kernel[i], pair(stride)[i], pads[i][0], pair(dilation)[i], weight)
        for i in (0, 1)
    )
    return torch.einsum("pqij,iyaYA,jxbXB->pyxabqYXAB", weight, rows, columns)


def jpeg_conv2d_map_bytes(
    out_channels: int,
    in_channels_per_group: int,
    image_size: tuple[int, int],
    out_size: tuple[int, int],
    *,
    itemsize: int = 4,
) -> int:
    """Bytes of :func:`jpeg_conv2d_map`: 64 times 64 numbers for each pair of channels and each pair of blocks."""
    blocks_in, blocks_out = (num_blocks(h) * num_blocks(w) for h, w in (image_size, out_size))
    return out_channels * in_channels_per_group * blocks_in * blocks_out * 64 * 64 * itemsize


class JPEGConv2d(nn.Conv2d):
    """:func:`jpeg_conv2d` as a layer; parameters and state dict are those of ``torch.nn.Conv2d``.

    In ``"explicit"`` mode, the map is built from the filters at every call that gives them a gradient, and in training.
    In evaluation mode, under ``torch.no_grad()`` or with frozen filters, the map of each image size is built once and
    kept as a buffer (not in the state dict); it follows changes of the filters. ``train()`` frees these buffers.

    Args:
        in_channels: ``C``.
        out_channels: ``C'``.
        kernel_size: rows and columns of a filter, in pixels.
        stride: step in pixels.
        padding: zeros on each side in pixels, ``"same"`` or ``"valid"``.
        dilation: distance of filter taps in pixels.
        groups: number of groups of channels.
        bias: whether there is one.
        mode: ``"factored"`` or ``"explicit"``.
        memory_budget: bytes that one explicit map may take.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        mode: str = "factored",
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_mode(mode)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.mode = mode
        self.memory_budget = memory_budget
        self._mapped: Tensor | None = None  # the filters that the stored maps were made of

    def forward(self, c: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """``(B, C, Hb, Wb, 8, 8)`` to ``(B, C', Hb', Wb', 8, 8)``; see :func:`jpeg_conv2d`."""
        constant = not (self.training or self.weight.is_meta or (torch.is_grad_enabled() and self.weight.requires_grad))
        if self.mode == "explicit" and constant:
            size = map_size(c, image_size)
            return _apply_map(c, self._stored_map(size), self.bias, self.groups, self.output_size(size))
        return jpeg_conv2d(
            c,
            self.weight,
            self.bias,
            groups=self.groups,
            **geometry_of(self),
            image_size=image_size,
            mode=self.mode,
            memory_budget=self.memory_budget,
        )

    def output_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """``(H', W')`` of the output in pixels, for the layers that follow."""
        return conv_output_size(image_size, self.kernel_size, **geometry_of(self))

    def map_bytes(self, image_size: tuple[int, int]) -> int:
        """Bytes of the explicit map for images of ``(H, W)`` pixels."""
        channels = (self.out_channels, self.in_channels // self.groups)
        return jpeg_conv2d_map_bytes(
            *channels, image_size, self.output_size(image_size), itemsize=self.weight.element_size()
        )

    def train(self, mode: bool = True) -> JPEGConv2d:
        """Switch the mode, as in PyTorch; training mode drops the stored maps."""
        if mode:
            self._drop_maps()
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{super().extra_repr()}, mode={self.mode!r}"  # type: ignore[no-untyped-call]

    def _stored_map(self, size: tuple[int, int]) -> Tensor:
        # Values are compared: version counters miss what is assigned, written through .data, or in inference mode.
        weight, mapped = self.weight.detach(), self._mapped
        place = None if mapped is None else (mapped.dtype, mapped.device)
        if mapped is None or place != (weight.dtype, weight.device) or not torch.equal(weight, mapped):
            self._drop_maps()
            self._mapped = weight.clone()
        name = f"xi_{size[0]}x{size[1]}"
        if name not in self._buffers:
            with torch.no_grad(), outside_autocast(weight.device):  # it serves calls outside, too
                xi = jpeg_conv2d_map(self.weight, size, **geometry_of(self), memory_budget=self.memory_budget)
            self.register_buffer(name, xi, persistent=False)
        return self.get_buffer(name)

    def _drop_maps(self) -> None:
        for name in [name for name in self._buffers if name.startswith("xi_")]:
            delattr(self, name)


def geometry_of(conv: nn.Conv2d) -> dict[str, Any]:
    """Stride, padding and dilation of a convolution, as keyword arguments."""
    return {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}


def conv_output_size(
    image_size: tuple[int, int], kernel: tuple[int, ...], *, stride: Pair, padding: Pair | str, dilation: Pair
) -> tuple[int, int]:
    """``(H', W')`` of a convolution of ``(H, W)`` pixels; ``ValueError`` where nothing is left."""
    steps, gaps = pair(stride), pair(dilation)
    pads = axis_padding(padding, (kernel[0], kernel[1]), gaps)
    height, width = ((image_size[i] + sum(pads[i]) - gaps[i] * (kernel[i] - 1) - 1) // steps[i] + 1 for i in (0, 1))
    if height < 1 or width < 1:
        raise ValueError(
            f"a {kernel[0]}x{kernel[1]} filter with padding {padding} and dilation {dilation} doesn't fit into "
            f"{image_size[0]}x{image_size[1]} pixels; take a larger image or more padding"
        )
    return height, width


def axis_padding(
    padding: Pair | str, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros ``((top, bottom), (left, right))`` that ``F.conv2d`` adds."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [dilation[i] * (kernel[i] - 1) for i in (0, 1)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    if isinstance(padding, str):
        raise ValueError(f'padding={padding!r}: take "same", "valid", or a number of pixels')
    top, left = pair(padding)
    return (top, top), (left, left)


def map_size(c: Tensor, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """``(H, W)`` in pixels of a map ``(..., Hb, Wb, 8, 8)``."""
    dct.check_image_size(c, image_size)
    return (8 * c.shape[-4], 8 * c.shape[-3]) if image_size is None else image_size


def check_mode(mode: str) -> None:
    """Refuse a ``mode`` that is none of the two forms of a layer.

    Raises:
        ValueError: another mode.
    """
    if mode not in ("factored", "explicit"):
        raise ValueError(f'mode={mode!r}: a layer runs "factored" (IDCT, op, DCT) or "explicit" (one dense map)')


def format_bytes(num_bytes: float) -> str:
    """``1536`` as ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"


def _tap_maps(n_in: int, n_out: int, kernel: int, stride: int, pad: int, dilation: int, like: Tensor) -> Tensor:
    """``(kernel, out blocks, 8, in blocks, 8)``: what each tap does to coefficient vectors along one axis."""
    out = torch.arange(n_out, device=like.device)[None, :] * stride - pad
    source = out + torch.arange(kernel, device=like.device)[:, None] * dilation
    shifts = source[..., None] == torch.arange(n_in, device=like.device)
    shifts = F.pad(shifts.to(torch.uint8), (0, -n_in % 8, 0, -n_out % 8))
    d = dct.dct_matrix(device=like.device)
    blocks = torch.unflatten(torch.unflatten(shifts.to(d.dtype), 2, (-1, 8)), 1, (-1, 8))
    return torch.einsum("am,iymYn,An->iyaYA", d, blocks, d).to(like.dtype)


def _apply_map(c: Tensor, xi: Tensor, bias: Tensor | None, groups: int, out_size: tuple[int, int]) -> Tensor:
    if c.shape[1] != groups * xi.shape[5]:
        raise ValueError(f"the filters take {groups * xi.shape[5]} channels, but the map has {c.shape[1]}")
    inputs = c.reshape(c.shape[0], groups, -1)
    matrices = xi.reshape(groups, -1, inputs.shape[2])
    out = torch.einsum("bgk,gmk->bgm", inputs, matrices).reshape(c.shape[0], *xi.shape[:5])
    return out if bias is None else out + bias.view(-1, 1, 1, 1, 1) * flat_image(out, out_size)


def flat_image(c: Tensor, image_size: tuple[int, int] | None) -> Tensor:
    """Coefficients of an image of ones, zero beyond the image: ``(8, 8)`` if whole blocks, else ``(Hb, Wb, 8, 8)``."""
    if image_size is None or (image_size[0] % 8 == 0 and image_size[1] % 8 == 0):
        dct.check_image_size(c, image_size)
        return F.pad(torch.full((1, 1), 8.0, dtype=c.dtype, device=c.device), (0, 7, 0, 7))
    return dct.dct2d(dct.image_mask(c, image_size))


def pair(value: Pair) -> tuple[int, int]:
    """(rows, columns) of an option of a convolution, which one number may stand for."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
