"""Setting of all scenarios of the soak: the folder, how processes are started, which damage must be seen by whom."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from soak_files import Entry, copy_files, make_files
from soak_processes import Process, command

import cdzoo
from cdzoo.codecs import Codec

__all__ = ["CODEC", "Soak", "die_at", "growth", "num_faults", "resident_mb", "seen_by_pillow", "seen_by_readers"]

IMAGES = ("jpg", "png", "webp")
CODEC = "bmshj2018_hyperprior"  # the command line's own choice
ALWAYS_SEEN = ("empty", "noise", "huge size", "dangling link", "pipe")


class Soak:
    """The folder of files, what became of it so far, and how processes are started.

    Args:
        home: a folder to work in; other users must be able to enter it for the scenario on permissions.
        count: files.
        damaged: how many of them, as a fraction.
        fresh: whether commands are fresh processes, where no fork is needed to bring the misfortune about.
        mount: whether to try to mount a tmpfs.
        kills: at random moments.
    """

    def __init__(
        self, home: Path, count: int, *, damaged: float = 0.1, fresh: bool = True, mount: bool = True, kills: int = 100
    ) -> None:
        self.home, self.root, self.scratch = home, home / "files", home / "scratch"
        self.fresh, self.mount, self.kills = fresh, mount, kills
        self.scratch.mkdir(parents=True)
        self.entries = make_files(self.root, count, damaged=damaged)
        self.images = [entry for entry in self.entries if entry.kind in IMAGES]
        self.jpegs = [entry for entry in self.entries if entry.kind == "jpg"]
        self.streams = [entry for entry in self.entries if entry.kind == "cdz"]
        self.reference: dict[str, bytes] = {}  # name of an image -> its stream
        self.memory: list[dict[str, Any]] = []
        self.codec: Codec = cdzoo.get_model_weights(CODEC)["DEFAULT"].build_codec()
        # what each fork would otherwise import and compile by itself
        warm = home / "warm"
        for entries in (self.jpegs, [entry for entry in self.streams if entry.variant == CODEC]):
            copy_files([next(entry for entry in entries if not entry.fault)], self.root, warm)
        for arguments in (("compress", warm, "-o", warm), ("decompress", warm, "-o", warm), ("classify", warm)):
            self.fork(*arguments).wait()
            with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                command(*arguments)()

    def fork(self, *arguments: str | Path, prepare: Callable[[], None] | None = None) -> Process:
        """The command in a fork of this process."""
        return Process(command(*arguments), self.scratch, prepare)

    def start(self, *arguments: str | Path) -> Process:
        """The command, as a fresh process if so wanted."""
        return Process([str(a) for a in arguments], self.scratch) if self.fresh else self.fork(*arguments)

    def part(self, name: str, entries: Sequence[Entry], count: int) -> tuple[Path, list[Entry]]:
        """Some files, evenly chosen, copied to a folder of their own."""
        folder, count = self.home / name, max(1, min(count, len(entries)))
        chosen = [entries[number * len(entries) // count] for number in range(count)]
        return folder, copy_files(chosen, self.root, folder)

    def same_stream(self, entry: Entry, row: dict[str, Any]) -> bool:
        """True if a stream is the one that the first run wrote for this image."""
        return Path(row["output"]).read_bytes() == self.reference[entry.name]


def num_faults(entries: Iterable[Entry]) -> int:
    """The number of damaged files."""
    return sum(bool(entry.fault) for entry in entries)


def seen_by_pillow(entry: Entry) -> bool:
    """Kinds of damage that no reader of images can take for an image; it may decode other damage."""
    return entry.fault in ALWAYS_SEEN


def seen_by_readers(entry: Entry) -> bool:
    """A stream shows any damage, and its codec; a JPEG file all but some flipped bits."""
    if entry.kind == "cdz":
        return bool(entry.fault) or entry.variant != CODEC
    return entry.fault not in ("", "bits flipped") or (entry.variant == "cmyk" and not entry.fault)


def seen_by_classify(entry: Entry) -> bool:
    """Any damage of a stream; of a JPEG file, which is read as far as possible and marked, all but some flipped bits.

    There is a packaged network for every codec and for CMYK files.
    """
    return bool(entry.fault) if entry.kind == "cdz" else entry.fault not in ("", "bits flipped")


def resident_mb(pid: int) -> float:
    """Memory that a process occupies, in MiB; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return round(pages * resource.getpagesize() / 2**20, 1)


def growth(what: str, early: tuple[int, float], late: tuple[int, float]) -> dict[str, Any]:
    """A line of the table on memory: pairs of a number of files and the memory then."""
    return {"what": what, "files": [early[0], late[0]], "mb": [early[1], late[1]]}


def die_at(point: str, count: int) -> None:
    """Have this process killed when it calls a function of ``os`` for the ``count``-th time."""
    function, calls = getattr(os, point), iter(range(1, count))

    def dying(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(os, point, dying)
