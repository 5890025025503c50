"""JPEG files to coefficients: a decoder, a map-style dataset, and an iterable dataset over shards."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, get_args

import torch

from cdzoo._checks import check_choice, check_flag, check_size
from cdzoo._files import JPEG_SUFFIXES
from cdzoo.codecs import MAX_IMAGE_PIXELS, JPEGWarning, read_jpeg, read_jpeg_header
from cdzoo.data._dataset import Labels, SampleDataset
from cdzoo.data._decode import MAX_STREAM_BYTES, Decoder, OnError, in_threads
from cdzoo.data._shards import SampleShards, ShardLabels
from cdzoo.data._webdataset import Paths
from cdzoo.data.collate import collate_coefficients
from cdzoo.errors import CdzooError, JPEGError
from cdzoo.images import image_size
from cdzoo.jpeg._sources import Fallback, NamedBytes, check_fallback
from cdzoo.jpeg.files import read_header_or_decode
from cdzoo.jpeg.geometry import COLUMNS_BACKWARDS, ROWS_BACKWARDS, Geometry
from cdzoo.jpeg.transforms import alignment, gray_to_ycbcr, upright
from cdzoo.transforms import CoefficientTransform, RandomResizedCrop
from cdzoo.types import JPEGCoefficients

__all__ = ["CoefficientDataset", "CoefficientDecoder", "CoefficientShards", "read_upright"]

Gray = Literal["keep", "ycbcr"]
Sampling = tuple[tuple[int, int], ...]

# A gray block of zeros, coded in two bits with tables of one code each.
_CODE = "01" + "00" * 16
_TINY = bytes.fromhex(
    f"ffd8 ffdb004300{'01' * 64} ffc0000b080008000801011100 ffc4001400{_CODE} ffc4001410{_CODE}"
    "ffda0008010100003f00 3f ffd9"
)


class CoefficientDecoder(Decoder[JPEGCoefficients]):
    """Decode files of any geometries, on several threads if asked to.

    Raises:
        ValueError: an unknown ``gray``, ``upright`` or ``fallback``, an impossible ``gray_sampling``, or less than one
            thread.
    """

    suffixes = JPEG_SUFFIXES
    error = JPEGError
    head_sizes = (1 << 12, 1 << 16, MAX_STREAM_BYTES)  # metadata of any length precede the frame header
    collate = staticmethod(collate_coefficients)

    def __init__(
        self,
        transform: Callable[[JPEGCoefficients], JPEGCoefficients] | None,
        *,
        max_pixels: int | None,
        gray: Gray,
        gray_sampling: Sampling,
        num_threads: int | None,
        strict: bool,
        upright: bool | None,
        fallback: Fallback | None = None,
    ) -> None:
        if upright is not None:
            check_flag("upright", upright)
        resizes = isinstance(transform, CoefficientTransform | RandomResizedCrop) and transform.resizes
        if resizes and upright is not None:
            transform = dataclasses.replace(transform, upright=upright)  # type: ignore[type-var]
        super().__init__(None if resizes else transform)
        self._resize = transform if resizes else None
        self._upright = getattr(transform, "upright", False) if upright is None else upright
        check_fallback(fallback)
        self._strict, self._fallback, self._warned = strict, fallback, False
        check_choice("gray", gray, get_args(Gray))
        if num_threads is not None:
            check_size("num_threads", num_threads)
        self._max_pixels, self._num_threads = max_pixels, num_threads
        self._gray_sampling = gray_sampling if gray == "ycbcr" else None
        # Loads the compiled loops here, once, and not in every forked worker; raises for an impossible sampling.
        gray_to_ycbcr(read_jpeg(_TINY), gray_sampling)

    @property
    def num_threads(self) -> int:
        """Files to read at the same time."""
        return torch.get_num_threads() if self._num_threads is None else self._num_threads

    def bucket_key(self, head: bytes) -> Geometry:
        """Sampling, image size and color space of the coefficients that this decoder would give."""
        try:
            header = read_jpeg_header(head, strict=self._strict)
        except JPEGError as error:
            if self._fallback is None or not error.unsupported:
                raise
            try:
                return Geometry(((1, 1),) * 3, image_size(head), "ycbcr")
            except ValueError:
                raise error from None
        if header.color_space == "gray" and self._gray_sampling is not None:
            return Geometry(self._gray_sampling, header.image_size, "ycbcr")
        return Geometry(header.sampling, header.image_size, header.color_space)

    def batch_key(self, file: bytes) -> Hashable:
        """See :class:`~cdzoo.data._decode.Decoder`; one key for all files if a transform brings them to one size."""
        if getattr(self._resize, "size", None) is not None:
            return "one size"  # whatever the file's own geometry
        return super().batch_key(file)

    def decode(self, files: Sequence[bytes], names: Sequence[str] | None = None) -> list[JPEGCoefficients | CdzooError]:
        """Coefficients or error of each file; warns once, of the first file that was read as far as possible."""
        own_names = ["JPEG data"] * len(files) if names is None else names
        named = [NamedBytes(file, name) for file, name in zip(files, own_names, strict=True)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self._decode_all(named)
        for warning in caught:
            if not isinstance(warning.message, JPEGWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
            elif not self._warned:
                self._warned = True
                first = warning.message
                text = f"{first.reason}; the file is damaged and was read as far as possible (later ones are not "
                text += "reported); pass strict=True to treat such files as errors"
                warnings.warn(JPEGWarning(text, first.num_missing, name=first.name), stacklevel=2)
        return found

    def _decode_all(self, files: Sequence[NamedBytes]) -> list[JPEGCoefficients | CdzooError]:
        # Transforms give each file tensors of its own, so that one tensor for all would only be split and copied.
        if len(files) > 1 and self._transform is None and (self._resize is not None or not self._upright):
            try:
                return _split(self._read(files, self.num_threads))
            except ValueError:  # geometries differ, or a file is damaged: read alone, it raises its own error
                pass
        return in_threads(self._decode_one, files, self.num_threads)

    def _decode_one(self, file: NamedBytes) -> JPEGCoefficients | CdzooError:
        try:
            return self._read(file, 1)
        except JPEGError as error:
            return error

    def _read(self, files: NamedBytes | Sequence[NamedBytes], num_threads: int) -> JPEGCoefficients:
        options: Any = {"strict": self._strict, "max_pixels": self._max_pixels, "fallback": self._fallback}
        if self._resize is not None:
            return read_jpeg(files, transform=self._resize, num_threads=num_threads, **options)
        if self._upright:
            assert isinstance(files, NamedBytes)
            found = read_upright(files.getvalue(), files.name, **options)
        else:
            found = read_jpeg(files, num_threads=num_threads, **options)
        return found if self._gray_sampling is None else gray_to_ycbcr(found, self._gray_sampling)


def read_upright(
    data: bytes,
    name: str = "JPEG data",
    *,
    max_pixels: int | None,
    strict: bool = True,
    fallback: Fallback | None = None,
) -> JPEGCoefficients:
    """Read a file and turn it as its Exif orientation says, except images too small to be turned exactly.

    Args:
        data: the file.
        name: its name in errors and warnings.
        max_pixels, strict, fallback: as for :func:`cdzoo.codecs.read_jpeg`.

    Raises:
        JPEGError: as :func:`cdzoo.codecs.read_jpeg`.
    """
    header, data = read_header_or_decode(data, name, strict=strict, max_pixels=max_pixels, fallback=fallback)
    coefficients = read_jpeg(NamedBytes(data, name), strict=strict, max_pixels=max_pixels)
    # flipping an axis of the stored image needs a whole block along it, see upright
    flipped = [header.orientation in backwards for backwards in (ROWS_BACKWARDS, COLUMNS_BACKWARDS)]
    for size, step, flip in zip(header.image_size, alignment(coefficients), flipped, strict=True):
        if flip and size < step:
            return coefficients
    return upright(coefficients, header.orientation)


def _split(batch: JPEGCoefficients) -> list[JPEGCoefficients | CdzooError]:
    """Batches of one, which share the batch's memory."""
    planes = zip(*[torch.split(plane, 1) for plane in batch.planes], strict=True)
    return [
        batch._replace(planes=tuple(own), qtables=tables)
        for own, tables in zip(planes, torch.split(batch.qtables, 1), strict=True)
    ]


class CoefficientDataset(SampleDataset[JPEGCoefficients]):
    """Map-style dataset of JPEG files, in a folder or in WebDataset shards, that gives their DCT coefficients.

    Photographs of any sizes share batches if a transform brings them to one size, upright::

        dataset = CoefficientDataset("imagenet/train", transform=CoefficientTransform(resize=256, crop=224))
        loader = DataLoader(dataset, batch_size=32, num_workers=4)

    Otherwise the files of a batch need one geometry (image size, sampling factors, color space), as the sampler gives::

        dataset = CoefficientDataset("imagenet/train", gray="ycbcr")
        sampler = SizeBucketSampler(dataset, batch_size=32, shuffle=True)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4)

    Files are those called ``.jpg``, ``.jpeg``, ``.jpe`` or ``.jfif``, in any case; hidden files are left out.

    Worker processes may be forked or spawned. Threads decode several files at the same time within one process; use
    them where the main process makes the batches, or where processes need too much memory.

    A folder is searched with all its subfolders. Shards are indexed when the dataset is made, by a pass over their
    tar headers, and then read at random. Where random access is slow or there are very many shards, use
    :class:`~cdzoo.data.CoefficientShards`, which reads them front to back without an index.

    Args:
        root: a folder of JPEG files or of ``.tar`` shards; or shards as a path, a glob, a brace list
            (``"train-{000..131}.tar"``), or a sequence of these.
        labels: as for :class:`~cdzoo.data.StreamDataset`.
        transform: applied to each file's coefficients, ``planes`` ``K x (1, Hb, Wb, 8, 8)`` int16. An error that it
            raises is raised, with a note that names the file. A :class:`cdzoo.transforms.CoefficientTransform` that
            resizes and a :class:`cdzoo.transforms.RandomResizedCrop` work while files are read, in ``num_threads``.
        gray: ``"keep"`` gives gray files one plane; ``"ycbcr"`` makes them YCbCr with chroma planes of zeros, the same
            picture exactly, so that they share batches with files in color. Applied before the transform.
        gray_sampling: the (vertical, horizontal) sampling factors that these gray files get; 4:2:0 by default.
        num_threads: files read at the same time; ``torch.get_num_threads()`` by default, 1 in a worker process.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
        max_stream_bytes: refuse files and members of more bytes than this, before they are read.
        strict: treat a damaged file as an error. Otherwise it is read as far as possible, and each process warns once
            (:class:`~cdzoo.codecs.JPEGWarning`).
        upright: turn images as their Exif orientation says. By default, as the transform says (a
            ``CoefficientTransform`` turns them); without a transform, images stay as they are stored. With ``resize``
            or ``crop``, this is exact at any size. Otherwise whole blocks change places: pixels behind the last whole
            cell of blocks are trimmed along a stored side that is mirrored, and images without a whole cell there
            stay as they are stored.
        fallback: ``"decode"`` lets Pillow decode files that are no JPEG files in spite of their name, as
            :func:`cdzoo.codecs.read_jpeg` does. ``None`` treats them as errors.
        on_error: as for :class:`~cdzoo.data.StreamDataset`.

    Attributes:
        names: each sample's name: its path below the folder, or its member's name.
        targets: each sample's label, or ``None`` without labels.
        classes: names of the classes, where the labels are class subfolders, otherwise ``None``.
        class_to_idx: their numbers, or ``None``.

    Raises:
        FileNotFoundError: no JPEG file or shard there.
        ValueError: labels that do not fit, or unknown options.
        TypeError: labels of another kind, such as a list.
        BitstreamError: a damaged shard (with ``on_error="raise"``).
    """

    def __init__(
        self,
        root: Paths,
        *,
        labels: Labels = "auto",
        transform: Callable[[JPEGCoefficients], JPEGCoefficients] | None = None,
        gray: Gray = "keep",
        gray_sampling: Sampling = ((2, 2), (1, 1), (1, 1)),
        num_threads: int | None = None,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        strict: bool = False,
        upright: bool | None = None,
        fallback: Fallback | None = None,
        on_error: OnError = "raise",
    ) -> None:
        decoder = CoefficientDecoder(
            transform,
            max_pixels=max_pixels,
            gray=gray,
            gray_sampling=gray_sampling,
            num_threads=num_threads,
            strict=strict,
            upright=upright,
            fallback=fallback,
        )
        super().__init__(root, decoder, labels=labels, max_stream_bytes=max_stream_bytes, on_error=on_error)

    def bucket_keys(self) -> list[Geometry | None]:
        """``(sampling, image_size, color_space)`` of every file before the transform, from its header.

        Headers are read once. A file that cannot be read raises, or has the key ``None`` and is left out by
        :class:`~cdzoo.data.SizeBucketSampler`, according to ``on_error``. Where a transform brings images to one size,
        give the sampler shorter keys: ``[key and (key.sampling, key.color_space) for key in dataset.bucket_keys()]``.

        Raises:
            JPEGError: a file whose header is damaged or of a kind that is not supported.
            OSError: a file that cannot be read.
        """
        return super().bucket_keys()

    def image_sizes(self) -> list[tuple[int, int] | None]:
        """``(H, W)`` of every image, as stored and before the transform; see :meth:`bucket_keys`."""
        return [None if key is None else key.image_size for key in self.bucket_keys()]

    def __repr__(self) -> str:
        return self._describe("JPEG files")


class CoefficientShards(SampleShards[JPEGCoefficients]):
    """Iterable dataset of JPEG files in WebDataset shards, that gives their DCT coefficients.

    Shards are tar files with ``key.jpg`` and ``key.cls``. Batches have one geometry: image size, sampling factors and
    color space. The dataset makes the batches, so that files of one geometry come together; give the loader
    ``batch_size=None``::

        shards = CoefficientShards("train-{000..131}.tar", batch_size=32, shuffle=True, gray="ycbcr")
        loader = DataLoader(shards, batch_size=None, collate_fn=collate_coefficients, num_workers=4)
        for epoch in range(epochs):
            shards.set_epoch(epoch)
            for coefficients, labels in loader: ...

    Photographs of many sizes give many small batches, unless ``transform`` is a
    :class:`cdzoo.transforms.CoefficientTransform` with one size. With other transforms to one size, use
    ``batch_size=None`` here and the loader's own ``batch_size``. Members are those called ``.jpg``, ``.jpeg``,
    ``.jpe`` or ``.jfif``, in any case.

    Ranks, workers, order and the arguments that are not listed here are as in :class:`~cdzoo.data.StreamShards`;
    ``fallback``, ``gray``, ``gray_sampling``, ``num_threads``, ``strict``, ``transform`` and ``upright`` are as in
    :class:`~cdzoo.data.CoefficientDataset`.

    Args:
        shards: paths, globs, brace lists, a sequence of these, or a folder of ``.tar`` files.
        labels: ``"cls"`` for the integer in the ``.cls`` member, a mapping from names of the JPEG members, a
            function of that name as a path, or ``None`` for coefficients alone.

    Raises:
        FileNotFoundError: no shard there.
        ValueError: unknown options, or fewer shards than ranks.
        TypeError: labels of another kind, such as a list.
    """

    def __init__(
        self,
        shards: Paths,
        *,
        batch_size: int | None = None,
        labels: ShardLabels = "cls",
        transform: Callable[[JPEGCoefficients], JPEGCoefficients] | None = None,
        gray: Gray = "keep",
        gray_sampling: Sampling = ((2, 2), (1, 1), (1, 1)),
        shuffle: bool = False,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        drop_last: bool = False,
        max_pending: int = 4096,
        num_threads: int | None = None,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        strict: bool = False,
        upright: bool | None = None,
        fallback: Fallback | None = None,
        on_error: OnError = "raise",
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        decoder = CoefficientDecoder(
            transform,
            max_pixels=max_pixels,
            gray=gray,
            gray_sampling=gray_sampling,
            num_threads=num_threads,
            strict=strict,
            upright=upright,
            fallback=fallback,
        )
        super().__init__(
            shards,
            decoder,
            batch_size=batch_size,
            labels=labels,
            shuffle=shuffle,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
            drop_last=drop_last,
            max_pending=max_pending,
            max_stream_bytes=max_stream_bytes,
            on_error=on_error,
            num_replicas=num_replicas,
            rank=rank,
        )

    def __repr__(self) -> str:
        return f"CoefficientShards({len(self.shards)} shards of JPEG files)"
