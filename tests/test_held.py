"""Tasks that need the scores of others: held back until all are done, skipped when one fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import Grid
from orchestrator.held import parents_of
from orchestrator.plan import Task, make_plan
from orchestrator.schedule import FAILURES, Schedule
from tests.conftest import grid_data
from tests.test_schedule import Cluster, drain

BASES = [Task(f"b{i}", {"kind": "base"}) for i in range(3)]
AFTER = tuple(task.id for task in BASES)
MAIN = Task("m", {"kind": "base"})
RETRAIN = Task("r", {"kind": "retrain"}, AFTER)
UNLEARN = Task("u", {"kind": "unlearn", "base": "m"}, AFTER)
OTHER = Task("o", {"kind": "unlearn", "base": "m"})
TINY = [MAIN, *BASES, RETRAIN, UNLEARN, OTHER]


def test_what_is_held_back_comes_last() -> None:
    order = drain(Schedule(TINY, {}))
    assert sorted(order) == sorted(task.id for task in TINY)
    assert max(map(order.index, AFTER)) < min(order.index("r"), order.index("u"))


def test_held_tasks_are_counted_and_keep_their_base() -> None:
    schedule = Schedule(TINY, {})
    assert schedule.total == schedule.left == len(schedule) == len(schedule.pending()) == 7
    for expected in ("m", "o", "b0", "b1"):
        task = schedule.take("one")
        assert task is not None and task.id == expected
        schedule.finish(task, "done", "one")
    assert schedule.needs("m"), "by what is held back alone"
    assert schedule.left == 3
    drain(schedule)
    assert not schedule.needs("m") and schedule.left == len(schedule) == 0


def test_one_base_that_fails_ends_all_that_needed_it() -> None:
    schedule, skipped = Schedule(TINY, {}), []
    while (task := schedule.take("one")) is not None:
        skipped += schedule.finish(task, "diverged" if task.id == "b1" else "done", "one")
    assert [(task.id, reason) for task, reason in skipped] == [
        ("r", "its base b1 is diverged"),
        ("u", "its base b1 is diverged"),
    ]
    assert schedule.left == len(schedule) == 0 and not schedule.needs("m")


def test_its_own_base_that_fails_ends_it_too() -> None:
    schedule, skipped = Schedule(TINY, {}), []
    while (task := schedule.take("one")) is not None:
        skipped += schedule.finish(task, "oom" if task.id == "m" else "done", "one")
    assert sorted((task.id, reason) for task, reason in skipped) == [
        ("o", "its base m is oom"),
        ("u", "its base m is oom"),
    ]
    assert schedule.left == len(schedule) == 0


def test_what_a_skipped_task_would_have_led_to_is_skipped_as_well() -> None:
    second = Task("v", {"kind": "unlearn", "base": "u"}, AFTER)
    schedule, skipped = Schedule([*TINY, second], {}), []
    while (task := schedule.take("one")) is not None:
        skipped += schedule.finish(task, "bug" if task.id == "b0" else "done", "one")
    assert [task.id for task, _ in skipped] == ["r", "u", "v"] and schedule.left == 0
    schedule, skipped = Schedule([*TINY, second], {}), []
    while (task := schedule.take("one")) is not None:
        skipped += schedule.finish(task, "bug" if task.id == "m" else "done", "one")
    assert [(task.id, reason) for task, reason in skipped] == [
        ("o", "its base m is bug"),
        ("u", "its base m is bug"),
        ("v", "its base u is skipped"),
    ]


def test_resumed_where_all_bases_are_done() -> None:
    done = dict.fromkeys((*AFTER, "m"), "done")
    schedule = Schedule(TINY, done)
    assert sorted(drain(schedule)) == ["o", "r", "u"] and schedule.left == 0


def test_a_base_that_had_failed_is_told_at_the_start_and_retried_if_asked() -> None:
    failed = {"b0": "done", "b1": "diverged", "b2": "done", "m": "done", "r": "skipped", "u": "skipped"}
    again = Schedule(TINY, failed)
    assert again.skipped == [] and drain(again) == ["o"], "no second row says what the first one said"
    new = Schedule(TINY, {name: status for name, status in failed.items() if status != "skipped"})
    assert sorted((task.id, reason) for task, reason in new.skipped) == [
        ("r", "its base b1 is diverged"),
        ("u", "its base b1 is diverged"),
    ]
    assert sorted(drain(Schedule(TINY, failed, retry=("diverged",)))) == ["b1", "o", "r", "u"]


def test_a_base_whose_weights_are_gone_is_trained_again_and_counted() -> None:
    """The scores of the other bases are needed, not their weights."""
    done = dict.fromkeys((*AFTER, "m", "o"), "done")
    schedule = Schedule(TINY, done, has_model=lambda _: False)
    assert sorted(drain(schedule)) == ["m", "r", "u"] and schedule.left == 0
    late = Schedule(TINY, {"m": "done", "o": "done"}, has_model=lambda _: False)
    assert late.total == 5
    assert sorted(drain(late)) == ["b0", "b1", "b2", "m", "r", "u"]
    assert (late.total, late.left) == (6, 0)


def test_a_limit_takes_the_bases_first() -> None:
    schedule = Schedule(TINY, {}, limit=5)
    assert sorted(drain(schedule)) == ["b0", "b1", "b2", "m", "r"]


# ---- random runners --------------------------------------------------------------------------------------


class Watched(Cluster):
    """A cluster in which no task is given out before all whose scores it needs are done."""

    def _start(self, schedule: Schedule, runner: str, has_model: Callable[[str], bool]) -> bool:
        started = super()._start(schedule, runner, has_model)
        if started:
            needed = self.flying[runner][-1].after
            assert all(self.status.get(base, self.recorded.get(base)) == "done" for base in needed)
        return started

    def _finish(self, schedule: Schedule, runner: str) -> None:
        task = self.flying[runner].pop(0)
        failed = self.chance.random() < self.failing
        status = self.chance.choice(FAILURES[:-1]) if failed else "done"
        self._end(task, status)
        for child, reason in schedule.finish(task, status, runner):
            assert task.id in parents_of(child) and reason == f"its base {task.id} is {status}"
            self._end(child, "skipped")

    recorded: dict[str, str]


@cache
def tasks() -> tuple[Task, ...]:
    forget = ["random", {"memorised": {"count": 5}}, {"memorised": {"count": 9}}]
    return tuple(
        make_plan(Grid.model_validate(grid_data(forget=forget, methods=["finetune", "scrub"]))).tasks
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    runners=st.integers(1, 5),
    failing=st.sampled_from([0.0, 0.02, 0.3]),
    dying=st.sampled_from([0.0, 0.2]),
    recorded=st.floats(0, 1),
)
def test_every_task_ends_once_and_none_before_what_it_needs(
    seed: int, runners: int, failing: float, dying: float, recorded: float
) -> None:
    cluster = Watched(seed, runners, failing, dying)
    chance = cluster.chance
    statuses = {
        task.id: chance.choice(["done"] * 30 + list(FAILURES[:-1]))
        for task in tasks()
        if chance.random() < recorded and task.kind == "base"
    }
    cluster.recorded = statuses
    schedule = Schedule(tasks(), statuses, has_model=statuses.__contains__)
    to_run = {task.id for task in schedule.pending()} | {task.id for task, _ in schedule.skipped}
    cluster.run(schedule, statuses.__contains__)
    assert len(schedule) == schedule.left == 0
    assert cluster.ended.keys() == to_run and set(cluster.ended.values()) <= {1}
    ends = statuses | cluster.status
    for task in tasks():
        if task.after:
            assert (ends[task.id] == "skipped") == any(
                ends[name] != "done" for name in (*task.after, *([task.base] if task.base else []))
            )
