"""Population attack on losses of the same classes, as for SCRUB (Kurmanji et al. 2023, arXiv:2302.09880).

A forget set whose classes are not those of the test set is told apart by how hard its classes are, without
any memory of a sample. So equally many samples of every class are drawn from both sides, as many as the
smaller side has, and the attack is that of `population_loss`: the accuracy of a logistic regression.

It is chance for a perfect method only where the two sets are exchangeable within a class; the reference is
the value of retraining.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.population_loss import MIN_SAMPLES, population_loss

name = "population_matched"
label = "U-MIA (loss, same classes)"
paper = "arXiv:2302.09880"
version = 1


def population_matched(
    forget_loss: ArrayLike,
    forget_label: ArrayLike,
    test_loss: ArrayLike,
    test_label: ArrayLike,
    seed: int = 123,
) -> float:
    """Mean test accuracy (0-1, chance 0.5) of telling forgotten (n1,) from unseen (n0,) losses, in nats.

    Labels are integers. Raises ValueError for a loss that is not finite, a class of the forget set that the
    test set lacks, or fewer than 10 samples left on a side.
    """
    member, kinds = _side(forget_loss, forget_label, "forget")
    nonmember, others = _side(test_loss, test_label, "test")
    lacking = np.setdiff1d(kinds, others)
    if lacking.size:
        raise ValueError(f"test_label: classes {lacking.tolist()} of the forget set have no test sample.")
    rng = np.random.default_rng(seed)
    chosen: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for kind in np.unique(kinds):
        here, there = (rng.permutation(np.flatnonzero(side == kind)) for side in (kinds, others))
        m = min(here.size, there.size)
        chosen.append((here[:m], there[:m]))
    ours, theirs = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    if ours.size < MIN_SAMPLES:
        raise ValueError(f"forget_label: {ours.size} samples share a class, at least {MIN_SAMPLES}.")
    accuracy: float = population_loss(member[ours], nonmember[theirs], seed)
    return accuracy


def _side(loss: ArrayLike, label: ArrayLike, what: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
    losses, labels = np.asarray(loss, dtype=np.float64), np.asarray(label)
    if losses.ndim != 1 or losses.size == 0 or labels.shape != losses.shape:
        raise ValueError(
            f"{what}: losses {losses.shape} and labels {labels.shape} are not one (samples,) shape."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what}_label: dtype {labels.dtype} is not an integer type.")
    bad = int(np.count_nonzero(~np.isfinite(losses)))
    if bad:
        raise ValueError(f"{what}_loss: {bad} of {losses.size} losses are not finite; none is allowed.")
    return losses, labels
