"""The studies of a grid: what is tuned in which place, how its tasks are made, and the winner of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.trial import TrialState

from attacks.metrics import mean_interval
from orchestrator import catalogue, tuned, tuned_plan
from orchestrator.catalogue import Parameter
from orchestrator.config import Choice, Grid
from orchestrator.keys import canonical
from orchestrator.plan import Task
from orchestrator.provenance import commit
from orchestrator.samplers import searchable
from orchestrator.trials import Trial, trial_tasks
from orchestrator.tune import PHASES, Budget, Result, Search, Subject, Values
from orchestrator.tuned import Place, Winner

SEEDS_APART = 1000  # phase p has the seeds p · SEEDS_APART, …: no seed is in two phases


@dataclass(frozen=True)
class Entry:
    """A study to be: a method in a place of a grid."""

    place: Place
    method: str
    version: int
    subject: Subject


def entries(grid: Grid) -> list[Entry]:
    """Every study of a grid."""
    return [_entry(grid, *study) for study in tuned_plan.studies(grid)]


def _entry(grid: Grid, dataset: str, architecture: str, forget: Choice, choice: Choice) -> Entry:
    method = catalogue.plugins("methods")[choice.name]
    where = tuned_plan.place(grid, dataset, architecture, forget)
    default = catalogue.with_defaults("methods", choice.name, choice.parameters)
    made: dict[str, tuple[Task, Task, Task]] = {}

    def tasks(values: Values, phase: str, seed: int) -> tuple[Task, Task, Task]:
        number = PHASES.index(phase) * SEEDS_APART + seed
        key = canonical([values, number])
        if key not in made:
            trial = Trial(dataset, architecture, forget, choice.name, values, phase, number)
            made[key] = trial_tasks(grid, trial)
        return made[key]

    subject = Subject(
        name=f"{choice.name} · {where.dataset} · {where.architecture} · {where.forget} · {where.training}",
        space=space(grid, choice),
        default=default,
        task=lambda values, phase, seed: tasks(values, phase, seed)[2],
        references=lambda phase, seed: tasks(default, phase, seed)[:2],
    )
    return Entry(where, choice.name, method.version, subject)


def space(grid: Grid, choice: Choice) -> dict[str, Parameter]:
    """What is searched of a method: all parameters with a range, in the grid's range where it gives one, but
    for those whose value the grid sets.
    """
    found = searchable(catalogue.plugins("methods")[choice.name].parameters)
    given = grid.tune.space if grid.tune else {}
    ranges = {**given.get("all", {}), **given.get(choice.name, {})}
    return {
        name: _narrowed(declared, ranges[name]) if name in ranges else declared
        for name, declared in found.items()
        if name not in choice.parameters
    }


def _narrowed(declared: Parameter, given: list[Any]) -> Parameter:
    """A parameter with another range: choices, or [low, high]."""
    if declared.choices is not None:
        return replace(declared, choices=tuple(given))
    low, high = given
    return replace(declared, low=low, high=high, log=declared.log and low > 0)


def winner(entry: Entry, search: Search, importances: Callable[[optuna.Study], Any]) -> Winner | None:
    """What a finished study found; None where it has no winner."""
    result = search.result
    if result is None or result.winner is None:
        return None
    paired = [d - t for d, t in zip(result.default, result.tuned, strict=False)]
    gain = dict(zip(("mean", "low", "high"), mean_interval(paired), strict=True)) if len(paired) > 1 else None
    trials = search.study.get_trials(deepcopy=False)
    facts = {
        "searched": sorted(search.subject.space),
        "origin": result.origin,
        "objective": search.budget.objective,
        "search_value": _of_winner(result).search_value,
        "confirmed": _of_winner(result).value,
        "tuned": result.tuned,
        "default": result.default,
        "gain": gain,
        "noise_floor": result.noise_floor,
        "importances": importances(search.study),
        "trials": {
            "finished": sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials),
            "pruned": sum(t.state == TrialState.PRUNED for t in trials),
            "failed": dict(
                Counter(t.user_attrs["reason"].split(":")[0] for t in trials if t.state == TrialState.FAIL)
            ),
        },
        "default_values": dict(search.subject.default),
        "budget": asdict(search.budget),
        "study": search.subject.name,
        "commit": commit(),
    }
    return Winner(entry.method, entry.version, result.winner, facts)


def _of_winner(result: Result) -> Any:
    return next(c for c in result.candidates if c.origin == result.origin)


def missing(grid: Grid, winners: tuned.Winners) -> list[Entry]:
    """The studies of a grid without a winner yet."""
    return [_entry(grid, *study) for study in tuned_plan.missing(grid, winners)]


def budget(grid: Grid) -> Budget:
    """The budget of a grid's `tune` section; the default of Budget without one."""
    given = grid.tune.model_dump(exclude={"space", "audit"}) if grid.tune else {}
    return Budget(**given)
