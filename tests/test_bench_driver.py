"""`lethe bench driver` counts what it says, and its worker stands for the real one. Nothing here is timed."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from benchmarks import simulated_cluster
from orchestrator import bench_driver
from orchestrator.config import Grid
from orchestrator.lock import Lock
from orchestrator.plan import make_plan
from orchestrator.session import Session
from orchestrator.store import Store
from tests.conftest import Lethe
from workers import noop
from workers.worker import Worker


def test_it_prints_what_its_docstring_says(lethe: Lethe) -> None:
    """Every task went through Ray into the ledger, else it raises; so it does if one would run again."""
    done = lethe("bench", "driver", "--tasks", 45, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == bench_driver.DriverBench.__annotations__.keys()
    assert all(name in str(bench_driver.__doc__) for name in found)
    assert found["tasks"] == 60 and found["actors"] >= 1 and found["parts"] >= 1
    assert found["ratio"] == found["tasks_per_s"] / found["bare_calls_per_s"]
    assert all(value > 0 for value in found.values())


def test_the_worker_that_does_nothing_has_the_methods_of_the_real_one() -> None:
    for name in ("run", "holds", "samples", "duplicates", "try_out"):
        real, other = (inspect.signature(getattr(of, name)) for of in (Worker, noop.Worker))
        assert real.parameters.keys() == other.parameters.keys(), name


def run_inline(results: str, tasks: int) -> list[dict[str, Any]]:
    """The rows of tasks that do nothing, run in this process."""
    plan, store, worker = (
        make_plan(Grid.model_validate(bench_driver.grid_of(tasks))),
        Store.create(results),
        noop.Worker(""),
    )
    with Lock(store) as lock, Session(plan, store, lock, lambda _: None) as session:
        while (task := session.schedule.take("one")) is not None:
            session.finished(task, worker.run({"id": task.id, "spec": task.spec}), "one")
    return list(store.runs().to_pylist())


def test_its_rows_have_the_columns_of_real_ones(tmp_path: Path) -> None:
    """All but what only some recipes and methods fill."""
    rows = run_inline(str(tmp_path / "results"), 20)
    assert len(rows) == 20 and {row["status"] for row in rows} == {"done"}
    some = {
        "ef",
        "ar",
        "fa_new",
        "fa_flipped",
        "val_auc",
        "val_mia",
        "epoch_values",
        "prepaid_s",
        "left_sha256",
    }
    some |= {name for name in rows[0] if name.startswith("gus")} | {"log", "warnings"}
    for row in rows:
        assert {name for name, value in row.items() if value is None} <= some


def test_the_busy_share_of_a_device_by_hand() -> None:
    """Ten seconds; one device works 4 + 5 of them, the other 5, on a child of a base of the first. Both are
    there from 104 to 109: the first works 4 of these seconds, the other 5.
    """
    rows = [
        {"task_id": "b", "parents": [], "device": "one", "started_at": 100.0, "finished_at": 104.0},
        {"task_id": "u", "parents": ["b"], "device": "one", "started_at": 105.0, "finished_at": 110.0},
        {"task_id": "v", "parents": ["b"], "device": "two", "started_at": 104.0, "finished_at": 109.0},
    ]
    found = simulated_cluster.busy(rows)
    shares = {"busy_min": 0.5, "busy_mean": 0.7, "steady_min": 0.8, "steady_mean": 0.9}
    assert found == {"tasks": 3, "devices": 2, **shares, "moved": 1}
