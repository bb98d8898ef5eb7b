"""What a plan costs: training images from what the plug-ins declare, hours from these and from timed runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from orchestrator import catalogue, datasets, requests
from orchestrator.keys import canonical
from orchestrator.plan import Plan, Task

TIMED = ("kind", "method", "dataset", "architecture", "track", "wall_s", "evaluate_s", "spec")


def images(spec: dict[str, Any]) -> float:
    """Images that the task of a specification trains on: epochs, or the passes its method declares, times the
    sizes of the sets.
    """
    return Images()._count(spec)


class Images:
    """What `images` gives, for many specifications that share parts; each, and each part, is looked at once.
    They must not be changed while this is in use.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}  # by identity; holding the part keeps that its own
        self._counts: dict[int, tuple[Any, float]] = {}  # of whole specifications, likewise

    def __call__(self, spec: dict[str, Any]) -> float:
        known = self._counts.get(id(spec))
        if known is None:
            known = self._counts[id(spec)] = (spec, self._count(spec))
        return known[1]

    def _count(self, spec: dict[str, Any]) -> float:
        own = spec["method"] if "method" in spec else spec["training"]["epochs"]
        parts = (spec["dataset"], spec["members"], spec.get("forget"), own)
        return _images(spec["kind"], *map(self._key, parts))

    def _key(self, part: Any) -> str:
        """A part of a specification without what tells tasks of equal size apart."""
        if not isinstance(part, dict):
            return canonical(part)
        known = self._known.get(id(part))
        if known is None:
            counts = {name: value for name, value in part.items() if name not in ("draw", "pair", "half")}
            known = self._known[id(part)] = (part, canonical(counts))
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


def training_images(plan: Plan, count: Images | None = None) -> dict[str, float]:
    """Images that all tasks train on, also with a base and a retrain for each unlearn task alone."""
    count = count or Images()
    of = {task.id: count(task.spec) for task in plan.tasks}
    unshared = 0.0
    for cell in plan.cells:
        for variant in (v for v in cell.variants if plan.runs(v)):
            known = cell.references(variant.training)
            retrain = {key[0]: of[task] for key, task in known.retrains.items()}  # equal within a track
            for key, task in variant.tasks.items():
                first = plan.starts_from_base(plan.by_id[task])
                unshared += of[task] + first * of[known.bases[key]] + retrain[key[0]]
    return {"training_images": sum(of.values()), "unshared_training_images": unshared}


@dataclass
class _Pace:
    """What timed runs of one kind took."""

    runs: int = 0
    images: float = 0.0
    wall_s: float = 0.0
    evaluate_s: float = 0.0

    def add(self, row: dict[str, Any], trained_on: float) -> None:
        self.runs += 1
        self.images += trained_on
        self.wall_s += row["wall_s"] or 0.0
        self.evaluate_s += row["evaluate_s"] or 0.0

    def seconds(self, trained_on: float) -> float:
        """Of a task: at the pace per image, or, for a kind that trains on none, as long as the others."""
        wall = self.wall_s / self.images * trained_on if self.images else self.wall_s / self.runs
        return wall + self.evaluate_s / self.runs


def hours(
    left: Iterable[Task], timed: Iterable[dict[str, Any]], count: Images | None = None
) -> tuple[float | None, int]:
    """Device hours that tasks take, and how many of them are of a kind never timed.

    timed: finished runs (columns TIMED; `spec` as JSON, of a task of this plan as it is). A task is estimated
    from the timed runs of its kind and method on its dataset, architecture and track, at their seconds per
    training image; one of a kind never timed at the pace of the timed bases on the same dataset and
    architecture. Without such a base the hours are None.
    """
    paces: dict[tuple[str, ...], _Pace] = {}
    count = count or Images()
    for row in timed:
        known = isinstance(row["spec"], dict)
        spec = row["spec"] if known else json.loads(row["spec"] or "null")
        if spec is None or not (known or _known(spec)):
            continue
        trained_on = count(spec) if known else images(spec)
        kind = _kind(row)
        for key in (kind, kind[2:4]) if row["kind"] == "base" else (kind,):
            paces.setdefault(key, _Pace()).add(row, trained_on)
    total, guessed = 0.0, 0
    for task in left:
        kind = _kind(task.columns())
        pace = paces.get(kind) or paces.get(kind[2:4])
        if pace is None:
            return None, 0
        total += pace.seconds(count(task.spec))
        guessed += kind not in paces
    return total / 3600, guessed


def _known(spec: dict[str, Any]) -> bool:
    """Whether the plug-ins of a timed run are still there."""
    parts = {"methods": spec.get("method"), "forget": spec.get("forget")}
    return datasets.constants(spec["dataset"]) is not None and all(
        part is None or part["name"] in catalogue.plugins(kind) for kind, part in parts.items()
    )


def _kind(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in TIMED[:5])
