"""Rate control: several codecs at rising rates, of which each image gets the best one for a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdzoo.coding.base import Codec
from cdzoo.coding.cdz_format import read_header

__all__ = ["RateChoice", "RateControl", "psnr"]


class RateChoice(NamedTuple):
    """The stream that :class:`RateControl` chose for one image.

    Attributes:
        stream: the ``.cdz`` stream.
        position: of the codec that wrote it, among those of the control.
        bpp: bits per pixel of the stream, header included.
        psnr: PSNR of the decoded image in dB, both images rounded to 8 bits, at most 100; ``None`` for a target in
            bits per pixel, which needs no decoded image.
        reached: the target is met. If no codec meets it, the choice is the nearest one among those that were tried.
    """

    stream: bytes
    position: int
    bpp: float
    psnr: float | None
    reached: bool


class RateControl:
    """Chooses one of several codecs for every image: the best one under a target.

    With ``bpp``, the choice is the highest rate whose stream has at most so many bits per pixel. With ``psnr``, it is
    the lowest rate whose decoded image has at least this PSNR. Each image is first compressed at the middle rate, and
    then at higher or lower rates only, as far as the target asks for.

        >>> codecs = [bmshj2018_hyperprior(weights=member) for member in cdzoo.codecs.hyperprior.RATES]
        >>> (choice,) = RateControl(codecs, bpp=0.5).compress(torch.full((1, 3, 64, 96), 0.5))
        >>> choice.position, choice.reached
        (2, True)

    Args:
        codecs: codecs at rising rates, on one device.
        bpp: bits per pixel that a stream may have, with its header.
        psnr: PSNR in dB that a decoded image should have.

    Raises:
        TypeError: not codecs.
        ValueError: no codecs, not exactly one target, or one that is not finite and above 0.
    """

    def __init__(self, codecs: Sequence[Codec], *, bpp: float | None = None, psnr: float | None = None) -> None:
        if not codecs:
            raise ValueError("codecs is empty; pass codecs at rising rates")
        for codec in codecs:
            if not isinstance(codec, Codec):
                raise TypeError(f"codecs must be cdzoo codecs, not {type(codec).__name__}; use cdzoo.get_codec")
        if (bpp is None) == (psnr is None):
            raise ValueError(f"bpp={bpp!r} and psnr={psnr!r}: pass exactly one of them, such as bpp=0.4 or psnr=32")
        self.codecs = list(codecs)
        self.bpp = None if bpp is None else _checked("bpp", bpp, "bits per pixel, such as 0.4")
        self.psnr = None if psnr is None else _checked("psnr", psnr, "decibels, such as 32")

    @property
    def target(self) -> dict[str, float]:
        """The target by its name, ``"bpp"`` or ``"psnr"``."""
        return {name: value for name, value in (("bpp", self.bpp), ("psnr", self.psnr)) if value is not None}

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the choice depends on, JSON-ready: the target, and the fingerprints of the codecs."""
        return {**self.target, "fingerprints": [codec.fingerprint for codec in self.codecs]}

    def compress(self, x: Tensor) -> list[RateChoice]:
        """Images to bits, each image at a rate of its own.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.

        Returns:
            one choice per image.

        Raises:
            TypeError, ValueError: as :meth:`cdzoo.codecs.Codec.compress`.
        """
        if isinstance(x, Tensor) and x.dim() == 4 and len(x) > 1:
            return [self._choose(image[None]) for image in x]
        return [self._choose(x)]

    def _choose(self, x: Tensor) -> RateChoice:
        middle, last = len(self.codecs) // 2, len(self.codecs)
        first = self._compressed(x, middle)
        # a rate that meets the target is improved: to more bits under a limit of bits, to fewer above a quality
        upwards = first.reached == (self.bpp is not None)
        tried = [first]
        for position in range(middle + 1, last) if upwards else range(middle - 1, -1, -1):
            choice = self._compressed(x, position)
            if first.reached and not choice.reached:
                break
            tried.append(choice)
            if choice.reached and not first.reached:
                break
        return tried[-1] if tried[-1].reached else min(tried, key=self._distance)

    def _compressed(self, x: Tensor, position: int) -> RateChoice:
        codec = self.codecs[position]
        (stream,) = codec.compress(x)
        bpp = read_header(stream, max_pixels=None).bpp
        if self.bpp is not None:
            return RateChoice(stream, position, bpp, None, bpp <= self.bpp)
        assert self.psnr is not None
        # reading the stream takes less time than transforming the image once more
        quality = psnr(codec.decode(codec.decompress([stream], max_pixels=None)), x)
        return RateChoice(stream, position, bpp, quality, quality >= self.psnr)

    def _distance(self, choice: RateChoice) -> float:
        if choice.psnr is not None and self.psnr is not None:
            return abs(choice.psnr - self.psnr)
        return abs(choice.bpp - (self.bpp or 0))


def _checked(name: str, value: Any, example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r} must be a finite number above 0; pass {example}")
    return float(value)


@torch.no_grad()
def psnr(x_hat: Tensor, x: Tensor) -> float:
    """PSNR in dB of two batches ``(B, 3, H, W)`` in ``[0, 1]``, both rounded to 8 bits; at most 100."""
    total = 0.0
    for top in range(0, x.shape[2], 256):  # rows at a time, for the memory's sake
        pixels, others = (image[:, :, top : top + 256].float().mul(255).round() for image in (x_hat, x))
        total += float((pixels - others).square().sum(dtype=torch.float64))
    error = total / x_hat.numel()
    return 100.0 if error == 0 else min(100.0, 10 * math.log10(255**2 / error))
