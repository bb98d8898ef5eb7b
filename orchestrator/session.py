"""One run over one results folder: what inline.py and driver.py share.

It asks the schedule for tasks and records outcomes: the single writer. A base's weights are durable before
its row, scores before the rows of `runs`, and a task is done when its row is durable.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from orchestrator import __version__, datasets, schema
from orchestrator.architectures import requires
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.held import parents_of
from orchestrator.keys import canonical
from orchestrator.lock import Lock
from orchestrator.plan import Plan, Task
from orchestrator.provenance import commit
from orchestrator.sample_lists import SampleLists
from orchestrator.schedule import FAILURES, Schedule
from orchestrator.store import Store, new_part, score_facts, score_folder, score_rows

FLUSH_ROWS = 256
LEDGER = (
    "task_id",
    "status",
    "attempt",
    "design",
    "part",
    "dataset",
    "architecture",
    "kind",
    "method",
    "log",
)


@dataclass
class Progress:
    """What a display may want to know; `failed` counts by kind, `notes` are lines to show."""

    total: int = 0
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    running: int = 0
    retries: int = 0
    started: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> int:
        return self.done + sum(self.failed.values())


Display = Callable[[Progress], None]


class Session:
    """The state of a run. Use as a context: it flushes when left, however it is left."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        lock: Lock,
        display: Display,
        *,
        retry: Collection[str] = (),
        limit: int | None = None,
        keep_models: bool = False,
    ) -> None:
        self.plan, self.store, self.lock, self.display = plan, store, lock, display
        self.keep_models, self.flush_s = keep_models, plan.grid.run.flush_s
        ledger = store.runs(LEDGER).to_pylist()
        self._designs = set(store.read_table("designs", ["design"])["design"].to_pylist())
        statuses = self._usable(ledger)
        aside = store.set_aside()
        self._attempts = {row["task_id"]: row["attempt"] for row in ledger}
        self._logs = {row["task_id"]: row["log"] for row in ledger if row["status"] != "done" and row["log"]}
        self.events = Events(store)
        self.schedule = Schedule(plan.tasks, statuses, retry=retry, has_model=store.has_model, limit=limit)
        self.progress = Progress(total=self.schedule.total)
        self.note(aside)
        self._lists = SampleLists(plan, store)
        self._rows: list[dict[str, Any]] = []
        self._scores: dict[str, list[dict[str, Any]]] = {}
        self._new_designs: list[dict[str, Any]] = []
        self._to_delete: set[str] = set()
        self._flushed = time.monotonic()
        for task, reason in self.schedule.skipped:
            self._record(task, "skipped", reason)
            self._count("skipped")
        for task, reason in plan.impossible:  # a row says why; nothing ran, nothing failed
            if task.id not in self._attempts:
                self._record(task, "skipped", reason)

    def note(self, aside: list[str]) -> None:
        """Tell the display of parts that were set aside."""
        self.progress.notes += [f"{name} is damaged and was moved to aside/" for name in aside]

    def _usable(self, ledger: list[dict[str, Any]]) -> dict[str, str]:
        """Status by id of the plan's finished tasks; one whose design or scores are lost is made again."""
        scores = self.store.readable_scores()
        statuses = {}
        for row in ledger:
            folder = score_folder(row["dataset"], row["architecture"], row["kind"], row["method"])
            whole = row["design"] in self._designs and (folder, row["part"]) in scores
            if row["task_id"] in self.plan.by_id and (row["status"] != "done" or whole):
                statuses[row["task_id"]] = row["status"]
        return statuses

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    # ---- the life of a task -------------------------------------------------------------------------------

    def payload(self, task: Task) -> dict[str, Any]:
        """What a worker gets of a task: its id, its specification and the lists of samples this names."""
        return self._lists.payload(task, self.flush)

    def finished(self, task: Task, outcome: Any, runner: str, retries: int = 0) -> None:
        """Record the Outcome of a task (workers/run_task.py), and what cannot run because of it."""
        if outcome.weights is not None:
            self.store.write_model(task.id, outcome.weights)
        self._record(task, outcome.status, outcome.reason, outcome, retries)
        self._count(outcome.status)
        for child, reason in self.schedule.finish(task, outcome.status, runner):
            self._record(child, "skipped", reason)
            self._count("skipped")
        for model in (task.base, task.id if task.leaves_model else None):
            if model is not None and not self.schedule.needs(model) and not self.keep_models:
                self._to_delete.add(model)
        self.progress.total = self.schedule.total
        self.flush_if_due()
        self.display(self.progress)

    def failed(
        self, task: Task, status: str, reason: str, runner: str, retries: int = 0, details: str = ""
    ) -> None:
        """Record a task that ended without an outcome: its worker is gone. details: more for its log."""
        log = "\n\n".join(filter(None, (f"{status}: {reason}", self.events.story(task), details)))
        self.finished(task, _NoOutcome(status, reason, log), runner, retries)

    def _record(
        self, task: Task, status: str, reason: str = "", outcome: Any = None, retries: int = 0
    ) -> None:
        attempt = self._attempts.get(task.id, 0) + 1
        self._attempts[task.id] = attempt
        row: dict[str, Any] = {"finished_at": time.time(), **(outcome.row if outcome else {})}
        versions = json.loads(row.get("versions") or "{}") | {"lethe": __version__}
        row |= task.columns() | {
            "spec": canonical(task.spec),
            "status": status,
            "reason": reason,
            "attempt": attempt,
            "retries": retries,
            "commit": commit(),
            "versions": canonical(versions),
        }
        row["log"] = self._log(task, attempt, status, outcome.log or reason if outcome else reason)
        if outcome is not None and outcome.scores is not None:
            folder = score_folder(row["dataset"], row["architecture"], row["kind"], row["method"])
            scores = outcome.scores
            rows = score_rows(task.id, scores.phi, scores.correct, scores.views, scores.columns)
            self._scores.setdefault(folder, []).extend(rows)
        if outcome is not None and outcome.design and outcome.design["design"] not in self._designs:
            self._designs.add(outcome.design["design"])
            self._new_designs.append(outcome.design | {"dataset": row["dataset"]})
        self._rows.append(row)
        self.events.ended(row)

    def _log(self, task: Task, attempt: int, status: str, text: str) -> str | None:
        """The file with the details of a failure: one of its own, or, of a skipped task, that of the failure
        it was skipped for. None where nothing failed: of combinations that cannot run, and of pruned trials.
        """
        self._logs.pop(task.id, None)
        if status == "done":
            return None
        if status == "skipped":
            log = next((self._logs[parent] for parent in parents_of(task) if parent in self._logs), None)
        else:
            log = self.store.write_log(task.id, attempt, text)
        if log is not None:
            self._logs[task.id] = log
        return log

    def _count(self, status: str) -> None:
        if status == "done":
            self.progress.done += 1
        else:
            self.progress.failed[status] += 1

    # ---- writing ------------------------------------------------------------------------------------------

    def flush_if_due(self) -> None:
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed >= self.flush_s:
            self.flush()

    def flush(self) -> None:
        """Make everything durable: designs, scores, then rows; then drop bases nobody needs."""
        self._flushed = time.monotonic()
        if self._rows:
            part = new_part()
            if self._new_designs:
                self.store.write_part("designs", self._new_designs, part)
            for folder, rows in self._scores.items():
                self.store.write_part("scores", rows, part, folder, self._score_facts(rows))
            self.store.write_part("runs", [row | {"part": part} for row in self._rows], part)
            self._rows, self._scores, self._new_designs = [], {}, []
        for base in self._to_delete:
            self.store.delete_model(base)
        self._to_delete.clear()
        self.events.flush(self.progress)
        self.lock.beat()

    def _score_facts(self, scores: list[dict[str, Any]]) -> dict[str, Any]:
        """What the metadata say of rows of scores of one folder that wait to be written."""
        models = {row["task_id"] for row in scores}
        made = [row for row in self._rows if row["task_id"] in models]
        views = 1 + max(row["view"] for row in scores)
        specs = [json.loads(row["spec"]) for row in made]
        return score_facts(specs[0]["dataset"], views, (row["versions"] for row in made), specs)

    def load_datasets(
        self, load: Callable[[str, bool], dict[str, Any]], try_out: Callable[[str, str], str]
    ) -> None:
        """Write the table samples of all datasets of the grid; nothing is written if one cannot be loaded, or
        if an architecture cannot take its images.

        load: name, and whether the table samples lacks it, so that its duplicates are wanted -> its facts.
        try_out: why an architecture cannot take a dataset's images, '' where it can.
        """
        known = [datasets.of(dataset) for dataset in self.plan.grid.datasets]
        loaded = {d.name: load(d.key, not self._known_samples(d.name)) for d in known}
        self._try_architectures(try_out)
        for name, facts in loaded.items():
            self.write_samples(name, facts)

    def _try_architectures(self, try_out: Callable[[str, str], str]) -> None:
        """UserError with a line for each architecture of another package that does not do."""
        grid = self.plan.grid
        pairs = [
            (name, dataset) for name in grid.architectures if requires(name) for dataset in grid.datasets
        ]
        problems = [
            f"{dataset}  {line}"
            for name, dataset in pairs
            if (line := try_out(name, datasets.of(dataset).key))
        ]
        if problems:
            raise UserError(*problems)

    def write_samples(self, dataset: str, facts: dict[str, Any]) -> None:
        """Write the table samples of a dataset once; refuse data that differ from those of earlier runs."""
        known = self._known_samples(dataset)
        if known:
            if known != facts["sha256"]:
                raise UserError(
                    f"dataset {dataset}: its content differs from that of earlier runs in {self.store.uri}."
                    " Restore the data or use another --results folder."
                )
            return
        count, n_pool = len(facts["labels"]), facts["n_pool"]
        has_parts = facts.get("subclasses") is not None
        table = pa.table(
            {
                "sample_id": range(count),
                "split": ["pool"] * n_pool + ["test"] * (count - n_pool),
                "label": facts["labels"],
                "subclass": pa.array(facts.get("subclasses"), pa.int16()) if has_parts else pa.nulls(count),
                "sha256": facts["sha256"],
                **{name: facts.get(name, pa.nulls(count)) for name in ("dup_exact", "dup_near")},
            }
        ).cast(schema.arrow("samples"))
        self.store.write_part("samples", table, new_part(), f"dataset={dataset}")

    def _known_samples(self, dataset: str) -> list[bytes]:
        """The hashes of a dataset's samples in the table samples; empty if it is not there yet."""
        found = self.store.read_table("samples", ["sha256"], f"dataset={dataset}")
        return list(found["sha256"].to_pylist())


@dataclass
class _NoOutcome:
    """Stands for the outcome of a task whose worker did not live to give one."""

    status: str
    reason: str
    log: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    scores: None = None
    design: None = None
    weights: None = None


def retry_kinds(words: Collection[str]) -> set[str]:
    """The failure kinds named by --retry; 'failed' names all. UserError for another word."""
    unknown = [word for word in words if word not in (*FAILURES, "failed")]
    if unknown:
        raise UserError(f"--retry {unknown[0]}: not a failure kind. Allowed: failed, {', '.join(FAILURES)}.")
    return set(FAILURES) if "failed" in words else set(words)
