"""Quantile regression: phi against what it would be untrained on (Bertran et al. 2023, arXiv:2307.03694).

One regression per target model, on samples that it was not trained on, predicts phi from features that do not
depend on the target (an embedding by a public model, the class); a sample is called trained on if its phi is
above the prediction:

    gaussian  score = (phi - mean(features)) / deviation(features)
    pinball   margin = phi - q(features), with q minimising E max((1 - alpha)(phi - q), alpha (q - phi))

It needs no further models. Cross-fit: members and others are dealt into folds alike, and each fold is scored
by a regression on the others' non-members, so none is scored by a fit that it was part of, and all fits of
both kinds are equally good; otherwise the null is not one half.

Deviation: linear ridge for the Gaussian head (log-variance from out-of-fold residuals) and boosted trees for
the quantile, in place of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.inputs import Floats, Mask, membership, scores

name = "quantile_regression"
label = "Quantile regression"
paper = "arXiv:2307.03694"
version = 1

PENALTIES = (0.01, 1.0, 100.0, 1e4)
MIN_TRAINING = 20  # non-members behind one regression
RELATIVE_FLOOR = 1e-6  # of the median squared residual, as for variances in moderation.py
LOG_CHI2_MEAN = float(digamma(0.5)) + math.log(2)  # E log of a squared standard normal

Regression = Callable[[Floats, Floats, Floats], Floats]


def quantile_regression(
    phi: ArrayLike, features: ArrayLike, member: ArrayLike, *, folds: int = 5, seed: int = 0
) -> Floats:
    """Scores (n,), in predicted deviations above the predicted mean: phi (n,), features (n, d), member (n,).

    NaN = missing in phi: its score is NaN and it is not learnt from. Raises ValueError for a wrong shape, a
    non-finite feature, fewer than 2 folds, or fewer than 20 non-members to learn from.
    """

    def standardised(x: Floats, y: Floats, new: Floats) -> Floats:
        mean, deviation = gaussian_head(x, y, new[:, :-1])
        result: Floats = (new[:, -1] - mean) / deviation
        return result

    return _cross_fit(phi, features, member, standardised, folds, seed)


def quantile_margin(
    phi: ArrayLike,
    features: ArrayLike,
    member: ArrayLike,
    *,
    alpha: float = 0.01,
    folds: int = 5,
    seed: int = 0,
) -> Floats:
    """phi minus its predicted (1 - alpha)-quantile, (n,): positive = called trained on, at FPR about alpha.

    Arguments and errors as `quantile_regression`.
    """

    def above(x: Floats, y: Floats, new: Floats) -> Floats:
        result: Floats = new[:, -1] - pinball_head(x, y, new[:, :-1], alpha=alpha, seed=seed)
        return result

    return _cross_fit(phi, features, member, above, folds, seed)


def gaussian_head(features: Floats, phi: Floats, new: Floats) -> tuple[Floats, Floats]:
    """Predicted mean and deviation of phi, each (m,), for new (m, d), learnt from features (n, d), phi (n,).

    The log-variance is regressed on log squared residuals of cross-validated means: those of the fit itself
    are too small. exp of a mean of logs is too small by a known factor, that of a squared normal.
    """
    fitted = cross_val_predict(_ridge(), features, phi, cv=KFold(5))
    squared = np.square(phi - fitted)
    floor = RELATIVE_FLOOR * float(np.median(squared)) or float(np.finfo(np.float32).eps)
    log_squared = np.log(np.maximum(squared, floor)) - LOG_CHI2_MEAN
    mean = _ridge().fit(features, phi).predict(new)
    return mean, np.exp(0.5 * _ridge().fit(features, log_squared).predict(new))


def pinball_head(features: Floats, phi: Floats, new: Floats, *, alpha: float, seed: int = 0) -> Floats:
    """Predicted (1 - alpha)-quantile of phi, (m,), for new (m, d), by boosted trees on the pinball loss."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha} is outside the allowed range 0..1 (both excluded).")
    trees = HistGradientBoostingRegressor(
        loss="quantile", quantile=1 - alpha, max_iter=100, max_leaf_nodes=8, random_state=seed
    )
    return np.asarray(trees.fit(features, phi).predict(new))


def pinball_loss(phi: ArrayLike, quantile: ArrayLike, alpha: float) -> float:
    """Mean pinball loss of predicted (1 - alpha)-quantiles, in units of phi."""
    error = np.asarray(phi, dtype=np.float64) - np.asarray(quantile, dtype=np.float64)
    return float(np.maximum((1 - alpha) * error, -alpha * error).mean())


def _ridge() -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES))


def _cross_fit(
    phi: ArrayLike, features: ArrayLike, member: ArrayLike, attack: Regression, folds: int, seed: int
) -> Floats:
    """attack(features, phi, new features and phi) of every fold, learnt on the non-members of the others."""
    y, x = scores(phi, "phi", (1,)), scores(features, "features", (2,), missing=False)
    if len(x) != y.size:
        raise ValueError(f"features: shape {x.shape} does not match phi {y.shape}.")
    inside = membership(member, y.shape)
    if folds < 2:
        raise ValueError(f"folds: {folds} is too few, at least 2.")
    known = ~np.isnan(y)
    fold = np.random.default_rng(seed).permutation(y.size) % folds
    score = np.full(y.size, np.nan)
    for f in range(folds):
        train: Mask = known & ~inside & (fold != f)
        held_out = known & (fold == f)
        if train.sum() < MIN_TRAINING:
            raise ValueError(f"member: {train.sum()} non-members to learn from, at least {MIN_TRAINING}.")
        if held_out.any():
            score[held_out] = attack(x[train], y[train], np.column_stack([x[held_out], y[held_out]]))
    return score
