"""Twenty properties of the audit, numbered as in its specification, for whatever arrays it is given: 1 to 13.

Older tests hold single attacks to parts of these; here every number has a test of its own.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.special import softmax

from attacks import lira, rmia, ulira
from attacks.entropy import modified_entropy
from attacks.metrics import auc, clopper_pearson, roc, tpr_at_fpr
from attacks.moderation import VariancePrior, log_predictive, moderated_variance
from attacks.moments import Moments, merge, total
from attacks.quantile_regression import pinball_loss
from attacks.scores import loss_from_phi, phi_from_logits
from attacks.update_leakage import update_leakage
from orchestrator import schema
from orchestrator.store import Store, new_part, score_folder, score_rows
from tests.test_attacks_ulira import refit

SEEDS = st.integers(0, 2**31)
TIED = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=60).map(np.array)
Z = arrays(np.float64, st.tuples(st.just(4), st.integers(2, 7)), elements=st.floats(-1e4, 1e4))
few = settings(max_examples=12, deadline=None)
many = settings(max_examples=40, deadline=None)


def worlds(seed, k=6, n=25, missing=0.0):
    """φ (k, n) of two worlds with means, spreads and gaps of their own for every sample."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, k, n)) * np.exp(rng.normal(0, 0.7, n)) + rng.normal(0, 3, n)
    x += rng.exponential(1, n)
    for world in (x, y):
        world[rng.random((k, n)) < missing] = np.nan
    return x, y


def exact_phi(row, label):
    """log p − log(1 − p) of exponentials with 40 digits."""
    with localcontext() as context:
        context.prec = 40
        terms = [Decimal(float(z)).exp() for z in row]
        p = terms.pop(label) / sum(terms)  # over 1 − p
        return float(p.ln())


@many
@given(Z, st.floats(-100, 100), st.floats(0.125, 8))
def test_01_phi_is_the_log_odds_of_the_true_class(z, shift, step):
    y = np.arange(4) % z.shape[1]
    phi = phi_from_logits(z, y)
    assert np.isfinite(phi).all()
    exact = [exact_phi(row, label) for row, label in zip(z, y, strict=True)]
    np.testing.assert_allclose(phi, exact, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(phi_from_logits(z + shift, y), phi, atol=1e-8)
    up = z.copy()
    up[np.arange(4), y] += step
    assert (phi_from_logits(up, y) > phi).all() and (phi_from_logits(z + step - (up - z), y) <= phi).all()
    loss = -torch.log_softmax(torch.from_numpy(z), dim=1).numpy()[np.arange(4), y]
    np.testing.assert_allclose(loss_from_phi(phi), loss, rtol=1e-9, atol=1e-9)
    if z.shape[1] == 2:
        np.testing.assert_array_equal(phi, z[np.arange(4), y] - z[np.arange(4), 1 - y])


@many
@given(TIED, TIED, SEEDS)
def test_02_auc_is_the_count_of_all_pairs(x, y, seed):
    rng = np.random.default_rng(seed)
    above = x[:, None] - y
    assert auc(x, y) == np.mean((above > 0) + 0.5 * (above == 0))
    assert auc(np.sinh(x), np.sinh(y)) == auc(rng.permutation(x), rng.permutation(y)) == auc(x, y)
    assert auc(-x, -y) == pytest.approx(1 - auc(x, y), abs=1e-15)
    assert auc(0 * x, 0 * y) == 0.5


@many
@given(TIED, TIED, st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_03_tpr_at_fpr_keeps_its_word(x, y, alphas):
    points = [tpr_at_fpr(x, y, alpha) for alpha in sorted(alphas)]
    fpr, tpr, _ = roc(x, y)
    for point in points:
        assert point.fpr <= point.alpha and point.tpr == tpr[fpr <= point.alpha].max()
        assert not math.isnan(point.tpr)
    assert all(a.tpr <= b.tpr for a, b in pairwise(points))
    assert tpr_at_fpr(x, y, 1.0).tpr == 1.0


@settings(max_examples=4, deadline=None)
@given(SEEDS, st.integers(4, 8), st.sampled_from([0.0, 0.2]))
def test_04_leaving_a_pair_out_is_fitting_again(seed, k, missing):
    x, y = worlds(seed, k, 12, missing)
    expected = refit(x, y, strict=True)
    for attack in (ulira.leave_pair_out, lira.worlds_leave_pair_out):
        for found, by_hand in zip(attack(x, y), expected, strict=True):
            np.testing.assert_allclose(found, by_hand, rtol=1e-9, atol=1e-9)


def attack_rmia(x, y):
    phi, member = (
        np.concatenate([x, y]),
        np.repeat([True, False], len(x))[:, None] & np.ones(x.shape[1], bool),
    )
    population = np.random.default_rng(0).normal(size=(2 * len(x), 30))
    found = rmia.leave_pair_out(phi, member, np.tile(np.arange(len(x)), 2), population)
    return found[: len(x)], found[len(x) :]


def attack_joint(x, y):
    both = [np.stack([w, w[:, ::-1]], axis=1) for w in (x, y)]
    return lira.worlds_leave_pair_out(*both, combine="joint")


ATTACKS = {
    "ulira": ulira.leave_pair_out,
    "lira, own variances": lambda x, y: lira.worlds_leave_pair_out(x, y, variance="per_sample"),
    "lira, one variance": lambda x, y: lira.worlds_leave_pair_out(x, y, variance="global"),
    "lira, joint": attack_joint,
    "update leakage": lambda x, y: update_leakage(x, x[:, ::-1], y, y[:, ::-1]),
    "rmia": attack_rmia,
}


@pytest.mark.parametrize("name", ATTACKS)
@few
@given(SEEDS, st.integers(0, 5), st.sampled_from([1e6, -1e6, 0.0]))
def test_05_no_score_is_judged_by_a_fit_that_holds_it(name, seed, p, poison):
    """One of the two scores of a pair is poisoned; the other, judged by the same fits, must not move."""
    x, y = worlds(seed)
    expected = ATTACKS[name](x, y)[1][p]
    x[p] = poison
    np.testing.assert_array_equal(ATTACKS[name](x, y)[1][p], expected)
    if name == "rmia":
        return  # a pair whose samples are missing still has its population
    x[p] = np.nan  # missing: the pair judges nobody, and nobody judges it
    for found, without in zip(
        ATTACKS[name](x, y), ATTACKS[name](np.delete(x, p, axis=0), np.delete(y, p, axis=0)), strict=True
    ):
        assert np.isnan(found[p]).all()
        np.testing.assert_allclose(np.delete(found, p, axis=0), without, rtol=1e-9, atol=1e-9)


@few
@given(SEEDS, st.floats(0.1, 10), st.floats(-50, 50))
def test_06_swapping_worlds_negates_and_units_do_not_matter(seed, scale, shift):
    x, y = worlds(seed)
    own = np.random.default_rng(seed)
    a, b = np.exp(own.normal(size=25)), own.normal(0, 10, 25)
    for name in ("ulira", "lira, own variances", "lira, one variance"):
        attack = ATTACKS[name]
        high, low = attack(x, y)
        swapped = attack(y, x)
        np.testing.assert_array_equal((swapped[1], swapped[0]), (-high, -low))
        np.testing.assert_allclose(attack(scale * x + shift, scale * y + shift), (high, low), atol=1e-5)
        np.testing.assert_allclose(attack(x + b, y + b), (high, low), atol=1e-5)
    attack = ATTACKS["lira, own variances"]  # which knows of no other sample
    np.testing.assert_allclose(attack(a * x + b, a * y + b), attack(x, y), rtol=1e-6, atol=1e-6)


@few
@given(SEEDS, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_07_moderation_lies_between_its_limits(seed, nu0, s0):
    rng = np.random.default_rng(seed)
    s2, k = rng.chisquare(3, 30) * 10 ** rng.normal(size=30), rng.integers(2, 40, 30)
    x, mean = rng.normal(0, 3, (2, 30))
    shrunk = moderated_variance(s2, k - 1, VariancePrior(nu0, s0))
    slack = 1 + 1e-12
    assert (shrunk >= np.minimum(s2, s0) / slack).all() and (shrunk <= np.maximum(s2, s0) * slack).all()
    own, same = (log_predictive(x, mean, s2, k, VariancePrior(nu, s0)) for nu in (1e-15, 1e12))
    width = np.sqrt(1 + 1 / k)
    np.testing.assert_allclose(own, stats.t.logpdf(x, k - 1, mean, np.sqrt(s2) * width), rtol=1e-6, atol=1e-6)
    expected = stats.norm.logpdf(x, mean, math.sqrt(s0) * width)
    np.testing.assert_allclose(same, expected, rtol=1e-3, atol=1e-4)
    a, b = worlds(seed)
    a[:, :5], b[:, 2:8] = 3.0, -1.0
    for name in list(ATTACKS)[:4]:
        assert np.isfinite(ATTACKS[name](a, b)).all()


@pytest.mark.parametrize(("chunk", "parts"), [(7, 1), (64, 3), (1000, 10)])
def test_08_storage_does_not_change_a_metric(tmp_path, monkeypatch, chunk, parts):
    """Other chunks, other parts, other order: the same bits; half precision: within 1e-4."""
    monkeypatch.setattr(schema, "CHUNK", chunk)
    x, y = (world.astype(np.float32) for world in worlds(8, 10, 500))
    names = [f"{i:02}" for i in np.random.default_rng(0).permutation(20)]
    phi = dict(zip(names, np.concatenate([x, y]), strict=True))
    store, folder, runs = Store.create(str(tmp_path)), score_folder("digits", "cnn_small", "base", ""), []
    for i in range(parts):
        part, held = new_part(), sorted(names)[i::parts]
        rows = [row for name in held for row in score_rows(name, phi[name], phi[name] > 0)]
        np.random.default_rng(i).shuffle(rows)
        store.write_part("scores", rows, part, folder)
        runs += [{"task_id": name, "part": part} for name in held]
    found = store.views(pa.Table.from_pylist(runs), folder)
    back = np.stack([found[name][0] for name in names])
    stored = ulira.compare(back[:10], back[10:], replicates=20)
    given_ = ulira.compare(x, y, replicates=20)
    assert (stored.auc, stored.tpr, stored.auc_low) == (given_.auc, given_.tpr, given_.auc_low)
    order = np.random.default_rng(1).permutation(500)
    mixed = ulira.compare(back[:10, order], back[10:, order], replicates=20)
    assert (mixed.auc, mixed.tpr) == (given_.auc, given_.tpr)
    half = ulira.compare(x.astype(np.float16), y.astype(np.float16), replicates=20)
    assert half.auc == pytest.approx(given_.auc, abs=1e-4)


@many
@given(SEEDS, st.integers(3, 12), st.floats(-1e6, 1e6))
def test_09_moments_merge_in_any_grouping(seed, k, centre):
    x, _ = worlds(seed, k, 9, missing=0.3)
    x += centre
    cuts = sorted(np.random.default_rng(seed).integers(0, k + 1, 2))
    a, b, c = (total(part, ~np.isnan(part)) for part in np.split(x, cuts))
    number = (~np.isnan(x)).sum(axis=0)
    many = number >= 2
    whole = total(x, ~np.isnan(x))
    for grouping in (whole, merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
        assert isinstance(grouping, Moments)
        np.testing.assert_array_equal(grouping.number, number)
        np.testing.assert_allclose(grouping.mean[many], np.nanmean(x[:, many], axis=0), rtol=1e-9, atol=1e-9)
        variance = np.nanvar(x[:, many], axis=0, ddof=1)
        np.testing.assert_allclose(grouping.variance()[many], variance, rtol=1e-6, atol=1e-9)


@few
@given(SEEDS, st.floats(0.2, 5), st.floats(1, 3), st.floats(0, 1))
def test_10_rmia_is_a_share_that_falls_with_gamma(seed, gamma, factor, a):
    rng = np.random.default_rng(seed)
    x, refs, z, refs_z = (rng.normal(0, 2, s) for s in (12, (5, 12), 40, (5, 40)))
    member = np.zeros((5, 12), dtype=bool)
    member[:2] = True
    p, p_refs, pz, pz_refs = (1 / (1 + np.exp(-v)) for v in (x, refs, z, refs_z))
    out, out_z = p_refs[2:].mean(axis=0), pz_refs.mean(axis=0)

    def brute(reference, reference_z):
        return ((p / reference)[:, None] / (pz / reference_z) >= gamma).mean(axis=1)

    given_ = x, refs, member, z, refs_z
    for share, mean in (
        (a, lambda m: 0.5 * ((1 + a) * m + 1 - a)),
        (1.0, lambda m: m),
        (0.0, lambda m: 0.5 * (m + 1)),
    ):
        found = rmia.offline(*given_, gamma=gamma, a=share)
        np.testing.assert_allclose(found, brute(mean(out), mean(out_z)), atol=1e-12)
    middle = 0.5 * (p_refs[:2].mean(axis=0) + out)
    online = rmia.online(*given_, gamma=gamma)
    np.testing.assert_allclose(online, brute(middle, out_z), atol=1e-12)
    assert ((online >= 0) & (online <= 1)).all()
    assert (rmia.online(*given_, gamma=gamma * factor) <= online).all()


@many
@given(arrays(np.float64, (5, 4), elements=st.floats(-12, 12)), st.integers(0, 3))
def test_11_modified_entropy_is_its_definition(z, label):
    y, p = np.full(5, label), softmax(z, axis=1)
    rest = np.delete(p, label, axis=1)
    away = np.array([[row.sum() - row[j] for j in range(4)] for row in p])  # 1 − p without cancellation
    logs = np.delete(np.log(away), label, axis=1)
    expected = -away[:, label] * np.log(p[:, label]) - (rest * logs).sum(axis=1)
    found = modified_entropy(z, y)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert (found >= 0).all()
    two = softmax(z[:, :2], axis=1)
    np.testing.assert_allclose(
        modified_entropy(z[:, :2], np.zeros(5, dtype=int)),
        -2 * two[:, 1] * np.log(two[:, 0]),
        rtol=1e-9,
        atol=1e-12,
    )


@many
@given(TIED, st.floats(0.01, 0.99))
def test_12_the_pinball_minimiser_is_the_sample_quantile(phi, alpha):
    """Among all constants, the smallest loss is that of the quantile of level 1 − α (inverted CDF)."""
    best = float(np.quantile(phi, 1 - alpha, method="inverted_cdf"))
    candidates = np.concatenate([phi, phi + 0.3, [phi.min() - 1, phi.max() + 1, phi.mean()]])
    losses = [pinball_loss(phi, np.full(phi.size, q), alpha) for q in candidates]
    assert pinball_loss(phi, np.full(phi.size, best), alpha) <= min(losses) + 1e-12


@many
@given(st.integers(1, 30), st.integers(0, 500).map(lambda i: i / 500), st.floats(0.5, 0.99))
def test_13_clopper_pearson_covers_at_least_its_level(n, rate, level):
    limits = np.array([clopper_pearson(k, n, level) for k in range(n + 1)])
    inside = (limits[:, 0] <= rate + 1e-12) & (rate - 1e-12 <= limits[:, 1])
    assert stats.binom.pmf(np.arange(n + 1), n, rate)[inside].sum() >= level - 1e-9
    k = round(rate * n)
    exact = stats.binomtest(k, n).proportion_ci(level, "exact")
    assert limits[k] == pytest.approx((exact.low, exact.high), abs=1e-8)
