"""Errors and file names for people."""

from __future__ import annotations

import os
from unicodedata import category

_NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they change the direction of the text

__all__ = ["explain", "missing_package", "one_line", "printable"]


def explain(error: BaseException) -> str:
    """An exception as one line for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {os.fspath(error.filename)!r}" if error.filename is not None else error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()  # the text may hold a file name with any bytes


def missing_package(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The error for a package of an extra that is not installed: it names the package and the command."""
    return ModuleNotFoundError(f"{error.name} is not installed; run: pip install 'cdzoo[{extra}]'", name=error.name)


def printable(name: str) -> str:
    """A file name as Unicode text: bytes that are not Unicode become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def one_line(name: str) -> str:
    """A file name for a terminal: characters that move the cursor or end the line become escapes, too."""
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in _NOT_SHOWN or c in _DIRECTIONS else c
        for c in printable(name)
    )
