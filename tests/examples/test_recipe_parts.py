"""The parts of the training recipes against closed forms and other libraries."""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import threading
from pathlib import Path
from typing import Any

import classification
import codec_training
import data
import ehrlich2019
import evaluation
import fa_ablation
import fa_cresnet2023
import icat2022
import jpeg_files
import numpy as np
import pytest
import schedules
import soap
import torch
import torfason2018
import training
import wang2022
from oracles.jpeg_files import two_classes

import cdzoo
from cdzoo.codecs import decode_jpeg, encode_jpeg, read_jpeg
from cdzoo.types import Latent

pytestmark = [
    # timm's augmentations and networks; theirs to resolve
    pytest.mark.filterwarnings("ignore::DeprecationWarning:timm"),
    pytest.mark.filterwarnings("ignore::FutureWarning:timm"),
    pytest.mark.filterwarnings("ignore:Overwriting:UserWarning"),
]


def test_schedules() -> None:
    steps = schedules.step_decay((8, 16, 24), of=28)
    for epoch, expected in ((0, 1), (7.99, 1), (8, 0.1), (15.99, 0.1), (16, 0.01), (24, 0.001), (28, 0.001)):
        assert steps(epoch / 28) == pytest.approx(expected)
    assert all(schedules.step_decay((8,), of=28)(8 * n / (28 * n)) == 0.1 for n in range(1, 500))
    assert schedules.polynomial(0.9)(0.25) == pytest.approx(0.75**0.9)
    assert schedules.polynomial(0.9)(1.0) == 0
    cosine = schedules.cosine(warmup=0.1, end=0.2)
    assert [cosine(p) for p in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1.0, 0.6, 0.2])
    assert [schedules.part_of(steps, 15 / 28, 1.0)(p) for p in (0, 0.5, 1)] == pytest.approx([0.1, 0.01, 0.001])


def test_soap_is_adam_in_rotated_coordinates() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(8)]
    start = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in (5, 4))

    def trained(value: torch.Tensor, given: list[torch.Tensor], optimizer: Any, **options: Any) -> torch.Tensor:
        parameter = torch.nn.Parameter(value.clone())
        optimizer = optimizer([{"params": [parameter], **options}], lr=0.01, betas=(0.95, 0.95))
        for gradient in given:
            parameter.grad = gradient
            optimizer.step()
        return parameter.detach()

    # unlike Adam, it does not care in which coordinates a layer's inputs and outputs are written
    turned = trained(left @ start @ right, [left @ g @ right for g in gradients], soap.SOAP, every=3)
    torch.testing.assert_close(left @ trained(start, gradients, soap.SOAP, every=3) @ right, turned)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(left @ trained(start, gradients, torch.optim.Adam) @ right, turned)
    plain = trained(start, gradients, soap.SOAP, rotate=False)
    torch.testing.assert_close(plain, trained(start, gradients, torch.optim.Adam))
    vector, bank = start.flatten(), start.view(5, 2, 2, 1)
    torch.testing.assert_close(
        trained(vector, [g.flatten() for g in gradients], soap.SOAP),
        trained(vector, [g.flatten() for g in gradients], torch.optim.Adam),
    )
    # a filter bank has three sides: (5, 2, 2)
    bases = [torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in (5, 2, 2)]
    turn = lambda t: torch.einsum("abc,ia,jb,kc->ijk", t.view(5, 2, 2), *bases).view(5, 2, 2, 1)  # noqa: E731
    torch.testing.assert_close(
        turn(trained(bank, [g.view(5, 2, 2, 1) for g in gradients], soap.SOAP)),
        trained(turn(bank), [turn(g) for g in gradients], soap.SOAP),
    )


def test_order_of_images() -> None:
    order = training.BatchOrder
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


def test_papers_tables() -> None:
    for rate, point in torfason2018.RATES.items():
        assert point["target_entropy"] * point["latent_channels"] / 64 == pytest.approx(rate, rel=0.02)
    for name, end in (("imagenet", 35), ("minc", 70)):
        recipe = fa_cresnet2023.CLASSIFIER[name]
        rate = lambda epoch, r=recipe: r.lr * r.schedule(epoch / r.epochs)  # noqa: E731
        assert recipe.epochs == end
        decays = (10, 25) if name == "imagenet" else (40, 60)
        epochs = [0, decays[0] - 0.1, decays[0], decays[1], end - 0.1]
        assert [rate(e) for e in epochs] == pytest.approx([0.01, 0.01, 0.001, 0.0001, 0.0001])
        assert recipe.pretrained_lr * recipe.pretrained_schedule(1) == pytest.approx(1e-4)


def test_metrics(tmp_path: Path) -> None:
    run = training.Run(argparse.Namespace(out=tmp_path, device="cpu", threads=None, seed=0))
    x = torch.full((2, 3, 4, 4), 100 / 255)
    y = x.clone()
    y[0] += 5 / 255
    y[1, :, :2] += 4.4 / 255  # rounds to 4, in half of the picture
    assert evaluation.psnr(y, x).tolist() == pytest.approx([10 * math.log10(255**2 / v) for v in (25, 8)])

    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4]])
    assert evaluation.count_correct(logits, torch.tensor([0, 4, 5])).tolist() == [1, 2, 3]
    assert evaluation.count_correct(logits[:, :2], torch.tensor([0, 1, 1])).tolist() == [1, 3, 3]
    assert evaluation.accuracy(run, [torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 1, 1])]) == {
        "top1": 50.0,
        "top5": 75.0,
    }

    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 5, (2, 30, 40), generator=generator)  # 4 is void
    true[true == 2] = 1  # class 2 occurs in predictions alone
    predicted = torch.randint(0, 3, true.shape, generator=generator)  # class 3 is never predicted
    matrix = evaluation.ConfusionMatrix(5 - 1)
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
    matrix = evaluation.ConfusionMatrix(3)
    matrix.add(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert matrix.metrics(run)["miou"] == 100  # class 2 is nowhere
    assert "miou_error" not in matrix.metrics(run)  # of one image


def test_the_error_of_a_mean_iou(tmp_path: Path) -> None:
    """One class whose share is right in each image: the deviation of a ratio of sums, by the delta method."""
    run = training.Run(argparse.Namespace(out=tmp_path, device="cpu", threads=None, seed=0))
    matrix, rng = evaluation.ConfusionMatrix(2), np.random.default_rng(0)
    right, pixels = rng.integers(20, 100, 60), 100
    for count in right:
        predicted = torch.zeros(pixels, dtype=torch.long)
        predicted[:count] = 1
        matrix.add(predicted, torch.ones(pixels, dtype=torch.long))
    found = matrix.metrics(run)
    # class 0 is predicted and never true: half of the mean is 0
    assert found["miou"] == pytest.approx(50 * right.mean() / pixels, abs=0.01)
    assert found["miou_error"] == pytest.approx(50 * right.std() / pixels / 60**0.5, rel=0.1)
    same = evaluation.ConfusionMatrix(2)
    for _ in range(9):
        same.add(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    assert same.metrics(run)["miou_error"] == 0


def test_crops_of_tensors_belong_together() -> None:
    numbers = torch.arange(4 * 2 * 6 * 7.0).reshape(4, 2, 6, 7)
    torch.manual_seed(0)
    augments = [
        (data.crop_and_flip, 4),
        (fa_cresnet2023.random_resized_crop(4, bilinear=False, mirror=True), 4),
    ]
    for augment, side in augments:
        y, none, scales = augment([numbers, None, 1000 + numbers], side, train=True)
        assert none is None
        assert y.shape == (4, 2, 4, 4)
        assert torch.equal(scales, 1000 + y)
        assert all(set(row.flatten().tolist()) <= set(n.flatten().tolist()) for row, n in zip(y, numbers, strict=True))
    rows = [data.crop_and_flip([numbers], 4, train=True, mirror=mirror)[0] for mirror in (False, True) * 9]
    grow = [torch.diff(row, dim=-1).flatten(1) > 0 for row in rows]
    assert all(bool(up.all()) for up in grow[::2])  # none is mirrored
    assert {bool(row.all()) for up in grow[1::2] for row in up} == {False, True}
    center, _ = data.crop_and_flip([numbers, None], 4, train=False)
    assert torch.equal(center, numbers[..., 1:5, 1:5])


def test_the_moving_average_forgets_the_start_and_copies_what_is_counted() -> None:
    task = torch.nn.BatchNorm2d(3)
    average = training.MovingAverage(task, 0.75)
    values, mean = torch.randn(12, 3).double(), torch.zeros(3).double()
    for n, value in enumerate(values):
        with torch.no_grad():
            task.weight.copy_(value)
            task.num_batches_tracked.fill_(7 * n)
        if n == 5:  # as after a kill
            saved, average = average.state_dict(), training.MovingAverage(torch.nn.BatchNorm2d(3), 0.75)
            average.load_state_dict(saved)
        average.update(task)
        # the first is taken as it is; then the older, the less weight it has, down to 1 - decay
        share = 1.0 if n == 0 else max(0.25, 9 / (10 + n))
        mean += share * (value - mean)
    torch.testing.assert_close(average.module.weight.double(), mean, rtol=1e-5, atol=1e-6)
    assert average.module.num_batches_tracked == 77


def test_a_gpu_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    args = argparse.Namespace(out=tmp_path, device=None, threads=None, seed=0)
    run = training.Run(args)
    assert chosen == [run.device] == [torch.device("cuda", 0)]


@pytest.mark.parametrize("name", ["bmshj2018_hyperprior", "torfason2018"])
@pytest.mark.parametrize("decoded", [False, True])
def test_caches_hold_what_codecs_make_of_the_same_squares(tmp_path: Path, name: str, decoded: bool) -> None:
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


def test_one_process_fills_a_cache_and_the_others_wait(tmp_path: Path) -> None:
    only_one, found = data.only_one, list[bool]()

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


def test_split_and_layouts(tmp_path: Path) -> None:
    classes, splits = data.list_classes(data.generate_classes(tmp_path / "classes", classes=2, images=5, side=8))
    assert classes == ["class0", "class1"]
    assert {s: len(p) for s, p in splits.items()} == {"train": 10, "val": 4}
    for split, pairs in splits.items():
        for file, label in pairs:
            assert file.parent.name == classes[label]
            assert (int(hashlib.sha256(file.name.encode()).hexdigest()[:8], 16) % 10 == 0) == (split == "val")
    count, void, pairs = data.list_masks(data.generate_masks(tmp_path / "masks", images=3, size=(20, 30)))
    assert (count, void, len(pairs["train"]), len(pairs["val"])) == (11, 11, 3, 2)
    torch.manual_seed(0)
    image, mask = data.Masks(pairs["train"], crop=48, void=void)[0]
    assert image.shape == (3, 48, 48)
    assert mask.shape == (48, 48)
    assert (mask == void).sum() >= 48 * 48 - 30 * 45  # at most 1.5 times enlarged, and padded
    assert data.thinned(list(range(10)), 5) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("experiment", ["input", "effect", "module", "position", "pooling", "cau_position", "cau",
                                        "bottleneck", "feu"])  # fmt: skip
def test_ablations_train(experiment: str) -> None:
    for setting in list(fa_ablation.ABLATIONS[experiment])[:: 3 if experiment in ("bottleneck", "feu") else 1]:
        torch.manual_seed(0)
        name = f"{experiment}={setting}"
        model = fa_ablation.build_ablation(
            name, num_convs=(1, 1, 1), in_channels=4, num_classes=3, width=0.01, latent_stride=16
        )
        y = torch.randn(2, 4, 6, 6)
        out = model(torch.rand(2, 3, 48, 48)) if setting == "fa_resnet" else model(Latent(y, y.abs(), (96, 96)))
        assert out.shape == (2, 3)
        out.square().sum().backward()
        unused = [n for n, p in model.named_parameters() if p.grad is None]
        assert not unused, (name, unused)


def test_the_papers_own_setting_is_among_the_ablations() -> None:
    build = fa_ablation.build_ablation
    sizes = {"num_convs": (2, 3, 4), "in_channels": 192, "num_classes": 23, "width": 0.125, "latent_stride": 16}
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    paper = count(cdzoo.models.fa_cresnet39(num_convs=(2, 3, 4), in_channels=192, num_classes=23, width=0.125))
    assert count(build("feu=2/3/4", **sizes)) == paper
    assert count(build("bottleneck=r32", **sizes)) < paper < count(build("bottleneck=r8", **sizes))
    assert count(build("pooling=1att", **sizes)) == paper - sum(c + 1 for c in (192, 192, 128, 256))
    with pytest.raises(ValueError, match="pooling=median"):
        build("pooling=median", **sizes)


def test_validation_images_of_mixed_sizes(tmp_path: Path) -> None:
    args = argparse.Namespace(
        data=data.generate_classes(tmp_path / "images", side=64), out=tmp_path, device="cpu", threads=None,
        seed=0, limit=None, smoke=False, pixel_size=48, min_size=40, max_size=64, mixed_sizes=[33, 50], enlarge=1.0,
    )  # fmt: skip
    inputs = wang2022.AnySizeInputs(training.Run(args), None, latents=True)
    sides = [image.shape[-2:] for image, _ in inputs.val]
    assert len(set(sides)) > 1
    assert all(33 <= height == width <= 50 for height, width in sides)
    assert sides == [image.shape[-2:] for image, _ in inputs.val]


def test_codecs_by_the_names_of_their_weights(tmp_path: Path) -> None:
    named = codec_training.named_codec
    for builder in cdzoo.list_codecs(pretrained=True):
        for member in cdzoo.get_model_weights(builder):
            assert named(str(member)).fingerprint == cdzoo.get_codec(builder, weights=member).fingerprint
    assert named("IMAGENETTE_C16_N32").name == named("Torfason2018_Weights.DEFAULT").name == "torfason2018"
    with pytest.raises(SystemExit, match=r"several codecs.*BMSHJ2018_Hyperprior_Weights\..* or MBT2018_Mean_Weights\."):
        named("IMAGENETTE_N48_M64")
    cdzoo.save_pretrained(cdzoo.models.cresnet39(in_channels=4, width=0.05, num_classes=3), tmp_path)
    with pytest.raises(SystemExit, match="holds no codec"):
        named(str(tmp_path))


def test_icats_rival_is_as_wide(tmp_path: Path) -> None:
    args = argparse.Namespace(
        rival="deit_small_patch16_224", width=0.34, crop=64, pretrained=False, weights=None,
        out=tmp_path, device="cpu", threads=None, seed=0,
    )  # fmt: skip
    rival = icat2022.pixel_network(training.Run(args), 10)
    ours = cdzoo.models.icat_small(num_classes=10, width=0.34)
    assert rival.embed_dim == ours.num_features == 128
    assert [b.attn.num_heads for b in rival.blocks] == [b.attn.num_heads for b in ours.blocks]
    for changed, message in (({"rival": "resnet18"}, "pass --width 1"), ({"pretrained": True}, "of --width 1")):
        run = training.Run(argparse.Namespace(**{**vars(args), **changed}))
        with pytest.raises(SystemExit, match=message):
            icat2022.pixel_network(run, 10)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks, from Python 3.12 on
def test_the_strongest_augmentation_is_one_that_pillow_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    view = icat2022._deit_view(32)
    monkeypatch.setattr("random.gauss", lambda mean, deviation: 99.0)
    for seed in range(40):
        random.seed(seed)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - timm's own source of randomness
        assert view(torch.full((3, 48, 48), 0.5)).shape == (3, 32, 32)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 files of two classes: 32x32 pixels, 4:2:0."""
    return two_classes(tmp_path_factory.mktemp("files"), 20, (".jpg", ".JPEG"))


def test_small_files_are_split_by_their_paths_and_read_once(jpegs: Path, tmp_path: Path) -> None:
    classes, splits = data.list_classes(jpegs, suffixes=data.JPEG, by_path=True)
    assert classes == ["color", "gray"]
    assert len(splits["train"]) + len(splits["val"]) == 40
    for split, pairs in splits.items():
        for file, label in pairs:
            assert file.parent.name == classes[label]
            name = f"{file.parent.name}/{file.name}"
            assert (int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10 == 0) == (split == "val")
    first, again = (jpeg_files.load(jpegs, "train", cache=tmp_path / "cache", limit=7) for _ in range(2))
    expected = read_jpeg(first.files)
    for found in (first, again):
        assert len(found) == 7
        assert found.coefficients[2:] == expected[2:]
        assert all(torch.equal(a, b) for a, b in zip(found.coefficients.planes, expected.planes, strict=True))
        assert torch.equal(found.coefficients.qtables, expected.qtables)
    assert len({file.parent for file in first.files}) == 2  # thinned out, not cut off


def test_a_folder_without_images_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no sub-folders with \.jpg, \.jpeg, \.png files"):
        data.list_classes(tmp_path)
    with pytest.raises(SystemExit, match=r"has no \.jpg, \.jpeg, \.png files; give a folder of images"):
        data.images_below(tmp_path)
    (tmp_path / "cats").mkdir()
    number = next(n for n in range(99) if not data.held_out(f"{n}.JPG"))
    (tmp_path / "cats" / f"{number}.JPG").write_bytes(b"")
    with pytest.raises(SystemExit, match="no images for the split val; about every tenth file is held out"):
        data.list_classes(tmp_path)


def test_every_usual_suffix_is_found(tmp_path: Path) -> None:
    names = [f"{n}{suffix}" for n, suffix in enumerate((".jpg", ".jpeg", ".JPEG", ".JPG", ".png", ".txt"))]
    for split in ("train", "val"):
        (tmp_path / split / "cats").mkdir(parents=True)
        for name in names:
            (tmp_path / split / "cats" / name).write_bytes(b"")
    found = data.list_classes(tmp_path)[1]
    assert [file.name for file, _ in found["train"]] == names[:-1]


def test_sides_grow_over_a_training() -> None:
    sides = [training.growing([10, 12, 14], [0.45, 0.3, 0.25], p) for p in (0, 0.44, 0.46, 0.74, 0.76, 1.0)]
    assert sides == [10, 10, 12, 12, 14, 14]
    with pytest.raises(SystemExit, match="one share for each side"):
        training.growing([1, 2], [1.0], 0.5)
    rise = schedules.triangle(0.2)
    assert [rise(p) for p in (0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_growing_crops_keep_the_scale_of_latents(tmp_path: Path) -> None:
    args = argparse.Namespace(
        data=data.generate_classes(tmp_path / "images"), out=tmp_path, device="cpu", threads=None, seed=0, limit=None,
        smoke=False, cache=None, held=False, views=0, size=64, crop=64, crops=[32, 64], crop_shares=[1, 1],
    )  # fmt: skip
    run = training.Run(args)
    codec = cdzoo.codecs.torfason2018(latent_channels=4, N=4).eval()
    inputs = classification.ClassifierInputs(run, codec, "latents", size=16)
    batch = next(iter(data.batches(inputs.train, 2)))
    for progress, side in ((0.1, 8), (0.9, 16)):  # twice the rows of the crop, as of the whole
        run.progress = progress
        y_hat = inputs(batch)[0]
        assert y_hat.shape[-2:] == (side, side)
        assert torch.equal(y_hat[..., ::2, ::2], y_hat[..., 1::2, 1::2])
    run.progress = 0.1
    assert inputs(batch, train=False)[0].shape[-2:] == (16, 16)


def test_augmentations_of_coefficients() -> None:
    c = encode_jpeg(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    x, y = (decode_jpeg(files, clamp=False) for files in (c, ehrlich2019.flip_half(c)))
    torch.testing.assert_close(y, torch.cat([x[:2].flip(-1), x[2:]]), rtol=0, atol=1e-5)
    generator = torch.Generator().manual_seed(1)
    moved = ehrlich2019.shift(x, generator)
    assert moved.shape == x.shape
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    for before, after in zip(padded, moved, strict=True):
        places = [(i, j) for i in range(9) for j in range(9) if torch.equal(before[:, i : i + 32, j : j + 32], after)]
        assert len(places) == 1

    samples = [(encode_jpeg(torch.rand(1, 3, 64, 64, generator=generator)), n) for n in range(3)]
    for seed in range(8):
        torch.manual_seed(seed)
        batch, labels = ehrlich2019.augmented(samples, 32)
        assert batch.image_size == (32, 32)  # a crop, or the whole at half its size
        assert labels.tolist() == [0, 1, 2]
    gray = ehrlich2019.erase(samples[0][0], 1.0)
    assert any((plane == 0).flatten(3).all(-1).any() for plane in gray.planes)
    table = samples[0][0].qtables
    ratio = ehrlich2019.jitter(samples[0][0], 0.3).qtables / table
    assert torch.allclose(ratio, ratio[..., :1, :1].expand_as(ratio))
    assert 0.7 <= ratio[0, 0, 0, 0] <= 1.3
