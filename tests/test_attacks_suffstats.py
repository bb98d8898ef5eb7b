"""Statistics of parts merge to those of the whole, and say what a Gaussian is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from attacks.suffstats import Suffstats, kurtosis, merge, of, skewness, variance

VALUES = st.one_of(st.just(np.nan), st.floats(-100, 100))
WORLDS = st.integers(1, 6).flatmap(lambda k: arrays(np.float64, (k, 4), elements=VALUES))


def assert_same(found: Suffstats, expected: Suffstats, scale: float = 100.0) -> None:
    """Equal up to rounding at this size of the scores: the k-th moment is a sum of k-th powers."""
    for power, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * scale ** max(1, power))


@settings(max_examples=200, deadline=None)
@given(WORLDS, WORLDS, WORLDS)
def test_merging_parts_is_associative_and_equals_the_whole(
    a: np.ndarray, b: np.ndarray, c: np.ndarray
) -> None:
    whole = of(np.concatenate([a, b, c]))
    assert_same(merge(merge(of(a), of(b)), of(c)), whole)
    assert_same(merge(of(a), merge(of(b), of(c))), whole)
    assert_same(merge(of(c), merge(of(b), of(a))), whole)


def test_statistics_by_hand_and_missing_scores_count_for_nothing() -> None:
    found = of([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan], [6.0, np.nan]])
    expected = Suffstats(*np.array([[3, 0], [3, 0], [14, 0], [18, 0], [98, 0]], dtype=float))
    assert_same(found, expected, scale=1)
    assert variance(found)[0] == 7.0
    assert np.isnan([variance(found)[1], skewness(found)[1], kurtosis(found)[1]]).all()


def test_an_offset_costs_no_digits() -> None:
    """Sums of powers would lose all of them: φ around 10⁶, spread of 1."""
    phi = np.random.default_rng(0).normal(size=(1000, 3))
    merged = merge(of(phi[:500] + 1e6), of(phi[500:] + 1e6))
    np.testing.assert_allclose(variance(merged), phi.var(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(kurtosis(merged), stats.kurtosis(phi), atol=1e-5)


@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform", "laplace"])
def test_shape_is_that_of_scipy_and_tells_what_is_no_gaussian(draw: str) -> None:
    phi = getattr(np.random.default_rng(1), draw)(size=(4000, 5))
    found = of(phi)
    np.testing.assert_allclose(skewness(found), stats.skew(phi), rtol=1e-9)
    np.testing.assert_allclose(kurtosis(found), stats.kurtosis(phi), rtol=1e-9)
    gaussian = (np.abs(skewness(found)) < 5 * np.sqrt(6 / 4000)) & (
        np.abs(kurtosis(found)) < 5 * np.sqrt(24 / 4000)
    )
    assert gaussian.all() if draw == "normal" else not gaussian.any()


def test_equal_scores_have_no_shape() -> None:
    found = of(np.full((5, 2), 3.25))
    assert variance(found).tolist() == [0.0, 0.0]
    assert np.isnan(skewness(found)).all() and np.isnan(kurtosis(found)).all()


@pytest.mark.parametrize(("phi", "match"), [(np.zeros(3), "2 dimensions"), ([[np.inf]], "not finite")])
def test_bad_input_is_refused(phi: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        of(phi)
