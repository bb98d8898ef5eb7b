"""`lethe tune`: runs the studies of a grid that have no winner yet, and writes the winners down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator import runner, studies, tuned, tuned_plan, tuning
from orchestrator.config import Grid
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.progress import Display
from orchestrator.report_tuning import row, summary
from orchestrator.runner import Options
from orchestrator.store import Store
from orchestrator.tune import Search, Tuner
from orchestrator.tuned import Place, Winner
from orchestrator.tuning_session import TuningSession


@dataclass(frozen=True)
class Tuned:
    """How tuning ended: studies of the grid, winners found now and before, reasons of those without one."""

    studies: int
    found: list[Winner]
    known: int
    failed: list[str]
    files: list[str]
    ran: int
    seconds: float


def tune_grid(grid: Grid, options: Options, url: str | None = None, *, shipped: bool = False) -> Tuned:
    """Tune what a grid names and no winner is known of. url: a database for the studies; None: the journal in
    the results folder. shipped: whether the winners that come with Lethe count; else they are found anew.
    """
    started = time.monotonic()
    fresh = Store.open_if_any(options.results) is None
    store = Store.create(options.results)
    with Lock(store) as lock, Display() as display, _reachable(url):
        try:
            wanted = tuning.missing(grid, tuned.known(store, shipped=shipped))
            kept = studies.storage(store, url, note=lambda line: None) if wanted else None
            budget, owner = tuning.budget(grid), store.identity() if url is not None else ""
            searches = [
                Search(e.subject, studies.open_study(kept, e.subject.name, budget, owner), budget)
                for e in wanted
                if kept is not None
            ]
            tuner = Tuner(searches)
            with TuningSession(
                grid, store, lock, display, tuner, retry=options.retry, keep_models=options.keep_models
            ) as session:
                runner.run_session(session, options)
        except UserError:
            if fresh:
                store.discard()
            raise
        found: dict[Place, list[Winner]] = {}
        for entry, search in zip(wanted, searches, strict=True):
            winner = tuning.winner(entry, search, studies.importances)
            if winner is not None:
                found.setdefault(entry.place, []).append(winner)
        files = [tuned.write(store, place, winners) for place, winners in found.items()]
    failed = [f"{s.subject.name}: {s.result.reason}" for s in searches if s.result and s.result.reason]
    failed += [f"{s.subject.name}: not finished" for s in searches if s.result is None]
    count = len(list(tuned_plan.studies(grid)))
    return Tuned(
        studies=count,
        found=[winner for winners in found.values() for winner in winners],
        known=count - len(wanted),
        failed=failed,
        files=files,
        ran=session.progress.finished,
        seconds=time.monotonic() - started,
    )


def tune_first(grid: Grid, options: Options, url: str | None) -> Tuned | None:
    """Before a run of a grid with `hyperparameters: tuned`: the studies without a winner, None if there are
    none. What still has no winner then runs with its defaults.
    """
    if not tuned_plan.first(grid, Store.open_if_any(options.results)):
        return None
    return tune_grid(grid, options, url, shipped=True)


@contextlib.contextmanager
def _reachable(url: str | None) -> Iterator[None]:
    if url is None:
        yield
        return
    with studies.reachable(url):
        yield


def text(ended: Tuned, command: str, results: str) -> str:
    """What `lethe tune` prints at the end."""
    lines = [
        f"{len(ended.found)} winners found, {ended.known} known before, of {ended.studies} studies"
        f" ({ended.ran:,} tasks in this run, {ended.seconds:.0f} s)."
    ]
    if ended.found:
        lines.append(summary([row(winner.method, winner) for winner in ended.found]))
    lines += [f"No winner: {reason}" for reason in ended.failed]
    lines += [f"Written: {results}/{name}" for name in ended.files]
    if any("not finished" in reason for reason in ended.failed):
        lines.append(f"`{command}` goes on from there.")
    return "\n".join([*lines, f"Next: `lethe report --results {results}`."])
