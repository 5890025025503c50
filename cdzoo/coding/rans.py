"""Entropy coding of integer symbols: a range asymmetric numeral system (rANS) coder, byte for byte CompressAI's.

A batch of ``n`` streams of ``k`` symbols is coded in one call, every symbol under one of a few tables of cumulative
counts. The streams equal those of ``compressai.ans`` (``RansEncoder.encode_with_indexes``) and either coder reads
the other's. This one takes arrays in place of nested lists, and refuses every stream that the encoder cannot have
written. Its loops are compiled with Numba; a few small streams are decoded without (``_rans_python.py``).

Source: Duda, "Asymmetric numeral systems", arXiv:1311.2540; ``ryg_rans`` for the 64-bit variant; the escape code for
values outside a table is CompressAI's (Bégaint et al., arXiv:2011.03029). ``_rans_kernels.py`` describes the bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from cdzoo._threads import for_each
from cdzoo.coding import _rans_python
from cdzoo.coding.tables import INT16, Array, SymbolTables, integers, refuse, running_sum
from cdzoo.errors import BitstreamError

__all__ = ["CORRUPT", "decode_batch", "encode_batch", "load_kernels"]

_SCRATCH_WORDS = 1 << 24  # streams encoded in one go share a buffer of at most 64 MiB, unless one alone needs more

CORRUPT = {
    1: "its first 8 bytes hold {bits:#x}, which is not a coder state",
    2: "the data run out at symbol {position} of {count}",
    3: "symbol {position} of {count} claims {value} or more 4-bit groups; no int16 needs more than 5",
    4: "symbol {position} of {count} decodes to {value}, outside int16",
    5: "symbol {position} of {count} is not in the shortest form that the encoder writes",
    6: "{value} words of 4 bytes are left over after the last of {count} symbols",
    7: "the last of {count} symbols leaves the state {bits:#x} in place of 0x80000000",
}
"""Outcome of a stream -> reason, as the decoders report it; 0 is success."""
_symbols_left = 400_000  # decoded in plain Python, in 0.2 s, before the compiled loops are loaded, in 1 s

_T = TypeVar("_T")


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
    values = integers(symbols, "symbols", ndim=2)
    n, k = values.shape
    if values.dtype != np.int16:
        refuse((values < INT16.min) | (values > INT16.max), values, "symbols", "the coder takes int16")
    flat = np.ascontiguousarray(values, np.int16).reshape(-1)
    table_of, step, fill = _flat_indexes(indexes, n, k, tables)
    # A symbol under its table adds at most 16 bits to the state, an escaped one 24 more; rounding adds less than
    # 2**-13 of a bit per symbol. Two words per symbol, and two for the flush, are never exceeded.
    most = 2 * k + 2
    kernels, entries, begins = load_kernels(), tables.encoder_entries, np.empty(n, np.int64)

    def encode(first: int, last: int) -> list[bytes]:
        fill(first, last)
        words = np.empty((last - first) * most, np.uint32)
        kernels.encode_rows(
            flat, table_of, step, k, first, last,
            entries, tables.starts, tables.limits, tables.offsets, words, begins,
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
    bounds = running_sum(np.array([*sizes, 0], np.int64)) // 4
    outcomes = np.zeros((n, 3), np.int64)
    if in_python(max(n * k, len(words))):

        def decode_rows(first: int, last: int) -> None:
            _rans_python.decode_rows(words, bounds, table_of, step, k, first, last, tables, result, outcomes)

    else:
        kernels, search = load_kernels(), (tables.modes, tables.buckets, tables.decoder_entries)

        def decode_rows(first: int, last: int) -> None:
            kernels.decode_rows(
                words, bounds, table_of, step, k, first, last,
                *search, tables.starts, tables.limits, tables.offsets, result.reshape(-1), outcomes,
            )  # fmt: skip

    def decode(first: int, last: int) -> None:
        fill(first, last)
        decode_rows(first, last)
        if then is not None:
            for i in range(first, last):
                then(i)

    _spread(decode, n, num_threads, longest=max(n, 1))
    _refuse_corrupt(outcomes, k)
    return result


def load_kernels() -> Any:
    """The compiled loops. Importing them takes a second for Numba and, on a machine's first run, another to compile."""
    from cdzoo.coding import _rans_kernels as _rans

    return _rans


def in_python(symbols: int) -> bool:
    """True if so few symbols are decoded without the compiled loops, which are not loaded yet; they are counted.

    Every call counts as a thousand symbols more, which it takes to lay out the tables.
    """
    global _symbols_left
    symbols += 1000
    if "cdzoo.coding._rans_kernels" in sys.modules or symbols > _symbols_left:
        return False
    _symbols_left -= symbols
    return True


def _refuse_corrupt(outcomes: Array, k: int) -> None:
    for i in np.flatnonzero(outcomes[:, 0]).tolist():
        code, position, value = outcomes[i].tolist()
        reason = CORRUPT[code].format(position=position, count=k, value=value, bits=value % (1 << 64))
        raise BitstreamError(reason, position=i, total=len(outcomes))


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


def _flat_indexes(
    indexes: Array | Tensor, n: int, k: int, tables: SymbolTables
) -> tuple[Array, int, Callable[[int, int], None]]:
    """Indexes as the flat uint16 array that the loops read, and the distance between those of neighboring streams.

    If each stream has its own indexes, the third value checks and fills them in for ``range(first, last)``: each thread
    does so for the rows that it codes next.
    """
    array = integers(indexes, "indexes", ndim=1 if np.ndim(indexes) == 1 else 2)
    if array.shape not in ((n, k), (k,)):
        raise ValueError(f"indexes has shape {array.shape}; expected {(n, k)} or {(k,)}")
    table_of = np.empty(array.shape, np.uint16)

    def fill(first: int, last: int) -> None:
        rows = array[first:last] if array.ndim == 2 else array
        if rows.size and (rows.max() >= tables.num_tables or rows.min() < 0):
            refuse(
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
