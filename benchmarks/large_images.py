"""Memory and time of ``cdzoo compress`` and ``cdzoo decompress`` for large pictures, each in a process of its own.

    python benchmarks/large_images.py            # 12, 48 and 100 megapixels
    python benchmarks/large_images.py 12 --threads 2

The pictures are JPEG files of the packaged photograph, repeated with mirrored copies. Memory is the peak of the
resident set above that of a process that has imported the command; what the import takes is printed as well.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from memory import resident
from PIL import Image

PHOTO = Path(__file__).resolve().parents[1] / "cdzoo" / "assets" / "summer_palace.jpg"


def picture(megapixels: float) -> Image.Image:
    """The photograph beside and above mirrored copies, 4 to 3."""
    with Image.open(PHOTO) as image:
        photo = np.asarray(image.convert("RGB"))
    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    rows, columns = (np.arange(n) % (2 * s) for n, s in zip((height, height * 4 // 3), photo.shape, strict=False))
    mirrored = [np.minimum(n, 2 * s - 1 - n) for n, s in zip((rows, columns), photo.shape, strict=False)]
    return Image.fromarray(photo[mirrored[0]][:, mirrored[1]])


def child(command: str, source: str, folder: str, threads: str) -> None:
    """Run a command, and print the memory of the import, the peak above it, both in MiB, and processor seconds."""
    import torch

    import cdzoo.codecs  # noqa: F401  what the command imports when it runs
    from cdzoo.cli import main

    torch.set_num_threads(int(threads))
    before, start = resident("VmRSS"), time.process_time()
    if main([command, source, "-o", folder, "--overwrite"]):
        raise SystemExit(f"cdzoo {command} failed")
    print(f"{before:.0f} {resident('VmHWM') - before:.0f} {time.process_time() - start:.1f}")


def measured(command: str, source: Path, folder: Path, threads: int) -> tuple[float, float, float]:
    """The figures of :func:`child`, from a process of its own."""
    arguments = [sys.executable, "-W", "ignore", __file__, "--child", command, str(source), str(folder), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command} {source.name}: {done.stderr}")
    before, above, seconds = map(float, done.stdout.split()[-3:])
    return before, above, seconds


def main(argv: Sequence[str] | None = None) -> list[tuple[str, float, float]]:
    """Measure, and print a table; returns command, megapixels and MiB above the import of each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megapixels", nargs="*", type=float, default=[12, 48, 100])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    print("| command | megapixels | import (MiB) | above it (MiB) | processor time (s) |\n|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture(0.1).save(folder / "small.jpg")
        measured("compress", folder / "small.jpg", folder, args.threads)  # compiles the kernels where this is needed
        measured("decompress", folder / "small.cdz", folder, args.threads)
        for megapixels in args.megapixels:
            picture(megapixels).save(folder / "large.jpg", quality=92)
            for command, suffix in (("compress", "jpg"), ("decompress", "cdz")):
                before, above, seconds = measured(command, folder / f"large.{suffix}", folder, args.threads)
                print(f"| {command} | {megapixels:g} | {before:.0f} | {above:.0f} | {seconds:.1f} |", flush=True)
                rows.append((command, megapixels, above))
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
