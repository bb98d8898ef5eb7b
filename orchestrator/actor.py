"""A worker as a Ray actor, and what the driver knows of one."""

from __future__ import annotations

import pickle
import time
from collections import deque
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice, takewhile
from typing import Any

import ray

from orchestrator import cluster, last_words
from orchestrator.plan import Task


class Actor:
    """A worker, by its MODULE:CLASS, which is imported where the actor runs, so that the driver needs no
    torch; further arguments are the worker's own.

    Tasks and outcomes travel as bytes: Ray would pickle them too, in a way that takes six times as long. Ray
    keeps no events of them: it forgets all but the last 10,000 anyway, and the ledger knows.
    """

    def __init__(self, worker: str, *arguments: Any, **options: Any) -> None:
        module, _, name = worker.partition(":")
        self.worker = getattr(import_module(module), name)(*arguments, **options)

    @ray.method(enable_task_events=False)  # type: ignore[untyped-decorator]
    def run(self, task: bytes, weights: bytes | None = None) -> bytes:
        return pickle.dumps(self.worker.run(pickle.loads(task), weights), pickle.HIGHEST_PROTOCOL)

    @ray.method(num_returns=2, enable_task_events=False)  # type: ignore[untyped-decorator]
    def run_apart(self, task: bytes, weights: bytes | None = None) -> tuple[bytes, bytes | None]:
        """The outcome and, apart, so that they stay in the object store, the weights it leaves."""
        outcome = self.worker.run(pickle.loads(task), weights)
        weights, outcome.weights = outcome.weights, None
        return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL), weights

    def introduce(self) -> last_words.Place:
        return last_words.introduce()

    def memory_mib(self) -> float:
        return float(self.worker.memory_mib())

    def arrays(self, dataset: str) -> Any:
        return self.worker.arrays(dataset)

    def receive(self, dataset: str, arrays: Any) -> None:
        self.worker.receive(dataset, arrays)

    def samples(self, dataset: str) -> dict[str, Any]:
        return dict(self.worker.samples(dataset))

    def duplicates(self, dataset: str) -> dict[str, Any]:
        return dict(self.worker.duplicates(dataset))

    def try_out(self, architecture: str, dataset: str) -> str:
        return str(self.worker.try_out(architecture, dataset))


@dataclass
class InFlight:
    """A task given to an actor, with the references of its outcome and of the weights it leaves, if any."""

    task: Task
    outcome: Any
    weights: Any


@dataclass
class Runner:
    """An actor and what it was given; the first in the queue is the one that runs."""

    name: str
    actor: Any
    introduced: Any  # a reference of where it runs, there before `starting`
    starting: Any  # a reference that is there once the actor has started; None from then on
    share: cluster.Share
    place: last_words.Place = field(default_factory=dict)
    queue: deque[InFlight] = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)  # the first in the queue is so, or it is empty
    task_s: float = float("inf")  # how long its tasks take
    datasets: set[str] = field(default_factory=set)  # those whose bytes it was sent

    def middle(self) -> Any:
        """What to wait for of an actor that has tasks or is about to start: tasks end in order."""
        return self.queue[(len(self.queue) - 1) // 2].outcome if self.queue else self.starting

    def ended(self) -> list[InFlight]:
        """The first tasks of the queue up to one that has not ended; the first has."""
        if len(self.queue) == 1:
            return list(self.queue)
        references = [flight.outcome for flight in self.queue]
        ready = set(ray.wait(references, num_returns=len(references), timeout=0)[0])
        behind = islice(self.queue, 1, None)
        return [self.queue[0], *takewhile(lambda flight: flight.outcome in ready, behind)]
