"""Photographs of any size at a network's size: against dense float64 matrices, torchvision, and Pillow's libjpeg."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles.slow import all_but_one
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cdzoo.errors import JPEGError
from cdzoo.jpeg.files import JPEGWarning, read_jpeg, write_jpeg
from cdzoo.jpeg.pixels import decode_jpeg, encode_jpeg
from cdzoo.transforms import CoefficientTransform, RandomResizedCrop
from cdzoo.types import JPEGCoefficients

TOLERANCE = 2e-5  # of the range of pixels
SAMPLINGS: dict[str, tuple[tuple[int, int], ...]] = {
    "4:4:4": ((1, 1), (1, 1), (1, 1)),
    "4:2:2": ((1, 2), (1, 1), (1, 1)),
    "4:2:0": ((2, 2), (1, 1), (1, 1)),
    "4:1:1": ((1, 4), (1, 1), (1, 1)),
    "4:4:0": ((2, 1), (1, 1), (1, 1)),
    "3x1": ((3, 1), (1, 1), (1, 1)),
    "luma below chroma": ((1, 1), (2, 2), (1, 2)),
    "gray": ((1, 1),),
}


def files(
    size: tuple[int, int], sampling: tuple[tuple[int, int], ...], *, batch: int = 1, space: str = "ycbcr", seed: int = 0
) -> JPEGCoefficients:
    """Random coefficients, whose energy falls with frequency as in photographs."""
    generator = np.random.default_rng(seed)
    largest = np.max(sampling, 0)
    planes = []
    for factors in sampling:
        own = [math.ceil(n * f / m) for n, f, m in zip(size, factors, largest, strict=True)]
        shape = (batch, math.ceil(own[0] / 8), math.ceil(own[1] / 8), 8, 8)
        energy = 60.0 / (1 + np.add.outer(np.arange(8), np.arange(8))) ** 2
        planes.append(torch.from_numpy((generator.standard_normal(shape) * energy).round().astype(np.int16)))
    tables = torch.from_numpy(generator.integers(1, 20, (batch, len(sampling), 8, 8)).astype(np.int32))
    return JPEGCoefficients(tuple(planes), tables, sampling, size, "gray" if len(sampling) == 1 else space)


# The reference: dense matrices in float64, written down from the definitions, with none of the package's code.


def idct_matrix() -> NDArray[np.float64]:
    m, u = np.mgrid[:8, :8]
    return np.cos((2 * m + 1) * u * np.pi / 16) * np.where(u == 0, math.sqrt(1 / 8), 0.5)


def upsampling_matrix(length: int, factor: int, fancy: bool) -> NDArray[np.float64]:
    """Samples of a component to pixels: libjpeg's triangle filter or replication."""
    samples = math.ceil(length / factor)
    matrix = np.zeros((length, samples))
    for i in range(length):
        if fancy and factor == 2:
            neighbor = i // 2 + (1 if i % 2 else -1)
            matrix[i, i // 2] += 3 / 4
            matrix[i, min(max(neighbor, 0), samples - 1)] += 1 / 4
        else:
            matrix[i, i // factor] = 1
    return matrix


def resizing_matrix(length: int, resized: int, cubic: bool) -> NDArray[np.float64]:
    """Antialiased resizing as Pillow defines it."""
    scale = length / resized
    wide = max(scale, 1.0)
    distance = np.abs((np.arange(length) + 0.5)[None] - (np.arange(resized) + 0.5)[:, None] * scale) / wide
    if cubic:
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    else:
        weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


def turned(image: NDArray[np.float64], orientation: int) -> NDArray[np.float64]:
    """Pixels ``(H, W)`` upright, by the table of the Exif standard."""
    return {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: x[::-1].T,
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: x[:, ::-1].T,
    }[orientation](image)


def reference_planes(c: JPEGCoefficients, orientation: int = 1, chroma: str = "fancy") -> list[NDArray[np.float64]]:
    """Upright components ``(H, W)`` of the first file, in levels, without the level shift."""
    basis, out = idct_matrix(), []
    largest = np.max(c.sampling, 0)
    for k, plane in enumerate(c.planes):
        blocks = plane[0].numpy().astype(np.float64) * c.qtables[0, k].numpy()
        samples = np.concatenate(np.concatenate(basis @ blocks @ basis.T, 1), 1)
        samples = samples.reshape(plane.shape[1] * 8, plane.shape[2] * 8)
        factor = [int(m // f) for m, f in zip(largest, c.sampling[k], strict=True)]
        rows, columns = (math.ceil(n / f) for n, f in zip(c.image_size, factor, strict=True))
        fancy = chroma == "fancy" and tuple(factor) in ((2, 1), (1, 2), (2, 2)) and (factor[1] == 1 or columns > 2)
        vertical = upsampling_matrix(c.image_size[0], factor[0], fancy)
        horizontal = upsampling_matrix(c.image_size[1], factor[1], fancy)
        out.append(turned(vertical @ samples[:rows, :columns] @ horizontal.T, orientation))
    return out


def reference(c: JPEGCoefficients, transform: CoefficientTransform, orientation: int = 1) -> NDArray[np.float64]:
    """RGB ``(3, h, w)`` in [0, 1] of the resized and cropped picture; black where the crop is larger."""
    planes = reference_planes(c, orientation, transform.chroma)
    size = planes[0].shape
    resized = size if transform.resize is None else transform.resize
    if isinstance(resized, int):
        short = min(size)
        resized = tuple(resized if n == short else int(resized * n / short) for n in size)
        if size[0] == size[1]:
            resized = (resized[0], resized[0])
    cubic = transform.interpolation == "bicubic"
    rows, columns = (resizing_matrix(n, m, cubic) for n, m in zip(size, resized, strict=True))
    rgb = colors(c.color_space, [rows @ plane @ columns.T for plane in planes])
    return rgb if transform.crop is None else tv.center_crop(torch.from_numpy(rgb), list(transform.crop)).numpy()


def colors(space: str, planes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    if space == "rgb":
        return (np.stack(planes) + 128) / 255
    y, cb, cr = planes if len(planes) == 3 else (planes[0], np.zeros(()), np.zeros(()))
    green = y - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587
    return (np.stack([y + 1.402 * cr, green, y + 1.772 * cb]) + 128) / 255


def pixels(c: JPEGCoefficients) -> NDArray[np.float64]:
    assert c.color_space == "ycbcr"
    assert c.sampling == ((1, 1),) * 3
    assert all(plane.dtype == torch.float32 for plane in c.planes)
    assert bool((c.qtables == 1).all())
    return decode_jpeg(c, clamp=False, dtype=torch.float64).numpy()


def with_orientation(data: bytes, orientation: int) -> bytes:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


@pytest.mark.parametrize(
    "seed", [seed if seed < 10 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(24)]
)
def test_any_file_any_target(seed: int) -> None:
    generator = np.random.default_rng(seed)
    name = list(SAMPLINGS)[seed % len(SAMPLINGS)]
    size = tuple(int(n) for n in generator.integers(1, 140, 2))
    c = files(size, SAMPLINGS[name], space=generator.choice(["ycbcr", "rgb"]), seed=seed)
    transform = CoefficientTransform(
        resize=[int(generator.integers(1, 90)), None, tuple(int(n) for n in generator.integers(1, 60, 2))][seed % 3],
        crop=[int(generator.integers(1, 70)), tuple(int(n) for n in generator.integers(1, 70, 2))][seed % 2],
        interpolation=str(generator.choice(["bilinear", "bicubic"])),
        chroma=str(generator.choice(["fancy", "nearest"])),
    )
    expected = reference(c, transform)
    result = transform(c)
    assert result.image_size == transform.size
    assert np.abs(pixels(result)[0] - expected).max() < TOLERANCE
    # the same map as matrix products
    products = transform(c._replace(planes=tuple(plane.float() for plane in c.planes)))
    assert np.abs(pixels(products)[0] - expected).max() < TOLERANCE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", all_but_one(["4:2:0", "4:2:2", "gray"], "4:2:0"))
def test_every_orientation_at_any_size(name: str, orientation: int) -> None:
    c = files((53, 94), SAMPLINGS[name], seed=orientation)
    data = with_orientation(write_jpeg(c)[0], orientation)
    for transform in (
        CoefficientTransform(resize=37, crop=(29, 45)),
        CoefficientTransform(resize=(70, 31), interpolation="bicubic"),
        CoefficientTransform(crop=(101, 40)),
    ):
        result = pixels(read_jpeg(data, transform=transform))[0]
        assert np.abs(result - reference(c, transform, orientation)).max() < TOLERANCE
    stored = CoefficientTransform(resize=37, crop=(29, 45), upright=False)
    assert np.abs(pixels(read_jpeg(data, transform=stored))[0] - reference(c, stored)).max() < TOLERANCE


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(375, 500), (500, 333), (90, 60), (256, 256), (1200, 1800)], ids=str)
def test_torchvision_resizes_the_linear_decode_to_the_same(size: tuple[int, int], interpolation: str) -> None:
    c = files(size, SAMPLINGS["4:2:0"], batch=2)
    mode = tv.InterpolationMode(interpolation)
    decoded = decode_jpeg(c, clamp=False, dtype=torch.float64)
    expected = tv.center_crop(tv.resize(decoded, [256], interpolation=mode, antialias=True), [224, 224])
    result = CoefficientTransform(resize=256, crop=224, interpolation=interpolation)(c)
    assert np.abs(pixels(result) - expected.numpy()).max() < TOLERANCE


def photograph(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(seed)
    small = generator.integers(60, 195, (size[0] // 9 + 2, size[1] // 9 + 2, 3), np.uint8)
    return Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def test_files_of_all_kinds_make_one_batch() -> None:
    sources = [
        saved(photograph((80, 120), 0), quality=90),
        saved(photograph((91, 67), 1), quality=75, subsampling=0, progressive=True),
        saved(photograph((64, 64), 2, "L")),
        saved(photograph((70, 50), 3, "CMYK"), quality=95),
        saved(photograph((50, 70), 4), keep_rgb=True, quality=95),
        with_orientation(saved(photograph((77, 120), 5), quality=95), 6),
    ]
    transform = CoefficientTransform(resize=48, crop=40)
    batch = read_jpeg(sources, transform=transform, num_threads=2)
    assert batch.planes[0].shape == (6, 5, 5, 8, 8)
    for i, data in enumerate(sources):
        one = read_jpeg(data, transform=transform)
        assert all(torch.equal(plane[i], own[0]) for plane, own in zip(batch.planes, one.planes, strict=True))
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if i == 5:
            image = image.transpose(Image.Transpose.ROTATE_270)
        decoded = torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255
        expected = tv.center_crop(tv.resize(decoded, [48], antialias=True), [40, 40])
        difference = np.abs(pixels(one)[0] - expected.numpy())
        assert difference.max() < 3.5 / 255, i  # Pillow rounds on the way
        assert difference.mean() < 0.6 / 255, i


def test_a_batch_needs_one_size() -> None:
    sources = [saved(photograph((80, 120), 0)), saved(photograph((91, 67), 1))]
    with pytest.raises(ValueError, match=r"source\[1\] has 43x32 px, but source\[0\] 32x48; give the transform crop="):
        read_jpeg(sources, transform=CoefficientTransform(resize=32))
    with pytest.raises(ValueError, match="must have the same geometry after the transform"):
        read_jpeg(sources, transform=CoefficientTransform(shorter_side=40))
    same = read_jpeg([sources[0]] * 2, transform=CoefficientTransform(shorter_side=40))
    assert same.image_size == (40, 60)
    with pytest.raises(JPEGError, match="each factor must divide the largest"):
        CoefficientTransform(crop=8)(files((16, 16), ((3, 1), (2, 1), (1, 1))))


@pytest.mark.parametrize("seed", range(6))
def test_random_boxes_are_torchvisions_resized_crops(seed: int) -> None:
    c = files((90 + 7 * seed, 130 - 9 * seed), SAMPLINGS["4:2:0"], batch=3, seed=seed)
    transform = RandomResizedCrop((41, 33), scale=(0.1, 0.9), interpolation=("bilinear", "bicubic")[seed % 2])
    torch.manual_seed(seed)
    boxes = [transform.place(c.image_size) for _ in range(3)]
    torch.manual_seed(seed)
    result = pixels(transform(c))
    decoded = decode_jpeg(c, clamp=False, dtype=torch.float64)
    mode = tv.InterpolationMode(transform.interpolation)
    for i, box in enumerate(boxes):
        place = (box.top, box.left, box.height, box.width)
        expected = tv.resized_crop(decoded[i], *place, [41, 33], interpolation=mode, antialias=True)
        expected = tv.horizontal_flip(expected) if box.mirrored else expected
        assert np.abs(result[i] - expected.numpy()).max() < TOLERANCE
    assert len(set(boxes)) == 3


def test_mirroring_is_after_the_orientation() -> None:
    c = files((53, 94), SAMPLINGS["4:2:0"])
    transform = RandomResizedCrop(40, scale=(1, 1), ratio=(1e-3, 1e3), flip=1.0)
    torch.manual_seed(1)
    place = transform.place((94, 53))
    torch.manual_seed(1)
    result = read_jpeg(with_orientation(write_jpeg(c)[0], 6), transform=transform)
    upright = np.stack([turned(plane, 6) for plane in colors("ycbcr", reference_planes(c))])
    box = (place.top, place.left, place.height, place.width)
    expected = tv.horizontal_flip(tv.resized_crop(torch.from_numpy(upright), *box, [40, 40], antialias=True))
    assert np.abs(pixels(result)[0] - expected.numpy()).max() < TOLERANCE


def test_boxes_are_distributed_as_torchvisions() -> None:
    transform = RandomResizedCrop(8, flip=0.25)
    places = [transform.place((60, 100)) for _ in range(2000)]
    areas = np.array([p.height * p.width / 6000 for p in places])
    assert areas.min() > 0.07
    assert areas.max() <= 1
    assert 0.2 < np.mean([p.mirrored for p in places]) < 0.3
    assert all(0 <= p.top <= 60 - p.height and 0 <= p.left <= 100 - p.width for p in places)
    narrow = RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1)).place((60, 100))
    assert (narrow.top, narrow.left, narrow.height, narrow.width) == (0, 20, 60, 60)


def test_settings() -> None:
    for transform in (
        CoefficientTransform(resize=256, crop=224),
        CoefficientTransform(resize=(30, 40), interpolation="bicubic", chroma="nearest", upright=False),
        CoefficientTransform(shorter_side=24),
    ):
        assert CoefficientTransform.from_config(transform.config()) == transform
    assert CoefficientTransform(resize=[256], crop=[224]) == CoefficientTransform(resize=256, crop=(224, 224))
    assert CoefficientTransform(resize=256).size is None
    assert CoefficientTransform(resize=(3, 4)).size == (3, 4)
    for settings in (
        {"resize": 0},
        {"resize": 2.5},
        {"crop": (1, 2, 3)},
        {"crop": True},
        {"interpolation": "nearest"},
        {"chroma": "smooth"},
        {"shorter_side": 3, "crop": 2},
        {"upright": "no"},
        {"upright": None},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            CoefficientTransform(**settings)
    for settings in ({"scale": (0, 1)}, {"ratio": (2, 1)}, {"flip": 2}, {"upright": "no"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            RandomResizedCrop(8, **settings)


@pytest.mark.parametrize("space", ["cmyk", "ycck"])
def test_inks_become_rgb_as_in_pillow(space: str) -> None:
    """Pillow reads CMYK and YCCK files as Adobe writes them, with inverted inks."""
    image = photograph((45, 61), 7)
    base = encode_jpeg(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255, quality=95, subsampling="4:4:4")
    black = encode_jpeg(torch.full((1, 1, 45, 61), 0.75), quality=95)
    planes: tuple[Tensor, ...] = (*base.planes, *black.planes)
    tables = torch.cat((base.qtables, black.qtables), 1)
    c = JPEGCoefficients(planes, tables, ((1, 1),) * 4, (45, 61), space)
    decoded = np.array(Image.open(io.BytesIO(write_jpeg(c)[0])).convert("RGB")).transpose(2, 0, 1) / 255
    assert np.abs(decode_jpeg(c).numpy()[0] - decoded).max() < 3.5 / 255
    transform = CoefficientTransform(resize=32, crop=24)
    expected = tv.resize(decode_jpeg(c, clamp=False, dtype=torch.float64), [32], antialias=True)
    assert np.abs(pixels(transform(c)) - tv.center_crop(expected, [24, 24]).numpy()).max() < TOLERANCE


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0", "4:4:0"])
@pytest.mark.parametrize("height", [150, 161])
def test_inks_are_converted_band_by_band(height: int, subsampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.from_numpy(np.array(photograph((height, 61), 7))).permute(2, 0, 1)[None] / 255
    base = encode_jpeg(image, quality=95, subsampling=subsampling)
    black = encode_jpeg(image.mean(1, keepdim=True).clamp(0.3, 0.9), quality=95)
    tables = torch.cat((base.qtables, black.qtables), 1)
    sampling = (*base.sampling, base.sampling[0])
    c = JPEGCoefficients((*base.planes, *black.planes), tables, sampling, (height, 61), "ycck")
    twice = JPEGCoefficients(tuple(p.repeat(2, 1, 1, 1, 1) for p in c.planes), tables.repeat(2, 1, 1, 1), *c[2:])
    monkeypatch.setattr("cdzoo.jpeg.resize._BAND_PIXELS", 16 * 61)  # a row of MCUs, or two
    transform = CoefficientTransform(resize=32, crop=(40, 30))
    expected = tv.resize(decode_jpeg(c, clamp=False, dtype=torch.float64), [32], antialias=True)
    expected = tv.center_crop(expected, [40, 30])
    found = decode_jpeg(transform(twice), clamp=False)
    assert torch.equal(found[0], found[1])
    assert (found[:1] - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("restart_rows", [0, 1, 2])
@pytest.mark.parametrize("kind", ["4:4:4", "4:2:2", "4:2:0", "gray", "progressive"])
@pytest.mark.parametrize("size", [(90, 133), (37, 250), (203, 18)], ids=str)
def test_one_pass_over_a_file_gives_what_its_coefficients_give(
    size: tuple[int, int], kind: str, restart_rows: int
) -> None:
    image = photograph(size, 1, "L" if kind == "gray" else "RGB")
    options = {"quality": 90, "restart_marker_rows": restart_rows, "progressive": kind == "progressive"}
    if kind in ("4:4:4", "4:2:2", "4:2:0"):
        options["subsampling"] = kind
    data = saved(image, **options)
    for transform in (
        CoefficientTransform(resize=48, crop=40),
        CoefficientTransform(resize=150, crop=(140, 60), interpolation="bicubic"),
        CoefficientTransform(crop=16),
    ):
        expected = transform(read_jpeg(data))
        for strict in (True, False):
            found = read_jpeg(data, transform=transform, strict=strict)
            assert all(torch.equal(a, b) for a, b in zip(found.planes, expected.planes, strict=True))


def after_reading(data: bytes, transform: CoefficientTransform) -> JPEGCoefficients | str:
    try:
        return transform(read_jpeg(data))
    except JPEGError as error:
        return str(error)


def while_reading(data: bytes, transform: CoefficientTransform) -> JPEGCoefficients | str:
    try:
        return read_jpeg(data, transform=transform)
    except JPEGError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore::cdzoo.jpeg.files.JPEGWarning")
def test_damaged_files_are_resized_as_they_are_read() -> None:
    transform = CoefficientTransform(resize=48, crop=40)
    generator = np.random.default_rng(0)
    whole = saved(photograph((90, 133), 1), quality=90, restart_marker_rows=1)
    start = whole.index(b"\xff\xda") + 14
    raised = 0
    for i in range(60):
        data = bytearray(whole)
        if i % 3 == 0:
            del data[int(generator.integers(start, len(data))) :]
        for place in generator.integers(start, len(data), 1 + i % 4) if i % 3 else ():
            data[place] = generator.integers(256)
        expected, found = after_reading(bytes(data), transform), while_reading(bytes(data), transform)
        if isinstance(expected, str):
            assert found == expected
            raised += 1
            expected = transform(read_jpeg(bytes(data), strict=False))
            found = read_jpeg(bytes(data), transform=transform, strict=False)
        assert not isinstance(found, str)
        assert all(torch.equal(a, b) for a, b in zip(found.planes, expected.planes, strict=True))
    assert raised > 20


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_rest_below_a_crop_is_decoded_where_all_damage_counts(rows: int) -> None:
    data = saved(photograph((400, 40), 1), quality=90, restart_marker_rows=rows)
    top = RandomResizedCrop(40, scale=(1, 1), ratio=(1, 1))
    broken = data[:-200]
    transform = CoefficientTransform(resize=40, crop=40)
    with pytest.raises(JPEGError, match="end too early"):
        read_jpeg(broken, transform=transform)
    with warnings.catch_warnings(action="error"):
        expected = read_jpeg(data, transform=transform, strict=False)
    for size in (len(broken), len(data) - 2, len(data) - 1):
        with pytest.warns(JPEGWarning) as whole:
            read_jpeg(data[:size], strict=False)
        with pytest.warns(JPEGWarning) as seen:
            found = read_jpeg(data[:size], transform=transform, strict=False)
        assert [str(warning.message) for warning in seen] == [str(warning.message) for warning in whole]
        assert all(torch.equal(a, b) for a, b in zip(found.planes, expected.planes, strict=True))
    assert read_jpeg(data, transform=top).image_size == (40, 40)
