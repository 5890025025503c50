"""EfficientNet-Lite0 over the latents of a hyperprior codec: 1,000 ImageNet classes, without decoding.

Source: Deng & Karam, arXiv:2305.08000, section 4.2, put an adapter in front of the later stages of a pretrained
classifier. Here that is EfficientNet-Lite0 (Tan & Le, EfficientNet, ICML 2019; Lite: github.com/tensorflow/tpu) with
timm's names, and the adapter is trained by distillation, without labels. It gives the features that the pixel network
has at stride 8 for the central square of a photograph, resized to 224x224. Photographs may have any size:

    y_hat, log scales ─▶ entrance of the octave ─▶ resize ─▶ 3x3 convolutions ─▶ (40, 28, 28) ─▶ blocks.3 ... ─▶ fc
    (2C, H/16, W/16)     of size (OctaveConv)      to 28x28   at 14x14
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Unpack

from torch import Tensor

from cdzoo.models._efficientnet_blocks import CUT, STAGES, LiteTrunk, lite_stages
from cdzoo.models._resnet import scaled_channels
from cdzoo.models.adapters import Adapter, LatentEntrance
from cdzoo.models.classifier import LatentClassifier, LatentOptions
from cdzoo.types import Latent
from cdzoo.weights.enums import Weights, WeightsEnum
from cdzoo.zoo import register_model

if TYPE_CHECKING:
    from cdzoo.weights.enums import WeightsLike

__all__ = ["LatentEfficientNetLite0", "latent_efficientnet_lite0"]

_warned: set[tuple[int, int]] = set()


class LatentEfficientNetLite0(LiteTrunk, LatentClassifier):
    """EfficientNet-Lite0 that reads latents and scales.

    The central square of each image is classified. Weights are trained for a range of sizes, which ``meta`` states as
    ``shorter_side``, two numbers of pixels; other images are classified too, with one warning in a run of the program.

    Names of parameters are timm's, but for ``entrance``, ``adapter`` and ``fc``. ``reduction`` in ``feature_info`` is
    that of an image of 224 pixels: the maps of all images have 28x28, 14x14 and 7x7 places.

    Args:
        in_channels: latent channels ``C`` of the codec: 192 for qualities 1 to 5 of bmshj2018, 320 for 6 to 8.
        num_classes: logits.
        width: multiplies all channel counts but the input's, rounded to multiples of 8.
        adapter_channels: of the adapter's 3x3 convolutions, before ``width``.
        adapter_depth: number of these convolutions.
        latent_stride: pixels per latent sample.
    """

    uses_scales = True

    def __init__(
        self,
        *,
        in_channels: int = 192,
        num_classes: int = 1000,
        width: float = 1.0,
        adapter_channels: int = 192,
        adapter_depth: int = 7,
        latent_stride: int = 16,
    ) -> None:
        super().__init__(in_channels=in_channels, latent_stride=latent_stride)
        channels = [scaled_channels(row[0], width) for row in STAGES]
        cells = scaled_channels(64, width)
        self.entrance = LatentEntrance(in_channels, cells, latent_stride=latent_stride)
        hidden = scaled_channels(adapter_channels, width)
        self.adapter = Adapter(4 * cells, channels[CUT - 1], hidden=hidden, depth=adapter_depth, enlarge=2)
        self.blocks = lite_stages(channels[CUT - 1], channels[CUT:], CUT)
        self.set_head(channels[6], width, num_classes)
        stages = (
            ("adapter", channels[2], 8),
            ("blocks.4", channels[4], 16),
            ("blocks.6", channels[6], 32),
            ("act2", self.num_features, 32),
        )
        self.feature_info = [{"num_chs": c, "reduction": r, "module": name} for name, c, r in stages]

    def forward_stem(self, y_hat: Tensor | Latent, scales: Tensor | None = None) -> Tensor:
        """The cells that the adapter's convolutions read, ``(B, 256, 14, 14)``; see :class:`LatentEntrance`.

        Tensors are taken as latents of images that fill them, ``latent_stride * h`` times ``latent_stride * w`` pixels.
        """
        size = y_hat.image_size if isinstance(y_hat, Latent) else None
        x, sigma = self.check_input(y_hat, scales)
        height, width = (self.latent_stride * n for n in x.shape[2:]) if size is None else size
        known = self.meta.get("shorter_side")
        if known is not None and not known[0] <= min(height, width) <= known[1]:
            _warn_once(min(height, width), *known)
        assert sigma is not None
        cells: Tensor = self.entrance(x, sigma, (height, width))
        return cells


def _warn_once(found: int, least: int, most: int) -> None:
    """Warn of an image of another size than those of the training set, for the first one in a run."""
    if (least, most) not in _warned:
        _warned.add((least, most))
        warnings.warn(
            f"an image's shorter side has {found} pixels, and the weights were trained with {least} to {most}: labels "
            "of such images are less reliable; reduce large images before they are compressed "
            "(cdzoo compress --max-side)",
            stacklevel=2,
        )


class LatentEfficientNetLite0_Weights(WeightsEnum):
    """Weights of :func:`latent_efficientnet_lite0`, 1,000 classes of ImageNet, for each packaged codec for PSNR.

    They differ in the entrance and the adapter's first layer only.
    """

    IMAGENET1K_N48_M64 = Weights("latent-efficientnet-lite0-imagenet1k")
    IMAGENET1K_N48_M64_LOW = Weights("latent-efficientnet-lite0-low-imagenet1k")
    IMAGENET1K_N48_M64_HIGH = Weights("latent-efficientnet-lite0-high-imagenet1k")
    IMAGENET1K_N64_M96 = Weights("latent-efficientnet-lite0-n64-m96-imagenet1k")
    DEFAULT = IMAGENET1K_N48_M64


class LatentEfficientNetOptions(LatentOptions, total=False):
    """Options of the builder; see :class:`LatentEfficientNetLite0`."""

    adapter_channels: int
    adapter_depth: int


@register_model(LatentEfficientNetLite0, weights=LatentEfficientNetLite0_Weights, num_params=7_445_176)
def latent_efficientnet_lite0(
    *, weights: WeightsLike = None, **options: Unpack[LatentEfficientNetOptions]
) -> LatentEfficientNetLite0:
    """EfficientNet-Lite0 over the latents and scales of a hyperprior codec, for photographs of any size."""
