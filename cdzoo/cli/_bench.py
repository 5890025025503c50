"""``cdzoo bench``: time the ways from files to labels on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from cdzoo.cli._files import positive
from cdzoo.cli._report import Report, UsageError, table

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "bench",
        help="time the ways from files to labels",
        description="Time several ways from the bytes of files to logits, in one run. Close other programs first.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    jpeg = kinds.add_parser(
        "jpeg",
        help="coefficients against decoded pixels",
        description="Compare a network of torchvision over the coefficients of JPEG files (fused, factored) with "
        "decoding the files by libjpeg-turbo and running the network on pixels: inference and training.",
    )
    jpeg.add_argument("--model", default="resnet18", metavar="NAME", help="a classifier of torchvision (resnet18)")
    jpeg.add_argument("--sizes", type=positive, nargs="+", default=[224], metavar="PX", help="sides of the files (224)")
    jpeg.add_argument("--batch", type=positive, default=8, metavar="N", help="files in a batch (8)")
    jpeg.add_argument("--threads", type=positive, nargs="+", default=[1, 2], metavar="N", help="thread counts (1 2)")
    jpeg.add_argument("--modes", nargs="+", choices=["fused", "factored"], default=["fused", "factored"])
    jpeg.add_argument("--tasks", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    jpeg.add_argument("--quality", type=_quality, default=75, metavar="Q", help="quality of the files, 1 to 95 (75)")
    jpeg.add_argument(
        "--rounds", type=positive, default=7, metavar="N", help="number of rounds; medians are reported (7)"
    )
    jpeg.add_argument("--photo", metavar="FILE", help="an image to cut the files from, in place of the packaged one")
    jpeg.add_argument("--json", action="store_true", help="print one JSON document")
    jpeg.set_defaults(run=_jpeg, render=_render_jpeg)


def _quality(text: str) -> int:
    number = positive(text)
    if number > 95:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to 95, the range that Pillow recommends")
    return number


def _jpeg(args: argparse.Namespace, report: Report) -> None:
    from torchvision import models

    from cdzoo._registry import unknown_name
    from cdzoo.bench import bench_jpeg

    known = models.list_models(module=models)
    if args.model not in known:
        raise UsageError(str(unknown_name("classifier of torchvision", args.model, known)))
    names = ("model", "sizes", "batch", "threads", "modes", "tasks", "quality", "rounds", "photo")
    rows = bench_jpeg(**{name: getattr(args, name) for name in names})
    report.facts["model"] = args.model
    report.facts["quality"] = args.quality
    report.facts["rows"] = measured = []
    for row in rows:  # one by one, so that an interruption keeps what was measured
        measured.append(row._asdict())


def _render_jpeg(report: Report) -> str:
    header = ("task", ">px", ">batch", ">threads", "way", ">images/s", ">speedup", ">reading files")
    cells = [
        [str(row[name]) for name in ("task", "size", "batch", "threads", "way")]
        + [f"{row['images_per_second']:.1f}", f"{row['speedup']:.2f}x", f"{100 * row['reading']:.0f} %"]
        for row in report.facts["rows"]
    ]
    return f"{report.facts['model']}, JPEG of quality {report.facts['quality']}\n{table(header, cells)}"
