"""A grid becomes tasks: pure data, made before anything runs. No dataset is opened and torch is not imported.

Main track: one fixed split; per seed a base, per forget recipe a retrain and an unlearn task for each method.
Audit track: per complementary pair two bases; per forget set of a base an unlearn task for each method, and a
retrain for the first `retrains` of them (spec: attacks, the cross design). A method that needs bases trained
in another way gets bases and retrains of its own; one that is not made for a forget recipe is not run on it.
A forget recipe that poisons what may be forgotten gets bases of its own too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
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
            "forget": forget_label(spec.get("forget", spec.get("poisoned"))),
            "method": spec["method"]["name"] if "method" in spec else "",
            "training": _training(spec),
            "seed": spec["seed"],
            "forget_index": draw["index"] if draw else -1,
            "parents": [spec["base"]] if "base" in spec else [],
        }


TRACKS = ("main", "audit")
SCOPES = {"random": "random samples only", "class": "whole classes only"}
Key = tuple[str, int, int]  # track, seed (audit track: number of the base), forget set


PLAIN = "plain"


@dataclass(frozen=True)
class Variant:
    """A method with its hyper-parameters in a cell, and its tasks.

    training: the training recipe of its bases, 'plain' or e.g. 'mnemonic(t_mix=0.3)'. Options of the grid
    that are not at their neutral value stand among the hyper-parameters.
    """

    method: str
    version: int
    hyperparameters: dict[str, Any]
    tasks: dict[Key, str]
    training: str = PLAIN


@dataclass(frozen=True)
class References:
    """The bases and the retrains of one training recipe. A base has no forget set, so all keys
    (track, seed, forget set) of one (track, seed) map to the same base.
    """

    bases: dict[Key, str]
    retrains: dict[Key, str]


@dataclass(frozen=True)
class Cell:
    """One table of the report: (dataset, architecture, training recipes, forget recipe) and its tasks.

    bases, retrains: those of plain training; `changed` holds those of other training recipes.
    """

    id: str
    dataset: str
    architecture: str
    forget: str
    retrains_per_base: int
    bases: dict[Key, str]
    retrains: dict[Key, str]
    variants: list[Variant]
    changed: dict[str, References] = field(default_factory=dict)

    def references(self, training: str) -> References:
        """The bases and retrains of a training recipe."""
        return References(self.bases, self.retrains) if training == PLAIN else self.changed[training]


@dataclass(frozen=True)
class Plan:
    """All tasks of a grid, every base before what starts from it, and the cells they make up.

    impossible: tasks that cannot run, as the method is not made for the forget recipe, with the reason.
    """

    grid: Grid
    tasks: list[Task]
    cells: list[Cell]
    impossible: list[tuple[Task, str]] = field(default_factory=list)

    @cached_property
    def by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self.tasks}

    def runs(self, variant: Variant) -> bool:
        """Whether a method can run in its cell."""
        return any(task in self.by_id for task in variant.tasks.values())

    def counts(self) -> dict[str, int]:
        """Tasks per kind, tuning trials, and the models it would be without shared bases and retrains."""
        kinds = Counter(task.kind for task in self.tasks)
        studies = sum(self.runs(variant) for cell in self.cells for variant in cell.variants)
        return {
            "tasks": len(self.tasks),
            "base": kinds["base"],
            "retrain": kinds["retrain"],
            "unlearn": kinds["unlearn"],
            "skipped": len(self.impossible),
            "tune_trials": studies * self.grid.tune.trials if self.grid.tune else 0,
            "unshared_tasks": 3 * kinds["unlearn"],
        }


def _training(spec: dict[str, Any]) -> str:
    """The training recipe of a task's model, or of the base it starts from."""
    if "method" in spec:
        return catalogue.plugins("methods")[spec["method"]["name"]].training
    return next((name for name in catalogue.TRAININGS if name in spec["training"]), PLAIN)


def forget_label(recipe: dict[str, Any] | None) -> str:
    """'random(fraction=0.1)' for a forget recipe, '' for none."""
    if recipe is None:
        return ""
    return f"{recipe['name']}({_inside(recipe['parameters'])})"


def _inside(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()) if key != "version")


def make_plan(grid: Grid) -> Plan:
    """The tasks and cells of a grid."""
    cells: list[Cell] = []
    tasks: dict[str, Task] = {}
    impossible: dict[str, tuple[Task, str]] = {}
    for dataset in grid.datasets:
        for architecture in grid.architectures:
            builder = _Builder(grid, dataset, architecture)
            cells += [builder.cell(choice) for choice in grid.forget]
            tasks |= builder.tasks
            impossible |= builder.impossible
    return Plan(grid, list(tasks.values()), cells, list(impossible.values()))


class _Builder:
    """Makes the tasks of one (dataset, architecture); equal tasks of several cells are one."""

    def __init__(self, grid: Grid, dataset: str, architecture: str) -> None:
        self.grid, self.dataset, self.architecture = grid, dataset, architecture
        self.tasks: dict[str, Task] = {}
        self.impossible: dict[str, tuple[Task, str]] = {}
        self.common = {
            "dataset": _versioned("datasets", dataset),
            "architecture": _versioned("architectures", architecture),
        }
        self.recipes = {track: grid.recipe(dataset, architecture, track) for track in TRACKS}
        self.methods = {choice.name: _with_defaults("methods", choice) for choice in grid.methods}
        audit = grid.audit  # scored beyond φ of the image as it is, on the audit track
        further = {"views": audit.views, "columns": sorted(set(audit.columns)) or None} if audit else {}
        self.scored = present(further)

    def add(self, spec: dict[str, Any]) -> str:
        task = Task(digest(spec), spec)
        self.tasks.setdefault(task.id, task)
        return task.id

    def cell(self, choice: Choice) -> Cell:
        forget = _with_defaults("forget", choice)
        constants = catalogue.plugins("forget")[choice.name].constants
        identity = {**self.common, "recipes": self.recipes, "forget": forget, "val": self.grid.val_fraction}
        sets = self._forget_sets(choice.name)
        wanted = self.grid.audit.retrains_per_base if self.grid.audit else 0
        cell = Cell(
            id=digest(identity),
            dataset=self.dataset,
            architecture=self.architecture,
            forget=forget_label(forget),
            retrains_per_base=min(wanted, sets),
            bases={},
            retrains={},
            variants=[],
        )
        fitting: dict[str, list[Variant]] = {PLAIN: []}  # by the training recipe that they need
        for name in self.methods:
            method = catalogue.plugins("methods")[name]
            variant = self._variant(method)
            cell.variants.append(variant)
            if method.scope in ("both", constants["scope"]):
                fitting.setdefault(method.training, []).append(variant)
            else:
                self._skip(variant, forget, method.scope)
        for place in self._places(sets):
            for training, variants in fitting.items():
                self._fill(cell, forget, place, training, variants)
        return cell

    def _forget_sets(self, forget: str) -> int:
        """Forget sets per base of the audit track: one where whole classes go."""
        whole = catalogue.plugins("forget")[forget].scope == "class"
        return 0 if self.grid.audit is None else 1 if whole else self.grid.audit.forget_sets

    def _variant(self, method: catalogue.Plugin) -> Variant:
        values = self.methods[method.name]["hyperparameters"]
        augment = {} if self.grid.augment_unlearning else {"augment": False}
        return Variant(method.name, method.version, values | augment, {}, self._training(method.training))

    def _training(self, name: str) -> str:
        """The label of a training recipe, which tells bases apart that were trained in different ways."""
        if name == PLAIN:
            return PLAIN
        of = {t: self.grid.recipe(self.dataset, self.architecture, t, name)[name] for t in TRACKS}
        label, audited = _inside(of["main"]), _inside(of["audit"])
        version = "" if of["main"]["version"] == 1 else f", version={of['main']['version']}"
        return f"{name}({label}{'' if audited == label else f', audit {audited}'}{version})"

    def _skip(self, variant: Variant, forget: dict[str, Any], scope: str) -> None:
        """Note that a method cannot run on a forget recipe, as a task for each seed of the main track."""
        reason = f"{variant.method} forgets {SCOPES[scope]}, and the forget recipe is {forget_label(forget)}"
        for place in self._places(0):
            spec = {**self.common, "members": place.members, "seed": place.seed, "kind": "unlearn"}
            spec |= {"forget": forget, "method": self.methods[variant.method]}
            task = Task(digest(spec), spec)
            variant.tasks[place.track, place.seed, 0] = task.id
            self.impossible[task.id] = (task, reason)

    def _places(self, audit_sets: int) -> Iterator[_Place]:
        val = {"val_fraction": self.grid.val_fraction}
        for seed in self.grid.seeds:
            yield _Place("main", seed, {"track": "main", **val}, 1, True)
        audit = self.grid.audit
        for base in range(2 * audit.pairs if audit and audit_sets else 0):
            members = {"track": "audit", **val, "pair": base // 2, "half": base % 2}
            yield _Place("audit", base, members, audit_sets, False)

    def _fill(
        self, cell: Cell, forget: dict[str, Any], place: _Place, training: str, variants: list[Variant]
    ) -> None:
        """Add the base of one place and training recipe, and everything that starts from its members."""
        names = (self.dataset, self.architecture, place.track, place.seed)
        recipe = self.grid.recipe(self.dataset, self.architecture, place.track, training)
        scored = {} if place.fixed else self.scored
        common = {**self.common, **scored, "members": place.members, "seed": place.seed}
        codes = {} if training == PLAIN else {"codes": derived_seed("codes", *names)}
        seeds = {"init": derived_seed("init", *names), "order": derived_seed("order", *names, "base")} | codes
        poison, poisoned = self._poison(forget, place)
        seeds |= poison
        base = self.add({**common, **poisoned, "kind": "base", "training": recipe, "seeds": seeds})
        references = cell.references(PLAIN)
        if training != PLAIN:
            references = cell.changed.setdefault(variants[0].training, References({}, {}))
        for index in range(place.forget_sets):
            draw = None if place.fixed else {"index": index, "of": place.forget_sets}
            chosen = present({**forget, "draw": draw})
            key = (place.track, place.seed, index)
            references.bases[key] = base
            if place.fixed or index < cell.retrains_per_base:
                own = self._retrain_seeds(names, index, place, seeds) | codes | poison
                references.retrains[key] = self.add(
                    {**common, "kind": "retrain", "forget": chosen, "training": recipe, "seeds": own}
                )
            starts = {**common, "base": base, "precision": recipe["precision"], "forget": chosen}
            for variant in variants:
                own = {"unlearn": derived_seed("unlearn", *names, cell.forget, index, variant.method)}
                variant.tasks[key] = self.add(
                    {
                        **starts,
                        "kind": "unlearn",
                        "augment": recipe["augment"] and self.grid.augment_unlearning,
                        "method": self.methods[variant.method],
                        "seeds": own | poison,
                    }
                )

    def _poison(self, forget: dict[str, Any], place: _Place) -> tuple[dict[str, int], dict[str, Any]]:
        """For a forget recipe that poisons: the seed of the poison of all that starts from one base, and what
        a base says of the samples poisoned in it, those that may be forgotten. Else nothing.
        """
        if not catalogue.plugins("forget")[forget["name"]].constants.get("poisons"):
            return {}, {}
        recipe = {key: forget[key] for key in ("name", "version", "parameters")}
        names = (self.dataset, self.architecture, place.track, place.seed, forget_label(recipe))
        draw = None if place.fixed else {"of": place.forget_sets}
        return {"poison": derived_seed("poison", *names)}, {"poisoned": present({**recipe, "draw": draw})}

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
    return {"name": name, "version": catalogue.version_of(kind, name)}


def _with_defaults(kind: str, choice: Choice) -> dict[str, Any]:
    """A plug-in's name, version and all its parameters, those the grid leaves out at their defaults."""
    values = catalogue.with_defaults(kind, choice.name, choice.parameters)
    return {**_versioned(kind, choice.name), "hyperparameters" if kind == "methods" else "parameters": values}
