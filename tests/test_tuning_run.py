"""`lethe tune` inline on digits, from the grid file to the winners: one run, looked at from all sides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from orchestrator import studies, tune_runner, tuned
from orchestrator.config import Grid, load
from orchestrator.objective import distance
from orchestrator.plan import make_plan
from orchestrator.report import render
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store
from orchestrator.tune_runner import Tuned
from orchestrator.tuning import SEEDS_APART
from tests.conftest import ROOT, all_rows

pytestmark = pytest.mark.usefixtures("quick_runs")

TUNE: dict[str, Any] = {
    "trials": 3,
    "finalists": 1,
    "confirm_seeds": 1,
    "evaluate_seeds": 2,
    "parallel": 1,
    "space": {
        "all": {"epochs": [1, 2], "learning_rate": [0.01, 0.02]},
        "gradient_ascent": {"learning_rate": [1e20, 1e25]},  # each of these diverges
    },
}
GRID: dict[str, Any] = {
    "datasets": ["digits"],
    "architectures": ["cnn_small"],
    "forget": [{"random": {"fraction": 0.2}}],
    "methods": [{"finetune": {"batch_size": 256}}, {"gradient_ascent": {"batch_size": 64, "epochs": 2}}],
    "seeds": 1,
    "training": {"all": {"epochs": 1, "batch_size": 256}},
    "tune": TUNE,
    "run": {"flush_s": 0.05},
}
PHASES = ("search", "confirm", "evaluate")


def written(folder: Path, grid: dict[str, Any] = GRID) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid), encoding="utf-8")
    return path


def options(results: Path) -> Options:
    return Options(str(results), "data", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning run")


@pytest.fixture(scope="module")
def grid(folder: Path) -> Grid:
    return load(str(written(folder)))


@pytest.fixture(scope="module")
def ended(folder: Path, grid: Grid) -> Tuned:
    """The one run that most tests look at."""
    return tune_runner.tune_grid(grid, options(folder / "results"))


@pytest.fixture(scope="module")
def results(folder: Path, ended: Tuned) -> Path:
    assert ended.failed == []
    return folder / "results"


@pytest.fixture(scope="module")
def rows(results: Path) -> list[dict[str, Any]]:
    """The ledger as tuning left it."""
    found = [row for row in all_rows(results) if row["track"] == "tune"]
    for row in found:
        row["spec"] = json.loads(row["spec"])
    return found


def phase(row: dict[str, Any]) -> str:
    return str(row["spec"]["members"]["phase"])


def trials(results: Path, method: str) -> list[optuna.trial.FrozenTrial]:
    kept = studies.storage(Store.open(str(results)), write=False)
    [name] = [s.study_name for s in kept.get_all_studies() if s.study_name.startswith(f"{method} ")]
    return optuna.load_study(study_name=name, storage=kept).get_trials()


def winners(results: Path) -> dict[str, Any]:
    [path] = (results / "tuned").iterdir()
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


# ---- what was searched -----------------------------------------------------------------------------------


def test_the_winner_is_the_trial_or_the_default_that_was_best_when_it_was_confirmed(
    results: Path, rows: list[dict[str, Any]]
) -> None:
    file = winners(results)
    assert (file["dataset"], file["architecture"]) == ("digits", "cnn_small")
    assert file["forget"] == "random(fraction=0.2)" and file["rule"] == tuned.RULE
    winner = file["winners"]["finetune"]
    by_values: dict[str, list[float]] = defaultdict(list)
    [retrain] = [row for row in rows if row["kind"] == "retrain" and phase(row) == "confirm"]
    for row in rows:
        if row["method"] == "finetune" and phase(row) == "confirm":
            values = json.dumps(row["spec"]["method"]["hyperparameters"], sort_keys=True)
            by_values[values].append(distance("retrain_distance", row, retrain))
    assert len(by_values) == 2  # the default and one finalist, each once
    best = min(by_values, key=lambda values: by_values[values])
    assert winner["hyperparameters"] == json.loads(best)
    assert winner["confirmed"] == pytest.approx(min(by_values.values())[0])
    assert winner["version"] == 1 and winner["objective"] == "retrain_distance"
    assert winner["trials"] == {"finished": 3, "pruned": 0, "failed": {}}
    assert winner["budget"]["trials"] == 3 and winner["commit"]


def test_the_gain_is_that_of_the_last_phase_seed_by_seed(results: Path, rows: list[dict[str, Any]]) -> None:
    winner = winners(results)["winners"]["finetune"]
    last = [row for row in rows if phase(row) == "evaluate"]
    expected = {}
    for row in last:
        if row["method"] == "finetune":
            [retrain] = [r for r in last if r["kind"] == "retrain" and r["seed"] == row["seed"]]
            tuned_one = row["spec"]["method"]["hyperparameters"] == winner["hyperparameters"]
            expected[tuned_one, row["seed"]] = distance("retrain_distance", row, retrain)
    seeds = [2 * SEEDS_APART, 2 * SEEDS_APART + 1]
    assert winner["tuned"] == pytest.approx([expected[True, seed] for seed in seeds])
    if winner["origin"] != "default":
        assert winner["default"] == pytest.approx([expected[False, seed] for seed in seeds])
        gains = [d - t for d, t in zip(winner["default"], winner["tuned"], strict=True)]
        assert winner["gain"]["mean"] == pytest.approx(sum(gains) / 2)
    one, other = (r for r in last if r["kind"] == "retrain")
    assert winner["noise_floor"] == pytest.approx(distance("retrain_distance", one, other))


def test_the_space_of_the_grid_holds_and_what_the_grid_sets_is_not_searched(results: Path) -> None:
    found = trials(results, "finetune")
    assert len(found) == 3
    for trial in found:
        assert set(trial.params) == {"epochs", "learning_rate", "momentum", "weight_decay"}
        assert trial.params["epochs"] in (1, 2) and 0.01 <= trial.params["learning_rate"] <= 0.02
    for trial in trials(results, "gradient_ascent"):  # what a method has of its own stands above `all`
        assert set(trial.params) == {"learning_rate", "momentum", "weight_decay"}
        assert trial.params["learning_rate"] >= 1e20
    for method, entry in winners(results)["winners"].items():
        assert entry["hyperparameters"]["batch_size"] == {"finetune": 256, "gradient_ascent": 64}[method]
        assert not {"batch_size"} & set(entry["searched"])


def test_trials_that_diverge_fail_with_the_reason_and_the_default_wins(results: Path) -> None:
    found = trials(results, "gradient_ascent")
    assert len(found) == 2 * 3 + 10  # no finished trial: given up after so many
    assert {trial.state for trial in found} == {TrialState.FAIL}
    assert {trial.user_attrs["reason"] for trial in found} == {"diverged: the loss is not finite"}
    winner = winners(results)["winners"]["gradient_ascent"]
    assert winner["origin"] == "default" and winner["trials"]["failed"] == {"diverged": 16}
    assert winner["hyperparameters"]["learning_rate"] == 0.01


# ---- what is recorded ------------------------------------------------------------------------------------


def test_rows_are_of_the_tuning_track_and_have_no_scores(results: Path, rows: list[dict[str, Any]]) -> None:
    assert Counter(row["kind"] for row in rows if row["kind"] != "unlearn") == {"base": 4, "retrain": 4}
    assert len(rows) == len({row["task_id"] for row in rows})
    for row in rows:
        assert row["status"] == ("diverged" if row["wall_s"] is None else "done")
        if row["status"] == "done" and row["kind"] != "base":
            assert 0 <= row["val_auc"] <= 1 and 0 <= row["val_mia"] <= 1
    assert [p for p in (results / "scores").rglob("*") if p.is_file()] == []
    assert list((results / "models").iterdir()) == []  # no bases of tuning are left


def test_phases_have_seeds_validation_and_forget_sets_of_their_own(
    results: Path, rows: list[dict[str, Any]], grid: Grid
) -> None:
    from workers.designs import FORGET, VAL, unpack

    seeds = {name: {row["seed"] for row in rows if phase(row) == name} for name in PHASES}
    assert seeds == {"search": {0}, "confirm": {1000}, "evaluate": {2000, 2001}}
    table = Store.open(str(results)).read_table("designs").to_pylist()
    states = {row["design"]: unpack(row["states"], row["n_pool"]) for row in table}
    of_phase = {phase(row): states[row["design"]] for row in rows if row["kind"] == "retrain"}
    main = next(t for t in make_plan(grid).tasks if t.kind == "retrain").spec
    of_phase["main"] = main_states(main)
    for state in (VAL, FORGET):
        sets = {name: frozenset((found == state).nonzero()[0]) for name, found in of_phase.items()}
        assert len(set(sets.values())) == 4
        assert len({len(one) for one in sets.values()}) == 1  # as many, others
    seeds_of = {json.dumps(row["spec"]["seeds"]) for row in rows if row["kind"] == "base"}
    assert len(seeds_of | {json.dumps(main["seeds"])}) == 5


def main_states(spec: dict[str, Any]) -> Any:
    import torch

    from workers.task_design import Design
    from workers.worker import Worker

    assert torch.get_num_threads() >= 1
    return Design(Worker("data").dataset("digits"), spec).states


# ---- again, and beside other runs ------------------------------------------------------------------------


def test_tuning_again_runs_nothing_and_says_that_winners_are_known(results: Path, grid: Grid) -> None:
    before = winners(results)
    again = tune_runner.tune_grid(grid, options(results))
    assert (again.ran, again.found, again.known, again.failed) == (0, [], 2, [])
    said = tune_runner.text(again, "lethe tune grid.yaml", str(results))
    assert said.startswith("0 winners found, 2 known before, of 2 studies (0 tasks in this run")
    assert winners(results) == before


def test_a_run_of_the_same_grid_is_not_disturbed(results: Path, grid: Grid, tmp_path: Path) -> None:
    run_grid(grid, options(results))
    run_grid(grid.model_copy(update={"tune": None}), options(tmp_path / "alone"))
    ids = {task.id for task in make_plan(grid.model_copy(update={"tune": None})).tasks}
    for folder in (results, tmp_path / "alone"):
        assert {row["task_id"] for row in all_rows(folder) if row["track"] != "tune"} == ids

    def shown(folder: Path) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(render(Store.open(str(folder)), "json"))
        measured = ("wall_s", "rte", "peak_memory", "prepaid", "_s")
        return [
            {key: value for key, value in row.items() if not any(word in key for word in measured)}
            for row in found
        ]

    assert len(shown(results)) == 4
    assert shown(results) == shown(tmp_path / "alone")


def test_a_method_added_later_is_tuned_on_the_same_bases_made_again(
    results: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The weights of the bases went when tuning ended."""
    later = GRID | {"methods": [*GRID["methods"], {"scrub": {"epochs": 2, "forget_epochs": 1}}]}
    ended = tune_runner.tune_grid(load(str(written(tmp_path, later))), options(results))
    assert (ended.known, len(ended.found), ended.failed) == (2, 1, [])
    bases = [row for row in all_rows(results) if row["kind"] == "base" and row["track"] == "tune"]
    assert Counter(row["task_id"] for row in bases) == {
        row["task_id"]: 2 for row in rows if row["kind"] == "base"
    }
    assert {row["attempt"] for row in bases} == {1, 2} and {row["status"] for row in bases} == {"done"}
    assert set(winners(results)["winners"]) == {"finetune", "gradient_ascent", "scrub"}


# ---- killed ----------------------------------------------------------------------------------------------


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[tuple[Path, Grid]]:
    """Results of a run that was killed (SIGKILL) once its first rows were durable."""
    space = {"all": TUNE["space"]["all"]}
    alone = GRID | {"methods": GRID["methods"][:1], "tune": TUNE | {"space": space}}
    path, results = written(tmp_path, alone), tmp_path / "results"
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "tune", str(path), "--inline", "--results", str(results)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while process.poll() is None and len(list((results / "runs").glob("*.parquet"))) < 4:
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    yield results, load(str(path))


def test_killed_and_run_again_it_ends_as_if_left_alone(killed: tuple[Path, Grid], results: Path) -> None:
    folder, grid = killed
    done = {row["task_id"] for row in all_rows(folder)}
    assert done
    ended = tune_runner.tune_grid(grid, options(folder))
    assert (len(ended.found), ended.failed) == (1, [])
    after = all_rows(folder)
    assert len(after) == len({row["task_id"] for row in after}) == len(done) + ended.ran
    ran = {
        row["task_id"] for row in all_rows(results) if row["track"] == "tune" and row["status"] != "diverged"
    }
    assert {row["task_id"] for row in after} <= ran
    values = [trial.params for trial in trials(folder, "finetune")]
    assert len(values) == 3 and values == [trial.params for trial in trials(results, "finetune")]
    facts = ("hyperparameters", "origin", "tuned", "default", "confirmed")
    one, other = (winners(place)["winners"]["finetune"] for place in (folder, results))
    assert {name: one[name] for name in facts} == {name: other[name] for name in facts}


@pytest.mark.long
def test_ray_finds_the_same_winners(
    results: Path, rows: list[dict[str, Any]], grid: Grid, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    ended = tune_runner.tune_grid(grid, Options(str(tmp_path / "ray"), "data", "local", max_actors=2))
    assert ended.failed == []
    names = {row["task_id"] for row in rows}
    assert {row["task_id"] for row in all_rows(tmp_path / "ray")} == names
    one, other = (winners(place)["winners"] for place in (tmp_path / "ray", results))
    assert one["finetune"]["hyperparameters"] == other["finetune"]["hyperparameters"]
