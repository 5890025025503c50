"""Bits written under one setting decode to the same integers under every other one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from oracles.equality import same
from oracles.fresh_process import FreshProcesses
from oracles.small_modules import CALIBRATED

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.coding.gaussian import HyperpriorState
from cdzoo.types import Latent

NAMES = ["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean"]


def pretrained() -> list[str]:
    return cdzoo.list_codecs(pretrained=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=[*NAMES, *CALIBRATED, *(f"{name} pretrained" for name in pretrained())])
def codec(request: pytest.FixtureRequest, make_codec: Callable[..., Codec]) -> Codec:
    name, _, trained = request.param.partition(" ")
    if trained:
        loaded = cdzoo.get_codec(name, weights="DEFAULT")
        assert isinstance(loaded, Codec)
        return loaded
    return make_codec(name)


@pytest.mark.parametrize(
    "shape",
    [(4, 224, 224), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((16, 224, 224), (2, 512, 768)))],
    ids=str,
)
def test_one_writer_every_reader(
    codec: Codec, shape: tuple[int, int, int], make_images: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = make_images(*shape)
    with threads(1):
        streams = codec.compress(x)
        latent = codec.encode(x)
    for count in (1, 2):
        with threads(count):
            assert same(codec.decompress(streams), latent)
            assert same(codec.decompress(streams, num_threads=3 - count), latent)
    singles = [codec.decompress([stream]) for stream in streams]
    for i, single in enumerate(singles):
        assert torch.equal(single.y_hat[0], latent.y_hat[i])
        assert single.scales is None or torch.equal(single.scales[0], latent.scales[i])  # type: ignore[index]
    codec = codec.to(memory_format=torch.channels_last)
    assert same(codec.decompress(streams), latent)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert same(codec.decompress(streams), latent)
    if torch.cuda.is_available():
        assert same(codec.cuda().decompress(streams).to("cpu"), latent)
        codec.cpu()


@pytest.mark.parametrize("size", [(224, 224), pytest.param((512, 768), marks=pytest.mark.slow)], ids=str)
def test_every_writer_one_reader(
    codec: Codec, size: tuple[int, int], make_images: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # analyses under other settings may round y differently at ties; what each of them writes must still decode
    def written(x: torch.Tensor) -> tuple[list[bytes], Latent]:
        return codec.compress(x), codec.encode(x)

    x = make_images(2, *size)
    pairs = [written(x)]
    with threads(2):
        pairs.append(written(x))
    pairs += [written(image[None]) for image in x]
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        pairs.append(written(x))
    codec = codec.to(memory_format=torch.channels_last)
    pairs.append(written(x.to(memory_format=torch.channels_last)))
    codec = codec.to(memory_format=torch.contiguous_format)
    with threads(1):
        for streams, latent in pairs:
            assert same(codec.decompress(streams), latent)


FRESH_PROCESS = """
from pathlib import Path
import torch, cdzoo
torch.set_num_threads(2)
for folder in map(Path, FOLDERS):
    codec = cdzoo.from_pretrained(folder / "codec")
    latent = codec.decompress([bytes(s) for s in torch.load(folder / "streams.pt")])
    torch.save((latent.y_hat, latent.scales), folder / "out.pt")
"""


def test_a_fresh_process_with_other_threads(
    make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor], tmp_path: Path, fresh: FreshProcesses
) -> None:
    x, expected = make_images(2, 224, 224), {}
    for name in ("bmshj2018_hyperprior", "mbt2018_mean", "torfason2018"):
        codec, folder = copy.deepcopy(make_codec(name)), tmp_path / name
        codec.calibrate([x])
        cdzoo.save_pretrained(codec, folder / "codec")
        torch.save([bytearray(s) for s in codec.compress(x)], folder / "streams.pt")
        expected[folder] = codec.encode(x)
    done = fresh(f"FOLDERS = {[*map(str, expected)]}\n{FRESH_PROCESS}")
    assert done.returncode == 0, done.stderr
    for folder, latent in expected.items():
        y_hat, scales = torch.load(folder / "out.pt")
        assert same(Latent(y_hat, scales, (224, 224)), latent)


@pytest.mark.parametrize("name", ["bmshj2018_hyperprior", "mbt2018_mean"])
def test_integer_scales_are_the_float_scales_to_their_resolution(
    name: str, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    codec, x = make_codec(name), make_images(2, 256, 256)
    with torch.no_grad():
        scales = codec(x).latent.scales
    latent = codec.encode(x)
    assert scales is not None
    assert latent.scales is not None
    assert (scales - latent.scales).abs().max() < 0.01
    assert scales.std() > 0.1


@pytest.mark.parametrize("name", ["bmshj2018_hyperprior", "mbt2018_mean"])
def test_integers_cost_less_than_a_thousandth_of_the_bits(
    name: str, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    codecs = [make_codec(name)]
    if name in pretrained():
        codecs.append(cdzoo.get_codec(name, weights="DEFAULT"))  # type: ignore[arg-type]
    for codec in codecs:
        x = make_images(2, 512, 768)
        ours = sum(len(s) for s in codec.compress(x)) - 2 * 38
        floats = sum(len(s) for part in codec.compressai_strings(x) for s in part)
        assert abs(ours - floats) <= 0.001 * floats + 8  # a word per stream is the coder's granularity


def test_a_moved_table_index_does_not_pass(
    make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # what another machine's rounding would do to a float hyper-decoder, and what the checksum is there to catch
    codec, x = make_codec("bmshj2018_hyperprior"), make_images(1, 64, 64)
    streams = codec.compress(x)
    honest = HyperpriorState.indexes

    def moved(self: HyperpriorState, scales: torch.Tensor) -> torch.Tensor:
        indexes = honest(self, scales)
        indexes[0, 3, 2, 1] += 1
        return indexes

    monkeypatch.setattr(HyperpriorState, "indexes", moved)
    with pytest.raises(cdzoo.errors.BitstreamError):
        codec.decompress(streams)


def test_the_index_look_up_is_a_search_among_rounded_boundaries(make_codec: Callable[..., Codec]) -> None:
    coding = make_codec("bmshj2018_hyperprior").coding
    assert isinstance(coding, HyperpriorState)
    rounded = coding.boundaries.bfloat16().float()
    assert ((rounded / coding.boundaries - 1).abs() <= 2**-8).all()
    near = torch.cat([torch.nextafter(rounded, rounded * 0), rounded, torch.nextafter(rounded, rounded * 2)])
    special = torch.tensor([0.0, -1.0, 1e-30, 1e9, float(torch.finfo(torch.float32).tiny)])
    spread = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).mul(20).sub(10).exp()
    scales = torch.cat([near, special, spread])
    assert torch.equal(coding.indexes(scales).long(), torch.bucketize(scales, rounded))
