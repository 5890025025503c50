"""iCAT: the paper's integers, timm's Transformer, and a codec that is one network with its classifier."""

from __future__ import annotations

import copy
import itertools
import json
import random

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from oracles.cdz_reader import read_stream
from oracles.equality import same
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import cdzoo
from cdzoo.cli import main
from cdzoo.codecs import Codec, read_header
from cdzoo.coding.identity import coding_tensors
from cdzoo.errors import BitstreamError, PairingError, WeightsError
from cdzoo.models import icat_small
from cdzoo.models.icat import ICAT, ICATCodec, ICATOutput
from cdzoo.ops import RateDistortionAccuracyLoss
from cdzoo.types import Latent

MEAN, STD = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
SMALL = {"in_channels": 12, "num_classes": 5, "width": 1 / 16}  # one head of 64 channels, 8 hidden ones


def make(*, hyperprior: bool = True, seed: int = 0, **options) -> ICAT:
    """A small network whose latents spread over many symbols, and whose Transformer does something."""
    torch.manual_seed(seed)
    model = icat_small(hyperprior=hyperprior, **SMALL, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and name.startswith(("blocks.", "embed", "fc", "reduce", "fuse")):
                parameter.mul_(4)
        for module in (m for m in model.g_a if hasattr(m, "weight")):
            module.weight.mul_(3)
        if hyperprior:
            for module in (m for m in (*model.h_a, *model.h_s) if hasattr(m, "weight")):
                module.weight.mul_(2.5)
                module.bias.add_(0.3)
    return model.eval()


@pytest.fixture(scope="module")
def shared_model():
    return make(hyperprior=False)


@pytest.fixture
def model(shared_model):
    return copy.deepcopy(shared_model)


@pytest.fixture(scope="module")
def shared_codec():
    return make()


@pytest.fixture
def codec(shared_codec):
    return copy.deepcopy(shared_codec)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(7)


def count(**options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in icat_small(**options).parameters())


def timm_vit(*, seed: int = 3, **options) -> VisionTransformer:
    """A ViT of timm's of the small width, with position embeddings that matter."""
    torch.manual_seed(seed)
    vit = VisionTransformer(embed_dim=64, num_heads=1, num_classes=5, **options).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vit


# -- the paper's numbers -----------------------------------------------------------------------------------------


def test_parameters_of_the_paper():
    assert count() == 25_626_923
    assert count(hyperprior=True) == 29_668_491
    aggregation = 4 * (384 * 96 + 96) + 384 * 384 + 384
    assert count(aggregation=False) == 25_626_923 - aggregation
    assert count(num_classes=1010) == 25_626_923 + 10 * 385


def test_layers_of_the_paper():
    with torch.device("meta"):
        model = icat_small(hyperprior=True)
    convs = {
        part: [
            (type(m).__name__, m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
            for m in getattr(model, part)
            if hasattr(m, "weight")
        ]
        for part in ("g_a", "g_s", "h_a", "h_s")
    }
    down, up = "Conv2d", "ConvTranspose2d"
    assert convs["g_a"] == [(down, *io, 5, 2) for io in ((3, 128), (128, 128), (128, 128), (128, 192))]
    assert convs["g_s"] == [(up, *io, 5, 2) for io in ((384, 128), (128, 128), (128, 128), (128, 3))]
    assert convs["h_a"] == [(down, 192, 128, 3, 1), (down, 128, 128, 5, 2), (down, 128, 128, 5, 1)]
    assert convs["h_s"] == [(down, 128, 192, 5, 1), (up, 192, 288, 5, 2), (down, 288, 384, 3, 1)]
    assert len(model.blocks) == 12
    assert {m.negative_slope for m in model.modules() if isinstance(m, torch.nn.LeakyReLU)} == {0.01}
    assert {block.attn.num_heads for block in model.blocks} == {6}
    assert model.pos_embed.shape == (1, 197, 384)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert (model.num_features, model.latent_channels, model.stride) == (384, 192, 16)


def test_the_latent_of_224_pixels_needs_no_padding(codec):
    x = torch.rand(1, 3, 224, 224)
    out = codec(x)
    assert out.latent.y_hat.shape == out.latent.scales.shape == out.likelihoods["y"].shape == (1, 12, 14, 14)
    assert out.likelihoods["z"].shape == (1, 8, 7, 7)


def test_a_first_latent_is_above_the_step_of_rounding_and_keeps_its_size_through_the_layers():
    model = icat_small(num_classes=3)
    sizes = []
    for layer in model.g_a:
        layer.register_forward_hook(lambda layer, inputs, output: sizes.append(float(output.square().mean().sqrt())))
    with torch.no_grad():
        y = model(torch.rand(4, 3, 64, 64)).latent.y_hat
    assert 0.5 < float(y.std()) < 4
    assert max(sizes) < 6 * min(sizes)


@pytest.mark.slow
def test_the_codec_is_exported_for_any_batch_and_any_multiple_of_its_strides(codec):
    sides = {axis: 32 * torch.export.Dim(side, min=2) for axis, side in ((2, "h"), (3, "w"))}
    shapes = ({0: torch.export.Dim("b", min=2), **sides},)
    other = torch.rand(3, 3, 96, 64)
    codec.eval()
    with torch.no_grad():
        program = torch.export.export(codec, (torch.rand(2, 3, 64, 96),), dynamic_shapes=shapes).module()
        found, expected = program(other), codec(other)
    torch.testing.assert_close(found[0], expected.x_hat)
    torch.testing.assert_close(found[3], expected.logits)


# -- timm's Transformer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "width"), [("deit_tiny", 0.5), ("deit_small", 1), ("vit_small", 1), ("deit_base", 2)])
def test_timms_models_fit(name, width):
    with torch.device("meta"):
        model, vit = icat_small(width=width), timm.create_model(f"{name}_patch16_224")
    taken, unused, kept = model.load_timm(vit.state_dict())
    assert taken == [n for n in model.state_dict() if n.startswith(("cls", "pos", "blocks", "norm", "fc"))]
    assert unused == ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert {n.partition(".")[0] for n in kept} == {"g_a", "embed", "reduce", "fuse", "g_s"}


@pytest.mark.parametrize("grid", [(14, 14), (7, 28), (1, 1), (9, 20)])
def test_tokens_go_the_way_of_timms_vit(model, grid):
    vit = timm_vit(dynamic_img_size=True)
    model.load_timm(vit.state_dict())
    y_hat = torch.randn(2, 12, *grid)
    with torch.no_grad():
        z_0 = model.embed(y_hat.permute(0, 2, 3, 1))
        expected = vit.norm(vit.blocks(vit._pos_embed(z_0)))
        torch.testing.assert_close(model.forward_features(y_hat), expected)
        torch.testing.assert_close(model(y_hat), vit.forward_head(expected))
        assert model(y_hat).std(0).max() > 0.01


def test_positions_are_the_parameters_at_224_and_interpolated_elsewhere(model):
    with torch.no_grad():
        z_0, tokens = model._embed(torch.randn(1, 12, 14, 14))
        assert torch.equal(tokens[:, 1:], z_0 + model.pos_embed[:, 1:])
        z_0, tokens = model._embed(torch.randn(1, 12, 5, 30))
        grid = model.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
        expected = F.interpolate(grid, size=(5, 30), mode="bicubic", antialias=True)
        torch.testing.assert_close(tokens[:, 1:] - z_0, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
        assert torch.equal(tokens[:, :1], model.cls_token + model.pos_embed[:, :1])


def test_positions_of_another_grid_are_interpolated_when_loaded(model):
    vit = timm_vit(img_size=384)
    model.load_timm(vit.state_dict())
    grid = vit.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (24, 24))
    expected = F.interpolate(grid, size=(14, 14), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.pos_embed[:, 1:], expected, atol=1e-5, rtol=0)


def test_the_classifier_may_stay(model):
    before = model.fc.weight.clone()
    state = timm_vit().state_dict()
    del state["head.weight"]
    assert "fc.weight" in model.load_timm(state, classifier=False).kept
    assert torch.equal(model.fc.weight, before)
    assert torch.equal(model.norm.weight, state["norm.weight"])


def other_shape(state):
    state["blocks.3.attn.qkv.weight"] = torch.zeros(2, 2)


def no_square(state):
    state["pos_embed"] = state["pos_embed"][:, :190]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("norm.weight"), "'norm.weight'"),
        (other_shape, r"blocks.3.attn.qkv.weight has shape \(2, 2\), but this network needs \(192, 64\)"),
        (no_square, r"pos_embed has shape \(1, 190, 64\), but this network needs \(1, 197, 64\)"),
        (lambda state: state.update({"head.weight": torch.zeros(7, 64)}), r"\(7, 64\).*classifier=False"),
    ],
)
def test_what_does_not_fit_is_not_loaded_in_part(model, damage, message):
    state, before = dict(timm_vit().state_dict()), {k: v.clone() for k, v in model.state_dict().items()}
    damage(state)
    with pytest.raises(WeightsError, match=rf"{message}.*nothing was loaded"):
        model.load_timm(state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# -- images ------------------------------------------------------------------------------------------------------


def test_images_are_normalized_as_imagenets(model):
    x, seen = torch.rand(2, 3, 32, 48), []
    model.g_a.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        out = model(x)
    torch.testing.assert_close(seen[0], TF.normalize(x, MEAN, STD))
    assert torch.equal(out.latent.y_hat, model.g_a(seen[0])), "without a hyperprior, nothing is quantized"
    assert out.likelihoods == {}

    with torch.no_grad():  # a reconstructor that returns 1 returns one deviation above the mean
        model.g_s[-1].weight.zero_()
        model.g_s[-1].bias.fill_(1)
        expected = torch.tensor(MEAN) + torch.tensor(STD)
        torch.testing.assert_close(model(x).x_hat, expected.view(3, 1, 1).expand(2, 3, 32, 48))


def test_the_image_is_rebuilt_by_equation_9(model):
    y_hat = torch.randn(2, 12, 3, 5)
    z_0 = F.conv2d(y_hat, model.embed.weight[..., None, None], model.embed.bias).flatten(2).transpose(1, 2)
    _, tokens = model._embed(y_hat)
    z_1, z_2, z_3 = list(itertools.accumulate(model.blocks[:3], lambda z, block: block(z), initial=tokens))[1:]
    columns = [linear(z) for linear, z in zip(model.reduce, (z_0, z_1[:, 1:], z_2[:, 1:], z_3[:, 1:]), strict=True)]
    assert {tuple(c.shape) for c in columns} == {(2, 15, 16)}
    z_f = model.fuse(torch.cat(columns, 2)).transpose(1, 2).unflatten(2, (3, 5))
    x_hat = model.reconstruct(y_hat)
    assert x_hat.shape == (2, 3, 48, 80)
    torch.testing.assert_close(TF.normalize(x_hat, MEAN, STD), model.g_s(z_f))
    assert torch.equal(model.reconstruct(Latent(y_hat, None, (40, 70))), x_hat[..., :40, :70])


def test_without_aggregation_no_block_is_needed_for_the_image():
    model = make(hyperprior=False, aggregation=False)
    y_hat = torch.randn(1, 12, 3, 5)
    features = model.embed(y_hat.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    before = model.reconstruct(y_hat)
    torch.testing.assert_close(TF.normalize(before, MEAN, STD), model.g_s(features))
    model.blocks[0].register_forward_hook(lambda *_: pytest.fail("a block ran"))
    assert torch.equal(model.reconstruct(y_hat), before)


@pytest.mark.parametrize("hyperprior", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (16, 32), (17, 40), (50, 3)])
def test_any_size_is_padded_by_replication(size, hyperprior, model, codec):
    model = codec if hyperprior else model
    x = torch.rand(2, 3, *size)
    height, width = size
    h, w = -(-height // 16), -(-width // 16)
    padded = F.pad(x, (0, 16 * w - width, 0, 16 * h - height), mode="replicate")
    with torch.no_grad():
        out, whole = model(x), model(padded)
    assert isinstance(out, ICATOutput)
    assert out.x_hat.shape == x.shape
    assert out.latent.y_hat.shape == (2, 12, h, w)
    assert out.latent.image_size == size
    assert out.logits.shape == (2, 5)
    assert torch.equal(out.logits, whole.logits)
    assert torch.equal(out.x_hat, whole.x_hat[..., :height, :width])


def test_one_pass_gives_what_its_parts_give(codec):
    x = torch.rand(2, 3, 40, 50)
    with torch.no_grad():
        out = codec(x)
        assert torch.equal(codec(out.latent), out.logits)
        assert torch.equal(codec(out.latent.y_hat), out.logits)
        assert torch.equal(codec.reconstruct(out.latent), out.x_hat)
        assert torch.equal(codec.forward_head(codec.forward_features(x)), out.logits)
        tokens = codec.forward_features(out.latent)
    assert tokens.shape == (2, 1 + 3 * 4, codec.num_features)
    assert torch.equal(codec.forward_head(tokens, pre_logits=True), tokens[:, 0])
    assert torch.equal(codec.get_classifier()(tokens[:, 0]), out.logits)


def test_inputs_that_are_neither_are_refused(model):
    with pytest.raises(
        ValueError, match=r"\(2, 7, 5, 4\).*images \(B, 3, H, W\) in \[0, 1\] and latents \(B, 12, h, w\)"
    ):
        model(torch.randn(2, 7, 5, 4))
    with pytest.raises(ValueError, match="latents"):
        model(torch.randn(12, 5, 4))
    with pytest.raises(ValueError, match="latents"):
        model.reconstruct(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="given twice"):
        model(Latent(torch.randn(1, 12, 2, 2), None, (32, 32)), torch.randn(1, 12, 2, 2))
    with pytest.raises(TypeError, match="255"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must be positive"):
        icat_small(width=-1.0)
    with pytest.raises(ValueError, match=r"drop_path=1.0"):
        icat_small(width=0.1, drop_path=1.0)


def test_three_latent_channels_are_told_from_images():
    model = icat_small(in_channels=3, width=0.1, num_classes=4).eval()
    y_hat = torch.rand(1, 3, 32, 32)
    assert isinstance(model(y_hat), ICATOutput)
    assert model(Latent(y_hat, None, (512, 512))).shape == (1, 4)


def test_reset_classifier(codec):
    x, before = torch.rand(1, 3, 32, 32), codec.fingerprint
    codec.reset_classifier(9)
    assert codec(x).logits.shape == (1, 9)
    assert codec.num_classes == codec.origin.arguments["num_classes"] == 9
    codec.reset_classifier(0)
    assert codec(x).logits.shape == (1, codec.num_features)
    assert codec.fingerprint == before


# -- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", [True, False])
@pytest.mark.parametrize("hyperprior", [False, True])
def test_both_steps_of_training_reach_every_parameter(hyperprior, aggregation):
    model = make(hyperprior=hyperprior, aggregation=aggregation, drop_path=0.0).train()
    x, target = torch.rand(2, 3, 40, 60), torch.tensor([1, 4])
    loss = RateDistortionAccuracyLoss(alpha=0.3, beta=0.003)
    out = model(x)
    parts = loss(out, x, out.logits, target)
    assert bool(parts.bpp > 0) == hyperprior
    parts.loss.backward()
    if hyperprior:
        model.aux_loss().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_reconstruction_alone_trains_the_first_blocks_only(model):
    model.reconstruct(torch.randn(1, 12, 2, 2)).square().sum().backward()
    assert model.blocks[2].mlp.fc2.weight.grad.any()
    assert model.blocks[3].mlp.fc2.weight.grad is None


def test_noise_in_training_and_rounding_elsewhere(codec):
    x = torch.rand(1, 3, 48, 48)
    codec.train()
    y = codec.analyze(x)
    noise = codec(x).latent.y_hat - y
    assert float(noise.detach().abs().max()) <= 0.5
    assert noise.unique().numel() > 50
    codec.eval()
    with torch.no_grad():
        assert torch.equal(codec(x).latent.y_hat, codec(x).latent.y_hat)
        torch.testing.assert_close(codec(x).latent.y_hat, codec.encode(x).y_hat, atol=2e-3, rtol=0)


def test_the_second_step_starts_from_the_first(model):
    codec = make(seed=4)
    codec.init_from_first_step(model.state_dict())
    state = codec.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert codec.fingerprint != make(seed=4).fingerprint
    y_hat = torch.randn(1, 12, 3, 3)
    assert torch.equal(codec(y_hat), model(y_hat))
    wrong = {k: v for k, v in model.state_dict().items() if not k.startswith("fuse")}
    with pytest.raises(WeightsError, match=r"'fuse.weight'.*without a hyperprior"):
        codec.init_from_first_step(wrong)


# -- bits --------------------------------------------------------------------------------------------------------


def test_it_is_a_codec_with_every_member(codec):
    assert isinstance(codec, Codec)
    assert "icat_small" in cdzoo.list_models()
    assert "icat_small" not in cdzoo.list_codecs()
    assert (codec.name, codec.latent_channels, codec.stride, codec.has_scales) == ("icat_small", 12, 16, True)
    assert bool(codec.aux_loss() > 0)
    assert len(codec.fingerprint) == 16
    codec.calibrate([torch.rand(1, 3, 32, 32)])


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (33, 70), (224, 224)])
def test_bits_bring_back_what_was_encoded(codec, size):
    x = torch.rand(2, 3, *size)
    latent, streams = codec.encode(x), codec.compress(x)
    assert same(codec.decompress(streams), latent)
    assert latent.y_hat.shape == (2, 12, -(-size[0] // 16), -(-size[1] // 16))
    header = read_header(streams[0])
    assert (header.codec, header.fingerprint, header.image_size) == ("icat_small", codec.fingerprint, size)
    x_hat = codec.decode(codec.decompress(streams))
    assert x_hat.shape == x.shape
    assert torch.equal(x_hat, codec.reconstruct(latent).clamp(0, 1))
    assert torch.equal(codec.from_streams(streams), codec(latent))


def test_latents_spread_over_many_symbols(codec):
    latent = codec.encode(torch.rand(2, 3, 224, 224))
    assert latent.y_hat.unique().numel() > 100
    assert latent.scales.unique().numel() > 100


def test_an_independent_reader_finds_the_same_latent(codec, tmp_path):
    cdzoo.save_pretrained(codec, tmp_path)
    for size in ((1, 1), (70, 90)):
        (stream,) = codec.compress(torch.rand(1, 3, *size))
        ours, theirs = codec.decompress([stream]), read_stream(stream, tmp_path)
        assert np.array_equal(ours.y_hat[0].numpy(), theirs.y_hat)
        assert np.array_equal(ours.scales[0].numpy(), theirs.scales)


def test_estimated_and_coded_bits_agree(codec):
    with torch.no_grad():  # scales that fit the latent, so that hardly a symbol lies outside its table
        codec.h_s[-1].weight.mul_(0.02)
        codec.h_s[-1].bias[:12], codec.h_s[-1].bias[12:] = 2.0, 0.0
        for name in ("weight", "bias"):
            codec.get_parameter(f"g_a.6.{name}").mul_(2.0 / codec.encode(torch.rand(1, 3, 256, 256)).y_hat.std())
        x = torch.rand(1, 3, 256, 256)
        estimate = sum(float(-v.log2().sum()) for v in codec(x).likelihoods.values()) / 8
    # rANS ends each of two parts with 8 bytes of state
    assert sum(read_header(codec.compress(x)[0]).part_lengths) - 16 == pytest.approx(estimate, rel=0.02)


def test_labels_come_from_bits_of_mixed_sizes_without_pixels(codec, monkeypatch):
    images = [torch.rand(1, 3, *size) for size in ((48, 32), (20, 20), (48, 32))]
    streams = [codec.compress(x)[0] for x in images]
    expected = torch.cat([codec(codec.encode(x)) for x in images])
    codec.g_s.register_forward_hook(lambda *_: pytest.fail("pixels were made"))
    torch.testing.assert_close(codec.from_streams(streams), expected)
    torch.testing.assert_close(cdzoo.compose(codec, codec).from_streams(streams), expected)
    with pytest.raises(BitstreamError, match="max_pixels"):
        codec.from_streams(streams, max_pixels=100)


def test_damaged_streams_raise(codec):
    (stream,) = codec.compress(torch.rand(1, 3, 48, 48))
    rng = random.Random(0)
    for _ in range(30):
        data = bytearray(stream)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        for damaged in (bytes(data), stream[: rng.randrange(len(stream))]):
            with pytest.raises((BitstreamError, PairingError)):
                codec.from_streams([damaged])


def test_coding_and_decoding_ignore_the_modules_mode():
    codec = make(drop_path=0.9)
    x = torch.rand(1, 3, 48, 48)
    streams, x_hat = codec.compress(x), codec.decode(codec.encode(x))
    codec.train()
    codec.blocks[3].eval()
    modes = [m.training for m in codec.modules()]
    assert not torch.equal(codec.reconstruct(codec.encode(x)), codec.reconstruct(codec.encode(x)))
    assert codec.compress(x) == streams
    assert torch.equal(codec.decode(codec.decompress(streams)), x_hat)
    assert [m.training for m in codec.modules()] == modes


def test_the_fingerprint_covers_the_coded_parts_alone(codec):
    coded = {n for n, _ in codec.named_parameters() if n.startswith(("g_a.", "h_a.", "h_s.", "entropy_bottleneck."))}
    assert {n for n, _ in coding_tensors(codec)} == coded
    original = codec.fingerprint
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name not in coded:
                parameter.add_(0.1)
    assert codec.fingerprint == original
    assert copy.deepcopy(codec).half().fingerprint == original
    for name in ("g_a.0.weight", "h_a.2.bias", "h_s.0.weight"):
        twin = copy.deepcopy(codec)
        with torch.no_grad():
            twin.get_parameter(name).add_(0.01)
        assert twin.fingerprint != original, name


def test_pairs_that_belong_to_each_other(codec, model):
    x = torch.rand(1, 3, 48, 48)
    classifier = cdzoo.get_model("cresnet39", width=0.0625, num_classes=3, in_channels=12, latent_stride=16).eval()
    assert cdzoo.compose(codec, classifier)(x).shape == (1, 3)
    other = cdzoo.get_codec("mbt2018_mean", N=8, M=12)
    assert cdzoo.compose(other, model)(x).shape == (1, 5)  # a Transformer over another codec's latents
    with pytest.raises(PairingError, match=f"{codec.fingerprint}.*{other.fingerprint}"):
        cdzoo.compose(other, codec)
    with pytest.raises(PairingError, match=r"written by mbt2018_mean"):
        codec.from_streams(other.compress(x))
    with pytest.raises(PairingError):
        make(seed=5).from_streams(codec.compress(x))


# -- saving ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_model_with_a_codec_inside_comes_back_as_both(codec, dtype, tmp_path):
    before = codec.fingerprint
    cdzoo.save_pretrained(codec, tmp_path, dtype=dtype, meta={"classes": list("abcde")})
    assert codec.fingerprint == before
    loaded = cdzoo.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert type(loaded) is ICATCodec
    assert (config["kind"], config["builder"], config["fingerprint"]) == ("model", "icat_small", loaded.fingerprint)
    assert (loaded.fingerprint == before) == (dtype is None)
    assert any(name.startswith("integer.decoder.") for name in load_file(tmp_path / "model.safetensors"))
    x = torch.rand(1, 3, 40, 40)
    if dtype is None:
        streams = codec.compress(x)
        assert torch.equal(loaded.from_streams(streams), codec.from_streams(streams))
        assert torch.equal(loaded.decode(loaded.decompress(streams)), codec.decode(codec.decompress(streams)))
    assert same(loaded.decompress(loaded.compress(x)), loaded.encode(x))
    built = cdzoo.compose(loaded, loaded)
    assert torch.equal(built(x), loaded.from_streams(loaded.compress(x)))
    card = (tmp_path / "README.md").read_text()
    assert f"fingerprint `{loaded.fingerprint}`" in card
    assert "cdzoo.from_pretrained" in card
    assert "model.from_streams(streams)" in card
    cdzoo.save_pretrained(loaded, tmp_path / "again")
    assert cdzoo.from_pretrained(tmp_path / "again").fingerprint == loaded.fingerprint
    with pytest.raises(ValueError, match="hyperprior=False conflicts"):
        icat_small(weights=tmp_path, hyperprior=False)


def test_further_training_of_the_classifier_leaves_the_codec_alone(codec, tmp_path):
    cdzoo.save_pretrained(codec, tmp_path / "codec")
    loaded = cdzoo.from_pretrained(tmp_path / "codec")
    loaded.reset_classifier(7)
    cdzoo.save_pretrained(loaded, tmp_path / "tuned")
    tuned = cdzoo.from_pretrained(tmp_path / "tuned")
    assert tuned.from_streams(codec.compress(torch.rand(1, 3, 32, 32))).shape == (1, 7)


def test_weights_name_their_codec(codec, model, tmp_path):
    from cdzoo.weights.building import build_codec
    from cdzoo.weights.folder import WeightsFolder

    cdzoo.save_pretrained(codec, tmp_path / "codec")
    assert build_codec(WeightsFolder.from_path(tmp_path / "codec")).fingerprint == codec.fingerprint
    # a network over its latents says so, and so does the Transformer alone
    classifier = cdzoo.get_model("cresnet39", width=0.0625, num_classes=3, in_channels=12, latent_stride=16)
    for name, network in (("cresnet", classifier), ("transformer", model)):
        cdzoo.save_pretrained(network, tmp_path / name, codec=codec)
        loaded = cdzoo.from_pretrained(tmp_path / name)
        assert loaded.codec_fingerprint == codec.fingerprint
        cdzoo.compose(codec, loaded)
        with pytest.raises(PairingError):
            cdzoo.compose(make(seed=5), loaded)


def test_a_tampered_codec_inside_is_refused(codec, tmp_path):
    cdzoo.save_pretrained(codec, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "fingerprint": "0" * 16}))
    with pytest.raises(WeightsError, match="fingerprint"):
        cdzoo.from_pretrained(tmp_path)


def test_the_command_line_compresses_classifies_and_decompresses(codec, tmp_path, capsys):
    TF.to_pil_image(torch.rand(3, 40, 48)).save(tmp_path / "photo.png")
    cdzoo.save_pretrained(codec, tmp_path / "weights", meta={"classes": list("abcde")})
    weights = ["--weights", str(tmp_path / "weights")]
    assert main(["compress", str(tmp_path / "photo.png"), "-o", str(tmp_path), *weights]) == 0
    stream = (tmp_path / "photo.cdz").read_bytes()
    capsys.readouterr()
    assert main(["classify", str(tmp_path / "photo.cdz"), "--json", *weights]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert entry["top"][0]["class"] == int(codec.from_streams([stream]).argmax())
    assert main(["decompress", str(tmp_path / "photo.cdz"), "-o", str(tmp_path / "out.png"), *weights]) == 0
    assert (tmp_path / "out.png").is_file()


def test_images_and_latents_have_methods_of_their_own() -> None:
    torch.manual_seed(0)
    model = cdzoo.models.icat_small(width=0.0625, num_classes=3, in_channels=3).eval()
    x = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        out = model.forward_images(x)
        assert torch.equal(out.x_hat, model(x).x_hat)
        # three latent channels: a plain tensor is taken for images, the methods leave no doubt
        logits = model.forward_latents(out.latent.y_hat)
        assert torch.equal(logits, model(out.latent))
        torch.testing.assert_close(logits, out.logits)
        assert isinstance(model(out.latent.y_hat), type(out))
