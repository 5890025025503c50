"""Feature adaptation for sparse latents (Deng & Karam, arXiv:2305.08000, section 4.1, figure 4b).

At a low bit rate, most channels of a latent have few values that are not zero. The channel attention unit (CAU) scales
and shifts each channel, so that the useful channels count. The feature enhancement unit (FEU) then fills zeros from
neighboring values, by 3x3 convolutions in a residual block.

    f ──▶ ChannelAttention  w·f + b ──┬─▶ 1x1 ─▶ n times 3x3 ─▶ 1x1 ──▶ (+) ─▶ ReLU
                                      └────── (1x1 if C differs) ────────┘
          FeatureAdaptation = ChannelAttention, then FeatureEnhancement

The paper leaves some details open. This implementation chooses:

- Linear layers and the 1x1 convolution of the pooling have a bias (the softmax cancels the latter). Convolutions before
  a batch norm have none.
- The bottleneck has at least 4 hidden channels, also where ``C / 16`` is less, since a layer norm over one value always
  gives its bias.

With these choices, parameter counts equal those of table 2. The options are the variants of table 3, and the defaults
are the paper's choice. Two details of the variants are open as well. Maximum and average are combined as in CBAM: both
pass through one bottleneck, and the results are added. Where the FEU is left out and the number of channels must
change, a 1x1 convolution with batch norm and ReLU replaces it.
"""

from __future__ import annotations

from torch import Tensor, nn

from cdzoo._checks import check_choice

POOLINGS = ("attention", "shared", "max", "avg", "max+avg")
TRANSFORMS = ("affine", "scale", "bias")
POSITIONS = ("pre", "skip", "inner", "post")
PARTS = ("both", "attention", "enhancement")

__all__ = ["ChannelAttention", "FeatureAdaptation", "FeatureEnhancement"]


def _conv_bn(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(*_conv_bn(in_channels, out_channels, kernel_size), nn.ReLU(inplace=True))


class AttentionPool2d(nn.Module):
    """Pool a map into one vector with learned weights over positions (equation 5).

    Initial weights are small, so that the result is close to the average. With larger weights, the softmax over the
    values of a raw latent would select one position, and gradients would vanish.

    Args:
        channels: ``C``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, kernel_size=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw small random weights. The bias stays, since the softmax cancels it."""
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, f: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, C)``: the mean over positions under ``softmax(conv(f))``."""
        k: Tensor = self.conv(f).flatten(2).softmax(dim=-1)
        return (f.flatten(2) @ k.transpose(1, 2)).squeeze(-1)


class ChannelAttention(nn.Module):
    """The channel attention unit (CAU): ``w·f + b`` with one weight and one bias per channel and image (equations 2-5).

    ``w`` and ``b`` come from two independent branches, each an attention pooling and a bottleneck of two linear layers.

    Args:
        channels: ``C``.
        reduction: the bottleneck has ``C // reduction`` hidden units, at least 4; ``"1fc"`` for a single linear layer.
        pooling: ``"attention"``, one for each branch; ``"shared"``, one for both; ``"max"``, ``"avg"`` or
            ``"max+avg"``, which have no weights.
        transform: ``"affine"``, or ``"scale"`` (``w·f``) or ``"bias"`` (``f + b``) alone.

    Raises:
        ValueError: an option that is none of these.
    """

    def __init__(
        self, channels: int, *, reduction: int | str = 16, pooling: str = "attention", transform: str = "affine"
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, POOLINGS)
        check_choice("transform", transform, TRANSFORMS)
        self.pooling, self.transform = pooling, transform
        if pooling == "shared":
            self.pool = AttentionPool2d(channels)
        if transform != "bias":
            if pooling == "attention":
                self.weight_pool = AttentionPool2d(channels)
            self.weight_mlp = _channel_mlp(channels, reduction)
        if transform != "scale":
            if pooling == "attention":
                self.bias_pool = AttentionPool2d(channels)
            self.bias_mlp = _channel_mlp(channels, reduction)

    def forward(self, f: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, C, h, w)``."""
        out = f
        if self.transform != "bias":
            w = sum(self.weight_mlp(v) for v in self._pooled(f, "weight_pool")).sigmoid()
            out = w[:, :, None, None] * out
        if self.transform != "scale":
            b = sum(self.bias_mlp(v) for v in self._pooled(f, "bias_pool"))
            out = out + b[:, :, None, None]
        return out

    def _pooled(self, f: Tensor, own: str) -> list[Tensor]:
        """The vectors ``(B, C)`` that a branch reads; what it makes of them is summed."""
        if self.pooling == "attention":
            return [getattr(self, own)(f)]
        if self.pooling == "shared":
            return [self.pool(f)]
        pooled = {"max": f.amax((2, 3)), "avg": f.mean((2, 3))}
        return [pooled[name] for name in self.pooling.split("+")]

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"pooling={self.pooling!r}, transform={self.transform!r}"


def _channel_mlp(channels: int, reduction: int | str) -> nn.Module:
    if reduction == "1fc":
        return nn.Linear(channels, channels)
    if not isinstance(reduction, int) or reduction < 1:
        raise ValueError(f'reduction={reduction!r}: give a positive integer, or "1fc" for a single linear layer')
    hidden = max(4, channels // reduction)
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
    )


class FeatureEnhancement(nn.Module):
    """The feature enhancement unit (FEU): a residual unit with ``num_convs`` 3x3 convolutions between two 1x1 ones.

    Args:
        in_channels: ``C`` of the input.
        out_channels: ``C`` of the output; where it differs, the skip connection is a 1x1 convolution with batch norm.
        num_convs: the paper's ``n``; more of them widen the receptive field.
        hidden_channels: channels inside; a quarter of ``out_channels``, at least 1, unless given.

    Raises:
        ValueError: ``num_convs`` is negative.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, num_convs: int, hidden_channels: int | None = None
    ) -> None:
        super().__init__()
        if num_convs < 0:
            raise ValueError(f"num_convs={num_convs} must not be negative; the paper has 2 to 5")
        hidden = max(1, out_channels // 4) if hidden_channels is None else hidden_channels
        self.reduce = _conv_bn_relu(in_channels, hidden, 1)
        self.convs = nn.Sequential(*(_conv_bn_relu(hidden, hidden, 3) for _ in range(num_convs)))
        self.expand = nn.Sequential(*_conv_bn(hidden, out_channels, 1))
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Sequential(*_conv_bn(in_channels, out_channels, 1))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, f: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, h, w)``."""
        output: Tensor = self.relu(self.enhanced(f) + self.skip(f))
        return output

    def enhanced(self, f: Tensor) -> Tensor:
        """The residual, added to the skip connection: ``(B, in_channels, h, w)`` -> ``(B, out_channels, h, w)``."""
        residual: Tensor = self.expand(self.convs(self.reduce(f)))
        return residual


class FeatureAdaptation(nn.Module):
    """The feature adaptation module (FA): a :class:`ChannelAttention`, then a :class:`FeatureEnhancement`.

    Args:
        in_channels: ``C`` of the input.
        out_channels: ``C`` of the output.
        num_convs: 3x3 convolutions in the enhancement unit.
        reduction: of the attention unit's bottleneck; ``"1fc"`` for a single linear layer.
        hidden_channels: of the enhancement unit; a quarter of ``out_channels`` unless given.
        pooling: of the attention unit, see :class:`ChannelAttention`.
        transform: of the attention unit, likewise.
        position: of the attention unit: ``"pre"``, in front of the enhancement unit; or inside it: ``"skip"``, on the
            skip connection; ``"inner"``, on what is added to that; ``"post"``, on the sum, in front of the ReLU.
        parts: ``"both"``, or the ``"attention"`` or ``"enhancement"`` unit alone.

    Raises:
        ValueError: an option that is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_convs: int,
        reduction: int | str = 16,
        hidden_channels: int | None = None,
        pooling: str = "attention",
        transform: str = "affine",
        position: str = "pre",
        parts: str = "both",
    ) -> None:
        super().__init__()
        check_choice("position", position, POSITIONS)
        check_choice("parts", parts, PARTS)
        self.position = position if parts == "both" else "pre"
        attended = in_channels if self.position in ("pre", "skip") else out_channels
        self.attention: nn.Module = nn.Identity()
        if parts != "enhancement":
            self.attention = ChannelAttention(attended, reduction=reduction, pooling=pooling, transform=transform)
        self.enhancement: nn.Module = nn.Identity()
        if parts != "attention":
            self.enhancement = FeatureEnhancement(
                in_channels, out_channels, num_convs=num_convs, hidden_channels=hidden_channels
            )
        elif in_channels != out_channels:
            self.enhancement = _conv_bn_relu(in_channels, out_channels, 1)

    def forward(self, f: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, h, w)``."""
        if self.position == "pre":
            output: Tensor = self.enhancement(self.attention(f))
            return output
        feu = self.enhancement
        assert isinstance(feu, FeatureEnhancement)
        if self.position == "skip":
            output = feu.relu(feu.enhanced(f) + feu.skip(self.attention(f)))
        elif self.position == "inner":
            output = feu.relu(self.attention(feu.enhanced(f)) + feu.skip(f))
        else:
            output = feu.relu(self.attention(feu.enhanced(f) + feu.skip(f)))
        return output
