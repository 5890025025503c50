"""Saving of converted networks of timm and torchvision: architecture, weights and preprocessing come back, offline."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from oracles.jpeg_files import encode, picture
from oracles.slow import all_but_one
from torch import nn

import cdzoo
from cdzoo.codecs import read_jpeg
from cdzoo.errors import WeightsError
from cdzoo.ops import to_jpeg_domain
from cdzoo.transforms import CoefficientTransform

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SMALL = CoefficientTransform(resize=72, crop=64)


def timm_network(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, num_classes=3, **options)


def torchvision_network(name: str, num_classes: int = 3) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes)


def torchvision_head() -> nn.Module:
    """Fine-tuned as torchvision's tutorial does it."""
    network = torchvision.models.resnet18()
    network.fc = nn.Linear(512, 5)
    return network


CONVERTED: dict[str, Callable[[], Any]] = {
    "timm": lambda: to_jpeg_domain(timm_network("resnet10t")),
    "timm's own preprocessing": lambda: to_jpeg_domain(timm_network("tf_efficientnet_lite0")),
    "gray": lambda: to_jpeg_domain(timm_network("resnet10t", in_chans=1), mean=0.4, std=0.2, transforms=SMALL),
    "torchvision": lambda: to_jpeg_domain(
        torchvision_network("squeezenet1_1"), transforms=torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    ),
    "torchvision, one of many in its file": lambda: to_jpeg_domain(torchvision_network("resnet34"), **IMAGENET),
    "a new head": lambda: to_jpeg_domain(torchvision_head(), **IMAGENET, transforms=SMALL),
    "factored": lambda: to_jpeg_domain(
        torchvision_network("resnet18"), mode="factored", relu="asm", num_frequencies=9, chroma="nearest", mean=0, std=1
    ),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", forbidden)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", forbidden)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", forbidden)


@pytest.mark.parametrize("kind", all_but_one(CONVERTED, "torchvision"))
def test_round_trips(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CONVERTED[kind]()
    for buffer in model.model.buffers():  # running statistics other than the initial ones
        if buffer.is_floating_point():
            buffer.data += 0.1
    model.eval()
    cdzoo.save_pretrained(model, tmp_path / "first", meta={"classes": ["a", "b", "c"]})
    loaded = cdzoo.from_pretrained(tmp_path / "first")
    assert loaded.transforms == model.transforms
    assert loaded.entrance.options == model.entrance.options
    assert loaded.folded == model.folded
    assert loaded.meta == {"classes": ["a", "b", "c"]}
    assert not loaded.training
    coefficients = read_jpeg(encode(picture(96, 80, "RGB")), transform=model.transforms or SMALL)
    with torch.no_grad():
        assert torch.equal(loaded(coefficients), model(coefficients))
    cdzoo.save_pretrained(loaded, tmp_path / "again")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "again")]
    assert configs[0] == configs[1]


def test_the_name_is_found_without_being_listed() -> None:
    assert "jpeg_domain" not in cdzoo.list_models()
    model: Any = cdzoo.get_model("jpeg_domain", library="timm", architecture="resnet10t", num_classes=4)
    assert model.model.fc.out_features == 4
    assert model.origin.arguments == {"library": "timm", "architecture": "resnet10t", "num_classes": 4}


def other_activation() -> nn.Module:
    network = torchvision_network("resnet18")
    network.relu = nn.SiLU()
    return network


def images_transformed() -> nn.Module:
    network = torchvision.models.googlenet(init_weights=False, num_classes=3)
    network.transform_input = True
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_activation, r"has '\(relu\): SiLU\(\)' where .* has '\(relu\): ReLU\(inplace=True\)'"),
        (images_transformed, "_FoldedConv2d"),  # the convolution does not read the image itself
        (lambda: timm_network("resnet10t", act_layer="gelu"), "GELU"),
        (lambda: timm_network("resnet10t", global_pool="max"), "max"),
    ],
)
def test_a_network_that_would_come_back_as_another_is_refused(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        cdzoo.save_pretrained(to_jpeg_domain(make(), **IMAGENET), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_that_nobody_can_build_is_refused(tmp_path: Path) -> None:
    model = to_jpeg_domain(nn.Sequential(nn.Conv2d(3, 4, 3)), **IMAGENET)
    assert model.origin is None
    with pytest.raises(TypeError, match="so it cannot be built again"):
        cdzoo.save_pretrained(model, tmp_path)
    replaced = torchvision_network("resnet18")
    replaced.layer4 = nn.Identity()
    with pytest.raises(TypeError, match="so it cannot be built again"):
        cdzoo.save_pretrained(to_jpeg_domain(replaced, **IMAGENET), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "hf-hub:somebody/something"}, "timm has no architecture 'hf-hub:somebody/something'"),
        ({"architecture": "local-dir:/tmp"}, "timm has no architecture"),
        ({"library": "os"}, "library='os': networks are built by 'timm' or 'torchvision'"),
        ({"library": "torchvision"}, "torchvision has no architecture 'resnet10t'"),
        ({"checkpoint_path": "weights.pth"}, "unexpected argument 'checkpoint_path'"),
        ({"architecture": "resnet18"}, "tensors do not fit"),
    ],
)
def test_a_configuration_cannot_make_anything_else_happen(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    cdzoo.save_pretrained(to_jpeg_domain(timm_network("resnet10t")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        cdzoo.from_pretrained(tmp_path)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cdzoo.save_pretrained(to_jpeg_domain(timm_network("resnet10t")), tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match="resnet10t is a network of timm, which is not installed; pip install timm"):
        cdzoo.from_pretrained(tmp_path)


def test_classify_takes_the_folder(tmp_path: Path) -> None:
    model = to_jpeg_domain(timm_network("resnet10t"), transforms=SMALL, **IMAGENET).eval()
    cdzoo.save_pretrained(model, tmp_path / "weights", meta={"classes": ["a", "b", "c"]})
    (tmp_path / "photo.jpg").write_bytes(encode(picture(96, 80, "RGB")))
    (result,) = cdzoo.classify(tmp_path / "photo.jpg", weights=str(tmp_path / "weights"), top=3)
    assert result.error is None
    with torch.no_grad():
        best = model(read_jpeg(tmp_path / "photo.jpg", transform=SMALL))[0].softmax(0).sort(descending=True)
    assert [label.name for label in result.classes] == ["abc"[i] for i in best.indices]
    assert [label.probability for label in result.classes] == pytest.approx(best.values.tolist(), rel=1e-4)
