"""Sequential requests from the grid to the table: chains of models, failures, lost weights, kill −9, Ray."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from orchestrator.config import Grid
from orchestrator.plan import make_plan
from orchestrator.report_rows import collect
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store
from tests.conftest import Lethe, all_rows, grid_data, results_table
from tests.faults.test_resume import assert_same_within, start, wait_for

pytestmark = pytest.mark.usefixtures("quick_runs")

FAILING = {"gradient_ascent": {"learning_rate": 1e20, "momentum": 0.0}}
GRID = grid_data(
    methods=[{"finetune": {"epochs": 1}}, {"neggrad_plus": {"epochs": 1}}, FAILING],
    seeds=1,
    requests=3,
    training={"all": {"epochs": 1, "batch_size": 256}},
    audit=None,
    run={"flush_s": 0.01},
)


def run(folder: Path, **changes: Any) -> Any:
    """Run the grid; attacks, which take longer than the tasks, are left out."""
    options = {"data": "data", "address": None} | changes
    with mock.patch("orchestrator.audit.write"):
        return run_grid(Grid.model_validate(GRID), Options(str(folder), **options))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("requests") / "results"
    run(folder)
    return folder


def rows(results: Path) -> dict[str, dict[str, Any]]:
    return {row["task_id"]: row for row in Store.open(str(results)).runs().to_pylist()}


def test_each_request_started_from_the_weights_that_the_one_before_left(results: Path) -> None:
    plan, found, checked = make_plan(Grid.model_validate(GRID)), rows(results), 0
    for task in plan.tasks:
        row = found[task.id]
        if task.base is None or row["status"] != "done":
            continue
        parent = found[task.base]
        left = parent["weights_sha256"] if parent["kind"] == "base" else parent["left_sha256"]
        assert row["weights_sha256"] == left and row["parents"] == [task.base]
        assert (row["left_sha256"] is None) != task.leaves_model
        checked += 1
    assert checked == 2 * 3
    hashes = [row["left_sha256"] for row in found.values() if row["left_sha256"]]
    assert len(set(hashes)) == len(hashes) == 2 * 2
    assert not list((results / "models").glob("*.safetensors"))


def test_each_request_knows_fewer_samples_than_the_one_before(results: Path) -> None:
    """What a method of request j started with is what the retrain of request j − 1 was trained on."""
    plan, found = make_plan(Grid.model_validate(GRID)), rows(results)
    members = [found[plan.cells[0].bases["main", 0, 0]]["members_sha256"]]
    members += [found[cell.retrains["main", 0, 0]]["members_sha256"] for cell in plan.cells]
    assert len(set(members)) == 4
    for cell, expected in zip(plan.cells, members, strict=False):
        for variant in cell.variants[:2]:
            assert found[variant.tasks["main", 0, 0]]["members_sha256"] == expected


def test_what_follows_a_diverged_request_is_skipped_with_the_reason(results: Path) -> None:
    plan, found = make_plan(Grid.model_validate(GRID)), rows(results)
    first, second, third = (found[cell.variants[2].tasks["main", 0, 0]] for cell in plan.cells)
    assert (first["status"], first["left_sha256"]) == ("diverged", None)
    for row in (second, third):
        assert (row["status"], row["reason"]) == (
            "skipped",
            f"its predecessor {first['task_id']} is diverged",
        )


def test_the_report_has_a_table_for_each_request(results: Path) -> None:
    with mock.patch("orchestrator.audit.current", return_value=[]):
        report = collect(Store.open(str(results)))
    assert [cell.cell.forget for cell in report.cells] == [
        f"random(fraction=0.2), request {number} of 3" for number in (1, 2, 3)
    ]
    found = rows(results)
    for cell in report.cells:
        (row,) = [row for row in cell.rows if row["method"] == "finetune"]
        own = found[cell.cell.variants[0].tasks["main", 0, 0]]
        retrain = found[cell.cell.retrains["main", 0, 0]]
        assert row["fa"] == own["fa"] and row["rte"] == pytest.approx(retrain["wall_s"] / own["wall_s"])
        deviation = sum(abs(own[name] / retrain[name] - 1) for name in ("ra", "fa", "ta"))
        assert row["ret_dev"] == pytest.approx(deviation)


def test_running_again_runs_nothing(results: Path) -> None:
    assert run(results).ran == 0


def test_lost_weights_of_a_request_are_made_again_with_all_before_them(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    assert run(folder, limit=9).ran == 9
    left = {path.stem for path in (folder / "models").iterdir()}
    plan = make_plan(Grid.model_validate(GRID))
    second = [variant.tasks["main", 0, 0] for variant in plan.cells[1].variants[:2]]
    assert left == set(second), "of the models of the second request another run goes on"
    (folder / "models" / f"{second[1]}.safetensors").unlink()
    run(folder)
    assert results_table(folder) == results_table(results)
    first = plan.cells[0].variants[1].tasks["main", 0, 0]
    again = {row["task_id"] for row in all_rows(folder) if row["attempt"] == 2}
    assert again == {plan.cells[0].bases["main", 0, 0], first, second[1]}
    assert not list((folder / "models").iterdir())


def test_a_chain_that_is_killed_goes_on_where_it_was(results: Path, tmp_path: Path) -> None:
    grid, folder = tmp_path / "grid.yaml", tmp_path / "results"
    grid.write_text(yaml.safe_dump(GRID))
    process = start(grid, folder, "--inline")
    wait_for(lambda: any((folder / "models").glob("*")) and len(list((folder / "runs").glob("*"))) >= 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {row["task_id"] for row in all_rows(folder)}
    assert 0 < len(before) < len(rows(results))
    time.sleep(0.05)
    run(folder)
    assert results_table(folder) == results_table(results)
    assert {row["attempt"] for row in all_rows(folder)} == {1}


@pytest.mark.long
def test_ray_and_inline_give_the_same_table(
    results: Path, lethe: Lethe, write_grid: Callable[..., Path], tmp_path: Path
) -> None:
    grid = write_grid(**{"audit": None, **GRID})
    done = lethe("run", grid, "--results", grid.parent / "with ray", "--max-actors", 2)
    assert done.returncode == 1, done.stdout + done.stderr  # three rows are failures, on purpose
    expected = results_table(results)
    assert_same_within(results_table(grid.parent / "with ray"), expected, 1e-6)
    found, other = rows(grid.parent / "with ray"), rows(results)
    assert {name: row["left_sha256"] for name, row in found.items()} == {
        name: row["left_sha256"] for name, row in other.items()
    }
    assert not list((grid.parent / "with ray" / "models").iterdir())
    shutil.rmtree(grid.parent / "with ray")
