"""The coded half of codecs with a hyperprior: what they all do with a latent, whatever made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from cdzoo.coding._prior_state import UNIT, HyperpriorState
from cdzoo.coding.base import Codec, CodingState, pad_to_multiple
from cdzoo.coding.integer_decoder import ACTIVATION_BITS
from cdzoo.coding.layers import EntropyBottleneck, GaussianConditional
from cdzoo.coding.symbols import Channel

__all__ = ["GaussianPrior"]


class GaussianPrior(Codec):
    """A codec whose latent consists of Gaussians, with scales (and means) that a hyperprior predicts.

    A subclass provides the modules below and the image transforms.

    Attributes:
        N: channels of the hyper-latent.
        M: channels of the latent, of its scales, and of its means.
        h_a: latents ``(B, M, h, w)`` to hyper-latents ``(B, N, h', w')``.
        h_s: back, to scales (and means) of at least ``(h, w)``.
        entropy_bottleneck: entropy model of the hyper-latent, of ``N`` channels.
        gaussian_conditional: entropy model of the latent.
    """

    has_scales: ClassVar[bool] = True
    _num_parts: ClassVar[int] = 2
    _hyper_stride: ClassVar[int] = 4
    """Latent samples per sample of the hyper-latent; the latent is padded to a multiple of it inside the hyperprior."""
    _has_means: ClassVar[bool] = True
    """Without means, Gaussians lie around zero, and the hyperprior reads magnitudes."""
    N: int
    M: int
    h_a: nn.Sequential
    h_s: nn.Sequential
    entropy_bottleneck: EntropyBottleneck
    gaussian_conditional: GaussianConditional

    def aux_loss(self) -> Tensor:
        """Distance of the bottleneck's quantiles from where they should be; an optimizer of its own minimizes it."""
        return self.entropy_bottleneck.loss()

    def _hyper_input(self, y: Tensor) -> Tensor:
        return y if self._has_means else torch.abs(y)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
        """The hyper-decoder's output as scales and means."""
        if not self._has_means:
            return parameters, None
        scales, means = parameters.chunk(2, 1)
        return scales, means

    def _train_forward(self, y: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        height, width = y.shape[-2:]
        z = self.h_a(pad_to_multiple(self._hyper_input(y), self._hyper_stride))
        z_hat, z_likelihood = self.entropy_bottleneck(z)
        scales, means = self._split(self.h_s(z_hat)[..., :height, :width])
        y_hat, y_likelihood = self.gaussian_conditional(y, scales, means)
        return y_hat, scales, {"y": y_likelihood, "z": z_likelihood}

    def _derive(self, state: Mapping[str, Tensor] | None) -> CodingState:
        h_s = list(self.h_s)
        if state is None:
            return HyperpriorState.derive(self.entropy_bottleneck, h_s)
        return HyperpriorState.from_state(state, h_s)

    def _code(
        self, channel: Channel, y: Tensor | None, shape: tuple[int, int, int], device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        coding = self._coding_in_force()
        assert isinstance(coding, HyperpriorState)
        batch, height, width = shape
        z_height, z_width = -(-height // self._hyper_stride), -(-width // self._hyper_stride)

        z = None
        if y is not None:
            dtype = next(self.h_a.parameters()).dtype
            z = self.h_a(pad_to_multiple(self._hyper_input(y.to(dtype)), self._hyper_stride)).float()
            z = z - coding.bottleneck.medians_on(device)
        z_symbols = channel(
            z,
            (batch, self.N, z_height, z_width),
            coding.bottleneck.indexes(z_height, z_width, device),
            coding.bottleneck.tables,
        )
        z_hat = z_symbols.long() * 2**ACTIVATION_BITS + coding.bottleneck.medians.to(device).view(-1, 1, 1)
        # exact integers in float64, rounded to float32 once: the same values everywhere
        parameters = coding.decoder(z_hat, (height, width))
        parameters = parameters.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / UNIT)
        scales, means = self._split(parameters)
        indexes = coding.indexes(scales)
        means = None if means is None else means.to(device)
        centred = y if y is None or means is None else y - means
        symbols = channel(centred, (batch, self.M, height, width), indexes, coding.gaussian)
        y_hat = symbols.to(device).float()
        return (y_hat if means is None else y_hat + means), scales.to(device)
