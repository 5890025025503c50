"""``cdzoo compress`` and ``cdzoo decompress``: images to ``.cdz`` streams, and streams to PNG images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdzoo._files import read_file, remove_leftovers, write_atomically
from cdzoo._text import one_line
from cdzoo.cli._files import Output, add_inputs, existing, exists, find_jobs, make_folder, plan_outputs, positive
from cdzoo.cli._report import Report, UsageError, table, width_x_height

if TYPE_CHECKING:
    from cdzoo.bulk.plan import File
    from cdzoo.bulk.task import Task
    from cdzoo.codecs import StreamHeader

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the two parsers."""
    parser = commands.add_parser(
        "compress",
        help="compress images to .cdz streams",
        description="Write a .cdz stream for every image. A stream gets the modification time of its image. A later "
        "run skips streams that are up to date: same name, modification time, image size and codec. So an interrupted "
        "run continues when it is started again. Any other file that exists is an error unless --overwrite is given.",
    )
    add_inputs(parser, "IMAGE", "an image, or a folder that is searched for images")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="output folder")
    parser.add_argument("--codec", metavar="NAME", help="codec (bmshj2018_hyperprior, or the codec of the weights)")
    parser.add_argument("--weights", metavar="WEIGHTS", help="name, hf://owner/repo or folder")
    parser.add_argument(
        "--max-side", type=positive, metavar="N", help="reduce images to at most N pixels on the longer side"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files, even if they are up to date")
    parser.set_defaults(run=compress, render=_render_compress)
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
    parser.set_defaults(run=decompress, render=_render_decompress)


def compress(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo compress``."""
    from cdzoo.bulk.compress import Compress
    from cdzoo.cli._load import get_device, load_codec
    from cdzoo.codecs import read_header
    from cdzoo.errors import BitstreamError
    from cdzoo.images import read_image_size, reduced_size

    device = get_device(args.device)
    codec = load_codec(args.codec, args.weights)
    report.facts |= {"codec": codec.name, "fingerprint": codec.fingerprint, "output": args.output}
    folder = make_folder(args.output)
    outputs = plan_outputs(find_jobs(args.inputs, Compress.suffixes, report), folder, ".cdz", report)

    def kept(output: Output, data: bytes) -> StreamHeader:
        try:
            header = read_header(data, max_pixels=None)
        except BitstreamError as error:
            raise exists(output) from error
        found = (header.codec, header.fingerprint, header.image_size)
        size = reduced_size(read_image_size(output.source), args.max_side)
        if found != (codec.name, codec.fingerprint, size):
            raise exists(output)
        return header

    task = Compress(codec, max_side=args.max_side, batch_size=1)  # the streams do not depend on the other files
    task.to(device)
    _run(task, outputs, kept, lambda data, stream: read_header(stream, max_pixels=None), args.overwrite, report)


def decompress(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo decompress``."""
    from cdzoo.bulk.compress import Compress, Decompress
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
    elif args.output.lower().endswith(Compress.suffixes) and not os.path.isdir(args.output):
        raise UsageError(f"--output {args.output}: decompress writes PNG files; name a .png file or a folder")
    else:
        outputs = plan_outputs(jobs, make_folder(args.output), ".png", report)

    def kept(output: Output, data: bytes) -> StreamHeader:
        return read_header(read_file(output.source), max_pixels=None)

    task = Decompress(codec, device=device)
    _run(task, outputs, kept, lambda data, png: read_header(data, max_pixels=None), args.overwrite, report)


def _run(
    task: Task,
    outputs: Sequence[Output],
    kept: Callable[[Output, bytes], StreamHeader],
    header_of: Callable[[bytes, bytes], StreamHeader],
    overwrite: bool,
    report: Report,
) -> None:
    """Write each output that is not up to date, and report all.

    Args:
        task: the operation on a source's content; its results are bytes.
        outputs: sources and targets.
        kept: the stream's header for a target that may be up to date, given its content; raises if it is not.
        header_of: the stream's header for a source's content and its result.
        overwrite: replace targets that exist.
        report: collects the results.
    """
    from cdzoo.bulk.plan import File
    from cdzoo.bulk.task import FILE_ERRORS, process

    for folder in {output.target.parent for output in outputs}:
        remove_leftovers(folder)
    modified: dict[int, int] = {}

    def entry(output: Output, status: str, header: StreamHeader) -> dict[str, Any]:
        return {
            "file": os.fspath(output.source),
            "output": os.fspath(output.target),
            "status": status,
            **_sizes(header),
        }

    def files() -> Iterator[File]:
        for number, output in enumerate(report.progress(outputs)):
            name = os.fspath(output.source)
            try:
                old = None if overwrite else existing(output)
                if old is not None:
                    report.add(entry(output, "skipped", kept(output, old)), number)
                    continue
                modified[number] = os.stat(name).st_mtime_ns
                yield File(number, name, read_file(name))
            except FILE_ERRORS as error:
                yield File(number, name, error)

    for file, result in process(files(), task):
        output = outputs[file.number]
        try:
            if isinstance(result, Exception):
                raise result
            output.target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output.target, result)
            times = modified.pop(file.number)
            os.utime(output.target, ns=(times, times))
            report.add(entry(output, "written", header_of(file.content, result)), file.number)
        except FILE_ERRORS as error:
            report.fail(output.source, error, file.number)


def _sizes(header: StreamHeader) -> dict[str, Any]:
    return {
        "image_size": list(header.image_size),
        "bytes": header.num_bytes,
        "bpp": header.bpp,
        "payload_bpp": header.payload_bpp,
    }


_HEADER = ("file", ">pixels", ">bytes", ">bpp", ">without header", "status", "output")


def _rows(report: Report) -> str:
    rows = [
        [
            one_line(entry["file"]),
            width_x_height(entry["image_size"]),
            str(entry["bytes"]),
            f"{entry['bpp']:.4f}",
            f"{entry['payload_bpp']:.4f}",
            entry["status"],
            one_line(entry["output"]),
        ]
        for entry in report.good()
    ]
    return table(_HEADER, rows) if rows else ""


def _render_compress(report: Report) -> str:
    count = {status: sum(e["status"] == status for e in report.good()) for status in ("written", "skipped")}
    count["failed"] = len(report.files) - len(report.good())
    summary = ", ".join(f"{number} {status}" for status, number in count.items())
    return f"{_rows(report)}\n{summary}".lstrip()


def _render_decompress(report: Report) -> str:
    return _rows(report)
