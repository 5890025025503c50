"""The autoencoder of Choi et al. (ICCV 2019) without its entropy model, as Wang et al. (WACV 2022) use it.

Sources: "Learning from the CNN-based compressed domain", sections 3.2 and 3.3, on the transforms of "Variable rate deep
image compression with a conditional autoencoder": four 5x5 convolutions of stride 2 with GDN between them, mirrored
with inverse GDN. Choi et al. condition them on a rate; Wang et al. do not mention this and train one codec per rate, as
we do.

    x ──► g_a ──y──► round ──► y_hat ──► networks
                                 └────► g_s ──► x_hat  (for viewing only)

There is no entropy model: in training, ``cdzoo.ops.gaussian_entropy_loss`` of the latent replaces the rate.
The papers leave open:

* the hidden width ``N``. Here it is 256, and ``g_s`` takes 336 G multiply-adds for a picture of 1920x1080; Wang et al.
  state "over 900 GFLOPS" for the network that theirs is based on;
* the quantizer in training. Here it is uniform noise, as Choi et al. train; otherwise values are rounded to integers;
* how symbols are coded. Here every channel has a table, measured by ``codec.calibrate(images)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from cdzoo._checks import check_size
from cdzoo.coding.layers import image_transforms
from cdzoo.coding.transform_codec import TransformCodec
from cdzoo.weights.enums import Weights, WeightsEnum, WeightsLike
from cdzoo.zoo import register_codec

__all__ = ["Choi2019_Weights", "ChoiCodec", "choi2019"]


class ChoiCodec(TransformCodec):
    """``choi2019``: stride 16, integers.

    Training, with the loss of Wang et al. (equation 1)::

        output, y = codec.forward_with_y(x)
        rate = cdzoo.ops.gaussian_entropy_loss(y)
        mse = 12 * torch.nn.functional.mse_loss(output.x_hat, x)  # of images in [-1, 1], summed over colors
        loss = cdzoo.ops.MultiTaskLoss([beta_1])(rate, mse)

    Args:
        latent_channels: ``M``, if all channels are kept.
        N: channels of the hidden layers.
        channels: the channels that are kept, as :meth:`select` chose them; all of them by default.
    """

    name = "choi2019"
    stride = 16

    def __init__(self, *, latent_channels: int = 256, N: int = 256, channels: Sequence[int] | None = None) -> None:
        check_size("N", N)
        check_size("latent_channels", latent_channels)
        transforms = image_transforms(N, latent_channels)
        super().__init__(*transforms, stride=self.stride, latent_channels=latent_channels, channels=channels)
        self.N = N

    def configuration(self) -> dict[str, Any]:
        """See :class:`~cdzoo.codecs.Codec`."""
        return {**super().configuration(), "N": self.N}


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
