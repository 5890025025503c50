"""Learning rate schedules: a factor as a function of the share of the training that is over, 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[float], float]
"""From the share of the training that is over, 0 to 1, to what the learning rate is multiplied by."""


def constant(progress: float) -> float:
    """1, always."""
    return 1.0


def step_decay(milestones: Sequence[float], *, of: float, factor: float = 0.1) -> Schedule:
    """Times ``factor`` from each milestone on; milestones and ``of``, the whole length, in one unit, say epochs."""
    # 8 / 28 * 28 is not 8 to the last bit
    return lambda progress: factor ** sum(progress * of >= milestone - 1e-9 for milestone in milestones)


def polynomial(power: float = 0.9) -> Schedule:
    """``(1 - progress) ** power``, which DeepLab calls poly."""
    return lambda progress: max(0.0, 1 - progress) ** power


def cosine(*, warmup: float = 0.0, constant_until: float = 0.0, end: float = 0.0) -> Schedule:
    """Linearly up for a share ``warmup``, 1 until the share ``constant_until``, then half a cosine down to ``end``."""

    def schedule(progress: float) -> float:
        if progress < warmup:
            return max(progress / warmup, 1e-3)
        start = max(warmup, constant_until)
        position = min(1.0, max(0.0, (progress - start) / (1 - start)))
        return end + (1 - end) * (1 + math.cos(math.pi * position)) / 2

    return schedule


def triangle(warmup: float) -> Schedule:
    """Linearly up for a share ``warmup``, then linearly down to 0."""
    return lambda progress: max(0.0, min(progress / warmup, (1 - progress) / (1 - warmup)))


def part_of(schedule: Schedule, start: float, end: float) -> Schedule:
    """The stretch of a schedule between two shares, for a training in stages."""
    return lambda progress: schedule(start + progress * (end - start))
