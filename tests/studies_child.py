"""A tuning run on made-up tasks that kills itself (SIGKILL) at given writes of its storage, and goes on.

python tests/studies_child.py RESULTS URL|- SAMPLER TRIALS STUDIES PAUSE_S [WRITE …]
Each WRITE is a process of its own, killed in its write of that number; a journal keeps half of the line it
was writing, and its lock. The last process runs to the end and prints a line of JSON. Finished tasks go to
RESULTS/ledger.jsonl, one line each, as rows of the real ledger do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages.journal import JournalFileBackend

from orchestrator import studies
from orchestrator.store import Store
from orchestrator.studies import open_study, storage
from orchestrator.tune import Budget, Search, Tuner
from tests.test_tune import Made, run_one, subject

NAMES = ("neggrad_plus · toy", "salun · toy")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(write: int) -> None:
    """SIGKILL in the middle of the write of this number."""
    seen = 0
    append = JournalFileBackend.append_logs

    def torn(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        nonlocal seen
        seen += 1
        if seen == write:
            self._lock.acquire()
            line = json.dumps(logs[0], separators=(",", ":"))
            with open(self._file_path, "ab") as file:
                file.write(line[: len(line) // 2].encode())
            die()
        append(self, logs)

    JournalFileBackend.append_logs = torn  # type: ignore[method-assign]

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "after_cursor_execute")
    def _count(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal seen
        if statement.startswith(("INSERT", "UPDATE")):
            seen += 1
            if seen == write:
                die()


def run(results: str, url: str | None, budget: Budget, names: Sequence[str], pause: float) -> dict[str, Any]:
    store = Store.create(results)
    kept = storage(store, url, note=lambda _: None)
    searches = [Search(subject(name), open_study(kept, name, budget), budget) for name in names]
    tuner = Tuner(searches)
    ledger = Path(results, "ledger.jsonl")
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    queue = tuner.start({row["id"]: row for row in map(json.loads, lines)})
    with ledger.open("a") as file:
        while queue:
            job = queue.pop(0)
            assert isinstance(job, Made)
            time.sleep(pause)
            row = {"id": job.id, **run_one(job)}
            file.write(json.dumps(row) + "\n")
            file.flush()
            queue += tuner.finished(job.id, row)
    return {
        search.subject.name: {
            "winner": search.result.winner if search.result else None,
            "trials": [
                [trial.number, trial.state.name, trial.params, trial.values]
                for trial in search.study.get_trials(deepcopy=False)
            ],
        }
        for search in searches
    }


def main(results: str, url: str, sampler: str, trials: str, count: str, pause: str, *writes: str) -> None:
    studies.LOCK_PATIENCE_S = 0.05
    budget = Budget(trials=int(trials), sampler=sampler, parallel=1)
    address = None if url == "-" else url
    for write in writes:
        child = os.fork()
        if child == 0:
            killed_at(int(write))
            run(results, address, budget, NAMES[: int(count)], float(pause))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (write, status)
    sys.stdout.write(json.dumps(run(results, address, budget, NAMES[: int(count)], float(pause))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
