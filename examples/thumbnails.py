"""Thumbnails at an eighth of the size from the DC coefficients of JPEG files: no inverse DCT, no pixels.

    python examples/thumbnails.py photos thumbnails

The DC coefficient of an 8x8 block is eight times the block's mean, so that the DC coefficients of a plane are the plane
at an eighth of its size. Chroma planes with fewer blocks are enlarged to the size of luma.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from cdzoo.codecs import read_jpeg, read_jpeg_header
from cdzoo.images import to_pillow
from cdzoo.types import JPEGCoefficients


def thumbnail(coefficients: JPEGCoefficients) -> torch.Tensor:
    """Coefficients of gray or YCbCr files to RGB images ``(B, 3, ceil(H / 8), ceil(W / 8))`` in ``[0, 1]``."""
    if coefficients.color_space not in ("gray", "ycbcr"):
        raise ValueError(f"color space {coefficients.color_space!r}: only 'gray' and 'ycbcr' have thumbnails here")
    height, width = (-(-n // 8) for n in coefficients.image_size)
    largest = [max(sampling[axis] for sampling in coefficients.sampling) for axis in (0, 1)]
    planes = []
    for k, (plane, sampling) in enumerate(zip(coefficients.planes, coefficients.sampling, strict=True)):
        means = plane[..., 0, 0] * coefficients.qtables[:, k, 0, 0, None, None].float() / 8  # of 8x8 samples, around 0
        size = [-(-n * most // own) for n, most, own in zip(means.shape[1:], largest, sampling, strict=True)]
        means = F.interpolate(means[:, None], size=size, mode="bilinear", align_corners=False)
        planes.append(means[..., :height, :width])
    y, cb, cr = planes if len(planes) == 3 else (*planes, *[torch.zeros_like(planes[0])] * 2)
    rgb = torch.cat([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 1)  # JFIF
    return ((rgb + 128) / 255).clamp(0, 1)


def main() -> None:
    """Write a PNG file for each JPEG file of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is no folder; give a folder of JPEG files")
    for path in sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")):
        try:
            image = thumbnail(read_jpeg(path))
            turned = {3: 2, 6: 3, 8: 1}.get(read_jpeg_header(path).orientation, 0)  # quarter turns, counterclockwise
        except (OSError, ValueError) as error:
            print(f"{path} is left out: {error}")
            continue
        target = args.output / path.relative_to(args.folder).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        to_pillow(image.rot90(turned, (2, 3))).save(target)


if __name__ == "__main__":
    main()
