"""S3 that fails for a while, for ever, or is slow: no row lost or doubled, no part set aside, one line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator import remote
from orchestrator.store import Store, score_folder, score_rows
from tests.conftest import ROOT, all_rows
from tests.faults.conftest import Begun
from tests.s3 import Server, bucket_uri, s3, s3_server, s3_store

__all__ = ["bucket_uri", "s3", "s3_server", "s3_store"]

WriteGrid = Callable[..., Path]
FOLDER = score_folder("digits", "cnn_small", "base", "")


def put(store: Store, task: str, part: str) -> None:
    phi = np.ones(10, np.float32)
    store.write_part("scores", list(score_rows(task, phi, phi > 0)), part, FOLDER)
    store.write_part("runs", [{"task_id": task, "attempt": 1, "status": "done", "part": part}], part)


@pytest.fixture
def two_parts(s3_store: Store) -> Store:
    put(s3_store, "a", "p")
    put(s3_store, "b", "q")
    return s3_store


CALLS: dict[str, Callable[[Store], object]] = {
    "ledger": lambda store: store.runs(["status"]).num_rows,
    "scores": lambda store: len(store.scores(store.runs(["task_id", "part"]), FOLDER)),
    "whole": lambda store: len(store.readable_scores()),
    "write": lambda store: store.write("logs/a.txt", b"text") or len(store.read("logs/a.txt")) // 2,
    "large": lambda store: (
        store.write("logs/a.txt", bytes(12_000_000)) or len(store.read("logs/a.txt")) // 6_000_000
    ),
    "delete": lambda store: store.delete("runs/p.parquet") or 2 * len(store.files("runs")),
    "aside": lambda store: store.note_damage("runs/p.parquet") or 2 * len(store.set_aside()),
}


def some(*quick: str) -> list[object]:
    """The names of the calls, all but the quick ones marked as long: the client waits seconds for each."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.long) for name in CALLS]


def fail_times(server: Server, times: int, status: int = 503, ending: str = "") -> None:
    """Fail the next requests for paths that end so."""
    left = iter(range(times))
    server.faults.fail(status, lambda _, path: path.endswith(ending) and next(left, None) is not None)


@pytest.mark.parametrize("call", some("ledger"))
def test_an_outage_of_seconds_is_waited_for(s3: Server, two_parts: Store, call: str) -> None:
    fail_times(s3, 4)
    assert CALLS[call](two_parts) == 2
    assert s3.faults.failed == 4 and two_parts.damaged == []


@pytest.mark.parametrize("call", some("ledger"))
def test_an_outage_without_end_is_an_error_and_no_damage(s3: Server, two_parts: Store, call: str) -> None:
    s3.faults.fail(503)
    two_parts.patience_s = 1.0
    with pytest.raises(OSError):
        CALLS[call](two_parts)
    started = time.monotonic()
    with pytest.raises(OSError):  # what is called on the way out does not wait again
        two_parts.runs(["status"])
    assert time.monotonic() - started < 6
    assert two_parts.damaged == [] and two_parts.patience_s == 0
    s3.faults.mend()
    fresh = Store.open(two_parts.uri)
    assert fresh.runs(["status"]).num_rows == 2 and fresh.damaged == []


def test_reading_that_fails_in_the_middle_is_no_damage(s3: Server, two_parts: Store) -> None:
    """The first request about a part is answered, those for its content are not."""
    s3.faults.fail(500, lambda method, path: method == "GET" and path.endswith("p.parquet"))
    mending = threading.Timer(2.5, s3.faults.mend)
    mending.start()
    assert two_parts.runs(["status"]).num_rows == 2
    assert two_parts.damaged == []


def test_what_waiting_does_not_mend_is_not_waited_for(s3: Server, two_parts: Store) -> None:
    s3.faults.fail(403)  # no right to it
    started = time.monotonic()
    with pytest.raises(OSError):
        two_parts.read("runs/p.parquet")
    with pytest.raises(OSError):
        two_parts.runs(["status"])
    assert time.monotonic() - started < 3 and two_parts.damaged == []


def test_an_upload_that_fails_half_way_leaves_the_old_object(s3: Server, s3_store: Store) -> None:
    s3_store.write_model("a", b"old")
    parts = iter(range(100))
    s3.faults.fail(500, lambda method, path: method == "PUT" and next(parts) > 0)  # the first part arrives
    s3_store.patience_s = 0.0
    with pytest.raises(OSError):
        s3_store.write_model("a", bytes(25_000_000))
    s3.faults.mend()
    assert s3_store.read_model("a") == b"old"


def test_a_slow_answer_is_an_answer(s3: Server, two_parts: Store) -> None:
    two_parts.patience_s = 0.0
    s3.faults.delay_s = 4.0  # more than the 3 s after which the client gives up by default
    s3.faults.requests.clear()
    two_parts.write("logs/a.txt", b"text")
    assert len(s3.faults.requests) == 1


def test_ctrl_c_ends_the_wait(s3: Server, two_parts: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    s3.faults.fail(500)
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupted))
    with pytest.raises(KeyboardInterrupt):
        two_parts.read("runs/p.parquet")
    assert two_parts.patience_s == 0


# ---- whole runs ------------------------------------------------------------------------------------------

RUN = """
import sys
from orchestrator import cli, remote
remote.PATIENCE_S = float(sys.argv.pop(1))
cli.main()
"""


def run(grid: Path, uri: str, patience_s: float) -> subprocess.CompletedProcess[str]:
    arguments = ["run", str(grid), "--results", uri, "--inline"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", RUN, str(patience_s), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def fail_after(server: Server, parts: int, seconds: float) -> None:
    """Answer 503 to everything from the moment that so many parts of `runs` have been written."""
    seen: set[str] = set()

    def strikes(method: str, path: str) -> bool:
        if method == "PUT" and "/runs/" in path:
            seen.add(path)
        if len(seen) < parts:
            return False
        server.faults.until = min(server.faults.until, time.monotonic() + seconds)
        return True

    server.faults.fail(503, strikes)


@pytest.mark.long
def test_a_run_outlives_an_outage_and_ends_with_the_same_table(
    begun: Begun, s3: Server, bucket_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    fail_after(s3, parts=2, seconds=20)
    ended = begun.run(bucket_uri)
    assert (ended.ran, ended.failures) == (6, [])
    assert s3.faults.failed > 3 and "does not answer, tried again for" in caplog.text
    begun.assert_whole(bucket_uri)
    assert Store.open(bucket_uri).files("aside") == []


@pytest.mark.long
def test_a_run_without_its_store_ends_with_one_line_and_resumes(
    begun: Begun, write_grid: WriteGrid, s3: Server, bucket_uri: str
) -> None:
    grid = write_grid(audit=None, training={"all": {"epochs": 1}}, run={"flush_s": 0.1})
    fail_after(s3, parts=2, seconds=float("inf"))
    ended = run(grid, bucket_uri, 3.0)
    assert ended.returncode == 2, ended.stderr
    lines = [line for line in ended.stderr.strip().splitlines() if "tried again for" not in line]
    assert "Traceback" not in ended.stderr and "Results recorded before are safe" in lines[-1]
    s3.faults.mend()
    before = all_rows(bucket_uri)
    assert 0 < len(before) < 6 and {row["status"] for row in before} == {"done"}
    assert begun.run(bucket_uri).ran == 6 - len(before)
    begun.assert_whole(bucket_uri)


@pytest.mark.long
def test_a_run_on_a_slow_store_gives_the_same_table(begun: Begun, s3: Server, bucket_uri: str) -> None:
    s3.faults.delay_s = 0.3
    assert begun.run(bucket_uri).ran == 6
    s3.faults.mend()
    begun.assert_whole(bucket_uri)
