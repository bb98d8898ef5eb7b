"""What is wrong with `tune.space` of a grid, a line for each mistake.

space:
  all: {epochs: [1, 10]}                        # of each method of the grid that has it
  finetune: {batch_size: [64, 128], learning_rate: [1.0e-3, 0.1]}
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from orchestrator import catalogue
from orchestrator.catalogue import Parameter
from orchestrator.errors import nearest

Space = Mapping[str, Mapping[str, list[Any]]]
ALL = "all"


def problems(space: Space, methods: Collection[str]) -> list[str]:
    """The mistakes in a space for a grid with these methods."""
    declared = {name: catalogue.plugins("methods")[name].parameters for name in methods}
    return [line for owner, given in space.items() for line in _of_owner(owner, given, declared)]


def _of_owner(
    owner: str, given: Mapping[str, list[Any]], declared: Mapping[str, Mapping[str, Parameter]]
) -> Iterator[str]:
    if owner != ALL and owner not in declared:
        allowed = [ALL, *declared]
        yield (
            f"tune.space.{owner}: no method of this grid.{nearest(owner, allowed)}"
            f" Allowed: {', '.join(allowed)}."
        )
        return
    named = {owner: declared[owner]} if owner != ALL else declared
    for name, values in given.items():
        having = {method: found[name] for method, found in named.items() if name in found}
        where = f"tune.space.{owner}.{name}"
        if not having:
            known = sorted({key for found in named.values() for key in found})
            what = "no method of this grid has it" if owner == ALL else f"unknown parameter of {owner}"
            yield f"{where}: {what}.{nearest(name, known)} Allowed: {', '.join(known) or 'none'}."
        found = {_problem(parameter, values): method for method, parameter in having.items()}
        for problem, method in found.items():
            if problem:
                yield f"{where}: {problem}{f' ({method})' if owner == ALL else ''}"


def _problem(parameter: Parameter, values: list[Any]) -> str:
    """What is wrong with a range or choices for a parameter, '' if nothing is."""
    if parameter.choices is not None:
        return _choices_problem(parameter.choices, values)
    if parameter.low is None or parameter.high is None:
        return "it has no range to search; set its value among the methods."
    if len(values) != 2:
        return f"{values} is not [low, high]."
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (parameter.kind == "int" and not isinstance(value, int)):
            return f"{value!r} is not of type {parameter.kind}."
        if not (math.isfinite(value) and value >= 0):
            return f"{value!r} is not a finite number of at least 0."
    low, high = values
    return f"{low!r} is above {high!r}; write [low, high]." if low > high else ""


def _choices_problem(choices: tuple[Any, ...], values: list[Any]) -> str:
    shown = ", ".join(map(repr, choices))
    if not values:
        return f"empty; name at least one of {shown}."
    if odd := [v for v in values if not any(type(v) is type(c) and v == c for c in choices)]:
        return f"{odd[0]!r} is not one of {shown}."
    twice = [v for v in values if values.count(v) > 1]
    return f"names {twice[0]!r} twice." if twice else ""
