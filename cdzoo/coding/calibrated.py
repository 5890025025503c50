"""Codecs that learn no entropy model: their symbol tables are measured, channel by channel.

``calibrate`` counts symbols over a set of images and keeps the counts in a buffer of integers, which travels in the
state dict. Tables follow from the counts by integer arithmetic, so they are the same wherever they are made. Before
that, tables follow from Gaussians (:meth:`CalibratedCodec._expected`). Either way each channel has one table, symbols
that a table leaves out are escaped, and every latent can be coded.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdzoo._checks import check_size
from cdzoo.coding._prior_state import named_tables, tables_from
from cdzoo.coding.base import Codec, CodingState
from cdzoo.coding.rans import SymbolTables
from cdzoo.coding.symbols import Channel, round_to_symbols
from cdzoo.ops.channels import ChannelSelect, check_channels, select_channels
from cdzoo.types import CodecOutput

__all__ = ["CalibratedCodec", "CalibratedState", "gaussian_weights", "tables_from_weights"]

_TOTAL = 1 << 16


def tables_from_weights(weights: NDArray[np.int64], lowest: int) -> SymbolTables:
    """One table per row of weights, in integers throughout.

    Half an occurrence is added to each (Krichevsky and Trofimov, 1981), so that a symbol that was not seen in a small
    sample stays affordable; a table begins and ends with the row's first and last symbol that has a weight.

    Args:
        weights: ``(C, K + 1)``, counts or anything proportional to probabilities, below 2^40: of the symbols from
            ``lowest`` on, and last of all others together.
        lowest: the symbol of the first column.

    Raises:
        ValueError: a weight is negative or too large.
    """
    if weights.size == 0 or weights.min() < 0 or weights.max() >= 1 << 40:
        raise ValueError("counts of symbols must lie between 0 and 2^40; calibrate the codec again.")
    cdfs, offsets = [], []
    for row in weights:
        seen = np.flatnonzero(row[:-1])
        first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, 0)
        doubled = 2 * np.append(row[first : last + 1], row[-1]) + 1
        counts = 1 + doubled * (_TOTAL - len(doubled)) // doubled.sum()
        counts[doubled.argmax()] += _TOTAL - counts.sum()
        cdfs.append(np.append(0, np.cumsum(counts)))
        offsets.append(lowest + first)
    lengths = np.array([len(cdf) for cdf in cdfs])
    return SymbolTables(np.concatenate(cdfs), np.cumsum(lengths) - lengths, lengths, np.array(offsets))


def gaussian_weights(means: Tensor, scales: Tensor, boundaries: Tensor) -> NDArray[np.int64]:
    """Weights of the intervals between boundaries under one Gaussian per channel, in units of 2^-32.

    Args:
        means, scales: ``(C,)``.
        boundaries: ``(K - 1,)``, ascending: the first interval begins and the last one ends at infinity.

    Returns:
        ``(C, K)``.

    Raises:
        ValueError: values that are not finite.
    """
    means, scales, boundaries = (t.detach().cpu().double() for t in (means, scales, boundaries))
    if not all(bool(t.isfinite().all()) for t in (means, scales, boundaries)):
        raise ValueError("the codec's parameters are not finite; load weights that are.")
    z = (boundaries - means.unsqueeze(1)) / scales.abs().clamp_min(1e-6).unsqueeze(1)
    ends = torch.ones(len(means), 1, dtype=torch.float64, device="cpu")
    below = torch.cat([0 * ends, torch.special.ndtr(z), ends], 1)
    weights: NDArray[np.int64] = (below.diff(dim=1) * 2**32).round().long().numpy()
    return weights


class CalibratedState(CodingState):
    """One table per channel, and what the symbols stand for.

    Attributes:
        tables: one per channel.
        centers: ``(L,)`` float32, the value of each symbol; ``None`` where symbols are their own values.
    """

    def __init__(self, tables: SymbolTables, centers: Tensor | None = None) -> None:
        if centers is not None and not bool(centers.isfinite().all()):
            raise ValueError("the quantiser's centres are not finite; load weights that are.")
        self.tables = tables
        self.centers = None if centers is None else centers.detach().float().cpu().contiguous().clone()

    def state(self) -> dict[str, Tensor]:
        """See :class:`CodingState`."""
        centers = {} if self.centers is None else {"centers": self.centers}
        return {**centers, **named_tables("symbols.", self.tables)}

    def select(self, channels: Tensor) -> CalibratedState:
        """The state of some channels, whose tables stay what they are."""
        own, picked = self.tables, channels.numpy()
        cdfs = [own.cdfs[own.starts[c] : own.starts[c] + own.lengths[c]] for c in picked]
        lengths = own.lengths[picked]
        starts = np.cumsum(lengths) - lengths
        return CalibratedState(SymbolTables(np.concatenate(cdfs), starts, lengths, own.offsets[picked]), self.centers)

    def indexes(self, height: int, width: int, device: torch.device) -> Tensor:
        """Each channel's own table: ``(C, h, w)``."""
        count = self.tables.num_tables
        dtype = torch.uint8 if count <= 256 else torch.int32
        return torch.arange(count, device=device).to(dtype).view(-1, 1, 1).expand(-1, height, width)


class _Counter:
    """A channel that counts what passes: ``(C, K + 1)``, the last column for symbols outside ``K``."""

    def __init__(self, shape: torch.Size, lowest: int) -> None:
        self.counts, self._lowest = torch.zeros(shape, dtype=torch.int64, device="cpu"), lowest

    def __call__(self, values: Tensor | None, shape: tuple[int, ...], indexes: Tensor, tables: SymbolTables) -> Tensor:
        """See :class:`~cdzoo.coding.symbols.Channel`."""
        assert values is not None
        symbols = round_to_symbols(values)
        channels, columns = self.counts.shape
        places = symbols.long() - self._lowest
        places = torch.where((places < 0) | (places >= columns - 1), columns - 1, places)
        places = places + columns * torch.arange(channels, device=places.device).view(-1, 1, 1)
        self.counts += torch.bincount(places.flatten(), minlength=channels * columns).view(channels, columns).cpu()
        return symbols


class CalibratedCodec(Codec):
    """Base of the codecs whose tables are measured.

    A subclass says what the symbols of a latent are, and which Gaussians to expect before there are counts.

    Args:
        latent_channels: channels of the transforms' latent.
        symbols: those that are counted one by one; all others are counted, and coded, as exceptions.
        channels: those that latents and streams have, as :meth:`select` chose them; all of them unless given.

    Attributes:
        latent_channels: ``M``, the number of ``channels`` where these are given.
        all_channels: channels of the transforms' latent.
        selection: the layer that leaves ``channels`` of all, and whose ``indices`` name them; ``None`` for all.
        symbol_counts: buffer ``(M, K + 1)`` int32; all 0 before :meth:`calibrate`.
    """

    symbol_counts: Tensor
    selection: ChannelSelect | None
    _coding_buffers: ClassVar[tuple[str, ...]] = (*Codec._coding_buffers, "symbol_counts", "selection.indices")

    def __init__(self, *, latent_channels: int, symbols: range, channels: Sequence[int] | None = None) -> None:
        super().__init__()
        check_size("latent_channels", latent_channels)
        self.all_channels, self._lowest = latent_channels, symbols[0]
        self.selection = select_channels(channels, of=latent_channels)
        self.latent_channels = latent_channels if self.selection is None else len(self.selection.indices)
        self.register_buffer("symbol_counts", torch.zeros(self.latent_channels, len(symbols) + 1, dtype=torch.int32))

    @abstractmethod
    def _quantize(self, y: Tensor) -> Tensor:
        """Latents to quantised (or noisy) ones, differentiable, of the same shape."""

    @abstractmethod
    def _to_symbols(self, y: Tensor, coding: CalibratedState) -> Tensor:
        """Float32 latents to what rounds to symbols."""

    @abstractmethod
    def _from_symbols(self, symbols: Tensor, coding: CalibratedState) -> Tensor:
        """int16 symbols to float32 latents; raises ``BitstreamError`` for symbols that no encoder writes."""

    @abstractmethod
    def _expected(self) -> NDArray[np.int64]:
        """Weights ``(all_channels, K + 1)`` of the symbols, as expected before anything was measured."""

    def _centers(self) -> Tensor | None:
        """The values of the symbols, where these are indices."""
        return None

    # -- tables --------------------------------------------------------------------------------------------------

    @property
    def calibrated(self) -> bool:
        """Whether the tables were measured."""
        return bool(self.symbol_counts.any())

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Measure the symbol tables, in place of what was measured before.

        The fingerprint changes with the tables, and streams that were written before cannot be read any more. Training
        on changes neither the counts nor whether latents can be coded, only how well: calibrate when it is over.

        Args:
            images: batches ``(B, 3, H, W)``, RGB in ``[0, 1]``, of any sizes, such as those to be coded; or one batch.

        Raises:
            TypeError, ValueError: no images at all, or as :meth:`encode`. The codec stays as it was.
        """
        if not hasattr(images, "__iter__"):
            raise TypeError(
                f"images must be batches (B, 3, H, W) in a list or another iterable, not {type(images).__name__}."
            )
        counter = _Counter(self.symbol_counts.shape, self._lowest)
        for batch in [images] if isinstance(images, Tensor) else images:
            self._send(batch, counter)
        most = int(counter.counts.max())
        if most == 0:
            raise ValueError("no images to calibrate with; pass an iterable of batches (B, 3, H, W).")
        counts = counter.counts >> max(0, most.bit_length() - 31)
        with torch.inference_mode(False):  # a tensor that can be loaded into later, wherever the old one was made
            self.symbol_counts = counts.to(self.symbol_counts)

    def _derive(self, state: Mapping[str, Tensor] | None) -> CodingState:
        if state is None:
            if self.calibrated:
                weights = self.symbol_counts.cpu().long().numpy()
            else:
                rows = slice(None) if self.selection is None else self.selection.indices.cpu().numpy()
                weights = self._expected()[rows]
            return CalibratedState(tables_from_weights(weights, self._lowest), self._centers())
        own, tables = self._centers(), tables_from("symbols.", state)
        centers = None if own is None else state["centers"]
        if tables.num_tables != self.latent_channels:
            raise ValueError(f"{tables.num_tables} tables, where {self.name} has {self.latent_channels} channels.")
        if own is not None and centers is not None and (own.shape != centers.shape or not centers.is_floating_point()):
            raise ValueError(f"centres of shape {tuple(centers.shape)}, where {self.name} has {tuple(own.shape)}.")
        return CalibratedState(tables, centers)

    # -- some of the channels ------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, channels: Tensor | Sequence[int]) -> Self:
        """A codec of its own for some of the channels: latents and streams have no others, so that bits fall.

        Values, symbols and tables of these channels are those of this codec; the fingerprint is another one, since
        neither codec reads the other's streams. What :meth:`decode` makes of such a latent has 0 in the place of the
        channels that are not there. Source: Wang et al. (WACV 2022), section 3.4.4.

        Args:
            channels: of this codec's latents, such as ``cdzoo.ops.rank_channels(latents)[:32]``; networks read them in
                this order, with ``in_channels`` of their number.

        Returns:
            a copy; its parameters are not shared.

        Raises:
            ValueError: not a list of distinct integers, or a channel that latents of this codec have not got.
            TypeError: no list at all.
        """
        chosen, coding = check_channels(channels, of=self.latent_channels), self.coding
        kept = chosen if self.selection is None else self.selection.indices.cpu()[chosen]
        with torch.inference_mode(False):  # a codec that can be trained, wherever it was chosen from
            codec = copy.deepcopy(self)
            codec.selection = ChannelSelect(kept).to(self.symbol_counts.device)
            codec.symbol_counts = self.symbol_counts[chosen.to(self.symbol_counts.device)]
        codec.latent_channels = len(kept)
        assert isinstance(coding, CalibratedState)
        codec._derived = codec._describe(coding.select(chosen))
        if codec.origin is not None:
            codec.origin = codec.origin.with_arguments(channels=tuple(kept.tolist()))
        return codec

    def _keep(self, y: Tensor) -> Tensor:
        """All channels of a latent ``(B, all_channels, h, w)`` to those that are coded, ``(B, M, h, w)``."""
        kept: Tensor = y if self.selection is None else self.selection(y)
        return kept

    def _put_back(self, y_hat: Tensor) -> Tensor:
        """The inverse of :meth:`_keep`, with 0 in the place of channels that are not there."""
        return y_hat if self.selection is None else self.selection.put_back(y_hat, self.all_channels)

    def _chosen(self) -> dict[str, Any]:
        """What the selection adds to the configuration."""
        return {} if self.selection is None else {"channels": self.selection.indices.tolist()}

    # -- steps ---------------------------------------------------------------------------------------------------

    def forward_with_y(self, x: Tensor) -> tuple[CodecOutput, Tensor]:
        """As calling the codec, and the latent before quantisation, which these codecs' rate terms are made of.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.

        Returns:
            what ``codec(x)`` returns, and ``y`` ``(B, M, h, w)``, differentiable.
        """
        self._check_images(x)
        y = self._analysis(self._pad(x))
        return self._rest_of_forward(y, (x.shape[-2], x.shape[-1])), y

    def _train_forward(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        return self._quantize(y), None, {}

    def _code(
        self, channel: Channel, y: Tensor | None, shape: tuple[int, int, int], device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        coding: Any = self._coding_in_force()
        batch, height, width = shape
        symbols = channel(
            None if y is None else self._to_symbols(y, coding),
            (batch, self.latent_channels, height, width),
            coding.indexes(height, width, device),
            coding.tables,
        )
        return self._from_symbols(symbols, coding), None
