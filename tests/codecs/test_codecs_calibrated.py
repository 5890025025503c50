"""Codecs whose symbol tables are measured: what the papers say of them, their tables, and their bits."""

from __future__ import annotations

import copy
import math
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from oracles.small_modules import CALIBRATED
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import cdzoo
from cdzoo._torch import inference_layers
from cdzoo.codecs import read_header
from cdzoo.codecs.torfason import MEAN, VARIANCE
from cdzoo.coding.calibrated import tables_from_weights
from cdzoo.coding.cdz_format import pack
from cdzoo.coding.rans import encode_batch
from cdzoo.coding.tables import SymbolTables
from cdzoo.errors import BitstreamError, PairingError
from cdzoo.ops import discrete_entropy

MakeCodec = Callable[..., Any]
MakeImages = Callable[..., Tensor]


def probabilities(tables: SymbolTables, table: int) -> tuple[int, list[float]]:
    """The first value of a table, and what it and its successors, at last the escape, are taken to occur."""
    start, length = int(tables.starts[table]), int(tables.lengths[table])
    return int(tables.offsets[table]), (np.diff(tables.cdfs[start : start + length]) / 2**16).tolist()


def cheapest_table(row: np.ndarray, tables: SymbolTables, table: int, lowest: int) -> float:
    """Bits that a row of counts costs per symbol under a table that leaves none of them out."""
    offset, p = probabilities(tables, table)
    first = offset - lowest
    counts = row[first : first + len(p) - 1]
    assert counts.sum() == row.sum(), "symbols outside the table"
    return float(-(counts * np.log2(p[:-1])).sum() / row.sum())


# -- the networks of the papers ----------------------------------------------------------------------------------


def macs(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def test_torfasons_encoder_takes_3_56_billion_multiply_adds() -> None:
    codec = cdzoo.codecs.torfason2018().eval()
    assert (codec.latent_channels, codec.stride, codec.levels, codec.has_scales) == (32, 8, 6, False)
    latent = codec.encode(torch.rand(1, 3, 224, 224))
    assert latent.y_hat.shape == (1, 32, 28, 28)
    convolutions = 112**2 * 25 * 3 * 64 + 56**2 * (25 * 64 * 128 + 6 * 9 * 128 * 128) + 28**2 * 25 * 128 * 32
    assert macs(lambda: codec.encode(torch.rand(1, 3, 224, 224))) == convolutions
    assert convolutions / 1e9 == pytest.approx(3.557, abs=5e-4)
    assert macs(lambda: codec.decode(latent)) == convolutions  # a mirror, whatever the paper counts


@pytest.mark.parametrize("channels", [8, 16, 32])
def test_the_operating_points_of_torfason(channels: int) -> None:
    codec = cdzoo.codecs.torfason2018(latent_channels=channels, N=4)
    assert codec.encode(torch.rand(1, 3, 40, 56)).y_hat.shape == (1, channels, 5, 7)
    assert len(codec.quantizer.centers) == 6
    # bits per pixel = H C / 64, as the targets of appendix A.8 and the rates of section 3.1 have it
    points = {8: (0.8, 0.0983), 32: (1.265, 0.635)}
    if channels in points:
        target, bpp = points[channels]
        assert target * channels / codec.stride**2 == pytest.approx(bpp, rel=0.02)


def test_torfason_normalizes_on_the_scale_0_to_255() -> None:
    codec = cdzoo.codecs.torfason2018(latent_channels=8, N=4).eval()
    seen: list[Tensor] = []
    codec.g_a.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    for offset in (0.0, 1.0):
        codec.encode(((mean + offset * torch.tensor(VARIANCE).sqrt().view(1, 3, 1, 1)) / 255).expand(1, 3, 16, 16))
        assert torch.allclose(seen[-1], torch.full_like(seen[-1], offset), atol=1e-5)
    with torch.no_grad():  # and back
        nn.init.zeros_(codec.g_s[-1].weight)
        nn.init.zeros_(codec.g_s[-1].bias)
    x_hat = codec.decode(codec.encode(torch.rand(1, 3, 16, 16)))
    assert torch.allclose(x_hat, (mean / 255).expand_as(x_hat), atol=1e-6)


def test_torfasons_layers() -> None:
    codec = cdzoo.codecs.torfason2018()
    for transform in (codec.g_a, codec.g_s):
        convolutions = [m for m in transform.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        norms = [m for m in transform.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(convolutions) == len(norms) == 9
        assert all(c.bias is None for c in convolutions)
        assert sum(isinstance(m, nn.ReLU) for m in transform.modules()) == 2 + 3  # none behind a unit's second 3x3
        assert isinstance(transform[-1], nn.BatchNorm2d)
    unit = codec.g_a[6]
    x = torch.randn(1, 128, 4, 4)
    with torch.no_grad():
        nn.init.zeros_(unit.body[-1].weight)
    assert torch.equal(unit.eval()(x), x)


def test_choi_is_four_convolutions_with_gdn() -> None:
    codec = cdzoo.codecs.choi2019()
    assert (codec.latent_channels, codec.N, codec.stride, codec.has_scales) == (256, 256, 16, False)
    sizes = [(m.in_channels, m.out_channels, m.kernel_size, m.stride) for m in codec.g_a if isinstance(m, nn.Conv2d)]
    assert sizes == [(n, 256, (5, 5), (2, 2)) for n in (3, 256, 256, 256)]
    assert [type(m).__name__ for m in codec.g_a] == ["Conv2d", "GDN"] * 3 + ["Conv2d"]
    assert [type(m).__name__ for m in codec.g_s] == ["ConvTranspose2d", "GDN"] * 3 + ["ConvTranspose2d"]
    assert [m.inverse for m in codec.g_s if type(m).__name__ == "GDN"] == [True] * 3
    latent = cdzoo.codecs.choi2019(latent_channels=32, N=4).encode(torch.rand(1, 3, 33, 16))
    assert latent.y_hat.shape == (1, 32, 3, 1)
    assert torch.equal(latent.y_hat, latent.y_hat.round())


# -- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_forward_pass(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec(name)), make_images(2, 41, 72)
    with torch.no_grad():
        evaluated = codec(x)
    assert torch.equal(evaluated.latent.y_hat, codec.encode(x).y_hat)
    assert torch.equal(evaluated.x_hat.clamp(0, 1), codec.decode(codec.encode(x)))
    output, y = codec.train().forward_with_y(x)
    assert output.likelihoods == {}
    assert output.latent.scales is None
    assert output.x_hat.shape == x.shape
    assert y.shape == output.latent.y_hat.shape
    if name == "torfason2018":  # hard in training too
        assert torch.equal(output.latent.y_hat, codec.quantizer.centers.detach()[codec.quantizer.symbols(y)])
    else:
        noise = output.latent.y_hat - y
        assert 0.45 < noise.abs().max().item() <= 0.5 + 1e-5 * y.abs().max().item()
    entropy = codec.quantizer.entropy(y) if name == "torfason2018" else cdzoo.ops.gaussian_entropy_loss(y)
    (output.x_hat.square().mean() + entropy + codec.aux_loss()).backward()
    assert codec.aux_loss().item() == 0
    assert [n for n, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_rounding_lets_gradients_through_in_evaluation(make_codec: MakeCodec, make_images: MakeImages) -> None:
    output, y = make_codec("choi2019").forward_with_y(make_images(1, 32, 32))
    (gradient,) = torch.autograd.grad(output.latent.y_hat.sum(), y)
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_a_few_steps_of_training_find_a_better_codec(make_images: MakeImages) -> None:
    torch.manual_seed(0)
    codec, x = cdzoo.codecs.torfason2018(latent_channels=8, N=16).train(), make_images(4, 48, 48)
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-2)
    loss, history = cdzoo.ops.TargetRateDistortionLoss(beta=600, target_entropy=1.0), []
    for _ in range(40):
        output, y = codec.forward_with_y(x)
        value = loss(output, x, codec.quantizer.entropy(y))
        optimizer.zero_grad()
        value.loss.backward()
        optimizer.step()
        history.append((value.distortion.item(), value.excess.item()))
    assert history[-1][0] < 0.25 * history[0][0]
    assert history[-1][1] < 0.5 * history[0][1]


# -- tables ------------------------------------------------------------------------------------------------------


def test_tables_cost_hardly_more_than_the_entropy_of_what_was_counted() -> None:
    rng = np.random.default_rng(0)
    rows = np.stack(
        [
            np.bincount(np.clip(np.rint(rng.normal(20, sigma, 50_000)), 0, 40).astype(int), minlength=42)
            for sigma in (0.2, 1.0, 5.0)
        ]
    )
    tables = tables_from_weights(rows, -20)
    assert tables.num_tables == 3
    for number, row in enumerate(rows):
        p = row[row > 0] / row.sum()
        entropy = float(-(p * np.log2(p)).sum())
        assert entropy <= cheapest_table(row, tables, number, -20) < entropy + 0.002


def test_tables_begin_and_end_with_what_was_seen() -> None:
    rows = np.zeros((4, 12), np.int64)
    rows[0, 3:6] = 1, 0, 2
    rows[1, -1] = 7  # nothing but exceptions
    rows[2, 10] = 10**9
    tables = tables_from_weights(rows, -5)
    assert tables.offsets.tolist() == [-2, -5, 5, -5]
    assert (tables.lengths - 2).tolist() == [3, 1, 1, 1]
    _, p = probabilities(tables, 0)
    assert p == pytest.approx([3 / 10, 1 / 10, 5 / 10, 1 / 10], abs=2e-4)
    assert probabilities(tables, 1)[1] == pytest.approx([1 / 16, 15 / 16], abs=2e-4)
    assert probabilities(tables, 2)[1][-1] == 2**-16
    for bad in (-1, 1 << 40):
        rows[3, 0] = bad
        with pytest.raises(ValueError, match="calibrate"):
            tables_from_weights(rows, -5)


def test_before_calibration_torfason_expects_the_last_batch_norms_gaussians(make_codec: MakeCodec) -> None:
    codec = copy.deepcopy(make_codec("torfason2018", M=3))
    with torch.no_grad():
        codec.g_a[-1].bias.copy_(torch.tensor([0.0, 0.5, -4.0]))
        codec.g_a[-1].weight.copy_(torch.tensor([1.0, -0.7, 0.3]))
        codec.quantizer.centers.copy_(torch.tensor([1.0, -1.0, 0.0, 3.0, -2.0, 2.0]))
    assert not codec.calibrated
    edges = {1.0: (0.5, 1.5), -1.0: (-1.5, -0.5), 0.0: (-0.5, 0.5), 3.0: (2.5, 99), -2.0: (-99, -1.5), 2.0: (1.5, 2.5)}
    for channel, (mean, scale) in enumerate([(0.0, 1.0), (0.5, 0.7), (-4.0, 0.3)]):
        normal = NormalDist(mean, scale)
        offset, p = probabilities(codec.coding.tables, channel)
        found = dict(zip(range(offset, offset + len(p) - 1), p[:-1], strict=True))
        for symbol, center in enumerate(codec.quantizer.centers.tolist()):
            low, high = edges[center]
            expected = normal.cdf(high) - normal.cdf(low)
            assert found.get(symbol, 0.0) == pytest.approx(expected, abs=3e-4), (channel, symbol)


def test_before_calibration_choi_expects_gaussians_of_scale_4(make_codec: MakeCodec) -> None:
    normal = NormalDist(0, 4)
    offset, p = probabilities(make_codec("choi2019").coding.tables, 5)
    assert -30 < offset < -20
    for value, found in zip(range(offset, offset + len(p) - 1), p, strict=False):
        assert found == pytest.approx(normal.cdf(value + 0.5) - normal.cdf(value - 0.5), abs=2e-4)
    assert p[-1] < 1e-3


def at_entropy(codec: Any, x: Tensor, target: float) -> Any:
    """The codec with its last batch norm scaled such that a symbol carries about so many bits."""
    codec, low, high = copy.deepcopy(codec), 0.02, 3.0
    original = codec.g_a[-1].weight.detach().clone()
    with torch.no_grad():  # where a center is, for less than one bit
        codec.g_a[-1].bias.fill_(1 / 3)
    for _ in range(12):
        gain = math.sqrt(low * high)
        with torch.no_grad():
            codec.g_a[-1].weight.copy_(gain * original)
        entropy = float(discrete_entropy(codec.encode(x).y_hat, per_channel=True))
        low, high = (gain, high) if entropy < target else (low, gain)
    return codec


@pytest.mark.parametrize(("channels", "target"), [(8, 0.8), (16, 1.32), (32, 1.265), (32, 2.3)])
def test_a_calibrated_stream_takes_h_c_over_64_bits_per_pixel(
    channels: int, target: float, make_codec: MakeCodec, make_images: MakeImages
) -> None:
    x = make_images(2, 256, 256)
    codec = at_entropy(make_codec("torfason2018", M=channels), x, target)
    before = [read_header(s).payload_bpp for s in codec.compress(x)]
    codec.calibrate([x[:1], x[1:]])
    assert codec.calibrated
    after = [read_header(s).payload_bpp for s in codec.compress(x)]
    y_hat = codec.encode(x).y_hat
    entropy = float(discrete_entropy(y_hat, per_channel=True))
    assert entropy == pytest.approx(target, rel=0.1)
    assert np.mean(after) == pytest.approx(entropy * channels / 64, rel=0.02)
    assert np.mean(after) <= 1.02 * float(discrete_entropy(y_hat)) * channels / 64
    assert np.mean(after) < np.mean(before)
    assert torch.equal(codec.decompress(codec.compress(x)).y_hat, y_hat)


def test_a_calibrated_stream_of_choi_takes_its_entropy(make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec("choi2019", gain=0.3)), make_images(2, 512, 512)
    before = np.mean([read_header(s).payload_bpp for s in codec.compress(x)])
    codec.calibrate(x)
    after = np.mean([read_header(s).payload_bpp for s in codec.compress(x)])
    entropy = float(discrete_entropy(codec.encode(x).y_hat, per_channel=True))
    assert entropy > 1.5
    assert after == pytest.approx(entropy * codec.latent_channels / 256, rel=0.02)
    assert after < before


@pytest.mark.parametrize("name", CALIBRATED)
def test_symbols_that_were_never_seen_are_coded_all_the_same(
    name: str, make_codec: MakeCodec, make_images: MakeImages
) -> None:
    codec = copy.deepcopy(make_codec(name, gain=20.0 if name == "choi2019" else 1.0))
    codec.calibrate([torch.full((1, 3, 16, 16), 0.5)])
    counts = codec.symbol_counts
    assert counts.sum(1).tolist() == [(16 // codec.stride) ** 2] * 24
    x = make_images(3, 64, 96, seed=3)
    latent = codec.encode(x)
    if name == "choi2019":
        assert latent.y_hat.abs().max() > 255  # beyond the counted ones, too
    for images in (x, torch.zeros_like(x), torch.ones_like(x)):
        assert torch.equal(codec.decompress(codec.compress(images)).y_hat, codec.encode(images).y_hat)
    codec.calibrate(x)
    assert codec.symbol_counts.sum(1).tolist() == [latent.y_hat[:, 0].numel()] * 24
    if name == "choi2019":
        assert int(codec.symbol_counts[:, -1].sum()) == int((latent.y_hat.abs() > 255).sum())


# -- calibrating -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibrating_counts_symbols_and_makes_another_codec(
    name: str, make_codec: MakeCodec, make_images: MakeImages
) -> None:
    codec = copy.deepcopy(make_codec(name)).train()
    x, small = make_images(2, 64, 64), make_images(1, 17, 33)
    fingerprint, old = codec.fingerprint, codec.compress(x)
    codec.calibrate(iter([x, small]))
    assert codec.fingerprint != fingerprint
    with pytest.raises(PairingError, match=f"{fingerprint}.*{codec.fingerprint}"):
        codec.decompress(old)
    for y_hat, channel in ((codec.encode(x).y_hat, 3), (codec.encode(x).y_hat, 7)):
        y_hat = torch.cat([y_hat[:, channel].flatten(), codec.encode(small).y_hat[:, channel].flatten()])
        values = codec.quantizer.centers.detach() if name == "torfason2018" else torch.arange(-255.0, 256)
        assert codec.symbol_counts[channel, :-1].tolist() == [int((y_hat == v).sum()) for v in values]
    twin = copy.deepcopy(make_codec(name))
    twin.calibrate([small, x])
    assert twin.fingerprint == codec.fingerprint
    twin.calibrate([x])  # anew, not on top
    assert int(twin.symbol_counts[0].sum()) == 2 * (64 // codec.stride) ** 2


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibration_that_fails_changes_nothing(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec(name)), make_images(1, 32, 32)

    def interrupted() -> Iterator[Tensor]:
        yield x
        raise KeyError("disk")

    bad: list[tuple[type[Exception], Any]] = [
        (ValueError, []), (ValueError, [x, 255 * x]), (TypeError, [x, (x, 1)]), (KeyError, interrupted()),
    ]  # fmt: skip
    before = codec.fingerprint
    for error, images in bad:
        with pytest.raises(error):
            codec.calibrate(images)
        assert codec.fingerprint == before
        assert not codec.calibrated


@pytest.mark.parametrize("name", CALIBRATED)
def test_training_on_keeps_the_counts(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec(name)), make_images(2, 64, 64)
    codec.calibrate(x)
    counts, fingerprint = codec.symbol_counts.clone(), codec.fingerprint
    optimizer = torch.optim.SGD(codec.parameters(), lr=1e-3)
    codec.train()(x).x_hat.square().mean().backward()
    optimizer.step()
    assert codec.fingerprint != fingerprint
    assert torch.equal(codec.symbol_counts, counts)
    assert torch.equal(codec.decompress(codec.compress(x)).y_hat, codec.encode(x).y_hat)


# -- where the tables go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALIBRATED)
def test_tables_travel(name: str, make_codec: MakeCodec, make_images: MakeImages, tmp_path: Path) -> None:
    codec, x = copy.deepcopy(make_codec(name, M=8)), make_images(2, 40, 50)
    codec.calibrate(make_images(4, 64, 64))
    streams, latent = codec.compress(x), codec.encode(x)
    # as a state dict
    fresh: Any = cdzoo.get_codec(name, latent_channels=8, N=16)
    fresh.load_state_dict(codec.state_dict())
    # as a folder
    cdzoo.save_pretrained(codec, tmp_path)
    loaded = cdzoo.from_pretrained(tmp_path)
    # in memory, with other numbers
    for other in (fresh, loaded, copy.deepcopy(codec), copy.deepcopy(codec).half(), copy.deepcopy(codec).double()):
        assert other.calibrated
        assert other.fingerprint == codec.fingerprint
        assert torch.equal(other.decompress(streams).y_hat, latent.y_hat)
    assert set(loaded.integer_state()) == {f"symbols.{n}" for n in ("cdfs", "starts", "lengths", "offsets")} | (
        {"centers"} if name == "torfason2018" else set()
    )


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_rounded_codec_keeps_its_counts_and_centers(
    name: str, make_codec: MakeCodec, make_images: MakeImages, tmp_path: Path
) -> None:
    codec, x = copy.deepcopy(make_codec(name, M=8)), make_images(1, 40, 50)
    codec.calibrate(x)
    cdzoo.save_pretrained(codec, tmp_path, dtype=torch.float16)
    loaded: Any = cdzoo.from_pretrained(tmp_path)
    assert loaded.fingerprint != codec.fingerprint
    assert torch.equal(loaded.g_a[0].weight, codec.g_a[0].weight.half().float())
    assert torch.equal(loaded.symbol_counts, codec.symbol_counts)
    if name == "torfason2018":
        assert torch.equal(loaded.quantizer.centers, codec.quantizer.centers)
    assert torch.equal(loaded.decompress(loaded.compress(x)).y_hat, loaded.encode(x).y_hat)


@pytest.mark.parametrize("name", CALIBRATED)
def test_saved_tables_are_adopted_not_derived(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec(name)), make_images(1, 64, 64)
    state = codec.integer_state()
    widest = int(state["symbols.cdfs"][: state["symbols.lengths"][0]].diff().argmax())
    assert widest > 0
    state["symbols.cdfs"][widest] += 1  # as another machine's error function might have it
    other = copy.deepcopy(codec)
    other.load_integer_state(state)
    assert other.fingerprint != codec.fingerprint
    assert torch.equal(other.decompress(other.compress(x)).y_hat, codec.encode(x).y_hat)
    for broken in state:
        with pytest.raises(ValueError, match=r"lack|expected"):
            other.load_integer_state({k: v for k, v in state.items() if k != broken})
    with pytest.raises(ValueError, match="does not know: medians"):
        other.load_integer_state({**state, "medians": torch.zeros(24)})
    with pytest.raises(ValueError, match=r"24 tables, where .* has 8 channels"):
        copy.deepcopy(make_codec(name, M=8)).load_integer_state(state)
    if name == "torfason2018":
        for centers in (torch.zeros(5), torch.zeros(6, dtype=torch.int64)):
            with pytest.raises(ValueError, match="centers of shape"):
                other.load_integer_state({**state, "centers": centers})
        with pytest.raises(ValueError, match="centers are not finite"):
            other.load_integer_state({**state, "centers": torch.full((6,), math.nan)})


# -- modes and threads -------------------------------------------------------------------------------------------


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_coding_leaves_running_statistics_alone(make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec("torfason2018")).train(), make_images(2, 32, 32)
    codec.g_a[1].eval()
    modes = {name: m.training for name, m in codec.named_modules()}
    before = {k: v.clone() for k, v in codec.state_dict().items()}
    expected = make_codec("torfason2018").encode(x)
    codec.calibrate(x)
    latent = codec.decompress(codec.compress(x))
    assert torch.equal(latent.y_hat, expected.y_hat)
    assert torch.equal(codec.encode(x).y_hat, expected.y_hat)
    assert torch.equal(codec.decode(latent), make_codec("torfason2018").decode(expected))
    after = codec.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k != "symbol_counts")
    assert {name: m.training for name, m in codec.named_modules()} == modes
    codec(x)
    assert not torch.equal(codec.state_dict()["g_a.4.running_mean"], before["g_a.4.running_mean"])


def test_training_goes_on_only_when_the_last_of_several_calls_ends() -> None:
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)), nn.Conv2d(2, 2, 1))
    module[1][1].eval()
    with inference_layers(module):
        assert [m.training for m in module.modules()] == [True, False, True, False, False, True]
        with inference_layers(module):
            assert not module[0].training
        assert not module[0].training
        module[0].train()  # by somebody else
        with inference_layers(module):
            assert not module[0].training
        assert not module[0].training
    assert [m.training for m in module.modules()] == [True, True, True, True, False, True]
    with pytest.raises(KeyError), inference_layers(module):
        raise KeyError
    assert module[0].training


def test_calls_in_several_threads_do_not_disturb_each_other(make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec("torfason2018")).train(), make_images(2, 32, 32)
    expected = make_codec("torfason2018").encode(x).y_hat
    before = {k: v.clone() for k, v in codec.state_dict().items()}
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        if threading.current_thread() is slow:
            inside.set()
            assert go_on.wait(30)

    handle = codec.g_a[0].register_forward_hook(wait)
    results: list[Tensor] = []
    slow = threading.Thread(target=lambda: results.append(codec.encode(x).y_hat))
    slow.start()
    assert inside.wait(30)
    assert torch.equal(codec.encode(x).y_hat, expected)  # begins and ends while the other is at work
    assert not any(norm.training for norm in norms_of(codec))
    go_on.set()
    slow.join()
    handle.remove()
    assert torch.equal(results[0], expected)
    assert all(norm.training for norm in norms_of(codec))
    assert all(torch.equal(codec.state_dict()[k], v) for k, v in before.items())


# -- what can go wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", [-1, 6, 30_000])
def test_a_forged_symbol_is_no_index(symbol: int, make_codec: MakeCodec) -> None:
    codec = make_codec("torfason2018", M=2)
    honest = np.zeros((1, 2), np.int16)
    forged = np.array([[0, symbol]], np.int16)
    streams = []
    for symbols in (honest, forged):
        part = encode_batch(symbols, np.arange(2), codec.coding.tables)
        streams.append(pack(codec.name, codec.fingerprint, (8, 8), zlib.crc32(symbols.astype("<i2").tobytes()), part))
    assert codec.decompress(streams[:1]).y_hat.flatten().tolist() == [codec.quantizer.centers[0].item()] * 2
    with pytest.raises(BitstreamError, match=f"stream 1 of 2: symbol {symbol}, where torfason2018 writes 0 to 5"):
        codec.decompress(streams)


@pytest.mark.parametrize("name", CALIBRATED)
def test_values_that_are_not_finite_are_refused(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec = copy.deepcopy(make_codec(name))
    with torch.no_grad():
        codec.g_a[0].weight[0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        codec.compress(make_images(1, 32, 32))
    if name == "torfason2018":
        for tensor in ("quantizer.centers", "g_a.10.weight"):
            codec = copy.deepcopy(make_codec(name))
            with torch.no_grad():
                codec.get_parameter(tensor)[1] = math.inf
            with pytest.raises(ValueError, match="not finite"):
                codec.fingerprint  # noqa: B018


def test_sizes_that_make_no_codec_are_refused() -> None:
    for levels in (1, 0, True, 6.0):
        with pytest.raises(ValueError, match="levels must be an integer of at least 2"):
            cdzoo.codecs.torfason2018(levels=levels)  # type: ignore[arg-type]
    for levels in (32_768, 40_000):
        with pytest.raises(ValueError, match="at most 32767"):
            cdzoo.codecs.torfason2018(levels=levels, latent_channels=1, N=1)
    for channels in (3, "01", [0.5]):
        with pytest.raises((TypeError, ValueError), match="channels must be a list of integers"):
            cdzoo.codecs.torfason2018(channels=channels)  # type: ignore[arg-type]
    two = cdzoo.codecs.torfason2018(levels=2, latent_channels=1, N=1).eval()
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(two.decompress(two.compress(x)).y_hat, two.encode(x).y_hat)
    for channels in (None, 1, "01"):
        with pytest.raises(TypeError, match="channels must be a list of integers"):
            two.select(channels)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="in a list or another iterable, not NoneType"):
        two.calibrate(None)  # type: ignore[arg-type]
    most = cdzoo.codecs.torfason2018(levels=32_767, latent_channels=1, N=1).eval()
    with torch.no_grad():
        most.g_a[-1].bias.fill_(9.0)  # the last symbol
    assert torch.equal(most.decompress(most.compress(x)).y_hat, most.encode(x).y_hat)
    assert most.encode(x).y_hat.max() == most.quantizer.centers[-1]


def test_levels_may_be_numpys(make_codec: MakeCodec) -> None:
    codec = cdzoo.codecs.torfason2018(levels=np.int64(6), latent_channels=24, N=16)  # type: ignore[arg-type]
    reference = make_codec("torfason2018")
    codec.load_state_dict(reference.state_dict())
    assert codec.fingerprint == reference.fingerprint


def test_nothing_but_the_state_dict_is_needed_after_meta(make_codec: MakeCodec, make_images: MakeImages) -> None:
    reference, x = make_codec("torfason2018"), make_images(1, 32, 32)
    with torch.device("meta"):
        codec = cdzoo.codecs.torfason2018(latent_channels=24, N=16)
    codec = codec.to_empty(device="cpu").eval()
    for tensor in (*codec.parameters(), *codec.buffers()):
        tensor.data.fill_(1)
    codec.load_state_dict(reference.state_dict())
    assert codec.fingerprint == reference.fingerprint
    latent = codec.encode(x)
    assert torch.equal(latent.y_hat, reference.encode(x).y_hat)
    assert torch.equal(codec.decode(latent), reference.decode(latent))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_bits_do_not_depend_on_the_default_dtype(dtype: torch.dtype, make_images: MakeImages) -> None:
    codec, x = cdzoo.codecs.torfason2018(weights="DEFAULT").eval(), make_images(1, 64, 64)
    before, streams = codec.encode(x).y_hat, codec.compress(x)
    try:
        torch.set_default_dtype(dtype)
        assert torch.equal(codec.encode(x).y_hat, before)
        assert codec.compress(x) == streams
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", CALIBRATED)
def test_inference_mode_leaves_no_trace(name: str, make_images: MakeImages) -> None:
    x = make_images(1, 32, 32)
    with torch.inference_mode():
        codec = cdzoo.get_codec(name, latent_channels=3, N=4).eval()
    codec.calibrate(x)
    counts = codec.symbol_counts.clone()
    with torch.inference_mode():
        codec.calibrate(x)
    assert torch.equal(codec.symbol_counts, counts)
    codec.symbol_counts.add_(1)  # which PyTorch forbids for tensors that were made there


def test_networks_read_their_latents(make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = make_codec("torfason2018", M=8), make_images(2, 64, 64)
    model = cdzoo.models.cresnet39(in_channels=8, num_classes=3, width=0.0625).eval()
    pair = cdzoo.compose(codec, model).eval()
    with torch.no_grad():
        assert torch.equal(pair.from_streams(codec.compress(x)), pair(x))
        assert pair(x).shape == (2, 3)
