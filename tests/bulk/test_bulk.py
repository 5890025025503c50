"""Parts of archives: what every engine's workers do, without an engine."""

from __future__ import annotations

import copy
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cdzoo
from cdzoo.bulk.classify import Classify
from cdzoo.bulk.compress import CompressTask
from cdzoo.bulk.plan import Part, summarize, unfinished
from cdzoo.bulk.plan import make_plan as plan
from cdzoo.cli import main
from cdzoo.codecs import Codec
from cdzoo.data import StreamDataset, StreamShards, write_shards
from cdzoo.data._decode import bucketed
from cdzoo.images import image_size, read_image

LIMITS: dict[str, Any] = {"batch_size": 4, "max_pixels": 1 << 20, "max_stream_bytes": 1 << 16, "with_labels": False}


def photo(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def codec(make_codec: Callable[..., Codec]) -> Codec:
    return make_codec("bmshj2018_hyperprior")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of five photographs of two sizes, and three files that cannot be read."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(5):
            photo(i, *((48, 32) if i < 3 else (32, 40))).save(root / name / f"{i}.v{i}.jpg", quality=90)
    (root / "dog" / "empty.jpg").touch()
    (root / "dog" / "folder.png").mkdir()
    (root / "dog" / "huge.jpg").write_bytes(bytes(LIMITS["max_stream_bytes"] + 1))
    data = (root / "cat" / "0.v0.jpg").read_bytes()
    (root / "dog" / "half.jpg").write_bytes(data[: len(data) // 2])
    return root


def make_plan(task: Any, source: Any, output: Path, *, part_size: int) -> list[Part]:
    return plan(
        source, output, suffixes=task.suffixes, facts=task.facts, with_labels=task.with_labels, part_size=part_size
    )


def run(task: Any, source: Any, output: Path, *, part_size: int = 6) -> list[dict[str, Any]]:
    """All rows, in order."""
    parts = make_plan(task, source, output, part_size=part_size)
    for part in unfinished(parts, output):
        task.write_part(part, output)
    rows = [row for part in parts for row in pq.read_table(output / part.table).to_pylist()]
    summary = summarize(parts, output, skipped=0)
    assert (summary.parts, summary.files) == (len(parts), len(rows))
    assert summary.failed == sum(row["error"] is not None for row in rows)
    return rows


def members(folder: Path, suffix: str) -> dict[str, bytes]:
    """What the shards in a folder hold, by the standard library's reader."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                if member.name.endswith(suffix):
                    found[member.name] = file.read()
    return found


def test_a_folder_to_streams(codec: Codec, photos: Path, tmp_path: Path) -> None:
    rows = run(CompressTask(codec, **{**LIMITS, "with_labels": True}), photos, tmp_path)
    assert [row["file"] for row in rows] == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    errors = {row["file"]: row["error"] for row in rows if row["error"] is not None}
    assert set(errors) == {"dog/empty.jpg", "dog/half.jpg", "dog/huge.jpg"}
    assert "limit of 65536" in errors["dog/huge.jpg"]
    assert "cannot identify image file" in errors["dog/empty.jpg"]
    good = [row for row in rows if row["error"] is None]
    dataset = StreamDataset(tmp_path, codec)
    named = {name.removesuffix(".cdz"): i for i, name in enumerate(dataset.names)}
    assert sorted(named) == sorted(row["sample"] for row in good)
    for row in good:
        latent, label = dataset[named[row["sample"]]]
        x = read_image(photos / row["file"])
        assert (row["height"], row["width"]) == latent.image_size == tuple(x.shape[-2:])
        assert label == ["cat", "dog"].index(row["file"][:3])
        # a batch rounds otherwise than one image does
        assert (latent.y_hat - codec.encode(x).y_hat).abs().max() <= 1
    assert sum(row["bytes"] for row in good) == sum(map(len, members(tmp_path, ".cdz").values()))


def test_a_batch_of_one_gives_the_codecs_own_bits(codec: Codec, photos: Path, tmp_path: Path) -> None:
    run(CompressTask(codec, **{**LIMITS, "batch_size": 1}), photos / "cat", tmp_path)
    found = list(members(tmp_path, ".cdz").values())
    expected = [codec.compress(read_image(path))[0] for path in sorted((photos / "cat").iterdir())]
    assert found == expected


def test_what_is_done_is_not_done_again_and_what_is_missing_comes_out_the_same(
    codec: Codec, photos: Path, tmp_path: Path
) -> None:
    task = CompressTask(codec, **LIMITS)
    run(task, photos, tmp_path)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    (tmp_path / "part-000001.parquet").unlink()
    parts = make_plan(task, photos, tmp_path, part_size=6)
    assert [part.number for part in unfinished(parts, tmp_path)] == [1]
    run(task, photos, tmp_path)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert {name: value[0] for name, value in before.items()} == {name: value[0] for name, value in after.items()}
    assert {name for name in before if before[name] != after[name]} == {"part-000001.tar", "part-000001.parquet"}


def test_a_part_whose_files_have_all_gone_leaves_no_shard_of_an_earlier_attempt(codec: Codec, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    photo(0).save(source / "0.png")
    task = CompressTask(codec, **LIMITS)
    [part] = make_plan(task, source, output, part_size=10)
    task.write_part(part, output)
    (output / part.table).unlink()
    (source / "0.png").unlink()
    task.write_part(part, output)
    assert [path.name for path in sorted(output.iterdir())] == ["part-000000.parquet", "plan.json"]


def test_relative_paths_and_modules_stay_what_they_are(
    codec: Codec, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers stand elsewhere, and what the caller trains is not to be touched."""
    monkeypatch.chdir(photos)
    module = copy.deepcopy(codec).train()
    parts = make_plan(CompressTask(module, **LIMITS), "cat", tmp_path / "out", part_size=3)
    assert module.training
    assert all(part.folder == str(photos / "cat") for part in parts)
    (tmp_path / "a.cdz").write_bytes(codec.compress(torch.rand(1, 3, 32, 32))[0])
    write_shards([tmp_path / "a.cdz"], tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    model = cdzoo.models.jpeg_resnet_small(num_classes=3).train()
    Classify(model, top=1, transforms=None, **LIMITS)
    assert model.training
    network = cdzoo.models.cresnet39(
        in_channels=codec.latent_channels, width=0.05, num_classes=3, latent_stride=codec.stride
    )
    task = Classify(cdzoo.compose(codec, network.eval()), top=1, transforms=None, **LIMITS)
    [part] = make_plan(task, "shards", tmp_path / "labels", part_size=3)
    assert part.shard == str(tmp_path / "shards" / "shard-000000.tar")


def test_a_network_that_runs_out_of_memory_is_tried_with_one_file_at_a_time(photos: Path, tmp_path: Path) -> None:
    class Hungry(Classify):
        """Has memory for one file, or breaks in a way that no file is to blame for."""

        message = "DefaultCPUAllocator: can't allocate memory"

        def run(self, items: Any) -> Any:
            if len(items) > 1:
                raise RuntimeError(self.message)
            return super().run(items)

    model = cdzoo.models.jpeg_resnet_small(num_classes=3)
    task = Hungry(model, top=1, transforms=None, **LIMITS)
    assert [row["error"] for row in run(task, photos / "cat", tmp_path / "a")] == [None] * 5
    task.message = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        run(task, photos / "cat", tmp_path / "b")


def test_what_would_be_read_twice_or_not_at_all_is_refused(codec: Codec, tmp_path: Path) -> None:
    (tmp_path / "a.cdz").write_bytes(codec.compress(torch.rand(1, 3, 32, 32))[0])
    [shard] = write_shards([tmp_path / "a.cdz"], tmp_path / "s")
    model = cdzoo.compose(
        codec, cdzoo.models.cresnet39(in_channels=codec.latent_channels, width=0.05, latent_stride=codec.stride).eval()
    )
    task = Classify(model, top=1, transforms=None, **LIMITS)
    with pytest.raises(ValueError, match="named twice"):
        make_plan(task, [shard, tmp_path / "s"], tmp_path / "out", part_size=1)
    (tmp_path / "s" / "a.cdz").write_bytes((tmp_path / "a.cdz").read_bytes())
    with pytest.raises(ValueError, match="holds shards and files"):
        make_plan(task, tmp_path / "s", tmp_path / "out", part_size=1)
    with pytest.raises(ValueError, match="among the files that are read"):
        make_plan(task, tmp_path / "s" / ".." / "s" / "..", tmp_path / "out" / "deep", part_size=1)
    # another folder of the same names is another source
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for name in "xy":
        (tmp_path / name / "a.cdz").write_bytes((tmp_path / "a.cdz").read_bytes())
    make_plan(task, tmp_path / "x", tmp_path / "out", part_size=1)
    with pytest.raises(ValueError, match="differs in files"):
        make_plan(task, tmp_path / "y", tmp_path / "out", part_size=1)
    other = Classify(model, top=1, transforms=None, **{**LIMITS, "max_pixels": 5})
    with pytest.raises(ValueError, match="differs in max_pixels"):
        make_plan(other, tmp_path / "x", tmp_path / "out", part_size=1)
    with pytest.raises(ValueError, match="max_pixels must be at least 1"):
        Classify(model, top=1, transforms=None, **{**LIMITS, "max_pixels": 0})
    [part] = make_plan(task, tmp_path / "x", tmp_path / "out", part_size=1)
    (tmp_path / "x").rename(tmp_path / "z")
    with pytest.raises(FileNotFoundError, match="does not see the source"):
        task.write_part(part, tmp_path / "out")


def test_another_run_does_not_go_on_here(
    codec: Codec, make_codec: Callable[..., Codec], photos: Path, tmp_path: Path
) -> None:
    task = CompressTask(codec, **LIMITS)
    make_plan(task, photos, tmp_path, part_size=6)
    with pytest.raises(ValueError, match="differs in files, parts"):
        make_plan(task, photos, tmp_path, part_size=4)
    with pytest.raises(ValueError, match="differs in fingerprint"):
        make_plan(CompressTask(make_codec("bmshj2018_hyperprior", seed=1), **LIMITS), photos, tmp_path, part_size=6)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        make_plan(task, photos, tmp_path, part_size=6)
    (tmp_path / "plan.json").unlink()
    (tmp_path / "part-000000.tar").touch()
    with pytest.raises(ValueError, match=r"without a plan\.json"):
        make_plan(task, photos, tmp_path, part_size=6)
    with pytest.raises(ValueError, match="among the files that are read"):
        make_plan(task, photos, photos, part_size=6)
    with pytest.raises(FileNotFoundError, match="no file that ends"):
        make_plan(task, tmp_path / "nothing", tmp_path / "new", part_size=6)
    with pytest.raises(ValueError, match="part_size"):
        make_plan(task, photos, tmp_path / "new", part_size=0)


def test_files_that_go_or_were_never_files_are_reported(codec: Codec, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(3):
        photo(i).save(source / f"{i}.png")
    os.mkfifo(source / "pipe.png")
    os.mkfifo(os.fsencode(source) + b"/\xfe.png")
    odd = os.fsencode(source) + b"/\xff\n.png"
    with open(odd, "wb") as file:
        photo(7).save(file, "PNG")
    task = CompressTask(codec, **LIMITS)
    parts = make_plan(task, source, output, part_size=10)
    (source / "1.png").unlink()
    task.write_part(parts[0], output)
    rows = {row["file"]: row["error"] for row in pq.read_table(output / parts[0].table).to_pylist()}
    assert rows["0.png"] is rows["2.png"] is rows["\\xff\n.png"] is None
    assert "No such file" in rows["1.png"]
    assert "not a regular file" in rows["pipe.png"]
    assert "not a regular file" in rows["\\xfe.png"]
    assert len(StreamDataset(output, codec, labels=None)) == 3


def test_shards_of_images(codec: Codec, photos: Path, tmp_path: Path) -> None:
    def image_shard(path: Path, labels: range) -> None:
        with tarfile.open(path, "w") as tar:
            for label in labels:
                buffer = io.BytesIO()
                photo(label).save(buffer, "WEBP")
                for name, data in ((f"a/{label}.webp", buffer.getvalue()), (f"a/{label}.cls", str(label).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

    image_shard(tmp_path / "0.tar", range(3))
    image_shard(tmp_path / "1.tar", range(3, 8))
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: whole.index(b"a/6.webp") + 600])
    rows = run(CompressTask(codec, **{**LIMITS, "with_labels": True}), tmp_path, tmp_path / "out")
    assert [row["file"] for row in rows] == [f"a/{i}.webp" for i in range(5)] + ["1.tar"]
    assert [row["sample"] for row in rows[:5]] == [f"a/{i}" for i in range(5)]
    assert "truncated" in rows[5]["error"]
    labels = [int(label) for _, labels in StreamShards(tmp_path / "out", codec, batch_size=2) for label in labels]
    assert sorted(labels) == list(range(5))


def test_samples_of_a_shard_that_share_a_stem_or_come_twice(codec: Codec, tmp_path: Path) -> None:
    """Legal as input, while others lie between them; two of one name are one damaged sample, and the rest goes on."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        sizes = {"a.png": (48, 32), "b.png": (32, 40), "a.bmp": (48, 32), "c.png": (32, 32), "d.png": (32, 32)}
        for name, size in [*sizes.items(), ("d.png", (32, 32)), ("e.png", (32, 32))]:
            buffer = io.BytesIO()
            photo(1, *size).save(buffer, name[2:])
            info = tarfile.TarInfo(name)
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    rows = run(CompressTask(codec, **LIMITS), tmp_path / "0.tar", tmp_path / "out")
    assert [(row["file"], row["sample"]) for row in rows] == [
        ("a.png", "a"), ("b.png", "b"), ("a.bmp", "a-2"), ("c.png", "c"), ("0.tar", None), ("e.png", "e")
    ]  # fmt: skip
    assert "'d.png' comes twice" in rows[4]["error"]
    assert len(StreamDataset(tmp_path / "out", codec, labels=None)) == 5


def test_images_turned_by_their_exif_data(codec: Codec, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo(1, 48, 48 - 16 * (orientation == 1)).save(tmp_path / "in" / f"{orientation}.jpg", exif=exif)
        photo(2, 40, 24).save(tmp_path / "in" / f"again{orientation}.jpg", exif=exif)
    rows = run(CompressTask(codec, **LIMITS), tmp_path / "in", tmp_path / "out")
    for row in rows:
        data = (tmp_path / "in" / row["file"]).read_bytes()
        expected = tuple(read_image(tmp_path / "in" / row["file"]).shape[-2:])
        assert (row["height"], row["width"]) == expected == image_size(data)
    assert {(row["height"], row["width"]) for row in rows} == {(32, 48), (48, 48), (24, 40), (40, 24)}


def test_classes_of_streams_are_those_of_the_composed_network(codec: Codec, photos: Path, tmp_path: Path) -> None:
    run(CompressTask(codec, **LIMITS), photos, tmp_path / "cdz")
    torch.manual_seed(0)
    network = cdzoo.models.cresnet39(in_channels=codec.latent_channels, width=0.125, num_classes=7, latent_stride=16)
    network.meta = {"classes": list("abcdefg")}
    model = cdzoo.compose(codec, network.eval())
    streams = tmp_path / "loose"
    streams.mkdir()
    with tarfile.open(tmp_path / "cdz" / "part-000000.tar") as tar:
        tar.extractall(streams, filter="data")
    (streams / "bad.cdz").write_bytes(b"CDZ\x01 and no more")
    (streams / "text.cdz").write_bytes(b"text")
    rows = {row["file"]: row for row in run(Classify(model, top=3, transforms=None, **LIMITS), streams, tmp_path / "a")}
    for name in ("bad.cdz", "text.cdz"):
        assert rows.pop(name)["error"] is not None
    for name, row in rows.items():
        with torch.no_grad():
            best = model.from_streams([(streams / name).read_bytes()]).softmax(1)[0].topk(3)
        assert row["classes"] == best.indices.tolist()
        assert row["error"] is None
        assert row["labels"] == ["abcdefg"[i] for i in best.indices]
        assert np.allclose(row["probabilities"], best.values, atol=1e-5)
    again = run(Classify(model, top=3, transforms=None, **LIMITS), tmp_path / "cdz", tmp_path / "b")
    assert len(again) == 10
    assert {row["file"] for row in again} > {*rows}


def test_classes_of_jpeg_files_are_those_of_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = cdzoo.models.jpeg_resnet18(weights="DEFAULT")
    task = Classify(model, top=2, strict=True, **LIMITS)
    rows = {row["file"]: row for row in run(task, photos, tmp_path)}
    main(["classify", "--json", "--top", "2", "--model", "jpeg_resnet18", "--strict", str(photos)])
    report = {
        str(Path(entry["file"]).relative_to(photos)): entry for entry in json.loads(capsys.readouterr().out)["files"]
    }
    assert set(rows) == set(report)
    for name, row in rows.items():
        if row["error"] is not None:
            assert "error" in report[name]
            continue
        assert row["classes"] == [entry["class"] for entry in report[name]["top"]]
        assert row["labels"] == [entry["label"] for entry in report[name]["top"]]
        assert np.allclose(row["probabilities"], [entry["probability"] for entry in report[name]["top"]], atol=1e-5)
    assert sum(row["error"] is None for row in rows.values()) == 10


def test_networks_that_do_not_classify_what_is_there(codec: Codec, photos: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"in_channels": codec.latent_channels, "width": 0.05, "num_classes": 3, "latent_stride": 16}
    with pytest.raises(TypeError, match=r"put it behind its codec with cdzoo\.compose"):
        Classify(cdzoo.models.cresnet39(**sizes), top=1, transforms=None, **LIMITS)
    with pytest.raises(ValueError, match="compose"):
        Classify(cdzoo.compose(codec, cdzoo.models.cresnet39(**sizes)), top=1, transforms=lambda z: z, **LIMITS)
    with pytest.raises(TypeError, match="codec must be a cdzoo codec"):
        CompressTask(torch.nn.Identity(), **LIMITS)  # type: ignore[arg-type]
    for options in ({"batch_size": 0}, {"top": 0}):
        with pytest.raises(ValueError, match=r"at least 1|a positive integer"):
            Classify(
                cdzoo.models.jpeg_resnet_small(num_classes=3), **{"top": 1, "transforms": None, **LIMITS, **options}
            )
    path = tmp_path / "a.cdz"
    path.write_bytes(codec.compress(torch.rand(1, 3, 64, 64))[0])
    (tmp_path / "s").mkdir()
    write_shards([path], tmp_path / "s")
    segmenter = cdzoo.compose(codec, cdzoo.models.cresnet39_d(**sizes).eval())
    with pytest.raises(TypeError, match="use a classifier"):
        run(Classify(segmenter, top=1, transforms=None, **LIMITS), tmp_path / "s", tmp_path / "out")
    assert not list((tmp_path / "out").glob("part*"))


def test_logits_that_are_not_finite_are_no_classes(photos: Path, tmp_path: Path) -> None:
    model = cdzoo.models.jpeg_resnet_small(num_classes=3)
    with torch.no_grad():
        model.fc.bias.fill_(float("nan"))
    rows = run(Classify(model, top=1, transforms=None, **LIMITS), photos / "cat", tmp_path)
    assert all("not finite" in row["error"] for row in rows)


@given(
    items=st.lists(st.tuples(st.integers(0, 4), st.integers()), max_size=60),
    size=st.integers(1, 7),
    max_pending=st.integers(1, 12),
)
def test_bucketed(items: list[tuple[int, int]], size: int, max_pending: int) -> None:
    """Every item once, in its order among its key's; never more waiting than is allowed."""
    numbered = [(key, i) for i, (key, _) in enumerate(items)]
    taken = 0

    def count() -> Any:
        nonlocal taken
        for item in numbered:
            taken += 1
            yield item

    given_out: list[tuple[int, int]] = []
    for batch in bucketed(count(), lambda item: item[0], size=lambda item: size + item[0], max_pending=max_pending):
        given_out += batch
        assert len({key for key, _ in batch}) == 1
        assert len(batch) <= size + batch[0][0]
        assert taken - len(given_out) <= max_pending
    assert sorted(given_out, key=lambda item: item[1]) == numbered
    for key in range(5):
        assert [item for item in given_out if item[0] == key] == [item for item in numbered if item[0] == key]
    full = list(bucketed(numbered, lambda i: i[0], size=size, max_pending=max_pending, drop_last=True))
    assert all(len(batch) == size for batch in full)
