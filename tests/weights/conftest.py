"""A small codec and a small network over its latents, with random values."""

from __future__ import annotations

import pytest
import torch
from oracles.small_modules import small
from torch import nn

import cdzoo
from cdzoo.codecs import Codec


@pytest.fixture(scope="module")
def codec() -> Codec:
    """A codec of 12 latent channels."""
    return small("bmshj2018_hyperprior")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network that reads 12 latent channels."""
    torch.manual_seed(1)
    return cdzoo.get_model("cresnet39", width=0.0625, num_classes=3, in_channels=12, latent_stride=16).eval()
