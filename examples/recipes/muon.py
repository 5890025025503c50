"""Muon (Jordan et al., 2024) for convolutions, Adam for everything else.

Momentum of each filter bank, as a matrix with a row per filter, is replaced by the nearest orthogonal matrix, found by
five steps of Newton and Schulz. On adapters it needs about a third of the steps of AdamW under a loss in which every
place of the features has a part. It does not suit a loss of a few numbers for each image: then most directions of a
gradient are noise, and they get the same length as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Muon for groups with ``"orthogonal": True``; Adam for the others.

    Args:
        groups: parameter groups with ``"params"``, ``"lr"`` and ``"orthogonal"``. Under Muon ``lr`` is the length of a
            step over that of the parameter, so it is right for any size: 0.03 to begin with. The parameter keeps its
            length: a layer that batch norm follows does not depend on it, and it would grow without end.
        momentum: of Muon.
        betas: of Adam.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(groups, {"lr": 0.03, "orthogonal": False, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                # of zeros, momentum would make steps of full length: no input has reached such a parameter
                if parameter.grad is not None and (not group["orthogonal"] or parameter.grad.any()):
                    update = self._muon if group["orthogonal"] else self._adam
                    update(parameter, parameter.grad, group, self.state[parameter])

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        mean.lerp_(gradient, 1 - group["momentum"])
        direction = orthogonalized(gradient.lerp(mean, group["momentum"]).flatten(1)).view_as(parameter)
        length = parameter.norm()
        parameter.sub_(direction * (group["lr"] * length / direction.norm().clamp_min(1e-12)))
        parameter.mul_(length / parameter.norm().clamp_min(1e-12))

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        count = state["count"] = state.get("count", 0) + 1
        first, second = group["betas"]
        mean.lerp_(gradient, 1 - first)
        square.lerp_(gradient.square(), 1 - second)
        deviation = (square / (1 - second**count)).sqrt().add_(1e-8)
        parameter.addcdiv_(mean, deviation, value=-group["lr"] / (1 - first**count))


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix of the same singular vectors whose singular values are all near 1."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp_min(1e-12)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def parameter_groups(
    module: nn.Module, lr: float, *, orthogonal: bool = True, plain: Sequence[str] = ("conv_out", "slope")
) -> list[dict[str, Any]]:
    """Muon for the convolutions of a module, Adam at a tenth of the rate for all else; or Adam for all.

    Args:
        module: what is trained.
        lr: Muon's rate; ten times that of Adam.
        orthogonal: use Muon.
        plain: parts of the names of convolutions that Adam trains: the last one, and those that begin at zero.
    """
    named = list(module.named_parameters())
    hidden = [p for name, p in named if p.dim() == 4 and not any(part in name for part in plain)]
    others = [p for name, p in named if p.dim() != 4 or any(part in name for part in plain)]
    return [
        {"params": hidden, "lr": lr if orthogonal else lr / 10, "orthogonal": orthogonal},
        {"params": others, "lr": lr / 10, "orthogonal": False},
    ]
