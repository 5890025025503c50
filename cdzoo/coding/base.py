"""The base class of learned codecs: what all of them can do, and the methods that each one defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Generic, Self

import torch
from torch import Tensor, nn

from cdzoo._checks import check_images, check_latent, check_range, thread_count
from cdzoo._torch import inference_layers, untraced, without_autocast
from cdzoo.coding.cdz_format import pack
from cdzoo.coding.identity import Identity, State
from cdzoo.coding.streams import Stream, open_streams
from cdzoo.coding.symbols import Quantizer, Reader, SymbolCoder, Writer
from cdzoo.coding.tiles import analyze, pad_to_multiple, synthesize
from cdzoo.errors import BitstreamError
from cdzoo.types import MAX_IMAGE_PIXELS, CodecOutput, Latent, Origin

__all__ = ["Codec"]


class Codec(nn.Module, ABC, Generic[State]):
    """Base class of learned codecs: images to latents, latents to bits, and both back.

    A subclass defines seven methods: the transforms (:meth:`analyze`, :meth:`synthesize`), the forward pass in training
    (:meth:`estimate`), the coding state (:meth:`derive_state`, :meth:`restore_state`), one description of its coded
    parts that serves quantizing, writing and reading alike (:meth:`code`), and its :meth:`configuration`. A codec of an
    analysis and a synthesis module without an entropy model needs none of them:
    :class:`~cdzoo.codecs.TransformCodec` defines all seven.

    ``Codec[S]`` is a codec whose coding state has the type ``S``.

    Attributes:
        name: the registered name of the builder. Streams carry it, and the fingerprint covers it.
        latent_channels: ``M``.
        stride: pixels per latent sample, in each direction.
        has_scales: latents come with the scales of a hyperprior.
        num_parts: entropy-coded parts per stream, that is calls of the coder in :meth:`code`; 1 to 255.
        synthesis_parts: names of submodules and parameters of the codec on which no latent and no bit depends. The
            fingerprint does not cover them.
        state_parts: names of submodules, parameters and buffers of the codec from which only the coding state is
            derived. The fingerprint covers the state in their place.
        origin: how a builder made the module, see :class:`cdzoo.types.Origin`; ``None`` without a builder.
        meta: the facts of the model card that the weights came with; ``{}`` without weights.
        pipeline_tag: the task, in the words of the Hugging Face Hub.
        full_precision_prefixes: beginnings of the names of parameters that are never saved in a narrower type.
    """

    name: str
    latent_channels: int
    stride: int
    has_scales: bool = False
    num_parts: int = 1
    synthesis_parts: ClassVar[tuple[str, ...]] = ("g_s",)
    state_parts: ClassVar[tuple[str, ...]] = ("h_s", "entropy_bottleneck", "gaussian_conditional")
    origin: Origin | None = None
    meta: dict[str, Any]
    pipeline_tag: ClassVar[str] = "image-to-image"
    full_precision_prefixes: ClassVar[tuple[str, ...]] = ("entropy_bottleneck.", "gaussian_conditional.")

    def __init__(self) -> None:
        super().__init__()
        self.meta = {}
        self._identity: Identity[State] | None = None

    # -- defined by subclasses -----------------------------------------------------------------------------------

    @abstractmethod
    def analyze(self, x: Tensor) -> Tensor:
        """Analysis transform, differentiable.

        Args:
            x: images ``(B, 3, H', W')``, RGB in ``[0, 1]``, padded so that ``stride`` divides ``H'`` and ``W'``.

        Returns:
            latents ``(B, M, H' / stride, W' / stride)``, not quantized.
        """

    @abstractmethod
    def synthesize(self, y_hat: Tensor) -> Tensor:
        """Synthesis transform, differentiable.

        Args:
            y_hat: quantized latents ``(B, M, h, w)``.

        Returns:
            images ``(B, 3, stride h, stride w)``, RGB, nominally in ``[0, 1]``.
        """

    @abstractmethod
    def estimate(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Quantization and rate of latents without bits, differentiable: the middle of ``codec(x)``.

        Args:
            y: latents ``(B, M, h, w)``.

        Returns:
            ``y_hat`` (noisy or rounded), scales (``None`` without a hyperprior), and likelihoods by name (``{}``
            without an entropy model).
        """

    @abstractmethod
    def derive_state(self) -> State:
        """The coding state that follows from the parameters. Runs without gradients and outside autocast.

        Raises:
            ValueError: no state follows from the parameters, such as from values that are not finite.
        """

    @abstractmethod
    def restore_state(self, tensors: Mapping[str, Tensor]) -> State:
        """The coding state from saved tensors, the inverse of ``state.tensors()``.

        Raises:
            ValueError, KeyError: tensors are missing or do not fit this codec.
        """

    @abstractmethod
    def code(
        self, coder: SymbolCoder, y: Tensor | None, shape: tuple[int, int, int], state: State
    ) -> tuple[Tensor, Tensor | None]:
        """Pass a batch of latents through a coder that quantizes, writes or reads symbols.

        The same method encodes and decodes. It calls ``coder(values, shape, indexes, tables)`` once per part, in a
        fixed order, and computes everything else from the symbols that come back.

        Args:
            coder: see :class:`~cdzoo.codecs.SymbolCoder`.
            y: latents ``(B, M, h, w)`` float32 to encode; ``None`` when decoding.
            shape: ``(B, h, w)``.
            state: the coding state.

        Returns:
            ``y_hat`` and scales (or ``None``), both ``(B, M, h, w)`` float32, on :attr:`device`.
        """

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """The hyperparameters that give latents their meaning, JSON-ready. The fingerprint covers them."""

    def convolutions(self) -> tuple[nn.Module | None, nn.Module | None]:
        """The module behind :meth:`analyze` and that behind :meth:`synthesize`, if large images may go tile by tile.

        A module is a chain of convolutions and of functions of single positions; what the method does before and after
        the module is a function of single positions, too. ``None`` otherwise: the whole image is then transformed at
        once.
        """
        return None, None

    def aux_loss(self) -> Tensor:
        """Loss of the entropy model's quantiles, for an optimizer of their own; 0 where there is none."""
        return 0.0 * self._reference().sum()  # has a graph, so that every training loop may call backward()

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Measure the symbol tables of a codec without a learned entropy model.

        Codecs with a learned entropy model have nothing to measure: for them this does nothing.

        Args:
            images: batches ``(B, 3, H, W)``, RGB in ``[0, 1]``, of any sizes.
        """

    # -- training ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> CodecOutput:
        """Images through the codec without bits: for training, and for estimating rates.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.

        Returns:
            reconstruction, latent and likelihoods. In training mode additive noise replaces rounding. In evaluation
            mode the latent is rounded, but scales (and means) come from the float hyper-decoder and differ from those
            of :meth:`encode` by rounding.
        """
        check_images(x)
        return self._rest_of_forward(self.analyze(pad_to_multiple(x, self.stride)), (x.shape[-2], x.shape[-1]))

    def _rest_of_forward(self, y: Tensor, image_size: tuple[int, int]) -> CodecOutput:
        y_hat, scales, likelihoods = self.estimate(y)
        x_hat = self.synthesize(y_hat)[..., : image_size[0], : image_size[1]]
        return CodecOutput(x_hat, Latent(y_hat, scales, image_size), likelihoods)

    # -- inference -----------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Latent:
        """Images to quantized latents; no bits are written.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.

        Returns:
            the latent that ``decompress(compress(x))`` gives, bit for bit.

        Raises:
            TypeError, ValueError: ``x`` is no float image batch, or far outside ``[0, 1]``.
        """
        return self._encode_with(Quantizer(), x)

    @untraced
    def compress(self, x: Tensor, *, num_threads: int | None = None) -> list[bytes]:
        """Images to bits.

        Args:
            x: ``(B, 3, H, W)``, RGB, in ``[0, 1]``, any size from 1x1.
            num_threads: threads for entropy coding; by default ``torch.get_num_threads()``.

        Returns:
            one self-contained ``.cdz`` stream per image. ``read_header(stream).bpp`` and ``.payload_bpp`` are its bits
            per pixel with and without the header.

        Raises:
            TypeError, ValueError: as :meth:`encode`.
        """
        check_images(x)
        writer = Writer(x.shape[0], thread_count(num_threads))
        self._encode_with(writer, x)
        assert self._identity is not None  # brought up to date by the line above
        size, fingerprint = (int(x.shape[-2]), int(x.shape[-1])), self._identity.fingerprint
        coded = zip(writer.checksums, writer.parts, strict=True)
        return [pack(self.name, fingerprint, size, checksum, parts) for checksum, parts in coded]

    def decompress(
        self, streams: Sequence[bytes], *, max_pixels: int | None = MAX_IMAGE_PIXELS, num_threads: int | None = None
    ) -> Latent:
        """Bits to latents; no pixel is computed.

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
        opened = self.open_streams(streams, max_pixels=max_pixels)
        sizes = {stream.header.image_size for stream in opened}
        if len(sizes) > 1:
            known = f"streams of unequal image sizes in one batch: {sorted(sizes)}"
            raise ValueError(f"{known}; group them by read_header(...).image_size")
        return self.decode_streams(opened, total=len(opened), num_threads=num_threads)

    def decode(self, latent: Latent) -> Tensor:
        """Latents to pixels, by the synthesis transform. Networks over latents never need this.

        Args:
            latent: as returned by :meth:`encode` or :meth:`decompress`.

        Returns:
            ``(B, 3, H, W)`` float32, RGB, clamped to ``[0, 1]``, cropped to ``latent.image_size``.

        Raises:
            ValueError: the latent has other channels, or a size that does not fit its ``image_size``.
            TypeError: not a :class:`~cdzoo.types.Latent` of real numbers.
        """
        size = check_latent(latent, name=self.name, channels=self.latent_channels, stride=self.stride)
        with self._inference():
            return synthesize(self, latent.y_hat, size, like=self._reference())

    @untraced
    def open_streams(self, streams: Sequence[bytes], *, max_pixels: int | None = MAX_IMAGE_PIXELS) -> list[Stream]:
        """Check streams as far as possible without decoding; sizes may differ.

        Args:
            streams, max_pixels: as in :meth:`decompress`.

        Raises:
            BitstreamError, PairingError, TypeError, ValueError: as :meth:`decompress`.
        """
        return open_streams(streams, self.name, self.fingerprint, self.num_parts, max_pixels=max_pixels)

    @untraced
    def decode_streams(self, opened: Sequence[Stream], *, total: int, num_threads: int | None = None) -> Latent:
        """Decode opened streams of images of one size.

        Args:
            opened: from :meth:`open_streams`, all of them or some.
            total: how many streams there were, for messages of errors.
            num_threads: as in :meth:`decompress`.

        Raises:
            BitstreamError: a stream is damaged; the message names its position.
        """
        identity = self._identity  # brought up to date by open_streams, usually just before
        if identity is None or identity.fingerprint != opened[0].header.fingerprint:
            identity = self._current_identity()
        height, width = opened[0].header.image_size
        reader = Reader([stream.parts for stream in opened], thread_count(num_threads))
        shape = (len(opened), -(-height // self.stride), -(-width // self.stride))
        try:
            with self._inference():
                y_hat, scales = self.code(reader, None, shape, identity.state)
            reader.verify([stream.header.symbols_crc32 for stream in opened])
        except BitstreamError as error:
            if error.position is None:
                raise
            raise error.at(opened[error.position].position, total) from error
        return Latent(y_hat, scales, (height, width))

    @untraced
    def _encode_with(self, coder: SymbolCoder, x: Tensor) -> Latent:
        check_images(x)
        identity = self._current_identity()
        check_range(x)
        with self._inference():
            y = analyze(self, x, like=self._reference())
            y_hat, scales = self.code(coder, y, (y.shape[0], y.shape[2], y.shape[3]), identity.state)
        return Latent(y_hat, scales, (int(x.shape[-2]), int(x.shape[-1])))

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, no autocast, inference behavior; the module's own mode is restored afterwards."""
        with inference_layers(self), torch.no_grad(), without_autocast(self.device):
            yield

    @property
    def device(self) -> torch.device:
        """The device of the codec's parameters."""
        return self._reference().device

    def _reference(self) -> Tensor:
        """A parameter, or else a buffer, of the device and dtype in which the transforms compute."""
        tensor: Tensor | None = next(self.parameters(), None)
        if tensor is None:
            tensor = next((b for b in self.buffers() if b.is_floating_point()), torch.empty(0))
        return tensor

    # -- identity ------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify what gives latents and bits their meaning.

        Covers the configuration, the analysis transforms, the hyper-decoder's integers and the probability tables;
        neither the synthesis transform, nor device, dtype or memory layout. See ``cdzoo.coding.identity``.
        """
        return self._current_identity().fingerprint

    @property
    def coding(self) -> State:
        """The coding state in force; derived again whenever a parameter that it depends on has changed."""
        return self._current_identity().state

    def integer_state(self) -> dict[str, Tensor]:
        """The coding state as named tensors, for saving beside the parameters."""
        return self.coding.tensors()

    def load_integer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Adopt a saved coding state for the present parameters, in place of deriving one.

        Raises:
            ValueError: tensors are missing, superfluous, or do not fit this codec.
        """
        try:
            with torch.no_grad(), without_autocast(self.device):
                state = self.restore_state(tensors)
        except KeyError as error:
            raise ValueError(f"coding state of {self.name} lacks {error}; save the codec again") from None
        if superfluous := sorted(set(tensors) - set(state.tensors())):
            raise ValueError(
                f"coding state has tensors that {self.name} does not know: {', '.join(superfluous[:4])}; "
                "load it into the codec that it was saved from"
            )
        self.adopt_state(state)

    def adopt_state(self, state: State | None) -> None:
        """Code with this state until a parameter changes; with ``None``, derive a new one at the next use."""
        self._identity = None if state is None else Identity(self, state)

    @untraced
    def _current_identity(self) -> Identity[State]:
        if self._identity is None or not self._identity.holds_for(self):
            with torch.no_grad(), without_autocast(self.device):
                state = self.derive_state()
            self._identity = Identity(self, state)
        return self._identity

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A cast changes the values from which a state would be derived, but not the codec. So the state is derived
        # before the cast, and the rounded values are then accepted as another form of the same parameters.
        reference, identity = self._reference(), None
        probe = fn(reference.detach().new_empty(0))
        if probe.dtype != reference.dtype and not (probe.is_meta or reference.is_meta):
            with suppress(ValueError):  # no state follows from these parameters: there is no identity to keep
                identity = self._current_identity()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if identity is not None:
            identity.add_form(self)
        return self
