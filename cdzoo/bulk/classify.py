"""Files to labels: JPEG files from their coefficients, ``.cdz`` streams from their latents; no pixel is decoded."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cdzoo._checks import check_size
from cdzoo._compose import CompressedDomainModel
from cdzoo._files import JPEG_SUFFIXES, find_files
from cdzoo.bulk.networks import Network, default_network, find_network
from cdzoo.bulk.plan import File
from cdzoo.bulk.task import FILE_ERRORS, Item, Task, process, read_paths
from cdzoo.codecs import Codec, JPEGWarning, read_header, read_jpeg
from cdzoo.data.coefficients import read_upright
from cdzoo.data.collate import collate_coefficients, collate_latents
from cdzoo.data.streams import StreamDecoder
from cdzoo.errors import BitstreamError, JPEGError, PairingError
from cdzoo.jpeg._sources import Fallback, check_fallback
from cdzoo.jpeg.files import read_header_or_decode
from cdzoo.labels import Label, top_labels
from cdzoo.transforms import CoefficientTransform
from cdzoo.types import Latent
from cdzoo.weights.enums import WeightsLike

__all__ = ["Classified", "Classify", "Networks", "classify", "classify_bytes", "classify_files"]


class Classified(NamedTuple):
    """The labels of one file.

    Attributes:
        path: the file's path, as it was given or found.
        classes: the most probable classes, best first; empty where there is an error.
        error: the reason why the file has no labels, or ``None``.
        image_size: ``(H, W)`` of the upright image, or ``None`` where there is an error.
        num_bytes: size of the file.
        damage: the damage of a JPEG file that was read as far as possible; empty for an intact file.
        missing_blocks: blocks of coefficients that are missing in such a file.
    """

    path: str
    classes: tuple[Label, ...] = ()
    error: Exception | None = None
    image_size: tuple[int, int] | None = None
    num_bytes: int = 0
    damage: str = ""
    missing_blocks: int = 0

    @property
    def bpp(self) -> float | None:
        """Bits per pixel of the whole file, or ``None`` where there is an error."""
        return None if self.image_size is None else 8 * self.num_bytes / math.prod(self.image_size)


class Classify(Task):
    """Classify streams or JPEG files with one network.

    Args:
        model: a module of :func:`cdzoo.compose`, for streams, or a network over coefficients, for JPEG files; copied.
        top: number of classes in a result.
        transforms: for JPEG networks, applied to each file's coefficients; by default the network's own.
        strict: refuse damaged JPEG files; otherwise they are read as far as possible.
        fallback: ``"decode"`` lets Pillow decode files that are no JPEG files in spite of their name.
        **options: as for :class:`~cdzoo.bulk.task.Task`.

    Raises:
        TypeError: a network over latents without its codec.
        ValueError: a limit below 1, an unknown ``fallback``, or ``transforms`` for a network over latents.
    """

    columns: ClassVar = {"classes": "[int32]", "labels": "[string]", "probabilities": "[float]", "damage": "string"}

    def __init__(
        self,
        model: nn.Module,
        *,
        top: int = 5,
        transforms: Callable[[Any], Any] | None = None,
        strict: bool = False,
        fallback: Fallback | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        check_fallback(fallback)
        self.model, self.top, self.strict, self.fallback = copy.deepcopy(model).eval(), top, strict, fallback
        self.meta = getattr(model, "meta", None) or {}
        self._decoder: StreamDecoder | None = None
        self._transforms = transforms
        if isinstance(model, CompressedDomainModel):
            if transforms is not None:
                raise ValueError(
                    "transforms are for JPEG networks; cdzoo.compose already applies those of networks over latents"
                )
            self._decoder = StreamDecoder(model.codec, None, self.max_pixels)
            self.meta = getattr(model.model, "meta", None) or {}
        elif getattr(model, "latent_stride", None) is not None:
            raise TypeError(f"{type(model).__name__} reads latents: put it behind its codec with cdzoo.compose")
        elif transforms is None:
            self._transforms = getattr(model, "transforms", None) or CoefficientTransform()

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]
        """See :class:`~cdzoo.bulk.task.Task`."""
        return JPEG_SUFFIXES if self._decoder is None else StreamDecoder.suffixes

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`~cdzoo.bulk.task.Task`: the hash of the network among them."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        codec = {} if self._decoder is None else {"fingerprint": self._decoder.codec.fingerprint}
        composed = isinstance(self.model, CompressedDomainModel)
        model: Any = self.model.model if composed else self.model
        transforms: Any = self.model.transforms if composed else self._transforms
        config = transforms.config() if hasattr(transforms, "config") else getattr(transforms, "__qualname__", "")
        of = {"model": type(model).__name__, "weights": digest.hexdigest(), "transforms": config}
        reading = {"strict": self.strict, "fallback": self.fallback}
        return {**super().facts, **of, "top": self.top, **reading, **codec}

    def to(self, device: torch.device | str) -> None:
        """See :class:`~cdzoo.bulk.task.Task`."""
        self.model.to(device)

    def prepare(self, file: File) -> Item:
        """See :class:`~cdzoo.bulk.task.Task`."""
        data = file.content
        if self._decoder is not None:
            size: Any = self._decoder.batch_key(data)
            return Item(file, size, (data, Classified(file.name, num_bytes=len(data))), size, len(data))
        num_bytes = len(data)
        with _damage([]):
            header, data = read_header_or_decode(
                data, file.name, strict=self.strict, max_pixels=self.max_pixels, fallback=self.fallback
            )
        height, width = header.image_size
        about = Classified(file.name, num_bytes=num_bytes, image_size=(height, width))
        if header.orientation >= 5:
            about = about._replace(image_size=(width, height))
        size = getattr(self._transforms, "size", None)
        if size is not None:  # the transform makes one batch of files of any geometries
            return Item(file, "jpeg", (data, about), size, len(data))
        assert self._transforms is not None
        with _damage([about]) as damaged:
            coefficients = read_upright(data, max_pixels=self.max_pixels, strict=self.strict)
        if header.orientation >= 5 and coefficients.image_size == header.image_size:  # too small to be turned
            damaged[0] = damaged[0]._replace(image_size=header.image_size)
        c = self._transforms(coefficients)
        key = c[2:], tuple(plane.shape for plane in c.planes)
        return Item(file, key, (c, damaged[0]), c.image_size, sum(plane.nbytes for plane in c.planes))

    @torch.no_grad()
    def run(self, items: Sequence[Item]) -> list[Classified | Exception]:
        """See :class:`~cdzoo.bulk.task.Task`: the best classes of each file."""
        inputs, about = map(list, zip(*[item.value for item in items], strict=True))
        batch: Any
        if self._decoder is None:
            if isinstance(inputs[0], bytes):
                with _damage(about) as about:
                    options: Any = {"strict": self.strict, "max_pixels": self.max_pixels}
                    batch = read_jpeg(inputs, transform=self._transforms, **options)
            else:
                batch = collate_coefficients(inputs)
            return self._labels(self.model(batch.to(next(self.model.parameters()).device)), about)
        assert isinstance(self.model, CompressedDomainModel)
        found: list[Any] = self._decoder.decode(inputs)
        results: list[Any] = [
            one.named(None) if isinstance(one, BitstreamError | PairingError) else one for one in found
        ]
        good = [i for i, latent in enumerate(results) if isinstance(latent, Latent)]
        if good:
            batch = collate_latents([results[i] for i in good])
            own = [about[i]._replace(image_size=results[i].image_size) for i in good]
            for i, result in zip(good, self._labels(self.model.from_latent(batch), own), strict=True):
                results[i] = result
        return results

    def _labels(self, logits: Any, about: Sequence[Classified]) -> list[Classified | Exception]:
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"{type(self.model).__name__} gives {what}, not logits (B, num_classes); use a classifier")
        results: list[Classified | Exception] = []
        for row, one in zip(logits.float().cpu(), about, strict=True):
            try:
                results.append(one._replace(classes=top_labels(row, self.meta, self.top)))
            except ValueError as error:
                results.append(error)
        return results

    def row(self, file: File, result: Classified) -> dict[str, Any]:
        """See :class:`~cdzoo.bulk.task.Task`."""
        return {
            "classes": [label.number for label in result.classes],
            "labels": [label.name for label in result.classes],
            "probabilities": [label.probability for label in result.classes],
            "damage": result.damage or None,
        }


@contextlib.contextmanager
def _damage(about: Sequence[Classified]) -> Iterator[list[Classified]]:
    """Add the damage that ``read_jpeg`` warns of while files are read; errors lose the place of a file in the batch."""
    described = list(about)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", JPEGWarning)
        try:
            yield described
        except JPEGError as error:
            raise error.named(None) from error
    places = {f"source[{i}]": i for i in range(len(described))}  # as read_jpeg names the files of a batch
    for warning in [w.message for w in caught if isinstance(w.message, JPEGWarning)]:
        number = places.get(warning.name or "", 0)
        described[number] = described[number]._replace(damage=warning.reason, missing_blocks=warning.num_missing)


class Networks:
    """The task that classifies a file, for :func:`~cdzoo.bulk.task.process`.

    Args:
        model, weights: as for :func:`classify`.
        codec: the codec whose latents the network reads; by default the codec that the weights belong to.
        device: device of the networks; by default a module's own, or the CPU.
        told: called with every network when it is loaded.
        **options: as for :class:`Classify`.

    Raises:
        ValueError: as :func:`~cdzoo.bulk.networks.find_network` for a network that is asked for, and its other errors.
            A packaged network is loaded with the first file that needs it, and its errors are those of the files.
    """

    suffixes = (*JPEG_SUFFIXES, ".cdz")

    def __init__(
        self,
        model: str | nn.Module | None = None,
        weights: WeightsLike = None,
        *,
        codec: Codec | None = None,
        device: torch.device | str | None = None,
        told: Callable[[Network], None] = lambda network: None,
        **options: Any,
    ) -> None:
        self._codec, self._device, self._told, self._options = codec, device, told, options
        self._given = None
        self._packaged: dict[str, Classify | Exception] = {}
        if model is not None or weights is not None:
            self._given = self._load(find_network(model, weights, codec))

    def __call__(self, file: File) -> Classify:
        """The task for a file.

        Raises:
            ValueError: a file of another kind.
            PairingError: the network does not read files of this kind, or there is none for them.
        """
        suffix = os.path.splitext(file.name)[1].lower()
        if suffix not in self.suffixes:
            raise ValueError(
                f"{suffix or 'no suffix'} is not among the suffixes of files that are classified "
                f"({', '.join(self.suffixes)}); run 'cdzoo compress' on other images and classify the .cdz"
            )
        if self._given is not None:
            if suffix not in self._given.suffixes:
                raise PairingError(
                    f"{type(self._given.model).__name__} does not read {suffix} files but {self._given.suffixes[0]}; "
                    "leave model and weights out, or name a network for these files"
                )
            return self._given
        kind = "jpeg" if suffix in JPEG_SUFFIXES else read_header(file.content).codec
        if kind not in self._packaged:
            try:
                self._packaged[kind] = self._load(default_network(kind, self._codec))
            except (*FILE_ERRORS, ImportError) as error:
                self._packaged[kind] = error if isinstance(error, FILE_ERRORS) else PairingError(str(error))
        found = self._packaged[kind]
        if isinstance(found, Exception):
            raise found
        return found

    def _load(self, network: Network) -> Classify:
        task = Classify(network.module, **self._options)
        if self._device is not None:
            task.to(self._device)
        self._told(network)
        return task


def classify_files(files: Iterable[File], networks: Networks) -> Iterator[Classified]:
    """The labels or the error of each file, as batches are finished."""
    for file, result in process(files, networks):
        yield Classified(file.name, error=result) if isinstance(result, Exception) else result


def classify_bytes(contents: Sequence[bytes], networks: Networks) -> list[Classified]:
    """The labels or the error of JPEG files and ``.cdz`` streams in memory, in order, for servers.

    Args:
        contents: the bytes of each file. Bytes that begin as a JPEG file does are one, all others are a stream.
        networks: keep it between calls, since it holds the loaded networks.

    Returns:
        one result for each file; its ``path`` is the file's number.
    """
    names = ("file.jpg" if content[:2] == b"\xff\xd8" else "file.cdz" for content in contents)
    files = [File(number, name, content) for number, (name, content) in enumerate(zip(names, contents, strict=True))]
    results: dict[int, Classified] = {}
    for file, result in process(files, networks):
        found = Classified("", error=result) if isinstance(result, Exception) else result
        results[file.number] = found._replace(path=str(file.number))
    return [results[number] for number in range(len(files))]


def classify(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    model: str | nn.Module | None = None,
    weights: WeightsLike = None,
    top: int = 5,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    fallback: Fallback | None = None,
) -> list[Classified]:
    """Label JPEG files from their DCT coefficients and ``.cdz`` streams from their latents, of any sizes.

    Pixels are not decoded. Photographs are turned as their Exif orientation says. Damaged JPEG files are read as far as
    possible, with one :class:`~cdzoo.codecs.JPEGWarning` for all of them.

    Args:
        paths: a file, a folder that is searched with its subfolders, or a sequence of these.
        model: a builder's name, a module (over coefficients, or of :func:`cdzoo.compose`), or ``"timm/NAME"`` for a
            pretrained network of timm. By default the packaged network for each kind of file: one for JPEG files, and
            for streams one that was trained on the latents of the stream's codec.
        weights: weights of the builder, in any form that builders take; by default its ``DEFAULT``. Without ``model``,
            the builder is that of the weights.
        top: number of classes for each file.
        batch_size: largest number of files in a batch.
        device: device of the network; by default a module's own, or the CPU.
        fallback: ``"decode"`` lets Pillow decode files that are no JPEG files in spite of their name, such as a
            PNG file called ``.jpg``; ``None`` treats them as errors.

    Returns:
        one result for each file, in order: ``path``, ``classes`` (``name``, ``probability``, ``number``, ``id``), or
        ``error``. A file that cannot be read does not affect the others.

    Raises:
        FileNotFoundError: a folder without any JPEG file or stream.
        TypeError: ``paths`` or ``model`` is something else.
        ValueError: an unknown name, ``fallback`` or device, or a number that is no integer or below 1.
        WeightsError: the weights that were asked for cannot be found or loaded.
        PairingError: network and codec do not fit.
        ImportError: a package that the network needs is not installed.
    """
    check_size("top", top)
    check_size("batch_size", batch_size)
    files = []
    given: Any = paths
    alone = isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable)
    for path in [given] if alone else given:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"classify takes a path or a sequence of paths, not {type(path).__name__}; "
                "cdzoo.bulk.classify.classify_bytes takes the bytes of files"
            )
        if not os.path.isdir(path):
            files.append(os.fspath(path))
            continue
        found = find_files(path, Networks.suffixes)
        if not found:
            raise FileNotFoundError(f"{os.fspath(path)}: no file ends in one of {', '.join(Networks.suffixes)}")
        files += [os.path.join(path, name) for name in found]
    check_fallback(fallback)
    try:
        device = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: {str(error).splitlines()[0]}") from None
    networks = Networks(model, weights, top=top, batch_size=batch_size, device=device, fallback=fallback)
    results: list[Classified | None] = [None] * len(files)
    for file, result in process(read_paths(files), networks):
        results[file.number] = Classified(file.name, error=result) if isinstance(result, Exception) else result
    done = [result for result in results if result is not None]
    if damaged := [result for result in done if result.damage]:
        first = damaged[0]
        warnings.warn(
            f"{len(damaged)} of {len(done)} files are damaged and were read as far as possible, first {first.path}: "
            f"{first.damage}",
            JPEGWarning,
            stacklevel=2,
        )
    return done
