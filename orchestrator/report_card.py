"""The audit card of a cell: what was compared, from which runs and code, and what the audit does not show.

A card is a map of plain values, for archives (`lethe report --format card`); `facts` says it in words for the
report. Every hash is read from the results, none is made up here: those of the dataset and of the weights
from the table runs, `inputs` from audits, and a plan's hash is the name of its file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import report_duplicates
from orchestrator.audit import Row, rows_of
from orchestrator.figures_roc import RESOLVED
from orchestrator.keys import canonical, digest
from orchestrator.plan import Cell
from orchestrator.report_poison import not_shown
from orchestrator.report_rows import CellReport, Entry, Report
from orchestrator.store import Store, score_folder

VERSION = 1  # of the form of a card
ENOUGH_PAIRS = 8
ENOUGH_SAMPLES = 50
TOO_NARROW = (
    "With fewer than 8 pairs intervals are too narrow: at 4 they cover about 83 % of null worlds, at 3 about"
    " 70 %."
)
COMPARED = {
    "forgotten_vs_retrained": (
        "φ of a sample under models that were trained on it and then forgot it, against φ of the same sample"
        " under retrains that never saw it, trained as the method's bases were"
    ),
    "forgotten_vs_never": (
        "φ of a sample under models that forgot it, against φ of the same sample under models that the same"
        " method left behind and that never saw it"
    ),
    "fingerprint": (
        "φ of a never-seen sample under the method's models, against φ of it under retrains: what the method"
        " does to any sample"
    ),
    "retained_vs_never": (
        "φ of a sample that stayed while others were forgotten, against φ of the same sample under models"
        " that never saw it"
    ),
}
SIZES = ("pairs", "samples", "n_positive", "n_negative", "collapsed")
NU0 = ("nu0_positive", "nu0_negative")

Card = dict[str, Any]
Facts = list[tuple[str, list[str]]]


def cards(store: Store, report: Report) -> list[Card]:
    """The card of each cell of a report."""
    return [_card(store, report, found) for found in report.cells]


def as_json(found: list[Card]) -> str:
    """Cards for archives: the same results give the same text."""
    return json.dumps(found, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)


def _card(store: Store, report: Report, found: CellReport) -> Card:
    cell, rows = found.cell, rows_of(found.cell)
    tasks = dict.fromkeys(task for row in rows for task in row.tasks.values())
    runs = [report.runs[task] for task in tasks if task in report.runs]
    card = {
        "card_version": VERSION,
        "cell": cell.id,
        "dataset": cell.dataset,
        "dataset_sha256": _distinct(runs, "dataset_sha256"),
        "architecture": cell.architecture,
        "forget": cell.forget,
        "design": _design(cell) | {"views": _views(store, cell, report.runs)},
        "seeds": _seeds(cell),
        "bases": _bases(runs),
        "tasks": {"hash": digest(sorted(tasks)), "statuses": _statuses(tasks, report.runs)},
        "rows": _rows(found.entries, rows, report.runs),
        "compared": COMPARED,
        "duplicates": found.duplicates,
        "attacks": sorted({attack for entry in found.entries for attack in entry.attacks}),
        "plans": [_without(plan, "cells") for plan in report.provenance["plans"] if cell.id in plan["cells"]],
        "commits": _distinct(runs, "commit"),
        "versions": [json.loads(text) for text in _distinct(runs, "versions")],
        "devices": _distinct(runs, "device"),
    }
    return card | {"not_shown": _limits(card) + not_shown(cell.forget)}


# ---- what is on a card -------------------------------------------------------------------------------------


def _design(cell: Cell) -> dict[str, int]:
    """Pairs of bases and forget sets that were planned, 0 without audit."""
    places = [key[1:] for key in cell.bases if key[0] == "audit"]
    return {
        "pairs": (1 + max((base for base, _ in places), default=-1)) // 2,
        "forget_sets": 1 + max((index for _, index in places), default=-1),
        "retrains_per_base": cell.retrains_per_base if places else 0,
    }


def _seeds(cell: Cell) -> dict[str, list[int]]:
    numbers = {track: {key[1] for key in cell.bases if key[0] == track} for track in ("main", "audit")}
    return {"main": sorted(numbers["main"]), "audit_bases": sorted(numbers["audit"])}


def _views(store: Store, cell: Cell, runs: dict[str, dict[str, Any]]) -> int | None:
    """How many views of a sample every base of the audit scored; None without scores."""
    bases = {task for key, task in cell.bases.items() if key[0] == "audit"}
    done = [task for task in bases if task in runs and runs[task]["status"] == "done"]
    if not done:
        return None
    folders = {score_folder(runs[task]["dataset"], cell.architecture, "base", "") for task in done}
    tables = [store.read_table("scores", ["task_id", "view"], folder) for folder in sorted(folders)]
    table = pa.concat_tables(tables)
    mine = table.filter(pc.is_in(table["task_id"], pa.array(done)))
    last = mine.group_by("task_id").aggregate([("view", "max")])["view_max"]
    return 1 + int(pc.min(last).as_py()) if len(last) else None


def _bases(runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if run["kind"] == "base" and run["status"] == "done"]
    return {"trained": len(done), "weights_sha256": _distinct(done, "weights_sha256")}


def _statuses(tasks: Iterable[str], runs: dict[str, dict[str, Any]]) -> dict[str, int]:
    """How many tasks ended in which way; 'not run' are those without a row."""
    return dict(Counter(runs[task]["status"] if task in runs else "not run" for task in tasks))


def _rows(entries: list[Entry], rows: list[Row], runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("kind", "method", "training", "hyperparameters")
    tasks = {
        _key(row.kind, row.method or row.kind, row.training, row.hyperparameters): row.tasks for row in rows
    }
    return [
        {
            "label": entry.row["label"],
            **{name: entry.row[name] for name in names},
            "statuses": _statuses(
                dict.fromkeys(tasks[_key(*(entry.row[name] for name in names))].values()), runs
            ),
            "audit_missing": entry.row["audit_missing"],
            "comparisons": {name: _scored(curve) for name, curve in entry.curves.items()},
        }
        for entry in entries
    ]


def _key(*parts: Any) -> str:
    return canonical(list(parts))


def _scored(curve: dict[str, Any]) -> dict[str, Any]:
    """What stands behind one comparison of a row; ν₀ may be 'inf', where all variances are alike."""
    return {
        **{name: curve.get(name) for name in ("attack", "attack_version", *SIZES)},
        **{name: _number(curve.get(name)) for name in NU0},
        "smallest_fpr": RESOLVED / curve["n_negative"],
        "inputs_hash": curve.get("inputs"),
    }


def _number(value: float | None) -> float | str | None:
    return "inf" if value is not None and math.isinf(value) else value


def _limits(card: Card) -> list[str]:
    """What the audit cannot show, in sentences."""
    scored = _of(card, "forgotten_vs_retrained")
    if not scored:
        return [
            "No audit on pairs of bases: only accuracies, attacks with one rule for all samples, and from"
            " eight seeds on KLoM and the NeurIPS score."
        ]
    k, n0 = min(row["pairs"] for row in scored), min(row["n_negative"] for row in scored)
    samples = min(row["samples"] for row in scored)
    error = math.sqrt((2 * k + 1) / 12) / k
    trained, distinct = card["bases"]["trained"], len(card["bases"]["weights_sha256"])
    missing = sum(row["audit_missing"] or 0 for row in card["rows"])
    return [
        "Attacks on φ, the confidence in the true class: others may find more, and an AUC of 0.5 is no proof"
        " of deletion.",
        *few_pairs(k),
        f"False-positive rates below {RESOLVED / n0:.2g} are not resolved: fewer than {RESOLVED} of"
        f" {n0:,} reference scores stand behind them.",
        f"A single sample has {k} scores a world: where nothing leaks, its AUC has a standard error of"
        f" {error:.3f}.",
        *few_samples(samples),
        *([f"{missing:,} runs of the audit have no scores."] if missing else []),
        *(
            [f"{trained:,} bases share {distinct:,} sets of weights: copies are not independent."]
            if 0 < distinct < trained
            else []
        ),
    ]


def few_pairs(pairs: int) -> list[str]:
    """A sentence where there are so few pairs that intervals are too narrow, else none."""
    return [f"{pairs} pairs of bases are few. {TOO_NARROW}"] if pairs < ENOUGH_PAIRS else []


def few_samples(samples: int) -> list[str]:
    """A sentence where there are so few samples that the AUC of a null world is below ½, else none."""
    if samples >= ENOUGH_SAMPLES:
        return []
    return [
        f"{samples:,} audited samples are few: two scores of one sample stand in each other's fit, and where"
        " nothing leaks the AUC is about .496 with 20 samples, .48 with 5, .43 with one."
    ]


def _of(card: Card, comparison: str) -> list[dict[str, Any]]:
    """A comparison in the rows that have it."""
    return [row["comparisons"][comparison] for row in card["rows"] if comparison in row["comparisons"]]


def _distinct(runs: list[dict[str, Any]], name: str) -> list[str]:
    return sorted({str(run[name]) for run in runs if run[name]})


def _without(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != name}


# ---- in words ----------------------------------------------------------------------------------------------


def facts(card: Card) -> Facts:
    """Name and values of each fact on a card, those without a value left out."""
    design, bases = card["design"], card["bases"]
    used = [name for name in COMPARED if _of(card, name)]
    distinct = len(bases["weights_sha256"])
    listed = {
        "Compared": [f"{_words(name)}: {card['compared'][name]}" for name in used],
        "Design": [_design_text(design)],
        "Scores": [f"{_words(name)}: {_scores_text(_of(card, name))}" for name in used],
        "Attacks": [", ".join(f"{name} {version}" for name, version in card["attacks"])]
        * bool(card["attacks"]),
        "Not shown": card["not_shown"],
        "Duplicates": report_duplicates.lines(card["dataset"], card["duplicates"])
        or [report_duplicates.UNKNOWN],
        "Runs": [_counts(card["tasks"]["statuses"])],
        "Not done": [
            f"{row['label']}: {_counts(_without(row['statuses'], 'done'))}"
            for row in card["rows"]
            if set(row["statuses"]) - {"done"}
        ],
        "Seeds": [_seeds_text(card["seeds"])],
        "Bases": [f"{bases['trained']:,} trained, {distinct:,} distinct weights"],
        "Dataset": [f"{card['dataset']}, SHA-256 {value}" for value in card["dataset_sha256"]],
        "Hashes": [
            f"cell {card['cell']}",
            f"its tasks {card['tasks']['hash']}",
            *(f"plan {plan['hash']}" for plan in card["plans"]),
        ],
        "Commands": [plan["command"] for plan in card["plans"]],
        "Code": card["commits"],
        "Versions": [", ".join(f"{name} {v}" for name, v in found.items()) for found in card["versions"]],
        "Devices": card["devices"],
    }
    return [(name, values) for name, values in listed.items() if values]


def _words(comparison: str) -> str:
    return comparison.replace("_", " ")


def _design_text(design: dict[str, int | None]) -> str:
    if not design["pairs"]:
        return "main track alone"
    words = {"pairs": "k, pairs of bases", "forget_sets": "forget sets a base"}
    words |= {"retrains_per_base": "retrains a base", "views": "views of a sample"}
    return ", ".join(f"{words[name]}: {'unknown' if n is None else n}" for name, n in design.items())


def _scores_text(scored: list[dict[str, Any]]) -> str:
    """The sizes behind a comparison, from the least to the most of all rows."""
    span = {name: _span([row[name] for row in scored]) for name in (*SIZES, *NU0)}
    return (
        f"k = {span['pairs']} pairs, {span['samples']} samples, n₁ = {span['n_positive']} and"
        f" n₀ = {span['n_negative']} scores; ν₀ of the variances {span['nu0_positive']} and"
        f" {span['nu0_negative']}; {span['collapsed']} samples at the variance floor; resolved from an FPR of"
        f" {_span([row['smallest_fpr'] for row in scored])}"
    )


def _span(values: list[Any]) -> str:
    """'3', or '3–7' from the least to the most."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return "unknown"
    ends = (min(known), max(known))
    texts = ["∞" if math.isinf(v) else f"{v:,.0f}" if v == round(v) else f"{v:.3g}" for v in ends]
    return "–".join(dict.fromkeys(texts))


def _seeds_text(seeds: dict[str, list[int]]) -> str:
    main = f"main track {', '.join(map(str, seeds['main']))}" if seeds["main"] else "no main track"
    bases = seeds["audit_bases"]
    return f"{main}; audit track: bases {bases[0]}–{bases[-1]}" if bases else main


def _counts(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
