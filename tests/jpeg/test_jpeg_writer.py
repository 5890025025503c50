"""write_jpeg: the same integers come back, and other decoders see the same picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from oracles.equality import same
from PIL import Image

from cdzoo.jpeg.files import read_jpeg, read_jpeg_header, write_jpeg
from cdzoo.types import JPEGCoefficients


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width)
    y, x = np.mgrid[:height, :width]
    layers = [128 + 90 * np.sin(x / (3 + c) + y / 17) * np.cos(y / (9 - c)) for c in range(3)]
    pixels = np.stack(layers, -1) + rng.normal(0, 9, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def gray(blocks: torch.Tensor) -> JPEGCoefficients:
    """Coefficients ``(Hb, Wb, 8, 8)`` as a gray image."""
    rows, columns = blocks.shape[:2]
    ones = torch.ones((1, 1, 8, 8), dtype=torch.int32)
    return JPEGCoefficients((blocks[None].to(torch.int16),), ones, ((1, 1),), (8 * rows, 8 * columns), "gray")


OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0, "quality": 100},
    "progressive": {"progressive": True, "quality": 90},
    "restarts": {"restart_marker_blocks": 3, "quality": 30},
}


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (33, 17), (64, 48), (3, 90)])
def test_pillow_sees_the_same_picture(size: tuple[int, int], options: str, mode: str) -> None:
    data = encode(picture(*size, mode), **OPTIONS[options])
    coefficients = read_jpeg(data)
    (written,) = write_jpeg(coefficients)
    assert same(read_jpeg(written), coefficients)
    ours, theirs = Image.open(io.BytesIO(written)), Image.open(io.BytesIO(data))
    assert (ours.mode, ours.size) == (theirs.mode, theirs.size)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_rgb_stays_rgb() -> None:
    data = encode(picture(30, 20), keep_rgb=True, quality=95)
    coefficients = read_jpeg(data)
    assert coefficients.color_space == "rgb"
    (written,) = write_jpeg(coefficients)
    assert same(read_jpeg(written), coefficients)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(written))), np.asarray(Image.open(io.BytesIO(data))))


def test_ycck_and_cmyk_are_kept_apart() -> None:
    coefficients = read_jpeg(encode(picture(30, 20, "CMYK")))
    for space in ("cmyk", "ycck"):
        (written,) = write_jpeg(coefficients._replace(color_space=space))
        assert read_jpeg_header(written).color_space == space
        assert Image.open(io.BytesIO(written)).mode == "CMYK"
        assert Image.open(io.BytesIO(written)).info["adobe_transform"] == (2 if space == "ycck" else 0)


def test_batches_are_written_one_by_one() -> None:
    files = [encode(picture(40, 24), quality=quality) for quality in (20, 60, 95)]
    batch = read_jpeg(files)
    written = write_jpeg(batch)
    assert len(written) == 3
    assert same(read_jpeg(written), batch)
    for one, file in zip(written, files, strict=True):
        assert same(read_jpeg(one), read_jpeg(file))


def test_files_are_no_larger_than_optimized_ones() -> None:
    image = picture(256, 256)
    optimized = encode(image, quality=80, optimize=True)
    assert len(write_jpeg(read_jpeg(optimized))[0]) <= len(optimized) + 16


def test_the_whole_range_of_values() -> None:
    blocks = torch.zeros((4, 16, 8, 8))
    flat = blocks.view(-1, 64)
    for n in range(64):  # every position, every size, both signs
        size = n % 10 + 1
        flat[n, n] = (1 << size) - 1 if n % 2 else -(1 << (size - 1))
        flat[n, 63] = 1023 if n % 3 else -1023
        flat[n, 0] = 1023 if n % 2 else -1024  # differences of +-2047
    assert same(read_jpeg(write_jpeg(gray(blocks))[0]), gray(blocks))
    noise = torch.randint(-1023, 1024, (6, 5, 8, 8), generator=torch.Generator().manual_seed(0))
    assert same(read_jpeg(write_jpeg(gray(noise))[0]), gray(noise))


def test_codes_are_limited_to_sixteen_bits() -> None:
    """Counts like Fibonacci numbers make Huffman codes as deep as there are symbols."""
    symbols = [(run, size) for size in range(1, 5) for run in range(5)]  # (run, size) of one AC coefficient
    counts = [1, 2]
    while len(counts) < len(symbols):
        counts.append(counts[-1] + counts[-2])
    zigzag = [0, 1, 8, 16, 9, 2, 3]
    blocks = torch.zeros((-(-sum(counts) // 100), 100, 8, 8))
    flat = blocks.view(-1, 64)
    place = 0
    for (run, size), count in zip(symbols, counts, strict=True):
        flat[place : place + count, zigzag[1 + run]] = 1 << (size - 1)
        place += count
    (written,) = write_jpeg(gray(blocks))
    table = written.index(b"\xff\xc4", written.index(b"\xff\xc4") + 2)
    lengths = written[table + 5 : table + 21]
    assert sum(lengths) == len(symbols) + 1
    assert lengths[15] > 0  # the limit was reached
    assert sum(count << (15 - i) for i, count in enumerate(lengths)) <= (1 << 16) - 1
    assert same(read_jpeg(written), gray(blocks))
    Image.open(io.BytesIO(written)).load()


def test_sixteen_bit_quantization() -> None:
    coefficients = read_jpeg(encode(picture(20, 20)))
    coefficients.qtables[0, 1, 7, 7] = 65535
    (written,) = write_jpeg(coefficients)
    assert read_jpeg_header(written).kind == "extended"
    assert same(read_jpeg(written), coefficients)
    Image.open(io.BytesIO(written)).load()


def test_what_cannot_be_stored_is_refused() -> None:
    good = read_jpeg(encode(picture(40, 24)))
    blocks = torch.zeros((2, 3, 8, 8))
    for place, value in (((1, 2, 7, 7), 1024), ((1, 2, 0, 1), -1024), ((1, 2, 3, 3), -32768)):
        broken = blocks.clone()
        broken[place] = value
        with pytest.raises(ValueError, match=r"image 0, component 0, block \(1, 2\): .* 10 bits"):
            write_jpeg(gray(broken))
    for first, second in ((1024, -1024), (-32768, 0), (32767, -32768)):
        broken = blocks.clone()
        broken[0, 0, 0, 0], broken[0, 1, 0, 0] = first, second
        with pytest.raises(ValueError, match="DC differences"):
            write_jpeg(gray(broken))
    chroma = [plane.clone() for plane in good.planes]
    chroma[2][0, 1, 0, 1, 1] = 2000
    with pytest.raises(ValueError, match=r"component 2, block \(1, 0\)"):
        write_jpeg(good._replace(planes=tuple(chroma)))
    with pytest.raises(ValueError, match="color_space 'gray'"):
        write_jpeg(good._replace(color_space="gray"))
    with pytest.raises(ValueError, match="color_space 'lab'"):
        write_jpeg(good._replace(color_space="lab"))
    with pytest.raises(ValueError, match="65535"):
        write_jpeg(good._replace(image_size=(0, 40)))
    with pytest.raises(ValueError, match="asks for"):
        write_jpeg(good._replace(image_size=(24, 41)))
    with pytest.raises(ValueError, match="asks for"):
        write_jpeg(good._replace(planes=tuple(plane.int() for plane in good.planes)))
    with pytest.raises(ValueError, match="between 1 and 4"):
        write_jpeg(good._replace(sampling=((5, 1), (1, 1), (1, 1))))
    with pytest.raises(ValueError, match="from 1 to 65535"):
        write_jpeg(good._replace(qtables=torch.zeros_like(good.qtables)))
    with pytest.raises(ValueError, match="qtables of shape"):
        write_jpeg(good._replace(qtables=good.qtables[:, :2]))
