"""``{jpeg-files-table}``: the kinds of JPEG files that the tests check, and what happens to each."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tables import pipe_table

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "jpeg")]

from kinds_of_files import KINDS, READ, WARNED, Kind  # noqa: E402

GROUPS = {
    "by the standard": "Files that follow the standard",
    "against the standard": "Files that break the standard and that other decoders read",
    "damaged": "Damaged files",
    "not supported": "Files that are refused",
}


def outcome(expected: str) -> str:
    """A cell of the table."""
    return {READ: "read", WARNED: "read, with a `JPEGWarning`"}.get(expected, "`JPEGError`")


def row(kind: Kind) -> list[str]:
    """A row of the table."""
    return [kind.name, outcome(kind.strict), outcome(kind.lenient)]


class Table(SphinxDirective):
    """A table for each group of kinds."""

    def run(self) -> list[nodes.Node]:
        """Headings and tables."""
        self.env.note_dependency(str(TESTS / "jpeg" / "kinds_of_files.py"))
        kinds = sorted(KINDS, key=lambda kind: list(GROUPS).index(kind.group))
        text = ""
        for group, members in groupby(kinds, key=lambda kind: kind.group):
            header = ["kind of file", "`read_jpeg(file)`", "`read_jpeg(file, strict=False)`"]
            text += f"\n### {GROUPS[group]}\n\n{pipe_table(header, [row(kind) for kind in members])}\n"
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("jpeg-files-table", Table)
    return {"parallel_read_safe": True}
