"""A disk that is full or read-only, parts cut off, clocks set back: real mounts, real runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import compact, overview, plans
from orchestrator.lock import Lock
from orchestrator.store import Store, new_part
from tests.faults.conftest import Begun
from tests.faults.test_storage import plan_of

DAY_S = 86_400.0
BASES = "scores/dataset=digits/architecture=cnn_small/kind=base"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder):
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def mount(*arguments: object) -> int:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode


def remount(disk: Path, option: str) -> None:
    assert mount("-o", f"remount,{option}", disk) == 0


def test_a_disk_that_runs_full_loses_nothing(begun: Begun, disk: Path) -> None:
    results = begun.copy(disk / "results")
    space = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(space.f_bavail * space.f_frsize - 8192))
    with pytest.raises(OSError, match="No space left"):
        begun.run(results)
    assert Store.open(str(results)).runs(["status"]).num_rows == 5
    ballast.unlink()
    assert begun.run(results).ran == 1
    begun.assert_whole(results)
    assert Store.open(str(results)).leftovers("runs") == []


def test_a_disk_that_is_read_only_is_an_error_and_can_still_be_read(begun: Begun, disk: Path) -> None:
    results = begun.copy(disk / "results")
    remount(disk, "ro")
    with pytest.raises(OSError, match="Read-only file system"):
        begun.run(results)
    assert overview.of_store(Store.open(str(results)))["done"] == 5
    remount(disk, "rw")
    assert begun.run(results).ran == 1
    begun.assert_whole(results)


@pytest.mark.parametrize(("table", "lost"), [(BASES, 2), ("designs", 5)])
def test_what_a_row_needs_is_cut_off_and_made_again(
    begun: Begun, tmp_path: Path, table: str, lost: int
) -> None:
    results = begun.copy(tmp_path / "results")
    victims = Store.open(str(results)).files(table)
    for victim in victims:
        (results / victim).write_bytes((results / victim).read_bytes()[:-20])
    ended = begun.run(results)
    assert (ended.ran, ended.failures) == (lost + 1, [])
    begun.assert_whole(results, again=lost)
    assert all((results / "aside" / victim.replace("/", "__")).exists() for victim in victims)


def test_a_clock_set_back_between_runs_and_in_the_middle(
    begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By days, and then again at every look at it."""
    results, now, looks = begun.copy(tmp_path / "results"), time.time(), iter(range(1_000_000))
    monkeypatch.setattr(time, "time", lambda: now - 10 * DAY_S - 3600 * next(looks))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    assert begun.run(results).ran == 1
    begun.assert_whole(results)
    store = Store.open(str(results))
    with Lock(store) as lock:
        compact.compact(store, beat=lock.beat)
    begun.assert_whole(results)
    assert begun.run(results).ran == 0


def test_a_clock_set_back_does_not_bring_an_older_plan_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(str(tmp_path / "results"))
    first, second = plan_of(audit={"pairs": 4, "forget_sets": 4}), plan_of()
    plans.remember(store, first)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - DAY_S)
    plans.remember(store, second)
    order = [facts["grid"]["audit"]["forget_sets"] for facts in plans.stored(store)]
    assert order == [4, 2]
    plans.remember(store, first)
    order = [facts["grid"]["audit"]["forget_sets"] for facts in plans.stored(store)]
    assert order == [2, 4]


def test_parts_keep_names_of_their_own_when_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert len({new_part() for _ in range(1000)}) == 1000
