"""phi, loss and confidence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from attacks.scores import confidence_from_phi, loss_from_phi, phi_from_logits

LOGITS = arrays(np.float64, st.tuples(st.just(3), st.integers(2, 6)), elements=st.floats(-1e4, 1e4))
SMALL = arrays(np.float64, st.tuples(st.just(3), st.integers(2, 6)), elements=st.floats(-8, 8))
LABELS = np.array([0, 1, 1])


@settings(max_examples=60)
@given(LOGITS, st.floats(-100, 100))
def test_phi_is_finite_and_ignores_a_common_shift(z, c):
    phi = phi_from_logits(z, LABELS)
    assert np.isfinite(phi).all()
    np.testing.assert_allclose(phi_from_logits(z + c, LABELS), phi, atol=1e-9, rtol=0)


@settings(max_examples=60)
@given(SMALL, st.floats(0.01, 5))
def test_phi_rises_with_the_true_logit_and_falls_with_any_other(z, step):
    phi = phi_from_logits(z, LABELS)
    for column in range(z.shape[1]):
        moved = z.copy()
        moved[:, column] += step
        change = phi_from_logits(moved, LABELS) - phi
        assert np.array_equal(np.sign(change), np.where(column == LABELS, 1, -1))


@settings(max_examples=60)
@given(SMALL)
def test_phi_is_the_log_odds_and_gives_cross_entropy_and_confidence(z):
    log_p = log_softmax(z, axis=1)[np.arange(3), LABELS]
    p = np.exp(log_p)
    phi = phi_from_logits(z, LABELS)
    np.testing.assert_allclose(phi, log_p - np.log1p(-p), atol=1e-7)
    np.testing.assert_allclose(loss_from_phi(phi), -log_p, atol=1e-12)
    np.testing.assert_allclose(confidence_from_phi(phi), p, atol=1e-12)


def test_two_classes_give_the_difference_and_saturation_loses_nothing():
    z = np.array([[40.0, -60.0], [3.0, 5.0]])
    np.testing.assert_array_equal(phi_from_logits(z, [0, 0]), [100.0, -2.0])
    assert loss_from_phi(np.array([-1e4, 1e4])).tolist() == [1e4, 0.0]


def test_half_precision_comes_back_as_float32_computed_in_float64():
    z = np.array([[12, 0, 0]], dtype=np.float16)
    phi = phi_from_logits(z, [0])
    assert phi.dtype == np.float32
    assert phi[0] == pytest.approx(12 - np.log(2), abs=1e-6)  # 7.6 is the ceiling when it goes through 1 - p
    assert phi_from_logits(z.astype(np.float64), [0]).dtype == np.float64


def test_a_diverged_model_gives_nan_and_not_a_number():
    z = np.array([[np.nan, 0.0], [np.inf, np.inf], [1.0, 0.0]])
    assert np.isnan(phi_from_logits(z, [0, 1, 0])).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 1)), [0, 0], "at least 2 classes"),
        (np.zeros((2, 3)), [0], "does not match"),
        (np.zeros((2, 3)), [0.0, 1.0], "not an integer"),
        (np.zeros((2, 3)), [0, 3], "allowed range 0..2"),
        (np.zeros((2, 3)), [-1, 0], "allowed range 0..2"),
    ],
)
def test_bad_input_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        phi_from_logits(logits, labels)
