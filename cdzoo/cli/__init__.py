"""The ``cdzoo`` command: list, info, compress, decompress, classify, bench, demo.

Results go to standard output, as text or, with ``--json``, as one JSON document; everything else goes to standard
error. A file that cannot be processed is reported by name, and the others are processed.

Exit status: 0 success, 1 something failed, 2 wrong usage, 130 interrupted (finished files are reported).
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from cdzoo._text import explain
from cdzoo._version import __version__
from cdzoo.cli import _bench, _classify, _compress, _demo, _show
from cdzoo.cli._report import EXPECTED, Report, UsageError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments, without the program's name; by default those of the process.

    Returns:
        the exit status.

    Raises:
        SystemExit: the arguments cannot be parsed (status 2), or help or the version was asked for (status 0).
    """
    args = _parser().parse_args(argv)
    report = Report(args.command, as_json=args.json, per_file="inputs" in args)
    try:
        with warnings.catch_warnings():
            # without the path and the line of the source
            warnings.showwarning = lambda message, *_, **__: report.note(f"warning: {' '.join(str(message).split())}")
            args.run(args, report)
    except KeyboardInterrupt:
        report.status = 130
        report.facts["interrupted"] = True
        report.note("interrupted")
    except UsageError as error:
        report.abort(str(error), status=2)
    except EXPECTED as error:
        report.abort(explain(error), status=1)
    try:
        report.print(args.render)
    except OSError as error:
        # the reader (head, less) has seen enough, or the disk is full; keep the interpreter from complaining when it
        # closes the stream
        if not isinstance(error, BrokenPipeError):
            report.note(f"error: the result cannot be written: {explain(error)}")
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return report.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdzoo", description="Neural networks that read compressed images.")
    parser.add_argument("--version", action="version", version=f"cdzoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (_show, _compress, _classify, _bench, _demo):
        module.add_commands(commands)
    return parser
