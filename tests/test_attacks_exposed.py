"""Exposed samples: false discoveries, planted leaks, Streisand share, leakage left."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attacks.exposed import (
    auc_spread,
    benjamini_hochberg,
    exposed,
    exposure_p_values,
    leakage,
    mann_whitney_null,
    pair_auc,
    streisand,
)
from attacks.metrics import auc
from attacks.ulira import ulira

SEEDS = st.integers(0, 10_000)


def planted(n=20_000, share=0.02, k=64, seed=0, low=0.5, high=1.5):
    """phi of forgotten and reference models; the first `share` of samples is shifted when forgotten."""
    rng = np.random.default_rng(seed)
    leaks = int(share * n)
    shift = np.zeros(n)
    shift[:leaks] = rng.uniform(low, high, leaks)
    mean, spread = rng.normal(0, 3, n), np.exp(rng.normal(0, 0.5, n))
    forgotten, reference = rng.normal(shift, 1, (k, n)), rng.normal(0, 1, (k, n))
    return forgotten * spread + mean, reference * spread + mean, shift


def power(shift, k, p_limit):
    """P(p-value <= p_limit) of a sample shifted by `shift`, normal approximation of the Mann-Whitney count.

    Hanley and McNeil: Var(AUC) = (A (1 - A) + (k - 1)(P1 - A^2) + (k - 1)(P2 - A^2)) / k^2.
    """
    area = stats.norm.cdf(shift / math.sqrt(2))
    both = stats.multivariate_normal(cov=[[1, 0.5], [0.5, 1]]).cdf([shift / math.sqrt(2)] * 2)
    variance = (area * (1 - area) + 2 * (k - 1) * (both - area**2)) / k**2
    null = math.sqrt((2 * k + 1) / (12 * k * k))
    return stats.norm.sf((0.5 + stats.norm.isf(p_limit) * null - area) / math.sqrt(variance))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 7), st.integers(1, 7), st.booleans())
def test_per_sample_auc_is_the_auc_of_each_column(seed, k, m, ties):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.5, 1, (k, 6)), rng.normal(0, 1, (m, 6))
    if ties:
        x, y = np.round(x), np.round(y)
    x[:, 0], y[:, 1] = np.nan, np.nan
    x[0, 2:4] = np.nan
    for i, found in enumerate(pair_auc(x, y)):
        a, b = x[~np.isnan(x[:, i]), i], y[~np.isnan(y[:, i]), i]
        assert math.isnan(found) if a.size * b.size == 0 else found == pytest.approx(auc(a, b))


@pytest.mark.parametrize(("n1", "n0"), [(1, 1), (2, 3), (8, 8), (64, 64)])
def test_the_exact_null_has_the_known_moments(n1, n0):
    law, u = mann_whitney_null(n1, n0), np.arange(n1 * n0 + 1)
    assert law.sum() == pytest.approx(1)
    assert law @ u == pytest.approx(n1 * n0 / 2)
    assert law @ (u - n1 * n0 / 2) ** 2 == pytest.approx(n1 * n0 * (n1 + n0 + 1) / 12)
    assert law[0] == pytest.approx(1 / math.comb(n1 + n0, n1))


def test_the_per_sample_null_error_at_64_models_is_the_published_one():
    law = mann_whitney_null(64, 64)
    assert math.sqrt(law @ (np.arange(4097) / 4096 - 0.5) ** 2) == pytest.approx(0.051, abs=5e-4)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 9), st.integers(2, 9))
def test_p_values_are_scipys_exact_ones(seed, k, m):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.5, 1, (k, 5)), rng.normal(0, 1, (m, 5))
    exact = stats.mannwhitneyu(x, y, alternative="greater", method="exact", axis=0).pvalue
    np.testing.assert_allclose(exposure_p_values(x, y), exact, rtol=1e-9)


def test_missing_scores_and_ties_keep_p_values_valid():
    rng = np.random.default_rng(1)
    x, y = np.round(rng.normal(0, 1, (12, 4000)), 1), np.round(rng.normal(0, 1, (12, 4000)), 1)
    x[rng.random(x.shape) < 0.2] = np.nan
    found = exposure_p_values(x, y)
    for level in (0.01, 0.05, 0.2):
        # One of 4,000 by chance: four standard errors above the level.
        assert np.mean(found <= level) <= level + 4 * math.sqrt(level / 4000)
    x[:, 0] = np.nan
    assert math.isnan(exposure_p_values(x, y)[0])


def test_counting_samples_above_a_level_reads_twice_the_truth():
    """2 % leak, of which nearly all truly lie above 0.6 (1.9 %); the naive share reads 4.4 %."""
    forgotten, reference, shift = planted()
    truth = np.mean(stats.norm.cdf(shift / math.sqrt(2)) > 0.6)
    spread = auc_spread(forgotten, reference)
    assert truth == pytest.approx(0.02, abs=0.001)
    assert spread.above == pytest.approx(0.044, abs=4 * math.sqrt(0.044 / 20_000))
    assert spread.null_above == pytest.approx(0.0254, abs=1e-3)
    assert spread.null_quantiles[95] == pytest.approx(0.5 + 1.645 * 0.0512, abs=2e-3)
    assert spread.quantiles[50] == pytest.approx(0.5, abs=0.004)
    assert spread.quantiles[99] > spread.null_quantiles[99] + 0.1


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 6), st.integers(1, 300))
def test_the_curve_is_the_distribution_to_one_percent(seed, k, n):
    rng = np.random.default_rng(seed)
    x, y = np.round(rng.normal(0.5, 1, (2, k, n)), 1)
    x[:, 0] = np.nan if n > 1 else x[:, 0]
    area, curve = pair_auc(x, y), auc_spread(x, y).curve
    area = area[~np.isnan(area)]
    assert curve.shape == (101,) and curve[0] == area.min() and curve[100] == area.max()
    for percent, value in enumerate(curve):
        assert np.mean(area < value) <= percent / 100 + 1e-12
        assert np.mean(area <= value) >= percent / 100 - 1e-12


def test_the_null_curve_by_hand():
    """Of two and two scores, U = 0..4 has probability 1, 1, 2, 1, 1 in six."""
    x, y = np.random.default_rng(0).normal(size=(2, 2, 50))
    curve = auc_spread(x, y).null_curve
    assert [curve[p] for p in (0, 16, 17, 33, 34, 66, 67, 83, 84, 100)] == [
        *(0.0, 0.0, 0.25, 0.25, 0.5),
        *(0.5, 0.75, 0.75, 1.0, 1.0),
    ]


def test_false_discoveries_are_controlled_in_the_published_example():
    """Published: 375 found, 16 of them false, at 5 %. The number found varies with the sizes of the leaks."""
    forgotten, reference, shift = planted()
    found = benjamini_hochberg(exposure_p_values(forgotten, reference))
    false = int(found[shift == 0].sum())
    assert 330 <= found.sum() <= 400
    assert false <= stats.binom.ppf(0.999, int(found.sum()), 0.05)
    assert found[shift > 0].mean() > 0.8


@pytest.mark.parametrize("shift", [0.7, 1.0])
def test_planted_samples_are_found_at_the_predicted_power(shift):
    forgotten, reference, truth = planted(n=10_000, share=0.05, low=shift, high=shift)
    p_values = exposure_p_values(forgotten, reference)
    found = benjamini_hochberg(p_values)
    expected = power(shift, 64, p_values[found].max())
    # 500 planted: four binomial errors, and .02 for the normal approximation.
    error = 4 * math.sqrt(expected * (1 - expected) / 500) + 0.02
    assert found[truth > 0].mean() == pytest.approx(expected, abs=error)


def test_planted_samples_are_found_on_one_half_and_confirmed_on_the_other():
    forgotten, reference, shift = planted(low=1.0, high=2.0)
    found = exposed(forgotten, reference)
    assert np.isin(found.confirmed, found.found).all()
    false_found = np.mean(shift[found.found] == 0)
    assert false_found <= 0.05 + 4 * math.sqrt(0.05 / found.found.size)
    assert np.sum(shift[found.confirmed] == 0) <= 3
    assert found.confirmed.size > 0.8 * np.sum(shift > 0)
    # Read on pairs that did not choose them, the AUC is that of the shifts, plus the false at one half.
    expected = np.mean(stats.norm.cdf(shift[found.found] / math.sqrt(2)))
    assert found.mean_found_auc == pytest.approx(expected, abs=4 * 0.07 / math.sqrt(found.found.size))


def test_the_most_exposed_sample_comes_first():
    rng = np.random.default_rng(6)
    forgotten, reference = rng.normal(size=(64, 50)), rng.normal(size=(64, 50))
    forgotten[:, 3] += 1.5
    forgotten[:, 7] += 9
    assert exposed(forgotten, reference).confirmed[:2].tolist() == [7, 3]


def test_reading_the_auc_where_it_was_chosen_would_show():
    """The mutant ranks and reports on the same pairs: the top 1 % of a world without leaks look exposed."""
    rng = np.random.default_rng(2)
    forgotten, reference = rng.normal(size=(16, 5000)), rng.normal(size=(16, 5000))
    area = pair_auc(forgotten, reference)
    assert np.sort(area)[-50:].mean() > 0.75
    top = np.argsort(pair_auc(forgotten[:8], reference[:8]))[-50:]
    assert pair_auc(forgotten[8:], reference[8:])[top].mean() == pytest.approx(0.5, abs=4 * 0.149 / 50**0.5)


def test_a_world_without_leaks_has_nobody_exposed():
    rng = np.random.default_rng(3)
    runs = [exposed(rng.normal(size=(32, 500)), rng.normal(size=(32, 500)), seed=s) for s in range(40)]
    # Any discovery at all is false here: at most 5 % of runs, 4 standard errors of 40 runs on top.
    assert np.mean([run.found.size > 0 for run in runs]) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 40)
    assert sum(run.confirmed.size for run in runs) == 0
    assert math.isnan(next(run.mean_found_auc for run in runs if run.found.size == 0))


def test_benjamini_hochberg_by_hand():
    """Limits of rank / 5 * 0.05: .01, .02, .03, .04, .05. The third passes and takes the second along."""
    p = np.array([0.9, 0.021, 0.005, 0.029, 0.5])
    assert benjamini_hochberg(p).tolist() == [False, True, True, True, False]
    assert benjamini_hochberg([np.nan, 0.04]).tolist() == [False, True]
    assert not benjamini_hochberg([np.nan, np.nan]).any()
    with pytest.raises(ValueError, match="benjamini_hochberg"):
        benjamini_hochberg([1.5])


def test_streisand_share_is_one_percent_for_retraining_and_more_below_it():
    forgotten, reference, _ = planted(n=3000, share=0.0)
    spread = reference.std(axis=0)
    same = streisand(forgotten, reference)
    # 3000 fits of 63 models each: their errors move the share of 64 scores together.
    assert same.share == pytest.approx(0.01, abs=0.001)
    assert same.null == pytest.approx(0.01, abs=0.001)
    assert same.scores == 64 * 3000
    below = streisand(forgotten - spread, reference)
    assert below.share == pytest.approx(stats.norm.sf(stats.norm.isf(0.01) - 1), abs=0.01)
    assert streisand(forgotten + spread, reference).share < 0.002
    assert streisand(forgotten - 50 * spread, reference).share == 1


def test_streisand_share_keeps_its_level_with_few_models():
    """A plain normal quantile of four models would be passed by 4 % of the scores."""
    forgotten, reference, _ = planted(n=5000, share=0.0, k=5)
    assert streisand(forgotten, reference).share == pytest.approx(0.01, abs=0.003)
    naive = reference[1:].mean(axis=0) - 2.326 * reference[1:].std(axis=0, ddof=1)
    assert np.mean(forgotten[0] < naive) > 0.03


def test_streisand_share_does_not_depend_on_the_unit_of_phi():
    forgotten, reference, _ = planted(n=500, share=0.0, k=8)
    forgotten -= 1
    assert streisand(1e-6 * forgotten, 1e-6 * reference) == streisand(forgotten, reference)


def test_streisand_ignores_missing_scores():
    forgotten, reference, _ = planted(n=300, share=0.0, k=12)
    forgotten[0], reference[:, 0] = np.nan, np.nan
    assert streisand(forgotten, reference).scores == 11 * 299
    with pytest.raises(ValueError, match="no sample"):
        streisand(np.full((5, 2), np.nan), np.zeros((5, 2)))


def comparisons(left, seed=0, k=16, n=300):
    """(no unlearning, a method that leaves `left` of the shift), same pairs and same references."""
    rng = np.random.default_rng(seed)
    gap, reference = rng.exponential(1, n) + rng.normal(0, 0.3, (k, 1)), rng.normal(0, 1, (k, n))
    noise = rng.normal(0, 1, (k, n))
    worlds = [gap + noise, left * gap + 0.3 * rng.normal(0, 1, (k, n)) + 0.954 * noise]
    return [ulira(world, None, reference)["forgotten_vs_retrained"] for world in worlds]


def of(identity, method, clusters=16):
    return leakage(method.auc, method.auc_replicates, identity.auc, identity.auc_replicates, clusters)


def test_leakage_of_no_unlearning_is_one_and_of_a_perfect_method_near_zero():
    identity, perfect = comparisons(0.0)
    assert (of(identity, identity).share, of(identity, identity).low) == (1, 1)
    found = of(identity, perfect)
    assert found.supported and found.low < 0 < found.high
    assert abs(found.share) < 0.1


def test_leakage_lies_between_and_its_interval_holds_it():
    identity, half = comparisons(0.5, seed=1)
    found = of(identity, half)
    assert found.share == pytest.approx((half.auc - 0.5) / (identity.auc - 0.5))
    assert 0 < found.low < found.share < found.high < 1


def test_pairing_narrows_the_interval_of_the_leakage():
    """Shuffled replicates keep both margins and lose what the two methods share."""
    identity, most = comparisons(0.9, seed=2)
    paired = of(identity, most)
    shuffled = np.random.default_rng(0).permutation(most.auc_replicates)
    loose = leakage(most.auc, shuffled, identity.auc, identity.auc_replicates, 16)
    assert paired.high - paired.low < 0.7 * (loose.high - loose.low)


def test_leakage_is_not_printed_where_there_was_none_to_begin_with():
    rng = np.random.default_rng(5)
    replicates = 0.51 + 0.005 * rng.normal(size=500)
    found = leakage(0.505, replicates - 0.005, 0.51, replicates, 16)
    assert not found.supported and math.isnan(found.share)
    assert leakage(0.505, replicates + 0.015, 0.53, replicates + 0.02, 16).supported
    assert not leakage(0.5, replicates, 0.4, replicates, 16).supported  # over-forgetting is no leakage


def test_missing_replicates_are_left_out_together():
    identity, half = comparisons(0.5, seed=1)
    holes = half.auc_replicates.copy()
    holes[::3] = np.nan
    found = leakage(half.auc, holes, identity.auc, identity.auc_replicates, 16)
    keep = np.arange(holes.size) % 3 != 0
    expected = leakage(half.auc, holes[keep], identity.auc, identity.auc_replicates[keep], 16)
    assert found == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_auc(np.zeros((3, 2)), np.zeros((3, 3))), "of one set"),
        (lambda: pair_auc(np.full((3, 2), np.inf), np.zeros((3, 2))), "6 of 12 scores are infinite"),
        (lambda: exposed(np.zeros((3, 2)), np.zeros((3, 2))), "pairs: 3 is too few, at least 4"),
        (lambda: exposed(np.zeros((5, 2)), np.zeros((4, 2))), "not one"),
        (lambda: exposed(np.zeros((5, 2)), np.zeros((5, 2)), fdr=0.0), "fdr 0.0"),
        (lambda: streisand(np.zeros((3, 2)), np.zeros((3, 2))), "pairs: 3"),
        (lambda: auc_spread(np.full((3, 2), np.nan), np.zeros((3, 2))), "no sample"),
        (lambda: leakage(0.6, np.zeros(3), 0.7, np.zeros(4), 9), "differ"),
        (lambda: leakage(0.6, np.full(3, np.nan), 0.7, np.zeros(3), 9), "0 of 3 replicates"),
        (lambda: mann_whitney_null(0, 3), "sizes 0 and 3"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
