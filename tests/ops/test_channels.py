"""Channels of a latent: their ranking, networks and streams of some of them, and batches of random sizes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracles.small_modules import CALIBRATED
from torch import nn
from torch.utils.data import DataLoader

import cdzoo
from cdzoo.codecs import read_header
from cdzoo.errors import PairingError
from cdzoo.ops import ChannelSelect, RandomSizeCollate, rank_channels
from cdzoo.ops.random_size import resize_and_crop
from cdzoo.types import Latent

# -- ranking -----------------------------------------------------------------------------------------------------------


def latents(seed=0, channels=12):
    """Latents of three batch and map sizes, with standard deviations that no channel shares."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(channels, generator=generator) + 0.1
    sizes = ((3, 5, 4), (1, 16, 9), (2, 2, 2))
    y_hats = [torch.randn(b, channels, h, w, generator=generator) * spread.view(-1, 1, 1) + 50 for b, h, w in sizes]
    return [Latent(y, None, (16 * y.shape[2], 16 * y.shape[3])) for y in y_hats]


def test_the_ranking_is_numpys_variance_per_map_averaged_over_images():
    set_of = latents()
    images = [image.numpy().astype(np.float64) for latent in set_of for image in latent.y_hat]
    variances = np.mean([image.reshape(12, -1).var(axis=1) for image in images], axis=0)
    ranked = rank_channels(set_of)
    assert ranked.dtype == torch.int64
    assert ranked.tolist() == np.argsort(-variances, kind="stable").tolist()
    # of small maps as much as of large ones: by values alone the order is another one
    values = np.concatenate([image.reshape(12, -1) for image in images], axis=1)
    assert ranked.tolist() != np.argsort(-values.var(axis=1)).tolist()


def test_the_ranking_reads_whatever_holds_latents():
    set_of = latents()
    expected = rank_channels(set_of)
    assert torch.equal(rank_channels(iter(set_of)), expected)
    assert torch.equal(rank_channels(latent.y_hat for latent in set_of), expected)
    assert torch.equal(rank_channels(DataLoader(set_of, batch_size=None)), expected)
    # one latent is a tuple, and a tensor is iterable: neither is taken for a set
    assert torch.equal(rank_channels(set_of[0]), rank_channels([set_of[0]]))
    assert torch.equal(rank_channels(set_of[0].y_hat), rank_channels([set_of[0]]))
    # scales are no part of it
    assert torch.equal(rank_channels(set_of[0]._replace(scales=torch.rand(3, 12, 5, 4))), rank_channels(set_of[0]))


def test_means_do_not_count_and_ties_keep_their_order():
    y_hat = torch.zeros(1, 5, 4, 4)
    y_hat[:, 0] = 1000.0
    y_hat[:, [3, 1]] = torch.randn(4, 4)
    y_hat[:, 4] = 7 * torch.randn(4, 4)
    assert rank_channels(y_hat).tolist() == [4, 1, 3, 0, 2]
    assert rank_channels(torch.randn(2, 3, 1, 1)).tolist() == [0, 1, 2]  # maps of one value vary nowhere


def test_what_cannot_be_ranked_is_told():
    y_hat = torch.randn(1, 4, 3, 3)
    for given, error, message in (
        ([], ValueError, "no latents"),
        ([y_hat, torch.randn(1, 5, 3, 3)], ValueError, "latent 1 has 5 channels, those before it 4"),
        ([y_hat, y_hat / 0], ValueError, "latent 1 has values that are not finite"),
        (y_hat[0], ValueError, r"latent 0 has shape \(4, 3, 3\)"),
        (torch.zeros(0, 4, 3, 3), ValueError, r"latent 0 has shape \(0, 4, 3, 3\)"),
        ([(Latent(y_hat, None, (48, 48)), 3)], TypeError, "item 0 is a tuple, .*for latent, _ in loader"),
    ):
        with pytest.raises(error, match=message):
            rank_channels(given)


# -- selection ---------------------------------------------------------------------------------------------------------


def test_selection_of_tensors_and_latents():
    y_hat, scales = torch.randn(2, 2, 6, 3, 4)
    select = ChannelSelect([4, 0, 5])
    assert torch.equal(select(y_hat), y_hat[:, [4, 0, 5]])
    latent = select(Latent(y_hat, scales, (48, 60)))
    assert isinstance(latent, Latent)
    assert torch.equal(latent.y_hat, y_hat[:, [4, 0, 5]])
    assert torch.equal(latent.scales, scales[:, [4, 0, 5]])
    assert latent.image_size == (48, 60)
    assert select(Latent(y_hat, None, (48, 60))).scales is None
    y_hat.requires_grad_()
    select(y_hat).sum().backward()
    assert y_hat.grad.sum((0, 2, 3)).tolist() == [24.0, 0, 0, 0, 24, 24]


def test_indices_are_in_the_state_dict():
    ranked = rank_channels(latents())[:3]
    select = nn.Sequential(ChannelSelect(ranked))
    assert torch.equal(select.state_dict()["0.indices"], ranked)
    other = nn.Sequential(ChannelSelect(range(3)))
    other.load_state_dict(select.state_dict())
    y_hat = torch.randn(1, 12, 2, 2)
    assert torch.equal(other(y_hat), y_hat[:, ranked])
    with pytest.raises(ValueError, match=f"asks for channel {int(ranked.max())}"):
        other(y_hat[:, : int(ranked.max())])
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Sequential(ChannelSelect(range(4))).load_state_dict(select.state_dict())
    for wrong in ([1, 1, 2], [-1, 0, 1]):
        with pytest.raises(ValueError, match="channels"):
            other.load_state_dict({"0.indices": torch.tensor(wrong)})
    assert torch.equal(other[0].indices, ranked)  # nothing was taken over
    ranked.zero_()  # the caller's tensor is not the module's
    assert torch.equal(other[0].indices, select[0].indices)
    assert "3 channels" in repr(select)


@pytest.mark.parametrize("channels", [5, None, "01", 2.5])
def test_channels_are_a_list(channels):
    with pytest.raises(TypeError, match="channels must be a list of integers, not"):
        ChannelSelect(channels)
    if channels is not None:
        with pytest.raises(TypeError, match="channels must be a list of integers, not"):
            cdzoo.models.resnet41(channels=channels)


def test_selection_without_memory():
    with torch.device("meta"):
        assert ChannelSelect([0, 2]).needed == 3
        assert cdzoo.models.resnet41(in_channels=4, channels=[0, 2], width=0.0625).select is not None


@pytest.mark.slow
def test_selection_compiles_and_exports():
    select, y_hat = ChannelSelect([2, 1]), torch.randn(2, 3, 4, 4)
    latent = Latent(y_hat, y_hat.abs(), (64, 64))
    compiled = torch.compile(select, backend="eager", fullgraph=True)
    assert torch.equal(compiled(latent).scales, select(latent).scales)
    assert torch.equal(torch.export.export(select, (y_hat,)).module()(y_hat), y_hat[:, [2, 1]])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "at least one index"),
        ([0, -1], r"channels=\[0, -1\]: indices must be 0 or more"),
        ([1, 3, 1], r"channels=\[1, 3, 1\]: each index may occur once"),
        ([0.5, 1.0], "not float32 of shape"),
        ([[0, 1]], r"not int64 of shape \(1, 2\)"),
        (torch.tensor([True, False]), r"not bool of shape \(2,\); of a mask take mask\.nonzero"),
    ],
)
def test_indices_that_select_nothing_sensible(indices, message):
    with pytest.raises(ValueError, match=message):
        ChannelSelect(indices)


def test_latents_too_narrow_for_a_selection_are_refused():
    for x in (torch.randn(1, 4, 2, 2), torch.randn(6, 2, 2)):
        with pytest.raises(ValueError, match=r"asks for channel 4 of \(B, M, h, w\)"):
            ChannelSelect([4, 0])(x)


# -- streams of some channels ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CALIBRATED)
def codec(request, make_codec, make_images):
    codec = make_codec(request.param, M=12)
    codec.calibrate([make_images(2, 96, 64), make_images(1, 64, 80, seed=1)])
    return codec


def table_bits(codec, y_hat):
    """What the symbols of one latent cost under the codec's tables, without the coder."""
    tables, centers, bits = codec.coding.tables, codec.coding.centers, 0.0
    symbols = y_hat.round().long() if centers is None else (y_hat[..., None] == centers).int().argmax(-1)
    for table, values in enumerate(symbols[0].flatten(1).numpy()):
        start, offset = tables.starts[table], tables.offsets[table]
        counts = np.diff(tables.cdfs[start : start + tables.lengths[table]])
        places = values - offset
        assert (places >= 0).all(), "escaped"
        assert (places < len(counts) - 1).all(), "escaped"
        bits -= np.log2(counts[places] / 2**16).sum()
    return bits


def test_a_stream_carries_the_selected_channels_only(codec, make_images):
    images = make_images(2, 96, 64)
    whole = codec.encode(images)
    ranked = rank_channels(whole)
    rates = {}
    for count in (12, 6, 2, 1):
        some = codec.select(ranked[:count])
        assert (some.latent_channels, some.stride, some.name) == (count, codec.stride, codec.name)
        latent, streams = some.encode(images), some.compress(images)
        assert torch.equal(latent.y_hat, whole.y_hat[:, ranked[:count]])  # the same symbols
        decoded = some.decompress(streams)
        assert torch.equal(decoded.y_hat, latent.y_hat)
        assert decoded.image_size == (96, 64)
        rates[count] = [read_header(stream).payload_bpp for stream in streams]
        bits = 8 * (len(streams[0]) - read_header(streams[0]).header_bytes)
        assert bits == pytest.approx(table_bits(some, latent.y_hat[:1]), abs=64)  # the coder's state, and whole words
    assert rates[12] == pytest.approx([read_header(s).payload_bpp for s in codec.compress(images)], abs=0.01)
    for more, fewer in ((12, 6), (6, 2), (2, 1)):
        assert all(a > b for a, b in zip(rates[more], rates[fewer], strict=True))


def test_a_selection_is_a_codec_of_its_own(codec, make_images):
    images, before = make_images(1, 48, 48), codec.fingerprint
    one, other = codec.select([3, 1]), codec.select([1, 3])
    assert len({before, one.fingerprint, other.fingerprint, codec.select([3]).fingerprint}) == 4
    assert one.fingerprint == codec.select(torch.tensor([3, 1])).fingerprint
    assert codec.select([5, 3, 1]).select([1, 2]).fingerprint == one.fingerprint
    for reader, writer in ((codec, one), (one, codec), (one, other)):
        with pytest.raises(PairingError, match=f"{writer.fingerprint}.*{reader.fingerprint}"):
            reader.decompress(writer.compress(images))
    with torch.no_grad():
        one.g_a[0].weight.add_(1)
    assert codec.fingerprint == before, "parameters are shared"
    for channels, message in (
        ([12], "channels has index 12, but the latent has 12 channels"),
        ([], "at least one"),
        ([1, 1], "each index may occur once"),
    ):
        with pytest.raises(ValueError, match=message):
            codec.select(channels)
    with pytest.raises(ValueError, match=r"channels has index 2, but the latent has 2 channels \(0 to 1\)"):
        other.select([2])


@pytest.mark.parametrize("name", CALIBRATED)
def test_selecting_and_calibrating_go_in_either_order(name, make_codec, make_images):
    plain = make_codec(name, M=12)
    with torch.no_grad():
        plain.g_a[-1].bias.add_(torch.linspace(-1, 1, 12))  # which uncalibrated tables may follow
    batches = [make_images(2, 64, 64), make_images(1, 32, 48)]
    first, last = plain.select([7, 2, 4]), copy.deepcopy(plain)
    uncalibrated = copy.deepcopy(first)
    uncalibrated.adopt_state(None)  # derive the tables anew
    assert uncalibrated.fingerprint == first.fingerprint
    first.calibrate(batches)
    last.calibrate(batches)
    assert first.fingerprint == last.select([7, 2, 4]).fingerprint != uncalibrated.fingerprint


def test_a_selection_is_saved_and_loaded(codec, make_images, tmp_path):
    images, some = make_images(1, 50, 40), codec.select([7, 2, 4])
    cdzoo.save_pretrained(some, tmp_path)
    loaded = cdzoo.from_pretrained(tmp_path)
    assert loaded.origin.arguments["channels"] == (7, 2, 4)
    assert (loaded.fingerprint, loaded.latent_channels) == (some.fingerprint, 3)
    assert torch.equal(loaded.decompress(some.compress(images)).y_hat, codec.encode(images).y_hat[:, [7, 2, 4]])
    assert loaded.select([1]).origin.arguments["channels"] == (2,)
    builder = getattr(cdzoo.codecs, codec.name)
    assert "channels" not in codec.origin.arguments
    with pytest.raises(ValueError, match=r"channels=\(0, 1, 2\) conflicts"):
        builder(weights=tmp_path, channels=[0, 1, 2])
    assert builder(latent_channels=12, N=8, channels=[3, 4]).latent_channels == 2


@pytest.mark.parametrize("name", CALIBRATED)
def test_indices_alone_make_another_codec(name, make_codec):
    """Nothing else tells these apart: without counts, all channels have the same table."""
    plain = make_codec(name, M=12)
    one, other = plain.select([7, 2]), plain.select([4, 2])
    assert torch.equal(one.symbol_counts, other.symbol_counts)
    assert one.fingerprint not in (other.fingerprint, plain.select([2, 7]).fingerprint)
    one.load_state_dict(other.state_dict())
    assert one.fingerprint == other.fingerprint


def test_what_is_not_there_is_zero_when_looked_at(codec, make_images):
    images = make_images(1, 40, 56)
    whole = codec.encode(images)
    some = codec.select([7, 2, 4])
    masked = torch.zeros_like(whole.y_hat)
    masked[:, [7, 2, 4]] = whole.y_hat[:, [7, 2, 4]]
    assert torch.equal(some.decode(some.encode(images)), codec.decode(whole._replace(y_hat=masked)))
    assert some.decode(some.encode(images)).shape == images.shape
    with pytest.raises(ValueError, match=r"needs \(B, 3, "):
        some.decode(whole)
    output, y = some.train().forward_with_y(images)
    assert y.shape == output.latent.y_hat.shape == some.encode(images).y_hat.shape
    assert output.x_hat.shape == images.shape
    y.sum().backward()
    touched = some.g_a[-1].bias.grad.nonzero()[:, 0].tolist()
    assert touched == [2, 4, 7]


def test_the_head_runs_on_what_the_stream_carries(codec, make_images):
    images = make_images(2, 50, 70)
    some = codec.select(rank_channels(codec.encode(images))[:4])
    torch.manual_seed(0)
    given = {"num_classes": 3, "width": 0.0625, "latent_stride": codec.stride}
    narrow = cdzoo.models.resnet41(in_channels=4, **given).eval()
    with torch.no_grad():
        logits = cdzoo.compose(some, narrow).from_streams(some.compress(images))
        assert torch.equal(logits, cdzoo.compose(some, narrow)(images))
        # the network of whole latents that reads these channels says the same of the whole stream
        wide = cdzoo.models.resnet41(in_channels=12, channels=some.selection.indices, **given).eval()
        wide.load_state_dict(narrow.state_dict() | {"select.indices": some.selection.indices})
        assert torch.equal(cdzoo.compose(codec, wide).from_streams(codec.compress(images)), logits)
    with pytest.raises(PairingError, match=r"4 latent channels.*12"):
        cdzoo.compose(codec, narrow)


# -- random sizes ------------------------------------------------------------------------------------------------------


def test_one_size_for_each_batch_and_all_sizes_in_turn():
    images = [(torch.rand(3, 40, 60), 1), (torch.rand(3, 33, 25), 4)]
    collate = RandomSizeCollate(16, 19, generator=torch.Generator().manual_seed(0))
    batches = [collate(images) for _ in range(40)]
    for batch, labels in batches:
        assert batch.shape[:2] == (2, 3)
        assert batch.shape[2] == batch.shape[3]
        assert labels.tolist() == [1, 4]
        assert labels.dtype == torch.int64
    assert {batch.shape[2] for batch, _ in batches} == {16, 17, 18, 19}
    assert RandomSizeCollate().min_size == 224
    assert RandomSizeCollate().max_size == 448


def test_images_alone_and_images_with_more():
    collate = RandomSizeCollate(8, 8)
    assert collate([torch.rand(1, 9, 9), torch.rand(1, 20, 8)]).shape == (2, 1, 8, 8)
    batch, labels, names = collate([(torch.rand(3, 9, 9), 0.5, "a"), (torch.rand(3, 20, 8), 1.5, "b")])
    assert (batch.shape, labels.tolist(), names) == ((2, 3, 8, 8), [0.5, 1.5], ["a", "b"])
    assert collate([torch.randint(256, (3, 30, 9), dtype=torch.uint8)]).dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_images_in_half_precision(dtype):
    image = torch.rand(3, 40, 40).to(dtype)
    batch, _ = RandomSizeCollate(24, 24)([(image, 1)])
    assert batch.dtype == dtype
    assert torch.equal(batch[0], resize_and_crop(image.float(), 24).to(dtype))


def test_resizing_is_torchvisions_and_the_crop_moves_along_the_longer_side():
    from torchvision.transforms.functional import resize

    ramp = torch.linspace(0, 1, 300).expand(3, 100, 300)
    generator = torch.Generator().manual_seed(0)
    crops = [resize_and_crop(ramp, 50, generator=generator) for _ in range(200)]
    whole = resize(ramp, [50, 150], antialias=True)
    starts = [int((whole[0, 0] - crop[0, 0, 0]).abs().argmin()) for crop in crops]
    assert all(torch.equal(crop, whole[:, :, s : s + 50]) for crop, s in zip(crops, starts, strict=True))
    assert (min(starts), max(starts)) == (0, 100)  # both ends of the image can be seen
    square = torch.rand(3, 50, 50)
    assert torch.equal(resize_and_crop(square, 50), square)
    for size in (1, 7, 224):
        assert resize_and_crop(torch.rand(3, 1, 500), size).shape == (3, size, size)


def test_the_same_seed_gives_the_same_batches():
    images = [torch.rand(3, 30, 50) for _ in range(6)]

    def epoch():
        torch.manual_seed(5)
        return list(DataLoader(images, batch_size=2, collate_fn=RandomSizeCollate(8, 32)))

    one, two = epoch(), epoch()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert len({batch.shape[2] for batch in one}) > 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks, from Python 3.12 on
def test_workers_and_epochs_draw_other_sizes_from_one_generator():
    images = [torch.rand(3, 20, 20)] * 64

    def epochs():
        torch.manual_seed(5)
        collate = RandomSizeCollate(8, 40, generator=torch.Generator().manual_seed(3))
        loader = DataLoader(images, batch_size=2, collate_fn=collate, num_workers=2)
        return [[batch.shape[2] for batch in loader] for _ in range(2)]

    (first, second), again = epochs(), epochs()
    assert again == [first, second]
    assert first[0::2] != first[1::2]  # one worker's batches, the other's
    assert first != second


def test_latents_are_never_resized():
    latent = latents()[0]
    for samples in ([latent], [(latent, 3)]):
        with pytest.raises(TypeError, match=r"latents are never resized; .*SizeBucketSampler"):
            RandomSizeCollate()(samples)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "no samples"),
        ([(np.zeros((3, 4, 4)), 1)], TypeError, "not ndarray; add ToTensor"),
        (["image.png"], TypeError, "not str"),
        ([torch.rand(4, 4)], ValueError, r"image of shape \(4, 4\)"),
        ([torch.rand(3, 0, 4)], ValueError, r"image of shape \(3, 0, 4\)"),
    ],
)
def test_what_is_no_image_is_refused(samples, error, message):
    with pytest.raises(error, match=message):
        RandomSizeCollate(8, 8)(samples)


def test_sizes_must_be_in_order():
    for sizes in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match=f"min_size={sizes[0]} and max_size={sizes[1]}"):
            RandomSizeCollate(*sizes)
