"""LiRA: formulas, the identity with the audit of unlearning, no self-inclusion, offline scores, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_ndtr

from attacks import lira, ulira
from attacks.inputs import membership, pair_rows, relative_step, scores
from attacks.moderation import variance_prior

SEEDS = st.integers(0, 10_000)
OPTIONS = [(variance, combine) for variance in lira.VARIANCES for combine in lira.COMBINATIONS]


def auc_error(area, n):
    """Bound on the standard error of an AUC of n against n independent scores."""
    return math.sqrt(max(area * (1 - area), 1 / 6) / n)


def complementary(positive, negative, seed=0):
    """Worlds (k, [Q,] n) as 2 k models: (phi, member, pair), membership drawn per pair and sample."""
    k, n = positive.shape[0], positive.shape[-1]
    mine = np.random.default_rng(seed).random((k, n)) < 0.5
    view = mine if positive.ndim == 2 else mine[:, None]
    first, second = np.where(view, positive, negative), np.where(view, negative, positive)
    phi = np.stack([first, second], axis=1).reshape(2 * k, *positive.shape[1:])
    member = np.stack([mine, ~mine], axis=1).reshape(2 * k, n)
    return phi, member, np.repeat(np.arange(k), 2)


def worlds(k=6, n=40, seed=0, views=None, missing=0.0):
    rng = np.random.default_rng(seed)
    shape = (k, n) if views is None else (k, views, n)
    spread, mean = np.exp(rng.normal(0, 0.5, n)), rng.normal(0, 3, n)
    x, y = rng.normal(size=(2, *shape)) * spread + mean
    x += rng.exponential(1, n)
    for world in (x, y):
        world[rng.random(shape) < missing] = np.nan
    return x, y


def gaussian_worlds(shift, spread=1.0, k=64, n=2000, seed=0):
    """IN N(m_i + shift, spread^2) and OUT N(m_i, 1), with m_i ~ N(0, 3^2)."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(0, 3, n)
    return centre + shift + spread * rng.normal(size=(k, n)), centre + rng.normal(size=(k, n))


# --- the identity: unlearning that does nothing is plain membership
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("missing", [0.0, 0.15])
def test_models_and_masks_give_the_very_numbers_of_the_unlearning_audit(dtype, missing):
    x, y = (w.astype(dtype) for w in worlds(k=7, n=200, seed=1, missing=missing))
    x[:, :5], y[:, 3:8] = 2.0, 1.0  # constant: floors must be the same, too
    phi, member, pair = complementary(x, y)
    high, low = ulira.leave_pair_out(x, y)
    found = lira.leave_pair_out(phi, member, pair)
    expected = np.where(member, np.repeat(high, 2, axis=0), np.repeat(low, 2, axis=0))
    np.testing.assert_array_equal(found, expected)


def test_order_of_models_and_names_of_pairs_do_not_matter():
    phi, member, pair = complementary(*worlds(seed=2))
    order = np.random.default_rng(2).permutation(len(phi))
    names = np.array([f"pair {p}" for p in pair])
    expected = lira.leave_pair_out(phi, member, pair)[order]
    found = lira.leave_pair_out(phi[order], member[order], names[order])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("variance", "combine"), OPTIONS)
def test_leaving_a_pair_out_equals_the_plain_attack_on_the_other_models(variance, combine):
    phi, member, pair = complementary(*worlds(k=5, seed=3, views=2))
    options = {"variance": variance, "combine": combine}
    found = lira.leave_pair_out(phi, member, pair, **options)
    for p in range(5):
        others = pair != p
        expected = lira.online(phi[~others], phi[others], member[others], **options)
        np.testing.assert_allclose(found[~others], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sides", [1, 2])
def test_offline_leaving_a_pair_out_equals_the_plain_attack_on_the_other_models(sides):
    phi, member, pair = complementary(*worlds(k=5, seed=3))
    found = lira.offline_leave_pair_out(phi, member, pair, sides)
    plain = {1: lira.offline_1s, 2: lira.offline_2s}[sides]
    for p in range(5):
        others = pair != p
        expected = plain(phi[~others], phi[others], member[others])
        np.testing.assert_allclose(found[~others], expected, rtol=1e-9, atol=1e-9)


def test_a_pair_that_does_not_split_a_sample_is_not_evidence_for_it():
    phi, member, pair = complementary(*worlds(seed=4))
    gone = phi.copy()
    gone[2:4, 5] = np.nan
    member[2:4, 5] = True
    np.testing.assert_array_equal(
        lira.leave_pair_out(phi, member, pair), lira.leave_pair_out(gone, member, pair)
    )
    assert np.isnan(lira.leave_pair_out(phi, member, pair)[2:4, 5]).all()


# --- formulas
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", lira.VARIANCES)
def test_online_is_the_written_formula(variance):
    rng = np.random.default_rng(5)
    refs, target = rng.normal(size=(20, 30)) * np.exp(rng.normal(0, 0.5, 30)), rng.normal(size=30)
    member = rng.permuted(np.repeat([True, False], 10)[:, None].repeat(30, axis=1), axis=0)
    density = []
    for world in (member, ~member):
        columns = [refs[world[:, i], i] for i in range(30)]
        mean, s2 = np.array([c.mean() for c in columns]), np.array([c.var(ddof=1) for c in columns])
        if variance == "moderated":
            nu0, s0 = variance_prior(s2, 9)
            s2 = np.full(30, s0) if math.isinf(nu0) else (nu0 * s0 + 9 * s2) / (nu0 + 9)
            scale = np.sqrt(s2 * 1.1)
            law = stats.norm(mean, scale) if math.isinf(nu0) else stats.t(nu0 + 9, mean, scale)
        elif variance == "per_sample":
            law = stats.norm(mean, np.sqrt(s2))
        else:
            law = stats.norm(mean, math.sqrt(s2.mean()))
        density.append(law.logpdf(target))
    found = lira.online(target, refs, member, variance=variance)
    np.testing.assert_allclose(found, density[0] - density[1], rtol=1e-9, atol=1e-9)


def test_moderation_has_the_two_gaussians_as_its_limits():
    """Many models and spreads that differ wildly: own variances. Equal spreads: one variance."""
    rng = np.random.default_rng(6)
    member = np.arange(4000) % 2 == 0
    member = np.repeat(member[:, None], 20, axis=1)
    wild = (rng.normal(size=(4000, 20)) + member) * np.geomspace(1e-2, 1e2, 20)
    same = rng.normal(size=(4000, 20)) + member
    for refs, limit in ((wild, "per_sample"), (same, "global")):
        found, expected = (
            lira.online(refs[0], refs[2:], member[2:], variance=v) for v in ("moderated", limit)
        )
        # 2,000 models per world: the prior (nu0 = 0.36, s0^2 = 0.015) still moves a variance of 1e-4 by 3 %,
        # and an LLR of 1.5 by as much.
        np.testing.assert_allclose(found, expected, atol=0.05)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from(OPTIONS))
def test_swapping_in_and_out_negates_and_an_affine_map_changes_nothing(seed, options):
    variance, combine = options
    phi, member, pair = complementary(*worlds(seed=seed, views=2))
    keys = {"variance": variance, "combine": combine}
    found = lira.leave_pair_out(phi, member, pair, **keys)
    np.testing.assert_array_equal(lira.leave_pair_out(phi, ~member, pair, **keys), -found)
    mapped = lira.leave_pair_out(3.7 * phi + 11, member, pair, **keys)
    np.testing.assert_allclose(mapped, found, rtol=1e-6, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_every_sample_may_have_its_own_affine_map_if_it_has_its_own_variance(seed):
    rng = np.random.default_rng(seed)
    phi, member, pair = complementary(*worlds(k=8, seed=seed))
    scale, shift = np.exp(rng.normal(size=40)), rng.normal(size=40)
    found = lira.leave_pair_out(phi, member, pair, variance="per_sample")
    mapped = lira.leave_pair_out(scale * phi + shift, member, pair, variance="per_sample")
    np.testing.assert_allclose(mapped, found, rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from(OPTIONS), st.integers(0, 5), st.sampled_from([1e6, -1e6, 1e-9]))
def test_the_other_score_of_a_poisoned_pair_does_not_notice(seed, options, p, poison):
    """One score of a pair is replaced; the other, judged by the other pairs only, must not move a bit."""
    variance, combine = options
    x, y = worlds(seed=seed, views=2)
    expected = lira.worlds_leave_pair_out(x, y, variance=variance, combine=combine)[1][p]
    x[p] = poison
    found = lira.worlds_leave_pair_out(x, y, variance=variance, combine=combine)[1][p]
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([1, 2]), st.integers(0, 5))
def test_the_offline_score_of_a_poisoned_pair_does_not_notice(seed, sides, p):
    phi, member, pair = complementary(*worlds(seed=seed))
    rows = np.flatnonzero(pair == p)
    expected = lira.offline_leave_pair_out(phi, member, pair, sides)
    phi[rows[0]] = 1e6
    found = lira.offline_leave_pair_out(phi, member, pair, sides)
    np.testing.assert_array_equal(found[rows[1]], expected[rows[1]])


@pytest.mark.parametrize(("variance", "combine"), OPTIONS)
def test_constant_samples_give_finite_evidence(variance, combine):
    x, y = worlds(n=60, seed=7, views=2)
    x[:, :, :10] = 4.0
    x[:, :, 5:10] = y[:, :, 5:10] = 2.0
    high, low = lira.worlds_leave_pair_out(x, y, variance=variance, combine=combine)
    assert np.isfinite(high).all() and np.isfinite(low).all()
    np.testing.assert_array_equal(high[:, 5:10], low[:, 5:10])  # equal scores, equal evidence: ties
    same = np.full((4, 2, 5), 3.0)
    assert not np.any(lira.worlds_leave_pair_out(same, same, variance=variance, combine=combine))


# --- offline
# ---------------------------------------------------------------------------------------------------


def test_offline_scores_are_the_t_prediction():
    rng = np.random.default_rng(14)
    refs, target = rng.normal(size=(12, 50)) * np.exp(rng.normal(0, 1, 50)), rng.normal(size=50)
    member = np.zeros((12, 50), dtype=bool)
    member[:4] = True
    out = refs[4:]
    s2 = out.var(axis=0, ddof=1)
    nu0, s0 = variance_prior(s2, 7)
    assert math.isfinite(nu0)
    scale = np.sqrt((nu0 * s0 + 7 * s2) / (nu0 + 7) * (1 + 1 / 8))
    law = stats.t(nu0 + 7, out.mean(axis=0), scale)
    np.testing.assert_allclose(lira.offline_1s(target, refs, member), -law.logsf(target), rtol=1e-7)
    np.testing.assert_allclose(lira.offline_2s(target, refs, member), -law.logpdf(target), rtol=1e-9)
    refs[:4] = 1e6  # models that trained on the sample are not looked at
    np.testing.assert_allclose(lira.offline_1s(target, refs, member), -law.logsf(target), rtol=1e-7)


@pytest.mark.parametrize("spreads", [0.0, 1.0])
def test_the_one_sided_score_never_saturates(spreads):
    """A plain CDF is 1.0 from 8 deviations on, and ties the very scores that a low FPR is about."""
    rng = np.random.default_rng(15)
    refs = rng.normal(size=(40, 50)) * np.exp(rng.normal(0, spreads, 50))
    target = np.concatenate([-np.geomspace(3, 0.1, 10), np.geomspace(0.1, 1e6, 300)])
    found = lira.offline_1s(np.repeat(target[:, None], 50, axis=1), refs, np.zeros(refs.shape, dtype=bool))
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=0) > 0).all()


def test_the_normal_tail_is_exact():
    z = np.array([-30.0, -1.0, 0.0, 2.0, 100.0])
    np.testing.assert_array_equal(lira._log_upper_tail(z, np.array(math.inf)), log_ndtr(-z))
    np.testing.assert_allclose(lira._log_upper_tail(z, np.array(1e9))[1:4], log_ndtr(-z)[1:4], rtol=1e-6)


def test_the_far_tail_continues_the_exact_one(monkeypatch):
    """The asymptote takes over below 1e-290; taken over from 1e-100 on, it meets what is still exact."""
    nu = np.array([[20.0], [200.0], [1e4]])
    z = np.geomspace(5, 1e15, 400) * np.ones((3, 1))
    exact = lira._log_upper_tail(z, nu)
    monkeypatch.setattr(lira, "FAR_TAIL", 1e-100)
    both = (exact < math.log(1e-100)) & (exact > math.log(1e-290))
    assert both.any(axis=1).all()
    np.testing.assert_allclose(lira._log_upper_tail(z, nu)[both], exact[both], atol=1 / 20**2)


# --- bad input
# ---------------------------------------------------------------------------------------------------


def test_few_models_and_missing_targets_are_nan():
    rng = np.random.default_rng(18)
    refs, target = rng.normal(size=(6, 4)), rng.normal(size=4)
    member = np.repeat([True, False], 3)[:, None].repeat(4, axis=1)
    refs[:2, 0] = np.nan  # one IN model is left
    target[1] = np.nan
    found = lira.online(target, refs, member)
    assert np.isnan(found).tolist() == [True, True, False, False]
    assert np.isnan(lira.offline_1s(target, refs, member)).tolist() == [False, True, False, False]
    assert lira.online(np.stack([target, target]), refs, member).shape == (2, 4)
    assert lira.online(target[None], refs[:, None], member).shape == (4,)


PHI, MEMBER, PAIR = complementary(*worlds(k=3, n=5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lira.leave_pair_out(PHI, MEMBER, np.arange(6)), "id 0 has 1 models"),
        (lambda: lira.leave_pair_out(PHI, MEMBER, [0, 0, 0, 0, 1, 1]), "id 0 has 4 models"),
        (lambda: lira.leave_pair_out(PHI, MEMBER, PAIR[:4]), "pair: shape"),
        (lambda: lira.leave_pair_out(PHI[:4], MEMBER[:4], PAIR[:4]), "pairs: 2 is too few, at least 3"),
        (lambda: lira.leave_pair_out(PHI, MEMBER[:, :3], PAIR), "member: shape"),
        (lambda: lira.leave_pair_out(PHI, MEMBER + 2, PAIR), "other than 0 and 1"),
        (lambda: lira.leave_pair_out(PHI / 0.0, MEMBER, PAIR), "not finite"),
        (lambda: lira.leave_pair_out(PHI[0], MEMBER, PAIR), "2 or 3 dimensions"),
        (lambda: lira.leave_pair_out(PHI, MEMBER, PAIR, variance="fixed"), "variance: 'fixed' is unknown"),
        (lambda: lira.leave_pair_out(PHI, MEMBER, PAIR, combine="sum"), "combine: 'sum' is unknown"),
        (lambda: lira.offline_leave_pair_out(PHI, MEMBER, PAIR, 3), "sides: 3"),
        (lambda: lira.worlds_leave_pair_out(PHI, PHI[:, :2]), "not one shape"),
        (lambda: lira.online(PHI[0, :3], PHI, MEMBER), "target: shape"),
        (lambda: lira.online(PHI[0], PHI, np.ones_like(MEMBER)), "no sample has 2 models"),
        (lambda: scores([np.nan], "x", (1,), missing=False), "x: 1 of 1 scores are not finite"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_helpers():
    assert membership([0, 1], (2,)).tolist() == [False, True]
    assert pair_rows([7, 3, 3, 7], 4).tolist() == [[1, 2], [0, 3]]
    assert relative_step(np.float32(1)) == relative_step(np.float64(1)) == np.finfo(np.float32).eps
    assert relative_step(np.float16(1), np.float32(1)) == np.finfo(np.float16).eps
