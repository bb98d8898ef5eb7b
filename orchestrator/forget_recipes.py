"""Forget recipes in a grid: what they need of its datasets and its audit, the lists of samples that files
hold, and what stands for them in a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import catalogue, datasets, id_files, requests
from orchestrator.errors import UserError, nearest

if TYPE_CHECKING:
    from orchestrator.config import Audit, Choice, Grid

MOST = 0.9  # of the members of a base may go
LEAST = 8  # samples of a forget set in an audit base, on average: with fewer, one may have none


def members(dataset: str, val_fraction: float) -> int:
    """How many samples of a dataset can be trained on: its pool less the validation set."""
    pool = int(datasets.plugin(dataset).constants["pool_size"])
    return pool - round(val_fraction * pool)


def parameters(dataset: str, choice: Choice) -> dict[str, Any]:
    """All parameters of a recipe on a dataset, subclasses by their numbers. A name that the dataset does not
    have stays.
    """
    values = catalogue.with_defaults("forget", choice.name, choice.parameters)
    if "subclasses" in values:
        numbers = {name: number for number, name in enumerate(_names(dataset))}
        found = [numbers.get(of, of) for of in values["subclasses"]]
        values["subclasses"] = sorted(found, key=lambda of: (isinstance(of, str), of))
    return values


def _names(dataset: str) -> list[str]:
    return str(datasets.plugin(dataset).constants.get("subclass_names", "")).split()


def specification(dataset: str, choice: Choice) -> dict[str, Any]:
    """What a task says of its forget recipe: name, version and parameters; of a list the hash, no file."""
    plugin = catalogue.plugins("forget")[choice.name]
    versioned, values = {"name": plugin.name, "version": plugin.version}, parameters(dataset, choice)
    if "file" not in values:
        return {**versioned, "parameters": values}
    if choice.ids is None:
        raise UserError(f"forget.{choice.name}: the list was not read.")
    ids = {"count": len(choice.ids), "sha256": id_files.sha256(choice.ids)}
    return {**versioned, "parameters": {}, "ids": ids}


def shown(recipe: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a recipe as a label shows them: of a list the count and the start of the hash."""
    ids = recipe.get("ids")
    return recipe["parameters"] if ids is None else {**ids, "sha256": ids["sha256"][:12]}


def lists(grid: Grid) -> dict[str, list[int]]:
    """The lists of samples that the grid's recipes name, by their hashes."""
    return {id_files.sha256(choice.ids): list(choice.ids) for choice in grid.forget if choice.ids is not None}


# ---- what does not fit -----------------------------------------------------------------------------------


def problems(grid: Grid) -> list[str]:
    """What is wrong with the recipes of a grid, a line each."""
    found = []
    for choice in grid.forget:
        found += _alternatives(choice) or _of_grid(choice, grid)
        for dataset in grid.datasets:
            found += _subclasses(dataset, choice) + _count(dataset, choice, grid.val_fraction, grid.audit)
            found += _none(dataset, choice, grid.val_fraction) or _few(dataset, choice, grid)
    return found + _twice(grid.datasets, grid.forget)


def _alternatives(choice: Choice) -> list[str]:
    either = catalogue.plugins("forget")[choice.name].constants.get("alternatives", ())
    given = [name for name in either if name in choice.parameters]
    return [f"forget.{choice.name}: give {' or '.join(given)}, not both."] if len(given) > 1 else []


def _of_grid(choice: Choice, grid: Grid) -> list[str]:
    """What a recipe needs of the grid as a whole."""
    where = f"forget.{choice.name}"
    if choice.name == "memorised" and grid.audit is None:
        return [f"{where}: needs `audit: {{pairs: …}}`; its bases tell which samples are memorised."]
    if choice.name != "listed":
        return []
    if not choice.parameters.get("file"):
        return [f"{where}: names no file. Write {{listed: {{file: ids.txt}}}}, one sample id a line."]
    if len(grid.datasets) > 1:
        return [f"{where}: sample ids are of one dataset, and the grid has {', '.join(grid.datasets)}."]
    if grid.split == "paper":
        return [f"{where}: with split: paper the validation set is fixed and may hold listed samples."]
    return []


def _subclasses(dataset: str, choice: Choice) -> list[str]:
    values = parameters(dataset, choice).get("subclasses")
    if values is None:
        return []
    where = f"forget.{choice.name}.subclasses"
    count = int(datasets.plugin(dataset).constants.get("num_subclasses", 0))
    if not count:
        known = catalogue.plugins("datasets")
        having = [name for name, plugin in known.items() if plugin.constants.get("num_subclasses")]
        return [f"{where}: {dataset} has no subclasses; datasets that do: {', '.join(having)}."]
    unknown = [
        f"{where}: {dataset} has no subclass {of!r}.{nearest(of, _names(dataset))}"
        if isinstance(of, str)
        else f"{where}: {dataset} has no subclass {of}, only 0 to {count - 1}."
        for of in values
        if isinstance(of, str) or of >= count
    ]
    twice = sorted({of for of in values if isinstance(of, int) and values.count(of) > 1})
    unknown += [f"{where}: {dataset}'s subclass {of} is named twice." for of in twice]
    if len(set(values)) == count and not unknown:
        return [f"{where}: all {count} subclasses of {dataset}; none is left."]
    return unknown


def _count(dataset: str, choice: Choice, val_fraction: float, audit: Audit | None) -> list[str]:
    """Whether the samples are there that a recipe counts."""
    count = int(choice.parameters.get("count", 0))
    where, there = f"forget.{choice.name}.count", members(dataset, val_fraction)
    if not count:
        return []
    if count > MOST * there:
        return [
            f"{where}: {count:,} is too many, {dataset} has {there:,} samples to train on;"
            f" at most {int(MOST * there):,}."
        ]
    if audit is None or catalogue.plugins("forget")[choice.name].audit_sets != "many":
        return []
    of_base = there // 2
    if count > MOST * of_base:
        return [
            f"{where}: {count:,} is too many, a base of the audit on {dataset} has {of_base:,} samples;"
            f" at most {int(MOST * of_base):,}."
        ]
    if count * audit.forget_sets > of_base:
        return [
            f"audit.forget_sets: {audit.forget_sets} disjoint sets of {count:,} samples do not fit into one"
            f" base of {dataset}, which has {of_base:,}; at most {of_base // count}."
        ]
    return []


def _none(dataset: str, choice: Choice, val_fraction: float) -> list[str]:
    """A share of the samples that rounds to none of them."""
    fraction, there = parameters(dataset, choice).get("fraction"), members(dataset, val_fraction)
    if not fraction or choice.parameters.get("count") or round(fraction * there):
        return []
    return [
        f"forget.{choice.name}.fraction: {fraction:g} of the {there:,} samples that {dataset} has to train on"
        " is none; give more."
    ]


def _few(dataset: str, choice: Choice, grid: Grid) -> list[str]:
    """Forget sets so small that some base of the audit has none of the samples in one. Requests in turn have
    a limit of their own.
    """
    many = catalogue.plugins("forget")[choice.name].audit_sets == "many"
    if grid.audit is None or not many or grid.requests > 1 or _alternatives(choice):
        return []
    values, there = parameters(dataset, choice), members(dataset, grid.val_fraction)
    count = choice.parameters.get("count")
    size = float(count) if count else values.get("fraction", 1.0) * (there // 2)
    if size >= LEAST:
        return []
    return [
        f"forget.{choice.name}: {size:.3g} samples a forget set in an audit base of {dataset}, which has"
        f" {there // 2:,}; at least {LEAST}. Give more, or leave the audit out."
    ]


def _twice(datasets: Sequence[str], choices: Sequence[Choice]) -> list[str]:
    """Subclasses that are named by name here and by number there."""
    filled = [parameters(datasets[0], choice) for choice in choices if choice.name == "subclass"]
    given = [choice.parameters for choice in choices if choice.name == "subclass"]
    same = any(filled[a] == filled[b] and given[a] != given[b] for a in range(len(filled)) for b in range(a))
    return ["forget: subclass is named twice with the same parameters."] if same else []


# ---- lists -----------------------------------------------------------------------------------------------


def with_lists(path: str, grid: Grid) -> Grid:
    """The grid in the file `path` with the lists of its recipes read; UserError with a line per mistake."""
    found, mistakes = [], []
    for choice in grid.forget:
        if choice.name == "listed":
            source = Path(path).parent / choice.parameters["file"]
            try:
                ids = id_files.read(source, grid.datasets[0])
                _check_size(source, ids, grid)
                choice = choice.model_copy(update={"ids": tuple(ids)})
            except UserError as error:
                mistakes += error.problems
        found.append(choice)
    hashes = [id_files.sha256(choice.ids) for choice in found if choice.ids is not None]
    if len(set(hashes)) < len(hashes):
        mistakes.append(f"{path}  forget: listed is named twice with the same samples.")
    if mistakes:
        raise UserError(*mistakes)
    return grid.model_copy(update={"forget": found})


def _check_size(source: Path, ids: list[int], grid: Grid) -> None:
    dataset = grid.datasets[0]
    pool = int(datasets.plugin(dataset).constants["pool_size"])
    if len(ids) == pool:
        raise UserError(f"{source}: lists all {pool:,} samples of the pool of {dataset}; none is left.")
    there = members(dataset, grid.val_fraction)
    if len(ids) > MOST * there:
        raise UserError(
            f"{source}: {len(ids):,} samples are too many, {dataset} has {there:,} to train on;"
            f" at most {int(MOST * there):,}."
        )
    least = grid.requests * (2 * requests.LEAST if grid.audit is not None else 1)
    if grid.requests > 1 and len(ids) < least:
        raise UserError(
            f"{source}: {len(ids):,} samples are too few for requests: {grid.requests}, at least {least:,}."
        )
    if grid.audit is not None and len(ids) < 2:
        raise UserError(
            f"{source}: one sample is too few for an audit, in which each base of a pair forgets half of the"
            " list; list at least 2, or leave `audit` out."
        )
