"""The papers' claims: what each says, and what the results at hand say to it.

A claim is a row of ``docs/results.md``. Its ``judge`` takes all results and returns what was found and a verdict, or
nothing where a result that it needs is missing: such a claim was not run.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "not decided at this scale", "not run"
HELD_OUT = 922
"""Images of Imagenette that no run trains on, and all classifiers are validated with."""
Finding = tuple[str, str]


class Missing(Exception):
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
        """Of one run."""
        if name not in self.runs:
            raise Missing(name)
        found: dict[str, Any] = self.runs[name]["metrics"]
        return found

    def measured(self, name: str, metric: str = "top1") -> Measured:
        """A figure of a run and of those that differ by their seed."""
        names = self.seeds(name)
        values = [self.runs[n]["metrics"][metric] for n in names]
        if not values:
            raise Missing(name)
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
            raise Missing(path.name)
        return json.loads(path.read_text(encoding="utf-8"))

    def curve(self, codec: str, metric: str) -> list[tuple[float, float]]:
        """Points of rate and quality on Kodak, by rate."""
        points = self.file(self.folder / "rate_distortion.json")
        found = sorted((p["bpp"], p[metric]) for p in points if p["codec"] == codec and metric in p)
        if not found:
            raise Missing(codec)
        return found


def interpolate(curve: list[tuple[float, float]], rate: float) -> float:
    """Quality at a rate, linear between points; at the ends of the curve its outermost points."""
    for (r0, q0), (r1, q1) in pairwise(curve):
        if r0 <= rate <= r1:
            return q0 + (q1 - q0) * (rate - r0) / (r1 - r0)
    return curve[0][1] if rate < curve[0][0] else curve[-1][1]


def at_least(a: Measured, b: Measured, difference: float = 0.0) -> str:
    """Whether ``a`` is more than ``b`` by that many points: two standard errors decide."""
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
            except Missing:
                continue
            rates = [rate for name in (first, second) if (rate := results.metrics(name).get("bpp"))]
            # latents and what is decoded from them have one rate
            said = " and ".join(dict.fromkeys(f"{rate:.2f}" for rate in rates))
            texts.append(f"{a} against {b}" + (f" at {said} bpp" if said else ""))
            verdict = at_least(a, b, difference)
            verdicts.append(unless_paid(verdict, *rates) if len(rates) == 2 else verdict)
        if not texts:
            raise Missing(str(pairs))
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
    """What another judge finds under conditions for which the paper claims nothing: it decides nothing."""

    def undecided(results: Results) -> Finding:
        return f"{judge(results)[0]}: {why}", UNDECIDED

    return undecided


def better_codec(results: Results) -> Finding:
    """000, 4.5: the codec beside 001's, on Kodak at equal rate."""
    texts, verdicts = [], []
    rivals = results.curve("torfason2018", "psnr")
    for rate, quality in results.curve("choi2019", "psnr"):
        texts.append(f"{rate:.2f} bpp: {quality:.1f} dB against {interpolate(rivals, rate):.1f} dB")
        within = rivals[0][0] <= rate <= rivals[-1][0]
        verdicts.append((HOLDS if quality > interpolate(rivals, rate) else FAILS) if within else UNDECIDED)
    return "; ".join(texts), overall(verdicts)


def segmentation_of_codecs(results: Results) -> Finding:
    """000, table 5: latents of its codec and of 001's; the rates are those of Kodak."""
    codecs = ("choi2019", "torfason2018")
    ours, rival = (results.measured(f"segmenter-{codec}-latents", "miou") for codec in codecs)
    rates = [results.metrics(f"codec-{codec}")["bpp_real"] for codec in codecs]
    text = f"{ours} against {rival} at {rates[0]:.2f} and {rates[1]:.2f} bpp of Kodak"
    return text, unless_paid(at_least(ours, rival), *rates)


def entropy_correlation(results: Results) -> Finding:
    """000, figure 2."""
    found = results.file(HERE.parent / "results" / "entropy_correlation.json")
    texts, verdicts = [], dict[str, list[str]]()
    for series in found["series"]:
        values = series["pearson"]
        texts.append(f"{series['codec']}: {values['whole']:.2f} over images, {values['maps']:.2f} over feature maps")
        for kind, value in values.items():
            verdicts.setdefault(kind, []).append(HOLDS if value > 0.97 else FAILS)
    said = {"of all values at once": overall(verdicts["whole"]), "of each feature map": overall(verdicts["maps"])}
    return "; ".join(texts), "; ".join(f"{kind}: {verdict}" for kind, verdict in said.items())


def channels(results: Results) -> Finding:
    """000, table 4."""
    names = ("head-choi2019-resnet41", "head-choi2019-resnet41-8channels", "head-choi2019-resnet41-4channels")
    whole, eighth, sixteenth = (results.measured(name) for name in names)
    return f"64, 8 and 4 of 64 channels: {whole}, {eighth}, {sixteenth}", at_least(eighth, whole, -0.6)


def computation(results: Results) -> Finding:
    """001, figure 6."""
    ours, rival = (results.metrics(f"head-torfason2018-{name}")["mmacs"] for name in ("cresnet39", "resnet50"))
    text = f"multiply-adds of cResNet-39 and ResNet-50 at width 1/8, without decoding: {ours:.0f} M, {rival:.0f} M"
    return text, HOLDS if ours < rival else FAILS


def run_time(results: Results) -> Finding:
    """001, figure 12: the order of run times is that of computation, for networks alone and with decoding."""
    texts, verdicts = [], []
    for name in ("runtime", "runtime-accelerator"):
        try:
            rows = results.file(results.folder / f"{name}.json")
        except Missing:
            continue
        text, verdict = _order_of_times({row["network"]: row for row in rows})
        where = rows[0].get("device", "one core of a CPU")
        texts.append(f"{where}: {text}")
        verdicts.append((where, verdict))
    if not verdicts:
        raise Missing("runtime.json")
    if len({verdict for _, verdict in verdicts}) == 1:
        return "; ".join(texts), verdicts[0][1]
    return "; ".join(texts), "; ".join(f"{where}: {verdict}" for where, verdict in verdicts)


def inference_time(results: Results) -> Finding:
    """002, table 2: as fast as ResNet-50 within a tenth, and what decoding takes."""
    rows = {row["network"]: row["milliseconds"] for row in results.file(results.folder / "runtime-002.json")}
    ours, rival, decoding = (rows[name] for name in ("fa_cresnet39", "resnet50", "decoding"))
    text = (
        f"one core of a CPU: {ours:.0f} ms and {rival:.0f} ms; from bits to pixels {decoding:.0f} ms, "
        f"to a latent {rows['reading']:.1f} ms"
    )
    speed, longer = (HOLDS if holds else FAILS for holds in (ours < 1.1 * rival, decoding > 100 * rival))
    return text, f"speed: {speed}; decoding: {longer}"


def _order_of_times(rows: dict[str, dict[str, Any]]) -> Finding:
    decoder = rows.pop("decoder")
    texts = [
        f"{name} {row['gmacs']:.2f} G, {row['milliseconds']:.3g} ms ({row['milliseconds'] / row['gmacs']:.2g} for each)"
        for name, row in {"decoding": decoder, **rows}.items()
    ]
    verdicts = []
    for decoding in (False, True):
        totals = [
            [row[k] + (decoder[k] if decoding and row["reads"] == "pixels" else 0) for k in ("gmacs", "milliseconds")]
            for row in rows.values()
        ]
        # what computes within a twentieth of another may be on either side of it
        verdicts += [
            HOLDS if slower > faster else FAILS
            for (more, slower), (less, faster) in permutations(totals, 2)
            if more > 1.05 * less
        ]
    return ", ".join(texts), overall(verdicts)


def conversion(results: Results) -> Finding:
    """003, table 1."""
    rows = results.file(HERE.parent / "jpeg_resnet_paper" / "results" / "conversion_deviation.json")["rows"]
    linear = [r for r in rows if r["against"] == "linear" and r["form"] != "explicit"]
    largest, changed = (
        f(r[k] for r in linear) for f, k in ((max, "largest_logit_difference"), (sum, "changed_decisions"))
    )
    files = sum(r["files"] for r in linear)
    return f"{changed} of {files:,} decisions, logits to {largest:.0e}", HOLDS if not changed else FAILS


def relu_error(results: Results) -> Finding:
    """003, figure 4a."""
    found = results.file(HERE.parent / "jpeg_resnet_paper" / "results" / "relu_rmse.json")
    pairs = list(zip(found["asm"], found["apx"], strict=True))[:14]
    texts = ", ".join(f"{n}: {pairs[n - 1][0]:.3f} / {pairs[n - 1][1]:.3f}" for n in (4, 8, 12))
    return f"RMSE of ASM / APX at {texts}", HOLDS if all(a < b for a, b in pairs) else FAILS


def joint_quality(results: Results) -> Finding:
    """001, figure 11: images of a codec trained for labels too, beside one trained as long for images alone."""
    both, alone = (results.metrics(name) for name in ("joint-both", "joint-control"))
    texts = [f"{m['ssim']:.4f}, {m['ms_ssim']:.4f} at {m['bpp_real']:.3f} bpp" for m in (both, alone)]
    gains = [both[k] - alone[k] for k in ("ssim", "ms_ssim")]
    verdict = HOLDS if min(gains) > 0 else FAILS if max(gains) < -0.005 else UNDECIDED
    return " against ".join(texts), unless_paid(verdict, both["bpp_real"], alone["bpp_real"])


def joint_psnr(results: Results) -> Finding:
    """001, A.7: the same of PSNR, of which labels cost some."""
    both, alone = (results.metrics(name) for name in ("joint-both", "joint-control"))
    texts = [f"{m['psnr']:.2f} dB at {m['bpp_real']:.3f} bpp" for m in (both, alone)]
    # the claim holds where the control is better, for which it may not have more bits
    verdict = HOLDS if both["psnr"] < alone["psnr"] else FAILS
    return " against ".join(texts), unless_paid(verdict, alone["bpp_real"], both["bpp_real"])


def approximations(first: tuple[str, str], second: tuple[str, str]) -> Callable[[Results], Finding]:
    """003, figures 4b and 4c: of two pairs of treatment and ReLU the first is better, at each number of frequencies.

    Both are means over the networks that have both treatments. Where that is one, it has the deviation between
    networks of the treatments that have several, with the same ReLU and as many frequencies.
    """

    def judge(results: Results) -> Finding:
        found = results.file(HERE.parent / "jpeg_resnet_paper" / "results" / "accuracy.json")
        rows: dict[tuple[str, str, int], dict[int, float]] = {}
        for row in found["accuracy"]:
            rows.setdefault((row["how"], row["relu"], row["frequencies"]), {})[row["network"]] = row["top1"]

        def measured(how: str, relu: str, n: int, networks: set[int]) -> Measured:
            values = [rows[how, relu, n][network] for network in sorted(networks)]
            several = [of.values() for key, of in rows.items() if key[1:] == (relu, n) and len(of) > 1]
            variances = [statistics.variance(values)] if len(values) > 1 else map(statistics.variance, several)
            deviation = math.sqrt(statistics.fmean(list(variances) or [0.0]))
            mean, spread = statistics.fmean(values), (max(values) - min(values)) / 2
            return Measured(mean, spread, len(values), share_error(mean, found["files"]), deviation)

        texts, verdicts = [], []
        for n in range(1, 15):  # 15 are the exact ReLU
            networks = rows.get((*first, n), {}).keys() & rows.get((*second, n), {}).keys()
            if networks:
                a, b = (measured(*of, n, networks) for of in (first, second))
                verdicts.append(at_least(a, b))
                if n in (2, 4, 6, 8, 12):
                    texts.append(f"{n}: {a.mean:.1f} / {b.mean:.1f}")
        if not verdicts:
            raise Missing(f"{first}, {second}")
        return f"frequencies: top-1 {', '.join(texts)}", overall(verdicts)

    return judge


def throughput(results: Results) -> Finding:
    """003, figure 5."""
    found = results.file(HERE.parent / "jpeg_resnet_paper" / "results" / "throughput.json")["milliseconds"]
    texts, verdicts = [], []
    for phase in ("inference", "training"):
        times = found[phase]
        forms = {
            k.removeprefix("JPEG, "): times["pixels, torchvision"] / t for k, t in times.items() if k[:4] == "JPEG"
        }
        verdicts.append(HOLDS if max(forms.values()) > 1 else FAILS)
        texts.append(f"{phase}: " + ", ".join(f"{k} {v:.2g}x" for k, v in forms.items() if "ASM" not in k))
    return "against decode + network, " + "; ".join(texts), f"on a CPU: {overall(verdicts)}"


def icat_rate(*rivals: str) -> Callable[[Results], Finding]:
    """004, figure 4, rate and distortion; beyond its last point, a rival's quality is at least that of this point."""

    def judge(results: Results) -> Finding:
        texts, verdicts = [], []
        for rate, quality in results.curve("icat_small", "psnr"):
            listed, better = [], True
            for name in rivals:
                curve = results.curve(name, "psnr")
                value, end = interpolate(curve, rate), curve[-1][0]
                listed.append(f"{name} {value:.1f}" + (f" at {end:.2f}" if end < rate else ""))
                better = better and end >= rate and quality > value
            texts.append(f"{quality:.1f} dB at {rate:.2f} bpp ({', '.join(listed)})")
            verdicts.append(HOLDS if better else UNDECIDED)
        return "; ".join(texts), overall(verdicts)

    return judge


def rival_trained_on(results: Results) -> Finding:
    """004, figure 4: what training on with a classifier does to ``mbt2018_mean``, here on crops of 64 pixels."""
    after, before = results.metrics("icat-rival"), results.metrics("codec-mbt2018-mean")
    texts = [f"{m['psnr']:.1f} dB at {m['bpp_real']:.2f} bpp" for m in (after, before)]
    ratio = after["bpp_real"] / before["bpp_real"]
    alike = abs(after["psnr"] - before["psnr"]) < 0.5 and 1 / SAME_RATE < ratio < SAME_RATE
    return f"on Kodak, after crops of 64 pixels: {' against '.join(texts)}", HOLDS if alike else UNDECIDED


def icat_accuracy(results: Results) -> Finding:
    """004, figure 4, rate and accuracy; both after the same time, the rival's codec with an hour of its own before."""
    ours, rival = "icat-second", "icat-rival"
    return f"{_at_rate(results, ours)} against {_at_rate(results, rival)}, estimated", _dominates(results, ours, rival)


def icat_ablations(results: Results) -> Finding:
    """004, figure 6: at unequal rates, only what is better with fewer bits, or worse with more, says anything."""
    ratios = {50: "icat-second-ratio50", 100: "icat-second", 200: "icat-second-ratio200"}
    verdicts = [_dominates(results, better, worse) for worse, better in pairwise(ratios.values())]
    aggregated, plain = "icat-second", "icat-second-plain"
    verdicts.append(_dominates(results, aggregated, plain))
    if verdicts[-1] == HOLDS and results.metrics(aggregated)["val_psnr"] <= results.metrics(plain)["val_psnr"]:
        verdicts[-1] = UNDECIDED
    rows = {**{f"ratio {ratio}": name for ratio, name in ratios.items()}, "without aggregation": plain}
    texts = [
        f"{label}: {_at_rate(results, name)}, {results.metrics(name)['val_psnr']:.2f} dB"
        for label, name in rows.items()
    ]
    return "; ".join(texts), overall(verdicts)


def _at_rate(results: Results, name: str) -> str:
    return f"{results.measured(name)} at {results.metrics(name)['val_bpp']:.2f} bpp"


def _dominates(results: Results, first: str, second: str) -> str:
    verdict = at_least(results.measured(first), results.measured(second))
    return unless_paid(verdict, *(results.metrics(name)["val_bpp"] for name in (first, second)))


def icat_cost(results: Results) -> Finding:
    """004, figure 7."""
    rows = results.file(results.folder / "cost.json")
    ours = rows.pop("icat_small")
    texts = [f"{name} {ours[name]:.1f} G against {min(r[name] for r in rows.values()):.1f} G" for name in ours]
    holds = (
        all(abs(ours["encode"] / r["encode"] - 1) < 0.25 for r in rows.values())
        and all(ours["rebuild"] > r["rebuild"] for r in rows.values())
        and all(ours["classify"] < r["classify"] for r in rows.values())
    )
    return "; ".join(texts) + " (the least of its rivals)", HOLDS if holds else FAILS


def sparsity(results: Results) -> Finding:
    """002, figure 2: holds where half of the channels are next to empty."""
    rows = results.file(results.folder / "sparsity.json")
    of = {"_LOW": "lowest rate", "": "middle", "_HIGH": "highest", "_MS_SSIM": "middle, MS-SSIM"}
    texts, verdicts = [], []
    for row in rows:
        if row["codec"] == "bmshj2018_hyperprior":
            where = of[row["setting"].removeprefix("IMAGENETTE_N48_M64")]
            shares = f"{100 * row['empty_channels']:.0f} %, {100 * row['zero_values']:.0f} %"
            texts.append(f"{where}: {shares}")
            if where != "highest":  # of which nothing is claimed
                verdicts.append((where, HOLDS if row["empty_channels"] >= 0.5 else FAILS))
    return (
        "of 64 channels (192 and 320 in the paper, more than it takes), those with less than 5 % of values that are "
        "not 0, and values that are 0: " + "; ".join(texts),
        "; ".join(f"{where}: {verdict}" for where, verdict in verdicts),
    )


def not_run(results: Results) -> Finding:
    """What nobody has run."""
    raise Missing("nothing")


class Claim(NamedTuple):
    """Attributes: paper and place, what it says, its figures, the judge, and the runs to repeat it."""

    place: str
    text: str
    figures: str
    judge: Callable[[Results], Finding]
    command: str


def _zoo(*patterns: str) -> str:
    return "`run.py --only " + " ".join(f"'{p}'" for p in patterns) + "`"


_RATES = ("low", "hyperprior", "high")
_LOWEST = "head-torfason2018-low"
_NOT_LOWEST = "not the paper's lowest rate, and at 0.30 bpp it has the opposite"
_STARTED = ("fa_cresnet39-started", "cresnet39+scales-started", "resnet50v1.5")


def _at_rates(first: str, second: str) -> list[tuple[str, str]]:
    """Pairs of 002's networks; the lowest rate has FA modules of its own."""
    few = {"low": "fa_cresnet39+few-started"}
    return [(f"head-{c}-{few.get(c, first)}", f"head-{c}-{second}") for c in _RATES]


def _variant(text: str, figures: str, *variants: str) -> Claim:
    """A row of 002's table 3: FA-cResNet-39 beside what it is with one thing changed."""
    pairs = [(f"head-hyperprior-{_STARTED[0]}", f"head-hyperprior-fa_cresnet39+{name}-started") for name in variants]
    return Claim("002, T3", text, figures, compare(pairs), _zoo(*(second for _, second in pairs), pairs[0][0]))


CLAIMS = [
    Claim("000, Fig. 2", "log variance and discrete entropy of features are linearly correlated", "0.99",
          entropy_correlation, "`entropy_correlation.py`"),
    Claim("000, T2", "ResNet-41, trained on sizes that vary and reading latents of images of mixed size, is as good "
          "as ResNet-50 on decoded images of one size", "73.3 against 72.8 at 0.30 bpp",
          compare([("sizes-variable", "sizes-decoded")]), _zoo("sizes-variable*", "sizes-decoded")),
    Claim("000, T2", "the same at 0.098, 0.49 and 0.72 bpp, and MobileNetV2-45", "+3.3, -0.5, -0.5; +2.4, +1.2, +0.2, "
          "+0.1", not_run, ""),
    Claim("000, T5", "ResNet-41 on latents of one size comes within 3.5 points of ResNet-50 on decoded images (T2)",
          "69.3 against 72.8 at 0.30 bpp", compare([("head-choi2019-resnet41", "head-choi2019-resnet50")], -3.5),
          _zoo("codec-choi2019", "head-choi2019-resnet*")),
    Claim("000, T5", "at the highest rate within 2.9 points", "71.7 against 74.6 at 0.72 bpp",
          compare([("head-choi2019-high-resnet41", "head-choi2019-high-resnet50")], -2.9),
          _zoo("codec-choi2019-high", "head-choi2019-high-*")),
    Claim("000, T5", "and is better at the lowest", "67.7 against 67.1 at 0.098 bpp",
          elsewhere(compare([("head-choi2019-low-resnet41", "head-choi2019-low-resnet50")]), _NOT_LOWEST),
          _zoo("codec-choi2019-low", "head-choi2019-low-resnet*")),
    Claim("000, T6", "MobileNetV2-45 on latents of one size comes within 3.2 points of MobileNetV2 on decoded images "
          "(T2)", "65.1 against 68.2 at 0.30 bpp",
          compare([("head-choi2019-mobilenet_v2_45", "head-choi2019-mobilenet_v2")], -3.2),
          _zoo("codec-choi2019", "head-choi2019-mobilenet*")),
    Claim("000, T3", "training on sizes that vary is better than on one size, for images of mixed size",
          "+4.1 over 224, +3.4 over 448",
          compare([("sizes-variable", "sizes-fixed-small"), ("sizes-variable", "sizes-fixed-large")]),
          _zoo("sizes-variable*", "sizes-fixed-*")),
    Claim("000, T3", "and for MobileNetV2-45, too", "+4.3, +3.1", not_run, ""),
    Claim("000, T3", "of two sizes, the larger one is better", "69.0 against 68.7 at 0.30 bpp; +0.3 to +1.3",
          compare([("sizes-fixed-large", "sizes-fixed-small")]), _zoo("sizes-fixed-*")),
    Claim("000, T4", "an eighth of the channels does as well as all", "73.3, 72.8, 71.0 at 0.30 bpp", channels,
          _zoo("head-choi2019-resnet41*")),
    Claim("000, T4", "at the lowest rate an eighth does better than all", "72.9 against 70.4 at 0.098 bpp",
          elsewhere(compare([("head-choi2019-low-resnet41-8channels", "head-choi2019-low-resnet41")]), _NOT_LOWEST),
          _zoo("codec-choi2019-low", "head-choi2019-low-resnet41*")),
    Claim("000, T5", "ResNet-41 on choi2019's latents is better than cResNet-39 and cResNet-51 on torfason2018's at "
          "like rates", "69.3 against 64.1, 64.8 at 0.30 and 0.33 bpp",
          compare([("head-choi2019-resnet41", f"head-torfason2018-cresnet{n}") for n in (39, 51)]),
          _zoo("codec-torfason2018", "codec-choi2019", "head-torfason2018-cresnet39", "head-torfason2018-cresnet51",
               "head-choi2019-resnet41")),
    Claim("000, T6", "MobileNetV2-45 likewise", "65.1 against 64.1",
          compare([("head-choi2019-mobilenet_v2_45", "head-torfason2018-cresnet39")]),
          _zoo("codec-torfason2018", "codec-choi2019", "head-torfason2018-cresnet39", "head-choi2019-mobilenet_v2_45")),
    Claim("000, T5", "segmentation from latents is better than 001's", "64.5 against 60.8 mIoU at 0.30 and 0.33 bpp",
          segmentation_of_codecs, _zoo("segmenter-choi2019-latents", "segmenter-torfason2018-latents")),
    Claim("000, T7", "variable sizes help with large images (672 to 1120 pixels; here a quarter of that)",
          "76.4 against 75.5", compare([("large-variable", "large-fixed")]), _zoo("large-*")),
    Claim("000, Fig. 3", "the codec is better than JPEG and JPEG 2000 in PSNR", "a plot",
          beats("choi2019", ("JPEG", "JPEG 2000"), ("psnr",)), "`rate_distortion.py`"),
    Claim("000, Fig. 3", "and than 001's codec", "+3.3 dB", better_codec, "`rate_distortion.py`"),
    Claim("001, T2", "cResNet-39 on latents comes within 1.1 points of ResNet-50 on decoded images",
          "64.1 against 65.2 at 0.33 bpp",
          compare([("head-torfason2018-cresnet39", "head-torfason2018-resnet50")], -1.1),
          _zoo("codec-torfason2018", "head-torfason2018-cresnet39*", "head-torfason2018-resnet50*")),
    Claim("001, T2", "the same at 0.098 and 0.635 bpp", "54.3 against 55.3, 67.2 against 68.3",
          compare([(f"head-torfason2018-{rate}-cresnet39", f"head-torfason2018-{rate}-resnet50")
                   for rate in ("low", "high")], -1.1),
          _zoo("codec-torfason2018-*", "head-torfason2018-low-*", "head-torfason2018-high-*")),
    Claim("001, T2", "cResNet-51, which costs what ResNet-50 does, comes within 0.6 points of it",
          "55.2, 64.8, 67.7 against 55.3, 65.2, 68.3 at 0.098, 0.33 and 0.635 bpp",
          compare([(f"head-torfason2018{rate}-cresnet51", f"head-torfason2018{rate}-resnet50")
                   for rate in ("-low", "", "-high")], -0.6),
          _zoo("codec-torfason2018*", "head-torfason2018*-cresnet51", "head-torfason2018*-resnet50")),
    Claim("001, T2", "cResNet-72, which costs what ResNet-71 does, comes within half a point of it",
          "55.8 against 56.2 at 0.098 bpp", compare([(f"{_LOWEST}-cresnet72", f"{_LOWEST}-resnet71")], -0.5),
          _zoo("codec-torfason2018-low", f"{_LOWEST}-*")),
    Claim("001, T2", "deeper networks read latents better: cResNet-51 and -72 against cResNet-39",
          "64.8 against 64.1 at 0.33 bpp; 55.2 and 55.8 against 54.3 at 0.098",
          compare([(f"{head}-cresnet{n}", f"{head}-cresnet39")
                   for head in ("head-torfason2018", _LOWEST) for n in (51, 72)]),
          _zoo("codec-torfason2018", "codec-torfason2018-low", "head-torfason2018-cresnet*", f"{_LOWEST}-cresnet*")),
    Claim("001, Fig. 6", "with decoding counted, latents give more for their computation: cResNet-72 (5.4 G) is "
          "better than ResNet-50 (6.7 G; 7.4 G with the decoder as it is here)",
          "55.8 against 55.3 at 0.098 bpp (T2; the figure has top-5)",
          compare([(f"{_LOWEST}-cresnet72", f"{_LOWEST}-resnet50")]), _zoo("codec-torfason2018-low", f"{_LOWEST}-*")),
    Claim("001, Fig. 6", "cResNet-39 costs less than ResNet-50, even before decoding is counted",
          "2.95 G against 3.86 G", computation,
          _zoo("codec-torfason2018", "head-torfason2018-cresnet39", "head-torfason2018-resnet50")),
    Claim("001, T2", "segmentation by cResNet-39-d on latents comes up to ResNet-50-d on decoded images",
          "60.8 against 60.8 mIoU at 0.33 bpp, 53.5 against 53.0 at 0.098",
          compare([(f"segmenter-torfason2018{rate}-latents", f"segmenter-torfason2018{rate}-decoded")
                   for rate in ("", "-low")], 0.0, "miou"),
          _zoo("segmenter-torfason2018-latents", "segmenter-torfason2018-low-*", "segmenter-torfason2018-decoded")),
    Claim("001, T2", "at the highest rate it comes within 1.2 points", "61.9 against 63.0 mIoU at 0.635 bpp",
          compare([("segmenter-torfason2018-high-latents", "segmenter-torfason2018-high-decoded")], -1.2, "miou"),
          _zoo("segmenter-torfason2018-high-*")),
    Claim("001, T2", "segmentation by cResNet-51-d, which costs what ResNet-50-d does, comes within 0.2 points of it",
          "54.6, 61.1, 62.9 against 53.0, 60.8, 63.0 mIoU at 0.098, 0.33 and 0.635 bpp",
          compare([(f"segmenter-torfason2018{rate}-latents51", f"segmenter-torfason2018{rate}-decoded")
                   for rate in ("-low", "", "-high")], -0.2, "miou"),
          _zoo("segmenter-torfason2018*-latents51", "segmenter-torfason2018*-decoded")),
    Claim("001, Fig. 6", "segmentation by cResNet-72-d and ResNet-71-d", "55.8 against 54.6 mIoU at 0.098 bpp",
          not_run, ""),
    Claim("001, Fig. 7", "joint training improves classification beyond its control, a codec trained on alone, a "
          "network trained on that from scratch, and then for longer (here cResNet-39 at 0.30 bpp, there cResNet-51)",
          "+2 at 0.098 bpp",
          compare([("joint-both", "joint-control-longer")]), _zoo("joint-*")),
    Claim("001, Fig. 7", "and segmentation, from the codec and the classifier that were trained jointly", "+1.7 mIoU "
          "at 0.098 bpp", compare([("segmenter-joint-both", "segmenter-joint-control-longer")], 0.0, "miou"),
          _zoo("segmenter-joint-*")),
    Claim("001, 6.2", "training the codec alone on already helps classification slightly", "a plot",
          compare([("joint-control-classifier", "head-torfason2018-cresnet39")]),
          _zoo("head-torfason2018-cresnet39*", "joint-control*")),
    Claim("001, 6.2", "but hardly segmentation", "a plot", not_run, ""),
    Claim("001, Fig. 11", "joint training gives better SSIM and MS-SSIM than training the codec alone", "a plot",
          joint_quality, _zoo("joint-both", "joint-control")),
    Claim("001, A.7", "but less PSNR", "a plot", joint_psnr, _zoo("joint-both", "joint-control")),
    Claim("001, Fig. 8", "the codec is better than JPEG and JPEG 2000 in SSIM and MS-SSIM", "a plot",
          beats("torfason2018", ("JPEG", "JPEG 2000"), ("ssim", "ms_ssim")), "`rate_distortion.py`"),
    Claim("001, Fig. 12", "the order of run times is that of computation, of networks alone and with decoding",
          "a plot, of a GPU",
          run_time, "`runtime.py`"),
    Claim("002, T1", "FA-cResNet-39 is better than cResNet-39 with scales, at every rate (there MINC-2500's textures "
          "and codecs for MS-SSIM, here Imagenette and MSE)", "+2.9, +3.6, +3.5",
          compare(_at_rates(*_STARTED[:2])),
          _zoo("codec-low", "codec-high", "head-*-resnet50v1.5", "head-*-started")),
    Claim("002, T1", "and than ResNet-50 on decoded images, of textures", "+1.4, +1.2, +2.0",
          compare(_at_rates(_STARTED[0], _STARTED[2])),
          _zoo("codec-low", "codec-high", "head-*-resnet50v1.5", "head-*-fa_cresnet39*-started")),
    Claim("002, Fig. 6", "on ImageNet it is behind ResNet-50 on decoded images by a small gap (read as two points)",
          "a plot", compare(_at_rates(_STARTED[0], _STARTED[2]), -2.0),
          _zoo("codec-low", "codec-high", "head-*-resnet50v1.5", "head-*-fa_cresnet39*-started")),
    Claim("002, Fig. 6", "on ImageNet it is better than 001's cResNet-39 and -51, and than 000's ResNet-41 on images "
          "of one size", "a plot",
          compare([(f"head-hyperprior-{_STARTED[0]}", f"head-{rival}")
                   for rival in ("torfason2018-cresnet39", "torfason2018-cresnet51", "choi2019-resnet41")]),
          _zoo("codec-torfason2018", "codec-choi2019", "head-torfason2018-cresnet39", "head-torfason2018-cresnet51",
               "head-choi2019-resnet41", "head-hyperprior-resnet50v1.5", "head-hyperprior-fa_cresnet39-started")),
    Claim("002, Fig. 6", "and up to 0.4 bpp than Chen et al.'s network, which reads what the first layers of a decoder "
          "make of latents (not implemented)", "a plot", not_run, ""),
    Claim("not in 002", "taking over the layers of a ResNet-50 (which had 8 epochs itself) is better than random "
          "values, after 8 epochs", "none",
          compare([(f"head-hyperprior-{name}-started", f"head-hyperprior-{name}")
                   for name in ("fa_cresnet39", "cresnet39+scales")]),
          _zoo("head-hyperprior-fa_cresnet39*", "head-hyperprior-cresnet39+scales", "head-hyperprior-*-started")),
    Claim("002, T3", "reading scales too helps", "+0.7, +1.0, +1.2",
          compare([("head-hyperprior-fa_cresnet39-started", "head-hyperprior-fa_cresnet39-scales-started")]),
          _zoo("head-hyperprior-fa_cresnet39-started", "head-hyperprior-fa_cresnet39-scales-started")),
    Claim("002, T3", "attention and enhancement are better together than either", "76.5 against 74.5, 75.9",
          compare([("head-hyperprior-fa_cresnet39-started", f"head-hyperprior-cresnet39+scales+{part}-started")
                   for part in ("attention", "enhancement")]),
          _zoo("head-hyperprior-resnet50v1.5", "head-hyperprior-*-started")),
    Claim("002, T3", "at the lowest rate, two to four convolutions in FA modules are better than three to five",
          "73.1 against 72.6 at 0.089 bpp",
          compare([("head-low-fa_cresnet39+few-started", "head-low-fa_cresnet39-started")]),
          _zoo("codec-low", "head-low-resnet50v1.5", "head-low-fa_cresnet39*-started")),
    Claim("002, T3", "FA modules do more for latents than for decoded images: FA-cResNet-39 is better than FA-ResNet "
          "(from random values)", "73.1, 76.5, 77.9 against 73.0, 75.7, 75.4",
          compare([(f"head-hyperprior-{_STARTED[0]}", "head-hyperprior-fa_resnet50")]),
          _zoo("head-hyperprior-resnet50v1.5", f"head-hyperprior-{_STARTED[0]}", "head-hyperprior-fa_resnet50")),
    _variant("FA modules are better behind the first block of a layer than behind its last", "76.5 against 75.5",
             "last"),
    _variant("two attention poolings are better than the maximum, the mean, both, and one attention pooling",
             "76.5 against 75.8, 76.1, 76.1, 75.5", "pool-max", "pool-avg", "pool-max-avg", "pool-shared"),
    _variant("attention is better before the convolutions than on the skip connection, before the sum, and after it",
             "76.5 against 76.0, 74.9, 75.0", "cau-skip", "cau-inner", "cau-post"),
    _variant("weights and biases of channels are better than either", "76.5 against 75.4, 74.9", "scale", "bias"),
    _variant("a bottleneck of a sixteenth is better than one linear layer, and than two without reduction",
             "76.5 against 74.5, 74.8", "1fc", "r1"),
    _variant("more convolutions in later layers are better than as many in each", "76.5 against 76.3", "convs444"),
    Claim("002, T3", "five other bottlenecks and six other numbers of convolutions; and table 3 at the lowest and the "
          "highest rate, but for what stands here", "74.7 to 76.5 at the middle rate", not_run, ""),
    Claim("002, Fig. 2", "at low and middle rates a high portion of channels (read as half of them) has no or few "
          "values that are not 0 (read as 5 %)", "a plot", sparsity, "`sparsity.py`"),
    Claim("002, Fig. 7", "a codec for MS-SSIM serves FA-cResNet-39 better than one for MSE, at like rates", "a plot",
          compare([("head-ms-ssim-fa_cresnet39-started", "head-hyperprior-fa_cresnet39-started")]),
          _zoo("codec-ms-ssim", "head-hyperprior-resnet50v1.5", "head-*-fa_cresnet39-started")),
    Claim("002, T2", "parameters and multiply-adds of the network", "42.0 M; nine figures",
          lambda results: ("all nine are reproduced by counting, in the tests", HOLDS), "`pytest tests`"),
    Claim("002, T2", "the network is as fast as ResNet-50, and decoding takes a hundred times as long",
          "1.8 and 2.2 ms of a device that it does not name; 289 ms", inference_time, "`runtime.py --paper 002`"),
    Claim("003, T1", "a converted network is the pixel network, to floating-point error (against a decoder that "
          "neither rounds nor clamps)", "9e-06 on CIFAR-10",
          conversion, "`conversion_deviation.py`"),
    Claim("003, T1", "the MNIST and CIFAR-100 columns", "3e-06, 1e-06", not_run, ""),
    Claim("003, Fig. 4a", "ASM has a smaller error than APX", "a plot", relu_error, "`relu_rmse.py`"),
    Claim("003, Fig. 4b", "ASM is more accurate than APX in a converted network", "a plot",
          approximations(("converted", "asm"), ("converted", "apx")), "`accuracy.py`"),
    Claim("003, Fig. 4c", "and in a network that was trained with it: here trained on for 200 steps", "a plot",
          approximations(("adapted", "asm"), ("adapted", "apx")), "`accuracy.py`"),
    Claim("003, Fig. 4c", "and from random values, for 700 steps", "a plot",
          approximations(("scratch", "asm"), ("scratch", "apx")), "`accuracy.py`"),
    Claim("003, Fig. 4c", "weights learn to cope with the approximation (beyond new statistics of batch norm)",
          "a plot", approximations(("adapted", "asm"), ("recalibrated", "asm")), "`accuracy.py`"),
    Claim("003, Fig. 5", "the JPEG network is faster than decoding and a pixel network", "a plot, of a GPU",
          throughput, "`throughput.py`"),
    Claim("004, T1", "the network without rate is as good as DeiT-S", "81.7 against 79.9 (DeiT-S)",
          compare([("icat-first", "icat-pixels")], -1.0), _zoo("icat-first", "icat-pixels")),
    Claim("004, T1", "on iNaturalist 2019 too; and against ResNet-50 and Swin-T", "", not_run, ""),
    Claim("004, Fig. 4", "rate and distortion are better than those of JPEG and JPEG 2000", "a plot",
          icat_rate("JPEG", "JPEG 2000"), "`rate_distortion.py`"),
    Claim("004, Fig. 4", "and than those of bmshj2018 and mbt2018_mean", "a plot",
          icat_rate("bmshj2018_hyperprior", "mbt2018_mean"), "`rate_distortion.py`"),
    Claim("004, Fig. 4", "and at low rates like BPG's (for which there is no encoder at hand)", "a plot", not_run, ""),
    Claim("004, Fig. 4", "mbt2018_mean's are alike when it is trained on together with a classifier", "a plot",
          rival_trained_on, _zoo("codec-mbt2018-mean", "icat-rival")),
    Claim("004, Fig. 4", "rate and accuracy are better than those of mbt2018_mean + classifier, trained on together",
          "a plot", icat_accuracy, _zoo("icat-first", "icat-second", "codec-mbt2018-mean", "icat-rival")),
    Claim("004, Fig. 4", "and than those of classifiers that were not trained on, behind other codecs, with ResNet-50 "
          "and Swin-T", "a plot", not_run, ""),
    Claim("004, Fig. 6", "larger alpha / beta trades PSNR for accuracy; aggregation helps both", "a plot",
          icat_ablations, _zoo("icat-*")),
    Claim("004, Fig. 7", "encoding costs what mbt2018_mean's does, rebuilding more, classifying less", "a plot",
          icat_cost, "`cost.py`"),
]  # fmt: skip
"""In the order of the papers."""


def judged(claim: Claim, results: Results) -> Finding:
    """What was found for a claim, and the verdict."""
    try:
        return claim.judge(results)
    except Missing:
        return "", NOT_RUN
