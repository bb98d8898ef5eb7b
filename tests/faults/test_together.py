"""Short tasks travel together; one of them that kills or blocks its worker takes none of the others along."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from orchestrator import bench_driver, cluster, driver, plans
from orchestrator.cluster import Resources
from orchestrator.config import Grid
from orchestrator.lock import Lock
from orchestrator.plan import make_plan
from orchestrator.session import Session
from orchestrator.store import Store
from workers import noop

KILLS, BLOCKS = ("finetune", 21), ("gradient_ascent", 22)  # method and seed


class Worker(noop.Worker):
    """Dies of one task and never ends another."""

    def run(self, task: dict[str, Any], weights: bytes | None = None) -> Any:
        spec = task["spec"]
        what = (spec.get("method", {}).get("name"), spec["seed"])
        if what == KILLS:
            os._exit(1)
        if what == BLOCKS:
            time.sleep(3600)
        return super().run(task, weights)


@pytest.fixture
def ray_here() -> Iterator[None]:
    cluster.connect("local")
    yield
    cluster.disconnect()


@pytest.mark.usefixtures("ray_here")
def test_what_kills_and_what_blocks_among_short_tasks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    lost_together = driver._Driver._lost_together

    def noted(self: Any, runner: Any, *words: str) -> bool:
        found = lost_together(self, runner, *words)
        together.append(len(self.alone) if found else 0)
        return found

    monkeypatch.setattr(driver._Driver, "_lost_together", noted)
    plan = make_plan(Grid.model_validate(bench_driver.grid_of(1200)))
    store = Store.create(str(tmp_path / "results"))
    with Lock(store) as lock:
        plans.remember(store, plan)
        with Session(plan, store, lock, lambda _: None) as session:
            driver.run(session, "", Resources(time_limit_s=5.0), f"{__name__}:Worker")
    rows = store.runs(["task_id", "status", "method", "seed", "retries", "attempt"]).to_pylist()
    failed = {
        (row["method"], row["seed"]): (row["status"], row["retries"])
        for row in rows
        if row["status"] != "done"
    }
    assert failed == {KILLS: ("lost_worker", driver.LOST_RETRIES), BLOCKS: ("timeout", 0)}
    assert len(rows) == len(plan.tasks) and all(row["attempt"] == 1 for row in rows)
    retried = sum(row["retries"] for row in rows if row["status"] == "done")
    assert (
        retried <= driver.LOST_RETRIES + 1
    )  # a worker that dies may take the reply of the task before along
    assert max(together) > 1  # else none of the two travelled with others
