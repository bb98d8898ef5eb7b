"""Update leakage: the model before unlearning and after it, together (Chen et al. 2021, arXiv:2005.02205).

A sample is the vector (phi of the original model, phi of the unlearned model). Its law among samples that
were forgotten and among samples that were never in are bivariate Gaussians, and the attack is

    LLR = log N(v; mean_F, D_F R_F D_F) - log N(v; mean_U, D_U R_U D_U)

per sample, with D the moderated deviations (see moderation.py) and R the correlation of the two scores,
pooled over samples and shrunk towards none (see lira.py). What each model alone hides, their difference
may show: if they are strongly correlated, a small shift between the two is worth a lot.

Deviation: Chen et al. train a classifier on posteriors of both models; this needs neither it nor shadows of
its own, as the audit's pairs hold both scores. Every pair is scored by the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from attacks.inputs import Floats, scores
from attacks.lira import worlds_leave_pair_out

name = "update_leakage"
label = "Update leakage"
paper = "arXiv:2005.02205"
version = 1


def update_leakage(
    original_forgotten: ArrayLike,
    unlearned_forgotten: ArrayLike,
    original_other: ArrayLike,
    unlearned_other: ArrayLike,
) -> tuple[Floats, Floats]:
    """LLR (k, n) of forgotten samples and of the others, each pair scored by the other pairs.

    Four phi (k pairs, n samples), NaN = missing: of samples that were trained on and forgotten, and of
    samples that were never in (or of retained ones), by the original and by the unlearned model of one base.
    An entry counts if all four are there. Raises ValueError for a wrong shape, fewer than three pairs, or an
    infinite score.
    """
    forgotten = _both(original_forgotten, unlearned_forgotten)
    other = _both(original_other, unlearned_other)
    return worlds_leave_pair_out(forgotten, other, combine="joint")


def _both(original: ArrayLike, unlearned: ArrayLike) -> np.ndarray:
    """(k, 2, n) in the type that the scores came in: it says how finely they were stored."""
    before, after = np.asarray(original), np.asarray(unlearned)
    for what, phi in (("original", before), ("unlearned", after)):
        scores(phi, what, (2,))
    if before.shape != after.shape:
        raise ValueError(f"phi: shapes {before.shape} and {after.shape} of the two models differ.")
    return np.stack([before, after], axis=1)
