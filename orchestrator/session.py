"""One run over one results folder: what inline.py and driver.py share.

It asks the schedule for tasks and records outcomes: the single writer. A base's weights are durable before
its row, scores before the rows of `runs`, and a task is done when its row is durable. Files that need not
wait for each other are written at the same time, since making one durable is waiting for a disk.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa

from orchestrator import __version__, datasets, models, parquet, schema
from orchestrator.architectures import requires
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.held import parents_of
from orchestrator.keys import Digester, canonical
from orchestrator.lock import Lock
from orchestrator.plan import SHARED, Plan, Task
from orchestrator.provenance import commit
from orchestrator.sample_lists import SampleLists
from orchestrator.schedule import FAILURES, Schedule
from orchestrator.store import Store, new_part, score_folder, score_rows

FLUSH_ROWS = 256  # rows that wait for a flush at most,
FLUSH_EVERY_S = 1.0  # or what finishes in a second where that is more: a flush takes some 20 files
LAST_TRY_S = 5.0  # that a store which does not answer is waited for after Ctrl-C
WRITERS = 16  # files that are written at the same time
SAVING = 64 * 2**20  # bytes of weights that may wait to be written; more are waited for
LEDGER = (
    *("task_id", "status", "attempt", "design", "part", "dataset", "architecture", "kind", "method", "log"),
    *("weights_sha256", "left_sha256"),
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


@dataclass
class Scored:
    """Scores of one folder that wait to be written, and what their metadata tell of the models."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    specs: list[dict[str, Any]] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)


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
        self._models = {row["task_id"]: _model_sha256(row) for row in ledger if _model_sha256(row)}
        self._logs = {row["task_id"]: row["log"] for row in ledger if row["status"] != "done" and row["log"]}
        self.events = Events(store)
        self._there = store.models()
        has_model = self._there.__contains__
        self.schedule = Schedule(plan.tasks, statuses, retry=retry, has_model=has_model, limit=limit)
        self.progress = Progress(total=self.schedule.total)
        self.note(aside)
        self._lists = SampleLists(plan, store)
        self._texts = Digester(SHARED)
        self._rows: list[dict[str, Any]] = []
        self._scores: dict[str, Scored] = {}  # by folder
        self._new_designs: list[dict[str, Any]] = []
        self._to_delete: set[str] = set()
        self._writers = ThreadPoolExecutor(WRITERS, "lethe-writer")
        self._saving: deque[tuple[Future[None], int]] = deque()  # weights being written, and their bytes
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

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if kind is KeyboardInterrupt:  # of the threads that write, too
            self.store.patience_s = min(self.store.patience_s, LAST_TRY_S)
        try:
            self.flush()
        finally:
            self._writers.shutdown(cancel_futures=True)

    # ---- the life of a task -------------------------------------------------------------------------------

    def payload(self, task: Task) -> dict[str, Any]:
        """What a worker gets of a task: its id, its specification and the lists of samples this names."""
        return self._lists.payload(task, self.flush)

    def weights(self, task: Task) -> bytes | None:
        """The weights that a task starts from. None if the file is damaged, or of another model: what makes
        them is then scheduled again, and the task after it.
        """
        self._saved()
        base = str(task.base)
        content = self.store.read_model(base) if self.store.has_model(base) else b""
        found = models.weights_sha256(content)
        if found is not None and found == self._models.get(base, found):
            return content
        self.progress.notes.append(f"the weights of {base} are damaged, or another model's: made again")
        self._delete_model(base)
        self.schedule.make_again(task)
        self.progress.total = self.schedule.total
        return None

    def finished(self, task: Task, outcome: Any, runner: str, retries: int = 0) -> None:
        """Record the Outcome of a task (workers/run_task.py), and what cannot run because of it."""
        if outcome.weights is not None:
            self._save(task.id, outcome.weights)
            self._there.add(task.id)
        self._record(task, outcome.status, outcome.reason, outcome, retries)
        self._count(outcome.status)
        skipped = self.schedule.finish(task, outcome.status, runner)
        for child, reason in skipped:
            self._record(child, "skipped", reason)
            self._count("skipped")
        for model in {
            task.base,
            task.id if task.leaves_model else None,
            *(child.base for child, _ in skipped),
        }:
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
        row |= task.columns() | {
            "spec": self._texts.text(task.spec),
            "status": status,
            "reason": reason,
            "attempt": attempt,
            "retries": retries,
            "commit": commit(),
            "versions": _versions(row.get("versions") or "{}"),
        }
        if model := _model_sha256(row):
            self._models[task.id] = model
        row["log"] = self._log(task, attempt, status, outcome.log or reason if outcome else reason)
        if outcome is not None and outcome.scores is not None:
            folder = score_folder(row["dataset"], row["architecture"], row["kind"], row["method"])
            scores = outcome.scores
            waiting = self._scores.setdefault(folder, Scored())
            waiting.rows += score_rows(task.id, scores.phi, scores.correct, scores.views, scores.columns)
            waiting.specs.append(task.spec)
            waiting.versions.add(row["versions"])
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
        waited = time.monotonic() - self._flushed
        if waited >= (FLUSH_EVERY_S if len(self._rows) >= FLUSH_ROWS else self.flush_s):
            self.flush()

    def flush(self) -> None:
        """Make everything durable: weights, designs, scores, then rows; then drop bases nobody needs."""
        self._flushed = time.monotonic()
        self._saved()
        if self._rows:
            part = new_part()
            if self._new_designs:
                self.store.write_part("designs", self._new_designs, part)
            list(self._writers.map(lambda folder: self._write_scores(folder, part), self._scores))
            self.store.write_part("runs", [row | {"part": part} for row in self._rows], part)
            self._rows, self._scores, self._new_designs = [], {}, []
        list(self._writers.map(self._delete_model, self._to_delete))
        self._to_delete.clear()
        self.events.flush(self.progress)
        self.lock.beat()

    def _write_scores(self, folder: str, part: str) -> None:
        """Write the scores of one folder that wait."""
        waiting = self._scores[folder]
        views = 1 + max(row["view"] for row in waiting.rows)
        facts = parquet.score_facts(waiting.specs[0]["dataset"], views, waiting.versions, waiting.specs)
        self.store.write_part("scores", waiting.rows, part, folder, facts)

    def _save(self, task_id: str, weights: bytes) -> None:
        """Begin to write the weights of a model."""
        while self._saving and len(weights) + sum(size for _, size in self._saving) > SAVING:
            self._wait_for_first()
        saving = self._writers.submit(self.store.write_model, task_id, weights)
        self._saving.append((saving, len(weights)))

    def _saved(self) -> None:
        """Wait until all weights are written."""
        while self._saving:
            self._wait_for_first()

    def _wait_for_first(self) -> None:
        """Weights that are not written, or of which that is not known yet, stay: no row goes before them."""
        self._saving[0][0].result()
        self._saving.popleft()

    def _delete_model(self, base: str) -> None:
        self.store.delete_model(base)
        self._there.discard(base)

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


def _model_sha256(row: dict[str, Any]) -> str:
    """The hash of the weights that a task left for others, '' if none is known."""
    return str(row.get("weights_sha256" if row["kind"] == "base" else "left_sha256") or "")


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


@lru_cache
def _versions(of_worker: str) -> str:
    """The JSON of a worker's versions with Lethe's own."""
    return canonical(json.loads(of_worker) | {"lethe": __version__})


def retry_kinds(words: Collection[str]) -> set[str]:
    """The failure kinds named by --retry; 'failed' names all. UserError for another word."""
    unknown = [word for word in words if word not in (*FAILURES, "failed")]
    if unknown:
        raise UserError(f"--retry {unknown[0]}: not a failure kind. Allowed: failed, {', '.join(FAILURES)}.")
    return set(FAILURES) if "failed" in words else set(words)
