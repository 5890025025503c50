"""The correlation of log variance and entropy, on a few generated images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from studies import entropy_correlation

import cdzoo
from cdzoo.ops import discrete_entropy, gaussian_entropy_loss


def codec(gain: float) -> cdzoo.codecs.Codec:
    """A codec of random weights, with as many symbols as the gain gives."""
    torch.manual_seed(0)
    made = cdzoo.codecs.choi2019(N=8, latent_channels=12).eval()
    with torch.no_grad():
        made.g_a[-1].weight.mul_(100 * gain)
    return made


def test_points_and_correlation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "images" / "more").mkdir(parents=True)
    names = ["a.png", "b.png", "more/c.png"]
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    codecs = [codec(1.0), codec(0.3)]
    given = []
    for number, net in enumerate(codecs):
        cdzoo.save_pretrained(net, tmp_path / str(number))
        given += ["--codec", str(tmp_path / str(number))]
    out = tmp_path / "results" / "found.json"
    argv = ["entropy_correlation.py", "--data", str(tmp_path / "images"), *given, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    entropy_correlation.main()
    found = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 1000
    assert str(tmp_path) not in out.read_text()
    assert [entry["fingerprint"] for entry in found["series"]] == [net.fingerprint for net in codecs]
    for net, entry in zip(codecs, found["series"], strict=True):
        assert [point["image"] for point in entry["points"]] == names
        whole = []
        for name, point in zip(names, entry["points"], strict=True):
            pixels = np.array(Image.open(tmp_path / "images" / name))
            y_hat = net.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).y_hat
            whole.append((float(gaussian_entropy_loss(y_hat)), float(discrete_entropy(y_hat))))
            assert point["whole"] == pytest.approx(whole[-1], abs=1e-4)
            logs = [y.var(correction=0).log().item() for y in y_hat[0] if y.unique().numel() > 1]
            bits = [discrete_entropy(y).item() for y in y_hat[0] if y.unique().numel() > 1]
            assert point["maps"] == pytest.approx([np.mean(logs), np.mean(bits)], abs=1e-4)
        assert entry["pearson"]["whole"] == pytest.approx(np.corrcoef(np.array(whole).T)[0, 1], abs=1e-2)
    assert set(found["pooled"]) == {"whole", "maps"}
