"""Streams that are checked before they are decoded: header, owner, number of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cdzoo.coding.cdz_format import StreamHeader, unpack
from cdzoo.errors import BitstreamError, PairingError

__all__ = ["Stream", "open_streams"]


class Stream(NamedTuple):
    """A stream that passed every check which needs no decoding; made by :func:`open_streams`.

    Attributes:
        position: index in the list of streams.
        header: its header.
        parts: its entropy-coded parts.
    """

    position: int
    header: StreamHeader
    parts: tuple[memoryview, ...]


def open_streams(
    streams: Sequence[bytes], codec: str, fingerprint: str, num_parts: int, *, max_pixels: int | None
) -> list[Stream]:
    """Check streams as far as possible without decoding; sizes may differ.

    Args:
        streams: ``.cdz`` streams.
        codec: name of the codec that must have written them.
        fingerprint: its fingerprint.
        num_parts: entropy-coded parts that it writes.
        max_pixels: refuse streams whose image has more pixels than this; ``None`` for no limit.

    Raises:
        BitstreamError: a stream is damaged, truncated, or too large; the message names its position.
        PairingError: a stream was written by another codec, or by other weights.
        ValueError: no stream at all.
        TypeError: not a sequence of bytes.
    """
    if isinstance(streams, bytes | bytearray | memoryview | str) or not isinstance(streams, Sequence):
        kind = type(streams).__name__
        raise TypeError(f"streams must be a list of bytes, not {kind}; pass [stream] for one image")
    if len(streams) == 0:
        raise ValueError("no streams: decompress needs at least one")
    total, opened = len(streams), []
    for position, stream in enumerate(streams):
        try:
            header, parts = unpack(stream, max_pixels=max_pixels)
        except BitstreamError as error:
            raise error.at(position, total) from error
        if header.codec == codec and len(parts) != num_parts:
            reason = f"{len(parts)} parts, where {codec} writes {num_parts}; the stream is forged"
            raise BitstreamError(reason, position=position, total=total)
        if header.codec != codec or header.fingerprint != fingerprint:
            raise PairingError(
                f"written by {header.codec} with fingerprint {header.fingerprint}, but this codec is {codec} "
                f"with fingerprint {fingerprint}; load the weights that wrote the stream",
                position=position,
                total=total,
            )
        opened.append(Stream(position, header, parts))
    return opened
