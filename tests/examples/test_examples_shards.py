"""Training on shards with two workers of torchrun: kills, uneven shards, damage; FSDP and one process beside DDP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from oracles.jpeg_files import encode, picture

import cdzoo
from cdzoo.data import write_shards

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "train_shards.py"

# The runs in one launch, for starting a worker takes longer than all of them. Of "killed" rank 1 is killed in its
# second epoch, and "stopped" ends between a step and the evaluation behind it.
WORKER = """
import itertools, json, os, signal, sys
import torch.distributed as dist
import train_shards

runs, start = json.loads(sys.argv[1]), os.environ["TORCHELASTIC_RESTART_COUNT"]
in_step = train_shards.in_step

def until(number, end):
    count = itertools.count()

    def steps(*args):
        for item in in_step(*args):
            if next(count) == number:
                end()
            yield item

    train_shards.in_step = steps

def stop():
    raise KeyboardInterrupt

for name, argv in runs.items():
    os.environ["TORCHELASTIC_RESTART_COUNT"] = f"{start} {name}"  # a store's keys serve once
    if (name, start, os.environ["RANK"]) == ("killed", "0", "1"):
        until(11, lambda: os.kill(os.getpid(), signal.SIGKILL))
    try:
        if name == "stopped":
            until(1, stop)
        train_shards.main(argv)
    except KeyboardInterrupt:
        dist.destroy_process_group()
    train_shards.in_step = in_step
"""


def pack(files: list[tuple[Path, int]], folder: Path, *, damaged: int) -> list[str]:
    """Shards of ten files and fewer, one of which is damaged; returns the names of the others as the log has them."""
    for shard in write_shards(files, folder, max_count=10):
        sound = files[damaged][0].read_bytes()
        half = len(sound) // 2
        shard.write_bytes(shard.read_bytes().replace(sound, sound[:half] + bytes(len(sound) - half), 1))
    write_shards(files[:3], folder / "val")
    return [
        f"{folder}/shard-{n // 10:06d}.tar: {n:08d}-{f.stem}{f.suffix}"
        for n, (f, _) in enumerate(files)
        if n != damaged
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def names(home: Path) -> dict[str, list[str]]:
    """The shards of both kinds, and the names of their sound samples."""
    torch.manual_seed(0)
    codec = cdzoo.get_model(
        "icat_small", hyperprior=True, width=1 / 6, in_channels=16, num_classes=7, drop_path=0.0
    ).eval()
    with torch.no_grad():
        codec.g_a[-1].weight.mul_(100)  # random weights give zeros otherwise
    cdzoo.save_pretrained(codec, home / "codec")
    images = torch.rand(14, 3, 32, 32)
    images[::2, 0] *= 0.3
    for n, stream in enumerate(codec.compress(images)):
        (home / f"{n}.cdz").write_bytes(stream)
    for n in range(24):
        (home / f"{n}.jpg").write_bytes(encode(picture(32, 32, seed=n), quality=90 if n % 2 else 20))
    return {
        kind: pack([(home / f"{n}.{kind}", n % 2) for n in range(count)], home / kind, damaged=4)
        for kind, count in (("cdz", 14), ("jpg", 24))
    }


@pytest.fixture(scope="module")
def script(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("train_shards")


def arguments(home: Path, out: str, kind: str, *more: str) -> list[str]:
    shards = ["--shards", str(home / kind / "shard-*.tar"), "--val", str(home / kind / "val")]
    common = ["--classes", "2", "--out", str(home / out), "--log-samples"]
    if kind == "cdz":  # all of an epoch in one step, so that it has the same samples however many ranks there are
        model = ["--model", "icat_small", "--codec", str(home / "codec"), "--epochs", "2", "--batch", "20"]
        return [*shards, *common, *model, "--workers", "0", *more]
    model = ["--model", "jpeg_resnet18", "--width", "0.125", "--epochs", "2", "--batch", "3"]
    return [*shards, *common, *model, "--workers", "1", "--checkpoint-every", "2", *more]


@pytest.fixture(scope="module")
def launched(home: Path, names: dict[str, list[str]]) -> str:
    """What torchrun printed."""
    fsdp = ("--parallel", "fsdp2")
    runs = {
        "killed": arguments(home, "killed", "jpg"),
        "whole": arguments(home, "whole", "jpg"),
        "ddp": arguments(home, "ddp", "cdz"),
        "fsdp": arguments(home, "fsdp", "cdz", *fsdp),
        "stopped": arguments(home, "stopped", "cdz", *fsdp, "--checkpoint-every", "1"),
        "resumed": arguments(home, "stopped", "cdz", *fsdp),
    }
    (home / "worker.py").write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", port]
    paths = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parent.parent)])
    done = subprocess.run(
        [sys.executable, *torchrun, "worker.py", json.dumps(runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        cwd=home, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(home: Path, names: dict[str, list[str]], script: ModuleType) -> Path:
    """A run in this process, without torchrun."""
    script.main(arguments(home, "alone", "cdz"))
    return home / "alone"


def read_log(out: Path) -> list[dict[str, Any]]:
    lines = [(file.name, line) for file in out.glob("samples-*.jsonl") for line in file.read_text().split("\n") if line]
    return [{"file": file, **json.loads(line)} for file, line in lines]


def used(out: Path) -> dict[int, Counter[str]]:
    """How often each sample served in each epoch; of a step that was done twice, the second time counts."""
    last = {(r["file"], r["epoch"], r["step"]): r["names"] for r in read_log(out)}
    found: dict[int, Counter[str]] = {}
    for (_, epoch, _), sample_names in last.items():
        found.setdefault(epoch, Counter()).update(sample_names)
    return found


def history(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = cdzoo.from_pretrained(out / "final").meta["history"]
    return rows


def test_a_killed_worker_costs_nothing(home: Path, names: dict[str, list[str]], launched: str) -> None:
    assert "exitcode: -9" in launched
    final = [(home / out / "final" / "model.safetensors").read_bytes() for out in ("killed", "whole")]
    assert final[0] == final[1]
    assert history(home / "killed") == history(home / "whole")
    for out in ("killed", "whole"):
        assert used(home / out) == {epoch: Counter(names["jpg"]) for epoch in (0, 1)}
    steps = Counter((r["file"], r["epoch"], r["step"]) for r in read_log(home / "killed"))
    assert {key[1] for key, count in steps.items() if count > 1} == {1}, "nothing was lost, or the first epoch was"


def test_uneven_shards_and_damage(home: Path, names: dict[str, list[str]], launched: str) -> None:
    log = read_log(home / "whole")
    assert any(not record["names"] for record in log), "no rank ran out"
    assert [row["samples"] for row in history(home / "whole")] == [23, 23]
    assert [row["val"]["samples"] for row in history(home / "whole")] == [3, 3]  # one shard, two ranks
    for kind in ("jpg", "cdz"):
        assert f"left out: {home}/{kind}/shard-000000.tar: 00000004-4.{kind}" in launched


def test_one_process_ddp_and_fsdp_are_one_training(
    home: Path, names: dict[str, list[str]], launched: str, alone: Path
) -> None:
    expected = history(alone)
    codec = cdzoo.from_pretrained(home / "codec")
    streams = [(home / f"{n}.cdz").read_bytes() for n in range(3)]
    logits = cdzoo.from_pretrained(alone / "final").from_streams(streams)
    for out in ("alone", "ddp", "fsdp"):
        for row, wanted in zip(history(home / out), expected, strict=True):
            assert row["samples"] == 13
            assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
            assert row["norm"] == pytest.approx(wanted["norm"], rel=1e-3)
            assert row["val"] == wanted["val"]
        assert used(home / out) == {epoch: Counter(names["cdz"]) for epoch in (0, 1)}
        model = cdzoo.from_pretrained(home / out / "final")
        torch.testing.assert_close(model.from_streams(streams), logits, rtol=1e-3, atol=1e-3)
        assert model.fingerprint == codec.fingerprint  # the streams stay readable
        assert not torch.equal(model.blocks[0].mlp.fc1.weight, codec.blocks[0].mlp.fc1.weight)
    assert expected[0]["loss"] != pytest.approx(expected[1]["loss"], rel=1e-2), "nothing was learned"


def test_fsdp_goes_on_from_its_checkpoint(home: Path, launched: str) -> None:
    final = [(home / out / "final" / "model.safetensors").read_bytes() for out in ("stopped", "fsdp")]
    assert final[0] == final[1]
    assert history(home / "stopped") == history(home / "fsdp")
    assert max(Counter((r["file"], r["epoch"], r["step"]) for r in read_log(home / "stopped")).values()) == 1


def test_another_training_in_the_same_folder_is_refused(home: Path, alone: Path, script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="choose another --out"):
        script.main(arguments(home, "alone", "cdz", "--seed", "1"))


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 280
