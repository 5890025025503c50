"""Rate control against the choice that an exhaustive search makes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import cdzoo
from cdzoo.codecs import Codec, RateControl, read_header
from cdzoo.codecs.hyperprior import RATES
from cdzoo.images import png_bytes

PHOTOGRAPH = Path(cdzoo.__file__).parent / "assets" / "summer_palace.jpg"


@pytest.fixture(scope="module")
def codecs() -> list[Codec]:
    return [cdzoo.get_codec("bmshj2018_hyperprior", weights=member).eval() for member in RATES]


@pytest.fixture(scope="module")
def x() -> Tensor:
    return cdzoo.load_images(PHOTOGRAPH)[:, :, 200:300, 100:230]


@pytest.fixture(scope="module")
def measured(codecs: list[Codec], x: Tensor) -> dict[str, list[float]]:
    """Bits per pixel and PSNR of every codec, from whole files: the stream and a PNG of Pillow."""
    found: dict[str, list[float]] = {"bpp": [], "psnr": []}
    image = np.asarray(Image.open(io.BytesIO(png_bytes(x))), np.float64)
    for codec in codecs:
        (stream,) = codec.compress(x)
        decoded = np.asarray(Image.open(io.BytesIO(png_bytes(codec.decode(codec.decompress([stream]))))), np.float64)
        found["bpp"].append(8 * len(stream) / (100 * 130))
        found["psnr"].append(10 * math.log10(255**2 / np.square(image - decoded).mean()))
    return found


def counted(codecs: list[Codec], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of the codecs that transform an image, from now on."""
    calls: list[int] = []

    def recorded(analyze: Callable[[Tensor], Tensor], position: int) -> Callable[[Tensor], Tensor]:
        return lambda x: (calls.append(position), analyze(x))[1]  # type: ignore[func-returns-value]

    for position, codec in enumerate(codecs):
        monkeypatch.setattr(codec, "analyze", recorded(codec.analyze, position))
    return calls


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["bpp", "psnr"])
def test_the_best_rate_is_chosen_with_few_encodings(
    codecs: list[Codec],
    x: Tensor,
    measured: dict[str, list[float]],
    kind: str,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codecs, values = codecs[:count], measured[kind][:count]
    assert values == sorted(values)
    between = [(a + b) / 2 for a, b in pairwise(values)]
    calls = counted(codecs, monkeypatch)
    for target in (values[0] / 2, *values, *between, values[-1] * 2):
        limit = target + 1e-9 if kind == "bpp" else target - 1e-9  # the test computes the PSNR in another order
        good = [value <= limit if kind == "bpp" else value >= limit for value in values]
        if any(good):
            expected = max(i for i in range(count) if good[i]) if kind == "bpp" else good.index(True)
        else:
            expected = 0 if kind == "bpp" else count - 1
        calls.clear()
        (choice,) = RateControl(codecs, **{kind: limit}).compress(x)  # type: ignore[arg-type]
        assert (choice.position, choice.reached) == (expected, any(good))
        assert choice.stream == codecs[expected].compress(x)[0]
        assert choice.bpp == read_header(choice.stream).bpp == pytest.approx(measured["bpp"][expected])
        assert choice.psnr == (pytest.approx(measured["psnr"][expected]) if kind == "psnr" else None)
        tried = calls[:-1]  # the last one is the test's own
        assert tried[0] == count // 2
        assert tried in (sorted(set(tried)), sorted(set(tried), reverse=True))  # one direction, nothing twice
        assert len(tried) <= abs(expected - count // 2) + 2


def test_every_image_has_its_own_rate(codecs: list[Codec], x: Tensor, measured: dict[str, list[float]]) -> None:
    control = RateControl(codecs, bpp=(measured["bpp"][0] + measured["bpp"][1]) / 2)
    flat = torch.full_like(x, 0.5)
    assert [choice.position for choice in control.compress(torch.cat([x, flat]))] == [0, 2]
    (choice,) = RateControl(codecs, psnr=99).compress(flat)
    assert choice.psnr is not None
    assert choice.psnr <= 100
    assert control.facts == {"bpp": control.bpp, "fingerprints": [codec.fingerprint for codec in codecs]}


def test_an_image_that_comes_back_exactly_has_100_decibels() -> None:
    pair = torch.nn.PixelUnshuffle(2), torch.nn.PixelShuffle(2)
    codec = cdzoo.codecs.TransformCodec(*pair, stride=2, latent_channels=12, step=1 / 255, name="exact").eval()
    image = (torch.arange(192).reshape(1, 3, 8, 8) / 255).float()
    (choice,) = RateControl([codec], psnr=99).compress(image)
    assert (choice.psnr, choice.reached) == (100.0, True)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "0.4", True])
@pytest.mark.parametrize("kind", ["bpp", "psnr"])
def test_targets_are_checked(codecs: list[Codec], kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind}={value!r} must be a finite number above 0; pass"):
        RateControl(codecs, **{kind: value})


def test_one_target_for_codecs(codecs: list[Codec]) -> None:
    for targets in ({}, {"bpp": 0.4, "psnr": 32.0}):
        with pytest.raises(ValueError, match="pass exactly one of them"):
            RateControl(codecs, **targets)
    with pytest.raises(ValueError, match="codecs is empty; pass"):
        RateControl([], bpp=0.4)
    with pytest.raises(TypeError, match=r"not Linear; use cdzoo\.get_codec"):
        RateControl([torch.nn.Linear(1, 1)], bpp=0.4)  # type: ignore[list-item]
