"""What ``import cdzoo`` costs, and the names that it gives: a list that somebody reads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from oracles.fresh_process import FreshProcesses

import cdzoo
from cdzoo.coding.cdz_format import pack

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
SUBMODULES = {"codecs", "data", "errors", "interop", "models", "ops", "transforms", "types"}


def test_public_names() -> None:
    assert set(dir(cdzoo)) == PUBLIC | SUBMODULES | {"__version__"}
    assert all(isinstance(getattr(cdzoo, name), ModuleType) for name in SUBMODULES)
    assert not any(isinstance(getattr(cdzoo, name), ModuleType) for name in PUBLIC)
    assert isinstance(cdzoo.__version__, str)


def test_modules_of_the_contract_need_no_import_of_their_own(fresh: FreshProcesses) -> None:
    script = (
        "import sys, cdzoo\n"
        "print(cdzoo.transforms.CoefficientTransform(resize=8).resize, cdzoo.types.Latent.__name__)\n"
        "print(cdzoo.interop.compressai.from_compressai.__name__, 'compressai' in sys.modules)\n"
    )
    run = fresh(script)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["8", "Latent", "from_compressai", "False"]


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(cdzoo.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == cdzoo._HOMES | dict.fromkeys(cdzoo._SUBMODULES, "cdzoo")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cdzoo.nothing


def test_version_and_help_do_not_import_pytorch() -> None:
    script = (
        "import sys\n"
        "from cdzoo.cli import main\n"
        "for arguments in (['--version'], ['--help'], ['list', '--help'], ['classify', '--help'], ['nothing']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_info_about_a_stream_does_not_import_pytorch(tmp_path: Path) -> None:
    packaged = pack("torfason2018", "2e83c5827cf5b64c", (30, 40), 0, [b"bits"])
    streams = [packaged, pack("torfason2018", "0123456789abcdef", (30, 40), 0, [b"bits"]), packaged[:-1]]
    for number, stream in enumerate(streams):
        (tmp_path / f"{number}.cdz").write_bytes(stream)
    script = (
        "import sys\n"
        "from cdzoo.cli import main\n"
        f"for number in range(3): print(main(['info', {str(tmp_path)!r} + f'/{{number}}.cdz']))\n"
        "print(sorted({'torch', 'numpy', 'numba'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    written_by = [line.split(maxsplit=1)[1] for line in lines if line.startswith("weights")]
    assert written_by == ["Torfason2018_Weights.IMAGENETTE_C16_N32", "none that come with the package"]
    assert lines[-2:] == ["1", "[]"]
    assert "truncated or damaged stream" in run.stderr


def test_importing_and_listing_loads_nothing_heavy(fresh: FreshProcesses) -> None:
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
    run = fresh(script)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"import": [], "list": []}


def test_pretrained_networks_load_without_pytorch_compiler(fresh: FreshProcesses) -> None:
    """It takes longer to import than everything else together."""
    script = (
        "import sys, cdzoo\n"
        "for name in cdzoo.list_codecs(pretrained=True): cdzoo.get_codec(name, weights='DEFAULT')\n"
        "for name in cdzoo.list_models(pretrained=True): cdzoo.get_model(name, weights='DEFAULT')\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    run = fresh(script)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "False\n"


def test_a_missing_extra_is_named(fresh: FreshProcesses) -> None:
    script = "import sys; sys.modules['ray'] = None; import cdzoo.interop.ray"
    run = fresh(script)
    assert run.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: ray is not installed; run: pip install 'cdzoo[interop]'"
    )
