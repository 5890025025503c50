"""``.cdz`` streams to latents, those of one image size together."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cdzoo.codecs import Codec
from cdzoo.coding.container import FIXED_BYTES, unverified_image_size
from cdzoo.data._decode import Decoder
from cdzoo.data.collate import collate_latents
from cdzoo.errors import BitstreamError, CdzooError, PairingError
from cdzoo.types import Latent

__all__ = ["StreamDecoder"]


class StreamDecoder(Decoder[Latent]):
    """Decodes streams of any sizes, those of one size together.

    Keeps a copy of the codec on the CPU: worker processes must not touch an accelerator, and a codec that is being
    trained would change under them.
    """

    suffixes = (".cdz",)
    error = BitstreamError
    head_sizes = (FIXED_BYTES,)

    def __init__(self, codec: Codec, transform: Callable[[Latent], Latent] | None, max_pixels: int | None) -> None:
        super().__init__(transform)
        if not isinstance(codec, Codec):
            raise TypeError(f"codec must be a cdzoo codec, not {type(codec).__name__}; build one with cdzoo.get_codec.")
        self.codec = copy.deepcopy(codec).cpu().eval().requires_grad_(False)
        # The coding tables are derived and the compiled loops loaded here, once, and not in every forked worker.
        self.codec.fingerprint  # noqa: B018
        importlib.import_module("cdzoo.coding._rans_kernels")
        self._max_pixels = max_pixels

    def bucket_key(self, head: bytes) -> tuple[int, int]:
        """``(H, W)``, unverified."""
        return unverified_image_size(head)

    def named(self, error: CdzooError, name: str) -> CdzooError:
        return type(error)(f"{name}: {re.sub('^stream 0 of 1:? ', '', str(error))}")

    def collate(self, samples: Any) -> Any:
        return collate_latents(samples)

    def _decode(self, files: Sequence[bytes]) -> list[Latent | CdzooError]:
        results: dict[int, Latent | CdzooError] = {}
        groups: dict[tuple[int, int], list[int]] = {}
        for position, stream in enumerate(files):
            try:
                groups.setdefault(self.bucket_key(stream), []).append(position)
            except BitstreamError:  # what it lacks is the codec's to say
                results[position] = self._decode_group([stream])[0]
        for positions in groups.values():
            results.update(zip(positions, self._decode_group([files[p] for p in positions]), strict=True))
        return [results[position] for position in range(len(files))]

    def _decode_group(self, streams: Sequence[bytes]) -> list[Latent | CdzooError]:
        try:
            latent = self.codec.decompress(streams, max_pixels=self._max_pixels)
        except (BitstreamError, PairingError) as error:
            if len(streams) == 1:
                return [error]
            # one damaged stream must not take the others with it, and only alone does it show which one it is
            return [result for stream in streams for result in self._decode_group([stream])]
        scales = [None] * len(streams) if latent.scales is None else torch.split(latent.scales, 1)
        return [Latent(y, s, latent.image_size) for y, s in zip(torch.split(latent.y_hat, 1), scales, strict=True)]
