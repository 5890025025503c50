"""EfficientNet-Lite0 over latents: timm's trunk, and an entrance that keeps to the picture's geometry."""

from __future__ import annotations

import math
import warnings

import pytest
import timm
import torch
from torch.nn import functional as F

import cdzoo
from cdzoo.errors import WeightsError
from cdzoo.models import latent_efficientnet_lite0
from cdzoo.models.adapters import LatentEntrance, OctaveConv, interpolation, with_log_scales
from cdzoo.types import Latent


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=7).eval()


def latents(*size: int, channels: int = 6) -> Latent:
    """Latents of images ``(H, W)`` at stride 16."""
    y_hat = torch.randn(2, channels, *(-(-n // 16) for n in size), generator=torch.Generator().manual_seed(0))
    return Latent(y_hat, y_hat.abs() + 0.2, (size[0], size[1]))


def test_the_trunk_is_timms(reference: torch.nn.Module) -> None:
    model = latent_efficientnet_lite0(in_channels=6, num_classes=7).eval()
    model.load_timm(reference.state_dict())
    latent = latents(224, 300)
    with torch.no_grad():
        features, maps = model.forward_intermediates(latent)
        x = maps[0]
        for stage in reference.blocks[3:]:
            x = stage(x)
        x = reference.forward_head(reference.bn2(reference.conv_head(x)))
        torch.testing.assert_close(model(latent), x, rtol=1e-4, atol=1e-5)
    assert torch.equal(features, maps[-1])
    assert [list(m.shape[1:]) for m in maps] == [[40, 28, 28], [112, 14, 14], [320, 7, 7], [1280, 7, 7]]
    assert [(i["num_chs"], 224 // i["reduction"]) for i in model.feature_info] == [m.shape[1:3] for m in maps]
    with pytest.raises(WeightsError, match="reset_classifier"):
        latent_efficientnet_lite0(in_channels=6).load_timm(reference.state_dict())


@pytest.mark.parametrize(("length", "first", "step", "size"), [(14, 0, 0.5, 28), (19, 0, 19 / 28, 28), (9, 0, 3, 3)])
def test_interpolation_is_antialiased_resizing(length: int, first: float, step: float, size: int) -> None:
    x = torch.rand(1, 1, length, length)
    repeated = F.pad(x, (length,) * 4, mode="replicate")  # as the borders are
    expected = F.interpolate(repeated, size=(3 * size, 3 * size), mode="bilinear", antialias=True)[0, 0]
    expected = expected[size : 2 * size, size : 2 * size]
    matrix = interpolation(length, first, step, size)
    torch.testing.assert_close(matrix @ x[0, 0] @ matrix.T, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", [0.0, 2.3, -1.5])
@pytest.mark.parametrize("step", [0.4, 1.0, 2.7])
def test_interpolation_keeps_positions(first: float, step: float) -> None:
    ramp = torch.arange(40, dtype=torch.float32) + 0.5 - 3  # the position of each sample's center, beginning at -3
    found = interpolation(40, first + 3, step, 9) @ ramp
    torch.testing.assert_close(found, first + step * (torch.arange(9) + 0.5), rtol=0, atol=1e-4 if step <= 1 else 0.05)


@pytest.mark.parametrize("octave", [-1, 0, 1])
@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_the_entrances_convolution(octave: int, size: tuple[int, int]) -> None:
    conv, x, t = OctaveConv(3, 2, octave), torch.randn(1, 3, *size), -0.3
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_()
        found = conv(x, t)
        weight, bias = conv.weight + t * conv.slope, conv.bias + t * conv.bias_slope
        if octave > 0:
            x = F.pad(x, (0, size[1] % 2, 0, size[0] % 2), mode="replicate")
        for row, column in ((0, 0), (1, 2), (found.shape[2] - 1, found.shape[3] - 1)):
            i, j = (row // 2, column // 2) if octave < 0 else (row * 2**octave, column * 2**octave)
            patch = x[0, :, i : i + conv.side, j : j + conv.side]
            value = (weight * patch).sum((1, 2, 3)) + bias
            if octave < 0:
                value = value.view(2, 2, 2)[:, row % 2, column % 2]
            torch.testing.assert_close(found[0, :, row, column], value)
    assert found.shape[2:] == tuple(math.ceil(n / 2**octave) for n in size)


@pytest.mark.parametrize("size", [(160, 200), (224, 300), (460, 333), (896, 700), (1000, 1024)])
def test_cells_lie_where_they_are_in_the_picture(size: tuple[int, int]) -> None:
    """A latent that tells its own place gives cells that tell theirs, in the central square, for all octaves."""
    entrance = LatentEntrance(1, 1)
    height, width = (-(-n // 16) for n in size)
    place = torch.stack([16 * (torch.arange(width) + 0.5).expand(height, -1)])
    with torch.no_grad():
        for conv in entrance.octaves:
            for parameter in conv.parameters():
                parameter.zero_()
            # of the two inputs, the latent and the logarithm of its scale, the mean of the first
            conv.weight[:, 0] = 1 / conv.side**2
            if conv.shuffle == 2:  # the halves of a latent lie 4 pixels from its center
                conv.bias.copy_(torch.tensor([-4.0, 4.0, -4.0, 4.0]))
        cells = F.pixel_shuffle(entrance(place[None], torch.ones_like(place[None]), size), 2)[0, 0]
    side, left = min(size), (size[1] - min(size)) / 2
    expected = left + side / 28 * (torch.arange(28) + 0.5)
    inside = slice(2, 26)  # near the border the last latents are repeated
    exact = side <= 896  # reducing cells by a triangle of few samples moves them by up to a tenth
    torch.testing.assert_close(cells[:, inside], expected[inside].expand(28, -1), rtol=0, atol=0.05 if exact else 3.0)


def test_scales_come_as_logarithms_above_a_bound() -> None:
    y_hat, scales = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 2.0]]]])
    expected = [0.0, 0.0, math.log(0.11), math.log(2)]
    torch.testing.assert_close(with_log_scales(y_hat, scales).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("size", [(150, 150), (300, 224), (448, 600), (1300, 900), (17, 1)])
def test_every_size_gives_logits_and_names_its_octave(size: tuple[int, int]) -> None:
    model = latent_efficientnet_lite0(in_channels=6, num_classes=5, width=0.125)
    latent = latents(*size)
    model(latent).sum().backward()
    used = [conv.weight.grad is not None for conv in model.entrance.octaves]
    side = min(size)
    assert used.index(True) == (0 if side < 224 * 2**0.5 else 1 if side < 448 * 2**0.5 else 2)
    assert sum(used) == 1


def test_images_of_other_sizes_warn_once() -> None:
    model = latent_efficientnet_lite0(in_channels=6, num_classes=5, width=0.125).eval()
    model.meta = {"shorter_side": [161, 1025]}  # no other test has these numbers
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in ((224, 224), (161, 2000), (1025, 1100), (100, 300), (100, 300), (1100, 1100)):
            model(latents(*size))
    assert [str(w.message).partition(":")[0] for w in caught] == [
        "an image's shorter side has 100 pixels, and the weights were trained with 161 to 1025"
    ]


@pytest.mark.slow
def test_batches_of_any_number_are_exported() -> None:
    model = latent_efficientnet_lite0(in_channels=6, num_classes=5, width=0.125).eval()
    latent, other = latents(100, 130), latents(100, 130)
    dims = ({0: torch.export.Dim("b", min=2)},) * 2
    program = torch.export.export(model, (latent.y_hat, latent.scales), dynamic_shapes=dims).module()
    more = torch.cat([other.y_hat, latent.y_hat]), torch.cat([other.scales, latent.scales])
    with torch.no_grad():
        torch.testing.assert_close(program(*more), model(*more))


def test_a_codec_of_its_channels_fits() -> None:
    torch.manual_seed(0)
    codec = cdzoo.codecs.bmshj2018_hyperprior(N=8, M=12).eval()
    model = latent_efficientnet_lite0(in_channels=12, num_classes=5, width=0.125).eval()
    pair, images = cdzoo.compose(codec, model), torch.rand(1, 3, 100, 180)
    with torch.no_grad():
        assert torch.equal(pair.from_streams(codec.compress(images)), model(codec.encode(images)))
