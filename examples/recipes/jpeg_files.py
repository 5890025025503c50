"""Folders of small JPEG files, read into coefficients once.

All files have one size and one sampling. A file is held out for validation by its path ``class/name.jpg``, see
:func:`data.held_out`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from data import JPEG, list_classes
from torch import Tensor

from cdzoo.codecs import read_jpeg
from cdzoo.types import JPEGCoefficients


class Split(NamedTuple):
    """The files of one split: their coefficients, their class numbers ``(N,)``, and their paths."""

    coefficients: JPEGCoefficients
    labels: Tensor
    files: list[Path]

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.files)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, ``--cache`` and ``--limit``, which all scripts that read such a folder share."""
    parser.add_argument("--data", type=Path, required=True, help="folder with one sub-folder of JPEG files per class")
    parser.add_argument("--cache", type=Path, help="file that keeps the coefficients of a split between runs")
    parser.add_argument("--limit", type=int, help="use at most this many files of a split")


def load(root: Path, split: str, *, cache: Path | None = None, limit: int | None = None) -> Split:
    """Read the files of a split, evenly thinned out to ``limit``.

    Raises:
        SystemExit: the folder has no files of this split.
        ValueError: the files differ in size or sampling.
    """
    pairs = list_classes(root, limit, suffixes=JPEG, by_path=True)[1][split]
    files, labels = [file for file, _ in pairs], torch.tensor([label for _, label in pairs])
    kept = None if cache is None else cache.with_name(f"{cache.name}-{split}-{len(files)}.pt")
    if kept is not None and kept.exists():
        return Split(JPEGCoefficients(*torch.load(kept, weights_only=True)), labels, files)
    coefficients = read_jpeg(files)
    if kept is not None:
        torch.save(tuple(coefficients), kept)
    return Split(coefficients, labels, files)


def take(coefficients: JPEGCoefficients, index: Tensor | slice) -> JPEGCoefficients:
    """Select some files of a batch."""
    return coefficients._replace(
        planes=tuple(plane[index] for plane in coefficients.planes), qtables=coefficients.qtables[index]
    )


def parts(split: Split, size: int) -> Iterator[tuple[JPEGCoefficients, Tensor]]:
    """Yield a split in order, ``size`` files at a time; the last part may be smaller."""
    for start in range(0, len(split), size):
        part = slice(start, start + size)
        yield take(split.coefficients, part), split.labels[part]
