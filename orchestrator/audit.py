"""Scores in, attack metrics out: reads φ from Parquet, calls attacks/, writes the table audits.

U-LiRA sees three matrices (pairs × audited samples). In every pair of bases each sample is a member of one
and unknown to the other. Entry (pair, sample) is φ at the sample under

    forgotten   the model that unlearned the forget set with the sample in it, from the base that had seen it
    never       the model made of the other base, the same forget set number: it never saw the sample
    retrained   a retrain of the other base's design, another forget set number: neither did it

so each pair gives each sample exactly one score in each world, and leaving the whole pair out removes one
from each. A fourth world asks what deleting others does to samples that stay:

    retained    the model that unlearned another forget set of the base that had seen the sample

compared with `never` of the same forget set number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from attacks import exposed, ulira
from orchestrator import audit_attacks, audit_main
from orchestrator.keys import canonical, digest
from orchestrator.plan import PLAIN, Cell, Key, References
from orchestrator.store import Store, new_part, score_folder
from workers.designs import FORGET, unpack

version = 6  # of what a row of audits holds: raise it when rows are to be computed again
ENTROPIES = ("entropy", "modified_entropy")
COLUMNS = ("task_id", "kind", "dataset", "architecture", "method", "design", "status", "part", "ra", "ta")


@dataclass(frozen=True)
class Row:
    """One row of the report: the base, the retrains or a method of a cell, and its tasks."""

    cell: Cell
    kind: str
    method: str
    hyperparameters: dict[str, Any] | None
    tasks: dict[Key, str]
    training: str = PLAIN

    @property
    def references(self) -> References:
        """The bases and retrains trained as the row's bases were: what the audit compares it with."""
        if self.training in self.cell.changed:
            return self.cell.changed[self.training]
        return self.cell.references(PLAIN)  # also of a method that cannot run here

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of the table audits that say which row it is."""
        return {
            "cell": self.cell.id,
            "dataset": self.cell.dataset,
            "architecture": self.cell.architecture,
            "forget": self.cell.forget,
            "kind": self.kind,
            "method": self.method,
            "training": self.training,
            "hyperparameters": canonical(self.hyperparameters) if self.hyperparameters is not None else "",
        }


def rows_of(cell: Cell) -> list[Row]:
    """Base and retrain of each training recipe, plain training first, then the methods."""
    fixed = []
    for training in (PLAIN, *cell.changed):
        known = cell.references(training)
        fixed.append(Row(cell, "base", "", None, known.bases, training))
        fixed.append(Row(cell, "retrain", "", None, known.retrains, training))
    return fixed + [
        Row(cell, "unlearn", v.method, v.hyperparameters, v.tasks, v.training) for v in cell.variants
    ]


class Reader:
    """φ, correctness and index sets of finished tasks, one scores folder in memory per row read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        table = store.runs(COLUMNS)
        self.runs: dict[str, dict[str, Any]] = {row["task_id"]: row for row in table.to_pylist()}
        wanted = ["design", "forget", "forget_classes", "n_pool", "states"]
        designs = store.read_table("designs", wanted).to_pylist()
        self._designs = {row["design"]: row for row in designs}
        self._labels: dict[str, tuple[np.ndarray, ...]] = {}

    def done(self, task: str) -> bool:
        return task in self.runs and self.runs[task]["status"] == "done"

    def scores(self, tasks: Iterable[str], column: str = "phi") -> dict[str, np.ndarray]:
        """φ or `correct` (samples,) of those of the tasks that are done, of the image as it is."""
        return {task: views[0] for task, views in self.views(tasks, column).items()}

    def views(self, tasks: Iterable[str], column: str = "phi") -> dict[str, list[np.ndarray]]:
        """φ or `correct` of those of the tasks that are done, in every view: task -> [(samples,), …]."""
        by_folder: dict[str, list[dict[str, Any]]] = {}
        for task in dict.fromkeys(tasks):
            if self.done(task):
                row = self.runs[task]
                folder = score_folder(row["dataset"], row["architecture"], row["kind"], row["method"])
                by_folder.setdefault(folder, []).append({"task_id": task, "part": row["part"]})
        found: dict[str, list[np.ndarray]] = {}
        for folder, rows in by_folder.items():
            found |= self.store.views(pa.Table.from_pylist(rows), folder, column)
        return found

    def states(self, task: str) -> np.ndarray | None:
        """The states (pool,) of a finished task's design; None if the task is not done or the design lost."""
        row = self._designs.get(self.runs[task]["design"]) if self.done(task) else None
        if row is None:
            return None
        return np.asarray(unpack(row["states"], row["n_pool"]))

    def forgotten_classes(self, task: str) -> np.ndarray | None:
        """Which test samples (test,) are of classes that a finished task's design forgets as a whole; None
        if it forgets none so. Empty if the table samples is lost.
        """
        classes = self._designs[self.runs[task]["design"]]["forget_classes"]
        return np.isin(self.labels(task)[1], classes) if classes else None

    def forgotten_kinds(self, task: str) -> np.ndarray | None:
        """As `forgotten_classes`, and where a design forgets subclasses, which test samples are of these."""
        recipe = json.loads(self._designs[self.runs[task]["design"]]["forget"] or "{}")
        if recipe.get("name") != "subclass":
            return self.forgotten_classes(task)
        of_dataset = f"dataset={self.runs[task]['dataset']}"
        table = self.store.read_table("samples", ["sample_id", "split", "subclass"], of_dataset)
        test = table.sort_by("sample_id").filter(pc.field("split") == "test")
        return np.isin(test["subclass"].to_numpy(), recipe["parameters"]["subclasses"])

    def labels(self, task: str) -> tuple[np.ndarray, ...]:
        """Classes of the pool (pool,) and of the test samples (test,) of a task's dataset; empty if the table
        samples is lost.
        """
        dataset = self.runs[task]["dataset"]
        if dataset not in self._labels:
            table = self.store.read_table("samples", ["sample_id", "split", "label"], f"dataset={dataset}")
            ordered = table.sort_by("sample_id")
            self._labels[dataset] = tuple(
                ordered.filter(pc.field("split") == split)["label"].to_numpy() for split in ("pool", "test")
            )
        return self._labels[dataset]


def write(store: Store, cells: list[Cell]) -> None:
    """Bring the table audits up to date with the runs; rows whose inputs did not change are not computed
    again.
    """
    known = set(store.read_table("audits", ["inputs"])["inputs"].to_pylist())
    reader = Reader(store)
    new = [row for cell in cells for row in audit_cell(reader, cell, known)]
    if new and not store.damaged:  # what was computed around a lost part is shown, but not kept
        store.write_part("audits", new, new_part())


def current(store: Store, cells: list[Cell]) -> list[dict[str, Any]]:
    """The rows of audits that belong to the runs as they are now; what the table lacks is computed, not
    written.
    """
    reader = Reader(store)
    table = store.read_table("audits").to_pylist()
    key = ("inputs", "attack", "variant", "comparison", "seed")
    stored = {tuple(row[name] for name in key): row for row in table}
    wanted = {inputs for cell in cells for _, inputs in _jobs(reader, cell)}
    rows = [row for (inputs, *_), row in stored.items() if inputs in wanted]
    known = {str(inputs) for inputs, *_ in stored}
    return rows + [row for cell in cells for row in audit_cell(reader, cell, known)]


def audit_cell(reader: Reader, cell: Cell, known: set[str]) -> Iterator[dict[str, Any]]:
    """The rows of audits of a cell whose inputs are not among `known`."""
    designs: dict[str, AuditDesign] = {}
    for (row, track), inputs in _jobs(reader, cell):
        if inputs in known:
            continue
        if track == "audit":
            if row.training not in designs:
                designs[row.training] = AuditDesign(reader, cell, row.references.retrains)
            found_rows = _audit_rows(reader, designs[row.training], row)
            yield from ({**found, "inputs": inputs} for found in found_rows)
        else:
            yield from ({**found, "inputs": inputs} for found in audit_main.rows(reader, row))


def _jobs(reader: Reader, cell: Cell) -> Iterator[tuple[tuple[Row, str], str]]:
    """Each (row, track) that has finished runs, with the hash of all it is computed from."""
    attack_versions = [attack.version for attack in (*audit_attacks.ATTACKS, *audit_main.ATTACKS)]
    for row in rows_of(cell):
        for track in ("main", "audit"):
            own = [task for key, task in row.tasks.items() if key[0] == track]
            known = [row.references.retrains, row.references.bases if track == "audit" else cell.retrains]
            reference = [task for of in known for key, task in of.items() if key[0] == track]
            parts = {task: reader.runs[task]["part"] for task in (*own, *reference) if reader.done(task)}
            if any(task in parts for task in own):
                versions = [version, ulira.version, *attack_versions]
                yield (row, track), digest([row.columns, track, len(own), versions, sorted(parts.items())])


# ---- audit track -----------------------------------------------------------------------------------------


class AuditDesign:
    """Who was forgotten when, in the bases of a cell's audit track, and the scores of the retrains of one
    training recipe.
    """

    def __init__(self, reader: Reader, cell: Cell, retrains: dict[Key, str]) -> None:
        places = [key[1:] for key in cell.bases if key[0] == "audit"]
        self.bases = 1 + max(base for base, _ in places)
        self.sets = 1 + max(index for _, index in places)
        self.per_base = cell.retrains_per_base
        self.forget_set = self._forget_sets(reader, cell)  # (bases, pool): which forget set, -1 for none
        self.audited = np.flatnonzero((self.forget_set >= 0).any(axis=0))
        of = self.forget_set[:, self.audited]
        second = of[1::2] >= 0  # of each pair, which base was trained on the sample, and forgets it …
        self.member = 2 * np.arange(self.bases // 2)[:, None] + second
        self.index = np.where(second, of[1::2], of[::2])  # … in which forget set; -1: none of both
        self.retrained, self.retrained_test = self.read(reader, retrains)
        done = [task for key, task in retrains.items() if key[0] == "audit" and reader.done(task)]
        labels = reader.labels(done[0])[0] if done else np.empty(0)
        self.labels = labels[self.audited] if len(labels) else None  # None: the table samples is lost
        self.entropies = [name for name in ENTROPIES if reader.views(done[:1], name)]  # that are stored

    def _forget_sets(self, reader: Reader, cell: Cell) -> np.ndarray:
        rows: list[np.ndarray] = []
        found: dict[tuple[int, int], np.ndarray] = {}
        for tasks in [cell.retrains, *(variant.tasks for variant in cell.variants)]:
            for (track, base, index), task in tasks.items():
                if (
                    track == "audit"
                    and (base, index) not in found
                    and (states := reader.states(task)) is not None
                ):
                    found[base, index] = states == FORGET
        size = len(next(iter(found.values()))) if found else 0
        for base in range(self.bases):
            row = np.full(size, -1)
            for index in range(self.sets):
                if (base, index) in found:
                    row[found[base, index]] = index
            rows.append(row)
        return np.stack(rows)

    def read(
        self, reader: Reader, tasks: dict[Key, str], column: str = "phi"
    ) -> tuple[np.ndarray, np.ndarray]:
        """φ or another column of the tasks of the audit track, NaN where not done: (views, bases, forget
        sets, audited samples) in the views that all of them have, and (bases, forget sets, test samples) of
        the image as it is.
        """
        wanted = {key[1:]: task for key, task in tasks.items() if key[0] == "audit"}
        phi = reader.views(wanted.values(), column)
        count = min(map(len, phi.values()), default=1)
        pool = self.forget_set.shape[1]
        test = max((len(views[0]) for views in phi.values()), default=pool) - pool
        cube = np.full((count, self.bases, self.sets, len(self.audited)), np.nan, dtype=np.float32)
        population = np.full((self.bases, self.sets, test), np.nan, dtype=np.float32)
        for (base, index), task in wanted.items():
            for view, values in enumerate(phi.get(task, [])[:count]):
                cube[view, base, index] = values[self.audited]
            if task in phi:
                population[base, index] = phi[task][0][pool:]
        return cube, population

    def cube(self, reader: Reader, tasks: dict[Key, str]) -> np.ndarray:
        """The first of what `read` returns."""
        return self.read(reader, tasks)[0]

    def worlds(self, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(forgotten, never, retrained): φ (views, pairs, audited samples), NaN where missing."""
        views = min(len(cube), len(self.retrained))
        cube, reference = cube[:views], self.retrained[:views]
        forgotten, never, retrained = self.places()
        return (
            self._entries(cube, *forgotten),
            self._entries(cube, *never),
            self._entries(reference, *retrained),
        )

    def places(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(base, forget set) of the model behind each (pair, audited sample): forgotten, never, retrained."""
        other, another = self.member ^ 1, (self.index + 1) % self.per_base
        return [(self.member, self.index), (other, self.index), (other, another)]

    def stayed(self, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(retained, never): φ (views, pairs, audited samples) under the models that unlearned the forget set
        after the sample's own; NaN where missing, everywhere if there is one forget set only.
        """
        if self.sets < 2:
            nothing = np.full((len(cube), *self.index.shape), np.nan, dtype=np.float32)
            return nothing, nothing
        another = (self.index + 1) % self.sets
        return self._entries(cube, self.member, another), self._entries(cube, self.member ^ 1, another)

    def _entries(self, cube: np.ndarray, base: np.ndarray, index: np.ndarray) -> np.ndarray:
        """φ (views, pairs, audited samples) of the model that each (pair, sample) has in a world."""
        entries = cube[:, base, np.maximum(index, 0), np.arange(len(self.audited))]
        return np.where(self.index >= 0, entries, np.float32(np.nan))


def _audit_rows(reader: Reader, design: AuditDesign, row: Row) -> Iterator[dict[str, Any]]:
    """The attacks on one row of the report: U-LiRA in each comparison that has enough scores, then others."""
    cube, test = design.read(reader, row.tasks)
    forgotten, never, retrained = design.worlds(cube)
    if row.kind == "retrain" and design.per_base < 2:
        # With one retrain per base, `never` and `retrained` are the same model.
        never = np.full_like(never, np.nan)
    missing = sum(key[0] == "audit" and np.isnan(cube[(0, *key[1:])]).all() for key in row.tasks)
    pairs_of_worlds = {
        "forgotten_vs_retrained": (forgotten, retrained),
        "forgotten_vs_never": (forgotten, never),
        "fingerprint": (never, retrained),
        "retained_vs_never": design.stayed(cube),
    }
    usable = {name: worlds for name, worlds in pairs_of_worlds.items() if _enough(*worlds)}
    for name, (positive, negative) in usable.items():
        result = ulira.compare(positive, negative)
        facts = {"attack": ulira.name, "attack_version": ulira.version, "variant": "", "comparison": name}
        facts["missing"] = int(missing)
        if name.startswith("forgotten"):
            facts |= audit_attacks.thresholds(result.llr_positive, result.llr_negative)
        if name == "forgotten_vs_retrained":
            facts |= _per_sample(positive[0], negative[0], design.audited)
        if name == "forgotten_vs_never":
            facts |= audit_attacks.one_run(design, result.llr_positive, result.llr_negative)
        yield row.columns | audit_attacks.columns(vars(result)) | facts
    before = None
    if row.kind != "base":
        before = design.worlds(design.cube(reader, row.references.bases))[:2]
        before = before if _enough(*before) else None
    yield from (row.columns | found for found in audit_attacks.rows(design, usable, test, before))
    if "forgotten_vs_never" in usable:
        for column in design.entropies:
            worlds = design.worlds(design.read(reader, row.tasks, column)[0])[:2]
            yield from (row.columns | found for found in audit_attacks.entropy_rows(design, column, worlds))


def _enough(positive: np.ndarray, negative: np.ndarray) -> bool:
    """Whether some sample has both worlds in the pairs that U-LiRA needs."""
    both = ~(np.isnan(positive[0]) | np.isnan(negative[0]))
    return bool((both.sum(axis=0) >= ulira.MIN_PAIRS).any())


def _per_sample(forgotten: np.ndarray, retrained: np.ndarray, samples: np.ndarray) -> dict[str, Any]:
    """What a mean hides: the spread of the per-sample AUC of φ (pairs, samples), the samples found exposed on
    one half of the pairs and confirmed on the other, and those forgotten further than retraining forgets.
    """
    spread = exposed.auc_spread(forgotten, retrained)
    columns: dict[str, Any] = {
        "sample_auc_quantiles": spread.curve,
        "sample_auc_null_quantiles": spread.null_curve,
    }
    for percentile in exposed.PERCENTILES:
        columns[f"sample_auc_p{percentile}"] = spread.quantiles[percentile]
        columns[f"sample_auc_null_p{percentile}"] = spread.null_quantiles[percentile]
    found = exposed.exposed(forgotten, retrained)
    below = exposed.streisand(forgotten, retrained)
    return columns | {
        "exposed_found": len(found.found) if _can_find(found, len(forgotten)) else None,
        "exposed_confirmed": len(found.confirmed) if _can_find(found, len(forgotten)) else None,
        "exposed_auc": found.mean_found_auc if len(found.found) else None,
        "exposed_ids": samples[found.confirmed],
        "streisand": below.share,
        "streisand_retrained": below.null,
    }


def _can_find(found: exposed.Exposed, pairs: int) -> bool:
    """Whether half of the pairs could single out one exposed sample: its smallest p-value, all of its scores
    in order, must pass among all samples tested. If not, finding none says nothing.
    """
    half = pairs // 2
    return bool(len(found.found)) or found.samples / math.comb(2 * half, half) <= found.fdr
