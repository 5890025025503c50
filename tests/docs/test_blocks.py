"""The code blocks of the guides import what they use when they are pasted in their order."""

from __future__ import annotations

import ast
import builtins
import doctest
import re
import textwrap
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
BLOCK = re.compile(r"^( *)```(python|\{testcode\}|\{doctest\})\n(.*?)^\1```$", re.M | re.S)
GIVEN = {
    "compressai": {"net", "out", "x"},  # of the reader's own program with CompressAI
    "adding_a_model": {"__file__"},
}


def code(page: Path) -> str:
    found = []
    for _, kind, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        text = textwrap.dedent(body)
        if kind == "{doctest}":
            text = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
        found.append(text)
    return "\n".join(found)


def undefined(source: str) -> set[str]:
    """Names that are read somewhere and bound nowhere, or are read at the top level before they are bound."""
    bound = set(dir(builtins))
    tree = ast.parse(source)
    missing: set[str] = set()
    for statement in tree.body:
        nodes = list(ast.walk(statement))
        own = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        own |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        own |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        own |= {(n.asname or n.name).partition(".")[0] for n in nodes if isinstance(n, ast.alias)}
        read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        missing |= read - bound - own
        bound |= own
    return missing


@pytest.mark.parametrize("page", sorted(GUIDE.glob("*.md")), ids=lambda page: page.stem)
def test_blocks_import_what_they_use(page: Path) -> None:
    assert undefined(code(page)) <= GIVEN.get(page.stem, set())


def test_a_name_that_is_bound_too_late_is_found() -> None:
    assert undefined("print(torch.e)\nimport torch") == {"torch"}
    assert undefined("import torch\nprint(torch.e)") == set()
