"""Pixels to coefficients and back, against Pillow's libjpeg."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from cdzoo.errors import JPEGError
from cdzoo.jpeg.dct import blockify, dct2d
from cdzoo.jpeg.files import read_jpeg, write_jpeg
from cdzoo.jpeg.pixels import SUBSAMPLINGS, decode_jpeg, encode_jpeg, quality_tables
from cdzoo.types import JPEGCoefficients

SIZES = [(48, 64), (45, 61), (17, 9), (4, 4), (1, 1)]


def smooth(*size: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Images ``(1, channels, H, W)`` without colors so strong that a decoder would clamp them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, channels, size[0] // 4 + 2, size[1] // 4 + 2, generator=generator)
    levels = F.interpolate(x, size=size, mode="bicubic").clamp(0, 1) * 0.4 + 0.3
    return (levels * 255).round() / 255


def to_pillow(x: Tensor) -> Image.Image:
    levels = (x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def from_pillow(data: bytes) -> Tensor:
    array = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)[None].double()


def test_tables_are_pillows_at_every_quality() -> None:
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
        tables = Image.open(file).quantization
        assert quality_tables(quality).flatten(1).tolist() == [tables[0], tables[1]]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("index", range(3))
def test_coefficients_are_libjpegs_up_to_its_rounding_of_colors(index: int, size: tuple[int, int]) -> None:
    x = smooth(*size)
    file = io.BytesIO()
    to_pillow(x).save(file, "JPEG", quality=85, subsampling=index)
    expected = read_jpeg(file.getvalue())
    ours = encode_jpeg(x, quality=85, subsampling=["4:4:4", "4:2:2", "4:2:0"][index])
    assert torch.equal(ours.qtables, expected.qtables)
    assert ours[2:] == expected[2:]
    for plane, reference in zip(ours.planes, expected.planes, strict=True):
        assert plane.dtype == torch.int16
        assert plane.shape == reference.shape
        assert (plane.int() - reference).abs().max() <= 1
        assert (plane != reference).sum() <= max(4, 0.03 * plane.numel())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_fancy_decode_is_libjpegs_up_to_rounding(subsampling: str, size: tuple[int, int]) -> None:
    coefficients = encode_jpeg(smooth(*size), quality=90, subsampling=subsampling)
    difference = decode_jpeg(coefficients, chroma="fancy").double() * 255 - from_pillow(write_jpeg(coefficients)[0])
    # one level from each rounded component, weighted by the color matrix, and half of one from the result
    assert difference.abs().max() < 3.3
    assert difference.abs().mean() < 0.65


def test_nearest_decode_replicates_chroma_samples() -> None:
    coefficients = encode_jpeg(smooth(21, 30), subsampling="4:2:0")
    y, cb, cr = (
        F.interpolate(
            decode_jpeg(
                JPEGCoefficients((plane,), coefficients.qtables[:, k : k + 1], ((1, 1),), size, "gray"),
                clamp=False,
                dtype=torch.float64,
            ),
            scale_factor=scale,
        )[:, 0, :21, :30]
        * 255
        for k, (plane, size, scale) in enumerate(
            zip(coefficients.planes, [(21, 30), (11, 15), (11, 15)], (1, 2, 2), strict=True)
        )
    )
    cb, cr = cb - 128, cr - 128
    rgb = torch.stack((y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb), 1) / 255
    decoded = decode_jpeg(coefficients, clamp=False, chroma="nearest", dtype=torch.float64)
    torch.testing.assert_close(decoded, rgb, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gray(size: tuple[int, int]) -> None:
    x = smooth(*size, channels=1)
    coefficients = encode_jpeg(x, quality=95, subsampling="4:2:0")
    assert coefficients[2:] == (((1, 1),), size, "gray")
    decoded = decode_jpeg(coefficients)
    assert decoded.shape == (1, 3, *size)
    assert (decoded.double() * 255 - from_pillow(write_jpeg(coefficients)[0])).abs().max() < 1.6
    file = io.BytesIO()
    to_pillow(x).save(file, "JPEG", quality=95)
    difference = coefficients.planes[0].int() - read_jpeg(file.getvalue()).planes[0]
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 0.02  # libjpeg's forward DCT works in integers


def test_rgb_files_have_no_color_conversion() -> None:
    planes = tuple((dct2d(blockify(smooth(8, 8, seed=k)[:, 0] * 255 - 128))).round().short() for k in range(3))
    tables = torch.ones(1, 3, 8, 8, dtype=torch.int32)
    decoded = decode_jpeg(JPEGCoefficients(planes, tables, ((1, 1),) * 3, (8, 8), "rgb"))
    expected = torch.cat([smooth(8, 8, seed=k)[:, :1] for k in range(3)], 1)
    assert (decoded - expected).abs().max() * 255 < 3


def test_round_trip_of_a_batch_at_the_best_quality() -> None:
    x = torch.cat([smooth(19, 23, seed=seed) for seed in range(3)])
    decoded = decode_jpeg(encode_jpeg(x, quality=100, subsampling="4:4:4"))
    assert decoded.dtype == torch.float32
    assert (decoded - x).abs().max() * 255 < 3


def test_clamping() -> None:
    x = (torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    coefficients = encode_jpeg(x, quality=30)
    free = decode_jpeg(coefficients, clamp=False)
    assert free.min() < 0
    assert free.max() > 1
    assert torch.equal(decode_jpeg(coefficients), free.clamp(0, 1))


def test_values_outside_the_range_are_clamped_when_encoding() -> None:
    x = smooth(8, 8) * 3 - 1
    assert torch.equal(encode_jpeg(x).planes[0], encode_jpeg(x.clamp(0, 1)).planes[0])


def test_half_precision_decodes_within_half_precision() -> None:
    coefficients = encode_jpeg(smooth(16, 16))
    half = decode_jpeg(coefficients, dtype=torch.float16)
    assert half.dtype == torch.float16
    assert (half.float() - decode_jpeg(coefficients)).abs().max() < 1.5e-3


@pytest.mark.parametrize("quality", [0, 101, 75.0, True])
def test_quality_is_checked(quality: int) -> None:
    with pytest.raises(ValueError, match=r"quality=.*1 to 100"):
        encode_jpeg(torch.zeros(1, 3, 8, 8), quality=quality)


def test_quality_may_be_any_integer() -> None:
    x = smooth(16, 16)
    for quality in (np.int64(60), np.uint8(60), torch.tensor(60)):
        coefficients = encode_jpeg(x, quality=quality)  # type: ignore[arg-type]
        assert torch.equal(coefficients.planes[0], encode_jpeg(x, quality=60).planes[0])
        assert torch.equal(coefficients.qtables, encode_jpeg(x, quality=60).qtables)
    for wrong in (True, np.True_, torch.tensor(True), 60.0):
        with pytest.raises(ValueError, match="takes integers of 1 to 100"):
            encode_jpeg(x, quality=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_no_coefficient_and_no_pixel(dtype: torch.dtype) -> None:
    x = smooth(45, 37)
    coefficients = encode_jpeg(x, quality=95)
    with torch.autocast("cpu", dtype):
        again = encode_jpeg(x, quality=95)
        pixels = decode_jpeg(coefficients, chroma="fancy")
    assert all(torch.equal(a, b) for a, b in zip(again.planes, coefficients.planes, strict=True))
    assert torch.equal(pixels, decode_jpeg(coefficients, chroma="fancy"))


def test_the_default_device_is_not_that_of_the_images() -> None:
    x = smooth(45, 37)
    coefficients = encode_jpeg(x)
    with torch.device("meta"):
        again, pixels = encode_jpeg(x), decode_jpeg(coefficients)
    assert all(torch.equal(a, b) for a, b in zip(again.planes, coefficients.planes, strict=True))
    assert torch.equal(pixels, decode_jpeg(coefficients))


@pytest.mark.parametrize("space", ["ycbcr", "rgb"])
@pytest.mark.parametrize("size", [(1, 1), (8, 16), (45, 37)])
def test_resized_coefficients_by_the_compiled_kernel(size: tuple[int, int], space: str) -> None:
    """Float32 coefficients at the size of the image, against matrix products in float64."""
    torch.manual_seed(0)
    grid = tuple(-(-n // 8) for n in size)
    planes = tuple(torch.randn(2, *grid, 8, 8) * 100 for _ in range(3))
    tables = torch.randint(1, 9, (2, 3, 8, 8), dtype=torch.int32)
    coefficients = JPEGCoefficients(planes, tables, ((1, 1),) * 3, size, space)
    expected = decode_jpeg(coefficients, clamp=False, dtype=torch.float64)
    found = decode_jpeg(coefficients, clamp=False)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    turned = coefficients._replace(planes=tuple(plane.transpose(3, 4) for plane in planes))  # not contiguous
    expected = decode_jpeg(turned, clamp=False, dtype=torch.float64)
    assert (decode_jpeg(turned, clamp=False) - expected).abs().max() < 2e-5 * expected.abs().max()


def test_resized_coefficients_keep_their_gradient() -> None:
    planes = tuple(torch.randn(1, 1, 2, 8, 8, requires_grad=True) for _ in range(3))
    tables = torch.ones(1, 3, 8, 8, dtype=torch.int32)
    decode_jpeg(JPEGCoefficients(planes, tables, ((1, 1),) * 3, (8, 16), "ycbcr"), clamp=False).sum().backward()
    assert all(plane.grad is not None for plane in planes)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # PyTorch's own, on its way to jvp
def test_transforms_of_functions_see_resized_coefficients() -> None:
    """Decoding is affine: its derivative in a direction is the difference that the direction makes."""
    tables = torch.ones(1, 3, 8, 8, dtype=torch.int32)
    start, direction = torch.randn(2, 3, 1, 1, 2, 8, 8)

    def decode(planes: Tensor) -> Tensor:
        return decode_jpeg(JPEGCoefficients(tuple(planes), tables, ((1, 1),) * 3, (8, 16), "ycbcr"), clamp=False)

    expected = decode(start + direction) - decode(start)
    torch.testing.assert_close(torch.func.jvp(decode, (start,), (direction,))[1], expected, atol=1e-5, rtol=0)
    with forward_ad.dual_level():
        dual = decode(forward_ad.make_dual(start, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected, atol=1e-5, rtol=0)
    both = torch.func.vmap(decode)(torch.stack([start, direction]))
    torch.testing.assert_close(both, torch.stack([decode(start), decode(direction)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8)])
def test_encode_refuses_what_is_no_batch_of_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images \(B, 3, H, W\)"):
        encode_jpeg(torch.zeros(shape))


def test_unknown_options() -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"subsampling='4:2:1'.*4:2:0"):
        encode_jpeg(x, subsampling="4:2:1")
    with pytest.raises(ValueError, match="chroma='bicubic'"):
        decode_jpeg(encode_jpeg(x), chroma="bicubic")


def test_decode_refuses_what_it_cannot_decode() -> None:
    good = encode_jpeg(torch.zeros(1, 3, 16, 16))
    with pytest.raises(JPEGError, match="color_space='lab'"):
        decode_jpeg(good._replace(color_space="lab"))
    with pytest.raises(JPEGError, match="cmyk files have 4 components"):
        decode_jpeg(good._replace(color_space="cmyk"))
    with pytest.raises(JPEGError, match="must divide the largest"):
        decode_jpeg(good._replace(sampling=((3, 2), (2, 1), (1, 1))))
    with pytest.raises(JPEGError, match=r"component 0 .* 20x16 px must be a plane"):
        decode_jpeg(good._replace(image_size=(20, 16)))
    with pytest.raises(JPEGError, match="gray files have 1 component"):
        decode_jpeg(good._replace(color_space="gray"))
