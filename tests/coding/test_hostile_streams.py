"""Damaged and hostile streams: the original latent or a typed error, in a process that survives within its bounds."""

from __future__ import annotations

import copy
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from oracles.slow import all_but_one
from oracles.small_modules import CALIBRATED

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.errors import BitstreamError, PairingError
from cdzoo.weights.enums import PACKAGED

NAMES = ["bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean", *CALIBRATED]


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


def claiming(stream: bytes, height: int, width: int) -> bytes:
    """The stream with another image size in its header, resealed."""
    return reseal(stream[:14] + struct.pack("<II", height, width) + stream[22:])


def mutations(stream: bytes, seed: int, *, rounds: int) -> Iterator[tuple[bytes, bool]]:
    """Accidents first, then as many with the checksum of the whole stream made right again, and which it is."""
    rng = random.Random(seed)
    for round_ in range(2 * rounds):
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
        sealable = round_ >= rounds and len(data) >= 38 and data[:4] == b"CDZ\x01" and data[5] in (1, 2)
        yield (reseal(bytes(data)) if sealable else bytes(data)), sealable


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "rounds"),
    all_but_one([("bmshj2018_hyperprior", 150), *((name, 1000) for name in NAMES)], kept=("bmshj2018_hyperprior", 150)),
)
def test_damaged_streams(
    name: str, rounds: int, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor]
) -> None:
    codec = copy.deepcopy(make_codec(name))
    codec.calibrate(make_images(1, 128, 128))
    stream = codec.compress(make_images(1, 96, 80))[0]
    original = codec.decompress([stream])
    outcomes = {"equal": 0, "refused": 0}
    for damaged, sealed in mutations(stream, seed=NAMES.index(name), rounds=rounds):
        try:
            # a limit on pixels keeps what a forged size may ask for small
            latent = codec.decompress([damaged], max_pixels=1 << 20)
        except (BitstreamError, PairingError):
            outcomes["refused"] += 1
        else:
            assert torch.equal(latent.y_hat, original.y_hat)
            assert (latent.scales is None) == (original.scales is None)
            if original.scales is not None:
                assert torch.equal(latent.scales, original.scales)
            # a forger may claim another size with the same latent; an accident may not
            assert sealed or latent.image_size == original.image_size
            outcomes["equal"] += 1
    assert outcomes["refused"] > 1.9 * rounds


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


# Run in a process of its own, since a process' peak says nothing about a moment of it: decodes the first file, lets
# the address space grow by so many megabytes from there, and expects every other file to be refused.
_BOUNDED = """
import resource, sys
from pathlib import Path
import cdzoo
from cdzoo.errors import BitstreamError

folder, megabytes, good, *forged = sys.argv[1:]
codec = cdzoo.from_pretrained(folder)
latent = codec.decompress([Path(good).read_bytes()], num_threads=1)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (int(megabytes) << 20),) * 2)
for file in forged:
    try:
        codec.decompress([Path(file).read_bytes()], num_threads=1)
    except BitstreamError as error:
        print(error)
    else:
        sys.exit(f"{file} was accepted")
try:
    bytearray(2 * int(megabytes) << 20)  # some of the former is free again
except MemoryError:
    pass
else:
    sys.exit("the limit on memory is not in force")
"""


def refusals(folder: Path, stream: bytes, forged: list[bytes], *, megabytes: int, tmp_path: Path) -> list[str]:
    """Why the forged streams were refused by a process that may take no more than ``megabytes`` for it."""
    files = [tmp_path / f"{number}.cdz" for number in range(1 + len(forged))]
    for file, data in zip(files, [stream, *forged], strict=True):
        file.write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-c", _BOUNDED, str(folder), str(megabytes), *map(str, files)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit on memory needs Linux")
@pytest.mark.parametrize("name", all_but_one(["bmshj2018_factorized", "torfason2018", "pretrained"], kept="pretrained"))
def test_forged_sizes_take_no_memory(
    name: str, make_codec: Callable[..., Codec], make_images: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "codec"
    if name == "pretrained":
        folder = PACKAGED / "bmshj2018-hyperprior-n48-m64-imagenette"
        codec = cdzoo.from_pretrained(folder)
        assert isinstance(codec, Codec)
    else:
        codec = copy.deepcopy(make_codec(name))
        codec.calibrate([make_images(1, 512, 512)])
        cdzoo.save_pretrained(codec, folder)
    (stream,) = codec.compress(make_images(1, 16, 16))
    assert len(stream) < 200
    sizes = [(13_000, 13_000), (1, 178_956_970), (178_956_970, 1), (2**31 - 1, 2**31 - 1)]
    forged = [claiming(stream, *size) for size in sizes]
    # an honest beginning, with next to nothing behind it
    large = codec.compress(make_images(1, 512, 512))[0]
    forged.append(reseal(large[: -4 * (len(large) // 8)]))
    said = refusals(folder, stream, forged, megabytes=100, tmp_path=tmp_path)
    assert all("cannot hold" in line for line in said[:3]), said
    assert "exceeds the limit" in said[3]
    assert len(said) == len(forged)
