"""cdzoo against its peers, in one run, as ratios.

    python benchmarks/run.py                      # everything, some minutes
    python benchmarks/run.py --only growth        # one group
    python benchmarks/run.py --quick              # tiny sizes: shows that everything runs, not how fast
    python benchmarks/run.py --json benchmarks/results.json && python benchmarks/report.py
    python benchmarks/run.py --only labels jpeg-reading jpeg-any-size --json benchmarks/results-jpeg.json

``benchmarks/report.py`` writes the page again from these files. A complete table needs torchcodec, simplejpeg,
PyTurboJPEG (with libturbojpeg) and OpenCV; peers that cannot be imported are named there.

Every way of a row runs once a round, in an order that rotates; the table has the medians of the rounds, and the
quartiles of the ratios of single rounds. A ratio above 1 means that cdzoo is faster, or takes less memory.
"""

from __future__ import annotations

import argparse
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import Options, Row, SkippedError, machine, to_json

GROUPS = {
    "labels": "labels",
    "entropy-coding": "entropy_coding",
    "learned-codecs": "learned_codecs",
    "jpeg-reading": "jpeg_reading",
    "jpeg-any-size": "jpeg_any_size",
    "jpeg-to-labels": "jpeg_networks",
    "cdz-to-labels": "latent_networks",
    "growth": "growth",
    "accelerator": "accelerator",
    "memory": "memory",
    "import": "imports",
}
"""Names of the groups, in the order of the table, and the files that measure them."""


def lines(row: Row) -> Iterator[str]:
    """A row as text, one line per peer."""
    case = ", ".join(f"{name} {value}" for name, value in row.case.items())
    for name, peer in row.peers.items():
        low, high = peer.spread
        figures = f"{row.ours:10.4g} {peer.value:10.4g} {row.unit:3} {peer.ratio:8.3g}x  {low:.3g} to {high:.3g}"
        yield f"{row.group:15} {name:24} {figures:52} {case}"
    for name, reason in row.skipped.items():
        yield f"{row.group:15} {name:24} {reason:52} {case}"


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, str], list[Row]]:
    """Measures, prints, writes; returns header, groups that were skipped, rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, few rounds")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help=str([*GROUPS]))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="thread counts (default: 1 2)")
    parser.add_argument("--photo", type=Path, help="cut the images from this one (default: the packaged photograph)")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    args = parser.parse_args(arguments)
    options = Options(args.quick, tuple(args.threads), args.photo)
    header, skipped, rows = machine(options), {}, []  # type: dict[str, Any], dict[str, str], list[Row]

    def write() -> None:
        """Write all rows so far, after each row, so that a run that is cut off leaves them."""
        header["load_after"] = round(os.getloadavg()[0], 1)
        if args.json:
            args.json.write_text(to_json(header, skipped, rows), encoding="utf-8")

    print(f"{'group':15} {'peer':24} {'cdzoo':>10} {'peer':>10} {'':3} {'ratio':>9}  {'quartiles':16} case")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # CompressAI's, when it is imported
        # torchvision means to hand its decoders over to another package; until then they are the fastest at hand
        warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
        for group in args.only:
            try:
                for row in importlib.import_module(GROUPS[group]).rows(options):
                    rows.append(row)
                    print(*lines(row), sep="\n", flush=True)
                    write()
            except (SkippedError, ImportError) as reason:
                skipped[group] = str(reason)
                print(f"{group:15} skipped: {reason}", flush=True)
                write()
    return header, skipped, rows


if __name__ == "__main__":
    main()
