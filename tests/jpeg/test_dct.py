"""The block transform against SciPy's, and the layouts around it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdzoo.jpeg.dct import blockify, dct2d, dct_matrix, idct2d, unblockify, unzigzag, zigzag

# ITU-T T.81, figure A.6: the zigzag index of each coefficient.
ZIGZAG = [
    [0, 1, 5, 6, 14, 15, 27, 28],
    [2, 4, 7, 13, 16, 26, 29, 42],
    [3, 8, 12, 17, 25, 30, 41, 43],
    [9, 11, 18, 24, 31, 40, 44, 53],
    [10, 19, 23, 32, 39, 45, 52, 54],
    [20, 22, 33, 38, 46, 51, 55, 60],
    [21, 34, 37, 47, 50, 56, 59, 61],
    [35, 36, 48, 49, 57, 58, 62, 63],
]


def blocks(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_dct_is_scipys_orthonormal_dct() -> None:
    fft = pytest.importorskip("scipy.fft")
    x = blocks(3, 2, 8, 8)
    expected = torch.from_numpy(fft.dctn(x.numpy(), type=2, norm="ortho", axes=(-2, -1)))
    torch.testing.assert_close(dct2d(x), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(idct2d(expected), x, rtol=0, atol=1e-14)


def test_dct_matrix_is_orthonormal() -> None:
    d = dct_matrix()
    torch.testing.assert_close(d @ d.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-15)


def test_dc_is_eight_times_the_mean() -> None:
    x = blocks(5, 8, 8)
    torch.testing.assert_close(dct2d(x)[:, 0, 0], 8 * x.mean((-2, -1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.float16, 0.02), (torch.bfloat16, 0.15)]
)
def test_round_trip_keeps_the_dtype(dtype: torch.dtype, atol: float) -> None:
    x = blocks(4, 8, 8, dtype=dtype)
    y = idct2d(dct2d(x))
    assert y.dtype == dtype
    torch.testing.assert_close(y, x, rtol=0, atol=atol)


def test_gradients() -> None:
    x = blocks(2, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(dct2d, x)
    assert torch.autograd.gradcheck(idct2d, x)


@settings(max_examples=40)
@given(height=st.integers(1, 33), width=st.integers(1, 33), lead=st.sampled_from([(), (2,), (2, 3)]))
def test_blockify_pads_with_zeros_and_unblockify_crops(height: int, width: int, lead: tuple[int, ...]) -> None:
    x = blocks(*lead, height, width)
    cut = blockify(x)
    assert cut.shape == (*lead, -(-height // 8), -(-width // 8), 8, 8)
    assert torch.equal(unblockify(cut, (height, width)), x)
    whole = unblockify(cut)
    assert not whole[..., height:, :].any()
    assert not whole[..., :, width:].any()


def test_blockify_puts_each_pixel_where_eq_4_says() -> None:
    x = torch.arange(16 * 24.0).view(1, 1, 16, 24)
    cut = blockify(x)
    for h, w in itertools.product((0, 7, 8, 15), (0, 7, 8, 23)):
        assert cut[0, 0, h // 8, w // 8, h % 8, w % 8] == x[0, 0, h, w]


def test_zigzag_follows_the_standard() -> None:
    order = torch.tensor(ZIGZAG)
    assert torch.equal(zigzag(order), torch.arange(64))
    assert torch.equal(unzigzag(torch.arange(64)), order)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dct2d(torch.zeros(2, 64)), r"blocks \(\.\.\., 8, 8\).*\(2, 64\)"),
        (lambda: idct2d(torch.zeros(8, 8, dtype=torch.int16)), "torch.int16"),
        (lambda: blockify(torch.zeros(8)), r"planes.*\(8,\)"),
        (lambda: unblockify(torch.zeros(8, 8)), r"Hb, Wb, 8, 8"),
        (lambda: unblockify(torch.zeros(2, 2, 8, 8), (17, 16)), "17x16 pixels has 3x2 blocks.*2x2"),
        (lambda: zigzag(torch.zeros(64)), r"\(64,\)"),
        (lambda: unzigzag(torch.zeros(8, 8)), r"\(8, 8\)"),
    ],
)
def test_errors_name_the_shape(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
