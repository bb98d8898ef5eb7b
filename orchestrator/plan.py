"""A grid becomes tasks: pure data, made before anything runs. No dataset is opened and torch is not imported.

Main track: one fixed split; per seed a base, per forget recipe a retrain and an unlearn task for each method.
Audit track: per complementary pair two bases; per forget set of a base an unlearn task for each method, and a
retrain for the first `retrains` of them (spec: attacks, the cross design).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator import catalogue
from orchestrator.config import Choice, Grid
from orchestrator.keys import derived_seed, digest, present


@dataclass(frozen=True, slots=True)
class Task:
    """One of base, retrain, unlearn. `spec` holds everything that decides the result; its digest is `id`."""

    id: str
    spec: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.spec["kind"])

    @property
    def base(self) -> str | None:
        """The id of the base an unlearn task starts from, None for the others."""
        return self.spec.get("base")

    def columns(self) -> dict[str, Any]:
        """What the table runs says of a task before it has run."""
        spec, draw = self.spec, (self.spec.get("forget") or {}).get("draw")
        return {
            "task_id": self.id,
            "kind": spec["kind"],
            "track": spec["members"]["track"],
            "dataset": spec["dataset"]["name"],
            "architecture": spec["architecture"]["name"],
            "forget": forget_label(spec.get("forget")),
            "method": spec["method"]["name"] if "method" in spec else "",
            "seed": spec["seed"],
            "forget_index": draw["index"] if draw else -1,
            "parents": [spec["base"]] if "base" in spec else [],
        }


Key = tuple[str, int, int]  # track, seed (audit track: number of the base), forget set


@dataclass(frozen=True)
class Variant:
    """A method with its hyper-parameters in a cell, and its tasks."""

    method: str
    version: int
    hyperparameters: dict[str, Any]
    tasks: dict[Key, str]


@dataclass(frozen=True)
class Cell:
    """One table of the report: (dataset, architecture, training recipes, forget recipe) and its tasks.

    A base has no forget set, so all keys (track, seed, forget set) of one (track, seed) map to the same base.
    """

    id: str
    dataset: str
    architecture: str
    forget: str
    retrains_per_base: int
    bases: dict[Key, str]
    retrains: dict[Key, str]
    variants: list[Variant]


@dataclass(frozen=True)
class Plan:
    """All tasks of a grid, every base before what starts from it, and the cells they make up."""

    grid: Grid
    tasks: list[Task]
    cells: list[Cell]

    @cached_property
    def by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self.tasks}

    def counts(self) -> dict[str, int]:
        """Tasks per kind, tuning trials, and the models it would be without shared bases and retrains."""
        kinds = Counter(task.kind for task in self.tasks)
        studies = len(self.cells) * len(self.grid.methods)
        return {
            "tasks": len(self.tasks),
            "base": kinds["base"],
            "retrain": kinds["retrain"],
            "unlearn": kinds["unlearn"],
            "tune_trials": studies * self.grid.tune.trials if self.grid.tune else 0,
            "unshared_tasks": 3 * kinds["unlearn"],
        }


def forget_label(recipe: dict[str, Any] | None) -> str:
    """'random(fraction=0.1)' for a forget recipe, '' for none."""
    if recipe is None:
        return ""
    inside = ", ".join(f"{key}={value}" for key, value in sorted(recipe["parameters"].items()))
    return f"{recipe['name']}({inside})"


def make_plan(grid: Grid) -> Plan:
    """The tasks and cells of a grid."""
    cells: list[Cell] = []
    tasks: dict[str, Task] = {}
    for dataset in grid.datasets:
        for architecture in grid.architectures:
            builder = _Builder(grid, dataset, architecture)
            cells += [builder.cell(choice) for choice in grid.forget]
            tasks |= builder.tasks
    return Plan(grid, list(tasks.values()), cells)


class _Builder:
    """Makes the tasks of one (dataset, architecture); equal tasks of several cells are one."""

    def __init__(self, grid: Grid, dataset: str, architecture: str) -> None:
        self.grid, self.dataset, self.architecture = grid, dataset, architecture
        self.tasks: dict[str, Task] = {}
        self.common = {
            "dataset": _versioned("datasets", dataset),
            "architecture": _versioned("architectures", architecture),
        }
        self.recipes = {track: grid.recipe(dataset, architecture, track) for track in ("main", "audit")}
        self.methods = {choice.name: _with_defaults("methods", choice) for choice in grid.methods}

    def add(self, spec: dict[str, Any]) -> str:
        task = Task(digest(spec), spec)
        self.tasks.setdefault(task.id, task)
        return task.id

    def cell(self, choice: Choice) -> Cell:
        forget = _with_defaults("forget", choice)
        identity = {**self.common, "recipes": self.recipes, "forget": forget, "val": self.grid.val_fraction}
        cell = Cell(
            id=digest(identity),
            dataset=self.dataset,
            architecture=self.architecture,
            forget=forget_label(forget),
            retrains_per_base=self.grid.audit.retrains_per_base if self.grid.audit else 0,
            bases={},
            retrains={},
            variants=[
                Variant(name, method["version"], method["hyperparameters"], {})
                for name, method in self.methods.items()
            ],
        )
        for place in self._places():
            self._fill(cell, forget, place)
        return cell

    def _places(self) -> Iterator[_Place]:
        val = {"val_fraction": self.grid.val_fraction}
        for seed in self.grid.seeds:
            yield _Place("main", seed, {"track": "main", **val}, 1, True)
        audit = self.grid.audit
        for base in range(2 * audit.pairs if audit else 0):
            members = {"track": "audit", **val, "pair": base // 2, "half": base % 2}
            yield _Place("audit", base, members, audit.forget_sets if audit else 0, False)

    def _fill(self, cell: Cell, forget: dict[str, Any], place: _Place) -> None:
        """Add the base of one place and everything that starts from its members."""
        names = (self.dataset, self.architecture, place.track, place.seed)
        training = self.recipes[place.track]
        common = {**self.common, "members": place.members, "seed": place.seed}
        base_seeds = {"init": derived_seed("init", *names), "order": derived_seed("order", *names, "base")}
        base = self.add({**common, "kind": "base", "training": training, "seeds": base_seeds})
        starts = {"base": base, "augment": training["augment"], "precision": training["precision"]}
        for index in range(place.forget_sets):
            draw = None if place.fixed else {"index": index, "of": place.forget_sets}
            recipe = present({**forget, "draw": draw})
            key = (place.track, place.seed, index)
            cell.bases[key] = base
            if place.fixed or index < cell.retrains_per_base:
                seeds = self._retrain_seeds(names, index, place, base_seeds)
                cell.retrains[key] = self.add(
                    {**common, "kind": "retrain", "forget": recipe, "training": training, "seeds": seeds}
                )
            for variant in cell.variants:
                seeds = {"unlearn": derived_seed("unlearn", *names, cell.forget, index, variant.method)}
                method = self.methods[variant.method]
                variant.tasks[key] = self.add(
                    {
                        **common,
                        **starts,
                        "kind": "unlearn",
                        "forget": recipe,
                        "method": method,
                        "seeds": seeds,
                    }
                )

    @staticmethod
    def _retrain_seeds(
        names: tuple[Any, ...], index: int, place: _Place, base_seeds: dict[str, int]
    ) -> dict[str, int]:
        """On the main track a retrain starts from its base's initial weights, as in the paper; else from its
        own.
        """
        order = derived_seed("order", *names, "retrain", index)
        init = base_seeds["init"] if place.fixed else derived_seed("init", *names, "retrain", index)
        return {"init": init, "order": order}


@dataclass(frozen=True)
class _Place:
    """One base to be: its track, its number, who its members are and how many forget sets it has."""

    track: str
    seed: int
    members: dict[str, Any]
    forget_sets: int
    fixed: bool


def _versioned(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, "version": catalogue.plugins(kind)[name].version}


def _with_defaults(kind: str, choice: Choice) -> dict[str, Any]:
    """A plug-in's name, version and all its parameters, those the grid leaves out at their defaults."""
    declared = catalogue.plugins(kind)[choice.name].parameters
    values = {name: choice.parameters.get(name, parameter.default) for name, parameter in declared.items()}
    return {**_versioned(kind, choice.name), "hyperparameters" if kind == "methods" else "parameters": values}


# ---- cost ------------------------------------------------------------------------------------------------


def cost_hours(tasks: Iterable[Task], timed: Iterable[dict[str, Any]]) -> float | None:
    """Device hours the tasks take at the mean seconds of timed runs; None if some kind of task was never
    timed.

    timed: rows with kind, method, dataset, architecture, track, wall_s, evaluate_s. A method never timed on
    an architecture is not guessed.
    """
    total: dict[tuple[str, ...], list[float]] = {}
    for row in timed:
        key = tuple(str(row[name]) for name in ("kind", "method", "dataset", "architecture", "track"))
        total.setdefault(key, []).append((row["wall_s"] or 0.0) + (row["evaluate_s"] or 0.0))
    seconds = 0.0
    for task in tasks:
        columns = task.columns()
        key = tuple(str(columns[name]) for name in ("kind", "method", "dataset", "architecture", "track"))
        if key not in total:
            return None
        seconds += sum(total[key]) / len(total[key])
    return seconds / 3600
