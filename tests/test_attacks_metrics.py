"""AUC, operating points, balanced accuracy and intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attacks.metrics import (
    auc,
    balanced_accuracy,
    best_counts,
    clopper_pearson,
    expanded_percentile_interval,
    roc,
    tpr_at_fpr,
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
