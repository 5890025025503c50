"""Writes ``tests/expected/``: streams and what they must decode to. Run it only when the format or weights change.

    python tests/make_golden.py

``golden.json`` holds, per folder of weights, a stream and the SHA-256 of the latent it decodes to.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import cdzoo
from cdzoo._weights import PACKAGED
from cdzoo.codecs import BMSHJ2018_Hyperprior_Weights, Codec
from cdzoo.demo import load_photo

EXPECTED = Path(__file__).parent / "expected"
PRETRAINED = BMSHJ2018_Hyperprior_Weights.DEFAULT.value.folder
SMALL = "mbt2018_mean_n6_m8"


def photo_crop(height: int, width: int) -> torch.Tensor:
    """``(1, 3, height, width)`` from the middle of the packaged photograph."""
    photo = load_photo()
    return photo[..., 160 : 160 + height, 120 : 120 + width]


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the values as little-endian float32 in row-major order."""
    assert tensor.dtype == torch.float32
    return hashlib.sha256(tensor.cpu().contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def small_codec() -> Codec:
    """A seeded codec whose latents, means and scales spread widely."""
    torch.manual_seed(0)
    codec = cdzoo.get_codec("mbt2018_mean", N=6, M=8)
    assert isinstance(codec, Codec)
    modules: Any = codec
    with torch.no_grad():
        modules.g_a[-1].weight.mul_(200)
        modules.entropy_bottleneck.quantiles[:, 0, 1] += torch.linspace(-0.4, 0.4, 6)
        for part in (modules.h_a, modules.h_s):
            for module in part:
                if hasattr(module, "weight"):
                    module.weight.mul_(2.5)
                    module.bias.add_(0.3)
    return codec.eval()


def entry(codec: Codec, image: torch.Tensor) -> dict[str, object]:
    """A stream and what it decodes to."""
    (stream,) = codec.compress(image)
    latent = codec.decompress([stream])
    assert latent.scales is not None
    return {
        "fingerprint": codec.fingerprint,
        "stream": base64.b64encode(stream).decode(),
        "image_size": list(latent.image_size),
        "shape": list(latent.y_hat.shape),
        "y_hat": digest(latent.y_hat),
        "scales": digest(latent.scales),
    }


def main() -> None:
    """Write everything anew."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = cdzoo.save_pretrained(small_codec(), Path(temporary) / SMALL, dtype=torch.float16, card="Test data.\n")
        shutil.rmtree(EXPECTED / SMALL, ignore_errors=True)
        shutil.copytree(folder, EXPECTED / SMALL)
    golden = {
        PRETRAINED: entry(cdzoo.from_pretrained(PACKAGED / PRETRAINED), photo_crop(64, 96)),
        SMALL: entry(cdzoo.from_pretrained(EXPECTED / SMALL), photo_crop(70, 90)),
    }
    (EXPECTED / "golden.json").write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
