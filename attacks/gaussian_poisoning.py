"""Gaussian poisoning: does the model still remember noise it was told to forget (arXiv:2406.17216)?

Before training, input x_i of each of p samples gets noise xi_i ~ N(0, eps_p^2 I) added. The model is trained,
then made to forget exactly these p samples. At the clean input,

    I_i = -<g_i, xi_i> / (eps_p ||g_i||),  g_i = gradient of the loss in x_i      GUS = mean I_i

A model that does not depend on xi_i has I_i ~ N(0, 1) exactly, whatever its gradients; so p = 1 - Phi(sqrt(p)
GUS) is a test without any other model, and the share of I_i > 2.326 is a TPR at 1 % FPR.

Deviation: the sign. A model that fitted x_i + xi_i has its loss fall towards xi_i, so the loss gradient and
the noise are opposed (tested on a logistic regression); without the minus the one-sided test has no power.
Limits: it changes the training data, needs input gradients in eval mode, and what it detects is memory of the
noise, which is not memory of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

name = "gaussian_poisoning"
label = "GUS"
paper = "arXiv:2406.17216"
version = 1

FPR = 0.01


@dataclass(frozen=True, eq=False)
class GaussianPoisoning:
    """Rates in 0-1. Under "no memory of the noise" p_value is uniform and tpr is 0.01 on average."""

    gus: float  # mean statistic; positive = the noise is remembered
    z: float  # sqrt(samples) * gus
    p_value: float  # one-sided: P(Z >= z)
    p_value_two_sided: float  # the other sign is a mark too, of a method that pushes the noise out
    tpr: float  # share of statistics above the 1 % threshold of the null, 2.326
    detectable: float  # the GUS that the one-sided test finds at 5 %: 1.645 / sqrt(samples)
    samples: int  # with a gradient
    without_gradient: int  # gradient exactly zero: no direction, left out; harmless, as it ignores the noise
    statistic: Floats = field(repr=False)  # (p,), NaN without gradient


def gaussian_poisoning(gradients: ArrayLike, noise: ArrayLike, noise_std: float) -> GaussianPoisoning:
    """Test of p poisoned samples: loss gradients at the clean inputs and the noises, both (p, ...).

    noise_std is eps_p, in the units of the inputs. Raises ValueError for shapes that differ, a value that is
    not finite, a noise_std that is not positive, or when every gradient is zero.
    """
    statistic = _statistic(gradients, noise, noise_std)
    usable = statistic[~np.isnan(statistic)]
    if usable.size == 0:
        raise ValueError(f"gradients: all {statistic.size} are zero; score in float32 or float64.")
    gus, root = float(usable.mean()), math.sqrt(usable.size)
    return GaussianPoisoning(
        gus=gus,
        z=root * gus,
        p_value=float(stats.norm.sf(root * gus)),
        p_value_two_sided=float(2 * stats.norm.sf(abs(root * gus))),
        tpr=float(np.mean(usable > stats.norm.isf(FPR))),
        detectable=float(stats.norm.isf(0.05)) / root,
        samples=usable.size,
        without_gradient=statistic.size - usable.size,
        statistic=statistic,
    )


def _statistic(gradients: ArrayLike, noise: ArrayLike, noise_std: float) -> Floats:
    g, xi = _rows(gradients, "gradients"), _rows(noise, "noise")
    if np.shape(gradients) != np.shape(noise):
        raise ValueError(
            f"noise: shape {np.shape(noise)} is not that of the gradients, {np.shape(gradients)}."
        )
    if not 0 < noise_std < math.inf:
        raise ValueError(f"noise_std: {noise_std} is not a positive finite number.")
    # A confident model has gradients of 1e-200: scale to 1 first, or the squares in the norm vanish.
    size = np.abs(g).max(axis=1)
    direction = g / np.where(size > 0, size, 1.0)[:, None]
    norm = np.linalg.norm(direction, axis=1)
    with np.errstate(invalid="ignore"):
        statistic: Floats = -(direction * xi).sum(axis=1) / (noise_std * norm)
    return statistic


def _rows(values: ArrayLike, what: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{what}: shape {array.shape} is not (samples, ...input).")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(f"{what}: {bad} of {array.size} values are not finite; none is allowed.")
    return array.reshape(len(array), -1)
