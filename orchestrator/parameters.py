"""Values of the parameters that plug-ins declare, as a user gives them: checked, and of the declared type."""

from __future__ import annotations

import math
from typing import Any

from orchestrator.catalogue import Parameter
from orchestrator.errors import nearest

LIST = "tuple[int, ...]"
NAMES = "tuple[int | str, ...]"  # numbers, or names that stand for them


def check_parameters(
    owner: str, values: dict[str, Any], declared: dict[str, Parameter], *, bounded: bool = False
) -> dict[str, Any]:
    """The values with their declared types; ValueError naming every unknown or impossible one.

    bounded: whether the declared range is a limit (forget recipes) or only where to search (methods).
    """
    problems, checked = [], {}
    for name, value in values.items():
        if name not in declared:
            problems.append(
                f"unknown parameter {name!r} of {owner}.{nearest(name, declared)}"
                f" {owner} has: {', '.join(declared) or 'none'}."
            )
            continue
        problem = _parameter_problem(declared[name], value, bounded)
        if problem:
            problems.append(f"{owner}.{name}: {value!r} {problem}")
        else:
            checked[name] = _typed(declared[name].kind, value)
    if problems:
        raise ValueError("\n".join(problems))
    return checked


def _typed(kind: str, value: Any) -> Any:
    if kind == "float":
        return float(value)
    if kind == NAMES:
        return sorted(_as_list(value), key=lambda of: (isinstance(of, str), of))
    return sorted(_as_list(value)) if kind == LIST else value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _list_problem(value: Any, names: bool) -> str | None:
    numbers = values = _as_list(value)
    if names:
        numbers = [v for v in values if not isinstance(v, str)]
    if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in numbers):
        return f"is not a whole number of at least 0{', a name' if names else ''}, nor a list of them."
    twice = sorted({v for v in values if values.count(v) > 1}, key=str)
    return f"names {twice[0]} twice." if twice else None


def _parameter_problem(parameter: Parameter, value: Any, bounded: bool) -> str | None:
    """What is wrong with a value, None if nothing is."""
    if parameter.kind in (LIST, NAMES):
        return _list_problem(value, names=parameter.kind == NAMES)
    types: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}
    if not isinstance(value, types[parameter.kind]) or (isinstance(value, bool) and parameter.kind != "bool"):
        return f"is not of type {parameter.kind}."
    if parameter.choices is not None and value not in parameter.choices:
        return f"is not one of {', '.join(map(repr, parameter.choices))}."
    if not isinstance(value, (int, float)):
        return None
    if not (math.isfinite(value) and value >= 0):
        return "is not a finite number of at least 0."
    if bounded and not parameter.low <= value <= parameter.high:
        return f"is out of range, {parameter.low:g} to {parameter.high:g} are allowed."
    return None


def poison_problems(forget: str, values: dict[str, Any]) -> list[str]:
    """What is wrong with all parameters of a forget recipe taken together: that it would poison nothing."""
    if values.get("noise", 1) or values.get("flip_labels"):
        return []
    return [
        f"forget.{forget}: noise 0.0 and flip_labels false poison nothing. Set one of them, or write"
        f" random: {{fraction: {values['fraction']:g}}}."
    ]
