"""The compressive autoencoder of Torfason et al. (ICLR 2018), with few scalar levels per latent value.

Source: "Towards image understanding from deep compression without decoding", section 3.1 and appendix A.1; the network
is that of Theis et al. (ICLR 2017) with stride 8, the quantizer that of :mod:`cdzoo.ops.quantizer`.

    x ──► normalize ──► g_a ──y──► nearest of L centers ──► y_hat ──► networks
                                                              └────► g_s ──► denormalize ──► x_hat  (for viewing only)

    g_a: 5x5/2 to 64 ─ 5x5/2 to 128 ─ 3 x R ─ 5x5/2 to M          R: 3x3 ─ ReLU ─ 3x3, added to its input
    g_s: the mirror image of g_a, with transposed convolutions    Batch norm behind every convolution, ReLU between them

At 224x224 with 32 channels the encoder takes 3.557 G multiply-adds, the paper's 3.56. The decoder mirrors it and takes
as many. The paper states 2.85 for its decoder, which is not a mirror then, but does not describe it.

The paper leaves open the number of levels (``levels``, here 6), the normalization of images (here per channel, on the
scale 0 to 255, with the constants below), and how symbols are coded. Here every channel has a table, measured by
``codec.calibrate(images)``: on similar images, streams take at most ``H C / 64`` bits per pixel on average, where ``H``
is the entropy of a symbol in bits, and their headers.
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
from cdzoo.coding.tiles import Range, input_range
from cdzoo.errors import BitstreamError
from cdzoo.ops.quantizer import SoftToHardQuantizer, nearest_center
from cdzoo.weights.enums import Weights, WeightsEnum, WeightsLike
from cdzoo.zoo import register_codec

__all__ = ["Torfason2018_Weights", "TorfasonCodec", "torfason2018"]

MEAN, VARIANCE = (121.854, 113.589, 100.637), (4746.38, 4454.14, 4812.23)
"""Mean and variance of red, green and blue, scale 0 to 255."""

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

    def input_range(self, output: Range) -> Range | None:
        """See ``cdzoo.coding.tiles.input_range``."""
        return input_range(self.body, output)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``x + body(x)``, of the same shape."""
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

    The forward pass quantizes hard in either mode, and its gradients are those of a soft quantizer. The loss of the
    paper's equation 1::

        output, y = codec.forward_with_y(x)
        entropy = codec.quantizer.entropy(y)
        loss = cdzoo.ops.target_rate_distortion_loss(output, x, entropy, beta=150, target_entropy=1.265).loss

    Before :meth:`calibrate`, tables follow from the last batch norm: each channel counts as a Gaussian whose mean is
    the layer's ``bias`` and whose standard deviation is its ``weight``.

    Args:
        latent_channels: ``M``; the paper has 8 (0.0983 bits per pixel), 16 (0.330) and 32 (0.635).
        levels: ``L``.
        N: channels of the residual units; the outer convolutions have half of them.
        channels: the channels that are kept, as :meth:`select` chose them; all of them by default.

    Raises:
        ValueError: ``N`` or ``latent_channels`` below 1, ``levels`` outside 2 to 32767, or ``channels`` that are not
            distinct indices below ``latent_channels``.
        TypeError: ``channels`` is not a list.
    """

    name = "torfason2018"
    stride = 8
    full_precision_prefixes: ClassVar[tuple[str, ...]] = ("quantizer.",)
    state_parts: ClassVar[tuple[str, ...]] = (*CalibratedCodec.state_parts, "quantizer")

    def __init__(
        self, *, latent_channels: int = 32, levels: int = 6, N: int = 128, channels: Sequence[int] | None = None
    ) -> None:
        check_size("N", N)
        check_size("latent_channels", latent_channels)
        quantizer = SoftToHardQuantizer(levels)
        levels, outer = quantizer.levels, max(1, N // 2)
        if levels > _MAX_LEVELS:
            raise ValueError(f"levels must be at most {_MAX_LEVELS}, the largest symbol of 16 bits, not {levels}")
        g_a = nn.Sequential(
            *_down(3, outer), nn.ReLU(inplace=True), *_down(outer, N), nn.ReLU(inplace=True),
            *(ResidualUnit(N) for _ in range(3)), *_down(N, latent_channels),
        )  # fmt: skip
        g_s = nn.Sequential(
            *_up(latent_channels, N), nn.ReLU(inplace=True), *(ResidualUnit(N) for _ in range(3)),
            *_up(N, outer), nn.ReLU(inplace=True), *_up(outer, 3),
        )  # fmt: skip
        super().__init__(
            g_a, g_s, stride=self.stride, latent_channels=latent_channels, symbols=range(levels), channels=channels
        )
        self.levels, self.N = levels, N
        self.quantizer = quantizer

    def configuration(self) -> dict[str, Any]:
        """See :class:`~cdzoo.codecs.Codec`."""
        return {**super().configuration(), "levels": self.levels, "N": self.N}

    def analyze(self, x: Tensor) -> Tensor:
        """See :class:`~cdzoo.codecs.Codec`."""
        mean, std = _moments(x)
        return super().analyze((255 * x - mean) / std)

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """See :class:`~cdzoo.codecs.Codec`."""
        x_hat = super().synthesize(y_hat)
        mean, std = _moments(x_hat)
        return (x_hat * std + mean) / 255

    def quantizer_values(self) -> dict[str, Any]:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        return {"centers": self.quantizer.centers.detach()}

    def quantize(self, y: Tensor) -> Tensor:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        y_hat: Tensor = self.quantizer(y)
        return y_hat

    def to_symbols(self, y: Tensor, state: CalibratedState) -> Tensor:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        assert state.centers is not None
        if not bool(y.isfinite().all()):
            raise ValueError("latent values are not finite; check that the weights are, and the image within [0, 1]")
        return nearest_center(y, state.centers.to(y.device)).to(y.dtype)

    def from_symbols(self, symbols: Tensor, state: CalibratedState) -> Tensor:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        assert state.centers is not None
        outside = (symbols < 0) | (symbols >= self.levels)
        if bool(outside.any()):
            raise BitstreamError(
                f"symbol {int(symbols[outside][0])}, where {self.name} writes 0 to {self.levels - 1}; the stream is "
                "forged",
                position=int(outside.flatten(1).any(1).nonzero()[0]),
                total=len(symbols),
            )
        return state.centers.to(symbols.device)[symbols.long()]

    def expected_weights(self) -> NDArray[np.int64]:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        norm: Any = self.g_a[-1]  # type: ignore[index]
        centers, order = self.quantizer.centers.detach().cpu().float().sort(stable=True)
        ordered = gaussian_weights(norm.bias, norm.weight, (centers[1:] + centers[:-1]) / 2)
        weights = np.zeros((self.all_channels, self.levels + 1), np.int64)
        weights[:, order.numpy()] = ordered
        return weights


def _moments(like: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of pixels, ``(3, 1, 1)``; not in the state dict, since checkpoints lack them."""
    # filled where they are used: a copy from the host would wait for the device
    mean, std = (torch.stack([like.new_full((1, 1), v) for v in values]) for values in (MEAN, STD))
    return mean, std


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
