"""The experiments over all papers: every planned run parses, runs are shared and resumed, figures are of what ships."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import cdzoo
from cdzoo.codecs import encode_jpeg, write_jpeg
from cdzoo.weights.enums import WeightsFolder

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = [EXAMPLES / name for name in ("zoo", "recipes", "jpeg_resnet_paper")]
SCRIPTS = [file.stem for folder in FOLDERS for file in folder.glob("*.py")]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts by name; nothing of them is left behind, for their names are anybody's."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in FOLDERS]
    try:
        yield {
            name: importlib.import_module(name)
            for name in ("plan", "run", "heads", "evaluate", "publish", "data", "claims", "report", "cost", "runtime")
        }
    finally:
        sys.path[:] = before
        for name in SCRIPTS:
            sys.modules.pop(name, None)


def heads(scripts: dict[str, ModuleType], out: Path, *more: str) -> dict[str, Any]:
    return scripts["heads"].main(["classifier", "--smoke", "--out", str(out), *more])


@pytest.fixture
def three_classes(scripts: dict[str, ModuleType], tmp_path: Path) -> Path:
    return scripts["data"].generate_classes(tmp_path / "three", classes=3, images=4)


def test_every_planned_run_is_a_command_whose_needs_come_first(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    for planned in scripts["plan"].PLAN:
        assert planned.name not in seen
        assert set(planned.needs) <= seen, planned.name
        seen.add(planned.name)
        recipe = importlib.import_module(Path(planned.script).stem)
        assert (EXAMPLES / planned.script).exists()
        words = shlex.split(planned.arguments.format(data="D", kodak="K", camvid="V", home="H", cache="C"))

        def give(args: argparse.Namespace) -> argparse.Namespace:
            """Nothing but that."""
            return args

        give.__name__ = words[0]
        with monkeypatch.context() as patch:
            patch.setattr(recipe, words[0], give)
            args = recipe.main([*words, "--out", "O"])
        read = {Path(w).parts[1] for w in words if w.startswith("H/")}
        behind = {need for p in scripts["plan"].PLAN if p.name in planned.needs for need in p.needs}
        assert set(planned.needs) <= read <= {*planned.needs, *behind}, planned.name
        assert args.threads == 1


@pytest.mark.parametrize("model", ["cresnet39+scales", "mobilenet_v2_45", "mobilenet_v2"])
def test_networks_are_trained_alike(scripts: dict[str, ModuleType], tmp_path: Path, model: str) -> None:
    more = ["--rates", "0.001", "0.5", "--enlarge", "2" if model.startswith("cres") else "1", "--centre"]
    found = heads(scripts, tmp_path, "--model", model, *more)["metrics"]
    best = min(found["search"], key=lambda rate: found["search"][rate])
    assert found["lr"] == float(best)
    assert found["reads"] == ("decoded" if model == "mobilenet_v2" else "latents")
    assert found["bpp"] > 0
    if found["reads"] == "decoded":
        assert (tmp_path / "classifier.pt").exists()
        return
    network = cdzoo.from_pretrained(tmp_path / "classifier")
    assert network.codec_fingerprint == found["fingerprint"]
    assert network.transforms.size == ((6, 6) if model.startswith("cres") else None)  # 48 pixels, stride 16, doubled
    assert len(network.transforms.mean) == 12


def test_original_images_and_few_channels(scripts: dict[str, ModuleType], tmp_path: Path, three_classes: Path) -> None:
    codec = cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12)
    cdzoo.save_pretrained(codec, tmp_path / "codec")
    more = ["--codec", str(tmp_path / "codec"), "--data", str(three_classes), "--rates", "0.001"]
    found = heads(scripts, tmp_path / "few", "--model", "resnet41", "--channels", "3", "--no-mirror", *more)["metrics"]
    assert len(cdzoo.from_pretrained(tmp_path / "few" / "classifier").select.indices) == 3
    assert found["search"] == {}
    assert found["lr"] == 0.001
    # with a cache, the original images are the squares that codecs are given, whole and in a random view
    cached = ["--data", str(three_classes), "--rates", "0.001", "--cache", str(tmp_path / "cache"), "--views", "1"]
    found = heads(scripts, tmp_path / "original", "--model", "mobilenet_v2", *cached)["metrics"]
    assert found["reads"] == "decoded"  # by the codec of a smoke run
    args = argparse.Namespace(
        data=three_classes, cache=tmp_path / "cache", views=1, size=64, crop=48, held=False, smoke=False, limit=None,
        workers=0,
    )  # fmt: skip
    run = argparse.Namespace(args=args, device=torch.device("cpu"), out=tmp_path)
    inputs = sys.modules["classification"].ClassifierInputs(run, None, "original")
    files = sorted(folder.name for folder in (tmp_path / "cache").glob("*-squares"))
    assert [name.split("-")[0:2] for name in files] == [["train64", "0"], ["train64", "1"], ["val64", "0"]]
    image, label = inputs.val[0]
    assert torch.equal(image, scripts["data"].whole(64)(scripts["data"].read(inputs.files["val"][0][0])))
    assert label == inputs.files["val"][0][1]
    (x, _) = inputs(next(iter(scripts["data"].batches(inputs.val, 2))), train=False)
    assert x.shape == (2, 3, 48, 48)


def test_seeds_read_what_has_their_seed(scripts: dict[str, ModuleType]) -> None:
    plan = scripts["plan"]
    by_name = {p.name: p for p in plan.PLAN}
    assert len({p.name for p in plan.SEEDS}) == len(plan.SEEDS)
    for planned in plan.SEEDS:
        name, _, seed = planned.name.rpartition("-seed")
        first = by_name[name]
        assert planned.arguments.endswith(f" --seed {seed}")
        for need, theirs in zip(first.needs, planned.needs, strict=True):
            assert theirs == (need if need.startswith("codec-") else f"{need}-seed{seed}")
            assert f"{{home}}/{theirs}/" in planned.arguments


def test_a_head_starts_from_layers_that_are_frozen_at_first(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads(scripts, tmp_path / "pixels", "--model", "resnet50v1.5", "--rates", "0.001")
    start = tmp_path / "pixels" / "classifier"
    before = cdzoo.from_pretrained(start).state_dict()
    more = ["--model", "fa_cresnet39", "--enlarge", "2", "--start", str(start), "--frozen", "0.5", "--epochs", "1"]
    starts: list[int] = []
    order = sys.modules["training"].BatchOrder
    iterate = order.__iter__
    monkeypatch.setattr(order, "__iter__", lambda self: starts.append(self.start) or iterate(self))
    found = heads(scripts, tmp_path / "latents", *more, "--rates", "0.001", "0.004")["metrics"]
    monkeypatch.undo()
    saved = [torch.load(tmp_path / "latents" / n / "checkpoint.pt", weights_only=True) for n in ("frozen", "training")]
    assert starts == [0, 0, 0, saved[0]["step"]]  # the second stage goes on where the first ended
    assert [len(s["optimizer"]["param_groups"]) for s in saved] == [1, 2]
    rate, rate_of_known = (group["lr"] for group in saved[1]["optimizer"]["param_groups"])
    assert rate_of_known == pytest.approx(rate / 10)
    rows = [json.loads(r) for r in (tmp_path / "latents" / "training" / "history.jsonl").read_text().splitlines()]
    assert rows[0]["lr"] < 0.75 * found["lr"]  # half a cosine is half over
    folders = {name: tmp_path / "latents" / name for name in ("search-0.001", "search-0.004", "frozen", "training")}
    after = {
        name: {
            key.removeprefix("model."): tensor
            for key, tensor in torch.load(folder / "checkpoint.pt", weights_only=True)["task"].items()
        }
        for name, folder in folders.items()
    }
    known = [k for k, tensor in after["training"].items() if k in before and before[k].shape == tensor.shape]
    assert {"layer2.1.conv1.weight", "layer4.0.conv3.weight", "fc.weight", "layer3.1.bn1.running_mean"} <= set(known)
    for name in ("search-0.001", "search-0.004", "frozen"):
        assert all(torch.equal(after[name][k], before[k]) for k in known), name
    moved = [k for k in known if not k.endswith("num_batches_tracked")]
    assert not any(torch.equal(after["training"][k], before[k]) for k in moved)
    parameters = dict(cdzoo.from_pretrained(tmp_path / "latents" / "classifier").named_parameters())
    assert found["taken_over"] == sum(parameters[k].numel() for k in known if k in parameters)
    for refused in (["--frozen", "0.5"], ["--start", str(start), "--frozen", "1.5"]):
        with pytest.raises(SystemExit, match="needs --start, and is at most"):
            heads(scripts, tmp_path / "none", "--model", "fa_cresnet39", *refused)
    cdzoo.save_pretrained(cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12), tmp_path / "codec")
    with pytest.raises(SystemExit, match="could take over"):
        heads(scripts, tmp_path / "none", "--model", "fa_cresnet39", "--start", str(tmp_path / "codec"))


# -- the runner --------------------------------------------------------------------------------------------------

SCRIPT = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[-1])
if "fail" in sys.argv:
    sys.exit(3)
(out / "frozen").mkdir(parents=True, exist_ok=True)
(out / "history.jsonl").write_text(json.dumps({"step": 1, "top1": 5.0}) + "\\n" + json.dumps({"step": 2}) + "\\n")
(out / "frozen" / "history.jsonl").write_text(json.dumps({"step": 3, "top1": 4.0}) + "\\n")
result = {"command": "/somewhere", "metrics": {"top1": 5.0}, "minutes": 1, "steps": 2, "machine": {}}
(out / "result.json").write_text(json.dumps(result))
"""


def test_runs_are_done_once_in_order_and_a_failure_stops_what_needs_it_only(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, planned = scripts["run"], scripts["plan"].Planned
    (tmp_path / "job.py").write_text(SCRIPT)
    plan = [planned("a", "job.py", "fail"), planned("b", "job.py", "x {home}", ("a",)), planned("c", "job.py", "y")]
    monkeypatch.setattr(run, "PLAN", plan)
    monkeypatch.setattr(run, "EXAMPLES", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    home = tmp_path / "home"

    def go(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", "--home", str(home), *more])
        with pytest.raises(SystemExit) as stopped:
            run.main()
        return int(stopped.value.code or 0), capsys.readouterr().out

    code, text = go()
    assert code == 1
    assert "a\n  failed" in text
    assert text.split()[-6:] == ["open", "a", "open", "b", "done", "c"]
    kept = json.loads((tmp_path / "results" / "c.json").read_text())
    assert kept["run"] == "job.py y"
    assert kept["history"] == [{"stage": "frozen", "step": 3, "top1": 4.0}, {"step": 1, "top1": 5.0}]
    assert str(tmp_path) not in json.dumps(kept)

    plan[0] = plan[0]._replace(arguments="fine")
    assert go("--list")[1].split()[-6:] == ["open", "a", "open", "b", "done", "c"]
    before = (home / "c" / "result.json").stat().st_mtime_ns
    assert go("--only", "a", "b")[0] == 0
    assert {p.stem for p in (tmp_path / "results").iterdir()} == {"a", "b", "c"}
    assert (home / "c" / "result.json").stat().st_mtime_ns == before


def test_what_a_claim_names_is_planned_and_comes_with_its_needs(scripts: dict[str, ModuleType]) -> None:
    names = {planned.name: planned for planned in scripts["plan"].PLAN}
    for claim in scripts["claims"].CLAIMS:
        if claim.command.startswith("`run.py"):
            patterns = shlex.split(claim.command.strip("`"))[2:]
            for pattern in patterns:
                assert fnmatch.filter(names, pattern), pattern
            wanted = [planned.name for planned in scripts["run"].wanted(patterns)]
            assert all(set(names[name].needs) <= set(wanted) for name in wanted)
            assert wanted == [name for name in names if name in wanted]
    assert [p.name for p in scripts["run"].wanted(["head-low-fa_cresnet39-started"])] == [
        "codec-low",
        "head-low-resnet50v1.5",
        "head-low-fa_cresnet39-started",
    ]


def test_a_run_that_another_process_has_is_left_to_it(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    run, planned = scripts["run"], scripts["plan"].Planned("a", "job.py", "")
    mine = run.take(planned, tmp_path)
    assert mine is not None
    assert run.take(planned, tmp_path) is None
    mine.close()  # which the end of a process does, however it comes
    again = run.take(planned, tmp_path)
    assert again is not None
    again.close()


# -- figures -----------------------------------------------------------------------------------------------------


def test_what_is_published_reaches_its_card(
    scripts: dict[str, ModuleType], tmp_path: Path, three_classes: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    publish, evaluate, plan = scripts["publish"], scripts["evaluate"], scripts["plan"]
    home, to = tmp_path / "home", tmp_path / "to"
    torch.manual_seed(0)
    cdzoo.save_pretrained(
        cdzoo.codecs.torfason2018(latent_channels=4, N=4), home / "codec-x" / "codec", dtype=torch.float16
    )
    codec = cdzoo.from_pretrained(home / "codec-x" / "codec")
    model = cdzoo.models.cresnet39(in_channels=4, width=0.05, num_classes=3)
    meta = {"classes": ["class0", "class1", "class2"], "input": {"reads": "latents", "size": 64, "crop": 48}}
    cdzoo.save_pretrained(model, home / "head-x" / "classifier", codec=codec, meta=meta)
    result = {"metrics": {}, "minutes": 3.2, "steps": 7, "machine": {"threads": 1}}
    for name in ("codec-x", "head-x"):
        (home / name / "result.json").write_text(json.dumps(result))
    planned = [plan.Planned("codec-x", "zoo/heads.py", "--cpu-clock"), plan.Planned("head-x", "zoo/heads.py", "y")]
    entries = [publish.Shipped(p.name, f"{p.name}-folder", "X", "Title", "Text.", ("Limit.",)) for p in planned]
    monkeypatch.setattr(publish, "PLAN", planned)
    monkeypatch.setattr(publish, "SHIPPED", entries)
    arguments = ["publish.py", "--home", str(home), "--to", str(to), "--imagenette", str(three_classes)]
    monkeypatch.setattr(sys, "argv", arguments)
    publish.main()
    card = (to / "head-x-folder" / "README.md").read_text()
    for text in ("# Title", "7 steps", "3 minutes", "Limit.", "research use", "bits per pixel", "top-1 (%)"):
        assert text in card, text

    written = WeightsFolder.from_path(to / "head-x-folder")
    assert written.config["codec"]["fingerprint"] == codec.fingerprint
    [(name, figures)] = written.meta["metrics"].items()
    assert name == "Imagenette validation, 6 images at 64 pixels, 48 at the centre"
    # the oracle: the same from latents, by hand
    files = scripts["data"].list_classes(three_classes)[1]["val"]
    network = cdzoo.from_pretrained(to / "head-x-folder").eval()
    hits = 0
    for x, label in scripts["data"].Images(files, scripts["data"].whole(64)):
        y = codec.encode(x[None]).y_hat[..., 1:7, 1:7]
        hits += int(network(y).argmax()) == label
    assert figures["top-1 (%)"] == pytest.approx(100 * hits / 6, abs=0.01)

    monkeypatch.setattr(evaluate, "_codec_of", lambda source: codec)  # where it is to be had is not the point here
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--imagenette", str(three_classes), str(to / "head-x-folder")])
    config = json.loads((to / "head-x-folder" / "config.json").read_text())
    for worse, code in ((0.0, 0), (0.6, 1)):
        config["meta"]["metrics"][name]["top-1 (%)"] = figures["top-1 (%)"] + worse
        (to / "head-x-folder" / "config.json").write_text(json.dumps(config))
        with pytest.raises(SystemExit) as stopped:
            evaluate.main()
        assert int(stopped.value.code) == code
        assert ("<-- differs" in capsys.readouterr().out) == bool(code)


def test_networks_of_files_are_measured_on_files(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(60) if scripts["data"].held_out(f"{n}.jpg")]
    for label in range(2):
        (tmp_path / "files" / f"class{label}").mkdir(parents=True)
    for number, name in enumerate(names):
        x = torch.full((1, 3, 32, 32), 0.2 + 0.1 * number)
        data = write_jpeg(encode_jpeg(x, subsampling="4:2:0" if number else "4:4:4"))[0]  # no batch holds both
        (tmp_path / "files" / f"class{number % 2}" / name).write_bytes(data)
    found = scripts["evaluate"].measure(
        cdzoo.models.JPEGResNet18_Weights.DEFAULT.value.source, {"imagenette": tmp_path / "files"}
    )
    [(name, figures)] = found.items()
    assert name == f"Imagenette validation, {len(names)} images"
    model = cdzoo.models.jpeg_resnet18(weights="DEFAULT").eval()
    right = [
        int(model(model.transforms(cdzoo.codecs.read_jpeg(tmp_path / "files" / f"class{n % 2}" / name))).argmax())
        == n % 2
        for n, name in enumerate(names)
    ]
    assert figures["top-1 (%)"] == pytest.approx(100 * sum(right) / len(right), abs=0.01)


# -- claims ------------------------------------------------------------------------------------------------------


def test_what_decides_a_claim(scripts: dict[str, ModuleType]) -> None:
    c = scripts["claims"]
    share = lambda mean, images=922: c.Measured(mean, 0.0, 1, c.share_error(mean, images))  # noqa: E731
    # two standard errors of 60 against 50 % of 922 images are 4.6 points
    assert share(60.0).error == pytest.approx(100 * (0.6 * 0.4 / 922) ** 0.5)
    assert c.at_least(share(60.0), share(50.0)) == c.HOLDS
    assert c.at_least(share(50.0), share(60.0)) == c.FAILS
    assert c.at_least(share(54.0), share(50.0)) == c.UNDECIDED
    assert c.at_least(share(54.0), share(50.0), -1.0) == c.HOLDS
    assert c.at_least(share(46.0), share(50.0), 1.0) == c.FAILS
    assert c.at_least(share(60.0, 100), share(50.0, 100)) == c.UNDECIDED
    # seeds have their images in common: more of them take nothing off the first part
    assert c.Measured(60.0, 2.0, 4, c.share_error(60.0, 922), 2.0).error == pytest.approx(
        (share(60.0).error ** 2 + 1) ** 0.5
    )
    assert c.overall([c.HOLDS, c.HOLDS]) == c.HOLDS
    assert c.overall([c.HOLDS, c.FAILS, c.HOLDS]) == "1 of 3: does not hold; 2 of 3: holds"
    curve = [(0.1, 20.0), (0.3, 24.0), (0.4, 30.0)]
    assert [c.interpolate(curve, rate) for rate in (0.05, 0.2, 0.35, 9.0)] == pytest.approx([20, 22, 27, 30])


def test_claims_without_results_are_not_run(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    c = scripts["claims"]
    results = c.Results(tmp_path)
    by_place = {claim.text: c.judged(claim, results)[1] for claim in c.CLAIMS}
    assert len(by_place) == len(c.CLAIMS)
    elsewhere = ("000, Fig. 2", "002, T2", "003")  # from results of other folders
    for claim in c.CLAIMS:
        if not claim.place.startswith(elsewhere):
            assert c.judged(claim, results) == ("", c.NOT_RUN), claim
    run = {"run": "zoo/heads.py", "minutes": 1, "steps": 1}
    for name, top1 in (("head-x", 60.0), ("head-x-seed1", 64.0), ("head-y", 40.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**run, "metrics": {"top1": top1, "images": 922}}))
    results = c.Results(tmp_path)
    assert str(results.measured("head-x")) == "62.0 ± 2.0 (2 seeds)"
    (tmp_path / "bare.json").write_text(json.dumps({**run, "metrics": {"top1": 60.0}}))
    assert c.Results(tmp_path).measured("bare").sampling == pytest.approx(c.share_error(60.0, 922))
    text, verdict = c.compare([("head-x", "head-y"), ("head-y", "head-z")])(results)
    assert verdict == c.HOLDS
    assert text == "62.0 ± 2.0 (2 seeds) against 40.0; 1 of 2 not run"
    assert c.elsewhere(c.compare([("head-x", "head-y")]), "at another rate")(results) == (
        "62.0 ± 2.0 (2 seeds) against 40.0: at another rate",
        c.UNDECIDED,
    )
    assert results.measured("head-x").deviation == pytest.approx(8**0.5)
    # a run with one seed has the deviation of those that have several, each pair with its own mean
    for name, top1 in (("head-w", 10.0), ("head-w-seed1", 12.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**run, "metrics": {"top1": top1}}))
    segmenter = {**run, "metrics": {"miou": 40.0, "miou_error": 2.5, "images": 101}}
    (tmp_path / "segmenter.json").write_text(json.dumps(segmenter))
    results = c.Results(tmp_path)
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
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    first: tuple[float, float],
    second: tuple[float, float],
    verdict: str,
) -> None:
    c = scripts["claims"]
    for name, (top1, bpp) in (("head-x", first), ("head-y", second)):
        metrics = {"top1": top1, "images": 922, "bpp": bpp}
        (tmp_path / f"{name}.json").write_text(json.dumps({"run": "zoo/heads.py", "metrics": metrics}))
    text, found = c.compare([("head-x", "head-y")])(c.Results(tmp_path))
    assert found == verdict
    rates = dict.fromkeys(f"{rate:.2f}" for _, rate in (first, second))
    assert text.endswith(f" at {' and '.join(rates)} bpp")


def test_cheaper_is_judged_by_the_counts(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    c = scripts["claims"]
    for ours, verdict in ((12.0, c.HOLDS), (20.0, c.FAILS)):
        for name, mmacs in (("cresnet39", ours), ("resnet50", 19.0)):
            run = {"run": "zoo/heads.py", "metrics": {"mmacs": mmacs}}
            (tmp_path / f"head-torfason2018-{name}.json").write_text(json.dumps(run))
        assert c.computation(c.Results(tmp_path))[1] == verdict


def test_what_decides_the_claims_of_icat(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    c = scripts["claims"]

    def found(judge: str, **runs: tuple[float, float, float]) -> tuple[str, str]:
        for name, (top1, bpp, psnr) in runs.items():
            metrics = {"top1": top1, "val_bpp": bpp, "val_psnr": psnr, "images": 24, "measured_on": "kodak"}
            content = {"run": "icat2022.py", "minutes": 1, "steps": 1, "metrics": metrics}
            (tmp_path / f"icat-{name}.json").write_text(json.dumps(content))
        result: tuple[str, str] = getattr(c, judge)(c.Results(tmp_path))
        return result

    # better at fewer bits decides, better at more bits does not; likewise worse
    for ours, rate, verdict in (
        (60.0, 0.4, c.HOLDS), (60.0, 0.6, c.UNDECIDED), (30.0, 0.6, c.FAILS), (30.0, 0.4, c.UNDECIDED),
        (45.0, 0.4, c.UNDECIDED),
    ):  # fmt: skip
        second, rival = (ours, rate, 20.0), (45.0, 0.5, 20.0)
        text, decided = found("icat_accuracy", second=second, rival=rival)
        assert decided == verdict, (ours, rate)
        assert text == f"{ours} at {rate:.2f} bpp against 45.0 at 0.50 bpp, estimated"

    ablations = {"second-ratio50": (40.0, 0.6, 21.0), "second": (50.0, 0.5, 20.0), "second-plain": (30.0, 0.5, 19.0)}
    text, verdict = found("icat_ablations", **ablations, **{"second-ratio200": (60.0, 0.4, 19.0)})
    assert verdict == c.HOLDS
    assert "ratio 50: 40.0 at 0.60 bpp, 21.00 dB; ratio 100: 50.0 at 0.50 bpp, 20.00 dB" in text
    # fewer labels for fewer bits is no verdict, nor are better labels and worse images with aggregation
    changed = {"second-ratio200": (40.0, 0.2, 19.0), "second-plain": (30.0, 0.5, 25.0)}
    assert found("icat_ablations", **changed)[1] == "1 of 3: holds; 2 of 3: not decided at this scale"

    rows = {
        "icat_small": {"encode": 1.0, "rebuild": 3.0, "classify": 4.0},
        "a": dict.fromkeys(("encode", "rebuild"), 1.1),
    }
    for classify, verdict in ((5.0, c.HOLDS), (3.9, c.FAILS)):
        rows["a"]["classify"] = classify
        (tmp_path / "cost.json").write_text(json.dumps(rows))
        assert c.icat_cost(c.Results(tmp_path))[1] == verdict


def test_what_decides_the_claims_that_have_figures_of_their_own(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = scripts["claims"]

    def write(name: str, content: Any) -> None:
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(content))

    def judge(name: str) -> tuple[str, str]:
        result: tuple[str, str] = getattr(c, name)(c.Results(tmp_path / "results"))
        return result

    # 000: another codec's curve at this codec's rate
    points = [("torfason2018", 0.1, 20.0), ("torfason2018", 0.3, 24.0), ("choi2019", 0.2, 22.5)]
    write("rate_distortion", [{"codec": k, "bpp": r, "psnr": q} for k, r, q in points])
    assert judge("better_codec") == ("0.20 bpp: 22.5 dB against 22.0 dB", c.HOLDS)
    write("rate_distortion", [{"codec": k, "bpp": r, "psnr": q - (k == "choi2019")} for k, r, q in points])
    assert judge("better_codec")[1] == c.FAILS
    write("rate_distortion", [{"codec": k, "bpp": r + (k == "choi2019"), "psnr": q} for k, r, q in points])
    assert judge("better_codec")[1] == c.UNDECIDED  # beyond the other's rates

    # 001: both measures, at one rate
    for ssim, ms_ssim, bpp, verdict in (
        (0.8, 0.95, 0.3, c.HOLDS), (0.8, 0.95, 0.32, c.UNDECIDED), (0.8, 0.9, 0.3, c.UNDECIDED),
        (0.699, 0.929, 0.3, c.UNDECIDED), (0.6, 0.9, 0.3, c.FAILS),
    ):  # fmt: skip
        for name, values in (("joint-both", (ssim, ms_ssim, bpp)), ("joint-control", (0.7, 0.93, 0.3))):
            metrics = dict(zip(("ssim", "ms_ssim", "bpp_real"), values, strict=True))
            write(name, {"run": "torfason2018.py", "metrics": metrics})
        assert judge("joint_quality")[1] == verdict, (ssim, ms_ssim, bpp)
    for psnr, bpp, verdict in (
        (24.9, 0.3, c.HOLDS), (24.9, 0.32, c.HOLDS), (24.9, 0.28, c.UNDECIDED),
        (25.1, 0.3, c.FAILS), (25.1, 0.32, c.UNDECIDED),
    ):  # fmt: skip
        for name, values in (("joint-both", (psnr, bpp)), ("joint-control", (25.0, 0.3))):
            metrics = dict(zip(("psnr", "bpp_real"), values, strict=True))
            write(name, {"run": "torfason2018.py", "metrics": metrics})
        assert judge("joint_psnr")[1] == verdict, (psnr, bpp)

    # 004: beyond a rival's last point, that point; what it gains by bits decides nothing
    points = [("icat_small", 1.0, 30.0), ("JPEG", 0.5, 20.0), ("JPEG", 1.5, 30.0), ("bmshj2018", 0.5, 29.0)]
    write("rate_distortion", [{"codec": k, "bpp": r, "psnr": q} for k, r, q in points])
    text, verdict = c.icat_rate("JPEG", "bmshj2018")(c.Results(tmp_path / "results"))
    assert (text, verdict) == ("30.0 dB at 1.00 bpp (JPEG 25.0, bmshj2018 29.0 at 0.50)", c.UNDECIDED)
    assert c.icat_rate("JPEG")(c.Results(tmp_path / "results"))[1] == c.HOLDS
    for psnr, bpp in ((28.0, 0.3), (27.0, 0.3), (28.0, 0.4), (28.0, 0.2)):
        for name, values in (("icat-rival", (psnr, bpp)), ("codec-mbt2018-mean", (28.2, 0.3))):
            write(name, {"run": "", "metrics": dict(zip(("psnr", "bpp_real"), values, strict=True))})
        assert judge("rival_trained_on")[1] == (c.HOLDS if (psnr, bpp) == (28.0, 0.3) else c.UNDECIDED)

    # 000, table 5: rates are those of the codecs
    for ours, bpp, verdict in ((45.0, 0.3, c.HOLDS), (45.0, 0.35, c.UNDECIDED), (35.0, 0.35, c.FAILS)):
        for codec, miou, rate in (("choi2019", ours, bpp), ("torfason2018", 40.0, 0.3)):
            write(f"segmenter-{codec}-latents", {"run": "", "metrics": {"miou": miou, "miou_error": 0.5}})
            write(f"codec-{codec}", {"run": "", "metrics": {"bpp_real": rate}})
        text, found = judge("segmentation_of_codecs")
        assert found == verdict
        assert text == f"{ours} against 40.0 at {bpp:.2f} and 0.30 bpp of Kodak"

    # 002: each rate for itself
    settings = {"_LOW": 0.6, "": 0.4, "_HIGH": 0.2}
    rows = [{"codec": "bmshj2018_hyperprior", "setting": f"IMAGENETTE_N48_M64{s}", "empty_channels": v,
             "zero_values": 0.9} for s, v in settings.items()]  # fmt: skip
    write("sparsity", [*rows, {"codec": "choi2019", "setting": "IMAGENETTE", "empty_channels": 0, "zero_values": 0}])
    text, verdict = judge("sparsity")
    assert verdict == "lowest rate: holds; middle: does not hold"
    assert text.endswith("lowest rate: 60 %, 90 %; middle: 40 %, 90 %; highest: 20 %, 90 %")

    # 002: within a tenth; a hundred times
    for ours, decoding, verdict in ((10.9, 1001.0, "holds; decoding: holds"), (11.1, 999.0, None)):
        times = {"reading": 1.0, "decoding": decoding, "fa_cresnet39": ours, "resnet50": 10.0}
        write("runtime-002", [{"network": k, "milliseconds": v} for k, v in times.items()])
        assert judge("inference_time")[1] == f"speed: {verdict or 'does not hold; decoding: does not hold'}"

    # 003: at each number of frequencies
    monkeypatch.setattr(c, "HERE", tmp_path / "zoo")
    folder = tmp_path / "jpeg_resnet_paper" / "results"
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
    asm_or_apx = c.approximations(("converted", "asm"), ("converted", "apx"))
    text, verdict = asm_or_apx(c.Results(tmp_path / "results"))
    assert verdict == f"3 of 14: holds; 11 of 14: {c.UNDECIDED}"
    assert text == "frequencies: top-1 2: 70.5 / 50.5, 4: 50.5 / 50.5, 6: 50.5 / 50.5, 8: 50.5 / 50.5, 12: 50.5 / 50.5"
    # of the networks that have both treatments
    learned = c.approximations(("adapted", "asm"), ("converted", "apx"))
    text, found = learned(c.Results(tmp_path / "results"))
    assert found == verdict
    assert text.startswith("frequencies: top-1 2: 70.0 / 50.0, 4: 50.0 / 50.0")
    # one network has the deviation of others: where those differ by 28 points, 20 are not enough
    for row in accuracy:
        row["top1"] += 27 * (row["network"] == 1)
    (folder / "accuracy.json").write_text(json.dumps({"files": 5000, "accuracy": accuracy}))
    assert learned(c.Results(tmp_path / "results"))[1] == c.UNDECIDED
    with pytest.raises(c.Missing):
        c.approximations(("scratch", "asm"), ("scratch", "apx"))(c.Results(tmp_path / "results"))


def test_counted_cost_is_the_published_one(scripts: dict[str, ModuleType]) -> None:
    cost = scripts["cost"]
    assert cost.count(cost.timm.create_model("deit_small_patch16_224"))[""] == pytest.approx(
        4.6, abs=0.05
    )  # DeiT's paper
    codec = cdzoo.codecs.mbt2018_mean(N=4, M=6)
    # four layers of 5x5, each at half the side of the one before; deconvolutions cost what they are given
    sides = [14 << n for n in range(4)]
    by_hand = sum(25 * side**2 * a * b for side, a, b in zip(sides, (6, 4, 4, 4), (4, 4, 4, 3), strict=True))
    gdn = sum((2 * side) ** 2 * 4 * 4 for side in sides[:3])
    assert cost.count(codec)["g_s"] == pytest.approx((by_hand + gdn) / 1e9)


def test_run_times_stand_beside_published_computation(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    rows = scripts["runtime"].measure(batch=1, rounds=1, N=8)
    counted = {row["network"]: row["gmacs"] for row in rows}
    # 001, table 1
    published = {"resnet50": 3.86, "resnet71": 5.38, "cresnet39": 2.95, "cresnet51": 3.83, "cresnet72": 5.36}
    assert {name: counted[name] for name in published} == pytest.approx(published, abs=0.015)
    assert all(row["milliseconds"] > 0 and row["batch"] == 1 for row in rows)
    assert {row["network"] for row in rows if row["reads"] == "pixels"} == {"resnet50", "resnet71"}

    other = scripts["runtime"].measure("002", size=64, rounds=1, N=8, M=12)
    assert [row["network"] for row in other] == ["reading", "decoding", "fa_cresnet39", "resnet50"]
    assert [row["reads"] for row in other] == ["bits", "bits", "latents", "pixels"]
    assert all(row["milliseconds"] > 0 and row["batch"] == 1 for row in other)

    c = scripts["claims"]

    def verdict(**milliseconds: float) -> str:
        times = {"decoder": 1.0, "cresnet39": 1.0, "resnet50": 2.0, "cresnet51": 1.9, "resnet71": 3.0, **milliseconds}
        made = [{**row, "milliseconds": times[row["network"]]} for row in rows if row["network"] in times]
        (tmp_path / "runtime.json").write_text(json.dumps(made))
        return str(c.run_time(c.Results(tmp_path))[1])

    assert verdict() == c.HOLDS
    assert verdict(cresnet51=2.1, decoder=0.01) == c.HOLDS  # within a twentieth of ResNet-50's computation
    # five pairs differ by more, alone and with decoding; cResNet-39 is slower than cResNet-51 in both
    assert verdict(cresnet39=1.95) == "2 of 10: does not hold; 8 of 10: holds"
    # slow decoding: with it, ResNet-71 takes longer than what computes more
    rows.append({"network": "more", "reads": "latents", "gmacs": 6.0, "milliseconds": 0.0})
    assert verdict(more=3.5, decoder=0.01) == c.HOLDS
    assert verdict(more=3.5) == "1 of 18: does not hold; 17 of 18: holds"
    there = json.loads((tmp_path / "runtime.json").read_text())
    assert verdict(more=3.5, decoder=0.01) == c.HOLDS
    (tmp_path / "runtime-accelerator.json").write_text(json.dumps([{**row, "device": "a GPU"} for row in there]))
    text, found = c.run_time(c.Results(tmp_path))
    assert found == "one core of a CPU: holds; a GPU: 1 of 18: does not hold; 17 of 18: holds"
    assert text.startswith("one core of a CPU: decoding")
    assert "; a GPU: decoding" in text


def test_the_page_of_results_is_what_the_raw_files_give(scripts: dict[str, ModuleType]) -> None:
    written = (EXAMPLES.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == scripts["report"].page(scripts["claims"].Results())
