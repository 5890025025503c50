"""Docstrings as the package writes them, as reStructuredText: diagrams are literal, and modules' first lines titles."""

from __future__ import annotations

import inspect
import re
from enum import Enum
from typing import Any, is_typeddict

from sphinx.application import Sphinx


def literal_diagrams(lines: list[str]) -> list[str]:
    """An indented block behind an empty line, below text that is not, is a diagram or code: ``::`` says so."""
    out: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line.strip() and not indented:
            inside = False
        starts = indented and not inside and number > 0 and not lines[number - 1].strip()
        text = next((previous for previous in reversed(lines[:number]) if previous.strip()), "")
        drawn = any(character in "".join(lines[number : number + 3]) for character in "┌─►▶")
        if starts and text and not text.endswith("::") and (drawn or not text.startswith((" ", "- ", "* "))):
            # diagrams and columns scroll on narrow screens, where code wraps
            columns = any(re.search(r"\S {3,}[^ #]", row) for row in lines[number : number + 3])
            out += [".. code-block:: none" if drawn or columns else "::", ""]
        inside = inside or starts
        out.append(line)
    return out


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place, before napoleon reads its sections."""
    lines[:] = literal_diagrams(lines)
    if what == "module" and name != "cdzoo":
        first = next((number for number, line in enumerate(lines) if not line.strip()), len(lines))
        del lines[: first + 1]  # the title of the section, see reference.py


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Fields of named tuples are described by the class."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def sign(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> Any:
    """Nobody calls an enumeration."""
    return ("", None) if inspect.isclass(obj) and issubclass(obj, Enum) else None


def bases(app: Sphinx, name: str, obj: Any, options: Any, bases: list[type]) -> None:
    """A typed dictionary is a ``dict`` on every Python; from 3.12 on, autodoc finds the ones that it extends."""
    if is_typeddict(obj):
        bases[:] = [dict]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-bases", bases)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
