"""The report's section on tuning: what the winners' files say, a table for each cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attacks.metrics import mean_interval
from orchestrator import catalogue, tuned
from orchestrator.cells import Cell
from orchestrator.report_columns import Column
from orchestrator.store import Store
from orchestrator.tuned import RULE, Place, Winner, Winners

HEADING = "Tuning"
BASELINE = "neggrad_plus"
CAPTION = f"{RULE} All values are objectives: 0 at best."
COLUMNS = (
    Column("label", "Method", "", "plain"),
    Column("tuned", "Tuned", "objective of the winner, mean over the fresh seeds of the last phase", "bare"),
    Column("default", "Default", "the same of the values it started from", "bare"),
    Column(
        "gain",
        "Gain",
        "default minus tuned, seed by seed, mean and 95 % t-interval; above 0 the search paid",
        "range",
    ),
    Column(
        "lead",
        "Ahead of NG+",
        "tuned NG+ minus this method tuned, seed by seed, mean and 95 % t-interval; above 0 it came nearer to"
        " retraining than the baseline that arXiv 2410.01276 asks new methods to be compared with",
        "range",
    ),
    Column("best_of_search", "Best of search", "value of the winner in the search: too good by luck", "bare"),
    Column("noise_floor", "Noise floor", "mean objective of a retrain against that of another seed", "bare"),
    Column("origin", "From", "the trial that won, or the default where none beat it", "plain"),
    Column(
        "trials",
        "Trials",
        "finished trials; pruned and failed ones, with their reasons, in brackets",
        "plain",
    ),
    Column("importances", "Importance", "share of the variation among trials, the largest three", "plain"),
    Column("values", "Values", "the winner's hyper-parameters that were searched", "plain"),
)


@dataclass(frozen=True)
class Section:
    """The winners of one place: the heading of their table, what it comes to, its rows and columns."""

    title: str
    note: str
    rows: list[dict[str, Any]]
    columns: list[Column]


def sections(store: Store, cells: Sequence[Cell]) -> list[Section]:
    """The tables on tuning of a report: all winners of the results, and shipped ones that its cells used."""
    own = tuned.known(store, shipped=False)
    used = {
        key: winner
        for key, winner in tuned.known(None).items()
        if any(_used(key[0], winner, cell) for cell in cells)
    }
    winners = used | own
    return [
        Section(
            f"{place.dataset} · {place.architecture} · {place.forget}",
            f"{summary(rows)} {_objectives(rows)} Training {place.training}.",
            rows,
            list(COLUMNS),
        )
        for place, rows in tables(winners)
    ]


def _used(place: Place, winner: Winner, cell: Cell) -> bool:
    """Whether a cell has runs with just a winner's hyper-parameters."""
    here = (cell.dataset, cell.architecture) == (place.dataset, place.architecture)
    return (here and cell.forget.startswith(place.forget)) and any(
        (variant.method, variant.version) == (winner.method, winner.version)
        and winner.hyperparameters.items() <= variant.hyperparameters.items()
        for variant in cell.variants
    )


def _objectives(rows: list[dict[str, Any]]) -> str:
    return f"Objective: {', '.join(sorted({row['objective'] for row in rows}))}."


def markdown(
    found: list[Section], escaped: Callable[[str], str], table: Callable[..., list[str]]
) -> list[str]:
    """The blocks of the section in Markdown; none where nothing was tuned. escaped, table: as the report
    writes text and rows with columns.
    """
    if not found:
        return []
    blocks = [f"## {HEADING}", escaped(CAPTION)]
    for part in found:
        blocks += [
            f"### {escaped(part.title)}",
            escaped(part.note),
            "\n".join(table(part.rows, part.columns)),
        ]
    meanings = [f"- **{escaped(column.head)}**: {escaped(column.meaning)}" for column in COLUMNS[1:]]
    return [*blocks, "\n".join(meanings)]


def tables(winners: Winners) -> list[tuple[Place, list[dict[str, Any]]]]:
    """A row for each winner, by place; those shipped without facts are left out."""
    places: dict[Place, list[dict[str, Any]]] = {}
    for (place, method, _), winner in sorted(winners.items(), key=lambda item: item[0][1]):
        if "tuned" in winner.facts:
            places.setdefault(place, []).append(row(method, winner))
    for rows in places.values():
        _compare(rows)
    return sorted(places.items(), key=lambda item: str(item[0]))


def _compare(rows: list[dict[str, Any]]) -> None:
    """Put the lead over the baseline into the rows that were evaluated as it was, on the same seeds."""
    baseline = next((row for row in rows if row["method"] == BASELINE), None)
    for row in rows:
        if baseline is None or row is baseline or row["evaluated"] != baseline["evaluated"]:
            continue
        if len(row["per_seed"]) == len(baseline["per_seed"]) > 1:
            ahead = [b - m for b, m in zip(baseline["per_seed"], row["per_seed"], strict=True)]
            row |= dict(zip(("lead", "lead_low", "lead_high"), mean_interval(ahead), strict=True))


def row(method: str, winner: Winner) -> dict[str, Any]:
    """The values of COLUMNS for a winner."""
    facts = winner.facts
    gain = facts.get("gain") or {}
    plugin = catalogue.plugins("methods").get(method)
    searched = facts.get("searched", [])
    return {
        "kind": "unlearn",
        "method": method,
        "hyperparameters": dict(winner.hyperparameters),
        "flags": [],
        "failed": {},
        "warnings": {},
        "missing": 0,
        "objective": facts.get("objective", ""),
        "label": plugin.label if plugin else method,
        "tuned": _mean(facts["tuned"]),
        "default": _mean(facts["default"]),
        "gain": gain.get("mean"),
        "gain_low": gain.get("low"),
        "gain_high": gain.get("high"),
        "lead": None,
        "lead_low": None,
        "lead_high": None,
        "per_seed": facts["tuned"],
        "evaluated": (facts.get("objective"), (facts.get("budget") or {}).get("evaluate_seeds")),
        "best_of_search": facts.get("search_value"),
        "noise_floor": facts.get("noise_floor"),
        "origin": facts.get("origin", ""),
        "trials": _trials(facts.get("trials", {})),
        "importances": _importances(facts.get("importances") or {}),
        "values": ", ".join(f"{name}={_short(winner.hyperparameters[name])}" for name in searched),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """How many winners beat their default, and for how many the whole interval says so."""
    better = sum(r["gain"] is not None and r["gain"] > 0 for r in rows)
    surely = sum(r["gain_low"] is not None and r["gain_low"] > 0 for r in rows)
    return (
        f"{better} of {len(rows)} winners are better than the default on fresh seeds, {surely} of them with"
        " the whole interval."
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _trials(counts: dict[str, Any]) -> str:
    others = [f"{counts['pruned']} pruned"] if counts.get("pruned") else []
    others += [f"{count} {reason}" for reason, count in (counts.get("failed") or {}).items()]
    return f"{counts.get('finished', 0)} ({', '.join(others)})" if others else str(counts.get("finished", 0))


def _importances(shares: dict[str, float]) -> str:
    largest = sorted(shares.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {share:.2f}" for name, share in largest)
