"""The soak over a few dozen files."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("soak", "soak_commands", "soak_datasets", "soak_files", "soak_processes", "soak_setting")


@pytest.fixture(scope="module")
def soak() -> Iterator[Any]:
    if not sys.platform.startswith("linux"):
        pytest.skip("pipes, forks and /proc")
    sys.path.insert(0, str(BENCHMARKS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield importlib.import_module("soak")
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(BENCHMARKS))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def figures(soak: Any) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as home:  # pytest's own folders are closed to the other user of the soak
        Path(home).chmod(0o755)
        yield soak.measure(soak.Soak(Path(home).resolve(), 50, damaged=0.3, fresh=False, mount=False, kills=3))


def test_nothing_is_lost_and_nothing_comes_twice(figures: dict[str, Any]) -> None:
    assert sum(figures["faults"].values()) > 10
    assert len(figures["scenarios"]) > 15
    for row in figures["scenarios"]:
        assert (row["failed"], row["lost"], row["doubled"]) == ([], 0, 0), row["name"]
        assert row["good"] > 0 or row["name"] == "memory" or row["files"] == 0, row["name"]
        assert row["faults"] == 0 or row["reported"] > 0 or row["files"] == 0, row["name"]
