"""`lethe run`: opens the store, runs the plan inline or on Ray, then audits what is there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from orchestrator import inline, plans, tuned_plan
from orchestrator.config import Grid
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.plan import Plan
from orchestrator.progress import Display
from orchestrator.session import Session
from orchestrator.store import Store


@dataclass(frozen=True)
class Options:
    """What the command line decides. address: None for inline."""

    results: str
    data: str
    address: str | None
    retry: frozenset[str] = frozenset()
    limit: int | None = None
    keep_models: bool = False
    max_actors: int | None = None
    actors_per_gpu: int | str = 1
    time_limit_s: float = 3600.0
    device: str = "auto"


@dataclass(frozen=True)
class Ended:
    """How a run ended: tasks of the grid, done, failures as rows of the ledger, and the seconds it took.

    impossible: why some combinations of the grid cannot run; these are no failures.
    """

    total: int
    done: int
    ran: int
    failures: list[dict[str, Any]]
    seconds: float
    impossible: list[str]


def run_grid(grid: Grid, options: Options) -> Ended:
    """Run what is left of a grid and audit it; see `lethe run`."""
    started = time.monotonic()
    there = Store.open_if_any(options.results)
    plan, fresh = tuned_plan.plan_of(grid, there), there is None
    store = Store.create(options.results)
    with Lock(store) as lock, Display() as display:
        try:
            session = _run_session(plan, store, lock, display, options)
        except UserError:
            if fresh:
                store.discard()  # a dataset or the cluster is not there: leave no trace
            raise
        # scipy.stats and scikit-learn: a mistake is told without these seconds
        from orchestrator import audit

        audit.write(store, plans.recall(store))
        session.note(store.set_aside())
        display(session.progress)
    return _ended(plan, store, session.progress.finished, time.monotonic() - started)


def _run_session(plan: Plan, store: Store, lock: Lock, display: Display, options: Options) -> Session:
    plans.remember(store, plan)
    with Session(
        plan,
        store,
        lock,
        display,
        retry=options.retry,
        limit=options.limit,
        keep_models=options.keep_models,
    ) as session:
        run_session(session, options)
    return session


def run_session(session: Session, options: Options) -> None:
    """Run every task of a session, inline or on Ray."""
    if not session.schedule.total:
        return
    if options.address is None:
        inline.run(session, options.data, options.time_limit_s, options.device)
        return
    try:
        from orchestrator import cluster, driver
    except ImportError as error:
        raise UserError(f"Ray cannot be imported ({error}). Install it, or use --inline.") from None
    try:
        cluster.connect(options.address)
        resources = cluster.Resources(
            options.actors_per_gpu, options.max_actors, options.time_limit_s, options.device
        )
        driver.run(session, options.data, resources)
    finally:
        cluster.disconnect()


def _ended(plan: Plan, store: Store, ran: int, seconds: float) -> Ended:
    columns = ["task_id", "status", "reason", "log", "method", "dataset", "architecture", "kind"]
    rows = [row for row in store.runs(columns).to_pylist() if row["task_id"] in plan.by_id]
    failures = [row for row in rows if row["status"] != "done"]
    reasons = [reason for _, reason in plan.impossible]
    return Ended(len(plan.tasks), len(rows) - len(failures), ran, failures, seconds, reasons)
