"""The entropy coder against big-integer arithmetic, and against damaged streams."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import textwrap
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.fresh_process import FreshProcesses
from oracles.symbol_tables import make_symbols, make_tables, padded

from cdzoo.coding import rans
from cdzoo.coding.rans import encode_batch
from cdzoo.coding.tables import SymbolTables
from cdzoo.errors import BitstreamError

INT16 = np.iinfo(np.int16)
START = 1 << 31  # the coder's first state


def decode_batch(streams: Sequence[bytes], indexes: Any, tables: SymbolTables, **options: Any) -> np.ndarray:
    """The compiled decoder, after the one in plain Python has given the same symbols or the same error."""
    rans.load_kernels()
    with mock.patch.object(rans, "in_python", return_value=True):
        try:
            same = {name: copy.deepcopy(value) for name, value in options.items() if name != "then"}
            plain: Any = rans.decode_batch(streams, indexes, tables, **same)
        except BitstreamError as error:
            plain = str(error)
    if isinstance(plain, str):
        with pytest.raises(BitstreamError) as found:
            rans.decode_batch(streams, indexes, tables, **options)
        assert str(found.value) == plain
        raise found.value
    compiled = rans.decode_batch(streams, indexes, tables, **options)
    np.testing.assert_array_equal(compiled, plain)
    return compiled


# ---------------------------------------------------------------------------------------------------- the format


def put_all(steps: Sequence[tuple[int, int, int]]) -> bytes:
    """Textbook rANS in big integers: ``(start, count, bits)`` of a total ``2**bits`` each, in reading order."""
    x, words = START, []
    for start, count, bits in reversed(steps):
        if x >= (count << 63) >> bits:
            words.append(x % 2**32)
            x >>= 32
        x = (x // count << bits) + x % count + start
    words += [x >> 32, x % 2**32]
    return b"".join(word.to_bytes(4, "little") for word in reversed(words))


def nibbles(*values: int) -> list[tuple[int, int, int]]:
    return [(value, 1, 4) for value in values]


def steps_of(tables: SymbolTables, symbols: Sequence[int], indexes: Sequence[int]) -> list[tuple[int, int, int]]:
    steps = []
    for symbol, index in zip(symbols, indexes, strict=True):
        cdf = np.split(tables.cdfs, tables.starts[1:])[index].tolist()
        value, escape = int(symbol) - int(tables.offsets[index]), len(cdf) - 2
        place = value if 0 <= value < escape else escape
        steps.append((cdf[place], cdf[place + 1] - cdf[place], 16))
        if place == escape:
            raw = 2 * (value - escape) if value >= 0 else -2 * value - 1
            groups = [int(digit, 16) for digit in reversed(f"{raw:x}")] if raw else []
            steps += nibbles(len(groups), *groups)
    return steps


@pytest.mark.parametrize("k", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("outliers", [0.0, 0.3, 1.0])
def test_bytes_of_the_textbook(k: int, outliers: float) -> None:
    for seed in range(20):
        tables = make_tables(seed)
        symbols, indexes = make_symbols(seed, tables, 2, k, outliers=outliers)
        expected = [put_all(steps_of(tables, s, i)) for s, i in zip(symbols, indexes, strict=True)]
        assert encode_batch(symbols, indexes, tables) == expected
        np.testing.assert_array_equal(decode_batch(expected, indexes, tables), symbols)


def test_no_symbols_is_the_flushed_first_state() -> None:
    streams = encode_batch(np.empty((3, 0), np.int16), np.empty(0, np.uint8), make_tables(0))
    assert streams == [START.to_bytes(8, "little")] * 3
    assert decode_batch(streams, np.empty((3, 0), np.uint8), make_tables(0)).shape == (3, 0)


def test_no_streams() -> None:
    tables = make_tables(0)
    assert encode_batch(np.empty((0, 7), np.int16), np.zeros(7, np.uint8), tables) == []
    assert decode_batch([], np.zeros(7, np.uint8), tables).shape == (0, 7)


# ---------------------------------------------------------------------------------------------------- properties


@st.composite
def table_rows(draw: st.DrawFn) -> tuple[list[int], int]:
    inner = draw(st.lists(st.integers(1, 65535), min_size=1, max_size=40, unique=True))
    if draw(st.booleans()):  # a run of counts of 1, as in the tails of wide distributions, longer than a search bucket
        begin = draw(st.integers(1, 60000))
        inner = [*inner, *range(begin, begin + draw(st.integers(1, 600)))]
    return [0, *sorted(set(inner)), 65536], draw(st.sampled_from([0, -1, -300, 40, -32768, 32767, 65536, -65536]))


@st.composite
def batches(draw: st.DrawFn) -> tuple[SymbolTables, np.ndarray, np.ndarray]:
    rows = draw(st.lists(table_rows(), min_size=1, max_size=4))
    tables = SymbolTables.from_rows(*zip(*rows, strict=True))
    n, k = draw(st.integers(1, 3)), draw(st.integers(0, 30))
    seed, outliers = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.1, 1.0]))
    return tables, *make_symbols(seed, tables, n, k, outliers=outliers)


@given(batches())
@settings(max_examples=150)
def test_round_trip(batch: tuple[SymbolTables, np.ndarray, np.ndarray]) -> None:
    tables, symbols, indexes = batch
    streams = encode_batch(symbols, indexes, tables)
    np.testing.assert_array_equal(decode_batch(streams, indexes, tables), symbols)
    assert all(len(s) % 4 == 0 and len(s) >= 8 for s in streams)


@given(batches(), st.data())
@settings(max_examples=150)
def test_only_what_the_encoder_writes_is_accepted(
    batch: tuple[SymbolTables, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    tables, symbols, indexes = batch
    stream = bytearray(encode_batch(symbols[:1], indexes[:1], tables)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_batch([bytes(stream)], indexes[:1], tables)
    except BitstreamError:
        return
    assert encode_batch(decoded, indexes[:1], tables) == [bytes(stream)]


@given(st.binary(max_size=200), st.integers(0, 60))
@settings(max_examples=200)
def test_noise_is_refused_or_is_a_stream(noise: bytes, k: int) -> None:
    tables, indexes = make_tables(3), np.arange(k) % 5
    try:
        decoded = decode_batch([noise], indexes, tables)
    except BitstreamError:
        return
    assert encode_batch(decoded, indexes, tables) == [noise]


# ---------------------------------------------------------------------------------------------------- extremes


def test_the_longest_streams_fit_their_buffer() -> None:
    # An escape of count 1 is 16 bits, followed by 6 groups for the farthest symbols: 40 bits each.
    tables = SymbolTables([0, 65535, 65536], [0], [3], [65536])
    symbols = np.full((3, 5000), INT16.min, np.int16)
    streams = encode_batch(symbols, np.zeros(5000, np.uint8), tables)
    assert [len(s) for s in streams] == [5000 * 5 + 8] * 3
    np.testing.assert_array_equal(decode_batch(streams, np.zeros(5000, np.uint8), tables), symbols)


def test_the_largest_table() -> None:
    tables = SymbolTables(np.arange(65537), [0], [65537], [-32768])
    symbols = np.arange(INT16.min, INT16.max + 1, dtype=np.int16)[None]
    streams = encode_batch(symbols, np.zeros(65536, np.uint8), tables)
    np.testing.assert_array_equal(decode_batch(streams, np.zeros(65536, np.uint8), tables), symbols)


@pytest.mark.parametrize("offset", [-65536, -300, 0, 32767, 65536])
def test_every_int16_under_every_offset(offset: int) -> None:
    tables = SymbolTables([0, 1, 40000, 65535, 65536], [0], [5], [offset])
    symbols = np.arange(INT16.min, INT16.max + 1, dtype=np.int16).reshape(4, -1)
    indexes = np.zeros(symbols.shape[1], np.uint8)
    np.testing.assert_array_equal(decode_batch(encode_batch(symbols, indexes, tables), indexes, tables), symbols)


def test_states_that_just_overflow() -> None:
    # Half-table symbols double the state, so that it meets the bounds of both kinds of put (2**62, 2**59) exactly.
    tables = SymbolTables([0, 32768, 65536], [0], [3], [0])
    for k in range(100):
        symbols = [5, *[0] * k]
        expected = put_all(steps_of(tables, symbols, [0] * len(symbols)))
        assert encode_batch(np.array([symbols]), np.zeros(k + 1, np.uint8), tables) == [expected]
        assert decode_batch([expected], np.zeros(k + 1, np.uint8), tables).tolist() == [symbols]


def test_a_common_value_outside_int16_is_still_refused() -> None:
    tables = SymbolTables([0, 65535, 65536], [0], [3], [40000])
    stream = put_all([(0, 65535, 16)])
    with pytest.raises(BitstreamError, match=r"symbol 0 of 1 decodes to 40000, outside int16"):
        decode_batch([stream], np.zeros(1, np.uint8), tables)


# ---------------------------------------------------------------------------------------------------- damage

SMALL = SymbolTables([0, 100, 60000, 65000, 65536], [0], [5], [-1])  # -1, 0, 1, escape
ESCAPE = (65000, 536, 16)


@pytest.mark.parametrize(
    ("stream", "k", "reason"),
    [
        (b"", 1, r"it is 0 bytes long"),
        (b"\x00\x00\x00\x80", 1, r"it is 4 bytes long"),
        (put_all([]) + b"\x00", 0, r"it is 9 bytes long"),
        (bytes(8), 1, r"hold 0x0, which is not a coder state"),
        (b"\xff" * 8, 1, r"hold 0xffffffffffffffff, which is not a coder state"),
        (put_all([]), 3, r"the data run out at symbol 0 of 3"),
        (put_all([(0, 100, 16)] * 9)[:-4], 9, r"the data run out at symbol \d of 9"),
        (put_all([(0, 100, 16)]) + bytes(8), 1, r"2 words of 4 bytes are left over after the last of 1 symbols"),
        (put_all([(0, 100, 16)] * 3), 2, r"the last of 2 symbols leaves the state 0x[0-9a-f]+ in place of 0x80000000"),
        (put_all([ESCAPE, *nibbles(6)]), 1, r"symbol 0 of 1 claims 6 or more 4-bit groups"),
        (put_all([ESCAPE, *nibbles(*[15] * 400)]), 1, r"symbol 0 of 1 claims 15 or more"),
        (put_all([ESCAPE, *nibbles(1, 0)]), 1, r"symbol 0 of 1 is not in the shortest form"),
        (put_all([ESCAPE, *nibbles(4, 0, 0, 0, 15, 3)]), 1, r""),
        (put_all([ESCAPE, *nibbles(5, 15, 15, 15, 15, 15)]), 1, r"symbol 0 of 1 decodes to -524289, outside int16"),
    ],
)
def test_damage_is_named(stream: bytes, k: int, reason: str) -> None:
    with pytest.raises(BitstreamError, match=r"^stream 0 of 1: .*" + reason):
        decode_batch([stream], np.zeros(k, np.uint8), SMALL)


def test_first_bad_stream_of_a_batch_is_named() -> None:
    symbols, indexes = make_symbols(0, SMALL, 5, 40, outliers=0.2)
    streams = encode_batch(symbols, indexes, SMALL)
    streams[2] += bytes(4)
    streams[4] = b"\xff" * 8
    for threads in (1, 2, 5):
        with pytest.raises(BitstreamError, match=r"^stream 2 of 5: 1 words"):
            decode_batch(streams, indexes, SMALL, num_threads=threads)


def test_every_truncation_is_refused() -> None:
    tables = make_tables(7)
    symbols, indexes = make_symbols(7, tables, 1, 150, outliers=0.1)
    (stream,) = encode_batch(symbols, indexes, tables)
    for size in range(len(stream)):
        with pytest.raises(BitstreamError, match=r"stream 0 of 1"):
            decode_batch([stream[:size]], indexes, tables)
        with pytest.raises(BitstreamError, match=r"stream 0 of 1"):
            decode_batch([stream[size + 1 :]], indexes, tables)


# The groups of an escape are plain bits, and so are some of those that tell apart neighbors with a count of 1.
@pytest.mark.parametrize(("tables", "outliers", "share"), [(SMALL, 0.0, 0.99), (make_tables(8), 0.1, 0.5)])
def test_every_flipped_bit_is_refused_or_is_another_stream(tables: SymbolTables, outliers: float, share: float) -> None:
    symbols, indexes = make_symbols(8, tables, 1, 100, outliers=outliers)
    (stream,) = encode_batch(symbols, indexes, tables)
    refused = 0
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            decoded = decode_batch([bytes(damaged)], indexes, tables)
        except BitstreamError:
            refused += 1
        else:
            assert not np.array_equal(decoded, symbols)
            assert encode_batch(decoded, indexes, tables) == [bytes(damaged)]
    assert refused > share * 8 * len(stream)


# ---------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_nothing(threads: int) -> None:
    tables = make_tables(1)
    symbols, indexes = make_symbols(1, tables, 7, 90, outliers=0.1)
    streams = encode_batch(symbols, indexes, tables)
    assert encode_batch(symbols, indexes, tables, num_threads=threads) == streams
    np.testing.assert_array_equal(decode_batch(streams, indexes, tables, num_threads=threads), symbols)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_what_follows_a_stream_finds_it_decoded(threads: int) -> None:
    tables = make_tables(1)
    symbols, indexes = make_symbols(1, tables, 23, 90, outliers=0.1)
    out = np.full(symbols.shape, -1, np.int16)
    seen: list[tuple[int, bytes]] = []
    decode_batch(
        encode_batch(symbols, indexes, tables), indexes, tables, out=out, num_threads=threads,
        then=lambda i: seen.append((i, out[i].tobytes())),
    )  # fmt: skip
    assert sorted(seen) == [(i, row.astype(np.int16).tobytes()) for i, row in enumerate(symbols)]


def test_batches_larger_than_the_buffer_are_coded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = make_tables(1)
    symbols, indexes = make_symbols(1, tables, 7, 90, outliers=0.1)
    streams = encode_batch(symbols, indexes, tables)
    for words in (1, 200, 600):
        monkeypatch.setattr("cdzoo.coding.rans._SCRATCH_WORDS", words)
        assert encode_batch(symbols, indexes, tables) == streams


INDEX_TYPES: list[Callable[[np.ndarray], object]] = [
    lambda i: i.astype(np.uint8),
    lambda i: i.astype(np.uint16),
    lambda i: i.astype(np.int32),
    lambda i: torch.from_numpy(i),
    lambda i: torch.from_numpy(i).to(torch.uint8),
    lambda i: np.asfortranarray(i),
    lambda i: np.repeat(i, 2, axis=1)[:, ::2],
]


@pytest.mark.parametrize("convert", INDEX_TYPES)
def test_any_integer_type_and_layout(convert: Callable[[np.ndarray], object]) -> None:
    tables = make_tables(2)
    symbols, indexes = make_symbols(2, tables, 3, 50, outliers=0.1)
    streams = encode_batch(symbols, indexes, tables)
    assert encode_batch(symbols, convert(indexes), tables) == streams
    assert encode_batch(symbols.astype(np.int64), convert(indexes), tables) == streams
    assert encode_batch(torch.from_numpy(symbols), convert(indexes), tables) == streams
    assert encode_batch(np.asfortranarray(symbols), convert(indexes), tables) == streams
    np.testing.assert_array_equal(decode_batch(streams, convert(indexes), tables), symbols)
    views = [memoryview(b"x" + stream)[1:] for stream in streams]
    np.testing.assert_array_equal(decode_batch(views, convert(indexes), tables), symbols)


def test_read_only_arrays_do_not_compile_anew() -> None:
    from cdzoo.coding import _rans_kernels as _rans

    tables = make_tables(2)
    symbols, indexes = make_symbols(2, tables, 3, 50, outliers=0.1)
    symbols.flags.writeable = indexes.flags.writeable = False
    decode_batch(encode_batch(symbols, indexes.astype(np.uint16), tables), indexes, tables)
    assert len(_rans.encode_rows.signatures) == len(_rans.decode_rows.signatures) == 1


def test_one_row_of_indexes_serves_all() -> None:
    tables = make_tables(4)
    symbols, indexes = make_symbols(4, tables, 3, 50, outliers=0.1)
    streams = encode_batch(symbols, indexes[0], tables)
    assert streams == encode_batch(symbols, np.tile(indexes[0], (3, 1)), tables)
    np.testing.assert_array_equal(decode_batch(streams, indexes[0], tables), symbols)


def test_out() -> None:
    tables = make_tables(4)
    symbols, indexes = make_symbols(4, tables, 3, 50, outliers=0.1)
    streams = encode_batch(symbols, indexes, tables)
    array = np.zeros((3, 50), np.int16)
    assert decode_batch(streams, indexes, tables, out=array) is array
    np.testing.assert_array_equal(array, symbols)
    tensor = torch.zeros(3, 50, dtype=torch.int16)
    decode_batch(streams, indexes, tables, out=tensor)
    np.testing.assert_array_equal(tensor.numpy(), symbols)
    frozen = np.zeros((3, 50), np.int16)
    frozen.flags.writeable = False
    for wrong in (array[:2], array.astype(np.int32), np.zeros((50, 3), np.int16).T, frozen):
        with pytest.raises(ValueError, match=r"expected C-contiguous, writable int16 \(3, 50\)"):
            decode_batch(streams, indexes, tables, out=wrong)


@pytest.mark.parametrize(
    ("symbols", "indexes", "message"),
    [
        (np.array([[0, 40000]]), np.zeros(2, int), r"symbols\[0, 1\] is 40000; the coder takes int16"),
        (np.array([[-32769, 0]]), np.zeros(2, int), r"symbols\[0, 0\] is -32769"),
        (np.zeros((1, 2)), np.zeros(2, int), r"symbols is float64; expected integers"),
        (np.zeros(2, int), np.zeros(2, int), r"symbols has shape \(2,\); expected 2 dimensions"),
        (np.zeros((1, 2), int), np.array([0, 1]), r"indexes\[1\] is 1; there are 1 tables"),
        (np.zeros((1, 2), int), np.array([[-1, 0]]), r"indexes\[0, 0\] is -1; there are 1 tables"),
        (np.zeros((1, 2), int), np.zeros(2), r"indexes is float64; expected integers"),
        (np.zeros((1, 2), int), np.zeros((2, 2), int), r"indexes has shape \(2, 2\); expected \(1, 2\) or \(2,\)"),
        (np.zeros((1, 2), int), np.zeros(3, int), r"indexes has shape \(3,\)"),
        (np.zeros((1, 2), int), np.zeros((1, 1, 2), int), r"indexes has shape \(1, 1, 2\)"),
    ],
)
def test_arguments_are_checked(symbols: np.ndarray, indexes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_batch(symbols, indexes, SMALL)


def test_arguments_of_the_decoder_are_checked() -> None:
    stream = put_all([])
    with pytest.raises(ValueError, match=r"indexes\[1\] is 9; there are 1 tables"):
        decode_batch([stream], np.array([0, 9]), SMALL)
    with pytest.raises(ValueError, match=r"indexes has shape \(2, 0\)"):
        decode_batch([stream], np.zeros((2, 0), int), SMALL)
    with pytest.raises(ValueError, match=r"streams is a single bytes; put it into a list"):
        decode_batch(stream, np.zeros(0, int), SMALL)
    with pytest.raises(ValueError, match=r"num_threads=0"):
        decode_batch([stream], np.zeros(0, int), SMALL, num_threads=0)


# ---------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cdfs": [1, 9, 65536, 0, 9, 65536]}, r"first entries of cdfs\[0\] is 1; every table begins with 0"),
        ({"cdfs": [0, 9, 65536, 0, 9, 65535]}, r"last entries of cdfs\[1\] is 65535; every table ends with 65536"),
        ({"cdfs": [0, 0, 65536, 0, 9, 65536]}, r"cdfs\[0\] is 0; the entry after it has to be larger"),
        ({"cdfs": [0, 9, 65536, 0, 65537, 65536]}, r"cdfs\[4\] is 65537"),
        ({"cdfs": [0, 9, 65536, 0, 2**62, 65536]}, r"cdfs\[4\] is 4611686018427387904"),
        ({"cdfs": [0, -(2**63), 65536, 0, 9, 65536]}, r"cdfs\[0\] is 0"),
        ({"cdfs": [0, 9, 65536]}, r"cdfs has 3 entries; lengths add up to 6"),
        ({"cdfs": [0.0, 9.0, 65536.0]}, r"cdfs is float64"),
        ({"lengths": [2, 4]}, r"lengths\[0\] is 2"),
        ({"lengths": [3, -3]}, r"lengths\[1\] is -3"),
        ({"lengths": [3, 2**62]}, r"lengths\[1\] is 4611686018427387904"),
        ({"lengths": [3]}, r"1 lengths, 2 starts and 2 offsets"),
        ({"starts": [0, 2]}, r"starts\[1\] is 2; tables follow one another"),
        ({"starts": [0, 2**32 + 3]}, r"starts\[1\] is 4294967299"),
        ({"offsets": [0, 65537]}, r"offsets\[1\] is 65537"),
        ({"offsets": [-(2**63), 0]}, r"offsets\[0\] is -9223372036854775808"),
        ({"offsets": np.array([2**64 - 1, 0], np.uint64)}, r"offsets is uint64"),
        ({"offsets": [[0, 0]]}, r"offsets has shape \(1, 2\)"),
        ({"extra": [0]}, r"has the entries \['cdfs', 'extra'"),
        ({key: np.zeros(0, int) for key in ("cdfs", "starts", "lengths", "offsets")}, r"0 lengths"),
    ],
)
def test_invalid_tables_are_refused(change: dict[str, object], message: str) -> None:
    good = {"cdfs": [0, 9, 65536] * 2, "starts": [0, 3], "lengths": [3, 3], "offsets": [0, -1]}
    assert SymbolTables.from_state({k: np.array(v) for k, v in good.items()}).num_tables == 2
    with pytest.raises(ValueError, match=message):
        SymbolTables.from_state({k: np.asarray(v) for k, v in {**good, **change}.items()})


def test_padded_tables() -> None:
    tables = make_tables(5)
    cdfs, lengths, offsets = padded(tables)
    for kind in (np.array, torch.tensor):
        other = SymbolTables.from_padded(kind(cdfs), kind(lengths), kind(offsets))
        for name, array in tables.state().items():
            np.testing.assert_array_equal(other.state()[name], array)
    with pytest.raises(ValueError, match=r"cdf_length\[0\] is 99; the rows of quantized_cdf hold 3"):
        SymbolTables.from_padded(np.array([[0, 9, 65536]]), np.array([99]), np.array([0]))
    with pytest.raises(ValueError, match=r"1 rows and cdf_length has 2"):
        SymbolTables.from_padded(np.array([[0, 9, 65536]]), np.array([3, 3]), np.array([0]))
    with pytest.raises(ValueError, match=r"lengths\[0\] is -2"):
        SymbolTables.from_padded(np.array([[0, 9, 65536]]), np.array([-2]), np.array([0]))


def test_state_goes_round() -> None:
    tables = make_tables(6)
    symbols, indexes = make_symbols(6, tables, 2, 40, outliers=0.1)
    streams = encode_batch(symbols, indexes, tables)
    state = tables.state()
    assert {name: array.dtype for name, array in state.items()} == dict.fromkeys(state, np.dtype(np.int32))
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    for other in (SymbolTables.from_state(state), SymbolTables.from_state(tensors), pickle.loads(pickle.dumps(tables))):
        assert encode_batch(symbols, indexes, other) == streams


def test_tables_are_immutable() -> None:
    source = np.array([0, 9, 65536])
    tables = SymbolTables(source, [0], [3], [0])
    source[1] = 0
    tables.state()["cdfs"][1] = 0
    assert tables.cdfs.tolist() == [0, 9, 65536]
    with pytest.raises(ValueError, match="read-only"):
        tables.cdfs[1] = 0
    with pytest.raises(AttributeError):
        tables.cdfs = source  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------- process


def test_many_small_streams_load_the_compiled_loops_in_the_end(fresh: FreshProcesses) -> None:
    code = """
        import sys
        import numpy as np
        from cdzoo.coding import rans
        from cdzoo.coding.tables import SymbolTables
        tables = SymbolTables(*map(np.array, ([0, 65535, 65536], [0], [3], [0])))
        stream = (1 << 31).to_bytes(8, "little")
        loaded = []
        for k in (0, 400_001, 0):
            try:
                rans.decode_batch([stream], np.zeros(k, np.uint16), tables)
            except rans.BitstreamError:
                pass
            loaded.append("numba" in sys.modules)
        print(loaded)
    """
    result = fresh(textwrap.dedent(code))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[False, True, True]\n"


def test_numba_is_imported_on_first_use(fresh: FreshProcesses) -> None:
    code = "import sys, cdzoo.coding.rans; print({'numba', 'compressai'} & set(sys.modules))"
    assert fresh(code).stdout == "set()\n"


def _round_trip(tables: SymbolTables, symbols: np.ndarray, indexes: np.ndarray) -> None:
    streams = encode_batch(symbols, indexes, tables, num_threads=2)
    np.testing.assert_array_equal(decode_batch(streams, indexes, tables, num_threads=2), symbols)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_can_use_threads_too() -> None:
    tables = make_tables(1)
    arguments = (tables, *make_symbols(1, tables, 4, 90, outliers=0.1))
    _round_trip(*arguments)
    child = multiprocessing.get_context("fork").Process(target=_round_trip, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == 0
