"""The hyper-decoder in integers: the same result everywhere, and the result of the float layers to its resolution."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from cdzoo.coding.integer_decoder import ACTIVATION_BITS, IntegerDecoder

UNIT = 2**ACTIVATION_BITS


def stack(*, leaky: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    act = nn.LeakyReLU if leaky else nn.ReLU
    return nn.Sequential(
        nn.ConvTranspose2d(6, 8, 5, stride=2, padding=2, output_padding=1), act(),
        nn.ConvTranspose2d(8, 10, 5, stride=2, padding=2, output_padding=1), act(),
        nn.Conv2d(10, 7, 3, padding=1), *([] if leaky else [act()]),
    )  # fmt: skip


def symbols(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(-20 * UNIT, 20 * UNIT, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (6, 7)])
def test_it_approximates_the_float_layers(leaky: bool, size: tuple[int, int]) -> None:
    layers, x = stack(leaky=leaky).double(), symbols(3, 6, *size)
    with torch.no_grad():
        expected = layers(x.double() / UNIT)
    found = IntegerDecoder(list(layers.float()))(x) / UNIT
    assert found.shape == expected.shape
    # rounding to 2^-14 once a layer, amplified by the weights of the layers behind
    assert (found - expected).abs().max() < 30 / UNIT


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_any_geometry(kernel: int, stride: int, transposed: bool) -> None:
    torch.manual_seed(0)
    for padding in range(kernel // 2 + 1):
        if transposed:
            layer: nn.Module = nn.ConvTranspose2d(3, 4, kernel, stride, padding, output_padding=stride - 1)
        else:
            layer = nn.Conv2d(3, 4, kernel, stride, padding)
        x = symbols(2, 3, 7, 9)
        with torch.no_grad():
            expected = layer.double()(x.double() / UNIT)
        found = IntegerDecoder([layer.float()])(x) / UNIT
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 4 / UNIT


def exact(decoder: IntegerDecoder, x: torch.Tensor) -> torch.Tensor:
    """The same integers by Python's unbounded arithmetic, one 3x3 convolution with ReLU, in another order."""
    (layer,) = decoder._layers
    weight, bias, bits = layer.weight.tolist(), layer.bias.tolist(), layer.weight_bits
    batch, channels, height, width = x.shape
    values = x.tolist()
    out = torch.empty(batch, len(weight), height, width, dtype=torch.int64)
    for b in range(batch):
        for o in range(len(weight)):
            for i in range(height):
                for j in range(width):
                    total = bias[o]
                    for c in reversed(range(channels)):
                        for u in reversed(range(3)):
                            for v in range(3):
                                if 0 <= i + u - 1 < height and 0 <= j + v - 1 < width:
                                    total += weight[o][c][u][v] * values[b][c][i + u - 1][j + v - 1]
                    out[b, o, i, j] = min(max((total + (1 << bits >> 1)) >> bits, 0), 2**27)
    return out


@pytest.mark.parametrize("magnitude", [1, 1000, 2**27])
def test_integers_are_exact(magnitude: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()]
    with torch.no_grad():
        layers[0].weight.mul_(50)
    decoder = IntegerDecoder(layers)
    x = torch.randint(-magnitude, magnitude + 1, (2, 4, 3, 5))
    assert torch.equal(decoder(x).long(), exact(decoder, x))


@pytest.mark.parametrize("leaky", [False, True])
def test_batch_layout_threads_and_chunks_change_nothing(leaky: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, x = IntegerDecoder(list(stack(leaky=leaky))), symbols(4, 6, 9, 11)
    expected = decoder(x)
    assert torch.equal(expected, expected.round())
    assert torch.equal(torch.cat([decoder(x[i : i + 1]) for i in range(4)]), expected)
    assert torch.equal(decoder(x.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(decoder(x.double()), expected)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert torch.equal(decoder(x), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(decoder(x), expected)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr("cdzoo.coding.integer_decoder._CHUNK_BYTES", 1)
    assert torch.equal(decoder(x), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same_integers() -> None:
    decoder, x = IntegerDecoder(list(stack(leaky=True))), symbols(4, 6, 9, 11)
    assert torch.equal(decoder(x.cuda()).cpu(), decoder(x))


def test_state_and_pickle_bring_the_same_integers_to_other_weights() -> None:
    layers, x = stack(), symbols(1, 6, 3, 3)
    decoder = IntegerDecoder(list(layers))
    state = {k: v.clone() for k, v in decoder.state().items()}
    other = IntegerDecoder(list(stack(seed=9)), state)  # the geometry is the layers', the numbers are the state's
    assert torch.equal(other(x), decoder(x))
    assert torch.equal(pickle.loads(pickle.dumps(decoder))(x), decoder(x))
    assert not any(t.is_floating_point() for t in state.values())


def test_a_state_that_does_not_fit_is_refused() -> None:
    layers = list(stack())
    state = IntegerDecoder(layers).state()
    with pytest.raises(ValueError, match="lack"):
        IntegerDecoder(layers, {k: v for k, v in state.items() if k != "2.bias"})
    with pytest.raises(ValueError, match="layer 1"):
        IntegerDecoder(layers, state | {"1.weight": state["1.weight"][:, :-1]})
    with pytest.raises(ValueError, match="not integers"):
        IntegerDecoder(layers, state | {"0.weight": state["0.weight"].float()})
    with pytest.raises(ValueError, match="fractional bits"):
        IntegerDecoder(layers, state | {"0.bits": torch.tensor(60)})


def test_sums_that_could_be_inexact_are_refused() -> None:
    layers = list(stack())
    state = IntegerDecoder(layers).state()
    with pytest.raises(ValueError, match="2\\^53"):
        IntegerDecoder(layers, state | {"0.weight": torch.full_like(state["0.weight"], 2**30)})
    # a bound that wraps around 64 bits to something small
    wide = [nn.Conv2d(128, 4, 5)]
    wide_state = IntegerDecoder(wide).state()
    for value in (2**30, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match="2\\^53"):
            IntegerDecoder(wide, wide_state | {"0.weight": torch.full_like(wide_state["0.weight"], value)})
    with torch.no_grad():
        layers[0].weight.mul_(1e9)
    with pytest.raises(ValueError, match="outside any trained range"):
        IntegerDecoder(layers)
    with torch.no_grad():
        layers[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        IntegerDecoder(layers)
    with pytest.raises(ValueError, match="BatchNorm2d"):
        IntegerDecoder([nn.BatchNorm2d(3)])


def test_large_weights_get_fewer_fractional_bits() -> None:
    layers = list(stack())
    assert all(layer.weight_bits == 20 for layer in IntegerDecoder(layers)._layers)
    with torch.no_grad():
        layers[0].weight.mul_(3000)
    decoder = IntegerDecoder(layers)
    assert 4 <= decoder._layers[0].weight_bits < 20
    assert decoder._layers[0].max_sum < 2**53
