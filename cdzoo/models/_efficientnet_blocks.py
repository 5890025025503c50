"""Blocks of EfficientNet-Lite with timm's names.

The blocks are written here rather than imported because importing timm takes longer than classifying a photograph. The
tests compare them with timm's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdzoo.models._folding import fold_batch_norms
from cdzoo.models._resnet import scaled_channels
from cdzoo.models._state_dict import load_named
from cdzoo.models.classifier import Classifier, init_resnet_weights

__all__ = [
    "CUT",
    "STAGES",
    "Conv2dSame",
    "LiteTrunk",
    "batch_norm",
    "lite_stages",
]

STAGES = ((16, 1, 3, 1), (24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 4, 5, 2), (320, 1, 3, 1))
"""Channels, number of blocks, kernel size and stride of the first block, for ``blocks.0`` to ``blocks.6``."""
CUT = 3
"""The first stage that a stem or an adapter gives features to."""
_LAST_CHANNELS = 1280  # of the map in front of the classifier


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's padding ``"SAME"``: outputs are ``ceil(size / stride)``, odd padding lies behind.

    Strides above 1 pad by an amount that depends on the input's size, which :class:`torch.nn.Conv2d` cannot do.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, ceil(h / stride), ceil(w / stride))``."""
        if self.stride[0] > 1:
            rows, columns = (
                max((-(-n // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - n, 0) for n in x.shape[-2:]
            )
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with TensorFlow's epsilon."""
    return nn.BatchNorm2d(channels, eps=1e-3)


class DepthwiseSeparable(nn.Module):
    """Depthwise, linear 1x1; the input is added if shapes agree.

    ``(B, in_channels, h, w)`` -> ``(B, out_channels, ceil(h / stride), ceil(w / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.conv_dw = Conv2dSame(in_channels, in_channels, kernel_size, stride=stride, groups=in_channels)
        self.bn1 = batch_norm(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)), inplace=True)))
        return x + y if self.residual else y


class InvertedResidual(nn.Module):
    """1x1 to six times the channels, depthwise, linear 1x1; the input is added if shapes agree.

    ``(B, in_channels, h, w)`` -> ``(B, out_channels, ceil(h / stride), ceil(w / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int) -> None:
        super().__init__()
        hidden = 6 * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.conv_pw = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = batch_norm(hidden)
        self.conv_dw = Conv2dSame(hidden, hidden, kernel_size, stride=stride, groups=hidden)
        self.bn2 = batch_norm(hidden)
        self.conv_pwl = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self.bn1(self.conv_pw(x)), inplace=True)
        hidden = F.relu6(self.bn2(self.conv_dw(hidden)), inplace=True)
        y: Tensor = self.bn3(self.conv_pwl(hidden))
        return x + y if self.residual else y


def lite_stages(in_channels: int, channels: Iterable[int], first: int = 0) -> nn.Sequential:
    """Stages ``first`` to 6 of EfficientNet-Lite0, named by their numbers.

    Args:
        in_channels: of the map that stage ``first`` reads.
        channels: of each stage from ``first`` on.
        first: number of the first stage.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (out_channels, (_, depth, kernel_size, stride)) in enumerate(
        zip(channels, STAGES[first:], strict=True), first
    ):
        kind: type[InvertedResidual] | type[DepthwiseSeparable] = InvertedResidual if number else DepthwiseSeparable
        blocks = [kind(in_channels, out_channels, kernel_size, stride=stride)]
        blocks += [kind(out_channels, out_channels, kernel_size, stride=1) for _ in range(depth - 1)]
        stages[str(number)] = nn.Sequential(*blocks)
        in_channels = out_channels
    return nn.Sequential(stages)


class LiteTrunk(Classifier):
    """What the networks share that end in the stages from ``blocks.3`` on; all names but ``fc`` are timm's there."""

    def set_head(self, channels: int, width: float, num_classes: int) -> None:
        """Add the layers that follow ``blocks.6``, and initialize the network."""
        last = scaled_channels(_LAST_CHANNELS, width)
        self.conv_head = nn.Conv2d(channels, last, 1, bias=False)
        self.bn2 = batch_norm(last)
        self.act2 = nn.ReLU6(inplace=True)
        self.set_classifier(last, num_classes)
        init_resnet_weights(self)

    def for_inference(self, *, inplace: bool = False) -> Self:
        """See :class:`~cdzoo.models.classifier.Classifier`; also ``channels_last``, with batch norms folded."""
        return fold_batch_norms(super().for_inference(inplace=inplace).to(memory_format=torch.channels_last))

    def stage_modules(self, stage: str) -> list[str]:
        """See :class:`~cdzoo.models.classifier.Classifier`."""
        return {
            "blocks.0": ["conv_stem", "bn1", "act1", "blocks.0"],
            "blocks.4": ["blocks.3", "blocks.4"],
            "blocks.6": ["blocks.5", "blocks.6"],
            "act2": ["conv_head", "bn2", "act2"],
        }.get(stage, [stage])

    def load_timm(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the state dict of timm's ``tf_efficientnet_lite0``, all that has a place in this network.

        A stem on coefficients, an entrance and an adapter, which timm's network lacks, stay as they are.

        Args:
            state_dict: of a network of the same width and number of classes.

        Raises:
            WeightsError: a name is missing or a shape differs; no parameter has been changed then.
        """
        names = [name for name in self.state_dict() if not name.startswith(("stem.", "entrance.", "adapter."))]
        pairs = [(name, f"classifier.{name[3:]}" if name.startswith("fc.") else name) for name in names]
        load_named(
            self,
            state_dict,
            pairs,
            source="timm's tf_efficientnet_lite0",
            way_out="for another number of classes load first, then call reset_classifier",
        )
