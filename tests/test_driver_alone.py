"""Decisions of the driver at moments that real clusters meet seldom, on a made-up Ray."""

from __future__ import annotations

import pickle
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.exceptions import OutOfMemoryError, RayActorError

from orchestrator import actor as actors
from orchestrator import driver as drivers
from orchestrator.actor import InFlight, Runner
from orchestrator.cluster import Resources, Share
from orchestrator.errors import UserError
from orchestrator.plan import Task
from orchestrator.schedule import Schedule
from workers.outcome import Outcome


class Ray:
    """References are words; `ready` has what stands behind those that are there."""

    def __init__(self) -> None:
        self.ready: dict[str, Any] = {}

    def wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        there = [reference for reference in references if reference in self.ready]
        return there[:num_returns], [r for r in references if r not in there[:num_returns]]

    def get(self, references: Any) -> Any:
        found = [self.ready[r] for r in ([references] if isinstance(references, str) else references)]
        for value in found:
            if isinstance(value, Exception):
                raise value
        return found[0] if isinstance(references, str) else found

    def kill(self, _: Any) -> None: ...


class Session:
    """Notes how tasks end."""

    def __init__(self, tasks: list[Task]) -> None:
        self.plan = SimpleNamespace(grid=SimpleNamespace(datasets=[]))
        self.schedule, self.ended = Schedule(tasks, {}), dict[str, str]()
        self.events = SimpleNamespace(actor=lambda *_, **__: None, trouble=lambda *_: None)
        self.progress = SimpleNamespace(retries=0)

    def finished(self, task: Task, outcome: Any, runner: str, retries: int) -> None:
        self.ended[task.id] = outcome.status
        self.schedule.finish(task, outcome.status, runner)

    def failed(self, task: Task, status: str, reason: str, runner: str, *_: object) -> None:
        self.finished(task, SimpleNamespace(status=status), runner, 0)


class Driver(drivers._Driver):
    def _new_runner(self) -> Runner:
        self.made += 1
        name = f"actor-{self.made}"
        return Runner(name, None, "", f"{name} starts", self.share)

    def started(self) -> Runner:
        """An actor that works."""
        self.runners.append(runner := self._new_runner())
        runner.starting, runner.since = None, time.monotonic()
        return runner

    def give(self, runner: Runner, count: int) -> None:
        for _ in range(count):
            task = self.schedule.take(runner.name)
            assert task is not None
            runner.queue.append(InFlight(task, {}, outcome=f"outcome of {task.id}"))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray()
    for module in (drivers, actors):
        for name in ("wait", "get", "kill"):
            monkeypatch.setattr(module.ray, name, getattr(ray, name))
    monkeypatch.setattr(drivers.cluster, "share", lambda *_: Share(1, 0))
    monkeypatch.setattr(drivers, "POLL_S", 0.0)
    return ray


def driver_of(tasks: int, time_limit_s: float = 3600.0) -> Driver:
    session = Session([Task(f"t{i}", {"kind": "retrain"}) for i in range(tasks)])
    return Driver(session, "", Resources(time_limit_s=time_limit_s), "a:b")  # type: ignore[arg-type]


def ends(ray: Ray, *tasks: str) -> None:
    for task in tasks:
        ray.ready[f"outcome of {task}"] = pickle.dumps([Outcome(task, "done")])


def test_what_ended_before_a_long_task_is_recorded_and_not_overdue(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle of a queue is waited for, and other actors always have something."""
    driver = driver_of(20, time_limit_s=10.0)
    slow, quick = driver.started(), driver.started()
    driver.give(slow, 3)  # the second takes long
    ends(ray, "t0")
    now = time.monotonic()
    for second in range(9):
        monkeypatch.setattr(time, "monotonic", lambda second=second: now + 1.0 + second)
        driver.give(quick, 1)
        ends(ray, f"t{3 + second}")
        driver._collect()
        driver._stop_overdue()
    assert driver.session.ended == {"t0": "done"} | {f"t{3 + i}": "done" for i in range(9)}
    assert slow in driver.runners and [flight.task.id for flight in slow.queue] == ["t1", "t2"]
    monkeypatch.setattr(time, "monotonic", lambda: now + 12.0)
    driver._stop_overdue()
    assert driver.session.ended["t1"] == "timeout" and driver.session.ended["t0"] == "done"
    assert slow not in driver.runners


def test_a_node_that_goes_with_many_starting_actors_counts_once(ray: Ray) -> None:
    driver = driver_of(20)
    driver.runners = [driver._new_runner() for _ in range(8)]
    ray.ready = {runner.starting: RayActorError() for runner in driver.runners}
    driver._collect()
    assert driver.unstarted == 1 and len(driver.runners) == 8
    assert not any(runner.starting in ray.ready for runner in driver.runners)


def test_actors_that_never_start_end_a_run_in_which_none_works(ray: Ray) -> None:
    driver = driver_of(20)
    driver.runners = [driver._new_runner() for _ in range(2)]
    with pytest.raises(UserError, match="a worker could not start"):
        for _ in range(drivers.START_RETRIES + 1):
            ray.ready |= {runner.starting: RayActorError() for runner in driver.runners}
            driver._collect()
    assert driver.made == 2 * (drivers.START_RETRIES + 1)


def test_a_node_on_which_no_actor_starts_ends_no_run_in_which_others_work(ray: Ray) -> None:
    driver = driver_of(20)
    works = driver.started()
    driver.give(works, 1)
    driver.runners.append(driver._new_runner())
    for _ in range(drivers.START_RETRIES + 1):
        ray.ready |= {r.starting: RayActorError() for r in driver.runners if r.starting is not None}
        driver._collect()
    assert driver.runners == [works] and driver.made == 2 + drivers.START_RETRIES


def test_where_a_task_has_too_little_of_a_gpu_fewer_share_one(ray: Ray) -> None:
    """Eight, four, two, one; then the GPU is too small, and the task has its two retries before it fails."""
    driver = driver_of(20)
    driver.share = Share(0, 1 / 8)
    shares = []
    while "t0" not in driver.session.ended:
        driver.runners.clear()
        runner, _ = driver.started(), driver.started()
        shares.append(round(1 / runner.share.gpus))
        driver.give(runner, 1)
        ray.ready["outcome of t0"] = pickle.dumps([Outcome("t0", "oom")])
        driver._collect()
    assert shares == [8, 4, 2, 1, 1, 1] and driver.session.ended == {"t0": "oom"}


@pytest.mark.parametrize(("share", "left"), [(Share(0, 1), 3), (Share(1, 0), 2)])
def test_a_task_for_which_a_whole_gpu_is_too_small_costs_no_actor(ray: Ray, share: Share, left: int) -> None:
    driver = driver_of(20)
    driver.share = share
    runner, _, _ = driver.started(), driver.started(), driver.started()
    driver.give(runner, 1)
    ray.ready["outcome of t0"] = pickle.dumps([Outcome("t0", "oom")])
    driver._collect()
    assert len(driver.runners) == left and driver.fewer == 3 - left and runner not in driver.runners
    assert driver.oom == {"t0": 1} and driver.schedule.take("any").id == "t0"  # type: ignore[union-attr]


def test_an_actor_that_went_for_want_of_memory_comes_back_after_a_while(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(Share, "room", lambda _: 3)
    monkeypatch.setattr(drivers.cluster, "ask_for", lambda *_: None)
    driver = driver_of(20)
    runner, _, _ = driver.started(), driver.started(), driver.started()
    driver.give(runner, 1)
    ray.ready["outcome of t0"] = pickle.dumps([Outcome("t0", "oom")])
    driver._collect()
    for later, count in ((drivers.REGROW_S - 1, 2), (drivers.REGROW_S + 1, 3), (10 * drivers.REGROW_S, 3)):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        driver._scale()
        assert len(driver.runners) == count, later


def test_what_ended_behind_a_task_without_memory_in_one_call_is_kept(ray: Ray) -> None:
    """Two of four tasks of a call run out of memory: the others are done, these run again elsewhere."""
    driver = driver_of(20)
    runner, _, _ = driver.started(), driver.started(), driver.started()
    driver.give(runner, 5)
    for place, flight in enumerate(list(runner.queue)[:4]):
        flight.outcome, flight.place, flight.company = "call", place, 4
    statuses = ("done", "oom", "done", "oom")
    ray.ready["call"] = pickle.dumps([Outcome(f"t{i}", status) for i, status in enumerate(statuses)])
    driver._collect()
    assert driver.session.ended == {"t0": "done", "t2": "done"}
    assert len(driver.runners) == 2 and runner not in driver.runners and driver.oom == {"t1": 1}
    again = {driver.schedule.take("any").id for _ in range(3)}  # type: ignore[union-attr]
    assert again == {"t1", "t3", "t4"}


def test_a_call_of_several_lost_for_want_of_memory_costs_an_actor_and_no_retry(ray: Ray) -> None:
    driver = driver_of(20)
    runner, _ = driver.started(), driver.started()
    driver.give(runner, 4)
    for place, flight in enumerate(runner.queue):
        flight.outcome, flight.place, flight.company = "call", place, 4
    ray.ready["call"] = OutOfMemoryError("made up")
    driver._collect()
    assert driver.alone == {"t0", "t1", "t2", "t3"} and not driver.oom and not driver.session.ended
    assert driver.fewer == 1 and len(driver.runners) == 1 and runner not in driver.runners


class Called:
    """An actor that notes the calls it gets; the reference of a call is its number."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Any], tuple[str, ...]]] = []
        self.run = SimpleNamespace(remote=lambda *call: self._note("run", call))
        self.run_apart = SimpleNamespace(
            remote=lambda *call: (self._note("run_apart", call), "weights it left")
        )

    def _note(self, method: str, call: tuple[Any, ...]) -> str:
        self.calls.append((method, pickle.loads(call[0]), call[1:]))
        return f"call {len(self.calls) - 1}"


def fed(runner: Runner, tasks: list[Task], bases: dict[str, str]) -> None:
    for task in tasks:
        runner.queue.append(InFlight(task, {"id": task.id}, bases.get(str(task.base))))


def unlearn(number: int, base: str) -> Task:
    return Task(f"u{number}", {"kind": "unlearn", "base": base})


def test_a_quarter_of_a_deep_queue_travels_in_one_call_with_each_base_once() -> None:
    actor = Called()
    runner = Runner("actor-1", actor, "", None, Share(1, 0))
    fed(
        runner,
        [unlearn(i, "a" if i < 3 else "b") for i in range(16)],
        {"a": "weights of a", "b": "weights of b"},
    )
    runner.send(alone=())
    assert [len(pairs) for _, pairs, _ in actor.calls] == [4, 4, 4, 4]
    method, pairs, bases = actor.calls[0]
    assert method == "run" and bases == ("weights of a", "weights of b")
    assert pairs == [({"id": "u0"}, 0), ({"id": "u1"}, 0), ({"id": "u2"}, 0), ({"id": "u3"}, 1)]
    assert [(f.outcome, f.place, f.company) for f in runner.queue][3:5] == [
        ("call 0", 3, 4),
        ("call 1", 0, 4),
    ]
    fed(runner, [unlearn(16, "b")], {"b": "weights of b"})
    runner.send(alone=())
    assert len(actor.calls) == 5 and actor.calls[4][1] == [({"id": "u16"}, 0)]


def test_tasks_of_a_short_queue_travel_alone_and_so_do_those_that_leave_weights_or_were_lost() -> None:
    actor = Called()
    runner = Runner("actor-1", actor, "", None, Share(1, 0))
    fed(runner, [Task(f"t{i}", {"kind": "retrain"}) for i in range(7)], {})
    runner.send(alone=())
    assert [len(pairs) for _, pairs, _ in actor.calls] == [1] * 7
    actor.calls.clear()
    runner.queue.clear()
    fed(runner, [Task(f"t{i}", {"kind": "base" if i == 5 else "retrain"}) for i in range(16)], {})
    runner.send(alone={"t2"})
    assert [(method, [p["id"] for p, _ in pairs]) for method, pairs, _ in actor.calls] == [
        ("run", ["t0", "t1"]),
        ("run", ["t2"]),
        ("run", ["t3", "t4"]),
        ("run_apart", ["t5"]),
        ("run", ["t6", "t7", "t8", "t9"]),
        ("run", ["t10", "t11", "t12", "t13"]),
        ("run", ["t14", "t15"]),
    ]
    assert runner.queue[5].weights == "weights it left"
