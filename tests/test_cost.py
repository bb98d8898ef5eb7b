"""Training images from what plug-ins declare, and hours from these and from timed runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.halves import compare
from orchestrator import catalogue, overview, plan_cost
from orchestrator.cost import Works, added, images, loads, shape, timed_paces, training_images
from orchestrator.keys import canonical
from orchestrator.paces import Estimate
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


def timed(task: Task, wall_s: float, evaluate_s: float | None = 0.0) -> dict[str, Any]:
    return task.columns() | {"wall_s": wall_s, "evaluate_s": evaluate_s, "spec": canonical(task.spec)}


def estimated(plan: Plan, tasks: list[Task], rows: list[dict[str, Any]]) -> Estimate:
    works = Works(plan.grid)
    return timed_paces(rows, works).estimate(added(loads(tasks, works).values()))


def test_hours_by_hand() -> None:
    """Two bases at a mean of (10 + 30)/2 s, two retrains at 20 s, two unlearn tasks at 1 s, six evaluations
    at a mean of (4 + 4 + 1)/3 s; one was not timed.
    """
    plan = plan_of(audit=None)
    one = {task.kind: task for task in plan.tasks}
    rows = [timed(one["base"], 10, 4), timed(one["base"], 30, 4), timed(one["retrain"], 20, 1)]
    rows.append(timed(one["unlearn"], 1, None))
    found = estimated(plan, plan.tasks, rows)
    assert found.seconds == pytest.approx(2 * 20 + 2 * 20 + 2 * 1 + 6 * 3)
    assert found.borrowed == [] and found.missing == []
    assert estimated(plan, [], rows).seconds == 0


def test_a_world_at_exact_paces_gives_its_hours_and_no_width() -> None:
    """Every image of training takes 2 ms and every one of evaluation .1 ms, on both tracks and for methods
    that make other passes: the hours are these, and the interval has no width.
    """
    methods = [{"finetune": {"epochs": 3}}, "scrub", "fisher_forgetting"]
    plan = plan_of(methods=methods, audit={"pairs": 4, "forget_sets": 2, "retrains": 1})
    works = Works(plan.grid)

    def seconds(task: Task) -> tuple[float, float]:
        return 2e-3 * images(task.spec), 1e-4 * (POOL + 360)

    known = plan.tasks[::2]
    found = estimated(plan, plan.tasks, [timed(task, *seconds(task)) for task in known])
    assert found.seconds == pytest.approx(sum(sum(seconds(task)) for task in plan.tasks))
    assert found.low == pytest.approx(found.seconds, rel=1e-6) == found.high
    assert works.evaluated(plan.tasks[0].spec) == POOL + 360


def test_images_of_an_evaluation_count_once_for_each_view() -> None:
    """CIFAR-10 is mirrored in training, so each of 60,000 is seen twice, and in all nine moves on an audit
    track that asks for them; MNIST is mirrored by the paper's recipe alone.
    """
    audit = {"pairs": 4, "views": "strong"}
    plan = plan_of(datasets=["cifar10", "mnist"], audit=audit, training={"mnist": {"flip": True}})
    found = {
        (task.spec["dataset"]["name"], task.spec["members"]["track"], task.kind): Works(plan.grid).evaluated(
            task.spec
        )
        for task in plan.tasks
    }
    for kind in ("base", "unlearn"):
        assert found["cifar10", "main", kind] == 2 * 60_000
        assert found["cifar10", "audit", kind] == 18 * 60_000
        assert found["mnist", "main", kind] == 2 * 70_000


def test_a_folder_of_pictures_has_its_shape_and_its_test_set() -> None:
    """Its specification says the shape, and its entry in the grid how many test images there are."""
    entry = {"name": "flowers", "path": "flowers", "size": 64, "classes": ["a", "b"], "sha256": "0" * 64}
    entry |= {"pool_size": 100, "test_size": 30, "mean": [0.5] * 3, "std": [0.2] * 3}
    plan = plan_of(datasets=[{"image_folder": entry}], audit=None)
    task, works = plan.tasks[0], Works(plan.grid)
    (work, _), (evaluation, evaluated) = works.of(task.spec, task.dataset, 1.0)
    assert work.shape == evaluation.shape == (3, 64) and evaluated == 130
    assert work.dataset == task.dataset != "flowers"


def test_shapes_are_those_of_the_images() -> None:
    names = ("digits", "mnist", "cifar100", "utkface")
    assert [shape({"name": name}) for name in names] == [(1, 8), (1, 32), (3, 32), (3, 224)]
    assert shape({"name": "image_folder-x", "sha256": "", "size": 64, "mean": [0.5]}) == (1, 64)


def test_every_dataset_tells_the_shape_of_its_images() -> None:
    """Else none of its works can borrow a pace."""
    assert all(isinstance(shape({"name": name}), tuple) for name in catalogue.plugins("datasets"))


def test_a_task_of_other_epochs_takes_the_time_of_its_images() -> None:
    """Timed at 2 epochs, planned at 30: fifteen times the seconds of training, the same of evaluation."""
    short, long = (plan_of(audit=None, training={"all": {"epochs": e}}) for e in (2, 30))
    rows = [timed(task, 6.0, 1.0) for task in short.tasks if task.kind == "base"]
    bases = [task for task in long.tasks if task.kind == "base"]
    assert estimated(long, bases, rows).seconds == pytest.approx(len(bases) * (6 * 15 + 1))


def test_what_was_never_timed_is_taken_at_the_pace_of_the_bases() -> None:
    plan = plan_of(audit=None, methods=[{"finetune": {"epochs": 5}}], forget=[{"random": {"fraction": 0.2}}])
    one = {task.kind: task for task in plan.tasks}
    rows = [timed(one["base"], 40, 3)]
    found = estimated(plan, [one["unlearn"]], rows)
    assert found.seconds == pytest.approx(40 * (5 * 0.8) / 2 + 3)  # 4 passes against 2, and an evaluation
    assert plan_cost.borrowers(found) == 1
    assert plan_cost.borrowers(estimated(plan, plan.tasks, rows)) == 4  # retrains and unlearn tasks


def test_no_hours_without_a_timed_base_on_the_same_architecture() -> None:
    plan = plan_of(audit=None, architectures=["cnn_small", "resnet18"])
    rows = [timed(task, 1.0) for task in plan.tasks if task.spec["architecture"]["name"] == "cnn_small"]
    for known in ([], rows):
        found = estimated(plan, plan.tasks, known)
        assert {work.architecture for work in found.missing} >= {"resnet18"}
        assert plan_cost.hours("", found)["hours"] is None and plan_cost.borrowers(found) == 0


def test_runs_of_methods_that_are_gone_tell_nothing() -> None:
    plan = plan_of(audit=None)
    rows = [timed(task, 1.0, 1.0) for task in plan.tasks]
    gone = json.loads(rows[-1]["spec"])
    gone["method"]["name"] = "gone"
    rows.append(rows[-1] | {"spec": canonical(gone), "wall_s": 1e9})
    assert estimated(plan, plan.tasks, rows).seconds == pytest.approx(2 * len(plan.tasks))


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
    assert facts["gpu_hours_low"] is facts["gpu_hours_high"] is None
    store.write_part("runs", [row | {"attempt": 2, "device": "NVIDIA X", "wall_s": 3.6} for row in rows], "q")
    facts = overview.of_plan(plan, store)
    assert facts["gpu_hours"] == pytest.approx(3 * 0.001)
    assert facts["gpu_hours_low"] <= facts["gpu_hours"] <= facts["gpu_hours_high"]
    assert "seconds [" in overview.plan_text(facts | {"studies_first": None})


def test_a_failed_task_is_not_done_and_gives_no_time(tmp_path: Path) -> None:
    plan, store = plan_of(audit=None), Store.create(str(tmp_path / "results"))
    rows = [task.columns() | {"status": "oom", "attempt": 1, "device": "cpu"} for task in plan.tasks]
    store.write_part("runs", rows, "p")
    facts = overview.of_plan(plan, store)
    assert (facts["done"], facts["device_hours"]) == (0, None)


def test_one_half_of_a_ledger_tells_what_the_other_took(tmp_path: Path) -> None:
    """At exact paces, exactly; in the order in which tasks ended and not that of the ledger."""
    plan, store = plan_of(methods=["finetune", "scrub"]), Store.create(str(tmp_path / "results"))
    rows = [
        timed(task, 1e-3 * images(task.spec), 0.5)
        | {"status": "done", "attempt": 1, "device": "cpu", "finished_at": float(-place)}
        for place, task in enumerate(plan.tasks)
    ]
    store.write_part("runs", rows, "p")
    found = compare(plan.grid, str(tmp_path / "results"))
    assert found["every_other"]["seconds"] == pytest.approx(found["every_other"]["measured_s"])
    first = sum(row["wall_s"] + row["evaluate_s"] for row in rows[: len(rows) - len(rows) // 2])
    assert found["halves"]["measured_s"] == pytest.approx(first)
