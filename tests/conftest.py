"""Fixtures shared by all tests: small grids, the command line as a user calls it, and results as tables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two busy processes with two threads each are far slower

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "workers", "methods", "attacks")

Lethe = Callable[..., subprocess.CompletedProcess[str]]

# What a task leaves that must not depend on how or where it ran.
RESULT_COLUMNS = (
    *("task_id", "kind", "track", "method", "seed", "forget_index", "status", "design"),
    *("ra", "fa", "va", "ta", "retain_loss", "forget_loss", "val_loss", "test_loss"),
)


def grid_data(**changes: Any) -> dict[str, Any]:
    """A grid that takes a few seconds: two seeds, four pairs, two forget sets, two epochs."""
    grid = {
        "datasets": ["digits"],
        "architectures": ["cnn_small"],
        "forget": [{"random": {"fraction": 0.2}}],
        "methods": ["finetune"],
        "seeds": 2,
        "training": {"all": {"epochs": 2}},
        "audit": {"pairs": 4, "forget_sets": 2},
    }
    return {key: value for key, value in (grid | changes).items() if value is not None}


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name has a space, a quote and a letter that is not ASCII."""
    folder = tmp_path / "it's a földer"
    folder.mkdir()
    return folder


HOLD = """
import sys
from orchestrator.lock import Lock
from orchestrator.store import Store
with Lock(Store.open(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(store: Any) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a module's `store` until its standard input ends."""
    command = [sys.executable, "-c", HOLD, store.uri]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def write_grid(weird_tmp_path: Path) -> Callable[..., Path]:
    """Write a grid file: write_grid(methods=[…]) -> path."""

    def write(name: str = "grid.yaml", **changes: Any) -> Path:
        path = weird_tmp_path / name
        path.write_text(yaml.safe_dump(grid_data(**changes)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def lethe(weird_tmp_path: Path) -> Lethe:
    """Call the command line in an empty folder: lethe("plan", grid) -> the finished process."""

    def call(
        *arguments: object, cwd: Path = weird_tmp_path, timeout: float = 200
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(project_of(cwd))}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return call


def project_of(folder: Path) -> Path:
    """The copy of the project in a folder if there is one, else the project."""
    return folder if (folder / "orchestrator").is_dir() else ROOT


@pytest.fixture
def project_copy(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the project with more methods: project_copy(crash="…source…") -> its folder."""

    def copy(**methods: str) -> Path:
        folder = tmp_path / "project"
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name, source in methods.items():
            (folder / "methods" / f"{name}.py").write_text(source, encoding="utf-8")
        return folder

    return copy


DUPLICATES: dict[tuple[str, bool], dict[str, Any]] = {}  # of datasets that were searched for them


@pytest.fixture(scope="module")
def quick_runs() -> Iterator[None]:
    """For modules that look at neither: bootstraps in this process have 20 draws and not 1,000, and a dataset
    is searched for duplicates once.
    """
    from attacks import ulira
    from workers.worker import Worker

    weights, search = ulira.pair_weights, Worker.duplicates

    def duplicates(worker: Worker, name: str) -> dict[str, Any]:
        key = worker.dataset(name).sha256, worker.dataset(name).flip
        if key not in DUPLICATES:
            DUPLICATES[key] = search(worker, name)
        return DUPLICATES[key]

    with (
        mock.patch.object(ulira, "pair_weights", lambda pairs, _, seed: weights(pairs, 20, seed)),
        mock.patch.object(Worker, "duplicates", duplicates),
    ):
        yield


def results_table(results: Path | str) -> list[dict[str, Any]]:
    """The ledger as rows of the columns that must not depend on how a run went, sorted by task."""
    from orchestrator.store import Store

    rows = Store.open(str(results)).runs(RESULT_COLUMNS).select(RESULT_COLUMNS).to_pylist()
    return sorted(rows, key=lambda row: row["task_id"])


def all_rows(results: Path | str) -> list[dict[str, Any]]:
    """Every row ever written to the ledger, superseded ones too."""
    from orchestrator.store import Store

    return list(Store.open(str(results)).read_table("runs").to_pylist())
