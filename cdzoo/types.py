"""The values that travel between codecs and networks, and the record of how a module was built.

``Latent``, ``CodecOutput`` and ``JPEGCoefficients`` are NamedTuples: they unpack, they pass through ``torch.export``,
``torch.compile`` and ``torch.save`` (to be read with ``weights_only=True``), and their fields have names. None of them
holds pixels, except ``CodecOutput.x_hat``, which exists for training a codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdzoo import _limits
from cdzoo._torch import register_serializable

__all__ = ["MAX_IMAGE_PIXELS", "CodecOutput", "JPEGCoefficients", "Latent", "Origin"]

MAX_IMAGE_PIXELS = _limits.MAX_IMAGE_PIXELS
"""Images with more pixels are refused unless ``max_pixels`` says otherwise. Pillow raises an error at the same size."""


class Latent(NamedTuple):
    """The quantized latent of a batch of images of one size: the output of a learned codec, the input of networks.

    Attributes:
        y_hat: quantized latent values, ``(B, M, h, w)`` float32, ``h = ceil(H / stride)``, ``w = ceil(W / stride)``.
        scales: standard deviations ``(B, M, h, w)`` float32 as the hyperprior's decoder puts them out, without a
            lower bound; ``None`` for codecs without a hyperprior.
        image_size: ``(H, W)`` of the images in pixels, before any padding.
    """

    y_hat: Tensor
    scales: Tensor | None
    image_size: tuple[int, int]

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Latent:
        """The same latent with its tensors on ``device``; dtypes stay as they are."""
        scales = None if self.scales is None else self.scales.to(device, non_blocking=non_blocking)
        return self._replace(y_hat=self.y_hat.to(device, non_blocking=non_blocking), scales=scales)

    def pin_memory(self) -> Latent:
        """The same latent in page-locked memory, for asynchronous copies to a GPU (``DataLoader`` calls this)."""
        scales = None if self.scales is None else self.scales.pin_memory()
        return self._replace(y_hat=self.y_hat.pin_memory(), scales=scales)


class CodecOutput(NamedTuple):
    """The output of ``codec(x)``, for training; differentiable in training mode.

    Attributes:
        x_hat: reconstruction ``(B, 3, H, W)``, RGB, nominally in ``[0, 1]`` (not clamped, so that gradients survive).
        latent: the latent, with additive uniform noise in place of rounding in training mode.
        likelihoods: probability of each symbol, ``{"y": (B, M, h, w), "z": ...}``; ``{}`` without an entropy model.
    """

    x_hat: Tensor
    latent: Latent
    likelihoods: dict[str, Tensor]


class JPEGCoefficients(NamedTuple):
    """A batch of JPEG files of one geometry after entropy decoding only.

    Attributes:
        planes: ``K`` int16 tensors ``(B, Hb, Wb, 8, 8)``, one per component: quantized DCT coefficients in natural
            (row-major) order, ``Hb, Wb = ceil(component size / 8)``, without the padding of incomplete MCUs. Results
            that no file can hold, such as those of :func:`cdzoo.data.downscale`, have floating-point planes and tables
            of ones.
        qtables: quantization tables ``(B, K, 8, 8)`` int32, natural order.
        sampling: ``K`` pairs of (vertical, horizontal) sampling factors.
        image_size: ``(H, W)`` in pixels.
        color_space: ``"gray"``, ``"ycbcr"``, ``"rgb"``, ``"cmyk"`` or ``"ycck"``.
    """

    planes: tuple[Tensor, ...]
    qtables: Tensor
    sampling: tuple[tuple[int, int], ...]
    image_size: tuple[int, int]
    color_space: str

    def __repr__(self) -> str:
        """Shapes and facts, without values."""
        planes = ", ".join(f"{tuple(plane.shape)} {plane.dtype}" for plane in self.planes)
        return (
            f"JPEGCoefficients(planes: {planes}, sampling={self.sampling}, image_size={self.image_size}, "
            f"color_space={self.color_space!r})"
        )

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> JPEGCoefficients:
        """The same coefficients on ``device``; dtypes stay as they are, int16 for what was read from files."""
        return self._replace(
            planes=tuple(plane.to(device, non_blocking=non_blocking) for plane in self.planes),
            qtables=self.qtables.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> JPEGCoefficients:
        """The same coefficients in page-locked memory (``DataLoader`` calls this)."""
        return self._replace(
            planes=tuple(plane.pin_memory() for plane in self.planes), qtables=self.qtables.pin_memory()
        )


register_serializable(Latent, CodecOutput, JPEGCoefficients)


@dataclass(frozen=True)
class Origin:
    """The origin of a module: how it was built and where its weights are from; ``module.origin`` of all built modules.

    Attributes:
        builder: the registered name.
        arguments: arguments of the class, JSON-ready.
        weights: the name of the weights (``"Enum.MEMBER"``, ``"hf://owner/name"``, a folder); ``None`` for random
            values.
        repo_id: the weights' repository on the Hub, if they are published.
        revision: its revision.
        fingerprint: of a codec, the fingerprint that its weights record.
        codec: of a network, the codec that its weights were trained with: ``fingerprint``, ``weights``, ``repo_id`` and
            ``revision``.
        meta: the facts that the weights' model card states.
        digest: SHA-256 of the values that were loaded.
    """

    builder: str
    arguments: Mapping[str, Any]
    weights: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    codec: Mapping[str, Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None

    def with_arguments(self, **changes: Any) -> Origin:
        """The origin of a module that was changed so that these arguments would build it."""
        return replace(self, arguments={**self.arguments, **changes})
