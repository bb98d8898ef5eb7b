"""One driver per results folder, and none is locked out by a dead one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator import lock as locks
from orchestrator.errors import UserError
from orchestrator.lock import NAME, Lock
from orchestrator.store import Store


@pytest.fixture
def store(weird_tmp_path: Path) -> Store:
    return Store.create(str(weird_tmp_path / "results"))


def test_a_second_driver_is_refused_with_owner_and_age(store: Store, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError) as caught, Lock(store):
        pass
    (line,) = caught.value.problems
    assert f"process {holder.pid} of " in line
    assert " for 0 s" in line or " for 1 s" in line or " for 2 s" in line
    assert "nothing was run" in line and "--results" in line
    assert holder.poll() is None


def test_the_age_is_the_time_since_the_owner_started(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    with Lock(store):
        monkeypatch.setattr(locks.time, "time", lambda: now + 90)
        with pytest.raises(UserError, match="for 90 s"), Lock(store):
            pass


def test_the_lock_is_gone_when_its_owner_was_killed(store: Store, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert Store.open(store.uri).exists(NAME)  # the file is still there: only the kernel's lock counts
    with Lock(store):
        owner = json.loads(store.read(NAME))
    assert owner["pid"] == os.getpid()


def test_the_lock_is_released_on_exit_and_on_error(store: Store) -> None:
    with Lock(store):
        pass
    with pytest.raises(RuntimeError), Lock(store):
        raise RuntimeError
    with Lock(store):
        assert json.loads(store.read(NAME))["pid"] == os.getpid()


def test_a_refused_driver_does_not_disturb_the_owner(store: Store) -> None:
    with Lock(store):
        before = store.read(NAME)
        for _ in range(2):
            with pytest.raises(UserError), Lock(store):
                pass
        assert store.read(NAME) == before


def test_a_folder_with_nothing_but_a_lock_is_still_free(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("")
    Store.create(str(tmp_path))


def test_the_age_is_never_negative(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    with Lock(store):
        monkeypatch.setattr(locks.time, "time", lambda: now - 3600)
        with pytest.raises(UserError, match="for 0 s"), Lock(store):
            pass


def test_a_lock_file_that_was_deleted_is_made_again(store: Store) -> None:
    with Lock(store):
        os.unlink(store.path(NAME))
        store.write("logs/a.txt", b"still the owner")
        with pytest.raises(UserError, match="nothing was run"), Lock(Store(store.uri)):
            pass


def test_threads_that_write_when_the_lock_file_is_gone_do_not_disturb_each_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several look for the file that was deleted; one alone makes it again."""
    stat = os.stat

    def slow(*arguments: Any, **options: Any) -> os.stat_result:
        try:
            return stat(*arguments, **options)
        except FileNotFoundError:
            time.sleep(0.05)  # the others look, too
            raise

    with Lock(store), ThreadPoolExecutor(8) as pool:
        os.unlink(store.path(NAME))
        monkeypatch.setattr(os, "stat", slow)
        list(pool.map(lambda i: store.write(f"logs/{i}.txt", b""), range(8)))
        assert len(store.files("logs", ".txt")) == 8 and store.exists(NAME)
        with pytest.raises(UserError, match="nothing was run"), Lock(Store(store.uri)):
            pass


def test_a_driver_whose_lock_file_was_replaced_writes_nothing_more(store: Store) -> None:
    """Somebody deleted the lock of a living driver, and started a second one."""
    with Lock(store) as first:
        os.unlink(store.path(NAME))
        with Lock(Store(store.uri)):
            for attempt in (
                lambda: store.write("logs/a.txt", b""),
                first.beat,
                lambda: store.delete("lethe.json"),
            ):
                with pytest.raises(UserError, match="has taken these results over"):
                    attempt()
        with pytest.raises(
            UserError, match="has taken these results over"
        ):  # for good: the other has written
            store.write("logs/a.txt", b"")
    assert store.files("logs", ".txt") == [] and store.exists("lethe.json")
    with Lock(store):
        store.write("logs/a.txt", b"")
