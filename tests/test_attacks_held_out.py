"""Thresholds learnt on other pairs, against every threshold tried by hand."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.attack_r import attack_r, worlds_leave_pair_out
from attacks.held_out import held_out, precision


def by_hand(high: np.ndarray, low: np.ndarray, alpha: float) -> tuple[float, float, float]:
    """Realised TPR, FPR and balanced accuracy at the highest threshold that is best on the other pairs."""
    counts = np.zeros(4)
    for p in range(len(high)):
        up, down = np.delete(high, p, axis=0).ravel(), np.delete(low, p, axis=0).ravel()
        every = np.concatenate([[-np.inf], np.unique(np.concatenate([high.ravel(), low.ravel()])), [np.inf]])
        # A threshold is at a score or just above one.
        every = np.unique(np.concatenate([every, np.nextafter(low.ravel(), np.inf)]))
        tpr = np.array([(up >= t).mean() for t in every])
        fpr = np.array([(down >= t).mean() for t in every])
        inside = np.where(fpr <= alpha, tpr, -1)
        first, second = (every[np.flatnonzero(v == v.max())[-1]] for v in (inside, tpr - fpr))
        counts += [(w[p] >= t).sum() for t in (first, second) for w in (high, low)]
    rates = counts / [high.size, low.size, high.size, low.size]
    return rates[0], rates[1], 0.5 + 0.5 * (rates[2] - rates[3])


@pytest.mark.parametrize("seed", range(5))
def test_equals_every_threshold_tried_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    high, low = rng.normal(1, 1, (4, 30)).round(2), rng.normal(0, 1, (4, 30)).round(2)
    found = held_out(high, low, alpha=0.1)
    assert found[:3] == pytest.approx(by_hand(high, low, 0.1))
    assert found.best_balanced_accuracy >= found.balanced_accuracy


def test_a_pair_on_a_scale_of_its_own_is_judged_by_the_others() -> None:
    """One pair's scores are 100 higher in both worlds: the threshold of the others accuses all of it."""
    rng = np.random.default_rng(0)
    high, low = rng.normal(1, 1, (5, 200)), rng.normal(0, 1, (5, 200))
    high[2] += 100
    low[2] += 100
    found = held_out(high, low)
    assert found.fpr > 0.15, "a threshold chosen on the same scores would have kept to 1 %"


def test_nothing_to_tell_is_one_half_held_out_and_more_in_sample() -> None:
    rng = np.random.default_rng(1)
    found = [held_out(*rng.normal(size=(2, 8, 50))) for _ in range(200)]
    assert np.mean([f.balanced_accuracy for f in found]) == pytest.approx(0.5, abs=0.01)
    assert np.mean([f.best_balanced_accuracy for f in found]) > 0.515
    assert np.mean([f.fpr for f in found]) == pytest.approx(np.mean([f.tpr for f in found]), abs=0.003)


def test_missing_scores_count_nowhere() -> None:
    rng = np.random.default_rng(2)
    high, low = rng.normal(1, 1, (4, 30)), rng.normal(0, 1, (4, 30))
    padded = [np.concatenate([world, np.full((4, 7), np.nan)], axis=1) for world in (high, low)]
    assert held_out(*padded) == held_out(high, low)
    empty = [np.concatenate([world, np.full((1, 30), np.nan)]) for world in (high, low)]
    assert held_out(*empty) == held_out(high, low)


def test_precision_of_a_prior() -> None:
    assert precision(0.2, 0.01, 0.5) == pytest.approx(0.2 / 0.21)
    assert precision(0.2, 0.01, 0.01) == pytest.approx(0.002 / (0.002 + 0.0099))
    assert np.isnan(precision(0.0, 0.0, 0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: held_out(np.ones((1, 5)), np.ones((1, 5))), "pairs: 1"),
        (lambda: held_out(np.ones((3, 5)), np.ones((2, 5))), "3 and 2 pairs"),
        (lambda: held_out(np.ones((3, 5)), np.ones((3, 5)), alpha=1.0), "alpha: 1.0"),
        (lambda: precision(0.1, 0.1, 0.0), "prior: 0.0"),
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_attack_r_of_worlds_is_attack_r_with_the_other_pairs() -> None:
    rng = np.random.default_rng(3)
    high, low = rng.normal(1, 1, (5, 20)).round(1), rng.normal(0, 1, (5, 20)).round(1)
    low[1, 3] = np.nan
    found = worlds_leave_pair_out(high, low)
    for p in range(5):
        others = np.delete(low, p, axis=0)
        for world, scores in zip((high, low), found, strict=True):
            expected = attack_r(world[p], others, np.zeros(others.shape, dtype=bool))
            expected[np.isnan(high[p]) | np.isnan(low[p])] = np.nan
            np.testing.assert_array_equal(scores[p], expected)
