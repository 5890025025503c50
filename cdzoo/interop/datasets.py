"""Image columns of Hugging Face datasets to coefficients, latents and streams.

    files = load_dataset(...).cast_column("image", datasets.Image(decode=False))           # files, not pixels
    dataset = files.with_transform(ReadCoefficients("image"))                             # read as rows are asked for
    loader = DataLoader(dataset, batch_size=32, collate_fn=collate_rows)                  # dictionaries of batches

    streams = files.map(Compress(codec, "image"), batched=True, remove_columns="image")   # once, into a column "cdz"
    dataset = streams.with_transform(ReadLatents(codec, "cdz"))

``with_transform`` calls these with a batch, a dictionary of lists; nothing here imports ``datasets``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from cdzoo.codecs import MAX_IMAGE_PIXELS, Codec, read_jpeg
from cdzoo.coding.cdz_format import MAGIC
from cdzoo.data import collate_coefficients, collate_latents
from cdzoo.images import decode_image
from cdzoo.types import JPEGCoefficients, Latent

__all__ = ["Compress", "ReadCoefficients", "ReadLatents", "collate_rows"]

Batch = Mapping[str, Sequence[Any]]


class ReadCoefficients:
    """Transform of a dataset: read a column of JPEG files into :class:`~cdzoo.JPEGCoefficients`, a batch of one a row.

    Args:
        column: name of an ``Image(decode=False)`` column, or one of bytes or paths. The coefficients
            replace the files.
        transform: applied to each file's coefficients, such as ``weights.transforms()``.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
    """

    def __init__(
        self,
        column: str = "image",
        *,
        transform: Callable[[JPEGCoefficients], JPEGCoefficients] | None = None,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
    ) -> None:
        self.column, self.transform, self.max_pixels = column, transform, max_pixels

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """The batch with coefficients in the column.

        Raises:
            JPEGError: a file is damaged, or not a JPEG file.
            TypeError: the column holds decoded images.
        """
        read = [read_jpeg(_content(value, self.column), max_pixels=self.max_pixels) for value in batch[self.column]]
        return {**batch, self.column: read if self.transform is None else [self.transform(c) for c in read]}


class ReadLatents:
    """Transform of a dataset: read a column of ``.cdz`` streams or image files into :class:`~cdzoo.Latent`, one a row.

    Args:
        codec: the codec. Streams are decoded; other files are images, which are decoded to pixels and encoded.
        column: name of a column of bytes or paths, or an ``Image(decode=False)`` one. The latents replace the
            files.
        transform: applied to each latent, such as ``weights.transforms()``.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
    """

    def __init__(
        self,
        codec: Codec,
        column: str = "image",
        *,
        transform: Callable[[Latent], Latent] | None = None,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
    ) -> None:
        self.codec, self.column, self.transform, self.max_pixels = codec, column, transform, max_pixels

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """The batch with latents in the column, on the CPU.

        Raises:
            BitstreamError: a stream is damaged.
            PairingError: a stream of another codec.
            ValueError: a file that is neither a stream nor an image.
            TypeError: the column holds decoded images.
        """
        latents = [self._latent(_content(value, self.column)) for value in batch[self.column]]
        return {**batch, self.column: latents if self.transform is None else [self.transform(z) for z in latents]}

    def _latent(self, data: bytes) -> Latent:
        if data.startswith(MAGIC):
            return self.codec.decompress([data], max_pixels=self.max_pixels).to("cpu")
        x = decode_image(data, max_pixels=self.max_pixels)
        return self.codec.encode(x.to(self.codec.device)).to("cpu")


class Compress:
    """Function for ``dataset.map(..., batched=True)``: compress a column of image files to ``.cdz`` streams.

    Args:
        codec: the codec.
        column: name of an ``Image(decode=False)`` column, or one of bytes or paths.
        output: name of the new column, of bytes.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
    """

    def __init__(
        self, codec: Codec, column: str = "image", *, output: str = "cdz", max_pixels: int | None = MAX_IMAGE_PIXELS
    ) -> None:
        self.codec, self.column, self.output, self.max_pixels = codec, column, output, max_pixels

    def __call__(self, batch: Batch) -> dict[str, list[bytes]]:
        """One stream for each image.

        Raises:
            ValueError: a file that is not an image.
            TypeError: the column holds decoded images.
        """
        images = (
            decode_image(_content(value, self.column), max_pixels=self.max_pixels) for value in batch[self.column]
        )
        return {self.output: [self.codec.compress(x.to(self.codec.device))[0] for x in images]}


def collate_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate function for rows: coefficients and latents become batches, other columns as PyTorch collates them.

    Raises:
        ValueError: no rows, or coefficients or latents of unequal geometry.
    """
    if not rows:
        raise ValueError("collate_rows got no rows; pass at least one")
    batch: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, JPEGCoefficients):
            batch[name] = collate_coefficients(values)
        else:
            batch[name] = collate_latents(values) if isinstance(first, Latent) else default_collate(values)
    return batch


def _content(value: Any, column: str) -> bytes:
    """The file in a cell: ``{"bytes": ..., "path": ...}``, its bytes, or its path."""
    if isinstance(value, Mapping) and "bytes" in value:
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return Path(value).read_bytes()
    raise TypeError(
        f"column {column!r} holds {type(value).__name__}, not files; cast it first: "
        f"dataset.cast_column({column!r}, datasets.Image(decode=False))"
    )
