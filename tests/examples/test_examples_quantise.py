"""The int8 example: packaged JPEG networks in ONNX Runtime, against float32, on pieces of the packaged photo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

import cdzoo
from cdzoo.codecs import encode_jpeg, write_jpeg
from cdzoo.data import center_crop, crop, horizontal_flip
from cdzoo.demo import load_photo
from cdzoo.types import JPEGCoefficients

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "quantise.py"
SIDE = 160


def pieces(odd: bool) -> list[JPEGCoefficients]:
    """Crops of the photograph at 224 pixels, at a chequerboard of corners: the odd ones are new."""
    photos = [encode_jpeg(load_photo(224), quality=quality) for quality in (60, 90)]
    corners = [(y, x) for y in range(0, 65, 16) for x in range(0, 65, 16) if ((y + x) // 16 % 2 == 1) == odd]
    return [f(crop(c, y, x, SIDE, SIDE)) for c in photos for y, x in corners for f in (horizontal_flip, lambda c: c)]


@pytest.mark.parametrize(
    ("name", "weights", "best"),
    # the second network knows a thousand classes, among which palace, bell cote and monastery are close
    [("jpeg_resnet18", "DEFAULT", 1), ("jpeg_efficientnet_lite0", "IMAGENET1K_DCT", 3)],
)
def test_int8_agrees_with_float32_and_is_a_quarter_of_it(name: str, weights: str, best: int, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i, piece in enumerate(pieces(odd=False)):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(write_jpeg(piece)[0])
    model = cdzoo.get_model(name, weights=weights).eval()
    side = SIDE if name == "jpeg_resnet18" else 224  # the other network's transform resizes
    options = ["--out", "int8.onnx", "--model", name, "--weights", weights, "--size", str(side)]
    command = [sys.executable, str(SCRIPT), "data", *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[1]) < 0.3
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    quantized, exact = [], []
    for piece in pieces(odd=True):
        c = center_crop(model.transforms(piece), side)
        arrays = [tensor.numpy() for tensor in (*c.planes, c.qtables)]
        quantized.append(torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0]))
        with torch.no_grad():
            exact.append(model(c))
    found, expected = torch.cat(quantized), torch.cat(exact)
    assert len(found) == 48
    assert (found.topk(best).indices == expected.argmax(1, keepdim=True)).any(1).float().mean() >= 0.9
    assert (found.softmax(1) - expected.softmax(1)).abs().max(1).values.mean() < 0.1
    assert not torch.allclose(found, expected, rtol=0, atol=1e-3)  # it is another network, after all
