"""The verdicts on claims, from results that are made up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from studies import claims, cost, judges, runtime
from studies import verdicts as v

import cdzoo


def test_what_decides_a_claim() -> None:
    share = lambda mean, images=922: v.Measured(mean, 0.0, 1, v.share_error(mean, images))  # noqa: E731
    # two standard errors of 60 against 50 % of 922 images are 4.6 points
    assert share(60.0).error == pytest.approx(100 * (0.6 * 0.4 / 922) ** 0.5)
    assert v.at_least(share(60.0), share(50.0)) == v.HOLDS
    assert v.at_least(share(50.0), share(60.0)) == v.FAILS
    assert v.at_least(share(54.0), share(50.0)) == v.UNDECIDED
    assert v.at_least(share(54.0), share(50.0), -1.0) == v.HOLDS
    assert v.at_least(share(46.0), share(50.0), 1.0) == v.FAILS
    assert v.at_least(share(60.0, 100), share(50.0, 100)) == v.UNDECIDED
    # seeds have their images in common: more of them take nothing off the first part
    assert v.Measured(60.0, 2.0, 4, v.share_error(60.0, 922), 2.0).error == pytest.approx(
        (share(60.0).error ** 2 + 1) ** 0.5
    )
    assert v.overall([v.HOLDS, v.HOLDS]) == v.HOLDS
    assert v.overall([v.HOLDS, v.FAILS, v.HOLDS]) == "1 of 3: does not hold; 2 of 3: holds"
    curve = [(0.1, 20.0), (0.3, 24.0), (0.4, 30.0)]
    assert [v.interpolate(curve, rate) for rate in (0.05, 0.2, 0.35, 9.0)] == pytest.approx([20, 22, 27, 30])


def test_claims_without_results_are_not_run(tmp_path: Path) -> None:
    results = v.Results(tmp_path)
    by_place = {claim.text: claims.judged(claim, results)[1] for claim in claims.CLAIMS}
    assert len(by_place) == len(claims.CLAIMS)
    for claim in claims.CLAIMS:
        # results of other folders, and a figure of the tests
        if claim.paper != claims.EHRLICH and (claim.paper, claim.where) not in {
            (claims.WANG, "Fig. 2"),
            (claims.DENG, "T2"),
        }:
            assert claims.judged(claim, results) == ("", v.NOT_RUN), claim
    run = {"run": "recipes/heads.py", "minutes": 1, "steps": 1}
    for name, top1 in (("head-x", 60.0), ("head-x-seed1", 64.0), ("head-y", 40.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**run, "metrics": {"top1": top1, "images": 922}}))
    results = v.Results(tmp_path)
    assert str(results.measured("head-x")) == "62.0 ± 2.0 (2 seeds)"
    (tmp_path / "bare.json").write_text(json.dumps({**run, "metrics": {"top1": 60.0}}))
    assert v.Results(tmp_path).measured("bare").sampling == pytest.approx(v.share_error(60.0, 922))
    text, verdict = v.compare([("head-x", "head-y"), ("head-y", "head-z")])(results)
    assert verdict == v.HOLDS
    assert text == "62.0 ± 2.0 (2 seeds) against 40.0; 1 of 2 not run"
    assert v.elsewhere(v.compare([("head-x", "head-y")]), "at another rate")(results) == (
        "62.0 ± 2.0 (2 seeds) against 40.0: at another rate",
        v.UNDECIDED,
    )
    assert results.measured("head-x").deviation == pytest.approx(8**0.5)
    # a run with one seed has the deviation of those that have several, each pair with its own mean
    for name, top1 in (("head-w", 10.0), ("head-w-seed1", 12.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**run, "metrics": {"top1": top1}}))
    segmenter = {**run, "metrics": {"miou": 40.0, "miou_error": 2.5, "images": 101}}
    (tmp_path / "segmenter.json").write_text(json.dumps(segmenter))
    results = v.Results(tmp_path)
    assert results.measured("head-y").deviation == results.deviation() == pytest.approx(((8 + 2) / 2) ** 0.5)
    # scenes are no shares; and of the seeds of other runs
    assert results.measured("segmenter", "miou").error == pytest.approx(math.hypot(2.5, 5**0.5))


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((60.0, 0.3), (40.0, 0.3), "holds"),
        ((60.0, 0.2), (40.0, 0.3), "holds"),
        ((60.0, 0.305), (40.0, 0.3), "holds"),  # as good as equal
        ((60.0, 0.4), (40.0, 0.3), "not decided at this scale"),  # with more bits
        ((40.0, 0.4), (60.0, 0.3), "does not hold"),
        ((40.0, 0.2), (60.0, 0.3), "not decided at this scale"),  # with fewer
    ],
)
def test_what_was_won_with_more_bits_is_not_decided(
    tmp_path: Path,
    first: tuple[float, float],
    second: tuple[float, float],
    verdict: str,
) -> None:
    for name, (top1, bpp) in (("head-x", first), ("head-y", second)):
        metrics = {"top1": top1, "images": 922, "bpp": bpp}
        (tmp_path / f"{name}.json").write_text(json.dumps({"run": "recipes/heads.py", "metrics": metrics}))
    text, found = v.compare([("head-x", "head-y")])(v.Results(tmp_path))
    assert found == verdict
    rates = dict.fromkeys(f"{rate:.2f}" for _, rate in (first, second))
    assert text.endswith(f" at {' and '.join(rates)} bpp")


def test_cheaper_is_judged_by_the_counts(tmp_path: Path) -> None:
    for ours, verdict in ((12.0, v.HOLDS), (20.0, v.FAILS)):
        for name, mmacs in (("cresnet39", ours), ("resnet50", 19.0)):
            run = {"run": "recipes/heads.py", "metrics": {"mmacs": mmacs}}
            (tmp_path / f"head-torfason2018-{name}.json").write_text(json.dumps(run))
        assert judges.computation(v.Results(tmp_path))[1] == verdict


def test_what_decides_the_claims_of_icat(tmp_path: Path) -> None:

    def found(judge: str, **runs: tuple[float, float, float]) -> tuple[str, str]:
        for name, (top1, bpp, psnr) in runs.items():
            metrics = {"top1": top1, "val_bpp": bpp, "val_psnr": psnr, "images": 24, "measured_on": "kodak"}
            content = {"run": "icat2022.py", "minutes": 1, "steps": 1, "metrics": metrics}
            (tmp_path / f"icat-{name}.json").write_text(json.dumps(content))
        result: tuple[str, str] = getattr(judges, judge)(v.Results(tmp_path))
        return result

    # better at fewer bits decides, better at more bits does not; likewise worse
    for ours, rate, verdict in (
        (60.0, 0.4, v.HOLDS), (60.0, 0.6, v.UNDECIDED), (30.0, 0.6, v.FAILS), (30.0, 0.4, v.UNDECIDED),
        (45.0, 0.4, v.UNDECIDED),
    ):  # fmt: skip
        second, rival = (ours, rate, 20.0), (45.0, 0.5, 20.0)
        text, decided = found("icat_accuracy", second=second, rival=rival)
        assert decided == verdict, (ours, rate)
        assert text == f"{ours} at {rate:.2f} bpp against 45.0 at 0.50 bpp, estimated"

    ablations = {"second-ratio50": (40.0, 0.6, 21.0), "second": (50.0, 0.5, 20.0), "second-plain": (30.0, 0.5, 19.0)}
    text, verdict = found("icat_ablations", **ablations, **{"second-ratio200": (60.0, 0.4, 19.0)})
    assert verdict == v.HOLDS
    assert "ratio 50: 40.0 at 0.60 bpp, 21.00 dB; ratio 100: 50.0 at 0.50 bpp, 20.00 dB" in text
    # fewer labels for fewer bits is no verdict, nor are better labels and worse images with aggregation
    changed = {"second-ratio200": (40.0, 0.2, 19.0), "second-plain": (30.0, 0.5, 25.0)}
    assert found("icat_ablations", **changed)[1] == "1 of 3: holds; 2 of 3: not decided at this scale"

    rows = {
        "icat_small": {"encode": 1.0, "rebuild": 3.0, "classify": 4.0},
        "a": dict.fromkeys(("encode", "rebuild"), 1.1),
    }
    for classify, verdict in ((5.0, v.HOLDS), (3.9, v.FAILS)):
        rows["a"]["classify"] = classify
        (tmp_path / "cost.json").write_text(json.dumps(rows))
        assert judges.icat_cost(v.Results(tmp_path))[1] == verdict


def test_what_decides_the_claims_that_have_figures_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def write(name: str, content: Any) -> None:
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(content))

    def judge(name: str) -> tuple[str, str]:
        result: tuple[str, str] = getattr(judges, name)(v.Results(tmp_path / "results"))
        return result

    # Wang et al.: another codec's curve at this codec's rate
    points = [("torfason2018", 0.1, 20.0), ("torfason2018", 0.3, 24.0), ("choi2019", 0.2, 22.5)]
    write("rate_distortion", [{"codec": k, "bpp": r, "psnr": q} for k, r, q in points])
    assert judge("better_codec") == ("0.20 bpp: 22.5 dB against 22.0 dB", v.HOLDS)
    write("rate_distortion", [{"codec": k, "bpp": r, "psnr": q - (k == "choi2019")} for k, r, q in points])
    assert judge("better_codec")[1] == v.FAILS
    write("rate_distortion", [{"codec": k, "bpp": r + (k == "choi2019"), "psnr": q} for k, r, q in points])
    assert judge("better_codec")[1] == v.UNDECIDED  # beyond the other's rates

    # Torfason et al.: both measures, at one rate
    for ssim, ms_ssim, bpp, verdict in (
        (0.8, 0.95, 0.3, v.HOLDS), (0.8, 0.95, 0.32, v.UNDECIDED), (0.8, 0.9, 0.3, v.UNDECIDED),
        (0.699, 0.929, 0.3, v.UNDECIDED), (0.6, 0.9, 0.3, v.FAILS),
    ):  # fmt: skip
        for name, values in (("joint-both", (ssim, ms_ssim, bpp)), ("joint-control", (0.7, 0.93, 0.3))):
            metrics = dict(zip(("ssim", "ms_ssim", "bpp_real"), values, strict=True))
            write(name, {"run": "torfason2018.py", "metrics": metrics})
        assert judge("joint_quality")[1] == verdict, (ssim, ms_ssim, bpp)
    for psnr, bpp, verdict in (
        (24.9, 0.3, v.HOLDS), (24.9, 0.32, v.HOLDS), (24.9, 0.28, v.UNDECIDED),
        (25.1, 0.3, v.FAILS), (25.1, 0.32, v.UNDECIDED),
    ):  # fmt: skip
        for name, values in (("joint-both", (psnr, bpp)), ("joint-control", (25.0, 0.3))):
            metrics = dict(zip(("psnr", "bpp_real"), values, strict=True))
            write(name, {"run": "torfason2018.py", "metrics": metrics})
        assert judge("joint_psnr")[1] == verdict, (psnr, bpp)

    # Bai et al.: beyond a rival's last point, that point; what it gains by bits decides nothing
    points = [("icat_small", 1.0, 30.0), ("JPEG", 0.5, 20.0), ("JPEG", 1.5, 30.0), ("bmshj2018", 0.5, 29.0)]
    write("rate_distortion", [{"codec": k, "bpp": r, "psnr": q} for k, r, q in points])
    text, verdict = judges.icat_rate("JPEG", "bmshj2018")(v.Results(tmp_path / "results"))
    assert (text, verdict) == ("30.0 dB at 1.00 bpp (JPEG 25.0, bmshj2018 29.0 at 0.50)", v.UNDECIDED)
    assert judges.icat_rate("JPEG")(v.Results(tmp_path / "results"))[1] == v.HOLDS
    for psnr, bpp in ((28.0, 0.3), (27.0, 0.3), (28.0, 0.4), (28.0, 0.2)):
        for name, values in (("icat-rival", (psnr, bpp)), ("codec-mbt2018-mean", (28.2, 0.3))):
            write(name, {"run": "", "metrics": dict(zip(("psnr", "bpp_real"), values, strict=True))})
        assert judge("rival_trained_on")[1] == (v.HOLDS if (psnr, bpp) == (28.0, 0.3) else v.UNDECIDED)

    # Wang et al., table 5: rates are those of the codecs
    for ours, bpp, verdict in ((45.0, 0.3, v.HOLDS), (45.0, 0.35, v.UNDECIDED), (35.0, 0.35, v.FAILS)):
        for codec, miou, rate in (("choi2019", ours, bpp), ("torfason2018", 40.0, 0.3)):
            write(f"segmenter-{codec}-latents", {"run": "", "metrics": {"miou": miou, "miou_error": 0.5}})
            write(f"codec-{codec}", {"run": "", "metrics": {"bpp_real": rate}})
        text, found = judge("segmentation_of_codecs")
        assert found == verdict
        assert text == f"{ours} against 40.0 at {bpp:.2f} and 0.30 bpp of Kodak"

    # Deng & Karam: each rate for itself
    settings = {"_LOW": 0.6, "": 0.4, "_HIGH": 0.2}
    rows = [{"codec": "bmshj2018_hyperprior", "setting": f"IMAGENETTE_N48_M64{s}", "empty_channels": v,
             "zero_values": 0.9} for s, v in settings.items()]  # fmt: skip
    write("sparsity", [*rows, {"codec": "choi2019", "setting": "IMAGENETTE", "empty_channels": 0, "zero_values": 0}])
    text, verdict = judge("sparsity")
    assert verdict == "lowest rate: holds; middle: does not hold"
    assert text.endswith("lowest rate: 60 %, 90 %; middle: 40 %, 90 %; highest: 20 %, 90 %")

    # Deng & Karam: within a tenth; a hundred times
    for ours, decoding, verdict in ((10.9, 1001.0, "holds; decoding: holds"), (11.1, 999.0, None)):
        times = {"reading": 1.0, "decoding": decoding, "fa_cresnet39": ours, "resnet50": 10.0}
        write("runtime-002", [{"network": k, "milliseconds": v} for k, v in times.items()])
        assert judge("inference_time")[1] == f"speed: {verdict or 'does not hold; decoding: does not hold'}"

    # Ehrlich & Davis: at each number of frequencies
    monkeypatch.setattr(judges, "HERE", tmp_path)
    folder = tmp_path / "jpeg_domain" / "results"
    folder.mkdir(parents=True)
    accuracy = [
        {
            "how": how,
            "relu": relu,
            "frequencies": n,
            "network": network,
            "top1": 50.0 + network + (relu == "asm") * gain,
        }
        for how, networks in (("converted", 2), ("adapted", 1))
        for relu in ("asm", "apx")
        for n in range(1, 16)
        for network in range(networks)
        for gain in [20 if n < 4 else 0]
    ]
    (folder / "accuracy.json").write_text(json.dumps({"files": 5000, "accuracy": accuracy}))
    asm_or_apx = judges.approximations(("converted", "asm"), ("converted", "apx"))
    text, verdict = asm_or_apx(v.Results(tmp_path / "results"))
    assert verdict == f"3 of 14: holds; 11 of 14: {v.UNDECIDED}"
    assert text == "frequencies: top-1 2: 70.5 / 50.5, 4: 50.5 / 50.5, 6: 50.5 / 50.5, 8: 50.5 / 50.5, 12: 50.5 / 50.5"
    # of the networks that have both treatments
    learned = judges.approximations(("adapted", "asm"), ("converted", "apx"))
    text, found = learned(v.Results(tmp_path / "results"))
    assert found == verdict
    assert text.startswith("frequencies: top-1 2: 70.0 / 50.0, 4: 50.0 / 50.0")
    # one network has the deviation of others: where those differ by 28 points, 20 are not enough
    for row in accuracy:
        row["top1"] += 27 * (row["network"] == 1)
    (folder / "accuracy.json").write_text(json.dumps({"files": 5000, "accuracy": accuracy}))
    assert learned(v.Results(tmp_path / "results"))[1] == v.UNDECIDED
    with pytest.raises(v.MissingError):
        judges.approximations(("scratch", "asm"), ("scratch", "apx"))(v.Results(tmp_path / "results"))


def test_counted_cost_is_the_published_one() -> None:
    assert cost.count(cost.timm.create_model("deit_small_patch16_224"))[""] == pytest.approx(
        4.6, abs=0.05
    )  # DeiT's paper
    codec = cdzoo.codecs.mbt2018_mean(N=4, M=6)
    # four layers of 5x5, each at half the side of the one before; deconvolutions cost what they are given
    sides = [14 << n for n in range(4)]
    by_hand = sum(25 * side**2 * a * b for side, a, b in zip(sides, (6, 4, 4, 4), (4, 4, 4, 3), strict=True))
    gdn = sum((2 * side) ** 2 * 4 * 4 for side in sides[:3])
    assert cost.count(codec)["g_s"] == pytest.approx((by_hand + gdn) / 1e9)


def test_run_times_stand_beside_published_computation(tmp_path: Path) -> None:
    rows = runtime.measure(batch=1, rounds=1, N=8)
    counted = {row["network"]: row["gmacs"] for row in rows}
    # Torfason et al., table 1
    published = {"resnet50": 3.86, "resnet71": 5.38, "cresnet39": 2.95, "cresnet51": 3.83, "cresnet72": 5.36}
    assert {name: counted[name] for name in published} == pytest.approx(published, abs=0.015)
    assert all(row["milliseconds"] > 0 and row["batch"] == 1 for row in rows)
    assert {row["network"] for row in rows if row["reads"] == "pixels"} == {"resnet50", "resnet71"}

    other = runtime.measure("deng2023", size=64, rounds=1, N=8, M=12)
    assert [row["network"] for row in other] == ["reading", "decoding", "fa_cresnet39", "resnet50"]
    assert [row["reads"] for row in other] == ["bits", "bits", "latents", "pixels"]
    assert all(row["milliseconds"] > 0 and row["batch"] == 1 for row in other)

    def verdict(**milliseconds: float) -> str:
        times = {"decoder": 1.0, "cresnet39": 1.0, "resnet50": 2.0, "cresnet51": 1.9, "resnet71": 3.0, **milliseconds}
        made = [{**row, "milliseconds": times[row["network"]]} for row in rows if row["network"] in times]
        (tmp_path / "runtime.json").write_text(json.dumps(made))
        return str(judges.run_time(v.Results(tmp_path))[1])

    assert verdict() == v.HOLDS
    assert verdict(cresnet51=2.1, decoder=0.01) == v.HOLDS  # within a twentieth of ResNet-50's computation
    # five pairs differ by more, alone and with decoding; cResNet-39 is slower than cResNet-51 in both
    assert verdict(cresnet39=1.95) == "2 of 10: does not hold; 8 of 10: holds"
    # slow decoding: with it, ResNet-71 takes longer than what computes more
    rows.append({"network": "more", "reads": "latents", "gmacs": 6.0, "milliseconds": 0.0})
    assert verdict(more=3.5, decoder=0.01) == v.HOLDS
    assert verdict(more=3.5) == "1 of 18: does not hold; 17 of 18: holds"
    there = json.loads((tmp_path / "runtime.json").read_text())
    assert verdict(more=3.5, decoder=0.01) == v.HOLDS
    (tmp_path / "runtime-accelerator.json").write_text(json.dumps([{**row, "device": "a GPU"} for row in there]))
    text, found = judges.run_time(v.Results(tmp_path))
    assert found == "one core of a CPU: holds; a GPU: 1 of 18: does not hold; 17 of 18: holds"
    assert text.startswith("one core of a CPU: decoding")
    assert "; a GPU: decoding" in text
