"""Plans whose methods have the winners of tuning (`hyperparameters: tuned`), cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator import catalogue, datasets, forget_recipes, tuned
from orchestrator.config import Choice, Grid
from orchestrator.keys import digest
from orchestrator.plan import Plan, forget_label, make_plan
from orchestrator.store import Store
from orchestrator.tuned import Place, Winners

Study = tuple[str, str, Choice, Choice]  # dataset, architecture, forget recipe, method


def plan_of(grid: Grid, store: Store | None) -> Plan:
    """The plan of a grid; with `hyperparameters: tuned`, with the winners that are known to a store, and the
    defaults where there is none.
    """
    return make_plan(grid) if grid.hyperparameters != "tuned" else tuned_plan(grid, tuned.known(store))


def tuned_plan(grid: Grid, winners: Winners) -> Plan:
    """The plan in which each method has its winner's values in a cell; those the grid sets stand above."""

    def values(dataset: str, architecture: str, forget: Choice, method: Choice) -> dict[str, Any]:
        version = catalogue.version_of("methods", method.name)
        winner = winners.get((place(grid, dataset, architecture, forget), method.name, version))
        found = {**(winner.hyperparameters if winner else {}), **method.parameters}
        return catalogue.with_defaults("methods", method.name, found)

    return make_plan(grid, values)


def place(grid: Grid, dataset: str, architecture: str, forget: Choice) -> Place:
    """Where a winner holds: what decides the bases of the main track is part of it."""
    recipe = forget_recipes.specification(dataset, forget)
    training = [grid.recipe(dataset, architecture, "main"), grid.val_fraction, grid.augment_unlearning]
    return Place(datasets.of(dataset).name, architecture, forget_label(recipe), digest(training)[:8])


def studies(grid: Grid) -> Iterator[Study]:
    """Every study of a grid: each method on each dataset, architecture and forget recipe it is made for. A
    recipe that chooses samples by the audit's scores has none: tuning is not to see the audit.
    """
    for dataset in grid.datasets:
        for architecture in grid.architectures:
            for forget in (f for f in grid.forget if f.name != "memorised"):
                scope = catalogue.plugins("forget")[forget.name].scope
                for method in grid.methods:
                    if catalogue.plugins("methods")[method.name].scope in ("both", scope):
                        yield dataset, architecture, forget, method


def missing(grid: Grid, winners: Winners) -> list[Study]:
    """The studies of a grid without a winner yet."""
    return [
        (dataset, architecture, forget, method)
        for dataset, architecture, forget, method in studies(grid)
        if (
            place(grid, dataset, architecture, forget),
            method.name,
            catalogue.version_of("methods", method.name),
        )
        not in winners
    ]


def first(grid: Grid, store: Store | None) -> int | None:
    """How many studies come before a run of a grid with `hyperparameters: tuned`; None for other grids."""
    return len(missing(grid, tuned.known(store))) if grid.hyperparameters == "tuned" else None
