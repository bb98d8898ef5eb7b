"""Forgetting of the most memorised samples: those whose score depends most on having been trained on.

Memorisation of a sample is m_in − m_out, the mean of φ over the bases of the audit track that were trained on
it less the mean over those that were not. After Feldman, Zhang 2020, arXiv 2008.03703, who take the
probability of the right class; φ does not saturate. Main track only: the choice has seen the very bases that
an audit of these samples would set against each other, which would bias it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from methods.base import hp


@dataclass(frozen=True)
class Memorised:
    """Forget the `count` samples with the highest m_in − m_out; the grid needs `audit`, whose bases say."""

    name = "memorised"
    label = "most memorised samples"
    paper = "arXiv:2008.03703"
    version = 1
    scope = "random"
    share = "count / members"
    given = "listed"
    audit_sets = "none"

    count: int = hp(100, 1, 1000000000)

    def draw(self, listed: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The forget set: a bool mask (n,) within `members`, the samples found the most memorised."""
        if np.any(listed & ~members):
            raise ValueError(f"{int(np.sum(listed & ~members))} of the samples are no members")
        return listed

    def audited(
        self, listed: np.ndarray, pool: np.ndarray, sets: int, rng: np.random.Generator
    ) -> np.ndarray:
        """ValueError: what was chosen by the bases of the audit is not audited on them."""
        raise ValueError("memorised is of the main track only")
