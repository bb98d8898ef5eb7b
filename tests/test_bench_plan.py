"""`lethe bench plan` plans what it says. Nothing here is timed."""

from __future__ import annotations

import json

import pytest

from orchestrator import bench_plan
from orchestrator.catalogue import ROOT
from orchestrator.config import load
from orchestrator.errors import UserError
from orchestrator.plan import make_plan
from tests.conftest import Lethe


def test_it_prints_what_its_docstring_says(lethe: Lethe) -> None:
    done = lethe("bench", "plan", "--tasks", 45, "--json")
    assert done.returncode == 0, done.stderr
    paper, large = json.loads(done.stdout.splitlines()[-1])["grids"]
    assert paper.keys() == large.keys() == bench_plan.PlanBench.__annotations__.keys()
    assert all(name in str(bench_plan.__doc__) for name in paper)
    assert paper["tasks"] == len(make_plan(load(str(ROOT / "grids" / "paper.yaml"))).tasks)
    assert large["tasks"] == 60  # three seeds of a base, a retrain and 18 methods
    assert all(0 < of["plan_s"] < of["command_s"] for of in (paper, large))


def test_without_the_papers_grid_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_plan, "PAPER", "grids/nowhere.yaml")
    with pytest.raises(UserError, match=r"nowhere\.yaml is not there"):
        bench_plan.measure()
