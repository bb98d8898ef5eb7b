"""`lethe bench plan`: seconds to plan the paper's grid and one of 100,000 tasks, each in its own process.

JSON: {"grids": […]}, for each

    grid        its file, or a made-up one as in `lethe bench driver`
    tasks       in its plan
    plan_s      to read it and plan it, Python and imports not included
    command_s   `lethe plan GRID --json`, the start of Python included
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.bench_driver import grid_of
from orchestrator.catalogue import ROOT
from orchestrator.errors import UserError

PAPER = "grids/paper.yaml"
SCRIPT = """
import json, sys, time
from orchestrator.config import load
from orchestrator.plan import make_plan
start = time.perf_counter()
plan = make_plan(load(sys.argv[1]))
print(json.dumps([len(plan.tasks), time.perf_counter() - start]))
"""


@dataclass(frozen=True)
class PlanBench:
    """What was found of one grid; the keys are explained above."""

    grid: str
    tasks: int
    plan_s: float
    command_s: float


def measure(tasks: int = 100_000) -> dict[str, list[dict[str, Any]]]:
    """Plan the paper's grid and one of at least this many tasks. UserError without the paper's grid, which is
    in the repository and not in an installed package.
    """
    paper = ROOT / PAPER
    if not paper.exists():
        raise UserError(f"bench plan: {paper} is not there. Run this in a checkout of the repository.")
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        large = Path(folder) / "grid.yaml"
        large.write_text(json.dumps(grid_of(tasks)))
        found = [_of(PAPER, paper, folder), _of(f"made up, {tasks} tasks", large, folder)]
    return {"grids": [asdict(one) for one in found]}


def _of(name: str, grid: Path, folder: str) -> PlanBench:
    count, seconds = json.loads(_run("-c", SCRIPT, str(grid)))
    start = time.perf_counter()
    _run("-m", "orchestrator", "plan", str(grid), "--results", f"{folder}/none", "--json")
    return PlanBench(name, count, seconds, time.perf_counter() - start)


def _run(*arguments: str) -> str:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, text=True, stdout=subprocess.PIPE
    )
    return done.stdout


def as_text(found: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each grid."""
    return "\n".join(
        f"{of['grid']}: {of['tasks']:,} tasks planned in {of['plan_s']:.2f} s;"
        f" `lethe plan` takes {of['command_s']:.2f} s"
        for of in found["grids"]
    )
