"""A session whose tasks are not known beforehand: what finishes decides what the studies want next."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from orchestrator import forget_recipes
from orchestrator.config import Grid
from orchestrator.lock import Lock
from orchestrator.objective import Row
from orchestrator.plan import Plan, Task
from orchestrator.session import Display, Session
from orchestrator.store import Store
from orchestrator.trials import TRACK
from orchestrator.tune import JUDGED, Tuner

COLUMNS = ("task_id", "track", "kind", "status", "reason", "wall_s", "val_mia", "epoch_values", *JUDGED)


class TuningSession(Session):
    """Runs what a tuner wants. Bases stay until all studies have ended: every trial starts from them."""

    def __init__(
        self,
        grid: Grid,
        store: Store,
        lock: Lock,
        display: Display,
        tuner: Tuner,
        *,
        retry: Collection[str] = (),
        keep_models: bool = False,
    ) -> None:
        self.tuner, self._keep = tuner, keep_models
        self._news: list[tuple[str, Row]] = []
        tuner.start(finished_rows(store, retry))
        tasks: list[Any] = list(tuner.jobs.values())
        plan = Plan(grid, tasks, [], [], forget_recipes.lists(grid))
        super().__init__(plan, store, lock, display, retry=retry, keep_models=True)
        self._go_on()

    def _usable(self, ledger: list[dict[str, Any]]) -> dict[str, str]:
        """Of trials the row alone counts; their scores are not kept."""
        return {row["task_id"]: row["status"] for row in ledger}

    def payload(self, task: Task) -> dict[str, Any]:
        """With what the worker needs to judge a trial after each epoch."""
        hint = self.tuner.hint(task.id)
        return super().payload(task) | ({} if hint is None else {"judge": hint})

    def finished(self, task: Task, outcome: Any, runner: str, retries: int = 0) -> None:
        """Record it, tell the studies, and schedule what they want next."""
        super().finished(task, outcome, runner, retries)
        self._go_on()

    def _record(
        self, task: Task, status: str, reason: str = "", outcome: Any = None, retries: int = 0
    ) -> None:
        super()._record(task, status, reason, outcome, retries)
        self._news.append((task.id, self._rows[-1]))

    def _go_on(self) -> None:
        while self._news:
            task_id, row = self._news.pop(0)
            wanted: list[Any] = self.tuner.finished(task_id, row)
            bases: list[Any] = [self.tuner.job(task.base) for task in wanted if task.base is not None]
            for task, reason in self.schedule.add(wanted, filter(None, bases)):
                self._record(task, "skipped", reason)
                self._count("skipped")
        self.progress.total = self.schedule.total

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self.tuner.done and not self._keep:
            self._to_delete |= self._there & self.tuner.jobs.keys()
        super().__exit__(kind)


def finished_rows(store: Store, retry: Collection[str] = ()) -> dict[str, Row]:
    """The rows of tuning that the ledger has, by id, without those that are to run again."""
    rows = store.runs(COLUMNS).to_pylist()
    return {row["task_id"]: row for row in rows if row["track"] == TRACK and row["status"] not in retry}
