"""Resampling pairs of bases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.bootstrap import (
    bin_edges,
    centred_interval,
    cluster_bootstrap,
    pair_weights,
    paired_difference,
)
from attacks.metrics import auc, balanced_accuracy, tpr_at_fpr
from attacks.ulira import ulira

ALPHAS = (0.001, 0.01, 0.1, 1.0)


def worlds(k=6, n=40, seed=0, shift=0.7, ties=False):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(shift, 1, (k, n)), rng.normal(0, 1, (k, n))
    if ties:
        x, y = np.round(x), np.round(y)
    missing = rng.random((k, n)) < 0.1
    x[missing] = y[missing] = np.nan
    return x, y


def repeated(scores, weights):
    rows = np.repeat(scores, weights.astype(int), axis=0).ravel()
    return rows[~np.isnan(rows)]


@settings(max_examples=30)
@given(st.integers(0, 1000), st.booleans())
def test_weights_mean_repeating_pairs(seed, ties):
    """Few scores: every distinct negative has a bin, and the replicates are exact."""
    x, y = worlds(seed=seed, ties=ties)
    weights = np.vstack([np.ones(6), pair_weights(6, 4, seed)])
    found = cluster_bootstrap(x, y, weights, ALPHAS)
    for r, w in enumerate(weights):
        high, low = repeated(x, w), repeated(y, w)
        assert found.auc[r] == pytest.approx(auc(high, low), abs=1e-12)
        assert found.balanced_accuracy[r] == pytest.approx(balanced_accuracy(high, low), abs=1e-12)
        expected = [tpr_at_fpr(high, low, a).tpr for a in ALPHAS]
        assert found.tpr[r] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_binning_many_scores_costs_little(ties):
    x, y = worlds(k=10, n=20_000, ties=ties)
    found = cluster_bootstrap(x, y, np.ones((1, 10)), ALPHAS)
    high, low = x[~np.isnan(x)], y[~np.isnan(y)]
    assert found.auc[0] == pytest.approx(auc(high, low), abs=1e-4)
    assert found.balanced_accuracy[0] == pytest.approx(balanced_accuracy(high, low), abs=1e-12)
    for column, alpha in enumerate(ALPHAS):
        exact = tpr_at_fpr(high, low, alpha).tpr
        assert exact * 0.97 <= found.tpr[0, column] <= exact + 1e-12
    assert len(bin_edges(x, y)) <= 4100


def test_the_low_fpr_tail_is_exact():
    x, y = worlds(k=10, n=20_000)
    high, low = x[~np.isnan(x)], y[~np.isnan(y)]
    alphas = np.arange(41) / low.size
    found = cluster_bootstrap(x, y, np.ones((1, 10)), alphas).tpr[0]
    np.testing.assert_allclose(found, [tpr_at_fpr(high, low, a).tpr for a in alphas], rtol=1e-12)


def test_replicates_depend_on_the_seed_and_on_nothing_else():
    np.testing.assert_array_equal(pair_weights(9, 20, seed=1), pair_weights(9, 20, seed=1))
    assert not np.array_equal(pair_weights(9, 20, seed=1), pair_weights(9, 20, seed=2))
    assert (pair_weights(9, 20).sum(axis=1) == 9).all()


def test_scores_of_one_pair_are_one_observation():
    """Copying every sample adds no information, so the interval must not shrink."""
    rng = np.random.default_rng(3)
    x = rng.normal(0.3, 1, (8, 50)) + rng.normal(0, 0.5, (8, 1))
    y = rng.normal(0, 1, (8, 50)) + rng.normal(0, 0.5, (8, 1))
    weights = pair_weights(8, 500)
    once = cluster_bootstrap(x, y, weights).auc
    often = cluster_bootstrap(np.tile(x, 9), np.tile(y, 9), weights).auc
    assert often.std() == pytest.approx(once.std(), rel=0.02)


def test_empty_pairs_leave_the_other_weights_alone():
    x, y = worlds(k=4)
    weights = pair_weights(4, 2000)
    x[3] = y[3] = np.nan
    found = cluster_bootstrap(x, y, weights, ALPHAS)
    empty = weights[:, :3].sum(axis=1) == 0
    assert empty.any()
    assert np.array_equal(np.isnan(found.auc), empty)
    assert np.array_equal(np.isnan(found.tpr).all(axis=1), empty)
    low, high = centred_interval(found.auc, 0.6, 0.6, clusters=3)
    assert 0 <= low <= high <= 1


def test_centred_interval_moves_by_the_binning_error_and_holds_the_estimate():
    replicates = np.linspace(0.6, 0.7, 1001)
    low, high = centred_interval(replicates, 0.65, 0.66, clusters=1000)
    assert (low, high) == pytest.approx((0.6125, 0.7075), abs=5e-4)
    assert centred_interval(replicates + 0.3, 0.95, 0.99, clusters=3)[1] == 1.0
    assert centred_interval(np.full(5, 0.4), 0.4, 0.5, clusters=3) == (0.5, 0.5)
    with pytest.raises(ValueError, match="none of 2"):
        centred_interval(np.full(2, np.nan), 0.5, 0.5, clusters=3)


def test_paired_difference_is_narrower_than_its_parts():
    """Two methods on the same hard and easy pairs: what the pairs share cancels."""
    rng = np.random.default_rng(4)
    k, n = 12, 400
    gap = rng.uniform(0, 2, (k, 1))
    reference = rng.normal(0, 1, (k, n))
    better, worse = (rng.normal(gap + extra, 1, (k, n)) for extra in (0.0, 0.3))
    first, second = (ulira(world, None, reference)["forgotten_vs_retrained"] for world in (worse, better))
    low, high = paired_difference(
        first.auc_replicates, second.auc_replicates, first.auc - second.auc, clusters=k
    )
    assert 0 < low < first.auc - second.auc < high
    assert high - low < 0.7 * (first.auc_high - first.auc_low)
    with pytest.raises(ValueError, match="differ"):
        paired_difference(first.auc_replicates, second.auc_replicates[1:], 0.0, clusters=k)


def test_too_few_pairs_or_replicates_are_refused():
    with pytest.raises(ValueError, match="1 pairs"):
        pair_weights(1)
    with pytest.raises(ValueError, match="0 replicates"):
        pair_weights(5, 0)
