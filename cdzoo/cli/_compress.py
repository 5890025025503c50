"""``cdzoo compress`` and ``cdzoo decompress``: images to ``.cdz`` streams, and back for looking at."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cdzoo._files import remove_leftovers, write_atomically
from cdzoo._text import one_line
from cdzoo.cli._files import Job, Output, add_inputs, check_regular, find_jobs, make_folder, plan_outputs
from cdzoo.cli._load import get_device, load_codec, load_writer
from cdzoo.cli._report import Report, UsageError, table, width_x_height
from cdzoo.codecs import Codec, StreamHeader, read_header
from cdzoo.coding.container import MAGIC
from cdzoo.errors import BitstreamError
from cdzoo.images import IMAGE_SUFFIXES, is_own_png, png_bytes, read_image, read_image_size

__all__ = ["add_commands"]

_SAME_TIME_NS = 1_000_000  # file systems round modification times, to a microsecond at worst among those in use


def add_commands(commands: Any) -> None:
    """Add the two parsers."""
    parser = commands.add_parser(
        "compress",
        help="images to .cdz streams",
        description="Write a .cdz stream for every image. A stream takes the modification time of its image: a later "
        "run skips what is up to date and was written by the same codec, so an interrupted run can be started again. "
        "Up to date is the stream of an image with the same name, size in pixels and modification time. Of another "
        "size, it is taken for another image's, and stays, unless the image is newer.",
    )
    add_inputs(parser, "IMAGE", "an image, or a folder that is searched for images")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the streams, made if need be")
    parser.add_argument("--codec", metavar="NAME", help="codec (bmshj2018_hyperprior, or what the weights are for)")
    parser.add_argument("--weights", metavar="WEIGHTS", default="DEFAULT", help="name, hf://owner/repo or folder")
    parser.add_argument("--overwrite", action="store_true", help="replace whatever is there, up to date or another's")
    parser.set_defaults(run=compress, render=_render_compress)
    parser = commands.add_parser(
        "decompress",
        help=".cdz streams to PNG images, for looking at",
        description="Rebuild the pixels of .cdz streams. PNG files of an earlier run are replaced, others stay.",
    )
    add_inputs(parser, "FILE.cdz", "a stream, or a folder that is searched for streams")
    parser.add_argument(
        "-o", "--output", metavar="PNG|DIR", required=True, help="a .png file for one stream, or a folder"
    )
    parser.add_argument("--codec", metavar="NAME", help="codec of the weights (by default, what each stream says)")
    parser.add_argument(
        "--weights", metavar="WEIGHTS", help="name, hf://owner/repo or folder (default: by fingerprint)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace other files, too")
    parser.set_defaults(run=decompress, render=_render_decompress)


def compress(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo compress``."""
    device = get_device(args.device)
    codec = load_codec(args.codec, args.weights).to(device)
    report.facts |= {"codec": codec.name, "fingerprint": codec.fingerprint, "output": args.output}
    folder = make_folder(args.output)
    outputs = plan_outputs(find_jobs(args.inputs, IMAGE_SUFFIXES, report), folder, ".cdz", report)
    _tidy(outputs)

    def work(output: Output) -> dict[str, Any]:
        check_regular(output.source)
        modified = os.stat(output.source).st_mtime_ns
        kept = None if args.overwrite else _up_to_date(output, modified, codec)
        if kept is not None:
            return {"output": os.fspath(output.target), "status": "skipped", **_sizes(kept)}
        [stream] = codec.compress(read_image(output.source))
        output.target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output.target, stream)
        os.utime(output.target, ns=(modified, modified))
        return {"output": os.fspath(output.target), "status": "written", **_sizes(read_header(stream, max_pixels=None))}

    report.each(outputs, lambda output: output.source, work)


def decompress(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo decompress``."""
    device = get_device(args.device)
    if args.codec is not None and args.weights is None:
        args.weights = "DEFAULT"
    given = None if args.weights is None else load_codec(args.codec, args.weights).to(device)

    @cache
    def packaged(codec: str, fingerprint: str) -> Codec:
        return load_writer(codec, fingerprint).to(device)

    jobs = find_jobs(args.inputs, frozenset({".cdz"}), report)
    outputs = _png_outputs(jobs, args, report)
    _tidy(outputs)

    def work(output: Output) -> dict[str, Any]:
        check_regular(output.source)
        if not args.overwrite:
            _check_png(output.target)
        stream = output.source.read_bytes()
        header = read_header(stream)
        codec = packaged(header.codec, header.fingerprint) if given is None else given
        png = png_bytes(codec.decode(codec.decompress([stream])))
        output.target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output.target, png)
        return {"output": os.fspath(output.target), **_sizes(header)}

    report.each(outputs, lambda output: output.source, work)


def _tidy(outputs: Sequence[Output]) -> None:
    """Remove what runs that were killed left behind in the folders of these outputs."""
    for folder in {output.target.parent for output in outputs}:
        remove_leftovers(folder)


def _png_outputs(jobs: list[Job], args: argparse.Namespace, report: Report) -> list[Output]:
    target = Path(args.output)
    suffix = target.suffix.lower()
    if target.is_dir() or suffix not in IMAGE_SUFFIXES:
        is_one = [os.path.isdir(name) for name in args.inputs] == [False]
        if is_one and not target.exists() and not args.output.endswith(("/", os.sep)) and _resembles_image(suffix):
            raise UsageError(
                f"--output {args.output}: is that an image or a folder? Name a .png file, or make the folder first."
            )
        return plan_outputs(jobs, make_folder(args.output), ".png", report)
    if suffix != ".png":
        raise UsageError(f"--output {args.output}: decompress writes PNG files; name it .png, or name a folder.")
    if len(args.inputs) != 1 or len(jobs) > 1:
        raise UsageError(
            f"--output {args.output} is one file for {max(len(jobs), len(args.inputs))} streams; name a folder."
        )
    return [Output(job.source, target) for job in jobs]


def _resembles_image(suffix: str) -> bool:
    return bool(difflib.get_close_matches(suffix, IMAGE_SUFFIXES, n=1, cutoff=0.7))


def _up_to_date(output: Output, modified: int, codec: Codec) -> StreamHeader | None:
    """The header of a stream that need not be written again.

    Raises:
        ValueError: the target is something else than a stream, or that of an image of another size.
    """
    target = output.target
    try:
        is_pipe = target.is_fifo()  # which would be waited for
        data, status = b"a pipe" if is_pipe else target.read_bytes(), target.stat()
    except FileNotFoundError:
        return None
    if data[:3] != MAGIC[:3] and data:
        raise ValueError(f"{os.fspath(target)!r} exists and is no .cdz stream; --overwrite replaces it.")
    try:
        header = read_header(data, max_pixels=None)
    except BitstreamError:
        return None  # damaged since it was written: write it again
    is_newer = modified > status.st_mtime_ns + _SAME_TIME_NS  # edited since, and perhaps resized
    if not is_newer and header.image_size != (size := read_image_size(output.source)):
        raise ValueError(
            f"{os.fspath(target)!r} holds an image of {width_x_height(header.image_size)} pixels, and this one has "
            f"{width_x_height(size)}; --overwrite replaces it, another --output keeps both."
        )
    same = header.codec == codec.name and header.fingerprint == codec.fingerprint
    return header if same and abs(status.st_mtime_ns - modified) < _SAME_TIME_NS else None


def _check_png(target: Path) -> None:
    """Refuse to replace what ``cdzoo decompress`` did not write.

    Raises:
        ValueError: the target is something else.
    """
    try:
        if not target.is_fifo() and (target.stat().st_size == 0 or is_own_png(target)):
            return
    except FileNotFoundError:
        return
    raise ValueError(f"{os.fspath(target)!r} exists and was not written by cdzoo decompress; --overwrite replaces it.")


def _sizes(header: StreamHeader) -> dict[str, Any]:
    return {
        "image_size": list(header.image_size),
        "bytes": header.num_bytes,
        "bpp": header.bpp,
        "payload_bpp": header.payload_bpp,
    }


_HEADER = (">pixels", ">bytes", ">bpp", ">without header")


def _row(entry: dict[str, Any]) -> list[str]:
    size = width_x_height(entry["image_size"])
    return [size, str(entry["bytes"]), f"{entry['bpp']:.4f}", f"{entry['payload_bpp']:.4f}"]


def _render_compress(report: Report) -> str:
    good = report.good()
    rows = [[one_line(e["file"]), *_row(e), e["status"], one_line(e["output"])] for e in good]
    count = {status: sum(e["status"] == status for e in good) for status in ("written", "skipped")}
    count["failed"] = len(report.files) - len(good)
    summary = ", ".join(f"{number} {status}" for status, number in count.items())
    return (table(("file", *_HEADER, "status", "output"), rows) + "\n" if rows else "") + summary


def _render_decompress(report: Report) -> str:
    rows = [[one_line(e["file"]), *_row(e), one_line(e["output"])] for e in report.good()]
    return table(("file", *_HEADER, "output"), rows) if rows else ""
