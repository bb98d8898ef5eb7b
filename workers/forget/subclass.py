"""Forgetting of parts of classes: all members of one or several subclasses, such as the rockets of CIFAR-20.

Sub-class unlearning of Chundawat, Tarun, Mandal, Kankanhalli 2023, arXiv 2205.08096: a model that knows 20
superclasses forgets one of the five kinds of image in one of them. The rest of the class stays, so this is
no whole class to a method. For datasets with `num_subclasses`. On the audit track a base has a single forget
set, its members of these subclasses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from methods.base import hp


@dataclass(frozen=True)
class Subclass:
    """Forget all members of `subclasses`: numbers from 0 or, in grids, names that the dataset declares."""

    name = "subclass"
    label = "subclasses"
    paper = "arXiv:2205.08096"
    version = 1
    scope = "random"
    share = "subclasses / num_subclasses"
    given = "subclasses"
    audit_sets = "one"

    subclasses: tuple[int | str, ...] = hp((0,), 0)

    def draw(self, subclasses: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The forget set: a bool mask (n,) within `members` (bool, n). Nothing is drawn at random."""
        return members & np.isin(subclasses, self.subclasses)

    def audited(
        self, subclasses: np.ndarray, pool: np.ndarray, sets: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The pool samples that are forgotten where they are members: a bool mask (n,) within `pool`."""
        return pool & np.isin(subclasses, self.subclasses)
