"""Cells: the tables of a report, and which tasks make them up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator import forget_recipes, requests

TRACKS = ("main", "audit")
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
    """One table of the report: (dataset, architecture, training recipes, forget recipe, request) and its
    tasks.

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
class Place:
    """One base to be: its track, its number, who its members are and how many forget sets it has."""

    track: str
    seed: int
    members: dict[str, Any]
    forget_sets: int
    fixed: bool


def forget_label(recipe: dict[str, Any] | None) -> str:
    """'random(fraction=0.1)' for a forget recipe, with its request if there are several; '' for none."""
    if recipe is None:
        return ""
    return f"{recipe['name']}({inside(forget_recipes.shown(recipe))}){requests.words(recipe)}"


def inside(values: dict[str, Any]) -> str:
    """'a=1, b=2' for values in the order of their names, without a version."""
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()) if key != "version")
