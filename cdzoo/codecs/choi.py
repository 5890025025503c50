"""The autoencoder under Wang et al. (WACV 2022): that of Choi et al. (ICCV 2019) without its entropy model.

Sources: "Learning from the CNN-based compressed domain", sections 3.2 and 3.3, on the transforms of "Variable rate deep
image compression with a conditional autoencoder": four 5x5 convolutions of stride 2 with GDN between them, mirrored
with inverse GDN. The latter is conditioned on a rate; the former says nothing of it and trains one codec per rate, as
is done here.

    x ──► g_a ──y──► round ──► y_hat ──► networks
                                 └────► g_s ──► x_hat  (for the eye only)

There is no entropy model: in training, ``cdzoo.ops.gaussian_entropy_loss`` of the latent takes the place of its rate.
What the papers leave open: the hidden width (``N``, here 256, with which ``g_s`` takes 336 G multiply-adds for a
picture of 1920x1080; the first paper says "over 900 GFLOPS" of the network it builds on), the quantiser in training
(here uniform noise, which is what Choi et al. train with; rounding to integers otherwise), and how symbols are coded:
here every channel has a table, measured by ``codec.calibrate(images)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdzoo._checks import check_size
from cdzoo.coding.calibrated import CalibratedCodec, CalibratedState, gaussian_weights
from cdzoo.coding.layers import image_transforms
from cdzoo.weights.enums import Weights, WeightsEnum, WeightsLike
from cdzoo.zoo import register_codec

__all__ = ["Choi2019_Weights", "ChoiCodec", "choi2019"]

_LARGEST = 255
_EXPECTED_SCALE = 4.0


class ChoiCodec(CalibratedCodec):
    """``choi2019``: stride 16, integers.

    Training, with the loss of Wang et al. (equation 1)::

        output, y = codec.forward_with_y(x)
        rate = cdzoo.ops.gaussian_entropy_loss(y)
        mse = 12 * torch.nn.functional.mse_loss(output.x_hat, x)  # of images in [-1, 1], summed over colours
        loss = cdzoo.ops.MultiTaskLoss([beta_1])(rate, mse)

    Before :meth:`calibrate`, every channel is taken for a Gaussian with a standard deviation of 4 around 0. The counts
    cover -255 to 255; a symbol beyond costs some 20 bits more.

    Args:
        latent_channels: ``M``, if all channels are kept.
        N: channels of the hidden layers.
        channels: those that are kept, as :meth:`select` chose them; all of them unless given.
    """

    name: ClassVar[str] = "choi2019"
    stride = 16

    def __init__(self, *, latent_channels: int = 256, N: int = 256, channels: Sequence[int] | None = None) -> None:
        check_size("N", N)
        symbols = range(-_LARGEST, _LARGEST + 1)
        super().__init__(latent_channels=latent_channels, symbols=symbols, channels=channels)
        self.N = N
        self.g_a, self.g_s = image_transforms(N, latent_channels)

    def _configuration(self) -> dict[str, Any]:
        return {"latent_channels": self.all_channels, "N": self.N, **self._chosen()}

    def _analysis(self, x: Tensor) -> Tensor:
        return self._keep(self.g_a(x))

    def _synthesis(self, y_hat: Tensor) -> Tensor:
        x_hat: Tensor = self.g_s(self._put_back(y_hat))
        return x_hat

    def _quantize(self, y: Tensor) -> Tensor:
        if self.training:
            return y + torch.rand_like(y) - 0.5
        return y.detach().round() + (y - y.detach())  # the added term is 0, and carries the gradient

    def _to_symbols(self, y: Tensor, coding: CalibratedState) -> Tensor:
        return y

    def _from_symbols(self, symbols: Tensor, coding: CalibratedState) -> Tensor:
        return symbols.float()

    def _expected(self) -> NDArray[np.int64]:
        zeros = torch.zeros(self.all_channels, device="cpu")
        inner = torch.arange(-_LARGEST, _LARGEST + 2, device="cpu") - 0.5
        weights = gaussian_weights(zeros, zeros + _EXPECTED_SCALE, inner)
        return np.concatenate([weights[:, 1:-1], weights[:, :1] + weights[:, -1:]], axis=1)


# -- weights and builder -----------------------------------------------------------------------------------------


class Choi2019_Weights(WeightsEnum):
    """Weights of :func:`choi2019`."""

    IMAGENETTE_N48_M64 = Weights("choi2019-n48-m64-imagenette")
    DEFAULT = IMAGENETTE_N48_M64


class ChoiOptions(TypedDict, total=False):
    """Options of the builder; see :class:`ChoiCodec`."""

    latent_channels: int
    N: int
    channels: Sequence[int] | None


@register_codec(ChoiCodec, weights=Choi2019_Weights, num_params=10_265_347)
def choi2019(*, weights: WeightsLike = None, **options: Unpack[ChoiOptions]) -> ChoiCodec:
    """Autoencoder of Choi et al. (2019) without an entropy model, as Wang et al. (2022) use it, stride 16."""
