"""CNNs of timm and torchvision over JPEG coefficients, by the name of their architecture.

:func:`cdzoo.ops.to_jpeg_domain` converts a network at hand. What it gives is saved under the name of this builder, so
that :func:`cdzoo.from_pretrained` can build the architecture again, without a download, and fill it.
"""

from __future__ import annotations

from typing import Required, TypedDict, Unpack

from cdzoo.jpeg.nn.cnn_names import Library, build_network
from cdzoo.jpeg.nn.conv import DEFAULT_MEMORY_BUDGET
from cdzoo.jpeg.nn.convert import JPEGDomainModel
from cdzoo.jpeg.nn.entrance import JPEGEntrance
from cdzoo.jpeg.nn.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from cdzoo.weights.enums import WeightsLike
from cdzoo.zoo import register_model

__all__ = ["ConvertedCNN", "jpeg_domain"]


class ConvertedCNN(JPEGDomainModel):
    """A network of timm or torchvision in the form that :func:`cdzoo.ops.to_jpeg_domain` gives it.

    Args:
        library: ``"timm"`` or ``"torchvision"``.
        architecture: the network's name there, such as ``"resnet50"``.
        num_classes: number of outputs.
        channels: of its input: 3 (RGB), or 1 (luma).
        mode, relu, num_frequencies, chroma, mean, std, memory_budget: as in :func:`cdzoo.ops.to_jpeg_domain`.

    Raises:
        ImportError: the library is not installed.
        ValueError: an unknown library, architecture or option.
    """

    pipeline_tag = "image-classification"

    def __init__(
        self,
        *,
        library: Library,
        architecture: str,
        num_classes: int = 1000,
        channels: int = 3,
        mode: str = "fused",
        relu: str = "exact",
        num_frequencies: int = 15,
        chroma: str = "fancy",
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
    ) -> None:
        entrance = JPEGEntrance(
            channels=channels,
            mode=mode,
            relu=relu,
            num_frequencies=num_frequencies,
            chroma=chroma,
            mean=mean,
            std=std,
            memory_budget=memory_budget,
        )
        super().__init__(entrance, build_network(library, architecture, num_classes, channels))
        self.num_classes = num_classes


class ConvertedOptions(TypedDict, total=False):
    """Arguments of :class:`ConvertedCNN`."""

    library: Required[Library]
    architecture: Required[str]
    num_classes: int
    channels: int
    mode: str
    relu: str
    num_frequencies: int
    chroma: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    memory_budget: int


@register_model(ConvertedCNN, listed=False)
def jpeg_domain(*, weights: WeightsLike = None, **options: Unpack[ConvertedOptions]) -> ConvertedCNN:
    """A CNN of timm or torchvision over JPEG coefficients: networks from ``to_jpeg_domain`` when they are loaded."""
