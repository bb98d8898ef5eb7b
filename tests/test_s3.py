"""Results on s3://: everything that a local folder can do, against a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator import claims, compact, overview, plans, report
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.runner import Options, run_grid
from orchestrator.session import Session
from orchestrator.store import Store, score_folder, score_rows
from tests.conftest import ROOT, Lethe, all_rows, results_table
from tests.faults.test_storage import plan_of
from tests.s3 import Server, bucket_uri, s3, s3_server, s3_store

__all__ = ["bucket_uri", "s3", "s3_server", "s3_store"]

WriteGrid = Callable[..., Path]
TIMM = score_folder("digits", "timm:resnet10t", "unlearn", "finetune")


def put(store: Store, task: str, value: float, part: str, attempt: int = 1) -> None:
    phi = np.full(5000, value, np.float32)
    store.write_part("scores", list(score_rows(task, phi, phi > 0)), part, TIMM)
    row = {"task_id": task, "attempt": attempt, "status": "done", "part": part}
    store.write_part("runs", [row], part)


def values(store: Store) -> dict[str, float]:
    return {task: float(phi[0]) for task, phi in store.scores(store.runs(["task_id", "part"]), TIMM).items()}


# ---- the store -------------------------------------------------------------------------------------------


def test_the_colon_of_an_architecture_is_escaped_in_the_key(s3_store: Store) -> None:
    put(s3_store, "a", 1.5, "p")
    [name] = s3_store.files("scores")
    assert "/architecture=timm%3Aresnet10t/" in name
    assert s3_store.read(name)[:4] == b"PAR1"
    assert values(s3_store) == {"a": 1.5}


def test_an_object_is_written_in_one_request_and_a_large_one_whole(s3: Server, s3_store: Store) -> None:
    s3.faults.requests.clear()
    s3_store.write("logs/a.txt", b"text")
    assert [method for method, _ in s3.faults.requests] == ["PUT"]
    large = os.urandom(25_000_000)
    s3_store.write_model("a", large)
    assert s3_store.read_model("a") == large
    s3_store.write("logs/empty.txt", b"")
    assert s3_store.read("logs/empty.txt") == b""


def test_a_file_that_fails_while_it_is_made_is_never_there(s3_store: Store) -> None:
    s3_store.write("logs/a.txt", b"old")
    with pytest.raises(RuntimeError), s3_store.writing("logs/a.txt") as file:
        file.write(b"half")
        raise RuntimeError
    assert s3_store.read("logs/a.txt") == b"old"


def test_parts_are_merged_verified_and_damage_is_found(s3_store: Store) -> None:
    for number in range(3):
        put(s3_store, f"task{number}", number, f"0000000000000{number}-x")
    put(s3_store, "task0", 9.0, "00000000000009-x", attempt=2)
    with Lock(s3_store) as lock:
        done = compact.compact(s3_store, beat=lock.beat)
    assert (done.files_before, done.files_after, done.superseded) == (8, 2, 1)
    assert values(s3_store) == {"task0": 9.0, "task1": 1.0, "task2": 2.0}
    assert compact.verify(s3_store) == (2, [])
    [name] = s3_store.files("scores")
    s3_store.write(name, s3_store.read(name)[:-10])
    assert len(compact.verify(s3_store)[1]) == 1
    assert values(s3_store) == {} and s3_store.damaged == [name]
    assert s3_store.set_aside() == [name]
    assert s3_store.files("scores") == [] and len(s3_store.files("aside")) == 1


def test_many_parts_are_read_at_once_and_each_is_counted_once(s3: Server, s3_store: Store) -> None:
    for number in range(40):
        put(s3_store, f"task{number}", number, f"{number:014d}-x")
    damaged = [f"runs/{number:014d}-x.parquet" for number in (3, 30)]
    for name in damaged:
        s3_store.write(name, s3_store.read(name)[:-10])
    s3.faults.delay_s = 0.1
    started = time.monotonic()
    assert s3_store.runs(["status"]).num_rows == 38
    assert s3_store.set_aside() == damaged
    assert time.monotonic() - started < 0.7 * 0.1 * 3 * 40  # three requests each, one after the other
    s3.faults.mend()
    assert values(s3_store) == {
        f"task{number}": float(number) for number in range(40) if number not in (3, 30)
    }


def test_a_store_that_was_begun_in_vain_leaves_no_trace(bucket_uri: str) -> None:
    store = Store.create(bucket_uri)
    with Lock(store):
        plans.remember(store, plan_of())
        store.discard()
    assert Store.open_if_any(bucket_uri) is None
    put(Store.create(bucket_uri), "a", 1.0, "p")
    Store.open(bucket_uri).discard()
    assert values(Store.open(bucket_uri)) == {"a": 1.0}


def test_the_endpoint_may_stand_in_the_uri(
    s3: Server, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(Store.create(bucket_uri), "a", 1.0, "p")
    endpoint = s3.environment["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for query in (f"endpoint_override={endpoint}", f"endpoint_override=127.0.0.1:{s3.port}&scheme=http"):
        assert values(Store.open(f"{bucket_uri}?region=us-east-1&{query}")) == {"a": 1.0}


def test_a_bucket_that_is_not_there_or_not_ours_is_one_line(
    lethe: Lethe, bucket_uri: str, write_grid: WriteGrid
) -> None:
    absent = "s3://no-such-bucket/results"
    for arguments in (
        ("status", "--results", absent),
        ("run", write_grid(), "--results", absent, "--inline"),
    ):
        done = lethe(*arguments)
        assert done.returncode == 2 and "no-such-bucket" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    store = Store(bucket_uri)
    store.write("thesis.tex", b"mine")
    with pytest.raises(UserError, match="holds no Lethe results"):
        Store.create(bucket_uri)


def test_nobody_at_the_endpoint_is_one_line_within_seconds(
    lethe: Lethe, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    done = lethe("status", "--results", "s3://bucket/results")
    assert done.returncode == 2 and "127.0.0.1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert time.monotonic() - started < 30


# ---- whole runs ------------------------------------------------------------------------------------------

COMPARED = ("dataset", "kind", "method", "n", "ra", "fa", "va", "ta", "ret_dev", "indisc")


def test_a_run_on_s3_gives_the_local_table_status_and_report(
    s3_store: Store, bucket_uri: str, tmp_path: Path
) -> None:
    grid = plan_of(seeds=1, audit=None).grid
    for uri in (str(tmp_path / "local"), bucket_uri):
        ended = run_grid(grid, Options(uri, str(tmp_path / "data"), address=None))
        assert (ended.total, ended.done, ended.ran) == (3, 3, 3)
    assert results_table(bucket_uri) == results_table(tmp_path / "local")
    assert rows_of_report(bucket_uri) == rows_of_report(tmp_path / "local") != []
    assert overview.of_store(Store.open(bucket_uri))["done"] == 3
    again = run_grid(grid, Options(bucket_uri, str(tmp_path / "data"), address=None))
    assert (again.done, again.ran) == (3, 0)


def test_a_driver_that_was_replaced_stops_and_takes_nothing_back(
    bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = Session.flush

    def replaced(session: Session) -> None:
        """After its first part another driver took over, which deletes the claim."""
        flush(session)
        if session.store.files("runs"):
            for name in session.store.files("LOCK", ".json"):
                session.store.fs.delete_file(session.store.path(name))

    monkeypatch.setattr(claims, "LATE_S", -1.0)  # the claim is looked at before every write
    monkeypatch.setattr(Session, "flush", replaced)
    grid = plan_of(seeds=1, audit=None, run={"flush_s": 0.1}).grid
    with pytest.raises(UserError, match="has taken these results over"):
        run_grid(grid, Options(bucket_uri, str(tmp_path / "data"), address=None))
    store = Store.open(bucket_uri)  # begun by this run, and yet not discarded
    assert len(store.files("runs")) == store.runs(["status"]).num_rows == 1
    assert store.files("audits") == [] and len(store.files("plans", ".json")) == 1


def rows_of_report(uri: Path | str) -> list[dict[str, object]]:
    """What a report says that does not depend on how fast this machine was."""
    text = report.render(Store.open(str(uri)), "json")
    return [{name: row.get(name) for name in COMPARED} for row in json.loads(text)]


def start(grid: Path, uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "run", str(grid), "--results", uri, "--inline"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.long
def test_a_run_that_was_killed_is_resumed_at_once(
    lethe: Lethe, write_grid: WriteGrid, bucket_uri: str, tmp_path: Path
) -> None:
    changes = {"run": {"flush_s": 0.3}, "methods": ["finetune", "gradient_ascent"], "audit": None}
    path, grid = write_grid(**changes), plan_of(**changes).grid
    first = start(path, bucket_uri)
    while not runs_of(bucket_uri) and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    before = len(all_rows(bucket_uri))
    assert run_grid(grid, Options(bucket_uri, str(tmp_path), address=None)).ran == 8 - before < 8
    assert run_grid(grid, Options(str(tmp_path / "local"), str(tmp_path), address=None)).ran == 8
    assert results_table(bucket_uri) == results_table(tmp_path / "local")
    assert Counter(row["task_id"] for row in all_rows(bucket_uri)).most_common(1)[0][1] == 1
    for command in (
        ("store", "compact"),
        ("store", "verify"),
        ("status", "--json"),
        ("report", "--format", "md"),
    ):
        done = lethe(*command, "--results", bucket_uri)
        assert done.returncode == 0, done.stderr
    assert rows_of_report(bucket_uri) == rows_of_report(tmp_path / "local")
    assert run_grid(grid, Options(bucket_uri, str(tmp_path), address=None)).ran == 0


def runs_of(uri: str) -> list[str]:
    store = Store.open_if_any(uri)
    return [] if store is None else store.files("runs")
