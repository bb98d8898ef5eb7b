"""How many tasks an actor is given ahead. The driver and benchmarks/simulate.py share it.

Two are enough while tasks take longer than a round trip: one runs, one waits. Shorter ones are given further
ahead, a quarter of a second of work, but never more than an even share of what is left, so that at the end no
actor waits while another has a queue: the last ones may be long.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sized
from typing import Protocol, TypeVar

from orchestrator.schedule import Schedule

WINDOW = 2
DEEPEST = 64
AHEAD_S = 0.25
SMOOTHING = 0.5  # weight of the newest measurement


class Runner(Protocol):
    """What runs tasks. task_s: how long one takes, infinite before the first; queue: those it was given."""

    name: str
    task_s: float

    @property
    def queue(self) -> Sized: ...


AnyRunner = TypeVar("AnyRunner", bound=Runner)


def depth(task_s: float, share: int) -> int:
    """Tasks that an actor may have at once. share: how many are left for each actor."""
    ahead = DEEPEST if task_s * DEEPEST < AHEAD_S else int(AHEAD_S / task_s)
    return max(1, min(max(WINDOW, ahead), share))


def paced(task_s: float, seconds: float, count: int) -> float:
    """The new `task_s` of an actor that finished `count` tasks in `seconds`. Slower ones count at once."""
    newest = seconds / count
    return newest if newest > task_s or task_s == float("inf") else task_s + SMOOTHING * (newest - task_s)


def fill(
    schedule: Schedule,
    runners: Collection[AnyRunner],
    feed: Callable[[AnyRunner], bool],
    more: Callable[[int], bool] = lambda _: True,
) -> None:
    """Give tasks to the runners with room, emptiest first. feed: gives a runner one, False if there is none.
    more: whether one that has so many may get one.
    """
    share = schedule.left // max(1, len(runners))
    hungry = [
        (runner, limit) for runner in runners if len(runner.queue) < (limit := depth(runner.task_s, share))
    ]
    for filled in range(max((limit for _, limit in hungry), default=0)):
        for runner, limit in hungry:
            if len(runner.queue) == filled < limit and more(filled) and not feed(runner):
                return
