"""JPEG files on disk and in tar shards to batches of coefficients, through DataLoader and its workers."""

from __future__ import annotations

import io
import logging
import os
import pickle
import tarfile
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.jpeg_files import encode, picture
from PIL import Image, ImageOps
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Subset, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from cdzoo import JPEGCoefficients
from cdzoo.codecs import decode_jpeg, read_jpeg, read_jpeg_header
from cdzoo.data import (
    CoefficientDataset,
    CoefficientShards,
    RandomCrop,
    SizeBucketSampler,
    center_crop,
    collate_coefficients,
    gray_to_ycbcr,
    write_shards,
)
from cdzoo.data.coefficients import read_upright
from cdzoo.errors import BitstreamError, JPEGError

CLASSES = ["ant", "bee", "cat"]
# name, size (W, H), mode, Pillow's options; of each there are three, one in every class
KINDS: list[tuple[str, tuple[int, int], str, dict[str, Any]]] = [
    ("a.jpg", (48, 32), "RGB", {"subsampling": "4:2:0"}),
    ("b.JPEG", (48, 32), "RGB", {"subsampling": "4:2:0", "progressive": True, "quality": 30}),
    ("c.Jpe", (48, 32), "RGB", {"subsampling": "4:4:4"}),
    ("more/d.jfif", (33, 17), "RGB", {"subsampling": "4:2:0"}),
    ("more/e.jpeg", (48, 32), "L", {}),
    ("more/f.JPG", (33, 17), "CMYK", {}),
]
FOURS = ((2, 2), (1, 1), (1, 1))
FILES = dict[str, JPEGCoefficients]

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on machines with one core
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),  # Python 3.12 and later
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FILES]:
    """A folder of 18 files in 3 classes and 5 geometries, and what ``read_jpeg`` says of each."""
    root = tmp_path_factory.mktemp("files")
    for number, label in enumerate(CLASSES):
        (root / label / "more").mkdir(parents=True)
        for i, (name, size, mode, options) in enumerate(KINDS):
            (root / label / name).write_bytes(encode(picture(*size, mode, seed=10 * number + i), **options))
    (root / "ant" / "notes.txt").write_text("no picture")
    names = sorted(f"{label}/{name}" for label in CLASSES for name, *_ in KINDS)
    return root, {name: read_jpeg(root / name) for name in names}


@pytest.fixture
def folder(written: tuple[Path, FILES], tmp_path: Path) -> Path:
    """The same folder, for tests that damage it."""
    for name in written[1]:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes((written[0] / name).read_bytes())
    return tmp_path / "root"


@pytest.fixture(scope="module")
def shards(written: tuple[Path, FILES], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FILES]:
    """The same files in 5 shards, with coefficients by member name."""
    directory = tmp_path_factory.mktemp("shards")
    write_shards([(written[0] / n, CLASSES.index(n.split("/")[0])) for n in written[1]], directory, max_count=4)
    return directory, {f"{i:08d}-{Path(n).stem}.jpg": file for i, (n, file) in enumerate(written[1].items())}


def equal(a: JPEGCoefficients, b: JPEGCoefficients) -> bool:
    tensors = zip([*a.planes, a.qtables], [*b.planes, b.qtables], strict=True)
    return a[2:] == b[2:] and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in tensors)


def rows(batch: JPEGCoefficients) -> list[JPEGCoefficients]:
    return [
        batch._replace(planes=tuple(p[i : i + 1] for p in batch.planes), qtables=batch.qtables[i : i + 1])
        for i in range(len(batch.qtables))
    ]


def count(batches: Any, files: FILES) -> Counter[str]:
    """Which files came how often; every batch checked for geometry, label and coefficients."""
    found: Counter[str] = Counter()
    for batch, labels in batches:
        assert isinstance(batch, JPEGCoefficients)
        assert labels.dtype == torch.int64
        assert {len(plane) for plane in batch.planes} == {len(batch.qtables)} == {len(labels)}
        for file, label in zip(rows(batch), labels.tolist(), strict=True):
            (name,) = [n for n, other in files.items() if equal(file, other)]
            assert label == (int(name[:8]) // 6 if "-" in name else CLASSES.index(name.split("/")[0]))
            found[name] += 1
    return found


def once(files: FILES) -> Counter[str]:
    return Counter(dict.fromkeys(files, 1))


def load(dataset: CoefficientDataset, names: list[str]) -> list[Any]:
    return dataset.__getitems__([dataset.names.index(name) for name in names])


# -- folders -----------------------------------------------------------------------------------------------------


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


def test_classes_and_files_are_those_of_image_folder(written: tuple[Path, FILES]) -> None:
    from torchvision.datasets import DatasetFolder

    root, files = written
    dataset = CoefficientDataset(root)
    oracle = DatasetFolder(str(root), loader=lambda path: path, extensions=(".jpg", ".jpeg", ".jpe", ".jfif"))
    assert dataset.classes == oracle.classes
    assert dataset.class_to_idx == oracle.class_to_idx
    assert dataset.names == list(files)
    assert dataset.targets is not None
    assert {(str(root / n), t) for n, t in zip(dataset.names, dataset.targets, strict=True)} == set(oracle.samples)
    assert repr(dataset) == f"CoefficientDataset(18 JPEG files of 3 classes in {root})"
    file, label = dataset[-1]
    assert equal(file, files[dataset.names[-1]])
    assert label == 2


@pytest.mark.parametrize("num_threads", [1, 3, None])
def test_a_batch_of_any_geometries_in_order(written: tuple[Path, FILES], num_threads: int | None) -> None:
    root, files = written
    dataset = CoefficientDataset(root, labels=None, num_threads=num_threads)
    for indices in (range(18), [5, 5, 0], [6, 0, 12]):
        for i, file in zip(indices, dataset.__getitems__(indices), strict=True):
            assert isinstance(file, JPEGCoefficients)
            assert equal(file, files[dataset.names[i]])


@pytest.mark.parametrize(
    ("context", "workers", "num_threads"), [(None, 0, 2), ("fork", 2, None), ("fork", 2, 2), ("spawn", 1, None)]
)
def test_every_file_comes_once_in_batches_of_one_geometry(
    written: tuple[Path, FILES], context: str | None, workers: int, num_threads: int | None
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
    assert count(batches, written[1]) == once(written[1])


def test_bucket_keys_are_geometries(written: tuple[Path, FILES]) -> None:
    root, files = written
    dataset = CoefficientDataset(root)
    keys = dataset.bucket_keys()
    assert keys == [file[2:] for file in files.values()]
    assert dataset.image_sizes() == [file.image_size for file in files.values()]
    assert len(set(keys)) == 5
    assert len({id(key) for key in keys}) == 5  # a million files don't have a million keys
    colour = Subset(dataset, [i for i, key in enumerate(keys) if key is not None and key.sampling == FOURS])
    for batch in SizeBucketSampler(colour, 2):
        assert len({keys[colour.indices[i]] for i in batch}) == 1
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
    assert all(equal(a, b) for a, b in zip([dataset[0]], [dataset[1]], strict=True))  # type: ignore[arg-type]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "b.jpg", "b.jpg")
    assert CoefficientDataset(tmp_path / "x.tar", labels=None).image_sizes() == [(24, 40)]


def test_labels_by_mapping_function_or_none(written: tuple[Path, FILES]) -> None:
    root, files = written
    by_name = {name: i for i, name in enumerate(files)}
    assert CoefficientDataset(root, labels=by_name).targets == list(range(18))
    by_path = CoefficientDataset(root, labels=lambda path: os.path.getsize(path))
    assert by_path.targets == [(root / name).stat().st_size for name in files]
    assert isinstance(CoefficientDataset(root, labels=None)[0], JPEGCoefficients)
    with pytest.raises(ValueError, match=r"lack 'ant/a\.jpg'"):
        CoefficientDataset(root, labels={})
    with pytest.raises(ValueError, match="must be 'auto' or 'folder'"):
        CoefficientDataset(root, labels="cls")


@pytest.mark.parametrize("labels", [[7] * 18, 5, True, {"a"}], ids=repr)
def test_labels_of_another_kind_are_refused(
    written: tuple[Path, FILES], shards: tuple[Path, FILES], labels: Any
) -> None:
    for root in (written[0], shards[0]):
        with pytest.raises(TypeError, match="labels must be 'auto', 'folder', 'cls', a mapping"):
            CoefficientDataset(root, labels=labels)
    with pytest.raises(TypeError, match="labels must be 'cls', a mapping"):
        CoefficientShards(shards[0], labels=labels)


def test_refusals(written: tuple[Path, FILES], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.jpg or \.jpeg or \.jpe or \.jfif file in .*, and no shard at"):
        CoefficientDataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no shard at"):
        CoefficientDataset(tmp_path / "train-{0..3}.tar")
    with pytest.raises(ValueError, match="gray must be 'keep' or 'ycbcr', not 'rgb'"):
        CoefficientDataset(written[0], gray="rgb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sampling="):
        CoefficientDataset(written[0], gray="ycbcr", gray_sampling=((1, 1), (2, 2), (1, 1)))
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        CoefficientDataset(written[0], num_threads=0)
    with pytest.raises(ValueError, match="on_error must be"):
        CoefficientDataset(written[0], on_error="ignore")  # type: ignore[arg-type]


# -- grey files, transforms --------------------------------------------------------------------------------------


def test_grey_files_share_batches_with_colour(written: tuple[Path, FILES]) -> None:
    root, files = written
    names = ["ant/a.jpg", "ant/more/e.jpeg", "bee/b.JPEG"]
    with pytest.raises(ValueError, match="gray='ycbcr'"):
        collate_coefficients(load(CoefficientDataset(root), names))
    batch = collate_coefficients(load(CoefficientDataset(root, gray="ycbcr", labels=None), names))
    assert isinstance(batch, JPEGCoefficients)
    assert batch[2:] == (FOURS, (32, 48), "ycbcr")
    grey = rows(batch)[1]
    assert torch.equal(grey.planes[0], files[names[1]].planes[0])
    assert not any(plane.any() for plane in grey.planes[1:])
    # the same picture, as our decoder and as Pillow see it
    assert torch.equal(decode_jpeg(grey), decode_jpeg(files[names[1]]))
    everything = CoefficientDataset(root, gray="ycbcr")
    loader = DataLoader(everything, batch_sampler=SizeBucketSampler(everything, 9), collate_fn=collate_coefficients)
    assert sorted(len(labels) for _, labels in loader) == [3, 3, 3, 9]
    assert count(loader, {name: gray_to_ycbcr(file) for name, file in files.items()}) == once(files)
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
    assert seen == [(1, "ycbcr")] * 12  # in order, after the conversion of grey files
    batch = collate_coefficients(found)
    assert isinstance(batch, JPEGCoefficients)
    assert batch.planes[0].shape == (12, 2, 2, 8, 8)
    for name, file in zip(names, rows(batch), strict=True):
        assert equal(file, center_crop(gray_to_ycbcr(files[name]), 16))
    # images of all sizes that a transform brings to one share batches
    keys = [key and key.color_space for key in dataset.bucket_keys()]
    assert sorted(len(indices) for indices in SizeBucketSampler(keys, 20)) == [3, 15]


def test_what_a_transform_raises_names_the_file(written: tuple[Path, FILES]) -> None:
    def fail(file: JPEGCoefficients) -> JPEGCoefficients:
        raise RuntimeError("no")

    dataset = CoefficientDataset(written[0], transform=fail, on_error="skip")
    with pytest.raises(RuntimeError, match="no") as caught:
        dataset.__getitems__([0, 1])
    assert caught.value.__notes__ == [f"in the transform of {written[0] / 'ant/a.jpg'}"]


# -- what cannot be read -----------------------------------------------------------------------------------------


def damage(folder: Path) -> dict[str, tuple[type[Exception], str]]:
    """Break some files; returns their names, the error expected and a part of its message."""
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


@pytest.mark.parametrize("num_threads", [1, 3])
def test_broken_files_raise_skip_or_call(
    folder: Path, written: tuple[Path, FILES], caplog: pytest.LogCaptureFixture, num_threads: int
) -> None:
    errors: list[Exception] = []
    skipping, telling, dataset = (
        CoefficientDataset(folder, on_error=on_error, num_threads=num_threads)  # type: ignore[arg-type]
        for on_error in ("skip", errors.append, "raise")
    )
    broken = damage(folder)
    (folder / "cat/a.jpg").unlink()
    broken["cat/a.jpg"] = (FileNotFoundError, "No such file")
    for name, (kind, part) in broken.items():
        index = dataset.names.index(name)
        for get in (lambda i: dataset[i], lambda i: dataset.__getitems__([17, i])):
            with pytest.raises(kind, match=part) as caught:
                get(index)
            assert type(caught.value) is kind
            assert str(folder / name) in str(caught.value)
            assert kind is not JPEGError or str(caught.value).startswith(f"{folder / name}, byte ")
            assert "JPEG data" not in str(caught.value)
    rest = once({name: file for name, file in written[1].items() if name not in broken})
    for lenient in (skipping, telling):
        # of what the headers say, and of whole batches of mixed geometries
        for batches in (SizeBucketSampler(lenient, 3), [[i] for i in range(17, -1, -1)]):
            errors.clear()
            found = [lenient.__getitems__(batch) for batch in batches]
            loaded = count([collate_coefficients(samples) for samples in found], written[1])
            assert set(loaded) == set(rest)
        assert count([collate_coefficients([s]) for s in lenient.__getitems__(range(18))], written[1]) == rest
        with pytest.raises(JPEGError):
            lenient[lenient.names.index("ant/a.jpg")]
    for name in broken:
        assert sum(str(folder / name) in str(error) for error in errors) == 2  # alone, and among the others
        records = [r for r in caplog.records if str(folder / name) in r.getMessage()]
        assert {(r.name, r.levelno) for r in records} == {("cdzoo.data", logging.WARNING)}


def test_broken_headers_have_no_bucket(folder: Path, written: tuple[Path, FILES]) -> None:
    damage(folder)
    (folder / "cat/a.jpg").unlink()
    os.symlink(folder / "gone.jpg", folder / "cat/a.jpg")
    with pytest.raises(JPEGError, match=r"ant/b\.JPEG, byte 0: the file is empty"):
        SizeBucketSampler(CoefficientDataset(folder), 2)
    errors: list[Exception] = []
    lenient = CoefficientDataset(folder, on_error=errors.append)
    keys = dict(zip(lenient.names, lenient.bucket_keys(), strict=True))
    left_out = {"ant/b.JPEG", "bee/c.Jpe", "bee/more/d.jfif", "cat/a.jpg"}
    assert {name for name, key in keys.items() if key is None} == left_out
    assert [sum(str(folder / name) in str(error) for error in errors) for name in left_out] == [1] * 4
    assert all(key == written[1][name][2:] for name, key in keys.items() if key is not None)
    assert len([i for batch in SizeBucketSampler(lenient, 4) for i in batch]) == 14
    assert len(errors) == 4  # read once


def test_errors_that_a_worker_sends_still_name_the_file(folder: Path) -> None:
    (folder / "bee/a.jpg").write_bytes(b"\xff\xd8")
    dataset = CoefficientDataset(folder)
    (folder / "bee/b.JPEG").unlink()
    for name, kind in (("bee/a.jpg", JPEGError), ("bee/b.JPEG", FileNotFoundError)):
        try:
            dataset[dataset.names.index(name)]
        except (JPEGError, OSError):
            sent = ExceptionWrapper(where="in DataLoader worker process 0")  # as a worker does
        with pytest.raises(kind, match=str(folder / name)):
            sent.reraise()


def test_workers_skip_what_is_broken(folder: Path, written: tuple[Path, FILES]) -> None:
    dataset = CoefficientDataset(folder, on_error="skip")
    batches = SizeBucketSampler(dataset, 4)
    broken = damage(folder)
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate_coefficients, num_workers=1, multiprocessing_context="fork"
    )
    assert count(loader, written[1]) == once({n: f for n, f in written[1].items() if n not in broken})


def test_a_batch_of_which_nothing_is_left_repeats_a_file(folder: Path, written: tuple[Path, FILES]) -> None:
    (folder / "ant/a.jpg").write_bytes(b"")
    dataset = CoefficientDataset(folder, on_error="skip", labels=None)
    with pytest.raises(JPEGError, match="the file is empty"):
        dataset.__getitems__([0])
    loader = DataLoader(Subset(dataset, [9, 0, 11]), batch_size=1, collate_fn=collate_coefficients)
    for file, i in zip(loader, (9, 9, 11), strict=True):
        assert equal(file, written[1][dataset.names[i]])


def test_large_and_odd_files_are_refused_before_they_are_read(folder: Path) -> None:
    with pytest.raises(JPEGError, match=r"ant/a\.jpg: \d+ bytes, more than the limit of 10; .*max_stream_bytes"):
        CoefficientDataset(folder, max_stream_bytes=10)[0]
    with pytest.raises(JPEGError, match=r"ant/a\.jpg: 48 x 32 pixels are more than max_pixels=1000"):
        CoefficientDataset(folder, max_pixels=1000).__getitems__([0, 1])
    (folder / "ant/a.jpg").unlink()
    os.mkfifo(folder / "ant/a.jpg")
    dataset = CoefficientDataset(folder)
    with pytest.raises(JPEGError, match=r"ant/a\.jpg: not a regular file"):
        dataset[0]
    with pytest.raises(JPEGError, match=r"ant/a\.jpg: not a regular file"):
        dataset.bucket_keys()


# -- shards ------------------------------------------------------------------------------------------------------


def make_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_shards_with_random_access(shards: tuple[Path, FILES]) -> None:
    directory, files = shards
    dataset = CoefficientDataset(directory)
    assert dataset.names == list(files)
    assert dataset.targets == [i // 6 for i in range(18)]
    assert dataset.bucket_keys() == [file[2:] for file in files.values()]
    assert repr(dataset) == "CoefficientDataset(18 JPEG files in 5 shards)"
    sampler = SizeBucketSampler(dataset, 3, shuffle=True)
    sent = pickle.loads(ForkingPickler.dumps(dataset))
    for each in (dataset, sent):
        loader = DataLoader(each, batch_sampler=sampler, collate_fn=collate_coefficients)
        assert count(loader, files) == once(files)


@pytest.mark.parametrize(
    ("context", "workers", "shuffle"), [(None, 0, False), ("fork", 2, False), ("fork", 2, True), ("spawn", 1, True)]
)
def test_every_member_comes_once(shards: tuple[Path, FILES], context: str | None, workers: int, shuffle: bool) -> None:
    dataset = CoefficientShards(shards[0], batch_size=3, shuffle=shuffle, shuffle_buffer=5, num_threads=2)
    assert repr(dataset) == "CoefficientShards(5 shards of JPEG files)"
    loader = DataLoader(
        dataset, batch_size=None, collate_fn=collate_coefficients, num_workers=workers,
        multiprocessing_context=context,
    )  # fmt: skip
    assert count(loader, shards[1]) == once(shards[1])


def test_batches_of_shards_have_one_geometry(shards: tuple[Path, FILES]) -> None:
    def lengths(**options: Any) -> list[int]:
        return sorted(len(batch.qtables) for batch in CoefficientShards(shards[0], labels=None, **options))

    assert lengths(batch_size=3) == [3, 3, 3, 3, 3, 3]
    assert lengths(batch_size=18) == [3, 3, 3, 3, 6]
    assert lengths(batch_size=18, gray="ycbcr") == [3, 3, 3, 9]
    assert lengths(batch_size=4, drop_last=True) == [4]
    assert lengths() == [1] * 18


def test_single_members_cut_to_one_size_with_the_loaders_own_batches(shards: tuple[Path, FILES]) -> None:
    colour = {name: file for name, file in shards[1].items() if file.sampling == FOURS and file.color_space != "cmyk"}
    torch.manual_seed(0)
    dataset = CoefficientShards(shards[0], labels=lambda path: path.name, transform=RandomCrop(16), gray="ycbcr")
    samples = [sample for sample in dataset if sample[1] in colour]
    batch, names = collate_coefficients(samples)  # type: ignore[misc]
    assert batch.planes[0].shape == (9, 2, 2, 8, 8)
    assert names == list(colour)


def test_members_by_other_names(written: tuple[Path, FILES], tmp_path: Path) -> None:
    root, files = written
    data = (root / "ant/a.jpg").read_bytes()
    path = make_tar(
        tmp_path / "x.tar", [("0.JPEG", data), ("0.json", b"{}"), ("1.jfif", data), ("2.txt", b""), ("d/3.jpe", data)]
    )
    dataset = CoefficientDataset(path, labels=None)
    assert dataset.names == ["0.JPEG", "1.jfif", "d/3.jpe"]
    for file in [*dataset.__getitems__(range(3)), *CoefficientShards(path, labels=None)]:
        assert equal(file, files["ant/a.jpg"])  # type: ignore[arg-type]
    readers = (lambda p: CoefficientDataset(p, labels=None), lambda p: list(CoefficientShards(p, labels=None)))
    for read in readers:
        with pytest.raises(BitstreamError, match=r"members '0\.jpg' and '0\.jpeg' are one sample"):
            read(make_tar(tmp_path / "y.tar", [("0.jpg", data), ("0.jpeg", data)]))
        with pytest.raises(BitstreamError, match=r"'0\.left\.jpg' is a 'left\.jpg' by WebDataset's rule"):
            read(make_tar(tmp_path / "y.tar", [("0.left.jpg", data)]))
        with pytest.raises(BitstreamError, match=r"no sample has a \.jpg or \.jpeg or \.jpe or \.jfif member"):
            read(make_tar(tmp_path / "y.tar", [("0.cdz", data)]))


def test_broken_members(folder: Path, written: tuple[Path, FILES], tmp_path: Path) -> None:
    broken = damage(folder)
    names = [name for name in written[1] if name[-5:] != "f.JPG"]
    path = make_tar(tmp_path / "x.tar", [(name, (folder / name).read_bytes()) for name in names])
    left = {name: file for name, file in written[1].items() if name in names and name not in broken}
    for name, (kind, part) in broken.items():
        alone = make_tar(tmp_path / "one.tar", [(name, (folder / name).read_bytes())])
        for batch_size in (None, 2):
            with pytest.raises(kind, match=rf"^.*one\.tar: {name}, .*{part}"):
                list(CoefficientShards(alone, labels=None, batch_size=batch_size))
        with pytest.raises(kind, match=rf"^.*one\.tar: {name}, .*{part}"):
            CoefficientDataset(alone, labels=None)[0]
    errors: list[Exception] = []
    options: dict[str, Any] = {"labels": lambda p: CLASSES.index(p.parts[0]), "on_error": errors.append}
    assert count(CoefficientShards(path, batch_size=4, **options), written[1]) == once(left)
    assert len(errors) == 5
    dataset = CoefficientDataset(path, **options)
    assert sum(key is None for key in dataset.bucket_keys()) == 3
    loader = DataLoader(dataset, batch_sampler=SizeBucketSampler(dataset, 9), collate_fn=collate_coefficients)
    assert count(loader, written[1]) == once(left)
    with pytest.raises(JPEGError, match=r"x\.tar: member 'ant/a\.jpg' has \d+ bytes, more than the limit of 10"):
        list(CoefficientShards(path, labels=None, max_stream_bytes=10))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(BitstreamError, match=r"x\.tar: truncated"):
        list(CoefficientShards(path, labels=None))


def test_what_write_shards_refuses(folder: Path, tmp_path: Path) -> None:
    damage(folder)
    with pytest.raises(JPEGError, match=rf"^{folder}/ant/a\.jpg, byte "):
        write_shards([folder / "bee/b.JPEG", folder / "ant/a.jpg"], tmp_path / "a")
    (folder / "x.cdz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.cdz: streams and JPEG files in the same shards"):
        write_shards([folder / "bee/b.JPEG", folder / "x.cdz"], tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


# -- batches -----------------------------------------------------------------------------------------------------


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
            assert equal(file, files[names[i]])
    # rows that fit behind each other, of different tensors
    mixed = [names[0], names[2], names[0]]
    batch = collate_coefficients([samples[0], *load(dataset, mixed)[1:]])
    assert isinstance(batch, JPEGCoefficients)
    assert all(equal(a, files[name]) for a, name in zip(rows(batch), mixed, strict=True))
    flipped = [file._replace(planes=tuple(plane.mT for plane in file.planes)) for file in samples]
    batch = collate_coefficients(flipped)
    assert isinstance(batch, JPEGCoefficients)
    assert torch.equal(batch.planes[1][2], files[names[2]].planes[1][0].mT)
    assert batch.planes[1].is_contiguous()


def test_collate_keeps_further_fields(written: tuple[Path, FILES]) -> None:
    file = written[1]["ant/a.jpg"]
    found, labels, names, weights = collate_coefficients([(file, 3, "a", 0.5), (file, 4, "b", 1.5)])
    assert len(found.qtables) == 2
    assert labels.tolist() == [3, 4]
    assert names == ["a", "b"]
    assert torch.equal(weights, default_collate([0.5, 1.5]))


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


def test_batches_pass_through_collation_and_page_locking(
    shards: tuple[Path, FILES], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(iter(CoefficientShards(shards[0], batch_size=2)))
    assert collate_coefficients(batch) is batch
    assert collate_coefficients(batch[0]) is batch[0]
    pair = collate_coefficients([batch[0], batch[0]])
    assert isinstance(pair, JPEGCoefficients)
    assert len(pair.qtables) == 4
    pinned: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, *_: pinned.append(id(self)) or self)
    coefficients, labels = pin_memory(batch)
    assert coefficients[2:] == batch[0][2:]
    assert set(pinned) == {*map(id, batch[0].planes), id(batch[0].qtables), id(labels)}


# -- orientation -------------------------------------------------------------------------------------------------------


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
