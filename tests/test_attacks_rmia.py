"""RMIA: the sorted count is the definition, the ends of `a`, the null, and the defects of public ports."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import rmia
from attacks.metrics import auc
from attacks.scores import confidence_from_phi

SEEDS = st.integers(0, 10_000)


def draw(seed=0, models=6, n=15, z=40, shift=1.0, hardness=2.0):
    """phi of models (models, n) and of a population (models, z), member, pair; rounded, so there are ties.

    Models 2j and 2j + 1 train on complementary samples; training adds `shift`.
    """
    rng = np.random.default_rng(seed)
    mine = rng.random((models // 2, n)) < 0.5
    member = np.stack([mine, ~mine], axis=1).reshape(models, n)
    phi = rng.normal(0, hardness, n) + rng.normal(size=(models, n)) + shift * member
    population = rng.normal(0, hardness, z) + rng.normal(size=(models, z))
    return np.round(phi, 1), np.round(population, 1), member, np.repeat(np.arange(models // 2), 2)


def brute_force(target, shadow, member, target_z, shadow_z, gamma, a=None):
    """The definition in probabilities: loops over samples and population, no logarithm, no sorting."""
    p, refs, pz, refs_z = map(confidence_from_phi, (target, shadow, target_z, shadow_z))
    share = []
    for i in range(p.size):
        inside, out = refs[member[:, i], i], refs[~member[:, i], i]
        both = 0.5 * (inside.mean() + out.mean()) if a is None else 0.5 * ((1 + a) * out.mean() + 1 - a)
        beaten = 0
        for j in range(pz.size):
            reference = refs_z[:, j].mean()
            if a is not None:
                reference = 0.5 * ((1 + a) * reference + 1 - a)
            beaten += (p[i] / both) / (pz[j] / reference) >= gamma
        share.append(beaten / pz.size)
    return np.array(share)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.3, 4.0), st.one_of(st.none(), st.floats(0, 1)))
def test_sorted_count_equals_brute_force(seed, gamma, a):
    phi, population, member, _ = draw(seed)
    given_ = phi[0], phi[1:], member[1:], population[0], population[1:]
    both = member[1:].any(axis=0) & ~member[1:].all(axis=0)
    found = rmia.online(*given_, gamma=gamma) if a is None else rmia.offline(*given_, gamma=gamma, a=a)
    expected = brute_force(
        phi[0][both], phi[1:][:, both], member[1:][:, both], population[0], population[1:], gamma, a
    )
    # The ratio can equal gamma exactly; the last bit of a logarithm then decides over one of 40 samples.
    np.testing.assert_allclose(found[both], expected, atol=1 / 40 + 1e-12)
    assert (found[both] == expected).mean() > 0.8


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.1, 4.0), st.floats(1.0, 3.0), st.one_of(st.none(), st.floats(0, 1)))
def test_scores_are_shares_and_fall_with_gamma(seed, gamma, factor, a):
    phi, population, member, pair = draw(seed)
    low, high = (
        rmia.leave_pair_out(phi, member, pair, population, gamma=g, a=a) for g in (gamma, gamma * factor)
    )
    assert ((low >= 0) & (low <= 1)).all()
    assert (high <= low).all()
    np.testing.assert_allclose(low * 40, np.round(low * 40))


def test_the_two_ends_of_a():
    """a = 1: relative to the OUT mean. a = 0: relative to (OUT mean + 1) / 2."""
    phi, population, member, _ = draw(1, n=200)
    given_ = phi[0], phi[1:], member[1:], population[0], population[1:]
    p, refs, pz, refs_z = map(confidence_from_phi, (phi[0], phi[1:], population[0], population[1:]))
    out = np.nanmean(np.where(member[1:], np.nan, refs), axis=0)
    for a, x_ref, z_ref in (
        (1.0, out, refs_z.mean(axis=0)),
        (0.0, (out + 1) / 2, (refs_z.mean(axis=0) + 1) / 2),
    ):
        expected = ((p / x_ref)[:, None] >= 1.0000001 * pz / z_ref).mean(axis=1)
        found = rmia.offline(*given_, a=a, gamma=1.0000001)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_logarithms_survive_where_probabilities_do_not():
    """Probabilities of 1e-300 and below, and of 1 - 1e-300."""
    n = 50
    target, refs = np.linspace(-2000, -1000, n), np.full((4, n), -1500.0)
    member = np.repeat([[True], [False]], 2, axis=0).repeat(n, axis=1)
    found = rmia.online(target, refs, member, np.linspace(-2000, -1000, 101), np.full((4, 101), -1500.0))
    assert (np.diff(found) > 0).all()
    sure = rmia.offline(
        np.full(3, 1e4), np.full((2, 3), 1e4), np.zeros((2, 3)), np.full(5, 1e4), np.full((2, 5), 1e4)
    )
    assert sure.tolist() == [1.0, 1.0, 1.0]


def test_equal_models_say_nothing_and_ties_count():
    phi, population = np.full(4, 1.5), np.full(7, 1.5)
    member = np.array([[True] * 4, [False] * 4])
    found = rmia.online(phi, np.full((2, 4), 1.5), member, population, np.full((2, 7), 1.5))
    assert found.tolist() == [1.0] * 4  # every ratio is 1 >= gamma = 1
    above = rmia.online(phi, np.full((2, 4), 1.5), member, population, np.full((2, 7), 1.5), gamma=2.0)
    assert above.tolist() == [0.0] * 4


def test_scores_of_untrained_samples_are_uniform():
    """x and z of one law and gamma = 1: the score is a rank, and one minus it a p-value."""
    rng = np.random.default_rng(2)
    refs, target = rng.normal(size=(8, 4000)), rng.normal(size=4000)
    member = np.zeros((8, 2000), dtype=bool)
    found = rmia.offline(target[:2000], refs[:, :2000], member, target[2000:], refs[:, 2000:], a=1.0)
    assert np.abs(np.sort(found) - np.linspace(0, 1, 2000)).max() < 1.63 * math.sqrt(2 / 2000)  # KS, 1 %


@pytest.mark.parametrize("a", [None, 0.5])
def test_a_null_world_is_one_half_however_few_the_pairs(a):
    phi, population, member, pair = draw(3, models=6, n=8000, z=500, shift=0.0)
    found = rmia.leave_pair_out(phi, member, pair, population, a=a)
    # AUC of 24,000 against 24,000; samples share the references: 4 SE of independent scores.
    assert auc(found[member], found[~member]) == pytest.approx(0.5, abs=4 * 0.41 / math.sqrt(member.sum()))


def test_calibration_by_references_beats_one_threshold():
    """Samples are of very different difficulty, which a threshold on phi takes for membership."""
    phi, population, member, pair = draw(4, models=8, n=3000, z=1000, shift=1.0, hardness=3.0)
    plain = auc(phi[member], phi[~member])
    # d = 1 after perfect calibration: Phi(1 / sqrt 2) = .760; a threshold sees 1 / sqrt(1 + 9) of it.
    assert plain == pytest.approx(0.588, abs=0.01)
    for a in (None, 0.7):
        found = rmia.leave_pair_out(phi, member, pair, population, a=a)
        assert 0.62 < auc(found[member], found[~member]) < 0.76


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.one_of(st.none(), st.floats(0, 1)), st.sampled_from([1e6, -1e6]))
def test_a_poisoned_pair_does_not_touch_the_other_score_of_the_pair(seed, a, poison):
    phi, population, member, pair = draw(seed)
    expected = rmia.leave_pair_out(phi, member, pair, population, a=a)[1]
    phi[0], population[0] = poison, poison
    np.testing.assert_array_equal(rmia.leave_pair_out(phi, member, pair, population, a=a)[1], expected)


def test_leaving_a_pair_out_equals_the_plain_attack_on_the_other_models():
    phi, population, member, pair = draw(5, models=8)
    for m in range(8):
        others = pair != pair[m]
        given_ = phi[m], phi[others], member[others], population[m], population[others]
        expected = rmia.online(*given_)
        found = rmia.leave_pair_out(phi, member, pair, population)
        np.testing.assert_array_equal(found[m], expected)
        expected = rmia.offline(*given_, a=0.2)
        found = rmia.leave_pair_out(phi, member, pair, population, a=0.2)
        np.testing.assert_array_equal(found[m], expected)


def test_missing_scores_are_nan_in_both_models_and_not_used():
    phi, population, member, pair = draw(6)
    gone = phi.copy()
    gone[0, :4] = np.nan
    found = rmia.leave_pair_out(gone, member, pair, population)
    assert np.isnan(found[:2, :4]).all()
    also = gone.copy()
    also[1, :4] = np.nan
    np.testing.assert_array_equal(found, rmia.leave_pair_out(also, member, pair, population))


def test_a_is_chosen_where_it_helps_and_within_its_grid():
    phi, population, member, pair = draw(7, models=6, n=1500, z=300, shift=2.0)
    a = rmia.tune_a(phi, member, pair, population)
    areas = {}
    for value in rmia.GRID:
        found = rmia.leave_pair_out(phi, member, pair, population, a=value)
        areas[value] = auc(found[member], found[~member])
    assert areas[a] == max(areas.values()) > min(areas.values())


# --- planted defects
# ---------------------------------------------------------------------------------------------------


def largest_as_out(log_p, member, k):
    """A public port: zero the members, keep the k largest; with more than k OUT models it picks upwards."""
    zeroed = np.where(member, 0.0, np.exp(log_p))
    return np.sort(zeroed, axis=0)[-k:].mean(axis=0)


def test_defect_out_models_by_the_largest_values_is_biased_upward():
    rng = np.random.default_rng(8)
    phi = rng.normal(size=(20, 500))
    member = rng.random((20, 500)) < 0.4  # 12 OUT models on average, some samples with more than 10
    p = confidence_from_phi(phi)
    truth = np.array([p[~member[:, i], i].mean() for i in range(500)])
    log_p = np.log(p)
    wrong = largest_as_out(log_p, member, 10)
    np.testing.assert_allclose(np.exp(rmia._log_mean(log_p, ~member)), truth, rtol=1e-12)
    assert (wrong - truth).mean() > 0.03


def test_defect_offline_statistics_over_members_too_hide_the_sample():
    """IN models know the sample, so a mean over all of them explains its probability away."""
    phi, population, member, pair = draw(9, models=8, n=3000, z=500, shift=3.0)
    right = rmia.leave_pair_out(phi, member, pair, population, a=1.0)
    areas = []
    for m in range(8):
        others = pair != pair[m]
        blind = np.zeros_like(member[others])
        wrong = rmia.offline(phi[m], phi[others], blind, population[m], population[others], a=1.0)
        areas.append(auc(wrong[member[m]], wrong[~member[m]]))
        told = rmia.offline(phi[m], phi[others], member[others], population[m], population[others], a=1.0)
        np.testing.assert_array_equal(told, right[m])
        # A known answer tells: relative to the OUT mean, an OUT sample ranks as the population does.
        assert told[~member[m]].mean() == pytest.approx(0.5, abs=0.05)
        assert wrong[~member[m]].mean() < 0.40
    assert np.mean(areas) > 0.5


def test_defect_the_complement_of_the_target_among_the_references_reveals_the_label():
    phi, population, member, pair = draw(10, models=4, n=20_000, z=500, shift=0.0)
    right = rmia.leave_pair_out(phi, member, pair, population, a=1.0)
    wrong = np.full_like(right, np.nan)
    for m in range(4):
        others = np.arange(4) != m
        wrong[m] = rmia.offline(phi[m], phi[others], member[others], population[m], population[others], a=1.0)
    right_auc, wrong_auc = (auc(s[member], s[~member]) for s in (right, wrong))
    assert right_auc == pytest.approx(0.5, abs=4 * 0.41 / math.sqrt(member.sum()))
    assert wrong_auc < 0.49  # a mean of two OUT models for members, of one for others


# --- bad input
# ---------------------------------------------------------------------------------------------------

PHI, Z, MEMBER, PAIR = draw(11, models=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rmia.leave_pair_out(PHI, MEMBER, PAIR, Z, gamma=0.0), "gamma: 0.0"),
        (lambda: rmia.leave_pair_out(PHI, MEMBER, PAIR, Z, a=1.5), "a: 1.5 is outside"),
        (lambda: rmia.leave_pair_out(PHI, MEMBER, PAIR, Z[:3]), "population: 3 models"),
        (lambda: rmia.leave_pair_out(PHI, MEMBER, PAIR, Z * np.nan), "population: 160 of 160"),
        (lambda: rmia.leave_pair_out(PHI[:2], MEMBER[:2], PAIR[:2], Z[:2]), "pairs: 1 is too few"),
        (lambda: rmia.leave_pair_out(PHI, MEMBER, [0, 0, 0, 1], Z), "id 0 has 3 models"),
        (lambda: rmia.online(PHI[0], PHI[1:, :3], MEMBER[1:, :3], Z[0], Z[1:]), "shadow: shape"),
        (lambda: rmia.online(PHI[0], PHI[1:], MEMBER[1:], Z[0], Z[2:]), "shadow_population: shape"),
        (lambda: rmia.online(PHI[0], PHI[1:], MEMBER[1:, :3], Z[0], Z[1:]), "member: shape"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
