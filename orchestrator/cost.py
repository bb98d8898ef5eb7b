"""What a plan costs: training images from what the plug-ins declare, hours from these and from timed runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from orchestrator import catalogue
from orchestrator.keys import canonical
from orchestrator.plan import Plan, Task

TIMED = ("kind", "method", "dataset", "architecture", "track", "wall_s", "evaluate_s")


def images(task: Task) -> float:
    """Images a task trains on: epochs or the passes its method declares, times the sizes of the sets."""
    spec = task.spec
    own = spec["method"] if "method" in spec else spec["training"]["epochs"]
    return _images(
        spec["kind"], spec["dataset"]["name"], _key(spec["members"]), _key(spec.get("forget")), _key(own)
    )


def _key(part: Any) -> str:
    """A part of a specification without what tells tasks of equal size apart."""
    if isinstance(part, dict):
        part = {name: value for name, value in part.items() if name not in ("draw", "pair", "half")}
    return canonical(part)


@cache
def _images(kind: str, dataset: str, members: str, forget: str, own: str) -> float:
    sizes = _sizes(dataset, json.loads(members), json.loads(forget))
    if kind != "unlearn":
        trained = sizes["retain_size"] + (sizes["forget_size"] if kind == "base" else 0)
        return float(json.loads(own)) * trained
    method = json.loads(own)
    passes = catalogue.plugins("methods")[method["name"]].cost(method["hyperparameters"] | sizes)
    return sum(passes[name] * sizes[f"{name}_size"] for name in ("retain", "forget", "val"))


def _sizes(dataset: str, members: dict[str, Any], forget: dict[str, Any] | None) -> dict[str, float]:
    """How many samples the sets of a design have, classes taken as equally large."""
    constants = catalogue.plugins("datasets")[dataset].constants
    pool = constants["pool_size"]
    trained = pool * (1 - members["val_fraction"]) / (2 if members["track"] == "audit" else 1)
    gone = 0.0 if forget is None else trained * _share(forget, constants["num_classes"])
    val = pool * members["val_fraction"]
    return {"retain_size": trained - gone, "forget_size": gone, "val_size": val}


def _share(forget: dict[str, Any], num_classes: int) -> float:
    """The share of the members that a recipe forgets; in its formula a list stands for its length."""
    values = {k: len(v) if isinstance(v, list) else v for k, v in forget["parameters"].items()}
    recipe = catalogue.plugins("forget")[forget["name"]]
    return catalogue.formula(recipe.constants["share"], values | {"num_classes": num_classes})


def training_images(plan: Plan) -> dict[str, float]:
    """Images that all tasks train on, also with a base and a retrain for each unlearn task alone."""
    of = {task.id: images(task) for task in plan.tasks}
    unshared = 0.0
    for cell in plan.cells:
        for variant in (v for v in cell.variants if plan.runs(v)):
            known = cell.references(variant.training)
            retrain = {key[0]: of[task] for key, task in known.retrains.items()}  # equal within a track
            for key, task in variant.tasks.items():
                unshared += of[task] + of[known.bases[key]] + retrain[key[0]]
    return {"training_images": sum(of.values()), "unshared_training_images": unshared}


def hours(plan: Plan, left: Iterable[Task], timed: Iterable[dict[str, Any]]) -> tuple[float | None, int]:
    """Device hours that `left` of a plan takes, and how many of these tasks are of a kind never timed.

    timed: finished runs (columns TIMED). A kind of task is estimated at the mean seconds of its timed runs.
    One never timed is estimated from the timed bases on the same dataset and architecture: at their seconds
    per training image and for the evaluation. Without such a base the hours are None.
    """
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in timed:
        found.setdefault(_kind(row), []).append((row["wall_s"] or 0.0, row["evaluate_s"] or 0.0))
    mean = {kind: (_mean(w for w, _ in times), _mean(e for _, e in times)) for kind, times in found.items()}
    pace = {}  # (dataset, architecture) -> seconds per image, seconds of an evaluation
    for task in plan.tasks:
        if task.kind == "base" and (kind := _kind(task.columns())) in mean:
            wall_s, evaluate_s = mean[kind]
            pace[kind[2:4]] = wall_s / images(task), evaluate_s
    total, guessed = 0.0, 0
    for task in left:
        kind = _kind(task.columns())
        if kind in mean:
            total += sum(mean[kind])
        elif kind[2:4] in pace:
            per_image, evaluate_s = pace[kind[2:4]]
            total, guessed = total + per_image * images(task) + evaluate_s, guessed + 1
        else:
            return None, 0
    return total / 3600, guessed


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _kind(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in TIMED[:5])
