"""Mixed precision: networks run in bfloat16, codecs stay exact to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.small_modules import small
from test_interop_features import CLASSIFIERS, inputs

import cdzoo
from cdzoo.codecs import Codec, read_jpeg
from cdzoo.demo import PHOTO


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_run_in_bfloat16_and_train(name: str) -> None:
    model: Any = small(name).eval()
    x = inputs(model)
    with torch.no_grad():
        exact = model.forward_head(model.forward_features(x))
        with autocast():
            found = model.forward_head(model.forward_features(x))
    assert found.dtype == torch.bfloat16
    assert not torch.equal(found.float(), exact)
    # 8 bits of mantissa, rounded after every layer: the more of them, the more is lost
    assert (found - exact).norm() < 0.1 * exact.norm()
    model.train()
    with autocast():
        loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1]))
    loss.backward()
    assert loss.dtype == torch.float32
    # not that all are finite: on some CPUs a few of PyTorch's own convolutions of tiny maps in bfloat16 give NaN here
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    assert 0 < model.get_classifier().weight.grad.abs().sum() < float("inf")


def test_the_packaged_networks_see_the_same() -> None:
    model = cdzoo.models.jpeg_resnet18(weights="DEFAULT").eval()
    c = model.transforms(read_jpeg(PHOTO))
    with torch.no_grad():
        exact = model(c).softmax(1)
        with autocast():
            found = model(c).float().softmax(1)
    assert (found - exact).abs().max() < 0.02
    assert found.argmax() == exact.argmax()


@pytest.mark.parametrize("name", [*cdzoo.list_codecs(), "icat_small"])
def test_codecs_are_not_touched(
    name: str, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    codec: Any = small(name).eval() if name == "icat_small" else make_codec(name)
    x = make_images(2, 40, 56)
    latent, streams = codec.encode(x), codec.compress(x)
    with autocast():
        inside = codec.encode(x)
        assert codec.compress(x) == streams
        decoded = codec.decompress(streams)
        pixels = codec.decode(latent)
    for other in (inside, decoded):
        assert other.y_hat.dtype == torch.float32
        assert torch.equal(other.y_hat, latent.y_hat)
        assert (other.scales is None) == (latent.scales is None)
        if latent.scales is not None:
            assert torch.equal(other.scales, latent.scales)
    assert torch.equal(pixels, codec.decode(latent))
