"""ReLU on DCT blocks: Approximated Spatial Masking (ASM) and the simpler APX (Ehrlich and Davis, sec. 4.2).

Both use only the lowest ``num_frequencies`` spatial frequencies of a block. A spatial frequency is an anti-diagonal
``alpha + beta`` of the block, 0 to 14. So 1 to 15 frequencies are 1, 3, 6, 10, 15, 21, 28, 36, 43, 49, 54, 58, 61, 63
or all 64 coefficients. With all 15, both functions are the exact ReLU.

- ASM takes only the *sign* of each pixel from the low frequencies, and masks the exact block with it (eq. 18-19).
- APX takes the pixels themselves from the low frequencies: a plain ReLU of a blurred block.

Errata: sec. 4.2 keeps all "phi <= k", which for k frequencies numbered from 0 would be one too many; as in its
experiments, where 15 is exact, ``n`` frequencies are those below ``n``. Eq. 16 and 17 repeat the indices m and n in
both factors, but the sum over them takes place only once the mask G is multiplied in: H keeps them. Theorem 1 calls the
lowest frequencies the best to keep of any; that is so on average over photographs, and for a given block the best are
those of the largest coefficients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdzoo._checks import integer
from cdzoo.jpeg import dct

__all__ = ["APXReLU", "ASMReLU", "apx_relu", "asm_relu", "frequency_mask", "harmonic_mixing_tensor"]


def frequency_mask(num_frequencies: int, *, device: torch.device | str | None = None) -> Tensor:
    """A mask of the coefficients of the lowest ``num_frequencies`` spatial frequencies.

    Args:
        num_frequencies: 1 (DC only) to 15 (everything).
        device: where the mask is put.

    Returns:
        ``(8, 8)`` bool, true where ``alpha + beta < num_frequencies``.

    Raises:
        ValueError: ``num_frequencies`` is not an integer of 1 to 15.
    """
    check_num_frequencies(num_frequencies)
    index = torch.arange(8, device=device)
    return index[:, None] + index < num_frequencies


def harmonic_mixing_tensor(*, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    """The harmonic mixing tensor H of eq. 17: multiplies a block by a mask of pixels without leaving the DCT domain.

    Returns:
        ``(8, 8, 8, 8, 8, 8)``, indexed ``[alpha, beta, m, n, alpha', beta']``: frequencies of the block, pixels of
        the mask, frequencies of the masked block. ``einsum("ab,mn,abmncd->cd", block, mask, H)`` is the DCT of
        ``idct2d(block) * mask``. 262,144 numbers; quantized blocks need no other H (eq. 20 only scales its ends).
    """
    d = dct.dct_matrix(device="cpu")
    one_axis = torch.einsum("am,bm->amb", d, d)
    return dct.placed(torch.einsum("amc,bnd->abmncd", one_axis, one_axis), dtype, device)


def asm_relu(c: Tensor, num_frequencies: int = 15) -> Tensor:
    """ReLU by Approximated Spatial Masking (eq. 18-19).

    Args:
        c: coefficients ``(..., 8, 8)``, orthonormal.
        num_frequencies: 1 to 15 spatial frequencies that decide the sign of each pixel; 15 is the exact ReLU.

    Returns:
        coefficients ``(..., 8, 8)``. Pixels outside the image stay zero. The gradient treats the mask as a constant,
        as the gradient of a ReLU does.

    Raises:
        ValueError: ``num_frequencies`` outside 1 to 15; ``c`` isn't made of floating-point 8x8 blocks.
    """
    check_num_frequencies(num_frequencies)
    x = dct.idct2d(c)
    if num_frequencies == 15:
        return dct.dct2d(x.relu())
    with torch.no_grad():
        mask = dct.idct2d(c * frequency_mask(num_frequencies, device=c.device)) > 0
    return dct.dct2d(x * mask)


def apx_relu(c: Tensor, num_frequencies: int = 15, *, image_size: tuple[int, int] | None = None) -> Tensor:
    """ReLU of the approximation by the lowest ``num_frequencies`` spatial frequencies, the rival of ASM in sec. 5.3.

    Args:
        c: coefficients ``(..., 8, 8)``, orthonormal; with ``image_size``, a map ``(..., Hb, Wb, 8, 8)``.
        num_frequencies: 1 to 15; 15 is the exact ReLU.
        image_size: ``(H, W)`` where these are not multiples of 8: a block without its high frequencies rings, and
            what rings outside the image is set to zero again.

    Returns:
        coefficients of the shape of ``c``.

    Raises:
        ValueError: as :func:`asm_relu`; ``image_size`` doesn't fit the blocks.
    """
    check_num_frequencies(num_frequencies)
    if num_frequencies == 15:
        return dct.dct2d(dct.idct2d(c).relu())
    x = dct.idct2d(c * frequency_mask(num_frequencies, device=c.device)).relu()
    return dct.dct2d(x if image_size is None else x * dct.image_mask(x, image_size))


class _LowFrequencyReLU(nn.Module):
    def __init__(self, num_frequencies: int = 15) -> None:
        super().__init__()
        self.num_frequencies = check_num_frequencies(num_frequencies)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"num_frequencies={self.num_frequencies}"


class ASMReLU(_LowFrequencyReLU):
    """:func:`asm_relu` as a layer over coefficient maps ``(B, C, Hb, Wb, 8, 8)``."""

    def forward(self, c: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """``(..., 8, 8)`` to ``(..., 8, 8)``; a mask keeps zeros, so ``image_size`` makes no difference."""
        return asm_relu(c, self.num_frequencies)


class APXReLU(_LowFrequencyReLU):
    """:func:`apx_relu` as a layer over coefficient maps ``(B, C, Hb, Wb, 8, 8)``."""

    def forward(self, c: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """``(..., 8, 8)`` to ``(..., 8, 8)``."""
        return apx_relu(c, self.num_frequencies, image_size=image_size)


def check_num_frequencies(num_frequencies: int) -> int:
    """``num_frequencies``, as Python's integer; raises ``ValueError`` unless it is an integer of 1 to 15."""
    number = integer(num_frequencies)
    if number is None or not 1 <= number <= 15:
        raise ValueError(
            f"num_frequencies={num_frequencies!r}: an 8x8 block has spatial frequencies 0 to 14, "
            "so take an integer of 1 (DC only) to 15 (exact)"
        )
    return number
