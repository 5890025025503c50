"""JPEG files on disk to coefficients, any of them at any time."""

from __future__ import annotations

from collections.abc import Callable

from cdzoo.codecs import MAX_IMAGE_PIXELS
from cdzoo.data._coefficient_decoder import CoefficientDecoder, Gray, Sampling
from cdzoo.data._dataset import Labels, SampleDataset
from cdzoo.data._decode import MAX_STREAM_BYTES, OnError
from cdzoo.data._webdataset import Paths
from cdzoo.jpeg._reader import Geometry
from cdzoo.types import JPEGCoefficients

__all__ = ["CoefficientDataset"]


class CoefficientDataset(SampleDataset[JPEGCoefficients]):
    """Map-style dataset of JPEG files, in a folder or in WebDataset shards, that gives their DCT coefficients.

    What :func:`cdzoo.codecs.read_jpeg` reads, a batch at a time. A batch has one geometry (image size, sampling
    factors, colour space), which the sampler sees to, or a transform that cuts images to one size::

        dataset = CoefficientDataset("imagenet/train", gray="ycbcr")
        sampler = SizeBucketSampler(dataset, batch_size=32, shuffle=True)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_coefficients, num_workers=4)

    Files are those called ``.jpg``, ``.jpeg``, ``.jpe`` or ``.jfif``, in any case. Images come as they are stored: the
    Exif orientation is not applied. Where it matters, :func:`cdzoo.codecs.read_jpeg_header` reports it, and ``upright``
    and ``rotate`` of :mod:`cdzoo.jpeg.transforms` turn coefficients without loss.

    Worker processes may be forked or spawned. Threads decode at the same time within one process; they serve where the
    batches are made in the main process, or where processes are dear.

    A folder is searched with all its subfolders. Shards are indexed when the dataset is made, by a pass over their
    tar headers, and then read at random; :class:`~cdzoo.data.CoefficientShards` reads them front to back, without an
    index, where random access is slow or the shards are too many.

    Args:
        root: a folder of JPEG files or of ``.tar`` shards; or shards as a path, a glob, a brace list
            (``"train-{000..131}.tar"``), or a sequence of these.
        labels: ``"auto"``: class subfolders for a folder (``"folder"``, numbered in alphabetical order as in
            torchvision's ``ImageFolder``), ``.cls`` members for shards (``"cls"``). Or a mapping from each sample's
            name to its label, a function of its path (for shards, of its member's name), both called on making the
            dataset; or ``None`` for coefficients alone.
        transform: applied to each file's coefficients, ``planes`` ``K x (1, Hb, Wb, 8, 8)`` int16.
        gray: ``"keep"`` gives grey files one plane; ``"ycbcr"`` makes them YCbCr with chroma planes of zeros, the same
            picture exactly, so that they share batches with files in colour. Before the transform.
        gray_sampling: the (vertical, horizontal) sampling factors that these grey files get; as the other files',
            4:2:0 by default.
        num_threads: files read at the same time; ``torch.get_num_threads()`` by default, 1 in a worker process.
        max_pixels: refuse images of more pixels than this; ``None`` for no limit.
        max_stream_bytes: refuse files and members of more bytes than this, before they are read.
        on_error: what happens to a batch in which a file is damaged, no JPEG of a supported kind, or cannot be read:
            ``"raise"``; ``"skip"``, which logs a warning (logger ``cdzoo.data``) and leaves the sample out; or a
            function of the error, which leaves it out too unless the function raises. A batch of which nothing is
            left repeats the sample that its worker read last, and raises if there is none. ``dataset[index]``
            raises always. Messages name the file. A subfolder that cannot be read is treated alike, on making the
            dataset; a class folder of which nothing can be read raises, since the others would be numbered anew.
            What a transform raises is raised, with a note that names the file.

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
        *,
        labels: Labels = "auto",
        transform: Callable[[JPEGCoefficients], JPEGCoefficients] | None = None,
        gray: Gray = "keep",
        gray_sampling: Sampling = ((2, 2), (1, 1), (1, 1)),
        num_threads: int | None = None,
        max_pixels: int | None = MAX_IMAGE_PIXELS,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        on_error: OnError = "raise",
    ) -> None:
        decoder = CoefficientDecoder(
            transform, max_pixels=max_pixels, gray=gray, gray_sampling=gray_sampling, num_threads=num_threads
        )
        super().__init__(root, decoder, labels=labels, max_stream_bytes=max_stream_bytes, on_error=on_error)

    def bucket_keys(self) -> list[Geometry | None]:
        """``(sampling, image_size, color_space)`` of every file before the transform, from its header.

        Read once and kept. What cannot be read raises, or is ``None`` and left out by
        :class:`~cdzoo.data.SizeBucketSampler`, as ``on_error`` says. Where a transform brings images to one size, give
        the sampler less to keep apart: ``[key and (key.sampling, key.color_space) for key in dataset.bucket_keys()]``.

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
