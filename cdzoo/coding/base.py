"""What every learned codec can do, and the little that each one says of itself."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdzoo._checks import check_images, check_latent, check_range, thread_count
from cdzoo._torch import untraced
from cdzoo.coding._coding_mode import inference_layers, without_autocast
from cdzoo.coding._stamp import position_sum
from cdzoo.coding.container import StreamHeader, pack, unpack
from cdzoo.coding.symbols import Channel, Quantiser, Reader, Writer
from cdzoo.errors import BitstreamError, PairingError
from cdzoo.types import MAX_IMAGE_PIXELS, CodecOutput, Latent, Origin

__all__ = ["Codec", "CodingState"]

_Opened = tuple[StreamHeader, tuple[memoryview, ...]]


class CodingState:
    """Integers that give a codec's bits their meaning: probability tables and the fixed-point hyper-decoder.

    A codec derives them from its parameters and keeps them until a parameter changes; saved weights carry them, so
    that another machine does not derive its own. Subclasses define what they hold.
    """

    def state(self) -> dict[str, Tensor]:
        """Everything, as named integer tensors (scale boundaries are float32)."""
        raise NotImplementedError("a codec's coding state names its own tensors")


@dataclass
class _Derived:
    """What was computed from the parameters, and how to recognise that they are still the same."""

    stamp: tuple[object, ...]
    contents: set[str]
    coding: CodingState
    fingerprint: str


class Codec(nn.Module, ABC):
    """Base of the learned codecs: images to latents, latents to bits, and back as far as the latent.

    A subclass provides the transforms (``_analysis``, ``_synthesis``), the training forward pass, its coding state,
    and one description of its coded parts (``_code``) that serves quantising, writing and reading alike.

    Attributes:
        name: the builder's name, which also stands in the streams.
        latent_channels: ``M``.
        stride: pixels per latent sample, in each direction.
        has_scales: whether latents come with the hyperprior's scales.
        origin: how a builder made the module, see :class:`cdzoo.types.Origin`; ``None`` without a builder.
        meta: the facts of the model card that the weights came with; ``{}`` without weights.
        pipeline_tag: the task, in the words of the Hugging Face Hub.
        full_precision_prefixes: beginnings of the names of parameters that are never saved in a narrower type.
    """

    name: ClassVar[str]
    has_scales: ClassVar[bool] = False
    latent_channels: int
    stride: int
    origin: Origin | None = None
    meta: dict[str, Any]
    pipeline_tag: ClassVar[str] = "image-to-image"
    full_precision_prefixes: ClassVar[tuple[str, ...]] = ("entropy_bottleneck.", "gaussian_conditional.")
    _synthesis_prefixes: ClassVar[tuple[str, ...]] = ("g_s.",)

    def __init__(self) -> None:
        super().__init__()
        self.meta = {}
        self._derived: _Derived | None = None

    # -- what a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def _analysis(self, x: Tensor) -> Tensor:
        """Padded images ``(B, 3, H', W')`` to latents ``(B, M, h, w)``."""

    @abstractmethod
    def _synthesis(self, y_hat: Tensor) -> Tensor:
        """Latents ``(B, M, h, w)`` to images ``(B, 3, stride h, stride w)``."""

    @abstractmethod
    def _train_forward(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Latents to (noisy or rounded) ``y_hat``, scales and likelihoods, differentiable."""

    @abstractmethod
    def _derive(self, state: Mapping[str, Tensor] | None) -> CodingState:
        """The coding state: from the parameters, or from saved integers. Raises ``ValueError`` where they don't fit."""

    @abstractmethod
    def _code(
        self, channel: Channel, y: Tensor | None, shape: tuple[int, int, int], device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Carry a batch of latents of ``shape`` ``(B, h, w)`` through a channel; returns ``y_hat`` and scales."""

    @abstractmethod
    def _configuration(self) -> dict[str, Any]:
        """The hyper-parameters that give the latent its meaning, JSON-ready."""

    def aux_loss(self) -> Tensor:
        """Loss of the entropy model's quantiles, for an optimiser of their own; 0 where there is none."""
        return 0.0 * next(self.parameters()).sum()  # with a graph, so that training loops need not ask

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Measure the symbol tables of a codec without a learned entropy model.

        Codecs that learn their entropy model have nothing to measure: for them this does nothing.

        Args:
            images: batches ``(B, 3, H, W)``, RGB in ``[0, 1]``, of any sizes.
        """

    # -- training ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> CodecOutput:
        """Images through the codec without bits: for training, and for estimating rates.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.

        Returns:
            reconstruction, latent and likelihoods; additive noise replaces rounding in training mode. In evaluation
            mode the latent is rounded too, but it comes from the float hyper-decoder: scales (and means) differ from
            those of :meth:`encode` by rounding.
        """
        self._check_images(x)
        return self._rest_of_forward(self._analysis(self._pad(x)), (x.shape[-2], x.shape[-1]))

    def _rest_of_forward(self, y: Tensor, image_size: tuple[int, int]) -> CodecOutput:
        y_hat, scales, likelihoods = self._train_forward(y)
        height, width = image_size
        x_hat = self._synthesis(y_hat)[..., :height, :width]
        return CodecOutput(x_hat, Latent(y_hat, scales, image_size), likelihoods)

    # -- inference -----------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Latent:
        """Images to quantised latents; no bits are written.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.

        Returns:
            the latent that ``decompress(compress(x))`` gives, bit for bit.

        Raises:
            TypeError, ValueError: ``x`` is no float image batch, or far outside ``[0, 1]``.
        """
        return self._send(x, Quantiser())

    @untraced
    def compress(self, x: Tensor, *, num_threads: int | None = None) -> list[bytes]:
        """Images to bits.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.
            num_threads: threads for entropy coding; by default ``torch.get_num_threads()``.

        Returns:
            one self-contained ``.cdz`` stream per image; what it costs with and without its header is in
            ``read_header(stream).bpp`` and ``.payload_bpp``.

        Raises:
            TypeError, ValueError: as :meth:`encode`.
        """
        writer = Writer(x.shape[0] if isinstance(x, Tensor) and x.dim() else 0, thread_count(num_threads))
        self._send(x, writer)
        size, fingerprint = (int(x.shape[-2]), int(x.shape[-1])), self._in_force().fingerprint
        return [
            pack(self.name, fingerprint, size, checksum, parts)
            for parts, checksum in zip(writer.parts, writer.checksums, strict=True)
        ]

    def decompress(
        self,
        streams: Sequence[bytes],
        *,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
        num_threads: int | None = None,
    ) -> Latent:
        """Bits to latents; stops there, no pixel is made.

        Args:
            streams: ``.cdz`` streams of images of one size.
            max_pixels: refuse streams whose image has more pixels than this; ``None`` for no limit.
            num_threads: threads for entropy decoding; by default ``torch.get_num_threads()``.

        Returns:
            the latents, on the codec's device.

        Raises:
            BitstreamError: a stream is damaged, truncated, or too large; the message names its position.
            PairingError: a stream was written by another codec, or by other weights.
            ValueError: no stream at all, or images of unequal sizes.
            TypeError: not a sequence of bytes.
        """
        opened = self._open(streams, max_pixels)
        sizes = {header.image_size for header, _ in opened}
        if len(sizes) > 1:
            raise ValueError(
                f"streams of unequal image sizes in one batch: {sorted(sizes)}; "
                "group them by read_header(...).image_size."
            )
        return self._decode_parts(opened, num_threads)

    def decode(self, latent: Latent) -> Tensor:
        """Latents to pixels: the synthesis transform, for looking at images, never needed by a network.

        Args:
            latent: as returned by :meth:`encode` or :meth:`decompress`.

        Returns:
            ``(B, 3, H, W)`` float32, RGB, clamped to ``[0, 1]``, cropped to ``latent.image_size``.

        Raises:
            ValueError: the latent has other channels, or a size that does not fit its ``image_size``.
            TypeError: not a :class:`~cdzoo.types.Latent` of real numbers.
        """
        height, width = check_latent(latent, name=self.name, channels=self.latent_channels, stride=self.stride)
        with self._coding_mode():
            x_hat = self._synthesis(self._moved(latent.y_hat))[..., :height, :width]
            return x_hat.float().clamp(0, 1)

    # -- identity ------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify what gives latents and bits their meaning.

        Covers the configuration, the analysis transforms, the hyper-decoder's integers and the probability tables;
        not the synthesis transform, nor device, dtype or memory layout.
        """
        return self._refresh().fingerprint

    @property
    def coding(self) -> CodingState:
        """The integers in force; derived again whenever a parameter they depend on has changed."""
        return self._refresh().coding

    def _in_force(self) -> _Derived:
        """What the running call has already made sure of."""
        assert self._derived is not None
        return self._derived

    def _coding_in_force(self) -> CodingState:
        """The coding state among it."""
        return self._in_force().coding

    def integer_state(self) -> dict[str, Tensor]:
        """The coding state as named tensors, for saving beside the parameters."""
        return self.coding.state()

    def load_integer_state(self, state: Mapping[str, Tensor]) -> None:
        """Adopt a saved coding state for the present parameters, in place of deriving one.

        Raises:
            ValueError: tensors are missing, superfluous, or do not fit this codec.
        """
        try:
            coding = self._derived_from(state)
        except KeyError as error:
            raise ValueError(f"coding state of {self.name} lacks {error}.") from None
        superfluous = sorted(set(state) - set(coding.state()))
        if superfluous:
            raise ValueError(f"coding state has tensors that {self.name} does not know: {', '.join(superfluous[:4])}.")
        self._derived = self._describe(coding)

    @untraced
    def _refresh(self) -> _Derived:
        stamp = self._stamp()
        derived = self._derived
        if derived is not None and derived.stamp == stamp:
            return derived
        # The stamp may move without a change of value (a cast, a copy to another device): compare the contents.
        if derived is not None and self._content() in derived.contents:
            derived.stamp = stamp
            return derived
        self._derived = self._describe(self._derived_from(None))
        return self._derived

    def _derived_from(self, state: Mapping[str, Tensor] | None) -> CodingState:
        """:meth:`_derive`, as exact as parameters are, whatever the caller's autocast."""
        with torch.no_grad(), without_autocast(next(self.parameters()).device):
            return self._derive(state)

    def _describe(self, coding: CodingState) -> _Derived:
        digest = hashlib.sha256(repr(sorted({"name": self.name, **self._configuration()}.items())).encode())
        analysis = ((n, p) for n, p in self._coding_parameters() if self._is_analysis(n))
        for name, tensor in [*analysis, *sorted(coding.state().items())]:
            digest.update(name.encode() + repr(tuple(tensor.shape)).encode())
            digest.update(_bytes(tensor.float() if tensor.is_floating_point() else tensor))
        return _Derived(
            stamp=self._stamp(),
            contents={self._content()},
            coding=coding,
            fingerprint=digest.hexdigest()[:16],
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A cast changes what the integers would be derived from, but not the codec: they are derived before it, and
        # the rounded parameters are known afterwards as another form of the same.
        parameter, derived = next(self.parameters()), None
        probe = fn(parameter.detach().new_empty(0))
        if probe.dtype != parameter.dtype and not (probe.is_meta or parameter.is_meta):
            with suppress(ValueError):  # parameters that no integers follow from: they have no identity to keep
                derived = self._refresh()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if derived is not None:
            derived.contents.add(self._content())
        return self

    def _stamp(self) -> tuple[object, ...]:
        """What moves when parameters change, at a small part of the cost of hashing them.

        Versions tell of ordinary changes, addresses of replaced tensors; writing through ``.data`` leaves no trace
        but the values, of whose bit patterns there is a sum by position for each parameter.
        """
        stamp: list[object] = []
        sums: list[Tensor] = []
        for p in self._coding_tensors():
            stamp += (p.data_ptr(), -1 if p.is_inference() else p._version, p.dtype, p.shape)
            sums.append(position_sum(p))
        return *stamp, *torch.stack([s.to(sums[0].device) for s in sums]).tolist()

    _coding_buffers: ClassVar[tuple[str, ...]] = (".running_mean", ".running_var", "_mask", "_u", "_v")
    """Ends of the names of buffers that are to a codec what parameters are: statistics of batch norm, masks of pruned
    weights, vectors of spectral norm."""

    def _coding_parameters(self) -> Iterator[tuple[str, Tensor]]:
        buffers = ((n, b) for n, b in self.named_buffers() if n.endswith(self._coding_buffers))
        tensors = chain(self.named_parameters(), buffers)
        return ((n, t) for n, t in tensors if not n.startswith(self._synthesis_prefixes))

    def _coding_tensors(self) -> Iterator[Tensor]:
        """The same tensors in another order and without their names, which takes a fifth of the time."""
        modules: list[tuple[str, nn.Module]] = [("", self)]
        while modules:
            prefix, module = modules.pop()
            for kind, suffixes in ((module._parameters, ("",)), (module._buffers, self._coding_buffers)):
                for name, tensor in kind.items():
                    name = prefix + name
                    if tensor is not None and name.endswith(suffixes) and not name.startswith(self._synthesis_prefixes):
                        yield tensor
            modules += [(f"{prefix}{name}.", child) for name, child in module._modules.items() if child is not None]

    @staticmethod
    def _is_analysis(name: str) -> bool:
        return name.startswith(("g_a.", "h_a."))

    def _content(self) -> str:
        digest = hashlib.sha256()
        for _, tensor in self._coding_parameters():
            digest.update(_bytes(tensor.float() if tensor.is_floating_point() else tensor))
        return digest.hexdigest()

    # -- shared steps --------------------------------------------------------------------------------------------

    @untraced
    def _send(self, x: Tensor, channel: Channel) -> Latent:
        self._check_images(x)
        self._refresh()
        check_range(x)
        with self._coding_mode():
            y = self._analysis(self._pad(self._moved(x))).float()
            y_hat, scales = self._code(channel, y, (y.shape[0], y.shape[2], y.shape[3]), y.device)
        return Latent(y_hat, scales, (int(x.shape[-2]), int(x.shape[-1])))

    def _moved(self, x: Tensor) -> Tensor:
        """To the parameters' device and dtype."""
        parameter = next(self.parameters())
        return x.to(parameter.device, parameter.dtype)

    def _pad(self, x: Tensor) -> Tensor:
        """Replicate the last row and column until both sides are multiples of the stride."""
        return pad_to_multiple(x, self.stride)

    _check_images = staticmethod(check_images)

    @untraced
    def _open(self, streams: Sequence[bytes], max_pixels: int | None) -> list[_Opened]:
        """Check streams as far as that goes without decoding; their headers and parts."""
        if isinstance(streams, bytes | bytearray | memoryview | str) or not isinstance(streams, Sequence):
            kind = type(streams).__name__
            raise TypeError(f"streams must be a list of bytes, not {kind}; pass [stream] for one image.")
        if len(streams) == 0:
            raise ValueError("no streams: decompress needs at least one.")
        fingerprint, opened = self.fingerprint, []
        for position, stream in enumerate(streams):
            try:
                header, parts = unpack(stream, max_pixels=max_pixels)
                if header.codec == self.name and len(parts) != self._num_parts:
                    raise BitstreamError(f"{len(parts)} parts, where {self.name} writes {self._num_parts}.")
            except BitstreamError as error:
                raise error.at(position, len(streams)) from error
            if header.codec != self.name or header.fingerprint != fingerprint:
                raise PairingError(
                    f"written by {header.codec} with fingerprint {header.fingerprint}, but this codec is {self.name} "
                    f"with fingerprint {fingerprint}; load the weights that wrote the stream",
                    position=position,
                    total=len(streams),
                )
            opened.append((header, parts))
        return opened

    @untraced
    def _decode_parts(self, opened: Sequence[_Opened], num_threads: int | None) -> Latent:
        """Decode opened streams of images of one size."""
        height, width = opened[0][0].image_size
        reader = Reader([parts for _, parts in opened], thread_count(num_threads))
        shape = (len(opened), -(-height // self.stride), -(-width // self.stride))
        with self._coding_mode():
            y_hat, scales = self._code(reader, None, shape, next(self.parameters()).device)
        reader.verify([header.symbols_crc32 for header, _ in opened])
        return Latent(y_hat, scales, (height, width))

    _num_parts: ClassVar[int] = 1

    @contextmanager
    def _coding_mode(self) -> Iterator[None]:
        """No gradients, no autocast, inference behaviour; the module's own mode is put back afterwards."""
        with inference_layers(self), torch.no_grad(), without_autocast(next(self.parameters()).device):
            yield


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad ``(B, C, H, W)`` at the bottom and on the right by replication until ``H, W`` are multiples."""
    bottom, right = (-x.shape[-2] % multiple, -x.shape[-1] % multiple)
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
