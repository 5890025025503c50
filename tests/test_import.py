"""What ``import cdzoo`` costs, and the names that it gives: a list that somebody reads."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import cdzoo

HEAVY = ("compressai", "timm", "torchvision", "numba", "huggingface_hub", "PIL", "tqdm", "safetensors")

PUBLIC = {
    "Codec",
    "CodecOutput",
    "CompressedDomainModel",
    "JPEGClassifier",
    "JPEGCoefficients",
    "Latent",
    "LatentClassifier",
    "classify",
    "compose",
    "from_pretrained",
    "get_codec",
    "get_model",
    "get_model_weights",
    "get_weight",
    "list_codecs",
    "list_models",
    "load_images",
    "push_to_hub",
    "register_codec",
    "register_model",
    "save_pretrained",
}
SUBMODULES = {"codecs", "data", "errors", "models", "ops"}


def test_public_names() -> None:
    names = {name for name in vars(cdzoo) if not name.startswith("_")}
    assert {name for name in names if not isinstance(getattr(cdzoo, name), ModuleType)} == PUBLIC
    assert names >= SUBMODULES
    assert isinstance(cdzoo.__version__, str)


def test_importing_and_listing_loads_nothing_heavy() -> None:
    script = (
        "import contextlib, io, json, sys, torch\n"
        "before = set(sys.modules)\n"  # torch itself loads one or the other
        "import cdzoo, cdzoo.models, cdzoo.codecs\n"
        f"loaded = {{'import': [m for m in {HEAVY} if m in sys.modules and m not in before]}}\n"
        "from cdzoo.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert main(['list', '--json']) == 0\n"
        f"loaded['list'] = [m for m in {HEAVY} if m in sys.modules and m not in before]\n"
        "print(json.dumps(loaded))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == {"import": [], "list": []}
