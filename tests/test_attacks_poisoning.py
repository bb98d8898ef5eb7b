"""Gaussian poisoning: exact null, power, and the sign of the statistic."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression

from attacks.gaussian_poisoning import gaussian_poisoning

SEEDS = st.integers(0, 10_000)


def statistic_by_loops(gradients, noise, noise_std, sign=-1.0):
    pairs = zip(gradients, noise, strict=True)
    return np.array([sign * np.sum(g * x) / (noise_std * math.sqrt(np.sum(g * g))) for g, x in pairs])


def fields(kind, rng, shape):
    """Gradient fields that know nothing of the noise, however odd."""
    if kind == "heavy":
        return rng.standard_cauchy(shape)
    if kind == "sparse":
        return (rng.random(shape) < 0.05) + 1.0 * (np.arange(shape[1]) == 3)
    if kind == "one direction":
        return np.tile(rng.normal(size=shape[1]), (shape[0], 1))
    return np.exp(rng.normal(0, 20, (shape[0], 1))) * rng.normal(size=shape)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(["heavy", "sparse", "one direction", "sizes"]), st.floats(0.01, 10))
def test_the_null_is_standard_normal_for_any_gradients(seed, kind, noise_std):
    """Limits of 5 standard errors: one example in two million is outside."""
    rng = np.random.default_rng(seed)
    n = 1000
    found = gaussian_poisoning(fields(kind, rng, (n, 30)), rng.normal(0, noise_std, (n, 30)), noise_std)
    assert abs(found.gus) < 5 / math.sqrt(n)
    assert found.statistic.std() == pytest.approx(1, abs=5 / math.sqrt(2 * n))


def test_the_null_p_value_is_uniform_and_the_tpr_is_the_fpr():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(500, 12))
    runs = [gaussian_poisoning(gradients, rng.normal(0, 0.3, (500, 12)), 0.3) for _ in range(300)]
    assert stats.kstest([run.p_value for run in runs], "uniform").pvalue > 0.01
    assert stats.kstest([run.p_value_two_sided for run in runs], "uniform").pvalue > 0.01
    assert np.mean([run.tpr for run in runs]) == pytest.approx(0.01, abs=4 * math.sqrt(0.0099 / 150_000))
    pooled = np.concatenate([run.statistic for run in runs])
    assert stats.kstest(pooled, "norm").pvalue > 0.01


def test_a_mean_shift_is_found_as_often_as_the_formula_says():
    """At p = 500 a shift of 1.645 / sqrt(500) = .074 is found at 5 % in half of all runs."""
    rng = np.random.default_rng(1)
    gradients, found = rng.normal(size=(500, 6)), []
    for _ in range(400):
        noise = rng.normal(size=(500, 6))
        size = np.linalg.norm(gradients, axis=1, keepdims=True)
        found.append(gaussian_poisoning(gradients, noise - 0.0736 * gradients / size, 1.0))
    assert found[0].detectable == pytest.approx(0.0736, abs=1e-4)
    assert np.mean([run.p_value < 0.05 for run in found]) == pytest.approx(0.5, abs=4 * 0.025)
    assert np.mean([run.gus for run in found]) == pytest.approx(0.0736, abs=4 / math.sqrt(500 * 400))


def logistic_world(seed, trained_on_noise):
    """200 poisoned of 300 samples in 400 dimensions; loss gradients at the clean inputs."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(300, 400)), rng.normal(0, 1, (200, 400))
    y = (x @ rng.normal(size=400) * 0.15 + rng.logistic(size=300) > 0).astype(int)
    train = x.copy()
    train[:200] += noise if trained_on_noise else rng.normal(0, 1, (200, 400))
    model = LogisticRegression(C=1.0, max_iter=500).fit(train, y)
    residual = model.predict_proba(x[:200])[:, 1] - y[:200]
    return residual[:, None] * model.coef_, noise


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_fitted_the_noise_is_caught_and_one_with_other_noise_is_not(seed):
    fitted = gaussian_poisoning(*logistic_world(seed, True), 1.0)
    other = gaussian_poisoning(*logistic_world(seed, False), 1.0)
    assert fitted.p_value < 1e-6
    assert 0.001 < other.p_value < 0.999


def test_the_other_sign_would_have_no_power():
    """Towards the noise the loss falls: the raw inner product with the loss gradient is negative."""
    gradients, noise = logistic_world(0, True)
    z = math.sqrt(200) * statistic_by_loops(gradients, noise, 1.0, sign=+1.0).mean()
    assert stats.norm.sf(z) > 0.999
    assert gaussian_poisoning(gradients, noise, 1.0).z == pytest.approx(-z)


def test_a_forgotten_unit_of_the_noise_would_show():
    """The mutant that does not divide by eps_p is no longer N(0, 1)."""
    rng = np.random.default_rng(2)
    gradients, noise = rng.normal(size=(1000, 8)), rng.normal(0, 0.3, (1000, 8))
    mutant = statistic_by_loops(gradients, noise, 1.0)
    assert stats.kstest(mutant, "norm").pvalue < 1e-6
    assert stats.kstest(gaussian_poisoning(gradients, noise, 0.3).statistic, "norm").pvalue > 0.01


def test_images_are_treated_as_vectors_and_scale_of_gradients_does_not_matter():
    rng = np.random.default_rng(3)
    gradients, noise = rng.normal(size=(20, 3, 4, 4)), rng.normal(0, 2, (20, 3, 4, 4))
    found = gaussian_poisoning(gradients, noise, 2.0)
    expected = statistic_by_loops(gradients.reshape(20, -1), noise.reshape(20, -1), 2.0)
    np.testing.assert_allclose(found.statistic, expected, rtol=1e-12)
    tiny = gaussian_poisoning(gradients * 1e-250, noise, 2.0)
    np.testing.assert_allclose(tiny.statistic, expected, rtol=1e-9)


def test_samples_without_gradient_are_counted_and_left_out():
    rng = np.random.default_rng(4)
    gradients, noise = rng.normal(size=(10, 4)), rng.normal(size=(10, 4))
    gradients[[2, 5]] = 0
    found = gaussian_poisoning(gradients, noise, 1.0)
    assert (found.samples, found.without_gradient) == (8, 2)
    assert np.flatnonzero(np.isnan(found.statistic)).tolist() == [2, 5]
    assert found.gus == pytest.approx(np.nanmean(found.statistic))
    with pytest.raises(ValueError, match="all 10 are zero"):
        gaussian_poisoning(np.zeros((10, 4)), noise, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": np.ones((3, 5))}, r"noise: shape \(3, 5\)"),
        ({"noise": np.full((3, 4), np.nan)}, "noise: 12 of 12"),
        ({"gradients": np.ones(3)}, r"gradients: shape \(3,\)"),
        ({"noise_std": 0.0}, "noise_std: 0.0"),
    ],
)
def test_bad_input_is_refused(change, message):
    given_ = {"gradients": np.ones((3, 4)), "noise": np.ones((3, 4)), "noise_std": 1.0} | change
    with pytest.raises(ValueError, match=message):
        gaussian_poisoning(**given_)
