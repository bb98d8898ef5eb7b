"""Sufficient statistics of φ per sample: count, mean and the sums of powers of deviations up to the fourth.

Megabytes instead of all scores, enough for every Gaussian attack (mean, variance) and for asking whether a
Gaussian is right (skewness, kurtosis). Statistics of disjoint groups merge exactly up to rounding, without
the cancellation of sums of powers: Chan, Golub and LeVeque 1979; third and fourth moment as in Pébay,
"Formulas for Robust, One-Pass Parallel Computation of Covariances and Arbitrary-Order Statistical Moments",
SAND2008-6212.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.inputs import Floats, scores


class Suffstats(NamedTuple):
    """Per sample, each (samples,) float64: n values, their mean (0 where n = 0) and Σ(φ − mean)^2, ^3, ^4."""

    n: Floats
    mean: Floats
    m2: Floats
    m3: Floats
    m4: Floats


def of(values: ArrayLike) -> Suffstats:
    """The statistics of φ (k, samples), NaN where missing. ValueError for another shape or infinite φ."""
    phi = scores(values, "phi", (2,))
    here = ~np.isnan(phi)
    n = here.sum(axis=0).astype(np.float64)
    mean = np.where(here, phi, 0.0).sum(axis=0) / np.maximum(n, 1)
    apart = np.where(here, phi - mean, 0.0)
    square = apart * apart
    return Suffstats(n, mean, square.sum(axis=0), (square * apart).sum(axis=0), (square * square).sum(axis=0))


def merge(a: Suffstats, b: Suffstats) -> Suffstats:
    """The statistics of the union of two disjoint groups of values; either may be empty."""
    n = np.maximum(a.n + b.n, 1)
    share_a, share_b = a.n / n, b.n / n
    d = b.mean - a.mean
    m2 = a.m2 + b.m2 + d**2 * a.n * share_b
    m3 = a.m3 + b.m3 + d**3 * a.n * share_b * (share_a - share_b)
    m3 += 3 * d * (share_a * b.m2 - share_b * a.m2)
    m4 = a.m4 + b.m4 + d**4 * a.n * share_b * (share_a**2 - share_a * share_b + share_b**2)
    m4 += 6 * d**2 * (share_a**2 * b.m2 + share_b**2 * a.m2) + 4 * d * (share_a * b.m3 - share_b * a.m3)
    return Suffstats(a.n + b.n, a.mean + d * share_b, m2, m3, m4)


def variance(s: Suffstats) -> Floats:
    """Unbiased variance, (samples,); NaN where n < 2."""
    return _where(s.n >= 2, s.m2, s.n - 1)


def skewness(s: Suffstats) -> Floats:
    """√n·M3/M2^1.5, (samples,): 0 for a Gaussian, standard error about √(6/n); NaN where all are equal."""
    return _where(s.m2 > 0, np.sqrt(s.n) * s.m3, s.m2**1.5)


def kurtosis(s: Suffstats) -> Floats:
    """Excess n·M4/M2² − 3, (samples,): 0 for a Gaussian, standard error about √(24/n); NaN where all are
    equal. With few values both are biased towards 0.
    """
    return _where(s.m2 > 0, s.n * s.m4, s.m2**2) - 3


def _where(allowed: NDArray[np.bool_], above: Floats, below: Floats) -> Floats:
    """above / below where allowed, else NaN."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=allowed & (below > 0))
