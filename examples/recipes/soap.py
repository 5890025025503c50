"""SOAP (Vyas et al., "Improving and stabilizing Shampoo using Adam", ICLR 2025): Adam in the gradients' own directions.

Shampoo's averages of ``G G^T`` along each side of a filter bank have eigenvectors. Adam keeps its second moments in
the basis of these, where a gradient's entries depend on each other less. On codecs with a hyperprior it needs a third
to half of Adam's steps; a step costs some milliseconds more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_SHORTEST, _LONGEST = 2, 512  # sides that get a basis


class SOAP(torch.optim.Optimizer):
    """SOAP for weights of convolutions and other matrices, Adam for vectors.

    A weight ``(out, in, kh, kw)`` counts as ``(out, in, kh * kw)``: three sides, and three bases. The first step of
    a parameter finds them and moves nothing.

    Args:
        params: parameters, or groups of them; those of a group with ``"rotate": False`` are left to Adam.
        lr: length of a step, as in Adam.
        betas: decay of the first and second moments.
        decay: of the averages whose eigenvectors are the bases.
        every: steps from one update of the bases to the next.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        decay: float = 0.95,
        every: int = 10,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "decay": decay, "every": every, "rotate": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group, self.state[parameter])

    def _step(self, parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        gradient = parameter.grad.flatten(2) if parameter.dim() > 2 else parameter.grad  # type: ignore[union-attr]
        sides = [i for i, n in enumerate(gradient.shape) if _SHORTEST <= n <= _LONGEST]
        if not group["rotate"] or gradient.dim() < 2:
            sides = []
        if "mean" not in state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
            state["products"] = [_product(gradient, i) for i in sides]
            state["bases"] = [torch.linalg.eigh(product)[1].flip(1) for product in state["products"]]
            if sides:
                return
        state["step"] += 1
        for product, i in zip(state["products"], sides, strict=True):
            product.lerp_(_product(gradient, i), 1 - group["decay"])
        (first, second), count = group["betas"], state["step"]
        rotated = _rotate(gradient, state["bases"], sides)
        state["mean"].lerp_(rotated, 1 - first)
        state["square"].lerp_(rotated.square(), 1 - second)
        deviation = (state["square"] / (1 - second**count)).sqrt().add_(1e-8)
        # a ratio is at most 1 while the bases stay; behind a turn, a small deviation may belong to another direction
        ratio = (state["mean"] / deviation).clamp_(-2, 2)
        direction = _rotate(ratio, state["bases"], sides, back=True)
        parameter.sub_(direction.view_as(parameter), alpha=group["lr"] / (1 - first**count))
        if sides and count % group["every"] == 0:
            _turn(state, sides)


def _product(gradient: Tensor, side: int) -> Tensor:
    """``G G^T`` of the matrix whose rows lie along a side."""
    rows = gradient.movedim(side, 0).flatten(1)
    return rows @ rows.T


def _rotate(values: Tensor, bases: list[Tensor], sides: list[int], *, back: bool = False) -> Tensor:
    """Coordinates with respect to the bases of some sides; or, back, the values that have these coordinates."""
    for basis, side in zip(bases, sides, strict=True):
        values = torch.tensordot(values, basis.T if back else basis, dims=([side], [0])).movedim(-1, side)
    return values


def _turn(state: dict[str, Any], sides: list[int]) -> None:
    """Bring the bases closer to the eigenvectors, by one step of orthogonal iteration."""
    mean = _rotate(state["mean"], state["bases"], sides, back=True)
    for n, (product, side) in enumerate(zip(state["products"], sides, strict=True)):
        basis = state["bases"][n]
        order = torch.einsum("ij,ik,kj->j", basis, product, basis).argsort(descending=True)
        state["square"] = state["square"].index_select(side, order)
        state["bases"][n] = torch.linalg.qr(product @ basis[:, order])[0]
    state["mean"] = _rotate(mean, state["bases"], sides)
