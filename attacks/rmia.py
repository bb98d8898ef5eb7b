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
from collections.abc import Iterator
from typing import NamedTuple

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
    reference = _middle(_log_mean(refs, inside), _log_mean(refs, ~inside))
    return _beaten(x - reference, z - _log_mean(z_refs, np.ones(z_refs.shape, dtype=bool)), gamma)


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
    that exactly one of its two models trained on, and that both have a score of; elsewhere NaN. Raises
    ValueError as `online`, for fewer than two pairs, and for a pair of other than two models.
    """
    matrix = _matrix(phi, member, pair, population)
    return _score_pairs(matrix, list(_references(matrix)), gamma, a)


def worlds_leave_pair_out(
    positive: ArrayLike,
    negative: ArrayLike,
    positive_model: ArrayLike,
    negative_model: ArrayLike,
    population: ArrayLike,
    pair: ArrayLike,
    *,
    gamma: float = 1.0,
) -> tuple[Floats, Floats]:
    """Online scores (k, n) of both worlds, each pair by the others: phi (k pairs, n), NaN = missing.

    Here the models of a pair may be many: positive_model and negative_model (k, n) say which row of
    population (models, z) belongs to the model behind an entry, pair (models,) the pair of each. For x the
    positive world is IN and the negative OUT; for z all models are OUT. Raises ValueError as `online`.
    """
    high, low = scores(positive, "phi", (2,)), scores(negative, "phi", (2,))
    z = _log_p(scores(population, "population", (2,), missing=False))
    models = [np.asarray(model) for model in (positive_model, negative_model)]
    if not high.shape == low.shape == models[0].shape == models[1].shape:
        shapes = [array.shape for array in (high, low, *models)]
        raise ValueError(f"phi and models: shapes {shapes} are not one (pairs, samples) shape.")
    pairs = np.asarray(pair)
    if pairs.shape != (len(z),):
        raise ValueError(f"pair: shape {pairs.shape} does not match {len(z)} models of the population.")
    usable = ~(np.isnan(high) | np.isnan(low))
    worlds = [np.where(usable, _log_p(world), -np.inf) for world in (high, low)]
    number = usable.sum(axis=0) - usable
    sums = zip(*(_sums_without_each(world) for world in worlds), strict=True)
    out = np.full((2, *usable.shape), np.nan)
    for p, (log_in, log_out) in enumerate(sums):
        here = usable[p] & (number[p] > 0)
        if not here.any() or not (pairs != p).any():
            continue
        reference = _middle(log_in[here], log_out[here]) - np.log(number[p, here])
        z_reference = _log_mean(z, np.broadcast_to((pairs != p)[:, None], z.shape))
        for world, model, score in zip(worlds, models, out, strict=True):
            ratio, of = world[p, here] - reference, model[p, here]
            found = np.empty(len(ratio))
            for m in np.unique(of):
                found[of == m] = _beaten(ratio[of == m], z[m] - z_reference, gamma)
            score[p, here] = found
    return out[0], out[1]


def tune_a(
    phi: ArrayLike, member: ArrayLike, pair: ArrayLike, population: ArrayLike, *, gamma: float = 1.0
) -> float:
    """The `a` of GRID with the largest AUC of shadow models attacked by the other pairs, pooled.

    Arguments as `leave_pair_out`; the models must not be audited with it afterwards. Ties: the smallest.
    """
    matrix = _matrix(phi, member, pair, population)
    references, areas = list(_references(matrix)), []
    for a in GRID:
        found = _score_pairs(matrix, references, gamma, a)
        scored = ~np.isnan(found)
        areas.append(auc(found[scored & matrix.inside], found[scored & ~matrix.inside]))
    return GRID[int(np.argmax(areas))]


class _Matrix(NamedTuple):
    """Log probabilities of samples (models, n) and of the population (models, z), masks and pairs."""

    log_p: Floats
    inside: Mask
    usable: Mask  # (pairs, n)
    rows: NDArray[np.intp]  # (pairs, 2)
    population: Floats


class _References(NamedTuple):
    """Log mean probabilities over the models of other pairs: IN (n,), OUT (n,), of the population (z,)."""

    inside: Floats
    out: Floats
    population: Floats


def _matrix(phi: ArrayLike, member: ArrayLike, pair: ArrayLike, population: ArrayLike) -> _Matrix:
    refs = scores(phi, "phi", (2,))
    inside, rows = membership(member, refs.shape), pair_rows(pair, len(refs))
    z = scores(population, "population", (2,), missing=False)
    if len(z) != len(refs):
        raise ValueError(f"population: {len(z)} models do not match the {len(refs)} models of phi.")
    if len(rows) < 2:
        raise ValueError(f"pairs: {len(rows)} is too few, at least 2.")
    a, b = rows.T
    usable = (inside[a] != inside[b]) & ~np.isnan(refs[a]) & ~np.isnan(refs[b])
    return _Matrix(_log_p(refs), inside, usable, rows, _log_p(z))


def _references(matrix: _Matrix) -> Iterator[_References]:
    """For every pair: what the other pairs say."""
    a, b = matrix.rows.T
    first, second = matrix.log_p[a], matrix.log_p[b]
    a_inside = matrix.inside[a]
    high, low = np.where(a_inside, first, second), np.where(a_inside, second, first)
    high, low = (np.where(matrix.usable, world, -np.inf) for world in (high, low))
    both = np.logaddexp(matrix.population[a], matrix.population[b])
    number = matrix.usable.sum(axis=0) - matrix.usable
    with np.errstate(divide="ignore"):
        log_number = np.log(number)
    sums = zip(*(_sums_without_each(world) for world in (high, low, both)), strict=True)
    for p, (log_in, log_out, log_z) in enumerate(sums):
        with np.errstate(invalid="ignore"):  # of no model: -inf + inf, which is NaN
            means = log_in - log_number[p], log_out - log_number[p]
        yield _References(*means, log_z - math.log(2 * (len(a) - 1)))


def _score_pairs(matrix: _Matrix, references: list[_References], gamma: float, a: float | None) -> Floats:
    out = np.full(matrix.log_p.shape, np.nan)
    for models, usable, known in zip(matrix.rows, matrix.usable, references, strict=True):
        if a is None:
            x_ref, z_ref = _middle(known.inside, known.out), known.population
        else:
            x_ref, z_ref = _towards_one(known.out, a), _towards_one(known.population, a)
        for m in models:
            score = _beaten(matrix.log_p[m] - x_ref, matrix.population[m] - z_ref, gamma)
            out[m] = np.where(usable, score, np.nan)
    return out


def _sums_without_each(log_p: Floats) -> Iterator[Floats]:
    """For every row of log p (k, n): log of the sum of p over all the other rows; subtracts nothing."""
    nothing = np.full(log_p.shape[1], -np.inf)
    after = [nothing]
    for row in log_p[:0:-1]:
        after.append(np.logaddexp(after[-1], row))
    before = nothing
    for row in log_p:
        yield np.logaddexp(before, after.pop())
        before = np.logaddexp(before, row)


def _log_mean(log_p: Floats, use: Mask) -> Floats:
    """log of the mean of p (models, n) where use and not missing, (n,); NaN where there is none."""
    here = use & ~np.isnan(log_p)
    masked = np.where(here, log_p, -np.inf)
    largest = masked.max(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = largest + np.log(np.exp(masked - largest).sum(axis=0) / here.sum(axis=0))
    return mean


def _middle(log_p: Floats, log_q: Floats) -> Floats:
    """log of (p + q) / 2; NaN where either is."""
    with np.errstate(invalid="ignore"):
        middle: Floats = np.logaddexp(log_p, log_q) - math.log(2)
    return middle


def _towards_one(log_p: Floats, a: float) -> Floats:
    """log of ((1 + a) p + 1 - a) / 2."""
    if not 0 <= a <= 1:
        raise ValueError(f"a: {a} is outside the allowed range 0..1.")
    share = math.log1p(-a) if a < 1 else -math.inf
    with np.errstate(invalid="ignore"):
        mixture: Floats = np.logaddexp(math.log1p(a) + log_p, share) - math.log(2)
    return mixture


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
    return _log_p(x), _log_p(known), inside, _log_p(z), _log_p(z_refs)


def _log_p(phi: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # a missing score has a missing probability
        return -np.asarray(loss_from_phi(phi), dtype=np.float64)
