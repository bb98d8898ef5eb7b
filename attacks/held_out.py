"""Operating points whose threshold was learnt on other pairs of bases, and precision at a prior.

A threshold that is chosen on the very scores it is judged by flatters an attack. Here each pair of bases is
judged at a threshold that the other pairs chose, and the realised rates are pooled (spec: attacks 1.6; the
re-evaluation of LiRA, arXiv:2603.07567, blames much of its published success on the other way).

    precision(prior) = prior TPR / (prior TPR + (1 - prior) FPR)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from attacks.bootstrap import bin_edges
from attacks.inputs import Floats, scores

MIN_PAIRS = 2
BINS = 4096  # candidate thresholds; ranks between two of them are not tried


class HeldOut(NamedTuple):
    """Realised rates (0-1) at thresholds learnt elsewhere, pooled over pairs."""

    tpr: float  # at the threshold with the largest TPR at FPR <= alpha on the other pairs
    fpr: float  # may exceed alpha: that is what it is for
    balanced_accuracy: float  # at the threshold with the largest balanced accuracy on the other pairs
    best_balanced_accuracy: float  # maximum over thresholds of the same scores: optimistic


def held_out(positive: ArrayLike, negative: ArrayLike, alpha: float = 0.01) -> HeldOut:
    """Scores (k pairs, n) of both worlds, larger = trained on, NaN = missing.

    Raises ValueError for a wrong shape, an infinite score, alpha outside 0..1, or fewer than two pairs with
    scores of both worlds.
    """
    high, low = scores(positive, "positive", (2,)), scores(negative, "negative", (2,))
    if len(high) != len(low):
        raise ValueError(f"scores: {len(high)} and {len(low)} pairs; both worlds need the same ones.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha} is outside the allowed range 0..1 (both excluded).")
    full = ~(np.isnan(high).all(axis=1) | np.isnan(low).all(axis=1))
    if full.sum() < MIN_PAIRS:
        raise ValueError(f"pairs: {full.sum()} with scores of both worlds is too few, at least {MIN_PAIRS}.")
    edges = bin_edges(high[full], low[full], BINS)
    up, down = _at_or_above(high[full], edges), _at_or_above(low[full], edges)
    true, false = up.sum(axis=0), down.sum(axis=0)
    # What the other pairs see: everything less this pair.
    tpr, fpr = (
        (total - own) / np.maximum(total[0] - own[:, :1], 1) for total, own in ((true, up), (false, down))
    )
    at = _highest_best(np.where(fpr <= alpha, tpr, -1.0)), _highest_best(tpr - fpr)
    rows = np.arange(len(up))
    rates = [(up[rows, t].sum() / true[0], down[rows, t].sum() / false[0]) for t in at]
    best = float((true / true[0] - false / false[0]).max())
    return HeldOut(
        float(rates[0][0]), float(rates[0][1]), 0.5 + 0.5 * float(rates[1][0] - rates[1][1]), 0.5 + 0.5 * best
    )


def precision(tpr: float, fpr: float, prior: float) -> float:
    """Share of accusations that are right if `prior` of all samples were trained on; NaN if none is made."""
    if not 0 < prior < 1:
        raise ValueError(f"prior: {prior} is outside the allowed range 0..1 (both excluded).")
    accused = prior * tpr + (1 - prior) * fpr
    return prior * tpr / accused if accused > 0 else math.nan


def _at_or_above(world: Floats, edges: Floats) -> Floats:
    """Scores at or above -inf, each edge and +inf, per pair: (k, edges + 2); the first column counts all."""
    rows = [np.sort(row[~np.isnan(row)]) for row in world]
    bounds = np.concatenate([[-np.inf], edges, [np.inf]])
    return np.array([row.size - np.searchsorted(row, bounds, side="left") for row in rows], dtype=float)


def _highest_best(values: Floats) -> np.ndarray:
    """Per row the last, so the highest, of the thresholds with the largest value: of equals, the one that
    accuses least.
    """
    return values.shape[1] - 1 - np.argmax(values[:, ::-1], axis=1)
