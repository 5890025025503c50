"""The benchmark of networks over files: what it compares, and that its figures hang together."""

from __future__ import annotations

import json

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


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["bench", "jpeg", "--model", "shufflenet_v2_x0_5", "--sizes", "64", "--batch", "1", "--threads", "1"]
    options += ["--rounds", "1", "--modes", "fused", "--tasks", "inference"]
    assert main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in result["rows"]] == ["pixels", "fused"]
    assert main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["task", "px", "batch", "threads"]
    assert lines[2].split()[:5] == ["inference", "64", "1", "1", "pixels"]
    assert main([*options, "--photo", "nowhere.png"]) == 1
    assert main([*options, "--model", "resnet1"]) == 2
    with pytest.raises(SystemExit):
        main(["bench"])
