"""Preprocessing of pretrained networks: against the transforms of torchvision and timm themselves."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from cdzoo.jpeg.files import read_jpeg
from cdzoo.jpeg.nn.convert import to_jpeg_domain
from cdzoo.transforms import CoefficientTransform


def photograph(height: int, width: int) -> tuple[bytes, Image.Image]:
    generator = np.random.default_rng(height)
    small = generator.integers(60, 195, (height // 12, width // 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue(), Image.open(file).convert("RGB")


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


HALF, NONE = (0.5, 0.4, 0.3), {"mean": (0,) * 3, "std": (1,) * 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "bicubic": {"input_size": (3, 96, 96), "crop_pct": 0.875, "interpolation": "bicubic", "mean": HALF, "std": HALF},
    "bilinear": {"input_size": (3, 100, 100), "crop_pct": 0.95, "interpolation": "bilinear", **NONE},
    "squash": {"input_size": (3, 64, 96), "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "squash", **NONE},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_network_sees_what_timms_transform_gives(kind: str) -> None:
    config = CONFIGS[kind]
    transform = create_transform(**resolve_data_config(config), is_training=False)
    model = to_jpeg_domain(nn.Identity(), transforms=config)
    for size in ((150, 201), (333, 120), (128, 128)):
        data, image = photograph(*size)
        found = model(read_jpeg(data, transform=model.transforms))[0]
        expected = transform(image)
        assert found.shape == expected.shape
        levels = (found - expected) * 255 * torch.tensor(config["std"]).view(3, 1, 1)
        assert levels.abs().max() < 4.5  # timm resizes rounded pixels, and rounds again
        assert levels.abs().mean() < 0.7


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_network_sees_what_torchvisions_preset_gives(interpolation: str) -> None:
    preset = torchvision.transforms._presets.ImageClassification(
        crop_size=60, resize_size=75, interpolation=torchvision.transforms.InterpolationMode(interpolation)
    )
    model = to_jpeg_domain(nn.Identity(), transforms=preset)
    data, image = photograph(150, 201)
    levels = (model(read_jpeg(data, transform=model.transforms))[0] - preset(image)) * 255 * 0.225
    assert levels.abs().max() < 4.5
    assert levels.abs().mean() < 0.7


def test_timm_models_bring_their_own() -> None:
    network = timm.create_model("tf_efficientnet_lite0", num_classes=3)
    model = to_jpeg_domain(network)
    assert model.transforms == CoefficientTransform(resize=256, crop=224, interpolation="bicubic")
    assert model.entrance.mean == model.entrance.std == (0.5, 0.5, 0.5)
    explicit = to_jpeg_domain(network, mean=0.25, transforms=resolve_data_config(model=network))
    assert explicit.entrance.mean == (0.25,) * 3
    assert explicit.transforms == model.transforms
    chosen = CoefficientTransform(resize=128, crop=96)
    assert to_jpeg_domain(tiny(), transforms=chosen, mean=0, std=1).transforms is chosen


def test_unknown_preprocessing() -> None:
    with pytest.raises(ValueError, match=r"mean is not known.*give mean and std"):
        to_jpeg_domain(tiny())
    with pytest.raises(ValueError, match="std is not known"):
        to_jpeg_domain(tiny(), mean=0.5)
    with pytest.raises(ValueError, match="mean is not known"):
        to_jpeg_domain(tiny(), transforms=CoefficientTransform(resize=32, crop=32))
    with pytest.raises(TypeError, match=r"weights\.transforms\(\)"):
        to_jpeg_domain(tiny(), transforms=nn.ReLU())
    base = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ValueError, match="crop_mode='border'"):
        to_jpeg_domain(tiny(), transforms={**base, "crop_mode": "border"})
    with pytest.raises(ValueError, match="interpolation='nearest'"):
        to_jpeg_domain(tiny(), transforms={**base, "interpolation": "nearest"})


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_a_fixed_input_size(kind: str) -> None:
    network: nn.Module
    if kind == "timm":
        network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=1)
        model = to_jpeg_domain(network, transforms=CoefficientTransform(resize=40, crop=32), mean=0.5, std=0.5)
    else:
        network = torchvision.models.VisionTransformer(32, 16, 1, 1, 16, 32, num_classes=3)
        model = to_jpeg_domain(network, transforms=CoefficientTransform(resize=40, crop=32), mean=0.5, std=0.5)
    data, _ = photograph(120, 90)
    assert model.eval()(read_jpeg(data, transform=model.transforms)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"images of 120x90 px: this network takes 32x32 px only.*transforms"):
        model(read_jpeg(data))
