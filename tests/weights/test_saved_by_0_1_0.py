"""Folders and streams that version 0.1.0 wrote still load, and mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cdzoo
from cdzoo.transforms import LatentTransform

SAVED = Path(__file__).parents[1] / "oracles" / "saved_by_0_1_0"
FINGERPRINT = "1818974364a47f67"  # printed by 0.1.0
LOGITS = [[-6.5652e14, 4.5729e15, 1.8591e15]]  # printed by 0.1.0


def test_a_codec_and_its_stream() -> None:
    codec = cdzoo.from_pretrained(SAVED / "codec")
    assert codec.fingerprint == codec.origin.fingerprint == FINGERPRINT
    assert codec.meta["title"] == "A codec for tests"
    latent = codec.decompress([(SAVED / "stream.cdz").read_bytes()])
    assert latent.image_size == (20, 30)


def test_a_network_over_its_latents() -> None:
    model = cdzoo.from_pretrained(SAVED / "model")
    assert model.origin.builder == "resnet49"
    assert model.origin.arguments["upscale"] is None  # 0.1.0 wrote "none"
    assert model.codec_fingerprint == FINGERPRINT
    assert model.transforms == LatentTransform(mean=(0.5,) * 4)
    assert model.meta["classes"] == ["a", "b", "c"]
    network = cdzoo.compose(cdzoo.from_pretrained(SAVED / "codec"), model)
    with torch.no_grad():
        logits = network.from_streams([(SAVED / "stream.cdz").read_bytes()])
    torch.testing.assert_close(logits, torch.tensor(LOGITS), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="upscale='deconv' conflicts with weights"):
        cdzoo.models.resnet49(weights=SAVED / "model", upscale="deconv")
