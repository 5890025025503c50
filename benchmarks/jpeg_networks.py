"""Bytes of JPEG files to logits: networks on coefficients, beside libjpeg-turbo and the same networks on pixels.

    python benchmarks/jpeg_networks.py [--models resnet18 mobilenet_v3_small] [--sizes 224 512] [--json]

The same comparison as ``cdzoo bench jpeg``, for several networks. A speedup above 1 means that reading coefficients is
faster than decoding; ``factored`` is the paper's form, an inverse DCT and a DCT around every layer.
"""

from __future__ import annotations

import argparse
import json

from cdzoo.bench import bench_jpeg


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v3_small"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        for row in bench_jpeg(
            model=model, sizes=args.sizes, batch=args.batch, threads=args.threads, rounds=args.rounds
        ):
            rows.append({"model": model, **row._asdict()})
            if not args.json:
                print(
                    f"{model:20} {row.task:9} {row.size:5} px, batch {row.batch}, {row.threads} threads  {row.way:9}"
                    f" {row.images_per_second:8.1f} images/s  {row.speedup:5.2f}x",
                    flush=True,
                )
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
