"""Attack-P, attack-R, modified entropy and the gap attack: definitions, closed forms, planted defects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp, ndtr, softmax

from attacks.attack_p import attack_p
from attacks.attack_r import attack_r, sablayrolles, watson
from attacks.correctness import correct_from_logits, correctness
from attacks.entropy import class_thresholds, entropy, margin, modified_entropy
from attacks.loss_threshold import loss_threshold
from attacks.metrics import auc, balanced_accuracy
from attacks.scores import loss_from_phi, phi_from_logits

SEEDS = st.integers(0, 10_000)


# --- attack-P
# ---------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(SEEDS)
def test_attack_p_is_the_share_of_higher_losses(seed):
    rng = np.random.default_rng(seed)
    x, z = np.round(rng.normal(size=30), 1), np.round(rng.normal(size=40), 1)
    x[0] = np.nan
    with np.errstate(invalid="ignore"):
        loss = [loss_from_phi(phi) for phi in (x, z)]
    expected = np.where(np.isnan(x), np.nan, (loss[1][None, :] >= loss[0][:, None]).mean(axis=1))
    np.testing.assert_array_equal(attack_p(x, z), expected)


def test_attack_p_is_the_loss_threshold_within_a_model_and_better_between_models():
    """Eight models whose scores have levels of their own: pooled, one threshold sees mostly the levels."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 5, (8, 1))
    members, others = level + rng.normal(1, 1, (8, 2000)), level + rng.normal(0, 1, (8, 2000))
    z = level + rng.normal(size=(8, 5000))
    high, low = attack_p(members, z), attack_p(others, z)
    np.testing.assert_array_equal(high[3], attack_p(members[3], z[3]))
    best = float(ndtr(1 / math.sqrt(2)))
    # Levels differ by sqrt(2 * 25) on average: a threshold is left with d / sqrt(1 + 25) of the shift of 1.
    assert loss_threshold(members.ravel(), others.ravel()) < 0.62
    assert auc(high.ravel(), low.ravel()) == pytest.approx(best, abs=0.01)
    assert auc(high[0], low[0]) == pytest.approx(loss_threshold(members[0], others[0]), abs=0.001)


def test_attack_p_of_unseen_samples_is_uniform():
    rng = np.random.default_rng(1)
    found = attack_p(rng.normal(size=2000), rng.normal(size=2000))
    assert np.abs(np.sort(found) - np.linspace(0, 1, 2000)).max() < 1.63 * math.sqrt(2 / 2000)  # KS, 1 %


def test_defect_ranking_by_minus_the_probability_is_backwards():
    """A public port negates the probability of the true class, as if it were a loss."""
    rng = np.random.default_rng(2)
    members, others, z = rng.normal(1, 1, 5000), rng.normal(0, 1, 5000), rng.normal(size=5000)
    right = auc(attack_p(members, z), attack_p(others, z))
    wrong = auc(attack_p(-members, -z), attack_p(-others, -z))
    assert right == pytest.approx(float(ndtr(1 / math.sqrt(2))), abs=0.02)
    assert wrong == pytest.approx(1 - right, abs=1e-3)


# --- attack-R and calibration
# ---------------------------------------------------------------------------------------------------


def shadows(models=9, n=40, seed=3, missing=0.1):
    rng = np.random.default_rng(seed)
    refs, target = np.round(rng.normal(size=(models, n)), 1), np.round(rng.normal(size=n), 1)
    refs[rng.random(refs.shape) < missing] = np.nan
    return target, refs, rng.random((models, n)) < 0.5


@settings(max_examples=25)
@given(SEEDS)
def test_attack_r_and_calibrations_are_the_written_formulas(seed):
    target, refs, member = shadows(seed=seed)
    target[0], member[:, 1], member[:, 2] = np.nan, True, False
    found = attack_r(target, refs, member), watson(target, refs, member), sablayrolles(target, refs, member)
    for i, x in enumerate(target):
        inside, out = (refs[w[:, i], i] for w in (member, ~member))
        inside, out = inside[~np.isnan(inside)], out[~np.isnan(out)]
        m1, m0 = (float(w.mean()) if w.size else math.nan for w in (inside, out))
        share = float((x >= out).mean()) if out.size and not math.isnan(x) else math.nan
        expected = share, x - m0, x - (m1 + m0) / 2
        np.testing.assert_allclose([f[i] for f in found], expected, rtol=1e-12, atol=1e-12)


def test_calibration_reaches_the_closed_forms():
    """Known OUT means: Phi(d / sqrt 2); with k of them, the mean adds 1 / k to both variances."""
    rng = np.random.default_rng(4)
    n, k = 20_000, 16
    centre = rng.normal(0, 3, n)
    refs = centre + rng.normal(size=(2 * k, n))
    member = np.repeat(np.arange(2 * k) < k, n).reshape(2 * k, n)
    refs[:k] += 1
    members, others = centre + rng.normal(1, 1, n), centre + rng.normal(0, 1, n)
    found = auc(watson(members, refs, member), watson(others, refs, member))
    assert found == pytest.approx(float(ndtr(1 / math.sqrt(2 * (1 + 1 / k)))), abs=0.01)
    middle = auc(sablayrolles(members, refs, member), sablayrolles(others, refs, member))
    assert middle == pytest.approx(float(ndtr(1 / math.sqrt(2 * (1 + 1 / (2 * k))))), abs=0.01)
    # One half of a shift of one: the middle of the worlds is the best threshold, for every sample.
    accuracy = balanced_accuracy(sablayrolles(members, refs, member), sablayrolles(others, refs, member))
    assert accuracy == pytest.approx(float(ndtr(0.5 / math.sqrt(1 + 1 / (2 * k)))), abs=0.01)
    assert loss_threshold(members, others) < 0.6


def test_attack_r_of_untrained_samples_is_uniform_and_coarse():
    """Target and k OUT models are exchangeable: k + 1 values, each with probability 1 / (k + 1)."""
    rng = np.random.default_rng(5)
    score = attack_r(rng.normal(size=30_000), rng.normal(size=(5, 30_000)), np.zeros((5, 30_000), dtype=bool))
    counts = np.bincount(np.round(score * 5).astype(int))
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 0.01


def test_models_that_trained_on_the_sample_are_not_references():
    target, refs, member = shadows(seed=6)
    poisoned = np.where(member, 1e6, refs)
    for attack in (attack_r, watson):
        np.testing.assert_array_equal(attack(target, refs, member), attack(target, poisoned, member))


# --- entropy and modified entropy
# ---------------------------------------------------------------------------------------------------


def textbook(z, y):
    """Both definitions, from probabilities."""
    p = softmax(z, axis=1)
    rows = np.arange(len(z))
    p_y = p[rows, y]
    others = p * np.log(1 - p)
    others[rows, y] = 0
    return -(p * np.log(p)).sum(axis=1), -(1 - p_y) * np.log(p_y) - others.sum(axis=1)


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 12), st.floats(0.1, 4))
def test_both_entropies_are_their_definitions(seed, classes, spread):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, spread, (20, classes)), rng.integers(0, classes, 20)
    h, m = textbook(z, y)
    np.testing.assert_allclose(entropy(z), h, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(modified_entropy(z, y), m, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(entropy(z + 100), h, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(modified_entropy(z + 100, y), m, rtol=1e-9, atol=1e-10)
    assert (modified_entropy(z, y) >= 0).all()
    assert (entropy(z) <= math.log(classes) + 1e-12).all()


@settings(max_examples=30)
@given(st.floats(-700, 700), st.booleans())
def test_two_classes_make_it_twice_one_term(difference, second):
    """M = -2 (1 - p_y) log p_y."""
    y = np.array([int(second)])
    phi = difference if not second else -difference
    expected = 2 * np.exp(-np.logaddexp(0, phi)) * np.logaddexp(0, -phi)
    assert modified_entropy([[difference, 0.0]], y)[0] == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([1.0, 30.0, 1e3, 1e4]))
def test_extreme_logits_stay_finite_and_not_negative(seed, scale):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, scale, (30, 10)), rng.integers(0, 10, 30)
    h, m = entropy(z), modified_entropy(z, y)
    assert np.isfinite(h).all() and np.isfinite(m).all()
    assert (h >= 0).all() and (m >= 0).all()


def test_sure_and_right_is_small_but_not_zero_and_sure_and_wrong_is_large():
    """1 - p is 5e-44 of a probability of one: lost in 1 - p, kept by the log-sum-exp of the rest."""
    z = np.array([[100.0, 0.0, -5.0]])
    right, wrong = modified_entropy(z, [0])[0], modified_entropy(z, [1])[0]
    rest = math.exp(logsumexp([0.0, -5.0]) - 100)
    # -(1 - p_0) log p_0 is of the order rest^2; the others are sum p_c^2.
    assert right == pytest.approx(rest**2 + math.exp(-200) + math.exp(-210), rel=1e-9)
    # p_0 log(1 - p_0) = -(100 - log(1 + e^-5)), and (1 - p_1) log p_1 = -100.
    assert wrong == pytest.approx(200 - math.log1p(math.exp(-5)), rel=1e-9)


def test_defect_log_p_in_place_of_log_one_minus_p_is_not_modified_entropy():
    """Three public ports: the sum over the other classes uses log p. Two classes and the limits tell."""
    z, y = np.array([[3.0, 0.0]]), np.array([0])
    p = softmax(z, axis=1)[0]
    wrong = -(1 - p[0]) * math.log(p[0]) - p[1] * math.log(p[1])
    identity = -2 * (1 - p[0]) * math.log(p[0])
    assert modified_entropy(z, y)[0] == pytest.approx(identity, rel=1e-12)
    assert wrong > 2 * identity


def test_defect_whole_label_columns_in_place_of_one_entry_per_row():
    """log_p[:, y] is (n, n), and changing it changes rows of other labels; the score of a row is its own."""
    rng = np.random.default_rng(7)
    z, y = rng.normal(0, 2, (20, 5)), rng.integers(0, 5, 20)
    p = softmax(z, axis=1)
    reverse, changed = np.log(1 - p), np.log(1 - p)
    changed[:, y] = np.log(p)[:, y]
    weights = p.copy()
    weights[:, y] = 1 - p[:, y]
    wrong = -(weights * changed).sum(axis=1)
    expected = textbook(z, y)[1]
    np.testing.assert_allclose(modified_entropy(z, y), expected, rtol=1e-9)
    assert np.abs(wrong - expected).min() > 1e-3
    alone = [modified_entropy(z[i : i + 1], y[i : i + 1])[0] for i in range(20)]
    np.testing.assert_allclose(alone, expected, rtol=1e-9)
    assert reverse.shape == (20, 5)


def brute_force_threshold(high, low):
    cuts = np.unique(np.concatenate([high, low]))
    cuts = np.concatenate([[cuts[0] - 1], (cuts[1:] + cuts[:-1]) / 2, [cuts[-1] + 1]])
    return max(balanced_accuracy(high, low, cut) for cut in cuts)


@settings(max_examples=25)
@given(SEEDS)
def test_class_thresholds_have_the_largest_balanced_accuracy(seed):
    rng = np.random.default_rng(seed)
    y, member = rng.integers(0, 3, 60), rng.random(60) < 0.5
    score = np.round(rng.normal(size=60) + member * rng.normal(0, 2, 3)[y], 1)
    found = class_thresholds(score, y, member, 4)
    for c in range(4):
        use = (y == c) if c < 3 else np.ones(60, dtype=bool)  # an absent class gets the common threshold
        high, low = score[use & member], score[use & ~member]
        best = brute_force_threshold(high, low)
        assert balanced_accuracy(high, low, found[c]) == pytest.approx(best, abs=1e-12)
    np.testing.assert_array_equal(margin(score, y, found), score - found[y])


def test_thresholds_per_class_beat_one_where_classes_differ():
    """Classes at 0 and 4, members one above: per class Phi(d / 2), by one threshold nearly nothing."""
    rng = np.random.default_rng(8)
    n = 20_000

    def draw():
        y, member = rng.integers(0, 2, n), rng.random(n) < 0.5
        return 4.0 * y + member + rng.normal(size=n), y, member

    shadow, y, member = draw()
    cuts = class_thresholds(shadow, y, member, 2)
    # The best of many cuts scatters by n^(-1/3) = 0.05 times a few; its accuracy, flat there, does not.
    np.testing.assert_allclose(cuts, [0.5, 4.5], atol=0.4)
    score, y, member = draw()  # other data than the thresholds were learnt on
    away = margin(score, y, cuts)
    found = balanced_accuracy(away[member], away[~member])
    assert found == pytest.approx(float(ndtr(0.5)), abs=0.01)
    one = class_thresholds(score, np.zeros(n, dtype=int), member, 1)
    assert balanced_accuracy(score[member], score[~member], float(one[0])) < 0.62


# --- correctness
# ---------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(1, 50), st.integers(1, 50), SEEDS)
def test_the_gap_is_the_auc_of_correctness(n1, n0, seed):
    rng = np.random.default_rng(seed)
    high, low = (rng.random(n) < rate for n, rate in ((n1, 0.8), (n0, 0.5)))
    found = correctness(high.astype(float), low.astype(float))
    assert found == pytest.approx(auc(high, low), abs=1e-12)
    assert found == pytest.approx(balanced_accuracy(high, low, threshold=0.5), abs=1e-12)
    assert found + correctness(low.astype(float), high.astype(float)) == pytest.approx(1.0)


def test_binomial_world():
    """Accuracies 0.9 and 0.7: balanced accuracy 0.6, SE sqrt(.9 .1 + .7 .3) / 2 / sqrt n."""
    rng = np.random.default_rng(9)
    high, low = rng.random(40_000) < 0.9, rng.random(40_000) < 0.7
    error = 4 * math.sqrt(0.09 + 0.21) / 2 / math.sqrt(40_000)
    assert correctness(high.astype(float), low.astype(float)) == pytest.approx(0.6, abs=error)


def test_correct_is_the_largest_logit_and_not_a_positive_phi():
    z, y = np.array([[0.4, 0.3, 0.3], [1.0, 2.0, 0.0]]), np.array([0, 0])
    assert correct_from_logits(z, y).tolist() == [1.0, 0.0]
    assert phi_from_logits(z, y)[0] < 0


def test_defect_a_collapsed_model_gains_nothing_by_its_first_class():
    """arg-max breaks ties towards class 0: with members of class 0 only, a constant model looks perfect."""
    z, y = np.zeros((10, 5)), np.zeros(10, dtype=int)
    other = np.ones(10, dtype=int)
    naive = 0.5 + 0.5 * (float((z.argmax(axis=1) == y).mean()) - float((z.argmax(axis=1) == other).mean()))
    assert naive == 1.0
    assert correctness(correct_from_logits(z, y), correct_from_logits(z, other)) == 0.5
    assert correct_from_logits(z, y).tolist() == [0.2] * 10
    assert correct_from_logits([[1.0, 1.0, 0.0]], [2]).tolist() == [0.0]


# --- bad input
# ---------------------------------------------------------------------------------------------------

Z, Y = np.zeros((3, 4)), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attack_p([], [1.0]), "phi: shape"),
        (lambda: attack_p([1.0], [np.nan]), "population: 1 of 1"),
        (lambda: attack_p(np.zeros((2, 3)), np.zeros((3, 3))), "population: shape"),
        (lambda: attack_p([1.0], np.zeros((1, 3))), "population: shape"),
        (lambda: attack_r([1.0], [[1.0, 2.0]], [[True, False]]), "shadow: shape"),
        (lambda: watson([1.0], [[1.0]], [[2]]), "other than 0 and 1"),
        (lambda: sablayrolles([np.inf], [[1.0]], [[True]]), "target: 1 of 1"),
        (lambda: modified_entropy(Z, Y + 2), "labels: 2..4 leave"),
        (lambda: modified_entropy(Z, Y[:2]), "labels: int64 of shape"),
        (lambda: modified_entropy(Z, Y * 1.0), "labels: float64"),
        (lambda: entropy(Z / 0.0), "logits: 12 of 12"),
        (lambda: entropy(Z[:, :1]), "at least 2 classes"),
        (lambda: class_thresholds([1.0, 2.0], [0, 0], [1, 1], 1), "2 of 2 are members"),
        (lambda: class_thresholds([1.0, np.nan], [0, 0], [1, 0], 1), "score: 1 of 2"),
        (lambda: margin([1.0], [1], [0.0]), "labels: 1..1 leave"),
        (lambda: correctness([1.0], []), "negative: shape"),
        (lambda: correctness([1.5], [0.0]), "positive: 1.5..1.5 leaves"),
        (lambda: correctness([np.nan], [0.0]), "positive: 1 of 1"),
        (lambda: correct_from_logits(Z, Y + 2), "labels: 2..4 leave"),
        (lambda: correct_from_logits(Z, Y[:2]), "labels: int64 of shape"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
