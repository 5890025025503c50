"""Notebooks from pages: each page in ``PAGES`` is offered for download as a notebook that runs from its first cell on.

A page is the only source. Prose becomes Markdown cells. Of the fenced blocks, ``{testcode}``, ``{doctest}`` and
``bash`` become code cells, ``{testoutput}`` the stored output, and the script of a ``{literalinclude}`` a cell that
writes it, in front of all commands. A comment ``<!-- notebook ... -->`` is a code cell that only the notebook has; a
``bash`` block below ``<!-- notebook: text -->`` stays text there.
"""

from __future__ import annotations

import doctest
import json
import posixpath
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PAGES = (
    "quickstart", "pretrained_cnn", "label_folder", "find_similar", "finetune", "archive", "serve", "thumbnails",
    "double_compression",
)  # fmt: skip
SITE = "https://cdzoo.readthedocs.io/en/latest/guide/"
BLOCK = re.compile(
    r"^<!-- notebook\n(?P<hidden>.*?)^-->$|"
    r"(?P<text>^<!-- notebook: text -->\n+)?^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PYTHON = "{sys.executable}"  # IPython puts its own Python here; the one on the PATH may be another
FILES = """
from pathlib import Path

from PIL import Image

from cdzoo.demo import PHOTO

for folder in ("examples", "photos"):
    Path(folder).mkdir(exist_ok=True)
photo = Image.open(PHOTO)
for name, image in {"holiday": photo, "copy": photo.reduce(2), "detail": photo.crop((200, 100, 520, 340))}.items():
    image.save(f"photos/{name}.jpg", quality=90)
"""


def cell(kind: str, text: str) -> dict[str, Any]:
    """A cell, ``"markdown"`` or ``"code"``."""
    made: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.strip("\n").splitlines(keepends=True)}
    return made | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def plain(text: str) -> str:
    """Markdown that a notebook shows: no roles, no pictures, links to the site."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\{[\w:]+\}`([^`<]+?) *<[^`]*>`", r"\1", text)
    text = re.sub(r"\{[\w:]+\}`~[\w.]*?(\w+)`", r"`\1`", text)
    text = re.sub(r"\{[\w:]+\}(`[^`]+`)", r"\1", text)

    def link(found: re.Match[str]) -> str:
        return f"]({posixpath.normpath(SITE + found[1]).replace(':/', '://')}.html{found[2]})"

    return re.sub(r"\]\(([\w./]+)\.md(#[\w-]+)?\)", lambda m: link(m).replace("None", ""), text)


def commands(body: str) -> str:
    """A block of the command line, as IPython runs it."""
    lines = [line for line in body.replace("\\\n", " ").splitlines() if line.strip()]
    for before, after in (("cdzoo ", "python -m cdzoo "), ("python ", f"!{PYTHON} "), ("pip ", "%pip ")):
        lines = [after + line.removeprefix(before) if line.startswith(before) else line for line in lines]
    text = "\n".join(lines)
    return f"import sys\n\n{text}" if PYTHON in text else text


def examples(body: str) -> Iterator[tuple[str, str]]:
    """Cells of a doctest: code, up to the next output, and the output."""
    code = ""
    for example in doctest.DocTestParser().get_examples(textwrap.dedent(body)):
        code += example.source
        if example.want:
            yield code, example.want
            code = ""
    if code:
        yield code, ""


def cells(page: Path) -> Iterator[dict[str, Any]]:
    """The cells of a page, in order."""
    source, end, begun = page.read_text(encoding="utf-8"), 0, False
    scripts = re.findall(r"^```\{literalinclude\} (\S+\.py)$", source, re.MULTILINE)
    last: dict[str, Any] | None = None
    for block in BLOCK.finditer(source):
        prose, end = plain(source[end : block.start()]).strip(), block.end()
        kind, body = block["kind"] or "", block["body"] or ""
        code = block["hidden"] or (commands(body) if kind == "bash" and not block["text"] else "")
        made = [(code, "")] if code else []
        if kind == "{testcode}":
            made = [(re.sub(r"\A(:\w+:[^\n]*\n)+", "", body), "")]
        elif kind == "{doctest}":
            made = list(examples(body))
        if prose:
            yield cell("markdown", prose)
        if made and not begun:
            begun = True
            if scripts or "photos" in source:
                yield cell("markdown", "Photographs to try it on. Put your own into `photos`.")
                yield cell("code", FILES)
            for script in scripts:
                name, text = Path(script).name, (page.parent / script).read_text(encoding="utf-8")
                yield cell("code", f"%%writefile examples/{name}\n{text}")
        for code, output in made:
            yield (last := show(cell("code", code), output))
        if kind == "{testoutput}" and last is not None:
            show(last, body)
        elif not made and not kind.startswith("{"):
            yield cell("markdown", f"```{kind}\n{body}```")
    if prose := plain(source[end:]).strip():
        yield cell("markdown", prose)


def show(made: dict[str, Any], output: str) -> dict[str, Any]:
    """Store what a cell prints, or the value of its last line."""
    if output:
        lines = output.rstrip("\n").splitlines(keepends=True)
        made["outputs"] = [{"output_type": "stream", "name": "stdout", "text": lines}]
    return made


def notebook(page: Path) -> dict[str, Any]:
    """A page as a notebook, format 4.5."""
    about = f"This notebook is [a page of cdzoo's documentation]({SITE}{page.stem}.html). It needs `pip install cdzoo`."
    found = list(cells(page))
    found.insert(1, cell("markdown", about))
    for number, one in enumerate(found):
        one["id"] = f"{page.stem}-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def write(app: Sphinx) -> None:
    """Write the notebooks where the pages link to them."""
    folder = Path(app.srcdir, "notebooks")
    folder.mkdir(exist_ok=True)
    for name in PAGES:
        text = json.dumps(notebook(Path(app.srcdir, "guide", f"{name}.md")), indent=1, ensure_ascii=False) + "\n"
        file = folder / f"{name}.ipynb"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def link(app: Sphinx, name: str, content: list[str]) -> None:
    """Offer the notebook below the title of its page."""
    folder, _, page = name.partition("/")
    if folder == "guide" and page in PAGES:
        title, _, rest = content[0].partition("\n")
        content[0] = f"{title}\n\n{{download}}`This page as a notebook <../notebooks/{page}.ipynb>`\n{rest}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", write)
    app.connect("source-read", link)
    return {"parallel_read_safe": True}
