"""`lethe bench driver`: what the driver, the store and the ledger cost, over tasks that do nothing.

The tasks of a real plan (per seed a base, a retrain and an unlearn task for each of 18 methods) go through
the real session and driver to one actor per core on this machine and into a real results folder, which is
deleted afterwards. The actors run workers/noop.py: rows as of real tasks, φ of 16 samples, 1 KiB of weights
per base. JSON keys:

    tasks, actors     how many; tasks are whole seeds, so rounded up to a multiple of 20
    tasks_per_s       from the first recorded task until the last row is durable
    bare_calls_per_s  calls that do nothing of as many bare actors, in the same Ray, half before the tasks and
                      half after
    ratio             of the two
    driver_rss_mib    peak resident memory of this process, plan included, up to there
    parts             files that hold the rows
    resume_s          for the finished folder: read the grid, plan it, and find that nothing is left to run
    plan_s, status_s  `lethe plan` and `lethe status` as processes of their own
    compact_s         `lethe store compact`
    resume_compacted_s, plan_compacted_s, status_compacted_s  the same after it
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import catalogue, cluster, driver, plans
from orchestrator.catalogue import ROOT
from orchestrator.cluster import Resources
from orchestrator.compact import compact
from orchestrator.config import Grid, load
from orchestrator.lock import Lock
from orchestrator.plan import make_plan
from orchestrator.session import Progress, Session
from orchestrator.store import Store

METHODS = 18
AHEAD = 1000  # bare calls that are under way at once


@dataclass(frozen=True)
class DriverBench:
    """What `measure` found; the keys are explained above."""

    tasks: int
    actors: int
    tasks_per_s: float
    bare_calls_per_s: float
    ratio: float
    driver_rss_mib: float
    parts: int
    resume_s: float
    plan_s: float
    status_s: float
    compact_s: float
    resume_compacted_s: float
    plan_compacted_s: float
    status_compacted_s: float


class Clock:
    """A display that notes when the first task was recorded."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self.before = 0

    def __call__(self, progress: Progress) -> None:
        if progress.finished and not self.before:
            self.first_s, self.before = time.perf_counter(), progress.finished

    def rate(self, tasks: int) -> float:
        """Tasks per second since the first."""
        return (tasks - self.before) / (time.perf_counter() - self.first_s)


def measure(tasks: int = 100_000) -> DriverBench:
    """Run at least this many tasks that do nothing, beside bare calls, and time what follows."""
    import ray

    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        grid, results = Path(folder) / "grid.yaml", f"{folder}/results"
        grid.write_text(json.dumps(grid_of(tasks)))
        cluster.connect("local")
        try:
            actors = int(ray.cluster_resources()["CPU"])
            before = bare_seconds(actors, tasks // 2)
            resources = Resources(1, actors, 3600.0)
            made, rate = run_plan(load(str(grid)), results, resources, "workers.noop:Worker")
            after = bare_seconds(actors, tasks - tasks // 2)
        finally:
            cluster.disconnect()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        bare, parts = tasks / (before + after), len(Store.open(results).files("runs"))
        times = ledger_seconds(grid, results)
        start = time.perf_counter()
        with Lock(store := Store.open(results)):
            compact(store)
        compact_s = time.perf_counter() - start
        later = ledger_seconds(grid, results)
    return DriverBench(made, actors, rate, bare, rate / bare, peak, parts, *times, compact_s, *later)


def as_text(found: DriverBench) -> str:
    """The figures, one a line."""
    return "\n".join(f"{name:<20}{value:>12,.2f}" for name, value in asdict(found).items())


def grid_of(tasks: int, methods: int = METHODS) -> dict[str, Any]:
    """A grid of at least this many tasks, the main track of the paper on one dataset."""
    known = catalogue.plugins("methods").values()
    names = [m.name for m in known if m.training == "plain" and m.scope in ("both", "random")]
    return {
        "datasets": ["digits"],
        "architectures": ["cnn_small"],
        "forget": ["random"],
        "methods": names[:methods],
        "seeds": -(-tasks // (2 + methods)),
    }


# ---- measuring -------------------------------------------------------------------------------------------


def run_plan(grid: Grid, results: str, resources: Resources, worker: str) -> tuple[int, float]:
    """Run a grid on the connected Ray: how many tasks it has, and tasks per second from the first on."""
    plan, store, clock = make_plan(grid), Store.create(results), Clock()
    with Lock(store) as lock:
        plans.remember(store, plan)
        with Session(plan, store, lock, clock) as session:
            driver.run(session, "", resources, worker)
        rate = clock.rate(len(plan.tasks))
    if session.progress.done != len(plan.tasks):
        raise RuntimeError(f"{session.progress.done} of {len(plan.tasks)} tasks were done")
    return len(plan.tasks), rate


def bare_seconds(actors: int, calls: int) -> float:
    """Seconds of this many calls that do nothing and return nothing, shared out over actors that do no more;
    the fastest plain way: all references of a thousand calls in one `get`.
    """
    import ray

    class Bare:
        def call(self) -> None: ...

    made = [ray.remote(Bare).options(num_cpus=1).remote() for _ in range(actors)]
    ray.get([actor.call.remote() for actor in made])
    start = time.perf_counter()
    for first in range(0, calls, AHEAD):
        ray.get([made[i % actors].call.remote() for i in range(first, min(first + AHEAD, calls))])
    seconds = time.perf_counter() - start
    for actor in made:
        ray.kill(actor)
    return seconds


def ledger_seconds(grid: Path, results: str) -> tuple[float, float, float]:
    """Seconds to resume a finished folder, of `lethe plan` and of `lethe status`."""
    start = time.perf_counter()
    plan, store = make_plan(load(str(grid))), Store.open(results)
    with Lock(store) as lock, Session(plan, store, lock, lambda _: None) as session:
        if session.schedule.total:
            raise RuntimeError(f"{session.schedule.total} tasks of a finished run would run again")
    resume_s = time.perf_counter() - start
    return (
        resume_s,
        _command("plan", str(grid), "--results", results),
        _command("status", "--results", results),
    )


def _command(*arguments: str) -> float:
    """Seconds of one command, the start of Python included."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "orchestrator", *arguments, "--json"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
