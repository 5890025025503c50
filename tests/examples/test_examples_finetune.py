"""The fine-tuning example, run on generated files as a user would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from oracles.jpeg_files import encode
from PIL import Image

import cdzoo
from cdzoo.codecs import read_jpeg

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune.py"


def stripes(horizontal: bool, size: tuple[int, int], seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    wave = 128 + 80 * np.sin((y if horizontal else x) / rng.uniform(1.5, 3) + rng.uniform(0, 6))
    pixels = wave[..., None] + rng.normal(0, 10, (*size, 3))
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


def test_it_learns_classes_that_the_weights_do_not_know(tmp_path: Path) -> None:
    for name in ("across", "down"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(30):
            size = (32, 32) if i % 3 else (40, 32)
            (tmp_path / "data" / name / f"{i}.jpg").write_bytes(stripes(name == "across", size, i))
    command = [sys.executable, str(SCRIPT), "data", "--out", "out", "--model", "jpeg_resnet_small", "--epochs", "4"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("held out") == 4
    model = cdzoo.from_pretrained(tmp_path / "out")
    assert model.meta["classes"] == ["across", "down"]
    assert model.meta["metrics"]["top1"] >= 90
    assert "recipe" not in model.meta  # that of the weights it started from
    new = [stripes(horizontal, (32, 32), 1000 + i) for horizontal in (True, False) for i in range(10)]
    with torch.no_grad():
        found = model(model.transforms(read_jpeg(new))).argmax(1)
    assert (found == torch.tensor([0] * 10 + [1] * 10)).float().mean() >= 0.9


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 60
