"""Forgetting of whole classes: all members of one or several classes.

Golatkar, Achille, Soatto 2020, arXiv 1911.04933; the request of One-Shot Machine Unlearning with Mnemonic
Code, arXiv 2306.05670. On the audit track a base has a single forget set, its members of these classes:
retraining without them is the same model for every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from methods.base import hp


@dataclass(frozen=True)
class Class:
    """Forget all members of `classes`, which are numbered from 0."""

    name = "class"
    label = "whole classes"
    paper = "arXiv:1911.04933"
    version = 1
    scope = "class"
    share = "classes / num_classes"

    classes: tuple[int, ...] = hp((0,), 0)

    def draw(self, labels: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The forget set: a bool mask (n,) within `members` (bool, n). Nothing is drawn at random."""
        return members & np.isin(labels, self.classes)

    def audited(
        self, labels: np.ndarray, pool: np.ndarray, sets: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The pool samples that are forgotten where they are members: a bool mask (n,) within `pool`."""
        return pool & np.isin(labels, self.classes)
