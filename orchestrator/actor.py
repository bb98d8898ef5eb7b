"""A worker as a Ray actor, and what the driver knows of one."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice, takewhile
from typing import Any

import ray

from orchestrator import cluster, last_words
from orchestrator.plan import Task

PARTS = 4  # a queue is sent in at least so many calls, so that outcomes come while others run


class Actor:
    """A worker, by its MODULE:CLASS, which is imported where the actor runs, so that the driver needs no
    torch; further arguments are the worker's own.

    Tasks and outcomes travel as bytes: Ray would pickle them too, which takes six times as long. Short tasks
    travel together, since a call takes longer than they do. Ray keeps no events of them: it forgets
    all but the last 10,000 anyway, and the ledger knows.
    """

    def __init__(self, worker: str, *arguments: Any, **options: Any) -> None:
        module, _, name = worker.partition(":")
        self.worker = getattr(import_module(module), name)(*arguments, **options)

    @ray.method(enable_task_events=False)  # type: ignore[untyped-decorator]
    def run(self, tasks: bytes, *weights: bytes) -> bytes:
        """The outcomes of tasks, in order. tasks: pairs of a payload and the place of its weights, if any."""
        return pickle.dumps(self._outcomes(tasks, weights), pickle.HIGHEST_PROTOCOL)

    @ray.method(num_returns=2, enable_task_events=False)  # type: ignore[untyped-decorator]
    def run_apart(self, tasks: bytes, *weights: bytes) -> tuple[bytes, bytes | None]:
        """Of one task the outcome, as `run` has it, and, apart, so that they stay in the object store, the
        weights it leaves.
        """
        [outcome] = self._outcomes(tasks, weights)
        left, outcome.weights = outcome.weights, None
        return pickle.dumps([outcome], pickle.HIGHEST_PROTOCOL), left

    def _outcomes(self, tasks: bytes, weights: tuple[bytes, ...]) -> list[Any]:
        pairs = pickle.loads(tasks)
        return [self.worker.run(task, None if at is None else weights[at]) for task, at in pairs]

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
    """A task for an actor, what it gets of it, and a reference of the weights it starts from, if any.

    Once it is sent: the reference of the outcomes it comes with, which of them is its own, how many they are,
    and a reference of the weights it leaves, if any.
    """

    task: Task
    payload: dict[str, Any]
    base: Any = None
    outcome: Any = None
    place: int = 0
    company: int = 1
    weights: Any = None


def outcomes(flights: list[InFlight]) -> list[Any]:
    """The outcome of each task; RayError if one is lost."""
    calls = list(dict.fromkeys(flight.outcome for flight in flights))
    found = dict(zip(calls, map(pickle.loads, ray.get(calls)), strict=True))
    return [found[flight.outcome][flight.place] for flight in flights]


def _apart(flight: InFlight, alone: Container[str]) -> bool:
    return flight.task.leaves_model or flight.task.id in alone


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

    def send(self, alone: Container[str]) -> None:
        """Send the actor what waits in the queue; of many short tasks, which make it deep, some together.
        alone: ids of tasks that do not travel with others, as those do not whose weights travel apart.
        """
        waiting = deque(flight for flight in self.queue if flight.outcome is None)
        while waiting:
            flights = [waiting.popleft()]
            if not _apart(flights[0], alone):
                most = len(self.queue) // PARTS - 1
                others = list(
                    takewhile(lambda flight: not _apart(flight, alone), islice(waiting, max(0, most)))
                )
                flights += [waiting.popleft() for _ in others]
            self._call(flights)

    def _call(self, flights: list[InFlight]) -> None:
        bases = list(dict.fromkeys(flight.base for flight in flights if flight.base is not None))
        places = [None if flight.base is None else bases.index(flight.base) for flight in flights]
        pairs = [(flight.payload, place) for flight, place in zip(flights, places, strict=True)]
        tasks = pickle.dumps(pairs, pickle.HIGHEST_PROTOCOL)
        if flights[0].task.leaves_model:
            flights[0].outcome, flights[0].weights = self.actor.run_apart.remote(tasks, *bases)
            return
        outcome = self.actor.run.remote(tasks, *bases)
        for place, flight in enumerate(flights):
            flight.outcome, flight.place, flight.company = outcome, place, len(flights)

    def middle(self) -> Any:
        """What to wait for of an actor that has tasks or is about to start: tasks end in order."""
        return self.queue[(len(self.queue) - 1) // 2].outcome if self.queue else self.starting

    def ended(self) -> list[InFlight]:
        """The first tasks of the queue up to one that has not ended; the first has."""
        if len(self.queue) == 1:
            return list(self.queue)
        references = list(dict.fromkeys(flight.outcome for flight in self.queue))
        ready = set(ray.wait(references, num_returns=len(references), timeout=0)[0])
        behind = islice(self.queue, 1, None)
        return [self.queue[0], *takewhile(lambda flight: flight.outcome in ready, behind)]
