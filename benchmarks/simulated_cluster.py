"""Fake GPUs kept busy by the real driver: python -m benchmarks.simulated_cluster

A cluster of real Ray nodes on this machine, each of which says to have GPUs; every task sleeps. The driver,
the session and the ledger are the real ones. The busy share of a GPU is the time its tasks took, from the
rows of the ledger, over the time from the first start to the last end of all. The last line printed is JSON:

    nodes, gpus, tasks, task_s, seconds
    busy_min, busy_mean  over all fake GPUs
    steady_min, steady_mean  from when all have begun until the first has ended
    moved                unlearn tasks that ran elsewhere than their base
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from orchestrator.catalogue import ROOT
from workers import noop

TASK_S = "LETHE_BENCHMARK_TASK_S"  # how workers, which are other processes, know it


class Sleeper(noop.Worker):
    """Sleeps as long as a task would take, and says which fake GPU it had."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        import ray

        super().__init__(*arguments, **options)
        context = ray.get_runtime_context()
        self.device = f"{context.get_node_id()[:8]} {context.get_accelerator_ids()['GPU']}"

    def work(self) -> None:
        time.sleep(float(os.environ[TASK_S]))

    def run(self, task: dict[str, Any], weights: bytes | None = None) -> Any:
        outcome = super().run(task, weights)
        outcome.row["device"] = self.device
        return outcome


def measure(nodes: int, gpus: int, tasks: int, task_s: float) -> dict[str, Any]:
    os.environ[TASK_S] = str(task_s)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    import ray
    from ray.cluster_utils import Cluster

    from orchestrator.bench_driver import grid_of, run_plan
    from orchestrator.cluster import Resources
    from orchestrator.config import Grid
    from orchestrator.store import Store

    cluster = Cluster()
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=100 * 2**20)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
            start = time.perf_counter()
            resources = Resources(1, None, 3600.0)
            run_plan(
                Grid.model_validate(grid_of(tasks)), folder, resources, "benchmarks.simulated_cluster:Sleeper"
            )
            seconds = time.perf_counter() - start
            rows = Store.open(folder).runs(["task_id", "parents", "device", "started_at", "finished_at"])
            found = busy(rows.to_pylist())
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {"nodes": nodes, "gpus": gpus, "task_s": task_s, "seconds": round(seconds, 1), **found}


def busy(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of each device from the rows of a run that was not interrupted."""
    place = {row["task_id"]: row["device"] for row in rows}
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        spans[row["device"]].append((row["started_at"], row["finished_at"]))
    firsts, lasts = [min(span)[0] for span in spans.values()], [max(span)[1] for span in spans.values()]
    facts: dict[str, Any] = {"tasks": len(rows), "devices": len(spans)}
    for name, begin, end in (("busy", min(firsts), max(lasts)), ("steady", max(firsts), min(lasts))):
        shares = [
            sum(max(0.0, min(b, end) - max(a, begin)) for a, b in span) / (end - begin)
            for span in spans.values()
        ]
        facts |= {f"{name}_min": round(min(shares), 4), f"{name}_mean": round(sum(shares) / len(shares), 4)}
    facts["moved"] = sum(place[parent] != row["device"] for row in rows for parent in row["parents"])
    return facts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--tasks", type=int, default=640)
    parser.add_argument("--task-s", type=float, default=5.0)
    given = parser.parse_args()
    print(json.dumps(measure(given.nodes, given.gpus, given.tasks, given.task_s)))
