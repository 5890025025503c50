"""Entropy coding of latents: cdzoo's rANS coder against CompressAI's.

Both sides take the same float latents and the same table indexes, round, code, decode and give float latents back
(CompressAI through ``GaussianConditional.compress`` and ``.decompress``, which is what its models call); the streams
are compared before anything is timed. CompressAI codes in one thread, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from compressai.entropy_models import GaussianConditional
from measuring import Options, Row, compare, torch_threads
from torch import Tensor

from cdzoo.coding.rans import decode_batch, encode_batch
from cdzoo.coding.tables import SymbolTables

GROUP = "entropy-coding"
SHAPES = ((16, 192, 14, 14), (1, 192, 32, 48), (4, 192, 32, 48))


def gaussian_model() -> GaussianConditional:
    """The conditional entropy model of a hyperprior codec: 64 zero-mean Gaussians, 0.11 to 256 wide."""
    model = GaussianConditional(None)
    model.update_scale_table([0.11 * (256 / 0.11) ** (i / 63) for i in range(64)])
    return model.eval()


def latents(shape: Sequence[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents ``(B, M, h, w)`` and their standard deviations, spread like those of a codec at a middle rate."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, *size = shape
    channel = torch.randn(1, channels, 1, 1, generator=generator) - 1.5
    place = 0.7 * torch.randn(batch, channels, *size, generator=generator)
    scales = (channel + place).exp()
    return torch.randn(tuple(shape), generator=generator) * scales, scales


def measure(shape: Sequence[int], threads: int, options: Options) -> Iterator[Row]:
    """Both directions of one batch."""
    model = gaussian_model()
    y, scales = latents(shape)
    indexes = model.build_indexes(scales)
    tables = SymbolTables.from_padded(model._quantized_cdf, model._cdf_length, model._offset)
    flat_indexes = indexes.to(torch.uint8).reshape(len(y), -1)

    def encode() -> list[bytes]:
        symbols = y.round().to(torch.int16).reshape(len(y), -1)
        return encode_batch(symbols, flat_indexes, tables, num_threads=threads)

    def decode() -> Tensor:
        symbols = decode_batch(streams, flat_indexes, tables, num_threads=threads)
        return torch.from_numpy(symbols).to(torch.float32).reshape(y.shape)

    streams: list[bytes] = model.compress(y, indexes)
    assert encode() == streams
    assert torch.equal(decode(), model.decompress(streams, indexes))
    bits = round(8 * sum(map(len, streams)) / y.numel(), 2)
    case = {"latents": "x".join(map(str, shape)), "bits per symbol": bits, "threads": threads}
    ways = {"encode": (encode, lambda: model.compress(y, indexes))}
    ways["decode"] = (decode, lambda: model.decompress(streams, indexes))
    for direction, (ours, theirs) in ways.items():
        yield compare(GROUP, {"direction": direction, **case}, {"cdzoo": ours, "CompressAI": theirs}, options)


def rows(options: Options) -> Iterator[Row]:
    """All of this group."""
    for shape in [(2, 16, 4, 4)] if options.quick else SHAPES:
        for threads in options.threads if shape[0] > 1 else options.threads[:1]:
            with torch_threads(threads):
                yield from measure(shape, threads, options)
