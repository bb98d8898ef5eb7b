"""The population attack on losses, and the loss threshold."""

import numpy as np
import pytest
from scipy.stats import norm

from attacks.loss_threshold import loss_threshold
from attacks.population_loss import indiscernibility, population_loss
from attacks.scores import loss_from_phi


def test_equal_losses_cannot_be_told_apart():
    rng = np.random.default_rng(0)
    found = population_loss(rng.exponential(1, 4000), rng.exponential(1, 4000))
    # 10 test sets of 800: at worst independent of the fit, at best independent of each other.
    assert found == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(8000))
    assert indiscernibility(found) > 0.95


def test_separated_losses_are_told_apart_in_either_direction():
    rng = np.random.default_rng(1)
    low, high = rng.uniform(0, 1, 300), rng.uniform(3, 4, 300)
    assert population_loss(low, high) == 1.0
    assert population_loss(high, low) == 1.0
    assert indiscernibility(1.0) == 0.0


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_gaussian_losses_give_the_best_balanced_accuracy(shift):
    rng = np.random.default_rng(2)
    n = 5000
    found = population_loss(rng.normal(0, 1, n), rng.normal(shift, 1, n))
    assert found == pytest.approx(norm.cdf(shift / 2), abs=4 * 0.5 / np.sqrt(2 * n))


def test_unequal_sizes_are_cut_to_the_smaller():
    """Without it, always answering "non-member" would be right ten times out of eleven."""
    rng = np.random.default_rng(3)
    found = population_loss(rng.exponential(1, 300), rng.exponential(1, 3000))
    assert 0.4 < found < 0.6


def test_cutting_takes_a_random_part():
    rng = np.random.default_rng(4)
    ordered = np.sort(rng.exponential(1, 6000))
    found = population_loss(rng.exponential(1, 1000), ordered)
    assert found == pytest.approx(0.5, abs=0.06)  # the first 1000 alone would give 0.9


def test_the_seed_decides():
    rng = np.random.default_rng(5)
    x, y = rng.normal(0, 1, 200), rng.normal(0.5, 1, 200)
    assert population_loss(x, y) == population_loss(x, y, seed=123)
    assert len({population_loss(x, y, seed=s) for s in range(4)}) > 1


def test_both_sides_of_the_threshold_pass_as_forgotten():
    """The known blind spot: losses on both sides of the others look indiscernible to one threshold."""
    rng = np.random.default_rng(6)
    member = np.concatenate([rng.normal(0, 0.2, 1000), rng.normal(4, 0.2, 1000)])
    found = population_loss(member, rng.normal(2, 0.2, 2000))
    assert indiscernibility(found) > 0.8


def test_loss_threshold_ranks_low_loss_as_trained_on():
    phi = np.array([5.0, 4.0]), np.array([1.0, 4.0])
    assert loss_threshold(*phi) == 0.875
    assert loss_threshold(*(-loss_from_phi(p) for p in phi)) == 0.875


@pytest.mark.parametrize(("accuracy", "expected"), [(0.5, 1.0), (0.75, 0.5), (0.25, 0.5), (1.0, 0.0)])
def test_indiscernibility(accuracy, expected):
    assert indiscernibility(accuracy) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: population_loss(np.full(20, np.nan), np.ones(20)), "member_loss: 20 of 20"),
        (lambda: population_loss(np.ones(20), np.append(np.ones(20), np.inf)), "nonmember_loss: 1 of 21"),
        (lambda: population_loss(np.ones(9), np.ones(20)), "at least 10"),
        (lambda: population_loss(np.ones((20, 1)), np.ones(20)), "not a list"),
        (lambda: indiscernibility(1.1), "outside"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
