"""The training recipes: their parts against closed forms, each command on a few images, kills, and two processes."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.types import Latent

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
NAMES = [file.stem for file in FOLDER.glob("*.py")]

pytestmark = [
    # timm's augmentations and networks; theirs to resolve
    pytest.mark.filterwarnings("ignore::DeprecationWarning:timm"),
    pytest.mark.filterwarnings("ignore::FutureWarning:timm"),
    pytest.mark.filterwarnings("ignore:Overwriting:UserWarning"),
]


@pytest.fixture(scope="module")
def recipes() -> Iterator[dict[str, ModuleType]]:
    """The scripts by name; nothing of them is left behind, for their names are anybody's."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def smoke(recipes: dict[str, ModuleType], name: str, command: str, out: Path, *more: str) -> dict[str, Any]:
    return recipes[name].main([command, "--smoke", "--out", str(out), *more])


# -- parts -------------------------------------------------------------------------------------------------------


def test_schedules(recipes: dict[str, ModuleType]) -> None:
    t = recipes["schedules"]
    steps = t.step_decay((8, 16, 24), of=28)
    for epoch, expected in ((0, 1), (7.99, 1), (8, 0.1), (15.99, 0.1), (16, 0.01), (24, 0.001), (28, 0.001)):
        assert steps(epoch / 28) == pytest.approx(expected)
    assert all(t.step_decay((8,), of=28)(8 * n / (28 * n)) == 0.1 for n in range(1, 500))
    assert t.polynomial(0.9)(0.25) == pytest.approx(0.75**0.9)
    assert t.polynomial(0.9)(1.0) == 0
    cosine = t.cosine(warmup=0.1, end=0.2)
    assert [cosine(p) for p in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1.0, 0.6, 0.2])
    assert [t.part_of(steps, 15 / 28, 1.0)(p) for p in (0, 0.5, 1)] == pytest.approx([0.1, 0.01, 0.001])


def test_order_of_images(recipes: dict[str, ModuleType]) -> None:
    order = recipes["training"].BatchOrder
    take = lambda o, n: [batch for batch, _ in zip(o, range(n), strict=False)]  # noqa: E731
    whole = take(order(23, 4, seed=1), 10)
    for epoch in (0, 1):
        keys = [key for batch in whole[5 * epoch : 5 * epoch + 5] for key in batch]
        assert {e for e, _ in keys} == {epoch}
        assert len({i for _, i in keys}) == 20
    assert [i for _, i in whole[0]] != [i for _, i in whole[5]]
    for start in range(7):
        assert take(order(23, 4, seed=1, start=start), 3) == whole[start : start + 3]
    shares = [[k for b in take(order(23, 4, seed=1, rank=r, world=2), 2) for k in b] for r in (0, 1)]
    assert len(set(shares[0] + shares[1])) == 16
    with pytest.raises(SystemExit, match="make no batch of 30"):
        order(23, 30, seed=0)


def test_presets_replace_the_papers_values_and_what_is_said_replaces_presets(
    recipes: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(name: str, command: str, *argv: str) -> argparse.Namespace:
        def give(args: argparse.Namespace) -> argparse.Namespace:
            """Nothing but that."""
            return args

        give.__name__ = command
        with monkeypatch.context() as patch:
            patch.setattr(recipes[name], command, give)
            return recipes[name].main([command, *argv])

    args = parsed("torfason2018", "classifier")
    assert (args.epochs, args.batch, args.lr, args.weight_decay, args.width) == (28, 64, 0.025, 1e-4, 1.0)
    args = parsed("torfason2018", "segmenter")
    assert (args.steps, args.batch, args.lr, args.weight_decay, args.crop) == (20_000, 10, 0.001, 5e-4, 320)
    args = parsed("torfason2018", "joint")
    assert (args.epochs, args.lr, args.gamma, args.rate) == (9, 0.0025, 0.001, 0.635)
    args = parsed("torfason2018", "codec")
    assert (args.steps, args.batch, args.minutes) == (600_000, 30, None)
    args = parsed("torfason2018", "codec", "--small")
    assert args.minutes == 12
    assert args.batch == 16
    args = parsed("torfason2018", "codec", "--small", "--steps", "7", "--batch", "3")
    assert (args.minutes, args.steps, args.batch) == (None, 7, 3)
    args = parsed("wang2022", "codec")
    assert (args.lr, args.crop, args.N, args.latent_channels) == (1e-4, 256, 256, 256)
    args = parsed("wang2022", "classifier")
    assert (args.min_size, args.max_size) == (224, 448)
    args = parsed("icat2022", "first", "--small")
    assert (args.width, args.crop, args.batch, args.augment) == (0.34, 64, 32, "crop")
    args = parsed("icat2022", "second", "--smoke")
    assert (args.width, args.crop) == (0.17, 64)


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("torfason2018", ["codec", "classifier", "segmenter", "joint"]),
        ("wang2022", ["codec", "classifier", "segmenter", "multitask"]),
        ("fa_cresnet2023", ["anchor", "classifier"]),
        ("hyperprior", ["codec"]),
        ("icat2022", ["first", "pixels", "second", "rival"]),
        ("distill", ["distill"]),
    ],
)
def test_help(
    recipes: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], name: str, commands: list[str]
) -> None:
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            recipes[name].main([command, "--help"])
        assert stopped.value.code == 0
        assert "--smoke" in capsys.readouterr().out


def test_papers_tables(recipes: dict[str, ModuleType]) -> None:
    for rate, point in recipes["torfason2018"].RATES.items():
        assert point["target_entropy"] * point["latent_channels"] / 64 == pytest.approx(rate, rel=0.02)
    for name, end in (("imagenet", 35), ("minc", 70)):
        recipe = recipes["fa_cresnet2023"].CLASSIFIER[name]
        rate = lambda epoch, r=recipe: r.lr * r.schedule(epoch / r.epochs)  # noqa: E731
        assert recipe.epochs == end
        decays = (10, 25) if name == "imagenet" else (40, 60)
        epochs = [0, decays[0] - 0.1, decays[0], decays[1], end - 0.1]
        assert [rate(e) for e in epochs] == pytest.approx([0.01, 0.01, 0.001, 0.0001, 0.0001])
        assert recipe.pretrained_lr * recipe.pretrained_schedule(1) == pytest.approx(1e-4)


def test_metrics(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    e = recipes["evaluation"]
    run = recipes["training"].Run(argparse.Namespace(out=tmp_path, device="cpu", threads=None, seed=0))
    x = torch.full((2, 3, 4, 4), 100 / 255)
    y = x.clone()
    y[0] += 5 / 255
    y[1, :, :2] += 4.4 / 255  # rounds to 4, in half of the picture
    assert e.psnr(y, x).tolist() == pytest.approx([10 * math.log10(255**2 / v) for v in (25, 8)])

    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4]])
    assert e.count_correct(logits, torch.tensor([0, 4, 5])).tolist() == [1, 2, 3]
    assert e.count_correct(logits[:, :2], torch.tensor([0, 1, 1])).tolist() == [1, 3, 3]
    assert e.accuracy(run, [torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 1, 1])]) == {"top1": 50.0, "top5": 75.0}

    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 5, (2, 30, 40), generator=generator)  # 4 is void
    true[true == 2] = 1  # class 2 occurs in predictions alone
    predicted = torch.randint(0, 3, true.shape, generator=generator)  # class 3 is never predicted
    matrix = e.ConfusionMatrix(5 - 1)
    for p, t in zip(predicted, true, strict=True):
        matrix.add(p, t)
    valid = true != 4
    ious = [
        float(((predicted == c) & (true == c) & valid).sum() / (((predicted == c) | (true == c)) & valid).sum())
        for c in range(4)
    ]
    found = matrix.metrics(run)
    assert ious[2] == ious[3] == 0
    assert found["miou"] == pytest.approx(100 * sum(ious) / 4, abs=0.006)
    assert found["pixel_accuracy"] == pytest.approx(100 * float((predicted == true)[valid].float().mean()), abs=0.006)
    matrix = e.ConfusionMatrix(3)
    matrix.add(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert matrix.metrics(run)["miou"] == 100  # class 2 is nowhere
    assert "miou_error" not in matrix.metrics(run)  # of one image


def test_the_error_of_a_mean_iou(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    """One class whose share is right in each image: the deviation of a ratio of sums, by the delta method."""
    run = recipes["training"].Run(argparse.Namespace(out=tmp_path, device="cpu", threads=None, seed=0))
    matrix, rng = recipes["evaluation"].ConfusionMatrix(2), np.random.default_rng(0)
    right, pixels = rng.integers(20, 100, 60), 100
    for count in right:
        predicted = torch.zeros(pixels, dtype=torch.long)
        predicted[:count] = 1
        matrix.add(predicted, torch.ones(pixels, dtype=torch.long))
    found = matrix.metrics(run)
    # class 0 is predicted and never true: half of the mean is 0
    assert found["miou"] == pytest.approx(50 * right.mean() / pixels, abs=0.01)
    assert found["miou_error"] == pytest.approx(50 * right.std() / pixels / 60**0.5, rel=0.1)
    same = recipes["evaluation"].ConfusionMatrix(2)
    for _ in range(9):
        same.add(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    assert same.metrics(run)["miou_error"] == 0


def test_crops_of_tensors_belong_together(recipes: dict[str, ModuleType]) -> None:
    numbers = torch.arange(4 * 2 * 6 * 7.0).reshape(4, 2, 6, 7)
    torch.manual_seed(0)
    augments = [
        (recipes["data"].crop_and_flip, 4),
        (recipes["fa_cresnet2023"].random_resized_crop(4, bilinear=False, mirror=True), 4),
    ]
    for augment, side in augments:
        y, none, scales = augment([numbers, None, 1000 + numbers], side, train=True)
        assert none is None
        assert y.shape == (4, 2, 4, 4)
        assert torch.equal(scales, 1000 + y)
        assert all(set(row.flatten().tolist()) <= set(n.flatten().tolist()) for row, n in zip(y, numbers, strict=True))
    rows = [recipes["data"].crop_and_flip([numbers], 4, train=True, mirror=mirror)[0] for mirror in (False, True) * 9]
    grow = [torch.diff(row, dim=-1).flatten(1) > 0 for row in rows]
    assert all(bool(up.all()) for up in grow[::2])  # none is mirrored
    assert {bool(row.all()) for up in grow[1::2] for row in up} == {False, True}
    centre, _ = recipes["data"].crop_and_flip([numbers, None], 4, train=False)
    assert torch.equal(centre, numbers[..., 1:5, 1:5])


def test_the_moving_average_forgets_the_start_and_copies_what_is_counted(recipes: dict[str, ModuleType]) -> None:
    task = torch.nn.BatchNorm2d(3)
    average = recipes["training"].MovingAverage(task, 0.75)
    values, mean = torch.randn(12, 3).double(), torch.zeros(3).double()
    for n, value in enumerate(values):
        with torch.no_grad():
            task.weight.copy_(value)
            task.num_batches_tracked.fill_(7 * n)
        if n == 5:  # as after a kill
            saved, average = average.state_dict(), recipes["training"].MovingAverage(torch.nn.BatchNorm2d(3), 0.75)
            average.load_state_dict(saved)
        average.update(task)
        # the first is taken as it is; then the older, the less weight it has, down to 1 - decay
        share = 1.0 if n == 0 else max(0.25, 9 / (10 + n))
        mean += share * (value - mean)
    torch.testing.assert_close(average.module.weight.double(), mean, rtol=1e-5, atol=1e-6)
    assert average.module.num_batches_tracked == 77


def test_a_gpu_is_named_by_its_number(
    recipes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    args = argparse.Namespace(out=tmp_path, device=None, threads=None, seed=0)
    run = recipes["training"].Run(args)
    assert chosen == [run.device] == [torch.device("cuda", 0)]


@pytest.mark.parametrize("name", ["bmshj2018_hyperprior", "torfason2018"])
@pytest.mark.parametrize("decoded", [False, True])
def test_caches_hold_what_codecs_make_of_the_same_squares(
    recipes: dict[str, ModuleType], tmp_path: Path, name: str, decoded: bool
) -> None:
    data, training = recipes["data"], recipes["training"]
    torch.manual_seed(0)
    codec = cdzoo.get_codec(name, N=8, **({"M": 12} if name.startswith("bmshj") else {})).eval()
    _, files = data.list_classes(data.generate_classes(tmp_path / "images"))
    args = argparse.Namespace(out=tmp_path / "run", device="cpu", threads=None, seed=0, workers=0)
    run, labels = training.Run(args), [label for _, label in files["train"]]
    views = [data.whole(32), data.random_view(32), data.random_view(32)]
    with torch.no_grad():
        made = [
            data.cache(run, codec, files["train"], view, tmp_path / f"train{number}", decoded=decoded)
            for number, view in enumerate(views)
        ]
    ways = [data.Cached(made), data.Cached(made, torch.device("cpu"))]
    keys = [(3, index) for index in (5, 0, 7, 7)]
    stacked = [
        dataset.look_up(next(iter(torch.utils.data.DataLoader(training.SeededDataset(dataset, 0), 4, sampler=keys))))
        for dataset in ways
    ]
    assert len(stacked[0]) == len(stacked[1]) == (2 if decoded else 3)
    for one, other in zip(*stacked, strict=True):
        assert torch.equal(one, other) or one.numel() == other.numel() == 0
    assert stacked[0][-1].tolist() == [labels[index] for _, index in keys]
    # against the codec itself, view by view
    squares = [
        data.widened(torch.stack([sample for sample, _ in data.Cached([folder])]))
        for folder in sorted(tmp_path.glob("*-squares"))
    ]
    direct = torch.stack([data.whole(32)(data.read(file)) for file, _ in files["train"]]) / 255
    torch.testing.assert_close(squares[0], direct, rtol=0, atol=1e-6)
    assert not any(torch.equal(squares[i], squares[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    with torch.no_grad():
        latents = [codec.encode(square) for square in squares]
        expected = [codec.decode(latent) if decoded else latent.y_hat for latent in latents]
    for view, values in zip(ways[0].views, expected, strict=True):
        kept = data.widened(torch.from_numpy(np.array(view["images" if decoded else "y_hat"])))
        torch.testing.assert_close(kept, values, rtol=1e-3, atol=0.5 / 255 + 1e-6 if decoded else 1e-3)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")}
    data.cache(run, codec, files["train"], views[0], tmp_path / "train0", decoded=decoded)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")} == before
    args.workers, kept = 2, sorted(tmp_path.glob("*-squares"))[2]
    again = data.keep(run, files["train"], views[2], tmp_path / "again" / kept.name)
    assert np.array_equal(again.views[0]["images"], data.Cached([kept]).views[0]["images"])


def test_one_process_fills_a_cache_and_the_others_wait(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    only_one, found = recipes["data"].only_one, list[bool]()

    def other() -> None:
        with only_one(tmp_path / "x") as empty:
            found.append(empty)

    with only_one(tmp_path / "x") as empty:
        assert empty
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        np.save(tmp_path / "x" / "labels.npy", np.zeros(1))
    thread.join(10)
    assert found == [False]
    (tmp_path / "x" / "lock").unlink()
    with only_one(tmp_path / "x") as empty:  # may be where nobody can write
        assert not empty
    assert not (tmp_path / "x" / "lock").exists()


def test_split_and_layouts(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    d = recipes["data"]
    classes, splits = d.list_classes(d.generate_classes(tmp_path / "classes", classes=2, images=5, side=8))
    assert classes == ["class0", "class1"]
    assert {s: len(p) for s, p in splits.items()} == {"train": 10, "val": 4}
    for split, pairs in splits.items():
        for file, label in pairs:
            assert file.parent.name == classes[label]
            assert (int(hashlib.sha256(file.name.encode()).hexdigest()[:8], 16) % 10 == 0) == (split == "val")
    count, void, pairs = d.list_masks(d.generate_masks(tmp_path / "masks", images=3, size=(20, 30)))
    assert (count, void, len(pairs["train"]), len(pairs["val"])) == (11, 11, 3, 2)
    torch.manual_seed(0)
    image, mask = d.Masks(pairs["train"], crop=48, void=void)[0]
    assert image.shape == (3, 48, 48)
    assert mask.shape == (48, 48)
    assert (mask == void).sum() >= 48 * 48 - 30 * 45  # at most 1.5 times enlarged, and padded
    assert d.thinned(list(range(10)), 5) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("experiment", ["input", "effect", "module", "position", "pooling", "cau_position", "cau",
                                        "bottleneck", "feu"])  # fmt: skip
def test_ablations_train(recipes: dict[str, ModuleType], experiment: str) -> None:
    f = recipes["fa_ablation"]
    for setting in list(f.ABLATIONS[experiment])[:: 3 if experiment in ("bottleneck", "feu") else 1]:
        torch.manual_seed(0)
        name = f"{experiment}={setting}"
        model = f.build_ablation(name, num_convs=(1, 1, 1), in_channels=4, num_classes=3, width=0.01, latent_stride=16)
        y = torch.randn(2, 4, 6, 6)
        out = model(torch.rand(2, 3, 48, 48)) if setting == "fa_resnet" else model(Latent(y, y.abs(), (96, 96)))
        assert out.shape == (2, 3)
        out.square().sum().backward()
        unused = [n for n, p in model.named_parameters() if p.grad is None]
        assert not unused, (name, unused)


def test_the_papers_own_setting_is_among_the_ablations(recipes: dict[str, ModuleType]) -> None:
    build = recipes["fa_ablation"].build_ablation
    sizes = {"num_convs": (2, 3, 4), "in_channels": 192, "num_classes": 23, "width": 0.125, "latent_stride": 16}
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    paper = count(cdzoo.models.fa_cresnet39(num_convs=(2, 3, 4), in_channels=192, num_classes=23, width=0.125))
    assert count(build("feu=2/3/4", **sizes)) == paper
    assert count(build("bottleneck=r32", **sizes)) < paper < count(build("bottleneck=r8", **sizes))
    assert count(build("pooling=1att", **sizes)) == paper - sum(c + 1 for c in (192, 192, 128, 256))
    with pytest.raises(ValueError, match="pooling=median"):
        build("pooling=median", **sizes)


# -- commands ----------------------------------------------------------------------------------------------------


def test_torfason2018(recipes: dict[str, ModuleType], home: Path) -> None:
    result = smoke(recipes, "torfason2018", "codec", home / "codec")
    assert result["metrics"].keys() >= {"bpp_real", "bpp_estimated", "psnr", "ssim"}
    codec = cdzoo.from_pretrained(home / "codec" / "codec")
    assert isinstance(codec, Codec)
    assert codec.calibrated
    folder = ["--codec", str(home / "codec" / "codec")]
    cached = ["--cache", str(home / "cache")]
    smoke(recipes, "torfason2018", "classifier", home / "classifier", *folder, *cached, "--model", "cresnet39")
    smoke(
        recipes, "torfason2018", "classifier", home / "pixels", *folder, *cached, "--model", "resnet50", "--ema", "0.9"
    )
    trained = home / "classifier" / "classifier"
    joined = ["--classifier", str(trained)]
    smoke(recipes, "torfason2018", "joint", home / "joint", *folder, *joined)
    smoke(recipes, "torfason2018", "joint", home / "control", *folder, *joined, "--train", "codec", "--amp", "bf16")
    smoke(recipes, "torfason2018", "joint", home / "longer", *folder, *joined, "--train", "classifier")

    for place, net in (("classifier", codec), ("joint", cdzoo.from_pretrained(home / "joint" / "codec"))):
        model = cdzoo.from_pretrained(home / place / "classifier")
        streams = net.compress(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        assert cdzoo.compose(net, model).from_streams(streams).shape == (2, 3)
        assert len(model.transforms.mean) == 16
    assert cdzoo.from_pretrained(home / "control" / "codec").fingerprint != codec.fingerprint
    assert not (home / "longer" / "codec").exists()

    smoke(recipes, "torfason2018", "segmenter", home / "segmenter", *folder, *joined)
    segmenter = cdzoo.from_pretrained(home / "segmenter" / "segmenter")
    assert segmenter.transforms == cdzoo.from_pretrained(trained).transforms
    assert segmenter(segmenter.transforms(codec.encode(torch.rand(1, 3, 33, 40)))).shape == (1, 11, 33, 40)
    rows = [json.loads(line) for line in (home / "segmenter" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert "miou" in rows[-1]


def test_codecs_that_start_from_others_and_are_written_in_16_bits(
    recipes: dict[str, ModuleType], tmp_path: Path
) -> None:
    smoke(recipes, "hyperprior", "codec", tmp_path / "scale", "--half")
    first = cdzoo.from_pretrained(tmp_path / "scale" / "codec")
    more = ["--init", str(tmp_path / "scale" / "codec"), "--lr", "0"]
    smoke(recipes, "hyperprior", "codec", tmp_path / "mean", *more, "--model", "mbt2018_mean", "--half")
    smoke(recipes, "wang2022", "codec", tmp_path / "choi", *more, "--latent-channels", "12", "--half")
    for name, folder in (("mbt2018_mean", "mean"), ("choi2019", "choi")):
        codec = cdzoo.from_pretrained(tmp_path / folder / "codec")
        assert codec.name == name
        state = codec.state_dict()
        shared = [n for n in first.state_dict() if n.startswith(("g_a.", "g_s."))]
        assert {f"{part}.{n}.{p}" for part in ("g_a", "g_s") for n in (0, 2, 4, 6) for p in ("weight", "bias")} <= {
            *shared
        }
        assert all(torch.equal(state[n], first.state_dict()[n]) for n in shared)
        assert torch.equal(state["g_a.0.weight"], state["g_a.0.weight"].half().float())
    with pytest.raises(SystemExit, match="no tensor of the names and sizes"):
        smoke(
            recipes,
            "hyperprior",
            "codec",
            tmp_path / "wide",
            "--init",
            str(tmp_path / "choi" / "codec"),
            "--N",
            "9",
            "--M",
            "7",
        )


@pytest.mark.parametrize(
    ("name", "command", "more", "folder"),
    [
        ("wang2022", "codec", [], "codec"),
        ("wang2022", "classifier", ["--channels", "4"], "classifier"),
        ("wang2022", "classifier", ["--model", "mobilenet_v2_45", "--amp", "bf16"], "classifier"),
        ("wang2022", "classifier", ["--model", "resnet50"], "classifier"),
        ("wang2022", "segmenter", [], "segmenter"),
        ("wang2022", "multitask", [], "segmenter"),
        ("fa_cresnet2023", "classifier", ["--model", "cresnet39"], "classifier"),
        ("fa_cresnet2023", "classifier", ["--ablation", "input=y_hat", "--schedule", "minc"], None),
        ("icat2022", "rival", [], "codec"),
        ("icat2022", "pixels", [], None),
    ],
)
def test_commands(
    recipes: dict[str, ModuleType], tmp_path: Path, name: str, command: str, more: list[str], folder: str | None
) -> None:
    result = smoke(recipes, name, command, tmp_path, *more)
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == result["metrics"]
    if folder is None:
        assert (tmp_path / "classifier.pt").exists()
        return
    found = cdzoo.from_pretrained(tmp_path / folder)
    if "--channels" in more:
        assert len(found.select.indices) == 4
    if command == "segmenter":
        assert found.builder == "resnet41_seg"


def test_validation_images_of_mixed_sizes(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    args = argparse.Namespace(
        data=recipes["data"].generate_classes(tmp_path / "images", side=64), out=tmp_path, device="cpu", threads=None,
        seed=0, limit=None, smoke=False, pixel_size=48, min_size=40, max_size=64, mixed_sizes=[33, 50], enlarge=1.0,
    )  # fmt: skip
    inputs = recipes["wang2022"].AnySizeInputs(recipes["training"].Run(args), None, latents=True)
    sides = [image.shape[-2:] for image, _ in inputs.val]
    assert len(set(sides)) > 1
    assert all(33 <= height == width <= 50 for height, width in sides)
    assert sides == [image.shape[-2:] for image, _ in inputs.val]


def test_pretrained_layers_are_frozen_in_stage_one(recipes: dict[str, ModuleType], home: Path) -> None:
    smoke(recipes, "fa_cresnet2023", "anchor", home / "anchor")
    anchor = home / "anchor" / "classifier"
    smoke(recipes, "fa_cresnet2023", "classifier", home / "fa", "--pretrained", str(anchor), "--steps", "5")
    state = {
        stage: {
            name.removeprefix("model."): tensor
            for name, tensor in torch.load(home / "fa" / stage / "checkpoint.pt", weights_only=True)["task"].items()
        }
        for stage in ("stage1", "stage2")
    }
    before = cdzoo.from_pretrained(anchor).state_dict()
    known = [name for name in state["stage1"] if name in before and state["stage1"][name].shape == before[name].shape]
    assert {name.split(".")[0] for name in known} == {"layer2", "layer3", "layer4", "fc"}
    assert all(torch.equal(state["stage1"][name], before[name]) for name in known)
    assert not any(torch.equal(state["stage2"][n], before[n]) for n in known if n.endswith(("conv2.weight", "_mean")))
    assert cdzoo.from_pretrained(home / "fa" / "classifier").transforms.size == (8, 8)


def test_icat2022(recipes: dict[str, ModuleType], home: Path) -> None:
    smoke(recipes, "icat2022", "first", home / "first")
    result = smoke(recipes, "icat2022", "second", home / "second", "--init", str(home / "first" / "icat"))
    assert result["metrics"].keys() >= {"top1", "val_psnr", "val_bpp", "bpp_real", "bpp_estimated"}
    model = cdzoo.from_pretrained(home / "second" / "icat")
    streams = model.compress(torch.rand(1, 3, 40, 50))
    assert model.from_streams(streams).shape == (1, 3)


def test_codecs_by_the_names_of_their_weights(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    named = recipes["codec_training"].named_codec
    for builder in cdzoo.list_codecs(pretrained=True):
        for member in cdzoo.get_model_weights(builder):
            assert named(str(member)).fingerprint == cdzoo.get_codec(builder, weights=member).fingerprint
    assert named("IMAGENETTE_C16_N32").name == named("Torfason2018_Weights.DEFAULT").name == "torfason2018"
    with pytest.raises(SystemExit, match=r"several codecs.*BMSHJ2018_Hyperprior_Weights\..* or MBT2018_Mean_Weights\."):
        named("IMAGENETTE_N48_M64")
    cdzoo.save_pretrained(cdzoo.models.cresnet39(in_channels=4, width=0.05, num_classes=3), tmp_path)
    with pytest.raises(SystemExit, match="holds no codec"):
        named(str(tmp_path))


def test_icats_rival_is_as_wide(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    args = argparse.Namespace(
        rival="deit_small_patch16_224", width=0.34, crop=64, pretrained=False, weights=None,
        out=tmp_path, device="cpu", threads=None, seed=0,
    )  # fmt: skip
    rival = recipes["icat2022"].pixel_network(recipes["training"].Run(args), 10)
    ours = cdzoo.models.icat_small(num_classes=10, width=0.34)
    assert rival.embed_dim == ours.num_features == 128
    assert [b.attn.num_heads for b in rival.blocks] == [b.attn.num_heads for b in ours.blocks]
    for changed, message in (({"rival": "resnet18"}, "pass --width 1"), ({"pretrained": True}, "of --width 1")):
        run = recipes["training"].Run(argparse.Namespace(**{**vars(args), **changed}))
        with pytest.raises(SystemExit, match=message):
            recipes["icat2022"].pixel_network(run, 10)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks, from Python 3.12 on
def test_the_strongest_augmentation_is_one_that_pillow_takes(
    recipes: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = recipes["icat2022"]._deit_view(32)
    monkeypatch.setattr("random.gauss", lambda mean, deviation: 99.0)
    for seed in range(40):
        random.seed(seed)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - timm's own source of randomness
        assert view(torch.full((3, 48, 48), 0.5)).shape == (3, 32, 32)


@pytest.mark.parametrize(("name", "command"), [("torfason2018", "classifier"), ("icat2022", "first")])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    recipes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    more = ["--ema", "0.9", "--checkpoint-minutes", "0", "--log-every", "1", "--steps", "4", "--evaluate-every", "0.2"]
    more += ["--workers", "1"]  # without workers, samples seed the steps as well
    smoke(recipes, name, command, tmp_path / "whole", *more)
    with monkeypatch.context() as patch:
        add = recipes["training"].History.add

        def die(self: Any, row: dict[str, Any]) -> None:
            add(self, row)
            if row["step"] == 3:
                raise KeyboardInterrupt

        patch.setattr(recipes["training"].History, "add", die)
        with pytest.raises(KeyboardInterrupt):
            smoke(recipes, name, command, tmp_path / "killed", *more)
    checkpoint = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 2  # step 3 is done again
    (tmp_path / "killed" / "checkpoint.tmp").write_bytes(b"half a checkpoint")
    smoke(recipes, name, command, tmp_path / "killed", *more)
    weights = [next((tmp_path / run).glob("*/model.safetensors")).read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]
    histories = [
        [
            {k: v for k, v in json.loads(line).items() if k != "minutes"}
            for line in (tmp_path / run / "history.jsonl").read_text().splitlines()
        ]
        for run in ("whole", "killed")
    ]
    assert histories[0] == histories[1]
    with pytest.raises(SystemExit, match="choose another --out"):
        smoke(recipes, name, command, tmp_path / "killed", *more, "--batch", "2")


TWO_PROCESSES = """
import argparse, sys
import torch
from torch import nn
import schedules, torfason2018, training

class Task(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return {"loss": (self.linear(x) - x.sum(1, keepdim=True).sin()).square().mean()}

def toy(args):
    run = training.Run(args)
    numbers = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    task = Task()
    optimizer = torch.optim.SGD(task.parameters(), 0.1)
    training.fit(run, task, numbers, optimizer, schedules.constant, prepare=lambda x: (x,))
    torch.save(task.state_dict(), run.out / f"rank{run.rank}.pt")

parser = argparse.ArgumentParser()
commands = parser.add_subparsers(dest="command")
toy.__doc__ = "A linear fit."
training.add_command(commands, toy, paper={"steps": 7, "workers": 0}, small={}, smoke={})
out, batch, both = sys.argv[1:]
training.run_command(parser, ["toy", "--out", f"{out}/toy{batch}", "--batch", batch])
if both == "both":
    torfason2018.main(["classifier", "--smoke", "--model", "cresnet39", "--out", out])
"""


def test_two_processes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{FOLDER.parent.parent}{os.pathsep}{FOLDER}"}

    def execute(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    execute(*torchrun, "script.py", str(tmp_path), "4", "both")
    execute("script.py", str(tmp_path), "8", "toy")
    files = [tmp_path / "toy4" / "rank0.pt", tmp_path / "toy4" / "rank1.pt", tmp_path / "toy8" / "rank0.pt"]
    one, other, alone = (torch.load(file, weights_only=True)["linear.weight"] for file in files)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, alone)  # two processes with 4 images are one with 8

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["machine"]["processes"] == 2
    assert result["metrics"]["images"] == 6
    assert cdzoo.from_pretrained(tmp_path / "classifier").num_classes == 3
    assert [json.loads(row)["step"] for row in (tmp_path / "history.jsonl").read_text().splitlines()] == [2, 4]


def test_results_that_ship_name_their_command() -> None:
    for file in (FOLDER / "results").glob("*.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found["command"].split()[0] in {f"{name}.py" for name in NAMES}
        assert found["metrics"]
