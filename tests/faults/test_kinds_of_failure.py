"""Every way a task can fail becomes its row, and the rest goes on. Real Ray, real dying processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.config import load
from orchestrator.runner import Options, run_grid
from tests.conftest import Lethe, all_rows, results_table

pytestmark = pytest.mark.usefixtures("quick_runs")

METHOD = '''
"""A method that fails on purpose."""
from dataclasses import dataclass
from methods.base import Method, hp

@dataclass(frozen=True)
class Failing(Method):
    name = "{name}"
    label = "{name}"
    paper = ""
    version = 1
    needs = ("retain",)
    cost = {{}}

    def unlearn(self, model, data):
        import os, time
        {body}
        return model
'''


def failing(name: str, body: str) -> str:
    return METHOD.format(name=name, body=body)


FAILING = {
    "dies": "os.write(2, b'the last line of a process'); os._exit(1)",
    "hangs": "time.sleep(600)",
    "raises": "raise RuntimeError('a fault in the method')",
    "hungry": "raise MemoryError('no memory left')",
    "starved": "import torch; raise torch.OutOfMemoryError('as a GPU says it')",  # no GPU is at hand
}
EXPECTED = {
    "dies": "lost_worker",
    "hangs": "timeout",
    "raises": "bug",
    "hungry": "oom",
    "starved": "oom",
    "finetune": "done",
}


@pytest.fixture
def failing_project(project_copy: Callable[..., Path]) -> Path:
    return project_copy(**{name: failing(name, body) for name, body in FAILING.items()})


def test_every_failure_becomes_its_row_and_the_rest_goes_on(
    lethe: Lethe, write_grid: Callable[..., Path], failing_project: Path
) -> None:
    diverging = {"gradient_ascent": {"learning_rate": 1e20, "momentum": 0.0}}
    grid = write_grid(methods=[*EXPECTED, diverging], seeds=1, audit=None)
    results = grid.parent / "results"
    done = lethe("run", grid, "--results", results, "--time-limit-s", 25, cwd=failing_project)
    assert done.returncode == 1, done.stderr
    rows = {row["method"]: row for row in all_rows(results) if row["kind"] == "unlearn"}
    assert {name: row["status"] for name, row in rows.items()} == {**EXPECTED, "gradient_ascent": "diverged"}
    assert rows["dies"]["retries"] == 3
    assert rows["hungry"]["retries"] + rows["starved"]["retries"] >= 1  # as long as there were two actors
    assert "a fault in the method" in rows["raises"]["reason"]
    assert "RuntimeError" in (results / rows["raises"]["log"]).read_text()
    assert rows["hangs"]["reason"] == "longer than 25 s"
    logs = {name: (results / row["log"]).read_text() for name, row in rows.items() if row["log"]}
    assert logs.keys() == rows.keys() - {"finetune"}  # every failure has one
    assert logs["dies"].count("  lost  actor ") == 4 and "Standard error of process" in logs["dies"]
    assert "the last line of a process" in logs["dies"]
    assert "  given  actor " in logs["hangs"] and 'hangs.py", line ' in logs["hangs"]  # where it hung
    for row in rows.values():
        assert row["status"] == "done" or (row["ra"] is None and row["ta"] is None)  # never a made-up number
    for text in ("1 diverged", "1 lost_worker", "1 timeout", "1 bug", "2 oom", "first log: logs/", "--retry"):
        assert text in done.stdout, done.stdout

    again = lethe("run", grid, "--results", results, "--inline", cwd=failing_project)
    assert again.returncode == 1  # failures stay until they are retried by name
    assert len(all_rows(results)) == len(rows) + 2

    mended = failing("raises", "pass")
    (failing_project / "methods" / "raises.py").write_text(mended)
    retried = lethe("run", grid, "--results", results, "--retry", "bug", "--inline", cwd=failing_project)
    assert retried.returncode == 1  # the other five still failed
    statuses = {row["method"]: row["status"] for row in results_table(results) if row["kind"] == "unlearn"}
    assert statuses["raises"] == "done"
    assert Counter(row["task_id"] for row in all_rows(results)).most_common(1)[0][1] == 2


def test_inline_failures_become_rows_too(
    lethe: Lethe, write_grid: Callable[..., Path], failing_project: Path
) -> None:
    grid = write_grid(methods=["finetune", "hangs", "raises", "hungry"], seeds=1, audit=None)
    results = grid.parent / "results"
    done = lethe("run", grid, "--results", results, "--inline", "--time-limit-s", 15, cwd=failing_project)
    assert done.returncode == 1, done.stderr
    statuses = {row["method"]: row["status"] for row in results_table(results) if row["kind"] == "unlearn"}
    assert statuses == {name: EXPECTED[name] for name in ("finetune", "hangs", "raises", "hungry")}


def test_what_starts_from_a_base_that_failed_is_skipped_with_the_reason(
    write_grid: Callable[..., Path],
) -> None:
    grid = write_grid(seeds=1, audit=None, training={"all": {"epochs": 2, "learning_rate": 1e20}})
    results = grid.parent / "results"
    ended = run_grid(load(str(grid)), Options(str(results), "data", address=None))
    assert len(ended.failures) == 3
    rows = {row["kind"]: row for row in all_rows(results)}
    assert rows["base"]["status"] == rows["retrain"]["status"] == "diverged"
    assert rows["unlearn"]["status"] == "skipped"
    assert rows["base"]["task_id"] in rows["unlearn"]["reason"]
    assert "diverged" in rows["unlearn"]["reason"]


SWALLOWS = """block = bytearray(3 << 30)
        for place in range(0, len(block), 4096):
            block[place] = 1
        time.sleep(60)"""


@pytest.mark.long
def test_what_the_host_has_no_memory_for_ends_as_oom_and_the_rest_goes_on(
    lethe: Lethe,
    write_grid: Callable[..., Path],
    project_copy: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's memory monitor kills the worker: its limit is set 1.5 GiB above what is in use now."""
    memory = psutil.virtual_memory()
    limit = 1 - (memory.available - 1.5 * 2**30) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    project = project_copy(swallows=failing("swallows", SWALLOWS))
    grid = write_grid(methods=["finetune", "swallows"], seeds=1, audit=None)
    results = grid.parent / "results"
    done = lethe("run", grid, "--results", results, "--max-actors", 1, cwd=project)
    assert done.returncode == 1, done.stdout + done.stderr
    rows = {row["method"] or row["kind"]: row for row in all_rows(results)}
    assert rows["swallows"]["status"] == "oom" and rows["swallows"]["retries"] == 2
    assert {row["status"] for name, row in rows.items() if name != "swallows"} == {"done"}
