"""The weights that ship: complete, unaltered, paired with their codec, and as good as JPEG's rival should be."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import cdzoo
from cdzoo._registry import find_entry
from cdzoo.cli import main
from cdzoo.codecs import Codec, read_header
from cdzoo.codecs.hyperprior import RATES
from cdzoo.demo import PHOTO, load_photo
from cdzoo.errors import WeightsError
from cdzoo.images import read_image
from cdzoo.transforms import CoefficientTransform
from cdzoo.weights import packaged
from cdzoo.weights.building import build_codec
from cdzoo.weights.card import model_card
from cdzoo.weights.enums import PACKAGED, WeightsEnum
from cdzoo.weights.folder import WeightsFolder

FOLDERS = sorted(p for p in PACKAGED.iterdir() if p.is_dir())
MEMBERS: list[WeightsEnum] = [
    member
    for name in cdzoo.list_codecs(pretrained=True) + cdzoo.list_models(pretrained=True)
    for member in cdzoo.get_model_weights(name)
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("packaged weights must not need a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a.mul(255).round() / 255 - b).square().mean()))


def test_every_folder_has_a_member_and_every_member_a_folder() -> None:
    assert {member.value.folder for member in MEMBERS} == {folder.name for folder in FOLDERS}


def test_packaged_codecs_are_known_by_fingerprint() -> None:
    found = {m.value.folder: str(m) for m in MEMBERS if m.source.config["kind"] == "codec"}
    assert found == packaged.CODECS
    for member in MEMBERS:
        if member.value.folder in found:
            assert packaged.packaged_codec_weights(member.source.config["fingerprint"]) == str(member)


def test_they_take_less_than_52_megabytes_of_the_wheel() -> None:
    assert sum(len(zlib.compress(f.read_bytes())) for f in PACKAGED.rglob("*") if f.is_file()) < 51.5e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_the_card_is_up_to_date_and_its_lines_run(folder: Path) -> None:
    source = WeightsFolder.from_path(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    size = (folder / "model.safetensors").stat().st_size
    config = {**source.config, "arguments": source.arguments}
    tag = find_entry(source.builder).cls.pipeline_tag
    assert card == model_card(config, source.tensors(), size, pipeline_tag=tag)

    lines = card.split("```python\n")[1].split("```")[0].replace("photo.jpg", PHOTO.as_posix())
    photo, names = load_photo(256), dict[str, Any]()
    names["images"] = photo
    if source.config["kind"] == "model" and source.config["codec"]:
        names["streams"] = build_codec(source).compress(photo)
    exec(lines, names)
    module = names[source.config["kind"]]
    assert not module.training
    if source.config["kind"] == "codec":
        assert names["latent"].image_size == (256, 256)
    else:
        logits = names["logits"]
        assert logits.shape[1] == len(source.meta["classes"])
        if "imagenette" in folder.name:
            assert source.meta["classes"][logits.argmax(1)] == "church"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_folders_are_complete_and_unaltered(folder: Path) -> None:
    assert {f.name for f in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == config["sha256"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for heading in ("## Data and terms", "## Recipe", "## Time spent", "## Metrics", "## Limits", "license:"):
        assert heading in card, heading
    assert config["repo_id"] == f"cdzoo/{folder.name}"


OF_FILES = [member for member in MEMBERS if isinstance(member.transforms(), CoefficientTransform)]


@pytest.mark.parametrize("member", [m for m in MEMBERS if m not in OF_FILES], ids=str)
def test_members_load_and_belong_to_their_codec(member: WeightsEnum) -> None:
    codec = member.build_codec()
    assert isinstance(codec, Codec)
    builder = member.source.config["builder"]
    module = cdzoo.get_codec(builder, weights=member) if member.source.config["kind"] == "codec" else None
    if module is not None:
        assert module.fingerprint == codec.fingerprint == member.source.config["fingerprint"]
    else:
        model = cdzoo.get_model(builder, weights=member)
        assert model.codec_fingerprint == codec.fingerprint
        assert model.num_classes == len(member.meta["classes"])
        cdzoo.compose(codec, model)


@pytest.mark.parametrize("member", OF_FILES, ids=str)
def test_members_that_read_jpeg_files(member: WeightsEnum) -> None:
    model = cdzoo.get_model(member.source.config["builder"], weights=member).eval()
    assert model.get_classifier().out_features == len(member.meta["classes"])
    coefficients = member.transforms()(cdzoo.codecs.read_jpeg(PHOTO))
    with torch.no_grad():
        logits = model(coefficients)
    assert logits.isfinite().all()
    with pytest.raises(WeightsError, match="no learned codec"):
        member.build_codec()


def test_the_photograph_is_recognized_from_its_coefficients(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(PHOTO), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    weights = "JPEGEfficientNetLite0_Weights.IMAGENET1K_DCT"
    network = {"builder": "jpeg_efficientnet_lite0", "weights": weights, "classes": 1000}
    assert result["networks"] == [network]
    (file,) = result["files"]
    assert file["image_size"] == [427, 640]
    # the temple is one of 1,000 classes; the pixel network says palace, bell cote, too
    assert [label["label"] for label in file["top"][:2]] == ["bell cote", "palace"]
    assert file["top"][1]["probability"] > 0.2


BEHIND_JPEG = {
    "torfason2018": "six levels for each latent value, and 25 minutes of training",
    "choi2019": "no entropy model, whose tables of the training images cost a sixth more than an image's own",
}


CODECS = [member for member in MEMBERS if member.source.config["kind"] == "codec"]


def psnr_of_format(name: str, x: torch.Tensor, num_bytes: int, **options: Any) -> float:
    """PSNR of an image format at the smallest quality at which a file has at least so many bytes."""
    image = Image.fromarray((x[0].permute(1, 2, 0) * 255).round().byte().numpy())
    for quality in range(96):
        buffer = io.BytesIO()
        image.save(buffer, name, quality=quality, **options)
        if len(buffer.getvalue()) >= num_bytes:
            break
    buffer.seek(0)
    pixels = torch.frombuffer(bytearray(Image.open(buffer).convert("RGB").tobytes()), dtype=torch.uint8)
    return psnr(pixels.view(*x.shape[2:], 3).permute(2, 0, 1)[None] / 255, x)


@pytest.mark.parametrize("member", [m for m in CODECS if m.source.config["builder"] not in BEHIND_JPEG], ids=str)
def test_the_codec_beats_jpeg_on_the_packaged_photograph(member: WeightsEnum) -> None:
    codec = member.build_codec()
    x = load_photo(224)  # scaled down, since the file is a JPEG, whose block grid would help JPEG
    (stream,) = codec.compress(x)
    assert 0.1 < read_header(stream).bpp < 1.0
    ours = psnr(codec.decode(codec.decompress([stream])), x)
    assert ours > psnr_of_format("JPEG", x, len(stream), optimize=True)
    if member.name.startswith("PHOTOS"):
        assert ours > psnr_of_format("WEBP", x, len(stream), method=6)


def test_three_rates_of_one_codec_are_in_order() -> None:
    x, points = load_photo(224), []
    for member in RATES:
        codec = member.build_codec()
        (stream,) = codec.compress(x)
        points.append((read_header(stream).bpp, psnr(codec.decode(codec.decompress([stream])), x)))
    assert points == sorted(points)
    assert [quality for _, quality in points] == sorted(quality for _, quality in points)
    assert points[2][0] > 2 * points[0][0]
    assert points[2][1] > points[0][1] + 2


def test_the_codec_for_ms_ssim_is_better_at_that_and_worse_in_psnr() -> None:
    pytorch_msssim = pytest.importorskip("pytorch_msssim")
    x, found = load_photo(224), {}
    for name in ("IMAGENETTE_N48_M64", "IMAGENETTE_N48_M64_MS_SSIM"):
        codec = cdzoo.codecs.bmshj2018_hyperprior(weights=name)
        (stream,) = codec.compress(x)
        x_hat = codec.decode(codec.decompress([stream]))
        found[name] = (float(pytorch_msssim.ms_ssim(x_hat, x, data_range=1.0)), psnr(x_hat, x), read_header(stream).bpp)
    squared, similar = found.values()
    assert similar[0] > squared[0]
    assert similar[1] < squared[1]
    assert similar[2] < 1.05 * squared[2]


def test_integers_cost_nothing_on_the_packaged_photograph() -> None:
    codec = cdzoo.codecs.bmshj2018_hyperprior(weights="DEFAULT")
    x = read_image(PHOTO)[..., :384, :640]  # a size that CompressAI takes
    ours = sum(read_header(codec.compress(x)[0]).part_lengths)
    floats = sum(len(s) for part in codec.compressai_strings(x) for s in part)
    assert abs(ours - floats) <= 0.001 * floats
