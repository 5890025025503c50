"""Checks of arguments: numbers, image batches, latents."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdzoo.types import Latent

__all__ = [
    "check_choice", "check_flag", "check_images", "check_is_latent", "check_latent", "check_range", "check_size",
    "integer", "thread_count",
]  # fmt: skip


def integer(value: Any) -> int | None:
    """The integer that ``value`` is, or ``None``: floating-point numbers and booleans are none."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_size(name: str, value: Any, *, smallest: int = 1) -> None:
    """Refuse a size that is no integer or too small.

    Args:
        name: of the argument.
        value: its value.
        smallest: 1, or 0 for a number of classes.

    Raises:
        ValueError: the value is not an integer, or below ``smallest``.
    """
    found = integer(value)
    if found is None or found < smallest:
        kind = "a positive integer" if smallest else "an integer that is not negative"
        hint = "" if smallest else "; 0 gives features instead of logits"
        raise ValueError(f"{name} must be {kind}, not {value!r}{hint}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        ValueError: another one.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false, such as ``"no"``, which counts as true.

    Raises:
        ValueError: neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r}: give True or False")


def check_images(x: Tensor) -> None:
    """Refuse what is no batch of images; values are not looked at.

    Raises:
        TypeError, ValueError: not a dense float tensor, or of another shape than ``(B, 3, H, W)``.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"images must be a float tensor (B, 3, H, W) in [0, 1], not {kind}; try x.float() / 255")
    if x.layout != torch.strided or x.dtype.itemsize < 2:
        raise TypeError(
            f"images must be a dense tensor of float16 or more, not {x.layout}, {x.dtype}; "
            "try x.to_dense() or x.float()"
        )
    if x.dim() != 4 or x.shape[1] != 3 or 0 in x.shape:
        raise ValueError(
            f"images must have shape (B, 3, H, W) with B, H, W >= 1, not {tuple(x.shape)}; "
            "add a batch dimension with x[None], and repeat a gray channel with x.expand(-1, 3, -1, -1)"
        )


def check_range(x: Tensor) -> None:
    """Refuse images ``(B, 3, H, W)`` that are not finite, or far outside ``[0, 1]``.

    Raises:
        TypeError, ValueError: a tensor without values, or values that no image has.
    """
    if x.is_meta:
        raise TypeError("images on the device 'meta' have no values to code; make them on the CPU or on a GPU")
    low, high = (float(v) for v in x.detach().aminmax())
    if not (low >= -0.5 and high <= 1.5):
        raise ValueError(
            f"images have values from {low:g} to {high:g}, but must be finite and in [0, 1]; divide 8-bit images by 255"
        )


def check_is_latent(name: str, latent: object) -> None:
    """Refuse what is no :class:`~cdzoo.types.Latent` as the argument of the function ``name``.

    Raises:
        TypeError: something else.
    """
    if not isinstance(latent, Latent):
        advice = "Latent(y_hat, scales, (H, W)) makes one of tensors"
        raise TypeError(f"{name} takes a Latent, as encode and decompress return it, not {_kind(latent)}; {advice}")


def check_latent(latent: object, *, name: str, channels: int, stride: int) -> tuple[int, int]:
    """Refuse what is no latent of a codec.

    Args:
        latent: what was given for one.
        name, channels, stride: the codec's.

    Returns:
        its image size ``(H, W)``.

    Raises:
        TypeError, ValueError: not a latent of real numbers, or of a shape that does not fit.
    """
    check_is_latent("decode", latent)
    assert isinstance(latent, Latent)
    y_hat = latent.y_hat
    if not isinstance(y_hat, Tensor) or y_hat.is_complex():
        raise TypeError(f"y_hat of a latent must be a tensor of real numbers, not {_kind(y_hat)}")
    try:
        height, width = map(operator.index, latent.image_size)
    except (TypeError, ValueError):
        height, width = 0, 0
    if height < 1 or width < 1:
        raise ValueError(
            f"image_size of a latent must be two integers (H, W) of at least 1, not {latent.image_size!r}; keep the "
            "one that the codec returned"
        )
    expected = (channels, -(-height // stride), -(-width // stride))
    if y_hat.dim() != 4 or tuple(y_hat.shape[1:]) != expected:
        raise ValueError(
            f"latent of shape {tuple(y_hat.shape)} for images of {height}x{width}: {name} needs "
            f"(B, {', '.join(map(str, expected))}); decode the latent as the codec returned it, before any "
            "resizing"
        )
    return height, width


def thread_count(num_threads: int | None) -> int:
    """The number of threads that ``num_threads`` means.

    Raises:
        TypeError, ValueError: not an integer, or below 1.
    """
    advice = "leave it out for torch's own setting"
    if num_threads is None:
        return torch.get_num_threads()
    count = integer(num_threads)
    if count is None:
        raise TypeError(f"num_threads must be an integer, not {num_threads!r}; {advice}")
    if count < 1:
        raise ValueError(f"num_threads must be at least 1, not {count}; {advice}")
    return count


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
