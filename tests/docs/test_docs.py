"""The site builds without a warning, its examples run, and every public name has a place in it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import cdzoo

pytest.importorskip("sphinx_gallery")

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.docs, pytest.mark.slow, pytest.mark.timeout(1500)]  # a minute on an idle core
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
PACKAGES = (
    "cdzoo", "cdzoo.codecs", "cdzoo.models", "cdzoo.ops", "cdzoo.data", "cdzoo.errors", "cdzoo.types",
    "cdzoo.interop.compressai", "cdzoo.interop.datasets", "cdzoo.interop.timm", "cdzoo.interop.torchvision",
)  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, for the gallery writes its pages beside the others; what pages include lies where it lay."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(
        ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("_build", "auto_gallery", "__pycache__")
    )
    for name in ("examples", "benchmarks", "cdzoo", "tests", "CHANGELOG.md", "README.md"):
        (root / name).symlink_to(ROOT / name)
    return root / "docs"


# One process reads the pages once, writes them as HTML, and runs their examples.
BUILD = """
import sys
from sphinx.application import Sphinx

source, out = sys.argv[1:]
app = Sphinx(source, source, out, f"{out}/doctrees", "html", status=None, warningiserror=True, keep_going=True)
app.build()
html = app.statuscode
app.builder = app.registry.create_builder(app, "doctest", env=app.env)
app.builder.init()
app.builder.build_all()
sys.exit(html or app.statuscode)
"""


@pytest.fixture(scope="module")
def site(sources: Path) -> Path:
    """The folder of the site, with ``output.txt``, the report on the examples."""
    out = sources.parent / "html"
    # the package under test is the one that the tests import, wherever that lies
    environment = {**os.environ, "PYTHONPATH": str(Path(cdzoo.__file__).parent.parent), "MPLBACKEND": "agg"}
    # a file: with `-c`, Python 3.13 takes its text for the source of the named tuples' constructors
    script = sources.parent / "build.py"
    script.write_text(BUILD, encoding="utf-8")
    command = [sys.executable, str(script), str(sources), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400, env=environment, cwd=sources.parent)
    report = out / "output.txt"
    found = report.read_text(encoding="utf-8")[-4000:] if report.exists() else ""
    assert done.returncode == 0, found + done.stdout[-4000:] + done.stderr[-8000:]
    return out


def test_pages_are_there(site: Path) -> None:
    for page in ("index", "guide/quickstart", "papers/torfason2018", "api/ops", "auto_gallery/index", "cdz_format"):
        assert (site / f"{page}.html").stat().st_size > 5000, page


def test_the_gallery_has_pictures(site: Path) -> None:
    scripts = sorted(path.stem for path in (ROOT / "docs" / "gallery").glob("plot_*.py"))
    if not [*cdzoo.list_models("c*_d", pretrained=True), *cdzoo.list_models("*_seg", pretrained=True)]:
        scripts = [name for name in scripts if "segmentation" not in name]
    assert scripts
    for name in scripts:
        pictures = re.findall(
            r'src="\.\./(_images/sphx_glr_[^"]+\.png)"', (site / f"auto_gallery/{name}.html").read_text()
        )
        assert pictures, name
        assert all((site / picture).stat().st_size > 2000 for picture in pictures), name


def test_tables_name_everything_that_is_registered(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "guide" / "zoo.html").read_text(encoding="utf-8"))
    for name in [*cdzoo.list_codecs(), *cdzoo.list_models()]:
        assert re.search(rf"\b{name}\b", text), name
    for name in [*cdzoo.list_codecs(pretrained=True), *cdzoo.list_models(pretrained=True)]:
        assert all(str(member) in text for member in cdzoo.get_model_weights(name)), name


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    header, _, packed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert header.startswith(b"# Sphinx inventory version 2")
    documented = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines() if " py:" in line}
    public_names = importlib.import_module("reference").public_names
    for package in PACKAGES:
        # timm puts what is registered with it into a module's __all__, where another test has done so
        names = [name for name in public_names(package) if not name.startswith("cdzoo_")]
        assert names, package
        homes = {package, "cdzoo.types", "cdzoo.codecs"} if package == "cdzoo" else {package}
        missing = [n for n in names if not {f"{home}.{n}" for home in homes} & documented and n != "__version__"]
        assert missing == [], package


def test_examples_on_the_pages_run(site: Path) -> None:
    tests = re.search(r"(\d+) tests?\n", (site / "output.txt").read_text(encoding="utf-8"))
    assert tests is not None
    assert int(tests[1]) > 80
