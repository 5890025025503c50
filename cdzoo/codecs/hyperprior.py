"""Codecs with a learned prior: Ballé et al. 2018 (factorized, scale hyperprior), Minnen et al. 2018 (mean, scale).

Sources: "Variational image compression with a scale hyperprior" (ICLR 2018, arXiv:1802.01436) and "Joint
autoregressive and hierarchical priors for learned image compression" (NeurIPS 2018, arXiv:1809.02736), the second one
without its autoregressive part. Layers, training noise and likelihoods equal CompressAI's, under CompressAI's names, so
that its checkpoints load (``coding/layers.py``). What differs:

* Images of any size: the image is padded to a multiple of 16 only, and the latent to a multiple of 4 inside the
  hyperprior, so that a latent always has ``ceil(H / 16) x ceil(W / 16)`` samples and no padding is coded.
* The hyper-decoder computes with integers (``coding/integer_decoder.py``): the scales that choose probability tables,
  and that networks read as ``Latent.scales``, are the same on every machine. ``compressai_strings`` uses floats.

          ┌───┐    y     ┌───┐  z  ┌───┐ z_hat            ┌───┐ scales (and means)
    x ──►─┤g_a├──►─┬──►──┤h_a├──►──┤ Q ├───►─── bits ──►──┤h_s├─┐
          └───┘    │     └───┘     └───┘                  └───┘ ▼
                   └────►───┤ Q ├───► y_hat ───►─── bits ───────┴──► y_hat ──► networks
                                                                       │
                                                  x_hat ──◄── g_s ──◄──┘  (for viewing only)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from cdzoo.coding.compressai_codec import CompressAICodec, bottleneck_strings, tables_at
from cdzoo.coding.gaussian import FactorizedState, GaussianPrior, HyperpriorState
from cdzoo.coding.layers import EntropyBottleneck, GaussianConditional, conv, deconv
from cdzoo.coding.rans import encode_batch
from cdzoo.coding.symbols import SymbolCoder, channel_indexes, round_to_symbols
from cdzoo.ops.losses import Metric
from cdzoo.weights.enums import Weights, WeightsEnum, WeightsLike
from cdzoo.zoo import register_codec

__all__ = [
    "LAMBDAS",
    "RATES",
    "BMSHJ2018_Factorized_Weights",
    "BMSHJ2018_Hyperprior_Weights",
    "FactorizedPrior",
    "MBT2018_Mean_Weights",
    "MeanScaleHyperprior",
    "ScaleHyperprior",
    "bmshj2018_factorized",
    "bmshj2018_hyperprior",
    "mbt2018_mean",
]

LAMBDAS: dict[str, tuple[float, ...]] = {
    "mse": (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800),
    "ms-ssim": (2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37, 220.00),
}
"""CompressAI's rate-distortion weights for qualities 1 to 8: ``lambda * 255^2 * MSE`` or ``lambda * (1 - MS-SSIM)``."""


class FactorizedPrior(CompressAICodec[FactorizedState]):
    """``bmshj2018_factorized``: every latent channel has one learned distribution.

    Args:
        quality: 1 (smallest files) to 8 (best images); it sets ``N`` and ``M`` where they are ``None``, to 128 and 192
            at the low rates and to 192 and 320 at the high ones, as in CompressAI.
        metric: ``"mse"`` or ``"ms-ssim"``, the distortion that the codec is trained for; recorded.
        N: channels of the hidden layers, and of a hyper-latent.
        M: channels of the latent.

    Raises:
        ValueError: an argument that is none of these.
    """

    name = "bmshj2018_factorized"

    def __init__(self, *, quality: int = 4, metric: Metric = "mse", N: int | None = None, M: int | None = None) -> None:
        super().__init__(quality=quality, metric=metric, N=N, M=M)
        self.entropy_bottleneck = EntropyBottleneck(self.M)

    def aux_loss(self) -> Tensor:
        """Distance of the bottleneck's quantiles from their goal, a scalar; an optimizer of its own minimizes it."""
        return self.entropy_bottleneck.loss()

    def estimate(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """See :class:`~cdzoo.codecs.Codec`."""
        y_hat, likelihood = self.entropy_bottleneck(y)
        return y_hat, None, {"y": likelihood}

    def derive_state(self) -> FactorizedState:
        """See :class:`~cdzoo.codecs.Codec`."""
        return FactorizedState.derive(self.entropy_bottleneck)

    def restore_state(self, tensors: Mapping[str, Tensor]) -> FactorizedState:
        """See :class:`~cdzoo.codecs.Codec`."""
        return FactorizedState.restore(tensors)

    def code(
        self, coder: SymbolCoder, y: Tensor | None, shape: tuple[int, int, int], state: FactorizedState
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`~cdzoo.codecs.Codec`: one part, with one table per channel."""
        batch, height, width = shape
        medians = state.medians_on(self.device)
        symbols = coder(
            None if y is None else y - medians,
            (batch, self.M, height, width),
            channel_indexes(state.tables, height, width, self.device),
            state.tables,
        )
        return symbols.float() + medians, None

    def with_tables(self, state: FactorizedState, tables: Mapping[str, Tensor]) -> FactorizedState:
        """See :class:`~cdzoo.coding.compressai_codec.CompressAICodec`."""
        return FactorizedState(tables_at("entropy_bottleneck", tables), state.medians)

    def strings(self, y: Tensor, state: FactorizedState) -> list[list[bytes]]:
        """See :class:`~cdzoo.coding.compressai_codec.CompressAICodec`."""
        return [bottleneck_strings(y, self.entropy_bottleneck, state.tables)[0]]


class ScaleHyperprior(GaussianPrior, CompressAICodec[HyperpriorState]):
    """``bmshj2018_hyperprior``: zero-mean Gaussians, whose scales a hyperprior predicts.

    Args:
        quality, metric, N, M: as in :class:`FactorizedPrior`.
    """

    name = "bmshj2018_hyperprior"
    has_means = False
    latent_multiple = 4
    entropy_models = ("entropy_bottleneck", "gaussian_conditional")

    def __init__(self, *, quality: int = 4, metric: Metric = "mse", N: int | None = None, M: int | None = None) -> None:
        super().__init__(quality=quality, metric=metric, N=N, M=M)
        self.entropy_bottleneck = EntropyBottleneck(self.N)
        self.h_a, self.h_s = self._hyper_transforms()
        self.gaussian_conditional = GaussianConditional()

    def _hyper_transforms(self) -> tuple[nn.Sequential, nn.Sequential]:
        n, m = self.N, self.M
        h_a = nn.Sequential(conv(m, n, stride=1, kernel_size=3), nn.ReLU(), conv(n, n), nn.ReLU(), conv(n, n))
        h_s = nn.Sequential(
            deconv(n, n), nn.ReLU(), deconv(n, n), nn.ReLU(), conv(n, m, stride=1, kernel_size=3), nn.ReLU()
        )
        return h_a, h_s

    def with_tables(self, state: HyperpriorState, tables: Mapping[str, Tensor]) -> HyperpriorState:
        """See :class:`~cdzoo.coding.compressai_codec.CompressAICodec`."""
        bottleneck = FactorizedState(tables_at("entropy_bottleneck", tables), state.bottleneck.medians)
        boundaries = tables["gaussian_conditional.scale_table"][:-1]
        return HyperpriorState(bottleneck, tables_at("gaussian_conditional", tables), boundaries, state.decoder)

    def strings(self, y: Tensor, state: HyperpriorState) -> list[list[bytes]]:
        """See :class:`~cdzoo.coding.compressai_codec.CompressAICodec`."""
        z_strings, z_hat = bottleneck_strings(
            self.h_a(self.hyper_input(y)), self.entropy_bottleneck, state.bottleneck.tables
        )
        scales, means = self.split(self.h_s(z_hat))
        bounded = torch.clamp(scales, min=float(self.gaussian_conditional.scale_bound))
        indexes = torch.bucketize(bounded.contiguous(), state.boundaries.to(bounded)).to(torch.uint8)
        symbols = round_to_symbols(y if means is None else y - means)
        flat, flat_indexes = (t.cpu().contiguous().numpy().reshape(len(y), -1) for t in (symbols, indexes))
        return [encode_batch(flat, flat_indexes, state.gaussian), z_strings]


class MeanScaleHyperprior(ScaleHyperprior):
    """``mbt2018_mean``: Gaussians whose means and scales a hyperprior predicts.

    Args:
        quality, metric, N, M: as in :class:`FactorizedPrior`.
    """

    name = "mbt2018_mean"
    high_from = 5
    has_means = True

    def _hyper_transforms(self) -> tuple[nn.Sequential, nn.Sequential]:
        n, m = self.N, self.M
        h_a = nn.Sequential(conv(m, n, stride=1, kernel_size=3), nn.LeakyReLU(), conv(n, n), nn.LeakyReLU(), conv(n, n))
        h_s = nn.Sequential(
            deconv(n, m), nn.LeakyReLU(), deconv(m, m * 3 // 2), nn.LeakyReLU(),
            conv(m * 3 // 2, m * 2, stride=1, kernel_size=3),
        )  # fmt: skip
        return h_a, h_s


# -- weights and builders ----------------------------------------------------------------------------------------


class BMSHJ2018_Factorized_Weights(WeightsEnum):
    """Weights of :func:`bmshj2018_factorized`."""


class BMSHJ2018_Hyperprior_Weights(WeightsEnum):
    """Weights of :func:`bmshj2018_hyperprior`.

    ``PHOTOS_N64_M96`` has the best quality for its bits. The networks of ten classes belong to ``IMAGENETTE_N48_M64``.
    """

    IMAGENETTE_N48_M64 = Weights("bmshj2018-hyperprior-n48-m64-imagenette")
    IMAGENETTE_N48_M64_LOW = Weights("bmshj2018-hyperprior-n48-m64-low-imagenette")
    IMAGENETTE_N48_M64_HIGH = Weights("bmshj2018-hyperprior-n48-m64-high-imagenette")
    IMAGENETTE_N48_M64_MS_SSIM = Weights("bmshj2018-hyperprior-n48-m64-ms-ssim-imagenette")
    PHOTOS_N64_M96 = Weights("bmshj2018-hyperprior-n64-m96-photos")
    DEFAULT = IMAGENETTE_N48_M64


RATES = (
    BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64_LOW,
    BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64,
    BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64_HIGH,
)
"""Packaged weights at rising rates, among which ``cdzoo compress --bpp`` and ``--psnr`` choose."""


class MBT2018_Mean_Weights(WeightsEnum):
    """Weights of :func:`mbt2018_mean`."""

    IMAGENETTE_N48_M64 = Weights("mbt2018-mean-n48-m64-imagenette")
    DEFAULT = IMAGENETTE_N48_M64


class HyperpriorOptions(TypedDict, total=False):
    """Options of the builders in this file; see :class:`FactorizedPrior`."""

    quality: int
    metric: Metric
    N: int
    M: int


@register_codec(FactorizedPrior, weights=BMSHJ2018_Factorized_Weights, num_params=2_998_147)
def bmshj2018_factorized(*, weights: WeightsLike = None, **options: Unpack[HyperpriorOptions]) -> FactorizedPrior:
    """Factorized prior of Ballé et al. (2018), stride 16."""


@register_codec(ScaleHyperprior, weights=BMSHJ2018_Hyperprior_Weights, num_params=5_075_843)
def bmshj2018_hyperprior(*, weights: WeightsLike = None, **options: Unpack[HyperpriorOptions]) -> ScaleHyperprior:
    """Scale hyperprior of Ballé et al. (2018), stride 16, with scales: the codec of Deng and Karam."""


@register_codec(MeanScaleHyperprior, weights=MBT2018_Mean_Weights, num_params=7_028_003)
def mbt2018_mean(*, weights: WeightsLike = None, **options: Unpack[HyperpriorOptions]) -> MeanScaleHyperprior:
    """Mean-and-scale hyperprior of Minnen et al. (2018), stride 16, with scales."""
