"""The notebooks that are made from the pages run from their first cell to their last, and print what the pages say."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cdzoo

pytest.importorskip("sphinx")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
notebooks = importlib.import_module("notebooks")


def made(page: str) -> dict[str, Any]:
    return notebooks.notebook(ROOT / "docs" / "guide" / f"{page}.md")


def run_cell(source: str, names: dict[str, Any], folder: Path) -> str:
    """Run a cell as IPython would, and return what it prints and the value of its last line."""
    if source.startswith("%%writefile "):
        first, _, text = source.partition("\n")
        (folder / first.split()[1]).write_text(text + "\n", encoding="utf-8")
        return ""
    lines = source.splitlines()
    if lines[0] == "import sys" and lines[-1].startswith("!"):
        lines = lines[2:]
    if any(line.startswith(("!", "%pip ")) for line in lines):
        environment = {**os.environ, "PYTHONPATH": str(Path(cdzoo.__file__).parents[1])}
        output = ""
        for line in lines:
            assert line.startswith((f"!{notebooks.PYTHON} ", "%pip ", "#")), line
            if line.startswith("!"):
                command = line[1:].replace(notebooks.PYTHON, sys.executable)
                done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
                assert done.returncode == 0, (line, done.stdout, done.stderr)
                output += done.stdout
        return output
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            print(end="" if value is None else f"{value!r}\n")
    return printed.getvalue()


def run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run all cells of a notebook in a folder; what each code cell printed."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for cell in made(page)["cells"]:
        if cell["cell_type"] == "code":
            outputs.append(run_cell("".join(cell["source"]), names, folder))
            for output in cell["outputs"]:
                expected = "".join(output["text"]) + "\n"
                flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
                assert doctest.OutputChecker().check_output(expected, outputs[-1], flags), (cell, outputs[-1])
    return outputs


def test_cells_are_those_of_the_page() -> None:
    cells = made("thumbnails")["cells"]
    assert json.loads(json.dumps(cells)) == cells
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert cells[0]["source"][0] == "# Thumbnails from DC coefficients\n"
    script = next(cell for cell in cells if "".join(cell["source"]).startswith("%%writefile"))
    text = (ROOT / "examples" / "thumbnails.py").read_text(encoding="utf-8")
    assert "".join(script["source"]) == f"%%writefile examples/thumbnails.py\n{text}".rstrip("\n")
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    command = "import sys\n\n!{sys.executable} examples/thumbnails.py photos thumbnails"
    assert code.index(command) > code.index("".join(script["source"]))
    assert [cell["outputs"][0]["text"] for cell in cells if cell.get("outputs")] == [["(1, 3, 54, 80)"]]


@pytest.mark.parametrize("page", notebooks.PAGES)
def test_prose_has_no_markup_that_notebooks_do_not_know(page: str) -> None:
    prose = ["".join(cell["source"]) for cell in made(page)["cells"] if cell["cell_type"] == "markdown"]
    for text in prose:
        assert not any(mark in text for mark in ("```{", "{py:", "{download}", "<!--", ".md)", ".md#"))


@pytest.mark.slow
def test_a_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("thumbnails", tmp_path, monkeypatch)
    made = sorted(path.name for path in (tmp_path / "thumbnails").iterdir())
    assert made == ["copy.png", "detail.png", "holiday.png"]


@pytest.mark.slow
@pytest.mark.parametrize("page", notebooks.PAGES)
def test_every_notebook_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "serve":
        pytest.importorskip("fastapi")
    outputs = run(page, tmp_path, monkeypatch)
    assert any(outputs)
    if page == "serve":
        assert outputs[-1] == "bell cote\n"
    if page == "label_folder":
        assert (tmp_path / "labels.csv").read_text(encoding="utf-8").count("bell cote") >= 1
