"""`hyperparameters: tuned`: each cell has the winners that were found for it, and runs are tuned before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from orchestrator import cli, tuned, tuned_plan
from orchestrator.config import Grid
from orchestrator.errors import UserError
from orchestrator.plan import Plan, make_plan
from orchestrator.store import Store
from orchestrator.tuned import Winner, Winners
from tests.conftest import all_rows, grid_data

pytestmark = pytest.mark.usefixtures("quick_runs")

TWO = [{"random": {"fraction": 0.2}}, {"random": {"fraction": 0.1}}]
VALUES = {"epochs": 3, "batch_size": 128, "learning_rate": 0.02, "momentum": 0.5, "weight_decay": 0.001}


def grid_of(**changes: Any) -> Grid:
    return Grid.model_validate(grid_data(**({"hyperparameters": "tuned"} | changes)))


def winners_of(grid: Grid, *, forget: int = 0, version: int = 1, **values: Any) -> Winners:
    """A winner of finetune in the cell of a forget recipe of the grid."""
    place = tuned_plan.place(grid, "digits", "cnn_small", grid.forget[forget])
    return {(place, "finetune", version): Winner("finetune", version, VALUES | values)}


def used(plan: Plan, method: str = "finetune") -> dict[str, list[Any]]:
    """The values that the tasks of a method have, by the forget recipe's label."""
    found: dict[str, list[Any]] = {}
    for task in plan.tasks:
        if task.kind == "unlearn" and task.spec["method"]["name"] == method:
            values = task.spec["method"]["hyperparameters"]
            known = found.setdefault(task.columns()["forget"], [])
            known += [values] if values not in known else []
    return found


def test_each_cell_has_its_own_winner_on_both_tracks() -> None:
    grid = grid_of(forget=TWO, methods=["finetune", "gradient_ascent"])
    winners = winners_of(grid) | winners_of(grid, forget=1, epochs=7)
    plan = tuned_plan.tuned_plan(grid, winners)
    assert used(plan) == {
        "random(fraction=0.2)": [VALUES],
        "random(fraction=0.1)": [VALUES | {"epochs": 7}],
    }
    tracks = {task.spec["members"]["track"] for task in plan.tasks if task.kind == "unlearn"}
    assert tracks == {"main", "audit"}
    assert [v.hyperparameters for cell in plan.cells for v in cell.variants if v.method == "finetune"] == [
        VALUES,
        VALUES | {"epochs": 7},
    ]


def test_only_the_tasks_of_a_winner_are_others_than_those_of_the_defaults() -> None:
    grid = grid_of(forget=TWO, methods=["finetune", "gradient_ascent"])
    plain, made = make_plan(grid), tuned_plan.tuned_plan(grid, winners_of(grid))
    changed = [task.columns() for task in made.tasks if task.id not in plain.by_id]
    assert {(c["kind"], c["method"], c["forget"]) for c in changed} == {
        ("unlearn", "finetune", "random(fraction=0.2)")
    }
    assert len(changed) == 2 + 8 * 2 and len(made.tasks) == len(plain.tasks)
    assert set(tuned_plan.tuned_plan(grid, {}).by_id) == set(plain.by_id)


def test_a_task_with_the_winners_values_written_out_is_the_same_task() -> None:
    grid = grid_of()
    written = make_plan(grid_of(hyperparameters="default", methods=[{"finetune": VALUES}]))
    assert set(tuned_plan.tuned_plan(grid, winners_of(grid)).by_id) == set(written.by_id)


def test_what_the_grid_sets_stands_above_the_winner() -> None:
    grid = grid_of(methods=[{"finetune": {"epochs": 9}}])
    assert used(tuned_plan.tuned_plan(grid, winners_of(grid))) == {
        "random(fraction=0.2)": [VALUES | {"epochs": 9}]
    }


@pytest.mark.parametrize(
    "other",
    [
        {"training": {"all": {"epochs": 3}}},
        {"val_fraction": 0.2},
        {"augment_unlearning": False},
        {"forget": [{"random": {"fraction": 0.3}}]},
    ],
)
def test_a_winner_holds_in_no_other_place(other: dict[str, Any]) -> None:
    grid = grid_of(**other)
    plan = tuned_plan.tuned_plan(grid, winners_of(grid_of()))
    assert set(plan.by_id) == set(make_plan(grid).by_id)
    assert len(tuned_plan.missing(grid, winners_of(grid_of()))) == 1


def test_a_winner_of_another_version_of_the_method_does_not_count() -> None:
    grid = grid_of()
    assert set(tuned_plan.tuned_plan(grid, winners_of(grid, version=2)).by_id) == set(make_plan(grid).by_id)
    assert tuned_plan.missing(grid, winners_of(grid)) == []
    assert len(tuned_plan.missing(grid, winners_of(grid, version=2))) == 1


def test_all_requests_of_a_forget_set_have_the_same_winner() -> None:
    grid = grid_of(requests=2, audit=None)
    found = used(tuned_plan.tuned_plan(grid, winners_of(grid)))
    assert list(found.values()) == [[VALUES], [VALUES]] and len(found) == 2


def test_studies_are_of_methods_that_fit_the_forget_recipe() -> None:
    grid = grid_of(methods=["finetune", "mnemonic_code"], forget=[{"class": {"classes": [0]}}, *TWO])
    names = [(forget.name, method.name) for _, _, forget, method in tuned_plan.studies(grid)]
    assert names == [
        ("class", "finetune"),
        ("class", "mnemonic_code"),
        ("random", "finetune"),
        ("random", "finetune"),
    ]


# ---- a run -----------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "methods": [{"finetune": {"batch_size": 256}}, {"gradient_ascent": {"batch_size": 256}}],
    "hyperparameters": "tuned",
    "seeds": 1,
    "training": {"all": {"epochs": 1, "batch_size": 256}},
    "audit": None,
    "tune": {
        "trials": 1, "finalists": 1, "confirm_seeds": 1, "evaluate_seeds": 2,
        "space": {"all": {"epochs": [1, 2]}},
    },
}  # fmt: skip
ASCENT = {"epochs": 1, "batch_size": 256, "learning_rate": 0.003, "momentum": 0.1, "weight_decay": 0.002}


def called(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_a_run_is_tuned_before_and_running_again_runs_nothing(
    write_grid: Callable[..., Path], weird_tmp_path: Path
) -> None:
    path, results = write_grid(**TINY), weird_tmp_path / "results"
    grid = Grid.model_validate(grid_data(**TINY))
    place = tuned_plan.place(grid, "digits", "cnn_small", grid.forget[0])
    tuned.write(Store.create(str(results)), place, [Winner("gradient_ascent", 1, ASCENT)])
    before = called("plan", path, "--results", results)
    assert "4 tasks in 1 cell" in before.output
    assert "1 study of tuning comes first; counted here with the defaults." in before.output

    ran = called("run", path, "--inline", "--results", results)
    assert ran.exit_code == 0, ran.output
    assert "1 winners found, 1 known before, of 2 studies" in ran.output
    assert "All 4 tasks are done (4 in this run" in ran.output
    [file] = (results / "tuned").iterdir()
    winners = yaml.safe_load(file.read_text())["winners"]
    rows = {row["method"]: row for row in all_rows(results) if row["track"] == "main"}
    assert set(rows) == {"", "finetune", "gradient_ascent"}
    for method, row in rows.items():
        if method:
            values = yaml.safe_load(row["spec"])["method"]["hyperparameters"]
            assert values == winners[method]["hyperparameters"] | {"batch_size": 256}
    assert winners["gradient_ascent"]["hyperparameters"] == ASCENT

    count = len(all_rows(results))
    again = called("run", path, "--inline", "--results", results)
    assert again.exit_code == 0 and "winners" not in again.output
    assert "All 4 tasks are done (0 in this run" in again.output
    assert len(all_rows(results)) == count
    after = called("plan", path, "--results", results)
    assert "4 are done, 0 are left." in after.output and "lethe tune" not in after.output
    assert "come first" not in after.output and "comes first" not in after.output
    assert f"{count:,} tasks recorded" in called("status", "--results", results).output


def test_a_database_for_a_grid_that_is_not_tuned_is_refused(write_grid: Callable[..., Path]) -> None:
    refused = called("run", write_grid(), "--inline", "--optuna-storage", "sqlite:///studies.db")
    assert isinstance(refused.exception, UserError)
    assert "--optuna-storage" in str(refused.exception.problems) and "not tuned" in str(
        refused.exception.problems
    )
