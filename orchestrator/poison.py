"""What the specifications of a poisoned cell say: the seed of the poison, and in a base who is poisoned."""

from __future__ import annotations

from typing import Any, Protocol

from orchestrator import catalogue
from orchestrator.keys import derived_seed, present

Part = tuple[dict[str, int], dict[str, Any]]


class Place(Protocol):
    """Where a base stands: on the main track (fixed) or with a number of forget sets on the audit track."""

    @property
    def fixed(self) -> bool: ...
    @property
    def forget_sets(self) -> int: ...


def of(forget: dict[str, Any] | None, names: tuple[Any, ...], place: Place) -> Part:
    """For a forget recipe that poisons: the seed of the poison of all that starts from one base, and what
    that base says of the samples poisoned in it, those that may be forgotten. Else nothing.

    names: of the base. The seed is the same for all requests of a forget set.
    """
    if forget is None or not catalogue.plugins("forget")[forget["name"]].constants.get("poisons"):
        return {}, {}
    recipe = {key: forget[key] for key in ("name", "version", "parameters")}
    values = ", ".join(f"{key}={value}" for key, value in sorted(recipe["parameters"].items()))
    seed = derived_seed("poison", *names, f"{recipe['name']}({values})")
    draw = None if place.fixed else {"of": place.forget_sets}
    return {"poison": seed}, {"poisoned": present({**recipe, "draw": draw})}
