"""Another package: two codecs, one classifier and one head without cdzoo's base class; public names only."""

from __future__ import annotations

from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn

import cdzoo
from cdzoo.codecs import CodingState, SymbolCoder, SymbolTables, TransformCodec


class TinyCodec(TransformCodec):
    """One convolution there and one back."""

    name: ClassVar[str] = "tinycodec"
    stride: ClassVar[int] = 16

    def __init__(
        self, *, latent_channels: int = 4, step: float = 0.05, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(
            nn.Conv2d(3, latent_channels, 16, stride=16),
            nn.ConvTranspose2d(latent_channels, 3, 16, stride=16),
            stride=self.stride,
            latent_channels=latent_channels,
            step=step,
            channels=channels,
        )


class OneTable(CodingState):
    """One table for all symbols."""

    def __init__(self, tables: SymbolTables) -> None:
        self.tables = tables

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array) for name, array in self.tables.state().items()}


class BlockMeans(cdzoo.Codec[OneTable]):
    """Means of blocks; a codec without parameters or buffers."""

    name = "block_means"
    stride, latent_channels = 8, 3

    def __init__(self, *, steps: int = 64) -> None:
        super().__init__()
        self.steps = steps

    def analyze(self, x: Tensor) -> Tensor:
        return (self.steps - 1) * nn.functional.avg_pool2d(x, 8)

    def synthesize(self, y_hat: Tensor) -> Tensor:
        return nn.functional.interpolate(y_hat / (self.steps - 1), scale_factor=8)

    def estimate(self, y: Tensor) -> tuple[Tensor, None, dict[str, Tensor]]:
        return y + (y.round() - y).detach(), None, {"y": torch.full_like(y, 1 / self.steps)}

    def derive_state(self) -> OneTable:
        ends = torch.linspace(0, 65535, self.steps + 1).round().int()
        cdf = torch.cat([ends, torch.tensor([65536])]).numpy()
        return OneTable(SymbolTables.from_rows([cdf], [0]))

    def restore_state(self, tensors: dict[str, Tensor]) -> OneTable:
        return OneTable(SymbolTables.from_state(tensors))

    def code(
        self, coder: SymbolCoder, y: Tensor | None, shape: tuple[int, int, int], state: OneTable
    ) -> tuple[Tensor, None]:
        batch, height, width = shape
        indexes = torch.zeros(3, height, width, dtype=torch.uint8)
        return coder(y, (batch, 3, height, width), indexes, state.tables).float(), None

    def configuration(self) -> dict[str, int]:
        return {"steps": self.steps}


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


@cdzoo.register_codec(TinyCodec, num_params=6_151)
def tinycodec(*, weights=None, **options) -> TinyCodec:
    """A tiny codec."""


@cdzoo.register_codec(BlockMeans, num_params=0)
def block_means(*, weights=None, **options) -> BlockMeans:
    """A codec that learns nothing."""


@cdzoo.register_model(TinyNet, num_params=323)
def tinynet(*, weights=None, **options: Unpack[TinyOptions]) -> TinyNet:
    """A tiny classifier."""


@cdzoo.register_model(LinearHead)
def linear_head(*, weights=None, **options) -> LinearHead:
    """A linear classifier of averaged latents."""
