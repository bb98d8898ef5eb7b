"""What a run tells Prometheus, through Ray: tasks that ended, their seconds, what waits and what runs.

Ray adds `ray_` in front of these names and `_total` behind those of counters, and serves them on the metrics
port of the node the driver is on; docs/monitoring.md has a table. Needs a connected Ray, as driver.py does.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge

from orchestrator.events import ENDED, Event
from orchestrator.session import Session

TAGS = ("kind", "method", "dataset")
EVERY_S = 1.0  # Ray takes 7 µs for each number, which thousands of tasks a second would feel

COUNTERS = {
    "tasks": ("tasks that ended, by how", (*TAGS, "status")),
    "troubles": ("tasks lost with a worker, and started again", ("event", "status")),
    "wall_seconds": ("training or unlearning of tasks that are done", TAGS),
    "gpu_seconds": ("the same times the share of a GPU that an actor has", TAGS),
}
GAUGES = {
    "tasks_waiting": "tasks of the run that have not been given to an actor",
    "tasks_running": "tasks that are being run",
}


class Metrics:
    """Listens to the events of a session. gpus: the share of a GPU that an actor has now."""

    def __init__(self, session: Session, gpus: Callable[[], float]) -> None:
        self._session, self._gpus, self._told = session, gpus, time.monotonic()
        self._counters = {name: Counter(f"lethe_{name}", *about) for name, about in COUNTERS.items()}
        self._gauges = {name: Gauge(f"lethe_{name}", about) for name, about in GAUGES.items()}
        self._sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)  # counter and tags

    def __call__(self, event: Event) -> None:
        if event["event"] in ENDED:
            tags = tuple(event.get(name, "") for name in TAGS)
            self._sums["tasks", (*tags, event["status"])] += 1
            self._sums["wall_seconds", tags] += (seconds := event.get("wall_s", 0.0))
            self._sums["gpu_seconds", tags] += seconds * self._gpus()
        elif event["event"] in ("lost", "retried"):
            self._sums["troubles", (event["event"], event["status"])] += 1
        if time.monotonic() - self._told >= EVERY_S:
            progress = self._session.progress
            waiting = progress.total - progress.finished - progress.running
            self.tell(waiting, progress.running)

    def tell(self, waiting: int, running: int) -> None:
        """Hand on to Ray what has come together."""
        self._told = time.monotonic()
        for (name, tags), value in self._sums.items():
            if value:  # a counter takes no zero
                self._counters[name].inc(value, dict(zip(COUNTERS[name][1], tags, strict=True)))
        self._sums.clear()
        for gauge, number in zip(self._gauges.values(), (waiting, running), strict=True):
            gauge.set(max(0, number))


@contextmanager
def exported(session: Session, gpus: Callable[[], float]) -> Iterator[None]:
    """Tell Ray of a session while the block runs. Afterwards nothing waits or runs any more."""
    metrics = Metrics(session, gpus)
    session.events.listen(metrics)
    try:
        yield
    finally:
        metrics.tell(waiting=0, running=0)
