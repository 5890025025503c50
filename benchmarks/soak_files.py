"""A folder such as nobody wants to find: images and streams of many kinds, odd names, and a share of damage.

Everything is cut from the packaged photograph, and depends on the seed alone.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.demo import PHOTO
from cdzoo.images import decode_image

__all__ = ["JPEG_KINDS", "Entry", "copy_files", "make_files"]


class Entry(NamedTuple):
    """A file of the folder.

    Attributes:
        name: its path below the folder.
        kind: its suffix in lower case, without the dot: ``"jpg"``, ``"png"``, ``"webp"`` or ``"cdz"``.
        variant: the way in which a JPEG file is coded, or the codec of a stream.
        fault: what is wrong with it, or nothing.
    """

    name: str
    kind: str
    variant: str
    fault: str


JPEG_KINDS: dict[str, Callable[[Image.Image, io.BytesIO, int], None]] = {
    "baseline 4:2:0": lambda image, file, quality: image.save(file, "JPEG", quality=quality, subsampling=2),
    "baseline 4:2:2": lambda image, file, quality: image.save(file, "JPEG", quality=quality, subsampling=1),
    "baseline 4:4:4": lambda image, file, quality: image.save(file, "JPEG", quality=quality, subsampling=0),
    "progressive": lambda image, file, quality: image.save(file, "JPEG", quality=quality, progressive=True),
    "restart markers": lambda image, file, quality: image.save(file, "JPEG", quality=quality, restart_marker_blocks=3),
    "gray": lambda image, file, quality: image.convert("L").save(file, "JPEG", quality=quality),
    "cmyk": lambda image, file, quality: image.convert("CMYK").save(file, "JPEG", quality=quality),
}
_KINDS = ("jpg", "jpg", "jpg", "jpg", "jpg", "png", "webp", "cdz", "cdz", "cdz")
_CODECS = ("bmshj2018_hyperprior", "bmshj2018_hyperprior", "bmshj2018_hyperprior", "choi2019", "torfason2018")
_FAULTS = (
    "empty", "truncated", "truncated", "bits flipped", "bits flipped", "noise", "wrong suffix", "huge size",
    "dangling link", "pipe",
)  # fmt: skip
_SIZES = ((16, 16), (32, 48), (64, 64), (96, 96), (128, 96), (160, 160))
_FOLDERS = ("plain", "with space", "naïve", "写真", os.fsdecode(b"\xff\xfe"), "-dash", "folder.png", "new\nline")
_STEMS = (
    "{}", "photo {} of many", "Grüße {}", "日本語{}", "new\nline{}", os.fsdecode(b"caf\xe9-") + "{}", "-o{}",
    "--json{}", "quo'te\"{}", "v1.{}.final", "😀" * 60 + "{}", "*[{}]?", "$HOME;{}", "%s{}", "back\\slash{}",
    "long" * 50 + "{}",
)  # fmt: skip
_NUM_STREAMS = 300  # distinct ones; there are more files


def make_files(folder: Path, count: int, *, damaged: float = 0.1, seed: int = 0) -> list[Entry]:
    """Fill a new folder.

    Args:
        folder: is made.
        count: files.
        damaged: how many of them, as a fraction.
        seed: of everything random.

    Returns:
        the files, in order of creation.
    """
    rng = random.Random(seed)
    with Image.open(PHOTO) as image:
        photo = image.convert("RGB")
    streams = _streams(photo, rng, min(_NUM_STREAMS, 5 + count // 20))
    entries = []
    for number in range(count):
        kind = _KINDS[number % len(_KINDS)]
        fault = _FAULTS[number // 10 % len(_FAULTS)] if rng.random() < damaged else ""
        if kind == "cdz":
            data, variant = rng.choice(streams)
        else:
            data, variant = _image(_crop(photo, rng), kind, rng)
        stem = _STEMS[number % len(_STEMS)].format(number)
        if number % 50 in (1, 5):  # a JPEG and a PNG file that differ in their suffix alone
            stem = f"pair{number // 50}"
        suffix = kind.upper() if rng.random() < 0.1 else kind
        first, depth = number // 10 % len(_FOLDERS), 1 + number // 10 % 3
        name = os.path.join(*(_FOLDERS * 2)[first : first + depth], f"{stem}.{suffix}")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data, kind, fault, rng)
        entries.append(Entry(name, kind, variant, fault))
    (folder / _FOLDERS[0] / "loop").symlink_to("..", target_is_directory=True)
    return entries


def copy_files(entries: Iterable[Entry], source: Path, target: Path) -> list[Entry]:
    """Copy some files to another folder, links and pipes as such; gives them back."""
    copied = list(entries)
    for entry in copied:
        old, new = source / entry.name, target / entry.name
        new.parent.mkdir(parents=True, exist_ok=True)
        if entry.fault == "pipe":
            os.mkfifo(new)
        else:
            shutil.copy2(old, new, follow_symlinks=False)
    return copied


def _streams(photo: Image.Image, rng: random.Random, count: int) -> list[tuple[bytes, str]]:
    codecs: dict[str, Codec] = {}
    for name in _CODECS:
        codecs[name] = cdzoo.get_model_weights(name)["DEFAULT"].build_codec()
    made = []
    for number in range(count):
        name = _CODECS[number % len(_CODECS)]
        file = io.BytesIO()
        _crop(photo, rng).save(file, "PNG")
        made.append((codecs[name].compress(decode_image(file.getvalue()))[0], name))
    return made


def _crop(photo: Image.Image, rng: random.Random) -> Image.Image:
    height, width = rng.choice(_SIZES) if rng.random() < 0.5 else (rng.randint(16, 160), rng.randint(16, 160))
    scale = rng.choice((1, 1, 2))
    left, top = rng.randrange(photo.width - scale * width), rng.randrange(photo.height - scale * height)
    return photo.crop((left, top, left + scale * width, top + scale * height)).resize((width, height))


def _image(image: Image.Image, kind: str, rng: random.Random) -> tuple[bytes, str]:
    file = io.BytesIO()
    variant = ""
    if kind == "jpg":
        variant = rng.choice(list(JPEG_KINDS))
        JPEG_KINDS[variant](image, file, rng.choice((50, 75, 90)))
    elif kind == "png":
        image.convert(rng.choice(("RGB", "L", "RGBA", "P"))).save(file, "PNG")
    else:
        image.save(file, "WEBP", quality=80, method=0)
    return file.getvalue(), variant


def _write(path: Path, data: bytes, kind: str, fault: str, rng: random.Random) -> None:
    if fault == "dangling link":
        path.symlink_to("nowhere")
    elif fault == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(_damaged(data, kind, fault, rng))


def _damaged(data: bytes, kind: str, fault: str, rng: random.Random) -> bytes:
    if fault == "empty":
        return b""
    if fault == "truncated":
        return data[: rng.randrange(1, len(data))]
    if fault == "noise":
        return rng.randbytes(len(data))
    if fault == "bits flipped":
        flipped = bytearray(data)
        for position in rng.sample(range(len(data)), 4):
            flipped[position] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if fault == "wrong suffix":
        file = io.BytesIO()
        Image.new("RGB", (24, 24), "teal").save(file, "PNG" if kind != "png" else "GIF")
        return file.getvalue()
    if fault == "huge size":
        return _HUGE[kind](data)
    return data


def _huge_jpeg(data: bytes) -> bytes:
    start = max(data.find(b"\xff\xc0\x00"), data.find(b"\xff\xc2\x00"))  # baseline or progressive, one of them
    return data[: start + 5] + struct.pack(">HH", 65_500, 65_500) + data[start + 9 :]


def _huge_png(data: bytes) -> bytes:
    head = data[12:16] + struct.pack(">II", 1 << 30, 1 << 30) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def _huge_webp(data: bytes) -> bytes:
    return data[:26] + struct.pack("<HH", 0x3FFF, 0x3FFF) + data[30:]


def _huge_stream(data: bytes) -> bytes:
    end = 26 + 4 * data[5]
    head = data[:14] + struct.pack("<II", 1 << 30, 1 << 30) + data[22:end]
    return head + struct.pack("<I", zlib.crc32(data[end + 4 :], zlib.crc32(head))) + data[end + 4 :]


_HUGE = {"jpg": _huge_jpeg, "png": _huge_png, "webp": _huge_webp, "cdz": _huge_stream}
