"""How fast ``cdzoo.codecs.read_jpeg`` is, next to the readers that people use, as ratios.

Every round times each reader once, on the same files in memory, in an order that rotates; the medians of the rounds
are compared. One thread is timed by its processor time, which neighbours on a busy machine disturb less than the time
on the wall; two threads by the latter. Peers that decode to RGB do more work than we do, and that is the point: a
network that reads coefficients does not need it done. ``jpeglib`` and ``pyjpegio`` read coefficients, too, but only
from files.

    python benchmarks/jpeg_reading.py [--images DIR] [--rounds 30] [--json]
    python benchmarks/jpeg_reading.py --threads 2

A ratio above 1 means that cdzoo is faster. ``reused`` is ``out=``, to which nothing else has an equivalent. ``new
header`` gives every file a comment that no file had before, so that nothing known of earlier headers helps. With
``--threads`` only batches are read, by one thread and by so many, and the ratio of the two is all that is printed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from cdzoo.codecs.jpeg import read_jpeg, read_jpeg_header
from cdzoo.types import JPEGCoefficients

SIZES = {"224": (224, 224), "500": (500, 375), "1080p": (1920, 1080)}


def pictures(folder: Path | None, count: int) -> list[Image.Image]:
    """Photographs of a folder, or what comes closest without any: noise of natural spectrum (1/f) in three colours."""
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        return [Image.open(path).convert("RGB") for path in paths[:: max(1, len(paths) // count)][:count]]
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(1080)[:, None], np.fft.rfftfreq(1920)[None, :])
    frequency[0, 0] = 1
    images = []
    for _ in range(count):
        layers = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, 1080, 1920))) / frequency, s=(1080, 1920))
        layers = layers[:1] + 0.2 * layers[1:].repeat(2, axis=0)[:3]
        pixels = 128 + 50 * (layers - layers.mean()) / layers.std()
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return images


def encode(image: Image.Image, size: tuple[int, int], quality: int, progressive: bool) -> bytes:
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality, progressive=progressive)
    return buffer.getvalue()


def readers(files: list[bytes], paths: list[str]) -> dict[str, Callable[[int], object]]:
    """What reads the ``i``-th file, by name; ours first."""
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    buffer: JPEGCoefficients = read_jpeg(files[0])
    numbers = itertools.count()

    def with_comment(data: bytes) -> bytes:
        return b"".join((data[:2], b"\xff\xfe\x00\x0a", next(numbers).to_bytes(8, "big"), data[2:]))

    found: dict[str, Callable[[int], object]] = {
        "cdzoo": lambda i: read_jpeg(files[i]),
        "cdzoo reused": lambda i: read_jpeg(files[i], out=buffer),
        "cdzoo new header": lambda i: read_jpeg(with_comment(files[i])),
        "torchvision": lambda i: decode_jpeg(tensors[i]),
        "Pillow": lambda i: np.asarray(Image.open(io.BytesIO(files[i]))),
    }
    try:
        import simplejpeg

        found["simplejpeg"] = lambda i: simplejpeg.decode_jpeg(files[i])
    except ImportError:
        pass
    try:
        import jpeglib

        found["jpeglib"] = lambda i: jpeglib.read_dct(paths[i]).Y
    except ImportError:
        pass
    try:
        import jpegio  # the import name of pyjpegio

        found["pyjpegio"] = lambda i: jpegio.read(paths[i])
    except ImportError:
        pass
    return found


def medians(
    tasks: dict[str, Callable[[int], object]], count: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds per file: medians over rounds, in each of which every task meets every file once."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for task in tasks.values():
        task(0)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            for i in range(count):
                tasks[name](i)
            times[name].append((clock() - start) / count)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_readers(images: list[Image.Image], rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for label, size in SIZES.items():
            for quality in (75, 95):
                for progressive in (False, True):
                    files = [encode(image, size, quality, progressive) for image in images]
                    paths = [str(Path(folder, f"{i}.jpg")) for i in range(len(files))]
                    for path, data in zip(paths, files, strict=True):
                        Path(path).write_bytes(data)
                    turns = rounds if label != "1080p" else rounds // 2 + 1
                    seconds = medians(readers(files, paths), len(files), turns, time.process_time)
                    ours = seconds["cdzoo"]
                    rows.append(
                        {
                            "size": label,
                            "quality": quality,
                            "kind": read_jpeg_header(files[0]).kind,
                            "bytes": sum(map(len, files)) // len(files),
                            "microseconds": round(1e6 * ours, 1),
                            "ratios": {name: round(t / ours, 2) for name, t in seconds.items() if name != "cdzoo"},
                        }
                    )
    return rows


def measure_threads(images: list[Image.Image], rounds: int, num_threads: int) -> list[dict[str, object]]:
    """Batches of files of one size: several threads against one.

    Small batches take a millisecond or two, of which waking a thread up is a good part on many machines.
    """
    rows: list[dict[str, object]] = []
    for label, batch, progressive in (
        ("224", 16, False),
        ("224", 32, False),
        ("224", 512, False),
        ("224", 128, True),
        ("500", 128, False),
    ):
        files = [encode(images[i % len(images)], SIZES[label], 75, progressive) for i in range(batch)]
        out = read_jpeg(files)
        seconds = medians(
            {
                "one": lambda _, files=files, out=out: read_jpeg(files, out=out, num_threads=1),  # type: ignore[misc]
                "more": lambda _, files=files, out=out: read_jpeg(files, out=out, num_threads=num_threads),  # type: ignore[misc]
            },
            1,
            3 * rounds,
            time.perf_counter,
        )
        rows.append(
            {
                "size": label,
                "kind": read_jpeg_header(files[0]).kind,
                "batch": batch,
                "threads": num_threads,
                "milliseconds of one": round(1e3 * seconds["one"], 2),
                "speedup": round(seconds["one"] / seconds["more"], 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="a folder of photographs; synthetic ones without it")
    parser.add_argument("--count", type=int, default=8, help="pictures (default 8)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, help="compare so many threads with one, and nothing else")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = pictures(arguments.images, arguments.count)
    result = {
        "readers": [] if arguments.threads else measure_readers(images, arguments.rounds),
        "threads": measure_threads(images, arguments.rounds, arguments.threads or 2),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    if result["readers"]:
        print("times of other readers, cdzoo = 1")
    for row in result["readers"]:  # type: ignore[union-attr]
        ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
        print(f"{row['size']:>6} q{row['quality']} {row['kind']:<11} {row['microseconds']:>9.1f} us  {ratios}")
    for row in result["threads"]:  # type: ignore[union-attr]
        batch = f"{row['size']:>6} {row['kind']:<11} batch of {row['batch']}"
        print(f"{batch}: {row['threads']} threads {row['speedup']:.2f} x one ({row['milliseconds of one']:.2f} ms)")


if __name__ == "__main__":
    main()
