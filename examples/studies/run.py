"""Train the runs of ``plan.py`` that are missing, one after the other.

    python -m studies.run --data imagenette --kodak kodak --camvid camvid --home runs/zoo   # all
    python -m studies.run ... --only 'head-*' --until 20:00                                  # some, until some time
    python -m studies.run ... --list

Each run has a folder in ``--home``. A run that was killed continues from its checkpoint. A finished run writes its
result to ``results/NAME.json``; ``report.py`` makes the tables from these files. Several processes can work on one
plan: each takes runs that no other process has, and whose needs are met.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .plan import PLAN, Planned

EXAMPLES = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


def wanted(patterns: Sequence[str]) -> list[Planned]:
    """Runs whose names match, and what they need, in the order of the plan."""
    names: set[str] = set()
    for p in reversed(PLAN):  # needs come before
        if p.name in names or any(fnmatch.fnmatch(p.name, pattern) for pattern in patterns):
            names |= {p.name, *p.needs}
    return [p for p in PLAN if p.name in names]


def is_done(planned: Planned, home: Path) -> bool:
    """True if a run has come to its end."""
    return (home / planned.name / "result.json").exists()


def take(planned: Planned, home: Path) -> IO[str] | None:
    """A file that is locked for as long as this process has it open; none where another process has it."""
    lock = home / planned.name / "taken"
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however that ends
    except BlockingIOError:
        file.close()
        return None
    return file


def publish(planned: Planned, home: Path) -> None:
    """Write the result of a run, with its history of evaluations, among the results that are kept."""
    folder = home / planned.name
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    evaluated = ("top1", "val_psnr", "miou")
    result["history"] = [
        {"stage": file.parent.name, **row} if file.parent != folder else row  # each stage counts its own epochs
        for file in sorted(folder.rglob("history.jsonl"))
        for row in map(json.loads, file.read_text().splitlines())
        if any(name in row for name in evaluated)
    ]
    result["run"] = f"{planned.script} {planned.arguments}"
    del result["command"]  # the same, with this machine's folders
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{planned.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def train(planned: Planned, args: argparse.Namespace, lock: IO[str]) -> bool:
    """One run, to its end; whether it came there."""
    folders = {"data": args.data, "kodak": args.kodak, "camvid": args.camvid, "home": args.home}
    filled = planned.arguments.format(**folders, cache=args.home / "cache")
    out = args.home / planned.name
    command = [sys.executable, str(EXAMPLES / planned.script), *shlex.split(filled), "--out", str(out)]
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        # the run keeps the lock if this process is killed
        held = (lock.fileno(),)
        return subprocess.run(command, stdout=log, stderr=log, check=False, pass_fds=held).returncode == 0


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for name in ("data", "kodak", "camvid"):
        add(f"--{name}", type=Path)
    add("--home", type=Path, default=Path("runs/zoo"))
    add("--only", nargs="+", default=["*"], metavar="PATTERN", help="of names; with what they need")
    add("--until", help="HH:MM: start no run after that")
    add("--list", action="store_true", help="say what is there, and train nothing")
    args = parser.parse_args()
    for name in ("data", "kodak", "camvid", "home"):
        path = getattr(args, name)
        setattr(args, name, None if path is None else path.absolute())
    planned = wanted(args.only)
    failed: set[str] = set()
    while not args.list:
        missing = [p for p in planned if p.name not in failed and not is_done(p, args.home)]
        if not missing or (args.until and time.strftime("%H:%M") >= args.until):
            break
        by_name = {p.name: p for p in PLAN}
        ready = [p for p in missing if all(is_done(by_name[n], args.home) for n in p.needs)]
        locks = {p.name: take(p, args.home) for p in missing}
        mine, lock = next(((p, held) for p in ready if (held := locks[p.name])), (None, None))
        others = any(lock is None for lock in locks.values())
        for other in locks.values():
            if other is not None and other is not lock:
                other.close()
        if mine is None or lock is None:
            if not others:
                break  # what is missing waits for runs that were not asked for, or that failed
            time.sleep(5)
            continue
        print(f"{time.strftime('%H:%M:%S')} {mine.name}", flush=True)
        if train(mine, args, lock):
            publish(mine, args.home)
        else:
            failed.add(mine.name)
            print(f"  failed; see {args.home / mine.name / 'log.txt'}", flush=True)
        lock.close()
    for p in planned:
        if is_done(p, args.home) and not (RESULTS / f"{p.name}.json").exists():
            publish(p, args.home)  # whoever started it was killed
        print(f"{'done' if is_done(p, args.home) else 'open':5} {p.name}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
