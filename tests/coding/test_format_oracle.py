"""Streams decode to the same latent by an independent reader (``cdz_reader.py``), and to the same one for ever.

The constants in ``tests/expected`` are checked on every machine; ``python -m oracles.make_golden`` writes them anew.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.cdz_reader import read_stream
from oracles.make_golden import CALIBRATED, EXPECTED, PRETRAINED, SMALL, digest, photo_crop

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.weights.enums import PACKAGED

GOLDEN = json.loads((EXPECTED / "golden.json").read_text(encoding="utf-8"))


def folder_of(name: str) -> Path:
    return PACKAGED / name if name == PRETRAINED else EXPECTED / name


def assert_same(codec: Codec, stream: bytes, folder: Path) -> int:
    """Both readers find the same; returns how many symbols lay outside their tables."""
    ours, theirs = codec.decompress([stream]), read_stream(stream, folder)
    assert ours.y_hat.dtype == torch.float32
    assert np.array_equal(ours.y_hat[0].numpy(), theirs.y_hat)
    assert (ours.scales is None) == (theirs.scales is None)
    if ours.scales is not None:
        assert theirs.scales is not None
        assert np.array_equal(ours.scales[0].numpy(), theirs.scales)
    assert tuple(ours.image_size) == theirs.image_size
    return theirs.escapes


@pytest.mark.parametrize("name", ["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean"])
def test_an_independent_reader_finds_the_same_latent(
    name: str, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    codec = make_codec(name, gain=4.0)
    with torch.no_grad():  # medians that are no integers
        codec.entropy_bottleneck.quantiles[:, 0, 1] += torch.linspace(-0.4, 0.4, codec.entropy_bottleneck.channels)
    cdzoo.save_pretrained(codec, tmp_path)
    escapes = 0
    for size in [(1, 1), (20, 28), (70, 90)]:
        (stream,) = codec.compress(make_images(1, *size))
        escapes += assert_same(codec, stream, tmp_path)
    assert escapes > 0, "no symbol lay outside its table, so that branch was not compared"


@pytest.mark.parametrize("name", ["torfason2018", "choi2019"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_an_independent_reader_finds_the_same_latent_of_a_calibrated_codec(
    name: str,
    calibrated: bool,
    make_codec: Callable[..., Codec],
    make_images: Callable[..., torch.Tensor],
    tmp_path: Path,
) -> None:
    codec = copy.deepcopy(make_codec(name, M=8))
    if calibrated:
        codec.calibrate(make_images(1, 24, 24))
    cdzoo.save_pretrained(codec, tmp_path)
    escapes = 0
    for size in [(1, 1), (20, 28), (70, 90)]:
        (stream,) = codec.compress(make_images(1, *size))
        escapes += assert_same(codec, stream, tmp_path)
    assert escapes > 0 or not calibrated


def test_an_independent_reader_finds_the_pretrained_latent() -> None:
    codec = cdzoo.from_pretrained(PACKAGED / PRETRAINED)
    assert isinstance(codec, Codec)
    (stream,) = codec.compress(photo_crop(32, 48))
    assert_same(codec, stream, PACKAGED / PRETRAINED)


@pytest.mark.parametrize("name", [PRETRAINED, SMALL, *CALIBRATED])
def test_recorded_streams_decode_to_what_was_recorded(name: str) -> None:
    codec, golden = cdzoo.from_pretrained(folder_of(name)), GOLDEN[name]
    assert isinstance(codec, Codec)
    assert codec.fingerprint == golden["fingerprint"]
    stream = base64.b64decode(golden["stream"])
    latent = codec.decompress([stream])
    assert list(latent.y_hat.shape) == golden["shape"]
    assert list(latent.image_size) == golden["image_size"]
    assert digest(latent.y_hat) == golden["y_hat"]
    assert latent.y_hat.std() > 0.1  # no constants of an empty picture
    if latent.scales is None:
        assert golden["scales"] is None
    else:
        assert list(latent.scales.shape) == golden["shape"]
        assert digest(latent.scales) == golden["scales"]
        assert latent.scales.unique().numel() > 10
    escapes = assert_same(codec, stream, folder_of(name))
    assert escapes > 0 or name not in CALIBRATED


def test_recorded_data_are_small() -> None:
    assert sum(file.stat().st_size for file in EXPECTED.rglob("*") if file.is_file()) < 1_000_000
