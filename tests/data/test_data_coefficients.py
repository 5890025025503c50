"""JPEG files to coefficients: everything that streams do not have."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.dataset_files import CLASSES, Files, make_tar, once
from oracles.equality import same
from oracles.jpeg_files import encode, picture
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Subset

from cdzoo import JPEGCoefficients
from cdzoo.codecs import JPEGWarning, decode_jpeg, read_jpeg, read_jpeg_header
from cdzoo.data import (
    CoefficientDataset,
    CoefficientShards,
    RandomCrop,
    SizeBucketSampler,
    center_crop,
    collate_coefficients,
    gray_to_ycbcr,
    upright,
    write_shards,
)
from cdzoo.data.coefficients import read_upright
from cdzoo.errors import BitstreamError, JPEGError
from cdzoo.transforms import CoefficientTransform

FOURS = ((2, 2), (1, 1), (1, 1))
FILES = dict[str, JPEGCoefficients]


@pytest.fixture
def written(files: Files) -> tuple[Path, FILES]:
    return files.root, files.samples


@pytest.fixture
def shards(files: Files) -> tuple[Path, FILES]:
    return files.shard_folder, files.members


def rows(batch: JPEGCoefficients) -> list[JPEGCoefficients]:
    return [
        batch._replace(planes=tuple(p[i : i + 1] for p in batch.planes), qtables=batch.qtables[i : i + 1])
        for i in range(len(batch.qtables))
    ]


def load(dataset: CoefficientDataset, names: list[str]) -> list[Any]:
    return dataset.__getitems__([dataset.names.index(name) for name in names])


def test_coefficients_are_those_of_other_readers(written: tuple[Path, FILES]) -> None:
    jpeglib, jpegio = pytest.importorskip("jpeglib"), pytest.importorskip("jpegio")
    root, _ = written
    dataset = CoefficientDataset(root)
    for name in ("ant/a.jpg", "bee/more/e.jpeg", "cat/more/d.jfif"):
        ((file, label),) = load(dataset, [name])
        assert label == CLASSES.index(name[:3])
        first, second = jpeglib.read_dct(str(root / name)), jpegio.read(str(root / name))
        planes = [plane for plane in (first.Y, first.Cb, first.Cr) if plane is not None]
        for plane, blocks, array in zip(file.planes, planes, second.coef_arrays, strict=True):
            np.testing.assert_array_equal(plane[0].numpy(), blocks)
            rows, columns = plane.shape[1:3]
            blocks = np.asarray(array).reshape(array.shape[0] // 8, 8, -1, 8).swapaxes(1, 2)
            np.testing.assert_array_equal(plane[0].numpy(), blocks[:rows, :columns])


@pytest.mark.parametrize("num_threads", [1, 3, None])
def test_a_batch_of_any_geometries_in_order(written: tuple[Path, FILES], num_threads: int | None) -> None:
    root, files = written
    dataset = CoefficientDataset(root, labels=None, num_threads=num_threads)
    for indices in (range(18), [5, 5, 0], [6, 0, 12]):
        for i, file in zip(indices, dataset.__getitems__(indices), strict=True):
            assert isinstance(file, JPEGCoefficients)
            assert same(file, files[dataset.names[i]])


@pytest.mark.parametrize(
    ("context", "workers", "num_threads"),
    [(None, 0, 2), ("fork", 2, None), ("fork", 2, 2), pytest.param("spawn", 1, None, marks=pytest.mark.slow)],
)
def test_every_file_comes_once_in_batches_of_one_geometry(
    files: Files, written: tuple[Path, FILES], context: str | None, workers: int, num_threads: int | None
) -> None:
    dataset = CoefficientDataset(written[0], num_threads=num_threads)
    sampler = SizeBucketSampler(dataset, 4, shuffle=True)
    loader = DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate_coefficients, num_workers=workers,
        multiprocessing_context=context,
    )  # fmt: skip
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    assert sorted(len(labels) for _, labels in batches) == [2, 3, 3, 3, 3, 4]
    assert files.count(batches, written[1]) == once(written[1])


def test_bucket_keys_are_geometries(written: tuple[Path, FILES]) -> None:
    root, files = written
    dataset = CoefficientDataset(root)
    keys = dataset.bucket_keys()
    assert keys == [file[2:] for file in files.values()]
    assert dataset.image_sizes() == [file.image_size for file in files.values()]
    assert len(set(keys)) == 5
    assert len({id(key) for key in keys}) == 5  # a million files don't have a million keys
    color = Subset(dataset, [i for i, key in enumerate(keys) if key is not None and key.sampling == FOURS])
    for batch in SizeBucketSampler(color, 2):
        assert len({keys[color.indices[i]] for i in batch}) == 1
    converted = CoefficientDataset(root, gray="ycbcr").bucket_keys()
    assert len(set(converted)) == 4
    assert converted == [gray_to_ycbcr(file)[2:] for file in files.values()]


def test_headers_behind_long_metadata(tmp_path: Path) -> None:
    exif = picture(8, 8).getexif()
    exif[0x0112] = 6
    options = {"exif": exif, "icc_profile": bytes(300_000)}  # the frame header is behind them
    for name, extra in (("a.jpg", {}), ("b.jpg", options)):
        (tmp_path / name).write_bytes(encode(picture(40, 24), **extra))
    assert read_jpeg_header(tmp_path / "b.jpg").orientation == 6
    dataset = CoefficientDataset(tmp_path, labels=None)
    assert dataset.image_sizes() == [(24, 40)] * 2  # as stored
    assert all(same(a, b) for a, b in zip([dataset[0]], [dataset[1]], strict=True))  # type: ignore[arg-type]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "b.jpg", "b.jpg")
    assert CoefficientDataset(tmp_path / "x.tar", labels=None).image_sizes() == [(24, 40)]


def test_refusals(written: tuple[Path, FILES]) -> None:
    with pytest.raises(ValueError, match="gray='rgb': choose one of keep, ycbcr"):
        CoefficientDataset(written[0], gray="rgb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sampling="):
        CoefficientDataset(written[0], gray="ycbcr", gray_sampling=((1, 1), (2, 2), (1, 1)))
    with pytest.raises(ValueError, match="num_threads must be a positive integer"):
        CoefficientDataset(written[0], num_threads=0)


def test_gray_files_share_batches_with_color(files: Files) -> None:
    root, samples = files.root, files.samples
    names = ["ant/a.jpg", "ant/more/e.jpeg", "bee/b.JPEG"]
    with pytest.raises(ValueError, match="gray='ycbcr'"):
        collate_coefficients(load(CoefficientDataset(root), names))
    batch = collate_coefficients(load(CoefficientDataset(root, gray="ycbcr", labels=None), names))
    assert isinstance(batch, JPEGCoefficients)
    assert batch[2:] == (FOURS, (32, 48), "ycbcr")
    gray = rows(batch)[1]
    assert torch.equal(gray.planes[0], samples[names[1]].planes[0])
    assert not any(plane.any() for plane in gray.planes[1:])
    # the same picture, as our decoder and as Pillow see it
    assert torch.equal(decode_jpeg(gray), decode_jpeg(samples[names[1]]))
    everything = CoefficientDataset(root, gray="ycbcr")
    loader = DataLoader(everything, batch_sampler=SizeBucketSampler(everything, 9), collate_fn=collate_coefficients)
    assert sorted(len(labels) for _, labels in loader) == [3, 3, 3, 9]
    assert files.count(loader, {name: gray_to_ycbcr(file) for name, file in samples.items()}) == once(samples)
    fulls = CoefficientDataset(root, gray="ycbcr", gray_sampling=((1, 1),) * 3, labels=None)
    batch = collate_coefficients(load(fulls, ["ant/c.Jpe", "cat/more/e.jpeg"]))
    assert isinstance(batch, JPEGCoefficients)
    assert batch.planes[2].shape == (2, 4, 6, 8, 8)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_transforms_act_on_single_files(written: tuple[Path, FILES], num_threads: int) -> None:
    seen = []

    def cut(file: JPEGCoefficients) -> JPEGCoefficients:
        seen.append((file.qtables.shape[0], file.color_space))
        return center_crop(file, 16)

    root, files = written
    dataset = CoefficientDataset(root, transform=cut, gray="ycbcr", labels=None, num_threads=num_threads)
    names = [name for name in dataset.names if name[-5:] not in ("f.JPG", "c.Jpe")]
    found = load(dataset, names)
    assert seen == [(1, "ycbcr")] * 12  # in order, after the conversion of gray files
    batch = collate_coefficients(found)
    assert isinstance(batch, JPEGCoefficients)
    assert batch.planes[0].shape == (12, 2, 2, 8, 8)
    for name, file in zip(names, rows(batch), strict=True):
        assert same(file, center_crop(gray_to_ycbcr(files[name]), 16))
    # images of all sizes that a transform brings to one share batches
    keys = [key and key.color_space for key in dataset.bucket_keys()]
    assert sorted(len(indices) for indices in SizeBucketSampler(keys, 20)) == [3, 15]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_report_every_broken_file(files: Files, tmp_path: Path, num_threads: int) -> None:
    folder, errors = files.copy(tmp_path / "root"), list[Exception]()
    dataset = CoefficientDataset(folder, on_error=errors.append, num_threads=num_threads, strict=True)
    broken = files.damage(folder)
    left = {name: sample for name, sample in files.samples.items() if name not in broken}
    for batches in ([range(18)], [[i] for i in range(17, -1, -1)]):
        samples = [collate_coefficients([s]) for batch in batches for s in dataset.__getitems__(batch)]
        assert set(files.count(samples, files.samples)) == set(left)
    for name in broken:
        assert sum(str(folder / name) in str(error) for error in errors) == 2  # alone, and among the others


def test_batches_of_shards_have_one_geometry(shards: tuple[Path, FILES]) -> None:
    def lengths(**options: Any) -> list[int]:
        return sorted(len(batch.qtables) for batch in CoefficientShards(shards[0], labels=None, **options))

    assert lengths(batch_size=3) == [3, 3, 3, 3, 3, 3]
    assert lengths(batch_size=18) == [3, 3, 3, 3, 6]
    assert lengths(batch_size=18, gray="ycbcr") == [3, 3, 3, 9]
    assert lengths(batch_size=4, drop_last=True) == [4]
    assert lengths() == [1] * 18


def test_single_members_cut_to_one_size_with_the_loaders_own_batches(shards: tuple[Path, FILES]) -> None:
    color = {name: file for name, file in shards[1].items() if file.sampling == FOURS and file.color_space != "cmyk"}
    torch.manual_seed(0)
    dataset = CoefficientShards(shards[0], labels=lambda path: path.name, transform=RandomCrop(16), gray="ycbcr")
    samples = [sample for sample in dataset if sample[1] in color]
    batch, names = collate_coefficients(samples)  # type: ignore[misc]
    assert batch.planes[0].shape == (9, 2, 2, 8, 8)
    assert names == list(color)


def test_members_by_other_names(written: tuple[Path, FILES], tmp_path: Path) -> None:
    root, files = written
    data = (root / "ant/a.jpg").read_bytes()
    path = make_tar(
        tmp_path / "x.tar", [("0.JPEG", data), ("0.json", b"{}"), ("1.jfif", data), ("2.txt", b""), ("d/3.jpe", data)]
    )
    dataset = CoefficientDataset(path, labels=None)
    assert dataset.names == ["0.JPEG", "1.jfif", "d/3.jpe"]
    for file in [*dataset.__getitems__(range(3)), *CoefficientShards(path, labels=None)]:
        assert same(file, files["ant/a.jpg"])  # type: ignore[arg-type]
    readers = (lambda p: CoefficientDataset(p, labels=None), lambda p: list(CoefficientShards(p, labels=None)))
    for read in readers:
        with pytest.raises(BitstreamError, match=r"members '0\.jpg' and '0\.jpeg' are one sample"):
            read(make_tar(tmp_path / "y.tar", [("0.jpg", data), ("0.jpeg", data)]))
        with pytest.raises(BitstreamError, match=r"'0\.left\.jpg' is a 'left\.jpg' by WebDataset's rule"):
            read(make_tar(tmp_path / "y.tar", [("0.left.jpg", data)]))
        with pytest.raises(BitstreamError, match=r"no sample has a \.jpg or \.jpeg or \.jpe or \.jfif member"):
            read(make_tar(tmp_path / "y.tar", [("0.cdz", data)]))


def test_what_write_shards_refuses(files: Files, tmp_path: Path) -> None:
    folder = files.copy(tmp_path / "root")
    files.damage(folder)
    with pytest.raises(JPEGError, match=rf"^{folder}/ant/a\.jpg, byte "):
        write_shards([folder / "bee/b.JPEG", folder / "ant/a.jpg"], tmp_path / "a")
    (folder / "x.cdz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.cdz: streams and JPEG files in the same shards"):
        write_shards([folder / "bee/b.JPEG", folder / "x.cdz"], tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_rows_of_one_tensor_are_not_copied(written: tuple[Path, FILES]) -> None:
    root, files = written
    dataset = CoefficientDataset(root, labels=None)
    names = ["ant/a.jpg", "bee/a.jpg", "cat/b.JPEG"]
    samples = load(dataset, names)
    batch = collate_coefficients(samples)
    assert isinstance(batch, JPEGCoefficients)
    for k, plane in enumerate(batch.planes):
        assert plane.data_ptr() == samples[0].planes[k].data_ptr()
        assert plane.is_contiguous()
    # a part of them, in another order, or twice
    for order in ([0, 1], [1, 2], [2, 1, 0], [0, 0, 0], [0, 1, 2, 0]):
        batch = collate_coefficients([samples[i] for i in order])
        assert isinstance(batch, JPEGCoefficients)
        assert batch.planes[0].data_ptr() != samples[order[0]].planes[0].data_ptr()
        for i, file in zip(order, rows(batch), strict=True):
            assert same(file, files[names[i]])
    # rows that fit behind each other, of different tensors
    mixed = [names[0], names[2], names[0]]
    batch = collate_coefficients([samples[0], *load(dataset, mixed)[1:]])
    assert isinstance(batch, JPEGCoefficients)
    assert all(same(a, files[name]) for a, name in zip(rows(batch), mixed, strict=True))
    flipped = [file._replace(planes=tuple(plane.mT for plane in file.planes)) for file in samples]
    batch = collate_coefficients(flipped)
    assert isinstance(batch, JPEGCoefficients)
    assert torch.equal(batch.planes[1][2], files[names[2]].planes[1][0].mT)
    assert batch.planes[1].is_contiguous()


def test_collate_refusals(written: tuple[Path, FILES]) -> None:
    files = written[1]
    with pytest.raises(ValueError, match="collate_coefficients got no samples"):
        collate_coefficients([])
    first = files["ant/a.jpg"]
    for name, text in (
        ("ant/c.Jpe", r"sample 1 32x48 pixels of 'ycbcr', sampling \(\(1, 1\), \(1, 1\), \(1, 1\)\)"),
        ("ant/more/d.jfif", r"sample 1 17x33 pixels of 'ycbcr'"),
        ("ant/more/f.JPG", r"sample 1 17x33 pixels of 'cmyk'"),
    ):
        with pytest.raises(ValueError, match=rf"sample 0 is 32x48 .*, and {text}.*SizeBucketSampler"):
            collate_coefficients([(first, 0), (files[name], 1)])
    padded = first._replace(planes=tuple(torch.cat([plane, plane], 1) for plane in first.planes))
    with pytest.raises(ValueError, match="planes of unequal shapes"):
        collate_coefficients([first, padded])
    _, labels = collate_coefficients([(first, 1.5), (first, 2.5)])  # type: ignore[misc]
    assert labels.tolist() == [1.5, 2.5]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(15, 64), (64, 15), (64, 48)])
def test_only_axes_that_are_turned_over_need_whole_blocks(size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.effect_noise(size[::-1], 50).convert("RGB").save(file, "JPEG", exif=exif)
    stored = read_jpeg(file.getvalue())
    found = read_upright(file.getvalue(), max_pixels=None)
    rows_turned, columns_turned = orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)
    if (rows_turned and size[0] < 16) or (columns_turned and size[1] < 16):
        assert found.image_size == stored.image_size
        assert all(torch.equal(a, b) for a, b in zip(found.planes, stored.planes, strict=True))
        return
    rows, columns = (n - n % 16 if over else n for n, over in zip(size, (rows_turned, columns_turned), strict=True))
    as_stored, turned = (decode_jpeg(c)[0].permute(1, 2, 0).numpy() * 255 for c in (stored, found))
    image = Image.fromarray(as_stored[:rows, :columns].round().astype(np.uint8))
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image), dtype=np.float32)
    assert turned.shape == expected.shape
    assert np.abs(turned - expected).max() < 0.51  # integers


# -- photographs of any size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 2])
def test_photographs_of_any_size_share_batches_without_a_sampler(
    files: Files, tmp_path: Path, num_threads: int
) -> None:
    folder = files.copy(tmp_path / "root")
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "cat/more/f.JPG").write_bytes(encode(picture(56, 40, "RGB"), exif=exif))
    transform = CoefficientTransform(resize=40, crop=32)
    dataset = CoefficientDataset(folder, transform=transform, num_threads=num_threads)
    (loaded,) = DataLoader(dataset, batch_size=18, collate_fn=collate_coefficients)
    expected = [read_jpeg(folder / name, transform=transform) for name in dataset.names]
    assert all(same(a, b) for a, b in zip(rows(loaded[0]), expected, strict=True))
    assert same(dataset[17][0], expected[17])  # type: ignore[index]
    stored = CoefficientDataset(folder, transform=transform, upright=False, labels=None)[17]
    flat = CoefficientTransform(resize=40, crop=32, upright=False)
    assert same(stored, read_jpeg(folder / dataset.names[17], transform=flat))  # type: ignore[arg-type]
    assert not same(stored, expected[17])  # type: ignore[arg-type]
    assert dataset.image_sizes()[17] == (40, 56)  # as stored
    (path,) = write_shards([folder / name for name in dataset.names], tmp_path / "shards")
    (batch,) = CoefficientShards(path, batch_size=18, labels=None, transform=transform, num_threads=num_threads)
    assert all(same(a, b) for a, b in zip(rows(batch), expected, strict=True))


def test_images_without_a_transform_are_turned_on_request(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(encode(picture(48, 32, "RGB", seed=i), exif=exif))
    assert [file.image_size for file in load_all(CoefficientDataset(tmp_path, labels=None))] == [(32, 48)] * 2
    for file, i in zip(load_all(CoefficientDataset(tmp_path, labels=None, upright=True)), range(2), strict=True):
        assert same(file, upright(read_jpeg(tmp_path / f"{i}.jpg"), 6))


def load_all(dataset: CoefficientDataset) -> list[Any]:
    return dataset.__getitems__(range(len(dataset)))


def test_damaged_files_are_read_as_far_as_possible_with_one_warning(files: Files, tmp_path: Path) -> None:
    folder = files.copy(tmp_path / "root")
    broken = [f"{label}/a.jpg" for label in CLASSES]
    for name in broken:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) * 3 // 4])
    dataset = CoefficientDataset(folder, labels=None)
    with pytest.warns(JPEGWarning, match="is damaged and was read as far as possible .*strict=True") as caught:
        found = dict(zip(dataset.names, load_all(dataset), strict=True))
    assert len(caught) == 1
    assert isinstance(caught[0].message, JPEGWarning)
    assert caught[0].message.name == str(folder / broken[0])
    assert str(caught[0].message).startswith(f"{folder / broken[0]}, byte ")
    for name, file in found.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JPEGWarning)
            assert same(file, read_jpeg(folder / name, strict=False))
