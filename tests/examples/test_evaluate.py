"""Weights measured again: networks of JPEG files, and figures beside those of the card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import data
import evaluate
import pytest
import torch
from PIL import Image

import cdzoo
from cdzoo.codecs import Codec, encode_jpeg, write_jpeg
from cdzoo.demo import PHOTO


@pytest.fixture
def codec(make_codec: Callable[..., Codec]) -> Codec:
    """A small hyperprior codec with random weights."""
    return make_codec("bmshj2018_hyperprior")


def test_networks_of_files_are_measured_on_files(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(60) if data.held_out(f"{n}.jpg")]
    for label in range(2):
        (tmp_path / "files" / f"class{label}").mkdir(parents=True)
    for number, name in enumerate(names):
        x = torch.full((1, 3, 32, 32), 0.2 + 0.1 * number)
        content = write_jpeg(encode_jpeg(x, subsampling="4:2:0" if number else "4:4:4"))[0]  # no batch holds both
        (tmp_path / "files" / f"class{number % 2}" / name).write_bytes(content)
    found = evaluate.measure(cdzoo.models.JPEGResNet18_Weights.DEFAULT.source, {"imagenette": tmp_path / "files"})
    [(name, figures)] = found.items()
    assert name == f"Imagenette validation, {len(names)} images"
    model = cdzoo.models.jpeg_resnet18(weights="DEFAULT").eval()
    right = [
        int(model(model.transforms(cdzoo.codecs.read_jpeg(tmp_path / "files" / f"class{n % 2}" / name))).argmax())
        == n % 2
        for n, name in enumerate(names)
    ]
    assert figures["top-1 (%)"] == pytest.approx(100 * sum(right) / len(right), abs=0.01)


def test_imagenet_photographs_are_labeled_by_their_names(tmp_path: Path) -> None:
    with Image.open(PHOTO) as photo:
        (tmp_path / "n03877845").mkdir()
        photo.save(tmp_path / "n03877845" / "a.JPEG", quality=95)  # 698, palace
        photo.resize((300, 280)).save(tmp_path / "n02979186_cassette player.jpg", quality=90)
        photo.save(tmp_path / "unnamed.jpg")
    files = evaluate.imagenet_files(tmp_path)
    assert [(path.name, number) for path, number in files] == [("n02979186_cassette player.jpg", 482), ("a.JPEG", 698)]
    source = cdzoo.models.JPEGEfficientNetLite0_Weights.IMAGENET1K_PIXELS.source
    found = evaluate.measure(source, {"imagenet": tmp_path})
    assert list(found) == ["2 photographs, from JPEG files through `weights.transforms()`"]
    model = cdzoo.models.jpeg_efficientnet_lite0(weights="IMAGENET1K_PIXELS").eval()
    with torch.no_grad():
        read = [cdzoo.codecs.read_jpeg(path, transform=model.transforms) for path, _ in files]
        ranks = [model(x)[0].argsort(descending=True) for x in read]
    for name, k in (("top-1 (%)", 1), ("top-5 (%)", 5)):
        right = sum(number in rank[:k] for rank, (_, number) in zip(ranks, files, strict=True))
        assert found[next(iter(found))][name] == pytest.approx(50 * right)
    for path, _ in files:
        path.unlink()
    with pytest.raises(SystemExit, match="n01440764"):
        evaluate.imagenet_files(tmp_path)


def test_streams_of_photographs_are_measured_at_the_sizes_of_the_card(tmp_path: Path, codec: Codec) -> None:
    with Image.open(PHOTO) as photo:
        for name in ("n03877845", "n02979186"):
            photo.save(tmp_path / f"{name}.jpg")
    torch.manual_seed(0)
    model = cdzoo.models.latent_efficientnet_lite0(in_channels=codec.latent_channels, width=0.25).eval()
    card = {"metrics": {"1 photographs, streams of 160 pixels": {}, "2 photographs, streams of 192 pixels": {}}}
    found = evaluate.imagenet(evaluate.Here(), model, codec, card, tmp_path)
    assert list(found) == list(card["metrics"])
    x = evaluate.photograph(tmp_path / "n03877845.jpg", 192)
    assert x.shape == (1, 3, 192, 288)
    with torch.no_grad():
        [stream] = codec.compress(x)
        label = cdzoo.compose(codec, model).from_streams([stream]).argmax().item()
    figures = found["2 photographs, streams of 192 pixels"]
    assert figures["top-1 (%)"] == pytest.approx(50 * (label in (482, 698)))
    assert figures["bits per pixel"] == pytest.approx(cdzoo.codecs.read_header(stream).bpp, abs=1e-3)
