"""Population attacks with a support vector machine and on losses of the same classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import norm

from attacks.population_loss import population_loss
from attacks.population_matched import population_matched
from attacks.population_svm import features, modified_entropy, population_svm
from attacks.scores import confidence_from_phi

SEEDS = st.integers(0, 10_000)


def m_entropy_by_loops(p, y):
    """The definition, one sample and one class at a time."""
    found = []
    for row, label in zip(p, y, strict=True):
        terms = [-(1 - row[label]) * np.log(row[label])]
        terms += [-q * np.log(1 - q) for j, q in enumerate(row) if j != label]
        found.append(sum(terms))
    return np.array(found)


def m_entropy_as_ported(p, y):
    """The known slip: log p where the definition has log(1 - p), and whole label columns at once."""
    modified = p.copy()
    modified[:, y] = 1 - p[:, y]
    return -(modified * np.log(p)).sum(axis=1)


def logits(seed, n=20, classes=5, scale=3.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (n, classes)), rng.integers(0, classes, n)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 12), st.floats(0.1, 4))
def test_modified_entropy_is_the_definition(seed, classes, scale):
    z, y = logits(seed, classes=classes, scale=scale)
    found = modified_entropy(z, y)
    np.testing.assert_allclose(found, m_entropy_by_loops(softmax(z, axis=1), y), rtol=1e-6, atol=1e-9)
    assert (found >= 0).all()


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_with_two_classes_it_is_twice_the_first_term(seed):
    z, y = logits(seed, classes=2)
    p = softmax(z, axis=1)[np.arange(len(y)), y]
    np.testing.assert_allclose(modified_entropy(z, y), -2 * (1 - p) * np.log(p), rtol=1e-9)


def test_the_known_slip_would_show():
    z, y = logits(0)
    p = softmax(z, axis=1)
    slip = np.abs(m_entropy_as_ported(p, y) - m_entropy_by_loops(p, y))
    assert np.median(slip) > 0.1
    # What it is for: sure and right is 0, sure and wrong is large; plain entropy calls both sure.
    sure = np.log([[0.98, 0.01, 0.01]] * 2)
    right, wrong = modified_entropy(sure, np.array([0, 1]))
    assert right < 0.01 and wrong > 5


def test_modified_entropy_stays_finite_where_probabilities_round_to_one():
    z = np.array([[1000.0, 0.0, -1000.0]] * 3)
    found = modified_entropy(z, np.array([0, 1, 2]))
    np.testing.assert_allclose(found, [0, 2000, 3000])


def test_features_are_what_they_are_called():
    z, y = logits(1)
    found, p = features(z, y), softmax(z, axis=1)
    rows = np.arange(len(y))
    np.testing.assert_allclose(found["probabilities"], p)
    np.testing.assert_allclose(found["confidence"], p[rows, y])
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(axis=1))
    np.testing.assert_array_equal(found["correctness"], p.argmax(axis=1) == y)
    phi = np.log(p[rows, y]) - np.log1p(-p[rows, y])
    np.testing.assert_allclose(confidence_from_phi(phi), found["confidence"])


def confidences(rng, centre, n):
    return confidence_from_phi(rng.normal(centre, 1, n))


@pytest.mark.parametrize(("centre", "expected"), [(0.0, norm.cdf(1)), (2.0, norm.cdf(-1)), (1.0, 0.5)])
def test_the_share_called_non_member_is_that_of_the_best_threshold(centre, expected):
    """phi of retained samples N(2, 1), of test N(0, 1): the best threshold is 1. 2,000 to learn from leave
    the threshold uncertain by about .15, the share by .05.
    """
    rng = np.random.default_rng(2)
    retain, test = confidences(rng, 2, 2000), confidences(rng, 0, 2000)
    assert population_svm(retain, test, confidences(rng, centre, 2000)) == pytest.approx(expected, abs=0.08)


def test_an_untouched_forget_set_reads_low_and_a_retrained_one_reads_as_the_test_set():
    rng = np.random.default_rng(3)
    retain, test = confidences(rng, 4, 800), confidences(rng, 1, 800)
    kept, forgotten, unseen = confidences(rng, 4, 800), confidences(rng, 1, 800), confidences(rng, 1, 800)
    assert population_svm(retain, test, kept) < 0.2
    # Exchangeable sets of 800 at a share of .9: 4 standard errors of a difference.
    gap = population_svm(retain, test, forgotten) - population_svm(retain, test, unseen)
    assert abs(gap) < 4 * np.sqrt(2 * 0.09 / 800)


def test_many_more_retained_samples_do_not_make_everything_a_member():
    """Without cutting, the classes are 20 to 1 and the machine answers "member" to nearly everything."""
    rng = np.random.default_rng(4)
    retain, test = confidences(rng, 1.0, 2000), confidences(rng, 0, 100)
    share = population_svm(retain, test, confidences(rng, 0, 1000))
    assert share > 0.45


def test_probabilities_are_a_feature_and_the_seed_decides_what_is_cut():
    z, y = logits(5, n=400)
    found = features(z, y)
    several = [found["probabilities"][part] for part in (slice(0, 200), slice(200, 300), slice(300, 400))]
    assert 0 <= population_svm(*several) <= 1
    assert population_svm(*several) == population_svm(*several, seed=123)
    assert len({population_svm(*several, seed=s) for s in range(5)}) > 1


def losses(rng, labels):
    """Harder classes have larger losses; nothing else tells the sets apart."""
    return rng.exponential(1, labels.size) + 2.0 * labels


def test_another_class_mix_is_not_memory():
    """The forget set is mostly of an easy class, with small losses; of the same classes nothing is left."""
    rng = np.random.default_rng(6)
    forget_label, test_label = rng.choice(2, 4000, p=[0.8, 0.2]), rng.choice(3, 6000, p=[0.3, 0.4, 0.3])
    forget, test = losses(rng, forget_label), losses(rng, test_label)
    shared = test[test_label < 2]
    assert population_loss(forget, test) > 0.7 and population_loss(forget, shared) > 0.6
    # About 2,500 a side are left; ten overlapping test sets of a tenth of them.
    found = population_matched(forget, forget_label, test, test_label)
    assert found == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(4000))


def test_memory_within_classes_is_found():
    rng = np.random.default_rng(7)
    forget_label, test_label = rng.integers(0, 2, 2000), rng.integers(0, 6, 6000)
    forget = rng.normal(0, 1, 2000)
    found = population_matched(forget, forget_label, rng.normal(2, 1, 6000), test_label)
    assert found == pytest.approx(norm.cdf(1), abs=4 * 0.5 / np.sqrt(4000))


def test_a_whole_class_is_compared_with_its_own_test_samples():
    rng = np.random.default_rng(8)
    test_label = np.repeat(np.arange(5), 100)
    test = losses(rng, test_label)
    one = population_matched(losses(rng, np.full(80, 3)), np.full(80, 3), test, test_label)
    only = population_matched(losses(rng, np.full(80, 3)), np.full(80, 3), test[300:400], test_label[300:400])
    assert abs(one - 0.5) < 0.15 and abs(only - 0.5) < 0.15


def test_matching_takes_a_random_part_of_each_class():
    """The first 200 of the sorted losses alone would give an accuracy near 0.9."""
    rng = np.random.default_rng(10)
    ordered, few = np.sort(rng.exponential(1, 3000)), rng.exponential(1, 200)
    found = population_matched(few, np.zeros(200, dtype=int), ordered, np.zeros(3000, dtype=int))
    assert found == pytest.approx(0.5, abs=0.12)


def test_population_matched_is_drawn_by_seed():
    rng = np.random.default_rng(9)
    x, y = rng.normal(0, 1, 300), rng.normal(0.5, 1, 900)
    labels = np.zeros(300, dtype=int), np.zeros(900, dtype=int)
    found = [population_matched(x, labels[0], y, labels[1], seed=s) for s in (0, 0, 1, 2)]
    assert found[0] == found[1] and len(set(found)) > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: population_svm(np.zeros(9), np.zeros(20), np.zeros(5)),
            r"retain: shape \(9,\).*at least 10",
        ),
        (lambda: population_svm(np.zeros((20, 2)), np.zeros((20, 2)), np.zeros(5)), r"features: \[1, 2\]"),
        (lambda: population_svm(np.zeros(20), np.full(20, np.nan), np.zeros(5)), "test: 20 of 20"),
        (lambda: population_svm(np.zeros(20), np.zeros(20), np.zeros(0)), "forget: shape"),
        (lambda: features(np.zeros((3, 2)), np.array([0, 1, 2])), "labels: 0..2"),
        (
            lambda: population_matched(np.ones(20), np.arange(20) % 3, np.ones(20), np.arange(20) % 2),
            r"classes \[2\] of the forget set",
        ),
        (
            lambda: population_matched(np.ones(4), np.zeros(4, int), np.ones(20), np.zeros(20, int)),
            "4 samples share a class",
        ),
        (
            lambda: population_matched(np.ones(4), np.zeros(4), np.ones(20), np.zeros(20, int)),
            "forget_label: dtype float64",
        ),
        (
            lambda: population_matched(np.ones(4), np.zeros(3, int), np.ones(20), np.zeros(20, int)),
            "forget: losses",
        ),
        (
            lambda: population_matched(
                np.ones(20), np.zeros(20, int), np.full(20, np.inf), np.zeros(20, int)
            ),
            "test_loss: 20 of 20",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
