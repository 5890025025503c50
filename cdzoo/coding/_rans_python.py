"""The decoder of :mod:`cdzoo.coding.rans` in plain Python, for a few small streams.

It takes about half a microsecond for a symbol, a hundred times as long as the compiled one, but loading Numba takes a
second. ``_rans_kernels.py`` describes the bits; both accept the same streams and give the same outcomes.
"""

from __future__ import annotations

from bisect import bisect_right

from cdzoo.coding.tables import INT16, Array, SymbolTables

__all__ = ["decode_rows"]

_LOW, _HIGH = 1 << 31, 1 << 63
_MAX_GROUPS = 5
_INT16_MIN, _INT16_MAX = int(INT16.min), int(INT16.max)


class _Reader:
    """The words of a stream from its third one on."""

    def __init__(self, words: list[int]) -> None:
        self._words, self.position = words, 2

    @property
    def left(self) -> int:
        """Words that were not read."""
        return len(self._words) - self.position

    def refill(self, x: int) -> int:
        """The coder's state with one more word.

        Raises:
            EOFError: there is none.
        """
        if not self.left:
            raise EOFError
        self.position += 1
        return x << 32 | self._words[self.position - 1]


def decode_rows(
    words: Array, bounds: Array, table_of: Array, step: int, count: int, first: int, last: int, tables: SymbolTables,
    out: Array, outcomes: Array,
) -> None:  # fmt: skip
    """Decode streams ``first`` to ``last - 1``; the arguments are those of the compiled ``decode_rows``.

    Args:
        words: ``(W,)`` uint32, the streams one after the other.
        bounds: ``(n + 1,)`` int64, where each stream begins and ends in ``words``; two words each at least.
        table_of: ``(k,)`` or ``(n * k,)`` integers, the table of each symbol.
        step: distance between the indexes of neighboring streams: 0 or ``k``.
        count: ``k``, symbols of a stream.
        first: the first stream.
        last: the stream behind the last one.
        tables: the symbol tables.
        out: ``(n, k)`` int16, written.
        outcomes: ``(n, 3)`` int64, written: outcome, position and value, as in :data:`cdzoo.coding.rans.CORRUPT`.
    """
    cdfs: dict[int, list[int]] = {}
    for table in set(table_of[first * step : (last - 1) * step + count].tolist()):  # only these are filled in
        start = int(tables.starts[table])
        cdfs[table] = tables.cdfs[start : start + int(tables.lengths[table])].tolist()
    limits, offsets = tables.limits.tolist(), tables.offsets.tolist()
    for i in range(first, last):
        indexes = table_of[i * step : i * step + count].tolist()
        values: list[int] = []
        try:
            found = _decode_row(words[bounds[i] : bounds[i + 1]].tolist(), indexes, cdfs, limits, offsets, values)
        except EOFError:
            found = 2, len(values), 0
        out[i, : len(values)] = values
        outcomes[i] = [*found[:2], found[2] - (1 << 64) if found[2] >= _HIGH else found[2]]


def _decode_row(
    words: list[int], indexes: list[int], cdfs: dict[int, list[int]], limits: list[int], offsets: list[int],
    values: list[int],
) -> tuple[int, int, int]:  # fmt: skip
    """Append the symbols of one stream to ``values``; outcome, position of the symbol, value for the message."""
    x = words[0] | words[1] << 32
    if not _LOW <= x < _HIGH:
        return 1, 0, x
    reader = _Reader(words)
    for j, table in enumerate(indexes):
        cdf, cumulative = cdfs[table], x & 0xFFFF
        value = bisect_right(cdf, cumulative) - 1
        start = cdf[value]
        x = (cdf[value + 1] - start) * (x >> 16) + cumulative - start
        if x < _LOW:
            x = reader.refill(x)
        if value == limits[table]:
            raw, groups, read = 0, 0, 0
            while read <= groups:  # the first of the 4-bit reads is the number of those that follow
                group, x = x & 15, x >> 4
                if x < _LOW:
                    x = reader.refill(x)
                if read == 0:
                    groups = group
                    if groups > _MAX_GROUPS:
                        return 3, j, groups
                else:
                    raw |= group << 4 * (read - 1)
                read += 1
            if groups and not raw >> 4 * (groups - 1):
                return 5, j, raw
            value = -(raw >> 1) - 1 if raw & 1 else (raw >> 1) + limits[table]
        value += offsets[table]
        if not _INT16_MIN <= value <= _INT16_MAX:
            return 4, j, value
        values.append(value)
    if reader.left:
        return 6, len(indexes), reader.left
    return (0, 0, 0) if x == _LOW else (7, len(indexes), x)
