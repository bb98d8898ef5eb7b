"""Update leakage: two models together reach the bivariate closed form, where each alone sees little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr

from attacks.lira import shrunk_correlation
from attacks.metrics import auc
from attacks.moderation import variance_prior
from attacks.ulira import leave_pair_out
from attacks.update_leakage import update_leakage

SEEDS = st.integers(0, 10_000)


def draw(shift=(0.0, 0.0), rho=0.0, k=32, n=2000, seed=0, sigma=0.3):
    """phi of the original and the unlearned model, (k, n) each, forgotten and never in.

    Every sample has its own mean and spread; in units of the spread, forgotten samples are moved by `shift`,
    and the two scores of one base have correlation rho.
    """
    rng = np.random.default_rng(seed)
    centre, spread = rng.normal(0, 3, n), np.exp(rng.normal(0, sigma, n))

    def world(move):
        first, noise = rng.normal(size=(2, k, n))
        second = rho * first + math.sqrt(1 - rho**2) * noise
        return [centre + spread * (m + e) for m, e in zip(move, (first, second), strict=True)]

    return *world(shift), *world((0.0, 0.0))


def area(worlds):
    return auc(*(llr.ravel() for llr in worlds))


def auc_error(n):
    return 0.41 / math.sqrt(n)


@pytest.mark.parametrize(
    ("shift", "rho"), [((1.0, 0.0), 0.0), ((1.0, 1.0), 0.5), ((0.5, 0.0), 0.9), ((0.4, -0.2), 0.8)]
)
def test_the_two_scores_together_reach_the_closed_form(shift, rho):
    """AUC = Phi(d / sqrt 2) with d^2 = shift' C^-1 shift, more than either score has alone."""
    before, after, other_before, other_after = draw(shift, rho, k=64, n=1500)
    d2 = (shift[0] ** 2 - 2 * rho * shift[0] * shift[1] + shift[1] ** 2) / (1 - rho**2)
    best = float(ndtr(math.sqrt(d2 / 2)))
    found = area(update_leakage(before, after, other_before, other_after))
    assert best - 0.025 < found < best + 4 * auc_error(before.size)
    alone = [area(leave_pair_out(before, other_before)), area(leave_pair_out(after, other_after))]
    assert found > max(alone) - 0.01  # a second score that says nothing adds the noise of its fit
    if rho > 0.7:
        assert found > max(alone) + 0.1


def test_perfect_unlearning_still_leaks_by_the_original_model():
    """The unlearned score knows nothing and is independent: what remains is plain membership."""
    before, after, other_before, other_after = draw((1.0, 0.0), 0.0)
    both = area(update_leakage(before, after, other_before, other_after))
    assert area(leave_pair_out(after, other_after)) == pytest.approx(0.5, abs=4 * auc_error(before.size))
    assert both == pytest.approx(area(leave_pair_out(before, other_before)), abs=0.015)


@pytest.mark.parametrize("k", [3, 4, 16])
@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_a_null_world_is_one_half_however_few_the_pairs(k, rho):
    worlds = draw(rho=rho, k=k, n=60_000 // k)
    assert area(update_leakage(*worlds)) == pytest.approx(0.5, abs=4 * auc_error(60_000))


def refit(before, after, other_before, other_after):
    """The attack without any trick: for every pair, drop its rows and fit again."""
    worlds = [np.stack(w, axis=1) for w in ((before, after), (other_before, other_after))]
    k, _, n = worlds[0].shape
    out = np.empty((2, k, n))
    for p in range(k):
        density = np.empty((2, 2, n))
        for w, world in enumerate(worlds):
            rest = np.delete(world, p, axis=0)
            mean, s2 = rest.mean(axis=0), rest.var(axis=0, ddof=1)
            for q in range(2):
                nu0, s0 = variance_prior(s2[q], k - 2)
                s2[q] = s0 if math.isinf(nu0) else (nu0 * s0 + (k - 2) * s2[q]) / (nu0 + k - 2)
            z = ((rest - mean) / np.sqrt(s2)).swapaxes(0, 1).reshape(2, -1)
            r = shrunk_correlation(z @ z.T, (z * z) @ (z * z).T, z.shape[1])
            for i in range(n):
                deviation = np.sqrt(s2[:, i] * (1 + 1 / (k - 1)))
                law = stats.multivariate_normal(mean[:, i], np.outer(deviation, deviation) * r)
                density[w, :, i] = [law.logpdf(scored[p, :, i]) for scored in worlds]
        out[:, p] = density[0] - density[1]
    return out


@pytest.mark.parametrize("seed", [1, 2])
def test_leaving_a_pair_out_equals_fitting_again(seed):
    worlds = draw((0.5, 0.2), 0.6, k=5, n=30, seed=seed, sigma=1.0)
    for found, expected in zip(update_leakage(*worlds), refit(*worlds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(0, 3), st.integers(0, 4), st.sampled_from([1e6, -1e6, 1e-9]))
def test_the_other_world_of_a_poisoned_pair_does_not_notice(seed, which, p, poison):
    worlds = draw((1.0, 0.0), 0.5, k=5, n=30, seed=seed)
    expected = update_leakage(*worlds)[which < 2][p]
    worlds[which][p] = poison
    np.testing.assert_array_equal(update_leakage(*worlds)[which < 2][p], expected)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_swapping_worlds_negates_and_swapping_models_or_an_affine_map_changes_nothing(seed):
    f0, f1, u0, u1 = draw((1.0, 0.0), 0.5, k=5, n=30, seed=seed)
    high, low = update_leakage(f0, f1, u0, u1)
    swapped = update_leakage(u0, u1, f0, f1)
    np.testing.assert_array_equal(swapped[0], -low)
    np.testing.assert_array_equal(swapped[1], -high)
    for same in (
        update_leakage(f1, f0, u1, u0),
        update_leakage(3.7 * f0 + 11, 0.1 * f1, 3.7 * u0 + 11, 0.1 * u1),
    ):
        np.testing.assert_allclose(same[0], high, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(same[1], low, rtol=1e-6, atol=1e-6)


def test_a_method_that_does_nothing_adds_nothing():
    """Both models are one: the covariance has no inverse, and shrinkage keeps what one model says."""
    before, _, other, _ = draw((1.0, 0.0), k=16)
    found = update_leakage(before, before, other, other)
    assert np.isfinite(found[0]).all() and np.isfinite(found[1]).all()
    assert area(found) == pytest.approx(area(leave_pair_out(before, other)), abs=0.01)


def test_defect_the_models_taken_for_independent_miss_their_difference():
    """The sum of two LLRs: with correlation 0.9 and a shift of one of them, most of the evidence is lost."""
    f0, f1, u0, u1 = draw((0.5, 0.0), 0.9, k=64, n=1500)
    naive = [a + b for a, b in zip(leave_pair_out(f0, u0), leave_pair_out(f1, u1), strict=True)]
    # d^2 = 0.25 / (1 - 0.81), so Phi(.811) = .791; the sum is the score of the first model alone, Phi(.354).
    assert area(update_leakage(f0, f1, u0, u1)) == pytest.approx(0.791, abs=0.02)
    assert area(naive) < 0.66


def test_an_entry_counts_only_with_all_four_scores():
    worlds = draw((1.0, 0.0), 0.5, k=6, n=30)
    for which in range(4):
        gone = [w.copy() for w in worlds]
        gone[which][1, :7] = np.nan
        for llr in update_leakage(*gone):
            assert np.isnan(llr[1]).sum() == 7 and np.isnan(llr).sum() == 7


WORLDS = draw(k=3, n=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: update_leakage(WORLDS[0], WORLDS[1][:, :2], *WORLDS[2:]), "of the two models differ"),
        (lambda: update_leakage(*WORLDS[:2], *(w[:, :2] for w in WORLDS[2:])), "not one shape"),
        (lambda: update_leakage(*(w[:2] for w in WORLDS)), "pairs: 2 is too few"),
        (lambda: update_leakage(WORLDS[0] * np.inf, *WORLDS[1:]), "original: 12 of 12"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
