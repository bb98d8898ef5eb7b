"""What two sets of scores say: AUC, operating points, balanced accuracy, intervals. Larger = "trained on"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from attacks.arrays import Floats, Given, NumpyFloats, floats, host, namespace, sort

Counts = NDArray[np.int64]

MIN_FALSE_POSITIVES = 10  # a TPR at an FPR that allows fewer false positives than this is printed as "n/a"


@dataclass(frozen=True)
class OperatingPoint:
    """The best operating point with FPR <= alpha; `fpr` is the realised one. Not `supported`: print "n/a"."""

    alpha: float
    tpr: float
    fpr: float
    false_positives: int
    supported: bool


def auc(positive: Given, negative: Given) -> float:
    """P(positive > negative) + P(tie) / 2, the Mann-Whitney statistic in exact integer counts, in 0-1."""
    high, low = sort(_scores(positive, "positive")), sort(_scores(negative, "negative"))
    xp = namespace(high, low)
    below = int(xp.searchsorted(low, high, side="left").sum(dtype=xp.int64))
    not_above = int(xp.searchsorted(low, high, side="right").sum(dtype=xp.int64))
    return (below + not_above) / (2 * len(high) * len(low))


def roc(positive: ArrayLike, negative: ArrayLike) -> tuple[NumpyFloats, NumpyFloats, NumpyFloats]:
    """Operating points (fpr, tpr, thresholds), each (points,): "score >= threshold" for every distinct score.

    Tied scores form one point. Thresholds fall from +inf (nothing accepted); fpr and tpr rise from 0 to 1.
    """
    high, low = host(_scores(positive, "positive")), host(_scores(negative, "negative"))
    thresholds, position = np.unique(np.concatenate([high, low]), return_inverse=True)
    true = np.bincount(position[: high.size], minlength=thresholds.size)[::-1].cumsum()
    false = np.bincount(position[high.size :], minlength=thresholds.size)[::-1].cumsum()
    fpr, tpr = np.append(0, false) / low.size, np.append(0, true) / high.size
    return fpr, tpr, np.append(np.inf, thresholds[::-1])


def best_counts(positive: Given, negative: Given, alphas: ArrayLike) -> tuple[Counts, Counts]:
    """(true positives, false positives), each (len(alphas),), at the largest TPR with FPR <= alpha.

    With at most m false positives allowed, everything strictly above the (m+1)-th largest negative is
    accepted; no interpolation and no "nearest point", which can exceed alpha.
    """
    high, low = sort(_scores(positive, "positive")), sort(_scores(negative, "negative"))
    levels = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"alpha: {levels.tolist()} is outside the allowed range 0..1.")
    xp, allowed = namespace(high, low), _allowed_false_positives(levels, len(low))
    cut = low[xp.asarray(np.maximum(len(low) - 1 - allowed, 0), device=low.device)]
    true, false = (
        np.where(
            allowed < len(low), len(scores) - host(xp.searchsorted(scores, cut, side="right")), len(scores)
        )
        for scores in (high, low)
    )
    return true, false


def tpr_at_fpr(positive: Given, negative: Given, alpha: float) -> OperatingPoint:
    """The largest TPR among operating points with FPR <= alpha, and the FPR it really has. Never NaN."""
    true, false = best_counts(positive, negative, alpha)
    n1, n0 = len(positive), len(negative)
    supported = alpha * n0 >= MIN_FALSE_POSITIVES
    return OperatingPoint(float(alpha), int(true[0]) / n1, int(false[0]) / n0, int(false[0]), supported)


def balanced_accuracy(positive: Given, negative: Given, threshold: float = 0.0) -> float:
    """(TPR + TNR) / 2 at a threshold fixed in advance; a score on the threshold counts one half. In 0-1."""
    high, low = _scores(positive, "positive"), _scores(negative, "negative")
    count = namespace(high, low).count_nonzero
    tpr = (int(count(high > threshold)) + 0.5 * int(count(high == threshold))) / len(high)
    tnr = (int(count(low < threshold)) + 0.5 * int(count(low == threshold))) / len(low)
    return 0.5 * (tpr + tnr)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval (low, high) of the rate behind k of n, at a threshold fixed in advance.

    Coverage is at least `level` for every rate (Clopper and Pearson, Biometrika 1934).
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"clopper_pearson: k={k} of n={n}; allowed is 0 <= k <= n with n >= 1.")
    tail = _tail(level)
    low = 0.0 if k == 0 else float(stats.beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(stats.beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def delong(positive: ArrayLike, negative: ArrayLike) -> tuple[float, float]:
    """AUC and its standard error from scores (n1,), (n0,) that are independent: of ONE model, never pooled.

    DeLong, DeLong and Clarke-Pearson 1988: with V10_i the share of negatives below positive i, ties counted
    half, and V01_j likewise, SE^2 = Var(V10) / n1 + Var(V01) / n0. Scores of several models share what those
    were trained on: there it is far too small (simulated: 95 % limits cover 30 %); `bootstrap` is for them.
    """
    high, low = host(_scores(positive, "positive")), host(_scores(negative, "negative"))
    if min(high.size, low.size) < 2:
        raise ValueError(f"delong: {high.size} and {low.size} scores; at least 2 of each are needed.")
    above = _share_below(high, low)
    below = 1 - _share_below(low, high)
    error = math.sqrt(above.var(ddof=1) / high.size + below.var(ddof=1) / low.size)
    return float(above.mean()), error


def tpr_standard_error(tpr: float, alpha: float, n1: int, n0: int, slope: float) -> float:
    """Standard error of the TPR at FPR = alpha whose threshold was estimated on the n0 negatives themselves.

    Delta method, independent scores of one model: TPR (1 - TPR) / n1 + slope^2 alpha (1 - alpha) / n0, with
    slope = f1(t) / f0(t), that of the ROC at alpha.
    """
    if not (0 <= tpr <= 1 and 0 <= alpha <= 1 and min(n1, n0) >= 1 and slope >= 0):
        raise ValueError(f"tpr_standard_error: {tpr}, {alpha}, {n1}, {n0}, {slope}; rates are in 0..1.")
    return math.sqrt(tpr * (1 - tpr) / n1 + slope**2 * alpha * (1 - alpha) / n0)


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean (k,) of independent values, e.g. one AUC per pair, and its Student-t limits (mean, low, high)."""
    found = host(_scores(values, "values"))
    if found.size < 2:
        raise ValueError(f"mean_interval: {found.size} value is too few, at least 2.")
    half = float(stats.t.ppf(1 - _tail(level), found.size - 1) * found.std(ddof=1) / math.sqrt(found.size))
    return float(found.mean()), float(found.mean()) - half, float(found.mean()) + half


def _share_below(values: NumpyFloats, others: NumpyFloats) -> NumpyFloats:
    """Share of others (m,) below each value (n,), ties counted half."""
    ordered = np.sort(others)
    ranks = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(ranks / (2 * others.size))


def expanded_percentile_interval(
    replicates: ArrayLike, clusters: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval (low, high) of bootstrap replicates (R,), widened for a small number of clusters.

    A plain percentile interval is too narrow by sqrt((n-1)/n) and uses a normal where a t quantile is due, so
    the tail becomes Phi(-sqrt(n/(n-1)) t_{1-tail, n-1}) (Hesterberg 2015, "What Teachers Should Know About
    the Bootstrap", arXiv:1411.5279). Raises ValueError for NaN replicates: drop and report them before.
    """
    values = host(_scores(replicates, "replicates"))
    tail = expanded_tail(clusters, level)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


@cache
def expanded_tail(clusters: int, level: float = 0.95) -> float:
    """The share of replicates beyond either end of `expanded_percentile_interval`."""
    if clusters < 2:
        raise ValueError(f"clusters: {clusters} is too few for an interval, at least 2.")
    widened = math.sqrt(clusters / (clusters - 1)) * stats.t.ppf(1 - _tail(level), clusters - 1)
    return float(stats.norm.cdf(-widened))


def _allowed_false_positives(levels: NumpyFloats, n: int) -> Counts:
    # alpha * n can round to just under an integer (0.29 * 100 < 29); what is meant is m / n <= alpha.
    m = np.floor(levels * n).astype(np.int64)
    m += (m + 1) / n <= levels
    m -= m / n > levels
    return m


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is outside the allowed range 0..1 (both excluded).")
    return (1 - level) / 2


def _scores(values: Given, what: str) -> Floats:
    scores = floats(values)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{what}: shape {tuple(scores.shape)} is not a non-empty list of scores.")
    missing = int(namespace(scores).isnan(scores).sum())
    if missing:
        raise ValueError(f"{what}: {missing} of {len(scores)} scores are NaN; none is allowed.")
    return scores
