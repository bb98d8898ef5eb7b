"""The per-sample attack: no self-inclusion, symmetry, missing scores, degenerate scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import digamma, polygamma
from scipy.stats import norm

from attacks import loss_threshold, population_loss, ulira
from attacks.loss_threshold import loss_threshold as threshold_attack
from attacks.moderation import (
    VariancePrior,
    log_predictive,
    moderated_variance,
    trigamma_inverse,
    variance_floor,
    variance_prior,
)
from attacks.moments import total, without_each
from attacks.ulira import ROC_GRID, compare, leave_pair_out

SEEDS = st.integers(0, 10_000)


def worlds(k=6, n=30, seed=0, missing=0.15):
    rng = np.random.default_rng(seed)
    spread, mean = np.exp(rng.normal(0, 0.5, n)), rng.normal(0, 3, n)
    x, y = rng.normal(size=(2, k, n)) * spread + mean
    x += rng.exponential(1, n)
    for world in (x, y):
        world[rng.random((k, n)) < missing] = np.nan
    return x, y


def textbook_prior(variances, dof):
    """The formulas one by one, with scipy's root finder."""
    from scipy.optimize import brentq

    e = np.log(variances) - digamma(dof / 2) + np.log(dof / 2)
    excess = np.var(e, ddof=1) - polygamma(1, dof / 2).mean()
    if excess <= 0:
        return math.inf, math.exp(e.mean())
    half = math.exp(brentq(lambda u: math.log(float(polygamma(1, math.exp(u)))) - math.log(excess), -20, 20))
    return 2 * half, math.exp(e.mean() + digamma(half) - math.log(half))


def refit(x, y, strict):
    """The attack without any trick: for every pair, drop its rows and fit again."""
    both = ~(np.isnan(x) | np.isnan(y))
    out = np.full(x.shape, np.nan), np.full(y.shape, np.nan)
    for p in range(len(x)):
        rows = np.arange(len(x)) != p
        density = []
        for world in (x, y):
            columns = [world[rows, i][both[rows, i]] for i in range(x.shape[1])]
            basis = columns if strict else [world[both[:, i], i] for i in range(x.shape[1])]
            basis = [c for c in basis if len(c) >= 2]
            s2 = np.array([c.var(ddof=1) for c in basis])
            floor = 1e-6 * np.median(s2)
            nu0, s0 = textbook_prior(np.maximum(s2, floor), np.array([len(c) - 1 for c in basis]))
            density.append((columns, floor, nu0, s0))
        for i in np.flatnonzero(both[p]):
            if len(density[0][0][i]) < 2:
                continue
            for world, target in zip((x, y), out, strict=True):
                parts = []
                for columns, floor, nu0, s0 in density:
                    c = columns[i]
                    d, s2 = len(c) - 1, max(c.var(ddof=1), floor)
                    shrunk = s0 if math.isinf(nu0) else (nu0 * s0 + d * s2) / (nu0 + d)
                    scale = math.sqrt(shrunk * (1 + 1 / len(c)))
                    law = stats.norm() if math.isinf(nu0) else stats.t(nu0 + d)
                    parts.append(law.logpdf((world[p, i] - c.mean()) / scale) - math.log(scale))
                target[p, i] = parts[0] - parts[1]
    return out


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_leave_pair_out_equals_fitting_again(seed, strict):
    x, y = worlds(seed=seed)
    for found, expected in zip(leave_pair_out(x, y, strict), refit(x, y, strict), strict=True):
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(0, 5), st.sampled_from([1e6, -1e6, 1e-9, np.nan]))
def test_a_poisoned_pair_does_not_touch_its_own_statistics(seed, pair, poison):
    x, y = worlds(seed=seed)
    bad = x.copy()
    bad[pair] = poison
    before = next(m for p, m in enumerate(without_each(x, ~np.isnan(x))) if p == pair)
    after = next(m for p, m in enumerate(without_each(bad, ~np.isnan(bad))) if p == pair)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    if not np.isnan(poison):  # the other world of that pair is scored by the very same statistics
        both = ~np.isnan(x[pair])
        expected, found = leave_pair_out(x, y)[1][pair], leave_pair_out(bad, y)[1][pair]
        np.testing.assert_array_equal(found[both], expected[both])


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_an_outlier_elsewhere_is_forgotten_exactly(seed):
    """Running totals minus one pair would keep rounding noise of 1e16; nothing of it may be left."""
    x, _ = worlds(k=4, seed=seed, missing=0.0)
    x[2] = 1e8
    rows = np.arange(4) != 2
    expected = x[rows].var(axis=0, ddof=1)
    found = next(m for p, m in enumerate(without_each(x, ~np.isnan(x))) if p == 2)
    np.testing.assert_allclose(found.variance(), expected, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_moments_match_numpy(seed):
    x, _ = worlds(seed=seed, missing=0.3)
    found = total(x, ~np.isnan(x))
    many = found.number >= 2
    np.testing.assert_array_equal(found.number, (~np.isnan(x)).sum(axis=0))
    np.testing.assert_allclose(found.mean[many], np.nanmean(x[:, many], axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance()[many], np.nanvar(x[:, many], axis=0, ddof=1), rtol=1e-9)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.booleans())
def test_swapping_the_worlds_negates_and_an_affine_map_changes_nothing(seed, strict):
    x, y = worlds(seed=seed)
    positive, negative = leave_pair_out(x, y, strict)
    swapped_positive, swapped_negative = leave_pair_out(y, x, strict)
    np.testing.assert_array_equal(swapped_positive, -negative)
    np.testing.assert_array_equal(swapped_negative, -positive)
    mapped = leave_pair_out(3.7 * x + 11, 3.7 * y + 11, strict)
    np.testing.assert_allclose(mapped[0], positive, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(mapped[1], negative, rtol=1e-7, atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_order_of_pairs_and_samples_does_not_matter(seed):
    x, y = worlds(seed=seed)
    rng = np.random.default_rng(seed)
    pairs, samples = rng.permutation(len(x)), rng.permutation(x.shape[1])
    positive, _ = leave_pair_out(x, y)
    moved, _ = leave_pair_out(x[pairs][:, samples], y[pairs][:, samples])
    np.testing.assert_allclose(moved, positive[pairs][:, samples], rtol=1e-9, atol=1e-9)


def test_an_entry_counts_only_with_both_worlds():
    x, y = worlds(seed=3, missing=0.0)
    half = x.copy()
    half[1, :7] = np.nan
    other = y.copy()
    other[1, :7] = np.nan
    for found, expected in zip(leave_pair_out(half, y), leave_pair_out(half, other), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert np.array_equal(np.flatnonzero(np.isnan(found[1])), np.arange(7))


def test_a_sample_needs_three_pairs():
    x, y = worlds(k=4, seed=4, missing=0.0)
    x[:2, 0] = np.nan
    x[0, 1] = np.nan
    positive, negative = leave_pair_out(x, y)
    for llr in (positive, negative):
        assert np.isnan(llr).sum(axis=0).tolist() == [4, 1, *[0] * 28]


# --- moderation
# ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.floats(1e-12, 1e12))
def test_trigamma_inverse(value):
    assert float(polygamma(1, trigamma_inverse(value))) == pytest.approx(
        value, rel=1e-3 if value > 1e6 else 1e-5
    )


@settings(max_examples=30)
@given(SEEDS, st.booleans())
def test_prior_follows_the_formulas(seed, varying):
    rng = np.random.default_rng(seed)
    dof = rng.integers(1, 20, 50) if varying else np.full(50, 5)
    s2 = np.exp(rng.normal(0, rng.uniform(0, 2), 50)) * rng.chisquare(dof) / dof
    assert variance_prior(s2, dof) == pytest.approx(textbook_prior(s2, dof), rel=1e-6)


def test_equal_variances_share_one_value():
    assert variance_prior(np.full(10, 2.0), 5).nu0 == math.inf
    assert variance_prior([3.0], 4).nu0 == math.inf


@settings(max_examples=40)
@given(st.floats(1e-3, 1e3), st.integers(1, 60), st.floats(0, 1e6), st.floats(1e-3, 1e3))
def test_moderated_variance_lies_between(s2, dof, nu0, s0):
    found = float(moderated_variance(s2, dof, VariancePrior(nu0, s0)))
    assert min(s2, s0) * (1 - 1e-12) <= found <= max(s2, s0) * (1 + 1e-12)
    assert float(moderated_variance(s2, dof, VariancePrior(0.0, s0))) == pytest.approx(s2)
    assert float(moderated_variance(s2, dof, VariancePrior(math.inf, s0))) == s0


@settings(max_examples=40)
@given(SEEDS)
def test_predictive_density_has_its_two_limits(seed):
    rng = np.random.default_rng(seed)
    x, mean = rng.normal(0, 3, (2, 20))
    s2, count = np.exp(rng.normal(size=20)), rng.integers(2, 40, 20)
    own = stats.t.logpdf(x, count - 1, mean, np.sqrt(s2 * (1 + 1 / count)))
    shared = stats.norm.logpdf(x, mean, np.sqrt(0.7 * (1 + 1 / count)))
    np.testing.assert_allclose(log_predictive(x, mean, s2, count, VariancePrior(0.0, 0.7)), own, rtol=1e-9)
    for nu0, tolerance in ((math.inf, 1e-12), (1e9, 1e-5)):
        found = log_predictive(x, mean, s2, count, VariancePrior(nu0, 0.7))
        np.testing.assert_allclose(found, shared, rtol=tolerance, atol=tolerance)


def test_floor():
    assert variance_floor([1.0, 2.0, 3.0]) == pytest.approx(2e-6)
    assert variance_floor([1.0, 2.0, 3.0], step=0.6) == pytest.approx(0.03)
    assert variance_floor([0.0, 0.0, 3.0]) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: variance_prior([], 3), "non-empty"),
        (lambda: variance_prior([1.0, 0.0], 3), "1 of 2 are not positive"),
        (lambda: variance_prior([1.0, np.nan], 3), "1 of 2 are not positive"),
        (lambda: variance_prior([1.0], 0), "dof: 0"),
        (lambda: trigamma_inverse(0.0), "not a positive"),
    ],
)
def test_moderation_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- degenerate scores
# ----------------------------------------------------------------------------------------------


def test_constant_samples_are_flagged_and_stay_finite():
    x, y = worlds(k=6, n=50, seed=5, missing=0.0)
    x[:, :10] = 4.0
    x[:, 5:10] = y[:, 5:10] = 2.0
    positive, negative = leave_pair_out(x, y)
    assert np.isfinite(positive).all()
    assert np.isfinite(negative).all()
    assert np.array_equal(positive[:, 5:10], negative[:, 5:10])  # equal scores, equal evidence: ties
    assert compare(x, y, replicates=20).collapsed == 10
    assert compare(x + np.random.default_rng(0).normal(size=x.shape), y, replicates=20).collapsed == 5


def test_one_absurd_sample_does_not_flatten_the_others():
    x, y = worlds(k=6, n=200, seed=12, missing=0.0)
    found = leave_pair_out(np.float32(x), np.float32(y))[0][:, 1:]
    x[:, 0] = y[:, 0] = 1e9
    absurd = leave_pair_out(np.float32(x), np.float32(y))[0]
    assert np.isfinite(absurd).all()
    assert np.corrcoef(absurd[:, 1:].ravel(), found.ravel())[0, 1] > 0.97
    assert compare(x, y, replicates=10).collapsed == 1


@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
def test_all_scores_equal_say_nothing(value):
    found = compare(np.full((4, 20), value), np.full((4, 20), value), replicates=20)
    assert found.auc == found.loss_auc == found.balanced_accuracy == 0.5
    assert (found.auc_low, found.auc_high) == (0.5, 0.5)
    assert found.collapsed == 20


def test_a_constant_world_against_a_spread_one_is_told_apart():
    rng = np.random.default_rng(6)
    found = compare(np.full((8, 200), 1.0), rng.normal(0, 1, (8, 200)), replicates=20)
    assert found.auc > 0.99
    assert found.collapsed == 200


def test_correct_or_not_gives_numbers_where_plain_gaussians_give_nan():
    """0/1 correctness: all models of a sample often agree, and a Gaussian of no width is 0 / 0."""
    rng = np.random.default_rng(7)
    rate = rng.beta(4, 0.5, 2000)
    x, y = (rng.random((2, 16, 2000)) < rate).astype(float)
    with np.errstate(all="ignore"):
        fitted = [(w.mean(axis=0), w.std(axis=0)) for w in (x, y)]
        naive = [-((x - m) ** 2) / (2 * s**2) - np.log(s) for m, s in fitted]
    assert np.isnan(naive[0] - naive[1]).mean() > 0.3
    positive, negative = leave_pair_out(x, y)
    assert np.isfinite(positive).all()
    assert np.isfinite(negative).all()


# --- the whole comparison
# -------------------------------------------------------------------------------------------


def test_comparisons_that_the_inputs_allow():
    x, y = worlds(seed=8)
    assert set(ulira.ulira(x, y, y, replicates=20)) == {
        "forgotten_vs_retrained",
        "forgotten_vs_never",
        "fingerprint",
    }
    assert set(ulira.ulira(x, None, y, replicates=20)) == {"forgotten_vs_retrained"}
    assert set(ulira.ulira(x, y, None, replicates=20)) == {"forgotten_vs_never"}
    assert ulira.ulira(x) == {}


def test_comparison_is_consistent():
    x, y = worlds(k=12, n=300, seed=9)
    found = ulira.ulira(x, None, y, replicates=200, seed=3)["forgotten_vs_retrained"]
    both = ~(np.isnan(x) | np.isnan(y))
    positive, negative = leave_pair_out(x, y)
    assert (found.pairs, found.samples) == (12, 300)
    assert found.n_positive == found.n_negative == both.sum()
    assert found.auc == threshold_attack(positive[both], negative[both])
    assert found.loss_auc == threshold_attack(x[both], y[both])
    assert found.auc_low <= found.auc <= found.auc_high
    assert found.balanced_accuracy_low <= found.balanced_accuracy <= found.balanced_accuracy_high
    assert found.loss_auc_low <= found.loss_auc <= found.loss_auc_high < found.auc_high
    assert 0 < found.auc_high - found.auc_low < 0.1
    np.testing.assert_array_equal(found.roc_fpr, ROC_GRID)
    for alpha, point in found.tpr.items():
        assert point.low <= point.tpr <= point.high
        assert point.fpr <= alpha
        assert point.tpr == pytest.approx(found.roc_tpr[np.isclose(ROC_GRID, alpha)][0])
    assert (np.diff(found.roc_tpr) >= 0).all()
    assert (found.roc_low <= found.roc_tpr).all()
    assert (found.roc_tpr <= found.roc_high).all()
    assert found.roc_tpr[-1] == 1.0
    assert found.tpr[0.01].supported
    assert not found.tpr[0.001].supported
    assert found.auc_replicates.shape == (200,)


def test_one_view_more_or_less_is_a_matter_of_the_shape():
    x, y = worlds(k=6, n=80, seed=11)
    flat, one = compare(x, y), compare(x[None], y[None])
    assert (flat.auc, flat.auc_low, flat.loss_auc) == (one.auc, one.auc_low, one.loss_auc)
    np.testing.assert_array_equal(flat.llr_positive, one.llr_positive)
    with pytest.raises(ValueError, match=r"\(views, pairs, samples\)"):
        compare(np.stack([x, x]), y[None])


def test_views_with_noise_of_their_own_reach_the_power_of_their_joint_shift():
    """Q independent views shifted by d tell as much as one shifted by d √Q: AUC Φ(d √Q / √2)."""
    rng, d, k, n, views = np.random.default_rng(0), 1.0, 64, 400, 4
    y = rng.normal(size=(views, k, n))
    x = rng.normal(size=(views, k, n)) + d
    found = [compare(x[:q], y[:q], replicates=10).auc for q in (1, views)]
    assert found[0] == pytest.approx(norm.cdf(d / np.sqrt(2)), abs=0.01)
    assert found[1] == pytest.approx(norm.cdf(d * np.sqrt(views / 2)), abs=0.01)


def test_same_seed_same_interval_other_seed_other():
    x, y = worlds(k=8, n=100, seed=10)
    first, again, other = (compare(x, y, replicates=100, seed=s) for s in (1, 1, 2))
    assert (first.auc_low, first.auc_high) == (again.auc_low, again.auc_high)
    assert (first.auc_low, first.auc_high) != (other.auc_low, other.auc_high)
    assert first.auc == other.auc


def test_half_precision_storage_moves_the_auc_little():
    x, y = worlds(k=12, n=2000, seed=11)
    exact = compare(x.astype(np.float32), y.astype(np.float32), replicates=10)
    stored = compare(x.astype(np.float16), y.astype(np.float16), replicates=10)
    assert stored.auc == pytest.approx(exact.auc, abs=1e-4)
    assert stored.auc != exact.auc


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 5)), np.zeros((2, 5)), "pairs: 2 is too few, at least 3"),
        (np.zeros((4, 5)), np.zeros((4, 6)), "shapes"),
        (np.zeros(5), np.zeros(5), "shapes"),
        (np.full((4, 5), np.inf), np.zeros((4, 5)), "20 of 40 scores are infinite"),
        (np.full((4, 5), np.nan), np.zeros((4, 5)), "at least 3 of 4 pairs"),
    ],
)
def test_bad_input_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        compare(x, y)


def test_every_attack_names_its_paper():
    for plugin in (ulira, population_loss, loss_threshold):
        assert plugin.name == plugin.__name__.rpartition(".")[2]
        assert plugin.label
        assert plugin.paper.startswith("arXiv:")
        assert plugin.version >= 1
        assert plugin.paper in plugin.__doc__
