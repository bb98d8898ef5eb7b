"""What a large cluster would do, event by event: python -m benchmarks.simulate [--results DIR]

The schedule and the window are those of the driver (orchestrator/schedule.py, window.py); actors, their tasks
and the driver's time are simulated. The driver is one server: each task costs it `give_s` and `take_s`, each
pass over the actors `pass_s` for each actor, and what it does not take at once waits. An outcome is seen
`latency_s` after its task ended, a task is there `latency_s` after it was given.

Tasks take what runs of the same kind and method took in --results (at random, with replacement, scaled so
that all take --task-s in the mean); without it each takes --task-s. The driver's time per task is one over
--driver-tasks-per-s, by default what `lethe bench driver` found while each task was a call of its own, as
those of seconds are, and the actors ran on the same cores: it is rather less on a node of its own. The last
line printed is JSON:

    nodes, gpus, tasks, task_s, seconds (simulated), tasks_per_s
    busy_min, busy_mean     of the GPUs, from the start to the last end
    steady_min, steady_mean until the first GPU found nothing left to do
    driver_busy             share of the time in which the driver worked
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator import window
from orchestrator.bench_driver import grid_of
from orchestrator.config import Grid
from orchestrator.driver import FEW, POLL_S
from orchestrator.plan import Task, make_plan
from orchestrator.schedule import Schedule
from orchestrator.store import Store

DRIVER_TASKS_PER_S = 926.0


@dataclass(frozen=True)
class Costs:
    """Seconds of the driver and of the network; see above."""

    give_s: float = 0.0
    take_s: float = 0.0
    pass_s: float = 0.0
    latency_s: float = 0.0


@dataclass
class Actor:
    """A simulated actor: what window.fill asks of a runner, and when it worked."""

    name: str
    queue: deque[Task] = field(default_factory=deque)
    task_s: float = float("inf")
    since: float = 0.0
    free_at: float = 0.0
    worked: list[tuple[float, float]] = field(default_factory=list)


class Simulation:
    """One run of a schedule on so many actors."""

    def __init__(
        self, schedule: Schedule, actors: int, duration: Callable[[Task], float], costs: Costs
    ) -> None:
        self.schedule, self.duration, self.costs = schedule, duration, costs
        self.actors = [Actor(f"actor-{i}") for i in range(actors)]
        self.now = self.driver_s = 0.0
        self.seen: list[tuple[float, int, Actor]] = []  # when the driver may see an outcome; a heap
        self.given = 0
        self.dry_at: float | None = None  # when an actor first had nothing to do

    def run(self) -> None:
        while True:
            window.fill(self.schedule, self.actors, self._feed)
            if not self.seen:
                return
            if self.dry_at is None and self.given >= len(self.actors):
                self._look_for_idle()
            self._collect()

    def _feed(self, actor: Actor) -> bool:
        task = self.schedule.take(actor.name)
        if task is not None:
            self._give(actor, task)
        return task is not None

    def _give(self, actor: Actor, task: Task) -> None:
        self._spend(self.costs.give_s)
        actor.since = actor.since if actor.queue else self.now
        actor.queue.append(task)
        begin = max(actor.free_at, self.now + self.costs.latency_s)
        actor.free_at = begin + self.duration(task)
        actor.worked.append((begin, actor.free_at))
        self.given += 1
        heapq.heappush(self.seen, (actor.free_at + self.costs.latency_s, self.given, actor))

    def _collect(self) -> None:
        """Wait as the driver does, for the first outcome or a few of many, and take those that are there."""
        busy = sum(bool(actor.queue) for actor in self.actors)
        if self.seen[0][0] > self.now:
            few = heapq.nsmallest(1 + busy // FEW, self.seen)[-1][0]
            self.now = max(self.seen[0][0], min(few, self.now + POLL_S))
        self._spend(self.costs.pass_s * len(self.actors))
        taken: dict[int, list[Actor]] = {}
        while self.seen and self.seen[0][0] <= self.now:
            _, _, actor = heapq.heappop(self.seen)
            taken.setdefault(id(actor), []).append(actor)
        for actor, *more in taken.values():
            count = 1 + len(more)
            actor.task_s = window.paced(actor.task_s, self.now - actor.since, count)
            actor.since = self.now
            for _ in range(count):
                self._spend(self.costs.take_s)
                self.schedule.finish(actor.queue.popleft(), "done", actor.name)

    def _spend(self, seconds: float) -> None:
        self.now += seconds
        self.driver_s += seconds

    def _look_for_idle(self) -> None:
        if any(not actor.queue for actor in self.actors):
            self.dry_at = self.now

    def shares(self, until: float | None = None) -> list[float]:
        """The share of the time in which each actor worked, up to the last end or a moment."""
        end = until if until is not None else max(actor.free_at for actor in self.actors)
        spent = (sum(max(0.0, min(b, end) - min(a, end)) for a, b in actor.worked) for actor in self.actors)
        return [seconds / end for seconds in spent]


def measured(results: str, mean_s: float) -> Callable[[Task], float]:
    """A random duration from finished runs of the same kind and method, scaled to a mean over all of them."""
    rows = Store.open(results).runs(["kind", "method", "status", "wall_s", "evaluate_s"]).to_pylist()
    known: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["status"] == "done":
            seconds = row["wall_s"] + row["evaluate_s"]
            known.setdefault((row["kind"], row["method"]), []).append(seconds)
    every = [seconds for group in known.values() for seconds in group]
    scale, chance = mean_s * len(every) / sum(every), random.Random(0)

    def duration(task: Task) -> float:
        columns = task.columns()
        return scale * chance.choice(known.get((columns["kind"], columns["method"]), every))

    return duration


def simulate(
    tasks: Iterable[Task], actors: int, duration: Callable[[Task], float], costs: Costs
) -> dict[str, Any]:
    """Run tasks on simulated actors; the keys are explained above."""
    tasks = list(tasks)
    found = Simulation(Schedule(tasks, {}), actors, duration, costs)
    found.run()
    end = max(actor.free_at for actor in found.actors)
    whole, steady = found.shares(), found.shares(found.dry_at)
    facts = {"tasks": len(tasks), "seconds": end, "tasks_per_s": len(tasks) / end}
    for name, shares in (("busy", whole), ("steady", steady)):
        facts |= {f"{name}_min": min(shares), f"{name}_mean": sum(shares) / len(shares)}
    return facts | {"driver_busy": found.driver_s / end}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--task-s", type=float, default=5.0)
    parser.add_argument("--results", help="a results folder to draw durations from")
    parser.add_argument("--driver-tasks-per-s", type=float, default=DRIVER_TASKS_PER_S)
    parser.add_argument("--pass-us", type=float, default=3.0, help="µs of a pass for each actor")
    parser.add_argument("--latency-s", type=float, default=0.005)
    given = parser.parse_args()
    rate = given.driver_tasks_per_s
    costs = Costs(0.5 / rate, 0.5 / rate, given.pass_us * 1e-6, given.latency_s)
    duration = measured(given.results, given.task_s) if given.results else lambda _: given.task_s
    plan = make_plan(Grid.model_validate(grid_of(given.tasks)))
    found = simulate(plan.tasks, given.nodes * given.gpus, duration, costs)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
    print(json.dumps({"nodes": given.nodes, "gpus": given.gpus, "task_s": given.task_s, **rounded}))


if __name__ == "__main__":
    main()
