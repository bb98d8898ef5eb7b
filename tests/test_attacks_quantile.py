"""Quantile regression: recovers the law that made phi, fits on nothing it scores, keeps its FPR."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from attacks.loss_threshold import loss_threshold
from attacks.metrics import auc
from attacks.quantile_regression import (
    gaussian_head,
    pinball_head,
    pinball_loss,
    quantile_margin,
    quantile_regression,
)

SEEDS = st.integers(0, 10_000)
SLOPE, LOG_SPREAD = np.array([2.0, -1.0, 0.5]), np.array([0.0, 0.4, 0.0])


def draw(n=4000, shift=0.0, seed=0):
    """phi ~ N(SLOPE . x + shift member, exp(LOG_SPREAD . x)^2): hard and easy, narrow and wide samples."""
    rng = np.random.default_rng(seed)
    x, member = rng.normal(size=(n, 3)), rng.random(n) < 0.5
    spread = np.exp(x @ LOG_SPREAD)
    return x @ SLOPE + spread * (rng.normal(size=n) + shift * member), x, member, spread


def test_the_gaussian_head_recovers_means_and_deviations():
    phi, x, _, _ = draw()
    _, new, _, spread = draw(n=500, seed=1)
    mean, deviation = gaussian_head(x, phi, new)
    # Standard errors: four coefficients from 4,000 samples; log chi-squared has a deviation of 2.2.
    np.testing.assert_allclose(mean, new @ SLOPE, atol=0.25)
    np.testing.assert_allclose(deviation / spread, 1.0, atol=0.25)
    assert np.median(deviation / spread) == pytest.approx(1.0, abs=0.05)


def test_the_score_of_untrained_samples_is_standard_normal():
    phi, x, member, _ = draw()
    score = quantile_regression(phi, x, member)
    for kind in (member, ~member):
        assert score[kind].mean() == pytest.approx(0.0, abs=0.1)
        assert score[kind].std() == pytest.approx(1.0, abs=0.1)
    # Within each third of the difficulty, too: this is what the features are for.
    for third in np.array_split(np.argsort(x @ SLOPE), 3):
        assert score[third].mean() == pytest.approx(0.0, abs=0.15)
        assert score[third].std() == pytest.approx(1.0, abs=0.15)


def test_a_shift_reaches_the_closed_form_where_a_threshold_does_not():
    """d = 1 given the features: Phi(1 / sqrt 2). One threshold sees a spread of about 2.6 instead of 1."""
    phi, x, member, _ = draw(shift=1.0, n=8000)
    score = quantile_regression(phi, x, member)
    best = float(ndtr(1 / math.sqrt(2)))
    assert auc(score[member], score[~member]) == pytest.approx(best, abs=0.02)
    assert loss_threshold(phi[member], phi[~member]) < 0.68


@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_the_margin_calls_alpha_of_the_untrained_samples(alpha):
    phi, x, member, _ = draw(shift=1.0, n=6000)
    margin = quantile_margin(phi, x, member, alpha=alpha)
    fpr, tpr = float((margin[~member] > 0).mean()), float((margin[member] > 0).mean())
    assert alpha / 2 < fpr < 2.5 * alpha  # extreme quantiles of trees are loose; a plain one would be exact
    assert tpr > 2 * fpr


# --- pinball
# ---------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([0.5, 0.2, 0.05]))
def test_a_constant_model_predicts_the_sample_quantile(seed, alpha):
    """Nothing to split on: what is left is the minimiser of the pinball loss."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=201)
    found = pinball_head(np.zeros((201, 1)), phi, np.zeros((1, 1)), alpha=alpha)[0]
    ordered = np.sort(phi)
    # The loss is piecewise linear, so its minimum is at a sample.
    least = min(pinball_loss(phi, value, alpha) for value in ordered)
    assert pinball_loss(phi, found, alpha) == pytest.approx(least, rel=1e-3)
    at = ordered[np.argmin([pinball_loss(phi, value, alpha) for value in ordered])]
    assert at == pytest.approx(np.quantile(phi, 1 - alpha, method="inverted_cdf"))


def test_the_quantile_follows_the_features():
    phi, x, _, _ = draw(n=6000)
    _, new, _, spread = draw(n=2000, seed=2)
    found = pinball_head(x, phi, new, alpha=0.1)
    truth = new @ SLOPE + 1.2816 * spread
    assert np.corrcoef(found, truth)[0, 1] > 0.95
    fresh = new @ SLOPE + spread * np.random.default_rng(3).normal(size=2000)
    assert pinball_loss(fresh, found, 0.1) < 0.6 * pinball_loss(fresh, np.quantile(phi, 0.9), 0.1)


# --- cross-fit
# ---------------------------------------------------------------------------------------------------


def wide(n=300, d=40, seed=4):
    """So many useful features that a fit remembers its samples; membership means nothing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x.sum(axis=1) + rng.normal(size=n), x, rng.random(n) < 0.5


def test_a_null_world_is_one_half_though_the_fit_remembers():
    areas = []
    for seed in range(12):
        phi, x, member = wide(seed=seed)
        score = quantile_regression(phi, x, member)
        areas.append(auc(np.abs(score[member]), np.abs(score[~member])))
        areas.append(auc(score[member], score[~member]))
    # 24 areas of 150 against 150, SE 0.033 each; 0.033 / sqrt 24 = 0.007.
    assert np.mean(areas) == pytest.approx(0.5, abs=0.028)


def test_defect_fitting_and_scoring_the_same_non_members_finds_leakage_where_none_is():
    areas = []
    for seed in range(6):
        phi, x, member = wide(seed=seed, d=60)
        design = np.column_stack([np.ones(len(x)), x])
        coefficients = np.linalg.lstsq(design[~member], phi[~member], rcond=None)[0]
        residual = np.abs(phi - design @ coefficients)
        areas.append(auc(residual[member], residual[~member]))
    assert np.mean(areas) > 0.6


def test_defect_a_target_cast_to_integer_loses_the_shift():
    """A public port casts phi to an integer; members that are one half of a rounding step above vanish."""
    rng = np.random.default_rng(5)
    x, member = rng.normal(size=(4000, 2)), rng.random(4000) < 0.5
    phi = 0.3 + 0.1 * rng.normal(size=4000) + 0.2 * member
    right, wrong = (quantile_regression(p, x, member) for p in (phi, phi.astype(int)))
    assert auc(right[member], right[~member]) == pytest.approx(float(ndtr(2 / math.sqrt(2))), abs=0.02)
    assert auc(wrong[member], wrong[~member]) < 0.6


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_members_are_never_learnt_from(seed):
    phi, x, member = wide(seed=seed, d=3)
    bad = np.where(member, 1e6, phi)
    expected = quantile_regression(phi, x, member)[~member]
    np.testing.assert_array_equal(quantile_regression(bad, x, member)[~member], expected)


def test_missing_scores_are_missing_and_not_learnt_from():
    phi, x, member = wide(d=3)
    phi[:10] = np.nan
    found = quantile_regression(phi, x, member)
    assert np.flatnonzero(np.isnan(found)).tolist() == list(range(10))
    np.testing.assert_array_equal(found, quantile_regression(phi, x, member))
    assert not np.array_equal(found[10:], quantile_regression(phi, x, member, seed=1)[10:])


def test_constant_scores_and_features_give_ties_and_not_nan():
    member = np.arange(100) % 2 == 0
    score = quantile_regression(np.full(100, 3.0), np.zeros((100, 2)), member)
    assert np.isfinite(score).all()
    assert auc(score[member], score[~member]) == pytest.approx(0.5, abs=0.01)


PHI, X, MEMBER = wide(n=60, d=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantile_regression(PHI, X[:5], MEMBER), "features: shape"),
        (lambda: quantile_regression(PHI, X * np.nan, MEMBER), "features: 120 of 120"),
        (lambda: quantile_regression(PHI, X, MEMBER[:5]), "member: shape"),
        (lambda: quantile_regression(PHI, X, MEMBER, folds=1), "folds: 1 is too few"),
        (lambda: quantile_regression(PHI, X, np.ones(60)), "member: 0 non-members"),
        (lambda: quantile_margin(PHI, X, np.zeros(60), alpha=0.0), "alpha: 0.0"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
