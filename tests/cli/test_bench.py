"""The benchmark of networks over files: what it compares, and that its figures hang together."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
import torch
from torch import nn

from cdzoo import bench
from cdzoo.cli import main
from cdzoo.codecs import decode_jpeg, read_jpeg, read_jpeg_header


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1),
        nn.Linear(8, 5),
    )  # fmt: skip


def test_files_are_of_one_geometry_and_differ() -> None:
    files = bench._files(72, 5, 75, None)
    headers = {read_jpeg_header(data) for data in files}
    assert len(headers) == 1
    (header,) = headers
    assert (header.image_size, header.sampling) == ((72, 72), ((2, 2), (1, 1), (1, 1)))
    assert len(set(files)) == 5
    # a picture of something, not a flat corner of it
    assert decode_jpeg(read_jpeg(files)).std() > 0.1


def test_every_way_sees_the_same_images_through_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = {}

    def once(tasks: dict, rounds: int) -> dict[str, float]:  # type: ignore[type-arg]
        if "fused" in tasks:
            logits.update({name: task() for name, task in tasks.items()})
        return dict.fromkeys(tasks, 0.5)

    monkeypatch.setattr(bench, "median_seconds", once)
    rows = list(bench.bench_jpeg(model=small_network(), sizes=[64], batch=3, threads=[1], tasks=["inference"]))
    assert [row.way for row in rows] == ["pixels", "fused", "factored"]
    assert {(row.images_per_second, row.speedup, row.reading) for row in rows} == {(6.0, 1.0, 1.0)}
    torch.testing.assert_close(logits["fused"], logits["factored"], rtol=1e-4, atol=1e-5)
    # the library's decode rounds, clamps, and upsamples chroma by another filter
    torch.testing.assert_close(logits["pixels"], logits["fused"], rtol=0, atol=0.02)
    assert logits["fused"].std() > 0.05


def test_medians() -> None:
    calls: list[str] = []
    seconds = bench.median_seconds({name: lambda name=name: calls.append(name) for name in "ab"}, 4)  # type: ignore[misc]
    assert calls == list("ab" + "ab" + "ba" + "ab" + "ba")
    assert all(value >= 0 for value in seconds.values())


def test_threads_are_put_back_and_options_checked() -> None:
    before = torch.get_num_threads()
    rows = list(bench.bench_jpeg(model=small_network(), sizes=[32], batch=2, threads=[1, 2], rounds=1))
    assert torch.get_num_threads() == before
    assert [(row.threads, row.task, row.way) for row in rows] == [
        (n, task, way) for n in (1, 2) for task in ("inference", "training") for way in ("pixels", "fused", "factored")
    ]
    for options, message in (
        ({"sizes": [0]}, "sizes"), ({"threads": []}, "threads"), ({"tasks": ["sleeping"]}, "sleeping"),
        ({"modes": ["melted"]}, "melted"), ({"model": "resnet1"}, "resnet1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            list(bench.bench_jpeg(**{"model": small_network(), "sizes": [32], "batch": 1, **options}))  # type: ignore[arg-type]


def test_photographs_are_of_their_size_and_differ() -> None:
    for size in ((75, 100), (100, 75), (900, 1700)):
        files = bench._photographs(size, 3, 85, None)
        assert len(set(files)) == 3
        assert {read_jpeg_header(data).image_size for data in files} == {size}
        assert all(decode_jpeg(read_jpeg(data)).std() > 0.1 for data in files)


def test_all_ways_give_a_photograph_the_same_label(monkeypatch: pytest.MonkeyPatch) -> None:
    logits: dict[str, torch.Tensor] = {}

    def once(tasks: dict, rounds: int, step: object) -> dict[str, float]:  # type: ignore[type-arg]
        logits.update({name: task() for name, task in tasks.items()})
        return {name: 0.5 if name in bench._DECODERS else 0.25 for name in tasks}

    monkeypatch.setattr(bench, "median_seconds", once)
    rows = list(bench.bench_photographs(sizes=[(375, 500)], batch=2, threads=[1]))
    assert [row.way for row in rows] == list(bench.PHOTOGRAPH_WAYS)
    assert [row.speedup for row in rows] == [{"Pillow": n, "torchvision": n} for n in (2.0, 2.0, 1.0, 1.0)]
    assert [(row.seconds, row.images_per_second) for row in rows[1:3]] == [(0.125, 8.0), (0.25, 4.0)]
    assert len({tuple(values.argmax(1).tolist()) for values in logits.values()}) == 1
    exact = logits["stem pixels"]
    for way in bench._DECODERS:  # which round to 8 bits twice and upsample chroma by another filter
        assert (logits[way] - exact).abs().max() < 0.1 * exact.std() * 5


def test_large_files_make_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_MOST_PIXELS", 3 * 64 * 96)
    told: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"batch": 4, "threads": [1], "rounds": 1, "told": lambda *args: told.append(args)}
    rows = list(bench.bench_photographs(sizes=[(64, 96), (16, 24)], **options))
    assert [row.batch for row in rows] == [3] * 4 + [4] * 4
    assert told[0] == ("3 files of 96x64 pixels, 1 thread", 0, 16)
    assert told[-1] == ("4 files of 24x16 pixels, 1 thread", 16, 16)
    wrong: dict[str, Any]
    for wrong in ({"sizes": [(0, 5)]}, {"batch": 0}, {"threads": []}, {"quality": 96}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            list(bench.bench_photographs(**{**options, **wrong}))


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["bench", "jpeg", "--sizes", "32x24", "--batch", "1", "--threads", "1", "--rounds", "1"]
    assert main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in result["rows"]] == list(result["ways"]) == list(bench.PHOTOGRAPH_WAYS)
    assert result["rows"][0]["size"] == [24, 32]
    assert main(options) == 0
    lines, notes = map(str.splitlines, capsys.readouterr())
    assert lines[1].split()[:4] == ["pixels", "batch", "threads", "way"]
    assert lines[2].split()[:5] == ["32x24", "1", "1", "stem", "dct"]
    assert lines[-1].startswith("torchvision: ")
    assert notes == ["cdzoo bench: 1 file of 32x24 pixels, 1 thread (0 % done)"]
    assert main([*options, "--photo", "nowhere.png"]) == 1
    for wrong in (["--sizes", "32"], ["--sizes", "0x32"], ["--quality", "96"]):
        with pytest.raises(SystemExit) as exit_info:
            main([*options, *wrong])
        assert exit_info.value.code == 2

    asked: list[dict[str, object]] = []

    def nothing(**options: object) -> list[object]:
        asked.append(options)
        return []

    monkeypatch.setattr(bench, "bench_photographs", nothing)
    for without_options in (["bench"], ["bench", "--json"], ["bench", "jpeg"], ["bench", "--json", "jpeg"]):
        assert main(without_options) == 0
        assert capsys.readouterr().out.startswith("{") == ("--json" in without_options)
    for given in asked:
        assert {**given, "told": None} == {
            "sizes": [(375, 500), (3000, 4000)], "batch": 8, "threads": None, "quality": 85, "rounds": 5,
            "photo": None, "told": None,
        }  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert main(["bench", "jpeg", "--sizes", "32x24", "--batch", "2", "--threads", "1", "--rounds", "1"]) == 0
    assert "bench: 2 files of 32x24 pixels, 1 thread 100%" in terminal.getvalue().split("\r")[-1]


def test_conversion(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["bench", "conversion", "--model", "shufflenet_v2_x0_5", "--sizes", "64", "--batch", "1"]
    options += ["--threads", "1", "--rounds", "1", "--modes", "fused", "--tasks", "inference"]
    assert main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in result["rows"]] == ["pixels", "fused"]
    assert main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["task", "px", "batch", "threads"]
    assert lines[2].split()[:5] == ["inference", "64", "1", "1", "pixels"]
    assert main([*options, "--photo", "nowhere.png"]) == 1
    assert main([*options, "--model", "resnet1"]) == 2
