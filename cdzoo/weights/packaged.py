"""Weights that come with the package, as far as no network is built: a stream's header is described without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["CODECS", "PACKAGED", "packaged_codec_weights"]

PACKAGED = Path(__file__).parents[1] / "pretrained"
"""The folder of all packaged weights."""

CODECS = {
    "bmshj2018-hyperprior-n64-m96-photos": "BMSHJ2018_Hyperprior_Weights.PHOTOS_N64_M96",
    "bmshj2018-hyperprior-n48-m64-imagenette": "BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64",
    "bmshj2018-hyperprior-n48-m64-low-imagenette": "BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64_LOW",
    "bmshj2018-hyperprior-n48-m64-high-imagenette": "BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64_HIGH",
    "bmshj2018-hyperprior-n48-m64-ms-ssim-imagenette": "BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64_MS_SSIM",
    "mbt2018-mean-n48-m64-imagenette": "MBT2018_Mean_Weights.IMAGENETTE_N48_M64",
    "torfason2018-c16-n32-imagenette": "Torfason2018_Weights.IMAGENETTE_C16_N32",
    "choi2019-n48-m64-imagenette": "Choi2019_Weights.IMAGENETTE_N48_M64",
}
"""Folder of a codec's weights -> the enum member; a test compares this with the enums."""


def packaged_codec_weights(fingerprint: str) -> str | None:
    """The enum member of the packaged codec with this fingerprint; ``None`` if there is none."""
    for folder, member in CODECS.items():
        config = json.loads((PACKAGED / folder / "config.json").read_text(encoding="utf-8"))
        if config["fingerprint"] == fingerprint:
            return member
    return None
