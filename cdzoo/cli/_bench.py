"""``cdzoo bench``: time the ways from files to labels on this machine."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from cdzoo.cli._files import positive
from cdzoo.cli._report import Report, UsageError, table, width_x_height

__all__ = ["add_commands"]

_JPEG: dict[str, Any] = {
    "sizes": [(375, 500), (3000, 4000)],
    "batch": 8,
    "threads": None,
    "quality": 85,
    "rounds": 5,
    "photo": None,
}


def add_commands(commands: Any) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "bench",
        help="time the ways from files to labels",
        description="Time several ways from the bytes of files to logits, in one run. Without KIND, this is "
        "'cdzoo bench jpeg'; its options need the KIND. Close other programs first.",
    )
    parser.set_defaults(**_JPEG, json=False, run=_jpeg, render=_render_jpeg)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    kinds = parser.add_subparsers(dest="kind", metavar="KIND")
    jpeg = kinds.add_parser(
        "jpeg",
        help="photographs to labels, by cdzoo and by Pillow or torchvision (the default)",
        description="Classify JPEG photographs with the packaged EfficientNet-Lite0. Compare cdzoo, which reads the "
        "DCT coefficients, with Pillow and torchvision, which decode and resize the photographs.",
    )
    jpeg.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        metavar="WxH",
        help="sizes of the files in pixels (500x375 4000x3000)",
    )
    jpeg.add_argument("--batch", type=positive, metavar="N", help="files in a batch (8; fewer large ones)")
    jpeg.add_argument("--threads", type=positive, nargs="+", metavar="N", help="thread counts (as many as PyTorch has)")
    jpeg.add_argument("--quality", type=_quality, metavar="Q", help="quality of the files, 1 to 95 (85)")
    jpeg.add_argument("--rounds", type=positive, metavar="N", help="number of rounds; medians are reported (5)")
    jpeg.add_argument("--photo", metavar="FILE", help="an image to make the files from, in place of the packaged one")
    jpeg.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    jpeg.set_defaults(**_JPEG, run=_jpeg, render=_render_jpeg)
    conversion = kinds.add_parser(
        "conversion",
        help="a network of torchvision, converted to coefficients, against decoded pixels",
        description="Compare a network of torchvision that to_jpeg_domain converted to JPEG coefficients (fused, "
        "factored) with decoding the files by libjpeg-turbo and running the network on pixels: inference and training. "
        "The files have the network's size, so nothing is resized.",
    )
    add = conversion.add_argument
    add("--model", default="resnet18", metavar="NAME", help="a classifier of torchvision (resnet18)")
    add("--sizes", type=positive, nargs="+", default=[224], metavar="PX", help="sides of the files (224)")
    add("--batch", type=positive, default=8, metavar="N", help="files in a batch (8)")
    add("--threads", type=positive, nargs="+", default=[1, 2], metavar="N", help="thread counts (1 2)")
    add("--modes", nargs="+", choices=["fused", "factored"], default=["fused", "factored"])
    add("--tasks", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    add("--quality", type=_quality, default=75, metavar="Q", help="quality of the files, 1 to 95 (75)")
    add("--rounds", type=positive, default=7, metavar="N", help="number of rounds; medians are reported (7)")
    add("--photo", metavar="FILE", help="an image to cut the files from, in place of the packaged one")
    add("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    conversion.set_defaults(run=_conversion, render=_render_conversion)


def _size(text: str) -> tuple[int, int]:
    """``"500x375"`` -> ``(375, 500)``."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; pass WIDTHxHEIGHT in pixels, such as 500x375")
    return int(found[2]), int(found[1])


def _quality(text: str) -> int:
    number = positive(text)
    if number > 95:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to 95, the range that Pillow recommends")
    return number


def _jpeg(args: argparse.Namespace, report: Report) -> None:
    from cdzoo.bench import PHOTOGRAPH_WAYS, bench_photographs

    report.facts |= {"model": "jpeg_efficientnet_lite0", "quality": args.quality, "ways": PHOTOGRAPH_WAYS}
    report.facts["rows"] = measured = []
    progress = _Progress(report)
    try:
        for row in bench_photographs(**{name: getattr(args, name) for name in _JPEG}, told=progress):
            measured.append({**row._asdict(), "size": list(row.size)})  # one by one, for interruptions
    finally:
        progress.close()


class _Progress:
    """A bar on a terminal; otherwise one line for each case."""

    def __init__(self, report: Report) -> None:
        self._report, self._case = report, ""
        self._bar: Any = None

    def __call__(self, case: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            if case != self._case:
                self._report.note(f"{case} ({100 * done // total} % done)")
            self._case = case
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, file=sys.stderr, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}")
        self._bar.set_description_str(f"bench: {case}", refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _render_jpeg(report: Report) -> str:
    facts = report.facts
    header = (">pixels", ">batch", ">threads", "way", ">ms/file", ">images/s", ">vs. Pillow", ">vs. torchvision")
    cells = [
        [width_x_height(row["size"]), str(row["batch"]), str(row["threads"]), row["way"]]
        + [f"{1000 * row['seconds']:.1f}", f"{row['images_per_second']:.1f}"]
        + [f"{ratio:.2f}x" for ratio in row["speedup"].values()]
        for row in facts["rows"]
    ]
    return "\n".join(
        [
            f"bytes of JPEG files (quality {facts['quality']}) to labels by EfficientNet-Lite0; medians; above 1x is "
            "faster",
            table(header, cells),
            *(f"{way}: {what}" for way, what in facts["ways"].items()),
        ]
    )


def _conversion(args: argparse.Namespace, report: Report) -> None:
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
    report.note(f"{len(args.sizes) * len(args.threads) * len(args.tasks)} comparisons; each may take a minute")
    for row in rows:  # one by one, so that an interruption keeps what was measured
        measured.append(row._asdict())


def _render_conversion(report: Report) -> str:
    header = ("task", ">px", ">batch", ">threads", "way", ">images/s", ">speedup", ">reading files")
    cells = [
        [str(row[name]) for name in ("task", "size", "batch", "threads", "way")]
        + [f"{row['images_per_second']:.1f}", f"{row['speedup']:.2f}x", f"{100 * row['reading']:.0f} %"]
        for row in report.facts["rows"]
    ]
    return "\n".join(
        [
            f"{report.facts['model']}, JPEG of quality {report.facts['quality']}",
            table(header, cells),
            "pixels: torchvision decodes, then the network. fused, factored: coefficients go into the network that "
            "to_jpeg_domain makes in this mode. speedup: against pixels; above 1 is faster",
        ]
    )
