"""ICAT: a Vision Transformer that compresses an image and classifies it from its latent.

Source: Bai et al., Towards End-to-End Image Compression and Analysis with Transformers, AAAI 2022.

A convolutional encoder ``g_a`` replaces the patch embedding of DeiT-S. Its output, the latent, is coded, classified and
decoded. The decoder ``g_s`` also reads the features of the first three Transformer blocks (aggregation):

    x ──► g_a ──y──► Q, bits ──► y_hat ──► embed ──z_0──► + position, class token ──► 12 blocks ──► norm ──► fc
                                                    │                                  │  │  │
                                                    └──► aggregation of z_0, z_1, z_2, z_3 ◄──┘ ──► g_s ──► x_hat

Images are in [0, 1]. The network normalizes them by ImageNet's mean and standard deviation, and undoes that after
``g_s``. With ``hyperprior=True`` the network is a codec too. Its entropy model is a mean-scale hyperprior (Minnen et
al. 2018, without the autoregressive part), whose scales and means are computed with integers, as in
:mod:`cdzoo.codecs.hyperprior`. Without a hyperprior nothing is quantized: ``y_hat`` is ``y``.

The paper leaves some details open. This implementation chooses:

- The hyperprior has half the stride of Minnen's (5x5/1 and 5x5/2 in place of twice 5x5/2). So 224 is a multiple of the
  product of all strides, 32.
- LeakyReLU has a slope of 0.01.
- ``g_a`` and ``g_s`` start from He's values. So latents of the untrained network deviate from 0 by one or two, and are
  not all rounded to 0.
- The class token has a position embedding, as in DeiT. For images that are not 224x224, position embeddings are
  interpolated bicubically, as in timm.
- Training clips gradients to a norm of 1.
- The scale factors in equation 6 are those of :class:`cdzoo.ops.RateDistortionAccuracyLoss`.

Training recipe. Training from random values in one step does not converge. There are two steps, each with the loss of
equation 6::

    model = icat_small()                                           # 1. no quantization, no rate
    loss = RateDistortionAccuracyLoss(alpha=1, beta=0.001)
    out = model(x)
    loss(out, x, out.logits, target).loss.backward()

    codec = icat_small(hyperprior=True)                            # 2. everything
    codec.init_from_first_step(model.state_dict())
    loss = RateDistortionAccuracyLoss(alpha=0.3, beta=0.003)
    out = codec(x)
    loss(out, x, out.logits, target).loss.backward()
    codec.aux_loss().backward()                                    # the quantiles have an optimizer of their own

Both steps take 300 epochs with batches of 1024 and a cosine schedule with 5 epochs of warm-up. The first uses AdamW
with a learning rate of 1e-3 and DeiT's augmentations, without its moving average of weights. The second uses Adam with
a rate of 1e-4, and only random resized crops and mirroring, because other augmentations harm the hyperprior. In the
second step ``alpha`` sets the bit rate (0.1, 0.3, 0.6), and ``alpha / beta`` sets the balance between images and
labels: 100 in the paper, 50 for better images, 200 for better labels. ``examples/recipes/icat2022.py`` implements it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from torch import Tensor

from cdzoo._compose import compose
from cdzoo.coding.gaussian import GaussianPrior
from cdzoo.coding.layers import EntropyBottleneck, GaussianConditional, conv, deconv
from cdzoo.models._icat_network import ICAT, ICATOutput, leaky
from cdzoo.models._state_dict import LoadedNames, load_named
from cdzoo.models.classifier import ClassifierOptions
from cdzoo.types import MAX_IMAGE_PIXELS
from cdzoo.weights.enums import WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.weights.enums import WeightsLike

__all__ = ["ICAT", "ICATCodec", "ICATOutput", "ICAT_Small_Weights", "icat_small"]


class ICATCodec(ICAT, GaussianPrior):  # type: ignore[misc]  # forward returns logits as well
    """The network with its hyperprior. It is also a codec, with all methods of :class:`~cdzoo.codecs.Codec`.

    ``compress(x)`` gives streams, ``from_streams`` classifies them, ``decode(decompress(streams))`` gives images. The
    network reads its own latents only. :func:`cdzoo.compose` pairs it with itself, or with another network that reads
    its latents. The fingerprint covers ``g_a``, the hyperprior and the tables. It does not cover the Transformer and
    ``g_s``: they may be trained further, and old streams stay readable.

    Args:
        in_channels, num_classes, width, aggregation, drop_path: as in :class:`ICAT`.
    """

    name = "icat_small"
    stride = 16
    hyper_stride = 2
    synthesis_parts: ClassVar[tuple[str, ...]] = (
        "g_s", "embed", "cls_token", "pos_embed", "blocks", "norm", "fc", "reduce", "fuse",
    )  # fmt: skip

    def __init__(
        self,
        *,
        in_channels: int = 192,
        num_classes: int = 1000,
        width: float = 1.0,
        aggregation: bool = True,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(
            in_channels=in_channels, num_classes=num_classes, width=width, aggregation=aggregation, drop_path=drop_path
        )
        self.M = self.latent_channels = m = in_channels
        n = self.N
        self.h_a = leaky(conv(m, n, 3, 1), conv(n, n), conv(n, n, stride=1))
        self.h_s = leaky(conv(n, m, stride=1), deconv(m, m * 3 // 2), conv(m * 3 // 2, 2 * m, 3, 1))
        self.entropy_bottleneck = EntropyBottleneck(n)
        self.gaussian_conditional = GaussianConditional()

    def configuration(self) -> dict[str, Any]:
        """See :class:`~cdzoo.codecs.Codec`."""
        return {"N": self.N, "M": self.M}

    def _quantize(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        return self.estimate(y)

    @property
    def codec_fingerprint(self) -> str:  # type: ignore[override]
        """The codec's own fingerprint: the Transformer reads its latents."""
        return self.fingerprint

    def from_streams(
        self, streams: Sequence[bytes], *, max_pixels: int | None = MAX_IMAGE_PIXELS, num_threads: int | None = None
    ) -> Tensor:
        """Bits to logits ``(B, num_classes)``; no pixel is rebuilt.

        Args:
            streams: of this codec, of images of any sizes.
            max_pixels, num_threads: as in :meth:`decompress`.

        Raises:
            BitstreamError, PairingError, TypeError, ValueError: as :meth:`decompress`.
        """
        return compose(self, self).from_streams(streams, max_pixels=max_pixels, num_threads=num_threads)

    def init_from_first_step(self, state_dict: Mapping[str, Tensor]) -> LoadedNames:
        """Take over everything but the hyperprior from a network of the first step of training.

        Args:
            state_dict: of an :class:`ICAT` of the same arguments.

        Returns:
            which tensors were filled here, which of ``state_dict`` have no place, and which here stay as they were.

        Raises:
            WeightsError: a tensor is missing or has another shape. Nothing has been copied then.
        """
        prior = ("h_a.", "h_s.", "entropy_bottleneck.", "gaussian_conditional.")
        names = [(name, name) for name in self.state_dict() if not name.startswith(prior)]
        source, way_out = "icat_small without a hyperprior", "build both with the same arguments"
        return load_named(self, state_dict, names, source=source, way_out=way_out)


# -- weights and builder -----------------------------------------------------------------------------------------


class ICAT_Small_Weights(WeightsEnum):
    """Weights of :func:`icat_small`: none published yet."""


class ICATOptions(ClassifierOptions, total=False):
    """Options of the builder; see :class:`ICAT`."""

    hyperprior: bool
    aggregation: bool
    drop_path: float


def _icat(*, hyperprior: bool = False, **arguments: Any) -> ICAT:
    return ICATCodec(**arguments) if hyperprior else ICAT(**arguments)


@register_model(ICAT, make=_icat, weights=ICAT_Small_Weights, num_params=25_626_923)
def icat_small(*, weights: WeightsLike = None, **options: Unpack[ICATOptions]) -> ICAT:
    """Image compression and analysis with a Transformer: one network that classifies and reconstructs.

    ``hyperprior=True`` gives an :class:`ICATCodec`, which writes and reads ``.cdz`` streams.
    """
