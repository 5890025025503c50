"""The two kinds of files that datasets read, behind one interface for tests of what they have in common."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from oracles.jpeg_files import encode, picture
from torch import Tensor

from cdzoo import JPEGCoefficients, Latent
from cdzoo.codecs import Codec, read_jpeg
from cdzoo.data import (
    CoefficientDataset,
    CoefficientShards,
    StreamDataset,
    StreamShards,
    collate_coefficients,
    collate_latents,
    write_shards,
)
from cdzoo.errors import BitstreamError, JPEGError, PairingError

CLASSES = ["ant", "bee", "cat"]
SIZES = [(32, 32), (32, 48), (17, 40)]
# name, size (W, H), mode, Pillow's options; of each there are three, one in every class
KINDS: list[tuple[str, tuple[int, int], str, dict[str, Any]]] = [
    ("a.jpg", (48, 32), "RGB", {"subsampling": "4:2:0"}),
    ("b.JPEG", (48, 32), "RGB", {"subsampling": "4:2:0", "progressive": True, "quality": 30}),
    ("c.Jpe", (48, 32), "RGB", {"subsampling": "4:4:4"}),
    ("more/d.jfif", (33, 17), "RGB", {"subsampling": "4:2:0"}),
    ("more/e.jpeg", (48, 32), "L", {}),
    ("more/f.JPG", (33, 17), "CMYK", {}),
]
Broken = dict[str, tuple[type[Exception], str]]


class Case:
    """A folder of 18 files in 3 classes, the same files in 5 shards, and what each file must give.

    Attributes:
        samples: name below the folder -> sample.
        members: name in the shards -> sample.
    """

    suffix: str
    suffixes: tuple[str, ...]
    what: str
    error: type[Exception]
    kind: type
    place: str  # between a file's name and the reason in a message
    sizes: tuple[int, ...]  # of batches of at most 4, sorted

    def __init__(self, root: Path) -> None:
        self.root, self.shard_folder = root / "files", root / "shards"
        self.samples: dict[str, Any] = {}

    def pack(self) -> None:
        """Write the shards."""
        self.samples = dict(sorted(self.samples.items()))
        pairs = [(self.root / name, CLASSES.index(name.split("/")[0])) for name in self.samples]
        write_shards(pairs, self.shard_folder, max_count=4)
        self.members = {
            f"{i:08d}-{Path(name).stem}{self.suffix}": sample for i, (name, sample) in enumerate(self.samples.items())
        }

    def copy(self, to: Path) -> Path:
        """The folder once more, for tests that damage it."""
        shutil.copytree(self.root, to)
        return to

    def dataset(self, root: Any, **options: Any) -> Any:
        raise NotImplementedError

    def shards(self, paths: Any, **options: Any) -> Any:
        raise NotImplementedError

    def collate(self, samples: Any) -> Any:
        raise NotImplementedError

    def tensors(self, sample: Any) -> list[Tensor]:
        raise NotImplementedError

    def rows(self, batch: Any) -> list[Any]:
        raise NotImplementedError

    def key(self, sample: Any) -> Any:
        raise NotImplementedError

    def damage(self, folder: Path) -> Broken:
        raise NotImplementedError

    def equal(self, a: Any, b: Any) -> bool:
        if self.key(a) != self.key(b):
            return False
        pairs = zip(self.tensors(a), self.tensors(b), strict=True)
        return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)

    def count(self, batches: Any, samples: dict[str, Any]) -> Counter[str]:
        """Which samples came how often; every batch checked for kind, labels and content."""
        found: Counter[str] = Counter()
        for batch, labels in batches:
            assert isinstance(batch, self.kind)
            assert labels.dtype == torch.int64
            assert {len(tensor) for tensor in self.tensors(batch)} == {len(labels)}
            for sample, label in zip(self.rows(batch), labels.tolist(), strict=True):
                (name,) = [n for n, other in samples.items() if self.equal(sample, other)]
                assert label == (int(name[:8]) // 6 if "-" in name else CLASSES.index(name.split("/")[0]))
                found[name] += 1
        return found


class Streams(Case):
    """Streams of a hyperprior codec."""

    suffix, suffixes, what = ".cdz", (".cdz",), "bmshj2018_hyperprior streams"
    error, kind, place = BitstreamError, Latent, ": "
    sizes = (2, 2, 2, 4, 4, 4)

    def __init__(self, root: Path, codec: Codec, other: Codec, make_images: Callable[..., Tensor]) -> None:
        super().__init__(root)
        self.codec, self.other, self.make_images = codec, other, make_images
        for number, name in enumerate(CLASSES):
            (self.root / name / "more").mkdir(parents=True)
            for size in SIZES:
                for i, stream in enumerate(codec.compress(make_images(2, *size, seed=number))):
                    path = f"{name}/{'more/' if i else ''}{size[0]}x{size[1]}.cdz"
                    (self.root / path).write_bytes(stream)
                    # decoded one by one: floating point depends on the batch
                    self.samples[path] = codec.decompress([stream])
        self.pack()

    def dataset(self, root: Any, **options: Any) -> StreamDataset:
        return StreamDataset(root, self.codec, **options)

    def shards(self, paths: Any, **options: Any) -> StreamShards:
        return StreamShards(paths, self.codec, **options)

    def collate(self, samples: Any) -> Any:
        return collate_latents(samples)

    def tensors(self, sample: Latent) -> list[Tensor]:
        assert sample.scales is not None
        return [sample.y_hat, sample.scales]

    def rows(self, batch: Latent) -> list[Latent]:
        return [
            Latent(y[None], s[None], batch.image_size)
            for y, s in zip(batch.y_hat, batch.scales, strict=True)  # type: ignore[arg-type]
        ]

    def key(self, sample: Latent) -> Any:
        return sample.image_size

    def damage(self, folder: Path) -> Broken:
        flipped = bytearray((folder / "ant/32x32.cdz").read_bytes())
        flipped[-3] ^= 4
        (folder / "ant/32x32.cdz").write_bytes(flipped)
        (folder / "bee/32x48.cdz").write_bytes(self.other.compress(self.make_images(1, 32, 48))[0])
        (folder / "bee/17x40.cdz").write_bytes((folder / "bee/17x40.cdz").read_bytes()[:-5])
        (folder / "cat/32x32.cdz").write_bytes(b"JPEG")
        return {
            "ant/32x32.cdz": (BitstreamError, "CRC32"),
            "bee/32x48.cdz": (PairingError, "load the weights that wrote the stream"),
            "bee/17x40.cdz": (BitstreamError, "truncated"),
            "cat/32x32.cdz": (BitstreamError, "not a .cdz stream"),
        }


class Files(Case):
    """JPEG files of five geometries."""

    suffix, suffixes, what = ".jpg", (".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG files"
    error, kind, place = JPEGError, JPEGCoefficients, ", byte "
    sizes = (2, 3, 3, 3, 3, 4)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for number, label in enumerate(CLASSES):
            (self.root / label / "more").mkdir(parents=True)
            for i, (name, size, mode, options) in enumerate(KINDS):
                path = self.root / label / name
                path.write_bytes(encode(picture(*size, mode, seed=10 * number + i), **options))
                self.samples[f"{label}/{name}"] = read_jpeg(path)
        (self.root / "ant" / "notes.txt").write_text("no picture")
        self.pack()

    def dataset(self, root: Any, **options: Any) -> CoefficientDataset:
        return CoefficientDataset(root, **{"strict": True, **options})

    def shards(self, paths: Any, **options: Any) -> CoefficientShards:
        return CoefficientShards(paths, **{"strict": True, **options})

    def collate(self, samples: Any) -> Any:
        return collate_coefficients(samples)

    def tensors(self, sample: JPEGCoefficients) -> list[Tensor]:
        return [*sample.planes, sample.qtables]

    def rows(self, batch: JPEGCoefficients) -> list[JPEGCoefficients]:
        return [
            batch._replace(planes=tuple(p[i : i + 1] for p in batch.planes), qtables=batch.qtables[i : i + 1])
            for i in range(len(batch.qtables))
        ]

    def key(self, sample: JPEGCoefficients) -> Any:
        return sample[2:]

    def damage(self, folder: Path) -> Broken:
        whole = (folder / "ant/a.jpg").read_bytes()
        (folder / "ant/a.jpg").write_bytes(whole[: len(whole) * 3 // 4])
        (folder / "ant/b.JPEG").write_bytes(b"")
        flipped = bytearray(whole)
        scan = whole.index(b"\xff\xda") + 14
        flipped[scan : scan + 40] = b"\xff\0" * 20  # ones, which no Huffman code consists of
        (folder / "bee/a.jpg").write_bytes(flipped)
        (folder / "bee/c.Jpe").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        (folder / "bee/more/d.jfif").write_bytes(whole[:100])
        return {
            "ant/a.jpg": (JPEGError, "byte "),
            "ant/b.JPEG": (JPEGError, "byte 0: the file is empty"),
            "bee/a.jpg": (JPEGError, "bits that are no Huffman code"),
            "bee/c.Jpe": (JPEGError, "byte 0: no JPEG file"),
            "bee/more/d.jfif": (JPEGError, "byte "),
        }


def make_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar archive by the standard library."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def once(samples: dict[str, Any]) -> Counter[str]:
    """Every sample once."""
    return Counter(dict.fromkeys(samples, 1))
