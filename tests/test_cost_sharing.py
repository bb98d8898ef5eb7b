"""Sharing: no plan trains the same thing twice, and what that saves is counted right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load
from orchestrator.cost import alone, images, training_images
from orchestrator.keys import canonical, digest
from orchestrator.plan import Plan
from orchestrator.tuned_plan import plan_of as plan_of_grid
from tests.conftest import ROOT, Lethe
from tests.test_plan import plan_of

GRIDS = sorted((ROOT / "grids").glob("*.yaml"))
MEMBERS = 1437 * 0.85  # of digits, less a validation set of 15 %


def test_there_are_grids() -> None:
    assert len(GRIDS) >= 7


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_no_two_tasks_of_a_grid_are_the_same(path: Path) -> None:
    check_tasks(plan_of_grid(load(str(path)), None))


MIXED: dict[str, Any] = {
    "architectures": ["cnn_small", "vit_tiny"],
    "forget": [{"random": {"fraction": 0.2}}, {"random": {"fraction": 0.3}}, {"class": {"classes": [3]}}],
    "methods": ["finetune", "scrub", "mnemonic_code"],
}


def test_no_two_tasks_of_several_forget_recipes_and_trainings_are_the_same() -> None:
    plan = plan_of(**MIXED, tune={"trials": 2})
    check_tasks(plan)
    bases = Counter(task.spec["members"]["track"] for task in plan.tasks if task.kind == "base")
    trainings = 2  # plain, and with codes; each serves the three forget recipes
    assert bases == {"main": 2 * 2 * trainings, "audit": 2 * 8 * trainings}


def check_tasks(plan: Plan) -> None:
    """Ids are those of the specifications and unique, and so is what is trained, however it is scored."""
    assert len({task.id for task in plan.tasks}) == len(plan.tasks)
    assert all(task.id == digest(task.spec) for task in plan.tasks)
    trained = Counter(
        canonical({key: value for key, value in task.spec.items() if key not in ("views", "columns")})
        for task in plan.tasks
    )
    assert max(trained.values()) == 1


# ---- by hand ---------------------------------------------------------------------------------------------


def small() -> Plan:
    """Two methods of 3 and 4 epochs, two seeds, and eight bases with three forget sets each."""
    methods = [{"finetune": {"epochs": 3}}, {"gradient_ascent": {"epochs": 4}}]
    return plan_of(methods=methods, audit={"pairs": 4, "forget_sets": 3, "retrains": 1})


def test_counts_with_and_without_sharing_by_hand() -> None:
    """A base serves its methods and forget sets, a retrain of a forget set its methods, and of the audit the
    first set alone is retrained; alone every unlearned model has one of each.
    """
    counts = small().counts()
    unlearn = 2 * (2 + 8 * 3)
    assert (counts["base"], counts["retrain"], counts["unlearn"]) == (2 + 8, 2 + 8, unlearn)
    assert counts["tasks"] == 2 * 10 + unlearn and counts["unshared_tasks"] == 3 * unlearn


def test_training_images_with_and_without_sharing_by_hand() -> None:
    """Two epochs of training, a fifth forgotten; on the audit track a base has half of the members."""
    plan = small()
    main, audit = MEMBERS, MEMBERS / 2
    passes = 3 * 0.8 + 4 * 0.2  # of both methods together
    unlearn = 2 * passes * main + 8 * 3 * passes * audit
    both = 2 * 1.8  # epochs of a base, and of a retrain without the fifth
    facts = training_images(plan)
    assert facts["training_images"] == pytest.approx(2 * both * main + 8 * both * audit + unlearn)
    assert facts["unshared_training_images"] == pytest.approx(
        2 * 2 * both * main + 2 * 8 * 3 * both * audit + unlearn
    )


def test_alone_every_unlearned_model_has_a_base_and_a_retrain() -> None:
    plan = small()
    times = Counter[str]()
    for task, count in alone(plan).items():
        times[plan.by_id[task].kind] += count
    unlearn = 2 * (2 + 8 * 3)
    assert times == {"base": unlearn, "retrain": unlearn, "unlearn": unlearn}


def test_alone_a_later_request_has_a_retrain_and_goes_on_from_the_one_before() -> None:
    plan = plan_of(requests=2, audit=None)
    times = Counter[str]()
    for task, count in alone(plan).items():
        times[plan.by_id[task].kind] += count
    assert times == {"base": 2, "retrain": 4, "unlearn": 4}
    of = {task.id: images(task.spec) for task in plan.tasks}
    unshared = sum(count * of[task] for task, count in alone(plan).items())
    assert training_images(plan)["unshared_training_images"] == pytest.approx(unshared)


def test_the_plan_of_the_paper_says_what_sharing_saves(lethe: Lethe) -> None:
    """18 methods, 5 datasets, 2 architectures, 10 seeds, and 6 methods on 64 bases with 10 forget sets."""
    done = lethe("plan", ROOT / "grids" / "paper.yaml", "--json")
    facts = json.loads(done.stdout)
    unlearn = 18 * 5 * 2 * 10 + 6 * 64 * 10
    assert facts["unshared_tasks"] == 3 * unlearn
    assert facts["tasks"] == unlearn + 2 * 5 * 2 * 10 + 64 + 128
    assert 0 < facts["training_images"] < facts["unshared_training_images"]
