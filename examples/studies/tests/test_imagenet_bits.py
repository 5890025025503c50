"""Accuracy over bits of one network, on the packaged photograph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluate import photograph
from studies import imagenet_bits

import cdzoo
from cdzoo.demo import PHOTO


def test_every_way_names_the_palace_at_high_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_bits, "QUALITIES", (5, 90))
    points = imagenet_bits.measure([(Path(PHOTO), 698), (Path(PHOTO), 0)])
    assert {point["images"] for point in points} == {2}
    by_series = {series: [p for p in points if p["series"] == series] for series in {p["series"] for p in points}}
    assert {"JPEG, stem pixels", "JPEG, stem dct", "hyperprior, decoded"} <= set(by_series)
    for series in imagenet_bits.STEMS:
        low, high = by_series[series]
        assert low["bpp"] < 0.5 * high["bpp"]
        assert high["top1"] in (0, 50)  # one of two labels is right, at best
    assert by_series["JPEG, stem pixels"][1]["top1"] == 50
    pytest.importorskip("matplotlib")
    imagenet_bits.plot(points, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@torch.no_grad()
def test_rates_are_those_of_whole_files() -> None:
    x = photograph(Path(PHOTO), imagenet_bits.SIDE)
    codec = cdzoo.get_codec("bmshj2018_hyperprior", weights="DEFAULT").eval()
    pixels = cdzoo.models.jpeg_efficientnet_lite0(weights="IMAGENET1K_PIXELS").eval()
    bpp, logits = imagenet_bits.decoded_way(codec, pixels)(x)
    [stream] = codec.compress(x)
    assert bpp == pytest.approx(8 * len(stream) / x[0, 0].numel())
    x_hat = codec.decode(codec.decompress([stream])).clamp(0, 1)  # 256 on the shorter side: the transform only crops
    top, left = (round((n - 224) / 2) for n in x.shape[2:])
    exact = pixels.forward_head(pixels.run_stages((x_hat[..., top : top + 224, left : left + 224] - 0.5) / 0.5))
    assert torch.nn.functional.cosine_similarity(logits, exact) > 0.999
