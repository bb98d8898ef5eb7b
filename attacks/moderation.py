"""Empirical-Bayes shrinkage of per-sample variances, and the Student-t prediction that follows from it.

With few models a sample's own variance is noise. A scaled inverse chi-squared prior on the variances, fitted
to all samples in closed form, moves each towards the common value (Smyth 2004, doi:10.2202/1544-6115.1027):

    e_i = log s_i^2 - digamma(d_i / 2) + log(d_i / 2)
    trigamma(nu0 / 2) = Var(e) - mean trigamma(d_i / 2)         nu0 = inf if the right side is <= 0
    log s0^2 = mean(e) + digamma(nu0 / 2) - log(nu0 / 2)
    shrunk_i^2 = (nu0 s0^2 + d_i s_i^2) / (nu0 + d_i)

nu0 = 0 keeps every sample's own variance, nu0 = inf gives one variance to all; so no switch is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, digamma, polygamma

Floats = NDArray[np.float64]

RELATIVE_FLOOR = 1e-6


class VariancePrior(NamedTuple):
    """Prior degrees of freedom (0 to inf) and prior variance (units of phi squared)."""

    nu0: float
    s0_squared: float


def variance_floor(variances: ArrayLike, step: float = 0.0) -> float:
    """The smallest variance that is believed: max(1e-6 median, step^2 / 12).

    step is the storage quantum of the scores, and step^2 / 12 the variance of rounding to it. Both zero:
    every score is zero, any floor gives LLR 0, and it is 1.
    """
    values = np.asarray(variances, dtype=np.float64)
    return max(RELATIVE_FLOOR * float(np.median(values)), step * step / 12) or 1.0


def variance_prior(variances: ArrayLike, dof: ArrayLike) -> VariancePrior:
    """Prior fitted to sample variances (n,), with degrees of freedom (n,) or one number for all.

    Raises ValueError for an empty list, a variance that is not positive (apply `variance_floor`) or dof < 1.
    """
    s2 = np.asarray(variances, dtype=np.float64)
    d = np.broadcast_to(np.asarray(dof, dtype=np.float64), s2.shape)
    _check_variances(s2, d)
    e = np.log(s2) - _by_value(_digamma_bias, d)
    excess = float(np.var(e, ddof=min(1, e.size - 1)) - _by_value(_trigamma_half, d).mean())
    if excess <= 0:
        return VariancePrior(math.inf, math.exp(e.mean()))
    half = trigamma_inverse(excess)
    return VariancePrior(2 * half, math.exp(e.mean() + float(digamma(half)) - math.log(half)))


def moderated_variance(variance: ArrayLike, dof: ArrayLike, prior: VariancePrior) -> Floats:
    """Shrunk variance: the average of s_i^2 (weight dof) and s0^2 (weight nu0); same shape as `variance`."""
    s2, d = np.asarray(variance, dtype=np.float64), np.asarray(dof, dtype=np.float64)
    if math.isinf(prior.nu0):
        return np.full(np.broadcast(s2, d).shape, prior.s0_squared)
    shrunk: Floats = (prior.nu0 * prior.s0_squared + d * s2) / (prior.nu0 + d)
    return shrunk


def log_predictive(
    x: ArrayLike, mean: ArrayLike, variance: ArrayLike, count: ArrayLike, prior: VariancePrior
) -> Floats:
    """Log density of a new score x, log t_{nu0 + d}(x; mean, shrunk^2 (1 + 1 / count)), d = count - 1 >= 1.

    All arrays have one shape (n,). Finite for finite x as soon as the variance or nu0 s0^2 is positive.
    """
    k = np.asarray(count, dtype=np.float64)
    scale2 = moderated_variance(variance, k - 1, prior) * (1 + 1 / k)
    z2 = np.square(np.asarray(x, dtype=np.float64) - np.asarray(mean)) / scale2
    if math.isinf(prior.nu0):
        normal: Floats = -0.5 * (np.log(2 * math.pi * scale2) + z2)
        return normal
    nu = prior.nu0 + k - 1
    constant = _by_value(_t_constant, nu)
    density: Floats = constant - 0.5 * np.log(scale2) - 0.5 * (nu + 1) * np.log1p(z2 / nu)
    return density


def trigamma_inverse(value: float) -> float:
    """y > 0 with trigamma(y) = value > 0. Newton on 1 / trigamma, which is convex and nearly linear."""
    if not 0 < value < math.inf:
        raise ValueError(f"trigamma_inverse: {value} is not a positive finite number.")
    if value > 1e7:
        return 1 / math.sqrt(value)  # trigamma(y) -> 1 / y^2
    if value < 1e-6:
        return 1 / value  # trigamma(y) -> 1 / y
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, y))
        change = trigamma * (1 - trigamma / value) / float(polygamma(2, y))
        y += change
        if abs(change) < 1e-12 * y:
            break
    return y


def _digamma_bias(d: Floats) -> Floats:
    bias: Floats = digamma(d / 2) - np.log(d / 2)
    return bias


def _trigamma_half(d: Floats) -> Floats:
    return np.asarray(polygamma(1, d / 2), dtype=np.float64)


def _t_constant(nu: Floats) -> Floats:
    # 1 / (sqrt(nu) B(nu/2, 1/2)); the difference of two log-gammas loses its digits for large nu.
    constant: Floats = -betaln(nu / 2, 0.5) - 0.5 * np.log(nu)
    return constant


def _by_value(function: Callable[[Floats], Floats], values: Floats) -> Floats:
    """function(values) where values repeat: special functions are slow, look-ups are not."""
    if values.size and values.min() == values.max():
        return np.broadcast_to(function(values.ravel()[:1]), values.shape)
    distinct, position = np.unique(values, return_inverse=True)
    return function(distinct)[position.reshape(values.shape)]


def _check_variances(s2: Floats, d: Floats) -> None:
    if s2.ndim != 1 or s2.size == 0:
        raise ValueError(f"variances: shape {s2.shape} is not a non-empty list.")
    bad = int(np.count_nonzero(~(np.isfinite(s2) & (s2 > 0))))
    if bad:
        raise ValueError(f"variances: {bad} of {s2.size} are not positive and finite; floor them first.")
    if not (d >= 1).all():
        raise ValueError(f"dof: {d.min()} is too few degrees of freedom, at least 1.")
