"""Entropy and modified entropy of the prediction (Song and Mittal 2021, arXiv:2003.10595).

    H = -sum_c p_c log p_c                     knows no label: sure and wrong counts as sure
    M = -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)        0 = sure and right, inf = sure and wrong

The attack is the score -M (or -H) against a threshold per class, learnt on shadow data where membership is
known and balanced accuracy is largest. log p and log(1 - p) are both sums of logits: with L the log-sum-exp
of all and L_{-c} that of all but c, log p_c = z_c - L and log(1 - p_c) = L_{-c} - L. Only the largest class
needs L_{-c} itself; p <= 1/2 for the others, whose log1p(-p) is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.inputs import Floats, membership, scores

name = "entropy"
label = "Modified entropy"
paper = "arXiv:2003.10595"
version = 1


def entropy(logits: ArrayLike) -> Floats:
    """Entropy H in nats, (n,), 0 to log C, of logits (n, C). Raises ValueError for a non-finite logit."""
    log_p = _log_probabilities(_logits(logits))
    h: Floats = -(np.exp(log_p) * log_p).sum(axis=1)
    return h


def modified_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Modified entropy M in nats, (n,), >= 0, of logits (n, C) and integer labels (n,).

    Raises ValueError for a non-finite logit, a wrong shape, or a label outside 0..C-1.
    """
    z = _logits(logits)
    y = _labels(labels, *z.shape)
    log_p, rows = _log_probabilities(z), np.arange(len(z))
    p, log_rest = np.exp(log_p), _log_rest(z, log_p)
    terms = p * log_rest
    terms[rows, y] = np.exp(log_rest[rows, y]) * log_p[rows, y]
    m: Floats = -terms.sum(axis=1)
    return m


def class_thresholds(score: ArrayLike, labels: ArrayLike, member: ArrayLike, classes: int) -> Floats:
    """Thresholds (classes,) on score (n,), larger = trained on, of largest balanced accuracy per class.

    score, labels (n,) and member (n,) are shadow data. A threshold lies half way between two scores, so that
    none is on it; of several the lowest. A class without members or without non-members gets the threshold
    of all classes. Raises ValueError for NaN, a wrong shape or label, or without members or non-members.
    """
    s = scores(score, "score", (1,), missing=False)
    y, inside = _labels(labels, s.size, classes), membership(member, s.shape)
    if inside.all() or not inside.any():
        raise ValueError(f"member: {int(inside.sum())} of {inside.size} are members; both kinds are needed.")
    common = _threshold(s[inside], s[~inside])
    found = np.full(classes, common)
    for c in np.unique(y):
        high, low = s[inside & (y == c)], s[~inside & (y == c)]
        if high.size and low.size:
            found[c] = _threshold(high, low)
    return found


def margin(score: ArrayLike, labels: ArrayLike, thresholds: ArrayLike) -> Floats:
    """score (n,) minus the threshold of its class, (n,): positive = called trained on."""
    cut = scores(thresholds, "thresholds", (1,), missing=False)
    s = scores(score, "score", (1,))
    return s - cut[_labels(labels, s.size, cut.size)]


def _threshold(high: Floats, low: Floats) -> float:
    """The cut between neighbouring scores with the largest TPR - FPR of "score > cut"."""
    levels = np.unique(np.concatenate([high, low]))
    tpr = 1 - np.searchsorted(np.sort(high), levels, side="right") / high.size
    fpr = 1 - np.searchsorted(np.sort(low), levels, side="right") / low.size
    # Before the first: everything is called trained on.
    best = int(np.argmax(np.append(0.0, tpr - fpr)))
    if best == 0:
        return float(np.nextafter(levels[0], -np.inf))
    if best == levels.size:
        return float(np.nextafter(levels[-1], np.inf))
    return float(0.5 * (levels[best - 1] + levels[best]))


def _log_probabilities(z: Floats) -> Floats:
    shifted = z - z.max(axis=1, keepdims=True)
    log_p: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p


def _log_rest(z: Floats, log_p: Floats) -> Floats:
    """log(1 - p), (n, C)."""
    rows, largest = np.arange(len(z)), z.argmax(axis=1)
    p = np.exp(log_p)
    p[rows, largest] = 0.0
    log_rest = np.log1p(-p)
    others = z.copy()
    others[rows, largest] = -np.inf
    second = others.max(axis=1)
    rest = second + np.log(np.exp(others - second[:, None]).sum(axis=1))
    log_rest[rows, largest] = np.minimum(log_p[rows, largest] - (z[rows, largest] - rest), 0.0)
    return log_rest


def _logits(logits: ArrayLike) -> Floats:
    z = scores(logits, "logits", (2,), missing=False)
    if z.shape[1] < 2:
        raise ValueError(f"logits: shape {z.shape} is not (samples, classes) with at least 2 classes.")
    return z


def _labels(labels: ArrayLike, n: int, classes: int) -> NDArray[np.intp]:
    y = np.asarray(labels)
    if y.shape != (n,) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels: {y.dtype} of shape {y.shape}; allowed are integers of shape {(n,)}.")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels: {y.min()}..{y.max()} leave the allowed range 0..{classes - 1}.")
    return y.astype(np.intp)
