"""The tree keeps its own rules; lint, format and types are checked by ``.ci/checks``."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("file", sorted((ROOT / "cdzoo").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450
    assert file.stem not in ("utils", "helpers", "common", "misc")


def test_the_changelog_knows_this_version() -> None:
    import cdzoo

    assert f"## {cdzoo.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
