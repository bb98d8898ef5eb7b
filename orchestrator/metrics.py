"""What a run tells Prometheus, through Ray: tasks that ended, their seconds, what waits and what runs.

Ray adds `ray_` in front of these names and `_total` behind those of counters, and serves them on the metrics
port of the node the driver is on; docs/monitoring.md has a table. Needs a connected Ray, as driver.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge

from orchestrator.events import ENDED, Event
from orchestrator.session import Session

TAGS = ("kind", "method", "dataset")


class Metrics:
    """Listens to the events of a session. gpus: the share of a GPU that an actor has now."""

    def __init__(self, session: Session, gpus: Callable[[], float]) -> None:
        self._session, self._gpus = session, gpus
        self._tasks = Counter("lethe_tasks", "tasks that ended, by how", (*TAGS, "status"))
        self._troubles = Counter(
            "lethe_troubles", "tasks lost with a worker, and started again", ("event", "status")
        )
        self._wall = Counter("lethe_wall_seconds", "training or unlearning of tasks that are done", TAGS)
        self._gpu = Counter("lethe_gpu_seconds", "the same times the share of a GPU an actor has", TAGS)
        self._gauges = {
            "waiting": Gauge("lethe_tasks_waiting", "tasks that have not been given to an actor"),
            "running": Gauge("lethe_tasks_running", "tasks that are being run"),
        }

    def __call__(self, event: Event) -> None:
        if event["event"] in ENDED:
            self._ended(event)
        elif event["event"] in ("lost", "retried"):
            self._troubles.inc(1, {name: event[name] for name in ("event", "status")})
        progress = self._session.progress
        waiting = max(0, progress.total - progress.finished - progress.running)
        self.show(waiting=waiting, running=progress.running)

    def _ended(self, event: Event) -> None:
        tags = {name: event.get(name, "") for name in TAGS}
        self._tasks.inc(1, tags | {"status": event["status"]})
        for counter, share in ((self._wall, 1.0), (self._gpu, self._gpus())):
            if seconds := event.get("wall_s", 0.0) * share:  # a counter takes no zero
                counter.inc(seconds, tags)

    def show(self, **values: int) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)


@contextmanager
def exported(session: Session, gpus: Callable[[], float]) -> Iterator[None]:
    """Tell Ray of a session while the block runs. Afterwards nothing waits or runs any more."""
    metrics = Metrics(session, gpus)
    session.events.listen(metrics)
    try:
        yield
    finally:
        metrics.show(waiting=0, running=0)
