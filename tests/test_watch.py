"""`lethe status --watch`: what it shows, that it reads only what is new, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator import watch as watches
from orchestrator.compact import compact
from orchestrator.events import FOLDER
from orchestrator.lock import NAME, Lock
from orchestrator.session import Session
from orchestrator.store import Store, new_part
from orchestrator.watch import View, Watch, as_line, as_lines
from tests.conftest import ROOT, Lethe
from tests.test_session import outcome, plan_of, take

COMMAND = (sys.executable, "-m", "orchestrator", "status", "--watch", "0.1", "--results")
SHOWN_S = 30.0


class Reads(Store):
    """A store that notes the files it reads."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.names: list[str] = []

    def read(self, *parts: str) -> bytes:
        self.names.append("/".join(parts))
        return super().read(*parts)

    def read_part(self, name: str, *rest: Any) -> Any:
        self.names.append(name)
        return super().read_part(name, *rest)


@pytest.fixture
def store(weird_tmp_path: Path) -> Store:
    return Store.create(str(weird_tmp_path / "results"))


def add(store: Store, **statuses: str) -> None:
    part = new_part()
    rows = [{"task_id": t, "attempt": 1, "status": status, "part": part} for t, status in statuses.items()]
    store.write_part("runs", rows, part)


# ---- one look --------------------------------------------------------------------------------------------


def test_a_look_at_a_run_tells_how_far_it_is(store: Store) -> None:
    looking = Watch(store)
    with Lock(store) as lock:
        session = Session(plan_of(seeds=4), store, lock, lambda _: None)
        first = looking.look()
        assert (first.recorded, first.run, first.rate) == (0, {}, None)
        assert "nothing has been written yet" in as_lines(first)[-1]
        for _ in range(4):
            task = take(session)
            session.events.given(task, "one")
            session.finished(task, outcome(task), "one")
        retrain = next(task for task in session.plan.tasks if task.kind == "retrain")
        session.finished(retrain, outcome(retrain, "oom"), "one")
        session.progress.running = 2
        session.flush()
        view = looking.look()
    assert (view.recorded, view.done, view.failed) == (5, 4, {"oom": 1})
    assert (view.finished, view.run["total"], view.run["running"]) == (5, 12, 2)
    assert view.driver["pid"] == os.getpid()
    lines = as_lines(view)
    assert lines[0] == "results   5 tasks recorded: 4 done, 1 oom"
    assert (
        lines[1].startswith(f"driver    process {os.getpid()} of ")
        and " 5 of 12 tasks, 2 running" in lines[2]
    )
    assert as_line(view).startswith("4 done, 1 oom, 5 of 12 in this run, 2 running, ")
    over = looking.look()
    assert not over.driver and as_line(over) == "4 done, 1 oom, no run is going on"


def test_the_rate_is_that_of_the_last_minutes_and_gives_the_time_to_go(store: Store) -> None:
    def flushed(number: int, at: float, done: int) -> None:
        line = {
            "event": "progress",
            "started_at": 1000.0,
            "at": at,
            "total": 1000,
            "done": done,
            "failed": {},
        }
        text = json.dumps(line | {"running": 2, "retries": 0})
        store.write(f"{FOLDER}/19700101T001640.000-{number:06d}.jsonl", f"{{}}\n{text}\n".encode())

    def looked(now: float) -> View:
        lock = {"started_at": 999.5, "host": "elsewhere", "heartbeat_at": time.time() + 100}
        store.write(NAME, json.dumps(lock).encode())
        view = looking.look()
        view.noticed = now
        return view

    looking = Watch(store)
    flushed(1, 1100.0, 50)
    assert looked(1100.0).rate == pytest.approx(0.5)  # since the start
    assert looked(1110.0).to_go_s == pytest.approx(950 / 0.5 - 10)
    for number in range(2, 20):
        flushed(number, 1100.0 + 30 * number, 50 + 60 * (number - 1))
        view = looked(1100.0 + 30 * number)
    assert view.rate == pytest.approx(2.0)  # the slow start is more than five minutes ago
    assert watches.as_facts(view)["to_go_s"] == 0.0
    assert "2.0 tasks per second" in as_line(view)


def test_a_look_reads_only_what_is_new(store: Store) -> None:
    for number in range(50):
        add(store, **{f"task{number}": "done"})
    looking = Watch(reads := Reads(store.uri))
    assert looking.look().done == 50
    assert len([name for name in reads.names if name.startswith("runs/")]) == 50
    reads.names.clear()
    assert looking.look().done == 50 and set(reads.names) == {NAME}
    add(store, last="bug", task0="done")
    assert looking.look().failed == {"bug": 1}
    assert len([name for name in reads.names if name != NAME]) == 1


def test_the_highest_attempt_counts_whatever_is_read_first(store: Store) -> None:
    rows = [
        {"task_id": "a", "attempt": attempt, "status": status}
        for attempt, status in ((2, "done"), (1, "oom"))
    ]
    store.write_part("runs", rows, new_part())
    view = Watch(store).look()
    assert (view.recorded, view.done, view.failed) == (1, 1, {})


def test_a_compaction_changes_no_count(store: Store) -> None:
    add(store, a="done", b="oom")
    add(store, c="done")
    looking = Watch(store)
    before = looking.look()
    with Lock(store) as lock:
        compact(store, "float32", lock.beat)
    looking._store = reads = Reads(store.uri)
    for view in (before, looking.look(), looking.look(), Watch(store).look()):
        assert (view.recorded, view.done, view.failed) == (3, 2, {"oom": 1})
    assert len([name for name in reads.names if name.startswith("runs/")]) == 1


def test_a_dead_owner_is_no_driver(store: Store, holder: subprocess.Popen[str]) -> None:
    assert watches.owner(store)["pid"] == holder.pid
    holder.kill()
    holder.wait()
    assert json.loads(store.read(NAME))["pid"] == holder.pid  # the file stays, its owner does not
    assert watches.owner(store) == {}


def test_an_owner_elsewhere_counts_while_its_heart_beats(store: Store) -> None:
    for age, alive in ((10.0, True), (3600.0, False)):
        found = {"host": "elsewhere", "pid": 1, "heartbeat_at": time.time() - age}
        store.write(NAME, json.dumps(found).encode())
        assert bool(watches.owner(store)) is alive


def test_of_the_claims_on_an_object_store_the_one_that_holds_the_folder_counts(store: Store) -> None:
    folder = Path(store.root) / NAME
    folder.mkdir()
    store.local = False
    for host, held, age in (("wants", False, 0.0), ("died", True, 3600.0), ("holds", True, 10.0)):
        claim = {"host": host, "pid": 1, "held": held, "heartbeat_at": time.time() - age}
        (folder / f"{host}.json").write_text(json.dumps(claim))
    assert watches.owner(store)["host"] == "holds"
    (folder / "holds.json").unlink()
    assert watches.owner(store) == {}


# ---- until the end ---------------------------------------------------------------------------------------


def test_elsewhere_than_in_a_terminal_each_change_is_a_line(
    store: Store, holder: subprocess.Popen[str]
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*COMMAND, store.uri], stdout=subprocess.PIPE, text=True, env=environment
    ) as watching:
        assert watching.stdout is not None and watching.stdout.readline() == "0 done\n"
        time.sleep(0.5)  # some looks without a change
        add(store, a="done", b="bug")
        assert watching.stdout.readline() == "1 done, 1 bug\n"
        assert holder.stdin is not None
        holder.stdin.close()
        assert watching.stdout.read() == "1 done, 1 bug, no run is going on\n"
    assert watching.returncode == 0


def test_ctrl_c_leaves_the_terminal_as_it_was(store: Store, holder: subprocess.Popen[str]) -> None:
    def usual() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told us to ignore it

    here, terminal = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(
        [*COMMAND, store.uri], stdout=terminal, stderr=terminal, env=environment, preexec_fn=usual
    ) as watching:
        os.close(terminal)
        shown = until(here, "no", "nothing has been written yet")
        assert shown.count("\x1b[?25l") == 1  # the cursor is hidden
        add(store, a="done")
        shown += until(here, "1 tasks recorded: 1 done")
        watching.send_signal(signal.SIGINT)
        shown += until(here, "\x1b[?25h")  # and there again
    assert watching.returncode == 0
    assert "Traceback" not in shown and "\x1b[?1049h" not in shown
    os.close(here)


def until(terminal: int, *texts: str) -> str:
    """What a terminal shows until it has shown these texts."""
    shown, deadline = "", time.monotonic() + SHOWN_S
    while not all(text in shown for text in texts):
        assert time.monotonic() < deadline, shown
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_without_a_run_it_says_so_and_ends(lethe: Lethe, store: Store) -> None:
    add(store, a="done")
    done = lethe("status", "--watch", "--json", "--results", store.uri)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    facts = json.loads(line)
    assert (facts["done"], facts["driver"], facts["finished"]) == (1, None, None)


def test_seconds_are_for_watch(lethe: Lethe, store: Store) -> None:
    done = lethe("status", "5", "--results", store.uri)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "status 5: seconds are for --watch: `lethe status --watch 5`.\n"
