"""``cdzoo classify``: label JPEG files and ``.cdz`` streams."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdzoo._files import read_file
from cdzoo._text import explain, one_line
from cdzoo.cli._files import add_inputs, find_jobs, positive
from cdzoo.cli._progress import Progress
from cdzoo.cli._report import Report, UsageError, width_x_height

if TYPE_CHECKING:
    from cdzoo.bulk.networks import Network
    from cdzoo.labels import Label

__all__ = ["add_commands", "add_network", "label_entries", "label_lines"]


def add_commands(commands: Any) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "classify",
        help="label JPEG files and .cdz streams",
        description="Classify JPEG files from their DCT coefficients and .cdz streams from their latents, of any "
        "size; pixels are not decoded. Damaged JPEG files are read as far as possible and marked.",
    )
    add_inputs(parser, "FILE", "a JPEG file, a .cdz stream, or a folder that is searched for both")
    add_network(parser, "network: a builder's name or timm/NAME (by default, a packaged network for the kind of file)")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="number of classes to show (5)")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="files in a batch, at most (32)")
    parser.add_argument("--strict", action="store_true", help="report damaged JPEG files as errors")
    parser.add_argument(
        "--fallback",
        choices=["decode"],
        help="decode: let Pillow decode files that are no JPEG files in spite of their name",
    )
    parser.set_defaults(run=classify, render=_render)


def add_network(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the arguments that choose a network."""
    parser.add_argument("--model", metavar="NAME", help=what)
    parser.add_argument("--weights", metavar="WEIGHTS", help="Enum.MEMBER, hf://owner/repo or folder")
    parser.add_argument("--codec", metavar="NAME|FOLDER", help="codec (by default, the codec of the weights)")


def classify(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo classify``."""
    from cdzoo.bulk.classify import Networks, check_kinds, classify_files
    from cdzoo.bulk.engine import read_paths
    from cdzoo.cli._load import get_device, load_given_codec

    jobs = find_jobs(args.inputs, Networks.suffixes, report)
    device, codec = get_device(args.device), load_given_codec(args.codec)
    if codec is not None and not any(job.source.suffix.lower() == ".cdz" for job in jobs):
        report.note("--codec has no effect: there is no .cdz stream among the files")
    check_kinds(args.model, [os.fspath(job.source) for job in jobs])
    report.facts["networks"] = []

    def told(network: Network) -> None:
        report.facts["networks"].append(network.facts)
        report.note(str(network))

    try:
        networks = Networks(
            args.model,
            args.weights,
            codec=codec,
            device=device,
            on_load=told,
            top=args.top,
            batch_size=args.batch_size,
            strict=args.strict,
            fallback=args.fallback,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    numbers = {os.fspath(job.source): number for number, job in enumerate(jobs)}
    places = {file: place for place, file in enumerate(numbers)}
    damaged, megapixels, begin = 0, 0.0, time.perf_counter()
    with closing(Progress(report.command, [Path(file) for file in numbers])) as progress:
        for result in classify_files(read_paths(list(numbers)), networks):
            number = numbers[result.path]
            if result.error is not None:
                report.fail(result.path, _for_command_line(result.path, result.error), number)
            else:
                assert result.image_size is not None
                damaged += bool(result.damage)
                megapixels += math.prod(result.image_size) / 1e6
                entry = {"file": result.path, "image_size": list(result.image_size), "bpp": result.bpp}
                if result.damage:
                    entry |= {"damage": result.damage, "missing_blocks": result.missing_blocks}
                report.add({**entry, "top": label_entries(result.classes)}, number)
            progress.finish(places[result.path], megapixels / (time.perf_counter() - begin) if megapixels else None)
    if damaged:
        report.note(f"damaged JPEG files that were read as far as possible: {damaged}; --strict reports them as errors")


def _for_command_line(path: str, error: Exception) -> Exception:
    """An error whose way out is an argument in Python, with the option of the command instead."""
    from cdzoo.images import image_size

    hint, text = 'fallback="decode" lets Pillow decode other formats', explain(error)
    if hint not in text:
        return error
    try:
        image_size(read_file(path))
    except (OSError, ValueError):
        return ValueError(text.replace(hint, "Pillow cannot read it either; is it an image?"))
    return ValueError(text.replace(hint, "--fallback decode lets Pillow decode it"))


def label_entries(labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Labels, JSON-ready."""
    return [
        {
            "class": label.number,
            "label": label.name,
            **({} if label.id is None else {"id": label.id}),
            "probability": label.probability,
        }
        for label in labels
    ]


def label_lines(top: Sequence[dict[str, Any]]) -> list[str]:
    """The entries of :func:`label_entries` as lines of text."""
    return [
        f"{rank:4}  {100 * entry['probability']:5.1f} %  {entry['label']}"
        + (f" ({entry['id']})" if "id" in entry else "")
        for rank, entry in enumerate(top, 1)
    ]


def _render(report: Report) -> str:
    lines = []
    for entry in report.good():
        facts = [width_x_height(entry["image_size"]), f"{entry['bpp']:.4f} bpp"]
        if entry.get("missing_blocks"):
            facts.append(f"{entry['missing_blocks']} blocks missing")
        elif "damage" in entry:
            facts.append("damaged")
        lines += ["  ".join([one_line(entry["file"]), *facts]), *label_lines(entry["top"])]
    return "\n".join(lines)
