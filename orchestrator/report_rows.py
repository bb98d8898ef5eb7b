"""The data of the report: for each cell one row for the base, the retrains and every method, with intervals.

Each value on the main track is compared with the retrain of the same seed before anything is averaged.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from attacks import population_loss, ulira
from orchestrator import (
    audit,
    catalogue,
    plans,
    report_attacks,
    report_audit,
    report_duplicates,
    report_poison,
    report_rank,
)
from orchestrator.audit import Reader, Row, rows_of
from orchestrator.keys import canonical, digest
from orchestrator.plan import PLAIN, Cell, Key
from orchestrator.report_audit import Values, finite, interval
from orchestrator.store import Store
from workers.designs import FORGET, RETAIN

MEASURED = ("ra", "fa", "va", "ta", "ef", "ar", "wall_s", "prepaid_s", *report_poison.SEEDED)
SEEDED = (*MEASURED, "ret_dev", "ret_dev_own", "indisc", "rte", "utility_price")
LEDGER = (
    *(*MEASURED, "gus_samples"),
    *("kind", "status", "reason", "warnings", "log", "device", "commit", "versions"),
    *("dataset", "dataset_sha256", "weights_sha256"),
)

Audits = dict[tuple[str, ...], list[dict[str, Any]]]  # which row of the report -> its rows of audits


@dataclass(frozen=True)
class Failure:
    """Runs of one row that ended in the same way: how many, and why the first did."""

    status: str
    count: int
    reason: str
    log: str


@dataclass(frozen=True)
class Entry:
    """A row of the report as scripts see it, and what only the figures and lists show."""

    row: dict[str, Any]
    curves: dict[str, dict[str, Any]]  # comparison -> its row of audits
    failures: list[Failure]
    attacks: tuple[tuple[str, int], ...] = ()  # name and version of each attack made on the row


@dataclass(frozen=True)
class CellReport:
    """A cell and its entries: base, retrain, methods by rank, methods without a rank."""

    cell: Cell
    entries: list[Entry]
    duplicates: dict[str, Any] | None = None  # report_duplicates.of_cell

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [entry.row for entry in self.entries]


@dataclass(frozen=True)
class Report:
    """All cells of a store, and where the numbers come from."""

    cells: list[CellReport]
    provenance: dict[str, Any]
    runs: dict[str, dict[str, Any]]  # task id -> what the ledger says of it


def collect(store: Store) -> Report:
    """Everything the report shows, read from the store; nothing is written."""
    cells, ledger = plans.recall(store), Ledger(store)
    audits: Audits = {}
    for found in audit.current(store, cells):
        audits.setdefault(_identity(found), []).append(found)
    reports = [_cell_report(ledger, cell, audits) for cell in cells]
    return Report(reports, _provenance(store, ledger), ledger.runs)


class Ledger:
    """What the runs measured."""

    def __init__(self, store: Store) -> None:
        self.reader = Reader(store)
        self.runs: dict[str, dict[str, Any]] = {row["task_id"]: row for row in store.runs(LEDGER).to_pylist()}

    def measured(self, task: str | None) -> Values | None:
        """Accuracies and seconds of a finished run, None if it is not done."""
        if task is None or not self.reader.done(task) or task not in self.runs:
            return None
        return {name: finite(self.runs[task][name]) for name in MEASURED}

    def base_accuracies(self, row: Row, key: Key, task: str) -> Values:
        """RA, FA, E_F and A_R of a base against the forget set of one cell: its own row knows none."""
        tasks = (row.cell.retrains, *(variant.tasks for variant in row.cell.variants))
        known = (of[key] for of in tasks if key in of and self.reader.states(of[key]) is not None)
        other, correct = next(known, None), self.reader.scores([task], "correct").get(task)
        states = None if other is None else self.reader.states(other)
        if other is None or states is None or correct is None:
            return {"ra": None, "fa": None}
        pool, test = correct[: len(states)], correct[len(states) :]
        values = {"ra": _share(pool[states == RETAIN]), "fa": _share(pool[states == FORGET])}
        gone = self.reader.forgotten_classes(other)
        if gone is not None and len(gone):
            values |= {"ef": _share(~test[gone]), "ar": _share(test[~gone])}
        return values


# ---- one row -----------------------------------------------------------------------------------------------


def _cell_report(ledger: Ledger, cell: Cell, audits: Audits) -> CellReport:
    rows = rows_of(cell)
    labels = _labels(rows)
    found = [audits.get(_identity(row.columns), []) for row in rows]
    plain = found[next(i for i, row in enumerate(rows) if row.kind == "retrain")]
    entries = []
    for row, label, own in zip(rows, labels, found, strict=True):
        entries.append(_entry(ledger, row, label, own))
        entries[-1].row.update(report_attacks.against_retrain(own, plain))
    retrain = next(entry.row for entry in entries if entry.row["kind"] == "retrain")
    bases = {entry.row["training"]: entry for entry in entries if entry.row["kind"] == "base"}
    for entry in entries:
        base = bases.get(entry.row["training"], bases[PLAIN])  # plain where a method could not run
        entry.row.update(report_audit.against_base(entry.curves, base.curves))
        entry.row["indisc_retrain"] = retrain["indisc"]
        entry.row["flags"] = report_rank.flags(entry.row)
    report_rank.rank([entry.row for entry in entries])
    return CellReport(cell, sorted(entries, key=_place), report_duplicates.of_cell(ledger.reader, cell))


def _place(entry: Entry) -> tuple[int, float]:
    """References first, then by rank, then what has no rank."""
    kinds = {"base": 0, "retrain": 1}
    position = entry.row["rank"]
    return kinds.get(entry.row["kind"], 2), math.inf if position is None else position


def _entry(ledger: Ledger, row: Row, label: str, audits: list[dict[str, Any]]) -> Entry:
    seeds = _seed_values(ledger, row)
    indisc = {
        found["seed"]: {"indisc": finite(found["indisc"])}
        for found in audits
        if found["attack"] == population_loss.name and found["comparison"] == "forget_vs_test"
    }
    curves = {found["comparison"]: found for found in audits if found["attack"] == ulira.name}
    failures, missing = _unfinished(ledger, row)
    facts: dict[str, Any] = {
        "dataset": row.cell.dataset,
        "architecture": row.cell.architecture,
        "forget": row.cell.forget,
        "cell": row.cell.id,
        "kind": row.kind,
        "method": row.method or row.kind,
        "training": row.training,
        "label": label,
        "hyperparameters": row.hyperparameters,
        "rank": None,
        "pareto": None,
        "flags": [],
        "n": len(seeds),
    }
    for name in SEEDED:
        of = indisc if name == "indisc" else seeds
        facts |= interval(name, [values[name] for values in of.values()])
    facts["gus_samples"] = _most(ledger, row, "gus_samples")
    lost = [values["lost"] for values in seeds.values() if values["lost"] is not None]
    facts |= {"indisc_retrain": None, "below_retrain": sum(lost) / len(lost) if lost else None}
    facts |= report_audit.comparisons(curves) | report_audit.per_sample(curves)
    facts |= report_attacks.columns(audits)
    facts |= dict.fromkeys(report_audit.AGAINST_BASE)
    facts |= {"failed": {failure.status: failure.count for failure in failures}, "missing": missing}
    facts["warnings"] = _warnings(ledger, row)
    made = sorted({(found["attack"], found["attack_version"]) for found in audits})
    return Entry(facts, curves, failures, tuple(made))


def _most(ledger: Ledger, row: Row, name: str) -> int | None:
    """The largest value of a column in the row's runs on the main track, None without one."""
    tasks = [task for key, task in row.tasks.items() if key[0] == "main" and task in ledger.runs]
    return max((n for task in tasks if (n := ledger.runs[task][name]) is not None), default=None)


def _seed_values(ledger: Ledger, row: Row) -> dict[int, Values]:
    """Per seed with a finished main-track run: what it measured and how that compares with its retrain."""
    found: dict[int, Values] = {}
    for key, task in row.tasks.items():
        own = ledger.measured(task) if key[0] == "main" else None
        if own is None:
            continue
        if row.kind == "base":
            own |= ledger.base_accuracies(row, key, task)
        own |= _against(own, ledger.measured(row.cell.retrains.get(key)), row.kind)
        alike: Values = {"ret_dev": None}
        plain = None
        if row.training != PLAIN:
            alike = _against(own, ledger.measured(row.references.retrains.get(key)), row.kind)
            plain = ledger.measured(row.cell.bases.get(key)) if row.kind == "base" else None
        price = _difference(plain["ta"] if plain else None, own["ta"])
        found[key[1]] = own | {"ret_dev_own": alike["ret_dev"], "utility_price": price}
    return found


def _against(own: Values, retrain: Values | None, kind: str) -> Values:
    """RetDev, RTE and the loss of test accuracy of one run against the retrain of its seed (benchmark §5).
    Where whole classes were forgotten, the loss is that of A_R.
    """
    if retrain is None:
        return {"ret_dev": None, "rte": None, "lost": None}
    of = "ta" if retrain["ar"] is None else "ar"  # what is left to be good at
    deviations = [_deviation(own[name], retrain[name]) for name in ("ra", "fa", "ta")]
    known = [deviation for deviation in deviations if deviation is not None]
    return {
        "ret_dev": sum(known) if len(known) == len(deviations) else None,
        "rte": None if kind == "base" else _ratio(retrain["wall_s"], own["wall_s"]),
        "lost": _difference(retrain[of], own[of]),
    }


def _deviation(value: float | None, reference: float | None) -> float | None:
    """|value/reference − 1|; where the reference is 0, as FA of a retrain without a class, the difference."""
    if value is None or reference is None:
        return None
    return abs(value / reference - 1) if reference else abs(value)


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _unfinished(ledger: Ledger, row: Row) -> tuple[list[Failure], int]:
    """The failures of a row's runs on both tracks, and how many of its tasks have no run yet."""
    tasks = dict.fromkeys(row.tasks.values())  # a base stands at several places
    ended: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        if task in ledger.runs and ledger.runs[task]["status"] != "done":
            ended.setdefault(ledger.runs[task]["status"], []).append(ledger.runs[task])
    failures = [
        Failure(status, len(runs), runs[0]["reason"] or "", runs[0]["log"] or "")
        for status, runs in sorted(ended.items())
    ]
    return failures, sum(task not in ledger.runs for task in tasks)


def _warnings(ledger: Ledger, row: Row) -> dict[str, int]:
    """What the row's runs warned of, and how many did."""
    runs = (ledger.runs[task] for task in dict.fromkeys(row.tasks.values()) if task in ledger.runs)
    return dict(Counter(run["warnings"] for run in runs if run["warnings"]))


def _labels(rows: list[Row]) -> list[str]:
    """The shown names; variants of one method are told apart by the hyper-parameters in which they differ."""
    known, labels = catalogue.plugins("methods"), []
    for row in rows:
        if row.kind != "unlearn":
            labels.append(row.kind.capitalize() + (f", {row.training}" if row.training != PLAIN else ""))
            continue
        label = known[row.method].label if row.method in known else row.method
        if any(other.method == row.method and other.training != row.training for other in rows):
            label += f", {row.training}"
        mine = row.hyperparameters or {}
        others = [other.hyperparameters or {} for other in rows if other.method == row.method]
        differ = [name for name in mine if any(name not in o or o[name] != mine[name] for o in others)]
        inside = ", ".join(f"{name}={mine[name]}" for name in differ)
        labels.append(f"{label} ({inside})" if inside else label)
    return labels


def _identity(columns: dict[str, Any]) -> tuple[str, ...]:
    return tuple(columns[name] for name in ("cell", "kind", "method", "training", "hyperparameters"))


# ---- numbers -----------------------------------------------------------------------------------------------


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _share(correct: np.ndarray) -> float | None:
    return float(correct.mean()) if len(correct) else None


# ---- provenance --------------------------------------------------------------------------------------------


def _provenance(store: Store, ledger: Ledger) -> dict[str, Any]:
    """Counts, code versions, devices and commands behind a store."""
    runs = list(ledger.runs.values())
    stored = plans.stored(store)
    versions = [json.loads(text) for text in _distinct([r for r in runs if r["device"]], "versions")]
    return {
        "results": without_secrets(store.uri),
        "recorded": len(runs),
        "kinds": dict(sorted(Counter(run["kind"] for run in runs).items())),
        "statuses": dict(sorted(Counter(run["status"] for run in runs).items())),
        "commits": _distinct(runs, "commit"),
        "versions": [", ".join(f"{name} {v}" for name, v in facts.items()) for facts in versions],
        "devices": _distinct(runs, "device"),
        "plans": [_plan_facts(facts) for facts in stored],
        "damaged": list(store.damaged),
    }


def _plan_facts(facts: dict[str, Any]) -> dict[str, Any]:
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(float(facts["created_at"])))
    command = without_secrets(shlex.join(["lethe", *facts["command"][1:]]))
    cells = {"hash": digest(facts["cells"]), "cells": [cell["id"] for cell in facts["cells"]]}
    return {
        "command": command,
        "commit": str(facts["commit"]),
        "created_at": at,
        "grid": facts["grid"],
        **cells,
    }


def without_secrets(text: str) -> str:
    """URIs in a text without user:password@ and ?query, which may hold keys of an object store."""
    return re.sub(r"(\w+://)(?:[^/\s@]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?", r"\1\2", text)


def _distinct(runs: list[dict[str, Any]], name: str) -> list[str]:
    return sorted({str(run[name]) for run in runs if run[name]})


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with text in place of lists and maps, for CSV."""
    parts = {name: canonical(value) for name, value in row.items() if isinstance(value, dict)}
    return row | parts | {"flags": "; ".join(row["flags"])}
