"""The schedule under random runners, failures and losses: every task ends exactly once, in a lawful order."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import Grid
from orchestrator.plan import Task, make_plan
from orchestrator.schedule import FAILURES, Schedule
from tests.conftest import grid_data


@cache
def tasks_of(seeds: int = 3, pairs: int = 4, methods: int = 3) -> tuple[Task, ...]:
    names = ["finetune", "gradient_ascent", "neggrad_plus"][:methods]
    audit = {"pairs": pairs, "forget_sets": 2} if pairs else None
    return tuple(make_plan(Grid.model_validate(grid_data(seeds=seeds, methods=names, audit=audit))).tasks)


def tiny(children: int = 2) -> tuple[Task, Task, list[Task]]:
    """A base, a retrain, and unlearn tasks that start from the base."""
    base, retrain = Task("b", {"kind": "base"}), Task("r", {"kind": "retrain"})
    return base, retrain, [Task(f"u{i}", {"kind": "unlearn", "base": "b"}) for i in range(children)]


def drain(schedule: Schedule, status: str = "done", runner: str = "one") -> list[str]:
    """Run all there is on one runner; returns ids in the order they ran."""
    order = []
    while (task := schedule.take(runner)) is not None:
        order.append(task.id)
        schedule.finish(task, status, runner)
    return order


# ---- a simulation ----------------------------------------------------------------------------------------


class Cluster:
    """Runners that take, finish, fail, die and hand back in a random order."""

    def __init__(self, seed: int, runners: int, failing: float, dying: float) -> None:
        self.chance = random.Random(seed)
        self.failing, self.dying = failing, dying
        self.flying: dict[str, list[Task]] = {f"runner-{i}": [] for i in range(runners)}
        self.made = runners
        self.ended: Counter[str] = Counter()
        self.status: dict[str, str] = {}
        self.moves: Counter[str] = Counter()
        self.last_place: dict[str, str] = {}

    def run(self, schedule: Schedule, has_model: Callable[[str], bool]) -> None:
        for task, _ in schedule.skipped:
            self._end(task, "skipped")
        while True:
            started = sum(self._start(schedule, runner, has_model) for runner in self._shuffled())
            busy = [runner for runner, queue in self.flying.items() if queue]
            if not busy and not started:
                return
            runner = self.chance.choice(busy)
            if self.chance.random() < self.dying:
                self._die(schedule, runner)
            else:
                self._finish(schedule, runner)

    def _shuffled(self) -> list[str]:
        return self.chance.sample(list(self.flying), len(self.flying))

    def _start(self, schedule: Schedule, runner: str, has_model: Callable[[str], bool]) -> bool:
        if len(self.flying[runner]) >= 2 or (task := schedule.take(runner)) is None:
            return False
        assert task.id not in self.status, "a task that has ended was given out again"
        assert all(task.id != other.id for queue in self.flying.values() for other in queue)
        if task.base is not None:
            assert self.status.get(task.base) == "done" or has_model(task.base), "no base to start from"
            if self.last_place.setdefault(task.base, runner) != runner:
                self.moves[task.base] += 1
            self.last_place[task.base] = runner
        self.flying[runner].append(task)
        return True

    def _finish(self, schedule: Schedule, runner: str) -> None:
        task = self.flying[runner].pop(0)
        failed = self.chance.random() < self.failing
        status = self.chance.choice(FAILURES[:-1]) if failed else "done"
        self._end(task, status)
        if task.base is None and status == "done":
            self.last_place[task.id] = runner
        for child, reason in schedule.finish(task, status, runner):
            assert child.base == task.id and task.id in reason and status in reason
            self._end(child, "skipped")

    def _die(self, schedule: Schedule, runner: str) -> None:
        queue = self.flying.pop(runner)
        schedule.forget_runner(runner)
        for task in reversed(queue):
            schedule.put_back(task)
        self.last_place = {base: place for base, place in self.last_place.items() if place != runner}
        self.made += 1
        self.flying[f"runner-{self.made}"] = []

    def _end(self, task: Task, status: str) -> None:
        self.ended[task.id] += 1
        self.status[task.id] = status


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    runners=st.integers(1, 7),
    failing=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dying=st.sampled_from([0.0, 0.05, 0.4]),
    recorded=st.floats(0, 1),
    kept=st.floats(0, 1),
    retry=st.sets(st.sampled_from(FAILURES)),
)
def test_every_task_ends_exactly_once_whatever_happens(
    seed: int, runners: int, failing: float, dying: float, recorded: float, kept: float, retry: set[str]
) -> None:
    chance, tasks = random.Random(seed), tasks_of()
    statuses: dict[str, str] = {}
    for task in tasks:  # an earlier run got so far
        if chance.random() < recorded and (task.base is None or task.base in statuses):
            lawful = task.base is None or statuses[task.base] == "done"
            statuses[task.id] = chance.choice(["done", "done", *FAILURES[:-1]]) if lawful else "skipped"
    models = {task.id for task in tasks if statuses.get(task.id) == "done" and chance.random() < kept}
    schedule = Schedule(tasks, statuses, retry=retry, has_model=models.__contains__)
    cluster = Cluster(seed, runners, failing, dying)
    cluster.run(schedule, models.__contains__)

    assert set(cluster.ended.values()) <= {1}
    assert len(schedule) == schedule.left == 0
    for task in tasks:
        before = statuses.get(task.id)
        ran_again = before == "done" and task.id in cluster.ended
        if ran_again:  # only for its weights, which are gone and needed
            assert task.kind == "base" and task.id not in models
            assert any(child.base == task.id and child.id in cluster.ended for child in tasks)
        if before is None:
            assert task.id in cluster.ended
        if before in FAILURES[:-1]:
            assert (task.id in cluster.ended) == (before in retry)
        if cluster.status.get(task.id) == "skipped":
            base = cluster.status.get(str(task.base), statuses.get(str(task.base)))
            assert base != "done"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), runners=st.integers(1, 6))
def test_models_rarely_move(seed: int, runners: int) -> None:
    """Unlearn tasks run where their base is; only at the end, when all is trained, may they move."""
    tasks = tasks_of(seeds=12, pairs=12)
    cluster = Cluster(seed, runners, failing=0.0, dying=0.0)
    cluster.run(Schedule(tasks, {}), lambda _: False)
    unlearn = sum(task.kind == "unlearn" for task in tasks)
    assert sum(cluster.moves.values()) <= (0 if runners == 1 else 0.25 * unlearn)


# ---- single rules ----------------------------------------------------------------------------------------


def test_bases_are_trained_first_and_children_follow_at_once_on_their_runner() -> None:
    base, retrain, children = tiny()
    assert drain(Schedule([retrain, *children, base], {})) == ["b", "u0", "u1", "r"]


def test_a_child_waits_for_its_base_and_an_idle_runner_gets_nothing() -> None:
    base, _, children = tiny()
    schedule = Schedule([base, *children], {})
    assert schedule.take("one") is base
    assert schedule.take("two") is None
    schedule.finish(base, "done", "one")
    assert schedule.take("one") is children[0]
    assert schedule.take("two") is children[1]  # nothing left to train: help, though the base has to move


def test_a_runner_prefers_training_to_taking_over_somebody_elses_children() -> None:
    base, retrain, children = tiny()
    schedule = Schedule([base, retrain, *children], {})
    schedule.take("one")
    schedule.finish(base, "done", "one")
    assert schedule.take("two") is retrain


def test_the_children_of_a_lost_runner_are_free_for_all() -> None:
    base, retrain, children = tiny()
    schedule = Schedule([base, retrain, *children], {})
    schedule.take("one")
    schedule.finish(base, "done", "one")
    taken = schedule.take("one")
    schedule.forget_runner("one")
    assert taken is not None
    schedule.put_back(taken)
    assert schedule.take("two") is children[0]  # before the retrain: nobody else holds that base now


@pytest.mark.parametrize("status", FAILURES[:-1])
def test_what_starts_from_a_base_that_failed_is_skipped_with_the_reason(status: str) -> None:
    base, _, children = tiny(3)
    schedule = Schedule([base, *children], {})
    assert schedule.take("one") is base
    assert schedule.finish(base, status, "one") == [(child, f"its base b is {status}") for child in children]
    assert schedule.left == len(schedule) == 0
    assert not schedule.needs("b")
    later = Schedule([base, *children], {"b": status})  # the driver died before it could record the skips
    assert [(task.id, reason) for task, reason in later.skipped] == [
        (child.id, f"its base b is {status}") for child in children
    ]
    assert later.take("one") is None


def test_failures_stay_until_their_kind_is_retried() -> None:
    base, retrain, children = tiny(3)
    tasks = [base, retrain, *children]
    statuses = {"b": "done", "r": "bug", "u0": "oom", "u1": "diverged", "u2": "done"}
    assert drain(Schedule(tasks, statuses)) == []
    assert drain(Schedule(tasks, statuses, retry={"oom"})) == ["u0"]
    assert sorted(drain(Schedule(tasks, statuses, retry=set(FAILURES)))) == ["r", "u0", "u1"]


def test_skipped_tasks_run_when_their_base_runs_again() -> None:
    base, _, children = tiny()
    statuses = {"b": "oom", "u0": "skipped", "u1": "skipped"}
    assert drain(Schedule([base, *children], statuses)) == []
    assert drain(Schedule([base, *children], statuses, retry={"oom"})) == ["b", "u0", "u1"]
    assert drain(Schedule([base, *children], statuses | {"b": "done"})) == ["u0", "u1"]


def test_a_base_whose_weights_are_gone_is_trained_again_if_needed_and_only_then() -> None:
    base, _, children = tiny()
    statuses = {"b": "done", "u0": "done"}
    assert drain(Schedule([base, *children], statuses, has_model=lambda _: False)) == ["b", "u1"]
    assert drain(Schedule([base, *children], statuses, has_model=lambda _: True)) == ["u1"]
    assert drain(Schedule([base, *children], statuses | {"u1": "done"}, has_model=lambda _: False)) == []


def test_a_base_whose_weights_turn_out_to_be_lost_runs_again_once_before_its_children() -> None:
    base, retrain, children = tiny(3)
    schedule = Schedule([base, retrain, *children], {"b": "done", "r": "done"})
    first, second = schedule.take("one"), schedule.take("two")
    assert (first, second) == (children[0], children[1]) and (schedule.total, schedule.left) == (3, 3)
    schedule.make_again(children[0])
    schedule.make_again(children[1])  # taken at the same time
    assert (schedule.total, schedule.left, len(schedule)) == (4, 4, 4)
    assert schedule.take("one") == base and schedule.take("two") is None
    assert schedule.finish(base, "done", "one") == []
    assert sorted(drain(schedule)) == ["u0", "u1", "u2"]
    assert (schedule.left, len(schedule)) == (0, 0) and not schedule.needs("b")


def test_a_base_that_fails_when_it_is_made_again_takes_its_children_with_it() -> None:
    base, retrain, children = tiny(2)
    schedule = Schedule([base, retrain, *children], {"b": "done", "r": "done"})
    task = schedule.take("one")
    assert task is not None
    schedule.make_again(task)
    again = schedule.take("one")
    assert again == base
    assert {lost.id for lost, _ in schedule.finish(base, "diverged", "one")} == {"u0", "u1"}
    assert (schedule.left, len(schedule)) == (0, 0)


def test_a_child_may_end_after_its_base_failed_to_be_made_again() -> None:
    base, retrain, children = tiny(3)
    schedule = Schedule([base, retrain, *children], {"b": "done", "r": "done"})
    running, task = schedule.take("one"), schedule.take("two")
    assert running is not None and task is not None
    schedule.make_again(task)
    assert schedule.take("two") == base
    assert {lost.id for lost, _ in schedule.finish(base, "oom", "two")} == {"u1", "u2"}
    assert schedule.needs("b") and schedule.finish(running, "done", "one") == []
    assert (schedule.left, len(schedule)) == (0, 0) and not schedule.needs("b")


def test_a_base_is_needed_until_its_last_child_has_ended() -> None:
    base, _, children = tiny()
    schedule = Schedule([base, *children], {})
    for task in (base, *children):
        assert schedule.needs("b")
        assert schedule.take("one") is task
        schedule.finish(task, "bug" if task is children[0] else "done", "one")
    assert not schedule.needs("b")


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_a_limit_runs_that_many_and_keeps_what_later_runs_need(limit: int) -> None:
    tasks = tasks_of(seeds=2, pairs=0)
    schedule = Schedule(tasks, {}, limit=limit)
    assert len(schedule) == schedule.total == min(limit, len(tasks))
    done = drain(schedule)
    assert set(done) == {task.id for task in tasks[:limit]}
    for base in (task.id for task in tasks if task.kind == "base" and task.id in done):
        open_children = any(task.base == base and task.id not in done for task in tasks)
        assert schedule.needs(base) == open_children


def test_limited_runs_one_after_the_other_do_everything_once() -> None:
    tasks, statuses, models = tasks_of(seeds=2, pairs=0), {}, set[str]()
    ran: list[str] = []
    while len(statuses) < len(tasks):
        schedule = Schedule(tasks, statuses, has_model=models.__contains__, limit=1)
        (done,) = drain(schedule)
        ran.append(done)
        statuses[done] = "done"
        models = {task.id for task in tasks if task.id in statuses and schedule.needs(task.id)} | {
            base for base in models | {done} if schedule.needs(base)
        }
    assert Counter(ran) == Counter(task.id for task in tasks)


def test_length_counts_what_nobody_has_taken_and_left_what_has_not_ended() -> None:
    base, retrain, children = tiny()
    schedule = Schedule([base, retrain, *children], {})
    assert (len(schedule), schedule.left, schedule.total) == (4, 4, 4)
    taken = schedule.take("one")
    assert (len(schedule), schedule.left) == (3, 4)
    assert taken is not None
    schedule.put_back(taken)
    assert (len(schedule), schedule.left) == (4, 4)
    assert schedule.take("one") is taken
    schedule.finish(taken, "done", "one")
    assert (len(schedule), schedule.left, schedule.total) == (3, 3, 4)


def test_taking_stays_cheap_when_there_are_many_bases() -> None:
    """CPU time per task may not grow with the number of bases: a grid of 100,000 models has thousands."""

    def seconds(bases: int, limit: int | None = None) -> float:
        tasks = [Task(f"b{i}", {"kind": "base"}) for i in range(bases)]
        tasks += [
            Task(f"u{i}.{j}", {"kind": "unlearn", "base": f"b{i}"}) for i in range(bases) for j in (0, 1)
        ]
        started = time.process_time()
        schedule = Schedule(tasks, {}, limit=limit)
        while schedule.left:
            taken = {runner: schedule.take(runner) for runner in map(str, range(8))}
            for runner, task in taken.items():
                if task is not None:
                    schedule.finish(task, "done", runner)
        return (time.process_time() - started) / len(tasks)

    assert min(seconds(3000) for _ in range(3)) < 3 * min(seconds(300) for _ in range(5))
    assert min(seconds(3000, 100) for _ in range(3)) < 3 * min(seconds(300, 100) for _ in range(5))


def test_resumed_bases_are_shared_out_one_to_a_runner() -> None:
    """Two bases whose children are left: each runner loads one of them, not both."""
    tasks = [Task(base, {"kind": "base"}) for base in ("b", "c")]
    tasks += [Task(f"{base}{i}", {"kind": "unlearn", "base": base}) for base in ("b", "c") for i in range(3)]
    schedule = Schedule(tasks, {"b": "done", "c": "done"})
    taken = [(schedule.take("one"), schedule.take("two")) for _ in range(3)]
    assert [(one and one.id, two and two.id) for one, two in taken] == [
        ("b0", "c0"),
        ("b1", "c1"),
        ("b2", "c2"),
    ]
