"""Make the studies, the recipes and the tests' oracles importable, and mark every test here with ``study``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "examples" / "recipes"), str(ROOT / "tests")]

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.study)


@pytest.fixture
def three_classes(tmp_path: Path) -> Path:
    """A folder of generated images of three classes."""
    from data import generate_classes

    folder: Path = generate_classes(tmp_path / "three", classes=3, images=4)
    return folder
