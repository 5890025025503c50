"""Kernels: what is compiled again, what is announced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cdzoo

MODULE = """
from pathlib import Path
from compiling import compiler
jit = compiler(Path(__file__).parent.glob("*.py"))
"""
IMPATIENT = "n.PATIENCE = 0"
PATIENT = "n.PATIENCE = 600\n"
SLOW = """
import time
load = n.FunctionCache.load_overload
def load_slowly(*arguments):
    time.sleep(0.2)
    return load(*arguments)
n.FunctionCache.load_overload = load_slowly
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose kernel ``outer`` calls ``inner`` in another file."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    shutil.copy(Path(cdzoo.__file__).parent / "_numba.py", tmp_path / "compiling.py")  # alone it is imported faster
    (folder / "__init__.py").write_text("")
    (folder / "jit.py").write_text(MODULE)
    (folder / "inner.py").write_text("from kernels.jit import jit\n\n@jit\ndef inner(x):\n    return x + 1\n")
    outer = "from kernels.inner import inner\nfrom kernels.jit import jit\n\n@jit\ndef outer(x):\n    return inner(x)\n"
    (folder / "outer.py").write_text(outer)
    return tmp_path


def run_outer(package: Path, *, before: str = "") -> list[str]:
    """The result of ``outer(1)``, how often it was loaded and compiled, and messages."""
    code = (
        f"import compiling as n\n{before}\nfrom kernels.outer import outer\nprint(n.run(outer, 1))\n"
        "print(sum(outer.stats.cache_hits.values()), sum(outer.stats.cache_misses.values()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(package / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.split("\n")[:2], done.stderr]


@pytest.mark.slow
def test_what_is_compiled_loaded_and_announced(package: Path) -> None:
    """One after the other over one cache, since each process imports Numba for seconds."""
    message = "compiling the kernel 'outer': several seconds, once per machine (set NUMBA_CACHE_DIR if it comes back)\n"
    assert run_outer(package, before=PATIENT + SLOW) == ["2", "0 1", ""]
    assert run_outer(package, before=IMPATIENT + SLOW) == ["2", "1 0", ""]
    inner = package / "kernels" / "inner.py"
    inner.write_text(inner.read_text().replace("x + 1", "x + 7"))
    assert run_outer(package, before=IMPATIENT) == ["8", "0 1", message]  # a change in a file that it calls
    assert run_outer(package)[:2] == ["8", "1 0"]
    (package / "kernels" / "new.py").write_text("")  # a further file changes the key, too
    assert run_outer(package, before="import numba\nnumba.config.DISABLE_JIT = 1")[:2] == ["8", "0 1"]
