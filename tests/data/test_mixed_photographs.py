"""Photographs of all sizes and kinds through a plain DataLoader."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cdzoo.data import CoefficientDataset, CoefficientShards, collate_coefficients
from cdzoo.errors import JPEGError
from cdzoo.jpeg.files import JPEGWarning, read_jpeg
from cdzoo.transforms import CoefficientTransform, RandomResizedCrop
from cdzoo.types import JPEGCoefficients

TRANSFORM = CoefficientTransform(resize=40, crop=32)


def photograph(seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(24, 90, 2)
    mode = ("RGB", "RGB", "L", "CMYK")[seed % 4]
    small = generator.integers(0, 255, (height // 6, width // 6, 3), np.uint8)
    image = Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = seed % 8 + 1
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling=seed % 3, progressive=seed % 2 == 0, exif=exif)
    return file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for seed in range(16):
        folder = root / ("cat", "dog")[seed % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{seed:02}.jpg").write_bytes(photograph(seed))
    return root


def same(a: JPEGCoefficients, b: JPEGCoefficients) -> bool:
    return a[2:] == b[2:] and all(torch.equal(x, y) for x, y in zip(a.planes, b.planes, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loader_gives_batches_of_one_size(root: Path, num_workers: int) -> None:
    dataset = CoefficientDataset(root, transform=TRANSFORM)
    found = []
    for coefficients, labels in DataLoader(dataset, batch_size=5, num_workers=num_workers):
        assert coefficients.planes[0].shape == (len(labels), 4, 4, 8, 8)
        found += labels.tolist()
        last = coefficients
    assert found == [0] * 8 + [1] * 8
    assert same(last, read_jpeg([root / dataset.names[15]], transform=TRANSFORM))
    unlabeled = CoefficientDataset(root, transform=TRANSFORM, labels=None)
    batch = next(iter(DataLoader(unlabeled, batch_size=16)))
    assert same(batch, read_jpeg([root / name for name in dataset.names], transform=TRANSFORM, num_threads=2))
    assert same(batch, collate_coefficients([unlabeled[i] for i in range(16)]))


def test_orientation_is_applied_unless_told_otherwise(root: Path) -> None:
    stored = CoefficientDataset(root, transform=TRANSFORM, upright=False, labels=None)
    without = CoefficientTransform(resize=40, crop=32, upright=False)
    for i in (1, 5):
        path = root / stored.names[i]
        assert same(stored[i], read_jpeg(path, transform=without))
        assert not same(stored[i], read_jpeg(path, transform=TRANSFORM))
    # without a resizing transform: integers, turned on request
    sizes = CoefficientDataset(root, labels=None).image_sizes()
    turned = CoefficientDataset(root, labels=None, upright=True)
    for i, size in enumerate(sizes):
        orientation = (2 * i if i < 8 else 2 * i - 15) % 8 + 1
        assert size is not None
        expected = size[::-1] if orientation >= 5 else size
        assert all(0 <= n - m < 16 for n, m in zip(expected, turned[i].image_size, strict=True)), i  # trimmed
        assert turned[i].planes[0].dtype == torch.int16


def test_shards_mix_all_kinds_in_their_batches(root: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for seed in range(16):
            for suffix, data in ((".jpg", photograph(seed)), (".cls", str(seed).encode())):
                info = tarfile.TarInfo(f"{seed:02}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    shards = CoefficientShards(tmp_path / "x.tar", transform=TRANSFORM, batch_size=8)
    batches = list(DataLoader(shards, batch_size=None, collate_fn=collate_coefficients))
    assert [labels.tolist() for _, labels in batches] == [list(range(8)), list(range(8, 16))]
    expected = read_jpeg([photograph(seed) for seed in range(8)], transform=TRANSFORM)
    assert same(batches[0][0], expected)
    one_by_one = CoefficientShards(tmp_path / "x.tar", transform=RandomResizedCrop(32))
    coefficients, labels = next(iter(DataLoader(one_by_one, batch_size=8)))
    assert coefficients.image_size == (32, 32)
    assert labels.tolist() == list(range(8))


def test_damaged_photographs_are_read_as_far_as_possible(tmp_path: Path) -> None:
    whole = photograph(1)
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) - 200])
    with pytest.raises(JPEGError, match=r"a\.jpg, byte"):
        CoefficientDataset(tmp_path, transform=TRANSFORM, labels=None, strict=True)[0]
    with pytest.warns(JPEGWarning, match="read as far as possible"):
        found = CoefficientDataset(tmp_path, transform=TRANSFORM, labels=None)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(found, read_jpeg(whole[: len(whole) - 200], transform=TRANSFORM, strict=False))
        assert same(CoefficientDataset(tmp_path, labels=None)[0], read_jpeg(whole[: len(whole) - 200], strict=False))


def test_random_crops_differ_by_file_and_call(root: Path) -> None:
    dataset = CoefficientDataset(root, transform=RandomResizedCrop(32), labels=None)
    assert not same(dataset[0], dataset[0])
    torch.manual_seed(3)
    first = dataset[0]
    torch.manual_seed(3)
    assert same(first, dataset[0])
