"""Datasets of streams and of JPEG files, through DataLoader and its workers: everything that they have in common."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.dataset_files import CLASSES, Case, make_tar, once
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from cdzoo.data import SizeBucketSampler
from cdzoo.errors import BitstreamError


def loader(case: Case, dataset: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, collate_fn=case.collate, **options)


# -- folders -----------------------------------------------------------------------------------------------------


def test_classes_and_files_are_those_of_image_folder(case: Case) -> None:
    from torchvision.datasets import DatasetFolder

    dataset = case.dataset(case.root)
    oracle = DatasetFolder(str(case.root), loader=lambda path: path, extensions=case.suffixes)
    assert dataset.classes == oracle.classes == CLASSES
    assert dataset.class_to_idx == oracle.class_to_idx
    assert dataset.names == list(case.samples)
    pairs = zip(dataset.names, dataset.targets, strict=True)
    assert {(str(case.root / name), target) for name, target in pairs} == set(oracle.samples)
    assert repr(dataset) == f"{type(dataset).__name__}(18 {case.what} of 3 classes in {case.root})"
    sample, label = dataset[-1]
    assert case.equal(sample, case.samples[dataset.names[-1]])
    assert label == 2


@pytest.mark.parametrize(("context", "workers", "shuffle"), [(None, 0, False), ("fork", 2, True)])
def test_every_sample_comes_once_in_batches_of_one_key(
    case: Case, context: str | None, workers: int, shuffle: bool
) -> None:
    dataset = case.dataset(case.root)
    sampler = SizeBucketSampler(dataset, 4, shuffle=shuffle)
    batches = list(loader(case, dataset, batch_sampler=sampler, num_workers=workers, multiprocessing_context=context))
    assert len(batches) == len(sampler) == len(case.sizes)
    assert tuple(sorted(len(labels) for _, labels in batches)) == case.sizes
    assert case.count(batches, case.samples) == once(case.samples)


def test_subsets_and_samplers_of_torchs_own(case: Case) -> None:
    # a spawned worker gets the dataset in this form
    dataset = pickle.loads(ForkingPickler.dumps(case.dataset(case.root)))
    keys = dataset.bucket_keys()
    assert keys == [case.key(sample) for sample in case.samples.values()]
    assert len({id(key) for key in keys}) == len(set(keys))  # equal keys share their memory
    assert dataset.image_sizes() == [sample.image_size for sample in case.samples.values()]
    some = Subset(dataset, [i for i, key in enumerate(keys) if key == keys[0]])
    expected = {name: 1 for name, sample in case.samples.items() if case.key(sample) == keys[0]}
    assert case.count(loader(case, some, batch_size=4, shuffle=True), case.samples) == expected
    assert case.count(loader(case, some, batch_sampler=SizeBucketSampler(some, 4)), case.samples) == expected
    rest = Subset(dataset, [i for i, key in enumerate(keys) if key != keys[0]])
    whole = ConcatDataset([Subset(ConcatDataset([rest, some]), range(len(dataset)))])
    batches = loader(case, whole, batch_sampler=SizeBucketSampler(whole, 4, shuffle=True))
    assert case.count(batches, case.samples) == once(case.samples)


def test_mixed_sizes_in_one_batch_raise_and_name_the_sampler(case: Case) -> None:
    with pytest.raises(ValueError, match="SizeBucketSampler"):
        next(iter(loader(case, case.dataset(case.root), batch_size=18)))


def test_labels_by_mapping_function_or_none(case: Case) -> None:
    by_name = {name: i for i, name in enumerate(case.samples)}
    dataset = case.dataset(case.root, labels=by_name)
    assert dataset.targets == list(range(18))
    assert dataset.classes is None
    by_path = case.dataset(case.root, labels=lambda path: os.path.getsize(path))
    assert by_path.targets == [(case.root / name).stat().st_size for name in by_path.names]
    assert isinstance(case.dataset(case.root, labels=None)[0], case.kind)
    masks = case.dataset(case.root, labels=lambda path: torch.full((2, 2), len(path.name)))
    assert case.collate(masks.__getitems__([0, 0]))[1].shape == (2, 2, 2)
    del by_name[dataset.names[7]]
    with pytest.raises(ValueError, match=f"labels lack '{dataset.names[7]}'"):
        case.dataset(case.root, labels=by_name)
    with pytest.raises(ValueError, match="must be 'auto' or 'folder'"):
        case.dataset(case.root, labels="cls")


@pytest.mark.parametrize("labels", [[7] * 18, (0, 1), 5, True, {"a"}, torch.arange(18), b"cls"], ids=repr)
def test_labels_of_another_kind_are_refused(files: Case, labels: Any) -> None:
    message = rf"labels must be .*, not the {type(labels).__name__} .*; .*dict\(zip\(dataset\.names, labels\)\)"
    for root in (files.root, files.shard_folder):
        with pytest.raises(TypeError, match=message):
            files.dataset(root, labels=labels)
    with pytest.raises(TypeError, match=message):
        files.shards(files.shard_folder, labels=labels)


def test_folders_that_are_no_classes_are_refused(case: Case, tmp_path: Path) -> None:
    folder = case.copy(tmp_path / "root")
    (folder / "dog").mkdir()
    (folder / ".cache").mkdir()
    (folder / ".cache" / f"x{case.suffix}").touch()
    with pytest.raises(ValueError, match=r"without files: \['dog'\]"):
        case.dataset(folder)
    (folder / "dog").rmdir()
    assert case.dataset(folder).classes == CLASSES
    (folder / f"stray{case.suffix}").write_bytes(b"")  # some files in class folders, some not
    with pytest.raises(ValueError, match=rf"1 files lie in no class folder, first 'stray\{case.suffix}'"):
        case.dataset(folder)
    assert len(case.dataset(folder, labels=None)) == 19


def test_refusals(case: Case, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no \{case.suffix}.* file in .*, and no shard at"):
        case.dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no shard at"):
        case.dataset(tmp_path / "train-{0..3}.tar")
    (tmp_path / f"x{case.suffix}").write_bytes(b"")
    with pytest.raises(ValueError, match=r"plain \.tar"):
        case.dataset(tmp_path / f"x{case.suffix}")
    with pytest.raises(ValueError, match="on_error must be"):
        case.dataset(case.root, on_error="ignore")


def test_transforms_act_on_single_samples(case: Case) -> None:
    def halved(sample: Any) -> Any:
        lengths.append(len(case.tensors(sample)[0]))
        if isinstance(sample[0], Tensor):
            return sample._replace(y_hat=sample.y_hat / 2)
        return sample._replace(planes=tuple(plane / 2 for plane in sample.planes))

    lengths: list[int] = []
    dataset = case.dataset(case.root, labels=None, transform=halved)
    found = dataset.__getitems__(range(18))
    assert lengths == [1] * 18
    for name, sample in zip(dataset.names, found, strict=True):
        assert case.equal(sample, halved(case.samples[name]))

    def fail(sample: Any) -> Any:
        raise RuntimeError("no")

    failing = case.dataset(case.root, transform=fail, on_error="skip")
    with pytest.raises(RuntimeError, match="no") as caught:
        failing.__getitems__([0, 1])
    assert caught.value.__notes__ == [f"in the transform of {case.root / dataset.names[0]}"]


# -- files that cannot be read -----------------------------------------------------------------------------------


def test_broken_files_raise_skip_or_call(case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, errors = case.copy(tmp_path / "root"), list[Exception]()
    strict, skipping, telling = (case.dataset(folder, on_error=o) for o in ("raise", "skip", errors.append))
    broken = case.damage(folder)
    gone = next(name for name in case.samples if name not in broken and name.startswith("cat"))
    (folder / gone).unlink()
    broken[gone] = (FileNotFoundError, "No such file")
    for name, (kind, part) in broken.items():
        index = strict.names.index(name)
        for get in (lambda i: strict[i], lambda i: strict.__getitems__([17, i])):
            with pytest.raises(kind, match=part) as caught:
                get(index)
            assert type(caught.value) is kind
            assert str(folder / name) in str(caught.value)
            assert kind is not case.error or str(caught.value).startswith(f"{folder / name}{case.place}")
            assert "stream 0 of 1" not in str(caught.value)
    rest = once({name: sample for name, sample in case.samples.items() if name not in broken})
    for lenient in (skipping, telling):
        samples = lenient.__getitems__(range(18))
        assert case.count([case.collate([sample]) for sample in samples], case.samples) == rest
        with pytest.raises(case.error):
            lenient[lenient.names.index(next(iter(broken)))]
    for name in broken:
        assert sum(str(folder / name) in str(error) for error in errors) == 1
        records = [r for r in caplog.records if str(folder / name) in r.getMessage()]
        assert [(r.name, r.levelno) for r in records] == [("cdzoo.data", logging.WARNING)]


def test_workers_skip_broken_files(case: Case, tmp_path: Path) -> None:
    folder = case.copy(tmp_path / "root")
    dataset = case.dataset(folder, on_error="skip")
    batches = SizeBucketSampler(dataset, 4)
    broken = case.damage(folder)
    found = loader(case, dataset, batch_sampler=batches, num_workers=1, multiprocessing_context="fork")
    rest = {name: sample for name, sample in case.samples.items() if name not in broken}
    assert case.count(found, case.samples) == once(rest)


def test_errors_that_a_worker_sends_still_name_the_file(case: Case, tmp_path: Path) -> None:
    folder = case.copy(tmp_path / "root")
    dataset = case.dataset(folder)
    (folder / dataset.names[6]).write_bytes(b"CDZ")
    (folder / dataset.names[7]).unlink()
    for index, kind in ((6, case.error), (7, FileNotFoundError)):
        try:
            dataset[index]
        except (ValueError, OSError):
            sent = ExceptionWrapper(where="in DataLoader worker process 0")  # as a worker does
        with pytest.raises(kind, match=str(folder / dataset.names[index])):
            sent.reraise()


def test_a_batch_of_which_nothing_is_left_repeats_a_sample(case: Case, tmp_path: Path) -> None:
    folder = case.copy(tmp_path / "root")
    dataset = case.dataset(folder, on_error="skip")
    (folder / dataset.names[0]).write_bytes(b"")
    with pytest.raises(case.error, match="empty"):
        dataset.__getitems__([0])
    found = loader(case, Subset(dataset, [9, 0, 11]), batch_size=1)
    for batch, index in zip(found, (9, 9, 11), strict=True):
        assert case.equal(batch[0], case.samples[dataset.names[index]])


def test_broken_headers_have_no_bucket(case: Case, tmp_path: Path) -> None:
    folder = case.copy(tmp_path / "root")
    broken = case.damage(folder)
    gone = next(name for name in case.samples if name not in broken and name.startswith("cat"))
    (folder / gone).unlink()
    os.symlink(folder / "nowhere", folder / gone)
    with pytest.raises((case.error, OSError), match=str(folder)):
        SizeBucketSampler(case.dataset(folder), 2)
    errors: list[Exception] = []
    lenient = case.dataset(folder, on_error=errors.append)
    keys = dict(zip(lenient.names, lenient.bucket_keys(), strict=True))
    left_out = {name for name, key in keys.items() if key is None}
    assert {gone} < left_out <= {gone, *broken}
    assert [sum(str(folder / name) in str(error) for error in errors) for name in left_out] == [1] * len(left_out)
    assert all(key == case.key(case.samples[name]) for name, key in keys.items() if key is not None)
    assert len([i for batch in SizeBucketSampler(lenient, 4) for i in batch]) == 18 - len(left_out)
    assert len(errors) == len(left_out)  # headers are read once


def test_a_subfolder_that_cannot_be_read_is_told_of_and_left_out(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = case.copy(tmp_path / "root")
    scan, closed = os.scandir, os.fspath(folder / "ant/more")

    def scandir(path: Any) -> Any:  # permissions do not stop root, who may run the tests
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scan(path)

    everything = case.dataset(folder).names
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="ant/more"):
        case.dataset(folder)
    told: list[Exception] = []
    dataset = case.dataset(folder, on_error=told.append)
    assert dataset.names == [name for name in everything if not name.startswith("ant/more/")]
    assert [error.filename for error in told if isinstance(error, OSError)] == [closed]
    closed = os.fspath(folder)
    with pytest.raises(PermissionError):  # nothing at all can be read
        case.dataset(folder, on_error="skip")


def test_large_and_odd_files_are_refused_before_they_are_read(case: Case, tmp_path: Path) -> None:
    folder = case.copy(tmp_path / "root")
    dataset = case.dataset(folder, max_stream_bytes=10)
    first = dataset.names[0]
    with pytest.raises(case.error, match=rf"{first}: \d+ bytes, more than the limit of 10; .*max_stream_bytes"):
        dataset[0]
    with pytest.raises(case.error, match=r"pixels .*1000; if you trust|max_pixels=1000"):
        case.dataset(folder, max_pixels=1000).__getitems__(range(18))
    (folder / first).unlink()
    os.mkfifo(folder / first)
    dataset = case.dataset(folder)
    with pytest.raises(case.error, match=f"{first}: not a regular file"):
        dataset[0]
    with pytest.raises(case.error, match=f"{first}: not a regular file"):
        dataset.bucket_keys()


# -- shards ------------------------------------------------------------------------------------------------------


def test_shards_with_random_access(case: Case) -> None:
    dataset = case.dataset(case.shard_folder)
    assert dataset.names == list(case.members)
    assert dataset.targets == [i // 6 for i in range(18)]
    assert dataset.classes is None
    assert repr(dataset) == f"{type(dataset).__name__}(18 {case.what} in 5 shards)"
    assert dataset.bucket_keys() == [case.key(sample) for sample in case.members.values()]
    sampler = SizeBucketSampler(dataset, 3, shuffle=True)
    for each in (dataset, pickle.loads(ForkingPickler.dumps(dataset))):
        assert case.count(loader(case, each, batch_sampler=sampler), case.members) == once(case.members)
    found = loader(case, dataset, batch_sampler=sampler, num_workers=2, multiprocessing_context="fork")
    assert case.count(found, case.members) == once(case.members)
    assert isinstance(case.dataset(case.shard_folder, labels=None)[17], case.kind)
    assert case.dataset(case.shard_folder, labels=lambda path: int(path.name[:8])).targets == list(range(18))
    with pytest.raises(ValueError, match="must be 'auto' or 'cls'"):
        case.dataset(case.shard_folder, labels="folder")


@pytest.mark.parametrize(
    ("workers", "ranks", "shuffle"), [(0, 1, False), (0, 2, True), (2, 1, True), (2, 2, False), (2, 2, True)]
)
def test_every_member_comes_once(case: Case, workers: int, ranks: int, shuffle: bool) -> None:
    found: Counter[str] = Counter()
    for rank in range(ranks):
        dataset = case.shards(
            case.shard_folder, batch_size=3, shuffle=shuffle, shuffle_buffer=5, num_replicas=ranks, rank=rank
        )
        assert repr(dataset) == f"{type(dataset).__name__}(5 shards of {case.what})"
        context = "fork" if workers else None
        batches = list(loader(case, dataset, batch_size=None, num_workers=workers, multiprocessing_context=context))
        assert max(len(labels) for _, labels in batches) <= 3
        found += case.count(batches, case.members)
    assert found == once(case.members)


def test_single_members_with_the_loaders_own_batches(case: Case) -> None:
    (first, label), *_ = case.shards(case.shard_folder)
    assert case.equal(first, next(iter(case.members.values())))
    assert label == 0
    assert case.count(map(case.collate, ([s] for s in case.shards(case.shard_folder))), case.members) == once(
        case.members
    )


def test_labels_of_shards(case: Case) -> None:
    names = {name: i for i, name in enumerate(case.members)}
    assert [label for _, label in case.shards(case.shard_folder, labels=names)] == list(range(18))
    by_name = case.shards(case.shard_folder, labels=lambda path: int(path.name[:8]))
    assert [label for _, label in by_name] == list(range(18))
    missing = list(names)[7]
    del names[missing]
    with pytest.raises(ValueError, match=f"labels lack '{missing}'"):
        list(case.shards(case.shard_folder, labels=names))
    with pytest.raises(ValueError, match="labels must be"):
        case.shards(case.shard_folder, labels="folder")


def test_broken_members(case: Case, tmp_path: Path) -> None:
    folder = case.copy(tmp_path / "root")
    broken = case.damage(folder)
    path = make_tar(tmp_path / "x.tar", [(name, (folder / name).read_bytes()) for name in _in_one_shard(case)])
    left = {name: sample for name, sample in case.samples.items() if name in _in_one_shard(case) and name not in broken}
    for name, (kind, part) in broken.items():
        alone = make_tar(tmp_path / "one.tar", [(name, (folder / name).read_bytes())])
        message = rf"^.*one\.tar: {name}{case.place.strip()[0]} .*{part}"
        for batch_size in (None, 2):
            with pytest.raises(kind, match=message):
                list(case.shards(alone, labels=None, batch_size=batch_size))
        with pytest.raises(kind, match=message):
            case.dataset(alone, labels=None)[0]
    errors: list[Exception] = []
    options: dict[str, Any] = {"labels": lambda p: CLASSES.index(p.parts[0]), "on_error": errors.append}
    assert case.count(case.shards(path, batch_size=4, **options), case.samples) == once(left)
    assert len(errors) == len([name for name in broken if name in _in_one_shard(case)])
    dataset = case.dataset(path, **options)
    found = loader(case, dataset, batch_sampler=SizeBucketSampler(dataset, 9))
    assert case.count(found, case.samples) == once(left)
    with pytest.raises(case.error, match=r"x\.tar: member '.*' has \d+ bytes, more than the limit of 3"):
        list(case.shards(path, labels=None, max_stream_bytes=3))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BitstreamError, match=r"x\.tar: truncated"):
        list(case.shards(path, labels=None))
    gone = case.shards([path, path], labels=None, on_error=errors.append)
    path.unlink()
    assert list(gone) == []
    assert isinstance(errors[-1], FileNotFoundError)


def _in_one_shard(case: Case) -> list[str]:
    """Names of which no two are one sample by WebDataset's rule."""
    keys: dict[str, str] = {}
    for name in case.samples:
        keys.setdefault(name.partition(".")[0], name)
    return list(keys.values())


# -- batches -----------------------------------------------------------------------------------------------------


def test_batches_pass_through_collation_and_page_locking(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(iter(case.shards(case.shard_folder, batch_size=2)))
    assert case.collate(batch) is batch
    assert case.collate(batch[0]) is batch[0]
    pair = case.collate([batch[0], batch[0]])
    assert isinstance(pair, case.kind)
    assert len(case.tensors(pair)[0]) == 2 * len(case.tensors(batch[0])[0])
    pinned: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, *_: pinned.append(id(self)) or self)
    sample, labels = pin_memory(batch)
    assert case.key(sample) == case.key(batch[0])
    assert set(pinned) == {*map(id, case.tensors(batch[0])), id(labels)}


def test_collation_keeps_further_fields(case: Case) -> None:
    sample = next(iter(case.samples.values()))
    rows = [(sample, index, f"{index}.png", {"box": torch.ones(4) * index}) for index in range(3)]
    batch = case.collate(rows)
    assert len(batch) == 4
    assert len(case.tensors(batch[0])[0]) == 3
    expected = default_collate([row[1:] for row in rows])
    assert batch[1].tolist() == expected[0].tolist()
    assert batch[2] == list(expected[1])
    assert torch.equal(batch[3]["box"], expected[2]["box"])
    assert case.collate(batch) is batch
    _, labels = case.collate([(sample, 1.5), (sample, 2.5)])
    assert labels.tolist() == [1.5, 2.5]


def test_collation_refuses_other_samples(case: Case) -> None:
    sample = next(iter(case.samples.values()))
    name = case.kind.__name__
    with pytest.raises(ValueError, match="got no samples"):
        case.collate([])
    for rows in ([(sample, 1), sample], [sample, (sample, 1)], [(sample, 1), (sample, 1, "a")]):
        with pytest.raises(ValueError, match="samples with labels and samples without"):
            case.collate(rows)
    with pytest.raises(TypeError, match=f"takes {name}, or tuples that begin with one, not Tensor"):
        case.collate([case.tensors(sample)[0]])
    with pytest.raises(TypeError, match=f"one {name} for each sample"):
        case.collate([(sample, 1, sample), (sample, 2, sample)])
    for mixed in ((sample, (sample, 1)), [sample, (sample, 1)], (sample, 1, (sample, 1))):
        with pytest.raises((TypeError, ValueError), match=r"samples without|tuples that begin"):
            case.collate(mixed)


def test_a_folder_without_class_folders_has_no_labels(case: Case, tmp_path: Path) -> None:
    for number, file in enumerate(sorted(case.root.rglob(f"*{case.suffix}"))[:3]):
        shutil.copy(file, tmp_path / f"{number}{case.suffix}")
    dataset = case.dataset(tmp_path)
    assert dataset.targets is None
    assert isinstance(dataset[0], tuple)
    assert not isinstance(dataset[0][1], int)
    with pytest.raises(ValueError, match="3 files lie in no class folder"):
        case.dataset(tmp_path, labels="folder")
