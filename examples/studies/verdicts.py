"""Read the raw results, and judge a difference between two of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "not decided at this scale", "not run"
HELD_OUT = 922
"""Images of Imagenette that no run trains on, and all classifiers are validated with."""
Finding = tuple[str, str]


class MissingError(Exception):
    """A result that is not there."""


class Measured(NamedTuple):
    """A figure in percent.

    Attributes:
        mean: over seeds.
        spread: half of their range.
        seeds: how many there are.
        sampling: standard error in points of what it was measured on, which all seeds share.
        deviation: standard deviation in points between runs that differ by their seed.
    """

    mean: float
    spread: float
    seeds: int
    sampling: float
    deviation: float = 0.0

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + (f" ± {self.spread:.1f} ({self.seeds} seeds)" if self.seeds > 1 else "")

    @property
    def error(self) -> float:
        """Standard error in points."""
        return math.hypot(self.sampling, self.deviation / math.sqrt(self.seeds))


def share_error(percent: float, count: int) -> float:
    """Standard error in points of a share of so many images."""
    share = min(max(percent / 100, 0.01), 0.99)
    return 100 * math.sqrt(share * (1 - share) / count)


class Results:
    """The raw files."""

    def __init__(self, folder: Path = HERE / "results") -> None:
        self.folder = folder
        self.runs: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(content, dict) and "run" in content:
                self.runs[file.stem] = content

    def metrics(self, name: str) -> dict[str, Any]:
        """Metrics of one run."""
        if name not in self.runs:
            raise MissingError(name)
        found: dict[str, Any] = self.runs[name]["metrics"]
        return found

    def measured(self, name: str, metric: str = "top1") -> Measured:
        """A figure of a run and of those that differ by their seed."""
        names = self.seeds(name)
        values = [self.runs[n]["metrics"][metric] for n in names]
        if not values:
            raise MissingError(name)
        mean, metrics = statistics.fmean(values), self.runs[names[0]]["metrics"]
        # where a codec was measured too, these are the images that it was measured on
        images = HELD_OUT if "measured_on" in metrics else int(metrics.get("images", HELD_OUT))
        sampling = metrics.get(f"{metric}_error", share_error(mean, images))
        deviation = statistics.stdev(values) if len(values) > 1 else self.deviation(metric)
        return Measured(mean, (max(values) - min(values)) / 2, len(values), sampling, deviation)

    def seeds(self, name: str) -> list[str]:
        """A run, and those that differ from it by their seed."""
        return [n for n in self.runs if n == name or n.startswith(f"{name}-seed")]

    def deviation(self, metric: str = "top1") -> float:
        """Standard deviation between seeds, over all runs that have several: what one seed leaves open.

        In points of accuracy, if no run has several of that metric.
        """
        groups = [[self.runs[n]["metrics"].get(metric) for n in self.seeds(name)] for name in self.runs]
        several = [group for group in groups if len(group) > 1 and None not in group]
        if not several and metric != "top1":
            return self.deviation()
        squares = sum((len(group) - 1) * statistics.variance(group) for group in several)
        return math.sqrt(squares / sum(len(group) - 1 for group in several)) if several else 0.0

    def file(self, path: Path) -> Any:
        """Another raw file."""
        if not path.exists():
            raise MissingError(path.name)
        return json.loads(path.read_text(encoding="utf-8"))

    def curve(self, codec: str, metric: str) -> list[tuple[float, float]]:
        """Points of rate and quality on Kodak, by rate."""
        points = self.file(self.folder / "rate_distortion.json")
        found = sorted((p["bpp"], p[metric]) for p in points if p["codec"] == codec and metric in p)
        if not found:
            raise MissingError(codec)
        return found


def interpolate(curve: list[tuple[float, float]], rate: float) -> float:
    """Quality at a rate, linear between points; at the ends of the curve its outermost points."""
    for (r0, q0), (r1, q1) in pairwise(curve):
        if r0 <= rate <= r1:
            return q0 + (q1 - q0) * (rate - r0) / (r1 - r0)
    return curve[0][1] if rate < curve[0][0] else curve[-1][1]


def at_least(a: Measured, b: Measured, difference: float = 0.0) -> str:
    """Compare ``a`` with ``b`` plus that many points: two standard errors decide."""
    found, error = a.mean - b.mean, 2 * math.hypot(a.error, b.error)
    if found - error >= difference:
        return HOLDS
    return FAILS if found + error < difference else UNDECIDED


SAME_RATE = 1.03
"""Rates that differ by less count as one."""


def unless_paid(verdict: str, rate: float, others_rate: float) -> str:
    """A verdict on two networks, undecided where the better one has more bits."""
    if (verdict == HOLDS and rate > SAME_RATE * others_rate) or (verdict == FAILS and others_rate > SAME_RATE * rate):
        return UNDECIDED
    return verdict


def overall(verdicts: list[str]) -> str:
    """One word for several comparisons."""
    kinds = set(verdicts)
    return (
        kinds.pop()
        if len(kinds) == 1
        else "; ".join(f"{verdicts.count(k)} of {len(verdicts)}: {k}" for k in sorted(kinds))
    )


def compare(
    pairs: list[tuple[str, str]], difference: float = 0.0, metric: str = "top1"
) -> Callable[[Results], Finding]:
    """A claim that the first run of each pair is better than the second, or worse by that much at most."""

    def judge(results: Results) -> Finding:
        texts, verdicts = [], []
        for first, second in pairs:
            try:
                a, b = results.measured(first, metric), results.measured(second, metric)
            except MissingError:
                continue
            rates = [rate for name in (first, second) if (rate := results.metrics(name).get("bpp"))]
            # latents and what is decoded from them have one rate
            said = " and ".join(dict.fromkeys(f"{rate:.2f}" for rate in rates))
            texts.append(f"{a} against {b}" + (f" at {said} bpp" if said else ""))
            verdict = at_least(a, b, difference)
            verdicts.append(unless_paid(verdict, *rates) if len(rates) == 2 else verdict)
        if not texts:
            raise MissingError(str(pairs))
        missing = len(pairs) - len(texts)
        return "; ".join(texts) + (f"; {missing} of {len(pairs)} not run" if missing else ""), overall(verdicts)

    return judge


def beats(codec: str, rivals: tuple[str, ...], metrics: tuple[str, ...]) -> Callable[[Results], Finding]:
    """A claim that a codec's points lie above the curves of formats, on Kodak at equal rate.

    A codec that was trained for minutes can show that it holds, and cannot show that it does not.
    """

    def judge(results: Results) -> Finding:
        texts, above = [], []
        for metric in metrics:
            for rate, quality in results.curve(codec, metric):
                others = [(rival, interpolate(results.curve(rival, metric), rate)) for rival in rivals]
                shown = "{:.1f} dB" if metric == "psnr" else "{:.3f}"
                listed = ", ".join(f"{rival} {shown.format(value)}" for rival, value in others)
                name = {"psnr": "PSNR", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}[metric]
                texts.append(f"{rate:.2f} bpp: {name} {shown.format(quality)} ({listed})")
                above += [HOLDS if quality > value else UNDECIDED for _, value in others]
        return "; ".join(texts), overall(above)

    return judge


def elsewhere(judge: Callable[[Results], Finding], why: str) -> Callable[[Results], Finding]:
    """The finding of another judge under conditions for which the paper claims nothing: it decides nothing."""

    def undecided(results: Results) -> Finding:
        return f"{judge(results)[0]}: {why}", UNDECIDED

    return undecided
