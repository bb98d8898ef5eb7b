"""Tasks that a schedule is given while it runs: as tuning asks for them."""

from __future__ import annotations

import pytest

from orchestrator.plan import Task
from orchestrator.schedule import Schedule

BASE, RETRAIN = Task("b", {"kind": "base"}), Task("r", {"kind": "retrain"})
CHILDREN = [Task(f"u{i}", {"kind": "unlearn", "base": "b"}) for i in range(3)]


def drain(schedule: Schedule) -> list[str]:
    order = []
    while (task := schedule.take("one")) is not None:
        order.append(task.id)
        schedule.finish(task, "done", "one")
    return order


def counts(schedule: Schedule) -> tuple[int, int, int]:
    return schedule.total, schedule.left, len(schedule)


def test_to_an_empty_schedule() -> None:
    schedule = Schedule([], {})
    assert schedule.take("one") is None
    assert schedule.add([BASE, RETRAIN, CHILDREN[0]]) == []
    assert counts(schedule) == (3, 3, 3)
    assert set(drain(schedule)) == {"b", "r", "u0"}
    assert counts(schedule) == (3, 0, 0)


def test_while_its_base_waits_or_is_in_training() -> None:
    schedule = Schedule([BASE], {})
    assert schedule.add([CHILDREN[0]]) == []  # the base waits for a runner
    base = schedule.take("one")
    assert base == BASE
    assert schedule.add([CHILDREN[1]]) == []  # it is being trained, and only the schedule knows
    assert schedule.take("two") is None  # neither runs before its base
    schedule.finish(base, "done", "one")
    assert drain(schedule) == ["u0", "u1"]
    assert counts(schedule) == (3, 0, 0)


def test_with_a_base_that_is_done_it_runs_at_once_and_the_base_is_needed_again() -> None:
    schedule = Schedule([BASE, CHILDREN[0]], {})
    assert drain(schedule) == ["b", "u0"]
    assert not schedule.needs("b")
    assert schedule.add([CHILDREN[1]]) == []
    assert schedule.needs("b")
    assert counts(schedule) == (3, 1, 1)
    assert drain(schedule) == ["u1"]
    assert not schedule.needs("b")


@pytest.mark.parametrize("known", [True, False])
def test_with_a_base_of_the_ledger(known: bool) -> None:
    schedule = Schedule([BASE], {"b": "done"}, has_model=lambda _: known)
    assert schedule.add([CHILDREN[0], CHILDREN[1]]) == []
    assert drain(schedule) == (["u0", "u1"] if known else ["b", "u0", "u1"])  # gone: trained again, once
    assert schedule.left == 0


def test_with_a_base_that_only_the_ledger_knows() -> None:
    """Bases of tuning that was finished: their weights are gone, and another method needs them."""
    schedule = Schedule([], {"b": "done"}, has_model=lambda _: False)
    assert schedule.add([CHILDREN[0]], [BASE]) == []
    base = schedule.take("one")
    assert base == BASE
    assert schedule.add([CHILDREN[1]], [BASE]) == []  # it is being made already
    assert schedule.take("two") is None
    schedule.finish(base, "done", "one")
    assert schedule.add([CHILDREN[2]], [BASE]) == []
    assert drain(schedule) == ["u0", "u1", "u2"]
    assert counts(schedule) == (4, 0, 0)


def test_with_a_base_that_failed_it_cannot_run() -> None:
    schedule = Schedule([BASE, CHILDREN[0]], {})
    base = schedule.take("one")
    assert base is not None
    assert [task.id for task, _ in schedule.finish(base, "diverged", "one")] == ["u0"]
    lost = schedule.add([CHILDREN[1], RETRAIN])
    assert [(task.id, reason) for task, reason in lost] == [("u1", "its base b is diverged")]
    assert drain(schedule) == ["r"]
    assert schedule.left == 0


def test_with_a_base_nobody_knows_it_cannot_run() -> None:
    schedule = Schedule([], {})
    assert [reason for _, reason in schedule.add([CHILDREN[0]])] == ["its base b is missing"]
    assert counts(schedule) == (0, 0, 0)


def test_with_its_base_in_one_call_in_any_order() -> None:
    schedule = Schedule([], {})
    assert schedule.add([CHILDREN[0], BASE]) == []
    assert drain(schedule) == ["b", "u0"]
