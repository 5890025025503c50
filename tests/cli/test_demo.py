"""The demonstration and the quickstart, with small untrained weights in folders."""

from __future__ import annotations

import json
import runpy
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cdzoo
from cdzoo.cli import main
from cdzoo.codecs import Codec, read_header
from cdzoo.demo import PHOTO, load_photo, run_demo
from cdzoo.transforms import LatentTransform


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, make_codec: Callable[..., Codec]) -> types.SimpleNamespace:
    root = tmp_path_factory.mktemp("weights")
    codec = make_codec("bmshj2018_hyperprior")
    torch.manual_seed(1)
    model = cdzoo.get_model("fa_cresnet39", in_channels=24, num_classes=10, width=0.125, num_convs=(1, 1, 1)).eval()
    cdzoo.save_pretrained(codec, root / "codec")
    meta = {"classes": [f"thing {i}" for i in range(10)]}
    cdzoo.save_pretrained(model, root / "model", codec=codec, transforms=LatentTransform((28, 28)), meta=meta)
    return types.SimpleNamespace(codec=root / "codec", model=root / "model")


def test_photo() -> None:
    whole = np.asarray(Image.open(PHOTO))
    assert np.array_equal((load_photo()[0] * 255).round().permute(1, 2, 0).numpy(), whole[:, 106:533])
    small = load_photo(224)
    assert small.shape == (1, 3, 224, 224)
    assert torch.equal((small * 255).round() / 255, small)
    with pytest.raises(ValueError, match="size must be a positive integer"):
        load_photo(0)


def test_demo(weights: types.SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--weights", str(weights.model), "--codec", str(weights.codec), "-o", str(tmp_path / "d")]
    assert main([*arguments, "--size", "96", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["demo.png", "photo.cdz"]

    codec, model = cdzoo.from_pretrained(weights.codec), cdzoo.from_pretrained(weights.model)
    assert isinstance(codec, Codec)
    stream = (tmp_path / "d" / "photo.cdz").read_bytes()
    photo = load_photo(96)
    assert [stream] == codec.compress(photo)
    header = read_header(stream)
    assert (result["bpp"], result["payload_bpp"]) == (header.bpp, header.payload_bpp)
    decoded = (codec.decode(codec.encode(photo)) * 255).round()
    mse = float((decoded.double() - photo.double() * 255).square().mean())
    assert result["psnr"] == pytest.approx(20 * np.log10(255) - 10 * np.log10(mse), abs=1e-4)
    with torch.no_grad():
        probabilities = cdzoo.compose(codec, model)(photo)[0].softmax(0)
    assert [entry["label"] for entry in result["top"]] == [
        f"thing {i}" for i in probabilities.argsort(descending=True)[:5]
    ]
    assert [entry["label"] for entry in result["jpeg"]["top"]] == [
        label.name for label in cdzoo.classify(PHOTO)[0].classes
    ]
    assert result["jpeg"]["network"]["classes"] == 1000
    assert result["logits_seconds"] > 0
    assert result["pixels_seconds"] > 0
    with Image.open(tmp_path / "d" / "demo.png") as picture:
        picture.load()
        drawn = np.asarray(picture)[16 : 16 + 400]
    expected = np.asarray(
        Image.fromarray((photo[0] * 255).round().byte().permute(1, 2, 0).numpy()).resize((400, 400), 0)
    )
    assert np.array_equal(drawn[:, 16:416], expected)
    expected = np.asarray(Image.fromarray(decoded[0].byte().permute(1, 2, 0).numpy()).resize((400, 400), 0))
    assert np.array_equal(drawn[:, 432:832], expected)

    assert main([*arguments, "--size", "64"]) == 0
    text = capsys.readouterr().out
    for words in (
        "1000 classes",
        "palace",
        "10 classes, from the stream",
        "64x64 pixels",
        "bpp with the header",
        "PSNR",
        "stream -> latent -> logits",
        "photo.cdz",
        "demo.png",
    ):
        assert words in text
    assert "median of five runs after a warm-up, cpu" in text


def test_channels_have_the_largest_variance(weights: types.SimpleNamespace, tmp_path: Path) -> None:
    codec, model = cdzoo.from_pretrained(weights.codec), cdzoo.from_pretrained(weights.model)
    network = cdzoo.compose(codec, model).train()
    result = run_demo(network, tmp_path, size=64, repeats=1)
    assert isinstance(codec, Codec)
    variances = codec.encode(load_photo(64)).y_hat[0].flatten(1).double().var(1).numpy()
    assert np.allclose(variances[list(result.channels)], np.sort(variances)[::-1][:4])
    assert network.training
    assert network.model.training
    with pytest.raises(ValueError, match="repeats must be a positive integer"):
        run_demo(network, tmp_path, repeats=0)


def test_demo_without_a_place(
    weights: types.SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = ["--weights", str(weights.model), "--codec", str(weights.codec), "--size", "32"]
    assert main(["demo", *arguments, "-o", str(tmp_path / "file"), "--json"]) == 1
    assert "not a folder" in json.loads(capsys.readouterr().out)["error"]


def test_quickstart(
    weights: types.SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Member:
        """Stands in for the published weights, with what they offer."""

        meta = {"classes": [f"thing {i}" for i in range(10)]}  # noqa: RUF012

        @staticmethod
        def build_codec() -> torch.nn.Module:
            return cdzoo.from_pretrained(weights.codec)

    builder = cdzoo.models.fa_cresnet39  # which is small
    monkeypatch.setattr(cdzoo, "get_weight", lambda name: {"LatentEfficientNetLite0_Weights.DEFAULT": Member}[name])
    monkeypatch.setattr(cdzoo.models, "latent_efficientnet_lite0", lambda *, weights: builder(weights=folder))
    folder = weights.model
    Image.fromarray(load_photo(64)[0].mul(255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "in.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["quickstart.py", "in.png"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "quickstart.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert "bits per pixel" in lines[0]
    assert len(lines) == 6
    with Image.open("decoded.png") as decoded:
        assert decoded.size == (64, 64)
