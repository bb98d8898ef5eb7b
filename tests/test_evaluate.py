"""φ against its formula in double precision, and the numbers that follow from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import entropy as attack
from methods.base import Diverged
from workers import evaluate as module
from workers.data import Arrays, DeviceDataset
from workers.designs import FORGET, OUT, RETAIN, VAL
from workers.evaluate import evaluate, logit_margin, seen, summary, views_of
from workers.outcome import Scores

LOGITS = st.lists(st.lists(st.floats(-80, 80, width=32), min_size=4, max_size=4), min_size=1, max_size=8)


def phi_by_hand(logits: np.ndarray, label: int) -> float:
    """log p_y − log(1 − p_y) in float64, by the definition."""
    others = [z for c, z in enumerate(logits.tolist()) if c != label]
    top = max(others)
    return float(logits[label]) - (top + math.log(sum(math.exp(z - top) for z in others)))


@settings(max_examples=100)
@given(LOGITS)
def test_logit_margin_is_the_log_odds_of_the_true_class(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows, dtype=torch.float32)
    labels = torch.arange(len(rows)) % 4
    phi = logit_margin(logits, labels)
    expected = [phi_by_hand(z, int(y)) for z, y in zip(logits.double().numpy(), labels, strict=True)]
    assert phi.dtype == torch.float32
    np.testing.assert_allclose(phi.numpy(), expected, rtol=1e-5, atol=2e-5)


@settings(max_examples=100)
@given(LOGITS)
def test_cross_entropy_is_softplus_of_minus_phi(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows, dtype=torch.float32)
    labels = torch.arange(len(rows)) % 4
    loss = nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    phi = logit_margin(logits, labels).double()
    np.testing.assert_allclose(np.logaddexp(0, -phi.numpy()), loss.numpy(), rtol=1e-5, atol=2e-5)


def test_logit_margin_keeps_what_probabilities_lose() -> None:
    logits = torch.tensor([[60.0, 0.0], [-3000.0, 5.0]])
    assert logit_margin(logits, torch.tensor([0, 0])).tolist() == [60.0, -3005.0]
    assert logit_margin(logits.bfloat16(), torch.tensor([0, 0])).dtype == torch.float32


class Plugin:
    name, num_classes = "unit", 3
    mean, std = (0.0,), (1.0,)
    augment_pad, augment_flip = 4, True  # evaluation draws nothing: a mirrored view is one more score


def dataset(count: int = 23) -> DeviceDataset:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8), rng.integers(0, 3, count)
    return DeviceDataset(
        Plugin, Arrays(images[:15], labels[:15], images[15:], labels[15:]), torch.device("cpu")
    )


def net() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def test_evaluate_scores_every_sample_in_order_and_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.BATCH, "cpu", 7)
    data, model = dataset(), net().train()
    scores = evaluate(model, data)
    assert not model.training and model[2].num_batches_tracked == 0
    with torch.no_grad():
        logits = model(data.images.float() / 255)
    phi = [phi_by_hand(z, int(y)) for z, y in zip(logits.double().numpy(), data.host_labels, strict=True)]
    np.testing.assert_allclose(scores.phi, phi, atol=1e-4)
    assert scores.phi.dtype == np.float32 and scores.correct.dtype == bool
    assert scores.correct.tolist() == (logits.argmax(1).numpy() == data.host_labels).tolist()


def test_views_are_fixed_and_the_same_for_every_model() -> None:
    """Identity first; mirrored only where training mirrors; strong: nine places, mirrored or not."""
    assert views_of(False) == [(False, 0, 0)] and views_of(True) == [(False, 0, 0), (True, 0, 0)]
    assert len(views_of(False, strong=True)) == 9 and len(set(views_of(True, strong=True))) == 18
    assert views_of(True, strong=True)[:2] == views_of(True)


def test_a_view_moves_and_mirrors_the_image() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    assert seen(image, (False, 0, 0)).tolist() == image.tolist()
    assert seen(image, (True, 0, 0))[0, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert seen(image, (False, 1, 0))[0, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert seen(image, (False, 0, -1))[0, 0].tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]
    assert seen(image, (True, -1, 1))[0, 0].tolist() == [[0, 6, 5], [0, 9, 8], [0, 0, 0]]


def test_a_further_view_is_the_score_of_the_images_seen_so() -> None:
    data, model = dataset(), net()
    scores = evaluate(model, data)
    (mirrored,) = scores.views
    data.images = data.images.flip(-1)
    again = evaluate(model, data)
    np.testing.assert_array_equal(mirrored, again.phi)
    np.testing.assert_array_equal(again.views[0], scores.phi)
    assert len(evaluate(model, data, strong=True).views) == 17
    data.flip = False
    assert evaluate(model, data).views == ()


def test_evaluate_raises_where_phi_is_not_finite() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight.fill_(math.inf)
    with pytest.raises(Diverged, match="φ of 46 of 46 scores is not finite"):
        evaluate(model, dataset())


def test_summary_by_hand() -> None:
    phi = np.array([0.0, math.log(3), -math.log(3), 0.0, 9.0, math.log(3), math.log(3)], dtype=np.float32)
    correct = np.array([True, True, False, True, True, True, False])
    states = np.array([RETAIN, RETAIN, FORGET, VAL, OUT], dtype=np.uint8)  # and two test samples
    row = summary(Scores(phi, correct), states)
    low, middle, high = math.log(4 / 3), math.log(2), math.log(4)
    expected = {
        "ra": 1.0, "retain_loss": (middle + low) / 2,
        "fa": 0.0, "forget_loss": high,
        "va": 1.0, "val_loss": middle,
        "ta": 0.5, "test_loss": low,
    }  # fmt: skip
    assert row == pytest.approx(expected, rel=1e-6)


def test_summary_of_an_empty_set_is_none() -> None:
    row = summary(
        Scores(np.zeros(3, dtype=np.float32), np.ones(3, dtype=bool)), np.array([RETAIN, RETAIN], np.uint8)
    )
    assert row["fa"] is None and row["forget_loss"] is None and row["va"] is None
    assert row["ra"] == 1.0 and row["test_loss"] == pytest.approx(math.log(2))


# ---- further columns -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(LOGITS)
def test_entropies_are_those_of_the_attacks_in_double_precision(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows, dtype=torch.float32)
    labels = torch.arange(len(rows)) % 4
    double = logits.double().numpy()
    for name, expected in (
        ("entropy", attack.entropy(double)),
        ("modified_entropy", attack.modified_entropy(double, labels.numpy())),
    ):
        found = module.COLUMNS[name](logits, labels)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-12)


def test_modified_entropy_of_two_classes_is_one_term() -> None:
    """M = −2 (1 − p_y) log p_y (spec: attacks §3.2)."""
    z = torch.linspace(-30, 30, 61)
    found = module.modified_entropy(torch.stack([z, -z], dim=1), torch.zeros(61, dtype=torch.long))
    expected = -2 * torch.sigmoid(-2 * z.double()) * nn.functional.logsigmoid(2 * z.double())
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-30)


def test_entropies_of_certain_predictions_are_finite() -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0], [500.0, 0.0, 0.0]])
    for labels in ([0, 0], [1, 1]):
        for column in module.COLUMNS.values():
            assert not torch.isnan(column(logits, torch.tensor(labels))).any()


def test_columns_are_stored_only_where_asked_for_and_change_no_score() -> None:
    data, model = dataset(), net()
    plain, further = evaluate(model, data), evaluate(model, data, columns=["modified_entropy", "entropy"])
    assert plain.columns == {} and further.columns.keys() == {"entropy", "modified_entropy"}
    np.testing.assert_array_equal(plain.phi, further.phi)
    with torch.no_grad():
        logits = model(data.images.float() / 255).double().numpy()
    for name, values in (
        ("entropy", attack.entropy(logits)),
        ("modified_entropy", attack.modified_entropy(logits, data.host_labels)),
    ):
        assert further.columns[name].dtype == np.float16 and further.columns[name].shape == (23,)
        np.testing.assert_allclose(further.columns[name], values, rtol=1e-3)


def test_a_column_beyond_float16_is_its_largest_number() -> None:
    assert module._half(torch.tensor([1e6, 1.0])).tolist() == [65504.0, 1.0]
