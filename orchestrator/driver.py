"""Runs a session on Ray: long-lived actors, a bounded window for each, retries by kind of failure.

An actor holds its datasets and hot bases, so unlearn tasks go to the actor that has their base; when another
actor takes one over, the weights reach it through Ray's object store. A task is a pure function of its id:
that a worker is lost, or a task moves, changes nothing but the time.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from orchestrator import datasets
from orchestrator.catalogue import ROOT
from orchestrator.errors import UserError
from orchestrator.plan import Task
from orchestrator.session import Session

WINDOW = 2  # tasks an actor has at once: one runs, one waits, so that no actor idles for a round trip
LOST_RETRIES = 3
OOM_RETRIES = 2
POLL_S = 0.2
CONNECT_S = 10.0
EXCLUDES = [
    ".git",
    ".venv",
    "data",
    "results",
    "**/__pycache__",
]  # what of this folder does not travel to a cluster


@dataclass(frozen=True)
class Resources:
    """How many actors, and how long one task may run."""

    actors_per_gpu: int
    max_actors: int | None
    time_limit_s: float


@dataclass
class InFlight:
    """A task given to an actor, with the references of its two results."""

    task: Task
    outcome: Any
    weights: Any


@dataclass
class Runner:
    """An actor and what it was given; the first in the queue is the one that runs."""

    name: str
    actor: Any
    starting: Any  # a reference that is there once the actor has started; None from then on
    queue: deque[InFlight] = field(default_factory=deque)
    since: float = 0.0  # when the first in the queue became so


def connect(address: str) -> None:
    """Start Ray here ('local') or join a cluster ('auto', or a host); UserError if there is none."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private instance that ends with this process
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    _check_reachable(address)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # `ray job submit` has shipped the code already
    environment = None if inside_job else {"working_dir": str(ROOT), "excludes": EXCLUDES}
    try:
        ray.init(address=address, runtime_env=environment, **quiet)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--address {address}: no Ray cluster answered ({reason})."
            " Use --address local, or start one with `ray start`."
            " One with a token wants RAY_AUTH_MODE=token here, and the same token in ~/.ray/auth_token."
        ) from None


def _check_reachable(address: str) -> None:
    """UserError if nobody listens at host:port; Ray itself tries for minutes before it says so."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # 'auto': Ray looks for a cluster on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise UserError(f"--address {address}: nobody answers there ({error}).") from None


def disconnect() -> None:
    ray.shutdown()


def run(session: Session, data: str, resources: Resources) -> None:
    """Run every task of the session on the actors of the connected cluster."""
    if session.schedule.total:
        _Driver(session, data, resources).run()


def _actor_class(base: type) -> Any:
    """The worker as a Ray actor that returns weights apart, so that they stay in the object store."""

    class Actor(base):  # type: ignore[misc]
        @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
        def run_apart(self, task: dict[str, Any], weights: bytes | None = None) -> tuple[Any, bytes | None]:
            outcome = self.run(task, weights)
            weights, outcome.weights = outcome.weights, None
            return outcome, weights

    return ray.remote(Actor)


class _Driver:
    def __init__(self, session: Session, data: str, resources: Resources) -> None:
        from workers.worker import Worker

        self.session, self.schedule, self.limit_s = session, session.schedule, resources.time_limit_s
        self.data, self.made = data, 0
        self.folders = datasets.folders(session.plan.grid.datasets)
        self.actor_class = _actor_class(Worker)
        self.cpus, self.gpus, count = _share(resources)
        self.runners = [self._new_runner() for _ in range(min(count, max(1, self.schedule.total)))]
        self.weights: dict[str, Any] = {}  # base id -> reference of its weights in the object store
        self.lost: dict[str, int] = {}  # task id -> workers it was lost with
        self.oom: dict[str, int] = {}

    def run(self) -> None:
        try:
            self.session.load_datasets(self._samples, self._try_out)
            while self._fill():
                self._collect()
                self._stop_overdue()
                self.session.flush_if_due()
                self.session.display(self.session.progress)
        finally:
            for runner in self.runners:
                ray.kill(runner.actor)

    def _new_runner(self) -> Runner:
        self.made += 1
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        actor = self.actor_class.options(**options).remote(self.data, folders=self.folders)
        return Runner(f"actor-{self.made}", actor, actor.holds.remote())

    def _samples(self, dataset: str, new: bool) -> dict[str, Any]:
        actor = self.runners[0].actor
        try:
            facts = dict(ray.get(actor.samples.remote(dataset)))
            return facts | (dict(ray.get(actor.duplicates.remote(dataset))) if new else {})
        except RayTaskError as error:
            if isinstance(error.cause, FileNotFoundError):
                raise UserError(str(error.cause)) from None
            raise
        except RayActorError as error:
            raise UserError(f"a worker could not start: {str(error).strip().splitlines()[-1]}") from None

    def _try_out(self, architecture: str, dataset: str) -> str:
        return str(ray.get(self.runners[0].actor.try_out.remote(architecture, dataset)))

    # ---- giving -------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Give tasks to actors with room, emptiest first; False when nothing is left to wait for."""
        for depth in range(WINDOW):
            for runner in self.runners:
                if len(runner.queue) == depth and (task := self.schedule.take(runner.name)) is not None:
                    self._give(runner, task)
        busy = [runner for runner in self.runners if runner.queue]
        self.session.progress.running = len(busy)
        return bool(busy)

    def _give(self, runner: Runner, task: Task) -> None:
        weights = None if task.base is None else self._weights(task.base)
        if not runner.queue:
            runner.since = time.monotonic()
        outcome, trained = runner.actor.run_apart.remote(self.session.payload(task), weights)
        runner.queue.append(InFlight(task, outcome, trained))

    def _weights(self, base: str) -> Any:
        if base not in self.weights:
            self.weights[base] = ray.put(self.session.store.read_model(base))
        return self.weights[base]

    # ---- taking -------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Take the outcomes that are there; wait a moment for the first one."""
        heads = {runner.queue[0].outcome: runner for runner in self.runners if runner.queue}
        ready, _ = ray.wait(list(heads), num_returns=len(heads), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(heads), num_returns=1, timeout=POLL_S)
        for reference in ready:
            self._take(heads[reference])

    def _take(self, runner: Runner) -> None:
        flight = runner.queue[0]
        try:
            outcome = ray.get(flight.outcome)
            outcome.weights = ray.get(flight.weights) if flight.task.leaves_model else None
        except RayTaskError as error:  # the worker itself failed, which it never should
            runner.queue.popleft()
            runner.since = time.monotonic()
            self._fail(runner, flight.task, "bug", " ".join(str(error).split())[-300:])
            return
        except RayError as error:  # an actor, a node or an object is lost
            hungry = isinstance(error, OutOfMemoryError) or "OutOfMemory" in str(error)
            self._lose(runner, "oom" if hungry else "lost_worker", str(error))
            return
        runner.queue.popleft()
        runner.since = time.monotonic()
        if outcome.status == "oom" and self._retry_oom(runner, flight.task):
            return
        self._finish(runner, flight, outcome)

    def _finish(self, runner: Runner, flight: InFlight, outcome: Any) -> None:
        task = flight.task
        if outcome.weights is not None:
            self.weights[task.id] = flight.weights
        self.session.finished(task, outcome, runner.name, self._retries(task))
        self._drop_weights(task)

    def _fail(self, runner: Runner, task: Task, status: str, reason: str) -> None:
        """Record a task whose worker gave no outcome."""
        self.session.failed(task, status, reason, runner.name, self._retries(task))
        self._drop_weights(task)

    def _drop_weights(self, task: Task) -> None:
        """Let the weights that a task started from, and its own, go where nobody needs them any more."""
        for model in (task.base, task.id):
            if model is not None and not self.schedule.needs(model):
                self.weights.pop(model, None)

    def _retries(self, task: Task) -> int:
        return self.lost.get(task.id, 0) + self.oom.get(task.id, 0)

    # ---- failures -----------------------------------------------------------------------------------------

    def _lose(self, runner: Runner, kind: str, reason: str) -> None:
        """An actor is gone: its first task counts a retry, the others wait again; a new actor comes."""
        flight = runner.queue.popleft()
        self._replace(runner, fewer=kind == "oom")
        counts, allowed = (self.oom, OOM_RETRIES) if kind == "oom" else (self.lost, LOST_RETRIES)
        counts[flight.task.id] = counts.get(flight.task.id, 0) + 1
        if counts[flight.task.id] > allowed:
            counts[flight.task.id] = allowed
            text = f"{allowed + 1} workers in a row: {' '.join(reason.split())[:300]}"
            self._fail(runner, flight.task, kind, text)
            return
        self.session.progress.retries += 1
        self.schedule.put_back(flight.task)

    def _retry_oom(self, runner: Runner, task: Task) -> bool:
        """Whether a task that ran out of memory was put back, to run again with one actor less."""
        if self.oom.get(task.id, 0) >= OOM_RETRIES or len(self.runners) == 1:
            return False
        self.oom[task.id] = self.oom.get(task.id, 0) + 1
        self.session.progress.retries += 1
        self._replace(runner, fewer=True)
        self.schedule.put_back(task)
        return True

    def _stop_overdue(self) -> None:
        """Kill the actor of each task that is over its time limit; that task ends as `timeout`."""
        for runner in list(self.runners):
            if runner.queue and self._started(runner) and time.monotonic() - runner.since > self.limit_s:
                flight = runner.queue.popleft()
                self._replace(runner)
                self._fail(runner, flight.task, "timeout", f"longer than {self.limit_s:g} s")

    @staticmethod
    def _started(runner: Runner) -> bool:
        """Whether the actor runs; the clock of its first task starts then, not while a node is awaited."""
        if runner.starting is not None and ray.wait([runner.starting], timeout=0)[0]:
            runner.starting, runner.since = None, time.monotonic()
        return runner.starting is None

    def _replace(self, runner: Runner, *, fewer: bool = False) -> None:
        """Put a new actor in the place of one, or none if there shall be fewer; its waiting tasks go back."""
        ray.kill(runner.actor)
        place = self.runners.index(runner)
        self.schedule.forget_runner(runner.name)
        for flight in reversed(runner.queue):
            self.schedule.put_back(flight.task)
        runner.queue.clear()
        if fewer and len(self.runners) > 1:
            self.runners.pop(place)
        else:
            self.runners[place] = self._new_runner()


def _share(resources: Resources) -> tuple[float, float, int]:
    """(CPUs per actor, GPUs per actor, actors): all GPUs shared out if any, else one actor per core."""
    cluster = ray.cluster_resources()
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
    count = gpus * resources.actors_per_gpu if gpus else cpus
    if resources.max_actors is not None:
        count = min(count, resources.max_actors)
    share = 1 / resources.actors_per_gpu if gpus else 0.0
    return (min(1.0, cpus / max(1, count)) if gpus else 1.0), share, max(1, count)
