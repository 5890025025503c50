"""Figure 4a: the error of ASM and APX on single blocks, for 1 to 15 spatial frequencies.

    python -m studies.jpeg_domain.relu_rmse --blocks 10000000

Random blocks of 4x4 pixels, uniform in [-1, 1], each pixel doubled to 2x2. The figure is the mean over blocks of the
root of the mean squared difference, over the 64 pixels, from the exact ReLU. It needs no data and no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cdzoo.ops import apx_relu, asm_relu, dct2d

from ..reports import write_report
from . import RESULTS


def relu_rmse(num_blocks: int, *, seed: int = 0, chunk: int = 20_000) -> dict[str, list[float]]:
    """Mean RMSE of ``"asm"`` and ``"apx"`` for 1, 2, ..., 15 frequencies, and the standard error of each mean."""
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(2, 2, 15, dtype=torch.float64)
    for start in range(0, num_blocks, chunk):
        count = min(chunk, num_blocks - start)
        small = torch.rand(count, 4, 4, generator=generator) * 2 - 1
        pixels = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
        blocks, exact = dct2d(pixels), dct2d(pixels.relu())
        for row, relu in enumerate((asm_relu, apx_relu)):
            for n in range(1, 16):
                # orthonormal, so that the error of the coefficients is that of the pixels
                error = (relu(blocks, n) - exact).square().mean((-1, -2)).sqrt().double()
                sums[0, row, n - 1] += error.sum()
                sums[1, row, n - 1] += error.square().sum()
    mean, square = sums / num_blocks
    deviation = (square - mean.square()).clamp(min=0).sqrt() / num_blocks**0.5
    return {
        "asm": mean[0].tolist(),
        "apx": mean[1].tolist(),
        "asm_standard_error": deviation[0].tolist(),
        "apx_standard_error": deviation[1].tolist(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1_000_000, help="the paper takes 10,000,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "relu_rmse.json")
    parser.add_argument("--quick", action="store_true", help="20,000 blocks")
    args = parser.parse_args(arguments)
    blocks = 20_000 if args.quick else args.blocks
    found = relu_rmse(blocks, seed=args.seed)
    print(" n      ASM      APX")
    for n in range(15):
        print(f"{n + 1:2d} {found['asm'][n]:8.5f} {found['apx'][n]:8.5f}")
    write_report(args.out, {"blocks": blocks, "seed": args.seed, **found})


if __name__ == "__main__":
    main()
