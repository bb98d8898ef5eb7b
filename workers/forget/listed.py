"""Forgetting of exactly the samples in a file, as a deletion request names them.

The file has one sample id a line (a position in the pool, `sample_id` of the table samples; `#` starts a
comment), or is a CSV file with a column sample_id. No listed sample is in the validation set, so that each
one is trained on and can be forgotten; bases are therefore trained for each list. On the audit track a base
has a single forget set: the half of the list that it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from methods.base import hp


@dataclass(frozen=True)
class Listed:
    """Forget the samples in `file`, a path relative to the grid's. Tasks know the hash of the ids alone."""

    name = "listed"
    label = "listed samples"
    paper = "GDPR Art. 17"
    version = 1
    scope = "random"
    share = "listed / pool"
    given = "listed"
    audit_sets = "one"

    file: str = hp("")

    def draw(self, listed: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The forget set: a bool mask (n,), the listed samples, which all are members."""
        if np.any(listed & ~members):
            raise ValueError(f"{int(np.sum(listed & ~members))} listed samples are no members")
        return listed

    def audited(
        self, listed: np.ndarray, pool: np.ndarray, sets: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The samples that are forgotten where they are members: a bool mask (n,) within `pool`."""
        return pool & listed
