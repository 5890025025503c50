"""Units of ResNets, stages of them, and the trunk of a ResNet on images, with torchvision's parameter names."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from numbers import Real

from torch import Tensor, nn

from cdzoo.models.classifier import Classifier

__all__ = [
    "SCALES_CHANNELS",
    "BasicBlock",
    "Bottleneck",
    "StemmedResNet",
    "bottleneck_stage",
    "conv1x1_bn_relu",
    "scaled_channels",
]

SCALES_CHANNELS = 4  # of the branch that reads a hyperprior's scales (Deng and Karam, 5.3), whatever the width


def scaled_channels(channels: int, width: float) -> int:
    """``channels * width`` rounded to the nearest multiple of 8, at least 8.

    Raises:
        ValueError: ``width`` is not a positive, finite number.
    """
    value: object = width
    if isinstance(value, bool) or not isinstance(value, Real) or not (math.isfinite(value) and float(value) > 0):
        raise ValueError(f"width must be positive and finite, not {width!r}; 1.0 is the full width")
    return max(8, int(channels * width / 8 + 0.5) * 8)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; ``(B, in_channels, h, w)`` -> ``(B, planes, h', w')``.

    ``h' = ceil(h / stride)`` and likewise ``w'``. Source: He et al., Deep Residual Learning, figure 5.

    Args:
        in_channels: ``C`` of the input; where it is not ``planes`` the shortcut is a 1x1 convolution with batch norm.
        planes: channels of both convolutions.
        stride: of the first convolution.
    """

    def __init__(self, in_channels: int, planes: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _projection(in_channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, planes, h', w')``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        output: Tensor = self.relu(x + shortcut)
        return output


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut; ``(B, in_channels, h, w)`` -> ``(B, 4 planes, h', w')``.

    ``h' = ceil(h / stride)`` and likewise ``w'``. Source: He et al., Deep Residual Learning, figure 5.

    Args:
        in_channels: ``C`` of the input; where it isn't ``4 planes`` the shortcut is a 1x1 convolution with batch norm.
        planes: channels of the 3x3 convolution.
        stride: of the unit.
        dilation: of the 3x3 convolution.
        stride_in_1x1: the stride sits in the first 1x1 convolution (He et al.; Torfason et al.) or in the 3x3 one
            (torchvision; Deng and Karam).
    """

    expansion = 4

    def __init__(
        self, in_channels: int, planes: int, *, stride: int = 1, dilation: int = 1, stride_in_1x1: bool = False
    ) -> None:
        super().__init__()
        out_channels = self.expansion * planes
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, planes, 1, stride=stride_1x1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride_3x3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, 4 planes, h', w')``."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        output: Tensor = self.relu(self.bn3(self.conv3(x)) + identity)
        return output


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut where it is not the identity: a 1x1 convolution with batch norm."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def bottleneck_stage(
    in_channels: int,
    planes: int,
    num_blocks: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    stride_in_1x1: bool = False,
    first: int = 0,
) -> nn.Sequential:
    """``num_blocks`` bottlenecks in a row, the first of them with the stride.

    Args:
        in_channels: ``C`` of the input; the output has ``4 planes``.
        planes: channels of the 3x3 convolutions.
        num_blocks: how many.
        stride: of the first block.
        dilation: of all 3x3 convolutions.
        stride_in_1x1: see :class:`Bottleneck`.
        first: name of the first block; 1 where something else stands in for block 0, so that the other blocks keep
            the names that they have in a ResNet-50.
    """
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(num_blocks):
        blocks[str(first + index)] = Bottleneck(
            in_channels, planes, stride=stride, dilation=dilation, stride_in_1x1=stride_in_1x1
        )
        in_channels, stride = Bottleneck.expansion * planes, 1
    return nn.Sequential(blocks)


def conv1x1_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 1x1 convolution, batch norm and ReLU; joins the branches of ``y_hat`` and ``scales`` after concatenation."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class StemmedResNet(Classifier):
    """Stem, max pooling and four stages of a ResNet on images, with torchvision's names.

    A subclass calls :meth:`set_trunk` in its constructor and defines ``forward_stem``, up to the ReLU of the stem.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def set_trunk(
        self, layers: Sequence[int], width: float, *, bottleneck: bool = True, stride_in_1x1: bool = False
    ) -> int:
        """Add ``conv1`` to ``layer4`` and state the stages.

        Args:
            layers: units in ``layer1`` to ``layer4``.
            width: multiplies all channel counts but the input's.
            bottleneck: units of 1x1, 3x3 and 1x1 convolutions, else of two 3x3 ones.
            stride_in_1x1: see :class:`Bottleneck`.

        Returns:
            channels of the last stage's output.

        Raises:
            ValueError: ``layers`` does not hold four numbers, or ``width`` is not positive.
        """
        if len(layers) != 4:
            raise ValueError(f"layers={tuple(layers)} must be four numbers, for layer1 to layer4")
        widths = [scaled_channels(planes, width) for planes in (64, 128, 256, 512)]
        channels = widths[0]
        self.conv1 = nn.Conv2d(self.in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = [("relu", channels, 2)]
        for number, (planes, num_blocks) in enumerate(zip(widths, layers, strict=True), 1):
            stride = 1 if number == 1 else 2
            if bottleneck:
                stage = bottleneck_stage(channels, planes, num_blocks, stride=stride, stride_in_1x1=stride_in_1x1)
                channels = Bottleneck.expansion * planes
            else:
                first = BasicBlock(channels, planes, stride=stride)
                stage = nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(num_blocks - 1)))
                channels = planes
            self.add_module(f"layer{number}", stage)
            stages.append((f"layer{number}", channels, 2))
        self.set_stages(*stages)
        return channels

    def stage_modules(self, stage: str) -> list[str]:
        """See :class:`~cdzoo.models.classifier.Classifier`: max pooling comes before ``layer1``."""
        return ["maxpool", "layer1"] if stage == "layer1" else [stage]
