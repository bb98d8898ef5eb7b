"""Ray and inline give the same table: the driver decides only where and when."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import inline
from orchestrator.config import load
from orchestrator.errors import UserError
from orchestrator.report import render
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store
from tests.conftest import Lethe, all_rows, results_table


def report(results: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(render(Store.open(str(results)), "json"))
    return rows


def same(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two JSON values are equal, numbers to a tolerance."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    return bool(one == (pytest.approx(other, abs=tolerance) if isinstance(other, float) else other))


def test_ray_and_inline_give_the_same_table_and_the_same_report(
    lethe: Lethe, write_grid: Callable[..., Path]
) -> None:
    grid = write_grid(
        methods=[{"finetune": {"epochs": 1, "batch_size": 256}}, {"gradient_ascent": {"epochs": 1}}],
        seeds=1,
        training={"all": {"epochs": 1, "batch_size": 256}},
        audit={"pairs": 4, "forget_sets": 1},
    )
    with_ray, without = grid.parent / "with ray", grid.parent / "without"
    done = lethe("run", grid, "--results", with_ray, "--max-actors", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 36 tasks are done (36 in this run" in done.stdout
    ended = run_grid(load(str(grid)), Options(str(without), "data", address=None))
    assert ended.done == ended.total == ended.ran == 36 and ended.failures == []
    rows, expected = results_table(with_ray), results_table(without)
    assert len(rows) == 4 + 8 + 8 + 16
    for row, other in zip(rows, expected, strict=True):
        assert same(row, other, 1e-6), (row, other)
    assert {row["retries"] for row in all_rows(with_ray)} == {0}
    times = ("rte", "wall_s", "evaluate_s", "peak_memory_mib", "score", "rank")
    for row, other in zip(report(with_ray), report(without), strict=True):
        kept = [{k: v for k, v in facts.items() if not k.startswith(times)} for facts in (row, other)]
        assert same(*kept, 1e-6), kept


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "nowhere"])
def test_an_address_where_nobody_answers_is_one_line_at_once(
    lethe: Lethe, write_grid: Callable[..., Path], address: str
) -> None:
    """Ray alone would try for minutes."""
    grid = write_grid(seeds=1, audit=None)
    done = lethe("run", grid, "--results", grid.parent / "results", "--address", address, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"--address {address}: ")
    assert not (grid.parent / "results").exists()


# ---- the time limit of inline runs -----------------------------------------------------------------------


def test_a_block_over_its_limit_is_stopped_and_the_clock_is_put_away() -> None:
    from workers.run_task import TimeLimit

    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeLimit, match=r"longer than 0\.05 s"), inline._limit(0.05):
        time.sleep(5)
    with inline._limit(0.05):
        pass
    time.sleep(0.1)  # an alarm that was left behind would end the process
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_outside_the_main_thread_there_is_no_limit_and_no_error() -> None:
    reached: list[int] = []

    def block() -> None:
        with inline._limit(0.01):
            time.sleep(0.05)
            reached.append(os.getpid())

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert reached


def test_missing_files_of_a_dataset_are_the_users_to_fetch() -> None:
    class Empty:
        def samples(self, name: str) -> dict[str, Any]:
            raise FileNotFoundError(f"`lethe prepare {name}` fetches it")

    with pytest.raises(UserError, match="lethe prepare cifar10"):
        inline.load_samples(Empty(), "cifar10")
