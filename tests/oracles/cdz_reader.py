"""A second reader of ``.cdz`` streams, written from ``docs/cdz_format.md`` alone and for clarity alone.

It shares no code with the package: plain Python integers for the entropy decoder, int64 for the hyper-decoder. What it
needs of a codec is the name and the ``integer.*`` tensors of a saved folder.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[Any]
CODECS = {
    1: "bmshj2018_factorized",
    2: "bmshj2018_hyperprior",
    3: "mbt2018_mean",
    4: "torfason2018",
    5: "choi2019",
    6: "icat_small",
}
ONE_PART = ("bmshj2018_factorized", "torfason2018", "choi2019")
# kernel, stride, padding, output padding, transposed
UP, SAME, WIDE = (5, 2, 2, 1, True), (3, 1, 1, 0, False), (5, 1, 2, 0, False)
LIMIT = 2**27


class Decoded(NamedTuple):
    """What a stream holds, and how many of its symbols lay outside their tables."""

    y_hat: Array
    scales: Array | None
    image_size: tuple[int, int]
    escapes: int


class Opened(NamedTuple):
    """The fields of a stream."""

    name: str
    fingerprint: str
    image_size: tuple[int, int]
    symbols_crc: int
    parts: list[bytes]


def open_stream(stream: bytes) -> Opened:
    """Take a stream apart."""
    assert stream[:4] == b"CDZ\x01"
    num_parts = stream[5]
    height, width, symbols_crc = struct.unpack_from("<III", stream, 14)
    lengths = struct.unpack_from(f"<{num_parts}I", stream, 26)
    end = 26 + 4 * num_parts
    if stream[4] == 0:
        length, start = stream[end], end + 1
        end = start + length
        name = stream[start:end].decode("ascii")
        assert 1 <= length <= 64
        assert name not in CODECS.values()
    else:
        name = CODECS[stream[4]]
    (stream_crc,) = struct.unpack_from("<I", stream, end)
    payload = stream[end + 4 :]
    assert len(payload) == sum(lengths)
    assert zlib.crc32(stream[:end] + payload) == stream_crc
    parts = [payload[sum(lengths[:i]) : sum(lengths[: i + 1])] for i in range(num_parts)]
    return Opened(name, stream[6:14].hex(), (height, width), symbols_crc, parts)


def read_named_rounding(stream: bytes, name: str, stride: int, fingerprint: str, integers: dict[str, Array]) -> Decoded:
    """Decode a stream of a codec without a number whose latents are multiples of a step."""
    found, written_by, (height, width), symbols_crc, (part,) = open_stream(stream)
    assert stream[4] == 0
    assert (found, written_by) == (name, fingerprint)
    h, w, channels = -(-height // stride), -(-width // stride), len(integers["symbols.starts"])
    symbols, escapes = decode_part(part, np.arange(channels).repeat(h * w), "symbols.", integers)
    assert zlib.crc32(symbols.astype("<i2").tobytes()) == symbols_crc
    y = symbols.reshape(channels, h, w).astype(np.float32) * integers.get("step", np.float32(1))
    return Decoded(y, None, (height, width), escapes)


def read_stream(stream: bytes, folder: Path) -> Decoded:
    """Decode a stream with the integers of a saved codec."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    integers = {k.removeprefix("integer."): v for k, v in tensors.items() if k.startswith("integer.")}
    name, fingerprint, (height, width), symbols_crc, parts = open_stream(stream)
    assert name == config["builder"]
    assert fingerprint == config["fingerprint"]
    assert len(parts) == (1 if name in ONE_PART else 2)

    stride = 8 if name == "torfason2018" else 16
    h, w = -(-height // stride), -(-width // stride)
    if name in ("torfason2018", "choi2019"):
        channels = len(integers["symbols.starts"])
        symbols, escapes = decode_part(parts[0], np.arange(channels).repeat(h * w), "symbols.", integers)
        assert zlib.crc32(symbols.astype("<i2").tobytes()) == symbols_crc
        symbols = symbols.reshape(channels, h, w)
        assert name == "choi2019" or symbols.min() >= 0
        y = symbols.astype(np.float32) if name == "choi2019" else integers["centers"][symbols]
        return Decoded(y, None, (height, width), escapes)

    medians = integers["bottleneck.medians"]
    channels = len(medians)
    if name == "bmshj2018_factorized":
        symbols, escapes = decode_part(parts[0], np.arange(channels).repeat(h * w), "bottleneck.", integers)
        assert zlib.crc32(symbols.astype("<i2").tobytes()) == symbols_crc
        y = symbols.reshape(channels, h, w).astype(np.float32)
        return Decoded(y + real(medians)[:, None, None], None, (height, width), escapes)

    step = 2 if name == "icat_small" else 4
    zh, zw = -(-h // step), -(-w // step)
    z, escapes = decode_part(parts[0], np.arange(channels).repeat(zh * zw), "bottleneck.", integers)
    crc = zlib.crc32(z.astype("<i2").tobytes())
    output = hyper_decode(z.reshape(channels, zh, zw) * 2**14 + medians[:, None, None], name, integers)[:, :h, :w]
    scales, means = (output, None) if name == "bmshj2018_hyperprior" else np.split(output, 2)
    scales = real(scales)
    indexes = (scales[..., None] > nearest_bfloat16(integers["gaussian.boundaries"])).sum(-1)
    symbols, more = decode_part(parts[1], indexes.reshape(-1), "gaussian.", integers)
    assert (
        zlib.crc32(indexes.astype(np.uint8).tobytes(), zlib.crc32(symbols.astype("<i2").tobytes(), crc)) == symbols_crc
    )
    y = symbols.reshape(scales.shape).astype(np.float32)
    return Decoded(y if means is None else y + real(means), scales, (height, width), escapes + more)


def decode_part(data: bytes, indexes: Array, prefix: str, integers: dict[str, Array]) -> tuple[Array, int]:
    """The symbols of one part, and how many of them were escaped."""
    words = list(struct.unpack(f"<{len(data) // 4}I", data))[::-1]  # the next word is the last of the list
    state = words.pop() | words.pop() << 32
    cdfs, starts, lengths, offsets = (
        integers[prefix + name].tolist() for name in ("cdfs", "starts", "lengths", "offsets")
    )
    tables = [cdfs[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    assert all(table[0] == 0 and table[-1] == 2**16 for table in tables)

    def refill() -> None:
        nonlocal state
        if state < 2**31:
            state = state << 32 | words.pop()

    def four_bits() -> int:
        nonlocal state
        value = state % 16
        state //= 16
        refill()
        return value

    out, escapes = [], 0
    for index in indexes.tolist():
        table, count = tables[index], state % 2**16
        entry = next(i for i in range(len(table) - 1) if table[i] <= count < table[i + 1])
        state = (table[entry + 1] - table[entry]) * (state // 2**16) + count - table[entry]
        refill()
        escape = len(table) - 2
        if entry == escape:
            escapes += 1
            code = sum(four_bits() << 4 * i for i in range(four_bits()))
            entry = -(code + 1) // 2 if code % 2 else escape + code // 2
        out.append(entry + offsets[index])
    assert not words
    assert state == 2**31
    return np.array(out, np.int64), escapes


def hyper_decode(x: Array, name: str, integers: dict[str, Array]) -> Array:
    """``(N, h, w)`` integers through the three layers of the hyper-decoder."""
    x = np.clip(x, -LIMIT, LIMIT)
    for layer, geometry in enumerate((WIDE if name == "icat_small" else UP, UP, SAME)):
        weight, bias, bits = (integers[f"decoder.{layer}.{key}"] for key in ("weight", "bias", "bits"))
        sums = convolve(x, weight.astype(np.int64), *geometry) + bias[:, None, None]
        x = np.clip(round_half_up(sums, int(bits)), -LIMIT, LIMIT)
        if name == "bmshj2018_hyperprior":
            x = np.maximum(x, 0)
        elif layer < 2:
            x = np.where(x < 0, round_half_up(x * round(0.01 * 2**16), 16), x)
    return x


def convolve(
    x: Array, weight: Array, kernel: int, stride: int, padding: int, output_padding: int, transposed: bool
) -> Array:
    """A (transposed) convolution in int64, tap by tap."""
    assert weight.shape[1:] == (len(x), kernel, kernel)
    taps = [(i, j, np.einsum("oc,chw->ohw", weight[:, :, i, j], x)) for i in range(kernel) for j in range(kernel)]
    h, w = x.shape[1:]
    # everything without cutting, then what the padding leaves of it
    if transposed:
        full = np.zeros((len(weight), *((n - 1) * stride + kernel + output_padding for n in (h, w))), np.int64)
        for i, j, product in taps:
            full[:, i : i + (h - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride] += product
        return full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]
    assert stride == 1
    full = np.zeros((len(weight), h + kernel - 1, w + kernel - 1), np.int64)
    for i, j, product in taps:
        full[:, kernel - 1 - i : kernel - 1 - i + h, kernel - 1 - j : kernel - 1 - j + w] += product
    cut = kernel - 1 - padding
    return full[:, cut : full.shape[1] - cut, cut : full.shape[2] - cut]


def round_half_up(x: Array, bits: int) -> Array:
    """``floor(x / 2^bits + 1/2)``."""
    return x if bits == 0 else (x + 2 ** (bits - 1)) >> bits


def real(x: Array) -> Array:
    """Integers in units of 2^-14 as float32."""
    return (x / 2.0**14).astype(np.float32)


def nearest_bfloat16(x: Array) -> Array:
    """float32 rounded to 8 significant bits, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
