"""Rows below a crop: not decoded with ``strict=False``, with the same result to the last bit."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from oracles.equality import same
from oracles.jpeg_files import encode, picture

from cdzoo.codecs import JPEGWarning, read_jpeg
from cdzoo.errors import JPEGError
from cdzoo.jpeg import _resized_files
from cdzoo.jpeg._reader import JPEGFile
from cdzoo.transforms import CoefficientTransform, RandomResizedCrop
from cdzoo.types import JPEGCoefficients

CENTER = CoefficientTransform(resize=40, crop=32)


@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [30, 75, 96])
def test_the_result_is_that_of_the_whole_file(quality: int, subsampling: str, progressive: bool) -> None:
    for seed, (size, orientation) in enumerate(itertools.product([(90, 250), (133, 37), (64, 64)], [1, 3, 6, 8])):
        image = picture(*size, "L" if seed == 2 else "RGB", seed=seed)
        exif = image.getexif()
        exif[0x0112] = orientation
        options = {"quality": quality, "subsampling": subsampling, "restart_marker_blocks": 7 * (seed % 3)}
        data = encode(image, progressive=progressive, exif=exif, **options)
        for transform in (
            CENTER,
            CoefficientTransform(crop=(16, 300), interpolation="bicubic"),
            RandomResizedCrop(24, scale=(0.05, 0.3)),
        ):
            torch.manual_seed(seed)
            whole = read_jpeg(data, transform=transform)  # strict: decodes everything
            torch.manual_seed(seed)
            assert same(read_jpeg(data, transform=transform, strict=False), whole)


@pytest.mark.parametrize("restart_blocks", [0, 5])
def test_damage_below_a_crop_counts_where_all_damage_does(restart_blocks: int) -> None:
    options = {"quality": 90, "progressive": True, "restart_marker_blocks": restart_blocks}
    data = encode(picture(40, 400), **options)
    longer = data[:-2] + bytes(8) + data[-2:]  # left over behind the last block of the last scan
    with pytest.raises(JPEGError, match="data are left over"):
        read_jpeg(longer, transform=CENTER)
    with pytest.warns(JPEGWarning, match="data are left over"):
        read_jpeg(longer, transform=CoefficientTransform(resize=40), strict=False)
    whole = read_jpeg(data, transform=CENTER)
    with warnings.catch_warnings(action="error"):
        assert same(read_jpeg(longer, transform=CENTER, strict=False), whole)


def test_files_that_end_too_early_are_found_all_the_same() -> None:
    data = encode(picture(40, 400), quality=90, progressive=True)
    for size in (len(data) - 2, len(data) - 40, len(data) // 2):
        with pytest.warns(JPEGWarning) as whole:
            coefficients = read_jpeg(data[:size], strict=False)
        with pytest.warns(JPEGWarning) as seen:
            found = read_jpeg(data[:size], transform=CENTER, strict=False)
        assert [str(warning.message) for warning in seen] == [str(warning.message) for warning in whole]
        assert same(found, CENTER(coefficients))


@pytest.mark.parametrize(
    ("quality", "options"),
    [(100, {}), (75, {"optimize": True}), (30, {"restart_marker_blocks": 11}), (90, {"progressive": True})],
)
def test_damage_beside_a_crop_is_found_as_in_the_whole_file(
    quality: int, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coefficients that the crop does not need are passed over, and yet every bit of them counts."""
    data = encode(picture(120, 160, seed=quality), quality=quality, **options)
    transform = CoefficientTransform(resize=60, crop=8)

    def outcome(damaged: bytes, *, at_once: bool) -> JPEGCoefficients | str:
        try:
            return read_jpeg(damaged, transform=transform) if at_once else transform(read_jpeg(damaged))
        except JPEGError as error:
            return str(error)

    with monkeypatch.context() as patch:  # the fast path needs no second try for a file in order
        patch.setattr(JPEGFile, "decode", None)
        if "progressive" not in options:
            patch.setattr(_resized_files, "_decoded", None)
        fast = outcome(data, at_once=True)
    assert same(fast, outcome(data, at_once=False))
    start, outcomes = data.index(b"\xff\xda") + 14, {str: 0, JPEGCoefficients: 0}
    for position in (*range(start, len(data) - 2, max(1, len(data) // 400)), len(data)):
        flipped = bytearray(data + b"\0")
        flipped[position] ^= 1 << position % 8
        expected = outcome(bytes(flipped), at_once=False)
        found = outcome(bytes(flipped), at_once=True)
        outcomes[type(expected)] += 1
        assert found == expected if isinstance(expected, str) else same(found, expected)
    assert min(outcomes.values()) > 0
