"""Time that a fresh process takes to import cdzoo, beside torchvision, timm and CompressAI.

All of them import PyTorch, which is most of it: *beyond torch* is what is left where it has been imported before.
Processor time, of files that have been read before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from measuring import Options, Row, row

GROUP = "import"
MODULES = ("cdzoo", "torchvision", "timm", "compressai")
SCRIPT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
start = time.process_time()
import torch
between = time.process_time()
if sys.argv[1] != "torch":
    __import__(sys.argv[1])
end = time.process_time()
print(json.dumps([1e3 * (end - start), 1e3 * (end - between)]))
"""


def seconds(module: str) -> tuple[float, float]:
    """Milliseconds of torch and the module, and of the module alone, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, module], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImportError(f"{module} cannot be imported")
    whole, beyond = json.loads(done.stdout.splitlines()[-1])
    return whole, beyond


def rows(options: Options) -> Iterator[Row]:
    """All of this group."""
    names, skipped = ["torch"], {}
    for module in MODULES:  # a first time, which reads the files
        try:
            seconds(module)
            names.append(module)
        except ImportError as error:
            skipped[module] = str(error)
    whole: dict[str, list[float]] = {name: [] for name in names}
    beyond: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds[0]):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for times, value in zip((whole, beyond), seconds(name), strict=True):
                times[name].append(value)
    order = ["cdzoo", *(name for name in names if name not in ("cdzoo", "torch"))]
    case = {"threads": 1}
    yield row(GROUP, {"import": "in all", **case}, {n: whole[n] for n in [*order, "torch"]}, skipped=skipped)
    yield row(GROUP, {"import": "beyond torch", **case}, {n: beyond[n] for n in order}, skipped=skipped)
