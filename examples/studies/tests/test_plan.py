"""The plan of all trainings: its commands parse, runs are shared and resumed, published figures are of what ships."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import shlex
import sys
from pathlib import Path

import data
import evaluate
import pytest
import torch
from studies import claims, plan, publish, run

import cdzoo
from cdzoo.weights.enums import WeightsFolder

EXAMPLES = Path(__file__).parents[2]


def test_every_planned_run_is_a_command_whose_needs_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    for planned in plan.PLAN:
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
        behind = {need for p in plan.PLAN if p.name in planned.needs for need in p.needs}
        assert set(planned.needs) <= read <= {*planned.needs, *behind}, planned.name
        assert args.threads == 1


def test_seeds_read_what_has_their_seed() -> None:
    by_name = {p.name: p for p in plan.PLAN}
    assert len({p.name for p in plan.SEEDS}) == len(plan.SEEDS)
    for planned in plan.SEEDS:
        name, _, seed = planned.name.rpartition("-seed")
        first = by_name[name]
        assert planned.arguments.endswith(f" --seed {seed}")
        for need, theirs in zip(first.needs, planned.needs, strict=True):
            assert theirs == (need if need.startswith("codec-") else f"{need}-seed{seed}")
            assert f"{{home}}/{theirs}/" in planned.arguments


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan.Planned
    (tmp_path / "job.py").write_text(SCRIPT)
    jobs = [planned("a", "job.py", "fail"), planned("b", "job.py", "x {home}", ("a",)), planned("c", "job.py", "y")]
    monkeypatch.setattr(run, "PLAN", jobs)
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

    jobs[0] = jobs[0]._replace(arguments="fine")
    assert go("--list")[1].split()[-6:] == ["open", "a", "open", "b", "done", "c"]
    before = (home / "c" / "result.json").stat().st_mtime_ns
    assert go("--only", "a", "b")[0] == 0
    assert {p.stem for p in (tmp_path / "results").iterdir()} == {"a", "b", "c"}
    assert (home / "c" / "result.json").stat().st_mtime_ns == before


def test_what_a_claim_names_is_planned_and_comes_with_its_needs() -> None:
    names = {planned.name: planned for planned in plan.PLAN}
    for claim in claims.CLAIMS:
        if claim.command.startswith("`run.py"):
            patterns = shlex.split(claim.command.strip("`"))[2:]
            for pattern in patterns:
                assert fnmatch.filter(names, pattern), pattern
            wanted = [planned.name for planned in run.wanted(patterns)]
            assert all(set(names[name].needs) <= set(wanted) for name in wanted)
            assert wanted == [name for name in names if name in wanted]
    assert [p.name for p in run.wanted(["head-low-fa_cresnet39-started"])] == [
        "codec-low",
        "head-low-resnet50v1.5",
        "head-low-fa_cresnet39-started",
    ]


def test_a_run_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    planned = plan.Planned("a", "job.py", "")
    mine = run.take(planned, tmp_path)
    assert mine is not None
    assert run.take(planned, tmp_path) is None
    mine.close()  # which the end of a process does, however it comes
    again = run.take(planned, tmp_path)
    assert again is not None
    again.close()


def test_what_is_published_reaches_its_card( tmp_path: Path, three_classes: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
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
    planned = [
        plan.Planned("codec-x", "recipes/heads.py", "--cpu-clock"),
        plan.Planned("head-x", "recipes/heads.py", "y"),
    ]
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
    files = data.list_classes(three_classes)[1]["val"]
    network = cdzoo.from_pretrained(to / "head-x-folder").eval()
    hits = 0
    for x, label in data.Images(files, data.whole(64)):
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
