"""What compaction must leave as it is: the report of a real run, and the AUCs where φ is rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attacks import metrics, ulira
from orchestrator import audit, compact, overview, parquet, plans, report
from orchestrator.config import Grid
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store, score_folder, score_rows
from tests.conftest import grid_data, results_table
from tests.test_compact import ONE, phi_of, put

pytestmark = pytest.mark.usefixtures("quick_runs")

# ---- float16 ---------------------------------------------------------------------------------------------


PAIRS = 16


def simulated_cell(store: Store) -> None:
    """φ of 16 forgotten and 16 retrained models, easier where forgotten."""
    rng, samples = np.random.default_rng(0), 5000
    hard, memory = rng.normal(4, 2, samples), rng.gamma(1, 0.5, samples)
    tasks = [f"{world} {pair}" for world in ("forgotten", "retrained") for pair in range(PAIRS)]
    rows: list[dict[str, Any]] = []
    for task in tasks:
        mean = hard + memory if task.startswith("forgotten") else hard
        phi = rng.normal(mean, 1).astype(np.float32)
        rows += score_rows(task, phi, phi > 0)
    store.write_part("scores", rows, "p", ONE)
    same = {"part": "p", "attempt": 1, "status": "done"}
    store.write_part("runs", [same | {"task_id": task} for task in tasks], "p")


def worlds_of(store: Store) -> list[np.ndarray]:
    """(forgotten, retrained): φ (pairs, samples) as stored."""
    phi = store.scores(store.runs(["task_id", "part"]), ONE)
    return [np.stack([phi[f"{world} {p}"] for p in range(PAIRS)]) for world in ("forgotten", "retrained")]


def test_float16_moves_no_auc_by_1e_4_with_ties_counted_half(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "results"))
    simulated_cell(store)
    exact = worlds_of(store)
    [part] = store.files("scores")
    size = len(store.read(part))
    compact.compact(store, "float16")
    rounded = worlds_of(store)
    [name] = store.files("scores")
    assert len(store.read(name)) < 0.6 * size
    assert pq.read_schema(store.path(name)).field("phi").type == pa.list_(pa.float16())
    assert not any(np.array_equal(*pair) for pair in zip(rounded, exact, strict=True))
    before, after = ulira.compare(*exact), ulira.compare(*rounded)
    for metric in ("auc", "loss_auc", "balanced_accuracy"):
        assert abs(getattr(before, metric) - getattr(after, metric)) < 1e-4, metric
    (high, low), expected = (world.ravel() for world in rounded), metrics.auc(*map(np.ravel, exact))
    assert abs(metrics.auc(high, low) - expected) < 1e-5
    below = np.searchsorted(np.sort(low), high, side="left").mean() / low.size
    assert abs(below - expected) > 1e-4  # what a tie counted as nothing would read: rounding makes many


def test_float16_stays_and_what_is_beyond_its_range_is_its_largest_number(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "results"))
    phi = np.array([1e6, -1e6, 0.1], np.float32)
    store.write_part("scores", list(score_rows("a", phi, phi > 0)), "p", ONE)
    store.write_part("runs", [{"task_id": "a", "part": "p", "attempt": 1, "status": "done"}], "p")
    compact.compact(store, "float16")
    expected = [65504.0, -65504.0, float(np.float16(0.1))]
    runs = store.runs(["task_id", "part"])
    assert store.scores(runs, ONE)["a"].tolist() == expected
    files = store.files("scores")
    for precision in ("float32", "float16"):
        compact.compact(store, precision)
        assert store.files("scores") == files
    put(store, 2, {"b": ONE})
    compact.compact(store)
    assert store.scores(runs, ONE)["a"].tolist() == expected
    assert np.array_equal(store.scores(store.runs(["task_id", "part"]), ONE)["b"], phi_of("b", 1))


# ---- a real run ------------------------------------------------------------------------------------------


def facts_of(results: Path) -> dict[str, Any]:
    store = Store.open(str(results))
    found = {form: report.render(store, form) for form in ("json", "csv")}
    return found | {"status": overview.of_store(store), "runs": results_table(results)}


def test_status_report_audit_and_resume_of_a_real_run(tmp_path: Path) -> None:
    grid = Grid.model_validate(
        grid_data(
            seeds=1,
            methods=[{"finetune": {"epochs": 1, "batch_size": 256}}],
            training={"all": {"epochs": 1, "batch_size": 256}},
            audit={"pairs": 4, "forget_sets": 1, "columns": ["modified_entropy"]},
            run={"flush_s": 0.1},
        )
    )
    results = tmp_path / "results"
    options = Options(str(results), "data", address=None)
    ended = run_grid(grid, options)
    assert ended.done == ended.total
    store = Store.open(str(results))
    before, markdown = facts_of(results), report.render(store, "md")
    assert len(store.files("runs")) > 2, "several parts, or nothing is shown"
    compact.compact(store)
    assert facts_of(results) == before and report.render(store, "md") == markdown
    audits = store.files("audits")
    audit.write(Store.open(store.uri), plans.recall(store))
    assert store.files("audits") == audits  # no row was computed again
    again = run_grid(grid, options)
    assert (again.ran, again.done) == (0, ended.total)
    assert facts_of(results) == before
    folder = score_folder("digits", "cnn_small", "unlearn", "finetune")
    runs = store.runs(["task_id", "part", "track"])
    scored = {row["task_id"] for row in runs.to_pylist() if row["track"] == "audit"}
    found = store.scores(runs, folder, "modified_entropy")
    assert found.keys() == scored & store.scores(runs, folder).keys()  # the main track has none
    assert all(values.dtype == np.float16 and len(values) == 1797 for values in found.values())
    assert all((values >= 0).all() for values in found.values())
    [name] = store.files(f"scores/{folder}")
    facts = store.facts(name)
    assert facts is not None and facts["views"] == [[False, 0, 0]] and '"torch"' in facts["versions"][0]
    assert parquet.COMPACT in name
