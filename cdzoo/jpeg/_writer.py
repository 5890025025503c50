"""Coefficients of one image to a JPEG file: markers around what the kernels code."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cdzoo.jpeg.geometry import ZIGZAG, Pairs, block_grids, mcu_grid
from cdzoo.types import JPEGCoefficients

__all__ = ["write_image"]

_COMPONENTS = {"gray": 1, "ycbcr": 3, "rgb": 3, "cmyk": 4, "ycck": 4}
_IDENTIFIERS = {"rgb": b"RGB", "cmyk": b"CMYK"}
_JFIF = b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
_ADOBE = b"Adobe\0\x64\0\0\0\0"  # the transform follows

_TABLE_OF = (0, 1, 1, 0)  # a pair of Huffman tables for the first and fourth component, another for the others


def write_image(coefficients: JPEGCoefficients, index: int, metadata: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """The file of one image of a batch on the CPU; see :func:`cdzoo.jpeg.files.write_jpeg`.

    Args:
        coefficients: the batch.
        index: number of the image.
        metadata: marker codes and payloads of further segments.
    """
    sampling, sizes = _check(coefficients, index)
    height, width = coefficients.image_size
    space = coefficients.color_space
    identifiers = _IDENTIFIERS.get(space, b"\1\2\3\4")
    planes = [plane[index].contiguous().numpy().reshape(-1) for plane in coefficients.planes]
    tables = coefficients.qtables[index].numpy().reshape(-1, 64)[:, ZIGZAG]

    parts = [b"\xff\xd8"]
    if space in ("gray", "ycbcr"):
        parts.append(_segment(0xE0, _JFIF))
    else:
        parts.append(_segment(0xEE, _ADOBE + bytes([2 if space == "ycck" else 0])))
    parts += [_segment(code, payload) for code, payload in metadata]
    payloads = [table.astype(np.uint8 if table.max() < 256 else ">u2").tobytes() for table in tables]
    distinct = list(dict.fromkeys(payloads))
    parts += [_segment(0xDB, bytes([i | 16 * (len(table) > 64)]) + table) for i, table in enumerate(distinct)]
    frame = struct.pack(">BHHB", 8, height, width, len(planes))
    for n, (vertical, horizontal) in enumerate(sampling):
        frame += bytes([identifiers[n], horizontal << 4 | vertical, distinct.index(payloads[n])])
    parts.append(_segment(0xC1 if any(len(table) > 64 for table in distinct) else 0xC0, frame))

    everything = list(range(len(planes)))
    together = sum(vertical * horizontal for vertical, horizontal in sampling) <= 10
    for scan in [everything] if together else [[n] for n in everything]:
        parts += _code_scan(scan, planes, sampling, sizes, coefficients.image_size, identifiers, index)
    return b"".join([*parts, b"\xff\xd9"])


def _code_scan(
    scan: list[int],
    planes: list[NDArray[np.int16]],
    sampling: Pairs,
    sizes: Pairs,
    image_size: tuple[int, int],
    identifiers: bytes,
    index: int,
) -> list[bytes]:
    """DHT, SOS and data of a scan of the given components."""
    from cdzoo._numba import run
    from cdzoo.jpeg.kernels import encode as kernels

    single = len(scan) == 1
    rows, columns = sizes[scan[0]]
    if not single:
        rows, columns = mcu_grid(image_size, sampling)
    components = np.zeros(len(scan), kernels.SCAN_COMPONENT)
    blocks = 0
    for i, n in enumerate(scan):
        vertical, horizontal = (1, 1) if single else sampling[n]
        components[i] = (vertical, horizontal, *sizes[n], 2 * _TABLE_OF[n], 2 * _TABLE_OF[n] + 1)
        blocks += rows * columns * vertical * horizontal
    targets = [planes[n] for n in scan]
    targets += targets[:1] * (4 - len(targets))
    tokens = np.empty(64 * blocks, np.int32)
    counts = np.zeros((4, 256), np.int64)
    num_tokens = run(kernels.tokenize, kernels.ScanLayout(rows, columns, components), *targets, tokens, counts)
    if num_tokens < 0:
        block, n = divmod(-1 - num_tokens, 4)
        row, column = divmod(block, sizes[scan[n]][1])
        raise ValueError(
            f"image {index}, component {scan[n]}, block ({row}, {column}): 8-bit JPEG stores AC coefficients of up to "
            f"{kernels.MAX_AC_BITS} bits and DC differences of up to {kernels.MAX_DC_BITS}; clamp the coefficients"
        )
    codes = np.zeros((4, 256), np.int32)
    parts = []
    num_bits = 0
    for table in range(4):
        if counts[table].any():
            payload = np.zeros(16 + 256, np.uint8)
            length = run(kernels.huffman_table, counts[table], payload, codes[table])
            parts.append(_segment(0xC4, bytes([(table & 1) << 4 | table >> 1]) + payload[:length].tobytes()))
            num_bits += int((counts[table] * ((codes[table] >> 16) + np.arange(256) % 16)).sum())
    header = bytes([len(scan)])
    for n in scan:
        header += bytes([identifiers[n], 17 * _TABLE_OF[n]])
    parts.append(_segment(0xDA, header + b"\0\x3f\0"))
    out = np.empty(2 * (num_bits // 8 + 1), np.uint8)  # every byte may need stuffing
    size = run(kernels.write_tokens, tokens[:num_tokens], codes, out)
    parts.append(out[:size].tobytes())
    return parts


def _check(coefficients: JPEGCoefficients, index: int) -> tuple[Pairs, Pairs]:
    """Sampling factors and block grids of the components, if all the fields agree."""
    planes, qtables, sampling, (height, width), space = coefficients
    if _COMPONENTS.get(space) != len(planes) or len(sampling) != len(planes):
        raise ValueError(
            f"{len(planes)} planes with {len(sampling)} sampling factors are not of color_space {space!r}: it is one "
            f"of {', '.join(f'{name} ({number})' for name, number in _COMPONENTS.items())}"
        )
    if not (1 <= height <= 65535 and 1 <= width <= 65535):
        raise ValueError(f"image_size {(height, width)}: a JPEG file has 1 to 65535 rows and columns")
    if not all(1 <= factor <= 4 for pair in sampling for factor in pair):
        raise ValueError(f"sampling {sampling}: factors lie between 1 and 4")
    if len(planes) == 1:
        sampling = ((1, 1),)
    sizes = block_grids((height, width), sampling)
    batch = qtables.shape[0]
    for plane, size in zip(planes, sizes, strict=True):
        if tuple(plane.shape) != (batch, *size, 8, 8) or str(plane.dtype) != "torch.int16":
            raise ValueError(
                f"a plane of shape {tuple(plane.shape)} {plane.dtype}: image_size {(height, width)} with sampling "
                f"{sampling} asks for {(batch, *size, 8, 8)} torch.int16; coefficients that are no integers become "
                "some by encode_jpeg(decode_jpeg(coefficients))"
            )
    if tuple(qtables.shape) != (batch, len(planes), 8, 8):
        raise ValueError(f"qtables of shape {tuple(qtables.shape)}: it must be {(batch, len(planes), 8, 8)}")
    if int(qtables[index].min()) < 1 or int(qtables[index].max()) > 65535:
        raise ValueError(
            f"image {index}: entries of quantization tables lie from 1 to 65535, and these from "
            f"{int(qtables[index].min())} to {int(qtables[index].max())}; clamp them"
        )
    return sampling, sizes


def _segment(code: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(payload) + 2) + payload
