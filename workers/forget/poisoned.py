"""Forgetting of poisoned samples: training saw them with Gaussian noise on the input or with wrong labels.

Pawelczyk et al. 2024, Machine Unlearning Fails to Remove Data Poisoning Attacks, arXiv 2406.17216: the noise,
of which the Gaussian unlearning score finds what is left. Wrong labels are drawn at random, where Goel et al.
2022, arXiv 2201.06640, exchange those of two classes. Samples are chosen as in `random`; workers/poison.py
says what is done to them and in which models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from methods.base import hp
from workers.designs import subset


@dataclass(frozen=True)
class Poisoned:
    """Poison and forget `fraction` of the members: noise of standard deviation `noise`, in units of the
    normalised input, and with `flip_labels` another class, uniformly.
    """

    name = "poisoned"
    label = "poisoned samples"
    paper = "arXiv:2406.17216"
    version = 1
    scope = "random"
    share = "fraction"
    poisons = True

    fraction: float = hp(0.1, 0.0001, 0.9)
    noise: float = hp(1.0, 0.0, 100.0)
    flip_labels: bool = hp(False, False, True)

    def draw(self, labels: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The forget set of the main track: a bool mask (n,) within `members` (bool, n)."""
        return subset(labels, members, round(self.fraction * int(members.sum())), rng)

    def audited(
        self, labels: np.ndarray, pool: np.ndarray, sets: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The pool samples that `sets` disjoint forget sets per base can cover: a bool mask (n,) within
        `pool`.
        """
        return subset(labels, pool, round(self.fraction * sets * int(pool.sum())), rng)
