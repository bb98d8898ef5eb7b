"""The plans kept with the results: which tasks make up which cell, so that a report needs no grid file."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Any

from orchestrator.keys import digest
from orchestrator.plan import Cell, Key, Plan, References, Variant
from orchestrator.provenance import commit
from orchestrator.store import Store


def remember(store: Store, plan: Plan) -> None:
    """Write a plan's grid and cells into the results; the plan run last is the one that counts most."""
    cells = [_to_json(cell) for cell in plan.cells]
    last = max((float(known["created_at"]) for known in stored(store)), default=0.0)
    facts = {
        "grid": plan.grid.model_dump(mode="json"),
        "cells": cells,
        "commit": commit(),
        "created_at": max(time.time(), last + 0.001),  # also where the clock was set back since
        "command": sys.argv,
    }
    name = f"plans/{digest(cells)}.json"
    store.write(name, json.dumps(facts).encode())
    store.damaged = [other for other in store.damaged if other != name]


def stored(store: Store) -> list[dict[str, Any]]:
    """The plans of a store as written, the one run last at the end; damaged ones are noted in the store."""
    found = []
    for name in store.files("plans", ".json"):
        try:
            facts = json.loads(store.read(name))
            found.append((float(facts["created_at"]), name, facts))
        except (ValueError, KeyError, TypeError):
            store.note_damage(name)
    return [facts for _, _, facts in sorted(found, key=lambda plan: plan[:2])]


def recall(store: Store) -> list[Cell]:
    """The cells of all plans run on a store; a cell of several plans is their union."""
    cells: dict[str, Cell] = {}
    for facts in stored(store):
        for cell in map(_from_json, facts["cells"]):
            cells[cell.id] = _merged(cells[cell.id], cell) if cell.id in cells else cell
    return list(cells.values())


def _merged(old: Cell, new: Cell) -> Cell:
    if 0 < _forget_sets(new) != _forget_sets(old):  # another partition of the members: no common audit
        old = _without_audit(old)
    variants = {digest([v.method, v.hyperparameters, v.training]): v for v in old.variants}
    for variant in new.variants:
        key = digest([variant.method, variant.hyperparameters, variant.training])
        known = variants.get(key)
        if known is not None and known.version == variant.version:
            known.tasks.update(variant.tasks)
        else:  # results of another version of a method's code are not mixed with these
            variants[key] = variant
    return Cell(
        new.id,
        new.dataset,
        new.architecture,
        new.forget,
        max(old.retrains_per_base, new.retrains_per_base),
        old.bases | new.bases,
        old.retrains | new.retrains,
        list(variants.values()),
        {
            training: References(
                {**_known(old, training).bases, **_known(new, training).bases},
                {**_known(old, training).retrains, **_known(new, training).retrains},
            )
            for training in {**old.changed, **new.changed}
        },
    )


def _known(cell: Cell, training: str) -> References:
    return cell.changed.get(training, References({}, {}))


def _forget_sets(cell: Cell) -> int:
    """Forget sets per base of the audit track, 0 without one."""
    return max((index + 1 for track, _, index in cell.bases if track == "audit"), default=0)


def _without_audit(cell: Cell) -> Cell:
    def main(tasks: dict[Key, str]) -> dict[Key, str]:
        return {key: task for key, task in tasks.items() if key[0] == "main"}

    variants = [replace(variant, tasks=main(variant.tasks)) for variant in cell.variants]
    changed = {name: References(main(r.bases), main(r.retrains)) for name, r in cell.changed.items()}
    return replace(
        cell,
        retrains_per_base=0,
        bases=main(cell.bases),
        retrains=main(cell.retrains),
        variants=variants,
        changed=changed,
    )


def _to_json(cell: Cell) -> dict[str, Any]:
    """JSON has no tuple keys, so a map from keys to ids is written as [[track, seed, forget set], id], …"""
    variants = [
        {
            "method": v.method,
            "version": v.version,
            "hyperparameters": v.hyperparameters,
            "tasks": _pairs(v.tasks),
            "training": v.training,
        }
        for v in cell.variants
    ]
    names = ("id", "dataset", "architecture", "forget", "retrains_per_base")
    return {
        **{name: getattr(cell, name) for name in names},
        "bases": _pairs(cell.bases),
        "retrains": _pairs(cell.retrains),
        "variants": variants,
        "changed": {
            name: {"bases": _pairs(r.bases), "retrains": _pairs(r.retrains)}
            for name, r in cell.changed.items()
        },
    }


def _from_json(facts: dict[str, Any]) -> Cell:
    variants = [Variant(**(v | {"tasks": _map(v["tasks"])})) for v in facts["variants"]]
    changed = {
        name: References(_map(maps["bases"]), _map(maps["retrains"]))
        for name, maps in facts.get("changed", {}).items()
    }
    maps = {"bases": _map(facts["bases"]), "retrains": _map(facts["retrains"])}
    return Cell(**(facts | maps | {"variants": variants, "changed": changed}))


def _pairs(tasks: dict[Key, str]) -> list[list[Any]]:
    return [[list(key), task] for key, task in tasks.items()]


def _map(pairs: list[Any]) -> dict[Key, str]:
    return {(track, seed, index): task for (track, seed, index), task in pairs}
