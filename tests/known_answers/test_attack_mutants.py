"""Known defects of public attacks, in our own words, each refused by the check that our attack passes.

Here: the evidence of LiRA and U-LiRA, RMIA, Attack-P and quantile regression. A world is φ (k pairs, n
samples); an attack on two worlds gives two arrays of evidence. See test_attack_mutants_scores.py for scores,
metrics, divergences and designs.
"""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy.special import logit, ndtr
from scipy.stats import norm

from attacks import lira, rmia, ulira
from attacks.attack_p import attack_p
from attacks.metrics import auc
from attacks.quantile_regression import quantile_regression
from attacks.scores import confidence_from_phi
from tests.known_answers.mutants import Defects, tell_apart
from tests.test_attacks_lira import auc_error, complementary, gaussian_worlds
from workers.evaluate import views_of

DEFECTS = Defects()


def area(attack, x, y):
    return auc(*(evidence.ravel() for evidence in attack(x, y)))


def likelihood_ratio(fits, x, y):
    """Gaussian LLR of both worlds; fits: (mean, spread) of the positive and of the negative world."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return tuple(norm.logpdf(world, *fits[0]) - norm.logpdf(world, *fits[1]) for world in (x, y))


def others_of(world, p):
    return np.delete(world, p, axis=0)


def by_the_others(x, y, fit):
    """Gaussian LLR of both worlds, each pair by fit(world of the others, members' world of the others)."""
    x, y = x.astype(float), y.astype(float)
    found = []
    for p in range(len(x)):
        rest = others_of(x, p), others_of(y, p)
        found.append(likelihood_ratio([fit(world, rest[0]) for world in rest], x[p], y[p]))
    return np.array([pair[0] for pair in found]), np.array([pair[1] for pair in found])


# ---- a world without any leak ------------------------------------------------------------------------------


def finds_nothing_where_nothing_is(attack):
    """Four pairs, all scores of a sample from one law: AUC ½."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 8000)) * np.exp(rng.normal(0, 0.5, 8000)) + rng.normal(0, 3, 8000)
    assert abs(area(attack, x, y) - 0.5) < 4 * auc_error(0.5, x.size)


@DEFECTS.of(ulira.leave_pair_out, finds_nothing_where_nothing_is)
def fitted_on_what_it_scores(x, y):
    fits = [(world.mean(axis=0), world.std(axis=0, ddof=1)) for world in (x, y)]
    return likelihood_ratio(fits, x, y)


@DEFECTS.of(lira.worlds_leave_pair_out, finds_nothing_where_nothing_is)
def only_the_scored_model_left_out(x, y):
    """Its complement stays, so the counts of the two worlds differ by one, in the direction of the label."""
    phi, member, _ = complementary(x, y)
    llr = np.array([lira.online(row, others_of(phi, m), others_of(member, m)) for m, row in enumerate(phi)])
    first, second, mine = llr[0::2], llr[1::2], member[0::2]
    return np.where(mine, first, second), np.where(mine, second, first)


# ---- worlds with a leak ------------------------------------------------------------------------------------


def uses_the_margin_of_every_score(attack):
    """φ shifted by one spread, 16 pairs, models nearly always right: AUC above .7, no score dropped."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 16, 2000)) + rng.normal(4, 1, 2000)
    high, low = attack(x + 1, y)
    assert np.isfinite(high).all() and np.isfinite(low).all()
    assert 0.7 < auc(high.ravel(), low.ravel()) < ndtr(1 / math.sqrt(2)) + 4 * auc_error(0.76, x.size)


@DEFECTS.of(ulira.leave_pair_out, uses_the_margin_of_every_score)
def correct_or_not(x, y):
    return ulira.leave_pair_out((x > 0).astype(float), (y > 0).astype(float))


@DEFECTS.of(ulira.leave_pair_out, uses_the_margin_of_every_score)
def gaussians_on_correct_or_not(x, y):
    """Where all models agree a Gaussian has no width: 0 / 0, and the mean is over what is left."""
    return fitted_on_what_it_scores((x > 0).astype(float), (y > 0).astype(float))


def reads_a_spread_in_nats(attack):
    """Spread 2 against 1: AUC 2/π arctan 2, and mean evidence 3/2 − log 2 and 3/8 − log 2."""
    x, y = gaussian_worlds(0.0, spread=2.0, n=1000)
    high, low = attack(x, y)
    assert auc(high.ravel(), low.ravel()) == pytest.approx(2 / math.pi * math.atan(2), abs=0.01)
    assert high.mean() == pytest.approx(1.5 - math.log(2), rel=0.07)
    assert low.mean() == pytest.approx(0.375 - math.log(2), rel=0.07)


def global_variance(x, y):
    return lira.worlds_leave_pair_out(x, y, variance="global")


@DEFECTS.of(global_variance, reads_a_spread_in_nats)
def one_spread_of_members_for_both_worlds(x, y):
    """Also around the mean of all samples instead of each sample's own."""
    return by_the_others(x, y, lambda world, members: (world.mean(axis=0), members.std()))


@DEFECTS.of(global_variance, reads_a_spread_in_nats)
def two_spreads_that_are_not_centred(x, y):
    return by_the_others(x, y, lambda world, members: (world.mean(axis=0), world.std()))


def ignores_the_unit_of_phi(attack):
    """The same worlds in another unit: the same evidence."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 12, 300)) + rng.normal(0, 2, 300)
    for unit in (0.01, 100.0):
        for found, expected in zip(attack(unit * (x + 1), unit * y), attack(x + 1, y), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@DEFECTS.of(ulira.leave_pair_out, ignores_the_unit_of_phi)
def kernel_of_bandwidth_one(x, y):
    """A kernel density that is 1 wide whatever the scale of the scores."""

    def log_density(world, scores, p):
        return np.log(norm.pdf(scores - others_of(world, p)).mean(axis=0) + 1e-300)

    both = [[log_density(x, w[p], p) - log_density(y, w[p], p) for p in range(len(x))] for w in (x, y)]
    return np.array(both[0]), np.array(both[1])


def survives_a_constant_sample(attack):
    """All members score 5 but for one rounding step: evidence is finite, and clear."""
    x = np.full((8, 50), 5.0, dtype=np.float32)
    x[0] = np.nextafter(np.float32(5), np.float32(6))
    high, low = attack(x, np.random.default_rng(3).normal(0, 1, (8, 50)).astype(np.float32))
    assert np.abs(high).max() < 1e3 and high.min() > low.max()


@DEFECTS.of(ulira.leave_pair_out, survives_a_constant_sample)
def a_floor_of_1e_30(x, y):
    return by_the_others(x, y, lambda world, members: (world.mean(axis=0), world.std(axis=0) + 1e-30))


def views_are_comparable(views_of_models):
    """Two views, each with an effect of its own on φ and a shift of one spread: AUC Φ(1)."""
    rng = np.random.default_rng(4)
    k, n = 32, 500
    chosen = views_of_models(2 * k)
    effects = {view: rng.normal(0, 2, n) for view in sorted({v for row in chosen for v in row})}
    phi = rng.normal(size=(2 * k, 2, n)) + np.array([[effects[view] for view in row] for row in chosen])
    high, low = lira.worlds_leave_pair_out(phi[:k] + 1, phi[k:])
    assert auc(high.ravel(), low.ravel()) == pytest.approx(ndtr(1.0), abs=0.02)


def fixed_views(models):
    return [views_of(flip=True) for _ in range(models)]


@DEFECTS.of(fixed_views, views_are_comparable)
def crops_drawn_anew_for_every_model(models):
    rng = np.random.default_rng(5)
    return [[(False, *rng.integers(-1, 2, 2).tolist()) for _ in range(2)] for _ in range(models)]


# ---- RMIA, Attack-P, quantile regression ------------------------------------------------------------------


def world_of_models(shift, n=4000, models=8, seed=6):
    """φ (models, n), φ of a population (models, 500), member, pair; models 2j, 2j + 1 are complements."""
    rng = np.random.default_rng(seed)
    mine = rng.random((models // 2, n)) < 0.5
    member = np.stack([mine, ~mine], axis=1).reshape(models, n)
    phi = rng.normal(0, 2, n) + rng.normal(size=(models, n)) + shift * member
    population = rng.normal(0, 2, 500) + rng.normal(size=(models, 500))
    return phi, population, member, np.repeat(np.arange(models // 2), 2)


def unseen_samples_rank_like_the_population(offline):
    phi, population, member, pair = world_of_models(shift=3.0)
    refs = pair != 0
    score = offline(phi[0], phi[refs], member[refs], population[0], population[refs])
    assert score[~member[0]].mean() == pytest.approx(0.5, abs=0.04)


def offline(target, shadow, member, population, shadow_population):
    return rmia.offline(target, shadow, member, population, shadow_population, a=1.0)


@DEFECTS.of(offline, unseen_samples_rank_like_the_population)
def references_that_trained_on_the_sample(target, shadow, member, population, shadow_population):
    return offline(target, shadow, np.zeros_like(member), population, shadow_population)


@DEFECTS.of(offline, unseen_samples_rank_like_the_population)
def references_by_the_largest_values(target, shadow, member, population, shadow_population):
    """Members are zeroed and the k largest kept; three complementary pairs have 3 OUT models, k is 2."""
    mean = np.sort(np.where(member, 0.0, confidence_from_phi(shadow)), axis=0)[-2:].mean(axis=0)
    as_models = np.repeat(logit(mean)[None], len(shadow), axis=0)
    return offline(target, as_models, np.zeros_like(member), population, shadow_population)


def leave_pair_out_offline(phi, member, pair, population):
    return rmia.leave_pair_out(phi, member, pair, population, a=1.0)


def models_without_a_leak_are_alike(attack):
    phi, population, member, pair = world_of_models(shift=0.0, n=20_000, models=4)
    score = attack(phi, member, pair, population)
    assert auc(score[member], score[~member]) == pytest.approx(0.5, abs=4 * auc_error(0.5, member.sum()))


@DEFECTS.of(leave_pair_out_offline, models_without_a_leak_are_alike)
def the_complement_among_the_references(phi, member, pair, population):
    return np.array(
        [
            offline(row, others_of(phi, m), others_of(member, m), population[m], others_of(population, m))
            for m, row in enumerate(phi)
        ]
    )


def a_knows_nothing_of_the_audited_pair(choose):
    """choose(φ, member, pair, population, audited pair) -> a; what the audited pair scores is no matter."""
    phi, population, member, pair = world_of_models(shift=2.0, n=300)
    expected = choose(phi, member, pair, population, 0)
    for seed in range(5):
        changed = phi.copy()
        changed[:2] = np.random.default_rng(seed).normal(size=(2, 300)) * 3
        assert choose(changed, member, pair, population, 0) == expected


def a_from_the_other_pairs(phi, member, pair, population, audited):
    rest = pair != audited
    return rmia.tune_a(phi[rest], member[rest], pair[rest], population[rest])


@DEFECTS.of(a_from_the_other_pairs, a_knows_nothing_of_the_audited_pair)
def a_from_the_complement_of_the_target(phi, member, pair, population, audited):
    """The complement's members are exactly the target's non-members: it knows every label."""
    refs, m = pair != audited, int(np.flatnonzero(pair == audited)[1])
    given = phi[m], phi[refs], member[refs], population[m], population[refs]
    scores = [rmia.offline(*given, a=a) for a in rmia.GRID]
    return rmia.GRID[int(np.argmax([auc(s[member[m]], s[~member[m]]) for s in scores]))]


def memory_is_that_of_the_scores(attack):
    """1,500 samples and 1,500 of the population: a matrix of all ratios is 18 MB."""
    rng = np.random.default_rng(7)
    x, refs = rng.normal(size=1500), rng.normal(size=(2, 1500))
    tracemalloc.start()
    try:
        attack(x, refs, np.zeros((2, 1500), dtype=bool), x, refs)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


@DEFECTS.of(offline, memory_is_that_of_the_scores)
def a_matrix_of_all_ratios(target, shadow, member, population, shadow_population):
    p, z = (confidence_from_phi(phi) for phi in (target, population))
    x_ref, z_ref = (confidence_from_phi(phi).mean(axis=0) for phi in (shadow, shadow_population))
    return ((p / x_ref)[:, None] / (z / z_ref)[None, :] >= 1).mean(axis=1)


def ranks_members_higher(attack):
    """Members one spread above others: Φ(1/√2)."""
    rng = np.random.default_rng(8)
    members, others, z = rng.normal(1, 1, 5000), rng.normal(0, 1, 5000), rng.normal(size=5000)
    assert auc(attack(members, z), attack(others, z)) == pytest.approx(ndtr(1 / math.sqrt(2)), abs=0.02)


@DEFECTS.of(attack_p, ranks_members_higher)
def minus_the_probability_for_the_loss(phi, population):
    return attack_p(-confidence_from_phi(phi), -confidence_from_phi(population))


def learns_a_small_shift(attack):
    """φ with spread .1 and a shift of .2 within one integer: AUC Φ(√2)."""
    rng = np.random.default_rng(9)
    x, member = rng.normal(size=(2000, 2)), rng.random(2000) < 0.5
    score = attack(0.3 + 0.1 * rng.normal(size=2000) + 0.2 * member, x, member)
    assert auc(score[member], score[~member]) == pytest.approx(ndtr(math.sqrt(2)), abs=0.03)


@DEFECTS.of(quantile_regression, learns_a_small_shift)
def a_target_cast_to_integers(phi, features, member):
    return quantile_regression(phi.astype(int), features, member)


@pytest.mark.parametrize(("right", "check", "mutant"), DEFECTS.cases)
def test_the_defect_fails_the_check_that_the_right_attack_passes(right, check, mutant):
    tell_apart(right, check, mutant)
