"""Reading JPEG files: ``cdzoo.codecs.read_jpeg`` next to the readers that people use.

Peers that decode to RGB do more work, and that is the point: a network that reads coefficients does not need it done.
``jpeglib`` and ``pyjpegio`` read coefficients, too, but only from files, which lie in memory where there is such a
folder. ``out=`` reuses the tensors of an earlier call, to which nothing else has an equivalent. *Unseen headers* gives
every file a comment that no file had before, so that nothing known of earlier headers helps.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Options, Row, compare, row, timed, torch_threads
from pictures import bits_per_pixel, jpeg_files
from PIL import Image
from torch import Tensor

from cdzoo.codecs import read_jpeg

GROUP = "jpeg-reading"
OPTIONAL = {"torchcodec": "torchcodec.decoders", "simplejpeg": "simplejpeg", "jpeglib": "jpeglib", "pyjpegio": "jpegio"}
"""Peers that are measured where they can be imported, and the modules that they are imported by."""

SINGLE = [((224, 224), 75, False), ((224, 224), 95, False), ((224, 224), 75, True)]
SINGLE += [((375, 500), quality, progressive) for quality, progressive in ((75, False), (95, False), (75, True))]
SINGLE += [((1080, 1920), quality, progressive) for quality, progressive in ((75, False), (95, False), (75, True))]
BATCHES = [((224, 224), 16, False), ((224, 224), 128, False), ((224, 224), 64, True), ((375, 500), 32, False)]


def torchvision_decode(data: bytes) -> Tensor:
    """RGB ``(3, H, W)`` uint8, by libjpeg-turbo."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def pillow_decode(data: bytes) -> Tensor:
    """RGB ``(3, H, W)`` uint8, as a view of what Pillow has decoded."""
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def readers(files: list[bytes], paths: list[str]) -> tuple[dict[str, Callable[[int], Any]], dict[str, str]]:
    """Functions that read the ``i``-th file, by name, ours first; and names of readers that are not installed."""
    found: dict[str, Callable[[int], Any]] = {
        "cdzoo": lambda i: read_jpeg(files[i]),
        "torchvision": lambda i: torchvision_decode(files[i]),
        "Pillow": lambda i: pillow_decode(files[i]),
    }
    modules: dict[str, Any] = {}
    skipped = {}
    for name, module in OPTIONAL.items():
        try:
            modules[name] = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError):  # or a library that it loads is missing
            skipped[name] = "not installed"
    calls: dict[str, Callable[[int], Any]] = {
        "torchcodec": lambda i: modules["torchcodec"].decode_image(
            torch.frombuffer(bytearray(files[i]), dtype=torch.uint8)
        ),
        "simplejpeg": lambda i: modules["simplejpeg"].decode_jpeg(files[i]),
        "jpeglib": lambda i: modules["jpeglib"].read_dct(paths[i]).Y,
        "pyjpegio": lambda i: modules["pyjpegio"].read(paths[i]),
    }
    return {**found, **{name: calls[name] for name in modules}}, skipped


def one_by_one(size: tuple[int, int], quality: int, progressive: bool, folder: str, options: Options) -> Iterator[Row]:
    """Files one after the other in one thread."""
    files = jpeg_files(size, 4, options.photo, quality=quality, progressive=progressive)
    paths = written(files, folder)
    found, skipped = readers(files, paths)
    plain = (quality, progressive) == (75, False)
    out, numbers = read_jpeg(files[0]), itertools.count()

    def with_comment(data: bytes) -> bytes:
        return b"".join((data[:2], b"\xff\xfe\x00\x0a", next(numbers).to_bytes(8, "big"), data[2:]))

    ours = {"cdzoo": found.pop("cdzoo")}
    if plain:
        ours["out="] = lambda i: read_jpeg(files[i], out=out)
        ours["unseen headers"] = lambda i: read_jpeg(with_comment(files[i]))
    tasks = {name: lambda read=read: [read(i) for i in range(len(files))] for name, read in (ours | found).items()}
    times = timed(tasks, options, wall=False, per=len(files))
    for name in ours:
        yield row(
            GROUP,
            {
                "files": f"{'progressive' if progressive else 'baseline'}, quality {quality}",
                "call": "one file" if name == "cdzoo" else f"one file, {name}",
                "size": "x".join(map(str, size)),
                "batch": 1,
                "threads": 1,
                "bits per pixel": bits_per_pixel(files, size),
            },
            {name: times[name], **{peer: times[peer] for peer in found}},
            skipped=skipped,
        )


def in_batches(
    size: tuple[int, int], batch: int, progressive: bool, threads: int, folder: str, options: Options
) -> Row:
    """A batch at a time; readers that know no batches read the files in as many threads."""
    files = jpeg_files(size, batch, options.photo, progressive=progressive)
    found, skipped = readers(files, written(files, folder))
    if threads > 1 and found.pop("jpeglib", None):
        skipped["jpeglib"] = "not safe in threads"  # it corrupts memory when two of them read
    with torch_threads(threads) as over:
        tasks = {name: lambda read=read: over(read, range(batch)) for name, read in found.items()}
        tasks["cdzoo"] = lambda: read_jpeg(files, num_threads=threads)
        case = {
            "files": f"{'progressive' if progressive else 'baseline'}, quality 75",
            "call": "a batch",
            "size": "x".join(map(str, size)),
            "batch": batch,
            "threads": threads,
            "bits per pixel": bits_per_pixel(files, size),
        }
        return compare(GROUP, case, tasks, options, skipped=skipped)


def written(files: list[bytes], folder: str) -> list[str]:
    """The files' paths in a folder."""
    paths = [Path(folder, f"{i}.jpg") for i in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return [str(path) for path in paths]


def rows(options: Options) -> Iterator[Row]:
    """All of this group."""
    single, batches = SINGLE, BATCHES
    if options.quick:
        single, batches = [((48, 64), 75, False)], [((48, 64), 2, False)]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        with torch_threads(1):
            for size, quality, progressive in single:
                yield from one_by_one(size, quality, progressive, folder, options)
        for size, batch, progressive in batches:
            for threads in options.threads:
                yield in_batches(size, batch, progressive, threads, folder, options)
