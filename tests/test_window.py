"""How far ahead tasks are given: two of long ones, more of short ones, no more than an even share."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest

from orchestrator import window
from orchestrator.plan import Task
from orchestrator.schedule import Schedule


@dataclass
class Runner:
    name: str
    task_s: float = float("inf")
    queue: deque[Task] = field(default_factory=deque)


def filled(runners: list[Runner], tasks: int) -> list[int]:
    """How many tasks each runner is given."""
    schedule = Schedule([Task(f"r{i}", {"kind": "retrain"}) for i in range(tasks)], {})

    def feed(runner: Runner) -> bool:
        task = schedule.take(runner.name)
        runner.queue.extend([task] if task else [])
        return task is not None

    window.fill(schedule, runners, feed)
    return [len(runner.queue) for runner in runners]


@pytest.mark.parametrize(
    ("task_s", "share", "expected"),
    [
        (float("inf"), 1000, 2),  # not known yet
        (5.0, 1000, 2),
        (0.125, 1000, 2),
        (0.01, 1000, 25),  # a quarter of a second
        (0.0001, 1000, 64),
        (0.0, 1000, 64),
        (0.0001, 10, 10),  # the end is near
        (0.0001, 1, 1),
        (5.0, 1, 1),
        (5.0, 0, 1),
    ],
)
def test_depth(task_s: float, share: int, expected: int) -> None:
    assert window.depth(task_s, share) == expected


def test_a_slow_task_counts_at_once_and_fast_ones_by_and_by() -> None:
    assert window.paced(float("inf"), 3.0, 2) == 1.5
    assert window.paced(0.001, 2.0, 1) == 2.0
    assert window.paced(2.0, 1.0, 1) == 1.5


def test_the_emptiest_runner_is_filled_first() -> None:
    busy, idle = Runner("busy", queue=deque([Task("x", {})])), Runner("idle")
    assert filled([busy, idle], 1) == [1, 1]
    assert filled([Runner("one"), Runner("two")], 5) == [2, 2]
    assert filled([Runner("one"), Runner("two")], 3) == [1, 1]


def test_short_tasks_are_given_ahead_but_evenly_at_the_end() -> None:
    assert filled([Runner("fast", 0.001), Runner("slow", 9.0)], 1000) == [64, 2]
    assert filled([Runner("fast", 0.001), Runner("slow", 9.0)], 16) == [8, 2]
