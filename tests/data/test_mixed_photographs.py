"""Photographs of all sizes and kinds through a plain DataLoader."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.equality import same
from oracles.jpeg_files import encode, picture
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import center_crop, resize

from cdzoo.codecs import JPEGWarning, decode_jpeg, read_jpeg
from cdzoo.data import CoefficientDataset, CoefficientShards, collate_coefficients
from cdzoo.errors import JPEGError
from cdzoo.transforms import CoefficientTransform, RandomResizedCrop

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
    for options in ({"transform": TRANSFORM}, {"upright": True}, {}):
        with pytest.warns(JPEGWarning, match=r"a\.jpg, byte .*read as far as possible"):
            found = CoefficientDataset(tmp_path, labels=None, **options)[0]
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


@pytest.fixture
def misnamed(tmp_path: Path) -> Path:
    """A JPEG file, and PNG and WebP files that are called .jpg; the WebP file lies on its side."""
    (tmp_path / "a.jpg").write_bytes(photograph(1))
    image = Image.open(io.BytesIO(photograph(0))).convert("RGB")
    image.save(tmp_path / "b.jpg", "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "c.jpg", "WEBP", lossless=True, exif=exif)
    return tmp_path


def test_files_of_other_formats_are_decoded_on_request(misnamed: Path) -> None:
    plain = CoefficientDataset(misnamed, transform=TRANSFORM, labels=None)
    assert plain[0].image_size == (32, 32)
    for i, name in ((1, "b.jpg"), (2, "c.jpg")):
        with pytest.raises(JPEGError, match=rf"{name}, byte 0: no JPEG file"):
            plain[i]
    dataset = CoefficientDataset(misnamed, transform=TRANSFORM, labels=None, fallback="decode")
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    with Image.open(misnamed / "b.jpg") as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    for i, x in ((1, pixels), (2, pixels.rot90(-1, (2, 3)))):
        expected = center_crop(resize(x, [40], antialias=True), [32, 32])
        found = decode_jpeg(dataset[i], clamp=False)
        assert (found - expected).square().mean().sqrt() < 1 / 255
        assert (decode_jpeg(batch, clamp=False)[i] - found[0]).abs().max() < 1e-5


@pytest.mark.parametrize("upright", [None, True])
def test_their_size_is_known_before_they_are_decoded(misnamed: Path, upright: bool | None) -> None:
    dataset = CoefficientDataset(misnamed, labels=None, fallback="decode", upright=upright)
    for i, key in enumerate(dataset.bucket_keys()[1:], 1):
        found = dataset[i]
        assert key is not None
        assert (key.sampling, key.image_size, key.color_space) == found[2:]
    assert dataset[1].image_size == dataset[2].image_size[::-1]
    with pytest.raises(JPEGError, match="no JPEG file"):
        CoefficientDataset(misnamed, labels=None).bucket_keys()
    with pytest.raises(ValueError, match="fallback='pillow'"):
        CoefficientDataset(misnamed, fallback="pillow")  # type: ignore[arg-type]
    for transform in (None, TRANSFORM):
        with pytest.raises(ValueError, match="upright='no': give True or False"):
            CoefficientDataset(misnamed, transform=transform, upright="no")  # type: ignore[arg-type]


def test_shards_with_files_of_other_formats(misnamed: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            tar.add(misnamed / name, name)
    options: Any = {"transform": TRANSFORM, "batch_size": 3, "labels": None}
    (batch,) = CoefficientShards(tmp_path / "x.tar", **options, fallback="decode")
    assert same(batch, read_jpeg([misnamed / f"{n}.jpg" for n in "abc"], transform=TRANSFORM, fallback="decode"))
    (batch,) = CoefficientShards(tmp_path / "x.tar", **options, on_error="skip")
    assert len(batch.qtables) == 1


def test_turning_by_whole_blocks_trims_and_names_the_file_that_is_too_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 2  # mirrored left and right
    for name, size in (("large.jpg", (37, 20)), ("tiny.jpg", (15, 20))):
        (tmp_path / name).write_bytes(encode(picture(*size, "RGB"), subsampling="4:2:0", exif=exif))
    stored = read_jpeg(tmp_path / "large.jpg")
    turned = read_jpeg(tmp_path / "large.jpg", transform=CoefficientTransform())
    assert turned.image_size == (20, 32)  # two cells of 16 pixels
    pixels = decode_jpeg(stored, chroma="nearest")[..., :32].flip(3)
    torch.testing.assert_close(decode_jpeg(turned, chroma="nearest"), pixels, rtol=0, atol=1e-5)
    message = r"tiny\.jpg cannot be turned upright \(orientation 2\) .*a width of 15 .*16.*; give the transform resize="
    for source in (tmp_path / "tiny.jpg", [tmp_path / "tiny.jpg", tmp_path / "tiny.jpg"]):
        with pytest.raises(ValueError, match=message):
            read_jpeg(source, transform=CoefficientTransform())
    found: Any = CoefficientDataset(tmp_path, transform=CoefficientTransform(), labels=None)[1]
    assert same(found, read_jpeg(tmp_path / "tiny.jpg"))
    assert same(CoefficientDataset(tmp_path, upright=True, labels=None)[0], turned)
    assert read_jpeg(tmp_path / "tiny.jpg", transform=CoefficientTransform(crop=(20, 15))).image_size == (20, 15)
