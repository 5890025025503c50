"""A folder of JPEG files of one size, one sub-folder per class, read into coefficients once.

An image belongs to the validation split when the first eight hex digits of the SHA-256 of its path relative to the
folder, as ``class/name.jpg``, are a multiple of ten (as a number): about a tenth of the files, whatever else is there.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cdzoo.codecs import read_jpeg
from cdzoo.types import JPEGCoefficients


class Split(NamedTuple):
    """Files of one split: their coefficients, their class numbers ``(N,)``, and their paths."""

    coefficients: JPEGCoefficients
    labels: Tensor
    files: list[Path]

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.files)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """``--data``, ``--cache`` and ``--limit``, which all scripts that read files share."""
    parser.add_argument("--data", type=Path, required=True, help="folder with one sub-folder of .jpg files per class")
    parser.add_argument("--cache", type=Path, help="file that keeps the coefficients of a split between runs")
    parser.add_argument("--limit", type=int, help="use at most this many files of a split")


def list_files(root: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """Names of the classes and, for ``"train"`` and ``"val"``, pairs of file and class number."""
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and any(p.glob("*.jpg")))
    splits: dict[str, list[tuple[Path, int]]] = {"train": [], "val": []}
    for label, name in enumerate(classes):
        for file in sorted((root / name).glob("*.jpg")):
            digest = hashlib.sha256(file.relative_to(root).as_posix().encode()).hexdigest()
            splits["val" if int(digest[:8], 16) % 10 == 0 else "train"].append((file, label))
    return classes, splits


def load(root: Path, split: str, *, cache: Path | None = None, limit: int | None = None) -> Split:
    """The files of a split, evenly thinned out to ``limit``.

    Raises:
        ValueError: the folder has no files of this split, or they differ in size or sampling.
    """
    pairs = list_files(root)[1][split]
    if not pairs:
        raise ValueError(f"{root} has no files of the {split} split; it needs sub-folders of .jpg files, one per class")
    if limit is not None and limit < len(pairs):
        pairs = [pairs[i * len(pairs) // limit] for i in range(limit)]
    files, labels = [file for file, _ in pairs], torch.tensor([label for _, label in pairs])
    kept = None if cache is None else cache.with_name(f"{cache.name}-{split}-{len(files)}.pt")
    if kept is not None and kept.exists():
        return Split(JPEGCoefficients(*torch.load(kept, weights_only=True)), labels, files)
    coefficients = read_jpeg(files)
    if kept is not None:
        torch.save(tuple(coefficients), kept)
    return Split(coefficients, labels, files)


def take(coefficients: JPEGCoefficients, index: Tensor | slice) -> JPEGCoefficients:
    """Some files of a batch."""
    return coefficients._replace(
        planes=tuple(plane[index] for plane in coefficients.planes), qtables=coefficients.qtables[index]
    )


def batches(split: Split, size: int) -> Iterator[tuple[JPEGCoefficients, Tensor]]:
    """A split in order, ``size`` files at a time, the last of them fewer."""
    for start in range(0, len(split), size):
        part = slice(start, start + size)
        yield take(split.coefficients, part), split.labels[part]
