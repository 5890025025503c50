"""Streams on disk and in tar shards to batches of latents, through DataLoader and its workers."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import random
import subprocess
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from cdzoo import Latent
from cdzoo.codecs import Codec
from cdzoo.data import SizeBucketSampler, StreamDataset, StreamShards, collate_latents, write_shards
from cdzoo.errors import BitstreamError, PairingError

SIZES = [(32, 32), (32, 48), (17, 40)]
CLASSES = ["ant", "bee", "cat"]
LATENTS = dict[str, Latent]

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on machines with one core
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),  # Python 3.12 and later
]


@pytest.fixture(scope="module")
def codec(make_codec: Callable[..., Codec]) -> Codec:
    return make_codec("bmshj2018_hyperprior")


@pytest.fixture(scope="module")
def written(
    codec: Codec, make_images: Callable[..., Tensor], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LATENTS]:
    """A folder of 18 streams in 3 classes and 3 sizes, and what ``encode`` says of each image."""
    root = tmp_path_factory.mktemp("streams")
    latents = {}
    for number, name in enumerate(CLASSES):
        (root / name / "more").mkdir(parents=True)
        for size in SIZES:
            images = make_images(2, *size, seed=number)
            for i, stream in enumerate(codec.compress(images)):
                path = f"{name}/{'more/' if i else ''}{size[0]}x{size[1]}.cdz"
                (root / path).write_bytes(stream)
                # encoded one by one: floating point depends on the batch
                latents[path] = codec.decompress([stream])
    return root, latents


@pytest.fixture
def folder(written: tuple[Path, LATENTS], tmp_path: Path) -> Path:
    """The same folder, for tests that damage it."""
    for name in written[1]:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes((written[0] / name).read_bytes())
    return tmp_path / "root"


@pytest.fixture(scope="module")
def shards(written: tuple[Path, LATENTS], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Latent]]:
    """The same streams in 5 shards, with latents by member name."""
    directory = tmp_path_factory.mktemp("shards")
    pairs = [(written[0] / name, CLASSES.index(name.split("/")[0])) for name in written[1]]
    write_shards(pairs, directory, max_count=4)
    names = {f"{i:08d}-{Path(name).stem}.cdz": latent for i, (name, latent) in enumerate(written[1].items())}
    return directory, names


def equal(a: Latent, b: Latent) -> bool:
    assert a.scales is not None
    assert b.scales is not None
    return a.image_size == b.image_size and torch.equal(a.y_hat, b.y_hat) and torch.equal(a.scales, b.scales)


def split(batch: Any) -> list[tuple[Latent, int]]:
    latent, labels = batch
    assert isinstance(latent, Latent)
    assert labels.dtype == torch.int64
    assert len(labels) == len(latent.y_hat) == len(latent.scales)  # type: ignore[arg-type]
    return [
        (Latent(latent.y_hat[i : i + 1], latent.scales[i : i + 1], latent.image_size), int(labels[i]))  # type: ignore[index]
        for i in range(len(labels))
    ]


def count(batches: Any, latents: LATENTS) -> Counter[str]:
    """Which samples came how often; every batch checked for size, label and bits."""
    found: Counter[str] = Counter()
    for batch in batches:
        for latent, label in split(batch):
            (name,) = [n for n, other in latents.items() if equal(latent, other)]
            assert "-" in name or CLASSES[label] == name.split("/")[0]
            assert "-" not in name or label == int(name[:8]) // 6
            found[name] += 1
    return found


def once(latents: LATENTS) -> Counter[str]:
    return Counter(dict.fromkeys(latents, 1))


# -- folders -----------------------------------------------------------------------------------------------------


def test_latents_are_those_of_encode(codec: Codec, make_images: Callable[..., Tensor], tmp_path: Path) -> None:
    images = make_images(3, 33, 47)
    for i, stream in enumerate(codec.compress(images)):
        (tmp_path / f"{i}.CDZ").write_bytes(stream)
    dataset = StreamDataset(tmp_path, codec, labels=None)
    expected = codec.encode(images)
    assert len(dataset) == 3
    loaded = collate_latents(dataset.__getitems__([0, 1, 2]))  # type: ignore[arg-type]
    assert isinstance(loaded, Latent)
    assert equal(loaded, expected)
    single = dataset[1]
    assert isinstance(single, Latent)
    assert single.y_hat.shape == (1, 24, 3, 3)
    assert torch.equal(single.y_hat, expected.y_hat[1:2])


def test_folder_classes_are_those_of_image_folder(codec: Codec, written: tuple[Path, LATENTS]) -> None:
    from torchvision.datasets import DatasetFolder

    root, latents = written
    dataset = StreamDataset(root, codec)
    oracle = DatasetFolder(str(root), loader=lambda path: path, extensions=(".cdz",))
    assert dataset.classes == oracle.classes
    assert dataset.class_to_idx == oracle.class_to_idx
    assert dataset.targets is not None
    assert {(str(root / n), t) for n, t in zip(dataset.names, dataset.targets, strict=True)} == set(oracle.samples)
    assert repr(dataset) == f"StreamDataset(18 bmshj2018_hyperprior streams of 3 classes in {root})"
    latent, label = dataset[-1]
    assert equal(latent, latents[dataset.names[-1]])
    assert label == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_comes_once_in_batches_of_one_size(
    codec: Codec, written: tuple[Path, LATENTS], workers: int, shuffle: bool
) -> None:
    dataset = StreamDataset(written[0], codec)
    sampler = SizeBucketSampler(dataset, 4, shuffle=shuffle)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate_latents,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == len(sampler) == 6
    assert sorted(len(labels) for _, labels in batches) == [2, 2, 2, 4, 4, 4]
    assert count(batches, written[1]) == once(written[1])


def test_subsets_and_samplers_of_torchs_own(codec: Codec, written: tuple[Path, LATENTS]) -> None:
    # what a spawned worker gets; one is spawned below, with shards
    dataset = pickle.loads(ForkingPickler.dumps(StreamDataset(written[0], codec)))
    wide = Subset(dataset, [i for i, size in enumerate(dataset.image_sizes()) if size == (32, 48)])
    expected = {name: 1 for name, latent in written[1].items() if latent.image_size == (32, 48)}
    assert count(DataLoader(wide, batch_size=4, shuffle=True, collate_fn=collate_latents), written[1]) == expected
    bucketed = DataLoader(wide, batch_sampler=SizeBucketSampler(wide, 4), collate_fn=collate_latents)
    assert count(bucketed, written[1]) == expected
    rest = Subset(dataset, [i for i, size in enumerate(dataset.image_sizes()) if size != (32, 48)])
    whole = ConcatDataset([Subset(ConcatDataset([rest, wide]), range(len(dataset)))])
    loader = DataLoader(whole, batch_sampler=SizeBucketSampler(whole, 4, shuffle=True), collate_fn=collate_latents)
    assert count(loader, written[1]) == once(written[1])


def test_mixed_sizes_in_one_batch_raise_and_say_what_to_do(codec: Codec, written: tuple[Path, LATENTS]) -> None:
    loader = DataLoader(StreamDataset(written[0], codec), batch_size=18, collate_fn=collate_latents)
    with pytest.raises(ValueError, match="SizeBucketSampler"):
        next(iter(loader))


def test_labels_by_mapping_function_or_none(codec: Codec, written: tuple[Path, LATENTS]) -> None:
    root, latents = written
    by_name = {name: i for i, name in enumerate(latents)}
    dataset = StreamDataset(root, codec, labels=by_name)
    assert dataset.targets == [by_name[name] for name in dataset.names]
    assert dataset.classes is None
    by_path = StreamDataset(root, codec, labels=lambda path: os.path.getsize(path))
    assert by_path.targets == [(root / name).stat().st_size for name in by_path.names]
    assert isinstance(StreamDataset(root, codec, labels=None)[0], Latent)
    masks = StreamDataset(root, codec, labels=lambda path: torch.full((2, 2), len(path.name)))
    _, stacked = collate_latents(masks.__getitems__([0, 0]))  # type: ignore[arg-type,misc]
    assert stacked.shape == (2, 2, 2)
    del by_name["bee/17x40.cdz"]
    with pytest.raises(ValueError, match=r"lack 'bee/17x40\.cdz'"):
        StreamDataset(root, codec, labels=by_name)
    with pytest.raises(ValueError, match="must be 'auto' or 'folder'"):
        StreamDataset(root, codec, labels="cls")


@pytest.mark.parametrize("labels", [[7] * 18, (0, 1), 5, True, {"a"}, torch.arange(18), b"cls"], ids=repr)
def test_labels_of_another_kind_are_refused(
    codec: Codec, written: tuple[Path, LATENTS], shards: tuple[Path, LATENTS], labels: Any
) -> None:
    message = rf"labels must be .*, not the {type(labels).__name__} .*; .*dict\(zip\(dataset\.names, labels\)\)"
    for root in (written[0], shards[0]):
        with pytest.raises(TypeError, match=message):
            StreamDataset(root, codec, labels=labels)
    with pytest.raises(TypeError, match=message):
        StreamShards(shards[0], codec, labels=labels)
    dataset = StreamDataset(written[0], codec, labels=None)
    wanted = [100 + index for index in range(len(dataset))]
    assert StreamDataset(written[0], codec, labels=dict(zip(dataset.names, wanted, strict=True))).targets == wanted


def test_folders_that_are_no_classes_are_refused(codec: Codec, folder: Path) -> None:
    (folder / "dog").mkdir()
    (folder / ".cache").mkdir()
    with pytest.raises(ValueError, match=r"without files: \['dog'\]"):
        StreamDataset(folder, codec)
    (folder / "dog").rmdir()
    assert StreamDataset(folder, codec).classes == CLASSES
    (folder / "stray.cdz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 files lie in no class folder, first 'stray\.cdz'"):
        StreamDataset(folder, codec)
    assert len(StreamDataset(folder, codec, labels=None)) == 19


def test_nothing_there_is_said_so(codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no shard at"):
        StreamDataset(tmp_path, codec)
    with pytest.raises(FileNotFoundError, match="no shard at"):
        StreamDataset(tmp_path / "train-{0..3}.tar", codec)
    (tmp_path / "x.cdz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"plain \.tar"):
        StreamDataset(tmp_path / "x.cdz", codec)
    with pytest.raises(TypeError, match="must be a cdzoo codec"):
        StreamDataset(tmp_path, torch.nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_error must be"):
        StreamDataset(tmp_path, codec, on_error="ignore")  # type: ignore[arg-type]


def test_transforms_act_on_single_latents(codec: Codec, written: tuple[Path, LATENTS]) -> None:
    shapes = []

    def halve(latent: Latent) -> Latent:
        shapes.append(latent.y_hat.shape[0])
        return latent._replace(y_hat=latent.y_hat / 2)

    dataset = StreamDataset(written[0], codec, labels=None, transform=halve)
    for name, latent in zip(dataset.names, dataset.__getitems__(range(18)), strict=True):
        assert isinstance(latent, Latent)
        assert torch.equal(latent.y_hat, written[1][name].y_hat / 2)
    assert shapes == [1] * 18


def test_a_batch_of_one_size_is_decoded_in_one_call(
    codec: Codec, written: tuple[Path, LATENTS], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = Codec.decompress

    def decompress(self: Codec, streams: list[bytes], **options: Any) -> Latent:
        calls.append(len(streams))
        return original(self, streams, **options)

    monkeypatch.setattr(Codec, "decompress", decompress)
    dataset = StreamDataset(written[0], codec)
    dataset.__getitems__(range(18))
    assert calls == [6, 6, 6]


def test_the_codec_is_copied(codec: Codec, written: tuple[Path, LATENTS]) -> None:
    other = copy.deepcopy(codec).train()
    dataset = StreamDataset(written[0], other)
    with torch.no_grad():
        other.g_a[0].weight.add_(1)  # type: ignore[union-attr]
        other.to("meta")
    assert equal(dataset[0][0], written[1][dataset.names[0]])


# -- what cannot be read -----------------------------------------------------------------------------------------


def damage(folder: Path, other: Codec, make_images: Callable[..., Tensor]) -> dict[str, tuple[type[Exception], str]]:
    """Break some files; returns their names, the error expected and a part of its message."""
    flipped = bytearray((folder / "ant/32x32.cdz").read_bytes())
    flipped[-3] ^= 4
    (folder / "ant/32x32.cdz").write_bytes(flipped)
    (folder / "bee/32x48.cdz").write_bytes(other.compress(make_images(1, 32, 48))[0])
    (folder / "bee/17x40.cdz").write_bytes((folder / "bee/17x40.cdz").read_bytes()[:-5])
    return {
        "ant/32x32.cdz": (BitstreamError, "CRC32"),
        "bee/32x48.cdz": (PairingError, "load the weights that wrote the stream"),
        "bee/17x40.cdz": (BitstreamError, "truncated"),
    }


def test_what_the_coder_finds_is_told_of_the_file(
    codec: Codec, make_images: Callable[..., Tensor], tmp_path: Path
) -> None:
    data = bytearray(codec.compress(make_images(1, 32, 32))[0])
    data[38:46] = b"\xff" * 8  # where the coder's state stands
    data[34:38] = zlib.crc32(data[38:], zlib.crc32(data[:34])).to_bytes(4, "little")
    (tmp_path / "bad.cdz").write_bytes(data)
    with pytest.raises(BitstreamError) as caught:
        StreamDataset(tmp_path, codec, labels=None)[0]
    assert str(caught.value).startswith(f"{tmp_path / 'bad.cdz'}: ")
    assert "of 1:" not in str(caught.value)


def test_broken_files_raise_skip_or_call(
    codec: Codec,
    folder: Path,
    written: tuple[Path, LATENTS],
    make_codec: Callable[..., Codec],
    make_images: Callable[..., Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = damage(folder, make_codec("bmshj2018_hyperprior", seed=1), make_images)
    dataset = StreamDataset(folder, codec)
    (folder / "cat/32x32.cdz").unlink()
    broken["cat/32x32.cdz"] = (FileNotFoundError, "No such file")
    for name, (kind, part) in broken.items():
        index = dataset.names.index(name)
        for load in (lambda i: dataset[i], lambda i: dataset.__getitems__([0, i, 17])):
            with pytest.raises(kind, match=part) as caught:
                load(index)
            assert str(folder / name) in str(caught.value)
            assert type(caught.value) is kind
            assert "stream 0 of 1" not in str(caught.value)

    errors: list[Exception] = []
    for on_error in ("skip", errors.append):
        lenient = StreamDataset(folder, codec, on_error=on_error)  # type: ignore[arg-type]
        assert len(lenient) == 17
        batches = SizeBucketSampler(lenient, 3)
        found = count(DataLoader(lenient, batch_sampler=batches, collate_fn=collate_latents), written[1])
        assert found == once({name: latent for name, latent in written[1].items() if name not in broken})
    del broken["cat/32x32.cdz"]
    assert sorted(type(e).__name__ for e in errors) == ["BitstreamError", "BitstreamError", "PairingError"]
    for name in broken:
        assert sum(str(folder / name) in str(error) for error in errors) == 1
        (record,) = [r for r in caplog.records if str(folder / name) in r.getMessage()]
        assert (record.name, record.levelno) == ("cdzoo.data", logging.WARNING)
    with pytest.raises(BitstreamError):
        lenient[lenient.names.index("ant/32x32.cdz")]


def test_errors_that_a_worker_sends_still_name_the_file(codec: Codec, folder: Path) -> None:
    (folder / "bee/32x32.cdz").write_bytes(b"CDZ")
    dataset = StreamDataset(folder, codec)
    (folder / "bee/32x48.cdz").unlink()
    for name, kind in (("bee/32x32.cdz", BitstreamError), ("bee/32x48.cdz", FileNotFoundError)):
        try:
            dataset[dataset.names.index(name)]
        except (BitstreamError, OSError):
            sent = ExceptionWrapper(where="in DataLoader worker process 0")  # as a worker does
        with pytest.raises(kind, match=str(folder / name)):
            sent.reraise()


def test_a_batch_of_which_nothing_is_left_repeats_a_sample(
    codec: Codec, folder: Path, written: tuple[Path, LATENTS]
) -> None:
    (folder / "ant/17x40.cdz").write_bytes(b"")
    dataset = StreamDataset(folder, codec, on_error="skip")
    bad = dataset.names.index("ant/17x40.cdz")
    with pytest.raises(BitstreamError, match="empty stream"):
        dataset.__getitems__([bad])
    loader = DataLoader(Subset(dataset, [9, bad, 11]), batch_size=1, collate_fn=collate_latents)
    names = [dataset.names[i] for i in (9, 9, 11)]
    assert [equal(batch[0], written[1][name]) for batch, name in zip(loader, names, strict=True)] == [True] * 3


def test_sizes_come_from_headers_alone_and_broken_ones_are_left_out(codec: Codec, folder: Path) -> None:
    for path in folder.rglob("*.cdz"):
        path.write_bytes(path.read_bytes()[:26])
    dataset = StreamDataset(folder, codec)
    assert Counter(dataset.image_sizes()) == dict.fromkeys(SIZES, 6)
    (folder / "ant/32x32.cdz").write_bytes(b"JPEG")
    (folder / "bee/32x32.cdz").unlink()
    assert Counter(dataset.image_sizes()) == dict.fromkeys(SIZES, 6)  # kept
    fresh = StreamDataset(folder, codec)
    with pytest.raises(BitstreamError, match=r"ant/32x32\.cdz: not a \.cdz stream: it begins with b'JPEG'"):
        SizeBucketSampler(fresh, 2)
    lenient = StreamDataset(folder, codec, on_error="skip")
    (folder / "ant/more/32x32.cdz").unlink()
    assert Counter(lenient.image_sizes()) == {None: 2, (32, 32): 3, (32, 48): 6, (17, 40): 6}
    assert sorted(i for batch in SizeBucketSampler(lenient, 4) for i in batch) == [
        i for i, size in enumerate(lenient.image_sizes()) if size
    ]


def test_a_subfolder_that_cannot_be_read_is_told_of_and_left_out(
    codec: Codec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, closed = os.scandir, os.fspath(folder / "ant/more")

    def scandir(path: Any) -> Any:  # whoever runs the tests may be root, whom permissions do not stop
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scan(path)

    everything = StreamDataset(folder, codec).names
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="ant/more"):
        StreamDataset(folder, codec)
    told: list[Exception] = []
    dataset = StreamDataset(folder, codec, on_error=told.append)
    assert dataset.names == [name for name in everything if not name.startswith("ant/more/")]
    assert len(dataset.names) < len(everything)
    assert [error.filename for error in told if isinstance(error, OSError)] == [closed]
    closed = os.fspath(folder)
    with pytest.raises(PermissionError):  # of nothing at all
        StreamDataset(folder, codec, on_error="skip")


def test_large_and_odd_files_are_refused_before_they_are_read(codec: Codec, folder: Path) -> None:
    dataset = StreamDataset(folder, codec, max_stream_bytes=10)
    with pytest.raises(BitstreamError, match=r"more than the limit of 10; .*max_stream_bytes"):
        dataset[0]
    with pytest.raises(BitstreamError, match=r"32x32.cdz: image of 32x32 pixels exceeds the limit of 1000"):
        StreamDataset(folder, codec, max_pixels=1000)[1]
    (folder / "ant/32x48.cdz").unlink()
    os.mkfifo(folder / "ant/32x48.cdz")
    dataset = StreamDataset(folder, codec)
    with pytest.raises(BitstreamError, match=r"32x48\.cdz: not a regular file"):
        dataset[dataset.names.index("ant/32x48.cdz")]
    with pytest.raises(BitstreamError, match=r"ant/32x48\.cdz"):
        dataset.image_sizes()


def test_a_link_that_leads_back_is_not_followed(codec: Codec, folder: Path) -> None:
    names = StreamDataset(folder, codec, labels=None).names
    (folder / "ant" / "up").symlink_to("..", target_is_directory=True)
    (folder / "cat" / "across").symlink_to(folder / "bee", target_is_directory=True)
    (folder / "bee" / "across").symlink_to(folder / "cat", target_is_directory=True)
    found = StreamDataset(folder, codec, labels=None).names
    # other folders are, once
    expected = [name.replace("bee/", "cat/across/") for name in names if name.startswith("bee/")]
    expected += [name.replace("cat/", "bee/across/") for name in names if name.startswith("cat/")]
    assert found == sorted([*names, *expected])


# -- the sampler -------------------------------------------------------------------------------------------------

MIXED = [random.Random(1).choice(SIZES) for _ in range(103)]


def test_sampler_orders() -> None:
    sampler = SizeBucketSampler(MIXED, 8, shuffle=True, seed=5)
    first = list(sampler)
    assert sorted(i for batch in first for i in batch) == list(range(103))
    assert all(len({MIXED[i] for i in batch}) == 1 for batch in first)
    assert len(sampler) == len(first)
    assert list(sampler) == first == list(SizeBucketSampler(MIXED, 8, shuffle=True, seed=5))
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(map(sorted, second)) != sorted(map(sorted, first))
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(SizeBucketSampler(MIXED, 8, shuffle=True, seed=6)) not in (first, second)
    plain = list(SizeBucketSampler(MIXED, 8))
    assert plain == sorted(plain)
    assert all(batch == sorted(batch) for batch in plain)
    full = SizeBucketSampler(MIXED, 8, shuffle=True, drop_last=True)
    assert [len(batch) for batch in full] == [8] * sum(n // 8 for n in Counter(MIXED).values())
    assert len(full) == len(list(full))


@pytest.mark.parametrize("ranks", [1, 2, 4, 40])
@pytest.mark.parametrize("drop_last", [False, True])
def test_sampler_ranks(ranks: int, drop_last: bool) -> None:
    def lists(even: bool) -> list[list[list[int]]]:
        samplers = [
            SizeBucketSampler(
                MIXED, 8, shuffle=True, drop_last=drop_last, num_replicas=ranks, rank=rank, even_ranks=even
            )
            for rank in range(ranks)
        ]
        assert [len(list(s)) for s in samplers] == [len(s) for s in samplers]
        return [list(s) for s in samplers]

    whole = list(SizeBucketSampler(MIXED, 8, shuffle=True, drop_last=drop_last))
    uneven = [batch for batches in lists(False) for batch in batches]
    assert sorted(uneven) == sorted(whole)
    even = lists(True)
    assert len({len(batches) for batches in even}) == 1
    flat = [batch for batches in even for batch in batches]
    assert len(flat) == (len(whole) // ranks if drop_last else -(-len(whole) // ranks)) * ranks
    if not drop_last:
        assert {i for batch in flat for i in batch} == set(range(103))


def test_sampler_takes_its_rank_from_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    assert list(SizeBucketSampler(MIXED, 8)) == list(SizeBucketSampler(MIXED, 8, num_replicas=3, rank=2))


def test_sampler_refusals(codec: Codec, shards: tuple[Path, LATENTS]) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        SizeBucketSampler(MIXED, 0)
    with pytest.raises(ValueError, match=r"is 2 of 2"):
        SizeBucketSampler(MIXED, 8, num_replicas=2, rank=2)
    with pytest.raises(TypeError, match="StreamShards sorts by size itself"):
        SizeBucketSampler(StreamShards(shards[0], codec), 8)
    assert list(SizeBucketSampler([None, None], 8)) == list(SizeBucketSampler([], 8, num_replicas=2, rank=1)) == []


# -- shards ------------------------------------------------------------------------------------------------------


def test_written_shards_are_plain_tar_in_webdataset_layout(
    shards: tuple[Path, LATENTS], written: tuple[Path, LATENTS], tmp_path: Path
) -> None:
    paths = sorted(shards[0].iterdir())
    assert [path.name for path in paths] == [f"shard-{i:06d}.tar" for i in range(5)]
    found = []
    for path in paths:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            found += [(m.name, tar.extractfile(m).read()) for m in members]  # type: ignore[union-attr]
            assert len(members) in (4, 8)
            assert {m.mtime for m in members} == {0}
    expected = []
    for i, name in enumerate(written[1]):
        key = f"{i:08d}-{Path(name).stem}"
        expected += [(f"{key}.cdz", (written[0] / name).read_bytes()), (f"{key}.cls", b"%d" % (i // 6))]
    assert found == expected
    again = write_shards([(written[0] / n, i // 6) for i, n in enumerate(written[1])], tmp_path, max_count=4)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_shards_keep_within_their_limits(written: tuple[Path, LATENTS], tmp_path: Path) -> None:
    files = [written[0] / name for name in written[1]]
    # tar fills up its last record of 10240 bytes, so that 15000 bytes have room for one record as well
    for limit in (10240, 15000):
        paths = write_shards(files, tmp_path / str(limit), pattern="v-{:03d}.tar", max_bytes=limit)
        assert len(paths) > 1
        assert {path.stat().st_size for path in paths} == {10240}
        for path in paths:
            with tarfile.open(path) as tar:
                assert all(name.endswith(".cdz") for name in tar.getnames())
    assert len(write_shards(files[:3], tmp_path / "single", max_bytes=1)) == 3
    assert write_shards([], tmp_path / "none") == []


def test_shards_that_cannot_be_written_leave_no_trace(written: tuple[Path, LATENTS], tmp_path: Path) -> None:
    files: list[Any] = [written[0] / name for name in written[1]]
    bad = tmp_path / "bad.cdz"
    bad.write_bytes(files[0].read_bytes()[:-1])
    with pytest.raises(BitstreamError, match=r"bad\.cdz: truncated"):
        write_shards([*files[:5], bad], tmp_path / "a", max_count=3)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["shard-000000.tar"]
    with pytest.raises(FileExistsError, match=r"shard-000000\.tar"):
        write_shards(files, tmp_path / "a")
    with pytest.raises(ValueError, match="with labels and without"):
        write_shards([files[0], (files[1], 3)], tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        write_shards([tmp_path / "gone.cdz"], tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
    # what a killed writer with the same process number left is neither in the way nor touched
    left = tmp_path / "b" / f".shard-000000.tar.{os.getpid()}.tmp"
    left.touch()
    write_shards(files[:2], tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [left.name, "shard-000000.tar"]
    for pattern in ("shard.tar", "a/{}.tar", "{:06d}.zip", "{}{}.tar", "{name}.tar"):
        with pytest.raises(ValueError, match="pattern must be a file name"):
            write_shards(files, tmp_path / "c", pattern=pattern)
    with pytest.raises(ValueError, match="at least 1"):
        write_shards(files, tmp_path / "c", max_count=0)


def test_shards_with_random_access(codec: Codec, shards: tuple[Path, LATENTS]) -> None:
    directory, latents = shards
    dataset = StreamDataset(directory, codec)
    assert dataset.names == list(latents)
    assert dataset.targets == [i // 6 for i in range(18)]
    assert dataset.classes is None
    assert repr(dataset) == "StreamDataset(18 bmshj2018_hyperprior streams in 5 shards)"
    sampler = SizeBucketSampler(dataset, 4, shuffle=True)
    loader = DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate_latents, num_workers=2, multiprocessing_context="fork"
    )
    assert count(loader, latents) == once(latents)
    assert isinstance(StreamDataset(directory, codec, labels=None)[17], Latent)
    assert StreamDataset(directory, codec, labels=lambda path: len(path.stem)).targets == [14] * 18
    with pytest.raises(ValueError, match="must be 'auto' or 'cls'"):
        StreamDataset(directory, codec, labels="folder")


@pytest.mark.parametrize("form", ["folder", "glob", "braces", "list"])
def test_ways_to_name_shards(codec: Codec, shards: tuple[Path, LATENTS], form: str) -> None:
    directory = shards[0]
    given: Any = {
        "folder": str(directory),
        "glob": directory / "shard-*.tar",
        "braces": f"{directory}/shard-{{000000..000002}}.tar",
        "list": [f"{directory}/shard-00000{{3,4}}.tar", directory / "shard-000000.tar"],
    }[form]
    names = {"folder": range(5), "glob": range(5), "braces": range(3), "list": [3, 4, 0]}[form]
    expected = [str(directory / f"shard-{i:06d}.tar") for i in names]
    assert StreamShards(given, codec).shards == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_of_the_shards_comes_once(
    codec: Codec, shards: tuple[Path, LATENTS], workers: int, ranks: int, shuffle: bool
) -> None:
    found: Counter[str] = Counter()
    for rank in range(ranks):
        dataset = StreamShards(
            shards[0], codec, batch_size=3, shuffle=shuffle, shuffle_buffer=5, num_replicas=ranks, rank=rank
        )
        loader = DataLoader(
            dataset,
            batch_size=None,
            collate_fn=collate_latents,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        batches = list(loader)
        assert max(len(labels) for _, labels in batches) <= 3
        found += count(batches, shards[1])
    assert found == once(shards[1])


def test_batches_of_shards_fill_up(codec: Codec, shards: tuple[Path, LATENTS]) -> None:
    def lengths(**options: Any) -> list[int]:
        return [len(batch.y_hat) for batch in StreamShards(shards[0], codec, labels=None, **options)]

    assert lengths(batch_size=4) == [4, 4, 4, 2, 2, 2]
    assert lengths(batch_size=4, drop_last=True) == [4, 4, 4]
    assert lengths(batch_size=6) == [6, 6, 6]
    assert lengths(batch_size=None) == [1] * 18
    # 18 streams come in pairs of one size; with 5 waiting, the fullest 2 have to go
    assert lengths(batch_size=6, max_pending=4) == [2] * 9
    for name in ("batch_size", "shuffle_buffer", "max_pending"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            lengths(**{name: 0})


def test_single_samples_with_the_loaders_own_batches(codec: Codec, shards: tuple[Path, LATENTS]) -> None:
    loader = DataLoader(StreamShards(shards[0], codec), batch_size=2, collate_fn=collate_latents)
    assert count(loader, shards[1]) == once(shards[1])
    (first, label), *_ = StreamShards(shards[0], codec)
    assert equal(first, next(iter(shards[1].values())))
    assert label == 0


def test_labels_of_shards(codec: Codec, shards: tuple[Path, LATENTS]) -> None:
    names = {name: i for i, name in enumerate(shards[1])}
    assert [label for _, label in StreamShards(shards[0], codec, labels=names)] == list(range(18))
    by_name = StreamShards(shards[0], codec, labels=lambda path: int(path.name[:8]))
    assert [label for _, label in by_name] == list(range(18))
    del names["00000007-32x32.cdz"]
    with pytest.raises(ValueError, match=r"labels lack '00000007-32x32\.cdz'"):
        list(StreamShards(shards[0], codec, labels=names))
    with pytest.raises(ValueError, match="labels must be"):
        StreamShards(shards[0], codec, labels="folder")  # type: ignore[arg-type]


def order(dataset: StreamShards, latents: LATENTS) -> list[str]:
    return [name for latent, _ in dataset for name, other in latents.items() if equal(latent, other)]


def test_order_of_shards_follows_seed_and_epoch(codec: Codec, shards: tuple[Path, LATENTS]) -> None:
    directory, latents = shards
    plain = StreamShards(directory, codec)
    assert order(plain, latents) == list(latents)
    mixed = StreamShards(directory, codec, shuffle=True, shuffle_buffer=6, seed=3)
    first = order(mixed, latents)
    assert first != list(latents)
    assert sorted(first) == sorted(latents)
    assert order(mixed, latents) == first
    mixed.set_epoch(1)
    second = order(mixed, latents)
    assert second != first
    assert order(StreamShards(directory, codec, shuffle=True, shuffle_buffer=6, seed=4), latents) not in (first, second)
    again = pickle.loads(pickle.dumps(mixed))
    assert order(again, latents) == second
    again.set_epoch(0)
    assert order(again, latents) == first
    # ranks share out the shards of one order
    shares = []
    for rank in range(5):
        ranked = StreamShards(directory, codec, shuffle=True, num_replicas=5, rank=rank)
        ranked.set_epoch(7)
        shares += order(ranked, latents)
    assert sorted(shares) == sorted(latents)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_set_epoch_reaches_persistent_workers(codec: Codec, shards: tuple[Path, LATENTS], context: str) -> None:
    directory, latents = shards
    dataset = StreamShards(directory, codec, shuffle=True, shuffle_buffer=6)
    expected = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        expected.append(order(dataset, latents))
    loader = DataLoader(
        dataset, batch_size=1, collate_fn=collate_latents, num_workers=1, persistent_workers=True,
        multiprocessing_context=context,
    )  # fmt: skip
    for epoch in (1, 0):
        dataset.set_epoch(epoch)
        assert order(loader, latents) == expected[epoch]  # type: ignore[arg-type]


def test_spawned_workers_learn_their_rank(
    codec: Codec, shards: tuple[Path, LATENTS], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = StreamShards(shards[0], codec)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 3)
        patch.setattr(torch.distributed, "get_rank", lambda: 1)
        expected = order(dataset, shards[1])
        sent = pickle.dumps(dataset)
    assert order(pickle.loads(sent), shards[1]) == expected
    assert len(expected) == 6  # shards 1 and 4
    assert order(dataset, shards[1]) == list(shards[1])
    with pytest.raises(ValueError, match="5 shards for 6 ranks"):
        StreamShards(shards[0], codec, num_replicas=6, rank=0)


# -- damaged shards, strange tars --------------------------------------------------------------------------------

READERS: dict[str, Any] = {
    "shards": lambda path, codec, **o: list(StreamShards(path, codec, labels=None, **o)),
    "random": lambda path, codec, **o: (lambda d: [d[i] for i in range(len(d))])(
        StreamDataset(path, codec, labels=None, **o)
    ),
}


@pytest.fixture
def streams(written: tuple[Path, LATENTS]) -> list[bytes]:
    return [(written[0] / name).read_bytes() for name in list(written[1])[:3]]


def make_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("reader", READERS)
def test_a_truncated_shard_is_never_taken_for_a_whole_one(
    codec: Codec, streams: list[bytes], tmp_path: Path, reader: str
) -> None:
    path = make_tar(tmp_path / "x.tar", [(f"{i}.cdz", stream) for i, stream in enumerate(streams)])
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = [member.offset_data for member in tar]
    ends = [o + len(s) + -len(s) % 512 for o, s in zip(offsets, streams, strict=True)]
    for length in {
        0,
        100,
        512,
        700,
        offsets[1],
        offsets[1] + 5,
        ends[0],
        ends[1],
        ends[1] + 30,
        ends[2],
        ends[2] + 511,
    }:
        path.write_bytes(data[:length])
        with pytest.raises(BitstreamError, match=r"x\.tar: truncated"):
            READERS[reader](path, codec)
    path.write_bytes(data[: offsets[1] + 5])
    with pytest.raises(BitstreamError, match=f"truncated in member '1.cdz': 5 of {len(streams[1])} bytes"):
        READERS[reader](path, codec)
    path.write_bytes(data[: offsets[2] + 5])
    assert len(READERS[reader](path, codec, on_error="skip")) == 1
    path.write_bytes(data[: ends[2] + 512])
    assert len(READERS[reader](path, codec)) == 3


@pytest.mark.parametrize("reader", READERS)
def test_damaged_headers_raise_where_tarfile_stops_in_silence(
    codec: Codec, streams: list[bytes], tmp_path: Path, reader: str
) -> None:
    path = make_tar(tmp_path / "x.tar", [(f"{i}.cdz", stream) for i, stream in enumerate(streams)])
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        data[tar.getmembers()[1].offset + 2] ^= 1
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 1
    with pytest.raises(BitstreamError, match=r"x\.tar: damaged tar, after member '0\.cdz': bad checksum"):
        READERS[reader](path, codec)
    path.write_bytes(subprocess.run(["gzip", "-c", path], capture_output=True, check=True).stdout)
    with pytest.raises(BitstreamError, match="compressed by gzip"):
        READERS[reader](path, codec)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("reader", READERS)
def test_tar_formats(codec: Codec, streams: list[bytes], tmp_path: Path, form: int, reader: str) -> None:
    long = "d" * 90 + "/" + "n" * 60 if form == tarfile.USTAR_FORMAT else "ö" * 300
    names = [f"./{long}.cdz", "v1.0/b.cdz", "c.CDZ"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("v1.0")
            info.type, info.linkname, info.size = kind, "nowhere" * 30 if form != tarfile.USTAR_FORMAT else "x", 0
            tar.addfile(info)
        for name, data in [*zip(names, streams, strict=True), ("._c.cdz", b"?"), ("README", b"?"), ("c.json", b"{}")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))
    assert [equal(a, codec.decompress([s])) for a, s in zip(READERS[reader](path, codec), streams, strict=True)] == [
        True
    ] * 3
    assert StreamDataset(path, codec, labels=None).names == names


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("1.b.cdz", b""), r"member '1\.b\.cdz' is a 'b\.cdz' by WebDataset's rule"),
        (("0.cdz", b""), r"member '0\.cdz' comes twice"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_samples_that_would_be_lost_raise(
    codec: Codec, streams: list[bytes], tmp_path: Path, reader: str, member: tuple[str, bytes], message: str
) -> None:
    path = make_tar(tmp_path / "x.tar", [("0.cdz", streams[0]), member])
    with pytest.raises(BitstreamError, match=message):
        READERS[reader](path, codec)


@pytest.mark.parametrize("reader", [StreamDataset, lambda *a, **o: list(StreamShards(*a, **o))])
def test_missing_or_odd_labels(codec: Codec, streams: list[bytes], tmp_path: Path, reader: Any) -> None:
    path = make_tar(
        tmp_path / "x.tar", [("0.cdz", streams[0]), ("0.cls", b" 7\n"), ("1.cls", b"1"), ("2.cdz", streams[1])]
    )
    with pytest.raises(BitstreamError, match=r"x\.tar: sample '2' has no \.cls member"):
        reader(path, codec)
    errors: list[Exception] = []
    ((_, label),) = reader(path, codec, on_error=errors.append)
    assert label == 7
    assert len(errors) == 1
    path = make_tar(tmp_path / "y.tar", [("0.cdz", streams[0]), ("0.cls", b"dog")])
    with pytest.raises(BitstreamError, match=r"'0\.cls' holds b'dog', not a class number"):
        reader(path, codec)
    path = make_tar(tmp_path / "z.tar", [("0.jpg", b""), ("0.cls", b"1")])
    with pytest.raises(BitstreamError, match=r"z\.tar: no sample has a \.cdz member"):
        reader(path, codec)


def test_members_beyond_the_limit_are_not_loaded(codec: Codec, streams: list[bytes], tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", [("0.cdz", streams[0]), ("0.jpg", bytes(10**6)), ("1.cdz", bytes(5000))])
    for read in READERS.values():
        with pytest.raises(
            BitstreamError, match=r"x\.tar: member '1\.cdz' has 5000 bytes, more than the limit of 4000"
        ):
            read(path, codec, max_stream_bytes=4000)
    # an extended header of 2 MB, which tarfile would load
    huge = make_tar(tmp_path / "y.tar", [("n" * (2 << 20) + ".cdz", streams[0])])
    with pytest.raises(BitstreamError, match="an extended header of"):
        list(StreamShards(huge, codec, labels=None))


def test_broken_streams_in_shards(
    codec: Codec, folder: Path, make_codec: Callable[..., Codec], make_images: Callable[..., Tensor], tmp_path: Path
) -> None:
    names = ["ant/32x32.cdz", "ant/32x48.cdz", "bee/32x48.cdz", "cat/17x40.cdz", "bee/17x40.cdz"]
    broken = damage(folder, make_codec("bmshj2018_hyperprior", seed=1), make_images)
    path = make_tar(tmp_path / "x.tar", [(name, (folder / name).read_bytes()) for name in names])
    for name, (kind, part) in broken.items():
        alone = make_tar(tmp_path / "one.tar", [(name, (folder / name).read_bytes())])
        for batch_size in (None, 2):
            with pytest.raises(kind, match=rf"one\.tar: {name}: .*{part}"):
                list(StreamShards(alone, codec, labels=None, batch_size=batch_size))
    errors: list[Exception] = []
    found = list(StreamShards([path, path], codec, labels=None, batch_size=2, on_error=errors.append))
    assert sorted(len(latent.y_hat) for latent in found) == [1, 1, 1, 1]
    assert Counter(str(error).split(": ")[1] for error in errors) == dict.fromkeys(broken, 2)
    gone = StreamShards([path, path], codec, labels=None, on_error=errors.append)
    path.unlink()
    assert list(gone) == []
    assert isinstance(errors[-1], FileNotFoundError)


# -- batches -----------------------------------------------------------------------------------------------------


def test_batches_pass_through_collation_and_page_locking(
    codec: Codec, shards: tuple[Path, LATENTS], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(iter(StreamShards(shards[0], codec, batch_size=2)))
    assert collate_latents(batch) is batch
    assert collate_latents(batch[0]) is batch[0]
    pair = collate_latents([batch[0], batch[0]])
    assert isinstance(pair, Latent)
    assert len(pair.y_hat) == 4
    pinned: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, *_: pinned.append(id(self)) or self)
    latent, labels = pin_memory(batch)
    assert isinstance(latent, Latent)
    assert latent.image_size == (32, 32)
    assert set(pinned) == {id(batch[0].y_hat), id(batch[0].scales), id(labels)}


def test_collate_latents_refusals() -> None:
    latent = Latent(torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3), (48, 48))
    with pytest.raises(ValueError, match="no samples"):
        collate_latents([])
    with pytest.raises(ValueError, match="1 of 2 latents have scales"):
        collate_latents([latent, latent._replace(scales=None)])
    _, labels = collate_latents([(latent, 1.5), (latent, 2.5)])  # type: ignore[misc]
    assert labels.tolist() == [1.5, 2.5]
    for samples in ([(latent, 1), latent], [latent, (latent, 1)], [(latent, 1), (latent, 1, "a")]):
        with pytest.raises(ValueError, match="samples with labels and samples without"):
            collate_latents(samples)
    with pytest.raises(TypeError, match="takes Latent, or tuples that begin with one, not Tensor"):
        collate_latents([latent.y_hat])  # type: ignore[list-item]


def test_collate_latents_takes_one_latent_for_each_sample() -> None:
    latent = Latent(torch.rand(1, 2, 3, 3), None, (24, 24))
    with pytest.raises(TypeError, match="one Latent for each sample"):
        collate_latents([(latent, 1, latent), (latent, 2, latent)])
    for samples in ((latent, (latent, 1)), [latent, (latent, 1)], (latent, 1, (latent, 1))):
        with pytest.raises((TypeError, ValueError), match=r"samples without|tuples that begin"):
            collate_latents(samples)


def test_collate_latents_keeps_further_fields() -> None:
    latent = Latent(torch.zeros(1, 2, 3, 3), None, (48, 48))
    samples = [(latent, index, f"{index}.png", {"box": torch.ones(4) * index}) for index in range(3)]
    batch = collate_latents(samples)
    assert len(batch) == 4
    assert batch[0].y_hat.shape == (3, 2, 3, 3)
    expected = default_collate([sample[1:] for sample in samples])
    assert batch[1].tolist() == expected[0].tolist()
    assert batch[2] == list(expected[1])
    assert torch.equal(batch[3]["box"], expected[2]["box"])
    assert collate_latents(batch) is batch
