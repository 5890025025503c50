"""Distillation: the teacher cut in two, what the student reads, the optimizer, and a few steps of either kind."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
import torchvision
from oracles.slow import all_but_one
from torch import nn

import cdzoo
from cdzoo.codecs import decode_jpeg, encode_jpeg, read_jpeg
from cdzoo.demo import PHOTO
from cdzoo.models.adapters import LatentAdapter, block_coefficients

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:timm"),
    pytest.mark.filterwarnings("ignore::FutureWarning:timm"),
]


@pytest.fixture(scope="module")
def recipes() -> dict[str, ModuleType]:
    return {name: importlib.import_module(name) for name in ("distill", "muon", "student", "teachers", "training")}


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_front_and_trunk_are_the_network(recipes: dict[str, ModuleType], library: str) -> None:
    torch.manual_seed(0)
    network: nn.Module = (
        timm.create_model("test_efficientnet") if library == "timm" else torchvision.models.resnet18(num_classes=9)
    ).eval()
    cut = recipes["distill"].stage_of_stride(network, 64, 8)
    assert cut == ("blocks.2" if library == "timm" else "layer2")
    front, trunk = recipes["distill"].split(network, cut)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = front(x)
        assert features.shape[2:] == (8, 8)
        assert torch.equal(trunk(features), network(x))
    names = {name for name, _ in front.named_parameters()} | {name for name, _ in trunk.named_parameters()}
    assert names == {name for name, _ in network.named_parameters()}
    assert not {name for name, _ in front.named_parameters()} & {name for name, _ in trunk.named_parameters()}


def test_a_cut_must_exist(recipes: dict[str, ModuleType]) -> None:
    network = torchvision.models.resnet18(num_classes=9)
    with pytest.raises(SystemExit, match=r"--cut layer9: the network has no such module; it begins with conv1"):
        recipes["distill"].split(network, "layer9")
    with pytest.raises(SystemExit, match="--stride 5"):
        recipes["distill"].stage_of_stride(network, 64, 5)


def test_blocks_are_those_of_a_file(recipes: dict[str, ModuleType]) -> None:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    (blocks,) = recipes["distill"].blocks_of(images)
    # quality 100 rounds coefficients to whole numbers, and the conversion of colors clamps nothing here
    of_file = block_coefficients(encode_jpeg(images, quality=100, subsampling="4:4:4"))
    assert (blocks - of_file).abs().max() < 0.51


def test_orthogonalized_keeps_directions_and_levels_lengths(recipes: dict[str, ModuleType]) -> None:
    for shape in ((5, 12), (12, 5)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ recipes["muon"].orthogonalized(matrix) @ v.T
        torch.testing.assert_close(inner, torch.diag(inner.diagonal()), rtol=0, atol=1e-9)
        assert 0.6 < inner.diagonal().min() < inner.diagonal().max() < 1.3


def test_muon_steps_by_a_share_and_is_adam_for_the_rest(recipes: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1))
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1))
    other.load_state_dict(net.state_dict())
    filters, rest = [net[0].weight], [net[0].bias, net[1].weight, net[1].bias]
    groups = [{"params": filters, "lr": 0.1, "orthogonal": True}, {"params": rest, "lr": 0.01, "orthogonal": False}]
    own = recipes["muon"].Muon(groups)
    adam = torch.optim.Adam([other[0].bias, other[1].weight, other[1].bias], lr=0.01, betas=(0.9, 0.99))
    for step in range(4):
        torch.manual_seed(step)
        x = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            other[0].weight.copy_(net[0].weight)
        before = net[0].weight.detach().clone()
        for network, optimizer in ((net, own), (other, adam)):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(net[0].weight.norm(), before.norm())
        moved = (net[0].weight - before).norm() / before.norm()
        assert 0.07 < moved < 0.11  # a step of 0.1, and back to the old length
        torch.testing.assert_close(net[1].weight, other[1].weight)
        torch.testing.assert_close(net[0].bias, other[0].bias)


def test_the_adapter_that_is_saved_gives_features_themselves(recipes: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    adapter = LatentAdapter(5, 6, hidden=8, depth=1).eval()
    statistics = torch.stack([torch.randn(6), torch.rand(6) + 0.5])
    y_hat, scales = torch.randn(2, 5, 3, 4), torch.rand(2, 5, 3, 4)
    with torch.no_grad():
        mean, std = statistics[..., None, None]
        expected = adapter(y_hat, scales) * std + mean
        recipes["distill"]._fold(adapter, statistics)
        torch.testing.assert_close(adapter(y_hat, scales), expected)
    assert expected.shape == (2, 6, 6, 8)


@pytest.mark.parametrize("reads", all_but_one(["jpeg", "codec", "sizes"], kept="codec"))
def test_a_few_steps(recipes: dict[str, ModuleType], tmp_path: Path, reads: str) -> None:
    more = ["--reuse", "2"]
    if reads != "jpeg":
        torch.manual_seed(0)
        codec = cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12)
        cdzoo.save_pretrained(codec, tmp_path / "codec")
        more = ["--input", str(tmp_path / "codec")]
        if reads == "sizes":
            more += ["--sizes", "40", "64", "128", "--amp", "bf16", "--reuse", "2"]
    recipes["distill"].main(["--smoke", "--out", str(tmp_path / "run"), *more])
    stages = [path.parent.name for path in (tmp_path / "run").glob("*/history.jsonl")]
    assert sorted(stages) == ["features", "logits", "trunk"]
    student = torch.load(tmp_path / "run" / "student.pt", weights_only=True)
    assert student["cut"] == "blocks.2"
    assert all(value.isfinite().all() for value in student["adapter"].values())
    front = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.", "blocks.2.")
    rows = [json.loads(line) for line in (tmp_path / "run" / "logits" / "history.jsonl").read_text().splitlines()]
    assert {"agreement at 40 pixels (%)", "agreement at 128 pixels (%)"} <= set(rows[-1]) or reads != "sizes"
    names = timm.create_model("test_efficientnet").state_dict()
    assert set(student["trunk"]) == {name for name in names if not name.startswith(front)}
    loaded = recipes["student"].load_student(tmp_path / "run")
    assert all(torch.equal(value, student["trunk"][name]) for name, value in loaded.trunk.state_dict().items())
    assert all(torch.equal(value, student["adapter"][name]) for name, value in loaded.adapter.state_dict().items())
    assert loaded.meta["classes"][0] == "tench"
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if reads == "jpeg":
        coefficients = encode_jpeg(images, quality=100, subsampling="4:4:4")
        expected = loaded.trunk(loaded.adapter(block_coefficients(coefficients)))
        assert torch.equal(loaded(coefficients), expected)
        assert loaded.transforms.crop == (64, 64)
        assert loaded(read_jpeg(PHOTO, transform=loaded.transforms)).shape == (1, 1000)
        with pytest.raises(TypeError, match="this student reads JPEGCoefficients, not Latent"):
            loaded(cdzoo.codecs.torfason2018(N=8).eval().encode(images))
        return
    codec = cdzoo.from_pretrained(tmp_path / "codec").eval()
    found = cdzoo.compose(codec, loaded).from_streams(codec.compress(images))
    expected = loaded.trunk(loaded.adapter(*recipes["distill"].latents_by(codec, sided=reads == "sizes")(images)))
    torch.testing.assert_close(found, expected)
    with pytest.raises(cdzoo.errors.PairingError, match="fingerprint"):
        cdzoo.compose(cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12), loaded)


@pytest.mark.slow
def test_the_student_of_a_torchvision_network_skips_broken_photographs(
    recipes: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = importlib.import_module("data").generate_classes(tmp_path / "photos")
    (photos / "link.png").symlink_to(tmp_path / "nothing.png")
    (photos / "broken.jpg").write_bytes(b"no photograph")
    (tmp_path / "names.txt").write_text("\n".join(f"kind {number}" for number in range(7)))
    network = torchvision.models.resnet18(num_classes=7)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    words = "--smoke --steps 6 --hidden 0 --depth 0 --teacher torchvision/resnet18 --cut layer2 --unfreeze layer3"
    files = ["--classes", str(tmp_path / "names.txt"), "--teacher-weights", str(tmp_path / "weights.pth")]
    options = [*words.split(), *files]
    result = recipes["distill"].main([*options, "--images", str(photos), "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "link.png is left out: " in printed
    assert "broken.jpg is left out: " in printed
    assert "2 photographs could not be read and were left out" in printed
    assert "--held-out 512: " in printed
    assert result["metrics"]["unreadable"] == 2
    student = recipes["student"].load_student(tmp_path / "run")
    assert student.meta["classes"][6] == "kind 6"
    assert student(read_jpeg(PHOTO, transform=student.transforms)).shape == (1, 7)


@pytest.mark.slow
def test_the_classifier_that_is_written_names_the_classes(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    words = "--smoke --steps 2 --hidden 0 --depth 0 --teacher timm/tf_efficientnet_lite0 --shares 1 0 0 --out"
    recipes["distill"].main([*words.split(), str(tmp_path)])
    model = cdzoo.from_pretrained(tmp_path / "classifier").eval()
    student = recipes["student"].load_student(tmp_path)
    coefficients = read_jpeg(PHOTO, transform=model.transforms)
    torch.testing.assert_close(student(coefficients), model(coefficients))
    [result] = cdzoo.classify(PHOTO, model=model)
    assert result.classes[0].name == model.meta["classes"][result.classes[0].number]


def test_the_packaged_teacher_needs_no_download(recipes: dict[str, ModuleType]) -> None:
    teacher = recipes["teachers"].load_teacher("timm/tf_efficientnet_lite0", None)
    assert (teacher.size, teacher.resize, teacher.interpolation) == (224, 256, "bicubic")
    weights = cdzoo.models.JPEGEfficientNetLite0_Weights.IMAGENET1K_PIXELS
    model = cdzoo.get_model("jpeg_efficientnet_lite0", weights=weights).eval()
    coefficients = read_jpeg(PHOTO, transform=model.transforms)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (teacher.mean, teacher.std))
    with torch.no_grad():
        expected = teacher.network((decode_jpeg(coefficients) - mean) / std)
        torch.testing.assert_close(model(coefficients), expected, rtol=1e-3, atol=1e-3)


def test_names_of_classes(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    names = recipes["distill"]._class_names
    assert names(None, 1000)[:2] == ["tench", "goldfish"]
    assert names(None, 10) is None
    (tmp_path / "names.txt").write_text("cat\ndog\n\n", encoding="utf-8")
    assert names(tmp_path / "names.txt", 2) == ["cat", "dog"]
    with pytest.raises(SystemExit, match="2 names for 3 classes; write one name a line"):
        names(tmp_path / "names.txt", 3)


def test_folders_without_a_readable_photograph_are_refused(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no photograph")
    images = recipes["distill"].ReadableImages([(tmp_path / "a.jpg", 0)], lambda image: image, torch.uint8)
    with pytest.raises(SystemExit, match="none of the 1 photographs can be read"):
        images[0]


def test_the_help_shows_the_command_as_it_is_typed(
    recipes: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["distill.py", "--help"])
    with pytest.raises(SystemExit):
        recipes["distill"].main()
    assert capsys.readouterr().out.startswith("usage: distill.py [-h] ")


def test_without_matplotlib_one_line_says_so(
    recipes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    assert recipes["training"].plot(tmp_path / "history.jsonl", tmp_path / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not recipes["training"].plot(tmp_path / "history.jsonl", tmp_path / "more.png")
    assert [file.name for file in tmp_path.glob("*.png")] == ["curves.png"]


def test_an_adapter_for_any_size_is_the_zoos(recipes: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    codec = cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12).eval()
    adapter = recipes["distill"].AnySizeAdapter(12, 40, 28, latent_stride=16, hidden=192, depth=7).eval()
    model = cdzoo.models.latent_efficientnet_lite0(in_channels=12).eval()
    missing = model.load_state_dict(adapter.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert not [name for name in missing.missing_keys if name.startswith(("entrance.", "adapter."))]
    read = recipes["distill"].latents_by(codec, sided=True)
    for side in (200, 330):
        images = torch.rand(2, 3, side, side)
        with torch.no_grad():
            maps = model.forward_intermediates(codec.encode(images), [0], intermediates_only=True)
            torch.testing.assert_close(adapter(*read(images)), maps[0])
    adapter.train()(*read(images)).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    last = adapter.entrance.octaves[2].weight  # no input has reached it
    before, optimizer = last.detach().clone(), recipes["muon"].Muon(recipes["muon"].parameter_groups(adapter, 0.1))
    optimizer.step()
    assert torch.equal(last, before)
