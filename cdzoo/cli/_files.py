"""Which files a command reads, and where its results go."""

from __future__ import annotations

import argparse
import errno
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cdzoo.cli._report import Report, name_list

__all__ = ["Job", "Output", "add_inputs", "check_regular", "find_jobs", "make_folder", "plan_outputs", "positive"]


class Job(NamedTuple):
    """A file to read, and its place relative to the folder in which it was found."""

    source: Path
    relative: Path


class Output(NamedTuple):
    """A file to read, and the file to write."""

    source: Path
    target: Path


def add_inputs(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    """The arguments that all commands over files have."""
    parser.add_argument("inputs", nargs="+", metavar=metavar, help=what)
    parser.add_argument("--device", default="cpu", help="where networks run: cpu (default), cuda, ...")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def positive(text: str) -> int:
    """The type of arguments that count something."""
    if not text.isdecimal() or (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return number


def find_jobs(inputs: Sequence[str], suffixes: Collection[str], report: Report) -> list[Job]:
    """The files that were named, and those with one of the suffixes in folders that were named.

    A single folder stands for what is in it; beside other arguments, a folder's own name is part of the relative
    place. Hidden files are left alone, and links to folders are not followed. Folders that cannot be read, or hold
    nothing suitable, are reported as failed.
    """
    jobs: dict[tuple[str, Path], Job] = {}  # a file that is named twice is read once
    for name in inputs:
        path = Path(name)
        if not name:  # which a path takes for the current folder
            report.fail(name, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name))
            continue
        if os.path.isdir(path):  # False, too, for what may not be looked at, and is reported when it is read
            prefix = Path(os.path.basename(os.path.abspath(path))) if len(inputs) > 1 else Path()
            failed = len(report.files)
            found = [Job(file, prefix / file.relative_to(path)) for file in _walk(path, suffixes, report)]
            if not found and len(report.files) == failed:
                report.fail(name, ValueError(f"no file in this folder ends in one of {', '.join(sorted(suffixes))}"))
        else:
            found = [Job(path, Path(path.name))]
        for job in found:
            jobs.setdefault((os.path.abspath(job.source), job.relative), job)
    return list(jobs.values())


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse pipes and devices, which may never begin or never end.

    Raises:
        OSError: the file does not exist, or may not be looked at.
        ValueError: it is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder for results, made if need be.

    Raises:
        OSError: it cannot be made, or a file of that name is in the way.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", os.fspath(path))
    os.makedirs(path, exist_ok=True)
    return Path(path)


def plan_outputs(jobs: Sequence[Job], folder: Path, suffix: str, report: Report) -> list[Output]:
    """Where each job's result goes: its relative place under ``folder``, with the suffix replaced.

    Where that would give two files one name, they keep their own suffix as well (``a.jpg.cdz`` and ``a.png.cdz``).
    Those that cannot be told apart in this way either are reported as failed, and nothing is written for them.
    """
    kept: set[Job] = set()  # jobs that keep their suffix

    def target(job: Job) -> Path:
        return folder / (job.relative.with_name(job.relative.name + suffix) if job in kept else _replaced(job, suffix))

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
        sources = {os.path.abspath(job.source) for job in group}
        if len(sources) > 1:
            for job in group:
                others = name_list(other.source for other in group if other is not job)
                report.fail(job.source, ValueError(f"would be written to {os.fspath(place)!r}, and so would {others}"))
        elif _is_same(place, group[0].source):
            report.fail(group[0].source, ValueError("would be overwritten by its own result; choose another folder"))
        else:
            outputs.append(Output(group[0].source, place))
    return outputs


def _is_same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one of them is not there, or may not be looked at
        return False


def _replaced(job: Job, suffix: str) -> Path:
    return job.relative.with_suffix(suffix)


def _walk(folder: Path, suffixes: Collection[str], report: Report) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        report.fail(error.filename or folder, error)

    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(root, name)
