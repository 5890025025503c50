"""``examples/entropy_correlation.py`` on a few generated images."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cdzoo
from cdzoo.ops import discrete_entropy, gaussian_entropy_loss

SCRIPT = Path(__file__).parents[2] / "examples" / "entropy_correlation.py"


def test_points_and_correlation(
    make_codec: Callable[..., cdzoo.codecs.Codec],
    make_images: Callable[..., torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "images" / "more").mkdir(parents=True)
    names = ["a.png", "b.png", "more/c.png"]
    for seed, name in enumerate(names):
        pixels = make_images(1, 64, 80, seed=seed)[0].mul(255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    codecs = [make_codec("choi2019"), make_codec("choi2019", gain=0.3)]
    given = []
    for number, codec in enumerate(codecs):
        cdzoo.save_pretrained(codec, tmp_path / str(number))
        given += ["--codec", str(tmp_path / str(number))]
    out = tmp_path / "results" / "found.json"
    spec = importlib.util.spec_from_file_location("entropy_correlation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    argv = [SCRIPT.name, "--data", str(tmp_path / "images"), *given, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    script.main()
    found = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 1000
    assert str(tmp_path) not in out.read_text()
    assert [entry["fingerprint"] for entry in found["series"]] == [codec.fingerprint for codec in codecs]
    for codec, entry in zip(codecs, found["series"], strict=True):
        assert [point["image"] for point in entry["points"]] == names
        whole = []
        for name, point in zip(names, entry["points"], strict=True):
            pixels = np.array(Image.open(tmp_path / "images" / name))
            y_hat = codec.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).y_hat
            whole.append((float(gaussian_entropy_loss(y_hat)), float(discrete_entropy(y_hat))))
            assert point["whole"] == pytest.approx(whole[-1], abs=1e-4)
            logs = [y.var(correction=0).log().item() for y in y_hat[0] if y.unique().numel() > 1]
            bits = [discrete_entropy(y).item() for y in y_hat[0] if y.unique().numel() > 1]
            assert point["maps"] == pytest.approx([np.mean(logs), np.mean(bits)], abs=1e-4)
        assert entry["pearson"]["whole"] == pytest.approx(np.corrcoef(np.array(whole).T)[0, 1], abs=1e-2)
    assert set(found["pooled"]) == {"whole", "maps"}
