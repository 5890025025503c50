"""The application scripts, run as a user would run them, against Pillow and against what was put in."""

from __future__ import annotations

import csv
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracles.jpeg_files import encode
from PIL import Image

from cdzoo.codecs import read_header, read_jpeg
from cdzoo.demo import PHOTO, load_photo
from cdzoo.images import to_pillow

LoadExample = Callable[[str], ModuleType]
EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """The packaged photograph at half its size: its own blocks of 8x8 pixels have left no trace."""
    image = Image.open(PHOTO)
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)


def texture(seed: int) -> Image.Image:
    """A picture of random soft shapes."""
    noise = np.random.default_rng(seed).uniform(0, 255, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)


APPLICATIONS = {path.stem for path in EXAMPLES.glob("*.py")} - {"quantise", "train_shards"}


@pytest.mark.parametrize("name", sorted(APPLICATIONS))
def test_they_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60


def test_a_folder_is_labeled_and_a_broken_file_has_a_row(
    tmp_path: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    (tmp_path / "photos" / "more" / "palace.jpg").write_bytes(PHOTO.read_bytes())
    (tmp_path / "photos" / "small.jpg").write_bytes(encode(photo))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no JPEG file")
    run("label_folder", tmp_path / "photos", tmp_path / "labels.csv", "--top", 2)
    assert "2 files labeled, 0 of them damaged, 1 could not be read\n     2  bell cote" in capsys.readouterr().out
    with open(tmp_path / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == [
        "broken.jpg",
        "palace.jpg",
        "palace.jpg",
        "small.jpg",
        "small.jpg",
    ]
    assert [row["label"] for row in rows if row["rank"] == "1"] == ["bell cote", "bell cote"]
    assert rows[0]["problem"]
    assert not rows[0]["label"]


def test_a_cropped_and_a_compressed_copy_are_found_first(
    tmp_path: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(4):
        (tmp_path / "photos" / f"{seed}.jpg").write_bytes(encode(texture(seed)))
    (tmp_path / "photos" / "palace.jpg").write_bytes(encode(photo, quality=90))
    (tmp_path / "photos" / "again.jpg").write_bytes(encode(photo, quality=40))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no JPEG file")
    (tmp_path / "photos" / "link.jpg").symlink_to(tmp_path / "nothing.jpg")
    query = tmp_path / "query.jpg"
    query.write_bytes(encode(photo.crop((20, 15, 310, 205)), quality=60))
    run("find_similar", tmp_path / "photos", "--query", query, "--top", 3)
    lines = capsys.readouterr().out.splitlines()
    assert {Path(line.split()[1]).name for line in lines[:2]} == {"palace.jpg", "again.jpg"}
    assert float(lines[1].split()[0]) > float(lines[2].split()[0]) + 0.1
    run("find_similar", tmp_path / "photos", "--threshold", 0.95)
    pairs = [{Path(name).name for name in line.split()[1:]} for line in capsys.readouterr().out.splitlines()]
    assert {"palace.jpg", "again.jpg"} in pairs
    assert all("palace.jpg" not in pair for pair in pairs if "again.jpg" not in pair)


def test_archive_of_streams_is_made_once_labeled_searched_and_shown(
    tmp_path: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    to_pillow(load_photo(224)).save(tmp_path / "photos" / "sub" / "palace.png")
    texture(0).save(tmp_path / "photos" / "texture.jpg")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no PNG file")
    archive = tmp_path / "archive"
    run("archive", "add", archive, tmp_path / "photos")
    assert "broken.png" in capsys.readouterr().out
    stream = archive / "sub" / "palace.cdz"
    assert read_header(stream.read_bytes()).image_size == (224, 224)
    before = stream.stat().st_mtime_ns
    run("archive", "add", archive, tmp_path / "photos")
    assert capsys.readouterr().out.endswith("0 bytes of images became 0 bytes of streams\n")
    assert stream.stat().st_mtime_ns == before
    run("archive", "label", archive)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split("\t")[1].endswith(" palace")
    run("archive", "show", stream, tmp_path / "shown.png")
    shown = np.asarray(Image.open(tmp_path / "shown.png"), dtype=float)
    assert np.abs(shown - np.asarray(to_pillow(load_photo(224)))).mean() < 12
    capsys.readouterr()
    run("find_similar", archive, "--query", stream, "--top", 1)
    assert capsys.readouterr().out == f"1.000  {stream}\n"


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(320, 208), (317, 203)])
def test_thumbnails_are_the_means_of_blocks(
    photo: Image.Image, mode: str, size: tuple[int, int], load_example: LoadExample
) -> None:
    data = encode(photo.crop((0, 0, *size)).convert(mode), quality=95, subsampling=0)
    found = to_pillow(load_example("thumbnails").thumbnail(read_jpeg(data)))
    expected = Image.open(io.BytesIO(data)).convert("RGB").reduce(8)
    assert found.size == expected.size
    whole = (slice(size[1] // 8), slice(size[0] // 8))  # the last blocks of the other size are padded
    difference = np.abs(np.asarray(found, dtype=float) - np.asarray(expected, dtype=float))[whole]
    assert difference.max() <= 3
    assert difference.mean() < 0.5


def test_thumbnails_of_subsampled_and_turned_files(tmp_path: Path, photo: Image.Image) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "photos").mkdir()
    data = encode(photo.crop((0, 0, 320, 208)), quality=95, subsampling=2, exif=turned)
    (tmp_path / "photos" / "a.jpg").write_bytes(data)
    (tmp_path / "photos" / "b.jpg").write_bytes(b"no JPEG file")
    (tmp_path / "photos" / "c.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "photos" / "d.jpg").mkdir()
    run("thumbnails", tmp_path / "photos", tmp_path / "out")
    found = np.asarray(Image.open(tmp_path / "out" / "a.png"), dtype=float)
    image = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(image.reduce(8), dtype=float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3


def compressed(image: Image.Image, *qualities: int) -> bytes:
    for quality in qualities:
        data = encode(image, quality=quality)
        image = Image.open(io.BytesIO(data)).convert("RGB")
    return data


@pytest.mark.parametrize(("first", "second"), [(60, 85), (50, 75), (75, 90), (85, 75)])
def test_a_second_compression_is_found_and_the_first_quality_named(
    photo: Image.Image, first: int, second: int, load_example: LoadExample
) -> None:
    example = load_example("double_compression")
    gains = example.scores(read_jpeg(compressed(photo, first, second)))
    assert max(gains.values()) > example.THRESHOLD
    assert abs(max(gains, key=gains.get) - first) <= 1
    once = example.scores(read_jpeg(compressed(photo, second)))
    assert max(once.values()) < example.THRESHOLD
    assert torch.tensor(list(once.values())).isfinite().all()


def test_double_compression_prints_a_verdict(
    tmp_path: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "once.jpg").write_bytes(compressed(photo, 85))
    (tmp_path / "twice.jpg").write_bytes(compressed(photo, 60, 85))
    run("double_compression", tmp_path / "once.jpg", tmp_path / "twice.jpg")
    once, twice = capsys.readouterr().out.splitlines()
    assert "compressed once" in once
    assert "compressed twice, first at about quality 60" in twice


def test_double_compression_takes_folders_and_leaves_bad_files_out(
    tmp_path: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no JPEG file")
    (tmp_path / "photos" / "b.JPEG").write_bytes(encode(photo, quality=100))
    (tmp_path / "photos" / "c.jpg").write_bytes(encode(photo.resize((3, 2))))
    (tmp_path / "photos" / "d.jpg").symlink_to(tmp_path / "nothing.jpg")
    run("double_compression", tmp_path / "photos", tmp_path / "nothing.jpg")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert ["is left out: " in line for line in lines] == [True, False, False, True, True]
    assert not any("-0.000" in line for line in lines)


def refused(capsys: pytest.CaptureFixture[str], name: str, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(name, *arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_missing_files_and_folders_are_named_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing"
    assert f"{nothing} is no folder" in refused(capsys, "thumbnails", nothing, tmp_path)
    assert f"{nothing} does not exist" in refused(capsys, "archive", "show", nothing, tmp_path / "a.png")
    assert f"{nothing} does not exist" in refused(capsys, "archive", "add", tmp_path, nothing)
    (tmp_path / "a.cdz").write_bytes(b"no stream")
    assert "not a .cdz stream" in refused(capsys, "archive", "show", tmp_path / "a.cdz", tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    assert "a.jpg" in refused(capsys, "find_similar", tmp_path, "--query", tmp_path / "a.jpg")
    assert "not a .cdz stream" in refused(capsys, "find_similar", tmp_path, "--query", tmp_path / "a.cdz")
    assert "no .cdz file in" in refused(capsys, "find_similar", tmp_path / "sub")
    assert "nothing" in refused(capsys, "find_similar", nothing)


def test_damage_is_told_in_the_table_and_without_a_line_of_source(tmp_path: Path, photo: Image.Image) -> None:
    (tmp_path / "half.jpg").write_bytes(encode(photo)[:-2000])
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    for name, *more in (("label_folder", str(tmp_path / "labels.csv")), ("find_similar",)):
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(tmp_path), *more]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert "JPEGWarning" not in done.stderr
        assert "warn" not in done.stderr
        assert ("1 of them damaged" in done.stdout) == (name == "label_folder")
        assert ("half.jpg" in done.stderr) == (name == "find_similar")
