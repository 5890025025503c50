"""``.. public-api:: PACKAGE``: every name that a package exports, file by file; and links by any name a thing has.

The list is the package's own ``__init__.py``. Each file that it takes names from is a section: the file's docstring,
the exported names, and the classes that stand behind them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections import Counter
from enum import Enum
from functools import cache
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode


def exports(package: str) -> dict[str, list[str]]:
    """The file -> names that a package's ``__init__.py`` re-exports, in its order."""
    tree = ast.parse(inspect.getsource(importlib.import_module(package)))
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):  # a package that imports on first use names its exports for type checkers only
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cdzoo."):
            names = [
                alias.name for alias in node.names if alias.asname == alias.name
            ]  # what mypy takes for re-exported
            found.setdefault(str(node.module), []).extend(names)
    return {module: names for module, names in found.items() if names}


def public_names(package: str) -> list[str]:
    """All that users may import from a package: its re-exports, or ``__all__`` of a single file."""
    module = importlib.import_module(package)
    found = [name for names in exports(package).values() for name in names]
    return found or list(getattr(module, "__all__", []))


def title(module: str) -> str:
    """The first sentence of a file's docstring."""
    summary = " ".join((importlib.import_module(module).__doc__ or module).split("\n\n")[0].split())
    return summary.removesuffix(".")


def entry(path: str, obj: Any) -> str:
    """An autodoc directive for one name."""
    if inspect.ismodule(obj):
        return f".. automodule:: {path}\n   :no-members:\n"
    if inspect.isclass(obj):
        options = "   :undoc-members:\n" if issubclass(obj, Enum) else ""
        return f".. autoclass:: {path}\n{options}"
    if callable(obj):
        return f".. autofunction:: {path}\n"
    package, _, name = path.rpartition(".")
    files = [file for file, names in exports(package).items() if name in names] or [package]
    said = ModuleAnalyzer.for_module(files[0]).find_attr_docs().get(("", name), [])
    body = "\n".join(f"   {line}" for line in said)
    return f".. py:data:: {name}\n   :module: {package}\n   :value: {obj!r}\n\n{body}\n"


def section(module: str, package: str, names: list[str], *, described: bool) -> str:
    """One file: title, exported names, and if it is ``described`` here its docstring and classes not exported."""
    loaded, heading = importlib.import_module(module), title(module)
    if not described:
        entries = [entry(f"{package}.{name}", getattr(loaded, name)) for name in names]
        return "\n".join([f"{heading}\n{'-' * len(heading)}\n", f".. currentmodule:: {package}\n", *entries])
    index = "   :no-index:\n" if callable(lookup(module)) else ""  # cdzoo.compose is a function and a file
    parts = [f"{heading}\n{'-' * len(heading)}\n", f".. automodule:: {module}\n   :no-members:\n{index}"]
    parts += [f".. currentmodule:: {package}\n"]
    parts += [entry(f"{package}.{name}", getattr(loaded, name)) for name in names]
    parts += [entry(f"{module}.{name}", value) for name, value in classes(loaded) if name not in names]
    return "\n".join(parts)


def classes(module: Any) -> list[tuple[str, type]]:
    """Those that a file defines and says something of."""
    found = [(n, c) for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__]
    return [(name, value) for name, value in found if not name.startswith("_") and value.__doc__]


class PublicAPI(SphinxDirective):
    """See the module.

    ``:without:`` leaves files out. Files in ``:described-elsewhere:`` give their exported names only. ``:behind:`` adds
    what the signatures of the rest mention, by its full name.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("without", "described-elsewhere", "behind"), directives.unchanged
    )

    def run(self) -> list[nodes.Node]:
        """All sections."""
        self.env.note_reread()  # the list of names changes without the page
        package = self.arguments[0]
        without, elsewhere, behind = (self.options.get(name, "").split() for name in self.option_spec)
        grouped = {file: names for file, names in exports(package).items() if file not in without}
        text = f".. automodule:: {package}\n   :no-members:\n\n"
        if grouped:
            text += "\n".join(
                section(file, package, names, described=file not in elsewhere) for file, names in grouped.items()
            )
        else:
            text += "\n".join(entry(f"{package}.{name}", lookup(f"{package}.{name}")) for name in public_names(package))
        if behind:
            text += "\nBehind these\n------------\n\n" + "\n".join(entry(name, lookup(name)) for name in behind)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


# -- links --------------------------------------------------------------------------------------------------------


@cache
def lookup(path: str) -> Any:
    """The object at a dotted path, or ``None``."""
    first, *rest = path.split(".")
    try:
        obj: Any = importlib.import_module(first)
        for name in rest:
            obj = getattr(obj, name) if hasattr(obj, name) else importlib.import_module(f"{obj.__name__}.{name}")
    except (ImportError, AttributeError):
        return None
    return obj


def resolve(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """A name that has no entry of its own: another name of something that has, or the end of one entry's name."""
    if node.get("refdomain") != "py":
        return None
    objects = env.domains.python_domain.objects
    if not hasattr(env, "cdzoo_by_identity"):
        known = ((id(lookup(name)), name) for name in objects if lookup(name) is not None)
        env.cdzoo_by_identity = dict(known)
        env.cdzoo_ends = Counter(name.rpartition(".")[2] for name in objects)
    target, module, cls = node["reftarget"].lstrip("."), node.get("py:module"), node.get("py:class")
    contexts = [f"{module}.{cls}", cls, module, ""] if cls else [module, ""]
    found = None
    for context in contexts:
        obj = lookup(f"{context}.{target}" if context else target)
        if obj is not None and (name := env.cdzoo_by_identity.get(id(obj))):
            found = name
            break
    if found is None:
        ends = [name for name in objects if name == target or name.endswith(f".{target}")]
        found = ends[0] if len(ends) == 1 else None
    if found is None:
        return None
    entry = objects[found]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found)


def forget(app: Sphinx, env: Any) -> None:
    """Nothing of this is kept with the environment."""
    for name in ("cdzoo_by_identity", "cdzoo_ends"):
        if hasattr(env, name):
            delattr(env, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("public-api", PublicAPI)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
