"""What ``import cdzoo`` costs, and the names that it gives: a list that somebody reads."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import cdzoo

HEAVY = ("compressai", "timm", "torchvision", "numba", "huggingface_hub", "PIL", "tqdm", "safetensors")

PUBLIC = {
    "CodecOutput",
    "CompressedDomainModel",
    "JPEGCoefficients",
    "Latent",
    "compose",
    "from_pretrained",
    "get_codec",
    "get_model",
    "get_model_weights",
    "get_weight",
    "list_codecs",
    "list_models",
    "push_to_hub",
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


WITHOUT_COMPRESSAI = """
import sys
sys.modules["compressai"] = None  # import compressai raises, as where it is not installed
import torch, cdzoo
from cdzoo.cli import main
from cdzoo.codecs import decode_jpeg, encode_jpeg, read_jpeg, write_jpeg
from cdzoo.demo import PHOTO

needed = []
for kind, names in (("codec", cdzoo.list_codecs()), ("model", cdzoo.list_models())):
    for name in names:
        build = cdzoo.get_codec if kind == "codec" else cdzoo.get_model
        arguments = {"N": 4} if kind == "codec" else {"width": 0.0625, "num_classes": 3}
        channels = {"torfason2018": "latent_channels", "choi2019": "latent_channels"}.get(name, "M")
        try:
            build(name, **arguments, **({channels: 4} if kind == "codec" else {}))
        except ImportError as error:
            assert "pip install compressai" in str(error), error
            needed.append(name)
try:
    cdzoo.models.icat_small(hyperprior=True, width=0.0625)
except ImportError as error:
    assert "pip install compressai" in str(error)
    needed.append("icat_small(hyperprior=True)")
print(*needed)

c = read_jpeg(PHOTO)
assert torch.equal(read_jpeg(write_jpeg(c)[0]).planes[0], c.planes[0])
assert encode_jpeg(decode_jpeg(c)).image_size == c.image_size
model = cdzoo.models.jpeg_resnet18(weights="DEFAULT").eval()
assert model(model.transforms(c)).shape == (1, 10)
codec = cdzoo.codecs.torfason2018(N=4, latent_channels=4).eval()
(stream,) = codec.compress(torch.rand(1, 3, 20, 30))
assert codec.decompress([stream]).image_size == (20, 30)
network = cdzoo.models.fa_cresnet39(weights="DEFAULT").eval()
assert network(torch.randn(1, network.in_channels, 4, 4), torch.rand(1, network.in_channels, 4, 4)).shape == (1, 10)
for name in ("ops", "data"):
    __import__(f"cdzoo.{name}")
assert main(["classify", str(PHOTO), "--json"]) == 0
assert main(["list", "--json"]) == 0
try:
    cdzoo.get_weight("BMSHJ2018_Hyperprior_Weights.DEFAULT").build_codec()
except ImportError as error:
    assert "CompressAI, which is not installed" in str(error)
else:
    raise AssertionError("a codec was built on what is not there")
"""


def test_everything_but_the_codecs_that_stand_on_compressai_works_without_it() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_COMPRESSAI], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.splitlines()[0].split()) == {
        "bmshj2018_factorized",
        "bmshj2018_hyperprior",
        "mbt2018_mean",
        "choi2019",
        "icat_small(hyperprior=True)",
    }
    assert "church" in run.stdout
