"""Datasets under faults: damaged and vanishing files, broken shards, killed writers and workers; memory."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from soak_files import Entry
from soak_processes import Account, Process, Scenario
from soak_setting import CODEC, Soak, die_at, growth, resident_mb, seen_by_readers
from torch.utils.data import DataLoader

from cdzoo.codecs import read_header, read_jpeg_header
from cdzoo.data import CoefficientDataset, CoefficientShards, StreamDataset, StreamShards, write_shards
from cdzoo.errors import CdzooError

__all__ = ["DATASETS"]


def datasets(soak: Soak) -> Iterator[Scenario]:
    """Folders of streams and JPEG files in batches, with two workers."""
    how = "the folder in batches of about 16, two workers, errors to a function"
    yield _read_folder(soak, "StreamDataset", soak.root, soak.streams, set(), how)
    yield _read_folder(soak, "CoefficientDataset", soak.root, soak.jpegs, set(), how)
    how = "the same, a fifth of the files deleted after they were listed"
    for name, files in (("StreamDataset", soak.streams), ("CoefficientDataset", soak.jpegs)):
        folder, entries = soak.part(f"vanishing-{name}", files, 800)
        gone = {entry.name for entry in entries[::5]}
        yield _read_folder(soak, name, folder, entries, gone, how)


def _read_folder(soak: Soak, name: str, folder: Path, entries: Sequence[Entry], gone: set[str], how: str) -> Scenario:
    account, notes = Account(), soak.scratch / f"notes-{time.monotonic_ns()}"
    options: dict[str, Any] = {
        "labels": lambda path: path.relative_to(folder).as_posix(),
        "on_error": functools.partial(_note, notes),
    }
    is_stream = name == "StreamDataset"
    start = time.monotonic()
    dataset: Any = (
        StreamDataset(folder, soak.codec, **options)
        if is_stream
        else CoefficientDataset(folder, strict=True, **options)
    )
    for file in gone:
        (folder / file).unlink()
    batches = torch.arange(len(dataset)).tensor_split(max(1, len(dataset) // 16))  # none that is small and all damaged
    loader = DataLoader(
        dataset, batch_sampler=[batch.tolist() for batch in batches], num_workers=2, collate_fn=_names_and_sizes
    )
    samples = [sample for batch in loader for sample in batch]
    account.seconds = time.monotonic() - start
    account.check(len(dataset) == len(entries), f"{len(dataset)} files were listed, not {len(entries)}")
    rows = [{"file": str(folder / file), "size": size} for file, size in samples]
    rows += _noted(notes, [str(folder / entry.name) for entry in entries])

    def valid(entry: Entry, row: dict[str, Any]) -> bool:
        path = folder / entry.name
        return entry.name in gone or row["size"] == (
            read_header(path.read_bytes()).image_size if is_stream else read_jpeg_header(path).image_size
        )

    def must_fail(entry: Entry) -> bool:
        seen = seen_by_readers(entry) if is_stream else entry.fault not in ("", "bits flipped")
        return entry.name in gone or seen

    account.files(
        entries, folder, rows, valid=valid, must_fail=must_fail,
        may_fail=lambda entry: must_fail(entry) or bool(entry.fault),
    )  # fmt: skip
    if is_stream and not gone:
        how += "; streams of other codecs are reported"
    title = f"{name}{', files vanish' if gone else ''}"
    faults = len(gone | {entry.name for entry in entries if entry.fault})
    return account.scenario(title, how, files=len(entries), faults=faults)


def shards(soak: Soak) -> Iterator[Scenario]:
    """Shards that were cut off and flipped in the middle; shards whose writer was killed."""
    for name, entries in (("StreamShards", soak.streams), ("CoefficientShards", soak.jpegs)):
        account, rng, folder = Account(), random.Random(0), soak.home / f"{name}-tar"
        good = [e for e in entries if not e.fault and (name == "CoefficientShards" or e.variant == CODEC)][:1500]
        pairs = [(soak.root / entry.name, number) for number, entry in enumerate(good)]
        for point in ("fsync", "replace"):
            write = functools.partial(_write_shards, pairs[: len(pairs) // 2], soak.home / f"{name}-{point}")
            process = Process(write, soak.scratch, functools.partial(die_at, point, 2)).wait()
            account.check(process.status == -signal.SIGKILL, f"{point} was not reached")
        start = time.monotonic()
        paths = write_shards(pairs, folder, max_count=max(1, len(pairs) // 20))
        account.seconds = time.monotonic() - start
        where = {label: paths[label // max(1, len(pairs) // 20)] for _, label in pairs}
        broken = {path: ("cut", "flipped")[number % 2] for number, path in enumerate(paths[1::3])}
        for path, way in broken.items():
            _break_shard(path, way, rng)
        labels, notes = _read_shards(soak, account, name, paths)
        for label, path in where.items():
            account.good += labels[label] >= 1
            account.doubled += labels[label] > 1
            if not labels[label]:
                told = path in broken and any(note.startswith(str(path)) for note in notes)
                account.lost += not told
                account.check(told, f"sample {label} of {path.name} has gone without a word")
        account.reported = len(notes)
        account.check(set(labels) <= set(where), "labels that nobody gave")
        account.check(all(any(n.startswith(str(p)) for n in notes) for p, w in broken.items() if w == "cut"), "a cut")
        for point in ("fsync", "replace"):
            whole = sorted((soak.home / f"{name}-{point}").glob("*.tar"))
            account.check(len(whole) == 1, f"killed at its second shard, the writer left {len(whole)} whole ones")
            again, notes = _read_shards(soak, account, name, whole)
            account.check(again and not notes, f"a shard that a killed writer left is not whole: {notes}")
        bad = next(e for e in entries if e.fault == "truncated")
        try:
            write_shards([*pairs[:3], (soak.root / bad.name, 3)], soak.home / f"{name}-bad")
            account.check(False, "a damaged file was packed")
        except CdzooError:
            account.check(not list((soak.home / f"{name}-bad").iterdir()), "a failed write left something")
        how = (
            f"{len(paths)} shards, {len(broken)} of them cut off or with flipped bits, two workers, errors to a "
            "function; two writers killed"
        )
        yield account.scenario(name, how, files=len(pairs), faults=len(broken) + 2)


def killed_worker(soak: Soak) -> Iterator[Scenario]:
    """A worker process of a DataLoader that is killed."""
    account, start = Account(), time.monotonic()
    folder, _ = soak.part("worker", [e for e in soak.streams if not e.fault and e.variant == CODEC], 32)
    dataset = StreamDataset(folder, soak.codec, labels=None, transform=_die)
    try:
        list(DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=len, timeout=300))
        account.check(False, "nobody noticed")
    except RuntimeError as error:
        account.reported = 1
        clear = "killed by signal" in str(error) or "exited unexpectedly" in str(error)
        account.check("DataLoader worker" in str(error) and clear, f"unclear: {error}")
    account.seconds = time.monotonic() - start
    yield account.scenario(
        "worker killed", "a DataLoader's worker; the loader raises, and says which process has gone", files=0, faults=1
    )


def resident_memory(soak: Soak) -> Iterator[Scenario]:
    """Check that a process does not grow while it reads."""
    account, count = Account(), len(soak.entries)

    def work() -> int:
        sets: list[Any] = [
            StreamDataset(soak.root, soak.codec, labels=None),
            CoefficientDataset(soak.root, labels=None, strict=True),
        ]
        after = {}
        for number in range(count):
            dataset = sets[number % 2]
            with contextlib.suppress(CdzooError, OSError):
                dataset[number // 2 % len(dataset)]
            if number + 1 in (count // 5, count):
                after[number + 1] = resident_mb(os.getpid())
        print(json.dumps(after))
        return 0

    run = Process(work, soak.scratch).wait()
    account.run(run, status=0)
    early, late = ((int(number), mb) for number, mb in json.loads(run.out).items())
    soak.memory.append(growth("`StreamDataset` and `CoefficientDataset` in turn", early, late))
    for row in soak.memory:
        account.check(row["mb"][1] - row["mb"][0] < 32 + 0.1 * row["mb"][0], f"memory grows: {row}")
    yield account.scenario(
        "memory", "samples over and over, in one process, for its memory alone", files=count, faults=0
    )


DATASETS: tuple[Callable[[Soak], Iterator[Scenario]], ...] = (datasets, shards, killed_worker, resident_memory)


def _die(sample: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _note(notes: Path, error: Exception) -> None:
    """Errors of worker processes, one a line."""
    line = json.dumps({"file": getattr(error, "filename", None), "text": str(error)})
    with open(notes, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _noted(notes: Path, paths: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of what was noted, each with the file that its message begins with."""
    if not notes.exists():
        return []
    known, rows = set(paths), []
    for line in notes.read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        text = note["text"]
        starts = (text[:end] for end in range(len(text), 0, -1) if text[end : end + 1] in (":", ","))
        name = note["file"] or next((start for start in starts if start in known), text)
        rows.append({"file": name, "error": text})
    return rows


def _names_and_sizes(samples: Sequence[tuple[Any, str]]) -> list[tuple[str, tuple[int, int]]]:
    return [(name, sample.image_size) for sample, name in samples]


def _write_shards(pairs: Sequence[tuple[Path, int]], folder: Path) -> int:
    write_shards(pairs, folder, max_count=max(1, len(pairs) // 3))
    return 0


def _break_shard(path: Path, way: str, rng: random.Random) -> None:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end, data = last.offset_data + last.size, bytearray(path.read_bytes())  # what follows is padding
    if way == "cut":
        del data[rng.randrange(end // 4, end) :]
    else:
        for position in rng.sample(range(end), 8):
            data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _read_shards(soak: Soak, account: Account, name: str, paths: Sequence[Path]) -> tuple[Counter[int], list[str]]:
    """The number of times that each label comes, and the errors."""
    notes = soak.scratch / f"notes-{time.monotonic_ns()}"
    options: dict[str, Any] = {"batch_size": 16, "on_error": functools.partial(_note, notes)}
    start = time.monotonic()
    found: Any = (
        StreamShards(list(paths), soak.codec, **options)
        if name == "StreamShards"
        else CoefficientShards(list(paths), strict=True, **options)
    )
    batches = DataLoader(found, batch_size=None, num_workers=2, collate_fn=_labels_of)
    labels = Counter(label for batch in batches for label in batch)
    account.seconds += time.monotonic() - start
    return labels, [row["error"] for row in _noted(notes, ())]


def _labels_of(batch: tuple[Any, torch.Tensor]) -> list[int]:
    return batch[1].tolist()  # type: ignore[no-any-return]
