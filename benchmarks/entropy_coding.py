"""Entropy coding of latents: cdzoo's rANS coder against CompressAI's, in one run, as ratios.

Both sides take the same float latents and the same table indexes, round, code, decode and give float latents back
(CompressAI through ``GaussianConditional.compress`` and ``.decompress``, which is what its models call); the streams
are compared before anything is timed. Repeats alternate between the two, medians are reported.

    python benchmarks/entropy_coding.py --repeat 9 --json entropy_coding.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from compressai.entropy_models import GaussianConditional
from torch import Tensor

from cdzoo.codecs.range_coder import SymbolTables, decode_batch, encode_batch

SHAPES = ((16, 192, 14, 14), (1, 192, 32, 48), (16, 192, 32, 48))


class Row(NamedTuple):
    """One line of the report; times are medians in milliseconds."""

    batch: str
    bits_per_symbol: float
    direction: str
    compressai_ms: float
    one_thread_ms: float
    two_threads_ms: float
    ratio: float
    """CompressAI's time over that of one thread of cdzoo."""
    thread_gain: float
    """Time of one thread over that of two; about 1 for a single stream, which one thread codes."""
    msymbols_per_s: float


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


def alternate(actions: Sequence[Callable[[], object]], *, repeat: int, turn_s: float = 0.05) -> list[float]:
    """Median milliseconds of one call of each action.

    They take turns, so that a slow moment of the machine hits them alike, and a turn lasts ``turn_s`` at least, so
    that the short ones are not at the mercy of the scheduler.
    """

    def turn(action: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            action()
        return (time.perf_counter() - start) / calls

    calls = []
    for action in actions:
        action()  # compiles, fills caches
        calls.append(max(1, math.ceil(turn_s / turn(action, 1))))
    rounds = [[1e3 * turn(*pair) for pair in zip(actions, calls, strict=True)] for _ in range(repeat)]
    return [median(times) for times in zip(*rounds, strict=True)]


def measure(shape: Sequence[int], *, repeat: int) -> list[Row]:
    """Times both directions of one batch.

    Raises:
        AssertionError: the two coders disagree on a byte or on a value.
    """
    model = gaussian_model()
    y, scales = latents(shape)
    indexes = model.build_indexes(scales)
    tables = SymbolTables.from_padded(model._quantized_cdf, model._cdf_length, model._offset)
    flat_indexes = indexes.to(torch.uint8).reshape(len(y), -1)

    def encode(threads: int) -> list[bytes]:
        symbols = y.round().to(torch.int16).reshape(len(y), -1)
        return encode_batch(symbols, flat_indexes, tables, num_threads=threads)

    def decode(threads: int) -> Tensor:
        symbols = decode_batch(streams, flat_indexes, tables, num_threads=threads)
        return torch.from_numpy(symbols).to(torch.float32).reshape(y.shape)

    streams: list[bytes] = model.compress(y, indexes)
    assert encode(1) == encode(2) == streams
    assert torch.equal(decode(1), model.decompress(streams, indexes))
    assert torch.equal(decode(2), decode(1))

    directions = {
        "encode": (lambda: model.compress(y, indexes), lambda: encode(1), lambda: encode(2)),
        "decode": (lambda: model.decompress(streams, indexes), lambda: decode(1), lambda: decode(2)),
    }
    rows = []
    for name, actions in directions.items():
        theirs, one, two = alternate(actions, repeat=repeat)
        bits = 8 * sum(map(len, streams)) / y.numel()
        batch = "x".join(map(str, shape))
        rows.append(Row(batch, bits, name, theirs, one, two, theirs / one, one / two, y.numel() / one / 1e3))
    return rows


def report(rows: Sequence[Row]) -> str:
    """The rows as one table of text."""
    lines = [
        f"{'batch':>15} {'bit/sym':>8} {'':>7} {'CompressAI':>11} {'1 thread':>10} {'ratio':>7} "
        f"{'2 threads':>10} {'gain':>6} {'Msym/s':>7}"
    ]
    lines += [
        f"{row.batch:>15} {row.bits_per_symbol:8.2f} {row.direction:>7} {row.compressai_ms:8.1f} ms "
        f"{row.one_thread_ms:7.2f} ms {row.ratio:6.1f}x {row.two_threads_ms:7.2f} ms {row.thread_gain:5.2f}x "
        f"{row.msymbols_per_s:7.0f}"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7, help="rounds per measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [row for shape in SHAPES for row in measure(shape, repeat=options.repeat)]
    ratios = {name: math.prod(r.ratio for r in rows if r.direction == name) for name in ("encode", "decode")}
    print(report(rows))
    print("geometric mean: " + ", ".join(f"{name} {p ** (1 / len(SHAPES)):.1f}x" for name, p in ratios.items()))
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
