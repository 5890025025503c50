"""Transforms of large images tile by tile: the same values in less memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.slow import all_but_one
from oracles.small_modules import CALIBRATED
from torch import Tensor, nn

import cdzoo
from cdzoo.codecs import Codec, TransformCodec
from cdzoo.coding import tiles
from cdzoo.coding.layers import GDN

PHOTOGRAPH = Path(cdzoo.__file__).parent / "assets" / "summer_palace.jpg"
CHAINS = {
    "strides": lambda: nn.Sequential(nn.Conv2d(1, 2, 5, 2, 2), nn.ReLU(), GDN(2), nn.Conv2d(2, 1, 3, 2, 1)),
    "dilation": lambda: nn.Sequential(nn.Conv2d(1, 1, 3, 1, 2, dilation=2), nn.Conv2d(1, 1, 1)),
    "even kernels": lambda: nn.Sequential(nn.Conv2d(1, 1, 4, 2, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 4, 4)),
    "upwards": lambda: nn.Sequential(nn.ConvTranspose2d(1, 1, 5, 2, 2, 1), nn.ConvTranspose2d(1, 1, 5, 2, 2, 1)),
    "gaps": lambda: nn.Sequential(nn.ConvTranspose2d(1, 1, 2, 3, 1), nn.ConvTranspose2d(1, 1, 4, 2, 1)),
    "down and up": lambda: nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.ConvTranspose2d(1, 1, 4, 4)),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_input_ranges_are_where_gradients_are(chain: str) -> None:
    module = CHAINS[chain]().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(1 + 0.1 * torch.rand_like(parameter))
    x = torch.rand(1, 1, 192, 192, requires_grad=True)
    y = module(x)
    middle = y.shape[2] // 2
    for first, end in [(middle, middle + 1), (middle - 1, middle + 3), (middle + 1, middle + 6)]:
        (gradient,) = torch.autograd.grad(y[:, :, first:end].sum(), x, retain_graph=True)
        rows = gradient[0, 0].abs().sum(1).nonzero().flatten().tolist()
        assert rows
        assert tiles.input_range(module, (first, end)) == (rows[0], rows[-1] + 1) or chain == "gaps"
        needed = tiles.input_range(module, (first, end))
        assert needed is not None
        assert needed[0] <= rows[0]
        assert needed[1] > rows[-1]


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1)),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 1, (3, 1)),
        nn.InstanceNorm2d(1),
        nn.Upsample(scale_factor=2),
    ],
)
def test_layers_of_other_kinds_are_not_known(module: nn.Module) -> None:
    assert tiles.input_range(module, (3, 5)) is None


def record(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pixels of every call of the transforms from now on."""
    calls: list[int] = []
    analyze, synthesize = codec.analyze, codec.synthesize

    def analyzed(x: Tensor) -> Tensor:
        calls.append(x[0, 0].numel())
        return analyze(x)

    def synthesized(y_hat: Tensor) -> Tensor:
        calls.append(y_hat[0, 0].numel() * codec.stride**2)
        return synthesize(y_hat)

    monkeypatch.setattr(codec, "analyze", analyzed)
    monkeypatch.setattr(codec, "synthesize", synthesized)
    return calls


@pytest.mark.parametrize(
    "name",
    all_but_one(["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean", *CALIBRATED], "bmshj2018_hyperprior"),
)
@pytest.mark.parametrize("size", [(203, 331), (401, 64), (1, 9000)])
def test_tiles_give_what_the_whole_image_gives(
    name: str,
    size: tuple[int, int],
    make_codec: Callable[..., Codec],
    make_images: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec, x = make_codec(name), make_images(2, *size)
    with torch.no_grad():
        y = codec.analyze(tiles.pad_to_multiple(x, codec.stride))
    whole = codec.encode(x)
    x_hat = codec.decode(whole)
    monkeypatch.setattr(tiles, "TILE", 64)
    calls = record(codec, monkeypatch)
    with torch.no_grad():
        in_tiles = tiles.analyze(codec, x, like=x)
    assert in_tiles.shape == y.shape
    assert torch.allclose(in_tiles, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))
    latent = codec.encode(x)
    assert (latent.y_hat != whole.y_hat).double().mean() < 1e-3  # rounding ties
    assert torch.equal(codec.decompress(codec.compress(x)).y_hat, latent.y_hat)
    assert torch.allclose(codec.decode(whole), x_hat, atol=1e-5)
    assert len(calls) > 8
    assert max(calls) <= (64 + 2 * 64) ** 2


def test_transforms_that_see_the_whole_image_are_not_split(
    make_images: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.InstanceNorm2d(4))
    codec = TransformCodec(analysis, nn.ConvTranspose2d(4, 3, 4, 4), stride=4, latent_channels=4).eval()
    x = make_images(1, 300, 300)
    expected = codec.encode(x)
    monkeypatch.setattr(tiles, "TILE", 64)
    calls = record(codec, monkeypatch)
    assert torch.equal(codec.encode(x).y_hat, expected.y_hat)
    assert calls == [300 * 300]
    codec.decode(expected)
    assert len(calls) > 8


def test_tiles_give_the_stream_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = cdzoo.codecs.bmshj2018_hyperprior(weights="DEFAULT").eval()
    x = cdzoo.load_images(PHOTOGRAPH)
    whole, stream = codec.encode(x), codec.compress(x)
    with torch.no_grad():
        y = codec.analyze(tiles.pad_to_multiple(x, codec.stride))
    monkeypatch.setattr(tiles, "TILE", 128)
    calls = record(codec, monkeypatch)
    latent = codec.encode(x)
    assert len(calls) == 4 * 5
    different = latent.y_hat != whole.y_hat
    assert ((y - y.floor())[different] - 0.5).abs().max() < 1e-3 if different.any() else codec.compress(x) == stream


_PEAK = """
import resource, sys, torch, cdzoo

codec = cdzoo.codecs.bmshj2018_hyperprior(weights="DEFAULT").eval()
codec.decode(codec.decompress(codec.compress(torch.rand(1, 3, 64, 64))))
x = torch.rand(1, 3, 8, 8).repeat(1, 1, 250, 375)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codec.decode(codec.decompress(codec.compress(x)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_six_megapixels_take_little_memory() -> None:
    run = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True, timeout=300)
    assert int(run.stdout) < 800  # MiB
