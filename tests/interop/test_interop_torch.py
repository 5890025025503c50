"""PyTorch's own tools around whole pipelines: compilation, saved programs, default dtypes, pruning, replicas."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18

import cdzoo
from cdzoo.codecs import BMSHJ2018_Hyperprior_Weights, Codec
from cdzoo.types import CodecOutput, JPEGCoefficients, Latent

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def fresh_codec(name: str) -> Codec:
    """A codec whose integers nobody has derived yet."""
    torch.manual_seed(0)
    sizes = {"latent_channels": 12} if name == "torfason2018" else {"M": 12}
    return cdzoo.get_codec(name, N=8, **sizes).eval()


def network_of(codec: Codec) -> nn.Module:
    torch.manual_seed(1)
    name = "fa_cresnet39" if codec.has_scales else "cresnet39"
    sizes = {"in_channels": 12, "latent_stride": codec.stride, "num_classes": 3, "width": 1 / 16}
    return cdzoo.get_model(name, **sizes).eval()


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torfason2018", "mbt2018_mean", "bmshj2018_factorized"])
def test_bits_are_left_out_of_compiled_functions(name: str) -> None:
    codec = fresh_codec(name)
    model = cdzoo.compose(codec, network_of(codec))
    compiled = torch.compile(model, backend="aot_eager")(X)  # before anything is derived
    with torch.no_grad():
        assert torch.allclose(compiled, model(X), atol=1e-6)

        def there_and_back(x: Tensor) -> tuple[list[bytes], Tensor, Tensor]:
            streams = codec.compress(2 * x - x)
            return streams, codec.decompress(streams).y_hat + 1, model.from_streams(streams) + 1

        streams, y_hat, logits = torch.compile(there_and_back, backend="eager")(X)
        assert streams == codec.compress(X)
        assert torch.equal(y_hat, codec.encode(X).y_hat + 1)
        assert torch.allclose(logits, model(X) + 1, atol=1e-6)
        for parameter in codec.parameters():
            parameter.mul_(1.5)  # another codec, derived inside the compiled function
        assert torch.equal(torch.compile(lambda x: codec.encode(x).y_hat, backend="eager")(X), codec.encode(X).y_hat)


@pytest.mark.slow
def test_jpeg_files_are_read_inside_compiled_functions() -> None:
    coefficients = cdzoo.codecs.encode_jpeg(X)

    def sizes_and_planes(c: JPEGCoefficients) -> tuple[tuple[int, int], Tensor]:
        files = cdzoo.codecs.write_jpeg(c)
        return cdzoo.codecs.read_jpeg_header(files[0]).image_size, cdzoo.codecs.read_jpeg(files).planes[0] * 2

    size, plane = torch.compile(sizes_and_planes, backend="eager")(coefficients)
    assert size == (64, 64)
    assert torch.equal(plane, coefficients.planes[0] * 2)


def saved(program: torch.export.ExportedProgram) -> nn.Module:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.export.load(buffer).module()
    return loaded


@pytest.mark.slow
def test_exported_programs_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    load = torch.load

    def without_code(*args: Any, weights_only: bool | None = None, **kwargs: Any) -> Any:
        assert weights_only is not False
        return load(*args, weights_only=True, **kwargs)

    monkeypatch.setattr(torch, "load", without_code)
    codec = fresh_codec("bmshj2018_hyperprior")
    jpeg = cdzoo.models.jpeg_resnet18(width=1 / 16, num_classes=3).eval()
    icat = cdzoo.models.icat_small(width=1 / 3, num_classes=3, in_channels=12).eval()
    cases: list[tuple[nn.Module, Any]] = [
        (codec, X), (network_of(codec), codec.encode(X)), (jpeg, cdzoo.codecs.encode_jpeg(X)), (icat, X),
    ]  # fmt: skip
    for module, x in cases:
        expected = module(x)
        found = saved(torch.export.export(module, (x,)))(x)
        assert type(found) is type(expected)
        first, second = (o.x_hat if isinstance(o, tuple) else o for o in (found, expected))
        assert torch.allclose(first, second, atol=1e-6)


def test_values_are_loaded_as_weights_are() -> None:
    latent = fresh_codec("mbt2018_mean").encode(X)
    for value in (latent, CodecOutput(X, latent, {"y": X}), cdzoo.codecs.encode_jpeg(X)):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        found = torch.load(buffer, weights_only=True)
        assert type(found) is type(value)
        assert torch.equal(torch.utils._pytree.tree_leaves(found)[0], torch.utils._pytree.tree_leaves(value)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean", "torfason2018"])
def test_the_default_dtype_is_no_part_of_a_codec(
    name: str, dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
) -> None:
    codec = fresh_codec(name)
    streams = codec.compress(X)
    default_dtype(dtype)
    other = fresh_codec(name).float()
    other.load_state_dict(codec.state_dict())
    assert other.fingerprint == codec.fingerprint
    assert torch.equal(other.decompress(streams).y_hat, codec.encode(X).y_hat)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_packaged_codecs_keep_their_values(dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]) -> None:
    expected = BMSHJ2018_Hyperprior_Weights.DEFAULT.build_codec()
    default_dtype(dtype)
    codec = BMSHJ2018_Hyperprior_Weights.DEFAULT.build_codec()
    assert codec.fingerprint == expected.fingerprint
    for found, parameter in zip(codec.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found.float(), parameter)


@pytest.mark.parametrize("transform", ["g_a", "h_s"])
def test_masks_of_pruned_weights_belong_to_a_codec(transform: str) -> None:
    codec, again = fresh_codec("bmshj2018_hyperprior"), fresh_codec("bmshj2018_hyperprior")
    found = [codec.fingerprint]
    for amount in (0.1, 0.9):
        for each in (codec, again):
            prune.l1_unstructured(each.get_submodule(transform)[0], "weight", amount)
        found.append(codec.fingerprint)  # known before the second pruning
    assert len(set(found)) == 3
    assert again.fingerprint == found[-1]  # derived once
    assert torch.equal(codec.encode(X).y_hat, again.encode(X).y_hat)
    # weights are made of others in the next forward pass only; the integers do not wait for it
    with torch.no_grad():
        codec.get_submodule(transform)[0].weight_orig.mul_(1.3)
    again.load_state_dict(codec.state_dict())
    codec(X)
    assert codec.fingerprint == again.fingerprint != found[-1]
    assert torch.equal(again.decompress(codec.compress(X)).y_hat, codec.encode(X).y_hat)
    scales = codec.encode(X).scales
    assert scales is not None
    assert torch.allclose(scales, codec(X).latent.scales, atol=2e-3)


def replica_of(module: nn.Module, memo: dict[int, nn.Module] | None = None) -> nn.Module:
    """What ``nn.DataParallel`` makes for a device: no parameters, but tensors under their names."""
    memo = {} if memo is None else memo
    if id(module) not in memo:
        memo[id(module)] = replica = module._replicate_for_data_parallel()
        replica._former_parameters = {}
        for name, child in module._modules.items():
            setattr(replica, name, None if child is None else replica_of(child, memo))
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1)
            replica._former_parameters[name] = getattr(replica, name)
        for name, buffer in module._buffers.items():
            setattr(replica, name, buffer)
    return memo[id(module)]


@torch.no_grad()
def test_replicas_of_data_parallel() -> None:
    codec = fresh_codec("torfason2018")
    model = cdzoo.compose(codec, network_of(codec).double())
    replica = replica_of(model)
    assert not list(replica.parameters())
    assert torch.equal(replica(X), model(X))
    coefficients = cdzoo.codecs.encode_jpeg(X)
    torch.manual_seed(0)
    for mode in ("factored", "fused"):
        converted = cdzoo.ops.to_jpeg_domain(resnet18(num_classes=3).double().eval(), mode=mode, mean=0, std=1)
        assert torch.equal(replica_of(converted)(coefficients), converted(coefficients))


def test_codecs_are_found_inside_wrappers() -> None:
    codec = fresh_codec("mbt2018_mean")
    for wrapped in (AveragedModel(codec), torch.compile(AveragedModel(codec), backend="eager")):
        composed = cdzoo.compose(wrapped, network_of(codec))
        assert composed.codec.fingerprint == codec.fingerprint
    with pytest.raises(TypeError, match="takes a codec first, not AveragedModel"):
        cdzoo.compose(AveragedModel(network_of(codec)), codec)


def test_a_selection_made_in_inference_mode_can_be_trained() -> None:
    codec = fresh_codec("torfason2018")
    codec.calibrate([X])
    with torch.inference_mode():
        chosen = codec.select([2, 0])
    assert chosen.fingerprint == codec.select([2, 0]).fingerprint
    chosen.train()(X).x_hat.sum().backward()
    assert all(p.grad is not None for p in chosen.g_a.parameters())


def test_values_have_types() -> None:
    latent = Latent(torch.zeros(1, 2, 3, 4), None, (24, 32))
    leaves, spec = torch.utils._pytree.tree_flatten(latent)
    assert torch.utils._pytree.treespec_loads(torch.utils._pytree.treespec_dumps(spec)) == spec
    assert len(leaves) == 3 + 1
