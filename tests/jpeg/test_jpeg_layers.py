"""Every JPEG-domain layer against its oracle: inverse DCT, the pixel layer of PyTorch, DCT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdzoo.jpeg import dct
from cdzoo.jpeg.dct import blockify, dct2d, idct2d, unblockify
from cdzoo.jpeg.nn.conv import JPEGConv2d, jpeg_conv2d, jpeg_conv2d_map, jpeg_conv2d_map_bytes
from cdzoo.jpeg.nn.layers import (
    JPEGBatchNorm2d,
    JPEGGlobalAvgPool2d,
    JPEGMaxPool2d,
    jpeg_add,
    jpeg_batch_norm,
    jpeg_global_avg_pool,
    jpeg_max_pool2d,
)
from cdzoo.jpeg.nn.relu import APXReLU, ASMReLU, apx_relu, asm_relu, frequency_mask, harmonic_mixing_tensor

SIZES = [(16, 16), (13, 9), (8, 21), (5, 3)]
CONVS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3/2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "1x1/2": {"kernel_size": 1, "stride": 2, "bias": False},
    "5x3 uneven": {"kernel_size": (5, 3), "stride": (2, 1), "padding": (2, 3)},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise/3": {"kernel_size": 3, "stride": 3, "padding": 1, "groups": 4},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "same, even": {"kernel_size": 4, "padding": "same", "dilation": (1, 2)},
}


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def to_map(x: Tensor) -> Tensor:
    return dct2d(blockify(x))


def assert_equal(c: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(c, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["factored", "explicit"])
@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel:UserWarning")
def test_conv_equals_the_pixel_layer(options: dict, mode: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pixel = nn.Conv2d(4, 8, **options).double()
    layer = JPEGConv2d(4, 8, **options, mode=mode).double()
    layer.load_state_dict(pixel.state_dict())
    x = image(2, 4, *size)
    expected = pixel(x)
    for training in (True, False):
        assert_equal(layer.train(training)(to_map(x), size), to_map(expected))
    assert layer.output_size(size) == tuple(expected.shape[2:])


def test_conv_ignores_what_lies_beyond_the_image() -> None:
    c, weight = to_map(image(1, 2, 16, 16)), image(3, 2, 3, 3)
    for mode in ("factored", "explicit"):
        out = jpeg_conv2d(c, weight, padding=1, image_size=(11, 14), mode=mode)
        assert_equal(out, to_map(F.conv2d(image(1, 2, 16, 16)[..., :11, :14], weight, padding=1)))


def test_explicit_map_is_eq_12_and_13() -> None:
    """The paper's own construction: convolve the images of J~, then apply J."""
    weight = image(3, 2, 3, 3)
    basis = torch.eye(4 * 64, dtype=torch.float64).view(4 * 64, 1, 2, 2, 8, 8)
    decompressed = unblockify(idct2d(basis))  # J~ as a batch of 256 images
    filtered = torch.stack([F.conv2d(decompressed, weight[:, q : q + 1], padding=1) for q in range(2)])
    xi = to_map(filtered).view(2, 2, 2, 8, 8, 3, 2, 2, 8, 8).permute(5, 6, 7, 8, 9, 0, 1, 2, 3, 4)
    assert_equal(jpeg_conv2d_map(weight, (16, 16), padding=1), xi)
    assert jpeg_conv2d_map_bytes(3, 2, (16, 16), (16, 16), itemsize=8) == xi.numel() * 8


@pytest.mark.usefixtures("no_idct")
def test_explicit_convolution_runs_no_inverse_dct() -> None:
    layer = JPEGConv2d(2, 2, 3, mode="explicit")
    layer(torch.randn(1, 2, 1, 1, 8, 8))
    layer.eval()(torch.randn(1, 2, 1, 1, 8, 8))
    with pytest.raises(AssertionError, match="an inverse DCT ran"):
        JPEGConv2d(2, 2, 3)(torch.randn(1, 2, 1, 1, 8, 8))


def test_explicit_layer_keeps_maps_in_inference_and_they_follow_the_filters() -> None:
    layer = JPEGConv2d(1, 1, 3, padding=1, mode="explicit").double().eval()
    c = to_map(image(1, 1, 8, 8))
    with torch.no_grad():
        layer(c)
    assert dict(layer.named_buffers()).keys() == {"xi_8x8"}
    assert layer.state_dict().keys() == {"weight", "bias"}
    with torch.no_grad():
        layer.weight.mul_(2)
        assert_equal(layer(c), jpeg_conv2d(c, layer.weight, layer.bias, padding=1))
    assert layer.map_bytes((8, 8)) == 64 * 64 * 8
    assert not dict(layer.train().named_buffers())


@pytest.mark.parametrize("frozen", [False, True])
def test_explicit_layer_gives_gradients_in_evaluation_mode(frozen: bool) -> None:
    torch.manual_seed(0)
    pixel = nn.Conv2d(2, 3, 3, padding=1).double()
    layer = JPEGConv2d(2, 3, 3, padding=1, mode="explicit").double().eval()
    layer.load_state_dict(pixel.state_dict())
    for conv in (pixel, layer):
        conv.weight.requires_grad_(not frozen)
    x, y = image(1, 2, 8, 8).requires_grad_(), image(1, 2, 8, 8).requires_grad_()
    with torch.no_grad():
        layer(to_map(x))  # there is a stored map
    pixel(x).square().sum().backward()
    layer(to_map(y)).square().sum().backward()
    assert_equal(y.grad, x.grad)
    assert_equal(layer.bias.grad, pixel.bias.grad)
    assert frozen == (layer.weight.grad is None)
    if not frozen:
        assert_equal(layer.weight.grad, pixel.weight.grad)


def test_stored_maps_do_not_depend_on_autocast() -> None:
    layer, c = JPEGConv2d(2, 3, 3, padding=1, mode="explicit").eval(), torch.randn(1, 2, 1, 1, 8, 8)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            layer(c)
        torch.testing.assert_close(layer(c), jpeg_conv2d(c, layer.weight, layer.bias, padding=1))


def test_arguments_go_by_position_as_in_torch() -> None:
    x, weight = image(2, 4, 16, 16), image(8, 2, 3, 3)
    c, mean, var = to_map(x), image(4), image(4).square()
    assert_equal(jpeg_conv2d(c, weight, None, 2, 1, 1, 2), to_map(F.conv2d(x, weight, None, 2, 1, 1, 2)))
    assert_equal(jpeg_max_pool2d(c, 3, 2, 1, 1, True), to_map(F.max_pool2d(x, 3, 2, 1, 1, True)))
    ours, theirs = ((mean.clone(), var.clone(), mean, var, True, 0.3, 1e-3) for _ in range(2))
    assert_equal(jpeg_batch_norm(c, *ours), to_map(F.batch_norm(x, *theirs)))
    assert_equal(ours[1], theirs[1])
    pixel, layer = nn.Conv2d(4, 8, 3, 2, 1, 1, 2, False).double(), JPEGConv2d(4, 8, 3, 2, 1, 1, 2, False).double()
    layer.load_state_dict(pixel.state_dict())
    assert_equal(layer(c), to_map(pixel(x)))
    assert_equal(JPEGMaxPool2d(3, 2, 1, 1)(c), to_map(nn.MaxPool2d(3, 2, 1, 1)(x)))


def test_explicit_map_refuses_above_the_budget() -> None:
    layer = JPEGConv2d(64, 64, 3, padding=1, mode="explicit").eval()
    with pytest.raises(MemoryError, match=r"64 -> 64 channel.*64x64 px needs 256 GiB.*budget of 4 GiB.*factored"):
        layer(torch.empty(1, 64, 8, 8, 8, 8, device="meta"))


@pytest.mark.parametrize("mode", ["factored", "explicit"])
def test_conv_gradients(mode: str) -> None:
    c = to_map(image(1, 2, 9, 8)).requires_grad_()
    weight, bias = image(2, 2, 2, 2).requires_grad_(), image(2).requires_grad_()

    def conv(c: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return jpeg_conv2d(c, weight, bias, stride=2, padding=1, image_size=(9, 8), mode=mode)

    assert torch.autograd.gradcheck(conv, (c, weight, bias), fast_mode=True)


def test_harmonic_mixing_tensor_masks_pixels() -> None:
    h = harmonic_mixing_tensor(dtype=torch.float64)
    block, mask = image(8, 8), (image(8, 8, seed=1) > 0).double()
    assert h.shape == (8,) * 6
    assert_equal(torch.einsum("ab,mn,abmncd->cd", dct2d(block), mask, h), dct2d(block * mask))


@pytest.mark.parametrize("relu", [asm_relu, apx_relu])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_relu_is_exact_with_15_frequencies(relu: Callable[[Tensor], Tensor], size: tuple[int, int]) -> None:
    x = image(2, 3, *size)
    assert_equal(relu(to_map(x)), to_map(x.relu()))


def test_frequency_masks_count_the_coefficients_of_the_first_antidiagonals() -> None:
    counts = [int(frequency_mask(n).sum()) for n in range(1, 16)]
    assert counts == [1, 3, 6, 10, 15, 21, 28, 36, 43, 49, 54, 58, 61, 63, 64]


def test_asm_and_apx_errors_on_the_papers_blocks() -> None:
    """Mean RMSE over random 4x4 blocks, box-upscaled (sec. 5.3): both fall with n, ASM is the better, 0 at 15."""
    apx = [0.365, 0.334, 0.297, 0.253, 0.219, 0.180, 0.142, 0.109, 0.072, 0.052, 0.037, 0.023, 0.0103, 0.0031, 0]
    asm = [0.344, 0.295, 0.239, 0.171, 0.122, 0.079, 0.049, 0.031, 0.0150, 0.0084, 0.0044, 0.0018, 0.0004, 0.00005, 0]
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(20_000, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    x = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    c, exact = dct2d(x), dct2d(x.relu())
    for relu, expected in ((apx_relu, apx), (asm_relu, asm)):
        rmse = [(relu(c, n) - exact).square().mean((1, 2)).sqrt().mean().item() for n in range(1, 16)]
        assert rmse == pytest.approx(expected, rel=0.02, abs=1.5e-4)


def test_approximated_relus_keep_zeros_beyond_the_image() -> None:
    size = (11, 5)
    for layer in (ASMReLU(4), APXReLU(4)):
        x = unblockify(idct2d(layer(to_map(image(1, 1, *size)), size)))
        x[..., : size[0], : size[1]] = 0
        assert x.abs().max() < 1e-14


@pytest.mark.parametrize("n", [3, 15])
def test_relu_gradients(n: int) -> None:
    c = to_map(image(1, 2, 8, 8)).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: asm_relu(c, n), c, fast_mode=True)
    assert torch.autograd.gradcheck(lambda c: apx_relu(c, n), c, fast_mode=True)


@pytest.mark.parametrize("n", [0, 16, 2.0, True])
@pytest.mark.parametrize("call", [ASMReLU, APXReLU, frequency_mask, lambda n: asm_relu(torch.zeros(8, 8), n)])
def test_num_frequencies_is_checked(call: Callable[[int], object], n: int) -> None:
    with pytest.raises(ValueError, match=r"num_frequencies=.*1 \(DC only\) to 15"):
        call(n)


@pytest.mark.parametrize("relu", [ASMReLU, APXReLU])
def test_num_frequencies_may_be_any_integer(relu: Callable[[int], nn.Module]) -> None:
    c = to_map(image(1, 1, 8, 8))
    layer = relu(np.int64(5))
    assert type(layer.num_frequencies) is int
    assert_equal(layer(c), relu(5)(c))


def test_constants_follow_their_input_and_not_the_default_device() -> None:
    c, size = to_map(image(1, 2, 13, 9)), (13, 9)
    relu = asm_relu(c, 5), apx_relu(c, 5, image_size=size)
    conv = jpeg_conv2d(c, image(3, 2, 3, 3), image_size=size, mode="explicit")
    with torch.device("meta"):
        assert harmonic_mixing_tensor().is_meta
        assert dct.dct_matrix().is_meta
        assert_equal(asm_relu(c, 5), relu[0])
        assert_equal(apx_relu(c, 5, image_size=size), relu[1])
    weight = image(3, 2, 3, 3)
    with torch.device("meta"):
        assert_equal(jpeg_conv2d(c, weight, image_size=size, mode="explicit"), conv)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_batch_norm_equals_the_pixel_layer(options: dict, size: tuple[int, int]) -> None:
    pixel, layer = nn.BatchNorm2d(3, **options).double(), JPEGBatchNorm2d(3, **options).double()
    if pixel.affine:
        nn.init.uniform_(pixel.weight)
        nn.init.uniform_(pixel.bias)
    layer.load_state_dict(pixel.state_dict())
    for seed in range(3):
        x = image(2, 3, *size, seed=seed) * 3 + 10
        assert_equal(layer(to_map(x), size), to_map(pixel(x)))
    for name, value in pixel.state_dict().items():
        assert_equal(layer.state_dict()[name], value)
    x = image(1, 3, *size, seed=9)
    assert_equal(layer.eval()(to_map(x), size), to_map(pixel.eval()(x)))


def test_batch_norm_keeps_its_precision_at_a_large_mean() -> None:
    x = (image(4, 1, 16, 16) * 0.1 + 1000).float()
    out = jpeg_batch_norm(dct2d(blockify(x.double())).float(), None, None)
    expected = F.batch_norm(x.double(), None, None, training=True)
    assert (unblockify(idct2d(out.double())) - expected).abs().max() < 0.02


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_gradients(training: bool) -> None:
    size = (9, 8)
    c = to_map(image(2, 2, *size)).requires_grad_()
    weight, bias = image(2).requires_grad_(), image(2, seed=1).requires_grad_()
    mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def norm(c: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        stats = (mean.clone(), var.clone())
        return jpeg_batch_norm(c, *stats, weight, bias, training=training, image_size=size)

    assert torch.autograd.gradcheck(norm, (c, weight, bias), fast_mode=True)


@pytest.mark.parametrize("size", [(224, 224), (221, 218)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_over_a_map_do_not_overflow_in_half_precision(dtype: torch.dtype, size: tuple[int, int]) -> None:
    x = (image(2, 3, *size) * 3 + 20).to(dtype)
    pixel, layer = nn.BatchNorm2d(3), JPEGBatchNorm2d(3)
    tolerance = {"rtol": 0, "atol": 10 * torch.finfo(dtype).eps}
    c = to_map(x.double()).to(dtype)
    for training in (True, False):
        expected, out = pixel.train(training)(x), layer.train(training)(c, size)
        assert out.dtype == expected.dtype == dtype
        torch.testing.assert_close(out.double(), to_map(expected.double()), rtol=0, atol=300 * torch.finfo(dtype).eps)
        torch.testing.assert_close(layer.running_mean, pixel.running_mean, **tolerance)
        torch.testing.assert_close(layer.running_var, pixel.running_var, **tolerance)
    pooled = jpeg_global_avg_pool(c, image_size=size)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x.double(), 1).flatten(1).to(dtype), rtol=0.02, atol=0)


def test_batch_norm_is_exact_under_autocast() -> None:
    c = to_map(image(2, 3, 13, 9)).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = JPEGBatchNorm2d(3)(c, (13, 9))
    torch.testing.assert_close(out, JPEGBatchNorm2d(3)(c, (13, 9)), rtol=0, atol=0)


def test_batch_norm_refuses_a_single_value() -> None:
    with pytest.raises(ValueError, match="more than one value"):
        JPEGBatchNorm2d(1)(torch.zeros(1, 1, 1, 1, 8, 8), (1, 1))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pooling_and_addition_equal_the_pixel_layers(size: tuple[int, int]) -> None:
    x, y = image(2, 3, *size), image(2, 3, *size, seed=1)
    options = {"stride": 2, "padding": 1, "ceil_mode": True}
    pooled = F.max_pool2d(x, 3, **options)
    assert_equal(jpeg_max_pool2d(to_map(x), 3, **options, image_size=size), to_map(pooled))
    assert_equal(JPEGMaxPool2d(3, **options)(to_map(x), size), to_map(pooled))
    assert_equal(JPEGMaxPool2d(2)(to_map(x), size), to_map(F.max_pool2d(x, 2)))
    assert_equal(jpeg_global_avg_pool(to_map(x), image_size=size), x.mean((2, 3)))
    assert_equal(JPEGGlobalAvgPool2d()(to_map(x), size), x.mean((2, 3)))
    assert_equal(jpeg_add(to_map(x), to_map(y)), to_map(x + y))


def test_pooling_gradients() -> None:
    c = to_map(image(1, 1, 9, 8)).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: jpeg_max_pool2d(c, 2, image_size=(9, 8)), c, fast_mode=True)
    assert torch.autograd.gradcheck(lambda c: jpeg_global_avg_pool(c, image_size=(9, 8)), c, fast_mode=True)


@pytest.mark.parametrize("mode", ["factored", "explicit"])
def test_a_network_trains_in_the_domain(mode: str) -> None:
    """Three steps of SGD leave the same parameters as three steps of the pixel network."""
    torch.manual_seed(0)
    size = (12, 8)
    pixel = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    conv1 = JPEGConv2d(1, 4, 3, stride=2, padding=1, mode=mode)
    layers = nn.Sequential(conv1, JPEGBatchNorm2d(4), ASMReLU(), JPEGConv2d(4, 2, 1, mode=mode)).double()
    layers.load_state_dict(pixel.state_dict())

    def in_domain(x: Tensor) -> Tensor:
        c, small = conv1(to_map(x), size), conv1.output_size(size)
        for layer in layers[1:]:
            c = layer(c, small)
        return jpeg_global_avg_pool(c, image_size=small)

    x = image(4, 1, *size)
    for network, forward in ((pixel, lambda x: pixel(x).mean((2, 3))), (layers, in_domain)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            forward(x).square().sum().backward()
            optimizer.step()
    for name, value in pixel.state_dict().items():
        assert_equal(layers.state_dict()[name], value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: JPEGConv2d(1, 1, 3, mode="fused"), "mode='fused'.*factored.*explicit"),
        (lambda c: jpeg_conv2d(c, torch.zeros(1, 1, 9, 9), mode="explicit"), "9x9 filter.*8x8 pixels"),
        (lambda c: jpeg_conv2d(c, torch.zeros(1, 2, 1, 1), mode="explicit"), "take 2 channels, but the map has 1"),
        (lambda c: jpeg_conv2d(c, torch.zeros(1, 1, 1, 1), padding="full", mode="explicit"), "padding='full'"),
        (lambda c: jpeg_conv2d(c, torch.zeros(1, 1, 1, 1), image_size=(9, 8)), "9x8 pixels has 2x1 blocks"),
        (lambda c: jpeg_global_avg_pool(c, image_size=(0, 8)), "0x8"),
        (lambda c: jpeg_add(c, c[:, :, :0]), "can't be added"),
    ],
)
def test_errors(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1, 1, 1, 8, 8))
