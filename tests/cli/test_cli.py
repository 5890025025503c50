"""The command line, in process and as ``python -m cdzoo``, with small untrained weights in folders."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cdzoo
from cdzoo import _registry
from cdzoo.bulk import compress as bulk_compress
from cdzoo.bulk.networks import STREAM_MODELS
from cdzoo.cli import _show, main
from cdzoo.cli._progress import Progress
from cdzoo.codecs import Codec, read_header
from cdzoo.coding.compressai_codec import CompressAICodec
from cdzoo.images import decode_image, image_size, read_image, read_image_size
from cdzoo.transforms import LatentTransform
from cdzoo.weights import enums as _weights
from cdzoo.weights import packaged
from cdzoo.weights.enums import Weights, WeightsEnum

CLASSES = [f"n{i:08}" for i in range(10)]
NAMES = ["tench", "springer", "player", "saw", "church", "horn", "truck", "pump", "ball", "parachute"]
Run = Callable[..., "Result"]


class Result:
    """Exit status and both streams of a command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_main(*args: str | Path) -> Result:
        capsys.readouterr()
        status = main([str(a) for a in args])
        return Result(status, *capsys.readouterr())

    return run_main


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, make_codec: Callable[..., Codec]) -> types.SimpleNamespace:
    """Folders: a codec, a network over its latents, another codec."""
    root = tmp_path_factory.mktemp("weights")
    codec = make_codec("bmshj2018_hyperprior")
    torch.manual_seed(1)
    model = cdzoo.get_model("fa_cresnet39", in_channels=24, num_classes=10, width=0.125, num_convs=(1, 1, 1)).eval()
    meta = {"classes": CLASSES, "class_names": NAMES}
    cdzoo.save_pretrained(codec, root / "codec")
    cdzoo.save_pretrained(model, root / "model", codec=codec, transforms=LatentTransform((28, 28)), meta=meta)
    cdzoo.save_pretrained(make_codec("bmshj2018_hyperprior", seed=5), root / "other")
    cdzoo.save_pretrained(make_codec("bmshj2018_factorized"), root / "factorized")
    return types.SimpleNamespace(
        codec=root / "codec", model=root / "model", other=root / "other", factorized=root / "factorized", module=codec
    )


GOOD = {
    "gray.png", "la.png", "rgba.png", "cmyk.jpg", "palette.png", "trns.gif", "gray16.png", "tiny.png", "wide.png",
    "rgb.jpg", "UPPER.JPG", "bits.png", "sub/deep/rgb.webp", "sub/rgb.bmp", "turned.jpg",
}  # fmt: skip
BAD = {"truncated.jpg", "text.jpg", "empty.png", "sub/half.png"}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as one finds: images of all kinds, damaged ones, and other things."""
    folder = tmp_path_factory.mktemp("album") / "album"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "empty.jpg.d").mkdir()
    (folder / ".hidden").mkdir()
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (33, 47, 3), dtype=np.uint8)).resize((40, 50))
    gray16 = Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "gray.png": rgb.convert("L"), "la.png": rgb.convert("LA"), "rgba.png": rgb.convert("RGBA"),
        "cmyk.jpg": rgb.convert("CMYK"), "palette.png": rgb.quantize(16), "gray16.png": gray16,
        "bits.png": rgb.convert("1"), "tiny.png": rgb.resize((1, 1)), "wide.png": rgb.resize((3000, 5)), "rgb.jpg": rgb,
        "UPPER.JPG": rgb, "sub/deep/rgb.webp": rgb, "sub/rgb.bmp": rgb, ".hidden/rgb.png": rgb,
    }  # fmt: skip
    for name, image in images.items():
        image.save(folder / name)
    rgb.quantize(4).save(folder / "trns.gif", transparency=2)
    rgb.save(folder / "turned.jpg", exif=exif)
    (folder / "truncated.jpg").write_bytes((folder / "rgb.jpg").read_bytes()[:900])
    (folder / "sub" / "half.png").write_bytes((folder / "rgba.png").read_bytes()[:1000])
    (folder / "text.jpg").write_text("words")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image, and not called one")
    return folder


@pytest.fixture(scope="module")
def streams(
    album: Path, weights: types.SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> types.SimpleNamespace:
    """The album, compressed by one run of the command."""
    folder = tmp_path_factory.mktemp("streams") / "new" / "folder"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["compress", str(album), "-o", str(folder), "--weights", str(weights.codec), "--json"])
    return types.SimpleNamespace(folder=folder, result=Result(status, out.getvalue(), err.getvalue()))


def stream_name(image: str) -> str:
    return os.path.splitext(image)[0] + ".cdz"


# -- compress ----------------------------------------------------------------------------------------------------


def test_a_mixed_folder(album: Path, streams: types.SimpleNamespace, weights: types.SimpleNamespace) -> None:
    result = streams.result
    assert result.status == 1
    assert result.json["command"] == "compress"
    assert result.json["fingerprint"] == weights.module.fingerprint
    files = {os.path.relpath(entry["file"], album): entry for entry in result.json["files"]}
    assert {name for name, entry in files.items() if "error" in entry} == BAD
    assert {name for name, entry in files.items() if "error" not in entry} == GOOD
    found = {str(path.relative_to(streams.folder)) for path in streams.folder.rglob("*") if path.is_file()}
    assert found == {stream_name(name) for name in GOOD}
    for name in BAD:
        assert re.search(rf"cdzoo compress: .*{re.escape(name)}", result.err)
    assert "Traceback" not in result.err
    for name in ("gray16.png", "turned.jpg", "sub/deep/rgb.webp"):
        data = (streams.folder / stream_name(name)).read_bytes()
        assert data == weights.module.compress(read_image(album / name))[0]
        header, entry = read_header(data), files[name]
        assert (entry["bytes"], entry["bpp"], entry["payload_bpp"]) == (len(data), header.bpp, header.payload_bpp)
        assert entry["image_size"] == list(header.image_size)
    assert files["turned.jpg"]["image_size"] == [40, 50]
    assert files["wide.png"]["image_size"] == [5, 3000]


def test_a_run_goes_on_where_it_stopped(
    album: Path, streams: types.SimpleNamespace, weights: types.SimpleNamespace, run: Run, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(album, source)
    shutil.copytree(streams.folder, out)
    again = ("compress", source, "-o", out, "--weights", weights.codec, "--json")

    def statuses(result: Result) -> dict[str, str]:
        return {os.path.basename(e["file"]): e.get("status", e.get("error")) for e in result.json["files"]}

    def good(result: Result) -> set[str]:
        return {status for name, status in statuses(result).items() if name not in map(os.path.basename, BAD)}

    assert good(run(*again)) == {"skipped"}
    (out / "la.cdz").unlink()
    (out / "wide.cdz").write_bytes((out / "wide.cdz").read_bytes()[:-3])  # damaged
    shutil.copystat(source / "wide.png", out / "wide.cdz")
    (out / "rgba.cdz").touch()  # of another time than its image
    (out / "tiny.cdz").write_bytes(streams_of(weights.other, source / "tiny.png"))  # of another codec
    shutil.copystat(source / "tiny.png", out / "tiny.cdz")
    before = {name: (out / name).read_bytes() for name in ("wide.cdz", "rgba.cdz", "tiny.cdz")}
    found = statuses(run(*again))
    assert found["la.png"] == "written"
    for name in ("wide", "rgba"):
        assert "exists and is not the result for this file as it is now; pass --overwrite" in found[f"{name}.png"]
    assert "exists and was made with another codec or other weights; pass --overwrite" in found["tiny.png"]
    assert before == {name: (out / name).read_bytes() for name in before}
    assert good(run(*again, "--overwrite")) == {"written"}
    assert good(run(*again)) == {"skipped"}
    for name in ("la.cdz", "wide.cdz", "tiny.cdz"):
        assert (out / name).read_bytes() == (streams.folder / name).read_bytes()


def streams_of(folder: Path, image: Path) -> bytes:
    codec = cdzoo.from_pretrained(folder)
    assert isinstance(codec, Codec)
    return codec.compress(read_image(image))[0]


def test_names_that_meet(weights: types.SimpleNamespace, run: Run, tmp_path: Path) -> None:
    for name in ("x/a.jpg", "x/a.png", "x/b.png", "y/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    files = [tmp_path / n for n in ("x/a.jpg", "x/a.png", "x/b.png", "y/b.png", "c.png", "c.png")]
    out = tmp_path / "out"
    result = run("compress", *files, "-o", out, "--weights", weights.codec)
    assert result.status == 1
    assert sorted(p.name for p in out.iterdir()) == ["a.jpg.cdz", "a.png.cdz", "c.cdz"]
    for here, there in (("x", "y"), ("y", "x")):
        assert re.search(
            rf"compress: \S*/{here}/b\.png: would be written to \S*b\.png\.cdz', and so would \S*/{there}/", result.err
        )
    assert result.out.splitlines()[-1].startswith("3 written, 0 skipped, 2 failed, ")
    # folders that are named beside others keep their names
    out = tmp_path / "apart"
    assert run("compress", tmp_path / "x", tmp_path / "y", "-o", out, "--weights", weights.codec).status == 0
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*.cdz"))
    assert found == ["x/a.jpg.cdz", "x/a.png.cdz", "x/b.cdz", "y/b.cdz"]


def test_what_is_no_stream_is_not_replaced(weights: types.SimpleNamespace, run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.cdz").write_text("my notes")
    args = ("compress", tmp_path / "a.png", "-o", tmp_path, "--weights", weights.codec)
    result = run(*args)
    assert (result.status, (tmp_path / "a.cdz").read_text()) == (1, "my notes")
    assert "exists and is not the result for this file as it is now; pass --overwrite" in result.err
    assert run(*args, "--overwrite").status == 0
    # an image that is called .cdz is not lost to its own stream
    Image.new("RGB", (8, 8)).save(tmp_path / "b.cdz", "PNG")
    before = (tmp_path / "b.cdz").read_bytes()
    result = run("compress", tmp_path / "b.cdz", "-o", tmp_path, "--weights", weights.codec, "--overwrite")
    assert (result.status, (tmp_path / "b.cdz").read_bytes()) == (1, before)
    assert "overwritten by its own result" in result.err


def test_another_images_stream_is_not_replaced(weights: types.SimpleNamespace, run: Run, tmp_path: Path) -> None:
    wide, tall, out = (tmp_path / name for name in ("wide/a.png", "tall/a.png", "out"))
    for path, size in ((wide, (24, 16)), (tall, (16, 24))):
        path.parent.mkdir()
        Image.new("RGB", size).save(path)
        os.utime(path, (0, 0))  # as archives have it that are to be the same whenever they are made
    options = ("-o", out, "--weights", weights.codec)
    assert run("compress", wide, *options).status == 0
    before = (out / "a.cdz").read_bytes()
    for age in (0, -9):  # whether it looks up to date or not
        os.utime(tall, (age, age))
        result = run("compress", tall, *options)
        assert (result.status, (out / "a.cdz").read_bytes()) == (1, before)
        why = "has 24x16 pixels, not 16x24: it was made" if age == 0 else "is not the result for this file as it is now"
        assert f"exists and {why}" in result.err
    assert run("compress", wide, *options).out.endswith("0 written, 1 skipped, 0 failed\n")
    assert run("compress", tall, *options, "--overwrite").status == 0
    assert read_header((out / "a.cdz").read_bytes()).image_size == (24, 16)
    os.utime(tall, (5, 5))  # edited since
    assert run("compress", tall, *options).status == 1


def test_turned_images_have_the_size_that_they_are_shown_at(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("jpg", "png", "tif", "webp"):
        Image.new("RGB", (24, 16)).save(path := tmp_path / f"turned.{kind}", exif=exif)
        assert read_image_size(path) == image_size(path.read_bytes()) == (24, 16)
        assert read_image(path).shape[-2:] == (24, 16)


def test_output_that_cannot_be_written(album: Path, weights: types.SimpleNamespace, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    args = ("compress", album / "tiny.png", "--weights", weights.codec, "--json")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        result = run(*args, "-o", place)
        assert result.status == 1
        assert "file" in result.json["error"]
        assert result.json["files"] == []
        assert "Traceback" not in result.err
    # a file where a sub-folder should be stops what belongs there, and nothing else
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (8, 8)).save(source / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()
    result = run("compress", source, "-o", tmp_path / "out", "--weights", weights.codec, "--json")
    assert result.status == 1
    assert {Path(e["file"]).name: "error" in e for e in result.json["files"]} == {"a.png": False, "b.png": True}


def test_interrupted(
    album: Path, weights: types.SimpleNamespace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def interrupted(data: bytes, **options: Any) -> torch.Tensor:
        seen.append(data)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return decode_image(data, **options)

    monkeypatch.setattr(bulk_compress, "decode_image", interrupted)
    names = ("tiny.png", "gray.png", "la.png", "bits.png")
    result = run("compress", *(album / n for n in names), "-o", tmp_path, "--weights", weights.codec, "--json")
    assert result.status == 130
    assert result.json["interrupted"] is True
    assert [Path(e["file"]).name for e in result.json["files"]] == ["tiny.png", "gray.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gray.cdz", "tiny.cdz"]


def test_what_is_no_regular_file_is_not_waited_for(
    weights: types.SimpleNamespace, streams: types.SimpleNamespace, run: Run, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    Image.new("RGB", (8, 8)).save(source / "a.png")
    Image.new("RGB", (8, 8)).save(source / "b.png")
    shutil.copy(streams.folder / "tiny.cdz", source)
    for place in (source / "pipe.png", source / "pipe.cdz", out / "b.cdz"):
        os.mkfifo(place)
    codec = ("--weights", weights.codec, "--json")
    result = run("compress", source, "-o", out, *codec)
    errors = {Path(e["file"]).name: e.get("error") for e in result.json["files"]}
    assert result.status == 1
    assert errors["a.png"] is None
    assert "not a regular file" in errors["pipe.png"]
    assert "exists and is not the result" in errors["b.png"]
    result = run("decompress", source, "-o", out, *codec)
    errors = {Path(e["file"]).name: e.get("error") for e in result.json["files"]}
    assert errors["tiny.cdz"] is None
    assert "not a regular file" in errors["pipe.cdz"]
    assert "not a regular file" in run("info", source / "pipe.cdz", "--json").json["error"]


def test_names_that_are_too_long_stop_no_others(weights: types.SimpleNamespace, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    names = [f"{251 * 'n'}.png", f"{251 * 'n'}.jpg", "a.png"]  # the first two would be written to ...n.png.cdz
    for name in names:
        Image.new("RGB", (8, 8)).save(source / name)
    missing = tmp_path / f"{300 * 'm'}.png"
    result = run("compress", source, missing, "-o", tmp_path / "out", "--weights", weights.codec, "--json")
    errors = {Path(e["file"]).name: e.get("error") for e in result.json["files"]}
    assert (result.status, set(errors)) == (1, {*names, missing.name})
    assert errors.pop("a.png") is None
    assert all("File name too long" in error for error in errors.values())


def test_what_a_killed_run_left_is_removed(
    album: Path, weights: types.SimpleNamespace, run: Run, tmp_path: Path
) -> None:
    args = ("compress", album / "tiny.png", "-o", tmp_path, "--weights", weights.codec)
    assert run(*args).status == 0
    old, young = (tmp_path / f".tiny.cdz.{number:016x}.tmp" for number in range(2))
    for path, age in ((old, 90_000), (young, 0)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert run(*args).out.endswith("0 written, 1 skipped, 0 failed\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "tiny.cdz"]


def test_images_are_reduced_before_they_are_compressed(
    weights: types.SimpleNamespace, run: Run, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 90, 3), np.uint8)
    Image.fromarray(pixels).resize((180, 60)).save(tmp_path / "a.png")
    Image.fromarray(pixels[:20, :40]).save(tmp_path / "small.png")
    args = ("compress", tmp_path, "-o", tmp_path / "out", "--weights", weights.codec, "--max-side")
    assert run(*args, 90).status == 0
    assert run(*args, 90).out.endswith("0 written, 2 skipped, 0 failed\n")
    for name in ("a", "small"):
        stream = (tmp_path / "out" / f"{name}.cdz").read_bytes()
        with Image.open(tmp_path / f"{name}.png") as image:
            expected = image.resize((90, 30), Image.Resampling.BICUBIC) if name == "a" else image.copy()
        assert read_header(stream).image_size == expected.size[::-1]
        codec, y_hat = weights.module, weights.module.decompress([stream]).y_hat
        of_pillow = codec.encode(torch.from_numpy(np.array(expected)).permute(2, 0, 1)[None] / 255).y_hat
        assert (y_hat != of_pillow).float().mean() < 0.02  # Pillow rounds pixels
    result = run(*args, 80, "--json")  # the stream of another size is not up to date
    assert result.status == 1
    error = result.json["files"][0]["error"]
    assert "a.cdz' exists and has 90x30 pixels, not 80x27: it was made with another --max-side" in error


# -- decompress --------------------------------------------------------------------------------------------------


def test_decompress(
    streams: types.SimpleNamespace, weights: types.SimpleNamespace, run: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    codec, stream = weights.module, streams.folder / "gray16.cdz"
    pixels = codec.decode(codec.decompress([stream.read_bytes()]))[0].permute(1, 2, 0)
    expected = (pixels * 255).round().byte().numpy()
    result = run("decompress", stream, "-o", tmp_path / "one.png", "--weights", weights.codec)
    assert result.status == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), expected)
    (tmp_path / "bad.cdz").write_bytes(stream.read_bytes()[:-1])
    (tmp_path / "foreign.cdz").write_bytes(streams_of(weights.other, tmp_path / "one.png"))
    inputs = (stream, tmp_path / "bad.cdz", tmp_path / "foreign.cdz", streams.folder / "sub")
    result = run("decompress", *inputs, "-o", tmp_path / "out", "--weights", weights.codec, "--json")
    assert result.status == 1
    errors = {Path(e["file"]).name: e["error"] for e in result.json["files"] if "error" in e}
    assert "truncated" in errors["bad.cdz"]
    assert codec.fingerprint in errors["foreign.cdz"]
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert found == ["gray16.png", "sub/deep/rgb.png", "sub/rgb.png"]
    # without --weights the codec is looked for among the packaged ones, by fingerprint
    result = run("decompress", stream, "-o", tmp_path)
    assert result.status == 1
    assert re.search(rf"fingerprint {codec.fingerprint}, which no packaged weights have; .*--weights", result.err)
    for output, inputs in (("a.jpg", [stream]), ("a.png", [stream, stream.with_name("la.cdz")])):
        assert run("decompress", *inputs, "-o", tmp_path / output, "--weights", weights.codec).status == 2


def test_decompress_replaces_nothing_unasked(
    streams: types.SimpleNamespace, weights: types.SimpleNamespace, run: Run, tmp_path: Path
) -> None:
    stream, target = streams.folder / "la.cdz", tmp_path / "la.png"
    command = ("decompress", stream, streams.folder / "gray.cdz", "-o", tmp_path, "--weights", weights.codec, "--json")
    assert [e["status"] for e in run(*command).json["files"]] == ["written", "written"]
    own = target.read_bytes()
    assert target.stat().st_mtime_ns == pytest.approx(stream.stat().st_mtime_ns, abs=1000)
    assert [e["status"] for e in run(*command).json["files"]] == ["skipped", "skipped"]
    target.write_text("my notes")
    result = run(*command)
    assert (result.status, target.read_text()) == (1, "my notes")
    assert (
        "exists and is not the result for this file as it is now; pass --overwrite" in result.json["files"][0]["error"]
    )
    assert result.json["files"][1]["status"] == "skipped"
    assert run(*command, "--overwrite").status == 0
    assert target.read_bytes() == own
    target.unlink()
    os.mkfifo(target)
    assert run(*command).status == 1
    for folder in ("v1.2", "new/"):  # any name but an image's is a folder's
        assert run("decompress", stream, "-o", f"{tmp_path}/{folder}", "--weights", weights.codec).status == 0
        assert (tmp_path / folder / "la.png").exists()


# -- classify ----------------------------------------------------------------------------------------------------


def test_classify_reads_bits_and_nothing_else(
    streams: types.SimpleNamespace,
    album: Path,
    weights: types.SimpleNamespace,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("this must not be called")

    codec = weights.module
    network = cdzoo.compose(codec, cdzoo.from_pretrained(weights.model))
    names = sorted(stream_name(name) for name in GOOD)
    with torch.no_grad():
        logits = network.from_streams([(streams.folder / name).read_bytes() for name in names])
    monkeypatch.setattr(CompressAICodec, "synthesize", forbidden)
    monkeypatch.setattr(Image, "open", forbidden)
    monkeypatch.setattr(socket, "socket", forbidden)
    (tmp_path / "bad.cdz").write_bytes(b"CDZ\x01")
    others = (tmp_path / "bad.cdz", album / "rgb.jpg", tmp_path / "missing.cdz", album / "missing.jpg")
    args = ("--weights", weights.model, "--codec", weights.codec)
    result = run("classify", streams.folder, *others, *args, "--top", "3", "--json")
    assert result.status == 1
    good = {os.path.relpath(e["file"], streams.folder): e for e in result.json["files"] if "error" not in e}
    assert sorted(good) == names
    for name, row in zip(names, logits.double().softmax(1), strict=True):
        top = good[name]["top"]
        order = row.argsort(descending=True)[:3].tolist()
        assert [entry["class"] for entry in top] == order
        assert [entry["label"] for entry in top] == [NAMES[i] for i in order]
        assert [entry["id"] for entry in top] == [CLASSES[i] for i in order]
        assert [entry["probability"] for entry in top] == pytest.approx(row[order].tolist(), rel=1e-4)
    errors = {os.path.basename(e["file"]): e["error"] for e in result.json["files"] if "error" in e}
    assert set(errors) == {"bad.cdz", "rgb.jpg", "missing.cdz", "missing.jpg"}
    assert "does not read .jpg files but .cdz" in errors["rgb.jpg"]
    assert "No such file" in errors["missing.cdz"]
    assert "No such file" in errors["missing.jpg"]
    text = run("classify", streams.folder / "tiny.cdz", *args).out.splitlines()
    assert re.fullmatch(r"\S*tiny\.cdz  1x1  \d+\.\d{4} bpp", text[0])
    assert len(text) == 6
    assert re.fullmatch(rf" +1 +\d+\.\d %  ({'|'.join(NAMES)}) \(n\d{{8}}\)", text[1])


def test_pairs_that_do_not_fit(
    streams: types.SimpleNamespace, weights: types.SimpleNamespace, run: Run, tmp_path: Path
) -> None:
    stream = streams.folder / "tiny.cdz"
    result = run("classify", stream, "--weights", weights.model, "--codec", weights.other, "--json")
    assert result.status == 1
    assert result.json["files"] == []
    assert weights.module.fingerprint in result.json["error"]
    # these weights' codec was never published, and nothing takes its place
    result = run("classify", stream, "--weights", weights.model)
    assert result.status == 1
    assert "was not published" in result.err
    assert run("classify", stream, "--weights", weights.codec).status == 2
    assert run("compress", stream, "-o", tmp_path, "--weights", weights.model).status == 2


def test_a_damaged_file_is_marked(album: Path, run: Run, tmp_path: Path) -> None:
    whole = (album / "rgb.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (tmp_path / "no_end.jpg").write_bytes(whole[:-2])
    (tmp_path / "whole.jpg").write_bytes(whole)
    result = run("classify", tmp_path, "--json")
    assert result.status == 0
    assert "damaged JPEG files that were read as far as possible: 2; --strict" in result.err
    found = {Path(e["file"]).name: e for e in result.json["files"]}
    assert "damage" not in found["whole.jpg"]
    assert found["cut.jpg"]["missing_blocks"] > 0
    assert found["no_end.jpg"]["missing_blocks"] == 0
    strict = run("classify", tmp_path, "--strict", "--json")
    assert strict.status == 1
    errors = {Path(e["file"]).name: e.get("error") for e in strict.json["files"]}
    assert errors["whole.jpg"] is None
    for name in ("cut.jpg", "no_end.jpg"):
        assert errors[name].split(" (")[0] in found[name]["damage"]
    lines = [line for line in run("classify", tmp_path).out.splitlines() if not line.startswith(" ")]
    assert re.search(r"cut\.jpg  40x50  [0-9.]+ bpp  \d+ blocks missing$", lines[0])
    assert lines[1].endswith(" bpp  damaged")
    assert lines[2].endswith(" bpp")


def test_files_that_are_no_jpeg_files_are_told_in_the_readers_words(album: Path, run: Run, tmp_path: Path) -> None:
    Image.open(album / "rgb.jpg").save(tmp_path / "drawing.jpg", "PNG")
    data = bytearray((album / "rgb.jpg").read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff" * 4  # dimensions that nobody stores
    (tmp_path / "huge.jpg").write_bytes(data)
    assert "does not begin with" in run("classify", tmp_path / "drawing.jpg").err
    assert f"{tmp_path / 'huge.jpg'}: 65535 x 65535 pixels are more than max_pixels=" in run("classify", tmp_path).err


def test_a_codec_that_is_given_is_looked_at(
    album: Path, streams: types.SimpleNamespace, weights: types.SimpleNamespace, run: Run
) -> None:
    result = run("classify", album / "rgb.jpg", "--codec", "nonsense")
    assert (result.status, result.out) == (2, "")
    assert "unknown codec 'nonsense'" in result.err
    result = run("classify", album / "rgb.jpg", "--codec", weights.codec)
    assert result.status == 0
    assert "--codec has no effect: there is no .cdz stream among the files" in result.err
    # a pair that does not fit stops the streams, and no JPEG file
    result = run("classify", streams.folder / "tiny.cdz", album / "rgb.jpg", "--codec", weights.factorized, "--json")
    assert result.status == 1
    errors = {Path(e["file"]).name: e.get("error") for e in result.json["files"]}
    assert errors["rgb.jpg"] is None
    assert "latent_efficientnet_lite0" in errors["tiny.cdz"]


def test_names_that_a_terminal_would_obey(
    streams: types.SimpleNamespace, weights: types.SimpleNamespace, run: Run, tmp_path: Path
) -> None:
    names = ["red\x1b[31m.cdz", "two\nlines.cdz", "d\u00e9j\u00e0\u202fvu.cdz", "\u202ezdc.cdz"]
    for name in names:
        shutil.copy(streams.folder / "tiny.cdz", tmp_path / name)
    (tmp_path / "bad\x9b\n.cdz").touch()
    args = ("classify", tmp_path, "--weights", weights.model, "--codec", weights.codec, "--top", "1")
    result = run(*args)
    text = result.out + result.err
    assert not set(text) & {"\x1b", "\x9b"}
    for shown in (
        r"red\x1b[31m.cdz",
        r"two\nlines.cdz",
        "d\u00e9j\u00e0\u202fvu.cdz",
        r"\u202ezdc.cdz",
        r"bad\x9b\n.cdz: ",
    ):
        assert shown in text
    assert len(result.out.splitlines()) == 8
    assert len(result.err.splitlines()) == 2  # the network and the file that is no stream
    assert {Path(e["file"]).name for e in run(*args, "--json").json["files"]} == {*names, "bad\x9b\n.cdz"}
    result = run("decompress", tmp_path, "-o", tmp_path / "png", "--weights", weights.codec)
    assert len(result.out.splitlines()) == 6  # with a summary


# -- list, info, usage -------------------------------------------------------------------------------------------


def test_list(run: Run) -> None:
    result = run("list", "--json")
    assert [entry["name"] for entry in result.json["codecs"]] == cdzoo.list_codecs()
    assert [entry["name"] for entry in result.json["models"]] == cdzoo.list_models()
    assert all(entry["summary"] for entries in (result.json["codecs"], result.json["models"]) for entry in entries)
    result = run("list", "--kind", "models", "*resnet39*", "--json")
    assert set(result.json) == {"command", "models"}
    assert [entry["name"] for entry in result.json["models"]] == cdzoo.list_models("*resnet39*")
    result = run("list", "--pretrained", "--json")
    assert [entry["name"] for entry in result.json["models"]] == cdzoo.list_models(pretrained=True)
    text = run("list").out.splitlines()
    assert [line.split()[0] for line in text[1:]] == [*cdzoo.list_codecs(), *cdzoo.list_models()]


def test_list_says_which_networks_read_a_codecs_latents(run: Run) -> None:
    result = run("list", "--codec", "bmshj2018_factorized", "--json").json
    assert [entry["name"] for entry in result["codecs"]] == ["bmshj2018_factorized"]
    names = [entry["name"] for entry in result["models"]]
    assert names == cdzoo.list_models(codec="bmshj2018_factorized")
    assert "fa_cresnet39" not in names
    facts = {entry["name"]: (entry["stride"], entry["scales"]) for entry in result["codecs"] + result["models"]}
    assert facts["bmshj2018_factorized"] == (16, False)
    assert facts["cresnet39_d"] == (8, False)
    lines = {line.split()[0]: line.split()[1:4] for line in run("list").out.splitlines()}
    assert lines["torfason2018"] == ["codec", "8", "-"]
    assert lines["mbt2018_mean"] == ["codec", "16", "gives"]
    assert lines["fa_cresnet39"] == ["model", "16", "needs"]
    assert lines["resnet50"] == ["model", "-", "-"]
    result = run("list", "--codec", "torfason")
    assert (result.status, result.out) == (2, "")
    assert "unknown codec 'torfason'; did you mean 'torfason2018'" in result.err


def test_info(streams: types.SimpleNamespace, weights: types.SimpleNamespace, run: Run, tmp_path: Path) -> None:
    text = run("info", "fa_cresnet39").out
    parameters = sum(p.numel() for p in cdzoo.get_model("fa_cresnet39").parameters())
    for name, value in (("parameters", f"{parameters:,}"), ("num_convs", "3, 4, 5"), ("in_channels", "192")):
        assert re.search(rf"^ *{name} +{value}$", text, re.MULTILINE)
    result = run("info", "mbt2018_mean", "--json").json
    assert (result["arguments"]["quality"], result["stride"], result["latent_channels"]) == (4, 16, 192)
    result = run("info", weights.model, "--json").json
    assert result["meta"]["class_names"] == NAMES
    assert result["codec"]["fingerprint"] == weights.module.fingerprint
    stream = streams.folder / "gray.cdz"
    result, header = run("info", stream, "--json").json, read_header(stream.read_bytes())
    assert (result["bpp"], result["payload_bpp"]) == (header.bpp, header.payload_bpp)
    assert result["image_size"] == list(header.image_size)
    text = run("info", stream).out
    assert f"{header.bpp:.4f} with the header, {header.payload_bpp:.4f} without" in text
    (tmp_path / "no.cdz").write_text("words")
    for name, status, message in (
        ("fa_cresnet3", 2, "did you mean 'fa_cresnet39'"),
        ("FA_cResNet99_Weights.DEFAULT", 2, "unknown weights enum"),
        (tmp_path / "no.cdz", 1, "not a .cdz stream"),
        (tmp_path / "missing.cdz", 1, "No such file"),
    ):
        result = run("info", name)
        assert (result.status, result.out) == (status, "")
        assert message in result.err


def test_wrong_usage(album: Path, run: Run, tmp_path: Path) -> None:
    image = str(album / "tiny.png")
    for arguments in (
        [],
        ["paint"],
        ["compress", image],
        ["classify"],
        ["classify", "a.cdz", "--top", "0"],
        ["list", "--kind", "things"],
        ["demo", "--size", "0"],
        ["bench", "jpeg", "--quality", "96"],
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 2
    for options, message in (
        (["--codec", "bmshj2018_hyperprio"], "did you mean"),
        (["--codec", "bmshj2018_factorized"], "name weights (a folder or hf://"),
        (["--weights", "V99"], "unknown weights"),
        (["--device", "abacus"], "--device abacus"),
    ):
        result = run("compress", image, "-o", tmp_path / "out", *options)
        assert (result.status, result.out) == (2, "")
        assert message in result.err
        assert "weights=None" not in result.err
    assert run("compress", image, "-o", tmp_path / "out", "--device", "meta").status == 2
    result = run("bench", "conversion", "--model", "resnet1")
    assert (result.status, result.out) == (2, "")
    assert "unknown classifier of torchvision 'resnet1'; did you mean 'resnet18' or" in result.err
    result = run("classify", album / "rgb.jpg", "--model", "resnet49")
    assert "no weights of resnet49 are published; name weights" in result.err
    assert ", ".join(cdzoo.list_models(pretrained=True)) in result.err
    result = run("compress", image, "-o", tmp_path / "out", "--codec", "8")
    assert f"unknown codec '8'; known: {', '.join(cdzoo.list_codecs())}" in result.err
    assert not (tmp_path / "out").exists()
    assert run("compress", image, "-o", tmp_path, "--codec", "mbt2018_mean", "--weights", tmp_path).status == 1


def test_an_empty_name_is_not_the_current_folder(
    weights: types.SimpleNamespace, streams: types.SimpleNamespace, run: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    shutil.copy(streams.folder / "tiny.cdz", "b.cdz")
    for command in (("compress", "-o", "out"), ("decompress", "-o", "out"), ("classify",)):
        chosen = weights.model if command[0] == "classify" else weights.codec
        result = run(command[0], "", *command[1:], "--weights", chosen, "--json")
        assert result.status == 1
        assert result.json["files"] == [{"file": "", "error": "No such file or directory: ''"}]
    assert run("decompress", "b.cdz", "-o", "", "--weights", weights.codec).status == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.png", "b.cdz"]


def test_as_a_process(streams: types.SimpleNamespace, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cdzoo"]
    name = os.fsdecode(b"caf\xe9.cdz")  # a name that is not UTF-8
    shutil.copy(streams.folder / "tiny.cdz", tmp_path / name)
    result = subprocess.run([*command, "info", tmp_path / name], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "caf\\xe9.cdz" in result.stdout
    # a reader that has seen enough, such as head
    process = subprocess.Popen([*command, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full")
def test_a_result_that_cannot_be_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        result = run("list")
    assert result.status == 1
    assert "the result cannot be written: No space left on device" in result.err
    monkeypatch.setattr(sys, "stdout", None)  # as where it was closed from the start
    result = run("list")
    assert result.status == 1
    assert "the result cannot be written: Bad file descriptor" in result.err


# -- weights that come with the package --------------------------------------------------------------------------


def test_packaged_weights_are_the_default(
    weights: types.SimpleNamespace, album: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codecs = WeightsEnum("BMSHJ2018_Hyperprior_Weights", {"V1": Weights("codec"), "DEFAULT": Weights("codec")})
    models = WeightsEnum("FA_cResNet39_Weights", {"V1": Weights("model"), "DEFAULT": Weights("model")})
    monkeypatch.setattr(_weights, "PACKAGED", tmp_path / "pretrained")
    monkeypatch.setitem(STREAM_MODELS, "bmshj2018_hyperprior", "fa_cresnet39")
    enums = {"bmshj2018_hyperprior": codecs, "fa_cresnet39": models}
    for kind, entries in _registry._entries.items():
        published = {name: replace(entry, weights=enums.get(name)) for name, entry in entries.items()}
        monkeypatch.setitem(_registry._entries, kind, published)
    shutil.copytree(weights.codec, tmp_path / "pretrained" / "codec")
    model = cdzoo.from_pretrained(weights.model)
    cdzoo.save_pretrained(model, tmp_path / "pretrained" / "model", codec=weights.module)

    listed = run("list", "--pretrained", "--json").json
    assert [(entry["name"], entry["weights"]) for entry in listed["codecs"]] == [
        ("bmshj2018_hyperprior", ["V1", "DEFAULT"])
    ]
    assert run("compress", album / "gray.png", "-o", tmp_path).status == 0
    stream = (tmp_path / "gray.cdz").read_bytes()
    assert [stream] == weights.module.compress(read_image(album / "gray.png"))
    monkeypatch.setattr(packaged, "PACKAGED", tmp_path / "pretrained")
    monkeypatch.setattr(packaged, "CODECS", {"codec": "BMSHJ2018_Hyperprior_Weights.V1"})
    assert run("info", tmp_path / "gray.cdz", "--json").json["weights"] == "BMSHJ2018_Hyperprior_Weights.V1"
    assert run("decompress", tmp_path / "gray.cdz", "-o", tmp_path / "gray.png").status == 0
    assert read_image(tmp_path / "gray.png").shape == read_image(album / "gray.png").shape
    result = run("classify", tmp_path / "gray.cdz", "--json")
    assert result.status == 0
    codec = {"name": "bmshj2018_hyperprior", "fingerprint": weights.module.fingerprint}
    assert result.json["networks"] == [
        {"builder": "fa_cresnet39", "weights": "FA_cResNet39_Weights.V1", "classes": 10, "codec": codec}
    ]
    for options in (["--weights", "FA_cResNet39_Weights.V1"], ["--codec", "bmshj2018_hyperprior"]):
        assert run("classify", tmp_path / "gray.cdz", *options, "--json").json == result.json
    facts = run("info", "FA_cResNet39_Weights.DEFAULT", "--json").json
    assert facts["codec"]["weights"] == "BMSHJ2018_Hyperprior_Weights.V1"
    assert list(run("info", "fa_cresnet39", "--json").json["weights"]) == ["V1"]


# -- standard error ----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, count, bar in ((Terminal(), 2, True), (Terminal(), 1, False), (io.StringIO(), 2, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with contextlib.closing(Progress("count", [Path(__file__)] * count)) as progress:
            for number in range(count):
                progress.finish(number, None)
        assert ("2/2" in stream.getvalue()) == bar
        assert bool(stream.getvalue()) == bar


def test_classify_shows_progress_on_a_terminal(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        shutil.copy(album / "rgb.jpg", tmp_path / name)
    (tmp_path / "b.jpg").write_bytes(b"words")
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert main(["classify", str(tmp_path)]) == 1
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"classify 3/3 100%\|.*\[\d\d:\d\d<00:00, [\d.e-]+ megapixels/s\]", last)


def test_warnings_are_notes_without_paths(album: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(*args: Any) -> None:
        warnings.warn("the rule\nand the way out", stacklevel=1)

    monkeypatch.setattr(_show, "info", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("info", "resnet50")
    assert (result.status, result.err) == (0, "cdzoo info: warning: the rule and the way out\n")


def test_files_with_a_wrong_suffix(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "png.jpg", "PNG")
    (tmp_path / "words.jpg").write_text("words")
    (tmp_path / "notes.txt").write_text("words")
    result = run("classify", tmp_path, "--json")
    png, words = (entry["error"] for entry in result.json["files"])
    assert "--fallback decode lets Pillow decode it" in png
    assert "Pillow cannot read it either" in words
    assert "fallback" not in words
    assert "cdzoo classify: 1 file with another suffix was left out\n" in result.err
    assert run("classify", tmp_path / "png.jpg", "--fallback", "decode").status == 0


def test_list_takes_a_part_of_a_name(run: Run) -> None:
    names = [entry["name"] for entry in run("list", "resnet", "--kind", "models", "--json").json["models"]]
    assert names == cdzoo.list_models("*resnet*")
    assert run("list", "resnet5?", "--kind", "models", "--json").json["models"][0]["name"] == "resnet50"


def test_names_of_weights_and_networks(album: Path, streams: types.SimpleNamespace, run: Run) -> None:
    for name, message in (
        ("nope", "unknown weights 'nope'; weights are Enum.MEMBER, hf://owner/repo or a folder that exists\n"),
        ("DEFAULT", "JPEGEfficientNetLite0_Weights.DEFAULT, "),
    ):
        result = run("classify", album / "rgb.jpg", "--weights", name)
        assert result.status == 2
        assert message in result.err
    result = run("classify", album / "rgb.jpg", "--model", "resnet18")
    assert result.status == 2
    assert ", or 'timm/resnet18' (a network of timm, for JPEG files)?" in result.err
    result = run("classify", streams.folder / "gray.cdz", "--model", "timm/resnet18")
    assert result.status == 1
    assert "timm/resnet18 reads JPEG files, and there are only .cdz streams" in result.err
