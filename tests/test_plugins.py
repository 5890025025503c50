"""Another package registers a codec and networks through an entry point, and everything finds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.fresh_process import FreshProcesses
from oracles.slow import all_but_one

ROOT = Path(__file__).parents[1]

PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path
import timm, torch
import cdzoo
from cdzoo.cli import main
from cdzoo.images import png_bytes, read_image
from cdzoo.interop.timm import register

assert "tinyzoo" not in sys.modules  # imported on first use only
found = {"models": cdzoo.list_models("tiny*"), "codecs": cdzoo.list_codecs("tiny*")}
found["readers"] = cdzoo.list_models("[tl]i*", codec="tinycodec")
folder = Path(sys.argv[1])

def cli(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main([*map(str, arguments), "--json"])
    assert status == 0, out.getvalue()
    return json.loads(out.getvalue())

torch.manual_seed(0)
codec = cdzoo.get_codec("tinycodec").eval()
cdzoo.save_pretrained(codec, folder / "codec")
images = torch.rand(2, 3, 40, 50)
streams = codec.compress(images)
found["header"] = cdzoo.codecs.read_header(streams[0]).codec
plain = cdzoo.get_codec("block_means", steps=32)
again = cdzoo.from_pretrained(cdzoo.save_pretrained(plain, folder / "plain"))
assert (again.name, again.steps, again.fingerprint) == ("block_means", 32, plain.fingerprint)
padded = torch.nn.functional.pad(images, (0, 6, 0, 0), "replicate")
means = 31 * torch.nn.functional.avg_pool2d(padded, 8)
assert torch.equal(again.decompress(plain.compress(images)).y_hat, means.round())
tinynet = cdzoo.get_model("tinynet", in_channels=3, latent_stride=8)
assert cdzoo.compose(plain, tinynet).to("cpu").from_streams(plain.compress(images)).shape == (2, 3)
for name in ("tinynet", "linear_head"):
    model = cdzoo.get_model(name, num_classes=5).eval()
    with torch.no_grad():
        logits = cdzoo.compose(codec, model).from_streams(streams)
    assert logits.shape == (2, 5)
    cdzoo.save_pretrained(model, folder / name, codec=codec, meta={"classes": list("abcde")})
    again = cdzoo.from_pretrained(folder / name)
    assert (type(again), again.origin.builder, again.meta["classes"]) == (type(model), name, list("abcde"))
    assert again.codec_fingerprint == codec.fingerprint
    with torch.no_grad():
        pair = cdzoo.compose(cdzoo.from_pretrained(folder / "codec"), again)
        assert torch.equal(pair.from_streams(streams), logits)

listed = cli("list", "tiny*")
found["list"] = [entry["name"] for entry in listed["codecs"] + listed["models"]]
found["info"] = cli("info", "tinynet")["arguments"]
found["weights"] = cli("info", folder / "tinynet")["builder"]
(folder / "photo.png").write_bytes(png_bytes(images[:1]))
cli("compress", folder / "photo.png", "-o", folder, "--weights", folder / "codec")
cli("compress", folder / "photo.png", "-o", folder / "means", "--weights", folder / "plain")
assert (folder / "means" / "photo.cdz").read_bytes() == plain.compress(read_image(folder / "photo.png"))[0]
labels = cli("classify", folder / "photo.cdz", "--weights", folder / "tinynet", "--codec", folder / "codec")
found["top"] = len(labels["files"][0]["top"])
register()
found["timm"] = timm.create_model("cdzoo_tinynet", num_classes=2).num_classes
print(json.dumps(found))
"""


def installed(folder: Path, value: str) -> tuple[Path, ...]:
    """Where Python finds a package that has one entry point and is installed in a folder, its code, and cdzoo."""
    site = folder / "site" / "tinyzoo-1.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: tinyzoo\nVersion: 1.0\n")
    (site / "entry_points.txt").write_text(f"[cdzoo.plugins]\ntiny = {value}\n")
    return site.parent, ROOT / "tests" / "plugin", ROOT


def test_an_installed_plugin_is_found_everywhere(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, installed(tmp_path, "tinyzoo")))}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "models": ["tinynet"],
        "codecs": ["tinycodec"],
        "readers": ["linear_head", "tinynet"],
        "header": "tinycodec",
        "list": ["tinycodec", "tinynet"],
        "info": {"weights": None, "in_channels": 4, "num_classes": 3, "channels": 8, "latent_stride": 16},
        "weights": "tinynet",
        "top": 5,
        "timm": 2,
    }


@pytest.mark.parametrize("value", all_but_one(["no_such_module", "tinyzoo:nothing"], kept="no_such_module"))
def test_a_plugin_that_fails_is_a_warning(value: str, tmp_path: Path, fresh: FreshProcesses) -> None:
    program = "import cdzoo; print('cresnet39' in cdzoo.list_models())"
    done = fresh(program, paths=installed(tmp_path, value))
    assert done.stdout == "True\n"
    assert f"the plugin 'tiny' ({value}) could not be loaded" in done.stderr
