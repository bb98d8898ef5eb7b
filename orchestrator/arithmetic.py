"""How many models a plan comes to, part by part, with the product behind each number.

Three ways to make the same table are counted. *Alone*: each unlearned model gets a base and a retrain of its
own. *Loops*: as in arXiv 2410.01276, methods share a base and a retrain for each seed, or each base and
forget set of the audit. *Lethe*: what is run; a base is trained once for all its forget sets, and retrains
on the audit track as often as the grid says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from orchestrator.plan import TRACKS, Cell, Plan

Factors = tuple[tuple[int, str], ...]  # e.g. ((18, "method"), (10, "seed"))


@dataclass(frozen=True)
class Part:
    """One line of the count. `factors` is the product that gives `loops`; `left_out` of these Lethe does
    without: retrains beyond `audit.retrains`, and tuning on bases of the audit.
    """

    track: str
    what: str
    factors: str
    alone: int
    loops: int
    lethe: int
    left_out: int = 0


def parts(plan: Plan) -> list[Part]:
    """The lines of both tracks, those without a model left out."""
    kinds = Counter((task.kind, task.spec["members"]["track"]) for task in plan.tasks)
    first = Counter(t.spec["members"]["track"] for t in plan.tasks if plan.starts_from_base(t))
    found = []
    for track in TRACKS:
        unlearned, pairs, searched = (Counter[Factors]() for _ in range(3))
        for number, cell in enumerate(plan.cells):
            places = _places(cell, track)
            methods = sum(_has(plan, tasks.tasks, track) for tasks in cell.variants)
            unlearned[(methods, "method"), *places] += 1
            trainings = 1 + sum(_has(plan, known.bases, track) for known in cell.changed.values())
            pairs[(2, ""), (trainings, "training"), *places] += 1
            if number % plan.grid.requests == 0:  # the requests of a forget set are one study
                for factors in _search(plan, methods, track, bool(prod(n for n, _ in places))):
                    searched[factors] += 1
        run = kinds["unlearn", track]
        loops, text = _product(plan, unlearned, plan.grid.requests)
        found.append(Part(track, "unlearned", text, loops, loops, run))
        loops, text = _product(plan, pairs, plan.grid.requests)
        trained = kinds["base", track] + kinds["retrain", track]
        spared = loops // 2 - kinds["retrain", track]
        found.append(Part(track, "base and retrain", text, first[track] + run, loops, trained, spared))
        loops, text = _product(plan, searched, 1)
        spared = 0 if track == "main" else loops
        found.append(Part(track, "tuning", text, loops, loops, loops - spared, spared))
    return [part for part in found if part.loops or part.lethe]  # or: bases that choose a forget set


def _places(cell: Cell, track: str) -> Factors:
    """Where the models of a cell start from: seeds, or bases and forget sets of the audit."""
    keys = [key for key in cell.bases if key[0] == track]
    if track == "main":
        return ((len(keys), "seed"),)
    bases = len({base for _, base, _ in keys})
    return ((bases, "base"), (len(keys) // bases if bases else 0, "forget set"))


def _has(plan: Plan, tasks: dict[Any, str], track: str) -> bool:
    return any(key[0] == track and task in plan.by_id for key, task in tasks.items())


def _search(plan: Plan, methods: int, track: str, runs: bool) -> Iterable[Factors]:
    tune = plan.grid.tune
    if tune is not None and track == "main":
        yield ((methods, "method"), (tune.seeds, "seed"), (tune.trials, "trial"))
    elif tune is not None and tune.audit is not None and runs:
        yield ((methods, "method"), (tune.audit.bases, "base"), (tune.audit.trials, "trial"))


def _product(plan: Plan, cells: Counter[Factors], requests: int) -> tuple[int, str]:
    """The number of models of cells counted by their factors, and the products it is the sum of."""
    whole = [(len(plan.grid.datasets), "dataset"), (len(plan.grid.architectures), "architecture")]
    whole += [(len(plan.grid.forget), "forget recipe"), (requests, "request")]
    total, texts = 0, []
    for (first, *rest), count in cells.items():
        models = count * prod(number for number, _ in (first, *rest))
        if not models:
            continue
        every = count == prod(number for number, _ in whole)
        middle = [factor for factor in whole if factor[0] > 1] if every else [(count, "cell")]
        shown = [first, *middle, *rest]
        total += models
        texts.append(" × ".join(_words(number, name) for number, name in shown if _counts(number, name)))
    return total, " + ".join(texts)


def _counts(number: int, name: str) -> bool:
    return number > 1 or name not in ("training", "cell", "forget set")


def _words(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}" if name else f"{number:,}"


def totals(found: Iterable[Part]) -> dict[str, int]:
    """The sums of the columns."""
    names = ("alone", "loops", "lethe", "left_out")
    known = list(found)
    return {name: sum(getattr(part, name) for part in known) for name in names}


def lines(found: list[Part]) -> list[str]:
    """The parts as a table with their sum, what its columns are, and what sharing saves."""
    if not found:
        return []
    sums = totals(found)
    shared = sums["lethe"] + sums["left_out"]
    text = [
        *_table(found),
        "alone: a base and a retrain for each unlearned model; loops: for each seed, or base and forget set.",
        f"Sharing saves {max(0, sums['alone'] - shared):,} models against alone,"
        f" {max(0, sums['loops'] - shared):,} against loops.",
    ]
    whys = {
        "base and retrain": "retrains of the audit are left out, beyond audit.retrains per base.",
        "tuning": "trials on bases of the audit are left out: what is tuned on a base must not attack it.",
    }
    return text + [f"{part.left_out:,} {whys[part.what]}" for part in found if part.left_out]


def _table(found: list[Part]) -> list[str]:
    names = ("alone", "loops", "lethe")
    sums = totals(found)
    rows: list[tuple[str, ...]] = [("", "", "", "alone", "loops", "Lethe")]
    rows += [(p.track, p.what, p.factors, *(f"{getattr(p, name):,}" for name in names)) for p in found]
    rows.append(("", "total", "", *(f"{sums[name]:,}" for name in names)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if place < 3 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
