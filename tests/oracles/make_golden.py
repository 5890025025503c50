"""Writes ``tests/expected/``: streams and what they must decode to. Run it only when the format or weights change.

    python -m oracles.make_golden

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
from cdzoo.codecs import BMSHJ2018_Hyperprior_Weights, Codec, choi2019, torfason2018
from cdzoo.demo import load_photo
from cdzoo.weights.enums import PACKAGED

EXPECTED = Path(__file__).parents[1] / "expected"
PRETRAINED = BMSHJ2018_Hyperprior_Weights.DEFAULT.value.folder
SMALL = "mbt2018_mean_n6_m8"
CALIBRATED = ["torfason2018_n4_m4", "choi2019_n4_m4"]


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


def calibrated_codec(name: str) -> Codec:
    """A seeded codec whose tables were measured on less than what it has to code, so that some symbols are escaped."""
    torch.manual_seed(0)
    codec: Any = (torfason2018 if name.startswith("torfason2018") else choi2019)(latent_channels=4, N=4)
    with torch.no_grad():
        if name.startswith("torfason2018"):
            codec.quantizer.centers.add_(torch.linspace(-0.1, 0.2, 6))
            codec.train()
            for _ in range(30):  # running statistics
                codec(photo_crop(128, 128))
        else:
            codec.g_a[-1].weight.mul_(100)
    codec.calibrate(photo_crop(32, 32))
    return codec.eval()


def entry(codec: Codec, image: torch.Tensor) -> dict[str, object]:
    """A stream and what it decodes to."""
    (stream,) = codec.compress(image)
    latent = codec.decompress([stream])
    return {
        "fingerprint": codec.fingerprint,
        "stream": base64.b64encode(stream).decode(),
        "image_size": list(latent.image_size),
        "shape": list(latent.y_hat.shape),
        "y_hat": digest(latent.y_hat),
        "scales": None if latent.scales is None else digest(latent.scales),
    }


def main() -> None:
    """Write everything anew."""
    made = {SMALL: small_codec(), **{name: calibrated_codec(name) for name in CALIBRATED}}
    for name, codec in made.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = cdzoo.save_pretrained(codec, Path(temporary) / name, dtype=torch.float16, card="Test data.\n")
            shutil.rmtree(EXPECTED / name, ignore_errors=True)
            shutil.copytree(folder, EXPECTED / name)
    golden = {PRETRAINED: entry(cdzoo.from_pretrained(PACKAGED / PRETRAINED), photo_crop(64, 96))}
    for name in made:
        golden[name] = entry(cdzoo.from_pretrained(EXPECTED / name), photo_crop(70, 90))
    (EXPECTED / "golden.json").write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
