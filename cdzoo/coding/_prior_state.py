"""The integers that give a codec's bits their meaning, for codecs with a learned prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cdzoo.coding.base import CodingState
from cdzoo.coding.integer_decoder import ACTIVATION_BITS, IntegerDecoder
from cdzoo.coding.layers import EntropyBottleneck, gaussian_tables, scale_table
from cdzoo.coding.rans import SymbolTables

__all__ = ["UNIT", "FactorizedState", "HyperpriorState"]

UNIT = float(2**ACTIVATION_BITS)
"""Medians, scales and means are integers in units of ``1 / UNIT``."""

_MAX_TABLE = 1 << 14


class FactorizedState(CodingState):
    """Probability tables and medians of an entropy bottleneck.

    Attributes:
        tables: one table per channel.
        medians: ``(C,)`` int64, in units of ``2^-ACTIVATION_BITS``.
    """

    def __init__(self, tables: SymbolTables, medians: Tensor) -> None:
        if medians.shape != (tables.num_tables,) or medians.is_floating_point():
            raise ValueError(f"{tables.num_tables} tables need as many integer medians, not {tuple(medians.shape)}.")
        self.tables, self.medians = tables, medians.cpu().long()

    @classmethod
    def derive(cls, bottleneck: EntropyBottleneck) -> FactorizedState:
        """From an entropy bottleneck's parameters, on the CPU in float32 whatever their device and dtype."""
        quantiles = bottleneck.quantiles.detach().cpu().float()[:, 0]
        medians = quantiles[:, 1].double()
        spans = (quantiles - quantiles[:, 1:2]).abs().max()
        if not float(spans) < _MAX_TABLE:
            raise ValueError(
                f"entropy bottleneck: quantiles lie up to {float(spans):g} from the median, but tables hold at most "
                f"{_MAX_TABLE} symbols to each side; train with aux_loss(), which keeps the quantiles in place."
            )
        return cls(bottleneck.tables(), torch.round(medians * UNIT).long())

    def state(self) -> dict[str, Tensor]:
        """See :class:`CodingState`."""
        return {"bottleneck.medians": self.medians, **named_tables("bottleneck.", self.tables)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FactorizedState:
        """The inverse of :meth:`state`."""
        return cls(tables_from("bottleneck.", state), state["bottleneck.medians"])

    def medians_on(self, device: torch.device) -> Tensor:
        """Medians as float32 ``(C, 1, 1)``."""
        return (self.medians.double() / UNIT).float().to(device).view(-1, 1, 1)

    def indexes(self, height: int, width: int, device: torch.device) -> Tensor:
        """Each channel's own table: ``(C, h, w)``."""
        count = self.tables.num_tables
        dtype = torch.uint8 if count <= 256 else torch.int32
        return torch.arange(count, device=device).to(dtype).view(-1, 1, 1).expand(-1, height, width)


class HyperpriorState(CodingState):
    """Tables of both entropy models, the boundaries between scales, and the integer hyper-decoder."""

    def __init__(
        self, bottleneck: FactorizedState, gaussian: SymbolTables, boundaries: Tensor, decoder: IntegerDecoder
    ) -> None:
        if boundaries.shape != (gaussian.num_tables - 1,) or not bool(
            (boundaries.diff() > 0).all() & (boundaries > 0).all()
        ):
            raise ValueError(
                f"{gaussian.num_tables} Gaussian tables need one boundary less, positive and in ascending order."
            )
        if gaussian.num_tables > 256:
            raise ValueError(f"{gaussian.num_tables} Gaussian tables, where an index of 8 bits tells 256 apart.")
        self.bottleneck, self.gaussian, self.decoder = bottleneck, gaussian, decoder
        self.boundaries = boundaries.cpu().float().contiguous()
        # Boundaries are rounded to the nearest bfloat16, which moves them by 0.4 % at most (a table's neighbours are
        # 13 % away) and makes an index a matter of one look-up.
        codes = self.boundaries.bfloat16().float().view(torch.int32) >> 16
        patterns = torch.arange(1 << 15, dtype=torch.int32, device="cpu")
        self._lut = torch.bucketize(patterns, codes, right=True).to(torch.uint8)

    @classmethod
    def derive(cls, bottleneck: EntropyBottleneck, h_s: Sequence[nn.Module]) -> HyperpriorState:
        """From the modules' parameters, on the CPU in float32 whatever their device and dtype."""
        return cls(FactorizedState.derive(bottleneck), gaussian_tables(), scale_table()[:-1], IntegerDecoder(h_s))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], h_s: Sequence[nn.Module]) -> HyperpriorState:
        """The inverse of :meth:`state`; ``h_s`` lends the geometry of its layers."""
        decoder = {k.removeprefix("decoder."): v for k, v in state.items() if k.startswith("decoder.")}
        return cls(
            FactorizedState.from_state(state),
            tables_from("gaussian.", state),
            state["gaussian.boundaries"],
            IntegerDecoder(h_s, decoder),
        )

    def state(self) -> dict[str, Tensor]:
        """See :class:`CodingState`."""
        return {
            **self.bottleneck.state(),
            **named_tables("gaussian.", self.gaussian),
            "gaussian.boundaries": self.boundaries,
            **{f"decoder.{k}": v for k, v in self.decoder.state().items()},
        }

    def indexes(self, scales: Tensor) -> Tensor:
        """How many boundaries lie below each scale: ``(B, M, h, w)`` uint8 from float32 scales."""
        # Positive floats are ordered like their bit patterns, and the boundaries end in 16 zero bits: v > b is then a
        # statement about the upper half of the bits of the float before v, and a look-up does what a search would.
        lut = self._lut.to(scales.device)
        before = scales.contiguous().clamp(min=torch.finfo(torch.float32).tiny).view(torch.int32)
        return lut.index_select(0, before.sub_(1).bitwise_right_shift_(16).view(-1)).view(scales.shape)


def named_tables(prefix: str, tables: SymbolTables) -> dict[str, Tensor]:
    """Tables as tensors whose names start with ``prefix``."""
    return {prefix + name: torch.from_numpy(array.copy()) for name, array in tables.state().items()}


def tables_from(prefix: str, state: Mapping[str, Tensor]) -> SymbolTables:
    """The inverse of :func:`named_tables`; tensors under the prefix that are no tables are left out."""
    names = {k: k.removeprefix(prefix) for k in state if k.startswith(prefix)}
    return SymbolTables.from_state(
        {name: state[k].cpu().numpy() for k, name in names.items() if name not in ("medians", "boundaries")}
    )
