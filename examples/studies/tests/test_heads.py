"""The common recipe of all classifiers: equal search, layers taken over, original images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import data
import heads
import pytest
import torch
from classification import ClassifierInputs
from training import BatchOrder

import cdzoo


def train(out: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = heads.main(["classifier", "--smoke", "--out", str(out), *more])
    return found


@pytest.mark.parametrize("model", ["cresnet39+scales", "mobilenet_v2_45", "mobilenet_v2"])
def test_networks_are_trained_alike(tmp_path: Path, model: str) -> None:
    more = ["--rates", "0.001", "0.5", "--enlarge", "2" if model.startswith("cres") else "1", "--centre"]
    found = train(tmp_path, "--model", model, *more)["metrics"]
    best = min(found["search"], key=lambda rate: found["search"][rate])
    assert found["lr"] == float(best)
    assert found["reads"] == ("decoded" if model == "mobilenet_v2" else "latents")
    assert found["bpp"] > 0
    if found["reads"] == "decoded":
        assert (tmp_path / "classifier.pt").exists()
        return
    network = cdzoo.from_pretrained(tmp_path / "classifier")
    assert network.codec_fingerprint == found["fingerprint"]
    assert network.transforms.size == ((6, 6) if model.startswith("cres") else None)  # 48 pixels, stride 16, doubled
    assert len(network.transforms.mean) == 12


def test_original_images_and_few_channels(tmp_path: Path, three_classes: Path) -> None:
    codec = cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12)
    cdzoo.save_pretrained(codec, tmp_path / "codec")
    more = ["--codec", str(tmp_path / "codec"), "--data", str(three_classes), "--rates", "0.001"]
    found = train(tmp_path / "few", "--model", "resnet41", "--channels", "3", "--no-mirror", *more)["metrics"]
    assert len(cdzoo.from_pretrained(tmp_path / "few" / "classifier").select.indices) == 3
    assert found["search"] == {}
    assert found["lr"] == 0.001
    # with a cache, the original images are the squares that codecs are given, whole and in a random view
    cached = ["--data", str(three_classes), "--rates", "0.001", "--cache", str(tmp_path / "cache"), "--views", "1"]
    found = train(tmp_path / "original", "--model", "mobilenet_v2", *cached)["metrics"]
    assert found["reads"] == "decoded"  # by the codec of a smoke run
    args = argparse.Namespace(
        data=three_classes, cache=tmp_path / "cache", views=1, size=64, crop=48, held=False, smoke=False, limit=None,
        workers=0,
    )  # fmt: skip
    run = argparse.Namespace(args=args, device=torch.device("cpu"), out=tmp_path)
    inputs = ClassifierInputs(run, None, "original")
    files = sorted(folder.name for folder in (tmp_path / "cache").glob("*-squares"))
    assert [name.split("-")[0:2] for name in files] == [["train64", "0"], ["train64", "1"], ["val64", "0"]]
    image, label = inputs.val[0]
    assert torch.equal(image, data.whole(64)(data.read(inputs.files["val"][0][0])))
    assert label == inputs.files["val"][0][1]
    (x, _) = inputs(next(iter(data.batches(inputs.val, 2))), train=False)
    assert x.shape == (2, 3, 48, 48)


def test_a_head_starts_from_layers_that_are_frozen_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "pixels", "--model", "resnet50v1.5", "--rates", "0.001")
    start = tmp_path / "pixels" / "classifier"
    before = cdzoo.from_pretrained(start).state_dict()
    more = ["--model", "fa_cresnet39", "--enlarge", "2", "--start", str(start), "--frozen", "0.5", "--epochs", "1"]
    starts: list[int] = []
    order = BatchOrder
    iterate = order.__iter__
    monkeypatch.setattr(order, "__iter__", lambda self: starts.append(self.start) or iterate(self))
    found = train(tmp_path / "latents", *more, "--rates", "0.001", "0.004")["metrics"]
    monkeypatch.undo()
    saved = [torch.load(tmp_path / "latents" / n / "checkpoint.pt", weights_only=True) for n in ("frozen", "training")]
    assert starts == [0, 0, 0, saved[0]["step"]]  # the second stage goes on where the first ended
    assert [len(s["optimizer"]["param_groups"]) for s in saved] == [1, 2]
    rate, rate_of_known = (group["lr"] for group in saved[1]["optimizer"]["param_groups"])
    assert rate_of_known == pytest.approx(rate / 10)
    rows = [json.loads(r) for r in (tmp_path / "latents" / "training" / "history.jsonl").read_text().splitlines()]
    assert rows[0]["lr"] < 0.75 * found["lr"]  # half a cosine is half over
    folders = {name: tmp_path / "latents" / name for name in ("search-0.001", "search-0.004", "frozen", "training")}
    after = {
        name: {
            key.removeprefix("model."): tensor
            for key, tensor in torch.load(folder / "checkpoint.pt", weights_only=True)["task"].items()
        }
        for name, folder in folders.items()
    }
    known = [k for k, tensor in after["training"].items() if k in before and before[k].shape == tensor.shape]
    assert {"layer2.1.conv1.weight", "layer4.0.conv3.weight", "fc.weight", "layer3.1.bn1.running_mean"} <= set(known)
    for name in ("search-0.001", "search-0.004", "frozen"):
        assert all(torch.equal(after[name][k], before[k]) for k in known), name
    moved = [k for k in known if not k.endswith("num_batches_tracked")]
    assert not any(torch.equal(after["training"][k], before[k]) for k in moved)
    parameters = dict(cdzoo.from_pretrained(tmp_path / "latents" / "classifier").named_parameters())
    assert found["taken_over"] == sum(parameters[k].numel() for k in known if k in parameters)
    for refused in (["--frozen", "0.5"], ["--start", str(start), "--frozen", "1.5"]):
        with pytest.raises(SystemExit, match="needs --start, and is at most"):
            train(tmp_path / "none", "--model", "fa_cresnet39", *refused)
    cdzoo.save_pretrained(cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12), tmp_path / "codec")
    with pytest.raises(SystemExit, match="could take over"):
        train(tmp_path / "none", "--model", "fa_cresnet39", "--start", str(tmp_path / "codec"))
