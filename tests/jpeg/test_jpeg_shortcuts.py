"""The quick ways of read_jpeg: headers that are known already, files in one go, threads. None may change a result."""

from __future__ import annotations

import itertools
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from oracles.equality import same
from oracles.jpeg_files import encode, picture
from test_jpeg_damage import mutate
from test_jpeg_reader import KINDS, SAMPLINGS, random_coefficients

from cdzoo import _threads
from cdzoo.errors import JPEGError
from cdzoo.jpeg import _reader as _jpeg_reader
from cdzoo.jpeg import header as _jpeg_header
from cdzoo.jpeg.files import JPEGWarning, read_jpeg, write_jpeg
from cdzoo.jpeg.kernels import plan as _jpeg_plan
from cdzoo.types import JPEGCoefficients

CACHES = (_jpeg_header._parse, _jpeg_plan._make_plan, _jpeg_plan.make_tables, _jpeg_plan.frame_fields)


def forget() -> None:
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    forget()
    yield
    forget()


def outcome(data: bytes, **options: object) -> object:
    """All that reading a file gives: integers, or the error, and warnings."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always", JPEGWarning)
        try:
            read = read_jpeg(data, **options)  # type: ignore[arg-type]
        except JPEGError as error:
            return str(error)
    arrays = [tensor.numpy().tobytes() for tensor in (*read.planes, read.qtables)]
    return arrays, read[2:], [str(warning.message) for warning in record]


def end_of_header(data: bytes) -> int:
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")


def coefficients(i: int) -> JPEGCoefficients:
    return random_coefficients(SAMPLINGS[i], (50, 75), "ycbcr" if len(SAMPLINGS[i]) == 3 else "cmyk")


FILES: dict[str, Callable[[], bytes]] = {
    **{kind: lambda options=options: encode(picture(53, 41), **options) for kind, options in KINDS.items()},
    "gray": lambda: encode(picture(53, 41, "L")),
    "cmyk progressive": lambda: encode(picture(53, 41, "CMYK"), progressive=True),
    **{f"sampling {i}": lambda i=i: write_jpeg(coefficients(i))[0] for i in range(len(SAMPLINGS))},
}


@pytest.mark.parametrize("kind", FILES)
def test_one_go_and_scan_by_scan_agree(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES[kind]()
    with monkeypatch.context() as context:
        if kind not in ("sampling 8", "sampling 9"):  # sequential, and yet with tables between scans
            context.delattr(_jpeg_reader.JPEGFile, "decode")  # a file in order needs no second reading
        quick = read_jpeg(data)
        lenient = read_jpeg(data, strict=False)
    with monkeypatch.context() as context:
        context.setattr(_jpeg_reader, "make_plan", lambda opening: None)
        thorough = read_jpeg(data)
    assert same(quick, thorough)
    assert same(lenient, thorough)


def test_what_one_go_leaves_to_others_is_read() -> None:
    """Between scans: comments, application data, tables and intervals anew, fill bytes; behind the image, anything."""
    progressive = encode(picture(53, 41), progressive=True)
    plain = read_jpeg(progressive)
    scan = progressive.index(b"\xff\xc4", end_of_header(progressive))
    between = {
        "comment": b"\xff\xfe\x00\x05abc",
        "application": b"\xff\xe5\x00\x04xy",
        "quantization": b"\xff\xdb\x00\x43\x03" + bytes([7]) * 64,
        "interval": b"\xff\xdd\x00\x04\x00\x00",
        "fill": b"\xff\xff\xff",
        "no table": b"\xff\xc4\x00\x02",
    }
    for name, extra in between.items():
        assert same(read_jpeg(progressive[:scan] + extra + progressive[scan:]), plain), name
    assert same(read_jpeg(progressive + b"anything"), plain)
    (data,) = write_jpeg(coefficients(8))
    second = data.index(b"\xff\xda", end_of_header(data))
    assert same(read_jpeg(data[:second] + between["comment"] + data[second:]), read_jpeg(data))


def test_a_known_header_does_not_stand_for_the_scans() -> None:
    files = [encode(picture(53, 41, seed=seed), quality=80) for seed in range(4)]
    assert len({data[: end_of_header(data)] for data in files}) == 1
    fresh = []
    for data in files:
        forget()
        fresh.append(outcome(data))
    assert len({str(result) for result in fresh}) == 4
    forget()
    for _ in range(2):
        assert [outcome(data) for data in files] == fresh
    assert _jpeg_header._parse.cache_info()[:2] == (7, 1)
    assert same(read_jpeg(files), read_jpeg(files, num_threads=3))


def test_every_byte_of_a_header_counts() -> None:
    """Any header with one byte changed, after the true one has been seen: as if it were the first file ever."""
    rng = random.Random(0)
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}):
        data = encode(picture(24, 17), **options)
        for position in range(end_of_header(data)):
            changed = bytearray(data)
            changed[position] ^= 1 << rng.randrange(8)
            strict = bool(position % 2)
            forget()
            expected = outcome(bytes(changed), strict=strict, max_pixels=1 << 16)
            read_jpeg(data)
            assert outcome(bytes(changed), strict=strict, max_pixels=1 << 16) == expected
            assert outcome(bytes(changed), strict=strict, max_pixels=1 << 16) == expected


def test_nothing_is_left_of_the_file_before() -> None:
    """Damaged and sound files in turn, of one header or not, strict or not, against each of them alone."""
    rng = random.Random(3)
    sound = [
        encode(picture(45, 33, seed=seed), **options)
        for seed in range(2)
        for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True})
    ]
    files = list(sound)
    for data in sound:
        for _ in range(6):
            damaged = bytearray(data)
            for _ in range(3):
                damaged[rng.randrange(end_of_header(data), len(data))] = rng.randrange(256)
            files.append(bytes(damaged))
    alone: dict[tuple[bytes, bool], object] = {}
    for data, strict in itertools.product(files, (True, False)):
        forget()
        alone[data, strict] = outcome(data, strict=strict)
    assert sum(isinstance(result, str) for result in alone.values()) > 20
    forget()
    order = list(alone) * 2
    rng.shuffle(order)
    for data, strict in order:
        assert outcome(data, strict=strict) == alone[data, strict]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_nothing_is_left_of_the_file_before_in_one_go(options: dict[str, object]) -> None:
    data = encode(picture(45, 33), **options)
    alone = read_jpeg(data)
    batch = read_jpeg([data] * 3)
    for ours, theirs in zip((*batch.planes, batch.qtables), (*alone.planes, alone.qtables), strict=True):
        assert all(torch.equal(one, theirs[0]) for one in ours)


def test_tables_and_scans_of_the_file_before_are_gone() -> None:
    """Two scans of DC and of low frequencies, and the same file without the table, or the scan, that comes second."""
    data = encode(picture(45, 33, "L"), progressive=True)
    table = data.index(b"\xff\xc4", end_of_header(data))
    scan = data.index(b"\xff\xda", table)
    end = data.index(b"\xff\xc4", scan)
    whole = data[:end] + b"\xff\xd9"
    low = read_jpeg([whole] * 2).planes[0].flatten(3)
    assert low[..., 1].any()
    with pytest.raises(JPEGError, match=r"source\[1\].*AC Huffman table 0, which is not defined"):
        read_jpeg([whole, data[:table] + data[scan:end] + b"\xff\xd9"])
    flat = read_jpeg([whole, data[:table] + b"\xff\xd9"]).planes[0].flatten(3)
    assert not flat[1, ..., 1:].any()
    twice = data[:end] + data[scan:end] + b"\xff\xd9"
    with pytest.raises(JPEGError, match=r"source\[1\].*does not follow"):
        read_jpeg([whole, twice])


def test_complaints_about_a_header_are_not_forgotten() -> None:
    data = bytearray(encode(picture(24, 17)))
    data[end_of_header(bytes(data)) - 2] = 5  # Se
    for _ in range(2):
        with pytest.warns(JPEGWarning, match="parameters of a progressive"):
            read_jpeg(bytes(data), strict=False)
        with pytest.raises(JPEGError, match="parameters of a progressive"):
            read_jpeg(bytes(data))
    file = _jpeg_reader.JPEGFile(bytes(data), "", strict=False, max_pixels=None)
    assert _jpeg_plan.make_plan(file.opening) is None


def test_results_share_no_memory() -> None:
    data = encode(picture(24, 17))
    first = read_jpeg(data)
    expected = [tensor.clone() for tensor in (*first.planes, first.qtables)]
    for tensor in (*first.planes, first.qtables):
        tensor.fill_(-1)
    again = read_jpeg(data)
    for tensor, before in zip((*again.planes, again.qtables), expected, strict=True):
        assert torch.equal(tensor, before)


def test_a_marker_inside_a_segment_is_none() -> None:
    data = encode(picture(24, 17))
    plain = read_jpeg(data)
    for thumbnail in (b"\xff\xda", b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00", data[:-9]):
        extra = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
        for _ in range(2):
            assert same(read_jpeg(data[:2] + extra + data[2:]), plain)
    bad = data[:2] + extra + data[2:-20]
    with pytest.raises(JPEGError, match=f"byte {len(bad)}: "):
        read_jpeg(bad)


def test_caches_are_bounded() -> None:
    data = encode(picture(8, 8, "L"))
    plain = read_jpeg(data)
    rng = random.Random(0)
    for i in range(400):
        comment = b"\xff\xfe\x00\x0c" + rng.randbytes(10).replace(b"\xff", b"\xfe")
        assert same(read_jpeg(data[:2] + comment + data[2:]), plain)
        read_jpeg(encode(picture(8 + i % 20, 8 + i // 20, "L"), quality=40, optimize=True))
    for cached in CACHES:
        info = cached.cache_info()
        assert info.maxsize is not None
        assert info.currsize <= info.maxsize <= 256
    forget()
    read_jpeg(data[:2] + b"\xff\xe2\x20\x00" + bytes(0x1FFE) + data[2:])
    assert _jpeg_header._parse.cache_info().currsize == 0  # long headers are not kept


def test_threads_with_and_without_known_headers() -> None:
    files = [
        encode(picture(61, 45, seed=i), quality=30 + 20 * (i % 3), progressive=i % 4 == 3, optimize=i % 5 == 4)
        for i in range(20)
    ]
    expected = [outcome(data) for data in files]
    batch = read_jpeg(files, num_threads=1)
    forget()
    failures: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for turn in range(30):
            if turn % 5 == 0:
                forget()
            i = rng.randrange(len(files))
            if outcome(files[i]) != expected[i]:
                failures.append((seed, i))
            if turn % 10 == seed % 10:
                assert same(read_jpeg(files, num_threads=3), batch)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_pieces_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = [
        _jpeg_plan.make_plan(_jpeg_reader.JPEGFile(data, "", strict=True, max_pixels=None).opening)
        for data in (encode(picture(9, 9)), encode(picture(9, 9), progressive=True))
    ]
    cut = _jpeg_reader._cut
    assert cut([10] * 5, [a, a, b, b, a], 1) == [(0, 2), (2, 4), (4, 5)]
    assert cut([10] * 3, [None, None, a], 1) == [(0, 1), (1, 2), (2, 3)]
    assert cut([10], [a], 4) == [(0, 1)]
    for threads, sizes in ((2, [20000] * 32), (3, [50] * 7), (1, [1 << 21] * 4), (5, [300000] * 9)):
        pieces = cut(sizes, [a] * len(sizes), threads)
        assert [i for first, last in pieces for i in range(first, last)] == list(range(len(sizes)))
        if sum(sizes) > 1 << 20:
            assert len(pieces) >= threads
    # Cut anywhere, with damage anywhere, a batch is what its files are.
    files = [encode(picture(45, 33, seed=i), quality=50 + 10 * (i % 2)) for i in range(12)]
    bad = [data if i not in (4, 9) else data[:-40] for i, data in enumerate(files)]
    whole = read_jpeg(files)
    monkeypatch.setattr(_jpeg_reader, "_FEWEST_BYTES", 1)
    for threads in (1, 2, 5):
        assert same(read_jpeg(files, num_threads=threads), whole)
        with pytest.raises(JPEGError, match=r"source\[4\]"):
            read_jpeg(bad, num_threads=threads)
        with pytest.warns(JPEGWarning) as record:
            part = read_jpeg(bad, num_threads=threads, strict=False)
        assert [str(warning.message)[:9] for warning in record] == ["source[4]", "source[9]"]
        for i in (0, 3, 5, 8, 11):
            assert torch.equal(part.planes[0][i], whole.planes[0][i])


@pytest.mark.parametrize("options", [*list(KINDS.values())[::2], {"progressive": True, "restart_marker_blocks": 5}])
def test_everything_inside_the_planes_is_written_and_nothing_beside(options: dict[str, object]) -> None:
    """Planes full of rubbish, with guards around them, and files that want more blocks, runs, bits than there are."""
    rng = random.Random(5)
    guard, rubbish = 4096, 21845
    data = encode(picture(53, 41), **options)
    shapes = [plane.shape for plane in read_jpeg(data).planes]
    sizes = [shape.numel() for shape in shapes]
    room = torch.empty(sum(sizes) + guard * (len(sizes) + 1), dtype=torch.int16)
    inside = torch.zeros(room.shape, dtype=torch.bool)
    planes = []
    position = guard
    for shape, size in zip(shapes, sizes, strict=True):
        inside[position : position + size] = True
        planes.append(room[position : position + size].view(shape))
        position += size + guard
    out = JPEGCoefficients(tuple(planes), torch.zeros((1, 3, 8, 8), dtype=torch.int32), ((1, 1),) * 3, (0, 0), "")
    start = end_of_header(data)
    for i in range(120):
        changed = data[:start] + mutate(data[start:], rng) if i > 0 else data
        for strict in (True, False):
            room.fill_(rubbish)
            assert outcome(changed, strict=strict, out=out) == outcome(changed, strict=strict)
            assert (room[~inside] == rubbish).all(), i


def test_for_each_raises_the_first_error_and_works_in_nested_threads() -> None:
    def work(i: int) -> int:
        if i in (3, 6):
            raise ValueError(str(i))
        return i * i

    def nested(i: int, threads: int) -> int:
        return sum(_threads.for_each(lambda j: i * j, 5, threads))

    for threads in (1, 2, 4):
        assert _threads.for_each(lambda i: i * i, 10, threads) == [i * i for i in range(10)]
        assert _threads.for_each(work, 0, threads) == []
        with pytest.raises(ValueError, match="3"):
            _threads.for_each(work, 10, threads)
        assert _threads.for_each(partial(nested, threads=threads), 8, threads) == [10 * i for i in range(8)]
