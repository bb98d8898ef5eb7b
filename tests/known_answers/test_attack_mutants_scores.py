"""Known defects of public audits, continued: scores, operating points, areas, bounds.

Each is written in our own words and refused by the very check that our function passes. See
test_attack_mutants.py for the evidence of LiRA, U-LiRA and RMIA.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax

from attacks.bootstrap import cluster_bootstrap, pair_weights
from attacks.entropy import modified_entropy
from attacks.epsilon_bounds import best_thresholds, epsilon_of_rates, exploratory_bound, split_threshold
from attacks.metrics import auc, balanced_accuracy, roc, tpr_at_fpr
from attacks.scores import phi_from_logits
from tests.known_answers.mutants import Defects, tell_apart
from tests.test_evaluate import dataset, net
from workers import evaluate as evaluation
from workers.evaluate import evaluate

DEFECTS = Defects()

# ---- φ and modified entropy --------------------------------------------------------------------------------


def is_the_log_odds(phi):
    """No common shift of the logits matters, and margins of 20 to 60 stay apart."""
    z = np.random.default_rng(0).normal(0, 3, (50, 4))
    y = np.arange(50) % 4
    np.testing.assert_allclose(phi(z + 5, y), phi(z, y), atol=1e-6)
    two = np.stack([np.linspace(20, 60, 9), np.zeros(9)], axis=1)
    np.testing.assert_allclose(phi(two, np.zeros(9, dtype=int)), two[:, 0], rtol=1e-6)


@DEFECTS.of(phi_from_logits, is_the_log_odds)
def the_raw_logit_of_the_true_class(logits, labels):
    return logits[np.arange(len(labels)), labels]


@DEFECTS.of(phi_from_logits, is_the_log_odds)
def log_odds_of_a_clipped_probability(logits, labels):
    p = np.clip(softmax(logits, axis=1)[np.arange(len(labels)), labels], 1e-10, 1 - 1e-10)
    return np.log(p / (1 - p))


@DEFECTS.of(phi_from_logits, is_the_log_odds)
def one_minus_p_in_half_precision(logits, labels):
    p = softmax(logits, axis=1)[np.arange(len(labels)), labels].astype(np.float16)
    with np.errstate(divide="ignore"):
        return np.log(p.astype(float)) - np.log((np.float16(1) - p).astype(float))


def is_modified_entropy(measure):
    """The sum written out for each row; with two classes −2 (1 − p) log p."""
    rng = np.random.default_rng(1)
    z, y = rng.normal(0, 2, (20, 5)), rng.integers(0, 5, 20)
    p = softmax(z, axis=1)
    rows = [
        -(1 - row[c]) * math.log(row[c]) - sum(q * math.log(1 - q) for q in np.delete(row, c))
        for row, c in zip(p, y, strict=True)
    ]
    np.testing.assert_allclose(measure(z, y), rows, rtol=1e-9)
    p = 1 / (1 + math.exp(-3))
    assert measure(np.array([[3.0, 0.0]]), np.array([0]))[0] == pytest.approx(-2 * (1 - p) * math.log(p))


@DEFECTS.of(modified_entropy, is_modified_entropy)
def log_p_where_log_one_minus_p_is_due(logits, labels):
    p, rows = softmax(logits, axis=1), np.arange(len(labels))
    weights = p.copy()
    weights[rows, labels] = 1 - p[rows, labels]
    return -(weights * np.log(p)).sum(axis=1)


@DEFECTS.of(modified_entropy, is_modified_entropy)
def whole_label_columns(logits, labels):
    p = softmax(logits, axis=1)
    weights, logs = p.copy(), np.log(1 - p)
    weights[:, labels], logs[:, labels] = 1 - p[:, labels], np.log(p)[:, labels]
    return -(weights * logs).sum(axis=1)


def a_score_is_of_its_image_alone(score):
    """Whatever else is in the batch, and however often the model is asked."""
    model, images = net().train(), dataset(23)
    once = score(model, images).phi
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(evaluation.BATCH, "cpu", 7)
        np.testing.assert_allclose(score(model, images).phi, once, atol=1e-5)


@DEFECTS.of(evaluate, a_score_is_of_its_image_alone)
def in_train_mode(model, images):
    """Statistics of the batch in place of the running ones, and the running ones move."""
    model.eval = model.train
    return evaluate(model, images)


# ---- operating points and areas ----------------------------------------------------------------------------


def is_the_best_point_within_alpha(rates):
    """rates(positive, negative, alpha) -> (TPR, FPR): a point of the ROC, within α, and the best of those."""
    rng = np.random.default_rng(2)
    for alpha in (0.0, 0.01, 0.05, 0.29):
        for n in (7, 50, 100):
            x, y = np.round(rng.normal(1, 1, 60), 1), np.round(rng.normal(0, 1, n), 1)
            fpr, tpr, _ = roc(x, y)
            found = rates(x, y, alpha)
            assert found[1] <= alpha and found in set(zip(tpr.tolist(), fpr.tolist(), strict=True))
            assert found[0] == tpr[fpr <= alpha].max()
    y = np.arange(100.0)
    assert rates(y, y, 0.05)[1] == 0.05


def best_point(x, y, alpha):
    found = tpr_at_fpr(x, y, alpha)
    return found.tpr, found.fpr


@DEFECTS.of(best_point, is_the_best_point_within_alpha)
def the_nearest_fpr(x, y, alpha):
    fpr, tpr, _ = roc(x, y)
    i = int(np.lexsort((-tpr, np.abs(fpr - alpha)))[0])
    return float(tpr[i]), float(fpr[i])


@DEFECTS.of(best_point, is_the_best_point_within_alpha)
def fpr_strictly_below_alpha(x, y, alpha):
    fpr, tpr, _ = roc(x, y)
    i = max(0, int(np.sum(fpr < alpha)) - 1)
    return float(tpr[i]), float(fpr[i])


@DEFECTS.of(best_point, is_the_best_point_within_alpha)
def interpolated_between_points(x, y, alpha):
    fpr, tpr, _ = roc(x, y)
    return float(np.interp(alpha, fpr, tpr)), alpha


def says_when_negatives_are_too_few(supported):
    """Fewer than ten false positives allowed: n/a."""
    x = np.arange(999.0)
    assert not supported(x, x, 0.01) and supported(np.arange(1000.0), np.arange(1000.0), 0.01)


def supported(x, y, alpha):
    return tpr_at_fpr(x, y, alpha).supported


@DEFECTS.of(supported, says_when_negatives_are_too_few)
def a_rate_from_any_number_of_negatives(x, y, alpha):
    return True


def counts_every_pair(area):
    """P(positive > negative) + P(tie)/2, in tied scores and in constant ones; ½ on average in null worlds."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(30):
        x, y = (np.round(rng.normal(size=40)) for _ in range(2))
        difference = x[:, None] - y
        assert area(x, y) == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)), abs=1e-12)
        found.append(area(x, y))
    assert np.mean(found) == pytest.approx(0.5, abs=4 * 0.065 / math.sqrt(30))
    assert area(np.ones(5), np.ones(7)) == 0.5


@DEFECTS.of(auc, counts_every_pair)
def without_scores_of_exactly_zero(x, y):
    return auc(x[x != 0], y[y != 0])


@DEFECTS.of(auc, counts_every_pair)
def ties_in_the_order_of_the_labels(x, y):
    """Sorted by a stable sort with the members last: a constant score looks perfect."""
    rank = np.argsort(np.argsort(np.concatenate([y, x]), kind="stable"), kind="stable")
    return auc(rank[len(y) :], rank[: len(y)])


@DEFECTS.of(auc, counts_every_pair)
def the_sign_that_looks_better(x, y):
    """The direction is chosen on the scores that it is reported on."""
    return max(auc(x, y), 1 - auc(x, y))


def is_one_half_for_scores_that_know_nothing(accuracy):
    x, y = np.random.default_rng(4).normal(size=(2, 4000))
    assert accuracy(x, y) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(8000))


@DEFECTS.of(balanced_accuracy, is_one_half_for_scores_that_know_nothing)
def doubtful_samples_by_their_true_group(positive, negative):
    """Three answers, and the middle one is resolved with the truth at hand."""
    return 0.5 * (np.mean(positive > -0.2) + np.mean(negative < 0.2))


def copies_are_no_news(width):
    """Scores of one pair ten times over: the interval of the AUC stays as wide."""
    rng = np.random.default_rng(5)
    x, y = (rng.normal(shift, 1, (12, 20)) + rng.normal(0, 1, (12, 1)) for shift in (0.5, 0.0))
    assert width(np.tile(x, 10), np.tile(y, 10)) == pytest.approx(width(x, y), rel=0.02)


def over_pairs(x, y):
    return float(cluster_bootstrap(x, y, pair_weights(len(x), 300)).auc.std())


@DEFECTS.of(over_pairs, copies_are_no_news)
def runs_of_one_base_as_independent(x, y):
    """Mann and Whitney's error of the pooled scores (Hanley and McNeil's bound)."""
    area = auc(x.ravel(), y.ravel())
    return math.sqrt(area * (1 - area) / min(x.size, y.size))


# ---- bounds ------------------------------------------------------------------------------------------------


def holds_as_often_as_it_says(bound):
    """A Laplace mechanism is 1-private: bounds of level .8 exceed 1 in a fifth of all runs at most."""
    rng = np.random.default_rng(6)
    above = [bound(rng.laplace(1, 1, 200), rng.laplace(0, 1, 200)) > 1 for _ in range(300)]
    assert np.mean(above) < 0.2 + 2.6 * 0.4 / math.sqrt(300)


def split(positive, negative):
    return split_threshold(positive, negative, level=0.8).epsilon


@DEFECTS.of(split, holds_as_often_as_it_says)
def the_best_threshold_of_the_same_scores(positive, negative):
    return exploratory_bound(positive, negative, level=0.8).epsilon


@DEFECTS.of(split, holds_as_often_as_it_says)
def rates_in_place_of_their_limits(positive, negative):
    cut = best_thresholds(positive[:100], negative[:100])[0]
    return float(epsilon_of_rates(*(np.mean(side[100:] >= cut) for side in (positive, negative))))


@pytest.mark.parametrize(("right", "check", "mutant"), DEFECTS.cases)
def test_the_defect_fails_the_check_that_the_right_function_passes(right, check, mutant):
    tell_apart(right, check, mutant)
