"""Processes that may be killed, starved or hang, and an account of what they say of files."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from soak_files import Entry

from cdzoo.cli import main

__all__ = ["Account", "Finished", "Process", "Scenario", "command"]


class Finished(NamedTuple):
    """The result of a process: its status (``None`` if it hung), its output, its wall time."""

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The ``files`` of its report."""
        try:
            found: list[dict[str, Any]] = json.loads(self.out)["files"]
        except (ValueError, KeyError):
            return []
        return found


def command(*arguments: str | Path) -> Callable[[], int]:
    """``cdzoo`` with arguments, as work for a :class:`Process`."""
    return functools.partial(main, [str(argument) for argument in arguments])


class Process:
    """A process whose output goes to files.

    Args:
        work: done in a fork of this process; returns an exit status. Or the arguments of a fresh ``python -m cdzoo``.
        scratch: folder for the output.
        prepare: called in the fork before the work.
    """

    def __init__(
        self,
        work: Callable[[], int] | list[str],
        scratch: Path,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._started, self._status = time.monotonic(), None
        self._popen: subprocess.Popen[bytes] | None = None
        files = [tempfile.NamedTemporaryFile(dir=scratch, delete=False) for _ in range(2)]  # noqa: SIM115
        self._out, self._err = (Path(file.name) for file in files)
        if isinstance(work, list):
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            arguments = [sys.executable, "-m", "cdzoo", *work]
            self._popen = subprocess.Popen(arguments, stdout=files[0], stderr=files[1], env=environment)
            self.pid = self._popen.pid
        else:
            with warnings.catch_warnings():  # of this process' threads, which the fork does without
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
            if self.pid == 0:
                _work_and_exit(work, files[0].fileno(), files[1].fileno(), prepare)
        for file in files:
            file.close()

    def running(self) -> bool:
        """True if it has not ended yet."""
        if self._status is None and self._popen is not None:
            self._status = self._popen.poll()
        elif self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is None

    def kill(self) -> None:
        """End it at once."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
            while self.running():
                time.sleep(0.001)

    def wait(self, limit_s: float = 1800, watch: Callable[[], None] | None = None) -> Finished:
        """Wait until it ends, or end it after ``limit_s``; calls ``watch`` now and then."""
        hung = False
        while self.running():
            hung = time.monotonic() - self._started > limit_s
            if hung:
                self.kill()
                break
            if watch is not None:
                watch()
            time.sleep(0.01)
        seconds = time.monotonic() - self._started
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in (self._out, self._err))
        return Finished(None if hung else self._status, out, err, seconds)


def _work_and_exit(work: Callable[[], int], out: int, err: int, prepare: Callable[[], None] | None) -> None:
    texts = io.StringIO(), io.StringIO()
    status = 70
    try:
        torch.set_num_threads(1)
        if prepare is not None:
            prepare()
        with contextlib.redirect_stdout(texts[0]), contextlib.redirect_stderr(texts[1]):
            status = work()
    except BaseException:
        texts[1].write(traceback.format_exc())
    try:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        for file, text in zip((out, err), texts, strict=True):
            with os.fdopen(file, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text.getvalue())
    finally:
        os._exit(status)


class Scenario(NamedTuple):
    """One line of the result.

    Attributes:
        name: what it is about.
        how: what was done.
        files: given, each with its own place in the account.
        faults: damaged files, and what was done to the others.
        good: results that are what they should be.
        reported: errors that were reported, with a reason.
        unseen: results of damaged files, whose format does not show the damage.
        lost: undamaged files without a result, and any files without result and reason.
        doubled: files or samples that came twice.
        seconds: of the commands or datasets, without the checks.
        failed: checks that failed, in words.
    """

    name: str
    how: str
    files: int
    faults: int
    good: int
    reported: int
    unseen: int
    lost: int
    doubled: int
    seconds: float
    failed: list[str]


class Account:
    """Counts what became of files, and collects the checks that failed."""

    def __init__(self) -> None:
        self.good = self.reported = self.unseen = self.lost = self.doubled = 0
        self.seconds = 0.0
        self.failed: list[str] = []

    def scenario(self, name: str, how: str, *, files: int, faults: int) -> Scenario:
        """The line that this account makes."""
        counts = (self.good, self.reported, self.unseen, self.lost, self.doubled)
        return Scenario(name, how, files, faults, *counts, round(self.seconds, 1), self.failed)

    def check(self, holds: object, what: str) -> None:
        """Note a check that fails."""
        if not holds:
            self.failed.append(what)

    def run(self, run: Finished, *, status: int | None = None) -> None:
        """Check what is true of every run of a command that reports files; add its time."""
        self.seconds += run.seconds
        self.check(run.status is not None, "hung")
        self.check("Traceback" not in run.err, f"traceback: {run.err[-2000:]}")
        expected = int(any("error" in row for row in run.rows)) if status is None else status
        self.check(run.status == expected, f"exit status {run.status}, not {expected}: {run.err[-500:]}")

    def files(
        self,
        entries: Iterable[Entry],
        folder: Path,
        rows: Iterable[dict[str, Any]],
        *,
        valid: Callable[[Entry, dict[str, Any]], bool],
        must_fail: Callable[[Entry], bool],
        may_fail: Callable[[Entry], bool] = lambda entry: bool(entry.fault),
        others: int = 0,
    ) -> None:
        """Count what a report says of each file.

        Args:
            entries: files that it has to speak of, below ``folder``.
            folder: an absolute path.
            rows: objects with ``"file"``, an ``"error"`` if it failed, and ``"damage"`` if only a part could be read.
            valid: whether the result of a file is what it should be.
            must_fail: files that have to be reported.
            may_fail: files that may be reported.
            others: how many further names it reports.
        """
        found = defaultdict(list)
        for row in rows:
            found[row["file"]].append(row)
        for entry in entries:
            own = found.pop(str(folder / entry.name), [])
            self.doubled += len(own) > 1
            if not own:
                self.lost += 1
                self.check(False, f"neither a result nor a reason: {entry}")
            elif "error" not in own[0] and not valid(entry, own[0]):
                self.lost += 1
                self.check(False, f"not what it should be: {entry}")
            elif "error" in own[0] or "damage" in own[0]:
                reason = own[0].get("error", own[0].get("damage"))
                self.reported += 1
                self.check(reason, f"no reason: {entry}")
                if not may_fail(entry):
                    self.lost += 1
                    self.check(False, f"undamaged, but reported: {entry}: {reason}")
            else:
                self.good += 1
                self.unseen += bool(entry.fault)
                self.check(not must_fail(entry), f"should have been reported: {entry}")
        self.reported += others
        self.check(len(found) == others, f"reported, but not given: {list(found)[:3]}")
