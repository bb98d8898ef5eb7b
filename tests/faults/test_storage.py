"""Storage that fails or was tampered with: one line, no wrong report, and the next run heals it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import audit, plans
from orchestrator.config import Grid, load
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.plan import make_plan
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store
from tests.conftest import Lethe, grid_data

pytestmark = pytest.mark.usefixtures("quick_runs")

WriteGrid = Callable[..., Path]


def plan_of(**changes: Any) -> Any:
    return make_plan(Grid.model_validate(grid_data(**changes)))


def run_inline(grid: Path, results: Path | None = None) -> Path:
    """Run the grid in this process; gives the folder of the results, which is beside the grid by default."""
    results = results or grid.parent / "results"
    ended = run_grid(load(str(grid)), Options(str(results), "data", address=None))
    assert ended.done == ended.total
    return results


def test_the_plan_run_last_decides_what_the_report_shows(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "results"))
    first, second = plan_of(), plan_of(audit={"pairs": 4, "forget_sets": 4})
    for plan in (first, second, first):
        plans.remember(store, plan)
    [cell] = plans.recall(store)
    keys = [key for key in cell.retrains if key[0] == "audit"]
    assert {index for _, _, index in keys} == {0, 1}
    assert len(keys) == 16


def test_a_damaged_plan_is_named_and_the_next_run_writes_it_again(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "results"))
    plans.remember(store, plan_of())
    [name] = store.files("plans", ".json")
    store.write(name, store.read(name)[:200])
    assert plans.recall(store) == []
    assert store.damaged == [name]
    plans.remember(store, plan_of())
    assert len(plans.recall(store)) == 1


def test_audits_computed_around_a_damaged_part_are_not_kept(
    write_grid: WriteGrid,
) -> None:
    results = run_inline(write_grid(seeds=1, audit=None, training={"all": {"epochs": 1}}))
    for part in (results / "audits").glob("*.parquet"):
        part.unlink()
    store = Store.open(str(results))
    store.note_damage("scores/some.parquet")
    audit.write(store, plans.recall(store))
    assert store.files("audits") == []
    whole = Store.open(str(results))
    audit.write(whole, plans.recall(whole))
    assert len(whole.files("audits")) == 1


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/full").exists(), reason="mounts need root")
def test_a_full_disk_is_one_line_and_the_run_resumes(
    lethe: Lethe, write_grid: WriteGrid, tmp_path: Path
) -> None:
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        grid = write_grid(audit=None, methods=[{"finetune": {"epochs": 1}}])
        full = lethe("run", grid, "--results", disk / "results", "--inline")
        assert full.returncode == 2
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        run_inline(grid, disk / "results")
        assert json.loads(lethe("status", "--results", disk / "results", "--json").stdout)["done"] == 6
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("datasets", [["cifar10"], ["digits", "cifar10"]])
def test_a_dataset_that_is_missing_leaves_no_trace(write_grid: WriteGrid, datasets: list[str]) -> None:
    grid = write_grid(datasets=datasets, audit=None)
    with pytest.raises(UserError, match="lethe prepare cifar10"):
        run_inline(grid)
    assert not (grid.parent / "results").exists()


def test_a_run_of_a_dataset_that_is_missing_is_one_line(lethe: Lethe, write_grid: WriteGrid) -> None:
    missing = lethe("run", write_grid(datasets=["cifar10"], audit=None), "--inline")
    assert missing.returncode == 2 and "lethe prepare cifar10" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_an_unwritable_report_is_one_line(lethe: Lethe, write_grid: WriteGrid) -> None:
    grid = write_grid(audit=None)
    Store.create(str(grid.parent / "results"))
    (grid.parent / "file").write_text("")
    done = lethe("report", "--out", grid.parent / "file" / "x.html")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_store_that_holds_more_than_a_plan_is_never_taken_back(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "results"))
    plans.remember(store, plan_of())
    store.write("samples/dataset=digits/part.parquet", b"")
    store.discard()
    assert Store.open(store.uri).files("plans", ".json")


def test_a_driver_that_is_refused_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drivers find a new folder at the same moment; the one without the lock must not undo the other."""
    results = str(tmp_path / "results")
    store = Store.create(results)
    plan = plan_of()
    monkeypatch.setattr(Store, "open_if_any", classmethod(lambda cls, uri: None))
    with Lock(store):
        plans.remember(store, plan)
        with pytest.raises(UserError, match="nothing was run"):
            run_grid(plan.grid, Options(results, "data", address=None))
    assert Store.open(results).files("plans", ".json")
