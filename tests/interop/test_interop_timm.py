"""cdzoo's classifiers as timm's users ask for them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from oracles.fresh_process import FreshProcesses
from test_interop_features import CLASSIFIERS, inputs

import cdzoo
from cdzoo.codecs import read_jpeg
from cdzoo.demo import PHOTO
from cdzoo.interop.timm import register
from cdzoo.transforms import CoefficientTransform

UNPUBLISHED = next(name for name in reversed(CLASSIFIERS) if len(cdzoo.get_model_weights(name)) == 0)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    register()


def test_every_classifier_is_listed_once() -> None:
    expected = sorted(f"cdzoo_{name}" for name in CLASSIFIERS)
    assert sorted(register()) == expected  # again, and without timm's warning of a name taken twice
    assert sorted(timm.list_models("cdzoo_*")) == expected
    assert all(timm.is_model(name) for name in expected)


def test_pretrained_ones_are_listed_with_their_tags() -> None:
    tags = {
        f"cdzoo_{name}.{member.name.lower()}"
        for name in CLASSIFIERS
        if len(cdzoo.get_model_weights(name))
        for member in cdzoo.get_model_weights(name)
    }
    assert "cdzoo_jpeg_resnet18.imagenette_w0375" in tags
    assert set(timm.list_models("cdzoo_*", pretrained=True)) == tags
    assert timm.models.is_model_pretrained("cdzoo_jpeg_resnet18")
    assert not timm.models.is_model_pretrained(f"cdzoo_{UNPUBLISHED}")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_models_are_those_of_cdzoo(name: str) -> None:
    model: Any = timm.create_model(f"cdzoo_{name}", num_classes=5, width=0.0625)
    assert model.origin.builder == name
    assert model.origin.arguments["num_classes"] == model.num_classes == 5
    assert model.pretrained_cfg["architecture" if model.pretrained_cfg.get("hf_hub_id") else "classifier"]


@pytest.mark.parametrize("name", ["cdzoo_jpeg_resnet18", "cdzoo_jpeg_resnet18.imagenette_w0375"])
def test_pretrained_is_the_packaged_network(name: str) -> None:
    model: Any = timm.create_model(name, pretrained=True).eval()
    reference: Any = cdzoo.models.jpeg_resnet18(weights="DEFAULT").eval()
    assert isinstance(model.transforms, CoefficientTransform)
    c = model.transforms(read_jpeg(PHOTO))
    with torch.no_grad():
        logits = model(c)
        assert torch.equal(logits, reference(c))
    assert model.pretrained_cfg["label_names"][int(logits.argmax())] == "church"
    assert model.pretrained_cfg["num_classes"] == 10


def test_another_number_of_classes_gets_a_new_classifier() -> None:
    model: Any = timm.create_model("cdzoo_jpeg_resnet18", pretrained=True, num_classes=3)
    reference: Any = cdzoo.models.jpeg_resnet18(weights="DEFAULT")
    assert model.get_classifier().out_features == 3
    own, theirs = model.state_dict(), reference.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own if not key.startswith("fc."))
    headless: Any = timm.create_model("cdzoo_jpeg_resnet18", pretrained=True, num_classes=0)
    assert isinstance(headless.get_classifier(), torch.nn.Identity)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_features_only(name: str) -> None:
    every: Any = timm.create_model(f"cdzoo_{name}", features_only=True, width=0.0625).eval()
    model = every.model
    x = inputs(model)
    with torch.no_grad():
        maps = every(x)
        assert [found.shape[1] for found in maps] == every.feature_info.channels()
        rows, columns = (224, 224) if name == "latent_efficientnet_lite0" else (96, 64)  # the former resizes
        shapes = [(-(-rows // r), -(-columns // r)) for r in every.feature_info.reduction()]
        assert [tuple(found.shape[2:]) for found in maps] == shapes
        some: Any = timm.create_model(f"cdzoo_{name}", features_only=True, out_indices=(0, 1), width=0.0625).eval()
        some.model.load_state_dict(model.state_dict(), strict=False)
        assert len(some.feature_info.channels()) == 2
        assert sum(p.numel() for p in some.parameters()) < sum(p.numel() for p in every.parameters())
        for ours, theirs in zip(some(x), maps, strict=False):
            assert torch.equal(ours, theirs)


def test_features_of_pretrained_networks() -> None:
    backbone: Any = timm.create_model(
        "cdzoo_jpeg_resnet18", pretrained=True, features_only=True, out_indices=(1, 2, 3, 4)
    )
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    reference: Any = cdzoo.models.jpeg_resnet18(weights="DEFAULT")
    assert torch.equal(backbone.model.layer4[1].conv2.weight, reference.layer4[1].conv2.weight)


def test_in_chans_and_unknown_arguments() -> None:
    assert timm.create_model("cdzoo_cresnet72", in_chans=7, width=0.0625).in_channels == 7
    with pytest.raises(TypeError, match="drop_rate"):
        timm.create_model("cdzoo_cresnet72", drop_rate=0.1)
    with pytest.raises(TypeError, match="out_indices"):
        timm.create_model("cdzoo_cresnet72", out_indices=(1,))


def test_weights_that_do_not_exist_are_not_replaced_by_random_ones() -> None:
    with pytest.raises(ValueError, match=f"no weights of {UNPUBLISHED} are published"):
        timm.create_model(f"cdzoo_{UNPUBLISHED}", pretrained=True)
    with pytest.raises(RuntimeError, match="no_such_tag"):
        timm.create_model("cdzoo_jpeg_resnet18.no_such_tag", pretrained=True)
    with pytest.raises(ValueError, match="load_state_dict"):
        timm.create_model("cdzoo_jpeg_resnet18", pretrained=True, pretrained_cfg_overlay={"file": "other.pth"})


def test_timm_is_not_imported_by_cdzoo(fresh: FreshProcesses) -> None:
    code = "import sys, cdzoo, cdzoo.models, cdzoo.interop; sys.exit('timm' in sys.modules)"
    assert fresh(code).returncode == 0
