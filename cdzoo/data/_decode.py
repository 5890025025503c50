"""Streams to latents, many at a time, and what becomes of those that cannot be read."""

from __future__ import annotations

import copy
import importlib
import logging
import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from cdzoo.codecs import Codec
from cdzoo.codecs.container import _FIXED, MAGIC
from cdzoo.errors import BitstreamError, CdzooError, PairingError
from cdzoo.types import Latent

__all__ = ["HEAD_BYTES", "MAX_STREAM_BYTES", "ErrorPolicy", "OnError", "StreamDecoder", "peek_image_size"]

OnError = Literal["raise", "skip"] | Callable[[Exception], None]
MAX_STREAM_BYTES = 256 << 20
"""Files and shard members beyond this are not loaded; an image at the pixel limit has it at 12 bits per pixel."""
HEAD_BYTES = _FIXED.size
_log = logging.getLogger("cdzoo.data")


def peek_image_size(head: bytes) -> tuple[int, int] | None:
    """``(H, W)`` from the first ``HEAD_BYTES`` bytes of a stream, unverified; ``None`` if it is no stream."""
    if len(head) < HEAD_BYTES or head[: len(MAGIC)] != MAGIC:
        return None
    *_, height, width, _ = _FIXED.unpack_from(head)
    return height, width


class ErrorPolicy:
    """What to do with a sample that cannot be read: raise, log and leave out, or tell a function and leave out."""

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "skip") and not callable(on_error):
            raise ValueError(f"on_error must be 'raise', 'skip' or a function of the error, not {on_error!r}.")
        self._on_error = on_error

    def __call__(self, error: Exception) -> None:
        """Returns only if the sample is to be left out."""
        if self._on_error == "raise":
            raise error
        if self._on_error == "skip":
            _log.warning("left out: %s", error)
        else:
            assert callable(self._on_error)
            self._on_error(error)


class StreamDecoder:
    """Decodes streams of any sizes, those of one size together.

    Keeps a copy of the codec on the CPU: worker processes must not touch an accelerator, and a codec that is being
    trained would change under them.
    """

    def __init__(self, codec: Codec, transform: Callable[[Latent], Latent] | None, max_pixels: int | None) -> None:
        if not isinstance(codec, Codec):
            raise TypeError(f"codec must be a cdzoo codec, not {type(codec).__name__}; build one with cdzoo.get_codec.")
        self.codec = copy.deepcopy(codec).cpu().eval().requires_grad_(False)
        # The coding tables are derived and the compiled loops loaded here, once, and not in every forked worker.
        self.codec.fingerprint  # noqa: B018
        importlib.import_module("cdzoo.codecs._rans")
        self._transform, self._max_pixels = transform, max_pixels

    def __call__(self, names: Sequence[str], streams: Sequence[bytes | Exception]) -> list[Latent | Exception]:
        """Each stream's latent ``(1, M, h, w)``, transformed, or its error, whose message begins with the name.

        Errors in place of streams are handed on.
        """
        results: list[Latent | Exception] = list(streams)  # type: ignore[arg-type]
        groups: dict[tuple[int, int] | None, list[int]] = {}
        for position, stream in enumerate(streams):
            if not isinstance(stream, Exception):
                groups.setdefault(peek_image_size(stream), []).append(position)
        for size, positions in groups.items():
            found = self._decode([streams[p] for p in positions], together=size is not None)  # type: ignore[misc]
            for position, result in zip(positions, found, strict=True):
                results[position] = _named(result, names[position]) if isinstance(result, CdzooError) else result
        if self._transform is not None:
            results = [self._transform(result) if isinstance(result, Latent) else result for result in results]
        return results

    def _decode(self, streams: Sequence[bytes], *, together: bool) -> list[Latent | CdzooError]:
        if not together:
            return [result for stream in streams for result in self._decode([stream], together=True)]
        try:
            latent = self.codec.decompress(streams, max_pixels=self._max_pixels)
        except (BitstreamError, PairingError) as error:
            # one damaged stream must not take the others with it, and only alone does it show which one it is
            return [error] if len(streams) == 1 else self._decode(streams, together=False)
        scales = [None] * len(streams) if latent.scales is None else torch.split(latent.scales, 1)
        return [Latent(y, s, latent.image_size) for y, s in zip(torch.split(latent.y_hat, 1), scales, strict=True)]


def _named(error: CdzooError, name: str) -> CdzooError:
    named = type(error)(f"{name}: {re.sub('^stream 0 of 1:? ', '', str(error))}")
    named.__cause__ = error
    return named
