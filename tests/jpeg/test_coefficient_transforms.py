"""Transforms over JPEG coefficients, against the same transforms of the decoded pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cdzoo import data
from cdzoo.codecs import decode_jpeg, encode_jpeg, read_jpeg, read_jpeg_header, write_jpeg
from cdzoo.transforms import CoefficientTransform, LatentTransform, transform_from_config
from cdzoo.types import JPEGCoefficients

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0", "4:4:0")


def coded(height: int, width: int, subsampling: str = "4:2:0", *, batch: int = 2) -> JPEGCoefficients:
    torch.manual_seed(height * 1000 + width)
    return encode_jpeg(torch.rand(batch, 3, height, width), quality=90, subsampling=subsampling)


def decoded(coefficients: JPEGCoefficients, chroma: str = "nearest") -> Tensor:
    """The linear decode in float64."""
    exact = coefficients._replace(planes=tuple(plane.double() for plane in coefficients.planes))
    return decode_jpeg(exact, clamp=False, chroma=chroma)


def gray(height: int, width: int) -> JPEGCoefficients:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return read_jpeg(file.getvalue())


PIXELS: dict[str, tuple[Callable[[JPEGCoefficients], JPEGCoefficients], Callable[[Tensor], Tensor]]] = {
    "horizontal_flip": (data.horizontal_flip, lambda x: x.flip(-1)),
    "vertical_flip": (data.vertical_flip, lambda x: x.flip(-2)),
    "transpose": (data.transpose, lambda x: x.mT),
    "rotate 90": (lambda c: data.rotate(c, 90), lambda x: torch.rot90(x, 1, (-2, -1))),
    "rotate 180": (lambda c: data.rotate(c, 180), lambda x: torch.rot90(x, 2, (-2, -1))),
    "rotate 270": (lambda c: data.rotate(c, 270), lambda x: torch.rot90(x, 3, (-2, -1))),
    "rotate -90": (lambda c: data.rotate(c, -90), lambda x: torch.rot90(x, -1, (-2, -1))),
    "rotate 360": (lambda c: data.rotate(c, 360), lambda x: x),
    "crop": (lambda c: data.crop(c, 16, 32, 21, 33), lambda x: x[..., 16:37, 32:65]),
    "whole crop": (lambda c: data.crop(c, 0, 0, 48, 80), lambda x: x),
    "center_crop": (lambda c: data.center_crop(c, (17, 32)), lambda x: x[..., :17, 16:48]),
}


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("name", PIXELS)
def test_commutes_with_the_decode(name: str, subsampling: str) -> None:
    on_coefficients, on_pixels = PIXELS[name]
    c = coded(48, 80, subsampling)
    if name == "center_crop" and subsampling != "4:2:0":
        c = c._replace(sampling=c.sampling)
        top, left = (room // 2 // cell * cell for room, cell in zip((31, 48), data.alignment(c), strict=True))
        expected = decoded(c)[..., top : top + 17, left : left + 32]
    else:
        expected = on_pixels(decoded(c))
    out = on_coefficients(c)
    assert tuple(expected.shape[-2:]) == out.image_size
    assert all(plane.dtype == torch.int16 for plane in out.planes)
    assert out.qtables.dtype == torch.int32
    torch.testing.assert_close(decoded(out), expected, rtol=0, atol=1e-6)  # color is computed in another order
    # the result is a file again
    again = read_jpeg(write_jpeg(out))
    assert again.sampling == out.sampling
    assert all(torch.equal(a, b) for a, b in zip(again.planes, out.planes, strict=True))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_transpose_takes_any_size(subsampling: str) -> None:
    c = coded(37, 53, subsampling)
    torch.testing.assert_close(decoded(data.transpose(c)), decoded(c).mT, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(data.transpose(data.transpose(c)).planes, c.planes, strict=True))


def test_mirror_images_of_mirrored_upsampling() -> None:
    c = coded(48, 80)
    torch.testing.assert_close(
        decoded(data.rotate(c, 180), "fancy"), decoded(c, "fancy").flip(-1, -2), rtol=0, atol=1e-6
    )


def test_incomplete_blocks_raise_or_are_trimmed() -> None:
    c = coded(37, 53)
    for call, what, cell in (
        (lambda trim: data.horizontal_flip(c, trim=trim), "width of 53", (37, 48)),
        (lambda trim: data.vertical_flip(c, trim=trim), "height of 37", (32, 53)),
        (lambda trim: data.rotate(c, 90, trim=trim), "width of 53", (48, 37)),
        (lambda trim: data.rotate(c, 180, trim=trim), "width of 53", (32, 48)),
        (lambda trim: data.rotate(c, 270, trim=trim), "height of 37", (53, 32)),
    ):
        with pytest.raises(ValueError, match=f"a {what} is no multiple of 16"):
            call(False)
        assert call(True).image_size == cell
    expected = decoded(c)[..., :48].flip(-1)
    torch.testing.assert_close(decoded(data.horizontal_flip(c, trim=True)), expected, rtol=0, atol=1e-6)
    expected = torch.rot90(decoded(c)[..., :48], 1, (-2, -1))
    torch.testing.assert_close(decoded(data.rotate(c, 90, trim=True)), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no whole cell of 16"):
        data.horizontal_flip(coded(16, 9), trim=True)
    with pytest.raises(ValueError, match="angle=45"):
        data.rotate(c, 45)


def test_alignment() -> None:
    assert data.alignment(coded(16, 16, "4:2:0")) == (16, 16)
    assert data.alignment(coded(16, 16, "4:2:2")) == (8, 16)
    assert data.alignment(coded(16, 16, "4:4:0")) == (16, 8)
    c = coded(16, 16, "4:4:4")
    assert data.alignment(c) == data.alignment(c._replace(sampling=((2, 2),) * 3)) == (8, 8)
    assert data.alignment(gray(9, 9)) == (8, 8)


def test_crops_that_are_no_boxes_of_blocks() -> None:
    c = coded(48, 80)
    with pytest.raises(ValueError, match="multiples of 16 rows and 16 columns"):
        data.crop(c, 8, 0, 8, 8)
    for box in ((0, 0, 49, 80), (0, 0, 0, 8), (-16, 0, 16, 16), (32, 64, 16, 17)):
        with pytest.raises(ValueError, match="does not lie within 48x80"):
            data.crop(c, *box)
    assert data.center_crop(c, (1000, 32)).image_size == (48, 32)
    with pytest.raises(ValueError, match="at least 1"):
        data.center_crop(c, 0)


def low_frequency_decode(plane: Tensor, qtable: Tensor, factor: int) -> Tensor:
    """``(B, Hb * n, Wb * n)``, n = 8 / factor: the inverse DCT of length n of each block's corner, by definition."""
    n = 8 // factor
    basis = torch.zeros(n, n, dtype=torch.float64)
    for u in range(n):
        for x in range(n):
            basis[u, x] = math.sqrt((1 if u == 0 else 2) / n) * math.cos((2 * x + 1) * u * math.pi / (2 * n))
    corner = (plane.double() * qtable.double()[:, None, None])[..., :n, :n] / factor
    blocks = basis.T @ corner @ basis
    return blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(64, 128), (37, 53), (1, 1), (130, 9)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0", "4:2:2"])
def test_scale_keeps_the_low_frequency_corner(factor: int, size: tuple[int, int], subsampling: str) -> None:
    c = coded(*size, subsampling)
    exact = c._replace(planes=tuple(plane.double() for plane in c.planes))
    out = data.downscale(exact, factor)
    assert out.image_size == (-(-size[0] // factor), -(-size[1] // factor))
    luma = low_frequency_decode(c.planes[0], c.qtables[:, 0], factor)[:, : out.image_size[0], : out.image_size[1]]
    chroma = [low_frequency_decode(c.planes[k], c.qtables[:, k], factor) for k in (1, 2)]
    f = [max(pair[axis] for pair in c.sampling) for axis in (0, 1)]
    cb, cr = (
        x.repeat_interleave(f[0], 1).repeat_interleave(f[1], 2)[:, : out.image_size[0], : out.image_size[1]]
        for x in chroma
    )
    rgb = torch.stack(
        (luma + 1.402 * cr, luma - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587, luma + 1.772 * cb), 1
    )
    decode = decode_jpeg(out, clamp=False, chroma="nearest")
    torch.testing.assert_close(decode.double(), (rgb + 128) / 255, rtol=0, atol=1e-6)
    if factor > 1:
        single = data.downscale(c, factor)
        assert all(plane.dtype == torch.float32 for plane in single.planes)
        assert (single.qtables == 1).all()
    else:
        assert out is exact


def test_scale_under_autocast_on_any_default_device_by_any_integer() -> None:
    c = encode_jpeg(torch.rand(1, 3, 40, 24))
    expected = data.downscale(c, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        scaled = data.downscale(c, np.int64(2))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(scaled.planes, expected.planes, strict=True))
    assert [type(n) for n in scaled.image_size] == [int, int]
    assert data.center_crop(c, np.int64(16)).image_size == (16, 16)  # type: ignore[arg-type]


def test_scale_of_means() -> None:
    c = gray(64, 64)
    means = c.planes[0][..., 0, 0].double() * c.qtables[0, 0, 0, 0] / 8
    out = data.downscale(c._replace(planes=(c.planes[0].double(),)), 8)
    torch.testing.assert_close(decode_jpeg(out, clamp=False)[:, 0].double() * 255 - 128, means, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="factor=3"):
        data.downscale(c, 3)
    with pytest.raises(ValueError, match="factor=16"):
        data.Downscale(16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_undoes_exif_orientations(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80), np.uint8)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    stored = read_jpeg(file.getvalue())
    assert read_jpeg_header(file.getvalue()).orientation == orientation
    out = decode_jpeg(data.upright(stored, orientation))[0, 0] * 255
    with Image.open(file) as image:
        expected = torch.from_numpy(np.array(ImageOps.exif_transpose(image)).astype(np.float32))
    assert (out - expected).abs().max() <= 1  # the library's decode rounds
    with pytest.raises(ValueError, match="orientation=9"):
        data.upright(stored, 9)


@pytest.mark.parametrize("sampling", [((1, 1),) * 3, ((2, 2), (1, 1), (1, 1)), ((1, 2), (1, 1), (1, 1))])
def test_gray_files_among_color_ones(sampling: tuple[tuple[int, int], ...]) -> None:
    c = gray(37, 53)
    out = data.gray_to_ycbcr(c, sampling)
    assert (out.color_space, out.sampling) == ("ycbcr", sampling)
    torch.testing.assert_close(decoded(out), decoded(c).expand(-1, 3, -1, -1))
    read_jpeg(write_jpeg(out))
    assert data.gray_to_ycbcr(out, sampling) is out
    with pytest.raises(ValueError, match="the largest"):
        data.gray_to_ycbcr(c, ((1, 1), (2, 2), (1, 1)))


def test_random_transforms_draw_from_pytorch() -> None:
    c = coded(48, 80)
    flips = data.RandomHorizontalFlip(), data.RandomVerticalFlip()
    for module, flip in zip(flips, (data.horizontal_flip, data.vertical_flip), strict=True):
        flipped = 0
        for _ in range(40):
            plane = module(c).planes[0]
            assert torch.equal(plane, c.planes[0]) or torch.equal(plane, flip(c).planes[0])
            flipped += torch.equal(plane, flip(c).planes[0])
        assert 8 < flipped < 32
    assert data.RandomHorizontalFlip(p=0.0)(coded(37, 53)).image_size == (37, 48)  # one size, flipped or not
    assert data.RandomHorizontalFlip(p=1.0)(coded(37, 9)).image_size == (37, 9)  # nothing whole to flip
    corners = set()
    for _ in range(60):
        out = data.RandomCrop(32)(c)
        assert out.image_size == (32, 32)
        corners |= {
            (top, left)
            for top in (0, 16)
            for left in (0, 16, 32, 48)
            if torch.equal(out.planes[0], data.crop(c, top, left, 32, 32).planes[0])
        }
    assert len(corners) == 8
    assert {data.RandomRotation90()(c).image_size for _ in range(20)} == {(48, 80), (80, 48)}
    assert data.CenterCrop(16)(c).image_size == (16, 16)
    assert data.Downscale(2)(c).image_size == (24, 40)
    torch.manual_seed(3)
    one = data.RandomCrop(16)(c)
    torch.manual_seed(3)
    assert torch.equal(one.planes[0], data.RandomCrop(16)(c).planes[0])
    with pytest.raises(ValueError, match=r"p=1\.5"):
        data.RandomVerticalFlip(1.5)
    assert repr(data.RandomCrop((16, 32))) == "RandomCrop(size=(16, 32))"


def test_coefficient_transform() -> None:
    transform = CoefficientTransform(shorter_side=224)
    sizes = {(224, 224): 1, (300, 400): 1, (330, 330): 2, (427, 640): 2, (1080, 1920): 4, (3000, 4000): 8, (8, 8): 1}
    assert {size: transform.factor(size) for size in sizes} == sizes
    c = coded(48, 80)
    assert transform(c) is c
    assert CoefficientTransform()(c) is c
    assert CoefficientTransform(shorter_side=24)(c).image_size == (24, 40)
    for one in (CoefficientTransform(), transform, LatentTransform(size=(28, 28))):
        assert transform_from_config(one.config()) == one
    for config in ({"type": "CoefficientTransform", "size": 3}, {"type": "CoefficientTransform", "shorter_side": 0}):
        with pytest.raises(ValueError, match="CoefficientTransform"):
            transform_from_config(config)
    with pytest.raises(ValueError, match="unknown type 'Pixels'"):
        transform_from_config({"type": "Pixels"})


def test_other_names_do_the_same() -> None:
    c = encode_jpeg(torch.rand(1, 3, 32, 48))
    assert data.scale(c, 2).image_size == data.downscale(c, 2).image_size == (16, 24)
    assert data.Scale(2)(c).image_size == (16, 24)


def test_arguments_of_the_transform_may_be_given_in_order() -> None:
    assert CoefficientTransform(256, 224, "bicubic") == CoefficientTransform(
        resize=256, crop=224, interpolation="bicubic"
    )
