"""What people read in reports: reasons, names of files, names of classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from unicodedata import category

_NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # text would read in another order

__all__ = ["class_labels", "explain", "missing_package", "one_line", "printable"]


def explain(error: BaseException) -> str:
    """An exception as one line for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {os.fspath(error.filename)!r}" if error.filename is not None else error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()  # it may hold a file's name, and that any bytes


def missing_package(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The error for a package of an extra that is not installed: it names the package and the command."""
    return ModuleNotFoundError(f"{error.name} is not installed; run: pip install 'cdzoo[{extra}]'", name=error.name)


def printable(name: str) -> str:
    """A file's name where only Unicode can stand: bytes that are none become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def one_line(name: str) -> str:
    """A file's name for people: what would move the cursor or end the line becomes escapes, too."""
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in _NOT_SHOWN or c in _DIRECTIONS else c
        for c in printable(name)
    )


def class_labels(meta: Mapping[str, Any], num_classes: int) -> list[dict[str, str]]:
    """For each class its ``"label"`` for people and, where ``meta`` has one beside it, its ``"id"``.

    ``meta["classes"]`` lists names or identifiers; ``meta["class_names"]`` lists names in the same order, or maps
    identifiers to names. Where neither fits the network, a class is called by its number.
    """
    classes, names = meta.get("classes"), meta.get("class_names")
    if not isinstance(classes, list | tuple) or len(classes) != num_classes:
        classes = None
    if isinstance(names, Mapping):
        names = None if classes is None else [names.get(c, c) for c in classes]
    if not isinstance(names, list | tuple) or len(names) != num_classes:
        names = classes
    if names is None:
        return [{"label": f"class {i}"} for i in range(num_classes)]
    if classes is None or classes is names:
        return [{"label": str(name)} for name in names]
    return [{"label": str(n), "id": str(c)} for n, c in zip(names, classes, strict=True)]
