"""A hyperprior's decoder in exact integer arithmetic, so that every machine computes the same scales and means.

A learned codec writes each symbol with a probability table that its hyper-decoder chooses. In floating point, another
order of summation sometimes moves a scale across a table boundary, and everything after that symbol is noise.
Following Ballé, Johnston and Minnen ("Integer networks for data compression with latent-variable models", ICLR 2019),
weights and activations are fixed-point integers. The arithmetic runs in float64, in which integers below 2^53 add up
exactly in any order, with or without fused multiply-adds; every sum is bounded when the network is built. Convolutions
are explicit im2col and a matrix product: a library might choose an FFT or Winograd form, whose intermediate values are
not integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["ACTIVATION_BITS", "IntegerDecoder"]

ACTIVATION_BITS = 14
"""Fractional bits of activations: the resolution of scales and means is 2^-14."""
_CLAMP_BITS = 27
"""Activations saturate at 2^27, that is at 2^13 = 8192 in real terms, far above the largest tabulated scale of 256."""
_MAX_WEIGHT_BITS = 20
_SUM_BITS = 53
_SLOPE_BITS = 16
_CHUNK_BYTES = 16 << 20

_Phase = tuple[tuple[int, int], list[tuple[int, int]], Tensor]
"""Start of an output phase, the inputs that its taps read, and its matrix ``(out, taps * in)``."""


@dataclass(frozen=True)
class _Layer:
    """One convolution with its activation, as integers."""

    weight: Tensor  # (out, in, kh, kw) int32
    bias: Tensor  # (out,) int64, at the scale of the sums: ACTIVATION_BITS + weight_bits fractional bits
    weight_bits: int
    stride: int
    padding: int
    output_padding: int
    transposed: bool
    slope: float | None  # None: no activation; 0: ReLU; else LeakyReLU

    @property
    def max_sum(self) -> int:
        """No partial sum of this layer, in any order, exceeds this."""
        rows = self.weight.long().abs().flatten(1).sum(1).tolist()
        # in Python's integers, since hostile weights could overflow 64 bits and look small
        largest = max((row << _CLAMP_BITS) + abs(bias) for row, bias in zip(rows, self.bias.tolist(), strict=True))
        return int(largest) + (1 << self.weight_bits >> 1)


class IntegerDecoder:
    """Fixed-point form of a stack of ``Conv2d`` / ``ConvTranspose2d`` with ReLU or LeakyReLU between them.

    Args:
        modules: the float layers (a hyperprior's ``h_s``).
        state: integers from :meth:`state` of the machine that made the weights. Without them, integers are derived
            from the float layers by rounding, which gives the same ones on every machine for the same float32 values.

    Raises:
        ValueError: a layer of another kind, weights that are not finite, a state that does not fit the layers, or
            sums that could reach 2^53.
    """

    def __init__(self, modules: Sequence[nn.Module], state: Mapping[str, Tensor] | None = None) -> None:
        self._layers: list[_Layer] = []
        for index, (module, slope) in enumerate(_pair_with_activations(modules)):
            layer = _quantize(module, slope) if state is None else _restore(module, slope, state, index)
            if layer.max_sum >= 2**_SUM_BITS:
                raise ValueError(
                    f"hyper-decoder layer {index}: sums could reach {layer.max_sum}, but only integers below "
                    f"2^{_SUM_BITS} are exact in float64; the weights are far outside any trained range"
                )
            self._layers.append(layer)
        # matrices per device, built on first use
        self._matrices: dict[torch.device, list[list[_Phase]]] = {}

    def state(self) -> dict[str, Tensor]:
        """The integers: ``{"0.weight": int32, "0.bias": int64, "0.bits": int32, ...}``."""
        out: dict[str, Tensor] = {}
        for index, layer in enumerate(self._layers):
            out[f"{index}.weight"] = layer.weight
            out[f"{index}.bias"] = layer.bias
            out[f"{index}.bits"] = torch.tensor(layer.weight_bits, dtype=torch.int32, device="cpu")
        return out

    def __call__(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Run the network.

        Args:
            x: ``(B, C, h, w)`` of any dtype that holds the integers exactly (int64 or float64), in units of
                ``2^-ACTIVATION_BITS``.
            size: ``(h', w')``, rows and columns of the output that are needed; all by default.

        Returns:
            ``(B, C', h', w')`` float64 holding integers in the same units, on the device of ``x``, or on the CPU
            where that device has no float64; the batch lies innermost in memory.
        """
        device = x.device if x.device.type != "mps" else torch.device("cpu")
        x = x.to(device, torch.float64).permute(1, 2, 3, 0).contiguous()
        x = x.clamp_(-(2.0**_CLAMP_BITS), 2.0**_CLAMP_BITS)
        scratch = _Scratch(x)
        for layer, matrices in zip(self._layers, self._matrices_on(device), strict=True):
            wanted = size if layer is self._layers[-1] else None
            x = _requantize(_convolve(x, layer, matrices, wanted, scratch), layer)
        return x.permute(3, 0, 1, 2)

    def _matrices_on(self, device: torch.device) -> list[list[_Phase]]:
        if device not in self._matrices:
            self._matrices[device] = [
                [(phase, taps, matrix.to(device, torch.float64)) for phase, taps, matrix in _phases(layer)]
                for layer in self._layers
            ]
        return self._matrices[device]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_matrices": {}}


def _pair_with_activations(
    modules: Sequence[nn.Module],
) -> Iterator[tuple[nn.Conv2d | nn.ConvTranspose2d, float | None]]:
    modules = list(modules)
    for module, following in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if isinstance(following, nn.ReLU):
                yield module, 0.0
            elif isinstance(following, nn.LeakyReLU):
                yield module, float(following.negative_slope)
            else:
                yield module, None
        elif not isinstance(module, nn.ReLU | nn.LeakyReLU):
            raise ValueError(
                f"a hyper-decoder may hold Conv2d, ConvTranspose2d, ReLU and LeakyReLU, not {type(module).__name__}; "
                "replace the layer"
            )


def _geometry(module: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, int | bool]:
    transposed = isinstance(module, nn.ConvTranspose2d)
    return {
        "stride": int(module.stride[0]),
        "padding": int(module.padding[0]),
        "output_padding": int(module.output_padding[0]) if transposed else 0,
        "transposed": transposed,
    }


def _apply_reparametrization(module: nn.Module) -> None:
    """Compute ``weight`` where pruning or a norm derives it from other tensors, as the next forward pass would do."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
        elif isinstance(hook, BasePruningMethod | WeightNorm):
            hook(module, None)


def _quantize(module: nn.Conv2d | nn.ConvTranspose2d, slope: float | None) -> _Layer:
    _apply_reparametrization(module)
    weight = module.weight.detach().cpu().double()
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    bias = weight.new_zeros(weight.shape[0]) if module.bias is None else module.bias.detach().cpu().double()
    if not (bool(weight.isfinite().all()) and bool(bias.isfinite().all())):
        raise ValueError("hyper-decoder weights are not finite (NaN or infinity); load an earlier checkpoint")
    # As many fractional bits as the bound on the sums leaves room for; int32 storage is a bound as well.
    reach = float(weight.abs().flatten(1).sum(1).max()) + float(bias.abs().max()) + 1.0
    bits = min(_MAX_WEIGHT_BITS, _SUM_BITS - _CLAMP_BITS - 1 - math.ceil(math.log2(reach)))
    if bits < 4:
        raise ValueError(
            f"hyper-decoder weights sum up to {reach:.3g} per output, which leaves {bits} fractional bits; at least 4 "
            "are needed; the weights are far outside any trained range"
        )
    return _Layer(
        weight=torch.round(weight * 2**bits).to(torch.int32).contiguous(),
        bias=torch.round(bias * 2.0 ** (bits + ACTIVATION_BITS)).to(torch.int64),
        weight_bits=bits,
        slope=slope,
        **_geometry(module),  # type: ignore[arg-type]
    )


def _restore(
    module: nn.Conv2d | nn.ConvTranspose2d, slope: float | None, state: Mapping[str, Tensor], index: int
) -> _Layer:
    try:
        weight, bias, bits = (state[f"{index}.{name}"] for name in ("weight", "bias", "bits"))
    except KeyError as error:
        raise ValueError(f"hyper-decoder integers lack {error}; save the codec again") from None
    shape = module.weight.shape
    if isinstance(module, nn.ConvTranspose2d):
        shape = torch.Size((shape[1], shape[0], *shape[2:]))
    if weight.shape != shape or bias.shape != shape[:1] or bits.numel() != 1:
        raise ValueError(f"hyper-decoder layer {index}: integers {tuple(weight.shape)} for weights {tuple(shape)}")
    if weight.dtype != torch.int32 or bias.dtype != torch.int64:
        raise ValueError(f"hyper-decoder layer {index}: not integers of 32 and 64 bits: {weight.dtype}, {bias.dtype}")
    if not 0 <= int(bits) <= _MAX_WEIGHT_BITS:
        raise ValueError(f"hyper-decoder layer {index}: {int(bits)} fractional bits, not 0 to {_MAX_WEIGHT_BITS}")
    return _Layer(
        weight=weight.cpu().to(torch.int32),
        bias=bias.cpu().to(torch.int64),
        weight_bits=int(bits),
        slope=slope,
        **_geometry(module),  # type: ignore[arg-type]
    )


def _phases(layer: _Layer) -> list[_Phase]:
    """Split a layer into stride-1 products: ``(output phase, input offsets, matrix (out, taps * in))``.

    A transposed convolution of stride ``s`` is ``s * s`` small convolutions whose outputs interleave; with
    ``o + padding = s q + r``, output ``o`` takes tap ``t = r + s j`` from input ``q - j``. A convolution is one phase.
    """
    kernel, stride = layer.weight.shape[-1], layer.stride
    phases: list[_Phase] = []
    if layer.transposed:
        for py, px in product(range(stride), repeat=2):
            ry, rx = ((p + layer.padding) % stride for p in (py, px))
            qy, qx = ((p + layer.padding) // stride for p in (py, px))
            pairs = list(product(range(ry, kernel, stride)[::-1], range(rx, kernel, stride)[::-1]))
            if not pairs:  # a kernel narrower than its stride leaves gaps
                continue
            offsets = [(qy - (ty - ry) // stride, qx - (tx - rx) // stride) for ty, tx in pairs]
            matrix = torch.cat([layer.weight[:, :, ty, tx] for ty, tx in pairs], 1)
            phases.append(((py, px), offsets, matrix))
    else:
        pairs = list(product(range(kernel), range(kernel)))
        offsets = [(ty - layer.padding, tx - layer.padding) for ty, tx in pairs]
        phases.append(((0, 0), offsets, torch.cat([layer.weight[:, :, ty, tx] for ty, tx in pairs], 1)))
    return phases


def _convolve(
    x: Tensor, layer: _Layer, matrices: list[_Phase], size: tuple[int, int] | None, scratch: _Scratch
) -> Tensor:
    """One layer on ``(C, h, w, B)``: with the batch innermost, windows are copied row by row, not sample by sample."""
    channels, height, width, batch = x.shape
    kernel, stride, padding = layer.weight.shape[-1], layer.stride, layer.padding
    if layer.transposed:
        out_h, out_w = ((n - 1) * stride - 2 * padding + kernel + layer.output_padding for n in (height, width))
        step, in_step = stride, 1
    else:
        out_h, out_w = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
        step, in_step = 1, stride
    if size is not None:
        out_h, out_w = min(out_h, size[0]), min(out_w, size[1])
    new = x.new_empty if len(matrices) == step * step else x.new_zeros  # a phase without taps leaves gaps
    out = new(layer.weight.shape[0], out_h, out_w, batch)
    # One margin serves every tap of every phase, at the far end also for output padding.
    margin = kernel
    x = torch.nn.functional.pad(x, (0, 0, margin, margin, margin, margin))
    down, right = x.stride()[1:3]
    for (py, px), offsets, matrix in matrices:
        target = out[:, py::step, px::step]
        rows, columns = target.shape[1:3]
        taps_down, taps_across = (len(set(axis)) for axis in zip(*offsets, strict=True))
        chunk = max(1, _CHUNK_BYTES // (8 * matrix.shape[1] * max(1, batch * columns)))
        for top in range(0, rows, chunk):
            count = min(chunk, rows - top)
            # every tap's window of the input, as one view: offsets form a grid in ascending order
            windows = x.as_strided(
                (taps_down, taps_across, channels, count, columns, batch),
                (down, right, x.stride(0), down * in_step, right * in_step, 1),
                (margin + offsets[0][0] + top * in_step) * down + (margin + offsets[0][1]) * right,
            )
            patches = scratch.take(windows.numel()).view(windows.shape).copy_(windows).view(matrix.shape[1], -1)
            part = target[:, top : top + count]
            if step == 1:
                torch.mm(matrix, patches, out=part.view(part.shape[0], -1))
            else:
                part.copy_((matrix @ patches).view(part.shape))
    return out


class _Scratch:
    """Memory for windows, allocated once per call: fresh pages cost more time than writing to them."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def take(self, count: int) -> Tensor:
        if self._memory.numel() < count:
            self._memory = self._memory.new_empty(count)
        return self._memory[:count]


def _requantize(sums: Tensor, layer: _Layer) -> Tensor:
    """Sums at ``ACTIVATION_BITS + weight_bits`` fractional bits -> activation -> ``ACTIVATION_BITS``, round half up."""
    half = 2 ** (layer.weight_bits - 1) if layer.weight_bits else 0
    sums += (layer.bias + half).to(sums.device, torch.float64).view(-1, 1, 1, 1)
    least = 0.0 if layer.slope == 0 else -(2.0**_CLAMP_BITS)
    x = sums.mul_(2.0**-layer.weight_bits).floor_().clamp_(least, 2.0**_CLAMP_BITS)
    if layer.slope is None or layer.slope == 0:
        return x
    factor = round(layer.slope * 2**_SLOPE_BITS)
    return torch.where(x >= 0, x, torch.floor((x * factor + 2 ** (_SLOPE_BITS - 1)) * 2.0**-_SLOPE_BITS))
