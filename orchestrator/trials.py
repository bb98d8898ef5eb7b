"""The tasks of one configuration in tuning: a base, its retrain and the unlearn task, on splits of tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator import catalogue, forget_recipes
from orchestrator.cells import Cell, Place
from orchestrator.config import Choice, Grid
from orchestrator.plan import Builder, Task, forget_label

TRACK = "tune"


@dataclass(frozen=True)
class Trial:
    """A method with all its hyper-parameters in a place of a grid, in one phase of tuning, on one seed."""

    dataset: str
    architecture: str
    forget: Choice
    method: str
    hyperparameters: dict[str, Any]
    phase: str
    seed: int


def trial_tasks(grid: Grid, trial: Trial) -> tuple[Task, Task, Task]:
    """Base, retrain and unlearn task of a trial: as on the main track, with members, seeds and a validation
    set that no reported model has. Of a forget set that goes in several requests, all goes at once.
    """
    method = catalogue.plugins("methods")[trial.method]
    builder = Builder(grid.model_copy(update={"requests": 1}), trial.dataset, trial.architecture)
    builder.methods = {
        trial.method: {
            "name": method.name,
            "version": method.version,
            "hyperparameters": trial.hyperparameters,
        }
    }
    forget = forget_recipes.specification(trial.dataset, trial.forget)
    listed = {"listed": forget["ids"]["sha256"]} if "ids" in forget else {}
    members = {"track": TRACK, "phase": trial.phase, "val_fraction": grid.val_fraction} | listed
    variant = builder.variant(method)
    cell = Cell("", builder.known.name, trial.architecture, forget_label(forget), 0, {}, {}, [variant])
    place = Place(TRACK, trial.seed, members, 1, True)
    builder.fill(cell, forget, place, method.training, [variant], {}, ())
    key = (TRACK, trial.seed, 0)
    known = cell.references(variant.training)
    ids = (known.bases[key], known.retrains[key], variant.tasks[key])
    base, retrain, unlearn = (builder.tasks[task] for task in ids)
    return base, retrain, unlearn
