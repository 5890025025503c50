"""JPEG files in tar shards to coefficients, read front to back."""

from __future__ import annotations

from collections.abc import Callable

from cdzoo.codecs import MAX_IMAGE_PIXELS
from cdzoo.data._coefficient_decoder import CoefficientDecoder, Gray, Sampling
from cdzoo.data._decode import MAX_STREAM_BYTES, OnError
from cdzoo.data._shards import SampleShards, ShardLabels
from cdzoo.data._webdataset import Paths
from cdzoo.types import JPEGCoefficients

__all__ = ["CoefficientShards"]


class CoefficientShards(SampleShards[JPEGCoefficients]):
    """Iterable dataset of JPEG files in WebDataset shards (tar files with ``key.jpg``, ``key.cls``), that gives their
    DCT coefficients, in batches of one geometry: image size, sampling factors and colour space.

    Batches are made here, so that files of one geometry come together; the loader gets ``batch_size=None``::

        shards = CoefficientShards("train-{000..131}.tar", batch_size=32, shuffle=True, gray="ycbcr")
        loader = DataLoader(shards, batch_size=None, collate_fn=collate_coefficients, num_workers=4)
        for epoch in range(epochs):
            shards.set_epoch(epoch)
            for coefficients, labels in loader: ...

    Photographs of all sizes make many small batches. A ``transform`` that cuts them to one size may go with
    ``batch_size=None`` here and the loader's own ``batch_size``. Members are those called ``.jpg``, ``.jpeg``,
    ``.jpe`` or ``.jfif``, in any case. The Exif orientation is not applied.

    How shards are dealt out to ranks and workers, what the order depends on, and the arguments ``batch_size``,
    ``shuffle``, ``shuffle_buffer``, ``seed``, ``drop_last``, ``max_pending``, ``num_replicas`` and ``rank`` are as in
    :class:`~cdzoo.data.StreamShards`; ``transform``, ``gray``, ``gray_sampling``, ``num_threads``, ``max_pixels`` and
    ``max_stream_bytes`` as in :class:`~cdzoo.data.CoefficientDataset`.

    Args:
        shards: paths, globs, brace lists, a sequence of these, or a folder of ``.tar`` files.
        labels: ``"cls"`` for the integer in the ``.cls`` member, a mapping from names of the JPEG members, a
            function of that name as a path, or ``None`` for coefficients alone.
        on_error: what happens where a file, its label, or a shard cannot be read: ``"raise"``; ``"skip"``, which
            logs a warning (logger ``cdzoo.data``) and leaves out the sample or the rest of the shard; or a function of
            the error, which leaves it out too unless the function raises. Messages begin with the shard's path.

    Raises:
        FileNotFoundError: nothing there.
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
        on_error: OnError = "raise",
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        decoder = CoefficientDecoder(
            transform, max_pixels=max_pixels, gray=gray, gray_sampling=gray_sampling, num_threads=num_threads
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
