"""The task that labels files: JPEG files from their coefficients, streams from their latents."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cdzoo._checks import check_size
from cdzoo._compose import CompressedDomainModel
from cdzoo._files import JPEG_SUFFIXES
from cdzoo.bulk.engine import Item, Task
from cdzoo.bulk.plan import File
from cdzoo.codecs import JPEGWarning, read_jpeg
from cdzoo.data.coefficients import read_upright
from cdzoo.data.collate import collate_coefficients, collate_latents
from cdzoo.data.streams import StreamDecoder
from cdzoo.errors import BitstreamError, JPEGError, PairingError
from cdzoo.jpeg._sources import Fallback, check_fallback
from cdzoo.jpeg.files import read_header_or_decode
from cdzoo.jpeg.geometry import upright_size
from cdzoo.labels import Label, top_labels
from cdzoo.models.classifier import Classifier
from cdzoo.transforms import CoefficientTransform
from cdzoo.types import JPEGCoefficients, Latent

__all__ = ["Classified", "Classify"]


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
        model: a module of :func:`cdzoo.compose`, for streams, or a network over coefficients, for JPEG files. A copy
            of the network runs; see :meth:`~cdzoo.models.classifier.Classifier.for_inference`.
        top: number of classes in a result.
        transforms: for JPEG networks, applied to each file's coefficients; by default the network's own.
        strict: refuse damaged JPEG files; otherwise they are read as far as possible.
        fallback: ``"decode"`` lets Pillow decode files that are no JPEG files in spite of their name.
        owned: nobody else uses the model, so that it may run and be changed itself.
        **options: as for :class:`~cdzoo.bulk.engine.Task`.

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
        owned: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_size("top", top)
        check_fallback(fallback)
        self.top, self.strict, self.fallback = top, strict, fallback
        self._decoder: StreamDecoder | None = None
        self._transforms: Any = transforms
        network: Any = model
        if isinstance(model, CompressedDomainModel):
            if transforms is not None:
                raise ValueError(
                    "transforms are for JPEG networks; cdzoo.compose already applies those of networks over latents"
                )
            self._decoder = StreamDecoder(model.codec, None, self.max_pixels, owned=owned)
            network, self._transforms = model.model, model.transforms
        elif getattr(model, "latent_stride", None) is not None:
            raise TypeError(f"{type(model).__name__} reads latents: put it behind its codec with cdzoo.compose")
        elif transforms is None:
            self._transforms = getattr(model, "transforms", None) or CoefficientTransform()
        self.meta = getattr(network, "meta", None) or {}
        if isinstance(network, Classifier):
            self.network: Any = network.for_inference(inplace=owned)
        else:
            self.network = (network if owned else copy.deepcopy(network)).eval()

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]
        """See :class:`~cdzoo.bulk.engine.Task`."""
        return JPEG_SUFFIXES if self._decoder is None else StreamDecoder.suffixes

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`~cdzoo.bulk.engine.Task`: the hash of the network among them."""
        codec = {} if self._decoder is None else {"fingerprint": self._decoder.codec.fingerprint}
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        config = getattr(self._transforms, "__qualname__", "")
        if hasattr(self._transforms, "config"):
            config = self._transforms.config()
        of = {"model": type(self.network).__name__, "weights": digest.hexdigest(), "transforms": config}
        reading = {"strict": self.strict, "fallback": self.fallback}
        return {**super().facts, **of, "top": self.top, **reading, **codec}

    def to(self, device: torch.device | str) -> None:
        """See :class:`~cdzoo.bulk.engine.Task`."""
        self.network.to(device)

    def prepare(self, file: File) -> Item:
        """See :class:`~cdzoo.bulk.engine.Task`."""
        data = file.content
        if self._decoder is not None:
            size: Any = self._decoder.batch_key(data)
            return Item(file, size, (data, Classified(file.name, num_bytes=len(data))), size, len(data))
        num_bytes = len(data)
        with _damage([]):
            header, data = read_header_or_decode(
                data, file.name, strict=self.strict, max_pixels=self.max_pixels, fallback=self.fallback
            )
        upright = upright_size(header.image_size, header.orientation)
        about = Classified(file.name, num_bytes=num_bytes, image_size=upright)
        size = getattr(self._transforms, "size", None)
        if size is not None:  # the transform makes one batch of files of any geometries
            return Item(file, "jpeg", (data, about), size, len(data))
        assert self._transforms is not None
        with _damage([about]) as damaged:
            coefficients = read_upright(data, max_pixels=self.max_pixels, strict=self.strict)
        if coefficients.image_size == header.image_size:  # too small to be turned
            damaged[0] = damaged[0]._replace(image_size=header.image_size)
        c = self._transforms(coefficients)
        key = c[2:], tuple(plane.shape for plane in c.planes)
        return Item(file, key, (c, damaged[0]), c.image_size, sum(plane.nbytes for plane in c.planes))

    @torch.no_grad()
    def run(self, items: Sequence[Item]) -> list[Classified | Exception]:
        """See :class:`~cdzoo.bulk.engine.Task`: the best classes of each file."""
        inputs, about = map(list, zip(*[item.value for item in items], strict=True))
        batch: Any
        if self._decoder is None:
            if isinstance(inputs[0], bytes):
                with _damage(about) as about:
                    options: Any = {"strict": self.strict, "max_pixels": self.max_pixels}
                    batch = read_jpeg(inputs, transform=self._transforms, **options)
            else:
                batch = collate_coefficients(inputs)
            return self._labels(self._logits(batch), about)
        found: list[Any] = self._decoder.decode(inputs)
        results: list[Any] = [
            one.named(None) if isinstance(one, BitstreamError | PairingError) else one for one in found
        ]
        good = [i for i, latent in enumerate(results) if isinstance(latent, Latent)]
        if good:
            latents: Any = collate_latents([results[i] for i in good])
            # made here, because moving one to another device would move the decoder's codec too
            logits = CompressedDomainModel(self._decoder.codec, self.network, self._transforms).from_latent(latents)
            own = [about[i]._replace(image_size=results[i].image_size) for i in good]
            for i, result in zip(good, self._labels(logits, own), strict=True):
                results[i] = result
        return results

    def _logits(self, batch: JPEGCoefficients) -> Any:
        """The network's output; a network over pixels is known by its error."""
        batch = batch.to(next(self.network.parameters()).device)
        try:
            return self.network(batch)
        except (TypeError, AttributeError) as error:
            if type(batch).__name__ not in str(error):  # it read them, and went wrong later
                raise
            name, reason = type(self.network).__name__, str(error).partition("\n")[0]
            raise TypeError(
                f"{name} does not read JPEG coefficients ({reason}); cdzoo.ops.to_jpeg_domain(model) makes a network "
                'over coefficients of a CNN over pixels, and model="timm/NAME" takes one from timm'
            ) from error

    def _labels(self, logits: Any, about: Sequence[Classified]) -> list[Classified | Exception]:
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            name = type(self.network).__name__
            raise TypeError(f"{name} gives {what}, not logits (B, num_classes); use a classifier")
        results: list[Classified | Exception] = []
        for row, one in zip(logits.float().cpu(), about, strict=True):
            try:
                results.append(one._replace(classes=top_labels(row, self.meta, self.top)))
            except ValueError as error:
                results.append(error)
        return results

    def row(self, file: File, result: Classified) -> dict[str, Any]:
        """See :class:`~cdzoo.bulk.engine.Task`."""
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
