"""The experiments of Ehrlich and Davis: their figures, their parts, and each script on a few files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import ehrlich2019
import pytest
import torch
from oracles.jpeg_files import encode, picture, two_classes
from studies.jpeg_domain import accuracy, block_relu, conversion_deviation, relu_rmse, throughput

from cdzoo.codecs import decode_jpeg, encode_jpeg, read_jpeg
from cdzoo.demo import PHOTO
from cdzoo.jpeg.transforms import crop
from cdzoo.models import jpeg_resnet_small
from cdzoo.ops import apx_relu, asm_relu, blockify, dct2d, idct2d, unblockify

plot = importlib.import_module("studies.jpeg_domain.plot") if importlib.util.find_spec("matplotlib") else None

# mean RMSE over 100,000 blocks, for 1 to 14 frequencies, from another implementation
APX = [0.365, 0.334, 0.297, 0.253, 0.219, 0.180, 0.142, 0.109, 0.072, 0.052, 0.037, 0.023, 0.0103, 0.0031]
ASM = [0.344, 0.295, 0.239, 0.171, 0.122, 0.079, 0.049, 0.031, 0.0150, 0.0084, 0.0044, 0.0018, 0.0004, 0.00005]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 files of two classes, as the paper's data: 32x32 pixels, quality 75, 4:2:0."""
    return two_classes(tmp_path_factory.mktemp("files"), 50)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a network after a few steps."""
    out = tmp_path_factory.mktemp("runs")
    options = ["--data", str(data), "--width", "0.5", "--steps", "4", "--batch", "8", "--limit", "64"]
    ehrlich2019.main(["classifier", *options, "--out", str(out)])
    return out / "classifier"


def test_rmse_of_the_approximated_relus() -> None:
    found = relu_rmse.relu_rmse(20_000)
    for kind, expected in (("asm", ASM), ("apx", APX)):
        for n, value in enumerate(expected):
            digits = 5 if value < 1e-3 and kind == "asm" and n == 13 else 4 if value < 0.02 else 3
            error = (1 + 20_000 / 100_000) ** 0.5 * found[f"{kind}_standard_error"][n]
            assert abs(found[kind][n] - value) < 0.5 * 10**-digits + 4 * error, (kind, n + 1)
        assert found[kind][14] < 1e-6
    assert all(asm < apx for asm, apx in zip(found["asm"][:14], found["apx"], strict=False))


@pytest.mark.parametrize("kind", ["asm", "apx"])
def test_block_relu_is_the_relu_on_coefficients(kind: str) -> None:
    relu = {"asm": asm_relu, "apx": apx_relu}[kind]
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    for n in range(1, 16):
        expected = unblockify(idct2d(relu(dct2d(blockify(x)), n)), (16, 24))
        torch.testing.assert_close(block_relu.BlockReLU(kind, n)(x), expected, rtol=0, atol=1e-5)


def test_block_relu_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="12x16"):
        block_relu.BlockReLU("asm", 4)(torch.zeros(1, 1, 12, 16))
    with pytest.raises(ValueError, match="kind='relu'"):
        block_relu.BlockReLU("relu", 4)


@pytest.mark.parametrize(("kind", "n"), [("asm", 3), ("apx", 6), ("asm", 15)])
def test_a_network_on_pixels_is_the_factored_network(kind: str, n: int) -> None:
    torch.manual_seed(0)
    c = encode_jpeg(torch.rand(4, 3, 8, 8).repeat_interleave(4, -1).repeat_interleave(4, -2))
    model = jpeg_resnet_small(num_classes=5, width=0.5)
    model(c)  # running statistics of something
    expected = jpeg_resnet_small(num_classes=5, width=0.5, mode="factored", relu=kind, num_frequencies=n)
    expected.load_state_dict(model.state_dict())
    ours = block_relu.approximated(model, kind, n)
    torch.testing.assert_close(ours.eval()(c), expected.eval()(c), rtol=0, atol=1e-5)
    assert type(model.block1.relu) is torch.nn.ReLU


def test_lossless_coefficients() -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    c = conversion_deviation.lossless_coefficients(x)
    torch.testing.assert_close(decode_jpeg(c, clamp=False), x, rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # it is what people have
def test_every_script_runs(data: Path, trained: Path, tmp_path: Path) -> None:
    weights = ["--data", str(data), "--weights", str(trained), "--quick"]
    lossless = tmp_path / "lossless"
    lossless.mkdir()
    for i in range(3):
        picture(32, 32, seed=i).save(lossless / f"{i}.png")

    relu_rmse.main(["--quick", "--out", str(tmp_path / "relu_rmse.json")])
    throughput.main([*weights, "--out", str(tmp_path / "throughput.json")])
    accuracy.main([*weights, "--out", str(tmp_path / "accuracy.json")])
    conversion_deviation.main(
        [*weights, "--lossless", str(lossless), "--out", str(tmp_path / "conversion_deviation.json")]
    )
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert results.keys() == {"relu_rmse", "throughput", "accuracy", "conversion_deviation"}
    assert all(found["machine"]["torch"] == torch.__version__ for found in results.values())
    for row in results["conversion_deviation"]["rows"]:
        if row["against"] != "libjpeg":
            assert row["changed_decisions"] == 0
            assert row["largest_logit_difference"] < 1e-4
    assert all(value < 1e-9 for value in results["accuracy"]["difference_from_factored"]["float64"].values())
    hows = [row["how"] for row in results["accuracy"]["accuracy"]]
    assert {how: hows.count(how) for how in hows} == {"converted": 3, "recalibrated": 3, "adapted": 3, "scratch": 2}
    assert results["throughput"]["milliseconds"]["training"].keys() >= {"pixels, torchvision", "JPEG, factored"}

    before = (tmp_path / "accuracy.json").read_text()
    accuracy.main([*weights, "--out", str(tmp_path / "accuracy.json")])
    assert (tmp_path / "accuracy.json").read_text() == before  # nothing was missing
    with pytest.raises(SystemExit, match="other settings"):
        accuracy.main([*weights, "--bfloat16", "--out", str(tmp_path / "accuracy.json")])

    if plot is not None:
        plot.main(["--results", str(tmp_path)])
        assert {file.stem for file in tmp_path.glob("*.png")} == {"relu_rmse", "throughput", "accuracy"}


def test_the_weights_that_ship_agree_in_every_form() -> None:
    model = jpeg_resnet_small(weights="CIFAR10").eval()
    c = crop(model.transforms(read_jpeg(PHOTO)), 0, 0, 32, 64)
    for relu, n in (("exact", 15), ("apx", 6)):
        expected = jpeg_resnet_small(weights="CIFAR10", mode="factored", relu=relu, num_frequencies=n).eval()(c)
        ours = model if relu == "exact" else block_relu.approximated(model, relu, n)
        torch.testing.assert_close(ours(c), expected, rtol=0, atol=1e-4)
    assert model.origin.arguments["width"] == 2


def test_all_forms_go_to_the_device_that_is_timed() -> None:
    forms = throughput.forms("CIFAR10", explicit=False, device="meta")
    assert {"JPEG, fused, ASM", "JPEG, factored", "pixels, Pillow"} <= set(forms)
    for name, (model, _) in forms.items():
        assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}, name
    files = [encode(picture(32, 32), quality=75)]
    assert throughput.coefficients(files, "meta").planes[0].device.type == "meta"
    assert {throughput.pillow_pixels(files, "meta").device.type} == {"meta"}
