"""Lower bounds on the privacy parameters of a mechanism, from an attack's scores.

At a threshold fixed beforehand or chosen on other scores, with exact one-sided binomial limits (tail
(1 - level) / 2 each) of the two rates:

    eps_L = max(0, log((TPR_L - delta) / FPR_U), log((TNR_L - delta) / FNR_U))
    mu_L = PhiInv(TPR_L) - PhiInv(FPR_U)            Gaussian privacy (Dong, Roth and Su, arXiv:1905.02383)
    delta(eps) = Phi(-eps / mu + mu / 2) - e^eps Phi(-eps / mu - mu / 2)

With probability `level` the mechanism is not (eps, delta)-private for any eps < eps_L; not so for a threshold
that is the best on the very scores it is judged by, and such a bound is marked `exploratory`.

One run (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846): m samples included by independent coins, r
guesses, v of them right. For an (eps, delta)-private mechanism, with W ~ Binomial(r, e^eps / (1 + e^eps)),

    P(right >= v) <= P(W >= v) + 2 m delta max over i in 1..m of P(v > W >= v - i) / i

and eps_L is the smallest eps at which the right side exceeds 1 - level. In an audit of unlearning the coin is
"forgotten or never in", and every unlearned model gives a bound.

Limits: scores are taken as independent. Scores that share a model are not: give one score per model, or use
the one-run bound, which needs independent coins only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from attacks.metrics import Floats, roc

name = "epsilon_bounds"
label = "DP lower bounds"
paper = "arXiv:2305.08846"
version = 1

MIN_SCORES = 2  # per side: one to choose by, one to judge by
MAX_EPSILON = 50.0
CANDIDATES = 10_000  # thresholds that are tried when one is chosen


@dataclass(frozen=True)
class EpsilonBound:
    """Each bound holds with probability `level`, unless `exploratory`: then it holds nothing."""

    epsilon: float  # >= 0
    epsilon_threshold: float  # "score >= threshold" says "trained on"
    mu: float  # >= 0
    mu_threshold: float
    delta: float
    level: float
    n_positive: int  # scores that the bounds were judged by
    n_negative: int
    exploratory: bool = False


@dataclass(frozen=True)
class OneRunBound:
    """Bound from one model: with probability `level`, not (eps, delta)-private for eps < epsilon."""

    epsilon: float
    correct: int
    guesses: int
    samples: int
    delta: float
    level: float


def fixed_threshold(
    positive: ArrayLike, negative: ArrayLike, threshold: float, delta: float = 0.0, level: float = 0.95
) -> EpsilonBound:
    """Bounds at a threshold that was fixed before these scores, (n1,) and (n0,), were seen.

    Raises ValueError for empty scores, NaN, or a delta or level outside 0..1.
    """
    return _judge(positive, negative, threshold, threshold, delta, level)


def split_threshold(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    positive_group: ArrayLike | None = None,
    negative_group: ArrayLike | None = None,
    delta: float = 0.0,
    level: float = 0.95,
    seed: int = 0,
) -> EpsilonBound:
    """Bounds judged by one half of the scores (n1,), (n0,), thresholds chosen on the other half, by seed.

    Groups (n1,), (n0,) are ids, e.g. of the pair of bases, that are kept within one half; without them each
    score is its own. Raises ValueError as `fixed_threshold`, or when a half has no score of a side.
    """
    high, low = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    rng = np.random.default_rng(seed)
    if (positive_group is None) != (negative_group is None):
        raise ValueError("split_threshold: groups are given for one side only; give both or none.")
    if positive_group is None:
        chosen_high, chosen_low = _half(high.size, rng), _half(low.size, rng)
    else:
        chosen_high, chosen_low = _half_of_groups(positive_group, negative_group, high, low, rng)
    if min(*_both(chosen_high), *_both(chosen_low)) == 0:
        raise ValueError(f"split_threshold: {high.size} and {low.size} scores do not fill two halves.")
    thresholds = best_thresholds(high[chosen_high], low[chosen_low], delta, level)
    return _judge(high[~chosen_high], low[~chosen_low], *thresholds, delta, level)


def exploratory_bound(
    positive: ArrayLike, negative: ArrayLike, delta: float = 0.0, level: float = 0.95
) -> EpsilonBound:
    """The largest bounds over all thresholds of the same scores: a number to look at, not a bound."""
    thresholds = best_thresholds(positive, negative, delta, level)
    return _judge(positive, negative, *thresholds, delta, level, exploratory=True)


def best_thresholds(
    positive: ArrayLike, negative: ArrayLike, delta: float = 0.0, level: float = 0.95
) -> tuple[float, float]:
    """The thresholds with the largest eps_L and the largest mu_L on these scores (n1,), (n0,).

    Of more than 10,000 thresholds a part is tried, dense at both ends: it stays a choice, and a fair one.
    """
    fpr, tpr, thresholds = (points[_candidates(len(points))] for points in roc(positive, negative))
    n1, n0 = np.size(positive), np.size(negative)
    low = _lower(np.rint(tpr * n1), n1, _tail(level))
    high = _upper(np.rint(fpr * n0), n0, _tail(level))
    best = np.argmax(epsilon_of_rates(low, high, delta)), np.argmax(mu_of_rates(low, high))
    return float(thresholds[best[0]]), float(thresholds[best[1]])


def epsilon_of_rates(tpr_low: ArrayLike, fpr_high: ArrayLike, delta: float = 0.0) -> Floats:
    """eps_L of limits of the rates (0-1), any shape; 0 where TPR_L <= FPR_U, inf where a rate allows it."""
    tpr, fpr = np.asarray(tpr_low, dtype=np.float64), np.asarray(fpr_high, dtype=np.float64)
    if not 0 <= delta < 1:
        raise ValueError(f"delta: {delta} is outside the allowed range 0..1 (1 excluded).")
    with np.errstate(divide="ignore", invalid="ignore"):
        accepted = np.log(np.maximum(tpr - delta, 0.0)) - np.log(fpr)
        rejected = np.log1p(-np.minimum(fpr + delta, 1.0)) - np.log1p(-tpr)
    epsilon: Floats = np.fmax(np.fmax(accepted, rejected), 0.0)  # fmax: 0 over 0 says nothing
    return epsilon


def mu_of_rates(tpr_low: ArrayLike, fpr_high: ArrayLike) -> Floats:
    """mu_L of limits of the rates (0-1), any shape, never below 0."""
    with np.errstate(invalid="ignore"):
        difference = special.ndtri(np.asarray(tpr_low)) - special.ndtri(np.asarray(fpr_high))
    mu: Floats = np.fmax(difference, 0.0)
    return mu


def gaussian_delta(mu: float, epsilon: ArrayLike) -> Floats:
    """delta(eps) of mu-Gaussian privacy, any shape of eps."""
    if not 0 < mu < math.inf:
        raise ValueError(f"mu: {mu} is not a positive finite number.")
    eps = np.asarray(epsilon, dtype=np.float64)
    # e^eps Phi(...) as one exponential: e^eps alone overflows.
    delta: Floats = special.ndtr(-eps / mu + mu / 2) - np.exp(eps + special.log_ndtr(-eps / mu - mu / 2))
    return np.maximum(delta, 0.0)


def one_run_audit(
    scores: ArrayLike,
    included: ArrayLike,
    guesses: int,
    delta: float = 0.0,
    level: float = 0.95,
    seed: int = 0,
) -> OneRunBound:
    """Bound from one model: scores (m,) and whether each sample was included (m,), by independent fair coins.

    The guesses // 2 highest scores are guessed "in", as many of the lowest "out"; `guesses` is fixed in
    advance. Ties are broken by seed, never by order. Raises ValueError for NaN or 2 <= guesses <= m violated.
    """
    values, inside = np.asarray(scores, dtype=np.float64), np.asarray(included)
    if values.ndim != 1 or inside.shape != values.shape or inside.dtype != np.bool_:
        raise ValueError(
            f"included: {inside.dtype} {inside.shape} is not bool of the scores, {values.shape}."
        )
    if np.isnan(values).any():
        raise ValueError(f"scores: {int(np.isnan(values).sum())} of {values.size} are NaN; none is allowed.")
    side = guesses // 2
    if not 2 <= guesses <= values.size:
        raise ValueError(f"guesses: {guesses} is outside the allowed range 2..{values.size}.")
    order = np.lexsort((np.random.default_rng(seed).random(values.size), values))
    correct = int(inside[order[-side:]].sum() + (~inside[order[:side]]).sum())
    epsilon = one_run_epsilon(correct, 2 * side, values.size, delta, level)
    return OneRunBound(epsilon, correct, 2 * side, values.size, delta, level)


def one_run_epsilon(
    correct: int, guesses: int, samples: int, delta: float = 0.0, level: float = 0.95
) -> float:
    """eps_L >= 0 of `correct` of `guesses` right among `samples` independent coins."""
    if not 0 <= correct <= guesses <= samples or guesses < 1:
        raise ValueError(f"one_run: {correct} right of {guesses} guesses of {samples}; not in this order.")
    if not 0 <= delta < 1:
        raise ValueError(f"delta: {delta} is outside the allowed range 0..1 (1 excluded).")
    alpha = 2 * _tail(level)

    def possible(epsilon: float) -> bool:
        return one_run_p_value(epsilon, correct, guesses, samples, delta) > alpha

    # Once the right side exceeds alpha it stays there: each of its terms is the chance of v - i right guesses
    # or more, plus or less a share of a window of it that grows as long as that chance is small.
    return _bisect(possible, 0.0, MAX_EPSILON)


def one_run_p_value(epsilon: float, correct: int, guesses: int, samples: int, delta: float = 0.0) -> float:
    """Largest probability (0-1) that an (eps, delta)-private mechanism gives to so many right guesses."""
    coin = float(special.expit(epsilon))
    beyond = float(_at_least(correct, guesses, coin))
    if delta == 0:
        return beyond
    steps = np.arange(1, min(samples, correct) + 1)  # fewer than none are never right
    between = _at_least(correct - steps, guesses, coin) - beyond
    extra = float((between / steps).max()) if steps.size else 0.0
    return min(1.0, beyond + 2 * samples * delta * extra)


def _judge(
    positive: ArrayLike,
    negative: ArrayLike,
    epsilon_threshold: float,
    mu_threshold: float,
    delta: float,
    level: float,
    exploratory: bool = False,
) -> EpsilonBound:
    high, low = _scores(positive, "positive"), _scores(negative, "negative")

    def limits(threshold: float) -> tuple[Floats, Floats]:
        true, false = np.count_nonzero(high >= threshold), np.count_nonzero(low >= threshold)
        return _lower(true, high.size, _tail(level)), _upper(false, low.size, _tail(level))

    return EpsilonBound(
        epsilon=float(epsilon_of_rates(*limits(epsilon_threshold), delta)),
        epsilon_threshold=epsilon_threshold,
        mu=float(mu_of_rates(*limits(mu_threshold))),
        mu_threshold=mu_threshold,
        delta=delta,
        level=level,
        n_positive=high.size,
        n_negative=low.size,
        exploratory=exploratory,
    )


def _lower(k: ArrayLike, n: int, tail: float) -> Floats:
    """One-sided Clopper-Pearson limit from below, as `metrics.clopper_pearson`, for arrays of counts."""
    counts = np.asarray(k, dtype=np.float64)
    limit = special.betaincinv(np.maximum(counts, 1), n - counts + 1, tail)
    return np.where(counts == 0, 0.0, limit)


def _upper(k: ArrayLike, n: int, tail: float) -> Floats:
    return 1 - _lower(n - np.asarray(k, dtype=np.float64), n, tail)


def _at_least(k: ArrayLike, n: int, probability: float) -> Floats:
    """P(Binomial(n, probability) >= k)."""
    return np.asarray(special.bdtrc(np.asarray(k, dtype=np.float64) - 1, n, probability), dtype=np.float64)


def _half(size: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    return np.asarray(rng.permutation(size) < size // 2)


def _half_of_groups(
    positive_group: ArrayLike | None,
    negative_group: ArrayLike | None,
    high: Floats,
    low: Floats,
    rng: np.random.Generator,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = np.asarray(positive_group), np.asarray(negative_group)
    if first.shape != high.shape or second.shape != low.shape:
        raise ValueError(f"groups: shapes {first.shape}, {second.shape} are not {high.shape}, {low.shape}.")
    groups = np.unique(np.concatenate([first, second]))
    chosen = groups[_half(groups.size, rng)]
    return np.isin(first, chosen), np.isin(second, chosen)


def _both(mask: NDArray[np.bool_]) -> tuple[int, int]:
    return int(mask.sum()), int((~mask).sum())


def _candidates(number: int) -> NDArray[np.int64]:
    """Indices of the operating points that are tried, rising; all of up to CANDIDATES."""
    if number <= CANDIDATES:
        return np.arange(number)
    ends = np.geomspace(1, number, CANDIDATES // 4).astype(np.int64) - 1
    body = np.linspace(0, number - 1, CANDIDATES // 2).astype(np.int64)
    return np.unique(np.concatenate([ends, body, number - 1 - ends]))


def _bisect(possible: Callable[[float], bool], low: float, high: float) -> float:
    """The eps from which on `possible` holds, to 1e-9 and rounded down; low if it holds there already."""
    if possible(low):
        return low
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if possible(middle) else (middle, high)
    return low


def _scores(values: ArrayLike, what: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or np.isnan(array).any():
        raise ValueError(f"{what}: shape {array.shape} is not a non-empty list of scores without NaN.")
    return array


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is outside the allowed range 0..1 (both excluded).")
    return (1 - level) / 2
