"""Tables of symbol distributions, checked once and laid out for the compiled loops of the entropy coder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["INT16", "Array", "SymbolTables", "integers", "refuse", "running_sum"]

_TOTAL = 1 << 16  # the counts of one table add up to this
_MAX_TABLES = 1 << 16  # the compiled loops take uint16 indexes
_MAX_OFFSET = 1 << 16  # ample for tables of int16 values; keeps escaped values within 18 bits
_FIELDS = ("cdfs", "starts", "lengths", "offsets")
INT16 = np.iinfo(np.int16)

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SymbolTables:
    """The cumulative counts of ``T`` symbol distributions, checked once and laid out for the compiled loops. Immutable.

    Table ``t`` is ``cdfs[starts[t] : starts[t] + lengths[t]]``: it begins with 0, ends with 65536 and rises strictly.
    Its first ``lengths[t] - 2`` intervals are the values from ``offsets[t]`` upwards, its last one is the escape
    under which every other value is coded.

    Attributes:
        cdfs: ``(sum of lengths,)`` int32, the tables one after the other.
        starts: ``(T,)`` int32, where each table begins in ``cdfs``.
        lengths: ``(T,)`` int32, 3 or more.
        offsets: ``(T,)`` int32, value of the first interval, within +-65536.

    Raises:
        ValueError: the arrays break one of the rules above. Anything that can be constructed can be coded with.
    """

    cdfs: Array
    starts: Array
    lengths: Array
    offsets: Array

    def __post_init__(self) -> None:
        arrays = {name: integers(getattr(self, name), name, ndim=1) for name in _FIELDS}
        _check_tables(**{name: array.astype(np.int64) for name, array in arrays.items()})
        for name, array in arrays.items():
            array = array.astype(np.int32)  # always a copy: nobody else can write to it
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def from_padded(
        cls, quantized_cdf: Array | Tensor, cdf_length: Array | Tensor, offset: Array | Tensor
    ) -> SymbolTables:
        """From the buffers of a CompressAI entropy model (``_quantized_cdf``, ``_cdf_length``, ``_offset``).

        Args:
            quantized_cdf: ``(T, L)`` integers, one table per row; what lies beyond its length is ignored.
            cdf_length: ``(T,)`` integers in ``[3, L]``.
            offset: ``(T,)`` integers.

        Raises:
            ValueError: the shapes do not fit together, or the tables break the rules of the class.
        """
        padded = integers(quantized_cdf, "quantized_cdf", ndim=2)
        lengths = integers(cdf_length, "cdf_length", ndim=1)
        if len(lengths) != len(padded):
            raise ValueError(
                f"quantized_cdf has {len(padded)} rows and cdf_length has {len(lengths)}; need one per table"
            )
        refuse(lengths > padded.shape[1], lengths, "cdf_length", f"the rows of quantized_cdf hold {padded.shape[1]}")
        rows = np.arange(padded.shape[1]) < lengths[:, None]
        return cls(padded[rows], running_sum(lengths), lengths, integers(offset, "offset", ndim=1))

    @classmethod
    def from_rows(cls, cdfs: Sequence[Array], offsets: Array | Sequence[int]) -> SymbolTables:
        """From one array ``cdfs[t]`` of cumulative counts for each table, and their ``T`` offsets.

        Raises:
            ValueError: the tables break the rules of the class.
        """
        lengths = np.array([len(cdf) for cdf in cdfs])
        return cls(np.concatenate(cdfs), running_sum(lengths), lengths, np.asarray(offsets))

    @classmethod
    def from_state(cls, state: Mapping[str, Array | Tensor]) -> SymbolTables:
        """From the arrays of ``state()``, as arrays or tensors of any integer type; everything is checked again.

        Raises:
            ValueError: a name is missing or unknown, or the tables break the rules of the class.
        """
        if set(state) != set(_FIELDS):
            raise ValueError(f"the state of symbol tables has the entries {sorted(state)}; expected {sorted(_FIELDS)}")
        return cls(**{name: state[name] for name in _FIELDS})  # type: ignore[arg-type]

    def state(self) -> dict[str, Array]:
        """Copies of the four arrays, int32, by name: everything that has to be saved."""
        return {name: getattr(self, name).copy() for name in _FIELDS}

    @property
    def num_tables(self) -> int:
        """``T``; an index into the tables lies in ``[0, T)``."""
        return len(self.lengths)

    def __reduce__(self) -> tuple[Callable[..., SymbolTables], tuple[dict[str, Array]]]:
        return SymbolTables.from_state, (self.state(),)  # leaves the derived arrays below out of pickles

    @functools.cached_property
    def limits(self) -> Array:
        """``(T,)`` number of values in each table, which is also the position of its escape."""
        return self.lengths - np.int32(2)

    @functools.cached_property
    def counts(self) -> Array:
        """Count of every interval, uint64, aligned with ``cdfs``; 1 in the place that follows a table's last one."""
        counts = np.diff(self.cdfs, append=1)
        counts[self.starts + self.lengths - 1] = 1
        return counts.astype(np.uint64)

    @functools.cached_property
    def decoder_entries(self) -> Array:
        """Start and count of every interval in one uint32, so that the search takes one load per step."""
        starts = self.cdfs.astype(np.uint64) & np.uint64(0xFFFF)
        packed: Array = (starts | self.counts << np.uint64(16)).astype(np.uint32)
        return packed

    @functools.cached_property
    def buckets(self) -> Array:
        """``(T * 256,)`` uint16: per table, the interval with cumulative count ``256 b``, where the search starts."""
        grid = np.arange(0, _TOTAL, 256)
        tables = np.split(self.cdfs, self.starts[1:])
        found: Array = np.concatenate([np.searchsorted(table, grid, side="right") - 1 for table in tables])
        return found.astype(np.uint16)

    @functools.cached_property
    def modes(self) -> Array:
        """``(T,)`` uint64: start | count << 16 | place << 32 of the value that has more than half of a table, or 0.

        Most symbols of a latent are such values. They are tried first. This needs no search, and no load that waits
        for the coder's state.
        """
        modes = np.zeros(self.num_tables, np.uint64)
        common = np.flatnonzero(self.counts > _TOTAL // 2)
        tables = np.searchsorted(self.starts, common, side="right") - 1
        places = common - self.starts[tables]
        values = places + self.offsets[tables].astype(np.int64)
        kept = (places < self.limits[tables]) & (values >= INT16.min) & (values <= INT16.max)
        packed = self.decoder_entries[common] | places.astype(np.uint64) << np.uint64(32)
        modes[tables[kept]] = packed[kept]
        return modes

    @functools.cached_property
    def cheapest_bits(self) -> Array:
        """``(T,)`` float64: bits of each table's most probable entry."""
        bits: Array = 16 - np.log2(np.maximum.reduceat(self.counts, self.starts).astype(np.float64))
        return bits

    @functools.cached_property
    def encoder_entries(self) -> Array:
        """Pairs of uint64: ``r = ceil(2**(63 + shift) / count)``, and start | count << 16 | shift << 32.

        With ``2**shift >= count`` and ``x < 2**63``, ``x // count`` is ``(2 x r) >> 64 >> shift`` exactly
        (Granlund and Montgomery, PLDI 1994, theorem 4.2). The numerator exceeds 64 bits, hence the long division.
        """
        counts = self.counts
        shifts = np.ceil(np.log2(counts)).astype(np.uint64)
        quotient, remainder = np.divmod(np.uint64(1 << 63), counts)
        reciprocals = (quotient << shifts) + ((remainder << shifts) + counts - np.uint64(1)) // counts
        packed = self.decoder_entries | shifts << np.uint64(32)
        pairs: Array = np.stack([reciprocals, packed], axis=1)
        return pairs.reshape(-1)


def integers(value: Array | Tensor, name: str, *, ndim: int) -> Array:
    """An array of integers of that many dimensions; tensors are copied to the CPU.

    Raises:
        ValueError: another type or number of dimensions; the message calls the value ``name``.
    """
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        raise ValueError(f"{name} is {array.dtype}; expected integers that fit int64")
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}; expected {ndim} dimension{'s' if ndim > 1 else ''}")
    return array


def refuse(wrong: Array, values: Array, name: str, rule: str) -> None:
    """Raise a ``ValueError`` for the first place of ``values`` where ``wrong`` is true; ``rule`` is its reason."""
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
        raise ValueError(f"{name}[{', '.join(map(str, place))}] is {values[place]}; {rule}")


def running_sum(lengths: Array) -> Array:
    """Sum of all previous lengths, int64."""
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _check_tables(cdfs: Array, starts: Array, lengths: Array, offsets: Array) -> None:
    """The rules of SymbolTables, on int64 arrays."""
    count = len(lengths)
    if not 1 <= count <= _MAX_TABLES or len(starts) != count or len(offsets) != count:
        raise ValueError(
            f"symbol tables with {count} lengths, {len(starts)} starts and {len(offsets)} offsets; "
            f"expected one of each per table and 1 to {_MAX_TABLES} tables"
        )
    rule = (
        f"a table has a value, an escape and two ends at least, and rises from 0 to {_TOTAL}: 3 to {_TOTAL + 1} entries"
    )
    refuse((lengths < 3) | (lengths > _TOTAL + 1), lengths, "lengths", rule)
    if int(lengths.sum()) != len(cdfs) or len(cdfs) > np.iinfo(np.int32).max:
        raise ValueError(f"cdfs has {len(cdfs)} entries; lengths add up to {int(lengths.sum())}, at most 2**31 - 1")
    refuse(starts != running_sum(lengths), starts, "starts", "tables follow one another without gaps")
    refuse((offsets < -_MAX_OFFSET) | (offsets > _MAX_OFFSET), offsets, "offsets", f"they lie within +-{_MAX_OFFSET}")
    ends = starts + lengths - 1
    refuse(cdfs[starts] != 0, cdfs[starts], "first entries of cdfs", "every table begins with 0")
    refuse(cdfs[ends] != _TOTAL, cdfs[ends], "last entries of cdfs", f"every table ends with {_TOTAL}")
    falls = np.append(cdfs[1:] <= cdfs[:-1], False)
    falls[ends] = False
    refuse(falls, cdfs, "cdfs", "the entry after it has to be larger: every count is 1 or more")
