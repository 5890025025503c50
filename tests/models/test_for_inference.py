"""Copies for inference: the network's own logits, without batch norms; the network stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import cdzoo
from cdzoo.jpeg.pixels import encode_jpeg
from cdzoo.models import jpeg_efficientnet_lite0, latent_efficientnet_lite0, resnet41
from cdzoo.types import Latent


def with_statistics(network: Any, x: Any) -> Any:
    """Batch norms that are no identities, with the statistics of an input: then the output depends on it."""
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.bias.data.normal_(0, 0.1, generator=generator)
            layer.weight.data.uniform_(0.7, 1.4, generator=generator)
    with torch.no_grad():
        network(x)
    return network


@pytest.mark.parametrize("kind", ["dct", "pixels", "latent"])
def test_batch_norms_are_folded_into_the_convolutions(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "latent":
        network: Any = latent_efficientnet_lite0(in_channels=6, num_classes=7)
        y_hat = torch.randn(2, 6, 14, 17)
        x: Any = Latent(y_hat, y_hat.abs() + 0.2, (224, 270))
    else:
        network = jpeg_efficientnet_lite0(stem=kind, num_classes=7)
        x = encode_jpeg(torch.rand(2, 3, 96, 64), quality=90)
    with_statistics(network, x)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fast = network.for_inference()
    assert not fast.training
    assert not [name for name, layer in fast.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        expected = network.eval()(x)
        torch.testing.assert_close(fast(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        assert network.for_inference(inplace=True) is network
        torch.testing.assert_close(network(x), fast(x), rtol=0, atol=0)
    assert expected.std(0).min() > 1e-3  # the logits depend on the input


def test_other_networks_give_a_copy_in_evaluation_mode() -> None:
    network = resnet41(in_channels=4, width=0.125, num_classes=3)
    copy = network.for_inference()
    assert network.training
    assert not copy.training
    assert copy is not network
    assert isinstance(copy, cdzoo.LatentClassifier)
