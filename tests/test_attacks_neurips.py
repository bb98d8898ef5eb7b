"""The NeurIPS-2023 score: known null and power, rules by hand, symmetry."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.klom import halves
from attacks.neurips_score import CAP, DELTA, epsilons, final_score, forgetting, neurips_score

SEEDS = st.integers(0, 10_000)


def worlds(models, samples=300, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (models, samples)), rng.normal(0, 1, (models, samples))


def epsilon_of(fpr, fnr):
    if fpr == 0 and fnr == 0:
        return CAP
    if fpr == 0 or fnr == 0:
        return 0.0
    both = []
    for one, other in ((fpr, fnr), (fnr, fpr)):
        if 1 - DELTA - one > 0:
            both.append(math.log(1 - DELTA - one) - math.log(other))
    return min(max([0.0, *both]), CAP)


def epsilon_by_loops(a, b, intervals):
    """Every rule on its own: single thresholds for the larger median, intervals for the smaller spread."""
    if min(np.ptp(a), np.ptp(b)) < 0.01 * max(np.ptp(a), np.ptp(b)):
        return CAP
    pooled = np.unique(np.concatenate([a, b]))
    cuts = np.concatenate([[-np.inf], (pooled[1:] + pooled[:-1]) / 2, [np.inf]])
    best = 0.0
    spread = [np.quantile(x, 0.75) - np.quantile(x, 0.25) for x in (a, b)]
    for x, y, above, inside in (
        (a, b, np.median(a) >= np.median(b), spread[0] <= spread[1]),
        (b, a, np.median(b) >= np.median(a), spread[1] <= spread[0]),
    ):
        for low in cuts if above else ():
            best = max(best, epsilon_of(np.mean(y > low), 1 - np.mean(x > low)))
        for i, low in enumerate(cuts if intervals and inside else ()):
            for high in cuts[i + 1 :]:
                fnr = np.mean((x < low) | (x > high))
                best = max(best, epsilon_of(np.mean((y > low) & (y < high)), fnr))
    return best


@pytest.mark.parametrize(("models", "score"), [(64, 0.33), (128, 0.35), (256, 0.37), (512, 0.35)])
def test_a_perfect_method_scores_a_third_and_not_one(models, score):
    """Our Monte-Carlo error is .26 / sqrt(2000) = .006; the published digits come from a simulation, too."""
    a, b = worlds(models, samples=2000)
    assert forgetting(epsilons(a, b, intervals=False), models) == pytest.approx(score, abs=0.03)


@pytest.mark.parametrize(("models", "mean"), [(64, 1.20), (512, 1.16)])
def test_the_mean_epsilon_of_equal_worlds(models, mean):
    """The deviation over samples is .5, so four Monte-Carlo errors are .08."""
    a, b = worlds(models, samples=600)
    assert epsilons(a, b, intervals=False).mean() == pytest.approx(mean, abs=0.08)


@pytest.mark.parametrize(
    ("shift", "scale", "score"),
    [(0.25, 1, 0.17), (0.5, 1, 0.070), (1, 1, 0.016), (2, 1, 0.0017), (0, 0.5, 0.008)],
)
def test_the_score_of_known_worlds(shift, scale, score):
    """Points are about as spread as their mean: 300 samples leave 6 %, the published digits as much."""
    a, b = worlds(512)
    found = forgetting(epsilons(scale * a + shift, b, intervals=False), 512)
    assert found == pytest.approx(score, rel=0.15)


def test_intervals_only_raise_epsilon():
    a, b = worlds(40, samples=50)
    assert (epsilons(a, b) >= epsilons(a, b, intervals=False)).all()
    assert epsilons(a, b).mean() > epsilons(a, b, intervals=False).mean() + 0.3


def test_equal_means_and_other_spread_need_intervals():
    """A hundredth of the width, in the middle of the others (but with one far model, for the range).

    One threshold misses one of the narrow set and has half of the others, eps = log(128 / 2) = 4.16; an
    interval misses one and has hardly any of the others, log(1 - 1/128) + log 128 = 4.84.
    """
    a, b = worlds(128, samples=20)
    a = a / 100
    a[0] = 1.0
    one, two = (epsilons(a, b, intervals) for intervals in (False, True))
    assert one.mean() == pytest.approx(math.log(64), abs=0.1)
    assert two == pytest.approx(math.log(127), abs=0.05)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_the_sweep_equals_every_rule_on_its_own(seed, ties, intervals):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(rng.normal(), rng.uniform(0.3, 2), 9), rng.normal(0, 1, 7)
    if ties:
        a, b = np.round(a), np.round(b)
    found = epsilons(a[:, None], b[:, None], intervals)[0]
    assert found == pytest.approx(epsilon_by_loops(a, b, intervals), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(6, 40), st.integers(6, 40), st.booleans())
def test_swapping_the_sets_changes_nothing_and_the_score_is_a_share(seed, n, m, ties):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.5, 1, (n, 4)), rng.normal(0, 2, (m, 4))
    if ties:
        a, b = np.round(a), np.round(b)
    assert epsilons(a, b) == pytest.approx(epsilons(b, a), abs=1e-9)
    found = neurips_score(a, b)
    for share in (found.forgetting, found.forgetting_halved, found.null):
        assert 0 <= share <= 1
    assert (found.epsilon >= 0).all() and (found.epsilon <= CAP).all()


def test_epsilon_by_hand():
    """One of four wrong on each side, at best: eps = log(1 - delta - 1/4) - log(1/4), nearly log 3."""
    a, b = np.array([0.5, 3.0, 4.0, 5.0]), np.array([0.0, 1.0, 2.0, 3.5])
    found = epsilons(a[:, None], b[:, None], intervals=False)[0]
    assert found == pytest.approx(math.log(1 - DELTA - 0.25) - math.log(0.25))


def test_separated_sets_and_a_collapsed_set_reach_the_cap():
    """Several perfect thresholds: a known port asserts on the array of them and stops."""
    a = np.arange(10.0)
    assert epsilons((a + 100)[:, None], a[:, None])[0] == CAP
    assert epsilons((a + 5 * 1e-4 * a)[:, None], a[:, None])[0] < CAP
    narrow = 4.5 + a / 1000  # range below 1 % of the other, inside it
    assert epsilons(narrow[:, None], a[:, None])[0] == CAP
    assert epsilons(a[:, None], narrow[:, None], intervals=False)[0] == CAP
    assert epsilons(np.ones((8, 1)), np.zeros((8, 1)))[0] == CAP


def test_no_usable_rule_means_no_epsilon():
    """All values equal: every rule accepts all or nothing, and counts for nothing."""
    assert epsilons(np.zeros((8, 2)), np.zeros((9, 2))).tolist() == [0.0, 0.0]
    found = neurips_score(np.zeros((8, 2)), np.zeros((9, 2)))
    assert found.forgetting == found.null == found.ratio == 1.0


@pytest.mark.parametrize(
    ("epsilon", "points"), [(0.0, 1), (0.49, 1), (0.5, 0.5), (1.0, 0.25), (6.9, 2**-13), (7.0, 0), (50.0, 0)]
)
def test_points(epsilon, points):
    assert forgetting([epsilon], models=512) == points


def test_a_perfect_method_has_ratio_one():
    rng = np.random.default_rng(3)
    unlearned, retrained = rng.normal(0, 1, (128, 400)), rng.normal(0, 1, (256, 400))
    found = neurips_score(unlearned, retrained, intervals=False)
    assert found.models == found.models_halved == 128
    # Scores of .35 with a deviation of .25 over 400 samples: .0125 each, two of them, relative.
    assert found.ratio == pytest.approx(1, abs=4 * math.sqrt(2) * 0.0125 / 0.35)
    assert found.null == pytest.approx(0.35, abs=4 * 0.0125)


def test_the_halved_score_uses_as_many_models_as_the_null():
    rng = np.random.default_rng(7)
    unlearned, retrained = rng.normal(1, 1, (40, 30)), rng.normal(0, 1, (60, 30))
    found = neurips_score(unlearned, retrained)
    few, half, other = halves(unlearned, retrained, 0)
    assert found.models == 40 and len(few) == len(half) == len(other) == found.models_halved == 30
    expected = [forgetting(epsilons(few, side), 30) for side in (half, other)]
    assert found.forgetting_halved == pytest.approx(np.mean(expected))
    assert found.null == forgetting(epsilons(half, other), 30)
    assert found.forgetting == forgetting(epsilons(unlearned, retrained), 40)


def test_training_started_from_one_model_is_told_apart():
    """Runs from one original are narrow: a method that is exact on average does not score as retraining."""
    rng = np.random.default_rng(4)
    unlearned, retrained = rng.normal(0, 0.3, (64, 50)), rng.normal(0, 1, (128, 50))
    assert neurips_score(unlearned, retrained).ratio < 0.5


def test_swapped_roles_of_the_medians_would_show():
    """The mutant calls the smaller median positive: no threshold is then better than chance."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(2, 1, (256, 20)), rng.normal(0, 1, (256, 20))

    def mutant(x, y):
        return max(epsilon_of(np.mean(x > cut), np.mean(y <= cut)) for cut in x)

    found = epsilons(a, b, intervals=False)
    assert (found > 3).all()
    assert max(mutant(x, y) for x, y in zip(a.T, b.T, strict=True)) < 1


def test_the_final_score_does_not_clip_ratios():
    assert final_score(0.4, 0.99, 0.9, 0.8, 0.8) == pytest.approx(0.44)
    with pytest.raises(ValueError, match="above 0"):
        final_score(0.4, 1, 0, 1, 1)


def test_bad_input_is_refused():
    good = np.zeros((8, 3))
    with pytest.raises(ValueError, match=r"unlearned: shape \(5, 3\).*at least 6"):
        neurips_score(good[:5], good)
    with pytest.raises(ValueError, match="3 and 2 samples"):
        neurips_score(good, good[:, :2])
    with pytest.raises(ValueError, match="retrained: 1 of 24"):
        neurips_score(good, np.where(np.eye(8, 3), [np.nan, 0, 0], 0.0))
    with pytest.raises(ValueError, match="2 models"):
        forgetting([1.0], models=2)
