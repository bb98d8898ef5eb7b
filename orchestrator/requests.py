"""Sequential requests in a grid: what cannot be, and which tasks they make. workers/requests.py draws them.

`requests: k` splits the forget set of each recipe into k deletions. Each is a cell of its own: its unlearn
tasks start from the models that the request before left, its retrains know nothing that was deleted so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from orchestrator import catalogue, datasets
from workers.requests import groups, is_last

Request = dict[str, int]
LEAST = 16  # samples of a request in an audit base, on average: one in 10 million such requests is empty
ONCE = "prepares its base for one request, and the grid has requests: {count}"


def of_grid(count: int) -> list[Request | None]:
    """The requests of a grid, in order; a single one leaves no trace in a task."""
    return [{"index": index, "of": count} for index in range(count)] if count > 1 else [None]


def words(recipe: dict[str, Any]) -> str:
    """', request 2 of 3' of a forget recipe; '' where all is deleted at once."""
    request = recipe.get("request")
    return f", request {request['index'] + 1} of {request['of']}" if request else ""


def for_retrain(recipe: dict[str, Any]) -> dict[str, Any]:
    """The forget recipe of a retrain. After the last request it is the retrain of the whole forget set."""
    if "request" in recipe and is_last(recipe["request"]):
        return {key: value for key, value in recipe.items() if key != "request"}
    return recipe


def goes_on(recipe: dict[str, Any] | None) -> bool:
    """Whether another request follows."""
    return recipe is not None and "request" in recipe and not is_last(recipe["request"])


def parts(recipe: dict[str, Any]) -> tuple[float, float]:
    """Which part of a forget set is gone after a request, and which part goes in it."""
    request, classes = recipe.get("request"), recipe["parameters"].get("classes")
    if request is None:
        return 1.0, 1.0
    index, count = request["index"], request["of"]
    if catalogue.plugins("forget")[recipe["name"]].scope != "class" or not classes:
        return (index + 1) / count, 1 / count
    sizes = [len(group) / len(classes) for group in groups(classes, count)]
    return sum(sizes[: index + 1]), sizes[index]


def problems(
    count: int,
    recipes: Iterable[tuple[str, dict[str, Any]]],
    datasets: Iterable[str],
    val_fraction: float,
    audited: bool,
) -> Iterator[str]:
    """A line for each forget recipe (name, parameters) that cannot be split into so many requests."""
    if count == 1:
        return
    named = list(datasets)
    for name, values in recipes:
        in_audit = audited and catalogue.plugins("forget")[name].audit_sets != "none"
        of = f"{LEAST} samples each in a forget set of the audit" if in_audit else "a sample each"
        text = f"requests: {count} are too many for forget.{name}, at most"
        classes = values.get("classes", []) if catalogue.plugins("forget")[name].scope == "class" else []
        if classes:
            if count > len(classes):
                yield f"{text} {len(classes)}, one a class."
            continue
        for dataset in named:
            size = _size(name, values, dataset, val_fraction, in_audit)
            most = size if math.isinf(size) else max(1.0, size // (LEAST if in_audit else 1))
            if count > most:
                yield f"{text} {most:.0f} with {of}, on {dataset}."


def _size(name: str, values: dict[str, Any], dataset: str, val_fraction: float, audited: bool) -> float:
    """How many samples a forget set has; infinite where files say so that are not read here."""
    facts = datasets.plugin(dataset).constants
    pool = facts["pool_size"] * (1 - val_fraction)
    members: float = pool / 2 if audited else pool
    defaults = {key: of.default for key, of in catalogue.plugins("forget")[name].parameters.items()}
    known = {key: len(v) if isinstance(v, list) else v for key, v in (defaults | values).items()}
    known |= {key: facts.get(key, 0) for key in ("num_classes", "num_subclasses")}
    try:
        share = catalogue.plugins("forget")[name].constants["share"]
        return float(members * catalogue.formula(share, known | {"pool": pool, "members": members}))
    except ValueError:  # a formula in something else, as the length of a list of samples
        return math.inf
