"""Lower bounds on privacy parameters: mechanisms whose parameters are known, and where cheating shows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attacks.epsilon_bounds import (
    best_thresholds,
    epsilon_of_rates,
    exploratory_bound,
    fixed_threshold,
    gaussian_delta,
    mu_of_rates,
    one_run_audit,
    one_run_epsilon,
    one_run_p_value,
    split_threshold,
)
from attacks.metrics import clopper_pearson

SEEDS = st.integers(0, 10_000)
RATES = st.floats(0, 1)


def laplace(epsilon, n, rng):
    """Releases of 1 and of 0 with Laplace noise of scale 1 / epsilon: exactly epsilon-private."""
    return rng.laplace(1, 1 / epsilon, n), rng.laplace(0, 1 / epsilon, n)


def too_many(violations, runs):
    """Is a rate above 5 % plain from the count (one-sided binomial test at 1 %)?"""
    return stats.binomtest(violations, runs, 0.05, alternative="greater").pvalue < 0.01


def violations_laplace(epsilon, runs, bound, n=2000):
    rng = np.random.default_rng(int(10 * epsilon))
    return sum(bound(*laplace(epsilon, n, rng), seed) > epsilon for seed in range(runs))


@pytest.mark.parametrize(("epsilon", "least"), [(1.0, 0.9), (2.0, 1.8), (4.0, 3.6)])
def test_bounds_come_near_the_truth_with_many_scores(epsilon, least):
    positive, negative = laplace(epsilon, 100_000, np.random.default_rng(7))
    assert least < split_threshold(positive, negative).epsilon < epsilon


def test_the_gaussian_bound_comes_near_the_truth():
    rng = np.random.default_rng(8)
    found = split_threshold(rng.normal(1, 1, 100_000), rng.normal(0, 1, 100_000))
    assert 0.95 < found.mu < 1


def test_equal_worlds_have_no_epsilon():
    rng = np.random.default_rng(9)
    found = [split_threshold(rng.normal(size=500), rng.normal(size=500), seed=s) for s in range(50)]
    assert np.mean([bound.epsilon > 0 for bound in found]) < 0.15
    assert np.median([bound.mu for bound in found]) == 0


def test_a_fixed_threshold_is_the_formula():
    positive, negative = np.repeat([1.0, 0.0], [80, 20]), np.repeat([1.0, 0.0], [5, 95])
    tpr, fpr = clopper_pearson(80, 100)[0], clopper_pearson(5, 100)[1]
    found = fixed_threshold(positive, negative, 1.0, delta=1e-3)
    expected = max(math.log((tpr - 1e-3) / fpr), math.log((1 - fpr - 1e-3) / (1 - tpr)))
    assert found.epsilon == pytest.approx(expected, rel=1e-9)
    assert found.mu == pytest.approx(stats.norm.ppf(tpr) - stats.norm.ppf(fpr), rel=1e-9)
    assert not found.exploratory and exploratory_bound(positive, negative).exploratory
    # Perfect separation is limited by the number of scores alone.
    perfect = fixed_threshold(np.ones(100), np.zeros(100), 0.5).epsilon
    assert perfect == pytest.approx(math.log(0.025**0.01 / (1 - 0.025**0.01)))


def test_rates_without_limits_would_show():
    """The mutant that takes empirical rates for limits is above the truth in about half of all runs."""

    def mutant(positive, negative, seed):
        threshold = best_thresholds(positive[:500], negative[:500])[0]
        rates = np.mean(positive[500:] >= threshold), np.mean(negative[500:] >= threshold)
        return float(epsilon_of_rates(*rates))

    assert too_many(violations_laplace(1.0, 60, mutant, n=1000), 60)


@settings(max_examples=200, deadline=None)
@given(RATES, RATES, RATES, st.sampled_from([0.0, 1e-5, 0.1]))
def test_epsilon_rises_with_tpr_and_falls_with_fpr(tpr, fpr, other, delta):
    low, high = sorted([tpr, other])
    assert epsilon_of_rates(low, fpr, delta) <= epsilon_of_rates(high, fpr, delta)
    assert mu_of_rates(low, fpr) <= mu_of_rates(high, fpr) or fpr in (0, 1)
    low, high = sorted([fpr, other])
    assert epsilon_of_rates(tpr, low, delta) >= epsilon_of_rates(tpr, high, delta)
    if tpr <= fpr:
        assert epsilon_of_rates(tpr, fpr, delta) == 0
        assert mu_of_rates(tpr, fpr) == 0


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(5, 60), st.integers(1, 8))
def test_post_processing_cannot_raise_the_largest_bound(seed, n, steps):
    """Coarser scores merge thresholds; the largest bound over fewer of them is not larger."""
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(1, 1, n), rng.normal(0, 1, n)
    fine = exploratory_bound(positive, negative)
    coarse = exploratory_bound(*(np.floor(side * steps / 2) for side in (positive, negative)))
    assert coarse.epsilon <= fine.epsilon + 1e-12
    assert coarse.mu <= fine.mu + 1e-12


@pytest.mark.parametrize("n", [1, 2, 7, 30])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_binomial_limits_cover_at_least_the_level_by_enumeration(n, level):
    """Coverage over all outcomes, at 200 rates; each side on its own at its half of the error."""
    limits = np.array([clopper_pearson(k, n, level) for k in range(n + 1)])
    for rate in np.linspace(0, 1, 201):
        law = stats.binom.pmf(np.arange(n + 1), n, rate)
        above, below = law[limits[:, 0] > rate + 1e-12].sum(), law[limits[:, 1] < rate - 1e-12].sum()
        assert max(above, below) <= (1 - level) / 2 + 1e-12


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.data())
def test_binomial_limits_are_scipys(n, data):
    k = data.draw(st.integers(0, n))
    exact = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((exact.low, exact.high), abs=1e-9)
    # The limits inside the bounds are the same ones.
    found = fixed_threshold(np.repeat([1.0, 0.0], [k, n - k]), np.zeros(5), 0.5)
    fpr = clopper_pearson(0, 5)[1]
    assert found.epsilon == pytest.approx(float(epsilon_of_rates(exact.low, fpr)), abs=1e-9)


def test_groups_stay_in_one_half():
    """Ten copies of each score: halves that share copies choose and judge by the same scores."""
    rng = np.random.default_rng(10)
    group = np.repeat(np.arange(100), 10)
    positive, negative = np.repeat(rng.normal(1, 1, 100), 10), np.repeat(rng.normal(0, 1, 100), 10)
    found = split_threshold(positive, negative, positive_group=group, negative_group=group)
    assert found.n_positive == found.n_negative == 500
    judged_alone = split_threshold(positive[:500], negative[:500])
    assert judged_alone.n_positive == 250


@pytest.mark.parametrize("seed", range(4))
def test_the_half_that_chooses_does_not_judge(seed):
    """Two perfectly separated groups, at 0 and at 10: a threshold of one says nothing about the other."""
    group = np.repeat([0, 1], 50)
    positive, negative = np.repeat([1.0, 11.0], 50), np.repeat([-1.0, 9.0], 50)
    found = split_threshold(positive, negative, positive_group=group, negative_group=group, seed=seed)
    assert found.epsilon == found.mu == 0
    assert exploratory_bound(positive, negative).epsilon > 0


def test_gaussian_privacy_has_the_known_delta():
    """delta(0) is the total variation distance, 2 Phi(mu / 2) - 1; no overflow far out."""
    for mu in (0.5, 1.0, 2.0):
        assert gaussian_delta(mu, 0.0) == pytest.approx(2 * stats.norm.cdf(mu / 2) - 1)
    direct = stats.norm.cdf(-1.5) - math.e**2 * stats.norm.cdf(-2.5)
    assert gaussian_delta(1.0, 2.0) == pytest.approx(direct)
    assert gaussian_delta(1.0, 2000.0) == 0


def test_the_one_run_bound_is_the_binomial_tail():
    epsilon = one_run_epsilon(90, 100, 1000)
    assert stats.binom.sf(89, 100, 1 / (1 + math.exp(-epsilon))) == pytest.approx(0.05, abs=1e-6)
    perfect = 0.05 ** (1 / 100)
    assert one_run_epsilon(100, 100, 100) == pytest.approx(math.log(perfect / (1 - perfect)), abs=1e-6)
    assert one_run_epsilon(50, 100, 100) == 0


def test_delta_weakens_the_one_run_bound_by_the_definition():
    coin = stats.binom(100, 1 / (1 + math.exp(-1.0)))
    extra = max((coin.cdf(89) - coin.cdf(89 - i)) / i for i in range(1, 1001))
    expected = coin.sf(89) + 2 * 1000 * 1e-5 * extra
    assert one_run_p_value(1.0, 90, 100, 1000, 1e-5) == pytest.approx(expected, rel=1e-9)
    bounds = [one_run_epsilon(90, 100, 1000, delta) for delta in (0.0, 1e-6, 1e-5, 1e-3, 0.5)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[2] > bounds[-1] == 0


@pytest.mark.parametrize("delta", [1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize(("correct", "samples"), [(90, 100), (90, 5000), (60, 300)])
def test_what_is_possible_stays_possible_at_a_larger_epsilon(delta, correct, samples):
    """So bisection finds the smallest epsilon that is possible."""
    values = [one_run_p_value(e, correct, 100, samples, delta) for e in np.linspace(0, 8, 400)]
    possible = np.array(values) > 0.05
    assert (np.diff(possible.astype(int)) >= 0).all()
    found = one_run_epsilon(correct, 100, samples, delta)
    assert found == pytest.approx(8 * np.argmax(possible) / 399, abs=8 / 399)


def randomised_response(epsilon, m, rng):
    """A coin per sample, released truly with probability e^eps / (1 + e^eps): exactly epsilon-private."""
    included = rng.random(m) < 0.5
    honest = rng.random(m) < 1 / (1 + math.exp(-epsilon))
    return np.where(honest, included, ~included).astype(float), included


def test_ties_broken_by_order_would_show():
    """Constant scores, members first: the mutant with a stable sort is right about everything."""
    included = np.repeat([False, True], 500)
    order = np.argsort(np.zeros(1000), kind="stable")
    correct = included[order[-400:]].sum() + (~included[order[:400]]).sum()
    assert one_run_epsilon(int(correct), 800, 1000) > 5
    assert one_run_audit(np.zeros(1000), included, 800).epsilon < 0.4
    assert len({one_run_audit(np.zeros(1000), included, 800, seed=s).correct for s in range(5)}) > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_threshold([], [1.0], 0.0), "positive: shape"),
        (lambda: fixed_threshold([1.0], [np.nan], 0.0), "negative: .*without NaN"),
        (lambda: fixed_threshold([1.0], [1.0], 0.0, level=1.0), "level: 1.0"),
        (lambda: fixed_threshold([1.0], [1.0], 0.0, delta=1.0), "delta: 1.0"),
        (lambda: split_threshold([1.0], [1.0, 2.0]), "do not fill two halves"),
        (lambda: split_threshold([1.0, 2.0], [1.0, 2.0], positive_group=[0, 1]), "one side only"),
        (lambda: one_run_audit(np.zeros(5), np.zeros(5), 4), "not bool"),
        (lambda: one_run_audit(np.zeros(5), np.zeros(5, bool), 6), r"guesses: 6 .* 2\.\.5"),
        (lambda: one_run_epsilon(5, 4, 10), "5 right of 4"),
        (lambda: gaussian_delta(0.0, 1.0), "mu: 0.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
