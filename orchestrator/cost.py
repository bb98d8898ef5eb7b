"""What a plan comes to: training images from what the plug-ins declare, and the work of its tasks, which
timed runs turn into seconds (paces.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from orchestrator import catalogue, datasets, requests
from orchestrator.config import Grid
from orchestrator.keys import canonical
from orchestrator.paces import Load, Paces, Shape, Work
from orchestrator.plan import PLAIN, Plan, Task, training_of
from workers.views import mirrors, views_of

TIMED = ("dataset", "wall_s", "evaluate_s")  # columns of the ledger, beside `spec`
What = tuple[str, str]  # kind, and method or training recipe


def images(spec: dict[str, Any]) -> float:
    """Images that the task of a specification trains on: epochs, or the passes its method declares, times the
    sizes of the sets.
    """
    return Images()(spec)


class Images:
    """What `images` gives, for many specifications that share parts; each, and each part, is looked at once.
    They must not be changed while this is in use.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}  # by identity; holding the part keeps that its own
        self._designs: dict[tuple[int, int, int], tuple[str, str, str]] = {}  # dataset, members, forget
        self._counts: dict[tuple[Any, ...], float] = {}

    def __call__(self, spec: dict[str, Any]) -> float:
        own = spec["method"] if "method" in spec else spec["training"]["epochs"]
        parts = (spec["dataset"], spec["members"], spec.get("forget"))
        ids = (id(parts[0]), id(parts[1]), id(parts[2]))
        if (design := self._designs.get(ids)) is None:
            design = self._designs[ids] = (self._key(parts[0]), self._key(parts[1]), self._key(parts[2]))
        what = (spec["kind"], design, self._key(own))
        if (count := self._counts.get(what)) is None:
            count = self._counts[what] = _images(spec["kind"], *design, what[2])
        return count

    def _key(self, part: Any) -> str:
        """A part of a specification without what tells tasks of equal size apart."""
        known = self._known.get(id(part))
        if known is None:
            told = part
            if isinstance(part, dict):
                told = {name: value for name, value in part.items() if name not in ("draw", "pair", "half")}
            known = self._known[id(part)] = (part, canonical(told))
        return known[1]


@cache
def _images(kind: str, dataset: str, members: str, forget: str, own: str) -> float:
    sizes = _sizes(json.loads(dataset), json.loads(members), json.loads(forget))
    if kind != "unlearn":
        trained = sizes["retain_size"] + (sizes["forget_size"] if kind == "base" else 0)
        return float(json.loads(own)) * trained
    method = json.loads(own)
    passes = catalogue.plugins("methods")[method["name"]].cost(method["hyperparameters"] | sizes)
    return sum(passes[name] * sizes[f"{name}_size"] for name in ("retain", "forget", "val"))


def _sizes(
    dataset: dict[str, Any], members: dict[str, Any], forget: dict[str, Any] | None
) -> dict[str, float]:
    """How many samples the sets of a design have, classes taken as equally large."""
    constants = datasets.constants(dataset) or {}
    pool = constants["pool_size"]
    trained = pool * (1 - members["val_fraction"]) / (2 if members["track"] == "audit" else 1)
    counts = {"pool": pool * (1 - members["val_fraction"]), "members": trained}
    counts |= {name: constants.get(name, 0) for name in ("num_classes", "num_subclasses")}
    whole = 0.0 if forget is None else trained * _share(forget, counts)
    gone, newest = requests.parts(forget) if forget else (0.0, 0.0)  # of a forget set deleted in turn
    val = pool * members["val_fraction"]
    return {"retain_size": trained - whole * gone, "forget_size": whole * newest, "val_size": val}


def _share(forget: dict[str, Any], counts: dict[str, float]) -> float:
    """The share of the members that a recipe forgets; in its formula a list stands for its length.

    counts: of catalogue.SHARE all but `listed`, which the recipe itself says.
    """
    recipe = catalogue.plugins("forget")[forget["name"]]
    values = {name: parameter.default for name, parameter in recipe.parameters.items()} | forget["parameters"]
    sizes = {k: len(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
    listed = forget.get("ids", {}).get("count", 0)
    return catalogue.formula(recipe.constants["share"], sizes | counts | {"listed": listed})


def alone(plan: Plan) -> Counter[str]:
    """How often each task of a plan is run, by id, where every unlearned model has a base and a retrain of
    its own. For a retrain that the audit leaves out, another of its track is counted, which is of one size.
    """
    times: Counter[str] = Counter()
    for cell in plan.cells:
        for variant in (v for v in cell.variants if plan.runs(v)):
            known = cell.references(variant.training)
            retrain = {key[0]: task for key, task in known.retrains.items()}
            for key, task in variant.tasks.items():
                times[task] += 1
                times[retrain[key[0]]] += 1
                times[known.bases[key]] += plan.starts_from_base(plan.by_id[task])
    return times or Counter(task.id for task in plan.tasks)  # a grid without methods


def training_images(plan: Plan, count: Images | None = None) -> dict[str, float]:
    """Images that all tasks train on, also with a base and a retrain for each unlearn task alone."""
    count = count or Images()
    of = {task.id: count(task.spec) for task in plan.tasks}
    unshared = sum(times * of[task] for task, times in alone(plan).items())
    return {"training_images": sum(of.values()), "unshared_training_images": unshared}


# ---- seconds ---------------------------------------------------------------------------------------------


class Works:
    """The work that tasks are made of (paces.py), and its images: of training or unlearning, and of the
    evaluation. Specifications must not be changed while this is in use.

    grid: tells the test sets of its folders of pictures, which specifications do not.
    """

    def __init__(self, grid: Grid, count: Images | None = None) -> None:
        self.count = count or Images()
        known = [(datasets.of(name).key, datasets.plugin(name).constants) for name in grid.datasets]
        self._tests = {key: int(constants.get("test_size", 0)) for key, constants in known}
        self._known: dict[tuple[Any, ...], tuple[Work, Work, float]] = {}

    def of(
        self, spec: dict[str, Any], dataset: str, trained_on: float
    ) -> tuple[tuple[Work, float], tuple[Work, float]]:
        """The two works of a task with their images; dataset: its name in results. Of a method that trains on
        no images the unit is the task.
        """
        method = spec["method"]["name"] if spec["kind"] == "unlearn" else training_of(spec)
        place = (dataset, spec["dataset"]["name"], spec["architecture"]["name"], spec["members"]["track"])
        decides = (spec["kind"], method, *place, spec.get("training", spec).get("flip"), spec.get("views"))
        if (found := self._known.get(decides)) is None:
            architecture, track = place[2:]
            own = "" if method == PLAIN else method
            work = Work(spec["kind"], own, architecture, shape(spec["dataset"]), dataset, track)
            found = self._known[decides] = (work, work.evaluation, self.evaluated(spec))
        work, evaluation, evaluated = found
        return (work, trained_on or 1.0), (evaluation, evaluated)

    def evaluated(self, spec: dict[str, Any]) -> float:
        """Images that the evaluation of a task passes: pool and test set, in each view."""
        constants = datasets.constants(spec["dataset"]) or {}
        flip = mirrors(spec, bool(constants.get("augment_flip")))
        views = len(views_of(flip, spec.get("views") == "strong"))
        tests = self._tests.get(spec["dataset"]["name"], constants.get("test_size", 0))
        return float(views * (constants["pool_size"] + tests))


def shape(dataset: dict[str, Any]) -> Shape:
    """Channels and pixels of a side of a dataset, of its specification; its name if it does not tell."""
    constants = datasets.constants(dataset) or {}
    if "size" not in constants or "mean" not in constants:
        return str(dataset["name"])
    return len(constants["mean"]), int(constants["size"])


Loads = dict[Work, Load]


def loads(tasks: Iterable[Task], works: Works, times: Mapping[str, int] | None = None) -> dict[What, Loads]:
    """What tasks come to, by kind and method. times: how often each is run; once if not given."""
    found: dict[What, Loads] = {}
    for task in tasks:
        count = 1 if times is None else times.get(task.id, 0)
        dataset = task.dataset or task.spec["dataset"]["name"]
        own, evaluation = works.of(task.spec, dataset, works.count(task.spec))
        for work, units in (own, evaluation) if count else ():
            found.setdefault(own[0].what, {}).setdefault(work, Load()).add(units, count)
    return found


def added(parts: Iterable[Mapping[Work, Load]]) -> Loads:
    """Loads put together."""
    total: Loads = {}
    for part in parts:
        for work, load in part.items():
            of = total.setdefault(work, Load())
            of += load
    return total


def timed_paces(rows: Iterable[dict[str, Any]], works: Works) -> Paces:
    """The paces of finished runs (columns TIMED, and `spec`: as JSON, of a task of a plan as it is)."""
    runs = []
    for row in rows:
        of_plan = isinstance(row["spec"], dict)
        spec = row["spec"] if of_plan else json.loads(row["spec"] or "null")
        if spec is None or not (of_plan or _known(spec)):
            continue
        found = works.of(spec, row["dataset"], works.count(spec) if of_plan else images(spec))
        for (work, units), seconds in zip(found, (row["wall_s"], row["evaluate_s"]), strict=True):
            if seconds is not None:
                runs.append((work, units, seconds))
    return Paces(runs)


def _known(spec: dict[str, Any]) -> bool:
    """Whether the plug-ins of a timed run are still there."""
    parts = {"methods": spec.get("method"), "forget": spec.get("forget")}
    return datasets.constants(spec["dataset"]) is not None and all(
        part is None or part["name"] in catalogue.plugins(kind) for kind, part in parts.items()
    )
