"""Kill anything, run again, same table. Real processes, real signals."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config import load
from orchestrator.runner import Options, run_grid
from tests.conftest import ROOT, Lethe, all_rows, results_table

pytestmark = pytest.mark.usefixtures("quick_runs")

METHODS = [{"finetune": {"epochs": 2}}, {"gradient_ascent": {"epochs": 2}}]
SMALL = {"seeds": 1, "audit": {"pairs": 4, "forget_sets": 1}, "run": {"flush_s": 0.1}}
Table = list[dict[str, object]]


def start(grid: Path, results: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator", "run", str(grid), "--results", str(results), *options]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        # A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(condition: Callable[[], bool], timeout: float = 180.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("waited too long")
        time.sleep(0.05)


def parts(results: Path) -> int:
    return len(list((results / "runs").glob("*.parquet")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table]:
    """A grid and its table after an inline run that nobody disturbed."""
    import yaml

    from tests.conftest import grid_data

    folder = tmp_path_factory.mktemp("undisturbed")
    grid = folder / "grid.yaml"
    grid.write_text(yaml.safe_dump(grid_data(methods=METHODS, **SMALL)))
    run_grid(load(str(grid)), Options(str(folder / "results"), "data", address=None))
    table = results_table(folder / "results")
    assert len(table) == 1 + 8 + 1 + 8 + 2 * (1 + 8)
    return grid, table


def assert_each_done_once(results: Path) -> None:
    """No task that was done ran again: no id has two rows, none is done at a later attempt."""
    rows = all_rows(results)
    assert Counter(row["task_id"] for row in rows).most_common(1)[0][1] == 1
    assert {row["attempt"] for row in rows} == {1}


def test_inline_run_killed_again_and_again(tmp_path: Path, undisturbed: tuple[Path, Table]) -> None:
    grid, table = undisturbed
    results, moments = tmp_path / "results", random.Random(7)
    for _ in range(2):
        before = parts(results)
        process = start(grid, results, "--inline")
        wait_for(lambda before=before: parts(results) > before)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    ended = run_grid(load(str(grid)), Options(str(results), "data", address=None))
    assert ended.done == len(table) and ended.failures == []
    assert results_table(results) == table
    assert_each_done_once(results)


def test_ray_run_with_a_killed_driver_and_a_killed_worker(
    tmp_path: Path, undisturbed: tuple[Path, Table]
) -> None:
    grid, table = undisturbed
    results = tmp_path / "results"
    process = start(grid, results)
    wait_for(lambda: parts(results) >= 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(all_rows(results)) < len(table)

    process = start(grid, results)
    before = parts(results)
    wait_for(lambda: parts(results) > before)
    os.kill(_actors_of(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert_same_within(results_table(results), table, 1e-6)
    assert_each_done_once(results)
    assert sum(row["retries"] for row in all_rows(results)) == 1  # the worker cost one retry, not the run


def _actors_of(driver: int) -> list[int]:
    """Processes of Ray actors below a driver."""
    import psutil

    children = psutil.Process(driver).children(recursive=True)
    found = [child.pid for child in children if child.name().startswith("ray::Actor")]
    assert found, [child.name() for child in children]
    return found


def assert_same_within(rows: Table, expected: Table, tolerance: float) -> None:
    assert [row["task_id"] for row in rows] == [row["task_id"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            same = row[name] == (pytest.approx(value, abs=tolerance) if isinstance(value, float) else value)
            assert same, (name, row, other)


def test_ctrl_c_flushes_and_says_how_to_resume(tmp_path: Path, undisturbed: tuple[Path, Table]) -> None:
    grid, table = undisturbed
    results = tmp_path / "results"
    process = start(grid, results)
    wait_for(lambda: parts(results) >= 1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"lethe run {grid} --results {results}" in err
    assert "Traceback" not in err
    rows = results_table(results)
    assert 0 < len(rows) < len(table)
    assert {row["status"] for row in rows} == {"done"}


def test_a_second_driver_is_refused(tmp_path: Path, undisturbed: tuple[Path, Table]) -> None:
    grid, _ = undisturbed
    results = tmp_path / "results"
    first = start(grid, results, "--inline")
    try:
        wait_for(lambda: parts(results) >= 1)
        second = start(grid, results, "--inline")
        out, err = second.communicate(timeout=60)
        assert second.returncode == 2, out + err
        assert f"process {first.pid}" in err
        assert "nothing was run" in err
        assert "Traceback" not in err
    finally:
        first.kill()
        first.communicate()


def test_a_truncated_part_is_named_set_aside_and_its_tasks_run_again(
    tmp_path: Path, lethe: Lethe, undisturbed: tuple[Path, Table], capsys: pytest.CaptureFixture[str]
) -> None:
    grid, table = undisturbed
    results = tmp_path / "results"
    shutil.copytree(grid.parent / "results", results)
    victim = sorted((results / "runs").glob("*.parquet"))[0]
    victim.write_bytes(victim.read_bytes()[:-20])
    foreign = results / "runs" / "foreign.parquet"
    foreign.write_bytes(b"not parquet at all")

    status = lethe("status", "--results", results, "--json")
    damaged = json.loads(status.stdout)["damaged"]
    assert sorted(damaged) == sorted([f"runs/{victim.name}", "runs/foreign.parquet"])
    ended = run_grid(load(str(grid)), Options(str(results), "data", address=None))
    assert ended.done == len(table) and ended.failures == []
    assert f"runs/{victim.name} is damaged" in capsys.readouterr().err
    assert (results / "aside" / f"runs__{victim.name}").exists()
    assert results_table(results) == table
