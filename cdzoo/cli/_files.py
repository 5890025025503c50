"""The files that a command reads, and the places of its results."""

from __future__ import annotations

import argparse
import errno
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cdzoo._files import file_size, find_files, read_file
from cdzoo.cli._report import Report, name_list

__all__ = ["Job", "Output", "add_inputs", "existing", "exists", "find_jobs", "make_folder", "plan_outputs", "positive"]

_SAME_TIME_NS = 1_000_000  # file systems round modification times; the coarsest in use to a microsecond


class Job(NamedTuple):
    """A file to read, and its path relative to the folder in which it was found."""

    source: Path
    relative: Path


class Output(NamedTuple):
    """A file to read, and the file to write."""

    source: Path
    target: Path


def add_inputs(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    """Add the arguments that all commands over files have."""
    parser.add_argument("inputs", nargs="+", metavar=metavar, help=what)
    parser.add_argument("--device", default="cpu", help="device of the networks: cpu (default), cuda, ...")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def positive(text: str) -> int:
    """The type of arguments that count something."""
    if not text.isdecimal() or (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return number


def find_jobs(inputs: Sequence[str], suffixes: tuple[str, ...], report: Report) -> list[Job]:
    """The files that were named, and those with one of the suffixes in folders that were named.

    A single folder stands for its content; beside other arguments, its name is part of the relative path. Folders that
    cannot be read, or hold no such file, are reported as failed. A file that is named twice is read once. A note has
    the number of other files in the folders.
    """
    left_out: set[str] = set()
    jobs: dict[tuple[str, Path], Job] = {}
    for name in inputs:
        path = Path(name)
        found: list[Job] = []
        if not name:  # Path would take it for the current folder
            report.fail(name, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name))
        elif os.path.isdir(path):
            prefix = Path(os.path.basename(os.path.abspath(path))) if len(inputs) > 1 else Path()
            failed = len(report.files)
            try:
                every = find_files(path, ("",), lambda error: report.fail(error.filename, error))
            except OSError as error:
                report.fail(name, error)
                continue
            found = [Job(path / file, prefix / file) for file in every if file.lower().endswith(suffixes)]
            kept = {job.source for job in found}
            left_out |= {os.path.abspath(path / file) for file in every if path / file not in kept}
            if not found and len(report.files) == failed:
                report.fail(name, ValueError(f"no file in this folder ends in one of {', '.join(sorted(suffixes))}"))
        else:
            found = [Job(path, Path(path.name))]
        for job in found:
            jobs.setdefault((os.path.abspath(job.source), job.relative), job)
    if jobs and left_out:
        what = (
            "1 file with another suffix was"
            if len(left_out) == 1
            else f"{len(left_out)} files with other suffixes were"
        )
        report.note(f"{what} left out")
    return list(jobs.values())


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder for results, created if it does not exist.

    Raises:
        OSError: it cannot be created, or a file has its name.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", os.fspath(path))
    os.makedirs(path, exist_ok=True)
    return Path(path)


def plan_outputs(jobs: Sequence[Job], folder: Path, suffix: str, report: Report) -> list[Output]:
    """The output of each job: its relative path under ``folder``, with the suffix replaced.

    Where two files would get one name, they keep their own suffix as well (``a.jpg.cdz`` and ``a.png.cdz``). Files that
    still collide are reported as failed, and nothing is written for them.
    """
    kept: set[Job] = set()  # jobs that keep their suffix

    def target(job: Job) -> Path:
        relative = job.relative
        return folder / (relative.with_name(relative.name + suffix) if job in kept else relative.with_suffix(suffix))

    while True:
        groups: dict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            groups[os.fspath(target(job)).casefold()].append(job)  # as file systems that ignore case see it
        clashing = {job for group in groups.values() if len(group) > 1 for job in group}
        if clashing <= kept:
            break
        kept |= clashing
    same: dict[Path, list[Job]] = defaultdict(list)
    for job in jobs:
        same[target(job)].append(job)
    outputs = []
    for place, group in same.items():
        if len({os.path.abspath(job.source) for job in group}) > 1:
            for job in group:
                others = name_list(other.source for other in group if other is not job)
                report.fail(job.source, ValueError(f"would be written to {os.fspath(place)!r}, and so would {others}"))
        elif _is_same(place, group[0].source):
            report.fail(group[0].source, ValueError("would be overwritten by its own result; choose another folder"))
        else:
            outputs.append(Output(group[0].source, place))
    return outputs


def existing(output: Output) -> bytes | None:
    """The content of the target if an earlier run wrote it for the source as it is now; ``None`` if nothing is there.

    A target has the modification time of its source.

    Raises:
        ValueError: something else has the target's name.
        OSError: source or target cannot be read.
    """
    try:
        written = os.stat(output.target).st_mtime_ns
    except FileNotFoundError:
        return None
    file_size(output.source)
    try:
        if abs(written - os.stat(output.source).st_mtime_ns) < _SAME_TIME_NS:
            return read_file(output.target)
    except ValueError:  # a pipe or a folder
        pass
    raise exists(output)


def exists(output: Output, why: str = "is not the result for this file as it is now") -> ValueError:
    """The error for a target that is not the up-to-date result for its source."""
    return ValueError(
        f"{os.fspath(output.target)!r} exists and {why}; pass --overwrite to replace it, or choose another --output"
    )


def _is_same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one of them does not exist, or may not be looked at
        return False
