"""Training images from what plug-ins declare, and hours from these and from timed runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import overview
from orchestrator.cost import hours, images, training_images
from orchestrator.keys import canonical
from orchestrator.plan import Plan, Task
from orchestrator.store import Store
from tests.test_plan import plan_of

POOL, MEMBERS = 1437, 1437 * 0.85  # of digits; a validation set of 15 %


def spec_of(plan: Plan, kind: str, track: str = "main") -> dict[str, Any]:
    return next(t.spec for t in plan.tasks if t.kind == kind and t.spec["members"]["track"] == track)


# ---- images ----------------------------------------------------------------------------------------------


def test_images_of_each_kind_of_task_by_hand() -> None:
    """Two epochs of digits; finetune passes over the retain set `epochs` times and over nothing else."""
    plan = plan_of(forget=[{"random": {"fraction": 0.2}}], methods=[{"finetune": {"epochs": 7}}])
    assert images(spec_of(plan, "base")) == pytest.approx(2 * MEMBERS)
    assert images(spec_of(plan, "retrain")) == pytest.approx(2 * 0.8 * MEMBERS)
    assert images(spec_of(plan, "unlearn")) == pytest.approx(7 * 0.8 * MEMBERS)
    assert images(spec_of(plan, "base", "audit")) == pytest.approx(2 * MEMBERS / 2)  # half of the members
    assert images(spec_of(plan, "unlearn", "audit")) == pytest.approx(7 * 0.8 * MEMBERS / 2)


def test_images_where_classes_are_forgotten() -> None:
    """Three of ten classes: gradient ascent sees their samples, `epochs` times."""
    grid = {"forget": [{"class": {"classes": [0, 4, 5]}}], "methods": [{"gradient_ascent": {"epochs": 4}}]}
    plan = plan_of(**grid)
    assert images(spec_of(plan, "unlearn")) == pytest.approx(4 * 0.3 * MEMBERS)
    assert images(spec_of(plan, "retrain")) == pytest.approx(2 * 0.7 * MEMBERS)


def test_sharing_saves_images() -> None:
    """Two methods on two seeds: two bases and two retrains instead of four of each."""
    plan = plan_of(seeds=2, audit=None, methods=["finetune", "gradient_ascent"])
    facts = training_images(plan)
    unlearn = sum(images(task.spec) for task in plan.tasks if task.kind == "unlearn")
    trained = images(spec_of(plan, "base")) + images(spec_of(plan, "retrain"))
    assert facts["training_images"] == pytest.approx(2 * trained + unlearn)
    assert facts["unshared_training_images"] == pytest.approx(4 * trained + unlearn)


# ---- hours -----------------------------------------------------------------------------------------------


def timed(task: Task, wall_s: float | None, evaluate_s: float | None = 0.0) -> dict[str, Any]:
    return task.columns() | {"wall_s": wall_s, "evaluate_s": evaluate_s, "spec": canonical(task.spec)}


def test_hours_by_hand() -> None:
    """Two bases at a mean of (10 + 30)/2 + 4 s, two retrains at 20 s, two unlearn tasks at 1 s."""
    plan = plan_of(audit=None)
    one = {task.kind: task for task in plan.tasks}
    rows = [timed(one["base"], 10, 4), timed(one["base"], 30, 4), timed(one["retrain"], 20)]
    rows.append(timed(one["unlearn"], 1, None))
    found, guessed = hours(plan.tasks, rows)
    assert found == pytest.approx((2 * 24 + 2 * 20 + 2 * 1) / 3600) and guessed == 0
    assert hours([], rows) == (0, 0)


def test_a_task_of_other_epochs_takes_the_time_of_its_images() -> None:
    """Timed at 2 epochs, planned at 30: fifteen times the seconds of training, the same of evaluation."""
    short, long = (plan_of(audit=None, training={"all": {"epochs": e}}) for e in (2, 30))
    rows = [timed(task, 6.0, 1.0) for task in short.tasks if task.kind == "base"]
    bases = [task for task in long.tasks if task.kind == "base"]
    assert hours(bases, rows) == (pytest.approx(len(bases) * (6 * 15 + 1) / 3600), 0)


def test_what_was_never_timed_is_taken_at_the_pace_of_the_bases() -> None:
    plan = plan_of(audit=None, methods=[{"finetune": {"epochs": 5}}], forget=[{"random": {"fraction": 0.2}}])
    one = {task.kind: task for task in plan.tasks}
    rows = [timed(one["base"], 40, 3)]
    found, guessed = hours([one["unlearn"]], rows)
    assert found == pytest.approx((40 * (5 * 0.8) / 2 + 3) / 3600)  # 4 passes against 2, and an evaluation
    assert guessed == 1
    assert hours(plan.tasks, rows)[1] == 4  # retrains and unlearn tasks of two seeds


def test_no_hours_without_a_timed_base_on_the_same_architecture() -> None:
    plan = plan_of(audit=None, architectures=["cnn_small", "resnet18"])
    assert hours(plan.tasks, []) == (None, 0)
    rows = [timed(task, 1.0) for task in plan.tasks if task.spec["architecture"]["name"] == "cnn_small"]
    assert hours(plan.tasks, rows) == (None, 0)


def test_gpu_hours_come_from_gpus_only(tmp_path: Path) -> None:
    plan, store = plan_of(audit=None), Store.create(str(tmp_path / "results"))
    rows = [
        task.columns()
        | {"status": "done", "attempt": 1, "wall_s": 36.0, "evaluate_s": 0.0, "device": "cpu (x)"}
        | {"spec": canonical(task.spec)}
        for task in plan.tasks[:3]
    ]
    store.write_part("runs", rows, "p")
    facts = overview.of_plan(plan, store)
    assert (facts["done"], facts["gpu_hours"], facts["devices"]) == (3, None, ["cpu (x)"])
    assert facts["device_hours"] == pytest.approx(3 * 0.01)  # the three tasks that are left
    store.write_part("runs", [row | {"attempt": 2, "device": "NVIDIA X", "wall_s": 3.6} for row in rows], "q")
    facts = overview.of_plan(plan, store)
    assert facts["gpu_hours"] == pytest.approx(3 * 0.001)


def test_a_failed_task_is_not_done_and_gives_no_time(tmp_path: Path) -> None:
    plan, store = plan_of(audit=None), Store.create(str(tmp_path / "results"))
    rows = [task.columns() | {"status": "oom", "attempt": 1, "device": "cpu"} for task in plan.tasks]
    store.write_part("runs", rows, "p")
    facts = overview.of_plan(plan, store)
    assert (facts["done"], facts["device_hours"]) == (0, None)
