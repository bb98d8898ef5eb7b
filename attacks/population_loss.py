"""Population membership attack: a logistic regression on the loss (arXiv:2410.01276).

Losses of one unlearned model on forgotten samples ("members") and on unseen ones ("non-members"); shuffled
and cut to the same size m; a logistic regression with scikit-learn's defaults on that one feature; ten
stratified splits with 10 % test. The attack is their mean accuracy a, and

    indiscernibility = 1 - |2 a - 1|            1 = forgotten and unseen samples look the same

Limits: one feature and a linear rule are one threshold. Losses that are spread to both sides score as
forgotten.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

name = "population_loss"
label = "U-MIA (loss)"
paper = "arXiv:2410.01276"
version = 1

SPLITS, TEST_SHARE = 10, 0.1
MIN_SAMPLES = 10  # per class; below, a 10 % test set cannot hold both classes


def population_loss(member_loss: ArrayLike, nonmember_loss: ArrayLike, seed: int = 123) -> float:
    """Mean test accuracy (0-1, chance 0.5) of telling member (n1,) from non-member (n0,) losses, in nats.

    Raises ValueError for a non-finite loss or fewer than 10 samples on a side.
    """
    rng = np.random.default_rng(seed)
    member = rng.permutation(_losses(member_loss, "member_loss"))
    nonmember = rng.permutation(_losses(nonmember_loss, "nonmember_loss"))
    m = min(member.size, nonmember.size)
    loss = np.concatenate([member[:m], nonmember[:m]])[:, None]
    is_member = np.repeat([1, 0], m)
    splits = StratifiedShuffleSplit(SPLITS, test_size=TEST_SHARE, random_state=seed)
    return float(cross_val_score(LogisticRegression(), loss, is_member, cv=splits, scoring="accuracy").mean())


def indiscernibility(accuracy: float) -> float:
    """1 - |2 accuracy - 1|, in 0-1; 1 = members and non-members cannot be told apart."""
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy: {accuracy} is outside the allowed range 0..1.")
    return 1 - abs(2 * accuracy - 1)


def _losses(values: ArrayLike, what: str) -> NDArray[np.float64]:
    losses = np.asarray(values, dtype=np.float64)
    if losses.ndim != 1 or losses.size < MIN_SAMPLES:
        raise ValueError(f"{what}: shape {losses.shape} is not a list of at least {MIN_SAMPLES} losses.")
    bad = int(np.count_nonzero(~np.isfinite(losses)))
    if bad:
        raise ValueError(f"{what}: {bad} of {losses.size} losses are not finite; none is allowed.")
    return losses
