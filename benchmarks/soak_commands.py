"""The command line under faults: damage, full disks, kills, vanishing files, permissions, two writers."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from soak_files import Entry
from soak_processes import Account, Finished, Process, Scenario, command
from soak_setting import CODEC, Soak, die_at, growth, num_faults, resident_mb, seen_by_classify, seen_by_pillow

from cdzoo.codecs import read_header
from cdzoo.weights.enums import PACKAGED

__all__ = ["COMMANDS"]

NOBODY = 65534
DAY_S = 24 * 3600


def compress(soak: Soak) -> Iterator[Scenario]:
    """All images; then once more."""
    account, out = Account(), soak.home / "streams"
    samples: list[tuple[int, float]] = [(0, 0.0)]  # streams that are there, and the memory that is taken
    next_s = 0.0
    process = soak.start("compress", soak.root, "-o", out, "--json")

    def sample() -> None:
        nonlocal next_s
        if time.monotonic() > next_s and (taken := resident_mb(process.pid)):
            samples.append((len(_files(out)), taken))
            next_s = time.monotonic() + 0.5

    run = process.wait(watch=sample)
    account.run(run)

    def valid(entry: Entry, row: dict[str, Any]) -> bool:
        data = Path(row["output"]).read_bytes()
        soak.reference[entry.name] = data
        if len(soak.reference) % 10 == 0:
            soak.codec.decompress([data])
        return list(read_header(data).image_size) == row["image_size"]

    account.files(soak.images, soak.root, run.rows, valid=valid, must_fail=seen_by_pillow)
    _check_outputs(account, out, run)
    wanted = len(soak.images) // 5
    early = next((sample for sample in samples if sample[0] >= wanted), samples[-1])
    soak.memory.append(growth("`cdzoo compress`", early, samples[-1]))
    how = "every image of the folder, from the command line; every tenth stream decoded again"
    yield account.scenario("compress", how, files=len(soak.images), faults=num_faults(soak.images))

    account, before = Account(), _snapshot(out, times=True)
    run = soak.start("compress", soak.root, "-o", out, "--json").wait()
    account.run(run)
    account.files(soak.images, soak.root, run.rows, valid=_was_skipped, must_fail=seen_by_pillow)
    account.check(_snapshot(out, times=True) == before, "a second run changed streams")
    _check_outputs(account, out, run)
    how = "the same once more: everything is skipped, no byte and no time changes"
    yield account.scenario("compress again", how, files=len(soak.images), faults=num_faults(soak.images))


def classify(soak: Soak) -> Iterator[Scenario]:
    """JPEG files and streams."""
    account = Account()
    files = [*soak.jpegs, *soak.streams]
    run = soak.start("classify", soak.root, "--json").wait()
    account.run(run)
    account.files(files, soak.root, run.rows, valid=_has_labels, must_fail=seen_by_classify)
    how = "JPEG files and streams; damaged JPEG files have labels and a mark where something of them could be read"
    yield account.scenario("classify", how, files=len(files), faults=num_faults(files))


def decompress(soak: Soak) -> Iterator[Scenario]:
    """Streams of three codecs to PNG files."""
    account, out = Account(), soak.home / "pictures"
    run = soak.start("decompress", soak.root, "-o", out, "--json").wait()
    account.run(run)
    account.files(soak.streams, soak.root, run.rows, valid=_is_picture, must_fail=_is_faulty)
    _check_outputs(account, out, run)
    yield account.scenario(
        "decompress", "streams of three codecs, to PNG files", files=len(soak.streams), faults=num_faults(soak.streams)
    )


def info(soak: Soak) -> Iterator[Scenario]:
    """Every stream, one command each."""
    account, folder = Account(), soak.root

    def work() -> int:
        rows = []
        for entry in soak.streams:
            path = folder / entry.name
            rows.append({"file": str(path), **_captured("info", path, "--json")})
        print(json.dumps({"files": rows}))
        return 0

    run = Process(work, soak.scratch).wait()
    account.run(run, status=0)

    def must_fail(entry: Entry) -> bool:
        return entry.fault not in ("", "huge size")  # what a stream says of itself may be looked at

    account.files(soak.streams, folder, run.rows, valid=lambda entry, row: row["bpp"] > 0, must_fail=must_fail)
    yield account.scenario(
        "info", "one command for each stream, in one process", files=len(soak.streams), faults=num_faults(soak.streams)
    )


def disk_full(soak: Soak) -> Iterator[Scenario]:
    """A disk that fills up while streams are written, and has space again."""
    account = Account()
    folder, entries = soak.part("many", soak.images, 600)
    out, needed = soak.home / "full", [soak.reference[e.name] for e in entries if e.name in soak.reference]
    out.mkdir()
    pages = sum(math.ceil(len(data) / 4096) for data in needed) // 2
    mounted = soak.mount and _mount(out, pages)
    largest = int(statistics.median(map(len, needed)))
    prepare = None if mounted else functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest, -1))
    reason = "No space left on device" if mounted else "File too large"
    arguments = ("compress", folder, "-o", out, "--json")
    try:
        run = soak.fork(*arguments, prepare=prepare).wait()
        account.run(run)
        starved = {row["file"] for row in run.rows if reason in row.get("error", "")}
        account.check(starved, "the disk was never full")
        first = Account()
        first.files(
            entries, folder, run.rows, valid=soak.same_stream, must_fail=seen_by_pillow,
            may_fail=lambda entry: bool(entry.fault) or str(folder / entry.name) in starved,
        )  # fmt: skip
        account.failed += first.failed
        _check_outputs(account, out, run)
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)
        run = soak.fork(*arguments).wait()
        account.run(run)
        account.files(entries, folder, run.rows, valid=soak.same_stream, must_fail=seen_by_pillow)
        account.check(first.good == sum(row.get("status") == "skipped" for row in run.rows), "written twice")
        account.reported = first.reported
        _check_outputs(account, out, run)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(out)], check=True)
    if soak.fresh:
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "cdzoo", "list"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
            )
        account.check(done.returncode == 1 and "Traceback" not in done.stderr, f"report to a full disk: {done.stderr}")
    where = "a tmpfs of half the size needed" if mounted else f"a limit of {largest} bytes a file"
    how = f"{where}; then there is space, and the same command completes what is missing"
    yield account.scenario("disk full", how, files=len(entries), faults=num_faults(entries) + len(starved))


def killed(soak: Soak) -> Iterator[Scenario]:
    """SIGKILL, at random moments and at the points of a write."""
    account, rng = Account(), random.Random(0)
    folder, entries = soak.part("killed", soak.images, 4 * soak.kills)
    whole, out = soak.home / "killed-whole", soak.home / "killed-streams"
    soak.fork("compress", folder, "-o", whole, "--json").wait()
    expected = _snapshot(whole)
    arguments, start = ("compress", folder, "-o", out, "--json"), time.monotonic()
    begun = soak.scratch / "begun"
    points = ("fsync", "replace", "utime")
    kills = [*points, *[""] * soak.kills]
    for number, point in enumerate(kills):
        again = ["--overwrite"] if point or number % 2 else []
        prepare = functools.partial(die_at, point, rng.randint(1, 9)) if point else functools.partial(_tell, begun)
        process = soak.fork(*arguments, *again, prepare=prepare)
        if point:
            account.check(process.wait(120).status == -signal.SIGKILL, f"{point} was not reached")
        else:
            while process.running() and not begun.exists():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
            begun.unlink(missing_ok=True)
        partial = [name for name, data in _snapshot(out).items() if expected.get(name) != data]
        account.check(not partial, f"files that are not whole: {partial[:3]}")
    left = _temporaries(out)
    account.check(2 <= len(left) <= len(kills), f"{len(left)} temporary files of {len(kills)} kills")
    run = soak.fork(*arguments).wait()
    account.run(run)
    account.files(entries, folder, run.rows, valid=soak.same_stream, must_fail=seen_by_pillow)
    account.check(_snapshot(out) == expected, "other streams than of a run that was not killed")
    young, old = _temporaries(out)[:1], _temporaries(out)[1:]
    for path in old:
        os.utime(path, (time.time() - 2 * DAY_S,) * 2)
    soak.fork(*arguments).wait()
    account.check(_temporaries(out) == young, "temporary files of yesterday stay, or young ones do not")
    account.seconds = time.monotonic() - start
    how = (
        f"{soak.kills} kills at random moments and {len(points)} at the steps of a write; {len(left)} of them left a "
        "temporary file, which a run a day later removed; half of the runs overwrote"
    )
    yield account.scenario("killed while writing", how, files=len(entries), faults=num_faults(entries) + len(kills))


def vanishing(soak: Soak) -> Iterator[Scenario]:
    """Files, and a folder, that are deleted while a command goes through them."""
    account, rng = Account(), random.Random(0)
    folder, entries = soak.part("vanishing", soak.images, 800)
    out = soak.home / "vanishing-streams"
    victims = rng.sample(range(len(entries)), len(entries) // 5)
    top = Path(entries[victims[0]].name).parts[0]
    gone = {entries[v].name for v in victims} | {e.name for e in entries if Path(e.name).parts[0] == top}
    paths = [folder / entries[v].name for v in victims]

    def delete() -> None:
        if paths and _files(out):
            paths.pop().unlink(missing_ok=True)
            if len(paths) == len(victims) // 2:
                shutil.rmtree(folder / top)

    run = soak.start("compress", folder, "-o", out, "--json").wait(watch=delete)
    account.run(run)
    account.files(
        entries, folder, run.rows, valid=soak.same_stream,
        must_fail=lambda entry: entry.name not in gone and seen_by_pillow(entry),
        may_fail=lambda entry: bool(entry.fault) or entry.name in gone,
    )  # fmt: skip
    reasons = [row.get("error", "No such file") for row in run.rows if _name(row, folder) in gone]
    damaged = {entry.name for entry in entries if entry.fault}
    plain = [row for row in run.rows if _name(row, folder) in gone - damaged]
    account.check(all("No such file" in row.get("error", "No such file") for row in plain), f"other reasons: {reasons}")
    _check_outputs(account, out, run)
    how = "compress, while a fifth of the images and one folder are deleted"
    yield account.scenario("files vanish (compress)", how, files=len(entries), faults=len(gone | damaged))

    account = Account()
    files = [*soak.jpegs, *[entry for entry in soak.streams if entry.variant == CODEC]]
    folder, entries = soak.part("vanishing-names", files, 400)
    victims = rng.sample(range(len(entries)), len(entries) // 3)
    gone = {entries[v].name for v in victims}
    paths = [folder / entries[v].name for v in victims]
    run = soak.start("classify", *[folder / entry.name for entry in entries], "--json").wait(
        watch=lambda: paths.pop().unlink(missing_ok=True) if paths else None
    )
    account.run(run)
    account.files(
        entries, folder, run.rows, valid=_has_labels,
        must_fail=lambda entry: entry.name not in gone and seen_by_classify(entry),
        may_fail=lambda entry: entry.name in gone or bool(entry.fault),
    )  # fmt: skip
    how = "classify, with every name as an argument, while a third of the files are deleted"
    faults = len(gone | {entry.name for entry in entries if entry.fault})
    yield account.scenario("files vanish (classify)", how, files=len(entries), faults=faults)


def denied(soak: Soak) -> Iterator[Scenario]:
    """Inputs that may not be read, and folders that may not be written or entered."""
    account = Account()
    folder, entries = soak.part("denied", soak.images, 400)
    out, shut = soak.home / "denied-streams", soak.home / "denied-shut"
    prepare = _become_nobody if os.geteuid() == 0 else None
    name = "permission denied"
    reach = Process(lambda: int(not all(map(_readable, (PACKAGED, folder)))), soak.scratch, prepare).wait()
    if reach.status != 0:
        how = "skipped: the user nobody can't enter this folder or that of the package"
        yield account.scenario(name, how, files=0, faults=0)
        return
    locked, read_only, closed = sorted({Path(entry.name).parts[0] for entry in entries})[:3]
    unreadable = {entry.name for entry in entries[::9] if not entry.fault}
    for file in unreadable:
        (folder / file).chmod(0)
    for place, mode in ((folder / locked, 0), (out / read_only, 0o555), (out / closed, 0), (shut, 0o555)):
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(mode)
    out.chmod(0o777)
    run = soak.fork("compress", folder, "-o", out, "--json", prepare=prepare).wait()
    account.run(run)

    def refused(entry: Entry) -> bool:
        return entry.name in unreadable or Path(entry.name).parts[0] in (read_only, closed)

    found = [entry for entry in entries if Path(entry.name).parts[0] != locked]
    account.files(
        found, folder, run.rows, valid=soak.same_stream, others=1,
        must_fail=lambda entry: refused(entry) or seen_by_pillow(entry),
        may_fail=lambda entry: refused(entry) or bool(entry.fault),
    )  # fmt: skip
    reasons = [row["error"] for row in run.rows if _name(row, folder) in unreadable]
    account.check(all("Permission denied" in reason for reason in reasons), f"other reasons: {reasons[:3]}")
    # nothing may be written at all; a folder that cannot be made
    run = soak.fork("compress", folder, "-o", shut, "--json", prepare=prepare).wait()
    account.run(run)
    account.check(run.rows and all("error" in row for row in run.rows) and not _files(shut), "written to a shut folder")
    run = soak.fork("compress", folder, "-o", shut / "new", "--json", prepare=prepare).wait()
    account.run(run, status=1)
    account.check("Permission denied" in run.err and not run.rows, f"no reason: {run.err}")
    # named outright, in a folder that may not be entered, beside one that can be classified
    inside = next(folder / entry.name for entry in entries if Path(entry.name).parts[0] == locked)
    good = next(e for e in found if e.kind == "jpg" and not (e.fault or e.variant == "cmyk" or e.name in unreadable))
    run = soak.fork("classify", inside, folder / good.name, "--json", prepare=prepare).wait()
    account.run(run)
    account.check(["error" in row for row in run.rows] == [True, False], f"a locked folder stops others: {run.err}")
    for place in (folder / locked, out / read_only, out / closed, shut):
        place.chmod(0o755)
    user = "as another user" if prepare else "as the owner"
    how = (
        f"compress {user}: some files and one folder unreadable, one output folder read-only, one that may not be "
        "entered; then nothing may be written"
    )
    faults = num_faults(found) + sum(refused(entry) and not entry.fault for entry in found) + 1
    yield account.scenario(name, how, files=len(found) + 1, faults=faults)


def two_writers(soak: Soak) -> Iterator[Scenario]:
    """The same command twice at the same time."""
    account = Account()
    folder, entries = soak.part("twice", soak.images, 600)
    out = soak.home / "twice-streams"
    processes = [soak.start("compress", folder, "-o", out, "--json") for _ in range(2)]
    runs = [process.wait() for process in processes]
    for number, run in enumerate(runs):
        own = Account()
        own.run(run)
        own.files(entries, folder, run.rows, valid=soak.same_stream, must_fail=seen_by_pillow)
        _check_outputs(own, out, run)
        account.failed += own.failed
        account.seconds = max(account.seconds, own.seconds)
        for figure in ("good", "reported", "unseen", "lost", "doubled"):
            if number == 0 or figure in ("lost", "doubled"):
                setattr(account, figure, getattr(account, figure) + getattr(own, figure))
    how = "two runs of compress into one folder at the same time; the streams are those of one"
    yield account.scenario("two writers", how, files=len(entries), faults=num_faults(entries))


COMMANDS: tuple[Callable[[Soak], Iterator[Scenario]], ...] = (
    compress, classify, decompress, info, disk_full, killed, vanishing, denied, two_writers,
)  # fmt: skip


def _is_faulty(entry: Entry) -> bool:
    return bool(entry.fault)


def _was_skipped(entry: Entry, row: dict[str, Any]) -> bool:
    return row["status"] == "skipped"


def _has_labels(entry: Entry, row: dict[str, Any]) -> bool:
    return len(row["top"]) == 5 and all(0 <= each["probability"] <= 1 for each in row["top"])


def _is_picture(entry: Entry, row: dict[str, Any]) -> bool:
    with Image.open(row["output"]) as image:
        image.load()
        return [image.height, image.width] == row["image_size"]


def _name(row: dict[str, Any], folder: Path) -> str:
    return os.path.relpath(row["file"], folder)


def _files(folder: Path) -> list[Path]:
    """Files below a folder, but not temporary ones."""
    return [Path(top, name) for top, _, names in os.walk(folder) for name in names if not _is_temporary(name)]


def _temporaries(folder: Path) -> list[Path]:
    return sorted(Path(top, name) for top, _, names in os.walk(folder) for name in names if _is_temporary(name))


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _snapshot(folder: Path, *, times: bool = False) -> dict[str, Any]:
    """Contents by name below the folder, with the time of the last change if asked for."""
    found: dict[str, Any] = {}
    for path in _files(folder):
        data = path.read_bytes()
        found[str(path.relative_to(folder))] = (data, path.stat().st_mtime_ns) if times else data
    return found


def _check_outputs(account: Account, folder: Path, run: Finished) -> None:
    """Every file that was written is reported, and the other way round; nothing else lies there."""
    outputs = {row["output"] for row in run.rows if "output" in row}
    there = {str(path) for path in _files(folder)}
    account.check(outputs == there, f"outputs and files differ: {list(outputs ^ there)[:3]}")
    account.check(not _temporaries(folder), f"temporary files: {_temporaries(folder)[:3]}")


def _captured(*arguments: str | Path) -> dict[str, Any]:
    """The JSON that a command prints, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command(*arguments)()
    found: dict[str, Any] = json.loads(out.getvalue())
    if status != ("error" in found):
        raise AssertionError(f"exit status {status}: {found}")
    return found


def _tell(begun: Path) -> None:
    """Have this process make a file when it syncs one for the first time."""
    function = os.fsync

    def telling(descriptor: int) -> None:
        begun.touch()
        function(descriptor)

    os.fsync = telling


def _mount(folder: Path, pages: int) -> bool:
    """A tmpfs of so many pages of 4 KiB."""
    options = ["mount", "-t", "tmpfs", "-o", f"size={4 * max(pages, 4)}k", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(options, capture_output=True).returncode == 0


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _readable(folder: Path) -> bool:
    try:
        return os.access(folder, os.R_OK | os.X_OK) and all(
            os.access(path, os.R_OK) for path in folder.rglob("*") if path.is_file()
        )
    except OSError:
        return False
