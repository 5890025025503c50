"""Streams on disk to latents, any of them at any time."""

from __future__ import annotations

from collections.abc import Callable

from cdzoo.codecs import MAX_IMAGE_PIXELS, Codec
from cdzoo.data._dataset import Labels, SampleDataset
from cdzoo.data._decode import MAX_STREAM_BYTES, OnError
from cdzoo.data._stream_decoder import StreamDecoder
from cdzoo.data._webdataset import Paths
from cdzoo.types import Latent

__all__ = ["StreamDataset"]


class StreamDataset(SampleDataset[Latent]):
    """Map-style dataset of ``.cdz`` streams, in a folder or in WebDataset shards, that gives latents.

    Made for batches of one image size, which decode together::

        dataset = StreamDataset("imagenet-cdz/train", codec)
        sampler = SizeBucketSampler(dataset, batch_size=32, shuffle=True)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_latents, num_workers=4)

    Worker processes may be forked or spawned. They decode on the CPU with a copy of the codec, one thread each.

    A folder is searched with all its subfolders. Shards are indexed when the dataset is made, by a pass over their
    tar headers, and then read at random; :class:`~cdzoo.data.StreamShards` reads them front to back, without an
    index, where random access is slow or the shards are too many.

    Args:
        root: a folder of ``.cdz`` files or of ``.tar`` shards; or shards as a path, a glob, a brace list
            (``"train-{000..131}.tar"``), or a sequence of these.
        codec: the codec that wrote the streams.
        labels: ``"auto"``: class subfolders for a folder (``"folder"``, numbered in alphabetical order as in
            torchvision's ``ImageFolder``), ``.cls`` members for shards (``"cls"``). Or a mapping from each sample's
            name to its label, a function of its path (for shards, of its member's name), both called on making the
            dataset; or ``None`` for latents alone.
        transform: applied to each latent ``(1, M, h, w)``.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
        max_stream_bytes: refuse files and members of more bytes than this, before they are read.
        on_error: what happens to a batch in which a stream is damaged, of another codec, or cannot be read:
            ``"raise"``; ``"skip"``, which logs a warning (logger ``cdzoo.data``) and leaves the sample out; or a
            function of the error, which leaves it out too unless the function raises. A batch of which nothing is
            left repeats the sample that its worker read last, and raises if there is none. ``dataset[index]``
            raises always. Messages name the file. A subfolder that cannot be read is treated alike, on making the
            dataset; a class folder of which nothing can be read raises, since the others would be numbered anew.

    Attributes:
        names: each sample's name: its path below the folder, or its member's name.
        targets: each sample's label, or ``None`` without labels.
        classes: names of the classes, where the labels are class subfolders, otherwise ``None``.
        class_to_idx: their numbers, or ``None``.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: labels that do not fit, or unknown options.
        TypeError: labels of another kind, such as a list.
        BitstreamError: a damaged shard (with ``on_error="raise"``).
    """

    def __init__(
        self,
        root: Paths,
        codec: Codec,
        *,
        labels: Labels = "auto",
        transform: Callable[[Latent], Latent] | None = None,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        on_error: OnError = "raise",
    ) -> None:
        decoder = StreamDecoder(codec, transform, max_pixels)
        super().__init__(root, decoder, labels=labels, max_stream_bytes=max_stream_bytes, on_error=on_error)
        self._codec_name = decoder.codec.name

    def image_sizes(self) -> list[tuple[int, int] | None]:
        """``(H, W)`` of every image, from the first bytes of its stream: the bucket keys of streams."""
        return self.bucket_keys()

    def __repr__(self) -> str:
        return self._describe(f"{self._codec_name} streams")
