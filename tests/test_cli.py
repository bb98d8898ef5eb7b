"""The command line as a user meets it: exit codes, one clear line per mistake, nothing heavy for a glance."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import __version__, catalogue, overview, schema
from orchestrator.config import Grid, load
from orchestrator.errors import UserError
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store
from tests.conftest import ROOT, Lethe, grid_data

WriteGrid = Callable[..., Path]

GLANCES = ("--help", "--version", "status", "status --watch", "plan", "list methods", "run --help")

IMPORTED = """
import sys
from orchestrator.cli import main
sys.argv = ["lethe", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    code = ended.code or 0
heavy = {"torch", "ray", "optuna", "sklearn", "torchvision"}
print(sorted({name.partition(".")[0] for name in sys.modules} & heavy), code)
"""


def one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, one line on stderr with these parts, nothing on stdout."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    for part in parts:
        assert part in line, line
    assert done.stdout == ""


@pytest.fixture
def results(weird_tmp_path: Path) -> Path:
    """A results folder with two done tasks and a failed one."""
    folder = weird_tmp_path / "my results"
    store = Store.create(str(folder))
    common = {"attempt": 1, "dataset": "digits", "architecture": "cnn_small", "method": ""}
    rows = [
        {"task_id": "a", "kind": "base", "status": "done"},
        {"task_id": "b", "kind": "unlearn", "status": "done", "method": "finetune"},
        {"task_id": "c", "kind": "unlearn", "status": "oom", "method": "finetune", "log": "logs/c-1.txt"},
    ]
    store.write_part("runs", [common | row for row in rows], "p")
    return folder


# ---- nothing heavy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", GLANCES)
def test_a_glance_imports_neither_torch_nor_ray(results: Path, write_grid: WriteGrid, arguments: str) -> None:
    command = arguments.split()
    command += ["--results", str(results)] if command[0] in ("status", "plan") else []
    command += [str(write_grid())] if command[0] == "plan" else []
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *command],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[-1] == "[] 0", done.stdout + done.stderr


def test_bad_input_is_told_before_anything_heavy_is_imported(write_grid: WriteGrid) -> None:
    command = [sys.executable, "-c", IMPORTED, "run", str(write_grid(seeds=0))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines()[-1] == "[] 2"


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "run"])
def test_mistakes_in_a_grid_are_counted_and_nothing_is_written(
    lethe: Lethe, write_grid: WriteGrid, command: str
) -> None:
    grid = write_grid(seeds=0, methods=["neggrad+"], fraction=1.5)
    done = lethe(command, grid)
    assert done.returncode == 2 and done.stdout == ""
    *lines, last = done.stderr.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith(str(grid)) for line in lines)
    assert last == "3 problems, nothing was run."
    assert os.listdir(grid.parent) == ["grid.yaml"]


def test_one_mistake_is_one_line(lethe: Lethe, write_grid: WriteGrid) -> None:
    grid = write_grid(forget=[{"random": {"fraction": 1.5}}])
    one_line(lethe("run", grid), str(grid), "random.fraction", "1.5")
    one_line(lethe("run", grid.parent / "nothing.yaml"), "nothing.yaml: no such file")
    assert os.listdir(grid.parent) == ["grid.yaml"]


@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
def test_a_folder_that_is_not_ours_is_refused(lethe: Lethe, write_grid: WriteGrid, command: str) -> None:
    grid = write_grid()
    foreign = grid.parent / "photos"
    foreign.mkdir()
    (foreign / "cat.png").write_bytes(b"png")
    arguments = (grid, "--inline") if command == "run" else (grid,) if command == "plan" else ()
    one_line(lethe(command, *arguments, "--results", foreign), "photos", "holds no Lethe results")
    assert os.listdir(foreign) == ["cat.png"]


@pytest.mark.parametrize("command", ["status", "report"])
def test_no_results_yet_says_how_to_get_them(lethe: Lethe, weird_tmp_path: Path, command: str) -> None:
    one_line(lethe(command), "no results yet", "lethe run GRID")
    assert os.listdir(weird_tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("run", "GRID", "--retry", "ooom"), ("--retry ooom", "oom, diverged")),
        (("list", "method"), ("list method", "Did you mean 'methods'?", "columns")),
        (("prepare", "cifr10"), ("'cifr10'", "Did you mean 'cifar10'?")),
        (("report", "--format", "pdf"), ("--format pdf", "html", "json")),
        (("run", "GRID", "--device", "tpu"), ("--device tpu", "auto, cpu, gpu")),
        (("run", "GRID", "--inline", "--device", "gpu"), ("--device gpu", "no GPU")),
        (("run", "GRID", "--actors-per-gpu", "0"), ("--actors-per-gpu 0", "auto")),
        (("run", "GRID", "--inline", "--results", "nosuchscheme://x"), ("nosuchscheme://x",)),
        (
            ("run", "GRID", "--inline", "--results", "grid.yaml/below"),
            ("grid.yaml/below", "cannot be written"),
        ),
        (("run", "GRID", "--inline", "--results", "grid.yaml"), ("grid.yaml", "holds no Lethe results")),
    ],
)
def test_other_mistakes_are_one_line_too(
    lethe: Lethe, write_grid: WriteGrid, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    grid = write_grid()
    one_line(lethe(*(grid if argument == "GRID" else argument for argument in arguments)), *parts)
    assert os.listdir(grid.parent) == ["grid.yaml"]


@pytest.mark.parametrize(
    "arguments", [("run",), ("nonsense",), ("run", "g.yaml", "--limit", "0"), ("plan", "--x")]
)
def test_wrong_usage_has_exit_code_2_and_no_trace(lethe: Lethe, arguments: tuple[str, ...]) -> None:
    done = lethe(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "Usage" in done.stderr


def test_files_missing_for_a_dataset_say_how_to_fetch_them(tmp_path: Path) -> None:
    grid = Grid.model_validate(grid_data(datasets=["cifar10"], seeds=1, audit=None))
    options = Options(str(tmp_path / "results"), str(tmp_path / "data"), address=None)
    with pytest.raises(UserError, match="lethe prepare cifar10"):
        run_grid(grid, options)


# ---- what it prints --------------------------------------------------------------------------------------


def test_run_status_and_resume(lethe: Lethe, write_grid: WriteGrid) -> None:
    """Two of three tasks, then the rest, then nothing: counts and next steps as told on the way."""
    grid = write_grid(seeds=1, audit=None, training={"all": {"epochs": 1}}, run={"max_actors": 1})
    limited = lethe("run", grid, "--inline", "--limit", 2, "--results", "results")
    assert limited.returncode == 0, limited.stderr
    assert "2 of 3 tasks are done (2 tried now" in limited.stdout
    again = shlex.join(["lethe", "run", str(grid), "--inline", "--results", "results"])
    assert f"1 are left: `{again}` goes on." in limited.stdout
    facts = json.loads(lethe("status", "--json").stdout)
    assert (facts["recorded"], facts["done"], facts["failed"]) == (2, 2, {})
    rest = run_grid(load(str(grid)), Options(str(grid.parent / "results"), "data", address=None))
    text = overview.run_text(rest, str(grid), "results")
    assert "All 3 tasks are done (1 in this run" in text and "lethe report --results results" in text
    assert json.loads(lethe("plan", grid, "--json").stdout)["done"] == 3


def test_parquet_goes_to_a_file_or_a_pipe_but_not_to_a_terminal(lethe: Lethe, results: Path) -> None:
    here, terminal = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "report",
        "--format",
        "parquet",
        "--results",
        str(results),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(terminal)
    os.close(here)
    assert done.returncode == 2
    assert done.stderr == "--format parquet: binary, not for a terminal. Name a file with --out FILE.\n"
    piped = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    written = lethe("report", "--format", "parquet", "--results", results, "--out", "rows.parquet")
    assert written.stdout == "Wrote rows.parquet.\n"
    assert piped == (results.parent / "rows.parquet").read_bytes() and piped.startswith(b"PAR1")


def test_status_names_failures_with_their_log(lethe: Lethe, results: Path) -> None:
    done = lethe("status", "--results", results)
    assert done.returncode == 0
    assert "3 tasks recorded (1 base, 2 unlearn), 2 done." in done.stdout
    assert "1 of 3 tasks did not finish: 1 oom." in done.stdout
    assert "finetune · digits · cnn_small" in done.stdout and "first log: logs/c-1.txt" in done.stdout
    facts = json.loads(lethe("status", "--results", results, "--json").stdout)
    assert (facts["done"], facts["failed"], facts["kinds"]) == (2, {"oom": 1}, {"base": 1, "unlearn": 2})


def listed(lethe: Lethe, kind: str) -> list[dict[str, Any]]:
    done = lethe("list", kind, "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


@pytest.mark.parametrize("kind", catalogue.FOLDERS)
def test_lists_have_what_scripts_rely_on(lethe: Lethe, kind: str) -> None:
    rows = listed(lethe, kind)
    names = [row["name"] for row in rows]
    assert [name.replace("timm:NAME", "timm") for name in names] == list(catalogue.plugins(kind))
    for row in rows:
        assert {"name", "label", "paper", "version"} <= row.keys()
        assert row["label"] and isinstance(row["version"], int)
        for parameter in row["parameters"].values():
            assert "default" in parameter and (
                "choices" in parameter or parameter["low"] is not None or parameter["default"] == ""
            ), "a choice, a range or a text"
    text = lethe("list", kind).stdout
    assert all(row["name"] in text and row["label"] in text for row in rows)


def test_list_columns_documents_every_column(lethe: Lethe) -> None:
    rows = listed(lethe, "columns")
    expected = [(table, column.name) for table, columns in schema.TABLES.items() for column in columns]
    assert [(row["table"], row["name"]) for row in rows] == expected
    assert all(row["type"] and row["meaning"] for row in rows)
    assert "wall_s" in lethe("list", "columns").stdout


def test_help_names_every_command_and_version_is_the_packages(lethe: Lethe) -> None:
    text = lethe("--help").stdout
    for command in ("plan", "run", "status", "dashboard", "report", "list", "store", "prepare", "doctor"):
        assert command in text
    assert all(command in lethe("store", "--help").stdout for command in ("compact", "verify", "suffstats"))
    assert lethe("--version").stdout == f"lethe {__version__}\n"


def test_prepare_has_nothing_to_fetch_for_the_embedded_dataset(lethe: Lethe) -> None:
    done = lethe("prepare", "digits")
    assert done.returncode == 0 and done.stdout == "digits: embedded in scikit-learn\n"


def test_a_reader_that_goes_away_is_no_error_message(weird_tmp_path: Path) -> None:
    command = f"{sys.executable} -m orchestrator list columns | head -1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr and done.stdout.startswith("runs")


def test_keys_in_an_address_are_not_shown(lethe: Lethe) -> None:
    done = lethe("status", "--results", "s3://AKIA:topsecret@")
    assert done.returncode == 2 and done.stderr and "topsecret" not in done.stderr + done.stdout
