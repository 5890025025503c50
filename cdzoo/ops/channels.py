"""Learning from a few channels of a latent.

Source: Wang et al., Learning from the CNN-based Compressed Domain, WACV 2022, section 3.4.4.

The channels of a latent carry very unequal amounts of information, and the variance of a map tells how much. The paper
ranks the 256 channels of its codec by their variance, averaged over the training set, and trains networks on the best
32 or 16: chosen once, the same for every image.

    channels = rank_channels(latents)[:32]
    codec.select(channels)                      # streams and latents of these channels only: fewer bits
    resnet41(in_channels=256, channels=...)     # or: whole streams, of which the network reads these channels
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from cdzoo.types import Latent

__all__ = ["ChannelSelect", "check_channels", "rank_channels", "select_channels"]


@torch.no_grad()
def rank_channels(latents: Latent | Tensor | Iterable[Latent | Tensor]) -> Tensor:
    """The channels of a latent, the one with most variance first.

    The variance is that of all ``h w`` values of one map of one image; it is averaged over the images, each of which
    counts the same whatever its size. Equal variances keep the order of the channels.

    Args:
        latents: one latent ``(B, M, h, w)``, as a :class:`~cdzoo.types.Latent` or a tensor, or an iterable of such,
            of any batch and latent sizes. An iterable is read once, and one latent at a time.

    Returns:
        ``(M,)`` int64 on the CPU, a permutation of the channels.

    Raises:
        ValueError: no latent, unequal numbers of channels, or values that are not finite.
        TypeError: something in the iterable is not a latent.
    """
    total, count = torch.zeros(0, dtype=torch.float64), 0
    # a Latent is a tuple, and a tensor iterates over its images: neither is an iterable of latents
    for position, latent in enumerate([latents] if isinstance(latents, Latent | Tensor) else latents):
        y_hat = latent.y_hat if isinstance(latent, Latent) else latent
        if not isinstance(y_hat, Tensor):
            raise TypeError(
                f"item {position} is a {type(latent).__name__}, not a latent; of pairs with labels pass the latents, "
                "as in rank_channels(latent for latent, _ in loader)"
            )
        if y_hat.dim() != 4 or 0 in y_hat.shape:
            raise ValueError(f"latent {position} has shape {tuple(y_hat.shape)}, not (B, M, h, w) with sizes from 1")
        variances = y_hat.flatten(2).double().var(dim=2, correction=0).sum(0).cpu()
        if not bool(variances.isfinite().all()):
            raise ValueError(f"latent {position} has values that are not finite; are the codec's weights finite?")
        if count and len(variances) != len(total):
            raise ValueError(
                f"latent {position} has {len(variances)} channels, those before it {len(total)}: channels are ranked "
                "among the latents of one codec"
            )
        total = total + variances if count else variances
        count += len(y_hat)
    if not count:
        raise ValueError("no latents: the variance of channels is measured on at least one")
    return (total / count).argsort(descending=True, stable=True)


def check_channels(indices: Any, *, of: int | None = None) -> Tensor:
    """Indices of channels as an int64 tensor ``(k,)`` of its own, on the CPU.

    Args:
        indices: what was given for them.
        of: how many channels there are, where that is known.

    Raises:
        TypeError: not a list at all.
        ValueError: not a list of integers from 0, none at all, one of them twice, or one that is not there.
    """
    if isinstance(indices, Tensor):
        tensor = indices.detach().cpu()
    elif isinstance(indices, Iterable) and not isinstance(indices, str | bytes):
        tensor = torch.as_tensor(list(indices), device="cpu")
    else:
        raise TypeError(f"channels must be a list of integers, not {indices!r}; rank_channels(latents)[:32] makes one")
    if tensor.numel() == 0:
        raise ValueError("channels must be at least one index, and none was given")
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        kind = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
        raise ValueError(f"channels must be a list of integers, not {kind}; of a mask take mask.nonzero()[:, 0]")
    tensor = tensor.long().clone()
    if int(tensor.min()) < 0:
        raise ValueError(f"channels={tensor.tolist()}: indices must be 0 or more")
    if len(set(tensor.tolist())) != len(tensor):
        raise ValueError(f"channels={tensor.tolist()}: each index may occur once")
    if of is not None and int(tensor.max()) >= of:
        raise ValueError(
            f"channels has index {int(tensor.max())}, but the latent has {of} channels (0 to {of - 1}); use "
            "rank_channels on latents of this codec"
        )
    return tensor


class ChannelSelect(nn.Module):
    """Some channels of a latent, in the order in which they are given.

    Args:
        indices: ``k`` distinct channels, such as ``rank_channels(latents)[:32]``. They are kept in the state dict.

    Attributes:
        indices: ``(k,)`` int64.
        needed: the smallest number of channels that an input may have.

    Raises:
        ValueError: not a list of distinct integers from 0.
    """

    indices: Tensor

    def __init__(self, indices: Tensor | Sequence[int]) -> None:
        super().__init__()
        checked = check_channels(indices)
        self.register_buffer("indices", checked)
        self.needed = int(checked.max()) + 1
        self.register_load_state_dict_post_hook(_recount)  # type: ignore[no-untyped-call]

    def forward(self, latent: Latent | Tensor) -> Any:
        """``(B, M, h, w)`` -> ``(B, k, h, w)``; of a :class:`~cdzoo.types.Latent` both values and scales.

        Raises:
            ValueError: the latent has fewer channels than the indices ask for.
        """
        if isinstance(latent, Latent):
            scales = None if latent.scales is None else self._pick(latent.scales)
            return Latent(self._pick(latent.y_hat), scales, latent.image_size)
        return self._pick(latent)

    def put_back(self, x: Tensor, num_channels: int) -> Tensor:
        """``(B, k, h, w)`` -> ``(B, num_channels, h, w)``: each channel in its place, and 0 in all others."""
        whole = x.new_zeros(x.shape[0], num_channels, *x.shape[2:])
        return whole.index_copy(1, self.indices, x)

    def _pick(self, x: Tensor) -> Tensor:
        return _checked(x, self.needed).index_select(1, self.indices)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (name := f"{prefix}indices") in state_dict:
            check_channels(state_dict[name])  # before they are taken over
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{len(self.indices)} channels"


@torch.fx.wrap
def _checked(x: Tensor, needed: int) -> Tensor:
    if x.dim() != 4 or x.shape[1] < needed:
        raise ValueError(
            f"latent of shape {tuple(x.shape)}, but the selection asks for channel {needed - 1} of (B, M, h, w): "
            "it was made for a codec with more latent channels"
        )
    return x


def _recount(module: nn.Module, _: Any) -> None:
    assert isinstance(module, ChannelSelect)
    module.needed = int(check_channels(module.indices).max()) + 1


def select_channels(channels: Any, *, of: int) -> ChannelSelect | None:
    """The layer that leaves some of ``of`` channels, or ``None`` where ``channels`` is: all of them.

    Raises:
        ValueError: as :func:`check_channels`.
    """
    return None if channels is None else ChannelSelect(check_channels(channels, of=of))
