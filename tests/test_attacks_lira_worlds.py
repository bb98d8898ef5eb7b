"""LiRA in worlds whose answers are known: closed forms, nulls, several views, planted defects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from attacks import lira
from attacks.metrics import auc
from tests.test_attacks_lira import OPTIONS, auc_error, complementary, gaussian_worlds, worlds

# --- analytic worlds: N(d, 1) against N(0, 1), AUC = Phi(d / sqrt 2)
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", lira.VARIANCES)
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_equal_spreads_reach_the_closed_form(variance, shift):
    x, y = gaussian_worlds(shift)
    high, low = lira.worlds_leave_pair_out(x, y, variance=variance)
    best, error = float(ndtr(shift / math.sqrt(2))), 4 * auc_error(0.5, x.size)
    # Means of 63 models instead of known ones, and per-sample variances: at most 0.025 is lost.
    assert best - 0.025 - error < auc(high.ravel(), low.ravel()) < best + error


def test_equal_means_and_two_spreads_need_and_have_two_sides():
    """Spread ratio 2: the best statistic is |x|, with AUC 2/pi arctan 2; one side alone says nothing."""
    x, y = gaussian_worlds(0.0, spread=2.0)
    phi, member, pair = complementary(x, y)
    best, error = 2 / math.pi * math.atan(2), 4 * auc_error(0.7, x.size)
    for score in (
        lira.leave_pair_out(phi, member, pair),
        lira.leave_pair_out(phi, member, pair, variance="global"),
        lira.offline_leave_pair_out(phi, member, pair, sides=2),
    ):
        assert best - 0.015 < auc(score[member], score[~member]) < best + error
    one_sided = lira.offline_leave_pair_out(phi, member, pair, sides=1)
    assert auc(one_sided[member], one_sided[~member]) == pytest.approx(0.5, abs=2 * error)


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_offline_sides_see_over_forgetting_differently(shift):
    x, y = gaussian_worlds(shift)
    phi, member, pair = complementary(x, y)
    one, two = (lira.offline_leave_pair_out(phi, member, pair, sides) for sides in (1, 2))
    # One side knows the difficulty of the sample but for its mean of 63 models: AUC Phi(d / sqrt 2).
    expected = float(ndtr(shift / math.sqrt(2)))
    assert auc(one[member], one[~member]) == pytest.approx(expected, abs=0.01)
    # |N(d, 1)| > |N(0, 1)|: both (x + y) and (x - y) of one sign; these are independent N(d, 2).
    p = float(ndtr(shift / math.sqrt(2)))
    assert auc(two[member], two[~member]) == pytest.approx(p * p + (1 - p) ** 2, abs=0.01)


@pytest.mark.parametrize("k", [3, 4, 16])
@pytest.mark.parametrize(("variance", "combine"), OPTIONS)
def test_a_null_world_is_one_half_however_few_the_pairs(k, variance, combine):
    rng = np.random.default_rng(8)
    n = 40_000 // k
    centre, spread = rng.normal(0, 3, n), np.exp(rng.normal(0, 0.5, n))
    x, y = centre + spread * rng.normal(size=(2, k, 2, n))
    high, low = lira.worlds_leave_pair_out(x, y, variance=variance, combine=combine)
    assert auc(high.ravel(), low.ravel()) == pytest.approx(0.5, abs=4 * auc_error(0.5, k * n))


@pytest.mark.parametrize("sides", [1, 2])
def test_an_offline_null_world_is_one_half(sides):
    x, y = gaussian_worlds(0.0, k=4, n=10_000)
    phi, member, pair = complementary(x, y)
    score = lira.offline_leave_pair_out(phi, member, pair, sides)
    assert auc(score[member], score[~member]) == pytest.approx(0.5, abs=4 * auc_error(0.5, x.size))


# --- several views
# ---------------------------------------------------------------------------------------------------


def view_worlds(shift, correlation, k=48, n=1500, seed=9):
    """Views with unit variances, the given correlation (Q, Q) and the given shift (Q,) between the worlds."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(correlation)
    noise = np.einsum("qr,wkrn->wkqn", root, rng.normal(size=(2, k, len(root), n)))
    noise += rng.normal(0, 2, n)
    noise[0] += np.asarray(shift)[:, None]
    return noise[0], noise[1]


def equicorrelated(views, rho):
    return (1 - rho) * np.eye(views) + rho


@pytest.mark.parametrize(("views", "rho"), [(2, 0.0), (2, 0.8), (4, 0.5)])
def test_equal_views_are_worth_the_closed_form(views, rho):
    """d_Q = d sqrt(Q / (1 + (Q - 1) rho)): a plain mean is best here; joint must reach it."""
    d = 0.8
    x, y = view_worlds(np.full(views, d), equicorrelated(views, rho))
    best = float(ndtr(d * math.sqrt(views / (1 + (views - 1) * rho)) / math.sqrt(2)))
    error = 4 * auc_error(0.5, x[:, 0].size)
    for combine in lira.COMBINATIONS:
        high, low = lira.worlds_leave_pair_out(x, y, combine=combine)
        assert best - 0.025 - error < auc(high.ravel(), low.ravel()) < best + error, combine


def test_unequal_views_need_their_covariance():
    """Shift in one of two strongly correlated views: d^2 = shift' C^-1 shift = 1 / (1 - rho^2), not 1."""
    rho = 0.9
    x, y = view_worlds([1.0, 0.0], equicorrelated(2, rho))
    error = 4 * auc_error(0.5, x[:, 0].size)
    best = float(ndtr(math.sqrt(1 / (1 - rho**2)) / math.sqrt(2)))
    # The mean LLR is (x_1 - 1/2) / 2: it has the power of the first view alone.
    mean_form = float(ndtr(1 / math.sqrt(2)))
    found = {
        c: auc(*(w.ravel() for w in lira.worlds_leave_pair_out(x, y, combine=c))) for c in ("mean", "joint")
    }
    assert best - 0.02 - error < found["joint"] < best + error
    assert mean_form - 0.02 - error < found["mean"] < mean_form + error


def test_the_joint_attack_reads_a_change_of_correlation_alone():
    """Same means and variances, correlation 0.9 against -0.9: no single view says anything."""
    x, _ = view_worlds([0.0, 0.0], equicorrelated(2, 0.9), seed=10)
    _, y = view_worlds([0.0, 0.0], np.array([[1.0, -0.9], [-0.9, 1.0]]), seed=10)
    oracle = np.random.default_rng(0).normal(size=(2, 400_000)) * np.sqrt([[1.9], [0.1]])
    # Along and across the diagonal, LLR is proportional to u^2 - v^2, and the other world swaps u and v.
    best = auc(oracle[0] ** 2 - oracle[1] ** 2, oracle[1] ** 2 - oracle[0] ** 2)
    joint, mean = (lira.worlds_leave_pair_out(x, y, combine=c) for c in ("joint", "mean"))
    assert best - 0.01 < auc(*(w.ravel() for w in joint)) < best + 4 * auc_error(0.9, x[:, 0].size)
    # Not exactly one half: the errors of the fitted means are correlated as the scores are.
    assert abs(auc(*(w.ravel() for w in mean)) - 0.5) < 0.03


@pytest.mark.parametrize("variance", ["per_sample", "global"])
def test_one_view_alone_or_twice_is_one_view(variance):
    x, y = worlds(k=8, n=100, seed=11)
    once = lira.worlds_leave_pair_out(x, y, variance=variance)
    alone = lira.worlds_leave_pair_out(x[:, None], y[:, None], variance=variance, combine="joint")
    twice = [np.stack([w, w], axis=1) for w in (x, y)]
    mean = lira.worlds_leave_pair_out(*twice, variance=variance)
    joint = lira.worlds_leave_pair_out(*twice, variance=variance, combine="joint")
    for expected, a, m, j in zip(once, alone, mean, joint, strict=True):
        np.testing.assert_allclose(a, expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(m, expected)
        # Copies have no covariance with an inverse; shrinkage gives one that counts them (nearly) once, up
        # to a constant from the two determinants, which no ROC sees.
        assert np.corrcoef(j.ravel(), expected.ravel())[0, 1] > 0.99


def test_shrinkage_is_the_written_formula_and_vanishes_with_data():
    rng = np.random.default_rng(12)
    root = np.linalg.cholesky(equicorrelated(3, 0.6))
    weights = []
    for number in (10, 100, 10_000):
        z = rng.normal(size=(number, 3)) @ root.T
        z /= np.sqrt((z**2).mean(axis=0))
        found = lira.shrunk_correlation(z.T @ z, (z**2).T @ z**2, number)
        noise = signal = 0.0
        for a, b in ((0, 1), (0, 2), (1, 2)):
            product = z[:, a] * z[:, b]
            noise += product.var() / number
            signal += product.mean() ** 2
        weights.append(noise / signal)
        expected = (1 - weights[-1]) * (z.T @ z / number) + weights[-1] * np.eye(3)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert weights[0] > weights[1] > weights[2] > 0
    assert weights[2] < 0.001


def test_a_missing_view_removes_the_score_and_nothing_else():
    x, y = worlds(k=6, seed=13, views=2)
    x[1, 0, :7] = np.nan
    other, also = x.copy(), y.copy()
    other[1, :, :7] = also[1, :, :7] = np.nan
    for combine in lira.COMBINATIONS:
        found = lira.worlds_leave_pair_out(x, y, combine=combine)
        expected = lira.worlds_leave_pair_out(other, also, combine=combine)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.array_equal(np.flatnonzero(np.isnan(a).any(axis=0)), np.arange(7))


# --- planted defects: each is told apart by a known answer
# ---------------------------------------------------------------------------------------------------


def fixed_variance_of_the_in_world_uncentred(x, y):
    """The slip of public code: one spread for both worlds, of IN scores around the mean of all samples."""
    spread = x.std()
    both = []
    for p in range(len(x)):
        rows = np.arange(len(x)) != p
        m1, m0 = x[rows].mean(axis=0), y[rows].mean(axis=0)
        both.append([((w[p] - m0) ** 2 - (w[p] - m1) ** 2) / (2 * spread**2) for w in (x, y)])
    return np.array([b[0] for b in both]), np.array([b[1] for b in both])


def test_defect_one_uncentred_spread_for_both_worlds_misses_a_change_of_spread():
    x, y = gaussian_worlds(0.0, spread=2.0)
    right = auc(*(w.ravel() for w in lira.worlds_leave_pair_out(x, y, variance="global")))
    wrong = auc(*(w.ravel() for w in fixed_variance_of_the_in_world_uncentred(x, y)))
    assert right > 0.69 and wrong < 0.53


def test_defect_uncentred_spreads_of_two_worlds_are_told_apart_by_the_closed_form():
    """Not centred, both spreads are about that of the sample means (3), and the ratio 2 disappears."""
    x, y = gaussian_worlds(0.0, spread=2.0)
    s1, s0 = x.std(), y.std()
    m1, m0 = x.mean(axis=0), y.mean(axis=0)
    wrong = [stats.norm.logpdf(w, m1, s1) - stats.norm.logpdf(w, m0, s0) for w in (x, y)]
    sums = [w.sum() for w in wrong]
    right = [w.sum() for w in lira.worlds_leave_pair_out(x, y, variance="global")]
    # Mean LLR of the IN world is KL(N(0, 4) | N(0, 1)) = 1.5 - log 2 nats, of OUT -(log 2 - 3/8).
    assert right[0] / x.size == pytest.approx(1.5 - math.log(2), rel=0.05)
    assert right[1] / x.size == pytest.approx(0.375 - math.log(2), rel=0.05)
    assert sums[0] / x.size < 0.5 * (1.5 - math.log(2))


def test_defect_a_tiny_addition_to_the_deviation_is_no_floor():
    """Constant in IN: with 1e-30 a score one rounding step away has a log-density of -1e45 or so."""
    x = np.full((8, 50), 5.0, dtype=np.float32)
    x[0] = np.nextafter(np.float32(5), np.float32(6))
    y = np.random.default_rng(16).normal(0, 1, (8, 50)).astype(np.float32)
    m, s = x[1:].mean(axis=0), x[1:].std(axis=0) + 1e-30
    with np.errstate(over="ignore", divide="ignore"):
        naive = stats.norm.logpdf(x[0].astype(float), m, s)
    assert (naive < -1e40).all()
    high, low = lira.worlds_leave_pair_out(x, y)
    assert high[0].min() > low.max()


def test_defect_views_drawn_anew_for_every_model_lose_power():
    """View q must mean the same crop in every model: otherwise its effect on phi becomes spread."""
    rng = np.random.default_rng(17)
    k, q, n = 32, 2, 1000
    effect = rng.normal(0, 2, (8, n))  # of 8 possible crops
    x, y = rng.normal(size=(2, k, q, n)) + np.array([1.0, 0.0])[:, None, None, None]
    fixed = auc(*(w.ravel() for w in lira.worlds_leave_pair_out(x + effect[:q], y + effect[:q])))
    redrawn = [w + effect[rng.integers(0, 8, (k, q))] for w in (x, y)]
    lost = auc(*(w.ravel() for w in lira.worlds_leave_pair_out(*redrawn)))
    assert fixed == pytest.approx(float(ndtr(1.0)), abs=0.02)  # d sqrt 2 / sqrt 2
    assert lost < fixed - 0.1


def test_defect_leaving_out_the_model_but_not_its_complement_reveals_the_label():
    """The counts of the two worlds then differ by one, in the direction of the label."""
    x, y = gaussian_worlds(0.0, k=4, n=5000)
    phi, member, pair = complementary(x, y)
    wrong = np.array(
        [
            lira.online(phi[m], np.delete(phi, m, axis=0), np.delete(member, m, axis=0))
            for m in range(len(phi))
        ]
    )
    right = lira.leave_pair_out(phi, member, pair)
    assert auc(wrong[member], wrong[~member]) < 0.47
    assert auc(right[member], right[~member]) == pytest.approx(0.5, abs=4 * auc_error(0.5, x.size))


def test_defect_scoring_shadows_by_themselves_finds_leakage_where_none_is():
    x, y = gaussian_worlds(0.0, k=16, n=1000)
    phi, member, _ = complementary(x, y)
    wrong = lira.online(phi, phi, member)
    assert auc(wrong[member], wrong[~member]) > 0.55
