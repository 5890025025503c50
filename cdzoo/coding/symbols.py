"""Coders of symbols: one that only quantizes, one that writes bits, one that reads them.

A codec describes its parts once (``Codec.code``). The coder that it is given decides if symbols are quantized, written
or read. ``encode`` and ``decompress`` agree because they run the same code.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdzoo.coding.rans import decode_batch, encode_batch
from cdzoo.coding.tables import SymbolTables
from cdzoo.errors import BitstreamError

__all__ = [
    "Quantizer",
    "Reader",
    "SymbolCoder",
    "Writer",
    "channel_indexes",
    "named_tables",
    "round_to_symbols",
    "tables_from",
]

_MANY_SYMBOLS = 1 << 16


class SymbolCoder(Protocol):
    """Codes one part of a batch: integer symbols ``(B, C, h, w)`` with one probability table each."""

    def __call__(self, values: Tensor | None, shape: tuple[int, ...], indexes: Tensor, tables: SymbolTables) -> Tensor:
        """Code a part.

        Args:
            values: real values ``(B, C, h, w)`` to round and to write; ``None`` when reading.
            shape: ``(B, C, h, w)``.
            indexes: table index of each symbol, ``(B, C, h, w)`` or, the same for all images, ``(C, h, w)``; uint8
                or int32.
            tables: the tables that ``indexes`` refers to.

        Returns:
            the symbols, ``(B, C, h, w)`` int16, on the device of ``indexes``.
        """
        ...


def round_to_symbols(values: Tensor) -> Tensor:
    """Round values of any shape to the nearest integer, ties to even, as int16.

    Raises:
        ValueError: values that are not finite, or beyond what an int16 symbol can carry.
    """
    limit = torch.iinfo(torch.int16).max
    largest = float(values.detach().abs().max()) if values.numel() else 0.0
    if not largest < limit:  # catches NaN too
        raise ValueError(
            f"latent values reach {largest}, but symbols must be finite and below {limit} in magnitude; "
            "check that the image is within [0, 1] and that the weights are finite"
        )
    return torch.round(values).to(torch.int16)


def channel_indexes(tables: SymbolTables, height: int, width: int, device: torch.device) -> Tensor:
    """Table indexes ``(C, h, w)`` for a part in which channel ``c`` uses table ``c``, as :class:`SymbolCoder` takes."""
    count = tables.num_tables
    dtype = torch.uint8 if count <= 256 else torch.int32
    return torch.arange(count, device=device).to(dtype).view(-1, 1, 1).expand(-1, height, width)


def named_tables(prefix: str, tables: SymbolTables) -> dict[str, Tensor]:
    """The arrays of tables as tensors, whose names start with ``prefix``."""
    return {prefix + name: torch.from_numpy(array) for name, array in tables.state().items()}


def tables_from(prefix: str, tensors: Mapping[str, Tensor]) -> SymbolTables:
    """The inverse of :func:`named_tables`; other tensors are ignored.

    Raises:
        ValueError: an array is missing, or the tables are invalid.
    """
    names = {f.name: prefix + f.name for f in fields(SymbolTables)}
    return SymbolTables.from_state({n: tensors[full].cpu().numpy() for n, full in names.items() if full in tensors})


class Quantizer:
    """Rounds, and writes nothing."""

    def __call__(self, values: Tensor | None, shape: tuple[int, ...], indexes: Tensor, tables: SymbolTables) -> Tensor:
        """See :class:`SymbolCoder`."""
        assert values is not None
        return round_to_symbols(values)


class Writer:
    """Rounds, and entropy-codes each image of the batch into its own bytes.

    Attributes:
        parts: for each image, the parts written so far.
        checksums: for each image, the running CRC32 of symbols and table indexes.
    """

    def __init__(self, batch: int, num_threads: int) -> None:
        self.parts: list[list[bytes]] = [[] for _ in range(batch)]
        self.checksums = [0] * batch
        self._num_threads = num_threads

    def __call__(self, values: Tensor | None, shape: tuple[int, ...], indexes: Tensor, tables: SymbolTables) -> Tensor:
        """See :class:`SymbolCoder`."""
        assert values is not None
        symbols = round_to_symbols(values)
        flat = symbols.cpu().contiguous().numpy().reshape(shape[0], -1)
        flat_indexes = _flatten(indexes, shape)
        num_threads = _worthwhile(self._num_threads, flat.size)
        coded = encode_batch(flat, flat_indexes, tables, num_threads=num_threads)
        for position, part in enumerate(coded):
            self.parts[position].append(part)
            self.checksums[position] = _checksum(self.checksums[position], flat, flat_indexes, position)
        return symbols


class Reader:
    """Decodes each image's parts in the order in which they were written.

    Attributes:
        checksums: for each image, the running CRC32 of symbols and table indexes.
    """

    def __init__(self, parts: Sequence[Sequence[memoryview]], num_threads: int) -> None:
        self.checksums = [0] * len(parts)
        self._parts = parts
        self._next = 0
        self._num_threads = num_threads

    def __call__(self, values: Tensor | None, shape: tuple[int, ...], indexes: Tensor, tables: SymbolTables) -> Tensor:
        """See :class:`SymbolCoder`."""
        streams = [parts[self._next] for parts in self._parts]
        self._next += 1
        if indexes.dim() < len(shape):
            _refuse_implausible(streams, shape, indexes, tables)
        flat_indexes = _flatten(indexes, shape)
        symbols = np.empty((shape[0], math.prod(shape[1:])), np.int16)

        def checksum(position: int) -> None:
            self.checksums[position] = _checksum(self.checksums[position], symbols, flat_indexes, position)

        num_threads = _worthwhile(self._num_threads, symbols.size)
        decode_batch(streams, flat_indexes, tables, out=symbols, num_threads=num_threads, then=checksum)
        return torch.from_numpy(symbols).reshape(shape).to(indexes.device)

    def verify(self, expected: Sequence[int]) -> None:
        """Compare what was decoded with the checksums of what was written.

        Raises:
            BitstreamError: they differ; the error has the position of the stream.
        """
        for position, (found, wanted) in enumerate(zip(self.checksums, expected, strict=True)):
            if found != wanted:
                raise BitstreamError(
                    f"decoded symbols have CRC32 {found:08x}, but {wanted:08x} was written; the stream is damaged, or "
                    "its writer computed other integers",
                    position=position,
                    total=len(expected),
                )


def _refuse_implausible(
    streams: Sequence[memoryview], shape: tuple[int, ...], indexes: Tensor, tables: SymbolTables
) -> None:
    """Refuse parts that are too short for the symbols of an image of the stated size, before memory is allocated.

    A symbol takes at least as many bits as the most probable entry of its table; the coder's state holds 64 more.
    """
    cheapest = tables.cheapest_bits[indexes[:, 0, 0].cpu().numpy()].sum()
    needed = float(cheapest) * shape[2] * shape[3] * 0.999 - 64
    for position, stream in enumerate(streams):
        if 8 * len(stream) < needed:
            raise BitstreamError(
                f"a part of {len(stream)} bytes cannot hold {shape[1]}x{shape[2]}x{shape[3]} symbols, which take at "
                f"least {needed / 8:.0f} bytes; the stream is damaged or forged",
                position=position,
                total=len(streams),
            )


def _worthwhile(num_threads: int, num_symbols: int) -> int:
    """The number of threads to use: waking one takes as long as coding some ten thousand symbols."""
    return num_threads if num_symbols >= _MANY_SYMBOLS else 1


def _flatten(indexes: Tensor, shape: tuple[int, ...]) -> NDArray[np.generic]:
    array: NDArray[np.generic] = indexes.cpu().contiguous().numpy()
    return array.reshape(shape[0], -1) if indexes.dim() == len(shape) else array.reshape(-1)


def _checksum(running: int, symbols: NDArray[np.int16], indexes: NDArray[np.generic], position: int) -> int:
    """Continue an image's CRC32 over its symbols (little-endian) and, where they were computed, its indexes."""
    running = zlib.crc32(np.ascontiguousarray(symbols[position], dtype="<i2").data, running)
    if indexes.ndim == 2:
        running = zlib.crc32(np.ascontiguousarray(indexes[position]).data, running)
    return running
