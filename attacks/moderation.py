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
from scipy.special import betaln, digamma, polygamma

from attacks import arrays
from attacks.arrays import Floats, Given, NumpyFloats, floats, host, namespace

RELATIVE_FLOOR = 1e-6


class VariancePrior(NamedTuple):
    """Prior degrees of freedom (0 to inf) and prior variance (units of phi squared)."""

    nu0: float
    s0_squared: float


def variance_floor(variances: Given, step: float = 0.0) -> float:
    """The smallest variance that is believed: max(1e-6 median, step^2 / 12).

    step is the storage quantum of the scores, and step^2 / 12 the variance of rounding to it. Both zero:
    every score is zero, any floor gives LLR 0, and it is 1.
    """
    return max(RELATIVE_FLOOR * arrays.median(floats(variances)), step * step / 12) or 1.0


def variance_prior(variances: Given, dof: Given) -> VariancePrior:
    """Prior fitted to sample variances (n,), with degrees of freedom (n,) or one number for all.

    Raises ValueError for an empty list, a variance that is not positive (apply `variance_floor`) or dof < 1.
    """
    s2 = floats(variances)
    xp = namespace(s2)
    d = xp.broadcast_to(floats(dof, like=s2), s2.shape)
    _check_variances(s2, d)
    e = xp.log(s2) - _by_value(_digamma_bias, d)
    centre = arrays.mean(e)
    excess = arrays.variance(e) - arrays.mean(_by_value(_trigamma_half, d))
    if excess <= 0:
        return VariancePrior(math.inf, math.exp(centre))
    half = trigamma_inverse(excess)
    return VariancePrior(2 * half, math.exp(centre + float(digamma(half)) - math.log(half)))


def moderated_variance(variance: Given, dof: Given, prior: VariancePrior) -> Floats:
    """Shrunk variance: the average of s_i^2 (weight dof) and s0^2 (weight nu0); same shape as `variance`."""
    s2 = floats(variance)
    d = floats(dof, like=s2)
    if math.isinf(prior.nu0):
        xp, shape = namespace(s2), np.broadcast_shapes(tuple(s2.shape), tuple(d.shape))
        return xp.full(shape, prior.s0_squared, dtype=xp.float64, device=s2.device)
    return (prior.nu0 * prior.s0_squared + d * s2) / (prior.nu0 + d)


def log_predictive(x: Given, mean: Given, variance: Given, count: Given, prior: VariancePrior) -> Floats:
    """Log density of a new score x, log t_{nu0 + d}(x; mean, shrunk^2 (1 + 1 / count)), d = count - 1 >= 1.

    All arrays have one shape (n,). Finite for finite x as soon as the variance or nu0 s0^2 is positive.
    """
    k = floats(count)
    xp = namespace(k)
    scale2 = moderated_variance(variance, k - 1, prior) * (1 + 1 / k)
    z2 = xp.square(floats(x, like=k) - floats(mean, like=k)) / scale2
    if math.isinf(prior.nu0):
        return -0.5 * (xp.log(2 * math.pi * scale2) + z2)
    nu = prior.nu0 + k - 1
    return _by_value(_t_constant, nu) - 0.5 * xp.log(scale2) - 0.5 * (nu + 1) * xp.log1p(z2 / nu)


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


def _digamma_bias(d: NumpyFloats) -> NumpyFloats:
    return np.asarray(digamma(d / 2) - np.log(d / 2))


def _trigamma_half(d: NumpyFloats) -> NumpyFloats:
    return np.asarray(polygamma(1, d / 2))


def _t_constant(nu: NumpyFloats) -> NumpyFloats:
    # 1 / (sqrt(nu) B(nu/2, 1/2)); the difference of two log-gammas loses its digits for large nu.
    return np.asarray(-betaln(nu / 2, 0.5) - 0.5 * np.log(nu))


def _by_value(function: Callable[[NumpyFloats], NumpyFloats], values: Floats) -> Floats:
    """function(values) where values repeat: special functions are slow, look-ups are not.

    They hang on counts of models, so the distinct ones are few: scipy gets them on the host for a tensor too.
    """
    xp, shape = namespace(values), tuple(values.shape)
    if math.prod(shape) and values.min() == values.max():
        return xp.broadcast_to(floats(function(host(values.ravel()[:1])), like=values), shape)
    distinct, position = xp.unique(values, return_inverse=True)
    return floats(function(host(distinct)), like=values)[position.reshape(shape)]


def _check_variances(s2: Floats, d: Floats) -> None:
    xp, shape = namespace(s2), tuple(s2.shape)
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"variances: shape {shape} is not a non-empty list.")
    bad = int(xp.count_nonzero(~(xp.isfinite(s2) & (s2 > 0))))
    if bad:
        raise ValueError(f"variances: {bad} of {shape[0]} are not positive and finite; floor them first.")
    if not (d >= 1).all():
        raise ValueError(f"dof: {float(d.min())} is too few degrees of freedom, at least 1.")
