"""The network that ``distill.py`` has trained, built again from its file.

student = load_student("runs/jpeg")
logits = student(read_jpeg("photo.jpg", transform=student.transforms))   # --input jpeg
logits = cdzoo.compose(codec, student).from_streams([stream])            # --input CODEC
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from teachers import build_network, split
from torch import Tensor, nn

import cdzoo
from cdzoo.models.adapters import Adapter, BlockAdapter, LatentAdapter, LatentEntrance, block_coefficients
from cdzoo.transforms import CoefficientTransform


class AnySizeAdapter(nn.Module):
    """Latents of square images of any size to features of one size.

    Args:
        latent_channels: ``C`` of the codec.
        channels: of the features.
        size: rows and columns of the features; even.
        latent_stride: pixels per latent sample.
        hidden: channels in between.
        depth: number of 3x3 convolutions.
    """

    def __init__(
        self, latent_channels: int, channels: int, size: int, *, latent_stride: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        cells = max(8, hidden // 3)
        self.entrance = LatentEntrance(latent_channels, cells, latent_stride=latent_stride, size=size)
        self.adapter = Adapter(4 * cells, channels, hidden=hidden, depth=depth, enlarge=2)

    def forward(self, y_hat: Tensor, scales: Tensor, sides: Tensor) -> Tensor:
        """Latents and scales ``(B, C, h, w)`` of images of ``sides[0, 0]`` pixels to ``(B, channels, size, size)``."""
        side = int(sides[0, 0])
        features: Tensor = self.adapter(self.entrance(y_hat, scales, (side, side)))
        # processes may have images of other sizes, and all need gradients of all parameters
        return features + 0 * sum(parameter.sum() for parameter in self.entrance.parameters())


ADAPTERS = {"blocks": BlockAdapter, "latents": LatentAdapter, "latents of any size": AnySizeAdapter}


class Student(nn.Module):
    """A classifier made of an adapter and the trunk of a pretrained network.

    Args:
        adapter: one of ``ADAPTERS``.
        trunk: the layers of the pretrained network that follow the cut.
        settings: the other entries of ``student.pt``.

    Attributes:
        transforms: for JPEG files, the transform that ``read_jpeg`` and the datasets take; ``None`` for latents.
        meta: ``classes``, the names of the classes, if they are known.
        in_channels, latent_stride, uses_scales, codec_fingerprint: what ``cdzoo.compose`` compares with the codec.
    """

    def __init__(self, adapter: nn.Module, trunk: nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.adapter, self.trunk, self.num_classes = adapter, trunk, settings["num_classes"]
        self.transforms = CoefficientTransform(**settings["transforms"]) if settings["transforms"] else None
        self.meta = {"classes": settings["classes"]} if settings["classes"] else {}
        self.uses_scales, self.codec_fingerprint = False, None
        if self.transforms is None:
            self.uses_scales, self.codec_fingerprint = settings["uses_scales"], settings["codec"]
            self.in_channels, self.latent_stride = settings["latent_channels"], settings["latent_stride"]

    def forward(self, given: cdzoo.JPEGCoefficients | cdzoo.Latent) -> Tensor:
        """Logits ``(B, num_classes)`` of coefficients or latents, as the adapter reads them.

        Raises:
            TypeError: coefficients for an adapter that reads latents, or latents for one that reads coefficients.
        """
        reads = cdzoo.Latent if self.transforms is None else cdzoo.JPEGCoefficients
        if not isinstance(given, reads):
            raise TypeError(
                f"this student reads {reads.__name__}, not {type(given).__name__}; see --input of distill.py"
            )
        if isinstance(given, cdzoo.JPEGCoefficients):
            features = self.adapter(block_coefficients(given))
        elif isinstance(self.adapter, AnySizeAdapter):
            cells = self.adapter.entrance(given.y_hat, given.scales, given.image_size)
            features = self.adapter.adapter(cells)
        else:
            features = self.adapter(given.y_hat, given.scales if self.uses_scales else None)
        logits: Tensor = self.trunk(features)
        return logits


def load_student(folder: str | os.PathLike[str]) -> Student:
    """Build the network of a run of ``distill.py`` again, in evaluation mode; nothing is downloaded.

    Args:
        folder: the run's ``--out``, which has ``student.pt``.
    """
    saved = torch.load(Path(folder) / "student.pt", map_location="cpu", weights_only=True)
    _, trunk = split(build_network(saved["teacher"], saved["num_classes"]), saved["cut"])
    adapter = ADAPTERS[saved["reads"]](**saved["adapter_arguments"])
    trunk.load_state_dict(saved["trunk"])
    adapter.load_state_dict(saved["adapter"])
    return Student(adapter, trunk, saved).eval().requires_grad_(False)
