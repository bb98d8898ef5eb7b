"""The lock on an object store: one of many drivers wins, a silent one is replaced and writes nothing more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from orchestrator import claims
from orchestrator.claims import FOLDER, GIVE_WAY_S, STALE_S, Claim, Held, machine
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.store import Store
from tests.s3 import Server, bucket_uri, s3, s3_server, s3_store

__all__ = ["bucket_uri", "s3", "s3_server", "s3_store"]

HOLD = """
import sys
from orchestrator import claims
from orchestrator.lock import Lock
from orchestrator.store import Store
claims.LATE_S = 1.0
store = Store.open(sys.argv[1])
with Lock(store):
    print("held", flush=True)
    sys.stdin.readline()
    store.write("logs/a.txt", b"written")
"""


@pytest.fixture
def holder(s3_store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, and writes when it is sent a line."""
    command = [sys.executable, "-c", HOLD, s3_store.uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """later[0] seconds are added to the times the store gives to objects written from now on."""
    shift, real = [0.0], Claim._list
    moved: dict[tuple[str, object], float] = {}

    def shifted(claim: Claim) -> dict[str, claims._Seen]:
        found = real(claim)
        for id, seen in found.items():
            assert seen.written_at is not None
            seen.written_at += timedelta(seconds=moved.setdefault((id, seen.owner.get("beat")), shift[0]))
        return found

    monkeypatch.setattr(Claim, "_list", shifted)
    yield shift


def owners(store: Store) -> list[str]:
    return store.files(FOLDER, ".json")


def test_a_second_driver_is_refused_and_changes_nothing(
    s3_store: Store, holder: subprocess.Popen[str]
) -> None:
    [name] = owners(s3_store)
    before = s3_store.read(name)
    for _ in range(2):
        with pytest.raises(UserError, match=f"process {holder.pid} of .*nothing was run"), Lock(s3_store):
            pass
    assert owners(s3_store) == [name] and s3_store.read(name) == before


def test_the_lock_is_released_on_exit_and_on_error(s3_store: Store) -> None:
    with Lock(s3_store):
        assert len(owners(s3_store)) == 1
    with pytest.raises(RuntimeError), Lock(s3_store):
        raise RuntimeError
    assert owners(s3_store) == []


def test_of_many_drivers_in_the_same_moment_exactly_one_wins(s3_store: Store) -> None:
    for _ in range(4):
        barrier, outcomes = threading.Barrier(5), []
        made = [Claim(Store(s3_store.uri), {"pid": os.getpid()}) for _ in range(5)]

        def race(claim: Claim, barrier: threading.Barrier = barrier, outcomes: list[str] = outcomes) -> None:
            barrier.wait()
            try:
                claim.take()
                outcomes.append("won")
            except Held:
                outcomes.append("refused")

        threads = [threading.Thread(target=race, args=(claim,)) for claim in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(outcomes) == ["refused"] * 4 + ["won"]
        [name] = owners(s3_store)
        s3_store.delete(name)


def test_the_lock_of_a_driver_that_was_killed_here_is_void_at_once(
    s3_store: Store, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert len(owners(s3_store)) == 1 and machine()
    with Lock(s3_store):
        assert len(owners(s3_store)) == 1


def test_the_lock_of_another_machine_is_void_when_it_was_not_renewed(
    s3_store: Store, later: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(claims, "machine", lambda: "elsewhere")
        dead = Claim(s3_store, {"pid": 1 << 30, "beat": 0})
        dead.take()
    for seconds in (0.0, STALE_S - 20):
        later[0] = seconds
        with pytest.raises(Held):
            Claim(s3_store, {"pid": os.getpid(), "beat": seconds}).take()
    dead.owner["beat"] = 1
    dead.renew()
    later[0] = 2 * STALE_S - 40  # renewed since: it lives
    with pytest.raises(Held):
        Claim(s3_store, {"pid": os.getpid(), "beat": 2}).take()
    later[0] = 2 * STALE_S
    Claim(s3_store, {"pid": os.getpid(), "beat": 3}).take()
    with pytest.raises(Held):
        dead.renew()


def test_clocks_of_machines_void_no_lock(
    s3_store: Store, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for seconds in (-1e6, 1e6):  # the other machine's clock, or this one after it was set
        monkeypatch.setattr(time, "time", lambda seconds=seconds: now + seconds)
        with pytest.raises(UserError, match="nothing was run"), Lock(s3_store):
            pass


def test_a_suspended_driver_stops_before_it_writes(s3_store: Store, holder: subprocess.Popen[str]) -> None:
    """Stopped by a signal, taken over, continued: its next write is refused, with one line for the user."""
    holder.send_signal(signal.SIGSTOP)
    [theirs] = owners(s3_store)
    s3_store.delete(theirs)  # as whoever takes over does
    with Lock(s3_store):
        time.sleep(1.5)
        os.kill(holder.pid, signal.SIGCONT)
        _, errors = holder.communicate("go on\n", timeout=60)
        assert holder.returncode != 0 and "has taken these results over" in errors
        assert len(owners(s3_store)) == 1
    assert not s3_store.exists("logs", "a.txt")


def test_a_lost_lock_stops_every_kind_of_write(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_store.write("logs/kept.txt", b"")
    with Lock(s3_store) as lock:
        [name] = owners(s3_store)
        s3_store.fs.delete_file(s3_store.path(name))
        s3_store.write("logs/before.txt", b"")  # renewed a moment ago: not looked up for each write
        late = claims.since_boot() + claims.LATE_S + 1
        monkeypatch.setattr(claims, "since_boot", lambda: late)
        s3_store.note_damage("logs/kept.txt")
        writes = (
            lambda: s3_store.write("logs/a.txt", b""),
            lambda: s3_store.write_part("runs", [{"task_id": "a"}], "p"),
            lambda: s3_store.write_model("a", b""),
            lambda: s3_store.delete("logs/kept.txt"),
            s3_store.set_aside,
            lock.beat,
        )
        for write in writes:
            with pytest.raises(UserError, match="has taken these results over"):
                write()
    assert s3_store.files("logs", ".txt") == ["logs/before.txt", "logs/kept.txt"]
    assert s3_store.files("runs") == s3_store.files("aside", ".txt") == []


def test_the_lock_is_renewed_by_itself(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.lock.RENEW_S", 0.05)
    with Lock(s3_store):
        [name] = owners(s3_store)
        before, end = s3_store.read(name), time.monotonic() + 20
        while s3_store.read(name) == before:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_claim_that_cannot_be_read_holds_until_it_is_stale(s3_store: Store, later: list[float]) -> None:
    s3_store.write(f"{FOLDER}/0.json", b"{half")
    with pytest.raises(UserError, match="another process"), Lock(s3_store):
        pass
    later[0] = STALE_S + 1
    Claim(s3_store, {"pid": os.getpid(), "beat": 1}).take()
    assert f"{FOLDER}/0.json" not in owners(s3_store)


def test_who_comes_first_waits_for_those_that_give_way(s3_store: Store) -> None:
    """A claim of a higher id that does not give way, as of a driver cut off on its way, ends the wait."""
    Claim(s3_store, {"pid": os.getpid(), "machine": machine()})
    s3_store.write(f"{FOLDER}/zzzz.json", b'{"held": false, "pid": 1}')
    started = time.monotonic()
    taker = threading.Timer(1.5, lambda: s3_store.fs.delete_file(s3_store.path(FOLDER, "zzzz.json")))
    taker.start()
    claim = Claim(s3_store, {"pid": os.getpid()})
    claim.take()
    assert 1.0 < time.monotonic() - started < GIVE_WAY_S
    claim.release()


def test_an_outage_shorter_than_a_lock_lives_loses_nothing(s3: Server, s3_store: Store) -> None:
    with Lock(s3_store) as lock:
        assert lock._claim is not None
        s3.faults.fail(503)
        with pytest.raises(OSError):
            lock._claim.renew()
        s3.faults.mend()
        lock._claim.renew()
        s3_store.write("logs/a.txt", b"")


def test_a_run_that_has_nothing_to_write_outlives_an_outage(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late, and not to be reached: the next write waits for the store, a sign of life does not."""

    def unreachable(_: Claim) -> None:
        raise OSError("no answer")

    with Lock(s3_store) as lock, monkeypatch.context() as outage:
        late = claims.since_boot() + claims.LATE_S + 1
        outage.setattr(claims, "since_boot", lambda: late)
        outage.setattr(Claim, "renew", unreachable)
        lock.beat()
        mending = threading.Timer(0.5, lambda: outage.setattr(Claim, "renew", lambda _: None))
        mending.start()
        s3_store.write("logs/a.txt", b"text")
    assert s3_store.read("logs/a.txt") == b"text"
