"""Which samples are exposed: per-sample AUC, false-discovery control, Streisand share, leakage left.

A mean AUC hides a few samples that everybody can recognise. For sample i, the AUC of its scores phi when
forgotten against phi in the reference world, over k models of each, is U / k^2 with U the Mann-Whitney count.
At k = 64 its standard deviation under the null is .051: "share of samples above 0.6" then reads 4.3 % where
1.9 % are. So exposed samples are those that pass Benjamini and Hochberg's test on one half of the pairs
(exact null of U; Mann and Whitney 1947) and again on the other half, and their AUC is read from that half.

The Streisand share counts the opposite mistake: forgotten phi below the 1 % quantile of the retrained world
of its sample, a Student-t prediction from the other pairs (see moderation.py). Nothing wrong: 1 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from attacks.metrics import expanded_percentile_interval
from attacks.moderation import VariancePrior, moderated_variance, variance_floor, variance_prior
from attacks.moments import Floats, Mask, Moments, total, without_each

MIN_PAIRS = 4  # two halves of two
PERCENTILES = (50, 90, 95, 99)
LEVELS: Floats = np.arange(101) / 100  # of the distribution of the per-sample AUC
ABOVE = 0.6
QUANTILE = 0.01


@dataclass(frozen=True, eq=False)
class AucSpread:
    """Quantiles of the per-sample AUC and what they would be if no sample leaked, by noise alone."""

    quantiles: dict[int, float]  # keyed by percentile: 50, 90, 95, 99
    null_quantiles: dict[int, float]
    above: float  # share of samples with AUC > 0.6
    null_above: float
    samples: int  # with a score in both worlds
    curve: Floats = field(repr=False)  # (101,): the smallest AUC that 0 %, 1 %, ... 100 % do not exceed
    null_curve: Floats = field(repr=False)  # (101,): the same of the null


@dataclass(frozen=True, eq=False)
class Exposed:
    """Samples found on one half of the pairs and confirmed on the other; AUC from that other half only."""

    found: NDArray[np.int64] = field(repr=False)  # indices of samples, most exposed first
    confirmed: NDArray[np.int64] = field(repr=False)  # those of them that pass on the other half, too
    found_auc: Floats = field(repr=False)  # of `found`, on the other half: free of the selection
    fdr: float
    samples: int  # tested

    @property
    def mean_found_auc(self) -> float:
        """Mean AUC of the found samples on pairs that did not choose them; NaN if none is found."""
        return float(self.found_auc.mean()) if self.found_auc.size else math.nan


@dataclass(frozen=True)
class Streisand:
    """Shares (0-1) of scores below the 1 % quantile of the retrained world of their sample."""

    share: float  # of forgotten scores
    null: float  # of retrained scores, by the same rule; 0.01 where phi is Gaussian
    scores: int


@dataclass(frozen=True)
class Leakage:
    """Share of the leakage of the identity that is left, with its interval. Not `supported`: print "n/a"."""

    share: float
    low: float
    high: float
    supported: bool


def pair_auc(forgotten: ArrayLike, reference: ArrayLike) -> Floats:
    """AUC (0-1) of every sample (n,) over pairs: phi (k, n), (k', n), NaN = missing. NaN: a world is empty.

    Raises ValueError for a wrong shape or an infinite score.
    """
    return _auc(*_worlds(forgotten, reference, 1))


def auc_spread(forgotten: ArrayLike, reference: ArrayLike) -> AucSpread:
    """Quantiles of the per-sample AUC of phi (k, n), (k', n), beside those of a world without leaks."""
    high, low = _worlds(forgotten, reference, 1)
    area = _auc(high, low)
    usable = area[~np.isnan(area)]
    if usable.size == 0:
        raise ValueError("auc_spread: no sample has a score in both worlds.")
    values, weights = _null_aucs(high, low)
    reached = np.cumsum(weights)
    null = values[np.minimum(np.searchsorted(reached, LEVELS), values.size - 1)]
    return AucSpread(
        quantiles={p: float(np.quantile(usable, p / 100)) for p in PERCENTILES},
        null_quantiles={p: float(null[p]) for p in PERCENTILES},
        above=float(np.mean(usable > ABOVE)),
        null_above=float(weights[values > ABOVE].sum()),
        samples=usable.size,
        curve=np.quantile(usable, LEVELS, method="inverted_cdf"),
        null_curve=null,
    )


def exposed(forgotten: ArrayLike, reference: ArrayLike, fdr: float = 0.05, seed: int = 0) -> Exposed:
    """Samples that are remembered: phi (k pairs, n samples) of both worlds, NaN = missing.

    The pairs are halved by seed. Raises ValueError for a wrong shape, shapes that differ, fewer than 4 pairs,
    an infinite score, or an fdr outside 0..1.
    """
    high, low = _worlds(forgotten, reference, MIN_PAIRS)
    if high.shape != low.shape:
        raise ValueError(f"phi: shapes {high.shape} and {low.shape} are not one (pairs, samples) shape.")
    first = np.random.default_rng(seed).permutation(len(high)) < len(high) // 2
    p_value = exposure_p_values(high[first], low[first])
    found = np.flatnonzero(benjamini_hochberg(p_value, fdr))
    found = found[np.argsort(p_value[found], kind="stable")]
    held_high, held_low = high[~first][:, found], low[~first][:, found]
    again = benjamini_hochberg(exposure_p_values(held_high, held_low), fdr)
    tested = int(np.count_nonzero(~np.isnan(p_value)))
    return Exposed(found, found[again], _auc(held_high, held_low), fdr, tested)


def exposure_p_values(forgotten: ArrayLike, reference: ArrayLike) -> Floats:
    """P(U >= observed) per sample (n,) if both worlds are alike, exact without ties, else cautious.

    phi (k, n), (k', n), NaN = missing; a sample without both worlds has NaN.
    """
    high, low = _worlds(forgotten, reference, 1)
    n1, n0 = _present(high), _present(low)
    u = np.floor(np.nan_to_num(_auc(high, low)) * n1 * n0 + 1e-6).astype(np.int64)
    p_value = np.full(high.shape[1], np.nan)
    for a, b in np.unique(np.stack([n1, n0], axis=1), axis=0):
        here = (n1 == a) & (n0 == b)
        if a and b:
            tail = np.cumsum(mann_whitney_null(int(a), int(b))[::-1])[::-1]
            p_value[here] = np.minimum(tail[u[here]], 1.0)
    return p_value


def mann_whitney_null(n1: int, n0: int) -> Floats:
    """P(U = u) for u = 0..n1 n0 (n1 n0 + 1,), two samples of one continuous law.

    By who owns the largest value:
    P[n1, n0](u) = (n1 P[n1 - 1, n0](u - n0) + n0 P[n1, n0 - 1](u)) / (n1 + n0).
    """
    if n1 < 1 or n0 < 1:
        raise ValueError(f"mann_whitney_null: sizes {n1} and {n0}; each at least 1.")
    row = [np.ones(1) for _ in range(n0 + 1)]
    for i in range(1, n1 + 1):
        new = [np.ones(1)]
        for j in range(1, n0 + 1):
            law = np.zeros(i * j + 1)
            law[j:] += i / (i + j) * row[j]
            law[: i * (j - 1) + 1] += j / (i + j) * new[j - 1]
            new.append(law)
        row = new
    return np.asarray(row[n0], dtype=np.float64)


def benjamini_hochberg(p_values: ArrayLike, fdr: float = 0.05) -> Mask:
    """Discoveries (n,) at the false discovery rate; NaN is not tested (J. R. Stat. Soc. B 57, 1995)."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not 0 < fdr < 1 or ((p < 0) | (p > 1)).any():
        raise ValueError(
            f"benjamini_hochberg: p-values {p.shape} within 0..1 and fdr {fdr} within 0..1 needed."
        )
    tested = ~np.isnan(p)
    found = np.zeros(p.size, dtype=np.bool_)
    if tested.any():
        found[tested] = stats.false_discovery_control(p[tested], method="bh") <= fdr
    return found


def streisand(forgotten: ArrayLike, retrained: ArrayLike) -> Streisand:
    """Share of scores that fell below where retraining leaves them: phi (k pairs, n) twice, NaN = missing.

    Raises ValueError for a wrong shape, fewer than 4 pairs, an infinite score, or no sample with both worlds
    in 3 pairs.
    """
    high, low = _worlds(forgotten, retrained, MIN_PAIRS)
    if high.shape != low.shape:
        raise ValueError(f"phi: shapes {high.shape} and {low.shape} are not one (pairs, samples) shape.")
    present = ~(np.isnan(high) | np.isnan(low))
    everything = total(low, present)
    usable = everything.take(everything.number >= MIN_PAIRS - 1)
    if usable.number.size == 0:
        raise ValueError(f"streisand: no sample has both worlds in {MIN_PAIRS - 1} pairs.")
    floor = variance_floor(usable.variance())
    prior = variance_prior(np.maximum(usable.variance(), floor), usable.number - 1)
    below, null, scores = 0, 0, 0
    for p, fit in enumerate(without_each(low, present)):
        scored = present[p] & (fit.number >= 2)
        limit = _lower_limit(fit.take(scored), prior, floor)
        below += int(np.count_nonzero(high[p, scored] < limit))
        null += int(np.count_nonzero(low[p, scored] < limit))
        scores += int(scored.sum())
    return Streisand(below / scores, null / scores, scores)


def leakage(
    method_auc: float,
    method_replicates: ArrayLike,
    identity_auc: float,
    identity_replicates: ArrayLike,
    clusters: int,
    level: float = 0.95,
) -> Leakage:
    """(AUC of the method - 1/2) / (AUC of no unlearning - 1/2), with an interval from paired replicates (R,).

    Replicates come from the same pairs and seed (`ulira.Comparison.auc_replicates`); NaN ones are left out
    together. Not supported unless AUC of no unlearning - 1/2 exceeds 3 of its standard errors: there is
    nothing to divide by. Raises ValueError for shapes that differ or fewer than 2 usable replicates.
    """
    method = np.asarray(method_replicates, dtype=np.float64)
    identity = np.asarray(identity_replicates, dtype=np.float64)
    if method.ndim != 1 or method.shape != identity.shape:
        raise ValueError(f"leakage: replicates {method.shape} and {identity.shape} differ; use one seed.")
    usable = ~(np.isnan(method) | np.isnan(identity))
    if usable.sum() < 2:
        raise ValueError(f"leakage: {int(usable.sum())} of {usable.size} replicates are numbers, at least 2.")
    first, second = method[usable] - 0.5, identity[usable] - 0.5
    if not identity_auc - 0.5 > 3 * second.std(ddof=1):
        return Leakage(math.nan, math.nan, math.nan, False)
    share = (method_auc - 0.5) / (identity_auc - 0.5)
    # A replicate whose identity leaks nothing says nothing about the share; with 3 errors they are rare.
    ratios = first[second != 0] / second[second != 0]
    low, high = expanded_percentile_interval(ratios, clusters, level)
    return Leakage(share, min(low, share), max(high, share), True)


def _lower_limit(fit: Moments, prior: VariancePrior, floor: float) -> Floats:
    variance = moderated_variance(np.maximum(fit.variance(), floor), fit.number - 1, prior)
    numbers, place = np.unique(fit.number, return_inverse=True)
    t = stats.t.ppf(QUANTILE, np.minimum(prior.nu0 + numbers - 1, 1e9))[place]  # t of infinity is not defined
    limit: Floats = fit.mean + t * np.sqrt(variance * (1 + 1 / fit.number))
    return limit


def _auc(high: Floats, low: Floats) -> Floats:
    """P(high > low) + P(tie) / 2 per column, NaN left out; one row of `high` at a time."""
    twice = np.zeros(high.shape[1], dtype=np.int64)
    for row in high:
        twice += (row > low).sum(axis=0) + (row >= low).sum(axis=0)
    count = _present(high) * _present(low)
    return np.where(count > 0, twice / np.maximum(2 * count, 1), np.nan)


def _null_aucs(high: Floats, low: Floats) -> tuple[Floats, Floats]:
    """Values of the per-sample AUC and their probabilities if no sample leaks, over all samples present."""
    sizes, times = np.unique(np.stack([_present(high), _present(low)], axis=1), axis=0, return_counts=True)
    usable = sizes.min(axis=1) > 0
    laws = [mann_whitney_null(int(a), int(b)) for a, b in sizes[usable]]
    values = np.concatenate([np.arange(law.size) / (law.size - 1) for law in laws])
    weights = np.concatenate([law * n for law, n in zip(laws, times[usable], strict=True)])
    order = np.argsort(values, kind="stable")
    return values[order], weights[order] / weights.sum()


def _present(world: Floats) -> NDArray[np.int64]:
    return np.asarray((~np.isnan(world)).sum(axis=0), dtype=np.int64)


def _worlds(forgotten: ArrayLike, reference: ArrayLike, least: int) -> tuple[Floats, Floats]:
    high, low = np.asarray(forgotten, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if high.ndim != 2 or low.ndim != 2 or high.shape[1] != low.shape[1]:
        raise ValueError(f"phi: shapes {high.shape} and {low.shape} are not (pairs, samples) of one set.")
    if min(len(high), len(low)) < least:
        raise ValueError(f"pairs: {min(len(high), len(low))} is too few, at least {least}.")
    infinite = int(np.isinf(high).sum() + np.isinf(low).sum())
    if infinite:
        raise ValueError(
            f"phi: {infinite} of {high.size + low.size} scores are infinite; use NaN for missing."
        )
    return high, low
