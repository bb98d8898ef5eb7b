"""Ray's metrics of a run, read from the port where Prometheus would read them."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.config import load
from orchestrator.lock import Lock
from orchestrator.plan import make_plan
from orchestrator.session import Session
from orchestrator.store import Store

REPORT_MS = 500  # Ray's own interval is 10 s
SCRAPE_S = 30.0
LINE = re.compile(r"^ray_lethe_(\w+){(.*)} (\S+)$", re.MULTILINE)
SHOWN = ("kind", "method", "dataset", "status", "event")

Metrics = dict[tuple[str, ...], float]


@pytest.fixture
def ray_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Ray on this machine with a GPU that it only believes in; the address of its metrics."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_metrics_report_interval_ms", str(REPORT_MS))
    from orchestrator import driver  # noqa: F401  # sets what Ray wants to know before it is imported

    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        (node,) = ray.nodes()
        yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    finally:
        ray.shutdown()


def scraped(url: str) -> Metrics:
    """(name, kind, method, dataset, status, event) -> value of everything that Lethe exports."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: Metrics = {}
    for name, labels, value in LINE.findall(text):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[name, *(tags.get(tag, "") for tag in SHOWN)] = float(value)
    return found


def until(url: str, known: Callable[[Metrics], bool]) -> Metrics:
    """The metrics once `known`, or those that are there when waiting is over."""
    deadline = time.monotonic() + SCRAPE_S
    while not known(found := scraped(url)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.mark.long
def test_metrics_are_those_of_the_ledger(ray_with_a_gpu: str, write_grid: Callable[..., Path]) -> None:
    from orchestrator import driver
    from orchestrator.metrics import exported

    diverging = {"gradient_ascent": {"learning_rate": 1e20, "momentum": 0.0}}
    changes = {"seeds": 1, "audit": None, "training": {"all": {"epochs": 1}}}
    file = write_grid(methods=[{"finetune": {"epochs": 1}}, diverging, "mnemonic_code"], **changes)
    grid, store = load(str(file)), Store.create(str(file.parent / "results"))
    with Lock(store) as lock, Session(make_plan(grid), store, lock, lambda _: None) as session:
        driver.run(session, "data", driver.Resources(actors_per_gpu=2, max_actors=1, time_limit_s=200))
        session.flush()
        with exported(session, lambda: 0.5):  # another run in this process goes on counting
            session.events.trouble("lost", session.plan.tasks[0], "lost_worker", "made up")

    rows = store.runs().to_pylist()
    names = ("kind", "method", "dataset", "status")
    tasks = Counter(("tasks_total", *(row[name] for name in names), "") for row in rows)
    assert {name[4] for name in tasks} == {"done", "diverged", "skipped"}
    found = until(ray_with_a_gpu, lambda now: now.items() >= tasks.items() and len(now) > len(tasks))
    assert {name: value for name, value in found.items() if name[0] == "tasks_total"} == tasks
    for method in ("", "finetune"):
        wall = sum(row["wall_s"] for row in rows if row["method"] == method and row["status"] == "done")
        assert wall > 0
        for counter, share in (("wall_seconds_total", 1.0), ("gpu_seconds_total", 0.5)):
            counted = sum(value for name, value in found.items() if name[0] == counter and name[2] == method)
            assert counted == pytest.approx(share * wall, rel=1e-6)
    lost = ("troubles_total", "", "", "", "lost_worker", "lost")
    found = until(ray_with_a_gpu, lambda now: lost in now)
    assert found[lost] == 1
    assert {name[0]: value for name, value in found.items() if name[0].startswith("tasks_r")} == {
        "tasks_running": 0
    }
    assert [value for name, value in found.items() if name[0] == "tasks_waiting"] == [0]
