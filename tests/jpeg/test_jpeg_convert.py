"""Converted networks against the pixel network on the linear decode, which is what "exact" means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cdzoo.errors import JPEGError
from cdzoo.jpeg.dct import blockify, dct2d
from cdzoo.jpeg.nn.convert import to_jpeg_domain
from cdzoo.jpeg.nn.maps import CoefficientMap, LayerForms
from cdzoo.jpeg.nn.stem import jpeg_coefficient_image, jpeg_stem_conv2d
from cdzoo.jpeg.pixels import SUBSAMPLINGS, decode_jpeg, encode_jpeg
from cdzoo.types import JPEGCoefficients

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
tv = torchvision.models


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """A stride-1 stem and three stages; functional ReLU and mean, in-place addition, optionally a max pool."""

    def __init__(self, channels: int = 3, width: int = 4, pool: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        self.stages = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 8, 2))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.fc(self.stages(x).mean((2, 3)))


def vgg11_bn() -> nn.Module:
    """torchvision's, with a head of a size that a test can afford."""
    network = tv.vgg11_bn(init_weights=False)
    network.classifier = nn.Linear(512 * 7 * 7, 10)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "resnet18": (tv.resnet18, "conv1"),
    "resnet50": (tv.resnet50, "conv1"),
    "cifar": (CifarResNet, "conv1"),
    "vgg11_bn": (vgg11_bn, "features.0"),
    "mobilenet_v2": (tv.mobilenet_v2, "features.0.0"),
    "efficientnet_b0": (tv.efficientnet_b0, "features.0.0"),
    "convnext_tiny": (tv.convnext_tiny, "features.0.0"),
    "timm resnet18": (lambda: timm.create_model("resnet18"), "conv1"),
    "timm padded stem": (lambda: timm.create_model("tf_mobilenetv3_small_minimal_100"), None),
}
LARGE_NETWORKS = ("resnet50", "vgg11_bn", "convnext_tiny")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def files(*size: int, batch: int = 2, channels: int = 3, subsampling: str = "4:2:0") -> JPEGCoefficients:
    return encode_jpeg(torch.rand(batch, channels, *size), subsampling=subsampling)


def normalized(c: JPEGCoefficients, dtype: torch.dtype = torch.float64, chroma: str = "fancy") -> Tensor:
    mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))
    return ((decode_jpeg(c, clamp=False, chroma=chroma, dtype=torch.float64) - mean) / std).to(dtype)


def random_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


# -- the folded stem ---------------------------------------------------------------------------------------------------

# kernel, stride, padding, dilation
CONVS = [(7, 2, 3, 1), (3, 1, 1, 1), (3, 2, 1, 1), (4, 4, 0, 1), (3, 3, 0, 1), ((3, 5), (2, 1), (2, 0), 1)]
CONVS += [(3, 2, 4, 2), (3, 1, "same", 1), (5, 4, 1, 1)]


@pytest.mark.parametrize("chroma", ["nearest", "fancy"])
@pytest.mark.parametrize("kind", [*SUBSAMPLINGS, "gray", "rgb"])
@pytest.mark.parametrize("size", [(32, 40), (33, 47), (18, 25)], ids=str)
def test_stem_equals_the_convolution_of_the_decode(size: tuple[int, int], kind: str, chroma: str) -> None:
    c = files(*size, channels=1 if kind == "gray" else 3, subsampling=kind if ":" in kind else "4:2:0")
    c = c._replace(color_space="rgb") if kind == "rgb" else c
    x = normalized(c, chroma=chroma)
    for kernel, stride, padding, dilation in CONVS:
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        weight, bias = torch.randn(2, 3, rows, columns, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        out = jpeg_stem_conv2d(c, weight, bias, mean=MEAN, std=STD, chroma=chroma, **options)
        expected = F.conv2d(x, weight, bias, **options)
        assert out.shape == expected.shape
        assert relative(out, expected) < 1e-13
        # a network in channels_last stays in it, and a copy in the other layout would cost more than the stem saves
        weight = weight.to(memory_format=torch.channels_last)
        last = jpeg_stem_conv2d(c, weight, bias, mean=MEAN, std=STD, chroma=chroma, **options)
        assert relative(last, expected) < 1e-13
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert not out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("no_idct")
@pytest.mark.parametrize("kind", [*SUBSAMPLINGS, "gray"])
def test_coefficient_image_is_the_dct_of_the_decode(kind: str) -> None:
    for size in ((32, 40), (19, 33)):
        c = files(*size, channels=1 if kind == "gray" else 3, subsampling=kind if ":" in kind else "4:2:0")
        for chroma in ("nearest", "fancy"):
            out = jpeg_coefficient_image(c, mean=MEAN, std=STD, chroma=chroma, dtype=torch.float64)
            assert relative(out, dct2d(blockify(normalized(c, chroma=chroma)))) < 1e-13


# -- fused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "folded"),
    [
        pytest.param(*network, id=name, marks=[pytest.mark.slow] if name in LARGE_NETWORKS else [])
        for name, network in NETWORKS.items()
    ],
)
def test_fused_equals_the_pixel_network(build: Callable[[], nn.Module], folded: str | None) -> None:
    pixel = random_statistics(build())
    converted = to_jpeg_domain(pixel, mean=MEAN, std=STD)
    assert converted.folded == folded
    assert converted.model.state_dict().keys() == pixel.state_dict().keys()
    c = files(64, 72)
    with torch.no_grad():
        out = converted(c)
        assert out.dtype == torch.float32
        assert relative(out, pixel(normalized(c, torch.float32))) < 1e-4
        pixel, converted = pixel.double(), converted.double()
        odd = files(65, 71, batch=1)
        assert relative(converted(odd), pixel(normalized(odd))) < 1e-10


def test_default_normalization_is_none() -> None:
    pixel = random_statistics(CifarResNet()).double()
    c = files(20, 20)
    assert (
        relative(to_jpeg_domain(pixel, mean=0, std=1)(c), pixel(decode_jpeg(c, clamp=False, dtype=torch.float64)))
        < 1e-10
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["fused", "factored", "explicit"])
def test_networks_that_read_luma(mode: str, channels: int) -> None:
    pixel = random_statistics(CifarResNet(channels=1)).double()
    c = files(15, 16, channels=channels)
    luma = JPEGCoefficients(c.planes[:1], c.qtables[:, :1], ((1, 1),), c.image_size, "gray")
    x = (decode_jpeg(luma, clamp=False, dtype=torch.float64)[:, :1] - 0.5) / 0.25
    assert relative(to_jpeg_domain(pixel, mode=mode, mean=0.5, std=0.25)(c), pixel(x)) < 1e-10


def test_the_network_is_copied_and_keeps_its_mode() -> None:
    pixel = CifarResNet()
    converted = to_jpeg_domain(pixel, mean=0, std=1)
    assert converted.training
    assert not to_jpeg_domain(pixel.eval(), mean=0, std=1).training
    assert type(pixel.conv1) is nn.Conv2d
    assert converted.model.conv1.weight is not pixel.conv1.weight


class Stateful(nn.Sequential):
    """Keeps an activation, writes a buffer, and counts its calls."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.calls = 0
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.activation = super().forward(x)
        self.average = 0.9 * self.average + 0.1 * self.activation.detach().mean()
        return self.activation


@pytest.mark.parametrize("mode", ["fused", "factored", "explicit"])
def test_conversion_leaves_no_trace_in_the_network(mode: str) -> None:
    pixel = Stateful()
    converted = to_jpeg_domain(pixel, mode=mode, mean=0, std=1)
    assert converted.folded == ("0" if mode == "fused" else None)
    for network in (pixel, converted.model):
        assert network.calls == 0
        assert not hasattr(network, "activation")
        assert torch.equal(network.average, torch.zeros(()))
    if mode == "fused":
        c = files(16, 16)
        torch.testing.assert_close(converted(c), pixel(decode_jpeg(c, clamp=False)))
        torch.testing.assert_close(converted.model.average, pixel.average)


class Augmented(CifarResNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x if self.training else x)


@pytest.mark.parametrize("training", [True, False])
def test_networks_that_read_the_image_otherwise_in_training(training: bool) -> None:
    pixel = random_statistics(Augmented()).double()
    converted = to_jpeg_domain(pixel.train(training), mean=0, std=1)
    assert converted.folded is None
    c = files(16, 16)
    x = decode_jpeg(c, clamp=False, dtype=torch.float64)
    for mode in (True, False):
        assert relative(converted.train(mode)(c), pixel.train(mode)(x)) < 1e-10


def test_networks_that_read_the_image_twice_get_the_image() -> None:
    pixel = Block(3, 8, 2).double().eval()
    converted = to_jpeg_domain(pixel, mean=0, std=1)
    assert converted.folded is None
    c = files(17, 30, subsampling="4:1:1")
    assert relative(converted(c), pixel(decode_jpeg(c, clamp=False, dtype=torch.float64))) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "size"),
    [(tv.resnet18, (64, 64)), (lambda: nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU()), (63, 65))],
    ids=["resnet18", "its stem, odd size"],
)
def test_fused_exports_and_holds_no_rgb_image(build: Callable[[], nn.Module], size: tuple[int, int]) -> None:
    converted = to_jpeg_domain(build(), mean=MEAN, std=STD).eval()
    c = files(*size)
    dynamic = {0: torch.export.Dim.DYNAMIC}
    fixed = ((None, None),) * 3
    shapes = (JPEGCoefficients((dynamic,) * 3, dynamic, fixed, (None, None), None),)
    program = torch.export.export(converted, (c,), dynamic_shapes=shapes)
    values = [node.meta.get("val") for node in program.graph.nodes]
    full = [value for value in values if isinstance(value, Tensor) and value.dim() > 2 and value.shape[-2:] == size]
    assert not any(3 in value.shape[1:-2] for value in full)
    other = files(*size, batch=3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other), converted(other))


@pytest.mark.slow
def test_fused_compiles_in_one_graph() -> None:
    converted = to_jpeg_domain(CifarResNet(), mean=MEAN, std=STD).eval()
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    c = files(24, 24)
    with torch.no_grad():
        torch.testing.assert_close(compiled(c), converted(c))


def test_half_precision_networks_and_autocast() -> None:
    pixel = random_statistics(CifarResNet())
    converted = to_jpeg_domain(pixel, mean=MEAN, std=STD)
    c = files(32, 32)
    with torch.no_grad():
        expected = converted(c)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert relative(converted(c).float(), expected) < 0.05
        half = to_jpeg_domain(pixel.bfloat16(), mean=MEAN, std=STD)(c)
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), expected) < 0.1


@pytest.mark.parametrize("mode", ["fused", "factored"])
def test_training_and_pooling_in_float16(mode: str) -> None:
    # sums over the image exceed float16's range, as they do for larger images with smaller values
    c = files(32, 32)
    pixel = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    pixel[0].weight.data.mul_(224 / 32)
    pixel[1].bias.data.fill_(120.0)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        expected = pixel(normalized(c).float()).float()
    converted = to_jpeg_domain(pixel, mode=mode, mean=MEAN, std=STD)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(converted(c).float(), expected, rtol=0.01, atol=0)
    assert converted.model[1].running_var.isfinite().all()
    half = to_jpeg_domain(pixel.eval().half(), mode=mode, mean=MEAN, std=STD)(c)
    assert half.dtype == torch.float16
    assert relative(half.float(), pixel(normalized(c, torch.float16)).float()) < 0.02


# -- factored and explicit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 24), (13, 19)], ids=str)
@pytest.mark.parametrize("pool", [False, True], ids=["cifar", "max pool"])
@pytest.mark.parametrize("mode", ["factored", "explicit"])
def test_layers_on_coefficients_equal_the_pixel_network(mode: str, pool: bool, size: tuple[int, int]) -> None:
    pixel = random_statistics(CifarResNet(width=2, pool=pool)).double()
    for chroma, subsampling in (("nearest", "4:2:0"), ("fancy", "4:2:2")):
        c = files(*size, subsampling=subsampling)
        converted = to_jpeg_domain(pixel, mode=mode, mean=MEAN, std=STD, chroma=chroma)
        with torch.no_grad():
            assert relative(converted(c), pixel(normalized(c, chroma=chroma))) < 1e-10


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "timm resnet18"])
def test_factored_runs_any_cnn(name: str) -> None:
    pixel = random_statistics(NETWORKS[name][0]())
    c = files(41, 33, batch=1)
    with torch.no_grad():
        out = to_jpeg_domain(pixel, mode="factored", mean=MEAN, std=STD)(c)
        assert relative(out, pixel(normalized(c, torch.float32))) < 1e-4


@pytest.mark.usefixtures("no_idct")
@pytest.mark.parametrize("relu", ["exact", "asm", "apx"])
def test_explicit_runs_on_buffers_without_an_inverse_dct(relu: str) -> None:
    converted = to_jpeg_domain(
        CifarResNet(width=2), mode="explicit", relu=relu, num_frequencies=6, mean=0, std=1
    ).eval()
    with torch.no_grad():
        converted(files(16, 16))
    assert converted.model.conv1.get_buffer("xi_16x16").shape == (2, 2, 2, 8, 8, 3, 2, 2, 8, 8)
    with pytest.raises(AssertionError, match="an inverse DCT ran"):
        to_jpeg_domain(CifarResNet(width=2), mode="factored", mean=0, std=1)(files(16, 16))


@pytest.mark.parametrize("size", [(16, 16), (11, 18)], ids=str)
@pytest.mark.parametrize("relu", ["asm", "apx"])
def test_explicit_and_factored_approximate_alike(relu: str, size: tuple[int, int]) -> None:
    pixel = random_statistics(CifarResNet(width=2)).double()
    c = files(*size)
    outputs = {}
    with torch.no_grad():
        for n in (1, 15):
            factored, explicit = (
                to_jpeg_domain(pixel, mode=mode, relu=relu, num_frequencies=n, mean=0, std=1)(c)
                for mode in ("factored", "explicit")
            )
            assert relative(explicit, factored) < 1e-10
            outputs[n] = factored
        exact = pixel(decode_jpeg(c, clamp=False, dtype=torch.float64))
    assert relative(outputs[15], exact) < 1e-10
    assert relative(outputs[1], exact) > 1e-4


def test_explicit_refuses_above_the_budget_before_it_builds_anything() -> None:
    converted = to_jpeg_domain(CifarResNet(width=2), mode="explicit", memory_budget=10**6, mean=0, std=1).eval()
    for _ in range(2):
        with pytest.raises(MemoryError, match=r"need 7\.75 MiB for images of 16x16 px, .* 976\.6 KiB"):
            converted(files(16, 16))
    assert not [name for name, _ in converted.named_buffers() if ".xi_" in name]
    with pytest.raises(MemoryError, match=r"TiB for images of 224x224 px"):
        to_jpeg_domain(tv.resnet50(), mode="explicit", mean=0, std=1)(files(224, 224, batch=1))


def test_explicit_names_what_has_no_form() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.SiLU())
    with pytest.raises(ValueError, match=r"functional\.silu has no JPEG-domain form.*factored"):
        to_jpeg_domain(network, mode="explicit", mean=0, std=1)(files(8, 8))


def test_explicit_says_why_memory_cannot_be_told() -> None:
    class Shifted(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.ones(2, 1, 1)

    network = Shifted(nn.Conv2d(3, 2, 1))
    with pytest.raises(ValueError, match=r"tensors of its own.*device=x\.device"):
        to_jpeg_domain(network, mode="explicit", mean=0, std=1)(files(8, 8))


class SpaceToDepth(nn.Sequential):
    """Reads three channels, and its first convolution 48."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:  # no tracing
            return x
        return super().forward(F.pixel_unshuffle(x, 4))


def test_the_first_convolution_need_not_read_the_image() -> None:
    network = SpaceToDepth(nn.Conv2d(48, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    c = files(32, 24)
    for mode in ("fused", "factored"):
        found = to_jpeg_domain(network, mode=mode, mean=0, std=1)(c)
        found = found.pixels() if isinstance(found, CoefficientMap) else found
        torch.testing.assert_close(found, network(decode_jpeg(c, clamp=False)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["fused", "factored", "explicit"])
def test_training_follows_the_pixel_network(mode: str) -> None:
    """Two steps in training mode: equal parameters and running statistics; then equal inference."""
    pixel = CifarResNet(width=2).double().train()
    converted = to_jpeg_domain(pixel, mode=mode, mean=MEAN, std=STD)
    batches = [files(13, 10), files(13, 10)]
    for network, read in ((pixel, normalized), (converted, lambda c: c)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        for c in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(read(c)), torch.tensor([3, 7])).backward()
            optimizer.step()
    for name, value in pixel.state_dict().items():
        torch.testing.assert_close(converted.model.state_dict()[name], value, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        assert relative(converted.eval()(batches[0]), pixel.eval()(normalized(batches[0]))) < 1e-9


def augmented(x: Tensor) -> Tensor:
    y = x
    y += 1
    y *= 2
    y -= 0.5
    y /= 3
    assert y is x
    return x


def assigned(x: Tensor, value: Any) -> Tensor:
    x[:, :1] = value
    return x


def shifted(x: Tensor) -> Tensor:
    x[:, :1] += 1
    return x


def masked(x: Tensor) -> Tensor:
    x[x > 0.5] = 0
    return x


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "add a number": lambda x: 1 + x,
    "subtract": lambda x: x - 0.5 * x - 2,
    "subtract from a plain image": lambda x: torch.ones(2, 3, 11, 9, dtype=x.dtype) - x,
    "scale channels": lambda x: torch.arange(3, dtype=x.dtype).view(3, 1, 1) * x / 7,
    "shift channels": lambda x: x + torch.arange(3, dtype=x.dtype).view(1, 3, 1, 1),
    "gate": lambda x: x * x.sigmoid(),
    "concatenate": lambda x: torch.cat([x, x.relu()], 1),
    "pool to a vector": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "pool to 3x3": lambda x: F.adaptive_avg_pool2d(x, 3),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "mean": lambda x: x.mean([-1, -2], keepdim=True),
    "mean of channels": lambda x: x.mean(1),
    "in place": lambda x: F.relu(x.mul(-1), inplace=True).add_(1).contiguous(),
    "in place, on a variable": lambda x: [y := x.clone(), F.relu(y, inplace=True), y.sub_(1), y][-1],
    "reflected operators": lambda x: [1 - x, 2**x, 1 / (x.abs() + 1), x][0] + x,
    "reflected operators leave their operand": lambda x: [1 - x, 2**x, 1 / (x.abs() + 1), x][-1],
    "augmented operators": lambda x: augmented(x.clone()),
    "slices": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1) + x,
    "slices of space": lambda x: x[:, :, 1:-1, ::2] + x[:, :, 1:-1, ::2],
    "augmented assignment to a slice": lambda x: shifted(x.clone()),
    "an activation of a slice": lambda x: F.relu(x[:, :2], inplace=True),
    "a method of a slice": lambda x: [y := x.clone(), y[:, :1].add_(1), y][-1],
    "a slice of a slice": lambda x: [y := x.clone(), y[:, 1:][:, :1].mul_(2), y][-1],
    "assignment to a variable": lambda x: [y := x.clone(), assigned(y[:, 1:], 0.0), y][-1],
    "an activation in place of a slice": lambda x: [y := x.clone(), F.relu(y[:, :2], inplace=True), y][-1],
    "a chunk in place": lambda x: [y := x.clone(), y.chunk(2, 1)[0].mul_(2), y][-1],
    "a piece in place": lambda x: [y := x.clone(), y.split([4, 7], dim=-2)[1].sub_(1), y][-1],
    "a slice of a constant": lambda x: (1 - x)[:, :2],
    "assignment to a slice": lambda x: assigned(x.clone(), 0.0),
    "assignment of a map": lambda x: assigned(x.clone(), x[:, 1:2] * 2),
    "assignment by a mask": lambda x: masked(x.clone()),
    "option A": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)),
    "max pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "channels last": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "shape": lambda x: x.view(x.shape[0], -1, x.size(3)),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_coefficient_maps_behave_like_tensors(operation: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 11, 9, dtype=torch.float64)
    forms = LayerForms(mode="factored", relu="exact", num_frequencies=15)
    out = operation(CoefficientMap(dct2d(blockify(x)), (11, 9), forms))
    expected = operation(x)
    assert out.shape == expected.shape
    torch.testing.assert_close(out.pixels() if isinstance(out, CoefficientMap) else out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.view(x.shape).add_(1),
        lambda x: x.narrow(1, 0, 2).relu_(),
        lambda x: x.reshape(x.shape).__setitem__(slice(None), 0.0),
    ],
)
def test_changes_of_a_view_that_would_be_lost_are_refused(change: Callable[[Tensor], Any]) -> None:
    forms = LayerForms(mode="factored", relu="exact", num_frequencies=15)
    with pytest.raises(ValueError, match="changes a view of a map in place, which would not change the map"):
        change(CoefficientMap(dct2d(blockify(torch.randn(2, 3, 11, 9))), (11, 9), forms))


@pytest.mark.parametrize("size", [(16, 24), (13, 19)], ids=str)
def test_gradients_of_maps(size: tuple[int, int]) -> None:
    pixel = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    c = files(*size)
    converted = to_jpeg_domain(pixel, mode="factored", mean=0, std=1).model
    forms = LayerForms(mode="factored", relu="exact", num_frequencies=15)
    x = decode_jpeg(c, clamp=False, dtype=torch.float64)
    expected_features = pixel[1](pixel[0](x))
    features = converted[1](converted[0](CoefficientMap(dct2d(blockify(x)), size, forms)))
    expected = torch.autograd.grad(pixel[2](expected_features).square().sum(), (expected_features, pixel[0].weight))
    loss = converted[2](features).pixels().square().sum()
    map_gradient, weight_gradient = torch.autograd.grad(loss, (features, converted[0].weight), retain_graph=True)
    assert relative(map_gradient.pixels(), expected[0]) < 1e-10
    assert relative(weight_gradient, expected[1]) < 1e-10
    torch.testing.assert_close(map_gradient.coefficients, dct2d(blockify(expected[0])))
    with pytest.raises(ValueError, match="in batches"):
        torch.autograd.grad(loss[None], features, torch.eye(1), is_grads_batched=True)
    (unused,) = torch.autograd.grad(loss, converted[2](features.detach()), allow_unused=True)
    assert unused is None


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relu": "asm"}, "relu='asm' approximates.*mode=\"fused\" has pixels"),
        ({"relu": "apx", "mode": "fused"}, "relu='apx'"),
        ({"mode": "dense"}, "mode='dense': choose one of fused, factored, explicit"),
        ({"relu": "soft"}, "relu='soft'"),
        ({"chroma": "bilinear"}, "chroma='bilinear'"),
        ({"mode": "factored", "num_frequencies": 0}, "num_frequencies=0"),
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\).*3 channels"),
        ({"std": 0}, "std=0"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_jpeg_domain(CifarResNet(), **{"mean": 0, "std": 1, **options})


@pytest.mark.parametrize("mode", ["fused", "factored"])
def test_cmyk_is_refused(mode: str) -> None:
    with pytest.raises(JPEGError, match="cmyk"):
        to_jpeg_domain(CifarResNet(), mode=mode, mean=0, std=1)(files(8, 8)._replace(color_space="cmyk"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["fused", "factored"])
def test_on_a_gpu(mode: str) -> None:
    converted = to_jpeg_domain(CifarResNet(), mode=mode, mean=MEAN, std=STD).double().eval()
    c = files(33, 47)
    with torch.no_grad():
        expected = converted(c)
        moved = converted.to("cuda")(c.to("cuda"))
        torch.testing.assert_close(moved.cpu(), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(decode_jpeg(c.to("cuda")).cpu(), decode_jpeg(c), rtol=1e-5, atol=1e-5)
        again = encode_jpeg(decode_jpeg(c.to("cuda")))
    assert all(plane.is_cuda and plane.dtype == torch.int16 for plane in again.planes)
