"""The fine-tuning example, run on generated files as a user would run it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.jpeg_files import encode
from PIL import Image

import cdzoo
from cdzoo.codecs import read_jpeg

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT, STREAMS = EXAMPLES / "finetune.py", EXAMPLES / "finetune_streams.py"


def stripes(horizontal: bool, size: tuple[int, int], seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    wave = 128 + 80 * np.sin((y if horizontal else x) / rng.uniform(1.5, 3) + rng.uniform(0, 6))
    pixels = wave[..., None] + rng.normal(0, 10, (*size, 3))
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


@pytest.mark.slow
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


@pytest.mark.slow
def test_photographs_of_mixed_sizes_go_through_the_network_of_imagenet(tmp_path: Path) -> None:
    for name in ("across", "down"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "data" / name / f"{i}.jpg").write_bytes(stripes(name == "across", (60 + 9 * i, 80), i))
    command = [sys.executable, str(SCRIPT), "data", "--out", "out", "--epochs", "1", "--batch", "2"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stderr
    model = cdzoo.from_pretrained(tmp_path / "out")
    assert model.origin.builder == "jpeg_efficientnet_lite0"
    assert model.num_classes == 2
    assert not {"time", "recipe"} & model.meta.keys()


@pytest.mark.slow
def test_streams_are_learned_from_their_latents(tmp_path: Path) -> None:
    codec = cdzoo.models.FA_cResNet39_Weights.DEFAULT.build_codec()
    for name in ("across", "down"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            size = (64, 64) if i % 3 else (96, 64)
            file = Image.open(io.BytesIO(stripes(name == "across", size, i)))
            pixels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)[None] / 255
            (tmp_path / "data" / name / f"{i}.cdz").write_bytes(codec.compress(pixels)[0])
    command = [sys.executable, str(STREAMS), "data", "--out", "out", "--epochs", "4", "--batch", "8", "--lr", "1e-3"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("streams held out") == 4
    model = cdzoo.from_pretrained(tmp_path / "out")
    assert model.codec_fingerprint == codec.fingerprint
    assert model.meta["metrics"]["top1"] >= 75
    assert cdzoo.classify(tmp_path / "data" / "down", weights=str(tmp_path / "out"))[0].classes[0].name in {
        "across",
        "down",
    }


def test_they_are_short() -> None:
    for script in (SCRIPT, STREAMS):
        assert len(script.read_text(encoding="utf-8").splitlines()) < 60
