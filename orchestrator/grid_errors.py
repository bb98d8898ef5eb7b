"""What pydantic finds in a grid file, as lines for its author: where, the value, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.errors import nearest


def lines(model: type[BaseModel], path: str, error: ValidationError) -> list[str]:
    """A line for each mistake that `model` found in a file."""
    found = []
    for problem in error.errors():
        for text in _message(model, problem).split("\n"):
            where = _where(problem["loc"])
            found.append(f"{path}  {where}: {text}" if where else f"{path}  {text}")
    return found


def inside(name: str, model: type[BaseModel], error: ValidationError) -> list[str]:
    """A line for each value of a part of the file, called `name`, that `model` finds wrong, not missing."""
    return [
        f"{_where((name, *problem['loc']))}: {_message(model, problem)}"
        for problem in error.errors()
        if problem["type"] != "missing"
    ]


def _where(location: tuple[int | str, ...]) -> str:
    """'methods[2]' for ('methods', 2)."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _message(model: type[BaseModel], problem: Any) -> str:
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        *parents, key = problem["loc"]
        allowed = list(_section(model, parents).model_fields)
        return f"unknown key.{nearest(str(key), allowed)} Allowed: {', '.join(allowed)}."
    if kind == "missing":
        return "missing; every grid needs it."
    if kind == "value_error":
        return str(context["error"])
    bounds = {"greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "more than")}
    bounds |= {"less_than": ("lt", "less than"), "less_than_equal": ("le", "at most")}
    if kind in bounds:
        bound, words = bounds[kind]
        return f"{value!r} is out of range, {words} {context[bound]:g}."
    if kind == "too_short":
        return "empty; name at least one."
    if kind == "literal_error":
        return f"{value!r} is not one of {context['expected']}.{nearest(str(value), _literals(context))}"
    return f"{problem['msg']}, not {value!r}."


def _section(model: type[BaseModel], parents: list[int | str]) -> type[BaseModel]:
    """The model of a section of the file, e.g. of ['training', 'all']."""
    for part in parents:
        if part in model.model_fields:
            model = next(_models(model.model_fields[str(part)].annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type, e.g. in dict[str, Training]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _literals(context: dict[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", str(context["expected"]))
