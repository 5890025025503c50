"""``cdzoo compress`` and ``cdzoo decompress``: images to ``.cdz`` streams, and streams to PNG images."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdzoo._files import read_file, remove_leftovers, write_atomically
from cdzoo._text import one_line
from cdzoo.cli._files import Output, add_inputs, existing, exists, find_jobs, make_folder, plan_outputs, positive
from cdzoo.cli._progress import Progress, readable_rate
from cdzoo.cli._report import Report, UsageError, stream_sizes, table, width_x_height
from cdzoo.cli._targets import CODEC, TargetRecord, add_targets, load_control, rate_names

if TYPE_CHECKING:
    from cdzoo.bulk.engine import Task
    from cdzoo.bulk.plan import File

__all__ = ["add_commands"]

_MEANS = (("mean_bpp", 4, "bpp"), ("mean_psnr", 2, "dB"))


def add_commands(commands: Any) -> None:
    """Add the two parsers."""
    parser = commands.add_parser(
        "compress",
        help="compress images to .cdz streams",
        description="Write a .cdz stream for every image. A stream gets the modification time of its image. A later "
        "run skips streams that are up to date: same name, modification time, image size, codec and target. So an "
        "interrupted run continues when it is started again. Any other file that exists is an error unless --overwrite "
        "is given. With --bpp or --psnr, each image gets the best packaged rate for that target.",
    )
    add_inputs(parser, "IMAGE", "an image, or a folder that is searched for images")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="output folder")
    parser.add_argument("--codec", metavar="NAME", help=f"codec ({CODEC}, or the codec of the weights)")
    parser.add_argument("--weights", metavar="WEIGHTS", help="name, hf://owner/repo or folder")
    add_targets(parser)
    parser.add_argument(
        "--max-side", type=positive, metavar="N", help="reduce images to at most N pixels on the longer side"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files, even if they are up to date")
    parser.set_defaults(run=compress, render=_render)
    parser = commands.add_parser(
        "decompress",
        help="decode .cdz streams to PNG images",
        description="Decode .cdz streams to PNG images. A PNG gets the modification time of its stream, and a later "
        "run skips it if the times are still equal. Any other file that exists is an error without --overwrite.",
    )
    add_inputs(parser, "FILE.cdz", "a stream, or a folder that is searched for streams")
    parser.add_argument(
        "-o", "--output", metavar="PNG|DIR", required=True, help="a .png file for one stream, or a folder"
    )
    parser.add_argument("--codec", metavar="NAME", help="codec (by default, the codec that each stream names)")
    parser.add_argument(
        "--weights", metavar="WEIGHTS", help="name, hf://owner/repo or folder (by default, found by fingerprint)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files, even if they are up to date")
    parser.set_defaults(run=decompress, render=_render)


def compress(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo compress``."""
    from cdzoo.bulk.compress import CompressTask, CompressToTarget
    from cdzoo.cli._load import get_device, load_codec
    from cdzoo.codecs import read_header
    from cdzoo.errors import BitstreamError
    from cdzoo.images import read_image_size, reduced_size

    device = get_device(args.device)
    control = load_control(args)
    codecs = [load_codec(args.codec, args.weights)] if control is None else control.codecs
    name, fingerprints = codecs[0].name, [codec.fingerprint for codec in codecs]
    report.facts["codec"] = name
    if control is None:
        report.facts["fingerprint"] = fingerprints[0]
    else:
        report.facts |= {"target": control.target, "fingerprints": dict(zip(rate_names(), fingerprints, strict=True))}
    report.facts["output"] = args.output
    folder = make_folder(args.output)
    outputs = plan_outputs(find_jobs(args.inputs, CompressTask.suffixes, report), folder, ".cdz", report)
    record = None if control is None else TargetRecord(folder, control.facts)

    def kept(output: Output, data: bytes) -> dict[str, Any]:
        try:
            header = read_header(data, max_pixels=None)
        except BitstreamError as error:
            raise exists(output) from error
        if header.codec != name or header.fingerprint not in fingerprints:
            raise exists(output, "was made with another codec or other weights")
        size = reduced_size(read_image_size(output.source), args.max_side)
        if header.image_size != size:
            found, wanted = width_x_height(header.image_size), width_x_height(size)
            raise exists(
                output, f"has {found} pixels, not {wanted}: it was made with another --max-side, or from another image"
            )
        chosen = {} if record is None else record.find(output.target, data)
        if record is not None and chosen is None:
            raise exists(output, record.reason(output.target, data))
        assert chosen is not None
        return {**stream_sizes(header), **chosen}

    def written(output: Output, content: bytes, result: Any) -> tuple[bytes, dict[str, Any]]:
        if record is None:
            return result, stream_sizes(read_header(result, max_pixels=None))
        quality = {} if result.psnr is None else {"psnr": result.psnr}
        chosen = {"weights": rate_names()[result.position], **quality, "reached": result.reached}
        record.add(output.target, result, chosen)
        return result.stream, {**stream_sizes(read_header(result.stream, max_pixels=None)), **chosen}

    task: Task
    if control is None:
        # the streams do not depend on the other files
        task = CompressTask(codecs[0], max_side=args.max_side, batch_size=1)
    else:
        task = CompressToTarget(control, max_side=args.max_side)
    task.to(device)
    _run(task, outputs, kept, written, args.overwrite, report)


def decompress(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo decompress``."""
    from cdzoo.bulk.compress import CompressTask, Decompress
    from cdzoo.cli._load import get_device, load_codec
    from cdzoo.codecs import read_header

    device = get_device(args.device)
    codec = None if args.codec is None and args.weights is None else load_codec(args.codec, args.weights).to(device)
    jobs = find_jobs(args.inputs, Decompress.suffixes, report)
    if args.output.lower().endswith(".png") and not os.path.isdir(args.output):
        if len(args.inputs) != 1 or len(jobs) > 1:
            streams = max(len(jobs), len(args.inputs))
            raise UsageError(f"--output {args.output} is one file for {streams} streams; name a folder")
        outputs = [Output(job.source, Path(args.output)) for job in jobs]
    elif args.output.lower().endswith(CompressTask.suffixes) and not os.path.isdir(args.output):
        raise UsageError(f"--output {args.output}: decompress writes PNG files; name a .png file or a folder")
    else:
        outputs = plan_outputs(jobs, make_folder(args.output), ".png", report)

    def kept(output: Output, data: bytes) -> dict[str, Any]:
        return stream_sizes(read_header(read_file(output.source), max_pixels=None))

    def written(output: Output, content: bytes, result: Any) -> tuple[bytes, dict[str, Any]]:
        return result, stream_sizes(read_header(content, max_pixels=None))

    _run(Decompress(codec, device=device), outputs, kept, written, args.overwrite, report)


def _run(
    task: Task,
    outputs: Sequence[Output],
    kept: Callable[[Output, bytes], dict[str, Any]],
    written: Callable[[Output, bytes, Any], tuple[bytes, dict[str, Any]]],
    overwrite: bool,
    report: Report,
) -> None:
    """Write each output that is not up to date, and report all.

    Args:
        task: the operation on a source's content.
        outputs: sources and targets.
        kept: facts about a target that may be up to date, given its content; raises if it is not.
        written: the target's content and facts about it, for a source's content and the task's result.
        overwrite: replace targets that exist.
        report: collects the results.
    """
    from cdzoo.bulk.engine import FILE_ERRORS, process
    from cdzoo.bulk.plan import File

    for folder in {output.target.parent for output in outputs}:
        remove_leftovers(folder)
    modified: dict[int, int] = {}
    started: dict[int, float] = {}
    megapixels = seconds = 0.0
    progress = Progress(report.command, [output.source for output in outputs])

    def entry(output: Output, status: str, facts: dict[str, Any]) -> dict[str, Any]:
        return {"file": os.fspath(output.source), "output": os.fspath(output.target), "status": status, **facts}

    def files() -> Iterator[File]:
        for number, output in enumerate(outputs):
            name = os.fspath(output.source)
            try:
                old = None if overwrite else existing(output)
                if old is not None:
                    report.add(entry(output, "skipped", kept(output, old)), number)
                    progress.skip(number)
                    continue
                modified[number] = os.stat(name).st_mtime_ns
                started[number] = time.perf_counter()
                yield File(number, name, read_file(name))
            except FILE_ERRORS as error:
                yield File(number, name, error)

    try:
        for file, result in process(files(), task):
            output = outputs[file.number]
            try:
                if isinstance(result, Exception):
                    raise result
                data, facts = written(output, file.content, result)
                output.target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(output.target, data)
                times = modified.pop(file.number)
                os.utime(output.target, ns=(times, times))
                report.add(entry(output, "written", facts), file.number)
                megapixels += math.prod(facts["image_size"]) / 1e6
                seconds += time.perf_counter() - started[file.number]
            except FILE_ERRORS as error:
                report.fail(output.source, error, file.number)
            progress.finish(file.number, megapixels / seconds if seconds else None)
    finally:
        progress.close()
        report.facts["summary"] = _summary(report, megapixels, seconds)


def _summary(report: Report, megapixels: float = 0.0, seconds: float = 0.0) -> dict[str, Any]:
    """Counts and means of a run, JSON-ready; megapixels and seconds are those of the files that were written."""
    good = report.good()
    summary: dict[str, Any] = {status: sum(e["status"] == status for e in good) for status in ("written", "skipped")}
    summary["failed"] = len(report.files) - len(good)
    if seconds:
        summary |= {"megapixels": megapixels, "seconds": seconds, "megapixels_per_second": megapixels / seconds}
    for name in ("bpp", "psnr"):
        if values := [entry[name] for entry in good if name in entry]:
            summary[f"mean_{name}"] = sum(values) / len(values)
    if "target" in report.facts:
        summary["rates"] = {rate: sum(entry["weights"] == rate for entry in good) for rate in rate_names()}
        summary["missed"] = sum(not entry["reached"] for entry in good)
    return summary


def _rows(report: Report) -> str:
    """A table of the files; with a target, also what was chosen for each."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "file": lambda entry: one_line(entry["file"]),
        ">pixels": lambda entry: width_x_height(entry["image_size"]),
        ">bytes": lambda entry: str(entry["bytes"]),
        ">bpp": lambda entry: f"{entry['bpp']:.4f}",
        ">without header": lambda entry: f"{entry['payload_bpp']:.4f}",
    }
    target = report.facts.get("target", {})
    if "psnr" in target:
        columns[">PSNR"] = lambda entry: f"{entry['psnr']:.2f}"
    if target:
        columns["weights"] = lambda entry: str(entry["weights"])
        columns["target"] = lambda entry: "reached" if entry["reached"] else "missed"
    columns["status"] = lambda entry: str(entry["status"])
    columns["output"] = lambda entry: one_line(entry["output"])
    rows = [[cell(entry) for cell in columns.values()] for entry in report.good()]
    return table(list(columns), rows) if rows else ""


def _render(report: Report) -> str:
    summary = report.facts.get("summary") or _summary(report)
    lines = [_rows(report)]
    if target := report.facts.get("target"):
        chosen = ", ".join(f"{number} at {rate}" for rate, number in summary["rates"].items() if number)
        wanted = f"{target['bpp']:g} bpp" if "bpp" in target else f"{target['psnr']:g} dB"
        lines.append(f"target {wanted}: {chosen or 'no file'}")
        if summary["missed"]:
            what = "file misses" if summary["missed"] == 1 else "files miss"
            lines.append(f"{summary['missed']} {what} the target: no packaged rate reaches it, and the nearest is used")
        means = [f"{summary[key]:.{digits}f} {unit}" for key, digits, unit in _MEANS if key in summary]
        if means:
            lines.append(f"mean {', '.join(means)}")
    counts = ", ".join(f"{summary[status]} {status}" for status in ("written", "skipped", "failed"))
    speed = summary.get("megapixels_per_second")
    lines.append(counts if speed is None else f"{counts}, {readable_rate(speed)}")
    return "\n".join(lines).lstrip()
