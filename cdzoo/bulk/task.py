"""Any number of files, a part at a time, whatever engine hands the parts to its workers.

A part is a shard, or some files of a folder. Its result is one Parquet table (and, from :class:`Compress`, one shard of
streams before it) that takes its name when it is complete. So a part can be begun anew at any time, by anybody, and
what is there is done.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from cdzoo._compose import CompressedDomainModel
from cdzoo._files import JPEG_SUFFIXES, read_file, write_atomically
from cdzoo._text import class_labels, explain, printable
from cdzoo.bulk.plan import Part
from cdzoo.codecs import Codec, read_header
from cdzoo.data._decode import bucketed
from cdzoo.data._webdataset import Member, read_member, read_samples
from cdzoo.data.coefficients import read_upright
from cdzoo.data.collate import collate_coefficients, collate_latents
from cdzoo.data.shard_writer import open_shard, sample_members
from cdzoo.data.streams import StreamDecoder
from cdzoo.errors import CdzooError
from cdzoo.images import IMAGE_SUFFIXES, decode_image, image_size
from cdzoo.transforms import CoefficientTransform
from cdzoo.types import JPEGCoefficients, Latent

__all__ = ["Classify", "Compress", "Task"]

In = TypeVar("In")
_MAX_BATCH_PIXELS = 1 << 22
_MAX_PENDING_BYTES = 1 << 28
_ABOUT_A_FILE = (CdzooError, ValueError, MemoryError)
"""What a damaged, huge or strange file can make a codec or network raise; anything else ends the part."""


class _File(NamedTuple):
    number: int
    name: str
    data: bytes
    sample: str
    label: int | None


class Task(ABC):
    """What is done with every file of a part; sent to workers whole.

    Attributes:
        suffixes: of the files wanted, in lower case.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, batch_size: int, max_pixels: int | None, max_stream_bytes: int, with_labels: bool) -> None:
        for name, value in {
            "batch_size": batch_size,
            "max_pixels": max_pixels,
            "max_stream_bytes": max_stream_bytes,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        self.batch_size, self.max_pixels, self.max_stream_bytes = batch_size, max_pixels, max_stream_bytes
        self.with_labels = with_labels

    @property
    def facts(self) -> dict[str, Any]:
        """What the result depends on, JSON-ready."""
        limits = {"max_pixels": self.max_pixels, "max_stream_bytes": self.max_stream_bytes}
        return {"batch_size": self.batch_size, "labels": self.with_labels, **limits}

    @property
    @abstractmethod
    def schema(self) -> Any:
        """Of the tables, as pyarrow has it; ``file`` comes first and ``error`` last."""

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move networks there."""

    @abstractmethod
    def write(self, part: Part, output: Path) -> None:
        """Do a part."""

    def _results(self, work: Callable[[Sequence[In]], Sequence[Any]], batch: Sequence[In]) -> Iterator[Any]:
        """Results of a batch, and errors in the place of those that have none: one must not take the others with it."""
        try:
            results = work(batch)
        except (*_ABOUT_A_FILE, RuntimeError) as error:
            if not isinstance(error, _ABOUT_A_FILE) and not _is_out_of_memory(error):
                raise
            # without its frames, whose tensors would not leave the memory to try again
            failure = error.with_traceback(None)
        else:
            yield from results
            return
        if len(batch) == 1:
            yield failure
            return
        for item in batch:
            yield from self._results(work, [item])

    def _batches(
        self,
        files: Iterator[In],
        key: Callable[[In], Hashable],
        pixels: Callable[[In], int],
        num_bytes: Callable[[In], int],
    ) -> Iterator[list[In]]:
        def size(item: In) -> int:
            return max(1, min(self.batch_size, _MAX_BATCH_PIXELS // max(1, pixels(item))))

        return bucketed(files, key, size=size, weight=num_bytes, max_pending=_MAX_PENDING_BYTES)

    def _read(self, part: Part, failed: Callable[[int, str, Exception], None]) -> Iterator[_File]:
        """The files of a part; those that cannot be read go to ``failed``."""
        place = part.folder if part.shard is None else os.path.dirname(part.shard)
        if not os.path.isdir(place):  # all of it at once: this machine does not see it
            raise FileNotFoundError(errno.ENOENT, "the source is not to be seen from here", place)
        if part.shard is None:
            for index, name in enumerate(part.files):
                try:
                    data = read_file(os.path.join(part.folder, name), self.max_stream_bytes, ValueError)
                except (OSError, ValueError) as error:
                    failed(index, name, error)
                    continue
                stem = Path(name).stem.replace(".", "_")
                label = None if part.labels is None else part.labels[index]
                yield _File(index, name, data, f"{part.first + index:09d}-{stem}", label)
            return
        shard = part.shard

        def load(file: BinaryIO, member: Member) -> bytes:
            return read_member(file, shard, member, self.max_stream_bytes)

        samples = read_samples(shard, self.suffixes, load, with_labels=self.with_labels)
        for index, sample in enumerate(samples):
            if isinstance(sample, Exception):
                failed(index, os.path.basename(shard), sample)
                continue
            name = sample.member.name
            folder, slash, base = name.rpartition("/")
            key = folder + slash + base.partition(".")[0]  # WebDataset's key ends at the first dot
            yield _File(index, name, sample.data, key, sample.label if self.with_labels else None)

    def _write_table(self, part: Part, output: Path, rows: dict[int, dict[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        ordered = [{"error": None, **rows[index]} for index in sorted(rows)]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ordered, self.schema), sink)
        write_atomically(output / part.table, sink.getvalue())


class Compress(Task):
    """Images to shards of ``.cdz`` streams."""

    suffixes = tuple(sorted(IMAGE_SUFFIXES))

    def __init__(self, codec: Codec, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(codec, Codec):
            raise TypeError(f"codec must be a cdzoo codec, not {type(codec).__name__}; build one with cdzoo.get_codec.")
        self.codec = copy.deepcopy(codec).cpu().eval()

    @property
    def facts(self) -> dict[str, Any]:
        return {**super().facts, "codec": self.codec.name, "fingerprint": self.codec.fingerprint}

    @property
    def schema(self) -> Any:
        return _schema(sample="string", bytes="int64", height="int32", width="int32")

    def to(self, device: torch.device | str) -> None:
        self.codec.to(device)

    def write(self, part: Part, output: Path) -> None:
        """The shard first, then the table, which says that both are there."""
        rows: dict[int, dict[str, Any]] = {}
        shard = output / part.table.replace(".parquet", ".tar")

        def failed(index: int, name: str, error: Exception) -> None:
            rows[index] = {"file": printable(name), "error": explain(error)}

        def size(file: _File) -> tuple[int, int] | None:
            try:
                return image_size(file.data)
            except ValueError:  # which decoding says again
                return None

        sized = ((size(file), file) for file in self._read(part, failed))
        batches = self._batches(sized, lambda item: item[0], _pixels, lambda item: len(item[1].data))
        names: set[str] = set()
        with contextlib.ExitStack() as stack:
            tar = None  # where no file is good there is no shard: readers take an empty one for damage
            for batch in batches:
                files = [file for _, file in batch]
                for file, stream in zip(files, self._results(self._compress, files), strict=True):
                    if isinstance(stream, Exception):
                        failed(file.number, file.name, stream)
                        continue
                    tar = stack.enter_context(open_shard(shard)) if tar is None else tar
                    # two members of a shard may differ in their extensions only
                    sample = f"{file.sample}-{file.number}" if file.sample in names else file.sample
                    names.add(sample)
                    for info, data in sample_members(sample, ".cdz", stream, file.label):
                        tar.addfile(info, io.BytesIO(data))
                    height, width = read_header(stream, max_pixels=None).image_size
                    row = {"file": printable(file.name), "sample": printable(sample), "bytes": len(stream)}
                    rows[file.number] = {**row, "height": height, "width": width}
        if tar is None:
            shard.unlink(missing_ok=True)  # of an earlier attempt, which still found some
        self._write_table(part, output, rows)

    @torch.no_grad()
    def _compress(self, batch: Sequence[_File]) -> list[bytes]:
        device = next(self.codec.parameters()).device
        images = [decode_image(file.data, max_pixels=self.max_pixels) for file in batch]
        if len({x.shape for x in images}) > 1:  # turned as their Exif data say
            return [stream for x in images for stream in self.codec.compress(x.to(device))]
        return self.codec.compress(torch.cat(images).to(device))


class Classify(Task):
    """``.cdz`` streams, or JPEG files, to classes."""

    def __init__(self, model: nn.Module, *, top: int, transforms: Callable[[Any], Any] | None, **options: Any) -> None:
        super().__init__(**options)
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}.")
        self.model, self.top = copy.deepcopy(model).cpu().eval(), top
        self._decoder: StreamDecoder | None = None
        if isinstance(model, CompressedDomainModel):
            if transforms is not None:
                raise ValueError(
                    "transforms are for JPEG networks; compose() has put in those of networks over latents."
                )
            self._decoder = StreamDecoder(model.codec, None, self.max_pixels)
            self._meta = getattr(model.model, "meta", {})
        elif getattr(model, "latent_stride", None) is not None:
            raise TypeError(f"{type(model).__name__} reads latents: put it behind its codec with cdzoo.compose.")
        else:
            found = getattr(model, "transforms", None) if transforms is None else transforms
            self._transforms = CoefficientTransform() if found is None else found
            self._meta = getattr(model, "meta", {})

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]
        return JPEG_SUFFIXES if self._decoder is None else StreamDecoder.suffixes

    @property
    def facts(self) -> dict[str, Any]:
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
        return {**super().facts, **of, "top": self.top, **codec}

    @property
    def schema(self) -> Any:
        return _schema(classes=["int32"], labels=["string"], probabilities=["float32"])

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    def write(self, part: Part, output: Path) -> None:
        """The table."""
        rows: dict[int, dict[str, Any]] = {}

        def failed(index: int, name: str, error: Exception) -> None:
            rows[index] = {"file": printable(name), "error": explain(error)}

        read = self._latents if self._decoder is not None else self._coefficients
        for batch in read(self._read(part, failed), failed):
            for (file, _), logits in zip(batch, self._results(self._classify, batch), strict=True):
                if isinstance(logits, Exception):
                    failed(file.number, file.name, logits)
                elif not logits.isfinite().all():
                    failed(file.number, file.name, ValueError("the network's logits are not finite"))
                else:
                    rows[file.number] = {"file": printable(file.name), **self._best(logits)}
        self._write_table(part, output, rows)

    def _latents(self, files: Iterator[_File], failed: Callable[[int, str, Exception], None]) -> Iterator[Any]:
        decoder = self._decoder
        assert decoder is not None

        def decode(batch: Sequence[tuple[Any, _File]]) -> list[Any]:
            return list(decoder.decode([file.data for _, file in batch]))

        sized: Iterator[Any] = ((decoder.bucket_key_or_none(file.data), file) for file in files)
        for batch in self._batches(sized, lambda item: item[0], _pixels, lambda item: len(item[1].data)):
            found = list(self._results(decode, batch))
            for (_, file), latent in zip(batch, found, strict=True):
                if isinstance(latent, Exception):
                    failed(file.number, file.name, latent)
            good = [(file, z) for (_, file), z in zip(batch, found, strict=True) if not isinstance(z, Exception)]
            if good:
                yield good

    def _coefficients(self, files: Iterator[_File], failed: Callable[[int, str, Exception], None]) -> Iterator[Any]:
        def read() -> Iterator[tuple[_File, JPEGCoefficients]]:
            for file in files:
                try:
                    coefficients = read_upright(file.data, max_pixels=self.max_pixels)
                    yield file, self._transforms(coefficients)
                except _ABOUT_A_FILE as error:
                    failed(file.number, file.name, error)

        def geometry(item: tuple[_File, JPEGCoefficients]) -> Hashable:
            c = item[1]
            return c.sampling, c.image_size, c.color_space, tuple(plane.shape for plane in c.planes)

        def num_bytes(item: tuple[_File, JPEGCoefficients]) -> int:
            return sum(plane.nbytes for plane in item[1].planes)

        return self._batches(read(), geometry, lambda item: math.prod(item[1].image_size), num_bytes)

    @torch.no_grad()
    def _classify(self, batch: Sequence[tuple[_File, Any]]) -> list[Tensor]:
        inputs = [item for _, item in batch]
        if isinstance(self.model, CompressedDomainModel):
            latent = collate_latents(inputs)
            assert isinstance(latent, Latent)
            return self._logits(self.model.from_latent(latent))
        found = collate_coefficients(inputs)
        assert isinstance(found, JPEGCoefficients)
        return self._logits(self.model(found.to(next(self.model.parameters()).device)))

    def _logits(self, found: Any) -> list[Tensor]:
        if not isinstance(found, Tensor) or found.dim() != 2:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"{type(self.model).__name__} gives {what}, not logits (B, num_classes); use a classifier.")
        return list(found.float().cpu())

    def _best(self, logits: Tensor) -> dict[str, Any]:
        labels = class_labels(self._meta, len(logits))
        best = logits.double().softmax(0).topk(min(self.top, len(logits)))
        classes = best.indices.tolist()
        return {
            "classes": classes,
            "labels": [labels[i]["label"] for i in classes],
            "probabilities": best.values.tolist(),
        }


def _pixels(item: tuple[tuple[int, int] | None, Any]) -> int:
    """Of an image whose size is known, or may be anything."""
    return 1 if item[0] is None else math.prod(item[0])


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _schema(**columns: Any) -> Any:
    import pyarrow as pa

    def kind(name: Any) -> Any:
        return pa.list_(kind(name[0])) if isinstance(name, list) else pa.type_for_alias(name)

    return pa.schema([(name, kind(own)) for name, own in {"file": "string", **columns, "error": "string"}.items()])
