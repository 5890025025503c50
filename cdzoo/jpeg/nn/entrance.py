"""The entrance of a JPEG-domain network: from a file's coefficients to its first layer, in all three modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cdzoo._checks import check_choice
from cdzoo.jpeg import dct
from cdzoo.jpeg.nn.conv import DEFAULT_MEMORY_BUDGET, JPEGConv2d, format_bytes, geometry_of
from cdzoo.jpeg.nn.maps import CoefficientMap, LayerForms
from cdzoo.jpeg.nn.stem import jpeg_coefficient_image, jpeg_stem_conv2d
from cdzoo.jpeg.planes import check_coefficients, color_matrix, colors_of, neutral_planes
from cdzoo.types import JPEGCoefficients

__all__ = ["JPEGEntrance", "make_convolutions_explicit"]


class JPEGEntrance(nn.Module):
    """Coefficients of files to what a network's layers read, with the first convolution where one is given.

    In ``"fused"`` mode that is a plain tensor; otherwise a :class:`CoefficientMap`, on which PyTorch's layers run in
    their JPEG form.

    Args:
        channels: 3 for networks that read RGB, 1 for those that read luma.
        mode: ``"fused"``, ``"factored"`` or ``"explicit"``.
        relu: ``"exact"``, ``"asm"`` or ``"apx"``; only ``"exact"`` in ``"fused"`` mode.
        num_frequencies: 1 to 15, of ASM and APX.
        chroma: ``"nearest"`` or ``"fancy"``.
        mean: of pixels in [0, 1], one number or one per channel.
        std: pixels are divided by it, likewise.
        memory_budget: bytes that all explicit maps of the network may take together, for one image size.

    Raises:
        ValueError: an option that is none of these.
    """

    basis: Tensor

    def __init__(
        self,
        *,
        channels: int = 3,
        mode: str = "fused",
        relu: str = "exact",
        num_frequencies: int = 15,
        chroma: str = "nearest",
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, ("fused", "factored", "explicit"))
        check_choice("relu", relu, ("exact", "asm", "apx"))
        check_choice("chroma", chroma, ("nearest", "fancy"))
        if mode == "fused" and relu != "exact":
            raise ValueError(
                f'relu={relu!r} approximates a ReLU on coefficients, but mode="fused" has pixels; '
                'use mode="factored" or "explicit", or relu="exact"'
            )
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: files decode to 3 channels (RGB), or 1 (luma)")
        self.channels, self.mode, self.chroma, self.memory_budget = channels, mode, chroma, memory_budget
        self.mean = _per_channel("mean", mean, channels)
        self.std = _per_channel("std", std, channels)
        if 0 in self.std:
            raise ValueError(f"std={std!r}: pixels are divided by it; it can't be 0")
        self.forms = LayerForms(mode=mode, relu=relu, num_frequencies=num_frequencies)
        self.register_buffer("basis", dct.basis_matrix(dtype=torch.float32), persistent=False)
        self._within_budget: set[tuple[int, int]] = set()

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that build it again."""
        names = ("channels", "mode", "chroma", "mean", "std", "memory_budget")
        forms = {"relu": self.forms.relu_kind, "num_frequencies": self.forms.num_frequencies}
        return {name: getattr(self, name) for name in names} | forms

    def forward(
        self, coefficients: JPEGCoefficients, conv: nn.Conv2d | None = None, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The normalized image of a batch of files, or the output of ``conv`` for it.

        Args:
            coefficients: gray, YCbCr or RGB files.
            conv: a plain convolution that reads the image; ``"fused"`` folds it in and reads its parameters only.
            dtype: of the image, that of the network; with ``conv`` its own.

        Returns:
            ``(B, channels, H, W)``, or ``(B, C', H', W')`` of ``conv``.

        Raises:
            JPEGError: color spaces and samplings without a linear decode.
        """
        check_coefficients(coefficients)
        dtype = dtype if conv is None else conv.weight.dtype
        if self.mode != "fused":
            options: dict[str, Any] = {"mean": self.mean, "std": self.std, "chroma": self.chroma}
            c = jpeg_coefficient_image(coefficients, channels=self.channels, dtype=dtype, **options)
            image: Tensor = CoefficientMap(c, coefficients.image_size, self.forms)
            return image if conv is None else conv(image)
        if conv is not None:
            return jpeg_stem_conv2d(
                coefficients,
                conv.weight,
                conv.bias,
                **geometry_of(conv),
                mean=self.mean,
                std=self.std,
                chroma=self.chroma,
                basis=self.basis,
            )
        shifts = tuple(-plane for plane in neutral_planes(coefficients.color_space, self.mean))
        rows = color_matrix(coefficients.color_space, self.channels)
        matrix = [[w / std for w in row] for row, std in zip(rows, self.std, strict=True)]
        return colors_of(coefficients, shifts, matrix, chroma=self.chroma, dtype=dtype, basis=self.basis)

    def check_memory(self, network: nn.Module, coefficients: JPEGCoefficients) -> None:
        """Refuse an image size whose explicit maps don't fit, before the first of them is built.

        Args:
            network: called with ``coefficients``; it contains this entrance.
            coefficients: a batch of files.

        Raises:
            MemoryError: all maps together need more than ``memory_budget`` bytes.
        """
        check_coefficients(coefficients)
        size = coefficients.image_size
        if self.mode != "explicit" or size in self._within_budget:
            return
        self._within_budget.add(size)  # the dry run passes here again
        try:
            needed = explicit_bytes(network, coefficients)
            if needed > self.memory_budget:
                raise MemoryError(
                    f"the explicit maps of this network need {format_bytes(needed)} for images of {size[0]}x{size[1]} "
                    f'px, over the memory budget of {format_bytes(self.memory_budget)}; use mode="fused" or '
                    '"factored", smaller images, or raise memory_budget'
                )
        except BaseException:
            self._within_budget.discard(size)
            raise

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> JPEGEntrance:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Rounded once, from the exact values; never below float32, see pixel_blocks.
        dtype = torch.promote_types(self.basis.dtype, torch.float32)
        self.basis = dct.basis_matrix(dtype=dtype, device=self.basis.device)
        return self

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"mode={self.mode!r}, chroma={self.chroma!r}, mean={self.mean}, std={self.std}"


class _ExplicitConv2d(JPEGConv2d):
    """A convolution of a network: explicit on coefficient maps, an ordinary one on pooled features."""

    def forward(self, c: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        if not isinstance(c, CoefficientMap):
            return nn.functional.conv2d(
                c, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        out = super().forward(c.coefficients, c.image_size)
        return c.replaced(out, self.output_size(c.image_size))


def make_convolutions_explicit(network: nn.Module) -> None:
    """Put explicit convolutions in the place of plain ones, around the same parameters."""
    for name, conv in list(network.named_modules()):
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
            continue  # a subclass runs as it is; its conv2d builds the map at every call
        layer = _ExplicitConv2d(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            **geometry_of(conv),
            groups=conv.groups,
            bias=conv.bias is not None,
            mode="explicit",
            memory_budget=2**63,  # the network's budget is checked as a whole
            device="meta",
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        layer.training = conv.training
        network.set_submodule(name, layer)


def explicit_bytes(network: nn.Module, coefficients: JPEGCoefficients) -> int:
    """Bytes of all explicit maps that files of this geometry need, from shapes alone: a run without memory."""
    total = 0

    def count(layer: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal total
        if isinstance(layer, JPEGConv2d) and isinstance(args[0], CoefficientMap):
            total += layer.map_bytes(args[0].image_size)

    hooks = [m.register_forward_pre_hook(count) for m in network.modules() if isinstance(m, JPEGConv2d)]
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    try:
        with torch.no_grad():
            shapes = {name: value.to("meta") for name, value in state.items()}
            functional_call(network, shapes, (coefficients.to("meta"),))
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        raise ValueError(
            f"the network makes tensors of its own that do not follow its input's device ({error}), so the memory "
            "of its explicit maps cannot be computed: make them with device=x.device, register them as buffers, or use "
            'mode="factored" or "fused"'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = (float(value),) * channels if isinstance(value, int | float) else tuple(float(v) for v in value)
    if len(values) != channels:
        raise ValueError(f"{name}={value!r}: the network reads {channels} channels, so give one number or {channels}")
    return values
