"""``{page}`` links to a page where it exists, and is plain text where it does not (yet); READMEs as pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole


class Page(SphinxRole):
    """``{page}`text <docname>```, with the name as from the site's root."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """A link or text."""
        text, _, name = self.text.partition("<")
        text, name = text.strip(), name.rstrip("> ")
        if name not in self.env.found_docs:
            return [nodes.inline(text=text)], []
        options = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{name}", "refexplicit": True, "refwarn": True}
        node = addnodes.pending_xref(refdoc=self.env.docname, **options)
        node += nodes.inline(text=text)
        return [node], []


def unlink(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """A README that is shown as a page: its links to files lead nowhere from here, and become their text."""
    content[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)[^)]+\)", r"\1", content[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_role("page", Page())
    app.connect("include-read", unlink)
    return {"parallel_read_safe": True}
