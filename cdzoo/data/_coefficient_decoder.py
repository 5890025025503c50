"""JPEG files to coefficients, those of one geometry into one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from cdzoo.codecs import read_jpeg, read_jpeg_header
from cdzoo.data._decode import MAX_STREAM_BYTES, Decoder, in_threads
from cdzoo.data.collate import collate_coefficients
from cdzoo.errors import CdzooError, JPEGError
from cdzoo.jpeg._reader import Geometry
from cdzoo.jpeg.transforms import alignment, gray_to_ycbcr, upright
from cdzoo.types import JPEGCoefficients

__all__ = ["JPEG_SUFFIXES", "CoefficientDecoder", "Gray", "Sampling", "jpeg_error", "read_upright"]

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
Gray = Literal["keep", "ycbcr"]
Sampling = tuple[tuple[int, int], ...]

# A grey block of zeros, coded in two bits with tables of one code each.
_CODE = "01" + "00" * 16
_TINY = bytes.fromhex(
    f"ffd8 ffdb004300{'01' * 64} ffc0000b080008000801011100 ffc4001400{_CODE} ffc4001410{_CODE}"
    "ffda0008010100003f00 3f ffd9"
)


class CoefficientDecoder(Decoder[JPEGCoefficients]):
    """Decodes files of any geometries, on several threads if asked to.

    Raises:
        ValueError: an unknown ``gray``, a ``gray_sampling`` that cannot be, or less than one thread.
    """

    suffixes = JPEG_SUFFIXES
    error = JPEGError
    head_sizes = (1 << 12, 1 << 16, MAX_STREAM_BYTES)  # metadata come first, and may be of any length

    def __init__(
        self,
        transform: Callable[[JPEGCoefficients], JPEGCoefficients] | None,
        *,
        max_pixels: int | None,
        gray: Gray,
        gray_sampling: Sampling,
        num_threads: int | None,
    ) -> None:
        super().__init__(transform)
        if gray not in get_args(Gray):
            raise ValueError(f"gray must be 'keep' or 'ycbcr', not {gray!r}.")
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, or None for torch's number, not {num_threads}.")
        self._max_pixels, self._num_threads = max_pixels, num_threads
        self._gray_sampling = gray_sampling if gray == "ycbcr" else None
        # The compiled loops are loaded here, once, and not in every forked worker; wrong sampling shows here, too.
        gray_to_ycbcr(read_jpeg(_TINY), gray_sampling)

    @property
    def num_threads(self) -> int:
        return torch.get_num_threads() if self._num_threads is None else self._num_threads

    def bucket_key(self, head: bytes) -> Geometry:
        """Sampling, image size and colour space of the coefficients that this decoder would give."""
        header = read_jpeg_header(head)
        if header.color_space == "gray" and self._gray_sampling is not None:
            return Geometry(self._gray_sampling, header.image_size, "ycbcr")
        return Geometry(header.sampling, header.image_size, header.color_space)

    def named(self, error: CdzooError, name: str) -> CdzooError:
        return jpeg_error(error, name)

    def collate(self, samples: Any) -> Any:
        return collate_coefficients(samples)

    def _decode(self, files: Sequence[bytes]) -> list[JPEGCoefficients | CdzooError]:
        # Transforms give each file tensors of its own, so that one tensor for all would only be split and copied.
        if len(files) > 1 and self._transform is None:
            try:
                return _split(self._read(files, self.num_threads))
            except ValueError:  # geometries differ, or a file is damaged: alone it shows which one it is
                pass
        return in_threads(self._decode_one, files, self.num_threads)

    def _decode_one(self, file: bytes) -> JPEGCoefficients | CdzooError:
        try:
            return self._read(file, 1)
        except JPEGError as error:
            return error

    def _read(self, files: bytes | Sequence[bytes], num_threads: int) -> JPEGCoefficients:
        found = read_jpeg(files, num_threads=num_threads, max_pixels=self._max_pixels)
        return found if self._gray_sampling is None else gray_to_ycbcr(found, self._gray_sampling)


def read_upright(data: bytes, *, max_pixels: int | None, strict: bool = True) -> JPEGCoefficients:
    """The coefficients of a file as its Exif orientation wants it seen, but for those too small to be turned.

    Raises:
        JPEGError: as :func:`cdzoo.codecs.read_jpeg`.
    """
    header = read_jpeg_header(data, strict=strict)
    coefficients = read_jpeg(data, strict=strict, max_pixels=max_pixels)
    # an axis that is turned over needs a whole block, see upright; which ones, of the image as it is stored
    turned_over = (header.orientation in (3, 4, 6, 7), header.orientation in (2, 3, 7, 8))
    for size, step, over in zip(header.image_size, alignment(coefficients), turned_over, strict=True):
        if over and size < step:
            return coefficients
    return upright(coefficients, header.orientation)


def jpeg_error(error: CdzooError, name: str) -> JPEGError:
    """An error of the reader, which was given bytes without a name, with the name of the file."""
    return JPEGError(name + str(error).removeprefix("JPEG data"))


def _split(batch: JPEGCoefficients) -> list[JPEGCoefficients | CdzooError]:
    """Batches of one, which share the batch's memory."""
    planes = zip(*[torch.split(plane, 1) for plane in batch.planes], strict=True)
    return [
        batch._replace(planes=tuple(own), qtables=tables)
        for own, tables in zip(planes, torch.split(batch.qtables, 1), strict=True)
    ]
