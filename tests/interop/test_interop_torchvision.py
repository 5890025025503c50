"""torchvision's transforms v2 on coefficients, where decoding tells what is right, and on latents."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cdzoo.codecs import decode_jpeg, encode_jpeg
from cdzoo.interop.torchvision import CoefficientTensor, LatentTensor, V2Transform, unwrap, wrap
from cdzoo.types import JPEGCoefficients, Latent


def pixels(c: JPEGCoefficients) -> Tensor:
    return decode_jpeg(c, clamp=False, chroma="nearest")


@pytest.fixture
def files() -> JPEGCoefficients:
    torch.manual_seed(0)
    return encode_jpeg(torch.rand(2, 3, 64, 96))


@pytest.fixture
def latent() -> Latent:
    torch.manual_seed(0)
    return Latent(torch.randn(2, 5, 7, 9).round(), torch.rand(2, 5, 7, 9), (16 * 7 - 3, 16 * 9 - 5))


EXACT = {
    "horizontal flip": v2.RandomHorizontalFlip(p=1),
    "vertical flip": v2.RandomVerticalFlip(p=1),
    "center": v2.CenterCrop((32, 64)),
    "quarter turn": v2.RandomRotation((90, 90), expand=True),
    "half turn": v2.RandomRotation((180, 180)),
    "three quarters": v2.RandomRotation((270, 270), expand=True),
    "several": v2.Compose([v2.CenterCrop(32), v2.RandomHorizontalFlip(p=1), v2.RandomRotation((90, 90))]),
    "by chance": v2.RandomApply([v2.RandomVerticalFlip(p=1)], p=1),
}


@pytest.mark.parametrize("name", EXACT)
def test_transforms_commute_with_decoding(name: str, files: JPEGCoefficients) -> None:
    transform = EXACT[name]
    expected = transform(tv_tensors.Image(pixels(files)))
    found = V2Transform(transform)(files)
    assert isinstance(found, JPEGCoefficients)
    assert all(plane.dtype == torch.int16 for plane in found.planes)
    assert found.image_size == tuple(expected.shape[-2:])
    assert not torch.allclose(expected, pixels(files)[..., : expected.shape[-2], : expected.shape[-1]].mean())
    torch.testing.assert_close(pixels(found), expected.as_subclass(Tensor), rtol=0, atol=1e-5)


def test_random_crops_are_on_the_grid_where_asked(files: JPEGCoefficients) -> None:
    transform = V2Transform(v2.RandomCrop(32), snap=True)
    image = pixels(files)
    boxes = {(top, left) for top in (0, 16, 32) for left in (0, 16, 32, 48, 64)}
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        found = pixels(transform(files))
        fits = {(t, x) for t, x in boxes if torch.allclose(image[..., t : t + 32, x : x + 32], found, atol=1e-5)}
        assert len(fits) == 1
        seen |= fits
    assert len(seen) > 6
    torch.manual_seed(0)  # a corner off the grid, as 255 of 256 are
    with pytest.raises(ValueError, match="multiples of 16 rows and 16 columns"):
        V2Transform(v2.RandomCrop(32))(files)


def test_what_has_no_exact_form_is_refused(files: JPEGCoefficients, latent: Latent) -> None:
    refused = [
        v2.Resize(32), v2.RandomResizedCrop(32), v2.Pad(2), v2.RandomAffine(10), v2.RandomPerspective(p=1),
        v2.ElasticTransform(1.0, 0.2), v2.ColorJitter(0.5), v2.GaussianBlur(3), v2.Normalize([0.5] * 3, [0.5] * 3),
        v2.ToDtype(torch.float32, scale=True), v2.RandomErasing(p=1), v2.Grayscale(), v2.FiveCrop(16),
        v2.RandomSolarize(0.5, p=1), v2.RandomEqualize(p=1), v2.RandomInvert(p=1),
    ]  # fmt: skip
    for transform in refused:
        for value in (files, latent):
            with pytest.raises((TypeError, ValueError)) as caught:
                V2Transform(transform)(value)
            assert isinstance(caught.value, TypeError), transform
    with pytest.raises(TypeError, match=r"resize has no exact form on a CoefficientTensor; there are center_crop, c"):
        V2Transform(v2.Resize(32))(files)
    with pytest.raises(TypeError, match="rotate has no exact form on a LatentTensor"):
        V2Transform(v2.RandomRotation((90, 90)))(latent)


def test_sizes_that_are_not_exact_are_refused(files: JPEGCoefficients, latent: Latent) -> None:
    odd = encode_jpeg(torch.rand(1, 3, 50, 75))
    for transform, match in (
        (v2.RandomHorizontalFlip(p=1), "width of 75 is no multiple of 16"),
        (v2.CenterCrop(16), "multiples of 16 rows"),
        (v2.CenterCrop(64), "would have to pad"),
    ):
        with pytest.raises(ValueError, match=match):
            V2Transform(transform)(odd)
    for transform, match in (
        (v2.RandomRotation((45, 45)), "only multiples of 90"),
        (v2.RandomRotation((90, 90)), "expand=True"),
    ):
        with pytest.raises(ValueError, match=match):
            V2Transform(transform)(files)
    with pytest.raises(ValueError, match="would have to pad 7x9"):
        V2Transform(v2.CenterCrop(8))(latent)
    with pytest.raises(ValueError, match="does not lie within 7x9 samples"):
        F.crop(wrap(latent), 5, 0, 3, 3)


def test_every_functional_that_takes_images_has_an_answer() -> None:
    """No kernel of pixels is ever reached, of whatever torchvision is installed."""
    from torchvision.transforms.v2.functional._utils import _KERNEL_REGISTRY

    for functional, kernels in _KERNEL_REGISTRY.items():
        if tv_tensors.Image in kernels:
            assert CoefficientTensor in kernels, functional
            assert LatentTensor in kernels, functional


def test_latents_are_flipped_and_cropped_as_maps(latent: Latent) -> None:
    y_hat, scales, (height, width) = latent
    assert scales is not None
    flipped = V2Transform(v2.RandomHorizontalFlip(p=1))(latent)
    assert torch.equal(flipped.y_hat, y_hat.flip(-1))
    assert torch.equal(flipped.scales, scales.flip(-1))
    assert flipped.image_size == (height, width)
    upside = V2Transform(v2.RandomVerticalFlip(p=1))(latent)
    assert torch.equal(upside.y_hat, y_hat.flip(-2))
    both = torch.cat([y_hat, scales], 1)
    cut = V2Transform(v2.CenterCrop((4, 6)))(latent)
    assert torch.equal(torch.cat([cut.y_hat, cut.scales], 1), v2.CenterCrop((4, 6))(both))
    for seed in range(10):
        torch.manual_seed(seed)
        cut = V2Transform(v2.RandomCrop((5, 3)))(latent)
        torch.manual_seed(seed)
        assert torch.equal(torch.cat([cut.y_hat, cut.scales], 1), v2.RandomCrop((5, 3))(both))
    factorized = V2Transform(v2.RandomHorizontalFlip(p=1))(latent._replace(scales=None))
    assert factorized.scales is None


def test_crops_of_latents_know_their_pixels(latent: Latent) -> None:
    assert unwrap(F.crop(wrap(latent), 1, 2, 3, 4)).image_size == (48, 64)
    assert unwrap(F.crop(wrap(latent), 4, 5, 3, 4)).image_size == (48 - 3, 64 - 5)
    small = Latent(torch.zeros(1, 2, 1, 28), None, (5, 300))  # one sample, and a resized latent
    assert unwrap(F.crop(wrap(small), 0, 0, 1, 14)).image_size == (5, 150)


def test_a_sample_is_transformed_as_one(files: JPEGCoefficients, latent: Latent) -> None:
    mask = tv_tensors.Mask(torch.arange(96).expand(64, 96))
    sample = {"files": files, "pair": (latent, 3), "mask": mask, "name": "a.jpg", "boxes": torch.ones(2, 4)}
    flip = V2Transform(v2.RandomHorizontalFlip(p=0.5))
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        out = flip(sample)
        flipped = bool(out["mask"][0, 0] == 95)
        assert torch.equal(out["files"].planes[0], files.planes[0]) != flipped
        assert torch.equal(out["pair"][0].y_hat, latent.y_hat) != flipped
        assert out["pair"][1] == 3
        assert out["name"] == "a.jpg"
        assert torch.equal(out["boxes"], torch.ones(2, 4))
        seen.add(flipped)
    assert seen == {True, False}


def test_wrappers_hold_no_pixels(files: JPEGCoefficients) -> None:
    wrapped: Any = wrap(files, snap=True)
    assert tuple(wrapped.shape) == (2, 3, 64, 96)
    assert F.get_size(wrapped) == [64, 96]
    assert F.get_dimensions(wrapped) == [3, 64, 96]
    for operation in (
        lambda: wrapped.neg(),
        lambda: wrapped.clone(),
        lambda: wrapped[0],
        lambda: torch.stack([wrapped]),
    ):
        with pytest.raises(TypeError, match="has no pixels"):
            operation()
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert isinstance(twin, CoefficientTensor)
        assert twin.snap
        assert torch.equal(unwrap(twin).planes[1], files.planes[1])
        assert unwrap(twin).planes[1] is not files.planes[1]
    assert repr(wrapped) == "CoefficientTensor(shape=(2, 3, 64, 96), snap=True)"


def test_as_the_transform_of_a_dataset(tmp_path: Any) -> None:
    from oracles.jpeg_files import encode, picture

    from cdzoo.data import CoefficientDataset, collate_coefficients

    for i, size in enumerate([(80, 64), (96, 48)]):
        (tmp_path / f"{i}.jpg").write_bytes(encode(picture(*size)))
    transform = V2Transform(v2.Compose([v2.RandomCrop(32), v2.RandomHorizontalFlip()]), snap=True)
    dataset = CoefficientDataset(tmp_path, labels=None, transform=transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=collate_coefficients)
    (batch,) = loader
    assert batch.image_size == (32, 32)
    assert batch.planes[0].shape == (2, 4, 4, 8, 8)
