"""What is durable when, what is kept, what is refused: a session over a real store with made-up outcomes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import atomic, remote
from orchestrator import session as sessions
from orchestrator.config import Grid, load
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.plan import Plan, Task, make_plan
from orchestrator.runner import Options, run_grid
from orchestrator.schedule import FAILURES
from orchestrator.session import Session, retry_kinds
from orchestrator.store import Store
from tests.conftest import all_rows, grid_data, results_table
from workers.designs import pack
from workers.outcome import Outcome, Scores

RUNNER = "one"


class Recorder(Store):
    """A store that notes what it writes and deletes, in order."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.events: list[str] = []

    def write(self, relative: str, data: Any) -> None:
        super().write(relative, data)
        self.events.append(relative.split("/")[0])

    def delete_model(self, task_id: str) -> None:
        super().delete_model(task_id)
        self.events.append("delete model")


@pytest.fixture
def store(weird_tmp_path: Path) -> Recorder:
    store = Recorder.create(str(weird_tmp_path / "results"))
    assert isinstance(store, Recorder)
    store.events.clear()
    return store


def plan_of(**changes: Any) -> Plan:
    return make_plan(Grid.model_validate(grid_data(**({"seeds": 1, "audit": None} | changes))))


@pytest.fixture
def lock(store: Recorder) -> Iterator[Lock]:
    with Lock(store) as lock:
        yield lock


def open_session(store: Store, lock: Lock, plan: Plan | None = None, **options: Any) -> Session:
    return Session(plan or plan_of(), store, lock, lambda _: None, **options)


def outcome(task: Task, status: str = "done", **row: Any) -> Outcome:
    """What a worker would return, with φ = 0, 1, 2."""
    if status != "done":
        return Outcome(task.id, status, "a reason", "a log")
    phi, design = np.arange(3, dtype=np.float32), f"design of {task.kind}"
    made = Outcome(task.id, "done", row={"design": design, "ra": 0.5} | row, scores=Scores(phi, phi > 0))
    made.design = {"design": design, "n_pool": 2, "states": pack(np.array([1, 2]))}
    made.weights = b"weights" if task.kind == "base" else None
    return made


def take(session: Session) -> Task:
    task = session.schedule.take(RUNNER)
    assert task is not None
    return task


def run_all(session: Session, **statuses: str) -> list[str]:
    """Finish everything there is; statuses by kind. Returns the kinds in the order they ran."""
    kinds = []
    while (task := session.schedule.take(RUNNER)) is not None:
        session.finished(task, outcome(task, statuses.get(task.kind, "done")), RUNNER)
        kinds.append(task.kind)
    return kinds


def rows(store: Store) -> list[dict[str, Any]]:
    return list(Store.open(store.uri).read_table("runs").to_pylist())


# ---- the order of writes ---------------------------------------------------------------------------------


def test_weights_then_designs_then_scores_then_rows_and_models_go_last(store: Recorder, lock: Lock) -> None:
    """Whatever moment a run is killed at, a row is there only if all it speaks of is."""
    with open_session(store, lock) as session:
        run_all(session)
    first = {name: store.events.index(name) for name in store.events}
    last = {name: len(store.events) - store.events[::-1].index(name) for name in store.events}
    assert last["models"] <= first["designs"] < last["designs"] <= first["scores"]
    assert last["scores"] <= first["runs"] < first["delete model"]


def test_nothing_is_done_before_the_flush_and_all_is_after_it(store: Recorder, lock: Lock) -> None:
    session = open_session(store, lock)
    task = take(session)
    session.finished(task, outcome(task), RUNNER)
    assert rows(store) == []
    session.flush()
    assert store.has_model(task.id)
    (row,) = rows(store)
    assert (row["task_id"], row["status"], row["attempt"], row["retries"]) == (task.id, "done", 1, 0)
    assert row["part"] and row["commit"] and '"lethe"' in row["versions"]


def test_leaving_flushes_also_after_ctrl_c(store: Recorder, lock: Lock) -> None:
    with pytest.raises(KeyboardInterrupt), open_session(store, lock) as session:
        task = take(session)
        session.finished(task, outcome(task), RUNNER)
        raise KeyboardInterrupt
    assert len(rows(store)) == 1


def test_ctrl_c_while_weights_are_waited_for_brings_no_row_before_them(
    store: Recorder, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = store.write_model, threading.Event()

    def slow(task_id: str, weights: bytes) -> None:
        assert written.wait(20)
        write(task_id, weights)

    monkeypatch.setattr(store, "write_model", slow)
    with pytest.raises(KeyboardInterrupt), open_session(store, lock) as session:
        task = take(session)
        session.finished(task, outcome(task), RUNNER)
        with monkeypatch.context() as pressed:
            pressed.setattr(Future, "result", _interrupted)
            try:
                session.flush()
            finally:
                threading.Timer(0.3, written.set).start()
    assert store.events.index("models") < store.events.index("runs") and len(rows(store)) == 1


def _interrupted(_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_the_wait_of_threads_for_a_store_that_does_not_answer(
    store: Recorder, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*_: object) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(remote, "WAITS_S", (0.05,))
    monkeypatch.setattr(sessions, "LAST_TRY_S", 0.2)
    session = open_session(store, lock)
    monkeypatch.setattr(store, "local", False)
    monkeypatch.setattr(store, "guard", lambda: None)
    monkeypatch.setattr(atomic, "upload", no_answer)
    assert store.patience_s == remote.PATIENCE_S
    started = time.monotonic()
    with pytest.raises(OSError, match="no answer"), session:
        task = take(session)
        session.finished(task, outcome(task), RUNNER)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 5 and rows(Store(store.uri)) == []


@pytest.mark.parametrize(("task_s", "expected"), [(0.01, 256), (0.001, 1000)])
def test_at_most_256_rows_or_those_of_a_second_wait(
    store: Recorder, lock: Lock, monkeypatch: pytest.MonkeyPatch, task_s: float, expected: int
) -> None:
    now = [1000.0]
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now[0])
    session = open_session(store, lock, plan_of(seeds=400, methods=["finetune"]))
    for _ in range(expected):
        assert "runs" not in store.events
        task = take(session)
        now[0] += task_s * 1.000001
        session.finished(task, outcome(task), RUNNER)
    assert len(rows(store)) == expected


def test_weights_that_cannot_be_written_end_the_run_before_their_row(
    store: Recorder, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    session = open_session(store, lock)
    monkeypatch.setattr(store, "write_model", full)
    task = take(session)
    session.finished(task, outcome(task), RUNNER)
    with pytest.raises(OSError, match="No space left"):
        session.flush()
    assert rows(store) == []


def test_rows_wait_no_longer_than_the_grid_says(
    store: Recorder, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now[0])
    session = open_session(store, lock, plan_of(run={"flush_s": 20.0}))
    task = take(session)
    now[0] += 19
    session.finished(task, outcome(task), RUNNER)
    assert rows(store) == []
    now[0] += 1.5
    session.flush_if_due()
    assert len(rows(store)) == 1


def test_scores_can_be_read_back_with_the_row(store: Recorder, lock: Lock) -> None:
    from orchestrator.audit import Reader

    with open_session(store, lock) as session:
        run_all(session)
    reader = Reader(Store.open(store.uri))
    phi = reader.scores(task.id for task in session.plan.tasks)
    assert {tuple(values) for values in phi.values()} == {(0.0, 1.0, 2.0)} and len(phi) == 3
    for task in session.plan.tasks:
        states = reader.states(task.id)
        assert states is not None and states.tolist() == [1, 2]


# ---- models ----------------------------------------------------------------------------------------------


def test_a_base_is_deleted_when_its_last_child_is_durable(store: Recorder, lock: Lock) -> None:
    session = open_session(store, lock, plan_of(methods=["finetune", "gradient_ascent"]))
    base = take(session)
    session.finished(base, outcome(base), RUNNER)
    for _ in range(2):
        session.flush()
        assert store.has_model(base.id)
        child = take(session)
        assert child.base == base.id
        session.finished(child, outcome(child), RUNNER)
    assert store.has_model(base.id)  # the last child's row is not durable yet
    session.flush()
    assert not store.has_model(base.id)


def test_models_are_kept_on_request_and_where_a_limit_stopped(store: Recorder, lock: Lock) -> None:
    with open_session(store, lock, limit=1) as session:
        assert run_all(session) == ["base"]
    (base,) = [task.id for task in session.plan.tasks if task.kind == "base"]
    assert store.has_model(base)  # the next run needs it
    with open_session(store, lock, keep_models=True) as session:
        assert run_all(session) == ["unlearn", "retrain"]  # the base is not trained twice
    assert store.has_model(base)


def test_a_base_whose_children_all_failed_is_deleted_too(store: Recorder, lock: Lock) -> None:
    with open_session(store, lock) as session:
        run_all(session, unlearn="bug")
    assert store.files("models", "") == []


def test_a_base_is_deleted_when_what_its_children_wait_for_failed(store: Recorder, lock: Lock) -> None:
    """Samples that the audit finds memorised are forgotten on the main track: none can be found."""
    plan = plan_of(forget=[{"memorised": {"count": 5}}], audit={"pairs": 4, "forget_sets": 2})
    with open_session(store, lock, plan) as session:
        taken = [take(session) for _ in range(len(session.schedule) - len(session.schedule._held.tasks()))]
        for track, status in (("main", "done"), ("audit", "bug")):
            for task in (task for task in taken if task.spec["members"]["track"] == track):
                assert task.kind == "base"
                session.finished(task, outcome(task, status), RUNNER)
        assert session.progress.failed["skipped"] > 0 and session.progress.done == 1
        assert session.schedule.left == 0
    assert store.files("models", "") == []


# ---- failures and resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["diverged", "oom", "lost_worker"])
def test_a_failure_is_a_row_with_reason_and_log_and_without_numbers(
    store: Recorder, lock: Lock, status: str
) -> None:
    with open_session(store, lock) as session:
        run_all(session, unlearn=status)
    (row,) = [row for row in rows(store) if row["kind"] == "unlearn"]
    assert (row["status"], row["reason"], row["ra"], row["design"]) == (status, "a reason", None, None)
    assert store.read(row["log"]) == b"a log"
    assert (session.progress.done, dict(session.progress.failed)) == (2, {status: 1})


def test_children_of_a_failed_base_are_rows_too(store: Recorder, lock: Lock) -> None:
    with open_session(store, lock) as session:
        run_all(session, base="diverged")
    found = {row["kind"]: row for row in rows(store)}
    assert found["unlearn"]["status"] == "skipped"
    assert found["unlearn"]["reason"] == f"its base {found['base']['task_id']} is diverged"
    assert session.schedule.left == 0


def test_a_task_whose_worker_is_gone_is_recorded_without_an_outcome(store: Recorder, lock: Lock) -> None:
    with open_session(store, lock) as session:
        base = take(session)
        session.failed(base, "lost_worker", "four workers in a row", RUNNER, retries=3)
        run_all(session)
    row = next(row for row in rows(store) if row["kind"] == "base")
    assert (row["status"], row["reason"], row["retries"]) == ("lost_worker", "four workers in a row", 3)


def test_resuming_runs_what_is_left_and_a_retry_is_another_attempt(store: Recorder, lock: Lock) -> None:
    with open_session(store, lock) as session:
        run_all(session, retrain="oom")
    with open_session(store, lock) as session:
        assert run_all(session) == []
        assert session.progress.total == 0
    with open_session(store, lock, retry={"oom"}) as session:
        assert session.progress.total == 1
        assert run_all(session) == ["retrain"]
    attempts = [(row["status"], row["attempt"]) for row in rows(store) if row["kind"] == "retrain"]
    assert sorted(attempts) == [("done", 2), ("oom", 1)]
    assert {row["status"] for row in Store.open(store.uri).runs(["status"]).to_pylist()} == {"done"}


def test_rows_of_other_grids_do_not_matter(store: Recorder, lock: Lock) -> None:
    with open_session(store, lock, plan_of(seeds=[5])) as session:
        run_all(session, base="diverged")
    with open_session(store, lock, plan_of(seeds=[6])) as session:
        assert session.progress.total == 3
        assert sorted(run_all(session)) == ["base", "retrain", "unlearn"]


def test_a_damaged_part_is_told_and_its_tasks_run_again(store: Recorder, lock: Lock) -> None:
    for table in ("runs", "designs"):
        with open_session(store, lock) as session:
            assert len(run_all(session)) == 3
        (name,) = [name for name in store.files(table) if "aside" not in name][-1:]
        path = Path(store.path(name))
        path.write_bytes(path.read_bytes()[:-20])
    with open_session(store, lock) as session:
        assert session.progress.notes == [f"{name} is damaged and was moved to aside/"]
        assert len(run_all(session)) == 3  # a result without its design cannot be used
    states = Store.open(store.uri)
    assert states.read_table("designs").num_rows == 3 and states.damaged == []


# ---- datasets --------------------------------------------------------------------------------------------


def facts(*labels: int) -> dict[str, Any]:
    sha256 = [bytes([label]) * 32 for label in labels]
    return {"labels": np.array(labels), "n_pool": len(labels) - 1, "sha256": sha256}


def test_samples_are_written_once_and_other_content_is_refused(store: Recorder, lock: Lock) -> None:
    session = open_session(store, lock)
    session.write_samples("digits", facts(1, 2, 3))
    session.write_samples("digits", facts(1, 2, 3))
    table = store.read_table("samples").to_pylist()
    assert [(row["sample_id"], row["split"], row["label"]) for row in table] == [
        (0, "pool", 1),
        (1, "pool", 2),
        (2, "test", 3),
    ]
    for changed in (facts(1, 2, 4), facts(1, 2), facts(1, 3, 2)):
        with pytest.raises(UserError, match=r"dataset digits: its content differs .* another --results"):
            session.write_samples("digits", changed)
    session.write_samples("cifar10", facts(9, 9))


def test_duplicates_are_asked_for_once_and_stored(store: Recorder, lock: Lock) -> None:
    session, asked = open_session(store, lock), []

    def load(name: str, new: bool) -> dict[str, Any]:
        asked.append((name, new))
        return facts(1, 2, 2) | ({"dup_exact": [-1, 1, 1], "dup_near": [0, 0, 0]} if new else {})

    for _ in range(2):
        session.load_datasets(load, lambda *_: "")
    assert asked == [("digits", True), ("digits", False)]
    table = store.read_table("samples").to_pydict()
    assert (table["dup_exact"], table["dup_near"]) == ([-1, 1, 1], [0, 0, 0])


def test_words_for_retry() -> None:
    assert retry_kinds(["oom", "bug"]) == {"oom", "bug"}
    assert retry_kinds(["failed"]) == set(FAILURES)
    assert retry_kinds([]) == set()
    with pytest.raises(UserError, match=r"--retry done: .*Allowed: failed, oom"):
        retry_kinds(["oom", "done"])


def test_done_tasks_whose_scores_are_lost_run_again(
    write_grid: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_grid(audit=None, seeds=1, training={"all": {"epochs": 1, "batch_size": 256}})
    results, grid = path.parent / "results", load(str(path))
    run_grid(grid, Options(str(results), "data", address=None))
    before = results_table(results)
    [truncated] = (results / "scores").rglob("kind=retrain/*/*.parquet")
    [deleted] = (results / "scores").rglob("kind=unlearn/*/*.parquet")
    truncated.write_bytes(truncated.read_bytes()[:-9])
    deleted.unlink()
    ended = run_grid(grid, Options(str(results), "data", address=None))
    assert ended.done == ended.total and ended.failures == []
    assert "is damaged" in capsys.readouterr().err
    assert results_table(results) == before
    attempts = {row["kind"]: row["attempt"] for row in all_rows(results)}
    assert attempts["retrain"] == attempts["unlearn"] == 2
