"""The score of the NeurIPS-2023 unlearning challenge (Triantafillou et al. 2024, arXiv:2406.09073).

One retain and one forget set, N unlearned and N retrained models. For each forgotten sample, every rule that
tells the two sets of phi apart has a false positive and a false negative rate, and gives

    eps = max( log(1 - delta - FPR) - log FNR, log(1 - delta - FNR) - log FPR ),  delta = 1e-5

Rules: all single thresholds, the set with the larger median being positive, and all intervals, the set with
the smaller interquartile range being inside. Both rates zero: eps is infinite; exactly one: the rule does not
count. One range below 1 % of the other: eps = 50 at once. eps of a sample is the largest, within 0..50; its
points are 2^-floor(2 eps), none from ceil(log(N - 1)) on; and the score F is the mean over samples.

eps is maximised on the data it is computed from: it bounds nothing, and a perfect method has F of about .35
with single thresholds and .05 with intervals (N = 512). So F of two disjoint halves of the retrained models
comes along (`null`), F of the unlearned models at that number of models (`forgetting_halved`), and their
ratio, 1 for a perfect method.

Deviation: every threshold is tried, not 100 per unit of phi; where medians or ranges tie, both roles are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.klom import halves, margins

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

name = "neurips_score"
label = "NeurIPS-2023 score"
paper = "arXiv:2406.09073"
version = 1

DELTA, CAP = 1e-5, 50.0
BIN_WIDTH = 0.5
NARROW = 0.01  # a range below this share of the other's is told apart at once
MIN_MODELS = 6  # halves of three; with two, no eps gets points


@dataclass(frozen=True, eq=False)
class NeuripsScore:
    """Scores in 0-1, 1 = best; `forgetting_halved` and `null` use equally many models and may be compared."""

    models: int  # the smaller of the two numbers of models
    forgetting: float  # F, all models
    epsilon: Floats = field(repr=False)  # (n,), 0 to 50, all models
    models_halved: int
    forgetting_halved: float  # F against each half of the retrained models, averaged
    null: float  # F of one half of the retrained models against the other
    ratio: float  # forgetting_halved / null; 1 = as good as retraining. NaN where null is 0


def neurips_score(
    unlearned: ArrayLike, retrained: ArrayLike, *, intervals: bool = True, seed: int = 0
) -> NeuripsScore:
    """F of one forget set: phi (N models, n samples) of unlearned and (M, n) of retrained models.

    intervals=False leaves single thresholds only. Halves are drawn by seed. Raises ValueError for a wrong
    shape, fewer than 6 models of a kind, or a phi that is not finite.
    """
    first, second = margins(unlearned, "unlearned", MIN_MODELS), margins(retrained, "retrained", MIN_MODELS)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"phi: {first.shape[1]} and {second.shape[1]} samples; both need the same ones.")
    epsilon = epsilons(first, second, intervals)
    few, half, other = halves(first, second, seed)

    def score(a: Floats, b: Floats) -> float:
        return forgetting(epsilons(a, b, intervals), len(few))

    halved, null = 0.5 * (score(few, half) + score(few, other)), score(half, other)
    return NeuripsScore(
        models=min(len(first), len(second)),
        forgetting=forgetting(epsilon, min(len(first), len(second))),
        epsilon=epsilon,
        models_halved=len(few),
        forgetting_halved=halved,
        null=null,
        ratio=halved / null if null > 0 else math.nan,
    )


def final_score(
    forgetting: float, ra_unlearned: float, ra_retrained: float, ta_unlearned: float, ta_retrained: float
) -> float:
    """F times the ratios of mean retain and test accuracies (0-1), unlearned over retrained, not clipped."""
    if min(ra_retrained, ta_retrained) <= 0:
        raise ValueError(f"accuracy: retrained {ra_retrained}, {ta_retrained}; both must be above 0.")
    return forgetting * (ra_unlearned / ra_retrained) * (ta_unlearned / ta_retrained)


def forgetting(epsilon: ArrayLike, models: int) -> float:
    """F, the mean points over samples of eps (n,); `models` sets where points end, ceil(log(models - 1))."""
    eps = np.asarray(epsilon, dtype=np.float64)
    if models < 3 or eps.size == 0 or not (eps >= 0).all():
        raise ValueError(f"forgetting: {models} models, {eps.size} eps; at least 3 and 1, none negative.")
    points = np.exp2(-np.floor(eps / BIN_WIDTH))
    return float(np.where(eps >= math.ceil(math.log(models - 1)), 0.0, points).mean())


def epsilons(first: Floats, second: Floats, intervals: bool = True) -> Floats:
    """eps per sample (n,), in 0..50, of phi (N, n) and (M, n). Swapping the two sets changes nothing."""
    table = _epsilon_table(len(first), len(second))
    columns = zip(first.T, second.T, strict=True)
    return np.array([_epsilon(a, b, table, intervals) for a, b in columns])


def _epsilon_table(first: int, second: int) -> Floats:
    """eps (first + 1, second + 1) of a rule that says "first" to so many of the first and of the second."""
    fnr = 1 - np.arange(first + 1)[:, None] / first
    fpr = np.arange(second + 1)[None, :] / second
    with np.errstate(divide="ignore", invalid="ignore"):
        one = np.log(1 - DELTA - fpr) - np.log(fnr)
        two = np.log(1 - DELTA - fnr) - np.log(fpr)
    table = np.clip(np.fmax(np.fmax(one, two), 0.0), 0.0, CAP)
    table[(fnr == 0) != (fpr == 0)] = 0.0
    table[first, 0] = CAP
    return np.asarray(table, dtype=np.float64)


def _epsilon(a: Floats, b: Floats, table: Floats, intervals: bool) -> float:
    ranges = float(np.ptp(a)), float(np.ptp(b))
    if min(ranges) < NARROW * max(ranges):
        return CAP
    rules = [_above(x, y, t) for x, y, t in _positive(a, b, table, float(np.median(a)), float(np.median(b)))]
    if intervals:
        rules += [_inside(x, y, t) for x, y, t in _positive(a, b, table, -_spread(a), -_spread(b))]
    return max(rules)


def _positive(
    a: Floats, b: Floats, table: Floats, rank_a: float, rank_b: float
) -> list[tuple[Floats, Floats, Floats]]:
    """(positive set, other set, table) with the set of the larger rank as positive; both orders for a tie."""
    orders = []
    if rank_a >= rank_b:
        orders.append((a, b, table))
    if rank_b >= rank_a:
        # eps is symmetric in the two error rates: saying "b" is not saying "a".
        orders.append((b, a, table[::-1, ::-1].T))
    return orders


def _above(positive: Floats, other: Floats, table: Floats) -> float:
    accepted, mistaken = _below(positive, other)
    return float(table[positive.size - accepted, other.size - mistaken].max())


def _inside(positive: Floats, other: Floats, table: Floats) -> float:
    accepted, mistaken = _below(positive, other)
    flat, place = table.ravel(), accepted * (other.size + 1) + mistaken
    return max(float(flat[place[i:] - place[i]].max()) for i in range(place.size))


def _below(positive: Floats, other: Floats) -> tuple[Counts, Counts]:
    """How many of each set lie below each cut: under all values, between any two, and above all."""
    cuts = np.unique(np.concatenate([positive, other]))
    counts = [np.searchsorted(np.sort(side), cuts, side="right") for side in (positive, other)]
    first, second = (np.concatenate([[0], count]).astype(np.int64) for count in counts)
    return first, second


def _spread(values: Floats) -> float:
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low)
