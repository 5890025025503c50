"""The compressive autoencoder of Torfason et al. (ICLR 2018), with few scalar levels per latent value.

Source: "Towards image understanding from deep compression without decoding", section 3.1 and appendix A.1; the network
is that of Theis et al. (ICLR 2017) with stride 8, the quantiser that of :mod:`cdzoo.ops.quantizer`.

    x ──► normalise ──► g_a ──y──► nearest of L centres ──► y_hat ──► networks
                                                              └────► g_s ──► denormalise ──► x_hat  (for the eye only)

    g_a: 5x5/2 to 64 ─ 5x5/2 to 128 ─ 3 x R ─ 5x5/2 to M          R: 3x3 ─ ReLU ─ 3x3, added to its input
    g_s: the mirror image of g_a, with transposed convolutions    Batch norm behind every convolution, ReLU between them

At 224x224 with 32 channels the encoder takes 3.557 G multiply-adds, the paper's 3.56. The decoder mirrors it and takes
as many; the paper's 2.85 is not what a mirror takes, and it does not say what else the decoder is.

What the paper leaves open: the number of levels (``levels``, 6), the images' normalisation (per channel, on the scale 0
to 255, with the constants below), and how the symbols are coded. Here every channel has a table, measured by
``codec.calibrate(images)``: over images like those, streams take no more than ``H C / 64`` bits per pixel on average,
``H`` bits per symbol, and their headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdzoo._checks import check_size
from cdzoo.coding.calibrated import CalibratedCodec, CalibratedState, gaussian_weights
from cdzoo.errors import BitstreamError
from cdzoo.ops.quantizer import SoftToHardQuantizer, nearest_center
from cdzoo.weights.enums import Weights, WeightsEnum, WeightsLike
from cdzoo.zoo import register_codec

__all__ = ["Torfason2018_Weights", "TorfasonCodec", "torfason2018"]

MEAN, VARIANCE = (121.854, 113.589, 100.637), (4746.38, 4454.14, 4812.23)
"""Of red, green and blue on the scale 0 to 255."""

STD = tuple(torch.tensor(VARIANCE, dtype=torch.float32, device="cpu").sqrt().tolist())

_MAX_LEVELS = torch.iinfo(torch.int16).max


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with batch norm, a ReLU between them, added to the input: ``(B, C, h, w)`` to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """``x + body(x)``."""
        output: Tensor = x + self.body(x)
        return output


def _down(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 5, stride=2, padding=2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def _up(in_channels: int, out_channels: int) -> list[nn.Module]:
    deconv = nn.ConvTranspose2d(in_channels, out_channels, 5, stride=2, padding=2, output_padding=1, bias=False)
    return [deconv, nn.BatchNorm2d(out_channels)]


class TorfasonCodec(CalibratedCodec):
    """``torfason2018``: stride 8, ``levels`` values shared by all channels.

    The forward pass quantises hard in either mode, and lets gradients pass softly. The loss of the paper's equation 1::

        output, y = codec.forward_with_y(x)
        entropy = codec.quantizer.entropy(y)
        loss = cdzoo.ops.target_rate_distortion_loss(output, x, entropy, beta=150, target_entropy=1.265).loss

    Before :meth:`calibrate`, tables follow from the last batch norm: a channel is taken for a Gaussian whose mean is
    its ``bias`` and whose standard deviation is its ``weight``.

    Args:
        latent_channels: ``M``; the paper has 8 (0.0983 bits per pixel), 16 (0.330) and 32 (0.635).
        levels: ``L``.
        N: channels of the residual units; the outer convolutions have half of them.
        channels: those that are kept, as :meth:`select` chose them; all of them unless given.
    """

    name: ClassVar[str] = "torfason2018"
    stride = 8
    full_precision_prefixes: ClassVar[tuple[str, ...]] = ("quantizer.",)

    def __init__(
        self, *, latent_channels: int = 32, levels: int = 6, N: int = 128, channels: Sequence[int] | None = None
    ) -> None:
        check_size("N", N)
        quantizer = SoftToHardQuantizer(levels)
        levels = quantizer.levels
        if levels > _MAX_LEVELS:
            raise ValueError(
                f"levels must be at most {_MAX_LEVELS}, as many as symbols of 16 bits tell apart, not {levels}."
            )
        super().__init__(latent_channels=latent_channels, symbols=range(levels), channels=channels)
        self.levels, self.N, outer = levels, N, max(1, N // 2)
        self.quantizer = quantizer
        self.g_a = nn.Sequential(
            *_down(3, outer), nn.ReLU(inplace=True), *_down(outer, N), nn.ReLU(inplace=True),
            *(ResidualUnit(N) for _ in range(3)), *_down(N, latent_channels),
        )  # fmt: skip
        self.g_s = nn.Sequential(
            *_up(latent_channels, N), nn.ReLU(inplace=True), *(ResidualUnit(N) for _ in range(3)),
            *_up(N, outer), nn.ReLU(inplace=True), *_up(outer, 3),
        )  # fmt: skip

    def _configuration(self) -> dict[str, Any]:
        return {"latent_channels": self.all_channels, "levels": self.levels, "N": self.N, **self._chosen()}

    def _analysis(self, x: Tensor) -> Tensor:
        mean, std = self._moments()
        return self._keep(self.g_a((255 * x - mean) / std))

    def _synthesis(self, y_hat: Tensor) -> Tensor:
        mean, std = self._moments()
        x_hat: Tensor = (self.g_s(self._put_back(y_hat)) * std + mean) / 255
        return x_hat

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of pixels, ``(3, 1, 1)``; no state, since no checkpoint would restore it."""
        weight: Any = self.g_a[0].weight
        # filled where they are used: a copy from the host would wait for the device
        mean, std = (torch.stack([weight.new_full((1, 1), v) for v in values]) for values in (MEAN, STD))
        return mean, std

    def _quantize(self, y: Tensor) -> Tensor:
        y_hat: Tensor = self.quantizer(y)
        return y_hat

    def _centers(self) -> Tensor:
        return self.quantizer.centers.detach()

    def _to_symbols(self, y: Tensor, coding: CalibratedState) -> Tensor:
        assert coding.centers is not None
        if not bool(y.isfinite().all()):
            raise ValueError("latent values are not finite; are the weights, and is the image within [0, 1]?")
        return nearest_center(y, coding.centers.to(y.device)).to(y.dtype)

    def _from_symbols(self, symbols: Tensor, coding: CalibratedState) -> Tensor:
        assert coding.centers is not None
        outside = (symbols < 0) | (symbols >= self.levels)
        if bool(outside.any()):
            position = int(outside.flatten(1).any(1).nonzero()[0])
            raise BitstreamError(
                f"symbol {int(symbols[outside][0])}, where {self.name} writes 0 to {self.levels - 1}; the stream is "
                "forged",
                position=position,
                total=len(symbols),
            )
        return coding.centers.to(symbols.device)[symbols.long()]

    def _expected(self) -> NDArray[np.int64]:
        norm = self.g_a[-1]
        assert isinstance(norm, nn.BatchNorm2d)
        centers, order = self._centers().cpu().float().sort(stable=True)
        ordered = gaussian_weights(norm.bias, norm.weight, (centers[1:] + centers[:-1]) / 2)
        weights = np.zeros((self.all_channels, self.levels + 1), np.int64)
        weights[:, order.numpy()] = ordered
        return weights


# -- weights and builder -----------------------------------------------------------------------------------------


class Torfason2018_Weights(WeightsEnum):
    """Weights of :func:`torfason2018`."""

    IMAGENETTE_C16_N32 = Weights("torfason2018-c16-n32-imagenette")
    DEFAULT = IMAGENETTE_C16_N32


class TorfasonOptions(TypedDict, total=False):
    """Options of the builder; see :class:`TorfasonCodec`."""

    latent_channels: int
    levels: int
    N: int
    channels: Sequence[int] | None


@register_codec(TorfasonCodec, weights=Torfason2018_Weights, num_params=2_397_388)
def torfason2018(*, weights: WeightsLike = None, **options: Unpack[TorfasonOptions]) -> TorfasonCodec:
    """Compressive autoencoder of Torfason et al. (2018), stride 8."""
