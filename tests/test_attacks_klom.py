"""KLoM: the null level, the direction, and no sample lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.klom import BINS, CLIP, FLOOR, binned_kl, divergences, gaussian_kl, klom

SEEDS = st.integers(0, 10_000)


def gaussian_worlds(models, distance, samples=2000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(distance, 1, (models, samples)), rng.normal(0, 1, (models, samples))


def kl_by_loops(first, second, index_of=None):
    """The definition, one sample and one model at a time."""
    low, high = min(first.min(), second.min()), max(first.max(), second.max())
    index_of = index_of or (lambda x: min(int((x - low) / (high - low) * BINS), BINS - 1))
    p, q = np.zeros(BINS), np.zeros(BINS)
    for side, shares in ((first, p), (second, q)):
        for x in side:
            if index_of(x) < BINS:
                shares[index_of(x)] += 1 / len(side)
    return sum(a * np.log(a / max(b, FLOOR)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize(
    ("models", "mean", "percentile_95"),
    [(100, 0.35, 0.65), (200, 0.15, 0.28), (512, 0.05, 0.09), (1280, 0.018, 0.033)],
)
def test_the_null_level_is_that_of_the_number_of_models(models, mean, percentile_95):
    """Published to two digits: half a unit of the last one and Monte-Carlo error, 3 % and 6 %."""
    found = divergences(*gaussian_worlds(models, 0)).forward
    digit = 0.0005 if models == 1280 else 0.005
    assert found.mean == pytest.approx(mean, abs=digit + 0.03 * mean)
    assert found.percentile_95 == pytest.approx(percentile_95, abs=digit + 0.06 * percentile_95)


@pytest.mark.parametrize(("distance", "mean"), [(0.5, 0.56), (1.0, 1.20)])
def test_with_100_models_the_binned_estimate_is_far_above_the_truth(distance, mean):
    found = divergences(*gaussian_worlds(100, distance))
    assert found.forward.mean == pytest.approx(mean, rel=0.03)
    assert found.forward.mean > distance**2 / 2 + 0.4


def test_the_plug_in_has_the_published_null_and_hardly_any_bias():
    null = divergences(*gaussian_worlds(100, 0)).gaussian_forward
    assert null.mean == pytest.approx(0.020, abs=0.001)
    assert null.percentile_95 == pytest.approx(0.058, abs=0.004)
    assert divergences(*gaussian_worlds(100, 1)).gaussian_forward.mean == pytest.approx(0.53, abs=0.01)


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 2.0])
def test_the_plug_in_tends_to_half_the_squared_distance(distance):
    a, b = gaussian_worlds(20_000, distance, samples=20)
    # 20 samples of standard deviation d sqrt(2 / N) and a bias of about 2 / N.
    error = 4 * distance * np.sqrt(2 / 20_000 / 20) + 4e-4
    for direction in (gaussian_kl(a, b), gaussian_kl(b, a)):
        assert direction.mean() == pytest.approx(distance**2 / 2, abs=error)


def test_the_plug_in_of_unequal_spreads_has_a_direction():
    """KL(N(0,1) || N(0,4)) = log 2 + 1/8 - 1/2 = .318, the other way round 2 - 1/2 - log 2 = .807."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (50_000, 4)), rng.normal(0, 2, (50_000, 4))
    assert gaussian_kl(a, b) == pytest.approx(np.log(2) + 1 / 8 - 1 / 2, abs=0.03)
    assert gaussian_kl(b, a) == pytest.approx(2 - 1 / 2 - np.log(2), abs=0.06)


def test_binned_divergence_equals_the_definition():
    a, b = gaussian_worlds(30, 0.7, samples=40)
    expected = [kl_by_loops(x, y) for x, y in zip(a.T, b.T, strict=True)]
    np.testing.assert_allclose(binned_kl(a, b), expected, rtol=1e-12)


def test_directions_are_named_as_computed():
    """Swapped arguments, as in a public driver, give another number, and here it would show."""
    rng = np.random.default_rng(2)
    unlearned, retrained = rng.normal(0, 0.3, (200, 50)), rng.normal(0, 1, (200, 50))
    found = klom(unlearned, retrained)
    swapped = klom(retrained, unlearned)
    assert found.full.forward.mean == pytest.approx(binned_kl(unlearned, retrained).mean())
    assert found.full.backward == swapped.full.forward
    assert found.full.backward.mean > 2 * found.full.forward.mean


def test_a_lost_right_most_sample_would_show():
    """The known defect: the largest margin falls into a bin after the last, and its mass is lost.

    Half of the unlearned models share the largest margin: all of their divergence is in that bin.
    """
    first, second = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0, 0.0])
    lossy = kl_by_loops(first, second, index_of=lambda x: int(x * BINS))
    found = binned_kl(first[:, None], second[:, None])[0]
    assert found == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / FLOOR))
    assert lossy < 0 < found


def test_the_floor_is_half_against_half_and_not_a_set_against_itself():
    """The known defect: the oracle compared with itself is 0, which no method can have."""
    rng = np.random.default_rng(3)
    retrained, unlearned = rng.normal(0, 1, (200, 2000)), rng.normal(0, 1, (100, 2000))
    found = klom(unlearned, retrained)
    assert binned_kl(retrained, retrained).max() == 0
    assert found.null.models == found.halved.models == 100
    assert found.null.forward.mean == pytest.approx(0.35, abs=0.015)
    assert found.halved.forward.mean == pytest.approx(found.null.forward.mean, rel=0.03)
    # 1.2 would look like a large divergence where .35 is none: the null says so.
    worse = klom(unlearned + 1, retrained)
    assert worse.halved.forward.mean > 3 * worse.null.forward.mean


def test_halves_are_disjoint_and_equal_in_size():
    retrained = np.tile(np.arange(9.0)[:, None], (1, 3))
    found = klom(retrained[:7], retrained)
    assert found.full.models == 7 and found.halved.models == found.null.models == 4
    assert found.null.forward.mean > 1  # no model is in both halves, so no value is in both


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(4, 60), st.integers(4, 60))
def test_no_divergence_is_negative_and_a_set_has_none_from_itself(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, (n, 5)), np.round(rng.normal(0, 1, (m, 5)))
    for kl in (binned_kl, gaussian_kl):
        assert (kl(a, b) >= 0).all() and np.isfinite(kl(a, b)).all()
        assert kl(b, b) == pytest.approx(0, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(-32, 32))
def test_a_common_shift_changes_nothing(seed, shift):
    """Multiples of 1/64 within +-100: shifting is exact."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-1000, 1000, (20, 4)) / 64 for _ in range(2))
    np.testing.assert_allclose(binned_kl(a + shift, b + shift), binned_kl(a, b), rtol=1e-12)
    np.testing.assert_allclose(gaussian_kl(a + shift, b + shift), gaussian_kl(a, b), rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_no_model_is_lost_at_the_right_edge(seed):
    """With every model in one of two bins, what each direction says follows from counts alone."""
    rng = np.random.default_rng(seed)
    n = 40
    k, m = rng.integers(1, n, 2)
    a = np.repeat([0.0, 7.3], [n - k, k])[:, None]
    b = np.repeat([0.0, 7.3], [n - m, m])[:, None]
    expected = sum(x / n * np.log(x / y) for x, y in ((k, m), (n - k, n - m)))
    assert binned_kl(a, b)[0] == pytest.approx(expected, abs=1e-12)


def test_margins_are_clipped_and_constant_margins_agree():
    """One model at 1e6 would put all others into one bin."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 30, (100, 1)), rng.normal(60, 30, (100, 1))
    a[0] = -1e6
    expected = a.copy()
    expected[0] = -CLIP
    assert binned_kl(a, b) == pytest.approx(binned_kl(expected, b))
    constant = np.full((5, 2), 3.0)
    assert divergences(constant, constant).forward.mean == 0
    assert divergences(constant, constant).gaussian_forward.mean == 0


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 5), (9, 5)), r"unlearned: shape \(3, 5\).*at least 4"),
        (((9, 5), (9, 4)), "5 and 4 samples"),
        (((9,), (9, 4)), r"unlearned: shape \(9,\)"),
    ],
)
def test_wrong_shapes_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        klom(*(np.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_model_is_refused_and_not_dropped(bad):
    phi = np.zeros((6, 3))
    phi[2] = bad
    with pytest.raises(ValueError, match="retrained: 3 of 18 phi are not finite"):
        klom(np.zeros((6, 3)), phi)
