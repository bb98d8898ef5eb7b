"""Learning-rate schedules: the factor on the initial rate, of the epoch or step and how many there are."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int], float]


def constant(epoch: int, epochs: int) -> float:
    """Factor 1 in every epoch."""
    return 1.0


def cosine(epoch: int, epochs: int) -> float:
    """(1 + cos(π·epoch/epochs))/2 for epoch 0 … epochs − 1, from 1 towards 0."""
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def triangular(epoch: int, epochs: int) -> float:
    """With t = epoch + 1, A = ⌊(epochs+1)/2⌋, S = epochs + 1: t/A up to A, then (S − t)/(S − A)."""
    step, peak, total = epoch + 1, (epochs + 1) // 2, epochs + 1
    return step / peak if step <= peak else (total - step) / (total - peak)


def one_cycle(step: int, steps: int) -> float:
    """Linear from 1/25 up to 1 over the first 30 % of the steps, then linear down towards 0. Made for single
    steps: over few epochs it misses its peak. A plain form of the cycle of Smith 2018, arXiv 1803.09820.
    """
    peak = 0.3 * steps
    return 0.04 + 0.96 * step / peak if step < peak else (steps - step) / (steps - peak)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "triangular": triangular,
    "one_cycle": one_cycle,
}
BY_STEP = {"one_cycle"}  # schedules that training applies at each step and not at each epoch


def step_decay(rho: float) -> Schedule:
    """ρ^s, s the number of the marks 50 %, 80 % and 90 % of the epochs that have passed: of ten epochs
    0 … 4 have s = 0, 5 … 7 have 1, 8 has 2 and 9 has 3.
    """
    return lambda epoch, epochs: rho ** sum(10 * epoch >= tenths * epochs for tenths in (5, 8, 9))
