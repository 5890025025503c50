"""The targets of ``cdzoo compress --bpp`` and ``--psnr``: arguments, and a record of the streams made for them.

The choice of a rate is :mod:`cdzoo.coding.rate_control`. A stream does not store the target that its rate was chosen
for. The output folder has a hidden file for this, so that a later run recognizes the streams of its own target. Each
line describes a stream that is about to be written.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdzoo.cli._report import UsageError

if TYPE_CHECKING:
    from cdzoo.codecs import RateChoice, RateControl

__all__ = ["CODEC", "TargetRecord", "add_targets", "load_control", "rate_names"]

CODEC = "bmshj2018_hyperprior"
"""The default codec, which has several packaged rates."""
_FILE = ".cdzoo-targets.jsonl"


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add ``--bpp`` and ``--psnr``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--bpp",
        type=_above_zero("bits per pixel, such as 0.4"),
        metavar="BITS",
        help="for each image, choose the highest packaged rate with at most this many bits per pixel; the rates have "
        "about 0.14 to 0.5 on photographs",
    )
    group.add_argument(
        "--psnr",
        type=_above_zero("decibels, such as 28"),
        metavar="DB",
        help="for each image, choose the lowest packaged rate with at least this PSNR in dB; the rates reach about 26 "
        "to 30 dB on photographs, and images that miss the target get the highest rate; decodes every image",
    )


def _above_zero(what: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0; pass {what}")
        return value

    return number


def rate_names() -> list[str]:
    """The names of the packaged weights among which a target chooses, at rising rates."""
    from cdzoo.codecs.hyperprior import RATES

    return [member.name for member in RATES]


def load_control(args: argparse.Namespace) -> RateControl | None:
    """The packaged codecs with the target that the arguments name; ``None`` without a target.

    Raises:
        UsageError: a target beside weights or another codec.
        WeightsError: the weights cannot be loaded.
    """
    from cdzoo.cli._load import load_codec
    from cdzoo.codecs import RateControl

    if args.bpp is None and args.psnr is None:
        return None
    option = "--psnr" if args.bpp is None else "--bpp"
    if args.weights is not None:
        raise UsageError(
            f"{option} chooses the weights, and --weights {args.weights} names them; leave one of them out"
        )
    if args.codec not in (None, CODEC):
        raise UsageError(f"{option} chooses among the packaged rates of {CODEC}; leave --codec {args.codec} out")
    return RateControl([load_codec(CODEC, name) for name in rate_names()], bpp=args.bpp, psnr=args.psnr)


class TargetRecord:
    """The record of an output folder.

    Args:
        folder: the output folder.
        facts: what the choices depend on, JSON-ready.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._folder, self._facts = folder, json.loads(json.dumps(facts))
        self._lines: dict[str, dict[str, Any]] = {}
        try:
            text = (folder / _FILE).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                found = json.loads(line)
                self._lines[found["stream"]] = found
            except (ValueError, KeyError, TypeError):  # an empty line, or one that a killed run did not finish
                continue

    def find(self, target: Path, stream: bytes) -> dict[str, Any] | None:
        """The facts of :meth:`add` about a stream, if it was chosen for the present target."""
        found = self._lines.get(self._name(target))
        if found is None or (found.get("crc32"), found.get("target")) != (zlib.crc32(stream), self._facts):
            return None
        result = found.get("result")
        return result if isinstance(result, dict) else None

    def reason(self, target: Path, stream: bytes) -> str:
        """Why :meth:`find` gives ``None``, as the end of "the stream exists and"."""
        found = self._lines.get(self._name(target), {})
        other = found.get("target")
        if found.get("crc32") != zlib.crc32(stream) or not isinstance(other, dict):
            return "was not made for this target"
        for name in ("bpp", "psnr"):
            if name in other and other[name] != self._facts.get(name):
                return f"was made for another target, --{name} {other[name]:g}"
        return "was made with other packaged weights"

    def add(self, target: Path, choice: RateChoice, result: dict[str, Any]) -> None:
        """Record a choice. To be called before its stream is written: the checksum tells whether it was."""
        line = {"stream": self._name(target), "crc32": zlib.crc32(choice.stream), "target": self._facts}
        with open(self._folder / _FILE, "a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps({**line, 'result': result})}\n")

    def _name(self, target: Path) -> str:
        return target.relative_to(self._folder).as_posix()
