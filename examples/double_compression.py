"""Tell whether a JPEG file was compressed before at another quality, from the histograms of its coefficients.

    python examples/double_compression.py photo.jpg ...

Coefficients that were rounded to multiples of a first step and then of a second one have histograms with gaps or peaks
at regular distances. The histogram of a picture that was compressed once is estimated by cutting off four rows and four
columns, which moves the grid of blocks and leaves no trace of a first rounding (Fridrich and Lukas 2003). Each quality
of libjpeg's tables is then tried as the first one. The score is the gain in log-likelihood over "compressed once".
"""

import argparse

import torch

from cdzoo.codecs import decode_jpeg, encode_jpeg, read_jpeg
from cdzoo.ops import blockify, dct2d
from cdzoo.types import JPEGCoefficients

FREQUENCIES = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0)]  # low: few values are 0
LIMIT = 64  # larger quantized values count as this one
TABLES = {q: encode_jpeg(torch.zeros(1, 3, 8, 8), quality=q).qtables[0, 0] for q in range(30, 100)}
THRESHOLD = 0.005  # nats per coefficient


def histogram(values: torch.Tensor) -> torch.Tensor:
    """Relative frequencies of the integers from ``-LIMIT`` to ``LIMIT``, none of them 0."""
    counts = torch.bincount(values.round().long().clamp(-LIMIT, LIMIT) + LIMIT, minlength=2 * LIMIT + 1)
    return (counts + 0.5) / (counts + 0.5).sum()


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
        for quality, table in TABLES.items():
            gains[quality] += gain[int(table[u, v])] / len(FREQUENCIES)
    return gains


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    for path in parser.parse_args().files:
        gains = scores(read_jpeg(path))
        quality = max(gains, key=gains.get)
        found = f"twice, first at about quality {quality}" if gains[quality] > THRESHOLD else "once"
        print(f"{path}: compressed {found} (score {gains[quality]:.3f})")
