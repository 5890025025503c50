"""Any analysis and synthesis module as a codec."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.cdz_reader import read_named_rounding
from torch import Tensor, nn

import cdzoo
from cdzoo import _registry
from cdzoo.cli import main
from cdzoo.codecs import TransformCodec, read_header
from cdzoo.demo import PHOTO
from cdzoo.errors import PairingError
from cdzoo.types import Latent

MakeImages = Callable[..., Tensor]


class Blocks(nn.Module):
    """A transform without parameters: pixels of ``s x s`` blocks as channels, scaled. Its inverse is exact."""

    def __init__(self, size: int, gain: float, *, inverse: bool = False) -> None:
        super().__init__()
        self.size, self.gain, self.inverse = size, gain, inverse

    def forward(self, x: Tensor) -> Tensor:
        if self.inverse:
            return nn.functional.pixel_shuffle(x / self.gain, self.size)
        return nn.functional.pixel_unshuffle(x * self.gain, self.size)


def blocks(step: float = 1.0, gain: float = 255.0) -> TransformCodec:
    """A codec whose symbols are the pixels of 8-bit images."""
    pair = Blocks(4, gain), Blocks(4, gain, inverse=True)
    return TransformCodec(*pair, stride=4, latent_channels=48, name="blocks", step=step).eval()


def autoencoder(seed: int = 0, *, stride: int = 8, channels: int = 6) -> TransformCodec:
    """A plain convolutional autoencoder."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, channels, 4, stride=4)
    )
    decoder = nn.Sequential(nn.ConvTranspose2d(channels, 8, 4, stride=4), nn.ReLU(), nn.Upsample(scale_factor=2))
    decoder.append(nn.Conv2d(8, 3, 3, padding=1))
    with torch.no_grad():
        encoder[3].weight.mul_(40)
    return TransformCodec(encoder, decoder, stride=stride, latent_channels=channels).eval()


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 13), (64, 40)])
def test_a_lossless_transform_gives_the_images_back(size: tuple[int, int]) -> None:
    codec = blocks()
    x = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(1)) / 255
    latent = codec.decompress(codec.compress(x))
    assert latent.y_hat.shape == (2, 48, -(-size[0] // 4), -(-size[1] // 4))
    assert torch.equal((codec.decode(latent) * 255).round(), (x * 255).round())
    # channels are pixels, in the order of pixel_unshuffle
    inside = nn.functional.pixel_unshuffle(nn.functional.pad(x, (0, -size[1] % 4, 0, -size[0] % 4), "replicate"), 4)
    assert torch.equal(latent.y_hat, (255 * inside).round())


@pytest.mark.parametrize("step", [0.3, 1.0, 16.0])
def test_values_are_the_nearest_multiples_of_the_step(step: float) -> None:
    codec, x = blocks(step), torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    y = nn.functional.pixel_unshuffle(255 * x, 4)
    latent = codec.encode(x)
    assert torch.equal(latent.y_hat, (y / np.float32(step)).round() * np.float32(step))
    assert torch.equal(codec.decompress(codec.compress(x)).y_hat, latent.y_hat)
    assert torch.equal(codec(x).latent.y_hat, latent.y_hat)
    noisy = codec.train()(x).latent.y_hat - y
    assert noisy.abs().max() <= step / 2 * (1 + 1e-4)
    assert noisy.std() == pytest.approx(step / 12**0.5, rel=0.1)


@pytest.mark.parametrize("step", [0.5, 1.0])
@pytest.mark.parametrize("calibrated", [False, True])
def test_an_independent_reader_finds_the_same_latent(step: float, calibrated: bool, make_images: MakeImages) -> None:
    codec, x = blocks(step), make_images(1, 18, 30)
    if calibrated:
        codec.calibrate(make_images(1, 32, 32, seed=5))
    (stream,) = codec.compress(x)
    integers = {name: tensor.numpy() for name, tensor in codec.integer_state().items()}
    decoded = read_named_rounding(stream, "blocks", 4, codec.fingerprint, integers)
    assert np.array_equal(decoded.y_hat, codec.encode(x).y_hat[0].numpy())
    assert decoded.image_size == (18, 30)


def test_calibrated_streams_take_the_entropy_of_their_symbols(make_images: MakeImages) -> None:
    codec, x = blocks(step=8.0), make_images(1, 256, 256)
    before = codec.compress(x)
    codec.calibrate(x)
    (stream,) = codec.compress(x)
    symbols = (codec.encode(x).y_hat[0] / 8).long()
    entropy = 0.0
    for channel in symbols:
        p = torch.bincount(channel.flatten() - channel.min()).double() / channel.numel()
        entropy -= float((p[p > 0] * p[p > 0].log2()).sum()) * channel.numel()
    assert entropy <= 8 * read_header(stream).part_lengths[0] < 1.02 * entropy + 64
    assert len(stream) < 0.9 * len(before[0])
    with pytest.raises(PairingError):
        codec.decompress(before)


def test_streams_carry_the_name(make_images: MakeImages) -> None:
    x = make_images(1, 16, 16)
    assert read_header(blocks().compress(x)[0]).codec == "blocks"
    assert read_header(autoencoder().compress(x)[0]).codec == "transform_codec"
    other = copy.deepcopy(blocks())
    other.name = "another"
    with pytest.raises(PairingError, match="written by blocks"):
        other.decompress(blocks().compress(x))


def test_the_fingerprint_covers_what_gives_latents_their_meaning() -> None:
    codec = autoencoder()
    original = codec.fingerprint
    assert autoencoder().fingerprint == original != autoencoder(seed=1).fingerprint
    with torch.no_grad():
        codec.g_s[0].weight.add_(1)
    assert codec.fingerprint == original
    for changed in ("g_a.0.bias", "g_a.2.running_mean", "symbol_counts"):
        twin = copy.deepcopy(codec)
        twin.state_dict()[changed].data.add_(1)
        assert twin.fingerprint != original, changed
    assert len({blocks(step).fingerprint for step in (0.5, 1.0, 2.0)}) == 3


def test_buffers_of_any_name_count() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.full((3, 1, 1), 9.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    codec = TransformCodec(Scaled(), nn.Identity(), stride=1, latent_channels=3)
    original = codec.fingerprint
    codec.g_a.scale.data.mul_(2)
    assert codec.fingerprint != original


def test_a_transform_without_parameters_is_cast_and_moved(make_images: MakeImages) -> None:
    codec, x = blocks(), make_images(1, 8, 8)
    fingerprint, y_hat = codec.fingerprint, codec.encode(x).y_hat
    assert codec.double().half().float().fingerprint == fingerprint
    assert torch.equal(codec.encode(x).y_hat, y_hat)
    assert codec.aux_loss() == 0
    assert codec.device == torch.device("cpu")


def test_a_network_reads_its_latents(make_images: MakeImages) -> None:
    codec, x = autoencoder(), make_images(2, 40, 56)
    model = cdzoo.models.cresnet39(in_channels=6, num_classes=3, width=0.0625).eval()
    pair = cdzoo.compose(codec, model).eval()
    with torch.no_grad():
        assert torch.equal(pair.from_streams(codec.compress(x)), pair(x))


def test_some_channels_can_be_selected(make_images: MakeImages) -> None:
    codec, x = autoencoder(), make_images(1, 24, 24)
    some = codec.select([4, 0])
    assert torch.equal(some.encode(x).y_hat, codec.encode(x).y_hat[:, [4, 0]])
    assert torch.equal(some.decompress(some.compress(x)).y_hat, some.encode(x).y_hat)
    assert some.decode(some.encode(x)).shape == x.shape
    assert some.name == codec.name


def test_training_reaches_both_transforms(make_images: MakeImages) -> None:
    codec = autoencoder().train()
    output, y = codec.forward_with_y(make_images(2, 20, 28))
    assert output.x_hat.shape == (2, 3, 20, 28)
    (output.x_hat.square().mean() + cdzoo.ops.gaussian_entropy_loss(y) + codec.aux_loss()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in codec.named_parameters() if n != "g_a.0.bias")


def test_shapes_that_do_not_fit_are_refused(make_images: MakeImages) -> None:
    x = make_images(1, 32, 32)
    with pytest.raises(ValueError, match=r"\(1, 6, 4, 4\), but stride 16 and 6 latent channels need \(1, 6, 2, 2\)"):
        autoencoder(stride=16).encode(x)
    codec = autoencoder()
    codec.g_s = nn.Sequential(codec.g_s, nn.AvgPool2d(2))
    with pytest.raises(ValueError, match=r"into \(1, 3, 16, 16\), but stride 8 needs \(1, 3, 32, 32\)"):
        codec.decode(codec.encode(x))
    with pytest.raises(ValueError, match="need"):
        codec.decode(Latent(torch.zeros(1, 5, 4, 4), None, (32, 32)))


def test_arguments_that_make_no_codec_are_refused() -> None:
    pair = Blocks(4, 1.0), Blocks(4, 1.0, inverse=True)
    for sizes in ({"stride": 0}, {"stride": 2.0}, {"latent_channels": 0}, {"latent_channels": True}):
        with pytest.raises(ValueError, match="must be a positive integer"):
            TransformCodec(*pair, **{"stride": 4, "latent_channels": 48, **sizes})
    for step in (0.0, -1.0, float("nan"), float("inf"), 1e-60):
        with pytest.raises(ValueError, match="step must be positive and finite"):
            TransformCodec(*pair, stride=4, latent_channels=48, step=step)
    codec = TransformCodec(*pair, stride=4, latent_channels=48, name="not a name")
    with pytest.raises(ValueError, match="cannot carry the codec name 'not a name'"):
        codec.compress(torch.rand(1, 3, 8, 8))


def test_a_state_of_another_step_is_refused() -> None:
    state = blocks(0.5).integer_state()
    with pytest.raises(ValueError, match=r"step \[0.5\], where blocks has 1.0"):
        blocks().load_integer_state(state)
    same = blocks(0.5)
    same.load_integer_state(state)
    assert same.fingerprint == blocks(0.5).fingerprint


# -- registered --------------------------------------------------------------------------------------------------


class TinyCodec(TransformCodec):
    """A codec as another package would define it."""

    name = "tiny_codec"
    stride = 8

    def __init__(
        self, *, N: int = 6, latent_channels: int = 4, step: float = 1.0, channels: Sequence[int] | None = None
    ) -> None:
        encoder = nn.Sequential(nn.Conv2d(3, N, 5, 4, 2), nn.BatchNorm2d(N), nn.Conv2d(N, latent_channels, 5, 2, 2))
        decoder = nn.Sequential(nn.ConvTranspose2d(latent_channels, N, 2, 2), nn.ConvTranspose2d(N, 3, 4, 4))
        super().__init__(
            encoder, decoder, stride=self.stride, latent_channels=latent_channels, step=step, channels=channels
        )


@pytest.fixture
def tiny() -> Iterator[TinyCodec]:
    @cdzoo.register_codec(TinyCodec)
    def tiny_codec(*, weights: Any = None, **options: Any) -> TinyCodec:
        """A tiny codec."""
        raise AssertionError

    torch.manual_seed(3)
    codec = cdzoo.get_codec("tiny_codec", step=0.25).eval()
    assert isinstance(codec, TinyCodec)
    yield codec
    _registry._entries["codec"].pop("tiny_codec")


def test_a_registered_codec_is_listed_saved_and_loaded(
    tiny: TinyCodec, make_images: MakeImages, tmp_path: Path
) -> None:
    x = make_images(2, 40, 56)
    tiny.calibrate(x)
    assert cdzoo.list_codecs("tiny*") == ["tiny_codec"]
    assert "cresnet39" in cdzoo.list_models(codec="tiny_codec")
    cdzoo.save_pretrained(tiny, tmp_path)
    loaded = cdzoo.from_pretrained(tmp_path)
    assert isinstance(loaded, TinyCodec)
    assert (loaded.fingerprint, loaded.step) == (tiny.fingerprint, 0.25)
    latent = loaded.decompress(tiny.compress(x))
    assert torch.equal(latent.y_hat, tiny.encode(x).y_hat)
    assert torch.equal(loaded.decode(latent), tiny.decode(latent))
    some = loaded.select([2, 0])
    cdzoo.save_pretrained(some, tmp_path / "some")
    again = cdzoo.from_pretrained(tmp_path / "some")
    assert isinstance(again, TinyCodec)
    assert torch.equal(again.decompress(some.compress(x)).y_hat, some.encode(x).y_hat)


def test_a_codec_is_registered_under_its_name() -> None:
    with pytest.raises(ValueError, match=r"TinyCodec\.name is 'tiny_codec', but its builder is called 'other'"):

        @cdzoo.register_codec(TinyCodec)
        def other(*, weights: Any = None, **options: Any) -> TinyCodec:
            raise AssertionError

    assert "other" not in cdzoo.list_codecs()


def test_the_command_line_uses_a_registered_codec(
    tiny: TinyCodec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    cdzoo.save_pretrained(tiny, folder)
    assert main(["list"]) == 0
    assert main(["info", "tiny_codec"]) == 0
    assert main(["info", str(folder)]) == 0
    assert "tiny_codec" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["compress", str(PHOTO), "-o", str(out), "--weights", str(folder)]) == 0
    (stream,) = out.glob("*.cdz")
    assert read_header(stream.read_bytes()).codec == "tiny_codec"
    assert main(["info", str(stream)]) == 0
    assert main(["decompress", str(stream), "-o", str(tmp_path / "a.png"), "--weights", str(folder)]) == 0
    assert (tmp_path / "a.png").stat().st_size > 1000
    torch.manual_seed(0)
    network = cdzoo.models.cresnet39(in_channels=4, num_classes=3, width=0.0625).eval()
    cdzoo.save_pretrained(network, tmp_path / "network", codec=tiny)
    capsys.readouterr()
    assert main(["classify", str(stream), "--weights", str(tmp_path / "network"), "--codec", str(folder)]) == 0
    assert "class" in capsys.readouterr().out


def test_transforms_are_modules_and_names_are_strings() -> None:
    with pytest.raises(TypeError, match="must be modules, not NoneType and function"):
        TransformCodec(None, lambda y: y, stride=8, latent_channels=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"name must be a string.*not 3"):
        TransformCodec(nn.Identity(), nn.Identity(), stride=1, latent_channels=3, name=3)  # type: ignore[arg-type]
