"""The tree keeps its own rules: lint, types, and no file that nobody would read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str) -> None:
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr


def test_lint() -> None:
    run("ruff", "check", ".")


def test_format() -> None:
    run("ruff", "format", "--check", ".")


def test_types() -> None:
    run("mypy", "cdzoo")


@pytest.mark.parametrize("file", sorted((ROOT / "cdzoo").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450
    assert file.stem not in ("utils", "helpers", "common", "misc")


def test_the_changelog_knows_this_version() -> None:
    import cdzoo

    assert f"## {cdzoo.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
