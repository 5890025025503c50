"""The 8x8 transform of JPEG and the layouts around it (Ehrlich and Davis, sec. 3.2: the maps B, D and Z of eq. 4-6).

Everything here is linear, differentiable and orthonormal: a block of pixels and its block of coefficients have the
same sum of squares, and the coefficient (0, 0) is eight times the mean of the block. Coefficients carry no level
shift and no quantization; these belong to files, not to the transform.

Erratum: eq. 22 of the paper gives the DC coefficient a factor of 1 / (2 sqrt(2 N)) for both axes together. With N = 8
that is 1 / 8, the right number, but the formula is right for no other N (two axes give 1 / N).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cdzoo.jpeg.geometry import DCT, ZIGZAG, num_blocks

__all__ = ["blockify", "dct2d", "dct_matrix", "idct2d", "unblockify", "unzigzag", "zigzag"]

_ZIGZAG = ZIGZAG.tolist()
_UNZIGZAG = sorted(range(64), key=lambda i: _ZIGZAG[i])


def dct_matrix(*, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Tensor:
    """The orthonormal DCT-II of length 8 as a matrix ``(8, 8)``: row = frequency, column = sample.

    Args:
        dtype: a floating-point type; the entries are rounded to it once, from double precision.
        device: where the matrix is put; PyTorch's default device if none is given.

    Returns:
        ``D`` with ``D @ D.T`` the identity; a block transforms as ``D @ x @ D.T`` (eq. 5).
    """
    return placed(_exact_matrix(), dtype, device)


def basis_matrix(*, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Tensor:
    """The 2-D basis as a matrix ``(64, 64)``: row = coefficient, column = pixel.

    One product with it replaces two passes of 8x8 products: four times the multiply-adds, but a single large matrix
    product without transposed copies, which is faster on every machine that has a matrix unit.
    """
    d = _exact_matrix()
    return placed(torch.kron(d, d), dtype, device)


def dct2d(x: Tensor) -> Tensor:
    """Orthonormal 2-D DCT-II of 8x8 blocks (eq. 5).

    Args:
        x: pixels ``(..., 8, 8)``, any floating-point dtype.

    Returns:
        coefficients ``(..., 8, 8)`` in natural order: rows are vertical frequencies.

    Raises:
        ValueError: the last two dimensions are not 8x8, or the dtype is not a floating-point one.

    >>> dct2d(torch.ones(2, 8, 8))[:, 0, 0]
    tensor([8., 8.])
    """
    _check_blocks(x, "dct2d")
    return torch.unflatten(x.flatten(-2) @ basis_matrix(dtype=x.dtype, device=x.device).T, -1, (8, 8))


def idct2d(c: Tensor) -> Tensor:
    """Inverse of :func:`dct2d`: coefficients ``(..., 8, 8)`` to pixels ``(..., 8, 8)``.

    Raises:
        ValueError: as :func:`dct2d`.
    """
    _check_blocks(c, "idct2d")
    return torch.unflatten(c.flatten(-2) @ basis_matrix(dtype=c.dtype, device=c.device), -1, (8, 8))


def blockify(x: Tensor) -> Tensor:
    """Cut planes into 8x8 blocks (the map B of eq. 4); incomplete blocks are filled with zeros.

    Args:
        x: ``(B, C, H, W)``, or any ``(..., H, W)``.

    Returns:
        ``(B, C, Hb, Wb, 8, 8)`` with ``Hb, Wb = ceil(H / 8), ceil(W / 8)``.

    Raises:
        ValueError: fewer than two dimensions.
    """
    if x.dim() < 2:
        raise ValueError(f"blockify takes planes (..., H, W), not a tensor of shape {tuple(x.shape)}")
    height, width = x.shape[-2:]
    if height % 8 or width % 8:
        x = F.pad(x, (0, -width % 8, 0, -height % 8))
    return torch.unflatten(torch.unflatten(x, -1, (-1, 8)), -3, (-1, 8)).transpose(-3, -2)


def unblockify(blocks: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
    """Inverse of :func:`blockify`.

    Args:
        blocks: ``(B, C, Hb, Wb, 8, 8)``, or any ``(..., Hb, Wb, 8, 8)``.
        image_size: ``(H, W)`` to crop to; ``None`` keeps every row and column of the blocks.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: the shape is not one of blocks, or ``image_size`` doesn't need exactly this many blocks.
    """
    if blocks.dim() < 4 or blocks.shape[-2:] != (8, 8):
        raise ValueError(f"unblockify takes blocks (..., Hb, Wb, 8, 8), not a tensor of shape {tuple(blocks.shape)}")
    check_image_size(blocks, image_size)
    x = blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2)
    return x if image_size is None else x[..., : image_size[0], : image_size[1]]


def zigzag(blocks: Tensor) -> Tensor:
    """Blocks ``(..., 8, 8)`` in natural order to vectors ``(..., 64)`` in JPEG's zigzag order (eq. 6).

    Raises:
        ValueError: the last two dimensions are not 8x8.
    """
    if blocks.dim() < 2 or blocks.shape[-2:] != (8, 8):
        raise ValueError(f"zigzag takes blocks (..., 8, 8), not a tensor of shape {tuple(blocks.shape)}")
    return blocks.flatten(-2)[..., _ZIGZAG]


def unzigzag(vectors: Tensor) -> Tensor:
    """Inverse of :func:`zigzag`: vectors ``(..., 64)`` to blocks ``(..., 8, 8)``.

    Raises:
        ValueError: the last dimension is not 64.
    """
    if vectors.dim() < 1 or vectors.shape[-1] != 64:
        raise ValueError(f"unzigzag takes vectors (..., 64), not a tensor of shape {tuple(vectors.shape)}")
    return torch.unflatten(vectors[..., _UNZIGZAG], -1, (8, 8))


def check_image_size(blocks: Tensor, image_size: tuple[int, int] | None) -> None:
    """Refuse an ``image_size`` that does not fill exactly the blocks ``(..., Hb, Wb, 8, 8)``; accept ``None``.

    Raises:
        ValueError: the image has another number of blocks, or a side below 1.
    """
    if image_size is None:
        return
    expected = (num_blocks(image_size[0]), num_blocks(image_size[1]))
    if min(image_size) < 1 or tuple(blocks.shape[-4:-2]) != expected:
        raise ValueError(
            f"an image of {image_size[0]}x{image_size[1]} pixels has {expected[0]}x{expected[1]} blocks, but the map "
            f"has {blocks.shape[-4]}x{blocks.shape[-3]}; give the size of the map in pixels, before padding to blocks"
        )


def image_mask(blocks: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Ones at the pixels ``(Hb, Wb, 8, 8)`` of the image, zeros beyond; dtype and device of ``blocks``."""
    check_image_size(blocks, image_size)
    return blockify(torch.ones(image_size, dtype=blocks.dtype, device=blocks.device))


def placed(constant: Tensor, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """A constant of any shape that was made on the CPU, moved to a device; by default to PyTorch's default device."""
    return constant.to(device=torch.get_default_device() if device is None else device, dtype=dtype)


def _exact_matrix() -> Tensor:
    return torch.tensor(DCT, dtype=torch.float64, device="cpu")  # whatever device is the default one


def _check_blocks(x: Tensor, name: str) -> None:
    if x.dim() < 2 or x.shape[-2:] != (8, 8):
        raise ValueError(f"{name} takes blocks (..., 8, 8), not a tensor of shape {tuple(x.shape)}; see blockify")
    if not x.is_floating_point():
        raise ValueError(f"{name} takes floating-point blocks, not {x.dtype}; convert them first, e.g. x.float()")
