"""AUC, operating points, balanced accuracy and intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr, ndtri

from attacks.metrics import (
    auc,
    balanced_accuracy,
    best_counts,
    clopper_pearson,
    delong,
    expanded_percentile_interval,
    mean_interval,
    roc,
    tpr_at_fpr,
    tpr_standard_error,
)

# Few distinct values, so that ties are the rule.
SCORES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=60).map(np.array)
ALPHA = st.one_of(st.floats(0, 1), st.integers(0, 100).map(lambda i: i / 100))


@settings(max_examples=80)
@given(SCORES, SCORES)
def test_auc_is_the_count_of_all_pairs(x, y):
    difference = x[:, None] - y
    count = ((difference > 0).sum() + 0.5 * (difference == 0).sum()) / (x.size * y.size)
    assert auc(x, y) == pytest.approx(count, abs=1e-15)
    fpr, tpr, _ = roc(x, y)
    assert np.trapezoid(tpr, fpr) == pytest.approx(count, abs=1e-12)


@settings(max_examples=60)
@given(SCORES, SCORES, st.randoms(use_true_random=False))
def test_auc_depends_on_ranks_only(x, y, random):
    area = auc(x, y)
    assert auc(np.arctan(x) * 3 + 1, np.arctan(y) * 3 + 1) == area
    assert auc(random.sample(list(x), len(x)), random.sample(list(y), len(y))) == area
    assert auc(-x, -y) == pytest.approx(1 - area, abs=1e-15)
    assert auc(y, x) == pytest.approx(1 - area, abs=1e-15)
    assert auc(np.zeros(x.size), np.zeros(y.size)) == 0.5


def test_counts_do_not_overflow():
    n = 100_000
    assert auc(np.ones(n), np.zeros(n)) == 1.0  # 1e10 pairs


@settings(max_examples=80)
@given(SCORES, SCORES, ALPHA)
def test_tpr_is_the_best_point_within_alpha(x, y, alpha):
    found = tpr_at_fpr(x, y, alpha)
    fpr, tpr, thresholds = roc(x, y)
    assert found.fpr <= alpha
    assert found.tpr == tpr[fpr <= alpha].max()
    assert found.false_positives == round(found.fpr * y.size)
    assert tpr_at_fpr(x, y, 1.0).tpr == 1.0
    for f, t, threshold in zip(fpr, tpr, thresholds, strict=True):
        assert f == (y >= threshold).mean()
        assert t == (x >= threshold).mean()


@settings(max_examples=40)
@given(SCORES, SCORES)
def test_tpr_rises_with_alpha(x, y):
    true, false = best_counts(x, y, np.linspace(0, 1, 41))
    assert (np.diff(true) >= 0).all()
    assert (np.diff(false) >= 0).all()


def test_an_alpha_that_is_exactly_reached_is_used():
    y = np.arange(100.0)
    assert best_counts(y, y, [0.29])[1].tolist() == [29]  # 0.29 * 100 is 28.999999999999996


def test_few_false_positives_are_not_supported():
    x = np.arange(9_999.0)
    assert not tpr_at_fpr(x, x, 0.001).supported
    assert tpr_at_fpr(x, x, 0.01).supported
    assert tpr_at_fpr(np.arange(10_000.0), np.arange(10_000.0), 0.001).supported


def test_balanced_accuracy_halves_ties_at_the_threshold():
    assert balanced_accuracy([1.0, 0.0], [0.0, -1.0]) == 0.75
    assert balanced_accuracy([0.0], [0.0]) == 0.5
    assert balanced_accuracy([2.0, 3.0], [1.0], threshold=2.5) == 0.75


@pytest.mark.parametrize("n", [1, 5, 12, 30])
def test_clopper_pearson_covers_every_rate(n):
    intervals = np.array([clopper_pearson(k, n) for k in range(n + 1)])
    for rate in np.linspace(0.001, 0.999, 151):
        inside = (intervals[:, 0] <= rate) & (rate <= intervals[:, 1])
        assert stats.binom.pmf(np.arange(n + 1), n, rate)[inside].sum() >= 0.95 - 1e-12


@settings(max_examples=40)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.99))
def test_clopper_pearson_agrees_with_scipy(counts, level):
    k, n = counts
    exact = stats.binomtest(k, n).proportion_ci(level, "exact")
    assert clopper_pearson(k, n, level) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_expanded_interval_matches_t_for_few_clusters_and_percentiles_for_many():
    normal = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    for n in (5, 20):
        # Replicates of a mean have standard error sqrt((n-1)/n) s / sqrt(n): the widening undoes it, and uses
        # t.
        expected = stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))
        assert expanded_percentile_interval(normal, n) == pytest.approx((-expected, expected), rel=2e-3)
    low, high = expanded_percentile_interval(normal, 100_000)
    assert (low, high) == pytest.approx((-1.96, 1.96), abs=1e-3)


def test_expanded_interval_covers_with_eight_clusters():
    rng = np.random.default_rng(0)
    runs, n = 1500, 8
    covered = plain = 0
    for _ in range(runs):
        means = rng.multinomial(n, np.full(n, 1 / n), size=1000) @ rng.normal(size=n) / n
        low, high = expanded_percentile_interval(means, n)
        covered += low <= 0 <= high
        low, high = np.quantile(means, [0.025, 0.975])
        plain += low <= 0 <= high
    assert covered / runs > 0.92
    assert plain / runs < 0.905  # the interval that it replaces misses


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc([], [1.0]), "positive.*non-empty"),
        (lambda: auc([1.0], [[1.0]]), "negative.*non-empty"),
        (lambda: auc([1.0, np.nan], [1.0]), "1 of 2 scores are NaN"),
        (lambda: tpr_at_fpr([1.0], [1.0], 1.5), "alpha.*1.5"),
        (lambda: clopper_pearson(3, 2), "k=3 of n=2"),
        (lambda: clopper_pearson(1, 2, level=1.0), "level"),
        (lambda: expanded_percentile_interval([1.0, np.nan], 5), "NaN"),
        (lambda: expanded_percentile_interval([1.0], 1), "clusters: 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- standard errors of one model ------------------------------------------------------------------------


def test_delong_is_the_count_over_pairs_of_scores() -> None:
    high, low = np.array([3.0, 1.0, 2.0, 2.0]), np.array([2.0, 0.0, 1.0])
    wins = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    area, error = delong(high, low)
    assert area == pytest.approx(wins.mean()) == pytest.approx(auc(high, low))
    by_hand = wins.mean(axis=1).var(ddof=1) / 4 + wins.mean(axis=0).var(ddof=1) / 3
    assert error == pytest.approx(math.sqrt(by_hand))


def test_delong_is_the_exchangeable_error_where_nothing_is_told() -> None:
    rng = np.random.default_rng(0)
    n1, n0 = 300, 700
    found = np.array([delong(rng.normal(size=n1), rng.normal(size=n0)) for _ in range(400)])
    exact = math.sqrt((n1 + n0 + 1) / (12 * n1 * n0))
    assert found[:, 1].mean() == pytest.approx(exact, rel=0.02)
    assert found[:, 0].std() == pytest.approx(exact, rel=0.1)


def test_delong_of_pooled_models_is_too_small_and_the_mean_of_pairs_is_not() -> None:
    """Models with levels of their own: the spread between them is what DeLong cannot see."""
    rng = np.random.default_rng(1)
    covered = np.zeros(2)
    for _ in range(200):
        shift = rng.normal(1, 0.5, (16, 1))
        high, low = rng.normal(size=(16, 100)) + shift, rng.normal(size=(16, 100))
        truth = float(ndtr(1 / math.sqrt(2.25)))  # of pooled scores: the shift adds its variance
        area, error = delong(high.ravel(), low.ravel())
        covered[0] += abs(area - truth) < 1.96 * error
        _, bottom, top = mean_interval([auc(a, b) for a, b in zip(high, low, strict=True)])
        covered[1] += bottom < truth < top
    assert covered[0] / 200 < 0.6 and covered[1] / 200 > 0.9


def test_the_error_of_a_tpr_counts_the_threshold_too() -> None:
    rng = np.random.default_rng(2)
    n1, n0, d, alpha = 500, 500, 1.0, 0.1
    threshold = float(ndtri(1 - alpha))
    tpr, slope = 1 - float(ndtr(threshold - d)), math.exp(d * threshold - d * d / 2)
    found = [tpr_at_fpr(rng.normal(d, 1, n1), rng.normal(size=n0), alpha).tpr for _ in range(600)]
    assert np.std(found) == pytest.approx(tpr_standard_error(tpr, alpha, n1, n0, slope), rel=0.12)
    assert np.std(found) > 1.2 * math.sqrt(tpr * (1 - tpr) / n1), "the threshold moves, too"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delong([1.0], [0.0, 1.0]), "delong: 1 and 2"),
        (lambda: mean_interval([0.5]), "1 value is too few"),
        (lambda: tpr_standard_error(1.2, 0.1, 5, 5, 1.0), "1.2"),
    ],
)
def test_errors_of_one_model_refuse_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
