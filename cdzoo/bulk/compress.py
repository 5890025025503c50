"""Images to ``.cdz`` streams, and streams to PNG files."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from cdzoo._checks import integer
from cdzoo._text import printable
from cdzoo.bulk.engine import Item, Task, process
from cdzoo.bulk.networks import packaged_codec
from cdzoo.bulk.plan import File, Part
from cdzoo.codecs import Codec, RateChoice, RateControl, StreamHeader, read_header
from cdzoo.data.shard_writer import open_shard, sample_members
from cdzoo.errors import BitstreamError, PairingError
from cdzoo.images import IMAGE_SUFFIXES, decode_image, image_size, png_bytes, reduced

__all__ = ["CompressTask", "CompressToTarget", "Decompress"]


class _ImageTask(Task):
    """A task that reads images of any format that Pillow reads, reduced to ``max_side``."""

    suffixes = tuple(sorted(IMAGE_SUFFIXES))

    def __init__(self, max_side: int | None, **options: Any) -> None:
        super().__init__(**options)
        if max_side is not None and (integer(max_side) or 0) < 1:
            raise ValueError(f"max_side={max_side!r} must be a positive integer, or None to keep the size")
        self.max_side = integer(max_side)

    def prepare(self, file: File) -> Item:
        """See :class:`~cdzoo.bulk.engine.Task`: batches of images of one size."""
        try:
            size = image_size(file.content)
        except ValueError:  # decoding raises it again
            size = None
        return Item(file, size, file.content, size, len(file.content))

    def _image(self, item: Item) -> Tensor:
        return reduced(decode_image(item.value, max_pixels=self.max_pixels), self.max_side)


class CompressTask(_ImageTask):
    """Compress images of any format that Pillow reads.

    Args:
        codec: the codec; copied.
        max_side: reduce images whose longer side has more pixels, before they are compressed; ``None`` reduces none.
        **options: as for :class:`~cdzoo.bulk.engine.Task`.

    Raises:
        TypeError: not a codec.
        ValueError: a limit below 1.
    """

    columns: ClassVar = {"sample": "string", "bytes": "int64", "height": "int32", "width": "int32"}

    def __init__(self, codec: Codec, *, max_side: int | None = None, **options: Any) -> None:
        super().__init__(max_side, **options)
        if not isinstance(codec, Codec):
            raise TypeError(f"codec must be a cdzoo codec, not {type(codec).__name__}; build one with cdzoo.get_codec")
        self.codec = copy.deepcopy(codec).cpu().eval()

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`~cdzoo.bulk.engine.Task`: the codec's name and fingerprint among them."""
        reduced_to = {} if self.max_side is None else {"max_side": self.max_side}
        return {**super().facts, "codec": self.codec.name, "fingerprint": self.codec.fingerprint, **reduced_to}

    def to(self, device: torch.device | str) -> None:
        """See :class:`~cdzoo.bulk.engine.Task`."""
        self.codec.to(device)

    @torch.no_grad()
    def run(self, items: Sequence[Item]) -> list[bytes]:
        """See :class:`~cdzoo.bulk.engine.Task`: bytes for each file."""
        images = [self._image(item) for item in items]
        # sizes are unequal after a header without its size, or with a wrong one; a single image is not copied
        if len(images) == 1 or len({x.shape for x in images}) > 1:
            return [stream for x in images for stream in self.codec.compress(x.to(self.codec.device))]
        return self.codec.compress(torch.cat(images).to(self.codec.device))

    def row(self, file: File, result: bytes) -> dict[str, Any]:
        """See :class:`~cdzoo.bulk.engine.Task`."""
        height, width = read_header(result, max_pixels=None).image_size
        return {"bytes": len(result), "height": height, "width": width}

    def write_part(self, part: Part, output: Path) -> None:
        """Write the shard of streams first, then the table, which marks both as complete."""
        rows: dict[int, dict[str, Any]] = {}
        shard = output / part.table.replace(".parquet", ".tar")
        names: set[str] = set()
        with contextlib.ExitStack() as stack:
            tar = None  # no shard without a good file: readers would take an empty one for damaged
            for file, result in process(self.read(part), self):
                rows[file.number] = row = {"file": printable(file.name), **self.row_or_error(file, result)}
                if isinstance(result, Exception):
                    continue
                tar = stack.enter_context(open_shard(shard)) if tar is None else tar
                # two members of a shard may differ in their extensions only
                sample = f"{file.sample}-{file.number}" if file.sample in names else file.sample
                names.add(sample)
                row["sample"] = printable(sample)
                for info, data in sample_members(sample, ".cdz", result, file.label):
                    tar.addfile(info, io.BytesIO(data))
        if tar is None:
            shard.unlink(missing_ok=True)  # of an earlier attempt, when there still was a good file
        self.write_table(part, output, rows)


class CompressToTarget(_ImageTask):
    """Compress each image at the best of several rates; results are :class:`~cdzoo.codecs.RateChoice`.

    Args:
        control: the codecs and the target.
        max_side: as for :class:`CompressTask`.
    """

    def __init__(self, control: RateControl, *, max_side: int | None = None) -> None:
        super().__init__(max_side, batch_size=1)
        self.control = control

    def to(self, device: torch.device | str) -> None:
        """See :class:`~cdzoo.bulk.engine.Task`."""
        for codec in self.control.codecs:
            codec.to(device)

    def run(self, items: Sequence[Item]) -> list[RateChoice]:
        """See :class:`~cdzoo.bulk.engine.Task`."""
        device = self.control.codecs[0].device
        return [choice for item in items for choice in self.control.compress(self._image(item).to(device))]


class Decompress(Task):
    """Decode streams to PNG files.

    Args:
        codec: the codec that wrote the streams; by default, for each stream, the packaged one with its fingerprint.
        device: device of the codecs.
    """

    suffixes = (".cdz",)

    def __init__(self, codec: Codec | None = None, *, device: torch.device | str = "cpu") -> None:
        super().__init__(batch_size=1)
        self._codec, self._device = codec, device
        self._packaged: dict[tuple[str, str], Codec] = {}

    def prepare(self, file: File) -> Item:
        """See :class:`~cdzoo.bulk.engine.Task`."""
        header = read_header(file.content, max_pixels=self.max_pixels)
        return Item(file, None, header, header.image_size, len(file.content))

    def run(self, items: Sequence[Item]) -> list[bytes]:
        """See :class:`~cdzoo.bulk.engine.Task`: bytes for each file."""
        results = []
        for item in items:
            codec = self._codec_of(item.value)
            try:
                latent = codec.decompress([item.file.content], max_pixels=self.max_pixels)
            except (BitstreamError, PairingError) as error:
                raise error.named(None) from error
            results.append(png_bytes(codec.decode(latent)))
        return results

    def _codec_of(self, header: StreamHeader) -> Codec:
        if self._codec is not None:
            return self._codec
        key = header.codec, header.fingerprint
        if key not in self._packaged:
            self._packaged[key] = packaged_codec(*key).to(self._device)
        return self._packaged[key]
