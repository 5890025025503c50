"""Every command of every recipe on a few generated images; kills, and two processes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from oracles.slow import all_but_one

import cdzoo
from cdzoo.codecs import Codec

RECIPES = Path(training.__file__).parent

pytestmark = [
    # timm's augmentations and networks; theirs to resolve
    pytest.mark.filterwarnings("ignore::DeprecationWarning:timm"),
    pytest.mark.filterwarnings("ignore::FutureWarning:timm"),
    pytest.mark.filterwarnings("ignore:Overwriting:UserWarning"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def smoke(name: str, command: str, out: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(name).main([command, "--smoke", "--out", str(out), *more])
    return found


def test_presets_replace_the_papers_values_and_what_is_said_replaces_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(name: str, command: str, *argv: str) -> argparse.Namespace:
        def give(args: argparse.Namespace) -> argparse.Namespace:
            """Nothing but that."""
            return args

        give.__name__ = command
        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module(name), command, give)
            return importlib.import_module(name).main([command, *argv])

    args = parsed("torfason2018", "classifier")
    assert (args.epochs, args.batch, args.lr, args.weight_decay, args.width) == (28, 64, 0.025, 1e-4, 1.0)
    args = parsed("torfason2018", "segmenter")
    assert (args.steps, args.batch, args.lr, args.weight_decay, args.crop) == (20_000, 10, 0.001, 5e-4, 320)
    args = parsed("torfason2018", "joint")
    assert (args.epochs, args.lr, args.gamma, args.rate) == (9, 0.0025, 0.001, 0.635)
    args = parsed("torfason2018", "codec")
    assert (args.steps, args.batch, args.minutes) == (600_000, 30, None)
    args = parsed("torfason2018", "codec", "--small")
    assert args.minutes == 12
    assert args.batch == 16
    args = parsed("torfason2018", "codec", "--small", "--steps", "7", "--batch", "3")
    assert (args.minutes, args.steps, args.batch) == (None, 7, 3)
    args = parsed("wang2022", "codec")
    assert (args.lr, args.crop, args.N, args.latent_channels) == (1e-4, 256, 256, 256)
    args = parsed("wang2022", "classifier")
    assert (args.min_size, args.max_size) == (224, 448)
    args = parsed("icat2022", "first", "--small")
    assert (args.width, args.crop, args.batch, args.augment) == (0.34, 64, 32, "crop")
    args = parsed("icat2022", "second", "--smoke")
    assert (args.width, args.crop) == (0.17, 64)


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("torfason2018", ["codec", "classifier", "segmenter", "joint"]),
        ("wang2022", ["codec", "classifier", "segmenter", "multitask"]),
        ("fa_cresnet2023", ["anchor", "classifier"]),
        ("hyperprior", ["codec"]),
        ("icat2022", ["first", "pixels", "second", "rival"]),
        ("ehrlich2019", ["classifier", "photographs"]),
        ("heads", ["classifier"]),
        ("distill", ["distill"]),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], name: str, commands: list[str]) -> None:
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(name).main([command, "--help"])
        assert stopped.value.code == 0
        assert "--smoke" in capsys.readouterr().out


@pytest.mark.slow
def test_torfason2018(home: Path) -> None:
    result = smoke("torfason2018", "codec", home / "codec")
    assert result["metrics"].keys() >= {"bpp_real", "bpp_estimated", "psnr", "ssim"}
    codec = cdzoo.from_pretrained(home / "codec" / "codec")
    assert isinstance(codec, Codec)
    assert codec.calibrated
    folder = ["--codec", str(home / "codec" / "codec")]
    cached = ["--cache", str(home / "cache")]
    smoke("torfason2018", "classifier", home / "classifier", *folder, *cached, "--model", "cresnet39")
    smoke("torfason2018", "classifier", home / "pixels", *folder, *cached, "--model", "resnet50", "--ema", "0.9")
    trained = home / "classifier" / "classifier"
    joined = ["--classifier", str(trained)]
    smoke("torfason2018", "joint", home / "joint", *folder, *joined)
    smoke("torfason2018", "joint", home / "control", *folder, *joined, "--train", "codec", "--amp", "bf16")
    smoke("torfason2018", "joint", home / "longer", *folder, *joined, "--train", "classifier")

    for place, net in (("classifier", codec), ("joint", cdzoo.from_pretrained(home / "joint" / "codec"))):
        model = cdzoo.from_pretrained(home / place / "classifier")
        streams = net.compress(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        assert cdzoo.compose(net, model).from_streams(streams).shape == (2, 3)
        assert len(model.transforms.mean) == 16
    assert cdzoo.from_pretrained(home / "control" / "codec").fingerprint != codec.fingerprint
    assert not (home / "longer" / "codec").exists()

    smoke("torfason2018", "segmenter", home / "segmenter", *folder, *joined)
    segmenter = cdzoo.from_pretrained(home / "segmenter" / "segmenter")
    assert segmenter.transforms == cdzoo.from_pretrained(trained).transforms
    assert segmenter(segmenter.transforms(codec.encode(torch.rand(1, 3, 33, 40)))).shape == (1, 11, 33, 40)
    rows = [json.loads(line) for line in (home / "segmenter" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert "miou" in rows[-1]


@pytest.mark.slow
def test_codecs_that_start_from_others_and_are_written_in_16_bits(tmp_path: Path) -> None:
    smoke("hyperprior", "codec", tmp_path / "scale", "--half")
    first = cdzoo.from_pretrained(tmp_path / "scale" / "codec")
    more = ["--init", str(tmp_path / "scale" / "codec"), "--lr", "0"]
    smoke("hyperprior", "codec", tmp_path / "mean", *more, "--model", "mbt2018_mean", "--half")
    smoke("wang2022", "codec", tmp_path / "choi", *more, "--latent-channels", "12", "--half")
    for name, folder in (("mbt2018_mean", "mean"), ("choi2019", "choi")):
        codec = cdzoo.from_pretrained(tmp_path / folder / "codec")
        assert codec.name == name
        state = codec.state_dict()
        shared = [n for n in first.state_dict() if n.startswith(("g_a.", "g_s."))]
        assert {f"{part}.{n}.{p}" for part in ("g_a", "g_s") for n in (0, 2, 4, 6) for p in ("weight", "bias")} <= {
            *shared
        }
        assert all(torch.equal(state[n], first.state_dict()[n]) for n in shared)
        assert torch.equal(state["g_a.0.weight"], state["g_a.0.weight"].half().float())
    with pytest.raises(SystemExit, match="no tensor of the names and sizes"):
        smoke(
            "hyperprior",
            "codec",
            tmp_path / "wide",
            "--init",
            str(tmp_path / "choi" / "codec"),
            "--N",
            "9",
            "--M",
            "7",
        )


COMMANDS: list[tuple[str, str, list[str], str | None]] = [
    ("wang2022", "codec", [], "codec"),
    ("wang2022", "classifier", ["--channels", "4"], "classifier"),
    ("wang2022", "classifier", ["--model", "mobilenet_v2_45", "--amp", "bf16"], "classifier"),
    ("wang2022", "classifier", ["--model", "resnet50"], "classifier"),
    ("wang2022", "segmenter", [], "segmenter"),
    ("wang2022", "multitask", [], "segmenter"),
    ("fa_cresnet2023", "classifier", ["--model", "cresnet39"], "classifier"),
    ("fa_cresnet2023", "classifier", ["--ablation", "input=y_hat", "--schedule", "minc"], None),
    ("icat2022", "rival", [], "codec"),
    ("icat2022", "pixels", [], None),
    ("ehrlich2019", "classifier", ["--amp", "bf16"], "classifier"),
    ("ehrlich2019", "photographs", [], "classifier"),
    ("heads", "classifier", ["--crops", "32", "48", "--crop-shares", "1", "1", "--rates", "0.001"], "classifier"),
]


@pytest.mark.parametrize(("name", "command", "more", "folder"), all_but_one(COMMANDS, COMMANDS[1]))
def test_commands(tmp_path: Path, name: str, command: str, more: list[str], folder: str | None) -> None:
    result = smoke(name, command, tmp_path, *more)
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == result["metrics"]
    if folder is None:
        assert (tmp_path / "classifier.pt").exists()
        return
    found = cdzoo.from_pretrained(tmp_path / folder)
    if "--channels" in more:
        assert len(found.select.indices) == 4
    if command == "segmenter":
        assert found.origin.builder == "resnet41_seg"


@pytest.mark.slow
def test_pretrained_layers_are_frozen_in_stage_one(home: Path) -> None:
    smoke("fa_cresnet2023", "anchor", home / "anchor")
    anchor = home / "anchor" / "classifier"
    smoke("fa_cresnet2023", "classifier", home / "fa", "--pretrained", str(anchor), "--steps", "5")
    state = {
        stage: {
            name.removeprefix("model."): tensor
            for name, tensor in torch.load(home / "fa" / stage / "checkpoint.pt", weights_only=True)["task"].items()
        }
        for stage in ("stage1", "stage2")
    }
    before = cdzoo.from_pretrained(anchor).state_dict()
    known = [name for name in state["stage1"] if name in before and state["stage1"][name].shape == before[name].shape]
    assert {name.split(".")[0] for name in known} == {"layer2", "layer3", "layer4", "fc"}
    assert all(torch.equal(state["stage1"][name], before[name]) for name in known)
    assert not any(torch.equal(state["stage2"][n], before[n]) for n in known if n.endswith(("conv2.weight", "_mean")))
    assert cdzoo.from_pretrained(home / "fa" / "classifier").transforms.size == (8, 8)


@pytest.mark.slow
def test_icat2022(home: Path) -> None:
    smoke("icat2022", "first", home / "first")
    result = smoke("icat2022", "second", home / "second", "--init", str(home / "first" / "icat"))
    assert result["metrics"].keys() >= {"top1", "val_psnr", "val_bpp", "bpp_real", "bpp_estimated"}
    model = cdzoo.from_pretrained(home / "second" / "icat")
    streams = model.compress(torch.rand(1, 3, 40, 50))
    assert model.from_streams(streams).shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command"), [("torfason2018", "classifier"), ("icat2022", "first"), ("hyperprior", "codec")]
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    more = ["--ema", "0.9", "--checkpoint-minutes", "0", "--log-every", "1", "--steps", "4", "--evaluate-every", "0.2"]
    more += ["--workers", "1"]  # without workers, samples seed the steps as well
    if name == "hyperprior":
        more += ["--optimizer", "soap", "--amp", "bf16"]
    smoke(name, command, tmp_path / "whole", *more)
    with monkeypatch.context() as patch:
        add = training.History.add

        def die(self: Any, row: dict[str, Any]) -> None:
            add(self, row)
            if row["step"] == 3:
                raise KeyboardInterrupt

        patch.setattr(training.History, "add", die)
        with pytest.raises(KeyboardInterrupt):
            smoke(name, command, tmp_path / "killed", *more)
    checkpoint = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 2  # step 3 is done again
    (tmp_path / "killed" / "checkpoint.tmp").write_bytes(b"half a checkpoint")
    smoke(name, command, tmp_path / "killed", *more)
    weights = [next((tmp_path / run).glob("*/model.safetensors")).read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]
    histories = [
        [
            {k: v for k, v in json.loads(line).items() if k != "minutes"}
            for line in (tmp_path / run / "history.jsonl").read_text().splitlines()
        ]
        for run in ("whole", "killed")
    ]
    assert histories[0] == histories[1]
    with pytest.raises(SystemExit, match="choose another --out"):
        smoke(name, command, tmp_path / "killed", *more, "--batch", "2")


TWO_PROCESSES = """
import argparse, sys
import torch
from torch import nn
import schedules, torfason2018, training

class Task(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return {"loss": (self.linear(x) - x.sum(1, keepdim=True).sin()).square().mean()}


def toy(args):
    run = training.Run(args)
    numbers = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    task = Task()
    optimizer = torch.optim.SGD(task.parameters(), 0.1)
    training.fit(run, task, numbers, optimizer, schedules.constant, prepare=lambda x: (x,))
    torch.save(task.state_dict(), run.out / f"rank{run.rank}.pt")

parser = argparse.ArgumentParser()
commands = parser.add_subparsers(dest="command")
toy.__doc__ = "A linear fit."
training.add_command(commands, toy, paper={"steps": 7, "workers": 0}, small={}, smoke={})
out, batch, both = sys.argv[1:]
training.run_command(parser, ["toy", "--out", f"{out}/toy{batch}", "--batch", batch])
if both == "both":
    torfason2018.main(["classifier", "--smoke", "--model", "cresnet39", "--out", out])
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{RECIPES.parent.parent}{os.pathsep}{RECIPES}"}

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "script.py", str(tmp_path), "4", "both"],
        env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(sys, "argv", ["script.py", str(tmp_path), "8", "toy"])
    runpy.run_path(str(tmp_path / "script.py"), run_name="toy")
    files = [tmp_path / "toy4" / "rank0.pt", tmp_path / "toy4" / "rank1.pt", tmp_path / "toy8" / "rank0.pt"]
    one, other, alone = (torch.load(file, weights_only=True)["linear.weight"] for file in files)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, alone)  # two processes with 4 images are one with 8

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["machine"]["processes"] == 2
    assert result["metrics"]["images"] == 6
    assert cdzoo.from_pretrained(tmp_path / "classifier").num_classes == 3
    assert [json.loads(row)["step"] for row in (tmp_path / "history.jsonl").read_text().splitlines()] == [2, 4]
