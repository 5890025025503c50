"""The learned codecs: the contract's members, sizes, identity, CompressAI's bytes, and damage."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from oracles.equality import same
from oracles.small_modules import CALIBRATED

import cdzoo
from cdzoo.codecs import Codec, read_header
from cdzoo.coding.identity import position_sum
from cdzoo.errors import BitstreamError, PairingError

NAMES = ["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean"]
ALL = [*NAMES, *CALIBRATED]
MakeCodec = Callable[..., Codec]
MakeImages = Callable[..., torch.Tensor]


def compressai_checkpoint(codec: Codec, *, tables: bool = True) -> dict[str, torch.Tensor]:
    """What ``state_dict()`` of the CompressAI model with a codec's weights has, after or before ``update()``."""
    empty = torch.empty(0, dtype=torch.int32)
    state, coding = dict(codec.state_dict()), codec.coding
    kinds = {"entropy_bottleneck": coding.bottleneck.tables if codec.has_scales else coding.tables}
    if codec.has_scales:
        kinds["gaussian_conditional"] = coding.gaussian
        scales = torch.cat([coding.boundaries, torch.tensor([256.0])])
        state["gaussian_conditional.scale_table"] = scales if tables else torch.empty(0)
    for prefix, kind in kinds.items():
        rows = [kind.cdfs[start : start + length] for start, length in zip(kind.starts, kind.lengths, strict=True)]
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row.copy()) for row in rows], batch_first=True)
        state[f"{prefix}._quantized_cdf"] = padded if tables else empty
        state[f"{prefix}._cdf_length"] = torch.from_numpy(kind.lengths.copy()) if tables else empty
        state[f"{prefix}._offset"] = torch.from_numpy(kind.offsets.copy()) if tables else empty
    return state


@pytest.mark.parametrize("name", ALL)
def test_many_symbols_are_coded(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    # guards the tests of this file against codecs that only ever code zeros
    latent = make_codec(name).encode(make_images(2, 64, 96))
    if name == "torfason2018":
        assert len(latent.y_hat.unique()) == 6  # all there are
    else:
        assert len(latent.y_hat.round().unique()) > 20
    if latent.scales is not None:
        assert latent.scales.std() > 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tables", [False, True])
def test_compressai_checkpoints_load(name: str, tables: bool, make_codec: MakeCodec) -> None:
    reference = make_codec(name, seed=5)
    state = compressai_checkpoint(reference, tables=tables)
    for prefix in ("", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."):
        codec = cdzoo.get_codec(name, N=16, M=24)
        renamed = {prefix + k: v for k, v in state.items()}
        with pytest.raises(RuntimeError, match=r"load_compressai\(state_dict\)"):
            codec.load_state_dict(renamed)
        codec.load_compressai(renamed)
        assert codec.fingerprint == reference.fingerprint


def test_a_checkpoints_own_tables_are_kept(make_codec: MakeCodec) -> None:
    codec, state = make_codec("bmshj2018_factorized"), compressai_checkpoint(make_codec("bmshj2018_factorized"))
    before = codec.fingerprint
    state["entropy_bottleneck._quantized_cdf"][0, 1] += 1
    codec.load_compressai(state)
    assert codec.fingerprint != before
    assert codec.coding.tables.cdfs[1] == state["entropy_bottleneck._quantized_cdf"][0, 1]


def without_a_row(state: dict[str, torch.Tensor]) -> None:
    for name in ("_offset", "_quantized_cdf", "_cdf_length"):
        state[f"entropy_bottleneck.{name}"] = state[f"entropy_bottleneck.{name}"][:-1]


DAMAGE: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "no offsets": lambda state: state.pop("entropy_bottleneck._offset"),
    "no scales": lambda state: state.pop("gaussian_conditional.scale_table"),
    "wrong counts": lambda state: state["gaussian_conditional._quantized_cdf"][3].fill_(7),
    "a row too few": without_a_row,
    "a scale too few": lambda state: state.update(
        {"gaussian_conditional.scale_table": state["gaussian_conditional.scale_table"][1:]}
    ),
    "one scale": lambda state: state.update({"gaussian_conditional.scale_table": torch.tensor(1.0)}),
    "negative scales": lambda state: state["gaussian_conditional.scale_table"].neg_(),
    "scales that are no numbers": lambda state: state["gaussian_conditional.scale_table"][5].fill_(float("nan")),
    "weights that are no numbers": lambda state: state.update(
        {"h_s.0.weight": state["h_s.0.weight"].clone().fill_(float("nan"))}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_changes_nothing(damage: str, make_codec: MakeCodec) -> None:
    state = compressai_checkpoint(make_codec("bmshj2018_hyperprior"))
    DAMAGE[damage](state)
    codec = make_codec("bmshj2018_hyperprior", seed=4)
    before, weights = codec.fingerprint, copy.deepcopy(codec.state_dict())
    with pytest.raises(ValueError, match="h_s.0.weight" if damage == "weights that are no numbers" else "tables"):
        codec.load_compressai(state)
    assert codec.fingerprint == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in codec.state_dict().items())


def test_what_is_no_state_dict_is_told_apart(make_codec: MakeCodec) -> None:
    codec = make_codec("bmshj2018_hyperprior")
    state = codec.state_dict()
    for bad in (None, "x.pth", {1: torch.zeros(1)}, {name: tensor.numpy() for name, tensor in state.items()}):
        with pytest.raises(TypeError, match="state_dict"):
            codec.load_compressai(bad)
    with pytest.raises(TypeError, match=r"pass checkpoint\['state_dict'\]"):
        codec.load_compressai({"epoch": 3, "state_dict": state})


def test_names_of_old_compressai_versions_are_understood(make_codec: MakeCodec) -> None:
    reference = make_codec("bmshj2018_factorized")
    for style in ("_matrix{}", "_matrices.{}"):
        old = {}
        for key, tensor in reference.state_dict().items():
            for new, singular, plural in (
                ("matrices", "_matrix", "_matrices."),
                ("biases", "_bias", "_biases."),
                ("factors", "_factor", "_factors."),
            ):
                key = key.replace(
                    f"entropy_bottleneck.{new}.", f"entropy_bottleneck.{plural if '.' in style else singular}"
                )
            old[key] = tensor
        assert any("_matri" in key for key in old)
        codec = cdzoo.get_codec("bmshj2018_factorized", N=16, M=24)
        codec.load_compressai(old)
        assert codec.fingerprint == reference.fingerprint


def test_a_checkpoint_of_another_codec_or_size_is_refused_whole(make_codec: MakeCodec) -> None:
    codec = make_codec("mbt2018_mean")
    before = codec.fingerprint
    with pytest.raises(ValueError, match=r"does not fit mbt2018_mean\(N=16, M=24\): it has N=8, M=20 "):
        codec.load_compressai(compressai_checkpoint(make_codec("mbt2018_mean", N=8, M=20)))
    with pytest.raises(ValueError, match=r"it has no h_a.0.weight, h_a.0.bias, .* and 12 more; take the codec"):
        codec.load_compressai(compressai_checkpoint(make_codec("bmshj2018_factorized")))
    with pytest.raises(ValueError, match=r"other shapes in h_s.0.weight, .*build the codec that has the name"):
        codec.load_compressai(compressai_checkpoint(make_codec("bmshj2018_hyperprior")))
    with pytest.raises(ValueError, match=r"it has context_prediction.weight, which the codec has not"):
        codec.load_compressai(codec.state_dict() | {"context_prediction.weight": torch.zeros(1)})
    assert codec.fingerprint == before


def test_compressai_strings_take_compressais_sizes_only(make_codec: MakeCodec, make_images: MakeImages) -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        make_codec("mbt2018_mean").compressai_strings(make_images(1, 224, 224))


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_parameter(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec = copy.deepcopy(make_codec(name)).train()
    out = codec(make_images(2, 40, 72))
    assert out.x_hat.shape == (2, 3, 40, 72)
    assert out.latent.y_hat.shape == (2, 24, 3, 5)
    assert set(out.likelihoods) == ({"y"} if name == "bmshj2018_factorized" else {"y", "z"})
    assert all(bool(((v > 0) & (v <= 1)).all()) for v in out.likelihoods.values())
    (out.x_hat.square().mean() + sum(-v.log2().mean() for v in out.likelihoods.values()) + codec.aux_loss()).backward()
    assert [n for n, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", NAMES)
def test_estimated_and_coded_bits_agree(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec(name, gain=0.25)), make_images(2, 256, 256)
    if codec.has_scales:  # scales that fit the latent, so that hardly a symbol lies outside its table
        with torch.no_grad():
            last = [m for m in codec.h_s if hasattr(m, "bias")][-1]
            last.weight.mul_(0.02)
            last.bias[:24], last.bias[24:] = 1.0, 0.0
    with torch.no_grad():
        estimate = sum(float(-v.log2().sum()) for v in codec(x).likelihoods.values()) / 8
    coded = sum(sum(read_header(s).part_lengths) for s in codec.compress(x))
    # rANS ends each part with 8 bytes of state; tables have 16-bit probabilities
    flush = 2 * (2 if codec.has_scales else 1) * 8
    assert coded - flush == pytest.approx(estimate, rel=0.02)


@pytest.mark.parametrize("name", ALL)
def test_coding_ignores_mode_gradients_and_autocast(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec(name)), make_images(1, 48, 48)
    expected = codec.compress(x)
    codec.train()
    codec.g_a.eval()
    modes = [m.training for m in codec.modules()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        streams = codec.compress(x.requires_grad_())
        latent = codec.decompress(streams)
        x_hat = codec.decode(latent)
    assert streams == expected
    assert not latent.y_hat.requires_grad
    assert not x_hat.requires_grad
    assert x_hat.dtype == torch.float32
    assert [m.training for m in codec.modules()] == modes


@pytest.mark.parametrize("name", ALL)
def test_latents_can_train_a_network(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    # tensors made under inference_mode could not
    latent = make_codec(name).encode(make_images(1, 32, 32))
    weight = torch.ones(24, requires_grad=True)
    (latent.y_hat * weight.view(1, -1, 1, 1)).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("name", ALL)
def test_the_fingerprint_follows_what_gives_bits_their_meaning(name: str, make_codec: MakeCodec) -> None:
    codec = copy.deepcopy(make_codec(name))
    original = codec.fingerprint
    assert len(original) == 16
    assert int(original, 16) >= 0

    with torch.no_grad():
        codec.g_s[0].weight.add_(1.0)
    assert codec.fingerprint == original  # the synthesis transform is for the eye

    assert copy.deepcopy(codec).fingerprint == original
    assert copy.deepcopy(codec).half().fingerprint == original
    assert copy.deepcopy(codec).double().fingerprint == original
    assert copy.deepcopy(codec).to(torch.bfloat16).fingerprint == original
    assert copy.deepcopy(codec).to(memory_format=torch.channels_last).fingerprint == original

    others = {
        "torfason2018": ["g_a.1.running_mean", "g_a.4.running_var", "quantizer.centers"],
        "choi2019": ["g_a.1.gamma"],
    }.get(name, ["entropy_bottleneck.biases.0"])
    for changed in ["g_a.0.weight", *others] + (["h_a.0.bias", "h_s.2.weight"] if codec.has_scales else []):
        twin = copy.deepcopy(codec)
        with torch.no_grad():
            twin.state_dict()[changed].add_(0.01)
        assert twin.fingerprint != original, changed
        with torch.no_grad():
            twin.load_state_dict(codec.state_dict())
        assert twin.fingerprint == original


def replace_parameter(codec: Codec, tensor: torch.Tensor) -> None:
    codec.g_a[0].weight = torch.nn.Parameter(tensor)


def vector_to_parameters(codec: Codec, tensor: torch.Tensor) -> None:
    others = [p for n, p in codec.named_parameters() if n != "g_a.0.weight"]
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector([tensor, *others]), [codec.g_a[0].weight, *others]
    )


WAYS: dict[str, Callable[[Codec, torch.Tensor], object]] = {
    "data in place": lambda codec, tensor: codec.g_a[0].weight.data.copy_(tensor),
    "a row of data in place": lambda codec, tensor: codec.g_a[0].weight.data[1].copy_(tensor[1]),
    "data replaced": lambda codec, tensor: setattr(codec.g_a[0].weight, "data", tensor),
    "parameter replaced": replace_parameter,
    "assigning load": lambda codec, tensor: codec.load_state_dict(
        codec.state_dict() | {"g_a.0.weight": tensor}, assign=True
    ),
    "vector_to_parameters": vector_to_parameters,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_fingerprint_sees_every_way_of_changing_weights(way: str, make_codec: MakeCodec) -> None:
    codec = copy.deepcopy(make_codec("bmshj2018_hyperprior"))
    original, weight = codec.fingerprint, codec.g_a[0].weight.detach().clone()
    WAYS[way](codec, weight * 1.01)
    assert codec.fingerprint != original
    WAYS[way](codec, weight)
    assert codec.fingerprint == original


def test_a_sum_by_position_sees_another_order() -> None:
    big = torch.randn(128, 128, 5, 5)
    for tensor in (big, big.half(), big[0], big[0, 0], big.to(memory_format=torch.channels_last)):
        for other in (tensor.flip(-1), tensor.flip(-2, -1), tensor.transpose(-2, -1), tensor.flip(0), -tensor):
            like = torch.empty_like(tensor).copy_(other)
            assert position_sum(like) != position_sum(tensor)
        assert position_sum(torch.empty_like(tensor).copy_(tensor)) == position_sum(tensor)
    assert position_sum(torch.empty(0)) == 0


@pytest.mark.parametrize("parameter", ["g_a.0.weight", "g_a.0.bias", "h_s.0.weight", "h_s.2.bias"])
def test_the_fingerprint_sees_another_order(parameter: str, make_codec: MakeCodec) -> None:
    codec = copy.deepcopy(make_codec("bmshj2018_hyperprior"))
    original, tensor = codec.fingerprint, codec.get_parameter(parameter)
    assert len(tensor.unique()) > 8
    for changed in (tensor.flip(0), tensor.flip(-1), tensor.roll(2, 0)):
        before = tensor.detach().clone()
        tensor.data.copy_(changed.detach())
        assert codec.fingerprint != original
        tensor.data.copy_(before)
        assert codec.fingerprint == original


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_first_use_inside_autocast_makes_no_other_codec(
    dtype: torch.dtype, name: str, make_codec: MakeCodec, make_images: MakeImages
) -> None:
    codec, x = make_codec(name), make_images(1, 32, 32)
    inside = copy.deepcopy(codec)
    inside.load_state_dict(codec.state_dict())
    with torch.autocast("cpu", dtype):
        streams = inside.compress(x)
        restored = inside.decompress(streams)
    assert inside.fingerprint == codec.fingerprint
    assert streams == codec.compress(x)
    assert same(codec.decompress(streams), restored)


@pytest.mark.parametrize("name", ALL)
def test_a_cast_before_the_first_use_makes_no_other_codec(
    name: str, make_codec: MakeCodec, make_images: MakeImages
) -> None:
    codec = make_codec(name)
    cast = copy.deepcopy(codec).half()
    streams = cast.compress(make_images(1, 32, 32))
    assert same(codec.decompress(streams), cast.decompress(streams))
    for dtype in (torch.bfloat16, torch.float64, torch.float16):  # each after the other
        assert cast.to(dtype).fingerprint == codec.fingerprint
        assert torch.nn.Sequential(make_codec(name)).to(dtype).float()[0].fingerprint == codec.fingerprint


def test_a_codec_without_an_identity_can_be_cast(make_codec: MakeCodec) -> None:
    codec = make_codec("bmshj2018_hyperprior")
    with torch.no_grad():
        codec.h_s[0].weight[0] = float("nan")
    assert next(codec.half().parameters()).dtype == torch.float16


@pytest.mark.parametrize("name", ALL)
def test_tensors_of_another_default_device_do_not_mix_in(
    name: str, make_codec: MakeCodec, make_images: MakeImages
) -> None:
    expected, codec, x = make_codec(name), make_codec(name), make_images(1, 64, 64)
    expected.calibrate(x)
    with torch.device("meta"):
        before = codec.fingerprint
        codec.calibrate([x])
        streams = codec.compress(x)
        x_hat = codec.decode(codec.decompress(streams))
        loaded = copy.deepcopy(codec)
        loaded.load_integer_state(codec.integer_state())
        chosen = [codec.select([3, 1]).fingerprint] if name in CALIBRATED else codec.compressai_strings(x)
    assert before == make_codec(name).fingerprint
    assert streams == expected.compress(x)
    assert torch.equal(x_hat, expected.decode(expected.encode(x)))
    assert loaded.fingerprint == expected.fingerprint
    assert chosen == ([expected.select([3, 1]).fingerprint] if name in CALIBRATED else expected.compressai_strings(x))


def test_the_fingerprint_is_computed_once(make_codec: MakeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = copy.deepcopy(make_codec("mbt2018_mean"))
    first = codec.fingerprint
    monkeypatch.setattr(type(codec), "derive_state", lambda *_: pytest.fail("derived again without a change"))
    assert codec.fingerprint == first
    assert codec.half().fingerprint == first


def test_a_training_step_changes_the_streams(make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec("bmshj2018_hyperprior")).train(), make_images(1, 64, 64)
    before = codec.compress(x)
    optimizer = torch.optim.SGD(codec.parameters(), lr=1e-3)
    codec(x).likelihoods["y"].log().mean().neg().backward()
    optimizer.step()
    after = codec.compress(x)
    assert read_header(after[0]).fingerprint != read_header(before[0]).fingerprint
    assert same(codec.decompress(after), codec.encode(x))
    with pytest.raises(PairingError):
        codec.decompress(before)


@pytest.mark.parametrize("name", NAMES)
def test_integer_state_is_adopted_not_derived(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = copy.deepcopy(make_codec(name)), make_images(1, 64, 64)
    state = {k: v.clone() for k, v in codec.integer_state().items()}
    state["bottleneck.medians"] = state["bottleneck.medians"] + 7  # as another machine might have rounded them
    other = copy.deepcopy(codec)
    other.load_integer_state(state)
    assert other.fingerprint != codec.fingerprint
    assert torch.equal(other.integer_state()["bottleneck.medians"], state["bottleneck.medians"])
    assert same(other.decompress(other.compress(x)), other.encode(x))
    for broken in (next(iter(state)), list(state)[-1]):
        with pytest.raises(ValueError, match=r"lack|expected"):
            other.load_integer_state({k: v for k, v in state.items() if k != broken})


@pytest.mark.parametrize("name", ALL)
def test_streams_of_another_codec_name_both_fingerprints(
    name: str, make_codec: MakeCodec, make_images: MakeImages
) -> None:
    codec, other = make_codec(name), make_codec(name, seed=1)
    with pytest.raises(PairingError, match=f"{other.fingerprint}.*{codec.fingerprint}"):
        codec.decompress(other.compress(make_images(1, 32, 32)))
    third = make_codec(ALL[ALL.index(name) - 1])
    with pytest.raises(PairingError, match=third.name):
        codec.decompress(third.compress(make_images(1, 32, 32)))


@pytest.mark.parametrize("name", ALL)
def test_a_bad_stream_in_a_batch_is_named(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec = make_codec(name)
    streams = codec.compress(make_images(3, 32, 32))
    with pytest.raises(BitstreamError, match="stream 1 of 3"):
        codec.decompress([streams[0], streams[1][:-1], streams[2]])


def test_wrong_arguments_are_told_what_is_right(make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = make_codec("bmshj2018_hyperprior"), make_images(1, 32, 32)
    with pytest.raises(TypeError, match="255"):
        codec.compress((x * 255).byte())
    with pytest.raises(TypeError, match="float tensor"):
        codec.compress("photo.jpg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        codec.encode(x * 255)
    with pytest.raises(ValueError, match="finite"):
        codec.encode(x / 0)
    for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32), (0, 3, 32, 32)):
        with pytest.raises(ValueError, match="shape"):
            codec.encode(torch.zeros(shape))
    stream = codec.compress(x)[0]
    with pytest.raises(TypeError, match=r"\[stream\]"):
        codec.decompress(stream)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        codec.decompress([])
    with pytest.raises(ValueError, match="unequal"):
        codec.decompress([stream, codec.compress(make_images(1, 48, 32))[0]])
    with pytest.raises(ValueError, match="before any resizing"):
        codec.decode(codec.encode(x)._replace(image_size=(224, 224)))
    with pytest.raises(BitstreamError, match="max_pixels"):
        codec.decompress([stream], max_pixels=100)
    with pytest.raises(ValueError, match="num_threads"):
        codec.compress(x, num_threads=0)
    for count in ("2", 2.5):
        with pytest.raises(TypeError, match="num_threads must be an integer"):
            codec.decompress([stream], num_threads=count)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_pixels must be a number"):
        codec.decompress([stream], max_pixels="1")  # type: ignore[arg-type]
    for kind in (x.to(torch.float8_e4m3fn), x.to_sparse(), x.to("meta")):
        with pytest.raises(TypeError, match="images"):
            codec.compress(kind)


def test_what_is_no_latent_is_told_apart(make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec, x = make_codec("bmshj2018_hyperprior"), make_images(1, 32, 32)
    latent = codec.encode(x)
    for bad in (None, latent.y_hat, tuple(latent)):
        with pytest.raises(TypeError, match="decode takes a Latent"):
            codec.decode(bad)
    for y_hat in (latent.y_hat.numpy(), latent.y_hat + 0j):
        with pytest.raises(TypeError, match="tensor of real numbers"):
            codec.decode(latent._replace(y_hat=y_hat))
    for size in (None, (32,), (32.0, 32), (0, 32), "32"):
        with pytest.raises(ValueError, match="two integers"):
            codec.decode(latent._replace(image_size=size))


def test_sizes_follow_quality() -> None:
    for name in NAMES:
        for quality in range(1, 9):
            with torch.device("meta"):
                codec = cdzoo.get_codec(name, quality=quality)
            assert ((192, 320) if quality >= (5 if name == "mbt2018_mean" else 6) else (128, 192)) == (codec.N, codec.M)
    for quality in (9, True, 4.0, [4]):
        with pytest.raises(ValueError, match="quality"):
            cdzoo.get_codec("mbt2018_mean", quality=quality)
    for metric in ("psnr", ["mse"]):
        with pytest.raises(ValueError, match="metric"):
            cdzoo.get_codec("mbt2018_mean", metric=metric)


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_hold_no_derived_tables(name: str, make_codec: MakeCodec, make_images: MakeImages) -> None:
    codec = make_codec(name)
    keys = set(codec.state_dict())
    codec.compress(make_images(1, 32, 32))
    assert set(codec.state_dict()) == keys
    assert not [k for k in keys if k.endswith(("_offset", "_quantized_cdf", "_cdf_length", "scale_table"))]
    fresh = cdzoo.get_codec(name, N=16, M=24)
    fresh.load_state_dict(codec.state_dict())
    assert fresh.fingerprint == codec.fingerprint


def test_tables_that_training_let_run_away_are_refused(make_codec: MakeCodec) -> None:
    for value in (1e9, float("nan")):
        codec = copy.deepcopy(make_codec("bmshj2018_factorized"))
        with torch.no_grad():
            codec.entropy_bottleneck.quantiles[0, 0, 2] = value
        with pytest.raises(ValueError, match="aux_loss"):
            codec.fingerprint  # noqa: B018
