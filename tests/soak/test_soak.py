"""The soak over a few dozen files, and the page made of its last run over ten thousand."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("soak", "soak_commands", "soak_datasets", "soak_files", "soak_processes", "soak_setting")
COUNTS = ("files", "faults", "good", "reported", "unseen", "lost", "doubled")


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


def test_ten_thousand_files_lost_nothing(soak: Any) -> None:
    found = json.loads(soak.FIGURES.read_text(encoding="utf-8"))
    assert found["files"] >= 10_000
    for row in found["scenarios"]:
        assert (row["failed"], row["lost"], row["doubled"]) == ([], 0, 0), row["name"]


def test_the_page_is_what_the_figures_say(soak: Any, figures: dict[str, Any]) -> None:
    found = json.loads(soak.FIGURES.read_text(encoding="utf-8"))
    assert [row["name"] for row in found["scenarios"]] == [row["name"] for row in figures["scenarios"]]
    text = soak.PAGE.read_text(encoding="utf-8")
    assert text == soak.page(found), "run python benchmarks/soak.py --report"
    for row in found["scenarios"]:
        assert f"| {row['name']} | {' | '.join(f'{row[count]:,}' for count in COUNTS)} |" in text
