"""Feature adaptation for sparse latents (Deng & Karam, arXiv:2305.08000, section 4.1, figure 4b).

Most channels of a latent at a low rate hold few non-zero values. The channel attention unit picks and realigns
channels by an affine transform, the feature enhancement unit then refills the chosen ones from their neighbourhood.

    f ──▶ ChannelAttention  w·f + b ──┬─▶ 1x1 ─▶ n times 3x3 ─▶ 1x1 ──▶ (+) ─▶ ReLU
                                      └────── (1x1 if C differs) ────────┘
          FeatureAdaptation = ChannelAttention, then FeatureEnhancement

The paper leaves open: biases (here: in the pooling's 1x1, where the softmax cancels it, and in the linear layers; none
in front of a batch norm), and the hidden width when ``C / 16`` falls below 4 (here 4: a layer norm over one value
always gives its bias). With these choices the parameter counts of the paper's table 2 come out.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ChannelAttention", "FeatureAdaptation", "FeatureEnhancement"]


def _conv_bn(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(*_conv_bn(in_channels, out_channels, kernel_size), nn.ReLU(inplace=True))


class AttentionPool2d(nn.Module):
    """Pools a map into one vector with learned weights over positions (equation 5).

    Args:
        channels: ``C``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, f: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, C)``: the mean over positions under ``softmax(conv(f))``."""
        k: Tensor = self.conv(f).flatten(2).softmax(dim=-1)
        return (f.flatten(2) @ k.transpose(1, 2)).squeeze(-1)


class ChannelAttention(nn.Module):
    """The channel attention unit (CAU): ``w·f + b`` with one weight and one bias per channel and image (equations 2-5).

    ``w`` and ``b`` come from two independent branches, each an attention pooling and a bottleneck of two linear layers.

    Args:
        channels: ``C``.
        reduction: the bottleneck has ``C // reduction`` hidden units, at least 4.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.weight_pool = AttentionPool2d(channels)
        self.weight_mlp = self._bottleneck(channels, hidden)
        self.bias_pool = AttentionPool2d(channels)
        self.bias_mlp = self._bottleneck(channels, hidden)

    @staticmethod
    def _bottleneck(channels: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )

    def forward(self, f: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, C, h, w)``."""
        w: Tensor = self.weight_mlp(self.weight_pool(f)).sigmoid()
        b: Tensor = self.bias_mlp(self.bias_pool(f))
        return w[:, :, None, None] * f + b[:, :, None, None]


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
        enhanced = self.expand(self.convs(self.reduce(f)))
        output: Tensor = self.relu(enhanced + self.skip(f))
        return output


class FeatureAdaptation(nn.Module):
    """The feature adaptation module (FA): a :class:`ChannelAttention`, then a :class:`FeatureEnhancement`.

    To leave one of the two out, put ``nn.Identity()`` in its place (``attention`` or ``enhancement``).

    Args:
        in_channels: ``C`` of the input.
        out_channels: ``C`` of the output.
        num_convs: 3x3 convolutions in the enhancement unit.
        reduction: of the attention unit's bottleneck.
        hidden_channels: of the enhancement unit; a quarter of ``out_channels`` unless given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_convs: int,
        reduction: int = 16,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.attention = ChannelAttention(in_channels, reduction=reduction)
        self.enhancement = FeatureEnhancement(
            in_channels, out_channels, num_convs=num_convs, hidden_channels=hidden_channels
        )

    def forward(self, f: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, out_channels, h, w)``."""
        output: Tensor = self.enhancement(self.attention(f))
        return output
