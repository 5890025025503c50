"""``cdzoo classify`` on JPEG files: labels from coefficients, whatever else is among the files."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import cdzoo
from cdzoo.cli import main
from cdzoo.codecs import read_jpeg
from cdzoo.data import downscale
from cdzoo.transforms import CoefficientTransform

NAMES = ["tench", "springer", "player"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> types.SimpleNamespace:
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = cdzoo.get_model("jpeg_resnet18", num_classes=3, width=0.125).eval()
    meta = {"classes": NAMES}
    cdzoo.save_pretrained(model, root / "jpeg", transforms=CoefficientTransform(shorter_side=64), meta=meta)
    latent = cdzoo.get_model("cresnet39", num_classes=3, width=0.0625, in_channels=8)
    cdzoo.save_pretrained(latent, root / "latent")
    return types.SimpleNamespace(jpeg=root / "jpeg", latent=root / "latent", model=model)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    small, large = (
        coarse.resize((80, 64), Image.Resampling.BICUBIC),
        coarse.resize((400, 304), Image.Resampling.BICUBIC),
    )
    small.save(folder / "small.jpg")
    small.convert("L").save(folder / "gray.JPG")
    small.convert("CMYK").save(folder / "cmyk.jpg")
    large.save(folder / "large.jpeg", progressive=True)
    small.save(folder / "whole.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    small.save(folder / "turned.jpg", exif=exif, subsampling=0)
    data = (folder / "small.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) * 2 // 3])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("words")
    return folder


def classify(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, Any]:
    capsys.readouterr()
    status = main(["classify", *map(str, args), "--json"])
    return status, json.loads(capsys.readouterr().out)


def probabilities(model: Any, coefficients: cdzoo.types.JPEGCoefficients) -> list[float]:
    with torch.no_grad():
        row: list[float] = model(coefficients)[0].double().softmax(0).tolist()
    return row


def test_a_folder_with_broken_files(
    weights: types.SimpleNamespace, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("this must not be called")

    monkeypatch.setattr(Image, "open", forbidden)
    monkeypatch.setattr("cdzoo.jpeg.pixels.decode_jpeg", forbidden)
    status, result = classify(capsys, photos, photos / "missing.jpg", "--weights", weights.jpeg, "--strict")
    assert status == 1
    files = {Path(entry["file"]).name: entry for entry in result["files"]}
    assert {name for name, entry in files.items() if "error" not in entry} == {
        "small.jpg", "gray.JPG", "large.jpeg", "turned.jpg"
    }  # fmt: skip
    reasons = {
        "truncated.jpg": "end too early",
        "empty.jpg": "empty",
        "text.jpg": "JPEG",
        "cmyk.jpg": "cmyk",
        "missing.jpg": "No such",
    }
    for name, reason in reasons.items():
        assert reason in files[name]["error"], files[name]["error"]
    small, large = files["small.jpg"], files["large.jpeg"]
    expected = probabilities(weights.model, read_jpeg(photos / "small.jpg"))
    assert [entry["label"] for entry in small["top"]] == [NAMES[i] for i in np.argsort(expected)[::-1]]
    assert [e["probability"] for e in small["top"]] == pytest.approx(sorted(expected, reverse=True), rel=1e-4)
    assert small["image_size"] == [64, 80]
    assert small["bpp"] == pytest.approx(8 * (photos / "small.jpg").stat().st_size / (64 * 80))
    # a large photograph is read at the power of two that comes closest to what the weights were trained at
    assert large["image_size"] == [304, 400]
    expected = probabilities(weights.model, downscale(read_jpeg(photos / "large.jpeg"), 4))
    assert [e["probability"] for e in large["top"]] == pytest.approx(sorted(expected, reverse=True), rel=1e-4)


def test_photographs_are_turned_upright(
    weights: types.SimpleNamespace, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with Image.open(photos / "turned.jpg") as image:
        ImageOps.exif_transpose(image).save(tmp_path / "upright.jpg", quality=100, subsampling=0)
    status, result = classify(capsys, photos / "turned.jpg", tmp_path / "upright.jpg", "--weights", weights.jpeg)
    assert status == 0
    turned, upright = result["files"]
    assert turned["image_size"] == upright["image_size"] == [80, 64]
    one, other = ({e["label"]: e["probability"] for e in entry["top"]} for entry in (turned, upright))
    assert one == pytest.approx(other, abs=2e-3)


def test_text(weights: types.SimpleNamespace, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(photos / "large.jpeg"), "--weights", str(weights.jpeg), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\S*large\.jpeg  400x304  \d+\.\d{4} bpp", lines[0])
    assert re.fullmatch(rf" +1 +\d+\.\d %  ({'|'.join(NAMES)})", lines[1])
    assert len(lines) == 3


def test_networks_of_the_other_kind(
    weights: types.SimpleNamespace, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stream = tmp_path / "a.cdz"
    stream.write_bytes(b"CDZ")
    status, result = classify(capsys, stream, photos / "small.jpg", "--weights", weights.jpeg)
    assert status == 1
    assert "does not read .cdz files" in result["files"][0]["error"]
    assert "top" in result["files"][1]
    status, result = classify(capsys, photos / "small.jpg", "--weights", weights.latent)
    assert status == 1
    assert "reads latents: put it behind its codec" in result["error"]


def test_files_that_are_nearly_right(
    weights: types.SimpleNamespace, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos / "small.jpg") as image:
        image.resize((10, 12)).save(tmp_path / "tiny.jpg", exif=exif)
        image.resize((100, 75)).save(tmp_path / "portrait.jpg", exif=exif)
        image.save(tmp_path / "drawing.jpg", "PNG")
    (tmp_path / "cut.jpg").write_bytes((photos / "truncated.jpg").read_bytes())
    names = [tmp_path / name for name in ("tiny.jpg", "drawing.jpg", "cut.jpg")]
    status, result = classify(capsys, *names, "--weights", weights.jpeg, "--strict")
    tiny, drawing, cut = result["files"]
    assert status == 1
    assert tiny["image_size"] == [12, 10]  # too small to be turned without decoding it
    assert "does not begin with" in drawing["error"]
    assert cut["error"].startswith("byte ")
    _, result = classify(capsys, tmp_path / "portrait.jpg", "--weights", weights.jpeg)
    (portrait,) = result["files"]
    assert portrait["image_size"] == [100, 75]  # all of it, though rows that were not whole blocks are not read
    assert portrait["bpp"] == pytest.approx(8 * (tmp_path / "portrait.jpg").stat().st_size / 7500)
    status, result = classify(capsys, names[2], "--weights", weights.jpeg)
    assert status == 0
    assert result["files"][0]["missing_blocks"] > 10
    assert main(["classify", str(names[2]), "--weights", str(weights.jpeg)]) == 0
    assert "blocks missing" in capsys.readouterr().out
    whole = (photos / "small.jpg").read_bytes()
    (tmp_path / "marker.jpg").write_bytes(whole[:2] + b"\xff\0" + whole[2:])  # bytes that belong to nothing
    status, result = classify(capsys, tmp_path / "marker.jpg", "--weights", weights.jpeg)
    assert status == 0
    assert "a marker should be here" in result["files"][0]["damage"]


def test_info_of_a_file(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = photos / "turned.jpg"
    assert main(["info", str(turned), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    with Image.open(turned) as image:
        assert facts["image_size"] == [image.height, image.width]
        assert facts["orientation"] == image.getexif()[0x0112]
        assert facts["exif_bytes"] == len(image.info["exif"])
    assert facts["format"] == "JPEG, baseline"
    assert facts["blocks"] == [[8, 10]] * 3
    assert facts["bpp"] == pytest.approx(8 * turned.stat().st_size / (64 * 80))
    assert main(["info", str(photos / "large.jpeg")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["format"] == "JPEG, progressive"
    assert lines["image_size"].startswith("400x304")
    assert lines["sampling"] == "2x2, 1x1, 1x1"
    (tmp_path / "header.jpg").write_bytes(turned.read_bytes()[:100])
    assert main(["info", str(tmp_path / "header.jpg")]) == 1
    assert "header.jpg" in capsys.readouterr().err
