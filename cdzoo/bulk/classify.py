"""Files to labels: JPEG files from their coefficients, ``.cdz`` streams from their latents; no pixel is decoded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from cdzoo._checks import check_size
from cdzoo._files import JPEG_SUFFIXES, find_files
from cdzoo.bulk.classify_task import Classified, Classify
from cdzoo.bulk.engine import FILE_ERRORS, process, read_paths
from cdzoo.bulk.networks import Network, find_network, packaged_names
from cdzoo.bulk.plan import File
from cdzoo.codecs import Codec, JPEGWarning, read_header
from cdzoo.errors import BitstreamError, PairingError
from cdzoo.jpeg._sources import Fallback, check_fallback
from cdzoo.weights.enums import WeightsEnum, WeightsLike

__all__ = ["Classified", "Classify", "Networks", "check_kinds", "classify", "classify_bytes", "classify_files"]


class Networks:
    """The task that classifies a file, for :func:`~cdzoo.bulk.engine.process`.

    Args:
        model, weights: as for :func:`classify`.
        codec: the codec whose latents the network reads; by default the codec that the weights belong to.
        device: device of the networks; by default a module's own, or the CPU.
        on_load: called with every network when it is loaded.
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
        on_load: Callable[[Network], None] = lambda network: None,
        **options: Any,
    ) -> None:
        self._codec, self._device, self._on_load, self._options = codec, device, on_load, options
        self._given = None
        self._packaged: dict[tuple[str, WeightsEnum | None], Classify | Exception] = {}
        if model is not None or weights is not None:
            self._given = self._load(
                find_network(model, weights, codec), owned=not isinstance(model, nn.Module) and codec is None
            )

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
                    f"{type(self._given.network).__name__} does not read {suffix} files but {self._given.suffixes[0]}; "
                    "leave model and weights out, or name a network for these files"
                )
            return self._given
        if suffix in JPEG_SUFFIXES:
            named, codec = packaged_names("jpeg"), None
        else:
            header, codec = read_header(file.content), self._codec
            named = packaged_names(header.codec, header.fingerprint if codec is None else codec.fingerprint)
        if named not in self._packaged:
            try:
                self._packaged[named] = self._load(find_network(*named, codec), owned=codec is None)
            except (*FILE_ERRORS, ImportError) as error:
                self._packaged[named] = error if isinstance(error, FILE_ERRORS) else PairingError(str(error))
        found = self._packaged[named]
        if isinstance(found, Exception):
            raise found
        return found

    def _load(self, network: Network, *, owned: bool) -> Classify:
        task = Classify(network.module, owned=owned, **self._options)
        if self._device is not None:
            task.to(self._device)
        self._on_load(network)
        return task


def check_kinds(model: object, files: Sequence[str]) -> None:
    """Refuse streams for a network of timm, before its weights are downloaded.

    Raises:
        PairingError: the model is ``"timm/NAME"``, and all files are streams.
    """
    timm = isinstance(model, str) and model.startswith("timm/")
    if timm and files and all(file.lower().endswith(".cdz") for file in files):
        raise PairingError(
            f"{model} reads JPEG files, and there are only .cdz streams; leave model out, or name a network over "
            "latents"
        )


def classify_files(files: Iterable[File], networks: Networks) -> Iterator[Classified]:
    """The labels or the error of each file, as batches are finished."""
    for file, result in process(files, networks):
        yield _labels_or_error(file.name, result)


def _labels_or_error(name: str, result: Classified | Exception) -> Classified:
    return Classified(name, error=result) if isinstance(result, Exception) else result


def classify_bytes(contents: Sequence[bytes], networks: Networks) -> list[Classified]:
    """The labels or the error of JPEG files and ``.cdz`` streams in memory, in order, for servers.

    Args:
        contents: the bytes of each file. Bytes that begin as a JPEG file does are one, all others should be a stream.
        networks: keep it between calls, since it holds the loaded networks.

    Returns:
        one result for each file; its ``path`` is the file's number.
    """
    names = ("file.jpg" if content[:2] == b"\xff\xd8" else "file.cdz" for content in contents)
    files = [File(number, name, content) for number, (name, content) in enumerate(zip(names, contents, strict=True))]
    results: dict[int, Classified] = {}
    for file, result in process(files, networks):
        head = contents[file.number][:4]
        if isinstance(result, BitstreamError) and head and head[:3] != b"CDZ":
            result = BitstreamError(
                f"neither a JPEG file nor a .cdz stream: it begins with {head!r}; convert other formats to JPEG"
            )
        results[file.number] = _labels_or_error("", result)._replace(path=str(file.number))
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
        TypeError: ``paths`` or ``model`` is something else, or the network reads pixels.
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
    check_kinds(model, files)
    networks = Networks(model, weights, top=top, batch_size=batch_size, device=device, fallback=fallback)
    results: list[Classified | None] = [None] * len(files)
    for file, result in process(read_paths(files), networks):
        results[file.number] = _labels_or_error(file.name, result)
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
