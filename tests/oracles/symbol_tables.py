"""Random probability tables, and symbols for them."""

from __future__ import annotations

import numpy as np

from cdzoo.coding.tables import SymbolTables

INT16 = np.iinfo(np.int16)


def make_tables(seed: int, *, count: int = 5, longest: int = 60, shift: int = 20) -> SymbolTables:
    """Random tables; one in three has counts of 1 and one huge count."""
    rng = np.random.default_rng(seed)
    cdfs, lengths = [], rng.integers(3, longest + 1, count)
    for length in lengths:
        inner = np.sort(rng.choice(np.arange(1, 65536), length - 2, replace=False))
        if rng.random() < 1 / 3:
            inner = np.arange(1, length - 1)
            inner[rng.integers(0, length - 2) :] += 65536 - length
        cdfs.append([0, *inner, 65536])
    offsets = rng.integers(-shift, shift // 4 + 1, count)
    return SymbolTables.from_rows(cdfs, offsets)


def make_symbols(seed: int, tables: SymbolTables, n: int, k: int, *, outliers: float) -> tuple[np.ndarray, np.ndarray]:
    """Symbols mostly within their tables, and the indexes of the tables, both ``(n, k)``."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, tables.num_tables, (n, k))
    limits = np.maximum(tables.lengths[indexes] - 2, 1)
    symbols = tables.offsets[indexes] + rng.integers(0, limits)
    far = rng.random((n, k)) < outliers
    reach = rng.choice([100, 2000, 32768], (n, k))
    symbols[far] = rng.integers(-reach, reach)[far]
    return symbols.clip(INT16.min, INT16.max).astype(np.int16), indexes


def padded(tables: SymbolTables) -> tuple[list[list[int]], list[int], list[int]]:
    """The arguments of CompressAI's coder."""
    rows = [t.tolist() for t in np.split(tables.cdfs, tables.starts[1:])]
    width = max(map(len, rows))
    return [r + [0] * (width - len(r)) for r in rows], tables.lengths.tolist(), tables.offsets.tolist()
