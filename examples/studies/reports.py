"""Results as small JSON files, with the machine that they come from."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The machine and the versions that a timing depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    cpu = names[0].partition(":")[2].strip() if names else platform.processor()
    return {"cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


def now(device: str) -> float:
    """Seconds: of this process's CPU time, or on the wall once a device has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def write_report(path: Path, results: dict[str, Any], *, quiet: bool = False) -> None:
    """Writes ``results`` with the machine's name added."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n", encoding="utf-8")
    if not quiet:
        print(f"written to {path}")
