"""What is given to the JPEG half by mistake, and what lies at the edges of what it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cdzoo import data
from cdzoo.codecs import MAX_IMAGE_PIXELS, decode_jpeg, encode_jpeg, read_jpeg, read_jpeg_header, write_jpeg
from cdzoo.errors import JPEGError
from cdzoo.jpeg import files as jpeg_module
from cdzoo.models import jpeg_efficientnet_lite0
from cdzoo.ops import JPEGConv2d, blockify, dct2d, idct2d, to_jpeg_domain, unblockify
from cdzoo.transforms import CoefficientTransform
from cdzoo.types import JPEGCoefficients


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    ).eval()


def files(height: int = 64, width: int = 48, subsampling: str = "4:2:0", *, channels: int = 3) -> JPEGCoefficients:
    torch.manual_seed(0)
    return encode_jpeg(torch.rand(2, channels, height, width), subsampling=subsampling)


@pytest.mark.slow
def test_compiled_networks_take_one_geometry_after_another() -> None:
    model = to_jpeg_domain(network(), mean=0, std=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    batches = [files(subsampling=name) for name in ("4:2:0", "4:4:4", "4:2:2", "4:4:0")]
    batches += [files(channels=1), files(80, 80), files(33, 47)]
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(compiled(batch), model(batch))


@pytest.mark.parametrize("mode", ["fused", "factored"])
def test_batches_of_nothing(mode: str) -> None:
    full = files()
    empty = full._replace(planes=tuple(plane[:0] for plane in full.planes), qtables=full.qtables[:0])
    assert decode_jpeg(empty).shape == (0, 3, 64, 48)
    assert write_jpeg(empty) == []
    assert to_jpeg_domain(network(), mode=mode, mean=0, std=1)(empty).shape == (0, 8)


@pytest.mark.parametrize("mode", ["fused", "factored"])
def test_shapes_without_memory(mode: str) -> None:
    model = to_jpeg_domain(network(), mode=mode, mean=0, std=1).to("meta")
    assert model(files().to("meta")).shape == (2, 8)
    assert decode_jpeg(files().to("meta")).shape == (2, 3, 64, 48)


@pytest.mark.parametrize("mode", ["fused", "factored", "explicit"])
def test_what_is_no_batch_of_coefficients(mode: str) -> None:
    model = to_jpeg_domain(network(), mode=mode, mean=0, std=1)
    with pytest.raises(TypeError, match=r"not Tensor: read files with cdzoo\.codecs\.read_jpeg"):
        model(torch.rand(2, 3, 64, 48))
    c = files()
    for wrong in (
        c._replace(qtables=c.qtables[:1]),
        c._replace(qtables=c.qtables[:, :2]),
        c._replace(planes=(c.planes[0], c.planes[1][:1], c.planes[2])),
    ):
        with pytest.raises(JPEGError, match="must be"):
            model(wrong)


@pytest.mark.parametrize("source", [{"a": 1}, torch.zeros(4, dtype=torch.uint8), 3])
def test_sources_that_are_none(source: object) -> None:
    with pytest.raises(TypeError, match=r"tensor\.numpy\(\)\.tobytes\(\) of a tensor"):
        read_jpeg(source)  # type: ignore[arg-type]


def test_pixels_for_coefficients_and_coefficients_for_pixels() -> None:
    x = torch.rand(1, 3, 16, 16)
    for function in (decode_jpeg, write_jpeg):
        with pytest.raises(TypeError, match=r"reads JPEGCoefficients, not Tensor"):
            function(x)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"takes a tensor, not ndarray; torch\.from_numpy"):
        encode_jpeg(x.numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a tensor, not JPEGCoefficients"):
        encode_jpeg(files())  # type: ignore[arg-type]


def test_options_of_the_reader() -> None:
    stream = write_jpeg(files())[0]
    for wrong in ("2", 2.5):
        with pytest.raises(TypeError, match="num_threads must be an integer, not"):
            read_jpeg(stream, num_threads=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"out must be JPEGCoefficients, .* not list"):
        read_jpeg(stream, out=list(files()))  # type: ignore[arg-type]


def test_networks_over_other_channels() -> None:
    with pytest.raises(ValueError, match="4 channels"):
        to_jpeg_domain(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()), mean=0, std=1)

    class LastComesFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Conv2d(1, 2, 1), nn.Conv2d(3, 1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.second(self.first(x))
            return out

    assert to_jpeg_domain(LastComesFirst(), mean=0, std=1)(files()).shape == (2, 2, 62, 46)


def test_values_that_have_no_coefficients() -> None:
    with pytest.raises(ValueError, match=r"dtype=torch\.uint8"):
        decode_jpeg(files(), dtype=torch.uint8)
    with pytest.raises(ValueError, match="NaN"):
        encode_jpeg(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"encode_jpeg\(decode_jpeg"):
        write_jpeg(data.downscale(files(), 2))
    for side in (0, -5, True, 2.0):
        with pytest.raises(ValueError, match="shorter_side"):
            CoefficientTransform(shorter_side=side)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 1 on"):
        data.gray_to_ycbcr(files(channels=1), ((2, 2), (0, 1), (1, 1)))
    with pytest.raises(ValueError, match=r"factor=2\.0"):
        data.downscale(files(), 2.0)  # type: ignore[arg-type]
    for size in ("ab", (1, 2, 3), (0, 4), 1.5):
        with pytest.raises((ValueError, TypeError)):
            data.RandomCrop(size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with labels and samples without"):
        data.collate_coefficients([files(), (files(), 1)])  # type: ignore[arg-type]


def test_one_limit_of_pixels() -> None:
    assert jpeg_module.MAX_IMAGE_PIXELS == MAX_IMAGE_PIXELS


def test_random_rotations_go_into_one_batch() -> None:
    c = files(100, 100)
    rotate = data.RandomRotation90()
    rotated = [rotate(c) for _ in range(12)]
    assert {r.image_size for r in rotated} == {(96, 96)}
    batch = data.collate_coefficients(rotated)
    assert isinstance(batch, JPEGCoefficients)
    assert len({r.planes[0].sum(0).numpy().tobytes() for r in rotated}) == 4
    small = files(10, 10)
    assert all(rotate(small) is small for _ in range(8))


@pytest.mark.parametrize("batch", [files(subsampling="4:4:4"), files(channels=1)])
def test_an_unknown_upsampling_is_refused_without_chroma_to_upsample(batch: JPEGCoefficients) -> None:
    with pytest.raises(ValueError, match="chroma='nothing': choose"):
        decode_jpeg(batch, chroma="nothing")


@pytest.mark.parametrize("read", [read_jpeg, read_jpeg_header])
def test_files_open_in_text_mode_name_the_mode(read: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(write_jpeg(files())[0])
    with path.open(encoding="utf-8") as file, pytest.raises(TypeError, match='mode "rb"'):
        read(file)


@pytest.mark.parametrize("change", ["assign", "data", "parameter", "inference"])
def test_stored_maps_follow_the_filters(change: str) -> None:
    torch.manual_seed(0)
    layer = JPEGConv2d(2, 3, 3, padding=1, mode="explicit").double().eval()
    c = dct2d(blockify(torch.randn(1, 2, 16, 8, dtype=torch.float64)))

    def expected() -> torch.Tensor:
        x = unblockify(idct2d(c))
        return dct2d(blockify(nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)))

    changes: dict[str, Callable[[], object]] = {
        "assign": lambda: layer.load_state_dict(
            {name: 2 * value.clone() for name, value in layer.state_dict().items()}, assign=True
        ),
        "data": lambda: layer.weight.data.mul_(3),
        "parameter": lambda: setattr(layer, "weight", nn.Parameter(torch.randn_like(layer.weight))),
        "inference": lambda: layer.weight.mul_(-1),
    }
    with torch.inference_mode(change == "inference"), torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(c), expected(), rtol=1e-10, atol=1e-10)
            changes[change]()
        torch.testing.assert_close(layer(c), expected(), rtol=1e-10, atol=1e-10)


def test_pixels_are_no_coefficients() -> None:
    pixels: Any = torch.rand(1, 3, 224, 224)
    for function in (jpeg_efficientnet_lite0(width=0.25), CoefficientTransform(resize=8)):
        with pytest.raises(TypeError, match="this reads JPEGCoefficients, not Tensor"):
            function(pixels)


def test_coefficients_are_printed_without_their_values() -> None:
    text = repr(encode_jpeg(torch.rand(1, 3, 16, 24)))
    assert text.startswith("JPEGCoefficients(planes: (1, 2, 3, 8, 8) torch.int16, (1, 1, 2, 8, 8) torch.int16,")
    assert "image_size=(16, 24)" in text
    assert len(text) < 300
