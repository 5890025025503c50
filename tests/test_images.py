"""Image files of every kind against their closed form, and damaged ones against the promise to say so."""

from __future__ import annotations

import gc
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdzoo.images import image_size, load_images, png_bytes, read_image, to_pillow

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def read(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    """What read_image makes of an image, as (H, W, 3) in 0..255."""
    image.save(path, **options)
    x = read_image(path)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert x.shape[:2] == (1, 3)
    assert x.min() >= 0
    assert x.max() <= 1
    return x[0].permute(1, 2, 0).double().numpy() * 255


def test_rgb_exactly(tmp_path: Path) -> None:
    assert np.abs(read(Image.fromarray(PIXELS), tmp_path / "a.png") - PIXELS).max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3000, 2)])
def test_any_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.abs(read(Image.fromarray(pixels), tmp_path / "a.png") - pixels).max() < 1e-4


def test_gray_and_bilevel(tmp_path: Path) -> None:
    gray = PIXELS[..., 0]
    assert np.abs(read(Image.fromarray(gray), tmp_path / "a.png") - gray[..., None]).max() < 1e-4
    bits = gray > 127
    assert np.abs(read(Image.fromarray(bits), tmp_path / "b.png") - 255 * bits[..., None]).max() < 1e-4


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_gray_keeps_its_precision(tmp_path: Path, suffix: str) -> None:
    gray = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    gray.flat[:2] = 0, 65535
    expected = gray[..., None].astype(np.float64) / 257  # 65535 / 255
    assert np.abs(read(Image.fromarray(gray), tmp_path / f"a{suffix}") - expected).max() < 1e-3


def test_integer_and_float_tiffs(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (5, 7))
    image = Image.fromarray(values.astype(np.int32))
    assert np.abs(read(image, tmp_path / "i.tif") - values[..., None] / 257).max() < 1e-3
    unit = RNG.random((5, 7)).astype(np.float32)
    assert np.abs(read(Image.fromarray(unit), tmp_path / "f.tif") - 255 * unit[..., None]).max() < 1e-3
    Image.fromarray(unit * 255).save(tmp_path / "g.tif")
    with pytest.raises(ValueError, match=r"g\.tif.*mode F outside \[0, 1\]"):
        read_image(tmp_path / "g.tif")


def test_palette_and_cmyk_as_pillow_converts_them(tmp_path: Path) -> None:
    palette = Image.fromarray(PIXELS).quantize(8)
    assert np.abs(read(palette, tmp_path / "p.png") - np.asarray(palette.convert("RGB"))).max() < 1e-4
    Image.frombytes("CMYK", (7, 5), RNG.bytes(5 * 7 * 4)).save(tmp_path / "c.tif")
    c, m, y, k = np.moveaxis(np.asarray(Image.open(tmp_path / "c.tif")).astype(int), -1, 0)
    expected = np.stack([(255 - v) * (255 - k) / 255 for v in (c, m, y)], axis=-1)
    found = read_image(tmp_path / "c.tif")[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - expected).max() <= 1


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (5, 7, 1), dtype=np.uint8)
    alpha.flat[:2] = 0, 255
    expected = (PIXELS * (alpha / 255.0)) + 255 * (1 - alpha / 255.0)
    rgba = Image.fromarray(np.concatenate([PIXELS, alpha], -1))
    assert np.abs(read(rgba, tmp_path / "rgba.png") - expected).max() <= 1
    la = Image.frombytes("LA", (7, 5), np.concatenate([PIXELS[..., :1], alpha], -1).tobytes())
    assert np.abs(read(la, tmp_path / "la.png") - expected[..., :1]).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    found = read(palette, tmp_path / "trns.png", transparency=1)
    assert np.abs(found[0] - [[10, 20, 30], [255, 255, 255]]).max() < 1e-4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    # what the tag says has been done to the picture, undone: rows and columns by hand
    flip = {1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1]}
    turn = {5: 1, 6: 4, 7: 3, 8: 2}
    upright = flip[orientation] if orientation in flip else flip[turn[orientation]].transpose(1, 0, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read(Image.fromarray(PIXELS), tmp_path / "a.png", exif=exif)
    assert np.abs(found - upright).max() < 1e-4


def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01garbage")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert read_image(tmp_path / "a.jpg").shape == (1, 3, 5, 7)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, :, 0, 0].tolist() == [1, 0, 0]


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a photograph")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"text\.jpg'.*cannot identify image file"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(ValueError, match=r"empty\.png'.*cannot identify image file"):
        read_image(str(tmp_path / "empty.png"))
    with pytest.raises(FileNotFoundError, match="missing"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


def test_the_error_of_an_unknown_format_names_no_object() -> None:
    with pytest.raises(ValueError, match="7 bytes: cannot identify image file; Pillow") as error:
        image_size(b"nothing")
    assert "object at" not in str(error.value)


def outcome(path: Path) -> tuple[int, ...] | str:
    """The shape of what was read, or "raised" for an error that names the file."""
    try:
        return tuple(read_image(path, max_pixels=10_000).shape)
    except ValueError as error:
        return "raised" if path.name in str(error) else str(error)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif", ".bmp"])
def test_truncated_and_damaged_files_raise_or_read(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(whole)
    data, path = whole.read_bytes(), tmp_path / f"bad{suffix}"
    for length in range(0, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        assert outcome(path) in ("raised", (1, 3, 24, 24))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"bad{suffix}"):
        read_image(path)
    for position in range(0, min(len(data), 600), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        assert outcome(path) == "raised" or len(outcome(path)) == 4


def test_no_file_is_left_open(tmp_path: Path) -> None:
    whole, half, text = tmp_path / "whole.tif", tmp_path / "half.tif", tmp_path / "text.tif"
    Image.fromarray(PIXELS).save(whole)
    half.write_bytes(whole.read_bytes()[:150])
    text.write_text("no picture")
    assert [len(outcome(path)) for path in (whole, half, text)] == [4, len("raised"), len("raised")]
    gc.collect()  # a file left open would warn here, and warnings are errors


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 40)).save(path)
    with pytest.raises(ValueError, match=r"a\.png': 30x40 pixels exceed the limit of 1199; .*max_pixels"):
        read_image(path, max_pixels=1199)
    assert read_image(path, max_pixels=1200).shape == (1, 3, 40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # Pillow warns from there on and refuses twice as much
    assert read_image(path).shape == (1, 3, 40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(ValueError, match=r"a\.png'.*1198"):
        read_image(path, max_pixels=None)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 4, 4), (4, 4), (1, 1, 3, 4, 4)])
def test_png_bytes_takes_one_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        png_bytes(torch.rand(shape))


def test_png_bytes_round_trip() -> None:
    x = torch.from_numpy(PIXELS.copy()).permute(2, 0, 1).float() / 255
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(x[None])))), PIXELS)
    beyond = x + torch.tensor([5.0, -5.0, 0.0]).view(3, 1, 1)
    expected = np.stack([np.full_like(PIXELS[..., 0], 255), np.zeros_like(PIXELS[..., 0]), PIXELS[..., 2]], -1)
    assert np.array_equal(np.asarray(to_pillow(beyond)), expected)


@pytest.mark.parametrize("size", [1, 24, 37])
def test_batches_are_resized_and_cropped_as_by_torchvision(tmp_path: Path, size: int) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = []
    for number, shape in enumerate([(40, 31, 3), (30, 55, 3), (37, 37, 3), (20, 90, 3)]):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1], exif=exif)
    batch = load_images(paths, size=size)
    assert batch.shape == (4, 3, size, size)
    transform = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    for path, x in zip(paths, batch, strict=True):
        assert torch.allclose(x, transform(read_image(path))[0], atol=1e-6)


def test_batches_of_equal_sizes_stay_as_they_are(tmp_path: Path) -> None:
    for name, shape in (("a.png", (5, 7)), ("b.png", (5, 7)), ("c.png", (7, 5))):
        Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / name)
    batch = load_images([tmp_path / "a.png", tmp_path / "b.png"])
    assert torch.equal(batch, torch.cat([read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png")]))
    assert torch.equal(load_images(tmp_path / "a.png"), batch[:1])
    with pytest.raises(ValueError, match=r"'.*a\.png' has 5x7 pixels and '.*c\.png' has 7x5; pass size="):
        load_images([tmp_path / "a.png", tmp_path / "c.png"])
    for bad in (0, 2.5, True):
        with pytest.raises(ValueError, match="size must be an integer"):
            load_images(tmp_path / "a.png", size=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no paths"):
        load_images([])


def test_only_paths_are_paths(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        for given in ([file.fileno()], bytes([file.fileno()]), [io.BytesIO(file.read())]):
            with pytest.raises(TypeError, match="load_images takes paths of image files, not"):
                load_images(given)  # type: ignore[arg-type]
        file.seek(0)  # a descriptor that was taken for a path would be closed now
