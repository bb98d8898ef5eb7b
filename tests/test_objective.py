"""What tuning minimises, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from orchestrator import objective

RETRAIN = {"ra": 1.0, "fa": 0.9, "va": 0.8, "val_auc": 0.5, "val_mia": 0.5, "wall_s": 10.0}
ROW = {"ra": 0.7, "fa": 1.0, "va": 0.6, "val_auc": 0.7, "val_mia": 0.6, "wall_s": 2.0}


def test_retrain_distance_is_the_root_mean_square_of_four_gaps() -> None:
    parts = objective.components("retrain_distance", ROW, RETRAIN)
    assert parts == pytest.approx((0.3, 0.1, 0.2, 0.4))  # the AUC counts twice: at most ½ apart
    expected = math.sqrt((0.09 + 0.01 + 0.04 + 0.16) / 4)
    assert objective.distance("retrain_distance", ROW, RETRAIN) == pytest.approx(expected)


def test_paper_has_a_third_of_each_gap_and_the_attack_without_the_retrain() -> None:
    parts = objective.components("paper", ROW, RETRAIN | {"val_mia": 0.9, "val_auc": 0.1})
    assert parts == pytest.approx((0.1, 0.1 / 3, 0.2 / 3, 0.2))
    expected = math.sqrt(0.01 + 0.01 / 9 + 0.04 / 9 + 0.04)
    assert objective.distance("paper", ROW, RETRAIN) == pytest.approx(expected)


@pytest.mark.parametrize("kind", objective.OBJECTIVES)
def test_the_retrain_itself_is_at_zero_and_the_test_set_is_not_looked_at(kind: str) -> None:
    assert objective.distance(kind, RETRAIN, RETRAIN) == 0
    assert objective.distance(kind, ROW | {"ta": 0.0}, RETRAIN | {"ta": 1.0}) == objective.distance(
        kind, ROW, RETRAIN
    )


@pytest.mark.parametrize("kind", objective.OBJECTIVES)
def test_the_worst_is_one_in_each_part(kind: str) -> None:
    worst = {"ra": 0.0, "fa": 0.0, "va": 0.0, "val_auc": 1.0, "val_mia": 1.0}
    best = {"ra": 1.0, "fa": 1.0, "va": 1.0, "val_auc": 0.5, "val_mia": 0.5}
    third = (1 / 3, 1 / 3, 1 / 3, 1.0)
    assert objective.components(kind, worst, best) == pytest.approx(third if kind == "paper" else (1.0,) * 4)


def test_parts_are_averaged_over_seeds_before_they_are_put_together() -> None:
    pairs = [(ROW, RETRAIN), (RETRAIN, RETRAIN)]
    assert objective.mean_components("retrain_distance", pairs) == pytest.approx((0.15, 0.05, 0.1, 0.2))


def test_the_noise_floor_is_the_mean_over_pairs_of_retrains() -> None:
    retrains = [RETRAIN | {"ra": ra} for ra in (1.0, 0.9, 0.7)]
    assert objective.noise_floor("retrain_distance", retrains) == pytest.approx((0.1 + 0.3 + 0.2) / 3 / 2)
    assert objective.noise_floor("retrain_distance", retrains[:1]) is None
