"""Worlds whose answers are known: published tables, closed forms, and oracles computed by quadrature.

The table of six methods is simulated in a world of our own (WORLD below), because only the results of the
published one are known, not its parameters. Every reference number for it is computed here from the
parameters.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from attacks.loss_threshold import loss_threshold
from attacks.metrics import auc, balanced_accuracy, best_counts, tpr_at_fpr
from attacks.moderation import VariancePrior, log_predictive, variance_prior
from attacks.moments import total, without_each
from attacks.ulira import compare, leave_pair_out, ulira

N = 200_000


def auc_error(area: float, n: int) -> float:
    """Bound on the standard error of an AUC of n against n independent scores."""
    return math.sqrt(max(area * (1 - area), 1 / 6) / n)


def tpr_error(shift: float, alpha: float, n: int) -> float:
    """Delta-method standard error of TPR at an estimated threshold, N(shift, 1) against N(0, 1)."""
    cut = ndtri(1 - alpha)
    tpr, slope = ndtr(shift - cut), math.exp(shift * cut - shift**2 / 2)
    return math.sqrt((tpr * (1 - tpr) + slope**2 * alpha * (1 - alpha)) / n)


# --- one sample, two Gaussians
# ---------------------------------------------------------------------------------------

GAUSSIANS = [  # shift, AUC, best balanced accuracy, TPR at 1 %, TPR at 0.1 %
    (0.0, 0.500000, 0.500000, 0.010000, 0.001000),
    (0.5, 0.638163, 0.598706, 0.033899, 0.004796),
    (1.0, 0.760250, 0.691462, 0.092362, 0.018298),
    (1.5, 0.855578, 0.773373, 0.204303, 0.055891),
    (2.0, 0.921350, 0.841345, 0.372081, 0.137805),
    (3.0, 0.983053, 0.933193, 0.749734, 0.464051),
]


@pytest.mark.parametrize(("shift", "area", "accuracy", "tpr1", "tpr01"), GAUSSIANS)
def test_gaussian_table(shift, area, accuracy, tpr1, tpr01):
    rng = np.random.default_rng(int(10 * shift))
    x, y = rng.normal(shift, 1, N), rng.normal(0, 1, N)
    assert auc(x, y) == pytest.approx(area, abs=4 * auc_error(area, N))
    spread = math.sqrt(2 * accuracy * (1 - accuracy) / N) / 2
    assert balanced_accuracy(x, y, threshold=shift / 2) == pytest.approx(accuracy, abs=4 * spread)
    for alpha, expected in ((0.01, tpr1), (0.001, tpr01)):
        found = tpr_at_fpr(x, y, alpha)
        assert found.tpr == pytest.approx(expected, abs=4 * tpr_error(shift, alpha, N))
        assert found.supported
        assert found.false_positives == alpha * N


def test_a_few_leaking_samples_hide_in_the_auc_and_show_at_low_fpr():
    rng = np.random.default_rng(1)
    d = np.where(rng.random(N) < 0.1, 2.0, 0.0)
    # The oracle LLR of N(d, 1) against N(0, 1) is d x - d^2 / 2; where d = 0 it is 0, and all those samples
    # tie.
    positive = d * rng.normal(d, 1) - d**2 / 2
    negative = d * rng.normal(0, 1, N) - d**2 / 2
    assert auc(positive, negative) == pytest.approx(0.565656, abs=4 * auc_error(0.5657, N))
    # At most 10 % of samples can be called, so the errors are those of the 20,000 that matter.
    assert tpr_at_fpr(positive, negative, 0.01).tpr == pytest.approx(0.076376, abs=0.004)
    assert tpr_at_fpr(positive, negative, 0.001).tpr == pytest.approx(0.037208, abs=0.004)


def test_equal_means_need_a_two_sided_statistic():
    rng = np.random.default_rng(2)
    wide, narrow = rng.normal(0, 2, N), rng.normal(0, 1, N)
    assert auc(abs(wide), abs(narrow)) == pytest.approx(0.704833, abs=4 * auc_error(0.70, N))
    assert loss_threshold(wide, narrow) == pytest.approx(0.5, abs=4 * auc_error(0.5, N))


def test_the_attack_is_two_sided():
    rng = np.random.default_rng(3)
    k, n = 64, 2000
    centre = rng.normal(0, 2, n)
    wide, narrow = centre + rng.normal(0, 2, (k, n)), centre + rng.normal(0, 1, (k, n))
    found = compare(wide, narrow, replicates=50)
    # Fitted to 63 models instead of known: it cannot beat 2/pi arctan(2), and comes within 0.01 of it.
    assert 2 / math.pi * math.atan(2) - 0.01 < found.auc < 0.704833 + 4 * auc_error(0.7, k * n)
    assert found.loss_auc == pytest.approx(0.5, abs=0.01)


# --- null worlds
# ------------------------------------------------------------------------------------------------------


def null_world(k: int, scores: int = 400_000, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = scores // k
    spread = np.exp(rng.normal(0, 0.5, n))
    x, y = rng.normal(0, 1, (2, k, n)) * spread + rng.normal(0, 3, n)
    return x, y


def wrong_auc(x: np.ndarray, y: np.ndarray, leave_out: str) -> float:
    """The attack with a planted defect: leave out only the scored model ("model"), or nothing ("nothing")."""
    here = np.ones(x.shape, dtype=bool)
    all_x, all_y = total(x, here), total(y, here)
    prior_x, prior_y = (variance_prior(m.variance(), m.number - 1) for m in (all_x, all_y))

    def density(score, moments, prior):
        return log_predictive(score, moments.mean, moments.variance(), moments.number, prior)

    positive, negative = np.empty_like(x), np.empty_like(y)
    for p, (less_x, less_y) in enumerate(zip(without_each(x, here), without_each(y, here), strict=True)):
        if leave_out == "nothing":
            less_x, less_y = all_x, all_y
        positive[p] = density(x[p], less_x, prior_x) - density(x[p], all_y, prior_y)
        negative[p] = density(y[p], all_x, prior_x) - density(y[p], less_y, prior_y)
    return auc(positive.ravel(), negative.ravel())


@pytest.mark.parametrize("k", [3, 4, 8, 16])
def test_null_world_is_one_half_when_the_pair_is_left_out(k):
    x, y = null_world(k)
    positive, negative = (llr.ravel() for llr in leave_pair_out(x, y))
    assert auc(positive, negative) == pytest.approx(0.5, abs=4 * auc_error(0.5, x.size))
    assert balanced_accuracy(positive, negative) == pytest.approx(0.5, abs=4 * auc_error(0.5, x.size))
    assert tpr_at_fpr(positive, negative, 0.01).tpr == pytest.approx(0.01, abs=4 * tpr_error(0, 0.01, x.size))


@pytest.mark.parametrize(("k", "at_most"), [(4, 0.47), (8, 0.49), (16, 0.497)])
def test_leaving_out_only_the_scored_model_reveals_the_label(k, at_most):
    assert wrong_auc(*null_world(k), "model") < at_most


@pytest.mark.parametrize(("k", "at_least"), [(4, 0.7), (16, 0.6), (32, 0.57)])
def test_scoring_a_model_that_was_fitted_on_finds_leakage_where_none_is(k, at_least):
    assert wrong_auc(*null_world(k), "nothing") > at_least


def test_missing_scores_do_not_reveal_the_label():
    x, y = null_world(5)
    rng = np.random.default_rng(5)
    for world in (x, y):
        world[rng.random(world.shape) < 0.2] = np.nan
    positive, negative = leave_pair_out(x, y)
    scored = ~np.isnan(positive)
    assert 0.5 * x.size < scored.sum() < 0.65 * x.size
    area = auc(positive[scored], negative[scored])
    assert area == pytest.approx(0.5, abs=4 * auc_error(0.5, int(scored.sum())))


def test_null_intervals_are_as_wide_as_the_estimate_scatters():
    """Scores of different pairs share fits; an interval that ignores it is too narrow by sqrt(2)."""
    rng = np.random.default_rng(12)
    found = [compare(*rng.normal(size=(2, 12, 100)), replicates=100) for _ in range(120)]
    scatter = np.std([c.auc for c in found])
    claimed = np.mean([c.auc_replicates.std() for c in found])
    assert 0.85 < claimed / scatter < 1.2
    assert np.mean([c.auc_low <= 0.5 <= c.auc_high for c in found]) > 0.87


def test_relabelling_the_worlds_at_random_hides_everything():
    x, y = null_world(16, scores=160_000)
    x = x + 2
    assert auc(*(llr.ravel() for llr in leave_pair_out(x, y))) > 0.8
    swap = np.random.default_rng(6).random(x.shape) < 0.5
    x, y = np.where(swap, y, x), np.where(swap, x, y)
    area = auc(*(llr.ravel() for llr in leave_pair_out(x, y)))
    assert area == pytest.approx(0.5, abs=4 * auc_error(0.5, x.size))


# WORLD: sample i has retrained scores N(m_i, s_i^2) and original scores N(m_i + g_i s_i, s_i^2), with
# m_i ~ N(0, 2^2), log s_i ~ N(0, 0.5^2), g_i ~ Exponential(mean 0.9).

K, SAMPLES = 64, 1500
WORLD = np.random.default_rng(7)
MEAN, SPREAD = WORLD.normal(0, 2, SAMPLES), np.exp(WORLD.normal(0, 0.5, SAMPLES))
GAP = WORLD.exponential(0.9, SAMPLES)
ONES = np.ones(SAMPLES)
# method: (mean, spread) of forgotten scores, (mean, spread) of never-in scores, under the unlearned model
METHODS = {
    "identity": ((MEAN + GAP * SPREAD, SPREAD), (MEAN, SPREAD)),
    "retrain": ((MEAN, SPREAD), (MEAN, SPREAD)),
    "half_forgotten": ((MEAN + GAP * SPREAD / 2, SPREAD), (MEAN, SPREAD)),
    "scaled_logits": ((0.8 * MEAN, 0.8 * SPREAD), (0.8 * MEAN, 0.8 * SPREAD)),
    "collapse": ((1 * ONES, 0.1 * ONES), (1 * ONES, 0.1 * ONES)),
    "over_forgetting": ((MEAN - 1.4 * GAP * SPREAD, SPREAD), (MEAN, SPREAD)),
}
GRID = np.concatenate([-np.geomspace(1e4, 1e-4, 500), [0.0], np.geomspace(1e-4, 30, 500)])


def oracle_auc(first, second) -> float:
    """AUC of the exact LLR, pooled over samples, between Gaussian worlds (means, spreads).

    Equal spreads: E Phi(sqrt(d_i^2 + d_j^2) / 2). Otherwise the LLR is a quadratic in x, its tail lies
    between or outside two roots, and the area under the pooled curve is a sum over a grid of thresholds.
    """
    (m1, s1), (m0, s0) = first, second
    if np.allclose(s1, s0):
        d = (m1 - m0) / s0
        return float(ndtr(0.5 * np.hypot(d[:, None], d)).mean())
    high = np.array([above(t, first, second, m1, s1) for t in GRID])
    low = np.array([above(t, first, second, m0, s0) for t in GRID])
    high, low = np.concatenate([[1], high, [0]]), np.concatenate([[1], low, [0]])
    return float(-np.trapezoid(high, low))


def above(t, first, second, mean, spread) -> float:
    """P(LLR > t), averaged over samples, for x ~ N(mean, spread^2); first world narrower than the second."""
    (m1, s1), (m0, s0) = first, second
    a = 0.5 / s0**2 - 0.5 / s1**2
    b = m1 / s1**2 - m0 / s0**2
    c = 0.5 * (m0 / s0) ** 2 - 0.5 * (m1 / s1) ** 2 + np.log(s0 / s1) - t
    root = np.sqrt(np.maximum(b * b - 4 * a * c, 0))  # a < 0: the LLR exceeds t between the roots, or nowhere
    left, right = (-b + root) / (2 * a), (-b - root) / (2 * a)
    return float((ndtr((right - mean) / spread) - ndtr((left - mean) / spread)).mean())


def threshold_auc(first, second) -> float:
    """AUC of one threshold on phi for all samples: E Phi((m1_i - m0_j) / sqrt(s1_i^2 + s0_j^2))."""
    (m1, s1), (m0, s0) = first, second
    return float(ndtr((m1[:, None] - m0) / np.hypot(s1[:, None], s0)).mean())


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(8)

    def draw(world):
        return (world[0] + world[1] * rng.normal(size=(K, SAMPLES))).astype(np.float32)

    retrained = MEAN, SPREAD
    return {
        method: ulira(draw(forgotten), draw(never), draw(retrained), replicates=50)
        for method, (forgotten, never) in METHODS.items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_six_methods_reach_their_oracles(table, method):
    forgotten, never = METHODS[method]
    retrained = MEAN, SPREAD
    truth = {
        "forgotten_vs_retrained": (forgotten, retrained),
        "forgotten_vs_never": (forgotten, never),
        "fingerprint": (never, retrained),
    }
    for key, worlds in truth.items():
        best, found = oracle_auc(*worlds), table[method][key]
        error = 4 * auc_error(best, K * SAMPLES)
        assert best - 0.025 - error < found.auc < best + error, key
        # The same samples come back in every pair, so the error of a threshold is that of the pairs.
        assert found.loss_auc == pytest.approx(threshold_auc(*worlds), abs=error), key
        if worlds[0] is worlds[1] or best == 0.5:
            assert found.auc == pytest.approx(0.5, abs=error)


def test_each_comparison_sees_what_the_others_miss(table):
    auc_of = {m: {key: c.auc for key, c in row.items()} for m, row in table.items()}
    scaled, collapse = auc_of["scaled_logits"], auc_of["collapse"]
    assert scaled["forgotten_vs_never"] < 0.51
    assert min(scaled["forgotten_vs_retrained"], scaled["fingerprint"]) > 0.6
    assert collapse["forgotten_vs_never"] < 0.51
    assert min(collapse["forgotten_vs_retrained"], collapse["fingerprint"]) > 0.85
    leaks = [auc_of[m]["forgotten_vs_retrained"] for m in ("retrain", "half_forgotten", "identity")]
    assert leaks[0] < leaks[1] - 0.05 < leaks[2] - 0.1
    over = table["over_forgetting"]["forgotten_vs_retrained"]
    assert over.auc > auc_of["identity"]["forgotten_vs_retrained"]
    assert over.loss_auc < 0.45  # below one half: the sign is known to the per-sample attack only


# --- power and moderation
# -------------------------------------------------------------------------------------------------


def fixed_prior_auc(x: np.ndarray, y: np.ndarray, nu0: float) -> float:
    """The attack with nu0 fixed: 0 = every sample its own variance, inf = one variance for all."""
    here = np.ones(x.shape, dtype=bool)
    positive, negative = np.empty_like(x), np.empty_like(y)
    for p, pair in enumerate(zip(without_each(x, here), without_each(y, here), strict=True)):
        priors = [VariancePrior(nu0, float(m.variance().mean())) for m in pair]
        for score, out in ((x, positive), (y, negative)):
            densities = [
                log_predictive(score[p], m.mean, m.variance(), m.number, prior)
                for m, prior in zip(pair, priors, strict=True)
            ]
            out[p] = densities[0] - densities[1]
    return auc(positive.ravel(), negative.ravel())


def test_power_grows_with_the_pairs_and_moderation_never_loses():
    rng = np.random.default_rng(9)
    oracle = oracle_auc((MEAN + GAP * SPREAD, SPREAD), (MEAN, SPREAD))
    found = []
    for k in (4, 8, 16, 64):
        noise = rng.normal(size=(2, 128 // k, k, SAMPLES)) * SPREAD + MEAN
        noise[0] += GAP * SPREAD
        x, y = (world.swapaxes(0, 1).reshape(k, -1) for world in noise)
        moderated = auc(*(llr.ravel() for llr in leave_pair_out(x, y)))
        rivals = [fixed_prior_auc(x, y, 0.0), fixed_prior_auc(x, y, math.inf)]
        assert moderated > max(rivals) - 0.001
        if k == 4:
            assert moderated > rivals[0] + 0.005
        if k == 64:
            assert moderated > rivals[1] + 0.005
        found.append(moderated)
    assert found == sorted(found)
    assert found[0] < oracle - 0.03
    assert oracle - 0.02 < found[-1] < oracle + 0.004


def test_prior_recovers_the_law_that_made_the_variances():
    rng = np.random.default_rng(10)
    nu0, s0_squared, n = 6.0, 2.5, 100_000
    true = nu0 * s0_squared / rng.chisquare(nu0, n)
    dof = rng.integers(2, 30, n)
    found = variance_prior(true * rng.chisquare(dof) / dof, dof)
    assert found.nu0 == pytest.approx(nu0, rel=0.03)
    assert found.s0_squared == pytest.approx(s0_squared, rel=0.02)
    equal = variance_prior(s0_squared * rng.chisquare(8, n) / 8, 8)
    assert equal.nu0 > 200
    assert equal.s0_squared == pytest.approx(s0_squared, rel=0.02)


def test_a_planted_leak_follows_the_mixture():
    rng = np.random.default_rng(11)
    shift = np.where(np.arange(SAMPLES * 2) % 20 == 0, 2.5, 0.0)
    x, y = rng.normal(size=(2, K, SAMPLES * 2))
    positive, negative = leave_pair_out(x + shift, y)
    expected = ndtr(0.5 * np.hypot(shift[:, None], shift)).mean()
    # Unlike the oracle, the attack does not know that 95 % of the samples are worth nothing: their LLR is
    # noise, not a tie, so the area falls short of the mixture, and only the planted samples carry it.
    area = auc(positive.ravel(), negative.ravel())
    assert expected - 0.01 < area < expected + 4 * auc_error(expected, x.size)
    evidence = (positive - negative).sum(axis=0)
    assert set(np.argsort(evidence)[-(shift > 0).sum() :]) == set(np.flatnonzero(shift))
    true, _ = best_counts(positive.ravel(), negative.ravel(), [0.001])
    assert true[0] > 20 * 0.001 * x.size
