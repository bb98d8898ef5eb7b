"""A cell of simulated models: its plan, its designs, and a store that holds their φ as finished runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orchestrator.config import Grid
from orchestrator.plan import Plan, Task, make_plan
from orchestrator.store import Store, new_part, score_folder, score_rows
from tests.conftest import grid_data
from workers import designs
from workers.forget.random import Random


def plan_of(pairs: int, fraction: float, sets: int = 2, methods: tuple[str, ...] = ("finetune",)) -> Plan:
    """One seed of the main track and an audit with two retrains per base."""
    options = {"pairs": pairs, "forget_sets": sets, "retrains": 2}
    forget = [{"random": {"fraction": fraction}}]
    return make_plan(
        Grid.model_validate(grid_data(seeds=1, methods=list(methods), forget=forget, audit=options))
    )


def audited(plan: Plan) -> list[Task]:
    """The tasks of the audit track."""
    return [task for task in plan.tasks if task.columns()["track"] == "audit"]


def states_of(task: Task, labels: np.ndarray) -> np.ndarray:
    """The states (pool,) of a task's design."""
    forget = task.spec.get("forget") or {}
    recipe = Random(**forget["parameters"]) if forget else None
    return designs.build("digits", labels, task.spec["members"], recipe, "key", forget.get("draw"))


def rng_of(task: Task, *keys: str, **changes: object) -> np.random.Generator:
    """Draws of one model, or of the one that differs from it in some columns: by its place in the grid, so
    that they stay what they are when a version, and with it every id, changes.
    """
    facts = task.columns() | changes
    names = ("kind", "track", "forget", "method", "training", "seed", "forget_index")
    return designs.rng(*keys, *(str(facts[name]) for name in names))


def fill(store: Store, plan: Plan, labels: np.ndarray, phi: Callable[[Task, np.ndarray], np.ndarray]) -> None:
    """Put every task of the audit track into a store, with φ (pool,) = phi(task, states)."""
    part, rows, made = new_part(), [], {}
    scores: dict[str, list] = {}
    for task in audited(plan):
        states, facts = states_of(task, labels), task.columns()
        design = f"{task.spec['members']}{task.spec.get('forget')}"
        made[design] = {"design": design, "n_pool": len(labels), "states": designs.pack(states)}
        rows.append(facts | {"status": "done", "attempt": 1, "part": part, "design": design})
        values = phi(task, states).astype(np.float32)
        folder = score_folder("digits", "cnn_small", task.kind, facts["method"])
        scores.setdefault(folder, []).extend(score_rows(task.id, values, values > 0))
    store.write_part("designs", list(made.values()), part)
    for folder, found in scores.items():
        store.write_part("scores", found, part, folder)
    store.write_part("runs", rows, part)
