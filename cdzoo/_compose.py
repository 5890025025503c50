"""Codec and network as one module: images, latents or bits in, logits out; no pixel is rebuilt on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cdzoo._checks import check_is_latent
from cdzoo._torch import inner_module, reference_tensor
from cdzoo.coding.base import Codec
from cdzoo.coding.streams import Stream
from cdzoo.errors import PairingError
from cdzoo.transforms import LatentTransform
from cdzoo.types import MAX_IMAGE_PIXELS, Latent

__all__ = ["CompressedDomainModel", "compose"]


class CompressedDomainModel(nn.Module):
    """A frozen codec and a network over its latents; made by :func:`compose`.

    The codec takes no part in training: its parameters are not registered with this module, so that optimizers,
    ``train()`` and ``state_dict()`` see the network alone.

    Attributes:
        model: the network.
        transforms: what is done to a latent before the network reads it.
    """

    def __init__(self, codec: Codec, model: nn.Module, transforms: Callable[[Latent], Latent]) -> None:
        super().__init__()
        self.model = model
        self.transforms = transforms
        self._codec = [codec]  # a list hides the module from registration

    @property
    def codec(self) -> Codec:
        """The frozen codec."""
        return self._codec[0]

    def _apply(self, fn: Any, recurse: bool = True) -> CompressedDomainModel:
        # The codec moves along to another device, but keeps its dtype: rounded, its latents would be other ones.
        self.codec.to(device=fn(torch.empty(0, device=self.codec.device)).device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in ``[0, 1]`` to logits, through the codec's latents."""
        return self.from_latent(self.codec.encode(x))

    def from_latent(self, latent: Latent) -> Tensor:
        """Latents, as the codec returned them, to logits.

        Args:
            latent: latents of one size, before the transform; on any device and in any dtype.

        Returns:
            logits ``(B, num_classes)``, or ``(B, num_classes, H, W)`` of a segmenter.

        Raises:
            TypeError: not a :class:`~cdzoo.types.Latent`.
            ValueError: a latent that the transform or the network refuses, such as one of another number of channels.
        """
        check_is_latent("from_latent", latent)
        parameter = reference_tensor(self.model)
        like = latent.y_hat if parameter is None else parameter
        latent = self.transforms(latent.to(like.device))
        scales = None if latent.scales is None else latent.scales.to(like.dtype)
        logits: Tensor = self.model(Latent(latent.y_hat.to(like.dtype), scales, latent.image_size))
        return logits

    def from_streams(
        self, streams: Sequence[bytes], *, max_pixels: int | None = MAX_IMAGE_PIXELS, num_threads: int | None = None
    ) -> Tensor:
        """Bits to logits; neither the synthesis transform nor a pixel tensor is touched.

        Args:
            streams: ``.cdz`` streams; images of unequal sizes are decoded size by size, and their logits come back in
                the order of the streams.
            max_pixels, num_threads: as in ``Codec.decompress``.

        Returns:
            logits ``(B, num_classes)``; dense outputs need images of one size.

        Raises:
            BitstreamError, PairingError, TypeError, ValueError: as ``Codec.decompress``.
        """
        opened = self.codec.open_streams(streams, max_pixels=max_pixels)
        groups: dict[tuple[int, int], list[Stream]] = {}
        for stream in opened:
            groups.setdefault(stream.header.image_size, []).append(stream)
        outputs = [
            self.from_latent(self.codec.decode_streams(group, total=len(opened), num_threads=num_threads))
            for group in groups.values()
        ]
        if len({tuple(o.shape[1:]) for o in outputs}) > 1:
            raise ValueError(
                f"dense outputs of unequal sizes {sorted({tuple(o.shape[1:]) for o in outputs})} make no batch; "
                "pass the images of one size at a time"
            )
        order = torch.tensor([s.position for group in groups.values() for s in group], device=outputs[0].device)
        return torch.cat(outputs)[torch.argsort(order)]


def compose(codec: nn.Module, model: nn.Module) -> CompressedDomainModel:
    """Put a codec and a network over its latents together.

    Args:
        codec: any of ``cdzoo.codecs``; stays frozen.
        model: any network of ``cdzoo.models`` that reads latents.

    Returns:
        a module with ``(x)``, ``.from_latent(latent)`` and ``.from_streams(streams)``, each giving logits. The
        transform that the network's weights came with is applied to every latent.

    Raises:
        PairingError: channels, stride or scales do not fit, or the network's weights were trained on the latents of
            another codec; the message names both fingerprints.
        TypeError: not a codec, or a network that does not read latents.
    """
    given = codec
    while not isinstance(codec, Codec):
        if (inside := inner_module(codec)) is None:
            raise TypeError(f"compose takes a codec first, not {type(given).__name__}; cdzoo.list_codecs() names them")
        codec = inside
    inner: Any = model
    while not hasattr(inner, "in_channels") and (wrapped := inner_module(inner)) is not None:
        inner = wrapped
    in_channels, stride = getattr(inner, "in_channels", None), getattr(inner, "latent_stride", None)
    if in_channels is None or stride is None:
        raise TypeError(
            f"{type(inner).__name__} does not read latents; pixel networks take codec.decode(latent), and "
            "cdzoo.list_models() names the networks that need no pixels"
        )
    trained_on = getattr(inner, "codec_fingerprint", None)
    weights = f" (its weights belong to fingerprint {trained_on})" if trained_on else ""
    for what, need, have in (
        ("latent channels", in_channels, codec.latent_channels),
        ("pixels per latent sample", stride, codec.stride),
    ):
        if need != have:
            option = "in_channels" if what == "latent channels" else "latent_stride"
            way_out = "weights.build_codec() makes the right one" if trained_on else f"build it with {option}={have}"
            raise PairingError(
                f"{_name(inner)}{weights} was built for {need} {what}, but {codec.name} (fingerprint "
                f"{codec.fingerprint}) has {have}; {way_out}, or use another codec"
            )
    if getattr(inner, "uses_scales", False) and not codec.has_scales:
        raise PairingError(
            f"{_name(inner)}{weights} reads the hyperprior's scales, but {codec.name} (fingerprint "
            f"{codec.fingerprint}) has no hyperprior; use a network without scales, or a codec with them"
        )
    if trained_on is not None and trained_on != codec.fingerprint:
        raise PairingError(
            f"the weights of {_name(inner)} were trained on latents of the codec with fingerprint {trained_on}, but "
            f"this {codec.name} has fingerprint {codec.fingerprint}; weights.build_codec() makes the right one"
        )
    transforms = getattr(inner, "transforms", None)
    if transforms is not None and not callable(transforms):
        raise TypeError(
            f"{_name(inner)}.transforms is {transforms!r}; it must turn a Latent into a Latent, as "
            "cdzoo.transforms.LatentTransform does, or be None"
        )
    return CompressedDomainModel(codec, model, LatentTransform() if transforms is None else transforms)


def _name(model: nn.Module) -> str:
    origin = getattr(model, "origin", None)
    return type(model).__name__ if origin is None else str(origin.builder)
