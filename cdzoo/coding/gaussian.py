"""Codecs with a learned prior: their coding state, and how a latent with a hyperprior is coded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cdzoo.coding.base import Codec
from cdzoo.coding.identity import CodingState
from cdzoo.coding.integer_decoder import ACTIVATION_BITS, IntegerDecoder
from cdzoo.coding.layers import EntropyBottleneck, GaussianConditional, gaussian_tables, scale_table
from cdzoo.coding.symbols import SymbolCoder, channel_indexes, named_tables, tables_from
from cdzoo.coding.tables import SymbolTables
from cdzoo.coding.tiles import pad_to_multiple

__all__ = ["FactorizedState", "GaussianPrior", "HyperpriorState"]

_UNIT = float(2**ACTIVATION_BITS)
"""Medians, scales and means are integers in units of ``1 / _UNIT``."""
_MAX_TABLE = 1 << 14


class FactorizedState(CodingState):
    """Probability tables and medians of an entropy bottleneck.

    Attributes:
        tables: one table per channel.
        medians: ``(C,)`` int64, in units of ``2^-ACTIVATION_BITS``.

    Raises:
        ValueError: the medians are not integers, or not one per table.
    """

    def __init__(self, tables: SymbolTables, medians: Tensor) -> None:
        if medians.shape != (tables.num_tables,) or medians.is_floating_point():
            raise ValueError(f"{tables.num_tables} tables need as many integer medians, not {tuple(medians.shape)}")
        self.tables, self.medians = tables, medians.cpu().long()

    @classmethod
    def derive(cls, bottleneck: EntropyBottleneck) -> FactorizedState:
        """From an entropy bottleneck's parameters, on the CPU in float32 whatever their device and dtype.

        Raises:
            ValueError: a quantile lies too far from its median for a table, or is not finite.
        """
        quantiles = bottleneck.quantiles.detach().cpu().float()[:, 0]
        medians = quantiles[:, 1].double()
        spans = (quantiles - quantiles[:, 1:2]).abs().max()
        if not float(spans) < _MAX_TABLE:
            raise ValueError(
                f"entropy bottleneck: quantiles lie up to {float(spans):g} from the median, but tables hold at most "
                f"{_MAX_TABLE} symbols to each side; train with aux_loss(), which keeps the quantiles in place"
            )
        return cls(bottleneck.tables(), torch.round(medians * _UNIT).long())

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> FactorizedState:
        """The inverse of :meth:`tensors`."""
        return cls(tables_from("bottleneck.", tensors), tensors["bottleneck.medians"])

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`~cdzoo.codecs.CodingState`."""
        return {"bottleneck.medians": self.medians, **named_tables("bottleneck.", self.tables)}

    def medians_on(self, device: torch.device) -> Tensor:
        """Medians as float32 ``(C, 1, 1)``."""
        return (self.medians.double() / _UNIT).float().to(device).view(-1, 1, 1)


class HyperpriorState(CodingState):
    """Tables of both entropy models, the boundaries between scales, and the integer hyper-decoder.

    Attributes:
        bottleneck: tables and medians of the hyper-latent.
        gaussian: one table per interval of scales.
        boundaries: float32, between the scales of neighboring tables.
        decoder: the hyper-decoder in integers.

    Raises:
        ValueError: more than 256 Gaussian tables, or boundaries that are not one less than the tables, positive and in
            ascending order.
    """

    def __init__(
        self, bottleneck: FactorizedState, gaussian: SymbolTables, boundaries: Tensor, decoder: IntegerDecoder
    ) -> None:
        if boundaries.shape != (gaussian.num_tables - 1,) or not bool(
            (boundaries.diff() > 0).all() & (boundaries > 0).all()
        ):
            raise ValueError(
                f"{gaussian.num_tables} Gaussian tables need one boundary less, positive and in ascending order"
            )
        if gaussian.num_tables > 256:
            raise ValueError(f"{gaussian.num_tables} Gaussian tables, but an index of 8 bits distinguishes only 256")
        self.bottleneck, self.gaussian, self.decoder = bottleneck, gaussian, decoder
        self.boundaries = boundaries.cpu().float().contiguous()
        # Boundaries are rounded to the nearest bfloat16, which moves them by 0.4 % at most (a table's neighbors are
        # 13 % away). An index then takes a single look-up.
        codes = self.boundaries.bfloat16().float().view(torch.int32) >> 16
        patterns = torch.arange(1 << 15, dtype=torch.int32, device="cpu")
        self._lut = torch.bucketize(patterns, codes, right=True).to(torch.uint8)

    @classmethod
    def derive(cls, bottleneck: EntropyBottleneck, h_s: Sequence[nn.Module]) -> HyperpriorState:
        """From the modules' parameters, on the CPU in float32 whatever their device and dtype."""
        return cls(FactorizedState.derive(bottleneck), gaussian_tables(), scale_table()[:-1], IntegerDecoder(h_s))

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], h_s: Sequence[nn.Module]) -> HyperpriorState:
        """The inverse of :meth:`tensors`; the geometry of layers is that of ``h_s``."""
        decoder = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
        return cls(
            FactorizedState.restore(tensors),
            tables_from("gaussian.", tensors),
            tensors["gaussian.boundaries"],
            IntegerDecoder(h_s, decoder),
        )

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`~cdzoo.codecs.CodingState`."""
        return {
            **self.bottleneck.tensors(),
            **named_tables("gaussian.", self.gaussian),
            "gaussian.boundaries": self.boundaries,
            **{f"decoder.{k}": v for k, v in self.decoder.state().items()},
        }

    def parameters_of(self, symbols: Tensor, size: tuple[int, int]) -> Tensor:
        """Scales (and means) from the symbols of the hyper-latent.

        Args:
            symbols: ``(B, N, h', w')`` int16.
            size: ``(h, w)`` of the latent.

        Returns:
            ``(B, M or 2 M, h, w)`` float32, the same values on every machine.
        """
        z_hat = symbols.long() * 2**ACTIVATION_BITS + self.bottleneck.medians.to(symbols.device).view(-1, 1, 1)
        # exact integers in float64, rounded to float32 once
        parameters = self.decoder(z_hat, size)
        return parameters.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / _UNIT)

    def indexes(self, scales: Tensor) -> Tensor:
        """The number of boundaries below each scale: ``(B, M, h, w)`` uint8 from float32 scales."""
        # Positive floats are ordered like their bit patterns, and the lower 16 bits of boundaries are 0. So v > b
        # depends only on the upper half of the bits of the next smaller float, and a look-up replaces the search.
        lut = self._lut.to(scales.device)
        before = scales.contiguous().clamp(min=torch.finfo(torch.float32).tiny).view(torch.int32)
        return lut.index_select(0, before.sub_(1).bitwise_right_shift_(16).view(-1)).view(scales.shape)


class GaussianPrior(Codec[HyperpriorState]):
    """A codec whose latent consists of Gaussians, with scales (and means) that a hyperprior predicts.

    A subclass provides the modules below and the image transforms.

    Attributes:
        N: channels of the hyper-latent.
        M: channels of the latent, of its scales, and of its means.
        h_a: latents ``(B, M, h, w)`` to hyper-latents ``(B, N, h', w')``.
        h_s: hyper-latents to scales (and means) of at least ``(h, w)``.
        entropy_bottleneck: entropy model of the hyper-latent, of ``N`` channels.
        gaussian_conditional: entropy model of the latent.
        hyper_stride: latent samples per sample of the hyper-latent. The latent is padded to a multiple of it inside
            the hyperprior.
        has_means: the hyperprior predicts means, too. Without, means are 0 and the hyperprior reads magnitudes.
    """

    has_scales = True
    num_parts = 2
    hyper_stride: ClassVar[int] = 4
    has_means: ClassVar[bool] = True
    N: int
    M: int
    h_a: nn.Sequential
    h_s: nn.Sequential
    entropy_bottleneck: EntropyBottleneck
    gaussian_conditional: GaussianConditional

    def aux_loss(self) -> Tensor:
        """Distance of the bottleneck's quantiles from their goal, a scalar; an optimizer of its own minimizes it."""
        return self.entropy_bottleneck.loss()

    def hyper_input(self, y: Tensor) -> Tensor:
        """Input of the hyper-encoder ``(B, M, h, w)``: latents, or their magnitudes where there are no means."""
        return y if self.has_means else torch.abs(y)

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
        """The hyper-decoder's output ``(B, M or 2 M, h, w)`` as scales and means ``(B, M, h, w)``."""
        if not self.has_means:
            return parameters, None
        scales, means = parameters.chunk(2, 1)
        return scales, means

    def estimate(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """See :class:`~cdzoo.codecs.Codec`."""
        height, width = y.shape[-2:]
        z = self.h_a(pad_to_multiple(self.hyper_input(y), self.hyper_stride))
        z_hat, z_likelihood = self.entropy_bottleneck(z)
        scales, means = self.split(self.h_s(z_hat)[..., :height, :width])
        y_hat, y_likelihood = self.gaussian_conditional(y, scales, means)
        return y_hat, scales, {"y": y_likelihood, "z": z_likelihood}

    def derive_state(self) -> HyperpriorState:
        """See :class:`~cdzoo.codecs.Codec`."""
        return HyperpriorState.derive(self.entropy_bottleneck, list(self.h_s))

    def restore_state(self, tensors: Mapping[str, Tensor]) -> HyperpriorState:
        """See :class:`~cdzoo.codecs.Codec`."""
        return HyperpriorState.restore(tensors, list(self.h_s))

    def code(
        self, coder: SymbolCoder, y: Tensor | None, shape: tuple[int, int, int], state: HyperpriorState
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`~cdzoo.codecs.Codec`: the hyper-latent, then the latent."""
        batch, height, width = shape
        z_height, z_width = -(-height // self.hyper_stride), -(-width // self.hyper_stride)
        bottleneck, device = state.bottleneck, self.device
        z = None
        if y is not None:
            dtype = next(self.h_a.parameters()).dtype
            z = self.h_a(pad_to_multiple(self.hyper_input(y.to(dtype)), self.hyper_stride)).float()
            z = z - bottleneck.medians_on(device)
        z_symbols = coder(
            z,
            (batch, self.N, z_height, z_width),
            channel_indexes(bottleneck.tables, z_height, z_width, device),
            bottleneck.tables,
        )
        scales, means = self.split(state.parameters_of(z_symbols, (height, width)))
        indexes = state.indexes(scales)
        means = None if means is None else means.to(device)
        centered = y if y is None or means is None else y - means
        y_hat = coder(centered, (batch, self.M, height, width), indexes, state.gaussian).to(device).float()
        return (y_hat if means is None else y_hat + means), scales.to(device)
