"""cResNet-d, ResNet-d and ResNet-41 as segmenters: dilations that replace strides exactly, the head, image sizes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from oracles.networks import count_parameters, multiply_adds, randomize
from torch import nn

import cdzoo
from cdzoo.errors import WeightsError
from cdzoo.models import Segmenter, cresnet39_d, cresnet51_d, cresnet72_d, resnet41_seg, resnet50_d, resnet71_d
from cdzoo.models._segmenter import ASPPHead, strides_to_dilations
from cdzoo.models.deeplab import CResNetD, LatentResNetSegmenter, RGBResNetD
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent

CLASSIFIERS = {
    "cresnet39_d": "cresnet39",
    "cresnet51_d": "cresnet51",
    "cresnet72_d": "cresnet72",
    "resnet50_d": "resnet50",
    "resnet71_d": "resnet71",
    "resnet41_seg": "resnet41",
}
HEAD = 4 * (9 * 2048 * 21 + 21)
"""Parameters of the head: four 3x3 convolutions with bias."""


@pytest.fixture
def small():
    torch.manual_seed(0)
    return cresnet39_d(width=0.0625, in_channels=6, num_classes=5).eval()


# -- sizes of the networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "in_channels", "classifier"),
    [
        (cresnet39_d, 8, 25_172_968),
        (cresnet39_d, 32, 25_188_328),
        (cresnet51_d, 16, 29_646_824),
        (cresnet72_d, 32, 37_477_352),
    ],
)
def test_parameters_are_the_classifiers_with_another_head(builder, in_channels, classifier):
    with torch.device("meta"):
        assert count_parameters(builder(in_channels=in_channels)) == classifier - (2048 * 1000 + 1000) + HEAD


@pytest.mark.parametrize(("builder", "latent"), [(cresnet39_d, (1, 32, 40, 28)), (cresnet72_d, (1, 32, 28, 28))])
def test_every_weight_works_at_every_position(builder, latent):
    """Nothing subsamples any more, so each weight is multiplied once for each latent sample."""
    with torch.device("meta"):
        model = builder()
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    assert multiply_adds(model, latent) == weights * latent[2] * latent[3]


def test_resnet50_d_costs_more_from_conv4_on():
    with torch.device("meta"):
        model = resnet50_d()
        late = [m for part in ("layer3", "layer4") for m in model.backbone.get_submodule(part).modules()]
        weights = sum(m.weight.numel() for m in [*late, *model.classifier.modules()] if isinstance(m, nn.Conv2d))
        early = nn.Sequential(*[getattr(model.backbone, n) for n in ("conv1", "maxpool", "layer1", "layer2")])
    assert multiply_adds(model, (1, 3, 320, 320)) == multiply_adds(early, (1, 3, 320, 320)) + weights * 40 * 40


def test_dilations_of_the_paper():
    with torch.device("meta"):
        for model in (cresnet39_d(), resnet71_d()):
            for stage, dilation in (("layer2", 1), ("layer3", 2), ("layer4", 4)):
                convs = [b.conv2 for b in model.backbone.get_submodule(stage)]
                assert {conv.dilation for conv in convs} == {conv.padding for conv in convs} == {(dilation, dilation)}
        strides = [m.stride for m in cresnet51_d().modules() if isinstance(m, nn.Conv2d)]
        assert set(strides) == {(1, 1)}
        assert resnet50_d().backbone.layer2[0].conv1.stride == (2, 2)


# -- strides to dilations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride_in_1x1", [True, False])
@pytest.mark.parametrize("name", ["cresnet39_d", "resnet50_d", "resnet41_seg"])
def test_features_at_aligned_positions_are_the_classifiers(name, stride_in_1x1):
    """Every fourth position in each direction, borders included, and for sizes that are no multiples."""
    torch.manual_seed(0)
    channels = {} if name == "resnet50_d" else {"in_channels": 6}
    kwargs = {"width": 0.0625, "stride_in_1x1": stride_in_1x1, **channels}
    classifier = randomize(cdzoo.get_model(CLASSIFIERS[name], **kwargs)).double().eval()
    segmenter = cdzoo.get_model(name, **kwargs).double().eval()
    loaded = segmenter.load_classifier(classifier.state_dict())
    assert all(n.startswith("classifier.") for n in loaded.kept)
    assert loaded.unused == ["fc.weight", "fc.bias"]
    for size in ((20, 12), (21, 15), (2, 7), (1, 1)):
        pixels = 8 if name == "resnet50_d" else 1
        x = torch.randn(2, classifier.in_channels, pixels * size[0], pixels * size[1], dtype=torch.float64)
        with torch.no_grad():
            dense, strided = segmenter.forward_features(x), classifier.forward_features(x)
        factor = 2 if name == "resnet41_seg" else 1
        assert dense.shape[2:] == (factor * size[0], factor * size[1])
        torch.testing.assert_close(dense[:, :, ::4, ::4], strided, rtol=1e-9, atol=1e-9)
        assert dense.std() > 1e-3


def test_torchvisions_resnet50_is_taken_as_it_is():
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None).backbone
    randomize(theirs).eval()
    ours = resnet50_d(stride_in_1x1=False, num_classes=3).eval()
    loaded = ours.load_classifier(theirs.state_dict())
    assert loaded.unused == []
    x = torch.randn(1, 3, 33, 50)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(x), theirs(x)["out"], rtol=1e-4, atol=1e-4)


def test_loading_a_classifier_is_all_or_nothing(small):
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    given = {name: torch.zeros_like(tensor) for name, tensor in small.backbone.state_dict().items()}
    for state, message in (
        ({n: t for n, t in given.items() if n != "layer4.2.bn3.bias"}, r"1 of \d+ tensors .*'layer4\.2\.bn3\.bias'"),
        (given | {"layer4.2.bn3.bias": torch.zeros(7)}, r"bn3\.bias has shape \(7,\).*needs \(128,\)"),
        (cdzoo.models.cresnet51(width=0.0625, in_channels=7).state_dict(), r"\(8, 7, 1, 1\).*same in_channels"),
    ):
        with pytest.raises(WeightsError, match=message):
            small.load_classifier(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_from_classifier_is_what_the_builder_makes(name, tmp_path):
    torch.manual_seed(0)
    given = {"width": 0.0625} if name.startswith(("resnet50", "resnet71")) else {"width": 0.0625, "in_channels": 12}
    given |= {"upscale": None, "channels": (3, 1)} if name == "resnet41_seg" else {"stride_in_1x1": False}
    classifier = randomize(cdzoo.get_model(CLASSIFIERS[name], num_classes=4, **given)).eval()
    classifier.codec_fingerprint = "0123456789abcdef"
    classifier.transforms = LatentTransform(size=(28, 28), mean=(0.5,) * 12)
    segmenter = Segmenter.from_classifier(classifier.double(), num_classes=3)
    assert (segmenter.origin.builder, segmenter.num_classes, segmenter.training) == (name, 3, False)
    assert {n: v for n, v in segmenter.origin.arguments.items() if n in given} == {
        n: None if v is None else v for n, v in given.items()
    }
    assert {p.dtype for p in segmenter.parameters()} == {torch.float64}
    own = segmenter.backbone.state_dict()
    assert all(torch.equal(tensor, own[n]) for n, tensor in classifier.state_dict().items() if not n.startswith("fc."))
    assert own["layer4.2.bn3.weight"].data_ptr() != classifier.state_dict()["layer4.2.bn3.weight"].data_ptr()
    assert segmenter.codec_fingerprint == "0123456789abcdef"
    assert segmenter.transforms == LatentTransform(mean=(0.5,) * 12)
    if name == "cresnet39_d":
        cdzoo.save_pretrained(segmenter.float(), tmp_path)
        assert cdzoo.from_pretrained(tmp_path).transforms == segmenter.transforms


def test_what_has_no_segmenter_is_told():
    with pytest.raises(TypeError, match=r"FAcResNet has no segmenter; .*cresnet39, .*resnet41"):
        Segmenter.from_classifier(cdzoo.models.fa_cresnet39(width=0.0625, in_channels=8))
    with pytest.raises(TypeError, match="ResNet has no segmenter"):
        Segmenter.from_classifier(torchvision.models.resnet18(weights=None))
    assert Segmenter.from_classifier(cdzoo.models.resnet50(width=0.0625)).num_classes == 21


# -- the head ----------------------------------------------------------------------------------------------------------


def test_the_head_is_a_sum_of_four_dilated_convolutions():
    torch.manual_seed(0)
    head, x = ASPPHead(3, 2).double(), torch.randn(1, 3, 30, 31, dtype=torch.float64)
    for conv in head.convs:
        nn.init.normal_(conv.bias)
    # one sample far from the borders, from its definition
    row, column, expected = 24, 26, sum(conv.bias for conv in head.convs)
    for rate, conv in zip((6, 12, 18, 24), head.convs, strict=True):
        for i in range(3):
            for j in range(3):
                r, c = row + (i - 1) * rate, column + (j - 1) * rate
                if 0 <= r < 30 and 0 <= c < 31:
                    expected = expected + conv.weight[:, :, i, j] @ x[0, :, r, c]
    torch.testing.assert_close(head(x)[0, :, row, column], expected)
    assert ASPPHead(3, 2).convs[0].weight.std().item() == pytest.approx(0.01, rel=0.3)


def test_upsampling_is_bilinear_with_square_pixels(small):
    y_hat = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        logits = small.forward_head(small.forward_features(y_hat))
        assert logits.shape == (2, 5, 5, 7)
        full = small(y_hat)
    assert full.shape == (2, 5, 40, 56)
    # the center of pixel p lies at (p + 0.5) / 8 - 0.5 positions, clamped to the map
    at = ((torch.arange(56) + 0.5) / 8 - 0.5).clamp(0, 6)
    left = at.floor().long().clamp(max=5)
    row = logits[..., 0, :]  # pixels 0 to 3 lie above the center of the first position
    expected = row[..., left] + (at - left) * (row[..., left + 1] - row[..., left])
    torch.testing.assert_close(full[..., 0, :], expected)


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [(64, 80), (57, 73), (1, 8), (8, 9)])
@pytest.mark.parametrize(
    ("builder", "stride", "arguments"),
    [
        (cresnet39_d, 8, {}),
        (cresnet39_d, 16, {"latent_stride": 16, "use_scales": True}),
        (resnet41_seg, 16, {}),
        (resnet41_seg, 16, {"upscale": None}),
    ],
)
def test_logits_of_a_latent_have_the_size_of_the_image(builder, stride, arguments, image_size):
    torch.manual_seed(0)
    model = builder(width=0.0625, in_channels=6, num_classes=4, **arguments).eval()
    h, w = (-(-side // stride) for side in image_size)
    latent = Latent(torch.randn(2, 6, h, w), torch.rand(2, 6, h, w), image_size)
    with torch.no_grad():
        logits, whole = model(latent), model(latent.y_hat, latent.scales)
    assert logits.shape == (2, 4, *image_size)
    assert whole.shape == (2, 4, stride * h, stride * w)
    assert torch.equal(logits, whole[..., : image_size[0], : image_size[1]])
    assert (model.latent_stride, model.in_channels, model.uses_scales) == (stride, 6, "use_scales" in arguments)
    for wrong in ((h * stride + 1, image_size[1]), (image_size[0], 3 * stride * w)):
        with pytest.raises(ValueError, match="latents that were not resized"):
            model(latent._replace(image_size=wrong))


@pytest.mark.parametrize("size", [(32, 48), (33, 45), (1, 1)])
def test_logits_of_pixels_have_their_size(size):
    model = resnet50_d(width=0.0625, num_classes=4).eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert model.forward_features(x).shape == (1, 128, -(-size[0] // 8), -(-size[1] // 8))
        assert model(x).shape == (1, 4, *size)
    assert model.latent_stride is None
    with pytest.raises(ValueError, match=r"reads \(B, 3, H, W\)"):
        model(torch.randn(1, 4, *size))


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    y_hat = torch.randn(2, 6, 26, 26)  # a dilation of 24 sees the borders only of smaller maps
    for model in (
        CResNetD((1, 1, 1), in_channels=6, num_classes=3, width=0.0625),
        LatentResNetSegmenter(in_channels=6, num_classes=3, width=0.0625),
        RGBResNetD((1, 1, 1, 1), in_channels=6, num_classes=3, width=0.0625),
    ):
        x = y_hat.repeat(1, 1, 8, 8) if isinstance(model, RGBResNetD) else y_hat
        model.train()(x).square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
        backbone, head = model.parameter_groups()
        assert (backbone["name"], head["name"], len(head["params"])) == ("backbone", "classifier", 8)
        assert len(backbone["params"]) + 8 == len(list(model.parameters()))


def test_the_head_is_replaced_like_a_classifiers(small):
    y_hat = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    small.double().reset_classifier(9)
    assert small(y_hat).shape == (1, 9, 32, 32)
    assert small.num_classes == small.origin.arguments["num_classes"] == 9
    features = small.forward_features(y_hat)
    assert small.forward_head(features, pre_logits=True) is features
    small.reset_classifier(0)
    assert isinstance(small.get_classifier(), nn.Identity)
    assert small(y_hat).shape == (1, small.num_features, 32, 32)
    with pytest.raises(ValueError, match="num_classes must be an integer that is not negative, not -1"):
        small.reset_classifier(-1)
    assert isinstance(cresnet39_d(width=0.0625, num_classes=0).classifier, nn.Identity)


def test_wrong_arguments_are_refused(small):
    with pytest.raises(ValueError, match=r"latent_stride=9 must be even"):
        resnet41_seg(width=0.0625, latent_stride=9)
    with pytest.raises(ValueError, match=r"reads \(B, 6, h, w\)"):
        small(torch.randn(1, 7, 4, 4))
    with pytest.raises(AssertionError):
        strides_to_dilations([nn.Sequential(nn.Conv2d(1, 1, 1))])


# -- with a codec ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", [cresnet39_d, resnet41_seg])
def test_bits_become_logits_of_every_pixel(builder, make_codec, make_images):
    codec = make_codec("bmshj2018_hyperprior")
    torch.manual_seed(0)
    model = builder(width=0.0625, in_channels=24, num_classes=3, latent_stride=16).eval()
    composed, images = cdzoo.compose(codec, model), make_images(2, 50, 70)
    with torch.no_grad():
        logits = composed.from_streams(codec.compress(images))
        assert logits.shape == (2, 3, 50, 70)
        assert torch.equal(logits, composed(images))
        assert torch.equal(logits, model(codec.encode(images)))
    with pytest.raises(ValueError, match="one size at a time"):
        composed.from_streams([*codec.compress(images), *codec.compress(make_images(1, 40, 40))])


def test_pixel_segmenters_read_no_latents(make_codec):
    with pytest.raises(TypeError, match="does not read latents"):
        cdzoo.compose(make_codec("bmshj2018_hyperprior"), resnet50_d(width=0.0625))
