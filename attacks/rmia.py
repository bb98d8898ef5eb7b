"""RMIA, the relative attack (Zarifzadeh, Liu and Shokri 2024, arXiv:2312.03262).

A sample is trained on if its probability, relative to models that may or may not know it, beats that of
population samples z which nobody trained on:

    r(x) = p(x | target) / p_ref(x)           score(x) = share of z with r(x) / r(z) >= gamma
    online   p_ref = (mean over IN models + mean over OUT models) / 2
    offline  p_ref = ((1 + a) mean over OUT models + 1 - a) / 2,  0 <= a <= 1

For z all models are OUT: online uses their mean; offline the same formula as for x. p is the probability of
the true class, log p = -softplus(-phi), and everything is computed in logarithms. r(z) is sorted once, so no
matrix samples x population is ever made. The score is in 0-1 with steps of 1 / population: resolving an FPR
alpha takes about 10 / alpha population samples.

Deviation: softmax at temperature 1, one view.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.inputs import Floats, Mask, membership, pair_rows, scores
from attacks.metrics import auc
from attacks.scores import loss_from_phi

name = "rmia"
label = "RMIA"
paper = "arXiv:2312.03262"
version = 1

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # values of a that are tried


def online(
    target: ArrayLike,
    shadow: ArrayLike,
    member: ArrayLike,
    target_population: ArrayLike,
    shadow_population: ArrayLike,
    *,
    gamma: float = 1.0,
) -> Floats:
    """Scores (n,) in 0-1, larger = trained on; target phi (n,), shadow phi and member (models, n).

    target_population (z,) and shadow_population (models, z) are phi of samples that no model trained on.
    NaN = missing in target and shadow; a sample without an IN or an OUT model is NaN. Raises ValueError for a
    wrong shape, an infinite score, NaN in the population, or gamma that is not positive.
    """
    x, refs, inside, z, z_refs = _inputs(target, shadow, member, target_population, shadow_population)
    both = np.logaddexp(_log_mean(refs, inside), _log_mean(refs, ~inside)) - math.log(2)
    return _beaten(x - both, z - _log_mean(z_refs, np.ones(z_refs.shape, dtype=bool)), gamma)


def offline(
    target: ArrayLike,
    shadow: ArrayLike,
    member: ArrayLike,
    target_population: ArrayLike,
    shadow_population: ArrayLike,
    *,
    gamma: float = 1.0,
    a: float = 0.3,
) -> Floats:
    """Scores (n,) in 0-1 from OUT models only; arguments, missing scores and errors as `online`.

    a: 1 = the OUT mean itself, 0 = half way to certainty; choose it with `tune_a`.
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a: {a} is outside the allowed range 0..1.")
    x, refs, inside, z, z_refs = _inputs(target, shadow, member, target_population, shadow_population)
    reference = _towards_one(_log_mean(refs, ~inside), a)
    z_reference = _towards_one(_log_mean(z_refs, np.ones(z_refs.shape, dtype=bool)), a)
    return _beaten(x - reference, z - z_reference, gamma)


def leave_pair_out(
    phi: ArrayLike,
    member: ArrayLike,
    pair: ArrayLike,
    population: ArrayLike,
    *,
    gamma: float = 1.0,
    a: float | None = None,
) -> Floats:
    """Scores (models, n), every model by the other pairs; offline with `a`, online without.

    phi and member (models, n), pair ids (models,), population phi (models, z). A pair counts for the samples
    that exactly one of its two models trained on, and that both have a score of; elsewhere NaN.
    """
    refs = scores(phi, "phi", (2,))
    inside, rows = membership(member, refs.shape), pair_rows(pair, len(refs))
    z_refs = scores(population, "population", (2,), missing=False)
    if len(z_refs) != len(refs):
        raise ValueError(f"population: {len(z_refs)} models do not match the {len(refs)} models of phi.")
    if len(rows) < 2:
        raise ValueError(f"pairs: {len(rows)} is too few, at least 2.")
    unpaired = _unpaired(refs, inside, rows)
    refs[unpaired] = np.nan
    out = np.full(refs.shape, np.nan)
    for pair_of_models in rows:
        others = np.setdiff1d(np.arange(len(refs)), pair_of_models)
        known = refs[others], inside[others]
        for m in pair_of_models:
            if a is None:
                out[m] = online(refs[m], *known, z_refs[m], z_refs[others], gamma=gamma)
            else:
                out[m] = offline(refs[m], *known, z_refs[m], z_refs[others], gamma=gamma, a=a)
    return out


def tune_a(
    phi: ArrayLike, member: ArrayLike, pair: ArrayLike, population: ArrayLike, *, gamma: float = 1.0
) -> float:
    """The `a` of GRID with the largest AUC of shadow models attacked by the other pairs, pooled.

    Arguments as `leave_pair_out`; the models must not be audited with it afterwards. Ties: the smallest.
    """
    inside = np.asarray(member, dtype=bool)
    areas = []
    for a in GRID:
        found = leave_pair_out(phi, member, pair, population, gamma=gamma, a=a)
        scored = ~np.isnan(found)
        areas.append(auc(found[scored & inside], found[scored & ~inside]))
    return GRID[int(np.argmax(areas))]


def _unpaired(refs: Floats, inside: Mask, rows: NDArray[np.intp]) -> Mask:
    """Entries (models, n) of pairs that do not have one IN and one OUT score of the sample."""
    first, second = rows.T
    bad = (inside[first] == inside[second]) | np.isnan(refs[first]) | np.isnan(refs[second])
    unpaired = np.empty(refs.shape, dtype=bool)
    unpaired[first] = unpaired[second] = bad
    return unpaired


def _log_mean(log_p: Floats, use: Mask) -> Floats:
    """log of the mean of p (models, n) where use and not missing, (n,); NaN where there is none."""
    here = use & ~np.isnan(log_p)
    masked = np.where(here, log_p, -np.inf)
    largest = masked.max(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = largest + np.log(np.exp(masked - largest).sum(axis=0) / here.sum(axis=0))
    return mean


def _towards_one(log_p: Floats, a: float) -> Floats:
    """log of ((1 + a) p + 1 - a) / 2."""
    share = math.log1p(-a) if a < 1 else -math.inf
    return np.logaddexp(math.log1p(a) + log_p, share) - math.log(2)


def _beaten(log_ratio: Floats, population: Floats, gamma: float) -> Floats:
    """Share of population (z,) with log_ratio - population >= log gamma, (n,); NaN stays NaN."""
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma: {gamma} is not a positive finite number.")
    rank = np.searchsorted(np.sort(population), log_ratio - math.log(gamma), side="right")
    return np.where(np.isnan(log_ratio), np.nan, rank / population.size)


def _inputs(
    target: ArrayLike, shadow: ArrayLike, member: ArrayLike, population: ArrayLike, refs: ArrayLike
) -> tuple[Floats, Floats, Mask, Floats, Floats]:
    """Checked log probabilities and the membership mask."""
    x, known = scores(target, "target", (1,)), scores(shadow, "shadow", (2,))
    z = scores(population, "target_population", (1,), missing=False)
    z_refs = scores(refs, "shadow_population", (2,), missing=False)
    if known.shape[1:] != x.shape:
        raise ValueError(f"shadow: shape {known.shape} does not match target {x.shape}.")
    if z_refs.shape != (len(known), z.size):
        raise ValueError(f"shadow_population: shape {z_refs.shape} is not {(len(known), z.size)}.")
    inside = membership(member, known.shape)
    log_x, log_known, log_z, log_refs = (-loss_from_phi(phi) for phi in (x, known, z, z_refs))
    return log_x, log_known, inside, log_z, log_refs
