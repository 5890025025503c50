"""Streams to latents: everything that JPEG files do not have."""

from __future__ import annotations

import copy
import pickle
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.dataset_files import SIZES, Streams
from oracles.equality import same
from oracles.slow import all_but_one
from torch import Tensor
from torch.utils.data import DataLoader

from cdzoo import Latent
from cdzoo.codecs import Codec
from cdzoo.data import (
    StreamDataset,
    StreamShards,
    collate_latents,
)
from cdzoo.errors import BitstreamError

LATENTS = dict[str, Latent]


def test_latents_are_those_of_encode(codec: Codec, make_images: Callable[..., Tensor], tmp_path: Path) -> None:
    images = make_images(3, 33, 47)
    for i, stream in enumerate(codec.compress(images)):
        (tmp_path / f"{i}.CDZ").write_bytes(stream)
    dataset = StreamDataset(tmp_path, codec, labels=None)
    expected = codec.encode(images)
    assert len(dataset) == 3
    loaded = collate_latents(dataset.__getitems__([0, 1, 2]))  # type: ignore[arg-type]
    assert isinstance(loaded, Latent)
    assert same(loaded, expected)
    single = dataset[1]
    assert isinstance(single, Latent)
    assert single.y_hat.shape == (1, 24, 3, 3)
    assert torch.equal(single.y_hat, expected.y_hat[1:2])


def test_a_batch_of_one_size_is_decoded_in_one_call(
    codec: Codec, written: tuple[Path, LATENTS], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = Codec.decompress

    def decompress(self: Codec, streams: list[bytes], **options: Any) -> Latent:
        calls.append(len(streams))
        return original(self, streams, **options)

    monkeypatch.setattr(Codec, "decompress", decompress)
    dataset = StreamDataset(written[0], codec)
    dataset.__getitems__(range(18))
    assert calls == [6, 6, 6]


def test_the_codec_is_copied(codec: Codec, written: tuple[Path, LATENTS]) -> None:
    other = copy.deepcopy(codec).train()
    dataset = StreamDataset(written[0], other)
    with torch.no_grad():
        other.g_a[0].weight.add_(1)  # type: ignore[union-attr]
        other.to("meta")
    assert same(dataset[0][0], written[1][dataset.names[0]])


def test_what_the_coder_finds_is_told_of_the_file(
    codec: Codec, make_images: Callable[..., Tensor], tmp_path: Path
) -> None:
    data = bytearray(codec.compress(make_images(1, 32, 32))[0])
    data[38:46] = b"\xff" * 8  # where the coder's state stands
    data[34:38] = zlib.crc32(data[38:], zlib.crc32(data[:34])).to_bytes(4, "little")
    (tmp_path / "bad.cdz").write_bytes(data)
    with pytest.raises(BitstreamError) as caught:
        StreamDataset(tmp_path, codec, labels=None)[0]
    assert str(caught.value).startswith(f"{tmp_path / 'bad.cdz'}: ")
    assert "of 1:" not in str(caught.value)


def test_sizes_come_from_headers_alone(codec: Codec, streams: Streams, tmp_path: Path) -> None:
    folder = streams.copy(tmp_path / "root")
    for path in folder.rglob("*.cdz"):
        path.write_bytes(path.read_bytes()[:26])
    dataset = StreamDataset(folder, codec)
    assert Counter(dataset.image_sizes()) == dict.fromkeys(SIZES, 6)
    for path in folder.rglob("*.cdz"):
        path.unlink()
    assert Counter(dataset.image_sizes()) == dict.fromkeys(SIZES, 6)  # read once


@pytest.mark.parametrize("form", ["folder", "glob", "braces", "list"])
def test_ways_to_name_shards(codec: Codec, shards: tuple[Path, LATENTS], form: str) -> None:
    directory = shards[0]
    given: Any = {
        "folder": str(directory),
        "glob": directory / "shard-*.tar",
        "braces": f"{directory}/shard-{{000000..000002}}.tar",
        "list": [f"{directory}/shard-00000{{3,4}}.tar", directory / "shard-000000.tar"],
    }[form]
    names = {"folder": range(5), "glob": range(5), "braces": range(3), "list": [3, 4, 0]}[form]
    expected = [str(directory / f"shard-{i:06d}.tar") for i in names]
    assert StreamShards(given, codec).shards == expected


def test_batches_of_shards_fill_up(codec: Codec, shards: tuple[Path, LATENTS]) -> None:
    def lengths(**options: Any) -> list[int]:
        return [len(batch.y_hat) for batch in StreamShards(shards[0], codec, labels=None, **options)]

    assert lengths(batch_size=4) == [4, 4, 4, 2, 2, 2]
    assert lengths(batch_size=4, drop_last=True) == [4, 4, 4]
    assert lengths(batch_size=6) == [6, 6, 6]
    assert lengths(batch_size=None) == [1] * 18
    # with 5 of 3 sizes waiting, the fullest batch is given out
    assert max(lengths(batch_size=6, max_pending=4)) < 6
    assert sum(lengths(batch_size=6, max_pending=4)) == 18
    for name in ("batch_size", "shuffle_buffer", "max_pending"):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
            lengths(**{name: 0})


def order(dataset: StreamShards, latents: LATENTS) -> list[str]:
    return [name for latent, _ in dataset for name, other in latents.items() if same(latent, other)]


def test_order_of_shards_follows_seed_and_epoch(codec: Codec, shards: tuple[Path, LATENTS]) -> None:
    directory, latents = shards
    plain = StreamShards(directory, codec)
    assert order(plain, latents) == list(latents)
    mixed = StreamShards(directory, codec, shuffle=True, shuffle_buffer=6, seed=3)
    first = order(mixed, latents)
    assert first != list(latents)
    assert sorted(first) == sorted(latents)
    assert order(mixed, latents) == first
    mixed.set_epoch(1)
    second = order(mixed, latents)
    assert second != first
    assert order(StreamShards(directory, codec, shuffle=True, shuffle_buffer=6, seed=4), latents) not in (first, second)
    again = pickle.loads(pickle.dumps(mixed))
    assert order(again, latents) == second
    again.set_epoch(0)
    assert order(again, latents) == first
    # ranks share out the shards of one order
    shares = []
    for rank in range(5):
        ranked = StreamShards(directory, codec, shuffle=True, num_replicas=5, rank=rank)
        ranked.set_epoch(7)
        shares += order(ranked, latents)
    assert sorted(shares) == sorted(latents)


@pytest.mark.parametrize("context", all_but_one(["fork", "spawn"], kept="fork"))
def test_set_epoch_reaches_persistent_workers(codec: Codec, shards: tuple[Path, LATENTS], context: str) -> None:
    directory, latents = shards
    dataset = StreamShards(directory, codec, shuffle=True, shuffle_buffer=6)
    expected = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        expected.append(order(dataset, latents))
    loader = DataLoader(
        dataset, batch_size=1, collate_fn=collate_latents, num_workers=1, persistent_workers=True,
        multiprocessing_context=context,
    )  # fmt: skip
    for epoch in (1, 0):
        dataset.set_epoch(epoch)
        assert order(loader, latents) == expected[epoch]  # type: ignore[arg-type]


def test_spawned_workers_learn_their_rank(
    codec: Codec, shards: tuple[Path, LATENTS], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = StreamShards(shards[0], codec)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 3)
        patch.setattr(torch.distributed, "get_rank", lambda: 1)
        expected = order(dataset, shards[1])
        sent = pickle.dumps(dataset)
    assert order(pickle.loads(sent), shards[1]) == expected
    assert len(expected) == 6  # shards 1 and 4
    assert order(dataset, shards[1]) == list(shards[1])
    with pytest.raises(ValueError, match="5 shards for 6 ranks"):
        StreamShards(shards[0], codec, num_replicas=6, rank=0)


def test_latents_of_equal_shape_make_a_batch_whatever_their_image_sizes() -> None:
    latents = [Latent(torch.full((1, 2, 3, 3), float(i)), None, (24 - i, 20 + i)) for i in range(3)]
    batch = collate_latents(latents)
    assert isinstance(batch, Latent)
    assert batch.y_hat[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.image_size == (24, 20)
    other = latents[0]._replace(y_hat=torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"unequal shapes \[\(2, 3, 3\), \(2, 3, 4\)\]"):
        collate_latents([*latents, other])
    with pytest.raises(ValueError, match="1 of 2 latents have scales"):
        collate_latents([latents[0], latents[0]._replace(scales=torch.ones(1, 2, 3, 3))])
