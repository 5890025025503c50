"""Weights measured again: networks of JPEG files, and figures beside those of the card."""

from __future__ import annotations

from pathlib import Path

import data
import evaluate
import pytest
import torch

import cdzoo
from cdzoo.codecs import encode_jpeg, write_jpeg


def test_networks_of_files_are_measured_on_files(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(60) if data.held_out(f"{n}.jpg")]
    for label in range(2):
        (tmp_path / "files" / f"class{label}").mkdir(parents=True)
    for number, name in enumerate(names):
        x = torch.full((1, 3, 32, 32), 0.2 + 0.1 * number)
        content = write_jpeg(encode_jpeg(x, subsampling="4:2:0" if number else "4:4:4"))[0]  # no batch holds both
        (tmp_path / "files" / f"class{number % 2}" / name).write_bytes(content)
    found = evaluate.measure(cdzoo.models.JPEGResNet18_Weights.DEFAULT.value.source, {"imagenette": tmp_path / "files"})
    [(name, figures)] = found.items()
    assert name == f"Imagenette validation, {len(names)} images"
    model = cdzoo.models.jpeg_resnet18(weights="DEFAULT").eval()
    right = [
        int(model(model.transforms(cdzoo.codecs.read_jpeg(tmp_path / "files" / f"class{n % 2}" / name))).argmax())
        == n % 2
        for n, name in enumerate(names)
    ]
    assert figures["top-1 (%)"] == pytest.approx(100 * sum(right) / len(right), abs=0.01)
