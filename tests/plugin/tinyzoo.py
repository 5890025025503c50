"""Another package: one codec, one classifier and one head without cdzoo's base class; public names only."""

from __future__ import annotations

from typing import ClassVar, TypedDict, Unpack

from torch import Tensor, nn

import cdzoo
from cdzoo.codecs.choi import ChoiCodec


class TinyCodec(ChoiCodec):
    """A codec under a name of its own."""

    name: ClassVar[str] = "tinycodec"


class TinyNet(cdzoo.LatentClassifier):
    """One convolution, a classifier of latents."""

    def __init__(
        self, *, in_channels: int = 4, num_classes: int = 3, channels: int = 8, latent_stride: int = 16
    ) -> None:
        super().__init__(in_channels=in_channels, latent_stride=latent_stride)
        self.layer1 = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU())
        self.set_stages(("layer1", channels, 1))
        self.set_classifier(channels, num_classes)

    def forward_stem(self, y_hat: Tensor | cdzoo.Latent, scales: Tensor | None = None) -> Tensor:
        return self.check_input(y_hat, scales)[0]

    def forward_features(self, y_hat: Tensor | cdzoo.Latent, scales: Tensor | None = None) -> Tensor:
        return self.run_stages(self.forward_stem(y_hat, scales))


class LinearHead(nn.Module):
    """A head that knows nothing of cdzoo."""

    latent_stride = 16

    def __init__(self, *, in_channels: int = 4, num_classes: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, latent: cdzoo.Latent) -> Tensor:
        logits: Tensor = self.fc(latent.y_hat.mean((2, 3)))
        return logits


class TinyOptions(TypedDict, total=False):
    in_channels: int
    num_classes: int
    channels: int
    latent_stride: int


@cdzoo.register_codec(TinyCodec, latent_channels=4, N=4)
def tinycodec(*, weights=None, **options) -> TinyCodec:
    """A tiny codec."""


@cdzoo.register_model(TinyNet, num_params=323)
def tinynet(*, weights=None, **options: Unpack[TinyOptions]) -> TinyNet:
    """A tiny classifier."""


@cdzoo.register_model(LinearHead)
def linear_head(*, weights=None, **options) -> LinearHead:
    """A linear classifier of averaged latents."""
