"""Rows of the benchmark: each way runs once a round, in an order that rotates, and medians are compared.

One thread is timed by processor time, which neighbors on a busy machine disturb less than the time on the wall;
several threads, and accelerators, by the latter. A turn of a short task is a loop, so that the scheduler matters less.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

import cdzoo

LIBRARIES = (
    "torch", "torchvision", "timm", "compressai", "numpy", "numba", "pillow", "simplejpeg", "jpeglib",
    "pyjpegio", "torchcodec", "pyturbojpeg", "opencv-python-headless",
)  # fmt: skip

T = TypeVar("T")


class SkippedError(Exception):
    """A group that cannot be measured here, and why."""


class Options(NamedTuple):
    """Options of the command.

    Attributes:
        quick: tiny sizes and few rounds: shows that everything runs, not how fast.
        threads: thread counts, one after the other.
        photo: the picture that all images are cut from; the packaged photograph by default.
    """

    quick: bool = False
    threads: tuple[int, ...] = (1, 2)
    photo: Path | None = None

    @property
    def rounds(self) -> tuple[int, int]:
        """The fewest and the most rounds of a row."""
        return (2, 2) if self.quick else (4, 15)

    @property
    def seconds(self) -> float:
        """About how long a row may take on the wall before it is left with the fewest rounds."""
        return 0.0 if self.quick else 2.0

    @property
    def turn(self) -> float:
        """Seconds that a turn of one way lasts at least."""
        return 0.0 if self.quick else 0.02


class Peer(NamedTuple):
    """One peer in a row.

    Attributes:
        value: its median, in the row's unit.
        ratio: ``value`` over that of cdzoo; above 1 cdzoo is ahead.
        spread: quartiles of the ratios of single rounds.
    """

    value: float
    ratio: float
    spread: tuple[float, float]


class Row(NamedTuple):
    """One case: cdzoo and its peers, measured in the same rounds.

    Attributes:
        group: name of the group.
        case: what was measured, at what size, batch size and number of threads.
        unit: ``"ms"`` or ``"MiB"``.
        ours: the median of cdzoo.
        peers: by name.
        skipped: peers that were left out, and why.
        rounds: what every way took in every round, ``"cdzoo"`` first.
    """

    group: str
    case: dict[str, str | int | float]
    unit: str
    ours: float
    peers: dict[str, Peer]
    skipped: dict[str, str]
    rounds: dict[str, list[float]]


def row(
    group: str,
    case: Mapping[str, str | int | float],
    rounds: Mapping[str, Sequence[float]],
    *,
    unit: str = "ms",
    skipped: Mapping[str, str] | None = None,
) -> Row:
    """A row from what each way took in each round; the first way is cdzoo's, whatever it is called."""
    (_, ours), *others = ((name, [_short(value) for value in values]) for name, values in rounds.items())
    ours_median = _short(statistics.median(ours))
    peers = {}
    for name, values in others:
        median = _short(statistics.median(values))
        ratios = [theirs / mine for theirs, mine in zip(values, ours, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        peers[name] = Peer(median, _short(median / ours_median), (_short(low), _short(high)))
    return Row(group, dict(case), unit, ours_median, peers, dict(skipped or {}), {"cdzoo": ours, **dict(others)})


def timed(
    tasks: Mapping[str, Callable[[], object]], options: Options, *, wall: bool, per: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of each task in each round.

    Args:
        tasks: by name.
        options: set the number of rounds.
        wall: time on the wall; else processor time of the whole process.
        per: how many items a task handles; times are divided by it.
    """
    clock = time.perf_counter if wall else time.process_time

    def turn(task: Callable[[], object], calls: int) -> float:
        start = clock()
        for _ in range(calls):
            task()
        return (clock() - start) / calls

    calls, one_round = {}, 0.0
    for name, task in tasks.items():
        seconds = turn(task, 1)  # compiles, fills caches
        start = time.perf_counter()
        if seconds < 1 and not options.quick:
            seconds = turn(task, 1)
        calls[name] = max(1, math.ceil(options.turn / max(seconds, 1e-7)))
        one_round += max(seconds, time.perf_counter() - start) * calls[name]
    fewest, most = options.rounds
    names, times = list(tasks), {name: [] for name in tasks}  # type: dict[str, list[float]]
    for number in range(min(most, max(fewest, int(options.seconds / max(one_round, 1e-7))))):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(1e3 * turn(tasks[name], calls[name]) / per)
    return times


def compare(
    group: str,
    case: Mapping[str, str | int | float],
    tasks: Mapping[str, Callable[[], object]],
    options: Options,
    *,
    skipped: Mapping[str, str] | None = None,
    per: int = 1,
) -> Row:
    """The row of some tasks, cdzoo's first, by the clock that the case's ``"threads"`` ask for."""
    return row(group, case, timed(tasks, options, wall=case.get("threads") != 1, per=per), skipped=skipped)


@contextmanager
def torch_threads(count: int) -> Iterator[Callable[[Callable[[T], Any], Sequence[T]], list[Any]]]:
    """So many threads of PyTorch, and a ``map`` that runs on as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        if count == 1:
            yield lambda function, items: [function(item) for item in items]
        else:
            with ThreadPoolExecutor(count) as pool:
                yield lambda function, items: list(pool.map(function, items))
    finally:
        torch.set_num_threads(before)


def machine(options: Options) -> dict[str, Any]:
    """The machine that the figures depend on: libraries, processor, memory, system, load."""
    versions = {"python": platform.python_version(), "cdzoo": cdzoo.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}, {platform.machine()}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": list(options.threads),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": versions,
    }


def to_json(header: Mapping[str, Any], skipped: Mapping[str, str], rows: Sequence[Row]) -> str:
    """One row a line, so that two runs can be compared line by line."""
    lines = ",\n".join(json.dumps({**r._asdict(), "peers": {n: p._asdict() for n, p in r.peers.items()}}) for r in rows)
    return f'{{"machine": {json.dumps(header, indent=1)},\n"skipped": {json.dumps(skipped)},\n"rows": [\n{lines}\n]}}\n'


def from_json(text: str) -> tuple[dict[str, Any], dict[str, str], list[Row]]:
    """Read the output of :func:`to_json`: header, groups that were skipped, rows."""
    found = json.loads(text)
    rows = []
    for entry in found["rows"]:
        peers = {name: Peer(**{**peer, "spread": tuple(peer["spread"])}) for name, peer in entry["peers"].items()}
        rows.append(Row(**{**entry, "peers": peers}))
    return found["machine"], found["skipped"], rows


def _short(value: float) -> float:
    """Four digits; times and medians are rounded before ratios are taken, so that what is printed adds up."""
    return float(f"{value:.4g}")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
