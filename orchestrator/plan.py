"""A grid becomes tasks: pure data, made before anything runs. No dataset is opened and torch is not imported.

Main track: one fixed split; per seed a base, per forget recipe a retrain and an unlearn task for each method.
Audit track: per complementary pair two bases; per forget set of a base an unlearn task for each method, and a
retrain for the first `retrains` of them (spec: attacks, the cross design). A method that needs bases trained
in another way gets bases and retrains of its own; one that is not made for a forget recipe is not run on it.
A forget recipe that poisons what may be forgotten gets bases of its own too.
Requests in turn: a cell for each, whose unlearn tasks start from those of the request before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from orchestrator import catalogue, datasets, forget_recipes, poison, requests
from orchestrator.cells import PLAIN, TRACKS, Cell, Key, Place, References, Variant, forget_label, inside
from orchestrator.config import Audit, Choice, Grid
from orchestrator.keys import Digester, derived_seed, digest, present, seed_name

__all__ = [
    "PLAIN",
    "TRACKS",
    "Cell",
    "Key",
    "Plan",
    "References",
    "Task",
    "Variant",
    "forget_label",
    "make_plan",
]


@dataclass(frozen=True, slots=True)
class Task:
    """One of base, retrain, unlearn. `spec` holds everything that decides the result; its digest is `id`.

    after: ids of tasks whose scores it needs, all of which must be done before.
    """

    id: str
    spec: dict[str, Any]
    after: tuple[str, ...] = ()
    dataset: str = ""  # its name in results where that is not the one in `spec`

    @property
    def kind(self) -> str:
        return str(self.spec["kind"])

    @property
    def base(self) -> str | None:
        """The id of the task that makes what an unlearn task starts from: a base, or the unlearn task of the
        request before. None for the others.
        """
        return self.spec.get("base")

    @property
    def leaves_model(self) -> bool:
        """Whether other tasks may start from its model."""
        forget = self.spec.get("forget")
        return self.kind == "base" or (self.kind == "unlearn" and requests.goes_on(forget))

    def columns(self) -> dict[str, Any]:
        """What the table runs says of a task before it has run."""
        spec, draw = self.spec, (self.spec.get("forget") or {}).get("draw")
        return {
            "task_id": self.id,
            "kind": spec["kind"],
            "track": spec["members"]["track"],
            "dataset": self.dataset or spec["dataset"]["name"],
            "architecture": spec["architecture"]["name"],
            "forget": forget_label(spec.get("forget", spec.get("poisoned"))),
            "method": spec["method"]["name"] if "method" in spec else "",
            "training": training_of(spec),
            "seed": spec["seed"],
            "forget_index": draw["index"] if draw else -1,
            "parents": [spec["base"]] if "base" in spec else [],
        }


SCOPES = {"random": "random samples only", "class": "whole classes only"}
SHARED = ("dataset", "architecture", "members", "training", "forget", "method")  # parts of many tasks


@dataclass(frozen=True)
class Plan:
    """All tasks of a grid, every base before what starts from it, and the cells they make up.

    impossible: tasks that cannot run, as the method is not made for the forget recipe, with the reason.
    lists: sample ids that recipes only name, by the hash in the specifications.
    """

    grid: Grid
    tasks: list[Task]
    cells: list[Cell]
    impossible: list[tuple[Task, str]] = field(default_factory=list)
    lists: dict[str, list[int]] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self.tasks}

    def runs(self, variant: Variant) -> bool:
        """Whether a method can run in its cell."""
        return any(task in self.by_id for task in variant.tasks.values())

    def counts(self) -> dict[str, int]:
        """Tasks per kind, tuning trials, and the models it would be without shared bases and retrains."""
        kinds, tune = Counter(task.kind for task in self.tasks), self.grid.tune
        studies = sum(self.runs(variant) for cell in self.cells for variant in cell.variants)
        studies //= self.grid.requests  # the requests of a forget set are one study
        starts = sum(task.kind == "unlearn" and self.starts_from_base(task) for task in self.tasks)
        return {
            "tasks": len(self.tasks),
            "base": kinds["base"],
            "retrain": kinds["retrain"],
            "unlearn": kinds["unlearn"],
            "skipped": len(self.impossible),
            "tune_trials": studies * tune.trials * tune.seeds if tune else 0,
            "unshared_tasks": 2 * kinds["unlearn"] + starts,  # each with a retrain, the first with a base
        }

    def starts_from_base(self, task: Task) -> bool:
        """Whether an unlearn task is the first after its base, and not a later request."""
        return task.base is not None and self.by_id[task.base].kind == "base"


def training_of(spec: dict[str, Any]) -> str:
    """The training recipe of a task's model, or of the base it starts from."""
    if "method" in spec:
        return catalogue.plugins("methods")[spec["method"]["name"]].training
    return next((name for name in catalogue.TRAININGS if name in spec["training"]), PLAIN)


# (dataset, architecture, forget recipe, method) -> hyper-parameters
Tuned = Callable[[str, str, Choice, Choice], dict[str, Any]]


def make_plan(grid: Grid, tuned: Tuned | None = None) -> Plan:
    """The tasks and cells of a grid. tuned: a method's hyper-parameters in a cell (tuned_plan.py)."""
    cells: list[Cell] = []
    tasks: dict[str, Task] = {}
    impossible: dict[str, tuple[Task, str]] = {}
    for dataset in grid.datasets:
        for architecture in grid.architectures:
            builder = Builder(grid, dataset, architecture, tuned)
            cells += [cell for choice in grid.forget for cell in builder.cells(choice)]
            tasks |= builder.tasks
            impossible |= builder.impossible
    return Plan(grid, list(tasks.values()), cells, list(impossible.values()), forget_recipes.lists(grid))


class Builder:
    """Makes the tasks of one (dataset, architecture); equal tasks of several cells are one."""

    def __init__(self, grid: Grid, dataset: str, architecture: str, tuned: Tuned | None = None) -> None:
        self.grid, self.dataset, self.architecture, self.tuned = grid, dataset, architecture, tuned
        self.known = datasets.of(dataset)
        self.tasks: dict[str, Task] = {}
        self.digester = Digester(SHARED)
        self._recipes: dict[tuple[str, str], dict[str, Any]] = {}
        self.impossible: dict[str, tuple[Task, str]] = {}
        self.common = {
            "dataset": self.known.spec,
            "architecture": _versioned("architectures", architecture),
        }
        self.recipes = {track: grid.recipe(dataset, architecture, track) for track in TRACKS}
        self.methods = {choice.name: _with_defaults("methods", choice) for choice in grid.methods}
        audit = grid.audit if grid.audits(dataset, architecture) else None
        self.audit = audit  # what is scored beyond φ of the image as it is, on the audit track:
        further = {"views": audit.views, "columns": sorted(set(audit.columns)) or None} if audit else {}
        self.scored = present(further)

    def recipe(self, track: str, training: str) -> dict[str, Any]:
        """The training recipe of a track; the same object each time, so that it is turned into text once."""
        known = self._recipes.get((track, training))
        if known is None:
            known = self.grid.recipe(self.dataset, self.architecture, track, training)
            self._recipes[track, training] = known
        return known

    def add(self, spec: dict[str, Any], after: tuple[str, ...] = (), digest: str | None = None) -> str:
        """Add a task. digest: of its specification, if that is known."""
        task = Task(digest or self.digester.digest(spec), spec, after, self.known.name)
        self.tasks.setdefault(task.id, task)
        return task.id

    def cells(self, choice: Choice) -> list[Cell]:
        """A cell for each request of a forget recipe, in order."""
        if self.tuned is not None:
            for method in self.grid.methods:
                values = self.tuned(self.dataset, self.architecture, choice, method)
                self.methods[method.name] = self.methods[method.name] | {"hyperparameters": values}
        made: list[Cell] = []
        for request in requests.of_grid(self.grid.requests):
            made.append(self.cell(choice, request, made[-1] if made else None))
        return made

    def cell(self, choice: Choice, request: requests.Request | None, before: Cell | None) -> Cell:
        """The cell of a request, whose methods go on with the models of the request before."""
        forget = present({**forget_recipes.specification(self.dataset, choice), "request": request})
        constants = catalogue.plugins("forget")[choice.name].constants
        after = self._audit_bases() if choice.name == "memorised" else ()
        forget |= {"bases": digest(after)} if after else {}
        identity = {**self.common, "recipes": self.recipes, "forget": forget, "val": self.grid.val_fraction}
        identity |= self._split()
        sets = self._forget_sets(choice.name)
        wanted = self.audit.retrains_per_base if self.audit else 0
        cell = Cell(
            id=digest(identity),
            dataset=self.known.name,
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
            variant = self.variant(method)
            cell.variants.append(variant)
            if method.scope not in ("both", constants["scope"]):
                reason = f"forgets {SCOPES[method.scope]}, and the forget recipe is {forget_label(forget)}"
                self._skip(variant, forget, reason)
            elif request is not None and method.once:
                self._skip(variant, forget, requests.ONCE.format(count=request["of"]))
            else:
                fitting.setdefault(method.training, []).append(variant)
        parents = {variant.method: variant.tasks for variant in before.variants} if before else {}
        for place in self._places(sets, forget):
            for training, variants in fitting.items():
                here = [v for v in variants if place.fixed or self._audited(v)]
                if here or training == PLAIN:
                    self.fill(cell, forget, place, training, here, parents, after)
        return cell

    def _audited(self, variant: Variant) -> bool:
        """Whether a method is among those the grid audits."""
        return self.audit is not None and (self.audit.methods is None or variant.method in self.audit.methods)

    def _split(self) -> dict[str, Any]:
        """What a split other than Lethe's own adds to the recipe of the members; raise the version when
        workers/designs.py makes other sets of it.
        """
        return {} if self.grid.split == "default" else {"split": {"name": self.grid.split, "version": 1}}

    def _forget_sets(self, forget: str) -> int:
        """Forget sets per base of the audit track: one where e.g. whole classes go."""
        many = 0 if self.audit is None else self.audit.forget_sets
        return {"many": many, "one": min(many, 1), "none": 0}[catalogue.plugins("forget")[forget].audit_sets]

    def _audit_bases(self) -> tuple[str, ...]:
        """The bases of the audit track with plain training, which are added where they are not there yet."""
        return tuple(self._base(place, PLAIN) for place in self._audit_places(self.grid.audit, 1, {}))

    def variant(self, method: catalogue.Plugin) -> Variant:
        values = self.methods[method.name]["hyperparameters"]
        augment = {} if self.grid.augment_unlearning else {"augment": False}
        return Variant(method.name, method.version, values | augment, {}, self._training(method.training))

    def _training(self, name: str) -> str:
        """The label of a training recipe, which tells bases apart that were trained in different ways."""
        if name == PLAIN:
            return PLAIN
        of = {t: self.recipe(t, name)[name] for t in TRACKS}
        label, audited = inside(of["main"]), inside(of["audit"])
        version = "" if of["main"]["version"] == 1 else f", version={of['main']['version']}"
        return f"{name}({label}{'' if audited == label else f', audit {audited}'}{version})"

    def _skip(self, variant: Variant, forget: dict[str, Any], reason: str) -> None:
        """Note that a method cannot run on a forget recipe, as a task for each seed of the main track."""
        for place in self._places(0, forget):
            spec = {**self.common, "members": place.members, "seed": place.seed, "kind": "unlearn"}
            spec |= {"forget": forget, "method": self.methods[variant.method]}
            task = Task(digest(spec), spec, dataset=self.known.name)
            variant.tasks[place.track, place.seed, 0] = task.id
            self.impossible[task.id] = (task, f"{variant.method} {reason}")

    def _places(self, audit_sets: int, forget: dict[str, Any]) -> Iterator[Place]:
        for seed in self.grid.seeds:
            yield Place("main", seed, {"track": "main", **self._val(forget)}, 1, True)
        yield from self._audit_places(self.audit if audit_sets else None, audit_sets, forget)

    def _val(self, forget: dict[str, Any]) -> dict[str, Any]:
        """Who is for validation. Listed samples never are, so that their bases are others."""
        listed = {"listed": forget["ids"]["sha256"]} if "ids" in forget else {}
        return {"val_fraction": self.grid.val_fraction} | self._split() | listed

    def _audit_places(self, audit: Audit | None, sets: int, forget: dict[str, Any]) -> Iterator[Place]:
        for base in range(2 * audit.pairs if audit else 0):
            members = {"track": "audit", **self._val(forget), "pair": base // 2, "half": base % 2}
            yield Place("audit", base, members, sets, False)

    def _names(self, place: Place) -> tuple[Any, ...]:
        return (self.known.key, self.architecture, place.track, place.seed)

    def _common(self, place: Place) -> dict[str, Any]:
        """What the specifications of all tasks of one place share."""
        scored = {} if place.fixed else self.scored
        return {**self.common, **scored, "members": place.members, "seed": place.seed}

    def _base_seeds(self, place: Place, training: str) -> dict[str, int]:
        names = self._names(place)
        codes = {} if training == PLAIN else {"codes": derived_seed("codes", *names)}
        return {"init": derived_seed("init", *names), "order": derived_seed("order", *names, "base")} | codes

    def _base(self, place: Place, training: str, forget: dict[str, Any] | None = None) -> str:
        """Add the base of one place and training recipe; forget: the recipe, which may poison it."""
        seed, poisoned = poison.of(forget, self._names(place), place)
        own = {
            "training": self.recipe(place.track, training),
            "seeds": self._base_seeds(place, training) | seed,
        }
        return self.add({**self._common(place), **poisoned, **own, "kind": "base"})

    def fill(
        self,
        cell: Cell,
        forget: dict[str, Any],
        place: Place,
        training: str,
        variants: list[Variant],
        parents: dict[str, dict[Key, str]],
        after: tuple[str, ...],
    ) -> None:
        """Add the base of one place and training recipe, and everything that starts from its members.

        parents: the tasks of the request before, by method; empty for the first. after: see Task.
        """
        names, common = self._names(place), self._common(place)
        recipe = self.recipe(place.track, training)
        base, seeds = self._base(place, training, forget), self._base_seeds(place, training)
        codes = {"codes": seeds["codes"]} if "codes" in seeds else {}
        poisoning, _ = poison.of(forget, self._names(place), place)
        references = cell.references(PLAIN)
        if training != PLAIN:
            references = cell.changed.setdefault(variants[0].training, References({}, {}))
        for index in range(place.forget_sets):
            draw = None if place.fixed else {"index": index, "of": place.forget_sets}
            chosen = present({**forget, "draw": draw})
            key = (place.track, place.seed, index)
            references.bases[key] = base
            if place.fixed or index < cell.retrains_per_base:
                own = self._retrain_seeds(names, index, place, seeds) | codes | poisoning
                without = requests.for_retrain(chosen)
                references.retrains[key] = self.add(
                    {**common, "kind": "retrain", "forget": without, "training": recipe, "seeds": own}, after
                )
            starts = {**common, "precision": recipe["precision"], "forget": chosen}
            starts |= present({"flip": recipe.get("flip")}) | {"kind": "unlearn"}
            starts["augment"] = recipe["augment"] and self.grid.augment_unlearning
            digest_of = self.digester.around(starts, "base", "method", "seeds")
            named = seed_name("unlearn", *names, cell.forget, index)
            for variant in variants:
                start = parents[variant.method][key] if parents else base
                drawn = {"unlearn": derived_seed(named, variant.method)} | poisoning
                method = self.methods[variant.method]
                spec = {**starts, "base": start, "method": method, "seeds": drawn}
                variant.tasks[key] = self.add(spec, after, digest_of(start, method, drawn))

    @staticmethod
    def _retrain_seeds(
        names: tuple[Any, ...], index: int, place: Place, base_seeds: dict[str, int]
    ) -> dict[str, int]:
        """On the main track a retrain starts from its base's initial weights, as in the paper; else from its
        own.
        """
        order = derived_seed("order", *names, "retrain", index)
        init = base_seeds["init"] if place.fixed else derived_seed("init", *names, "retrain", index)
        return {"init": init, "order": order}


def _versioned(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, "version": catalogue.version_of(kind, name)}


def _with_defaults(kind: str, choice: Choice) -> dict[str, Any]:
    """A plug-in's name, version and all its parameters, those the grid leaves out at their defaults."""
    values = catalogue.with_defaults(kind, choice.name, choice.parameters)
    return {**_versioned(kind, choice.name), "hyperparameters" if kind == "methods" else "parameters": values}
