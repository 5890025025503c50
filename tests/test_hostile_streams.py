"""Damaged and hostile streams: the original latent or a typed error, in a process that survives within its bounds."""

from __future__ import annotations

import random
import resource
import struct
import zlib
from collections.abc import Callable, Iterator

import pytest
import torch

from cdzoo.codecs import Codec
from cdzoo.errors import BitstreamError, PairingError

NAMES = ["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean"]
ROUNDS = 1000


def reseal(stream: bytes) -> bytes:
    """Make lengths and stream checksum right again, as somebody would who means harm."""
    parts = stream[5] if 1 <= stream[5] <= 2 else 1
    head_size = 26 + 4 * parts
    payload = stream[head_size + 4 :]
    lengths = list(struct.unpack_from(f"<{parts}I", stream, 26))
    first = min(lengths[0], len(payload)) if parts == 2 else len(payload)
    lengths = [first, len(payload) - first] if parts == 2 else [first]
    head = stream[:26] + struct.pack(f"<{parts}I", *lengths)
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def mutations(stream: bytes, seed: int) -> Iterator[bytes]:
    """Accidents first, then as many with the checksum of the whole stream made right again."""
    rng = random.Random(seed)
    for round_ in range(2 * ROUNDS):
        data = bytearray(stream)
        kind = rng.randrange(5)
        if kind == 0:
            data = data[: rng.randrange(len(data))]
        elif kind == 1:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            start = rng.randrange(len(data))
            data[start : start + 16] = rng.randbytes(min(16, len(data) - start))
        elif kind == 3:
            start = rng.randrange(len(data))
            del data[start : start + rng.randint(1, 12)]
        else:
            start = rng.randrange(len(data))
            data[start:start] = rng.randbytes(rng.randint(1, 12))
        sealable = round_ >= ROUNDS and len(data) >= 38 and data[:4] == b"CDZ\x01" and data[5] in (1, 2)
        yield reseal(bytes(data)) if sealable else bytes(data)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_two_thousand_damaged_streams(
    name: str, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    codec = make_codec(name)
    stream = codec.compress(make_images(1, 96, 80))[0]
    original = codec.decompress([stream])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"equal": 0, "refused": 0}
    for damaged in mutations(stream, seed=NAMES.index(name)):
        try:
            # a limit on pixels keeps what a forged size may ask for small
            latent = codec.decompress([damaged], max_pixels=1 << 20)
        except (BitstreamError, PairingError):
            outcomes["refused"] += 1
        else:
            assert torch.equal(latent.y_hat, original.y_hat)
            outcomes["equal"] += 1
    assert outcomes["refused"] > 1.9 * ROUNDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000, f"grew by {grown} kB"  # a 1-Mpixel latent and its working memory, not more


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation(
    name: str, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    codec = make_codec(name)
    stream = codec.compress(make_images(1, 20, 20))[0]
    for length in range(len(stream)):
        with pytest.raises(BitstreamError):
            codec.decompress([stream[:length]])


@pytest.mark.parametrize("name", NAMES)
def test_payloads_swapped_between_images_are_seen(
    name: str, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    # both payloads are valid; only the checksum of the symbols tells that they are not what was written
    codec = make_codec(name)
    a, b = codec.compress(make_images(2, 64, 64))
    size = 30 + 4 * a[5]
    with pytest.raises(BitstreamError, match=r"CRC32|stream 0"):
        codec.decompress([reseal(a[:26] + b[26:size] + b[size:])])


def test_a_forged_size_is_stopped_before_memory_is_taken(
    make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    codec = make_codec("bmshj2018_hyperprior")
    stream = bytearray(codec.compress(make_images(1, 32, 32))[0])
    stream[14:22] = struct.pack("<II", 2**31 - 1, 2**31 - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BitstreamError, match="exceeds the limit"):
        codec.decompress([reseal(bytes(stream))])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000
