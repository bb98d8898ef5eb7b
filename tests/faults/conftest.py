"""A run that is nearly done, to be damaged in copies, and the table it would end with."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Grid
from orchestrator.plan import Plan, make_plan
from orchestrator.runner import Ended, Options, run_grid
from tests.conftest import all_rows, grid_data, results_table


@dataclass
class Begun:
    """The plan of six tasks, results with five of them (all models kept), and the table of all six."""

    plan: Plan
    folder: Path
    table: list[dict[str, Any]]

    def copy(self, target: Path) -> Path:
        """The results with five tasks, in a folder to do harm in."""
        shutil.copytree(self.folder, target)
        return target

    def run(self, results: Path | str, limit: int | None = None) -> Ended:
        """An inline run in this process of what is left."""
        options = Options(str(results), str(self.folder.parent / "data"), None, limit=limit, keep_models=True)
        return run_grid(self.plan.grid, options)

    def assert_whole(self, results: Path | str, again: int = 0) -> None:
        """The table is the undisturbed one: no done row is lost; so many tasks have a second row, none a
        third.
        """
        assert results_table(results) == self.table
        counts = Counter(row["task_id"] for row in all_rows(results))
        assert sorted(counts.values()) == [1] * (6 - again) + [2] * again


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    plan = make_plan(
        Grid.model_validate(grid_data(audit=None, training={"all": {"epochs": 1}}, run={"flush_s": 0.1}))
    )
    folder = tmp_path_factory.mktemp("begun")
    made = Begun(plan, folder / "results", [])
    assert made.run(made.folder, limit=5).ran == 5
    whole = made.copy(folder / "whole")
    assert made.run(whole).ran == 1
    made.table = results_table(whole)
    assert len(made.table) == 6 and {row["status"] for row in made.table} == {"done"}
    return made
