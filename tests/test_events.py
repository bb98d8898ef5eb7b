"""Events of a run as lines of JSON, and the log of every failure, over a real store with made-up outcomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Grid
from orchestrator.errors import UserError
from orchestrator.events import FOLDER
from orchestrator.lock import Lock
from orchestrator.plan import Plan, Task, make_plan
from orchestrator.session import Session
from orchestrator.store import Store
from tests.conftest import grid_data
from tests.test_session import outcome, run_all, take


def plan_of(**changes: Any) -> Plan:
    return make_plan(Grid.model_validate(grid_data(**({"seeds": 1, "audit": None} | changes))))


@pytest.fixture
def store(weird_tmp_path: Path) -> Store:
    return Store.create(str(weird_tmp_path / "results"))


def opened(store: Store, lock: Lock, plan: Plan | None = None, **options: Any) -> Session:
    return Session(plan or plan_of(), store, lock, lambda _: None, **options)


def lines(store: Store) -> list[dict[str, Any]]:
    """All events of a store in order, each of which is a line of JSON."""
    files = (store.read(name).decode() for name in store.files(FOLDER, ".jsonl"))
    return [json.loads(line) for text in files for line in text.splitlines()]


def rows(store: Store) -> dict[str, dict[str, Any]]:
    return {row["task_id"]: row for row in store.runs().to_pylist()}


def test_each_event_of_a_task_is_a_line_with_its_id(store: Store) -> None:
    with Lock(store) as lock, opened(store, lock) as session:
        session.events.actor("actor_started", "actor-1", host="node-7", node="abc", pid="12")
        base = take(session)
        session.events.given(base, "actor-1")
        session.events.trouble("lost", base, "lost_worker", "The actor died")
        session.events.trouble("retried", base, "lost_worker", "")
        session.events.actor("actor_gone", "actor-1")
        session.events.given(base, "actor-2")
        session.finished(base, outcome(base, wall_s=1.5, started_at=100.0, finished_at=102.25), "actor-2")
    found = lines(store)
    assert [line["event"] for line in found] == [
        *("actor_started", "given", "lost", "retried", "actor_gone", "given", "finished", "progress")
    ]
    of_task = [line for line in found if "task_id" in line]
    names = ("task_id", "kind", "dataset", "architecture")
    assert {tuple(line[name] for name in names) for line in of_task} == {
        (base.id, "base", "digits", "cnn_small")
    }
    assert found[0] | {"host": "node-7", "node": "abc", "pid": "12"} == found[0]
    assert found[2] | {"actor": "actor-1", "host": "node-7", "reason": "The actor died"} == found[2]
    ended = {"actor": "actor-2", "status": "done", "seconds": 2.25, "wall_s": 1.5, "attempt": 1, "retries": 0}
    assert found[6] | ended == found[6]
    assert found[7] | {"total": 3, "done": 1, "failed": {}} == found[7]


def test_a_flush_writes_one_file_and_only_with_news(store: Store) -> None:
    with Lock(store) as lock, opened(store, lock, plan_of(seeds=20)) as session:
        for _ in range(30):
            task = take(session)
            session.events.given(task, "one")
            session.finished(task, outcome(task), "one")
        session.flush()
        session.flush()
        assert len(store.files(FOLDER, ".jsonl")) == 1
        run_all(session)
    assert len(store.files(FOLDER, ".jsonl")) == 2
    ended = [line["task_id"] for line in lines(store) if line["event"] == "finished"]
    assert sorted(ended) == sorted(rows(store)) and len(ended) == 60


def test_a_run_that_cannot_start_leaves_no_events(store: Store) -> None:
    def missing(name: str, new: bool) -> dict[str, Any]:
        raise UserError("not there")

    with pytest.raises(UserError), Lock(store) as lock, opened(store, lock) as session:
        session.events.actor("actor_started", "actor-1", host="h", node="n")
        session.load_datasets(missing, lambda *_: "")
    assert store.files("logs", "") == []


def test_a_listener_hears_what_came_before_it_once(store: Store) -> None:
    heard: list[dict[str, Any]] = []
    with Lock(store) as lock, opened(store, lock) as session:
        session.events.actor("actor_started", "actor-1", host="h", node="n")
        session.events.listen(heard.append)
        run_all(session)
    assert [event["event"] for event in heard] == ["actor_started", *["finished"] * 3]


# ---- every failure has a log -----------------------------------------------------------------------------


def test_a_task_whose_worker_is_gone_has_a_log_that_tells_what_is_known(store: Store) -> None:
    with Lock(store) as lock, opened(store, lock) as session:
        base = take(session)
        for number in (1, 2):
            name = f"actor-{number}"
            session.events.actor("actor_started", name, host=f"host-{number}", node=f"node-{number}")
            session.events.given(base, name)
            session.events.trouble("lost", base, "lost_worker", f"death {number}")
        session.failed(base, "lost_worker", "2 workers in a row", "actor-2", 1, "Segmentation fault")
        run_all(session)
    log = store.read(rows(store)[base.id]["log"]).decode()
    first, *story, last = log.splitlines()
    assert first == "lost_worker: 2 workers in a row" and last == "Segmentation fault"
    places = [line for line in story if "  lost  " in line]
    assert [line.partition("  lost  ")[2] for line in places] == [
        f"actor actor-{number} host host-{number} node node-{number}" for number in (1, 2)
    ]
    assert "    lost_worker: death 1" in story


@pytest.mark.parametrize("status", ["oom", "diverged", "timeout", "bug"])
def test_a_failure_without_details_has_its_reason_as_log(store: Store, status: str) -> None:
    with Lock(store) as lock, opened(store, lock) as session:
        base = take(session)
        without = outcome(base, status)
        without.log = ""
        session.finished(base, without, "one")
    row = rows(store)[base.id]
    assert store.read(row["log"]) == b"a reason"


def requests_in_turn() -> Plan:
    return plan_of(requests=2, methods=["finetune"])


def chain(session: Session) -> tuple[Task, set[str]]:
    """Fails the base; returns it and what was skipped for it: the first request, and the second for that."""
    base = take(session)
    session.finished(base, outcome(base, "bug"), "one")
    return base, {task.id for task in session.plan.tasks if task.kind == "unlearn"}


def test_what_is_skipped_points_to_the_log_of_what_failed(store: Store) -> None:
    with Lock(store) as lock, opened(store, lock, requests_in_turn()) as session:
        base, skipped = chain(session)
    found = rows(store)
    assert len(skipped) == 2 and {found[task]["status"] for task in skipped} == {"skipped"}
    assert {found[task]["log"] for task in skipped} == {found[base.id]["log"]}
    assert store.read(found[base.id]["log"]) == b"a log"


def test_a_later_run_that_skips_knows_the_log_too(store: Store) -> None:
    with Lock(store) as lock, opened(store, lock) as session:
        base, _ = chain(session)
    more = plan_of(methods=["finetune", "gradient_ascent"])
    with Lock(store) as lock, opened(store, lock, more):
        pass
    found = rows(store)
    logs = {row["log"] for row in found.values() if row["status"] == "skipped"}
    assert logs == {found[base.id]["log"]} and len(found) == 3


def test_nothing_points_to_a_failure_that_was_mended(store: Store) -> None:
    with Lock(store) as lock, opened(store, lock) as session:
        chain(session)
    with Lock(store) as lock, opened(store, lock, retry={"bug"}) as session:
        run_all(session)
    assert {(row["status"], row["log"]) for row in rows(store).values()} == {("done", None)}


def test_combinations_that_cannot_run_have_a_reason_and_no_log(store: Store) -> None:
    plan = plan_of(methods=["finetune", "mnemonic_code"])
    assert plan.impossible
    with Lock(store) as lock, opened(store, lock, plan) as session:
        run_all(session)
    impossible = [rows(store)[task.id] for task, _ in plan.impossible]
    assert all(row["status"] == "skipped" and row["reason"] and row["log"] is None for row in impossible)
