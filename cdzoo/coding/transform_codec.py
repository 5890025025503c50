"""Any pair of an analysis and a synthesis module as a codec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdzoo.coding.calibrated import CalibratedCodec, CalibratedState, gaussian_weights

__all__ = ["TransformCodec"]

_LARGEST = 255
_EXPECTED_SCALE = 4.0


class TransformCodec(CalibratedCodec):
    """A codec made of an analysis and a synthesis module: an autoencoder whose latents are rounded and coded.

    Latents are rounded to multiples of ``step``. Symbols are coded with one table per channel, which ``calibrate``
    measures; before that, every channel counts as a Gaussian with a standard deviation of 4 steps around 0. Counts
    cover symbols from -255 to 255; a symbol outside costs some 20 bits more. In training mode, uniform noise of one
    step replaces rounding.

    The fingerprint covers parameters and persistent buffers of ``analysis``. If two of your codecs differ in something
    else (an activation function), extend :meth:`configuration`, or give them different names.

    Args:
        analysis: images ``(B, 3, H, W)``, RGB in ``[0, 1]``, to latents ``(B, M, H / stride, W / stride)``. It is
            called with sizes that ``stride`` divides; images of other sizes are padded at the bottom and on the right.
        synthesis: latents to images ``(B, 3, H, W)``.
        stride: pixels per latent sample, in each direction.
        latent_channels: ``M``.
        name: name of the registered builder; streams carry it. By default the ``name`` of the class.
        step: distance of quantized values, a float32 number. A larger step gives fewer bits and worse images.
        channels: the channels that latents and streams have, as :meth:`select` chose them; all of them by default.

    Raises:
        TypeError: a transform that is not a module, or a name that is not a string.
        ValueError: a stride or a number of channels below 1, or a step that is not positive and finite.

    Example::

        codec = TransformCodec(encoder, decoder, stride=8, latent_channels=64, step=0.5).eval()
        codec.calibrate(batches)
        streams = codec.compress(images)
    """

    name = "transform_codec"

    def __init__(
        self,
        analysis: nn.Module,
        synthesis: nn.Module,
        *,
        stride: int,
        latent_channels: int,
        name: str | None = None,
        step: float = 1.0,
        channels: Sequence[int] | None = None,
    ) -> None:
        kinds = [type(transform) for transform in (analysis, synthesis)]
        if not all(issubclass(kind, nn.Module) for kind in kinds):
            raise TypeError(f"analysis and synthesis must be modules, not {' and '.join(k.__name__ for k in kinds)}")
        if not issubclass(type(name), str | None):
            raise TypeError(f"name must be a string, the registered name of the codec's builder, not {name!r}")
        step = float(np.float32(step))
        if not (math.isfinite(step) and step > 0):
            raise ValueError(f"step must be positive and finite, not {step!r}; 1.0 rounds to integers")
        super().__init__(
            analysis,
            synthesis,
            stride=stride,
            latent_channels=latent_channels,
            symbols=range(-_LARGEST, _LARGEST + 1),
            channels=channels,
        )
        self.name = type(self).name if name is None else name
        self._step = step

    @property
    def step(self) -> float:
        """Distance of quantized values."""
        return self._step

    def quantizer_values(self) -> dict[str, Any]:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        return {"step": self._step}

    def quantize(self, y: Tensor) -> Tensor:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        if self.training:
            return y + self._step * (torch.rand_like(y) - 0.5)
        rounded = self._step * (y.detach() / self._step).round()
        return rounded + (y - y.detach())  # the added term is 0, and carries the gradient

    def to_symbols(self, y: Tensor, state: CalibratedState) -> Tensor:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        return y if state.step == 1 else y / state.step

    def from_symbols(self, symbols: Tensor, state: CalibratedState) -> Tensor:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        y_hat = symbols.float()
        return y_hat if state.step == 1 else y_hat * state.step

    def expected_weights(self) -> NDArray[np.int64]:
        """See :class:`~cdzoo.codecs.CalibratedCodec`."""
        zeros = torch.zeros(self.all_channels, device="cpu")
        inner = torch.arange(-_LARGEST, _LARGEST + 2, device="cpu") - 0.5
        weights = gaussian_weights(zeros, zeros + _EXPECTED_SCALE, inner)
        return np.concatenate([weights[:, 1:-1], weights[:, :1] + weights[:, -1:]], axis=1)
