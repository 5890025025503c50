"""Codec and network as one module: bits to logits without a pixel, and pairs that do not belong to each other."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.errors import BitstreamError, PairingError
from cdzoo.transforms import LatentTransform
from cdzoo.types import Latent

MakeCodec = Callable[..., Codec]
MakeImages = Callable[..., torch.Tensor]


def network(**kwargs: object) -> nn.Module:
    torch.manual_seed(3)
    return cdzoo.models.fa_cresnet39(in_channels=24, num_classes=5, width=0.0625, **kwargs).eval()


@pytest.fixture
def codec(make_codec: MakeCodec) -> Codec:
    return copy.deepcopy(make_codec("bmshj2018_hyperprior"))


def test_images_latents_and_bits_give_the_same_logits(codec: Codec, make_images: MakeImages) -> None:
    model, x = cdzoo.compose(codec, network()), make_images(3, 96, 64)
    with torch.no_grad():
        expected = model.model(*codec.encode(x)[:2])
        assert expected.shape == (3, 5)
        assert torch.equal(model(x), expected)
        assert torch.equal(model.from_latent(codec.encode(x)), expected)
        assert torch.equal(model.from_streams(codec.compress(x)), expected)


def test_neither_synthesis_nor_pixels_are_touched(
    codec: Codec, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cdzoo.compose(codec, network())
    streams = codec.compress(make_images(2, 64, 64))

    def forbidden(*_: object) -> None:
        raise AssertionError("a pixel was made")

    monkeypatch.setattr(type(codec), "synthesize", forbidden)
    monkeypatch.setattr(type(codec), "analyze", forbidden)
    for layer in codec.g_s:
        layer.register_forward_pre_hook(forbidden)
    with torch.no_grad():
        assert model.from_streams(streams).shape == (2, 5)


def test_streams_of_several_sizes_keep_their_order(codec: Codec, make_images: MakeImages) -> None:
    model = cdzoo.compose(codec, network())
    images = [
        make_images(1, *size, seed=i) for i, size in enumerate([(64, 64), (48, 80), (64, 64), (17, 30), (48, 80)])
    ]
    streams = [codec.compress(x)[0] for x in images]
    with torch.no_grad():
        together = model.from_streams(streams)
        alone = torch.cat([model.from_streams([s]) for s in streams])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert len(alone.round(decimals=4).unique(dim=0)) > 3  # the order can be told


def test_the_networks_transform_is_applied(codec: Codec, make_images: MakeImages) -> None:
    inner = network()
    inner.transforms = LatentTransform(size=(28, 28), mean=tuple(range(24)))
    model, x = cdzoo.compose(codec, inner), make_images(1, 64, 64)
    latent = codec.encode(x)
    y_hat = latent.y_hat - torch.arange(24.0).view(1, -1, 1, 1)
    rows = torch.arange(28) * 4 // 28  # nearest neighbor: each source sample seven times
    with torch.no_grad():
        expected = inner(y_hat[:, :, rows][..., rows], latent.scales[:, :, rows][..., rows])
        assert torch.equal(model(x), expected)


def test_the_codec_stays_frozen(codec: Codec) -> None:
    model = cdzoo.compose(codec, network())
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {"model"}
    assert not any("g_a" in k for k in model.state_dict())
    codec.eval()
    model.train()
    assert not codec.training
    assert model.model.training


def test_a_change_of_dtype_reaches_the_network(codec: Codec, make_images: MakeImages) -> None:
    model, x = cdzoo.compose(codec, network()), make_images(1, 64, 64)
    streams = codec.compress(x)
    with torch.no_grad():
        single, double = model.from_streams(streams), model.double().from_streams(streams)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)


def test_a_change_of_dtype_does_not_reach_the_codec(codec: Codec) -> None:
    before = {k: v.clone() for k, v in codec.state_dict().items()}
    cdzoo.compose(codec, network()).half().to("cpu").float()
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in codec.state_dict().items())


def test_any_callable_may_transform_and_nothing_else(codec: Codec, make_images: MakeImages) -> None:
    inner, x = network(), make_images(1, 64, 64)
    inner.transforms = lambda latent: latent._replace(y_hat=latent.y_hat * 0)
    latent = codec.encode(x)
    with torch.no_grad():
        assert torch.equal(cdzoo.compose(codec, inner)(x), inner(latent.y_hat * 0, latent.scales))
    inner.transforms = "resize"
    with pytest.raises(TypeError, match="resize"):
        cdzoo.compose(codec, inner)


@pytest.mark.slow
def test_compiled_modules_are_looked_into(codec: Codec, make_images: MakeImages) -> None:
    inner, x = network(), make_images(1, 64, 64)
    inner.transforms = LatentTransform(size=(8, 8))
    compiled = torch.compile(inner, backend="eager")
    with torch.no_grad():
        expected = cdzoo.compose(codec, inner)(x)
        assert torch.equal(cdzoo.compose(torch.compile(codec, backend="eager"), compiled)(x), expected)
        for wrapped in (nn.DataParallel(inner), AveragedModel(nn.DataParallel(inner))):
            assert torch.equal(cdzoo.compose(codec, torch.compile(wrapped, backend="eager"))(x), expected)
    inner.codec_fingerprint = "0123456789abcdef"
    with pytest.raises(PairingError):
        cdzoo.compose(codec, compiled)


def test_gradients_flow_into_the_network(codec: Codec, make_images: MakeImages) -> None:
    model = cdzoo.compose(codec, network()).train()
    model(make_images(2, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in model.model.parameters())
    assert all(p.grad is None for p in codec.parameters())


def test_pairs_that_do_not_fit_are_refused(make_codec: MakeCodec, codec: Codec) -> None:
    with pytest.raises(PairingError, match=r"24 latent channels.*12.*in_channels=12"):
        cdzoo.compose(make_codec("bmshj2018_hyperprior", M=12), network())
    with pytest.raises(PairingError, match=r"8 pixels per latent sample.*16.*latent_stride=16"):
        cdzoo.compose(codec, cdzoo.models.cresnet39(in_channels=24, width=0.0625))
    with pytest.raises(PairingError, match="scales"):
        cdzoo.compose(make_codec("bmshj2018_factorized"), network())
    cdzoo.compose(codec, cdzoo.models.cresnet39(in_channels=24, width=0.0625, latent_stride=16))


def test_weights_of_another_codecs_latents_name_both_fingerprints(codec: Codec) -> None:
    model = network()
    model.codec_fingerprint = "0123456789abcdef"
    with pytest.raises(PairingError, match=f"0123456789abcdef.*{codec.fingerprint}"):
        cdzoo.compose(codec, model)
    model.codec_fingerprint = codec.fingerprint
    cdzoo.compose(codec, model)


def test_what_is_no_pair_at_all_is_told(codec: Codec) -> None:
    with pytest.raises(TypeError, match="codec first"):
        cdzoo.compose(network(), network())
    with pytest.raises(TypeError, match="does not read latents"):
        cdzoo.compose(codec, cdzoo.models.resnet50(width=0.0625))


def test_errors_of_streams_come_through(codec: Codec, make_images: MakeImages) -> None:
    model = cdzoo.compose(codec, network())
    (stream,) = codec.compress(make_images(1, 32, 32))
    with pytest.raises(BitstreamError, match="stream 1 of 2"):
        model.from_streams([stream, stream[:-4]])
    # the symbols of another image: only decoding, size by size, shows that
    other, forged = codec.compress(make_images(1, 48, 32))[0], bytearray(stream)
    forged[22] ^= 1
    forged[34:38] = zlib.crc32(forged[38:], zlib.crc32(forged[:34])).to_bytes(4, "little")
    for streams in ([other, bytes(forged)], [stream, other, bytes(forged), other]):
        position = streams.index(bytes(forged))
        with pytest.raises(BitstreamError, match=f"^stream {position} of {len(streams)}: decoded symbols have CRC32"):
            model.from_streams(streams)
    with pytest.raises(ValueError, match="at least one"):
        model.from_streams([])
    with pytest.raises(BitstreamError, match="max_pixels"):
        model.from_streams([stream], max_pixels=10)


class TestLatentTransform:
    latent = Latent(torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 4, 4), (64, 64))

    def test_the_identity_copies_nothing(self) -> None:
        assert LatentTransform()(self.latent).y_hat is self.latent.y_hat

    def test_nearest_neighbor_repeats_samples(self) -> None:
        out = LatentTransform(size=(8, 8))(self.latent)
        assert torch.equal(out.y_hat, self.latent.y_hat.repeat_interleave(2, 2).repeat_interleave(2, 3))
        assert out.scales is not None
        assert out.scales.shape == (1, 1, 8, 8)
        assert out.image_size == (64, 64)

    def test_it_survives_json(self) -> None:
        for transform in (LatentTransform(), LatentTransform(size=(28, 28), mean=(0.5, -1.0))):
            assert LatentTransform.from_config(transform.config()) == transform

    @pytest.mark.parametrize("config", [{"sizes": [28, 28]}, {"size": 28}, {"size": [0, 28]}, {"mean": 3}])
    def test_nonsense_is_refused(self, config: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="LatentTransform"):
            LatentTransform.from_config(config)

    @pytest.mark.parametrize("size", [28, (0, 28), (28, 28, 28), (True, 28)])
    def test_a_wrong_size_is_refused_at_once(self, size: object) -> None:
        with pytest.raises(ValueError, match="LatentTransform size"):
            LatentTransform(size=size)  # type: ignore[arg-type]


def test_networks_with_weights_name_both_fingerprints_whatever_does_not_fit() -> None:
    model = cdzoo.models.fa_cresnet39(weights="DEFAULT")
    own = model.codec_fingerprint
    for codec in (cdzoo.codecs.bmshj2018_hyperprior(N=8, M=20), cdzoo.codecs.torfason2018(N=8, latent_channels=64)):
        with pytest.raises(PairingError, match=rf"{own}.*{codec.fingerprint}.*build_codec"):
            cdzoo.compose(codec, model)


def test_only_latents_are_latents(codec: Codec) -> None:
    model = cdzoo.compose(codec, network())
    for given in (torch.zeros(1, 24, 4, 4), None, (torch.zeros(1, 24, 4, 4), None, (64, 64))):
        with pytest.raises(TypeError, match="from_latent takes a Latent"):
            model.from_latent(given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="LatentTransform takes a Latent"):
        LatentTransform()(torch.zeros(1, 24, 4, 4))  # type: ignore[arg-type]
