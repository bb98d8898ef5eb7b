"""Uncertainty over independent pairs of bases: resample pairs, keep everything that hangs on a pair together.

Scores of one base share its training run, so intervals that treat them as independent are far too narrow.
Every replicate is a weighted sum of per-pair histograms, so a thousand ROC curves are two matrix products.
Weights depend only on (pairs, replicates, seed), so replicates of two methods on the same pairs are paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from attacks.arrays import Counts, Floats, NumpyFloats, counts_up_to, floats, host, namespace, quantiles, sort
from attacks.metrics import expanded_percentile_interval, expanded_tail

CHUNK = 256  # replicates held in memory at once, each a few rows of `bins` numbers


@dataclass(frozen=True, eq=False)
class Replicates:
    """Per reweighting: auc (R,), balanced_accuracy at 0 (R,), tpr (R, alphas). NaN: no score has weight."""

    auc: NumpyFloats
    balanced_accuracy: NumpyFloats
    tpr: NumpyFloats

    def take(self, rows: slice) -> Replicates:
        """The replicates in `rows`."""
        return Replicates(self.auc[rows], self.balanced_accuracy[rows], self.tpr[rows])


def pair_weights(pairs: int, replicates: int = 1000, seed: int = 0) -> NumpyFloats:
    """Multinomial weights (replicates, pairs), each row summing to `pairs`."""
    if pairs < 2 or replicates < 1:
        raise ValueError(f"bootstrap: {pairs} pairs, {replicates} replicates; at least 2 and 1.")
    draws = np.random.default_rng(seed).multinomial(pairs, np.full(pairs, 1 / pairs), size=replicates)
    return draws.astype(np.float64)


def cluster_bootstrap(
    positive: Floats, negative: Floats, weights: NumpyFloats, alphas: ArrayLike = (), bins: int = 4096
) -> Replicates:
    """Metrics under each row of weights (R, k); positive and negative scores (k, n), NaN = no score.

    Ranks are binned (about `bins` bins, exact when the scores are fewer); balanced accuracy at 0 is exact.
    Scores that are tensors are counted and weighed on their device; the replicates are numpy arrays.
    """
    positive, negative = floats(positive), floats(negative)
    xp, levels = namespace(positive, negative), floats(np.asarray(alphas), like=positive)
    edges = bin_edges(positive, negative, bins)
    high, low = _histograms(positive, edges), _histograms(negative, edges)
    parts = [_curve(w @ high, w @ low, levels) for w in _chunks(floats(weights, like=positive))]
    area, tpr = (host(xp.concat(part)) for part in zip(*parts, strict=True))
    return Replicates(area, _balanced_accuracy(positive, negative, weights), tpr)


def bin_edges(positive: Floats, negative: Floats, bins: int = 4096) -> Floats:
    """Rising edges: pooled quantiles for the body, log-spaced ranks of the negatives for the low-FPR tail.

    A tail edge comes with its successor, so that those negatives are bins of their own and ties stay ties.
    """
    xp = namespace(positive, negative)
    high, low = positive[~xp.isnan(positive)], sort(negative[~xp.isnan(negative)])
    body = quantiles(sort(xp.concat([high, low])), np.linspace(0, 1, bins // 2))
    ranks = np.unique(np.geomspace(1, len(low), bins // 4).astype(np.int64))
    # Few scores: geomspace skips ranks, but then all of them fit.
    tail = low if len(low) <= bins // 4 else low[xp.asarray(len(low) - ranks, device=low.device)]
    return xp.unique(xp.concat([body, tail, xp.nextafter(tail, xp.full_like(tail, xp.inf))]))


def centred_interval(
    replicates: NumpyFloats,
    binned: float,
    exact: float,
    clusters: int,
    level: float = 0.95,
    stretch: float = 1.0,
) -> tuple[float, float]:
    """Interval (low, high) within 0-1 of replicates (R,), moved by the binning error and stretched.

    `binned` is the metric under weights of one. The interval is widened, where needed, to hold the estimate.
    Replicates without any score are left out; there are none unless a pair is empty.
    """
    usable = replicates[~np.isnan(replicates)]
    if usable.size == 0:
        raise ValueError(f"bootstrap: none of {replicates.size} replicates holds a score.")
    low, high = expanded_percentile_interval(centred(usable, binned, exact, stretch), clusters, level)
    return max(0.0, min(low, exact)), min(1.0, max(high, exact))


def centred_intervals(
    replicates: NumpyFloats,
    binned: NumpyFloats,
    exact: NumpyFloats,
    clusters: int,
    level: float = 0.95,
    stretch: float = 1.0,
) -> NumpyFloats:
    """`centred_interval` (metrics, 2) of many metrics: replicates (R, metrics), binned and exact (metrics,).

    A replicate without any score is NaN in every metric.
    """
    usable = replicates[~np.isnan(replicates).any(axis=1)]
    if not len(usable):
        raise ValueError(f"bootstrap: none of {len(replicates)} replicates holds a score.")
    tail = expanded_tail(clusters, level)
    low, high = np.quantile(centred(usable, binned, exact, stretch), [tail, 1 - tail], axis=0)
    return np.stack([np.maximum(0, np.minimum(low, exact)), np.minimum(1, np.maximum(high, exact))], axis=1)


def centred(replicates: NumpyFloats, binned: Any, exact: Any, stretch: float = 1.0) -> NumpyFloats:
    """Replicates around the exact estimate instead of the binned one, deviations times `stretch`."""
    return exact + stretch * (replicates - binned)


def paired_difference(
    first: NumpyFloats, second: NumpyFloats, exact: float, clusters: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval (low, high) of first - second, replicates (R,) under the same weights."""
    if first.shape != second.shape:
        raise ValueError(f"paired_difference: shapes {first.shape} and {second.shape} differ; use one seed.")
    difference = first - second
    usable = difference[~np.isnan(difference)]
    low, high = expanded_percentile_interval(usable, clusters, level)
    return min(low, exact), max(high, exact)


def _histograms(scores: Floats, edges: Floats) -> Floats:
    xp, bins = namespace(scores), len(edges) + 1
    counts = [xp.bincount(_bin(row[~xp.isnan(row)], edges), minlength=bins) for row in scores]
    return floats(xp.stack(counts))


def _bin(row: Floats, edges: Floats) -> Counts:
    return namespace(row).searchsorted(edges, row, side="right")


def _chunks(weights: Floats) -> list[Floats]:
    return [weights[i : i + CHUNK] for i in range(0, len(weights), CHUNK)]


def _curve(high: Floats, low: Floats, alphas: Floats) -> tuple[Floats, Floats]:
    """AUC (R,) and TPR at each alpha (R, alphas) of weighted histograms (R, bins), lowest scores first."""
    xp = namespace(high)
    with np.errstate(invalid="ignore"):
        high = high / high.sum(axis=1, keepdims=True)
        fpr = _from_top(low) / low.sum(axis=1, keepdims=True)
    # Trapezoids from the top: a bin shared by both worlds counts its ties one half.
    tpr = _from_top(high)
    area = (0.5 * (tpr[:, 1:] + tpr[:, :-1]) * xp.diff(fpr, axis=1)).sum(axis=1)
    # The first point, nothing accepted, is within every alpha; but a row without scores has no points.
    point = (counts_up_to(fpr, alphas) - 1).clip(min=0)
    row = xp.arange(len(high), device=high.device)[:, None]
    return area, xp.where(xp.isnan(area)[:, None], xp.nan, tpr[row, point])


def _from_top(counts: Floats) -> Floats:
    """Cumulative counts from the highest bin down, starting with nothing: (R, bins) -> (R, bins + 1)."""
    xp = namespace(counts)
    falling = xp.cumsum(xp.flip(counts, (1,)), axis=1)
    return xp.concat([xp.zeros_like(falling[:, :1]), falling], axis=1)


def _balanced_accuracy(positive: Floats, negative: Floats, weights: NumpyFloats) -> NumpyFloats:
    with np.errstate(invalid="ignore"):
        tpr = (weights @ _above_zero(positive)) / (weights @ _count(positive))
        fpr = (weights @ _above_zero(negative)) / (weights @ _count(negative))
    result: NumpyFloats = 0.5 * (tpr + 1 - fpr)
    return result


def _above_zero(scores: Floats) -> NumpyFloats:
    above: NumpyFloats = host((scores > 0).sum(axis=1)) + 0.5 * host((scores == 0).sum(axis=1))
    return above


def _count(scores: Floats) -> NumpyFloats:
    return host((~namespace(scores).isnan(scores)).sum(axis=1)).astype(np.float64)
