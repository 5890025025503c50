"""EfficientNet-Lite0 over coefficients against timm's network on the decoded pixels."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

import cdzoo
from cdzoo.errors import WeightsError
from cdzoo.jpeg import dct
from cdzoo.jpeg.pixels import decode_jpeg, encode_jpeg
from cdzoo.models.adapters import block_coefficients
from cdzoo.models.efficientnet import jpeg_efficientnet_lite0
from cdzoo.types import JPEGCoefficients


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """Network of timm with values that no initialization gives."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=7).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand_like(tensor))
    return network


def files(*size: int, batch: int = 2, subsampling: str = "4:2:0") -> JPEGCoefficients:
    torch.manual_seed(1)
    coarse = torch.rand(batch, 3, 9, 11)
    return encode_jpeg(F.interpolate(coarse, size=size, mode="bicubic"), quality=40, subsampling=subsampling)


@pytest.mark.parametrize("size", [(64, 96), (70, 53)])
@pytest.mark.parametrize("chroma", ["fancy", "nearest"])
def test_pixels_is_timms_network_of_the_decoded_image(
    reference: torch.nn.Module, size: tuple[int, int], chroma: str
) -> None:
    model = jpeg_efficientnet_lite0(stem="pixels", num_classes=7, chroma=chroma).eval()
    model.load_timm(reference.state_dict())
    given = files(*size)
    with torch.no_grad():
        expected = reference((decode_jpeg(given, chroma=chroma) - 0.5) / 0.5)
        torch.testing.assert_close(model(given), expected, rtol=1e-4, atol=1e-4)
        maps = model.forward_intermediates(given, intermediates_only=True)
        for own, info in zip(maps, model.feature_info, strict=True):
            assert own.shape[1] == info["num_chs"]
            assert own.shape[2:] == tuple(-(-n // info["reduction"]) for n in size)


def test_trunk_is_timms_from_the_features_at_stride_8_on(reference: torch.nn.Module) -> None:
    model = jpeg_efficientnet_lite0(num_classes=7).eval()
    model.load_timm(reference.state_dict())
    features = torch.randn(2, 40, 9, 14)
    with torch.no_grad():
        expected = features
        for stage in reference.blocks[3:]:
            expected = stage(expected)
        expected = reference.forward_head(reference.bn2(reference.conv_head(expected)))
        found = model.forward_head(model.run_stages(features, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", ["dct", "pixels"])
def test_names_are_timms(reference: torch.nn.Module, stem: str) -> None:
    own = jpeg_efficientnet_lite0(stem=stem, num_classes=7).state_dict()
    theirs = {name.replace("classifier.", "fc."): value.shape for name, value in reference.state_dict().items()}
    trunk = {name: value.shape for name, value in own.items() if not name.startswith("stem.")}
    dropped = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.", "blocks.2.") if stem == "dct" else ()
    assert trunk == {name: shape for name, shape in theirs.items() if not name.startswith(dropped or ("-",))}


def test_load_timm_is_all_or_nothing(reference: torch.nn.Module) -> None:
    model = jpeg_efficientnet_lite0(num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match="reset_classifier"):
        model.load_timm(reference.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [(48, 64), (45, 61)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_block_coefficients_are_the_dct_of_ycbcr(size: tuple[int, int], subsampling: str) -> None:
    given = files(*size, subsampling=subsampling)
    found = block_coefficients(given)
    rgb = decode_jpeg(given, clamp=False, chroma="fancy").double() * 255
    luma = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    ycbcr = torch.stack([luma - 128, (rgb[:, 2] - luma) / 1.772, (rgb[:, 0] - luma) / 1.402], 1)
    expected = dct.dct2d(dct.blockify(ycbcr)).permute(0, 2, 3, 1, 4, 5).flatten(3)
    rows, columns = size[0] // 8, size[1] // 8  # whole blocks: the others hold what the file has beyond the image
    assert found.shape == (2, -(-size[0] // 8), -(-size[1] // 8), 192)
    torch.testing.assert_close(found[:, :rows, :columns].double(), expected[:, :rows, :columns], rtol=0, atol=2e-3)


def test_block_coefficients_of_rgb_and_gray_files() -> None:
    ycbcr = files(48, 64, subsampling="4:4:4")
    rgb_pixels = decode_jpeg(ycbcr, clamp=False) * 255 - 128
    planes = tuple(dct.dct2d(dct.blockify(rgb_pixels))[:, k] for k in range(3))
    ones = torch.ones(2, 3, 8, 8, dtype=torch.int32)
    rgb = JPEGCoefficients(planes, ones, ((1, 1),) * 3, (48, 64), "rgb")
    torch.testing.assert_close(block_coefficients(rgb), block_coefficients(ycbcr), rtol=0, atol=2e-3)
    gray = JPEGCoefficients(ycbcr.planes[:1], ycbcr.qtables[:, :1], ((1, 1),), (48, 64), "gray")
    assert torch.equal(block_coefficients(gray)[..., :64], block_coefficients(ycbcr)[..., :64])
    assert not block_coefficients(gray)[..., 64:].any()


def test_the_choice_of_a_stem_is_checked() -> None:
    with pytest.raises(ValueError, match="stem='wavelet'"):
        jpeg_efficientnet_lite0(stem="wavelet")
    with pytest.raises(ValueError, match="chroma='cubic'"):
        jpeg_efficientnet_lite0(chroma="cubic")


def test_packaged_weights_belong_to_one_stem_and_name_a_thousand_classes() -> None:
    weights = cdzoo.models.JPEGEfficientNetLite0_Weights.IMAGENET1K_PIXELS
    model = jpeg_efficientnet_lite0(weights=weights).eval()
    assert len(set(weights.meta["classes"])) >= 998  # "crane" and "maillot" are two classes each
    assert model(files(224, 224, batch=1)).shape == (1, 1000)
    with pytest.raises(ValueError, match="stem='dct' conflicts"):
        jpeg_efficientnet_lite0(weights=weights, stem="dct")
