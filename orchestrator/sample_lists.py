"""The lists of samples that tasks name: those of files, and those computed from the scores of other tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from orchestrator.errors import UserError
from orchestrator.keys import canonical
from orchestrator.plan import Plan, Task
from orchestrator.store import Store
from workers.designs import FORGET, OUT, RETAIN, unpack


class SampleLists:
    """The lists of a plan's tasks; each that needs scores is computed once, when the first task needs it."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._computed: dict[str, list[int]] = {}  # by the forget recipe

    def payload(self, task: Task, flush: Callable[[], None]) -> dict[str, Any]:
        """{"id", "spec"} and, where the specification names any, "lists". flush: makes scores readable."""
        lists: dict[str, list[int]] = {}
        if (listed := task.spec["members"].get("listed")) is not None:
            lists[listed] = self.plan.lists[listed]
        if task.after:
            forget = task.spec["forget"]
            lists[forget["bases"]] = self._memorised(forget, task.after, flush)
        payload = {"id": task.id, "spec": task.spec}
        return payload | {"lists": lists} if lists else payload

    def _memorised(
        self, forget: dict[str, Any], bases: Sequence[str], flush: Callable[[], None]
    ) -> list[int]:
        recipe = {name: forget[name] for name in ("name", "version", "parameters", "bases")}
        key = canonical(recipe)
        if key not in self._computed:
            flush()
            known = self._of_designs(recipe)
            count = int(forget["parameters"]["count"])
            self._computed[key] = most_memorised(self.store, bases, count) if known is None else known
        return self._computed[key]

    def _of_designs(self, recipe: dict[str, Any]) -> list[int] | None:
        """Whom a recipe forgot in an earlier run. Bases may have been trained again since, on another device,
        which changes scores in their last digits.
        """
        columns = ["forget", "n_pool", "states"]
        for row in self.store.read_table("designs", columns).to_pylist():
            if row["forget"] and json.loads(row["forget"]) == recipe:
                return ids_of(np.asarray(unpack(row["states"], row["n_pool"])) == FORGET)
        return None


def ids_of(mask: np.ndarray) -> list[int]:
    return [int(number) for number in np.flatnonzero(mask)]


def most_memorised(store: Store, bases: Sequence[str], count: int) -> list[int]:
    """The sorted ids of the `count` samples with the highest m_in − m_out: the mean of φ over the bases that
    were trained on a sample less the mean over those that were not (Feldman, Zhang 2020, with φ).

    Of equal ones the lower ids. A sample of the validation set has no m_in. UserError when scores are lost.
    """
    from orchestrator.audit import Reader

    reader = Reader(store)
    phi = reader.scores(bases)
    rows = []
    for base in bases:
        of_base = reader.states(base)
        if of_base is None or base not in phi:
            raise UserError(f"the scores of base {base} cannot be read; `lethe run` again makes them anew.")
        rows.append(of_base)
    states = np.stack(rows)  # (bases, pool)
    scores = np.stack([phi[base][: states.shape[1]] for base in bases]).astype(np.float64)
    value = _mean(scores, states == RETAIN) - _mean(scores, states == OUT)
    order = np.argsort(-np.where(np.isfinite(value), value, -np.inf), kind="stable")
    return sorted(int(number) for number in order[:count])


def _mean(scores: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean (pool,) over the bases where the mask says so, NaN where it never does."""
    counts = where.sum(axis=0)
    sums = np.where(where, scores, 0).sum(axis=0)
    mean: np.ndarray = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return mean
