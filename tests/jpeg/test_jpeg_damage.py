"""read_jpeg and files that are damaged, hostile, or of kinds that it does not read."""

from __future__ import annotations

import io
import os
import random
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinds_of_files import KINDS, make
from oracles.jpeg_files import encode, picture
from PIL import Image

from cdzoo.errors import JPEGError
from cdzoo.jpeg.files import MAX_IMAGE_PIXELS, JPEGWarning, read_jpeg, write_jpeg
from cdzoo.jpeg.kernels import bits as _jpeg_bits


def patched(find: bytes, offset: int, value: int, **options: object) -> bytes:
    data = bytearray(encode(picture(40, 24), **options))
    data[data.index(find) + offset] = value
    return bytes(data)


def with_lines(data: bytes, lines: int) -> bytes:
    """A file with a number of lines (DNL) behind its first scan."""
    end = data.index(b"\xff\xda") + 2
    while data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
        end += 1
    return data[:end] + b"\xff\xdc\x00\x04" + lines.to_bytes(2, "big") + data[end:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"", "empty"),
        (lambda: b"\x89PNG", "no JPEG"),
        (lambda: patched(b"\xff\xc0", 4, 12), "12-bit"),
        (lambda: patched(b"\xff\xc0", 1, 0xC9), "arithmetic"),
        (lambda: patched(b"\xff\xc0", 1, 0xC3), "lossless"),
        (lambda: patched(b"\xff\xc0", 1, 0xC5), "hierarchical"),
        (
            lambda: encode(picture(8, 8)).replace(b"\xff\xc0\x00\x11\x08\x00\x08", b"\xff\xc0\x00\x11\x08\x00\x00"),
            "DNL",
        ),
        (lambda: patched(b"\xff\xc0", 11, 0x50), "sampling"),
        (lambda: patched(b"\xff\xc0", 11, 0x01), "sampling"),
        (lambda: patched(b"\xff\xc0", 13, 1), "not in the frame, or twice in the scan"),
        (lambda: patched(b"\xff\xc0", 12, 3), "no quantization table"),
        (lambda: patched(b"\xff\xc0", 11, 0x44), "more than 10 blocks"),
        (lambda: patched(b"\xff\xda", 6, 0x33), "not defined"),
        (lambda: patched(b"\xff\xda", 5, 9), "not in the frame"),
        (lambda: patched(b"\xff\xda", 4, 5), "impossible length"),
        (lambda: patched(b"\xff\xda", 12, 5), "parameters of a progressive"),
        (lambda: patched(b"\xff\xda", 12, 5, progressive=True), "impossible progressive"),
        (lambda: patched(b"\xff\xda", 13, 0x31, progressive=True), "impossible progressive"),
        (lambda: patched(b"\xff\xda", 13, 0x10, progressive=True), "does not follow"),
        (lambda: patched(b"\xff\xdb", 4, 7), "cannot be"),
        (lambda: encode(picture(8, 8)).replace(b"\xff\xc4\0\x1f\0\0\1\5", b"\xff\xc4\0\x1f\0\2\0\4"), "cannot be"),
        (lambda: patched(b"\xff\xc4", 20, 255), "longer than its segment"),
        (lambda: patched(b"\xff\xc4", 21, 16), "cannot be"),
        (lambda: patched(b"\xff\xc4", 4, 0x44), "cannot be"),
        (lambda: patched(b"\xff\xe0", 2, 0xFF), "longer than the file"),
        (lambda: patched(b"\xff\xe0", 3, 1), "a marker should be here, not the byte 4A; it follows 14 bytes behind"),
        (lambda: patched(b"\xff\xdb", 3, 1), "impossible length"),
        (lambda: encode(picture(8, 8))[:-2], "marker should be"),
        (lambda: encode(picture(8, 8))[:-2] + b"\x00\x00\x00\x00\xff\xd9", "left over"),
        (lambda: encode(picture(8, 8), progressive=True)[:-2], "marker should be"),
        (lambda: encode(picture(40, 24), restart_marker_blocks=1).replace(b"\xff\xd1", b"\xff\xd5"), "restart marker"),
    ],
)
def test_what_is_not_supported_or_damaged_says_so(data: Callable[[], bytes], message: str) -> None:
    with pytest.raises(JPEGError, match=message) as info:
        read_jpeg(data())
    assert re.match(r"JPEG data, byte \d+: ", str(info.value))


def test_errors_name_the_file_and_the_position(tmp_path: Path) -> None:
    good = encode(picture(60, 60))
    bad = good[: len(good) // 2]
    path = tmp_path / "bad.jpg"
    path.write_bytes(bad)
    with pytest.raises(JPEGError, match=re.escape(str(path))):
        read_jpeg(path)
    with pytest.raises(JPEGError, match=r"source\[2\], byte \d+: the data of a scan end too early"):
        read_jpeg([good, good, bad, good, bad], num_threads=3)
    with pytest.raises(JPEGError) as info:
        read_jpeg(bad)
    position = int(re.search(r"byte (\d+)", str(info.value))[1])  # type: ignore[index]
    assert position == len(bad)


def test_every_truncation_raises() -> None:
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        data = encode(picture(40, 24), **options)
        for size in range(len(data)):
            with pytest.raises(JPEGError):
                read_jpeg(data[:size])


def bomb(width: int, height: int, progressive: bool) -> bytes:
    data = bytearray(encode(picture(16, 16), progressive=progressive))
    position = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data[position : position + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_bombs(progressive: bool) -> None:
    with pytest.raises(JPEGError, match="max_pixels"):
        read_jpeg(bomb(65535, 65535, progressive))
    with pytest.raises(JPEGError, match="max_pixels"):
        read_jpeg(bomb(65535, 65535, progressive), strict=False)
    with pytest.raises(JPEGError, match="too few"):
        read_jpeg(bomb(65535, 65535, progressive), max_pixels=None)
    with pytest.raises(JPEGError, match="max_pixels=100,"):
        read_jpeg(encode(picture(11, 10)), max_pixels=100)
    assert MAX_IMAGE_PIXELS == 2 * Image.MAX_IMAGE_PIXELS  # where Pillow refuses, too
    # A tiny file of a large image is legitimate where the image is empty.
    empty = encode(Image.new("L", (2000, 2000), 128), progressive=progressive)
    assert len(empty) < 50000
    assert not read_jpeg(empty).planes[0].any()


def blocks_of(plane: torch.Tensor) -> torch.Tensor:
    return plane[0].flatten(0, 1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_truncated_files_are_read_up_to_the_damage(mode: str) -> None:
    data = encode(picture(80, 64, mode), quality=90, subsampling=0)
    whole = read_jpeg(data)
    total = len(whole.planes) * 80
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_jpeg(data, strict=False)
    losses = []
    start = data.index(b"\xff\xda")
    for size in range(start + 20, len(data) - 2, 97):
        with pytest.warns(JPEGWarning, match=r"byte \d+: .* blocks are missing") as record:
            part = read_jpeg(data[:size], strict=False)
        missing = record[0].message.num_missing  # type: ignore[union-attr]
        losses.append(missing)
        kept = (total - missing) // len(whole.planes)
        for ours, theirs in zip(part.planes, whole.planes, strict=True):
            assert torch.equal(blocks_of(ours)[:kept], blocks_of(theirs)[:kept])
            assert not blocks_of(ours)[kept + 1 :].any()  # the first one that is incomplete holds what there is
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.9 * total
    assert 0 < losses[-1] < 0.1 * total


def test_no_end_marker_loses_nothing() -> None:
    data = encode(picture(40, 24))
    with pytest.warns(JPEGWarning, match="; 0 of"):
        part = read_jpeg(data[:-2], strict=False)
    for ours, theirs in zip(part.planes, read_jpeg(data).planes, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("interval", [0, 2, 5])
def test_a_restart_marker_behind_the_last_interval_is_no_damage(interval: int, progressive: bool) -> None:
    """As libjpeg sees it, silently, whatever the marker's number; but nothing may follow it other than a marker."""
    plain = encode(picture(48, 32), restart_marker_blocks=interval, progressive=progressive)
    files = [plain[:-2] + bytes([0xFF, 0xD0 + number]) + plain[-2:] for number in range(8)]
    for plane in read_jpeg([plain, *files]).planes:
        assert plane[0].any()
        assert torch.equal(plane, plane[:1].expand_as(plane))
    with warnings.catch_warnings(action="error"):
        read_jpeg(files, strict=False)
    pixels = np.asarray(Image.open(io.BytesIO(plain)))
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels) for file in files)
    with pytest.raises(JPEGError, match="a marker should be here, not the byte 12"):
        read_jpeg(files[0][:-2] + b"\x12" + files[0][-2:])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=str)
def test_a_number_of_lines_where_the_frame_has_a_height_is_ignored(options: dict[str, Any]) -> None:
    """As libjpeg sees it, which skips all of them."""
    plain = encode(picture(48, 32), **options)
    same, other = with_lines(plain, 32), with_lines(plain, 40)
    pixels = np.asarray(Image.open(io.BytesIO(plain)))
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels) for file in (same, other))
    with warnings.catch_warnings(action="error"):
        survived = [read_jpeg(file, strict=strict) for file in (same, other) for strict in (True, False)]
    for first, *others in zip(*[file.planes for file in (read_jpeg(plain), *survived)], strict=True):
        assert first.any()
        assert all(torch.equal(first, plane) for plane in others)


@pytest.mark.parametrize("progressive", [False, True])
def test_restart_markers_resynchronise(progressive: bool) -> None:
    data = encode(picture(160, 64, "L"), quality=80, restart_marker_blocks=4, progressive=progressive)
    whole = blocks_of(read_jpeg(data).planes[0])
    start = data.index(b"\xff\xda") + 10
    end = data.index(b"\xff\xda", start) if progressive else len(data)
    marks = [i for i in range(start, end - 1) if data[i] == 0xFF and 0xD0 <= data[i + 1] < 0xD8]
    assert len(marks) == 160 // 4 - 1
    rng = random.Random(0)
    for segment in (1, 7, 8, 20, 37):
        first, last = marks[segment - 1] + 2, marks[segment]
        size = last - first
        damages = {
            "zeros": data[:first] + bytes(size) + data[last:],
            "ones": data[:first] + b"\xff" * size + data[last:],
            "noise": data[:first] + rng.randbytes(size) + data[last:],
            "cut": data[:first] + data[last:],
            "no marker": data[:last] + data[last + 2 :],
            "segment and marker gone": data[:first] + data[last + 2 :],
            "other marker": data[: last + 1] + bytes([0xD0 + (data[last + 1] + 4) % 8]) + data[last + 2 :],
            "stray marker": data[: first + 1] + b"\xff\xc4" + data[first + 3 :],
        }
        for name, damaged in damages.items():
            with warnings.catch_warnings(record=True) as record:
                warnings.simplefilter("always")
                part = blocks_of(read_jpeg(damaged, strict=False).planes[0])
            if not record:  # other bytes may happen to be other values, of just as many bits
                assert name in ("zeros", "noise")
                assert progressive
                continue
            # Nothing but the damaged segment, and the one behind a lost marker, may differ.
            equal = (part == whole).flatten(1).all(1)
            equal[4 * segment : 4 * segment + 8] = True
            assert equal.all(), (name, segment)
            assert isinstance(record[0].message, JPEGWarning)
            assert record[0].message.num_missing <= 8


def test_progressive_blocks_before_the_damage_are_exact() -> None:
    data = encode(picture(80, 64, "L"), progressive=True, quality=90)
    whole = blocks_of(read_jpeg(data).planes[0])
    scans = [match.start() for match in re.finditer(b"\xff\xda", data)]
    checked = 0
    for scan, behind in zip(scans, [*scans[1:], len(data)], strict=True):
        damaged = bytearray(data)
        middle = (scan + behind) // 2
        damaged[middle : middle + 6] = b"\x00\x00\x00\x00\x00\x00"
        try:
            read_jpeg(bytes(damaged))
        except JPEGError as error:
            reached = re.search(r"MCU (\d+) of", str(error))
            if not reached:
                continue
        else:
            continue
        with pytest.warns(JPEGWarning, match="incomplete"):
            part = blocks_of(read_jpeg(bytes(damaged), strict=False).planes[0])
        first = int((part == whole).flatten(1).all(1).int().argmin())
        assert first > 0
        checked += 1
    assert checked >= 2


def test_lost_scans_are_counted() -> None:
    data = encode(picture(80, 64), progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.warns(JPEGWarning, match="are missing or incomplete"):
        part = read_jpeg(data[:last], strict=False)
    whole = read_jpeg(data)
    assert torch.equal(part.planes[1], whole.planes[1])
    assert torch.equal(part.planes[2], whole.planes[2])
    assert not torch.equal(part.planes[0], whole.planes[0])
    # Of a batch, one damaged file warns and the others are whole.
    with pytest.warns(JPEGWarning, match=r"source\[1\]") as record:
        batch = read_jpeg([data, data[:last], data], strict=False, num_threads=2)
    assert len(record) == 1
    assert torch.equal(batch.planes[0][2], whole.planes[0][0])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    kind = rng.randrange(6)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(changed) if rng.random() < 0.5 else min(len(changed), 700))
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.randrange(256)
        elif kind == 2:
            del changed[max(place, 1) :]
        elif kind == 3:
            del changed[place : place + rng.randrange(1, 20)]
            changed += b"\xff"
        elif kind == 4:
            changed[place:place] = rng.randbytes(rng.randrange(1, 20))
        else:
            changed[place:place] = bytes([0xFF, rng.choice((0xD0, 0xD3, 0xD9, 0xC4, 0xDA, 0xC0, 0xFF, 0xDD, 0xDB))])
    return bytes(changed)


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def test_two_thousand_mutations_give_a_result_or_an_error(tmp_path: Path) -> None:
    kinds: list[dict[str, object]] = [
        {},
        {"subsampling": 0, "quality": 97},
        {"optimize": True, "subsampling": 1},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"progressive": True, "restart_marker_blocks": 3},
    ]
    seeds = [encode(picture(61, 45, mode), **options) for mode in ("L", "RGB", "CMYK") for options in kinds]
    coefficients = read_jpeg(seeds[7])  # written with more than ten blocks in an MCU: scans that are not interleaved
    seeds += write_jpeg(coefficients._replace(sampling=((4, 4),) * 3))
    seeds += [make(kind) for kind in KINDS]
    rng = random.Random(1)
    path = tmp_path / "file.jpg"
    before = open_files()
    results = errors = 0
    memory = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JPEGWarning)
        for i in range(2000):
            if i == 1000:  # by then all that is kept is there
                memory = resident_bytes()
            data = mutate(rng.choice(seeds), rng)
            path.write_bytes(data)
            for strict in (True, False):
                try:
                    read = read_jpeg(path if i % 2 else data, strict=strict, max_pixels=1 << 18)
                except JPEGError:
                    errors += 1
                else:
                    results += 1
                    assert 1 <= len(read.planes) <= 4
                    assert sum(plane.numel() for plane in read.planes) <= 4 * 64 * (1 << 18)
    assert results > 500
    assert errors > 500
    assert open_files() <= before
    assert resident_bytes() - memory < 16 << 20


# -- restart markers ---------------------------------------------------------------------------------------------------


def restart_markers(numbers: Sequence[int]) -> np.ndarray:
    """A file's end: restart markers of these numbers with a byte between them, and the end of the image."""
    data = b"".join(b"\xff" + bytes([0xD0 + number % 8, 7]) for number in numbers)
    return np.frombuffer(data + b"\xff\xd9" + bytes(8), np.uint8)


def resumed(numbers: Sequence[int], segment: int, num_segments: int) -> tuple[int, int]:
    """Which marker to go on behind, and with which segment, by counting all that are left each time."""
    for position, number in enumerate(numbers):
        ahead = (number - segment) % 8
        if ahead == 0 or len(numbers) - position == num_segments - 1 - segment:
            return position, segment + 1
        if ahead < 6:
            return position, segment + 1 + ahead
    return len(numbers), num_segments


def test_where_to_go_on_in_a_damaged_scan() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        num_segments = int(rng.integers(2, 40))
        numbers = [n % 8 for n in range(num_segments - 1)]
        for _ in range(rng.integers(0, 4)):
            place = int(rng.integers(0, len(numbers) + 1))
            numbers[place : place + int(rng.integers(0, 3))] = rng.integers(0, 8, rng.integers(0, 3)).tolist()
        data = restart_markers(numbers)
        at, left, position, segment = np.int64(0), np.int64(0), 0, 0
        while position < len(numbers) and segment < num_segments - 1:
            expected = resumed(numbers[position:], segment, num_segments)
            found = _jpeg_bits.resume(data, np.int64(3 * position), segment, num_segments, at, left)
            pos, segment, at, left = (int(value) for value in found)
            position += expected[0]
            assert segment == expected[1]
            assert pos == 3 * position + (2 if position < len(numbers) else 0)
            position += 1


@pytest.mark.parametrize("step", [0, 2, 3, 7])
def test_restart_markers_are_counted_once(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are numbered: the time for a hostile file stays in proportion to its size."""
    calls = 0

    def counted(data: np.ndarray, pos: int) -> int:
        nonlocal calls
        calls += 1
        return int(next_marker(data, pos))

    next_marker = _jpeg_bits.next_marker
    monkeypatch.setattr(_jpeg_bits, "next_marker", counted)
    monkeypatch.setattr(_jpeg_bits, "restarts", _jpeg_bits.restarts.py_func)
    numbers = [(7 + step * n) % 8 for n in range(500)]
    data = restart_markers(numbers)
    at, left, pos, segment = 0, 0, 0, 0
    while pos < data.size - 11 and segment < 10**6:
        marker = next_marker(data, pos)
        pos, segment, at, left = _jpeg_bits.resume.py_func(data, marker, segment, 10**6, at, left)
    assert 400 < calls < 4 * len(numbers)
