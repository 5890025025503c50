"""Codecs with a learned prior: Ballé et al. 2018 (factorized, scale hyperprior), Minnen et al. 2018 (mean, scale).

Sources: "Variational image compression with a scale hyperprior" (ICLR 2018, arXiv:1802.01436) and "Joint
autoregressive and hierarchical priors for learned image compression" (NeurIPS 2018, arXiv:1809.02736), the latter
without its autoregressive part. Layers, training noise and likelihoods equal CompressAI's, under CompressAI's names, so
that its checkpoints load (:mod:`cdzoo.coding.layers`). What differs:

* Images of any size: the image is padded to a multiple of 16 only, and the latent to a multiple of 4 inside the
  hyperprior, so that a latent always has ``ceil(H / 16) x ceil(W / 16)`` samples and no padding is coded.
* Bits are decoded with integers (``_integer_decoder.py``): the scales that choose probability tables, and that
  networks read as ``Latent.scales``, are the same on every machine. ``compressai_strings`` keeps the float way.

          ┌───┐    y     ┌───┐  z  ┌───┐ z_hat            ┌───┐ scales (and means)
    x ──►─┤g_a├──►─┬──►──┤h_a├──►──┤ Q ├───►─── bits ──►──┤h_s├─┐
          └───┘    │     └───┘     └───┘                  └───┘ ▼
                   └────►───┤ Q ├───► y_hat ───►─── bits ───────┴──► y_hat ──► networks
                                                                       │
                                                  x_hat ──◄── g_s ──◄──┘  (for the eye only)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from cdzoo._checks import check_range, check_size
from cdzoo.coding._prior_state import FactorizedState, HyperpriorState
from cdzoo.coding.base import Codec, CodingState
from cdzoo.coding.checkpoint import check_fit, has_tables, prefixes_with_tables, split_checkpoint, tables_at
from cdzoo.coding.gaussian import GaussianPrior
from cdzoo.coding.layers import EntropyBottleneck, GaussianConditional, conv, deconv, image_transforms
from cdzoo.coding.rans import encode_batch
from cdzoo.coding.symbols import Channel, round_to_symbols
from cdzoo.weights.enums import Weights, WeightsEnum, WeightsLike
from cdzoo.zoo import register_codec

__all__ = [
    "LAMBDAS",
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

Metric = Literal["mse", "ms-ssim"]

LAMBDAS: dict[str, tuple[float, ...]] = {
    "mse": (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800),
    "ms-ssim": (2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37, 220.00),
}
"""CompressAI's rate-distortion weights for qualities 1 to 8: ``lambda * 255^2 * MSE`` or ``lambda * (1 - MS-SSIM)``."""


class FactorizedPrior(Codec):
    """``bmshj2018_factorized``: every latent channel has one learned distribution of its own.

    Args:
        quality: 1 (smallest files) to 8 (best images); it sets ``N`` and ``M`` where they are ``None``, to 128 and 192
            at the low rates and to 192 and 320 at the high ones, as in CompressAI.
        metric: ``"mse"`` or ``"ms-ssim"``, the distortion that the codec is trained for; recorded.
        N: channels of the hidden layers, and of a hyper-latent.
        M: channels of the latent.

    Raises:
        ValueError: an argument that is none of these.
    """

    name: ClassVar[str] = "bmshj2018_factorized"
    stride = 16
    _high_from: ClassVar[int] = 6

    def __init__(self, *, quality: int = 4, metric: Metric = "mse", N: int | None = None, M: int | None = None) -> None:
        super().__init__()
        sizes = self.derived_arguments({"quality": quality, "metric": metric, "N": N, "M": M})
        for name, size in sizes.items():
            check_size(name, size)
        N, M = sizes["N"], sizes["M"]
        self.N, self.M, self.latent_channels = N, M, M
        self.quality, self.metric = quality, metric
        self.g_a, self.g_s = image_transforms(N, M)
        self.entropy_bottleneck = EntropyBottleneck(M)

    @classmethod
    def derived_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``N`` and ``M``, which follow from the quality where they are ``None``."""
        quality, metric = arguments["quality"], arguments["metric"]
        if isinstance(quality, bool) or not hasattr(quality, "__index__") or quality not in range(1, 9):
            raise ValueError(f"quality must be an integer, 1 (smallest files) to 8 (best images), not {quality!r}")
        if not isinstance(metric, str) or metric not in LAMBDAS:
            raise ValueError(f"metric must be 'mse' or 'ms-ssim', not {metric!r}")
        usual = {"N": 192, "M": 320} if quality >= cls._high_from else {"N": 128, "M": 192}
        return {name: usual[name] if arguments[name] is None else arguments[name] for name in usual}

    def _configuration(self) -> dict[str, Any]:
        return {"N": self.N, "M": self.M}

    def _analysis(self, x: Tensor) -> Tensor:
        y: Tensor = self.g_a(x)
        return y

    def _synthesis(self, y_hat: Tensor) -> Tensor:
        x_hat: Tensor = self.g_s(y_hat)
        return x_hat

    def aux_loss(self) -> Tensor:
        """Distance of the bottleneck's quantiles from where they should be; an optimizer of its own minimizes it."""
        return self.entropy_bottleneck.loss()

    def _train_forward(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        y_hat, likelihood = self.entropy_bottleneck(y)
        return y_hat, None, {"y": likelihood}

    def _derive(self, state: Mapping[str, Tensor] | None) -> CodingState:
        if state is None:
            return FactorizedState.derive(self.entropy_bottleneck)
        return FactorizedState.from_state(state)

    def _code(
        self, channel: Channel, y: Tensor | None, shape: tuple[int, int, int], device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        coding = self._coding_in_force()
        assert isinstance(coding, FactorizedState)
        batch, height, width = shape
        medians = coding.medians_on(device)
        symbols = channel(
            None if y is None else y - medians,
            (batch, self.M, height, width),
            coding.indexes(height, width, device),
            coding.tables,
        )
        return symbols.float() + medians, None

    # -- CompressAI ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def load_compressai(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a checkpoint of the CompressAI model of the same name and sizes, strictly.

        A checkpoint with tables (saved after ``update()``) keeps them; without, they are derived. Names of earlier
        CompressAI versions and of ``DataParallel`` are understood.

        Args:
            state_dict: ``torch.load(path)``, or ``model.state_dict()``.

        Raises:
            ValueError: names, shapes or tables do not fit, or values are not finite; nothing is loaded then.
            TypeError: not a mapping of names to tensors.
        """
        rest, tables = split_checkpoint(state_dict)
        check_fit(f"{self.name}(N={self.N}, M={self.M})", self.state_dict(), rest)
        complete = prefixes_with_tables(tables) == self._entropy_models
        coding, twin = None, copy.deepcopy(self)  # which is loaded first, so that this one stays as it was
        try:
            twin.load_state_dict(rest)
            if complete:
                coding = twin._with_tables(twin._derived_from(None), tables)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the checkpoint's weights or tables are incomplete or invalid: {error}") from None
        self.load_state_dict(rest)
        self._derived = None if coding is None else self._describe(coding)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of this class, as :meth:`torch.nn.Module.load_state_dict` does.

        Raises:
            RuntimeError: names or shapes differ; for a checkpoint of CompressAI the message names
                :meth:`load_compressai`.
        """
        if strict and has_tables(state_dict):
            raise RuntimeError(
                "the state dict has probability tables, so it is a checkpoint of CompressAI; "
                "load it with codec.load_compressai(state_dict)"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _with_tables(self, coding: CodingState, tables: Mapping[str, Tensor]) -> CodingState:
        assert isinstance(coding, FactorizedState)
        return FactorizedState(tables_at("entropy_bottleneck", tables), coding.medians)

    @torch.no_grad()
    def compressai_strings(self, x: Tensor) -> list[list[bytes]]:
        """The bytes of ``compress(x)["strings"]`` of the CompressAI model with the same weights.

        They are written the float way, so only a machine that reproduces this one's rounding can decode them.

        Args:
            x: ``(B, 3, H, W)`` in ``[0, 1]``, of a size that CompressAI's ``compress`` takes: any for the factorized
                prior; for the hyperpriors latents must have rows and columns in multiples of 4, as at multiples of 64
                pixels (and at 50x50, but not at 33x64).

        Raises:
            TypeError, ValueError: another size, or as :meth:`encode`.
        """
        self._check_images(x)
        multiple = self._compressai_multiple
        if any(-(-side // self.stride) % multiple for side in x.shape[-2:]):
            raise ValueError(
                f"CompressAI's {self.name} takes no image of {tuple(x.shape[-2:])} pixels: rows and columns of the "
                f"latent, a sixteenth of them, must be multiples of {multiple}; pad to multiples of 64."
            )
        self._refresh()
        check_range(x)
        with self._coding_mode():
            return self._compressai_strings(self._analysis(self._moved(x)))

    _compressai_multiple: ClassVar[int] = 1
    _entropy_models: ClassVar[list[str]] = ["entropy_bottleneck"]

    def _compressai_strings(self, y: Tensor) -> list[list[bytes]]:
        coding = self._coding_in_force()
        assert isinstance(coding, FactorizedState)
        strings, _ = bottleneck_strings(coding, self.entropy_bottleneck, y)
        return [strings]


class ScaleHyperprior(GaussianPrior, FactorizedPrior):
    """``bmshj2018_hyperprior``: zero-mean Gaussians, whose scales a hyperprior predicts.

    Args:
        quality, metric, N, M: as in :class:`FactorizedPrior`.
    """

    name: ClassVar[str] = "bmshj2018_hyperprior"
    _has_means: ClassVar[bool] = False
    _compressai_multiple: ClassVar[int] = 4
    _entropy_models: ClassVar[list[str]] = ["entropy_bottleneck", "gaussian_conditional"]

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

    def _with_tables(self, coding: CodingState, tables: Mapping[str, Tensor]) -> CodingState:
        assert isinstance(coding, HyperpriorState)
        bottleneck = FactorizedState(tables_at("entropy_bottleneck", tables), coding.bottleneck.medians)
        boundaries = tables["gaussian_conditional.scale_table"][:-1]
        return HyperpriorState(bottleneck, tables_at("gaussian_conditional", tables), boundaries, coding.decoder)

    def _compressai_strings(self, y: Tensor) -> list[list[bytes]]:
        coding = self._coding_in_force()
        assert isinstance(coding, HyperpriorState)
        z = self.h_a(self._hyper_input(y))
        z_strings, z_hat = bottleneck_strings(coding.bottleneck, self.entropy_bottleneck, z)
        scales, means = self._split(self.h_s(z_hat))
        bounded = torch.clamp(scales, min=float(self.gaussian_conditional.scale_bound))
        indexes = torch.bucketize(bounded.contiguous(), coding.boundaries.to(bounded)).to(torch.uint8)
        symbols = round_to_symbols(y if means is None else y - means)
        flat, flat_indexes = (t.cpu().contiguous().numpy().reshape(len(y), -1) for t in (symbols, indexes))
        return [encode_batch(flat, flat_indexes, coding.gaussian), z_strings]


class MeanScaleHyperprior(ScaleHyperprior):
    """``mbt2018_mean``: Gaussians whose means and scales a hyperprior predicts.

    Args:
        quality, metric, N, M: as in :class:`FactorizedPrior`.
    """

    name: ClassVar[str] = "mbt2018_mean"
    _high_from: ClassVar[int] = 5
    _has_means: ClassVar[bool] = True

    def _hyper_transforms(self) -> tuple[nn.Sequential, nn.Sequential]:
        n, m = self.N, self.M
        h_a = nn.Sequential(conv(m, n, stride=1, kernel_size=3), nn.LeakyReLU(), conv(n, n), nn.LeakyReLU(), conv(n, n))
        h_s = nn.Sequential(
            deconv(n, m), nn.LeakyReLU(), deconv(m, m * 3 // 2), nn.LeakyReLU(),
            conv(m * 3 // 2, m * 2, stride=1, kernel_size=3),
        )  # fmt: skip
        return h_a, h_s


def bottleneck_strings(coding: FactorizedState, bottleneck: EntropyBottleneck, z: Tensor) -> tuple[list[bytes], Tensor]:
    """Code values through an entropy bottleneck as CompressAI does: the strings, and ``z_hat`` as floats."""
    medians = bottleneck.quantiles[:, 0, 1].view(-1, 1, 1)
    symbols = round_to_symbols(z - medians)
    indexes = coding.indexes(z.shape[2], z.shape[3], torch.device("cpu"))
    flat = symbols.cpu().contiguous().numpy().reshape(len(z), -1)
    strings = encode_batch(flat, indexes.contiguous().numpy().reshape(-1), coding.tables)
    return strings, symbols.type_as(medians) + medians


# -- weights and builders ----------------------------------------------------------------------------------------


class BMSHJ2018_Factorized_Weights(WeightsEnum):
    """Weights of :func:`bmshj2018_factorized`."""


class BMSHJ2018_Hyperprior_Weights(WeightsEnum):
    """Weights of :func:`bmshj2018_hyperprior`; bits per pixel on Kodak: 0.34, 0.14, 0.48, and 0.33 for MS-SSIM."""

    IMAGENETTE_N48_M64 = Weights("bmshj2018-hyperprior-n48-m64-imagenette")
    IMAGENETTE_N48_M64_LOW = Weights("bmshj2018-hyperprior-n48-m64-low-imagenette")
    IMAGENETTE_N48_M64_HIGH = Weights("bmshj2018-hyperprior-n48-m64-high-imagenette")
    IMAGENETTE_N48_M64_MS_SSIM = Weights("bmshj2018-hyperprior-n48-m64-ms-ssim-imagenette")
    DEFAULT = IMAGENETTE_N48_M64


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
