"""The tree keeps its own rules; lint, format and types are checked by ``.ci/checks``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("file", sorted((ROOT / "cdzoo").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450
    assert file.stem not in ("utils", "helpers", "common", "misc")


def test_files_import_from_lower_layers_only() -> None:
    """The layers are in ``pyproject.toml``."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_changelog_knows_this_version() -> None:
    import cdzoo

    assert f"## {cdzoo.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
