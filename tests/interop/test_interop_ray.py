"""Bulk work on Ray, with two real workers, one of which is killed."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import cdzoo
from cdzoo.bulk.compress import CompressTask
from cdzoo.bulk.plan import Part
from cdzoo.codecs import Codec, read_jpeg
from cdzoo.data import StreamDataset
from cdzoo.demo import PHOTO
from cdzoo.images import read_image

pytestmark = [
    pytest.mark.slow,
]
ray = pytest.importorskip("ray")
interop = pytest.importorskip("cdzoo.interop.ray")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def read_tables(folder: Path) -> Any:
    return pyarrow.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]).to_pandas()


@pytest.fixture(scope="module")
def codec(make_codec: Callable[..., Codec]) -> Codec:
    return make_codec("bmshj2018_hyperprior")


def test_a_worker_that_is_killed_loses_nothing_and_does_nothing_twice(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output, marks = tmp_path / "photos", tmp_path / "cdz", tmp_path / "marks"
    source.mkdir()
    marks.mkdir()
    generator = np.random.default_rng(0)
    for i in range(11):
        pixels = generator.integers(0, 255, (32, 48 + 16 * (i % 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{i:02d}.png")
    (source / "05.png").write_bytes(b"no image")

    class Mortal(CompressTask):
        """Dies by SIGKILL, once, when the shard of part 1 is there and its table is not."""

        def write_table(self, part: Any, *rest: Any) -> None:
            first = not list(marks.glob(f"{part.number}-*"))
            (marks / f"{part.number}-{os.getpid()}").touch()
            if part.number == 1 and first:
                os.kill(os.getpid(), signal.SIGKILL)
            super().write_table(part, *rest)

    monkeypatch.setattr(interop, "CompressTask", Mortal)
    summary = interop.compress(codec, source, output, part_size=3, batch_size=1)
    assert summary == (4, 0, 11, 1)
    tries = sorted(path.name.split("-")[0] for path in marks.iterdir())
    assert tries == ["0", "1", "1", "2", "3"]

    rows = [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["file"] for row in rows] == [f"{i:02d}.png" for i in range(11)]
    assert [row["file"] for row in rows if row["error"]] == ["05.png"]
    dataset = StreamDataset(output, codec, labels=None)
    assert sorted(dataset.names) == sorted(row["sample"] + ".cdz" for row in rows if not row["error"])
    for row in rows:
        if not row["error"]:
            latent = dataset[dataset.names.index(row["sample"] + ".cdz")]
            expected = codec.decompress(codec.compress(read_image(source / row["file"])))
            assert torch.equal(latent.y_hat, expected.y_hat)

    # started again, it has nothing to do; without one result, it has that to do
    kept = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert interop.compress(codec, source, output, part_size=3, batch_size=1) == (4, 4, 11, 1)
    assert kept == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}

    torch.manual_seed(0)
    network = cdzoo.models.cresnet39(
        in_channels=codec.latent_channels, width=0.125, num_classes=7, latent_stride=codec.stride
    )
    model = cdzoo.compose(codec, network.eval())
    assert interop.classify(model, output, tmp_path / "labels", top=2, concurrency=2) == (4, 0, 10, 0)
    table = read_tables(tmp_path / "labels")
    table = table[table["error"].isnull()]
    assert sorted(table["file"]) == sorted(dataset.names)
    for name, classes in zip(table["file"], table["classes"], strict=True):
        with torch.no_grad():
            logits = model.from_latent(dataset[dataset.names.index(name)])
        assert list(classes) == logits[0].topk(2).indices.tolist()


def test_jpeg_files_of_any_size_get_labels_of_a_thousand_classes(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with Image.open(PHOTO) as photo:
        photos = {
            "a.jpg": photo,
            "b.jpg": photo.convert("L").resize((301, 222)),
            "c.jpg": photo.crop((90, 0, 590, 420)),
        }
        for name, picture in photos.items():
            picture.save(tmp_path / "photos" / name, quality=90)
    (tmp_path / "photos" / "d.jpg").write_bytes(b"no picture")
    model = cdzoo.models.jpeg_efficientnet_lite0(weights="IMAGENET1K_PIXELS").eval()
    assert interop.classify(model, tmp_path / "photos", tmp_path / "labels", top=3, part_size=2) == (2, 0, 4, 1)
    table = read_tables(tmp_path / "labels").sort_values("file")
    assert table["error"].isnull().tolist() == [True, True, True, False]
    for name, classes in zip(table["file"][:3], table["classes"][:3], strict=True):
        with torch.no_grad():
            logits = model(read_jpeg(tmp_path / "photos" / name, transform=model.transforms))
        assert list(classes) == logits[0].topk(3).indices.tolist()


def test_a_workers_own_error_comes_back_as_it_is(tmp_path: Path, codec: Codec) -> None:
    """Without actors: what a part raises is pickled, and raised where the results are read."""
    worker = interop._Worker(_Full(codec, **OPTIONS), str(tmp_path), 1, False)
    found = pickle.loads(worker.write_part(Part(7, 0, None, str(tmp_path), ("a.png",), None)))
    assert isinstance(found, OSError)
    assert found.errno == 28
    assert "part-000007" in found.__notes__[0]
    assert "in write_part" in found.__notes__[0]  # where it was raised

    class OddError(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__("odd")

    error = OddError(1, 2)
    error.add_note("in part-000001")
    text = pickle.loads(interop._pickled(error))
    assert isinstance(text, RuntimeError)
    assert "OddError: odd" in str(text)


def test_parts_whose_workers_die_every_time_are_named(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "photos" / name / f"{name}.png")

    class Deadly(CompressTask):
        def write_part(self, part: Any, output: Path) -> None:
            if part.number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            super().write_part(part, output)

    monkeypatch.setattr(interop, "CompressTask", Deadly)
    with pytest.raises(RuntimeError, match=r"1 of 2 parts are not finished.*part-000001.* \(b/b.png\)"):
        interop.compress(codec, tmp_path / "photos", tmp_path / "cdz", part_size=1, concurrency=1)


OPTIONS: dict[str, Any] = {"batch_size": 1, "max_pixels": None, "max_stream_bytes": 1 << 20, "with_labels": False}


class _Full(CompressTask):
    def write_part(self, part: Any, output: Path) -> None:
        raise OSError(28, "No space left on device", str(output))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"num_cpus": 0}, "num_cpus"),
        ({"part_size": 0}, "part_size"),
        ({"num_cpus": 3}, "Ray has 2 CPUs"),
        ({"num_gpus": 1}, "0 GPUs"),
    ],
)
def test_options_that_cannot_be(codec: Codec, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "in" / "a.png")
    with pytest.raises(ValueError, match=words):
        interop.compress(codec, tmp_path / "in", tmp_path / "out", **options)
    with pytest.raises(FileNotFoundError):
        interop.compress(codec, tmp_path / "nothing", tmp_path / "out")
