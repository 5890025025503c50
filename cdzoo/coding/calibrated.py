"""Codecs without a learned entropy model: their symbol tables are measured, channel by channel.

``calibrate`` counts symbols over a set of images and keeps the counts in a buffer of integers, which the state dict
contains. Tables follow from the counts by integer arithmetic, so they are the same on every machine. Before
calibration, tables follow from Gaussians (:meth:`CalibratedCodec.expected_weights`). In both cases each channel has one
table, symbols outside a table are escaped, and every latent can be coded.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdzoo._checks import check_images, check_size
from cdzoo.coding.base import Codec
from cdzoo.coding.identity import CodingState
from cdzoo.coding.symbols import SymbolCoder, channel_indexes, named_tables, round_to_symbols, tables_from
from cdzoo.coding.tables import SymbolTables
from cdzoo.coding.tiles import pad_to_multiple
from cdzoo.ops.channels import ChannelSelect, check_channels, select_channels
from cdzoo.types import CodecOutput

__all__ = ["CalibratedCodec", "CalibratedState", "gaussian_weights", "tables_from_weights"]

_TOTAL = 1 << 16


def tables_from_weights(weights: NDArray[np.int64], lowest: int) -> SymbolTables:
    """Symbol tables from one row of weights each, in integer arithmetic throughout.

    Half an occurrence is added to each weight (Krichevsky and Trofimov, 1981), so that a symbol which a small sample
    did not contain stays cheap. A table begins and ends with the row's first and last symbol that has a weight.

    Args:
        weights: ``(C, K + 1)`` counts, or numbers proportional to probabilities, below 2^40. The first ``K`` columns
            belong to the symbols from ``lowest`` on, the last one to all other symbols together.
        lowest: the symbol of the first column.

    Raises:
        ValueError: a weight is negative or too large.
    """
    if weights.size == 0 or weights.min() < 0 or weights.max() >= 1 << 40:
        raise ValueError("counts of symbols must lie between 0 and 2^40; calibrate the codec again")
    cdfs, offsets = [], []
    for row in weights:
        seen = np.flatnonzero(row[:-1])
        first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, 0)
        doubled = 2 * np.append(row[first : last + 1], row[-1]) + 1
        counts = 1 + doubled * (_TOTAL - len(doubled)) // doubled.sum()
        counts[doubled.argmax()] += _TOTAL - counts.sum()
        cdfs.append(np.append(0, np.cumsum(counts)))
        offsets.append(lowest + first)
    return SymbolTables.from_rows(cdfs, offsets)


def gaussian_weights(means: Tensor, scales: Tensor, boundaries: Tensor) -> NDArray[np.int64]:
    """Probabilities of the intervals between boundaries under one Gaussian per channel, in units of 2^-32.

    Args:
        means, scales: ``(C,)``.
        boundaries: ``(K - 1,)``, ascending; the first interval begins at minus infinity, the last one ends at infinity.

    Returns:
        ``(C, K)``.

    Raises:
        ValueError: values that are not finite.
    """
    means, scales, boundaries = (t.detach().cpu().double() for t in (means, scales, boundaries))
    if not all(bool(t.isfinite().all()) for t in (means, scales, boundaries)):
        raise ValueError("the codec's parameters are not finite; load weights that are")
    z = (boundaries - means.unsqueeze(1)) / scales.abs().clamp_min(1e-6).unsqueeze(1)
    ends = torch.ones(len(means), 1, dtype=torch.float64, device="cpu")
    below = torch.cat([0 * ends, torch.special.ndtr(z), ends], 1)
    weights: NDArray[np.int64] = (below.diff(dim=1) * 2**32).round().long().numpy()
    return weights


class CalibratedState(CodingState):
    """One table per channel, and the values that symbols stand for.

    Attributes:
        tables: one per channel.
        centers: ``(L,)`` float32, the value of each symbol; ``None`` if values are multiples of ``step``.
        step: value of the symbol 1, a float32 number.
    """

    def __init__(self, tables: SymbolTables, centers: Tensor | None = None, step: float = 1.0) -> None:
        if centers is not None and not bool(centers.isfinite().all()):
            raise ValueError("the quantizer's centers are not finite; load weights that are")
        self.tables = tables
        self.centers = None if centers is None else centers.detach().float().cpu().contiguous().clone()
        self.step = step

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`~cdzoo.codecs.CodingState`."""
        values = {} if self.centers is None else {"centers": self.centers}
        if self.step != 1:
            values["step"] = torch.tensor(self.step, dtype=torch.float32, device="cpu")
        return {**values, **named_tables("symbols.", self.tables)}

    def select(self, channels: Tensor) -> CalibratedState:
        """The state of channels ``(k,)``, with the same tables for them."""
        own, picked = self.tables, channels.numpy()
        cdfs = [own.cdfs[own.starts[c] : own.starts[c] + own.lengths[c]] for c in picked]
        return CalibratedState(SymbolTables.from_rows(cdfs, own.offsets[picked]), self.centers, self.step)


class _SymbolCounter:
    """A coder that counts symbols: ``(C, K + 1)``, the last column for those outside the ``K`` that are counted."""

    def __init__(self, shape: torch.Size, lowest: int) -> None:
        self.counts, self._lowest = torch.zeros(shape, dtype=torch.int64, device="cpu"), lowest

    def __call__(self, values: Tensor | None, shape: tuple[int, ...], indexes: Tensor, tables: SymbolTables) -> Tensor:
        """See :class:`~cdzoo.codecs.SymbolCoder`."""
        assert values is not None
        symbols = round_to_symbols(values)
        channels, columns = self.counts.shape
        places = symbols.long() - self._lowest
        places = torch.where((places < 0) | (places >= columns - 1), columns - 1, places)
        places = places + columns * torch.arange(channels, device=places.device).view(-1, 1, 1)
        self.counts += torch.bincount(places.flatten(), minlength=channels * columns).view(channels, columns).cpu()
        return symbols


class CalibratedCodec(Codec[CalibratedState]):
    """Base class of codecs with measured tables.

    A subclass defines the quantizer (:meth:`quantize`, :meth:`to_symbols`, :meth:`from_symbols`), the Gaussians that
    are expected before there are counts (:meth:`expected_weights`), and :meth:`~cdzoo.codecs.Codec.configuration`.

    Args:
        analysis: the analysis transform, images to latents; becomes ``g_a``.
        synthesis: the synthesis transform, latents to images; becomes ``g_s``.
        stride: pixels per latent sample, in each direction.
        latent_channels: channels of the transforms' latent.
        symbols: the symbols that are counted one by one; all others are counted, and coded, as exceptions.
        channels: the channels that latents and streams have, as :meth:`select` chose them; all of them by default.

    Attributes:
        latent_channels: ``M``; the number of ``channels`` if these are given.
        all_channels: channels of the transforms' latent.
        selection: the layer that keeps ``channels``, named by its ``indices``; ``None`` for all channels.
        symbol_counts: buffer ``(M, K + 1)`` int32; all 0 before :meth:`calibrate`.
    """

    symbol_counts: Tensor
    selection: ChannelSelect | None
    state_parts: ClassVar[tuple[str, ...]] = ("symbol_counts", "selection")

    def __init__(
        self,
        analysis: nn.Module,
        synthesis: nn.Module,
        *,
        stride: int,
        latent_channels: int,
        symbols: range,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_size("stride", stride)
        check_size("latent_channels", latent_channels)
        self.g_a, self.g_s, self.stride = analysis, synthesis, stride
        self.all_channels, self._lowest = latent_channels, symbols[0]
        self.selection = select_channels(channels, of=latent_channels)
        self.latent_channels = latent_channels if self.selection is None else len(self.selection.indices)
        self.register_buffer("symbol_counts", torch.zeros(self.latent_channels, len(symbols) + 1, dtype=torch.int32))

    @abstractmethod
    def quantize(self, y: Tensor) -> Tensor:
        """Latents to quantized (or noisy) ones of the same shape, differentiable."""

    @abstractmethod
    def to_symbols(self, y: Tensor, state: CalibratedState) -> Tensor:
        """Float32 latents ``(B, M, h, w)`` to real numbers of that shape, which round to symbols."""

    @abstractmethod
    def from_symbols(self, symbols: Tensor, state: CalibratedState) -> Tensor:
        """int16 symbols ``(B, M, h, w)`` to float32 latents.

        Raises:
            BitstreamError: symbols that no encoder writes.
        """

    @abstractmethod
    def expected_weights(self) -> NDArray[np.int64]:
        """Weights ``(all_channels, K + 1)`` of the symbols before anything was measured."""

    def configuration(self) -> dict[str, Any]:
        """See :class:`~cdzoo.codecs.Codec`: the number of channels, and the selected ones."""
        chosen = {} if self.selection is None else {"channels": self.selection.indices.tolist()}
        return {"latent_channels": self.all_channels, **chosen}

    def quantizer_values(self) -> dict[str, Any]:
        """``centers`` or ``step`` of the :class:`CalibratedState`, where symbols are not their own values."""
        return {}

    # -- tables --------------------------------------------------------------------------------------------------

    @property
    def calibrated(self) -> bool:
        """True after :meth:`calibrate`."""
        return bool(self.symbol_counts.any())

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Measure the symbol tables, and replace those that were measured before.

        The fingerprint changes with the tables, and streams that were written before cannot be read any more. Training
        keeps the counts, and every latent can still be coded, but less well: calibrate after training.

        Args:
            images: batches ``(B, 3, H, W)``, RGB in ``[0, 1]``, of any sizes, like those to be coded; or one batch.

        Raises:
            TypeError, ValueError: no images at all, or as :meth:`encode`. The codec stays as it was.
        """
        if not hasattr(images, "__iter__"):
            raise TypeError(
                f"images must be batches (B, 3, H, W) in a list or another iterable, not {type(images).__name__}"
            )
        counter = _SymbolCounter(self.symbol_counts.shape, self._lowest)
        for batch in [images] if isinstance(images, Tensor) else images:
            self._encode_with(counter, batch)
        most = int(counter.counts.max())
        if most == 0:
            raise ValueError("no images to calibrate with; pass an iterable of batches (B, 3, H, W)")
        counts = counter.counts >> max(0, most.bit_length() - 31)
        with torch.inference_mode(False):  # a tensor that can be loaded into later, wherever the old one was made
            self.symbol_counts = counts.to(self.symbol_counts)

    def derive_state(self) -> CalibratedState:
        """See :class:`~cdzoo.codecs.Codec`."""
        if self.calibrated:
            weights = self.symbol_counts.cpu().long().numpy()
        else:
            rows = slice(None) if self.selection is None else self.selection.indices.cpu().numpy()
            weights = self.expected_weights()[rows]
        return CalibratedState(tables_from_weights(weights, self._lowest), **self.quantizer_values())

    def restore_state(self, tensors: Mapping[str, Tensor]) -> CalibratedState:
        """See :class:`~cdzoo.codecs.Codec`."""
        own, tables = self.quantizer_values(), tables_from("symbols.", tensors)
        if tables.num_tables != self.latent_channels:
            raise ValueError(
                f"{tables.num_tables} tables, where {self.name} has {self.latent_channels} channels; "
                "load the state into the codec that it was saved from"
            )
        if "centers" in own:
            expected, own["centers"] = own["centers"], tensors["centers"]
            if expected.shape != own["centers"].shape or not own["centers"].is_floating_point():
                raise ValueError(
                    f"centers of shape {tuple(own['centers'].shape)}, where {self.name} has {tuple(expected.shape)}; "
                    "load the state into the codec that it was saved from"
                )
        step = tensors["step"].flatten().tolist() if "step" in tensors else [1.0]
        if step != [own.get("step", 1.0)]:
            raise ValueError(
                f"a state with step {step}, where {self.name} has {own.get('step', 1.0)}; build it with that step"
            )
        return CalibratedState(tables, **own)

    # -- some of the channels ------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, channels: Tensor | Sequence[int]) -> Self:
        """A copy of this codec for some of the channels: latents and streams have only these, which saves bits.

        Values, symbols and tables of these channels are those of this codec. The fingerprint differs, since neither
        codec reads the other's streams. :meth:`decode` puts 0 in the place of missing channels.
        Source: Wang et al. (WACV 2022), section 3.4.4.

        Args:
            channels: of this codec's latents, such as ``cdzoo.ops.rank_channels(latents)[:32]``; networks read them in
                this order, with ``in_channels`` of their number.

        Returns:
            a copy; its parameters are not shared.

        Raises:
            ValueError: not a list of distinct integers, or a channel that latents of this codec do not have.
            TypeError: no list at all.
        """
        chosen, state = check_channels(channels, of=self.latent_channels), self.coding
        kept = chosen if self.selection is None else self.selection.indices.cpu()[chosen]
        with torch.inference_mode(False):  # a codec that can be trained, wherever it was chosen from
            codec = copy.deepcopy(self)
            codec.selection = ChannelSelect(kept).to(self.symbol_counts.device)
            codec.symbol_counts = self.symbol_counts[chosen.to(self.symbol_counts.device)]
        codec.latent_channels = len(kept)
        codec.adopt_state(state.select(chosen))
        if codec.origin is not None:
            codec.origin = codec.origin.with_arguments(channels=tuple(kept.tolist()))
        return codec

    # -- steps ---------------------------------------------------------------------------------------------------

    def analyze(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> the selected channels of ``g_a``, ``(B, M, h, w)``; see :class:`~cdzoo.codecs.Codec`.

        Raises:
            ValueError: ``g_a`` returned another shape than ``stride`` and ``latent_channels`` say.
        """
        y: Tensor = self.g_a(x)
        expected = (x.shape[0], self.all_channels, x.shape[2] // self.stride, x.shape[3] // self.stride)
        if y.shape != expected:
            raise ValueError(
                f"the analysis transform of {self.name} turned images {tuple(x.shape)} into {tuple(y.shape)}, but "
                f"stride {self.stride} and {self.all_channels} latent channels need {expected}; pad its convolutions, "
                "or correct the two numbers"
            )
        return y if self.selection is None else self.selection(y)

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """``(B, M, h, w)`` -> ``(B, 3, H, W)`` by ``g_s``; channels that are not selected are 0.

        Raises:
            ValueError: ``g_s`` returned another shape than ``stride`` says.
        """
        y_hat = y_hat if self.selection is None else self.selection.put_back(y_hat, self.all_channels)
        x_hat: Tensor = self.g_s(y_hat)
        expected = (y_hat.shape[0], 3, y_hat.shape[2] * self.stride, y_hat.shape[3] * self.stride)
        if x_hat.shape != expected:
            raise ValueError(
                f"the synthesis transform of {self.name} turned latents {tuple(y_hat.shape)} into "
                f"{tuple(x_hat.shape)}, but stride {self.stride} needs {expected}; pad its convolutions"
            )
        return x_hat

    def convolutions(self) -> tuple[nn.Module | None, nn.Module | None]:
        """See :class:`~cdzoo.codecs.Codec`; extend it if you override :meth:`analyze` by more than single positions."""
        return self.g_a, self.g_s

    def forward_with_y(self, x: Tensor) -> tuple[CodecOutput, Tensor]:
        """The result of calling the codec, and the latent before quantization, from which rate terms are computed.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.

        Returns:
            the output of ``codec(x)``, and ``y`` ``(B, M, h, w)``, differentiable.
        """
        check_images(x)
        y = self.analyze(pad_to_multiple(x, self.stride))
        return self._rest_of_forward(y, (x.shape[-2], x.shape[-1])), y

    def estimate(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """See :class:`~cdzoo.codecs.Codec`: no scales and no likelihoods."""
        return self.quantize(y), None, {}

    def code(
        self, coder: SymbolCoder, y: Tensor | None, shape: tuple[int, int, int], state: CalibratedState
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`~cdzoo.codecs.Codec`: one part, with one table per channel."""
        batch, height, width = shape
        symbols = coder(
            None if y is None else self.to_symbols(y, state),
            (batch, self.latent_channels, height, width),
            channel_indexes(state.tables, height, width, self.device),
            state.tables,
        )
        return self.from_symbols(symbols, state), None
