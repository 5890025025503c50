"""Entropy coding of integer symbols: a range asymmetric numeral system (rANS) coder, byte for byte CompressAI's.

A batch of ``n`` streams of ``k`` symbols is coded in one call, every symbol under one of a few tables of cumulative
counts. The streams equal those of ``compressai.ans`` (``RansEncoder.encode_with_indexes``) and either coder reads
the other's. This one compiles with numba at the first call, takes arrays in place of nested lists, and refuses every
stream that the encoder cannot have written.

Source: Duda, "Asymmetric numeral systems", arXiv:1311.2540; ``ryg_rans`` for the 64-bit variant; the escape code for
values outside a table is CompressAI's (Bégaint et al., arXiv:2011.03029). ``_rans_kernels.py`` describes the bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdzoo._threads import for_each
from cdzoo.errors import BitstreamError

__all__ = ["SymbolTables", "decode_batch", "encode_batch"]

_TOTAL = 1 << 16  # the counts of one table add up to this
_MAX_TABLES = 1 << 16  # the compiled loops take uint16 indexes
_MAX_OFFSET = 1 << 16  # ample for tables of int16 values; keeps escaped values within 18 bits
_INT16 = np.iinfo(np.int16)
_SCRATCH_WORDS = 1 << 24  # streams encoded in one go share a buffer of at most 64 MiB, unless one alone needs more

Array = NDArray[Any]
_T = TypeVar("_T")


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
        arrays = {name: _integers(getattr(self, name), name, ndim=1) for name in _FIELDS}
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
        padded = _integers(quantized_cdf, "quantized_cdf", ndim=2)
        lengths = _integers(cdf_length, "cdf_length", ndim=1)
        if len(lengths) != len(padded):
            raise ValueError(
                f"quantized_cdf has {len(padded)} rows and cdf_length has {len(lengths)}; need one per table"
            )
        _refuse(lengths > padded.shape[1], lengths, "cdf_length", f"the rows of quantized_cdf hold {padded.shape[1]}")
        rows = np.arange(padded.shape[1]) < lengths[:, None]
        return cls(padded[rows], _running_sum(lengths), lengths, _integers(offset, "offset", ndim=1))

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
    def _limits(self) -> Array:
        """``(T,)`` number of values in each table, which is also the position of its escape."""
        return self.lengths - np.int32(2)

    @functools.cached_property
    def _counts(self) -> Array:
        """Count of every interval, uint64, aligned with ``cdfs``; 1 in the place that follows a table's last one."""
        counts = np.diff(self.cdfs, append=1)
        counts[self.starts + self.lengths - 1] = 1
        return counts.astype(np.uint64)

    @functools.cached_property
    def _decoder_entries(self) -> Array:
        """Start and count of every interval in one uint32, so that the search takes one load per step."""
        starts = self.cdfs.astype(np.uint64) & np.uint64(0xFFFF)
        packed: Array = (starts | self._counts << np.uint64(16)).astype(np.uint32)
        return packed

    @functools.cached_property
    def _buckets(self) -> Array:
        """``(T * 256,)`` uint16: per table, the interval with cumulative count ``256 b``, where the search starts."""
        grid = np.arange(0, _TOTAL, 256)
        tables = np.split(self.cdfs, self.starts[1:])
        found: Array = np.concatenate([np.searchsorted(table, grid, side="right") - 1 for table in tables])
        return found.astype(np.uint16)

    @functools.cached_property
    def _modes(self) -> Array:
        """``(T,)`` uint64: start | count << 16 | place << 32 of the value that has more than half of a table, or 0.

        Most symbols of a latent are such values. They are tried first, which needs no search, and no load that has to
        wait for the coder's state.
        """
        modes = np.zeros(self.num_tables, np.uint64)
        common = np.flatnonzero(self._counts > _TOTAL // 2)
        tables = np.searchsorted(self.starts, common, side="right") - 1
        places = common - self.starts[tables]
        values = places + self.offsets[tables].astype(np.int64)
        kept = (places < self._limits[tables]) & (values >= _INT16.min) & (values <= _INT16.max)
        packed = self._decoder_entries[common] | places.astype(np.uint64) << np.uint64(32)
        modes[tables[kept]] = packed[kept]
        return modes

    @functools.cached_property
    def cheapest_bits(self) -> Array:
        """``(T,)`` float64: bits of each table's most probable entry."""
        bits: Array = 16 - np.log2(np.maximum.reduceat(self._counts, self.starts).astype(np.float64))
        return bits

    @functools.cached_property
    def _encoder_entries(self) -> Array:
        """Pairs of uint64: ``r = ceil(2**(63 + shift) / count)``, and start | count << 16 | shift << 32.

        With ``2**shift >= count`` and ``x < 2**63``, ``x // count`` is ``(2 x r) >> 64 >> shift`` exactly
        (Granlund and Montgomery, PLDI 1994, theorem 4.2). The numerator exceeds 64 bits, hence the long division.
        """
        counts = self._counts
        shifts = np.ceil(np.log2(counts)).astype(np.uint64)
        quotient, remainder = np.divmod(np.uint64(1 << 63), counts)
        reciprocals = (quotient << shifts) + ((remainder << shifts) + counts - np.uint64(1)) // counts
        packed = self._decoder_entries | shifts << np.uint64(32)
        pairs: Array = np.stack([reciprocals, packed], axis=1)
        return pairs.reshape(-1)


_FIELDS = ("cdfs", "starts", "lengths", "offsets")


def encode_batch(
    symbols: Array | Tensor, indexes: Array | Tensor, tables: SymbolTables, *, num_threads: int = 1
) -> list[bytes]:
    """Code each row of ``symbols`` into a separate stream.

    Args:
        symbols: ``(n, k)`` integers, every value within int16; int16 is taken as it is, without a copy.
        indexes: ``(n, k)``, or ``(k,)`` for all rows alike: the table of each symbol. Any integer type.
        tables: the symbol tables.
        num_threads: streams coded at the same time. The bytes do not depend on it.

    Returns:
        ``n`` streams, each a multiple of 4 and at least 8 bytes long (8 for no symbols at all).

    Raises:
        ValueError: a symbol outside int16, an index without a table, shapes that do not fit, or no integers.
    """
    values = _integers(symbols, "symbols", ndim=2)
    n, k = values.shape
    if values.dtype != np.int16:
        _refuse((values < _INT16.min) | (values > _INT16.max), values, "symbols", "the coder takes int16")
    flat = np.ascontiguousarray(values, np.int16).reshape(-1)
    table_of, step, fill = _flat_indexes(indexes, n, k, tables)
    # A symbol under its table adds at most 16 bits to the state, an escaped one 24 more; rounding adds less than
    # 2**-13 of a bit per symbol. Two words per symbol, and two for the flush, are never exceeded.
    most = 2 * k + 2
    kernels, entries, begins = _kernels(), tables._encoder_entries, np.empty(n, np.int64)

    def encode(first: int, last: int) -> list[bytes]:
        fill(first, last)
        words = np.empty((last - first) * most, np.uint32)
        kernels.encode_rows(
            flat, table_of, step, k, first, last,
            entries, tables.starts, tables._limits, tables.offsets, words, begins,
        )  # fmt: skip
        begin = int(begins[first])
        data = words[begin:].astype("<u4", copy=False).tobytes()
        cuts = [*(4 * (int(b) - begin) for b in begins[first:last]), len(data)]
        return [data[a:b] for a, b in pairwise(cuts)]

    pieces = _spread(encode, n, num_threads, longest=max(1, _SCRATCH_WORDS // most))
    return [stream for piece in pieces for stream in piece]


def decode_batch(
    streams: Sequence[bytes | memoryview],
    indexes: Array | Tensor,
    tables: SymbolTables,
    *,
    out: Array | Tensor | None = None,
    num_threads: int = 1,
    then: Callable[[int], None] | None = None,
) -> Array:
    """Decode streams of ``encode_batch``, or of CompressAI's encoder for symbols within int16.

    A stream is accepted if and only if encoding the result gives the same bytes again: every word is accounted for
    and the coder has to come back to the state in which the encoder began. That is no checksum: damage in the middle
    of a stream can decode to other symbols.

    Args:
        streams: ``n`` bytes-like objects.
        indexes: ``(n, k)``, or ``(k,)`` for all streams alike: the table of each symbol. Any integer type.
        tables: the symbol tables of the encoder.
        out: ``(n, k)`` int16, C-contiguous, an array or a tensor on the CPU, to write to; a new array by default.
            Its content is undefined after an error.
        num_threads: streams decoded at the same time.
        then: called with the number of each stream once it has been decoded, or was found corrupt, by the thread that
            did it.

    Returns:
        ``(n, k)`` int16, sharing memory with ``out`` if that is given.

    Raises:
        BitstreamError: a stream that no encoder can have written with these indexes and tables; names the first one.
        ValueError: an index without a table, or shapes that do not fit.
    """
    if isinstance(streams, (bytes, bytearray, memoryview, str)):
        raise ValueError(f"streams is a single {type(streams).__name__}; put it into a list")
    n = len(streams)
    k = np.shape(indexes)[-1] if np.ndim(indexes) else 0
    table_of, step, fill = _flat_indexes(indexes, n, k, tables)
    result = np.empty((n, k), np.int16) if out is None else _writable(out, (n, k))

    sizes = [memoryview(stream).nbytes for stream in streams]
    for i, size in enumerate(sizes):
        if size < 8 or size % 4:
            raise BitstreamError(
                f"it is {size} bytes long; the shortest stream has 8, and all a multiple of 4", position=i, total=n
            )
    words = np.frombuffer(b"".join(streams), "<u4").astype(np.uint32, copy=False)
    bounds = _running_sum(np.array([*sizes, 0], np.int64)) // 4
    outcomes = np.zeros((n, 3), np.int64)
    kernels, search = _kernels(), (tables._modes, tables._buckets, tables._decoder_entries)

    def decode(first: int, last: int) -> None:
        fill(first, last)
        kernels.decode_rows(
            words, bounds, table_of, step, k, first, last,
            *search, tables.starts, tables._limits, tables.offsets, result.reshape(-1), outcomes,
        )  # fmt: skip
        if then is not None:
            for i in range(first, last):
                then(i)

    _spread(decode, n, num_threads, longest=max(n, 1))
    for i in np.flatnonzero(outcomes[:, 0]).tolist():
        code, position, value = outcomes[i].tolist()
        reason = kernels.CORRUPT[code].format(position=position, count=k, value=value, bits=value % (1 << 64))
        raise BitstreamError(reason, position=i, total=n)
    return result


def _kernels() -> Any:
    """The compiled loops. Importing them costs numba (0.3 s) and, in the first process ever, a second of compiling."""
    from cdzoo.coding import _rans_kernels as _rans

    return _rans


def _spread(work: Callable[[int, int], _T], n: int, num_threads: int, *, longest: int) -> list[_T]:
    """``work(first, last)`` over consecutive pieces of ``range(n)``, at most ``longest`` each, results in order.

    There are more pieces than threads: one thread may have to share its core, with the threads of the convolution
    before, say, which wait for their next task in a loop; the others then do more.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads={num_threads}; it has to be 1 or more")
    size = max(1, min(longest, n if num_threads == 1 else n // (8 * num_threads)))
    pieces = [(first, min(first + size, n)) for first in range(0, n, size)]
    return for_each(lambda i: work(*pieces[i]), len(pieces), num_threads)


def _integers(value: Array | Tensor, name: str, *, ndim: int) -> Array:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        raise ValueError(f"{name} is {array.dtype}; expected integers that fit int64")
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}; expected {ndim} dimension{'s' if ndim > 1 else ''}")
    return array


def _flat_indexes(
    indexes: Array | Tensor, n: int, k: int, tables: SymbolTables
) -> tuple[Array, int, Callable[[int, int], None]]:
    """Indexes as the flat uint16 array that the loops read, and the distance between those of neighboring streams.

    If each stream has its own indexes, the third value checks and fills them in for ``range(first, last)``: each thread
    does so for the rows that it codes next.
    """
    array = _integers(indexes, "indexes", ndim=1 if np.ndim(indexes) == 1 else 2)
    if array.shape not in ((n, k), (k,)):
        raise ValueError(f"indexes has shape {array.shape}; expected {(n, k)} or {(k,)}")
    table_of = np.empty(array.shape, np.uint16)

    def fill(first: int, last: int) -> None:
        rows = array[first:last] if array.ndim == 2 else array
        if rows.size and (rows.max() >= tables.num_tables or rows.min() < 0):
            _refuse(
                (array >= tables.num_tables) | (array < 0), array, "indexes", f"there are {tables.num_tables} tables"
            )
        (table_of[first:last] if array.ndim == 2 else table_of)[...] = rows

    if array.ndim == 1:
        fill(0, n)
        return table_of, 0, lambda first, last: None
    return table_of.reshape(-1), k, fill


def _writable(out: Array | Tensor, shape: tuple[int, int]) -> Array:
    if isinstance(out, Tensor) and out.device.type != "cpu":
        raise ValueError(f"out is on {out.device}; streams are decoded on the CPU")
    array = out.detach().numpy() if isinstance(out, Tensor) else out
    flags = array.flags
    if (
        array.shape != shape
        or array.dtype != np.int16
        or not (flags.c_contiguous and flags.writeable and flags.aligned)
    ):
        raise ValueError(f"out is {array.dtype} {array.shape}; expected C-contiguous, writable int16 {shape}")
    return array


def _refuse(wrong: Array, values: Array, name: str, rule: str) -> None:
    """Raise for the first place where ``wrong`` is true."""
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
        raise ValueError(f"{name}[{', '.join(map(str, place))}] is {values[place]}; {rule}")


def _running_sum(lengths: Array) -> Array:
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
    _refuse((lengths < 3) | (lengths > _TOTAL + 1), lengths, "lengths", rule)
    if int(lengths.sum()) != len(cdfs) or len(cdfs) > np.iinfo(np.int32).max:
        raise ValueError(f"cdfs has {len(cdfs)} entries; lengths add up to {int(lengths.sum())}, at most 2**31 - 1")
    _refuse(starts != _running_sum(lengths), starts, "starts", "tables follow one another without gaps")
    _refuse((offsets < -_MAX_OFFSET) | (offsets > _MAX_OFFSET), offsets, "offsets", f"they lie within +-{_MAX_OFFSET}")
    ends = starts + lengths - 1
    _refuse(cdfs[starts] != 0, cdfs[starts], "first entries of cdfs", "every table begins with 0")
    _refuse(cdfs[ends] != _TOTAL, cdfs[ends], "last entries of cdfs", f"every table ends with {_TOTAL}")
    falls = np.append(cdfs[1:] <= cdfs[:-1], False)
    falls[ends] = False
    _refuse(falls, cdfs, "cdfs", "the entry after it has to be larger: every count is 1 or more")
