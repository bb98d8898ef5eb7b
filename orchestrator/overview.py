"""Facts about plans, results and plug-ins for the command line: `of_…` collects them, `…_text` shows them.

What only plans need is imported where they are: `lethe status` does without pydantic.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator import catalogue, schema
from orchestrator.errors import UserError, nearest
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.measured import Measurement
    from orchestrator.plan import Plan
    from orchestrator.runner import Ended


# ---- plan ------------------------------------------------------------------------------------------------


def of_plan(plan: Plan, store: Store | None, measured: Measurement | None = None) -> dict[str, Any]:
    """Counts, training images, what is done, and hours of what is left from timed runs, with a 95 % interval:
    `gpu_hours` from those on GPUs, `device_hours` from any; `untimed_tasks` at paces of others. measured:
    timings of a device, which give `cost`.
    """
    from orchestrator import arithmetic, plan_cost
    from orchestrator.cost import Works, added, loads, timed_paces, training_images
    from orchestrator.schedule import FAILURES, Schedule

    runs = ledger(plan, store) if store else []
    timed = [row for row in runs if row["status"] == "done"]
    statuses = {row["task_id"]: row["status"] for row in runs}
    done = {row["task_id"] for row in timed} & plan.by_id.keys()
    has_model = (store.models() if store else set()).__contains__
    left = Schedule(plan.tasks, statuses, retry=FAILURES, has_model=has_model).pending()
    on_gpu = [row for row in timed if not str(row["device"]).startswith("cpu")]
    works = Works(plan.grid)
    to_do = added(loads(left, works).values())
    paces = [timed_paces(rows if to_do else [], works) for rows in (on_gpu, timed)]  # unread if all is done
    by_gpu, by_any = (pace.estimate(to_do) for pace in paces)
    return plan.counts() | {
        "done": len(done),
        **plan_cost.hours("gpu_", by_gpu),
        **plan_cost.hours("device_", by_any),
        "untimed_tasks": plan_cost.borrowers(by_any),
        **training_images(plan, works.count),
        "impossible": [reason for _, reason in plan.impossible],
        "devices": sorted({str(row["device"]) for row in timed}),
        "cells": len(plan.cells),
        "parts": [asdict(part) for part in arithmetic.parts(plan)],
        "retrained_bases": sum(task.id in done and task.kind == "base" for task in left),
        "repeated_requests": sum(task.id in done and task.kind == "unlearn" for task in left),
        "cost": None if measured is None else plan_cost.of_plan(plan, left, store, measured, works),
    }


def ledger(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """The rows of the ledger as `timed_paces` takes them. Specifications are most of a ledger, so those of
    tasks of the plan are taken from there.
    """
    from orchestrator.cost import TIMED

    rows: list[dict[str, Any]] = store.runs(["task_id", "status", "device", *TIMED]).to_pylist()
    others = any(row["task_id"] not in plan.by_id for row in rows)
    table = store.runs(["task_id", "spec"]) if others else None
    specs = dict(zip(*(column.to_pylist() for column in table.columns[:2]), strict=True)) if table else {}
    for row in rows:
        task = plan.by_id.get(row["task_id"])
        row["spec"] = specs[row["task_id"]] if task is None else task.spec
    return rows


def plan_text(facts: dict[str, Any]) -> str:
    """The plan as a few lines."""
    from orchestrator import arithmetic, plan_cost

    parts = [arithmetic.Part(**part) for part in facts["parts"]]
    lines = [
        f"{facts['tasks']:,} tasks in {facts['cells']:,} cell{'' if facts['cells'] == 1 else 's'}:"
        f" {facts['base']:,} base, {facts['retrain']:,} retrain, {facts['unlearn']:,} unlearn.",
        *arithmetic.lines(parts),
        f"{facts['training_images']:,.0f} training images; without sharing"
        f" {facts['unshared_training_images']:,.0f}.",
        f"{facts['done']:,} are done, {facts['tasks'] - facts['done']:,} are left.",
    ]
    counts = Counter(facts["impossible"])
    lines += [f"{count:,} skipped: {reason}." for reason, count in counts.items()]
    if facts["retrained_bases"]:
        lines.append(f"{facts['retrained_bases']:,} bases are trained again: their weights were not kept.")
    if facts["repeated_requests"]:
        lines.append(
            f"{facts['repeated_requests']:,} earlier requests run again: the weights they left were not kept."
        )
    if count := facts.get("studies_first"):  # None: the grid does not ask for winners
        studies = "study of tuning comes" if count == 1 else "studies of tuning come"
        lines.append(f"{count:,} {studies} first; counted here with the defaults.")
    elif count is None and facts["tune_trials"]:
        lines.append(f"{facts['tune_trials']:,} trials of `lethe tune` come on top; `lethe run` runs none.")
    if facts["device_hours"] is not None:
        if facts["tasks"] > facts["done"]:
            lines.append(
                f"{plan_cost.shown(facts, 'device_')} on one {' or '.join(facts['devices'])}, from timed runs"
                + (f"; {count:,} tasks at the pace of others." if (count := facts["untimed_tasks"]) else ".")
            )
    elif not facts["cost"]:
        lines.append(
            "No cost estimate: no base has been timed in these results for every part of the grid."
            " `--device NAME` takes timings of a device."
        )
    return "\n".join([*lines, *(plan_cost.lines(facts["cost"]) if facts["cost"] else ())])


# ---- run and status --------------------------------------------------------------------------------------


def run_text(ended: Ended, command: str, results: str) -> str:
    """How a run ended: what is done, the failures by kind with a first log each, and what to do next."""
    total, failures = ended.total, ended.failures
    skipped = [f"{n:,} skipped: {reason}." for reason, n in Counter(ended.impossible).items()]
    if not failures and ended.done == total:
        lines = [
            f"All {total:,} tasks are done ({ended.ran:,} in this run, {ended.seconds:.0f} s).",
            *skipped,
        ]
        lines.append(f"Next: `{shlex.join(['lethe', 'report', '--results', results])}`.")
        return "\n".join(lines)
    lines = [f"{ended.done:,} of {total:,} tasks are done ({ended.ran:,} tried now, {ended.seconds:.0f} s)."]
    lines += skipped
    if failures:
        lines += _failure_lines(failures, total)
        kinds = Counter(row["status"] for row in failures)
        worst = next((kind for kind, _ in kinds.most_common() if kind != "skipped"), "skipped")
        lines.append(f"Retry with `{command} --retry {worst}`.")
    left = total - ended.done - len(failures)
    if left:
        lines.append(f"{left:,} are left: `{command}` goes on.")
    return "\n".join(lines)


def _failure_lines(failures: list[dict[str, Any]], total: int) -> list[str]:
    kinds = Counter(row["status"] for row in failures)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    lines = [f"{len(failures):,} of {total:,} tasks did not finish: {counts}."]
    shown: set[tuple[str, ...]] = set()
    for row in failures:
        what = (row["status"], row["method"] or row["kind"], row["dataset"], row["architecture"])
        if what in shown or len(shown) == 12:
            continue
        shown.add(what)
        log = f"  first log: {row['log']}" if row["log"] else ""
        lines.append(f"  {what[0]:<12} {' · '.join(what[1:])}  {row['reason'] or ''}{log}")
    return lines


def of_store(store: Store) -> dict[str, Any]:
    """Counts by status and by kind of all recorded tasks, and the parts that could not be read."""
    rows = store.runs(["status", "kind"])
    statuses, kinds = Counter(rows["status"].to_pylist()), Counter(rows["kind"].to_pylist())
    failed = {status: count for status, count in statuses.items() if status != "done"}
    columns = ["status", "reason", "log", "method", "dataset", "architecture", "kind"]
    failures = [row for row in store.runs(columns).to_pylist() if row["status"] != "done"] if failed else []
    return {
        "recorded": rows.num_rows,
        "done": statuses["done"],
        "failed": failed,
        "kinds": dict(kinds),
        "damaged": store.damaged,
        "failures": failures[:1000],
    }


def status_text(facts: dict[str, Any]) -> str:
    """The state of a results folder as a few lines."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(facts["kinds"].items()))
    lines = [f"{facts['recorded']:,} tasks recorded ({kinds or 'none'}), {facts['done']:,} done."]
    if facts["failed"]:
        lines += _failure_lines(facts["failures"], facts["recorded"])
    lines += [f"{name} cannot be read; the next run moves it to aside/." for name in facts["damaged"]]
    return "\n".join(lines)


# ---- list ------------------------------------------------------------------------------------------------


def of_kind(kind: str) -> list[dict[str, Any]]:
    """Plug-ins with name, label, paper, version, summary and parameters; or the columns of all tables."""
    from orchestrator import architectures

    if kind == "columns":
        return [
            {"table": table, "name": c.name, "type": str(c.type), "unit": c.unit, "meaning": c.meaning}
            for table, columns in schema.TABLES.items()
            for c in columns
        ]
    allowed = [*catalogue.FOLDERS, "columns"]
    if kind not in allowed:
        raise UserError(f"list {kind}: unknown.{nearest(kind, allowed)} Allowed: {', '.join(allowed)}.")
    return [
        {
            "name": architectures.shown(plugin),
            "label": plugin.label,
            "paper": plugin.paper,
            "version": plugin.version,
            **(_declared(plugin) if kind == "methods" else {}),
            **(_of_recipe(plugin) if kind == "forget" else {}),
            "summary": plugin.summary,
            "parameters": {name: _parameter(p) for name, p in plugin.parameters.items()},
        }
        for plugin in catalogue.plugins(kind).values()
    ]


def _declared(plugin: catalogue.Plugin) -> dict[str, Any]:
    """What only methods declare."""
    facts = {"needs": list(plugin.constants["needs"]), "scope": plugin.scope, "access": plugin.access}
    return facts | {"training": plugin.training, "cost": plugin.constants["cost"]}


def _of_recipe(plugin: catalogue.Plugin) -> dict[str, Any]:
    """What only forget recipes declare; alternatives: parameters of which a grid gives one."""
    facts = {"scope": plugin.scope, "audit_sets": plugin.audit_sets, "share": plugin.constants["share"]}
    return facts | {"alternatives": list(plugin.constants.get("alternatives", ()))}


AUDIT_SETS = {
    "many": "audit: as many forget sets per base as the grid says",
    "one": "audit: one forget set per base",
    "none": "main track only",
}


def _parameter(parameter: catalogue.Parameter) -> dict[str, Any]:
    from orchestrator.parameters import NAMES

    default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    facts = {"default": default, "low": parameter.low, "high": parameter.high, "log": parameter.log}
    facts |= {"names": True} if parameter.kind == NAMES else {}
    return facts | {"choices": list(parameter.choices)} if parameter.choices else facts


def list_text(kind: str, facts: list[dict[str, Any]]) -> str:
    """One line per item, and one for each of its parameters."""
    if kind == "columns":
        return "\n".join(
            f"{row['table']:<9} {row['name']:<24} {row['type']:<18} {row['unit']:<9} {row['meaning']}"
            for row in facts
        )
    lines = []
    for row in facts:
        lines.append(
            f"{row['name']:<34} {row['label']:<14} {row['paper']:<18} v{row['version']}  {row['summary']}"
        )
        if kind == "methods":
            lines.append(f"    {'; '.join(f'{name} {text}' for name, text in _method_words(row).items())}")
        if kind == "forget":
            either = f"; {' or '.join(row['alternatives'])}, not both" if row["alternatives"] else ""
            lines.append(f"    scope {row['scope']}; {AUDIT_SETS[row['audit_sets']]}{either}")
        lines += [f"    {name} = {p['default']}  ({_range(p)})" for name, p in row["parameters"].items()]
    if kind == "datasets":
        lines.append(
            "Any folder of pictures: `lethe prepare image_folder PATH --size 64` prints its entry for a grid."
        )
    return re.sub(r" +$", "", "\n".join(lines), flags=re.MULTILINE)


def _method_words(row: dict[str, Any]) -> dict[str, str]:
    """What a method declares, in words: needs, scope, access, training and cost."""
    passes = [f"{_bracketed(formula)} × {name}" for name, formula in row["cost"].items()]
    words = {"needs": ", ".join(row["needs"]), "scope": row["scope"], "access": row["access"]}
    words |= {"training": row["training"]} if row["training"] != "plain" else {}
    return words | {"cost": ", ".join(passes) or "none"}


def _bracketed(formula: str) -> str:
    """A formula as a factor: more than one name or number stands in brackets."""
    text = formula.replace(" * ", " · ")
    return text if text.isidentifier() or text.isdecimal() else f"({text})"


def methods_markdown(facts: list[dict[str, Any]]) -> str:
    """The methods as a Markdown table."""
    lines = ["| Method | Label | Paper | Needs | Scope | Access | Cost |", "|" + " --- |" * 7]
    for row in facts:
        words = _method_words(row)
        shown = [f"`{row['name']}`", row["label"], row["paper"]]
        shown += [words[name] for name in ("needs", "scope", "access", "cost")]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _range(parameter: dict[str, Any]) -> str:
    if "choices" in parameter:
        return "one of " + ", ".join(map(str, parameter["choices"]))
    if isinstance(parameter["default"], str):
        return "text"
    if parameter["high"] is None:
        return f"a list of whole numbers from {parameter['low']}{' or names' * ('names' in parameter)}"
    return f"{parameter['low']} – {parameter['high']}{', log' if parameter['log'] else ''}"
