"""Codecs against CompressAI's models: the same bytes, and its checkpoints and models as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from oracles.compressai_models import CLASSES, compressai_model, models
from oracles.make_compressai import EXPECTED, random_codec, record
from safetensors.torch import load_file

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.interop.compressai import from_compressai

pytestmark = pytest.mark.compressai
NAMES = list(CLASSES)
MakeCodec = Callable[..., Codec]
MakeImages = Callable[..., torch.Tensor]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (192, 256)])
def test_strings_are_compressais_very_bytes(
    name: str, size: tuple[int, int], make_codec: MakeCodec, make_images: MakeImages
) -> None:
    codec, x = make_codec(name, gain=3.0), make_images(2, *size)
    model = compressai_model(name, codec)
    with torch.no_grad():
        assert codec.compressai_strings(x) == model.compress(x)["strings"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("updated", [False, True])
def test_compressai_checkpoints_load(name: str, updated: bool, make_codec: MakeCodec, make_images: MakeImages) -> None:
    reference = make_codec(name, seed=5)
    model = compressai_model(name, reference)
    state = model.state_dict()
    if not updated:
        state = {
            k: v for k, v in state.items() if k.rpartition(".")[2] not in ("_offset", "_quantized_cdf", "_cdf_length")
        }
        state |= {k: torch.IntTensor() for k in model.state_dict() if k not in state}
    x = make_images(1, 64, 64)
    for prefix in ("", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."):
        codec = cdzoo.get_codec(name, N=16, M=24)
        codec.load_compressai({prefix + k: v for k, v in state.items()})
        assert codec.compressai_strings(x) == model.compress(x)["strings"]
        assert codec.fingerprint == reference.fingerprint


def test_a_checkpoints_own_tables_are_kept(make_codec: MakeCodec) -> None:
    model = compressai_model("bmshj2018_hyperprior", make_codec("bmshj2018_hyperprior"))
    model.update(scale_table=[0.2, 0.5, 1.0, 4.0], force=True)
    codec = cdzoo.get_codec("bmshj2018_hyperprior", N=16, M=24)
    codec.load_compressai(model.state_dict())
    assert codec.coding.gaussian.num_tables == 4
    assert codec.fingerprint != make_codec("bmshj2018_hyperprior").fingerprint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(50, 50), (1, 1), (33, 64), (120, 180)])
def test_compressai_strings_take_the_sizes_that_compress_takes(
    size: tuple[int, int], name: str, make_codec: MakeCodec, make_images: MakeImages
) -> None:
    codec, x = make_codec(name), make_images(1, *size)
    model = compressai_model(name, codec)
    try:
        with torch.no_grad():
            expected = model.compress(x)["strings"]
    except (RuntimeError, ValueError):
        with pytest.raises(ValueError, match=rf"{name} takes no image of \({size[0]}, {size[1]}\) pixels"):
            codec.compressai_strings(x)
    else:
        assert codec.compressai_strings(x) == expected


@pytest.mark.parametrize("name", NAMES)
def test_compressai_strings_take_what_compress_takes(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = make_codec(name), make_images(2, 64, 64).half()
    expected = codec.compressai_strings(x.float())
    assert codec.compressai_strings(x) == codec.compressai_strings(x.double()) == expected
    double = copy.deepcopy(codec).double()
    model = compressai_model(name, codec).double()
    with torch.no_grad():
        assert double.compressai_strings(x) == model.compress(x.double())["strings"]
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        codec.compressai_strings(255 * x)


def test_sizes_follow_quality_as_in_compressai() -> None:
    from compressai.zoo.image import cfgs

    for name in NAMES:
        for quality, (n, m) in cfgs[name.replace("_", "-")].items():
            codec = cdzoo.get_codec(name, quality=quality)
            assert (codec.N, codec.M, codec.latent_channels) == (n, m, m)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrap", [lambda model: model, torch.nn.DataParallel, torch.compile])
def test_models_become_codecs(
    name: str, wrap: Callable[[torch.nn.Module], torch.nn.Module], make_codec: MakeCodec, make_images: MakeImages
) -> None:
    reference, x = make_codec(name), make_images(1, 64, 64)
    model = compressai_model(name, reference)
    codec = from_compressai(wrap(model))
    assert (codec.origin.builder, codec.training) == (name, False)
    assert codec.fingerprint == reference.fingerprint
    assert codec.compressai_strings(x) == model.compress(x)["strings"]
    assert from_compressai(CLASSES[name](8, 12)).training


def test_models_without_a_counterpart_are_refused() -> None:
    for cls in (models.JointAutoregressiveHierarchicalPriors, models.FactorizedPriorReLU):
        with pytest.raises(TypeError, match=f"^{cls.__name__} has no counterpart.*FactorizedPrior.*mbt2018_mean"):
            from_compressai(cls(8, 12))
    with pytest.raises(TypeError, match="dict"):
        from_compressai({})


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_data_are_compressais(name: str) -> None:
    expected = load_file(EXPECTED)
    codec, prefix = random_codec(name), f"{name}/weights/"
    codec.load_state_dict({key.removeprefix(prefix): expected[key] for key in expected if key.startswith(prefix)})
    found = record(name, codec)
    assert set(found) == {key for key in expected if key.startswith(f"{name}/")}
    for key, tensor in found.items():
        if tensor.is_floating_point():
            assert (tensor - expected[key]).abs().max() <= 2e-3 * tensor.abs().max(), key  # machines round differently
        else:
            assert torch.equal(tensor, expected[key]), key
