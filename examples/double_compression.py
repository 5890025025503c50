"""Tell whether a JPEG file was compressed before at another quality, from the histograms of its coefficients.

    python examples/double_compression.py photos/holiday.jpg  # files, and folders of them

Rounding to multiples of two steps, one after the other, leaves gaps or peaks in histograms. Cutting off four rows and
columns moves the grid of blocks, and gives the histogram without a first rounding (Fridrich and Lukas 2003). Each of
libjpeg's qualities is tried as the first one. The score is the gain in log-likelihood over "compressed once".
"""

import argparse
from pathlib import Path

import torch

from cdzoo.codecs import decode_jpeg, encode_jpeg, read_jpeg
from cdzoo.ops import blockify, dct2d
from cdzoo.types import JPEGCoefficients

FREQUENCIES = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0)]  # low: few values are 0
TABLES = {q: encode_jpeg(torch.zeros(1, 3, 8, 8), quality=q).qtables[0, 0] for q in range(30, 100)}
LIMIT, THRESHOLD = 64, 0.005  # larger quantized values count as the limit; nats per coefficient


def histogram(values: torch.Tensor) -> torch.Tensor:
    """Relative frequencies of the integers from ``-LIMIT`` to ``LIMIT``, none of them 0."""
    counts = torch.bincount(values.round().long().clamp(-LIMIT, LIMIT) + LIMIT, minlength=2 * LIMIT + 1) + 0.5
    return counts / counts.sum()


def scores(coefficients: JPEGCoefficients) -> dict[int, float]:
    """For each first quality, the gain in log-likelihood per coefficient of luma of one file."""
    luma = decode_jpeg(coefficients, clamp=False).mul(torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    height, width = ((n - 4) // 8 * 8 for n in luma.shape[-2:])
    moved = dct2d(blockify(255 * luma[:, 4 : 4 + height, 4 : 4 + width])).flatten(0, 2)  # (blocks, 8, 8)
    noise = torch.randn(len(moved), generator=torch.Generator().manual_seed(0)) * 12**-0.5  # rounding of pixels
    gains = dict.fromkeys(TABLES, 0.0)
    for u, v in FREQUENCIES:
        second = coefficients.qtables[0, 0, u, v]
        found = histogram(coefficients.planes[0][0, ..., u, v].flatten().float())
        once = histogram(moved[:, u, v] / second)
        gain = {}  # of each first step
        for first in {int(table[u, v]) for table in TABLES.values()}:
            twice = histogram(((moved[:, u, v] / first).round() * first + noise) / second)
            gain[first] = float((found * (twice / once).log()).sum())
        gains = {q: gains[q] + gain[int(table[u, v])] / len(FREQUENCIES) for q, table in TABLES.items()}
    return gains


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    for path in [p for f in parser.parse_args().files for p in (sorted(f.rglob("*.[jJ][pP]*")) if f.is_dir() else [f])]:
        try:
            gains = scores(read_jpeg(path))
            quality = max(gains, key=gains.get)
            found = f"twice, first at about quality {quality}" if gains[quality] > THRESHOLD else "once"
            print(f"{path}: compressed {found} (score {max(0.0, gains[quality]):.3f})")
        except (OSError, ValueError) as error:
            print(f"{path} is left out: {error}")
