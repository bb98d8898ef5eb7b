"""Uniformly random forgetting of a share or a number of the members, stratified by class.

The paper (arXiv 2410.01276) draws without strata, as a grid with `split: paper` does on its main track;
strata remove the chance imbalance of classes between the forget set and the rest, which a population attack
would otherwise see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from methods.base import hp
from workers.designs import paper_split, subset


@dataclass(frozen=True)
class Random:
    """Forget `fraction` of the members, or `count` of them.

    On the audit track each forget set has `count` samples on average: an audited sample is forgotten in every
    base that was trained on it, and how many of them a base was trained on is chance.
    """

    name = "random"
    label = "random samples"
    paper = "arXiv:2410.01276"
    version = 1
    scope = "random"
    share = "count / members if count else fraction"
    alternatives = ("fraction", "count")

    fraction: float = hp(0.1, 0.0001, 0.9)
    count: int = hp(0, 1, 1000000000)

    def draw(self, labels: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The forget set of the main track: a bool mask (n,) within `members` (bool, n)."""
        return subset(labels, members, self.count or round(self.fraction * int(members.sum())), rng)

    def paper_draw(self, order: np.ndarray) -> np.ndarray:
        """The forget set of the main track under the paper's split: indices, of the members in the order
        (n,) in which its first step leaves them.
        """
        return paper_split(order, self.count or self.fraction)[1]

    def audited(
        self, labels: np.ndarray, pool: np.ndarray, sets: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The pool samples that `sets` disjoint forget sets per base can cover: a bool mask (n,) within
        `pool`.

        It is the same for all bases, so that each audited sample is forgotten once in every base trained on
        it. A base is trained on half of them.
        """
        size = 2 * self.count * sets or round(self.fraction * sets * int(pool.sum()))
        return subset(labels, pool, size, rng)
