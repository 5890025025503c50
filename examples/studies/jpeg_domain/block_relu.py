"""ASM and APX on pixels: the same numbers as on coefficients, for a network in its fused form.

The paper's approximated ReLUs look at the lowest frequencies of each 8x8 block. To keep those and drop the others is
DCT, mask, inverse DCT: one projection of the block's 64 pixels. So these layers, too, need no coefficients around them,
and the pairs of DCT and inverse DCT between all layers cancel as they do with the exact ReLU. The library's
``mode="factored"`` gives the same logits to rounding (``accuracy.py`` measures it), at two to three times the cost.

Rounding is not harmless in ASM, which is no continuous function: where the low frequencies of a pixel nearly cancel,
their last bit decides whether all of the pixel passes. Any two ways to compute it differ there.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cdzoo.models.jpeg_resnet import JPEGResNetSmall
from cdzoo.ops import dct_matrix, frequency_mask


class BlockReLU(nn.Module):
    """``asm_relu`` or ``apx_relu`` of the 8x8 blocks of ``(B, C, H, W)`` pixels, ``H`` and ``W`` multiples of 8.

    Args:
        kind: ``"asm"`` or ``"apx"``.
        num_frequencies: 1 to 15.
        dtype: in which the low frequencies are computed.
    """

    projection: Tensor

    def __init__(self, kind: str, num_frequencies: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if kind not in ("asm", "apx"):
            raise ValueError(f'kind={kind!r}: choose "asm" or "apx"')
        self.kind, self.num_frequencies = kind, num_frequencies
        d = dct_matrix()
        kept = torch.einsum("am,bn->abmn", d, d)[frequency_mask(num_frequencies)].flatten(1)
        self.register_buffer("projection", (kept.T @ kept).to(dtype), persistent=False)

    def low_frequencies(self, x: Tensor) -> Tensor:
        """Every block without its higher frequencies."""
        b, c, h, w = x.shape
        if h % 8 or w % 8:
            raise ValueError(f"maps of {h}x{w} are not made of whole 8x8 blocks; use the factored form")
        # channels last, so that the product runs over rows of channels
        x = x.permute(0, 2, 3, 1).reshape(b, h // 8, 8, w // 8, 8, c).transpose(2, 3).reshape(-1, 64, c)
        x = self.projection @ x
        return x.reshape(b, h // 8, w // 8, 8, 8, c).transpose(2, 3).reshape(b, h, w, c).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        if self.num_frequencies == 15:
            return x.relu()
        with torch.autocast(x.device.type, enabled=False):  # a sign that rounding decides is no approximation
            if self.kind == "apx":
                return self.low_frequencies(x.to(self.projection.dtype)).relu().to(x.dtype)
            with torch.no_grad():
                mask = self.low_frequencies(x.to(self.projection.dtype)) > 0
        return x * mask

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"kind={self.kind!r}, num_frequencies={self.num_frequencies}"


def approximated(model: JPEGResNetSmall, kind: str, num_frequencies: int) -> JPEGResNetSmall:
    """A copy of a fused network for files of multiples of 32 pixels, all of whose ReLUs are approximated."""
    model = copy.deepcopy(model)
    for block in (model.block1, model.block2, model.block3):
        block.relu = BlockReLU(kind, num_frequencies, dtype=model.fc.weight.dtype).to(model.fc.weight.device)
    return model
