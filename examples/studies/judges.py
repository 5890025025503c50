"""Judge the claims that take more than comparing the accuracies of two networks.

A judge takes all results and returns the finding as text, and a verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from itertools import pairwise, permutations
from typing import Any

from .verdicts import (
    FAILS,
    HERE,
    HOLDS,
    SAME_RATE,
    UNDECIDED,
    Finding,
    Measured,
    MissingError,
    Results,
    at_least,
    interpolate,
    overall,
    share_error,
    unless_paid,
)


def better_codec(results: Results) -> Finding:
    """Wang et al., 4.5: compare the codec with that of Torfason et al., on Kodak at equal rate."""
    texts, verdicts = [], []
    rivals = results.curve("torfason2018", "psnr")
    for rate, quality in results.curve("choi2019", "psnr"):
        texts.append(f"{rate:.2f} bpp: {quality:.1f} dB against {interpolate(rivals, rate):.1f} dB")
        within = rivals[0][0] <= rate <= rivals[-1][0]
        verdicts.append((HOLDS if quality > interpolate(rivals, rate) else FAILS) if within else UNDECIDED)
    return "; ".join(texts), overall(verdicts)


def segmentation_of_codecs(results: Results) -> Finding:
    """Wang et al., table 5: latents of its codec and of Torfason et al.'s; the rates are those of Kodak."""
    codecs = ("choi2019", "torfason2018")
    ours, rival = (results.measured(f"segmenter-{codec}-latents", "miou") for codec in codecs)
    rates = [results.metrics(f"codec-{codec}")["bpp_real"] for codec in codecs]
    text = f"{ours} against {rival} at {rates[0]:.2f} and {rates[1]:.2f} bpp of Kodak"
    return text, unless_paid(at_least(ours, rival), *rates)


def entropy_correlation(results: Results) -> Finding:
    """Wang et al., figure 2."""
    found = results.file(HERE / "results" / "entropy_correlation.json")
    texts, verdicts = [], dict[str, list[str]]()
    for series in found["series"]:
        values = series["pearson"]
        texts.append(f"{series['codec']}: {values['whole']:.2f} over images, {values['maps']:.2f} over feature maps")
        for kind, value in values.items():
            verdicts.setdefault(kind, []).append(HOLDS if value > 0.97 else FAILS)
    said = {"of all values at once": overall(verdicts["whole"]), "of each feature map": overall(verdicts["maps"])}
    return "; ".join(texts), "; ".join(f"{kind}: {verdict}" for kind, verdict in said.items())


def channels(results: Results) -> Finding:
    """Wang et al., table 4."""
    names = ("head-choi2019-resnet41", "head-choi2019-resnet41-8channels", "head-choi2019-resnet41-4channels")
    whole, eighth, sixteenth = (results.measured(name) for name in names)
    return f"64, 8 and 4 of 64 channels: {whole}, {eighth}, {sixteenth}", at_least(eighth, whole, -0.6)


def computation(results: Results) -> Finding:
    """Torfason et al., figure 6."""
    ours, rival = (results.metrics(f"head-torfason2018-{name}")["mmacs"] for name in ("cresnet39", "resnet50"))
    text = f"multiply-adds of cResNet-39 and ResNet-50 at width 1/8, without decoding: {ours:.0f} M, {rival:.0f} M"
    return text, HOLDS if ours < rival else FAILS


def run_time(results: Results) -> Finding:
    """Torfason et al., figure 12: run times have the order of multiply-adds, for networks alone and with decoding."""
    texts, verdicts = [], []
    for name in ("runtime", "runtime-accelerator"):
        try:
            rows = results.file(results.folder / f"{name}.json")
        except MissingError:
            continue
        text, verdict = _order_of_times({row["network"]: row for row in rows})
        where = rows[0].get("device", "one core of a CPU")
        texts.append(f"{where}: {text}")
        verdicts.append((where, verdict))
    if not verdicts:
        raise MissingError("runtime.json")
    if len({verdict for _, verdict in verdicts}) == 1:
        return "; ".join(texts), verdicts[0][1]
    return "; ".join(texts), "; ".join(f"{where}: {verdict}" for where, verdict in verdicts)


def inference_time(results: Results) -> Finding:
    """Deng & Karam, table 2: the network is at most a tenth slower than ResNet-50; decoding takes much longer."""
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
        # networks within a twentieth of each other's multiply-adds are not compared
        verdicts += [
            HOLDS if slower > faster else FAILS
            for (more, slower), (less, faster) in permutations(totals, 2)
            if more > 1.05 * less
        ]
    return ", ".join(texts), overall(verdicts)


def conversion(results: Results) -> Finding:
    """Ehrlich & Davis, table 1."""
    rows = results.file(HERE / "jpeg_domain" / "results" / "conversion_deviation.json")["rows"]
    linear = [r for r in rows if r["against"] == "linear" and r["form"] != "explicit"]
    largest, changed = (
        f(r[k] for r in linear) for f, k in ((max, "largest_logit_difference"), (sum, "changed_decisions"))
    )
    files = sum(r["files"] for r in linear)
    return f"{changed} of {files:,} decisions, logits to {largest:.0e}", HOLDS if not changed else FAILS


def relu_error(results: Results) -> Finding:
    """Ehrlich & Davis, figure 4a."""
    found = results.file(HERE / "jpeg_domain" / "results" / "relu_rmse.json")
    pairs = list(zip(found["asm"], found["apx"], strict=True))[:14]
    texts = ", ".join(f"{n}: {pairs[n - 1][0]:.3f} / {pairs[n - 1][1]:.3f}" for n in (4, 8, 12))
    return f"RMSE of ASM / APX at {texts}", HOLDS if all(a < b for a, b in pairs) else FAILS


def joint_quality(results: Results) -> Finding:
    """Torfason et al., figure 11: SSIM after joint training, against training as long for images alone."""
    both, alone = (results.metrics(name) for name in ("joint-both", "joint-control"))
    texts = [f"{m['ssim']:.4f}, {m['ms_ssim']:.4f} at {m['bpp_real']:.3f} bpp" for m in (both, alone)]
    gains = [both[k] - alone[k] for k in ("ssim", "ms_ssim")]
    verdict = HOLDS if min(gains) > 0 else FAILS if max(gains) < -0.005 else UNDECIDED
    return " against ".join(texts), unless_paid(verdict, both["bpp_real"], alone["bpp_real"])


def joint_psnr(results: Results) -> Finding:
    """Torfason et al., A.7: PSNR after joint training is lower."""
    both, alone = (results.metrics(name) for name in ("joint-both", "joint-control"))
    texts = [f"{m['psnr']:.2f} dB at {m['bpp_real']:.3f} bpp" for m in (both, alone)]
    # the claim holds where the control is better, for which it may not have more bits
    verdict = HOLDS if both["psnr"] < alone["psnr"] else FAILS
    return " against ".join(texts), unless_paid(verdict, alone["bpp_real"], both["bpp_real"])


def approximations(first: tuple[str, str], second: tuple[str, str]) -> Callable[[Results], Finding]:
    """Ehrlich & Davis, figures 4b and 4c: of two pairs of treatment and ReLU, the first is more accurate.

    Each number of frequencies counts as one comparison. Both figures are means over the networks that have both
    treatments. A single network has the deviation between networks of the treatments that have several, with the same
    ReLU and number of frequencies.
    """

    def judge(results: Results) -> Finding:
        found = results.file(HERE / "jpeg_domain" / "results" / "accuracy.json")
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
            raise MissingError(f"{first}, {second}")
        return f"frequencies: top-1 {', '.join(texts)}", overall(verdicts)

    return judge


def throughput(results: Results) -> Finding:
    """Ehrlich & Davis, figure 5."""
    found = results.file(HERE / "jpeg_domain" / "results" / "throughput.json")["milliseconds"]
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
    """Bai et al., figure 4, rate and distortion; above a rival's last rate, its last PSNR is a lower bound."""

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
    """Bai et al., figure 4: ``mbt2018_mean`` before and after training with a classifier, on crops of 64 pixels."""
    after, before = results.metrics("icat-rival"), results.metrics("codec-mbt2018-mean")
    texts = [f"{m['psnr']:.1f} dB at {m['bpp_real']:.2f} bpp" for m in (after, before)]
    ratio = after["bpp_real"] / before["bpp_real"]
    alike = abs(after["psnr"] - before["psnr"]) < 0.5 and 1 / SAME_RATE < ratio < SAME_RATE
    return f"on Kodak, after crops of 64 pixels: {' against '.join(texts)}", HOLDS if alike else UNDECIDED


def icat_accuracy(results: Results) -> Finding:
    """Bai et al., figure 4, rate and accuracy after the same training time; the rival's codec had one more hour."""
    ours, rival = "icat-second", "icat-rival"
    return f"{_at_rate(results, ours)} against {_at_rate(results, rival)}, estimated", _dominates(results, ours, rival)


def icat_ablations(results: Results) -> Finding:
    """Bai et al., figure 6: rates differ, so a run decides only if it is better with fewer bits or worse with more."""
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
    """Bai et al., figure 7."""
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
    """Deng & Karam, figure 2: holds if half of the channels have almost no values other than 0."""
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
