"""What a grid costs on a device that was measured, for `lethe plan --device`: facts, and these in words."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orchestrator.catalogue import Parameter
from orchestrator.config import Grid
from orchestrator.cost import Loads, What, Works, added, alone, images, loads
from orchestrator.measured import Measurement
from orchestrator.paces import EVALUATE, Borrowed, Estimate, Load, Work
from orchestrator.plan import Plan, Task
from orchestrator.store import Store

DRAWS = 64  # of a study's values, for the mean length of its trials
HOW = {
    "track": "the same on another track",
    "dataset": "the same on other data of the image shape",
    "ratio": "bases, times the method's ratio to them on other architectures or shapes",
    "base": "bases, since the method was timed nowhere",
}
SPREAD = {
    "track": "between datasets and tracks",
    "dataset": "between datasets and tracks",
    "ratio": "between ratios",
    "base": "between methods and bases",
}


# ---- facts -----------------------------------------------------------------------------------------------


def of_plan(
    plan: Plan, left: Iterable[Task], store: Store | None, measured: Measurement, works: Works
) -> dict[str, Any]:
    """Hours on one such device, one model at a time: of the whole grid, of what is left, without sharing, by
    kind and method, and of tuning; what they are borrowed from and what they lack.
    """
    estimate = measured.paces.estimate
    parts = loads(plan.tasks, works)
    whole = estimate(added(parts.values()))
    return {
        **_hours("", whole),
        **_hours("left_", estimate(added(loads(left, works).values()))),
        **_hours("unshared_", estimate(added(loads(plan.tasks, works, alone(plan)).values()))),
        "parts": [_part(what, of, estimate(of)) for what, of in sorted(parts.items(), key=_order)],
        "borrowed": [_borrowed(found) for found in whole.borrowed],
        "missing": [_named(work) for work in whole.missing],
        "tuning": _of_tuning(plan.grid, store, measured, works),
        "measured": measured.facts,
    }


def hours(prefix: str, found: Estimate) -> dict[str, float | None]:
    """An estimate as three facts, all None where something is missing."""
    values = (None, None, None) if found.missing else (found.seconds, found.low, found.high)
    names = ("hours", "hours_low", "hours_high")
    return {
        prefix + name: None if value is None else value / 3600
        for name, value in zip(names, values, strict=True)
    }


def _hours(prefix: str, found: Estimate) -> dict[str, float | None]:
    """The same, and the hours of the part that could be estimated."""
    return hours(prefix, found) | {f"{prefix}estimated_hours": found.seconds / 3600}


def borrowers(found: Estimate) -> int:
    """Tasks whose kind was timed on no track of their dataset; 0 where there is no estimate."""
    borrowed = [] if found.missing else found.borrowed
    return round(sum(b.runs for b in borrowed if b.how != "track" and b.work.what != EVALUATE))


def _order(part: tuple[What, Loads]) -> tuple[int, What]:
    return ("base", "retrain", "unlearn").index(part[0][0]), part[0]


def _part(what: What, of: Loads, found: Estimate) -> dict[str, Any]:
    own = [load for work, load in of.items() if work.what == what]
    facts = {"kind": what[0], "method": what[1], "tasks": round(sum(load.runs for load in own))}
    return facts | _hours("", found)


def _named(work: Work) -> dict[str, Any]:
    image = list(work.shape) if isinstance(work.shape, tuple) else None
    return work._asdict() | {"shape": image}


def _borrowed(found: Borrowed) -> dict[str, Any]:
    return _named(found.work) | {
        "how": found.how,
        "tasks": round(found.runs),
        "hours": found.seconds / 3600,
        "from": [_named(work) for work in found.timed],
        "spread": found.spread,
    }


# ---- tuning ----------------------------------------------------------------------------------------------


def _of_tuning(grid: Grid, store: Store | None, measured: Measurement, works: Works) -> dict[str, Any] | None:
    """Hours of the trials of studies without a winner, none of them stopped early, and of all that tuning
    runs beside; None for a grid that is not tuned.
    """
    if grid.tune is None and grid.hyperparameters != "tuned":
        return None
    from orchestrator import tuned, tuning

    shipped = grid.hyperparameters == "tuned"
    entries = tuning.missing(grid, tuned.known(store, shipped=shipped))
    budget = tuning.budget(grid)
    trials, others = tuning_loads(entries, budget, works)
    return {
        "studies": len(entries),
        "pruner": budget.pruner,
        "trials": _tasks(trials),
        **_hours("", measured.paces.estimate(trials)),
        "other_tasks": _tasks(others),
        **_hours("other_", measured.paces.estimate(others)),
    }


def _tasks(of: Loads) -> int:
    return round(sum(load.runs for work, load in of.items() if work.what != EVALUATE))


def tuning_loads(entries: Iterable[Any], budget: Any, works: Works) -> tuple[Loads, Loads]:
    """Trials of studies (tuning.Entry) with values drawn evenly from what is searched; and their bases and
    retrains, each of which serves all methods, and the runs that confirm and evaluate, at the defaults.
    """
    trials: Loads = {}
    others: list[Loads] = []
    seen: set[str] = set()
    for subject in (entry.subject for entry in entries):
        task = subject.task(subject.default, "search", 0)
        for values in draws(subject.space):
            method = task.spec["method"] | {"hyperparameters": subject.default | values}
            spec = task.spec | {"method": method}
            for work, units in works.of(spec, task.dataset, images(spec)):
                trials.setdefault(work, Load()).add(units, budget.trials * budget.seeds / DRAWS)
        times = {"search": 0, "confirm": budget.finalists + 1, "evaluate": 2}
        for phase, count in times.items():
            seeds = budget.seeds_of(phase)
            fresh = [job for job in subject.references(phase, 0) if job.id not in seen]
            own = subject.task(subject.default, phase, 0)
            seen |= {job.id for job in fresh}
            runs = dict.fromkeys((job.id for job in fresh), seeds) | {own.id: count * seeds}
            others += loads([*fresh, own], works, runs).values()
    return trials, added(others)


def draws(space: Mapping[str, Parameter]) -> Iterator[dict[str, Any]]:
    """DRAWS points of a space, spread evenly over each parameter (a Latin hypercube), always the same."""
    rng = random.Random(0)
    places = {name: rng.sample(range(DRAWS), DRAWS) for name in space}
    for number in range(DRAWS):
        yield {name: _value(space[name], (places[name][number] + 0.5) / DRAWS) for name in space}


def _value(parameter: Parameter, share: float) -> Any:
    """The value below which a share of a parameter's range or choices lies."""
    if parameter.choices is not None:
        return parameter.choices[int(share * len(parameter.choices))]
    low, high = parameter.low, parameter.high
    whole = parameter.kind == "int"
    low, high = (low - 0.5, high + 0.5) if whole and not parameter.log else (low, high)
    value = low * (high / low) ** share if parameter.log else low + share * (high - low)
    return round(value) if whole else value


# ---- text ------------------------------------------------------------------------------------------------


def lines(cost: dict[str, Any]) -> list[str]:
    """The facts as lines."""
    measured = cost["measured"]
    device = f"one {measured['device']}, one model at a time"
    text = [
        f"Cost: {shown(cost)} on {device}; what is left: {shown(cost, 'left_')}.",
        f"Without sharing: {shown(cost, 'unshared_')}.",
    ]
    if cost["missing"]:
        text.insert(1, f"Not in it, since bases and their evaluation were not timed there: {_missing(cost)}.")
    text += _table(cost["parts"])
    text += _borrowed_text(cost["borrowed"])
    if cost["hours"] is not None and cost["hours_low"] is None:
        text.append("No interval: nothing was timed twice.")
    text += _tuning_text(cost["tuning"])
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    text.append(
        f"Timed on {measured['date']} ({versions}) by `{measured['command']}`, kept in {measured['file']}"
        + (f" and {count} more beside it." if (count := len(measured["parts"])) else ".")
    )
    return text


def shown(facts: Mapping[str, Any], prefix: str = "") -> str:
    """Hours and their interval, in the unit that fits."""
    value, low, high = (facts[f"{prefix}hours{end}"] for end in ("", "_low", "_high"))
    if value is None:
        known = facts[f"{prefix}estimated_hours"]
        return f"at least {duration(known)}" if known else "not known"
    if low is None:
        return duration(value)
    factor, unit = _unit(value)
    return f"{duration(value)} [{low * factor:,.{_digits(unit)}f}, {high * factor:,.{_digits(unit)}f}]"


def duration(hours: float) -> str:
    """Hours in the unit that fits."""
    factor, unit = _unit(hours)
    return f"{hours * factor:,.{_digits(unit)}f} {unit}"


def _unit(hours: float) -> tuple[int, str]:
    return (1, "hours") if hours >= 1 else (60, "minutes") if hours * 60 >= 2 else (3600, "seconds")


def _digits(unit: str) -> int:
    return 1 if unit == "hours" else 0


def _table(parts: list[dict[str, Any]]) -> list[str]:
    rows = [(p["kind"], p["method"], f"{p['tasks']:,}", shown(p)) for p in parts]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return [
        f"  {kind.ljust(widths[0])}  {method.ljust(widths[1])}  {tasks.rjust(widths[2])}  {cost}"
        for kind, method, tasks, cost in rows
    ]


def _missing(cost: dict[str, Any]) -> str:
    """The architectures and image shapes that lack a timed base, each once."""
    shapes = {
        (work["architecture"], f"{work['shape'][0]}×{work['shape'][1]}×{work['shape'][1]}")
        if work["shape"]
        else (work["architecture"], work["dataset"])
        for work in cost["missing"]
    }
    return ", ".join(f"{architecture} at {shape}" for architecture, shape in sorted(shapes))


def _borrowed_text(borrowed: list[dict[str, Any]]) -> list[str]:
    text = []
    for how, words in HOW.items():
        found = [of for of in borrowed if of["how"] == how]
        if not found:
            continue
        tasks = sum(of["tasks"] for of in found if of["kind"] != EVALUATE[0])
        spread = found[0]["spread"]
        known = f"a spread of {spread:.0%} {SPREAD[how]} is" if spread is not None else "their spread is not"
        text.append(
            f"  borrowed: {duration(sum(of['hours'] for of in found))}, {tasks:,} tasks, at the pace of"
            f" {words}; {known} in the interval."
        )
    return text


def _tuning_text(tuning: dict[str, Any] | None) -> list[str]:
    if not tuning or not tuning["studies"]:
        return []
    shorter = "repeated values" if tuning["pruner"] == "none" else "the pruner and repeated values"
    return [
        f"On top, `lethe tune`: {shown(tuning)} for {tuning['trials']:,} trials at full length, drawn evenly"
        f" from what is searched; {shorter} shorten them, by how much is not measured.",
        f"  and {shown(tuning, 'other_')} for {tuning['other_tasks']:,} bases, retrains and runs that confirm"
        " and evaluate.",
    ]
