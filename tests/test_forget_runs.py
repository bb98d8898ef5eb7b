"""Whole runs that forget the samples of a file, those found the most memorised, and subclasses."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.config import load
from orchestrator.errors import UserError
from orchestrator.runner import Options, run_grid
from orchestrator.sample_lists import most_memorised
from orchestrator.store import Store
from tests.conftest import grid_data, results_table
from tests.dataset_files import write_batches
from tests.faults.test_resume import parts, start, wait_for
from workers import run_task
from workers.designs import FORGET, RETAIN, VAL, unpack

pytestmark = pytest.mark.usefixtures("quick_runs")

IDS = [4, 11, 18, 200, 201, 202, 777, 1300, 1435, 1436]
COUNT = 25
TRAINING = {"epochs": 1, "batch_size": 256}
METHODS = [{"finetune": {"epochs": 1}}, {"gradient_ascent": {"epochs": 1}}]


def written(folder: Path, **changes: Any) -> Path:
    """A grid that forgets the listed samples and the most memorised ones, and the file it names."""
    forget = [{"listed": {"file": "my ids.csv"}}, {"memorised": {"count": COUNT}}]
    audit = {"pairs": 4, "forget_sets": 1}
    small = {"seeds": 1, "training": {"all": TRAINING}, "audit": audit, "methods": METHODS}
    (folder / "my ids.csv").write_text("sample_id,why\n" + "".join(f"{i},asked\n" for i in reversed(IDS)))
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid_data(**({"forget": forget} | small | changes))))
    return path


def run(path: Path, results: Path, **options: Any) -> Any:
    return run_grid(load(str(path)), Options(str(results), "data", address=None, **options))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid, with its results beside it."""
    path = written(tmp_path_factory.mktemp("lists"))
    ended = run(path, path.parent / "results")
    assert ended.done == ended.total == 9 + 9 + 18 + 9 + 1 + 2 and not ended.failures
    return path


def designs_of(results: Path, recipe: str) -> list[dict[str, Any]]:
    """The designs with a forget set of a recipe, their states unpacked."""
    rows = Store.open(str(results)).read_table("designs").to_pylist()
    chosen = [row for row in rows if row["forget"] and json.loads(row["forget"])["name"] == recipe]
    return [row | {"states": unpack(row["states"], row["n_pool"])} for row in chosen]


# ---- listed ----------------------------------------------------------------------------------------------


def test_the_designs_forget_exactly_the_listed_samples(grid: Path) -> None:
    found = designs_of(grid.parent / "results", "listed")
    members = [json.loads(row["members"]) for row in found]
    (main,) = [row for row, of in zip(found, members, strict=True) if of["track"] == "main"]
    assert np.flatnonzero(main["states"] == FORGET).tolist() == IDS
    assert np.sum(main["states"] == VAL) == 216 and main["n_forget"] == len(IDS)
    audited: dict[int, list[int]] = {}
    for row, of in zip(found, members, strict=True):
        if of["track"] == "audit":
            gone = np.flatnonzero(row["states"] == FORGET).tolist()
            assert len(gone) == 5
            audited.setdefault(of["pair"], []).extend(gone)
    assert {pair: sorted(ids) for pair, ids in audited.items()} == dict.fromkeys(range(4), IDS)


def test_the_listed_samples_are_what_the_audit_is_about(grid: Path) -> None:
    table = Store.open(str(grid.parent / "results")).read_table("audits").to_pylist()
    rows = [row for row in table if row["forget"].startswith("listed") and row["attack"] == "ulira"]
    assert {row["samples"] for row in rows} == {len(IDS)}
    assert {row["method"] for row in rows} == {"", "finetune", "gradient_ascent"}
    assert not any(row["forget"].startswith("memorised") and row["attack"] == "ulira" for row in table)


def test_neither_the_path_nor_the_ids_are_in_the_runs_or_plans(grid: Path) -> None:
    results = grid.parent / "results"
    specs = [row["spec"] for row in Store.open(str(results)).read_table("runs", ["spec"]).to_pylist()]
    assert len(specs) == 48
    for text in (*specs, *(path.read_text() for path in (results / "plans").iterdir())):
        assert not re.search(r"[ ,\[]1435[,\]]", text)
    assert not any("my ids" in text for text in specs)


# ---- memorised -------------------------------------------------------------------------------------------


def by_hand(results: Path, count: int) -> list[int]:
    """The most memorised samples from the Parquet files alone: plain loops over models and samples."""
    runs = [row for path in (results / "runs").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    designs = [r for p in (results / "designs").glob("*.parquet") for r in pq.read_table(p).to_pylist()]
    packed = {row["design"]: row["states"] for row in designs}
    phi: dict[str, dict[int, list[float]]] = {}
    for path in (results / "scores").rglob("*.parquet"):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            if row["view"] == 0:
                phi.setdefault(row["task_id"], {})[row["chunk"]] = row["phi"]
    inside: list[list[float]] = [[] for _ in range(1437)]
    outside: list[list[float]] = [[] for _ in range(1437)]
    bases = 0
    for run_row in runs:
        listed = "listed" in json.loads(run_row["spec"])["members"]
        if (run_row["kind"], run_row["track"], run_row["status"]) != ("base", "audit", "done") or listed:
            continue
        bases += 1
        values = [value for _, chunk in sorted(phi[run_row["task_id"]].items()) for value in chunk]
        for sample in range(1437):
            state = packed[run_row["design"]][sample // 4] >> 2 * (sample % 4) & 3
            if state in (0, 1):  # out, retain
                (inside if state == 1 else outside)[sample].append(values[sample])
    assert bases == 8
    gap = {
        sample: sum(inside[sample]) / len(inside[sample]) - sum(outside[sample]) / len(outside[sample])
        for sample in range(1437)
        if inside[sample] and outside[sample]
    }
    assert len(gap) == 1437 - 216
    return sorted(sorted(gap, key=lambda sample: -gap[sample])[:count])


def forgotten(results: Path) -> list[int]:
    """The one forget set of the memorised cell."""
    (row,) = designs_of(results, "memorised")
    return np.flatnonzero(row["states"] == FORGET).tolist()


def test_the_most_memorised_samples_are_forgotten(grid: Path) -> None:
    results = grid.parent / "results"
    assert forgotten(results) == by_hand(results, COUNT)
    (row,) = designs_of(results, "memorised")
    assert row["n_forget"] == COUNT and np.sum(row["states"] == RETAIN) == 1437 - 216 - COUNT
    done = [r for r in results_table(results) if r["design"] == row["design"]]
    assert sorted(r["kind"] for r in done) == ["retrain", "unlearn", "unlearn"]
    assert {r["status"] for r in done} == {"done"} and all(r["fa"] is not None for r in done)


def test_a_base_whose_scores_are_lost_is_told(grid: Path) -> None:
    with pytest.raises(UserError, match="the scores of base nobody cannot be read"):
        most_memorised(Store.open(str(grid.parent / "results")), ["nobody"], 3)


def test_a_limited_run_goes_on_with_the_same_samples(grid: Path, tmp_path: Path) -> None:
    """First the bases and the retrain alone; then the rest, by another process's memory."""
    memorised = {"forget": [{"memorised": {"count": COUNT}}], "methods": METHODS[:1]}
    path, results = written(tmp_path, **memorised), tmp_path / "results"
    assert run(path, results, limit=10).done == 10
    first = forgotten(results)
    assert run(path, results).done == 11
    table = results_table(results)
    there = results_table(grid.parent / "results")
    assert forgotten(results) == first == forgotten(grid.parent / "results")
    assert len(table) == 11 and all(row in there for row in table)


@pytest.mark.long
@pytest.mark.parametrize("options", [("--inline",), ()], ids=["inline", "ray"])
def test_killed_and_resumed_it_forgets_the_same_samples(
    grid: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    path, results = written(tmp_path, run={"flush_s": 0.5}), tmp_path / "results"
    for more in (1, 3):
        before = parts(results)
        process = start(path, results, *options)
        wait_for(lambda before=before, more=more: parts(results) >= before + more)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(path, results, *options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    table, expected = results_table(results), results_table(grid.parent / "results")
    assert [row["task_id"] for row in table] == [row["task_id"] for row in expected]
    assert [row["design"] for row in table] == [row["design"] for row in expected]
    assert forgotten(results) == forgotten(grid.parent / "results")


def test_a_base_that_fails_skips_what_needed_it_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bases of pair 1 cannot be trained; those of the other pairs and of the main track can."""
    ours = run_task._train_task

    def breaks(task: dict[str, Any], bench: Any) -> run_task.Outcome:
        if task["spec"]["members"].get("pair") == 1:
            raise OSError("no luck")
        return ours(task, bench)

    monkeypatch.setattr(run_task, "_train_task", breaks)
    path = written(tmp_path, forget=[{"memorised": {"count": 3}}], methods=METHODS[:1])
    ended = run(path, tmp_path / "results")
    assert ended.done == 7 and ended.total == 11
    reasons = {row["reason"] for row in ended.failures if row["kind"] != "base"}
    bad = [row["task_id"] for row in ended.failures if row["status"] == "bug"]
    assert len(bad) == 2 and reasons <= {f"its base {base} is bug" for base in bad}
    skipped = [row["kind"] for row in ended.failures if row["status"] == "skipped"]
    assert sorted(skipped) == ["retrain", "unlearn"]
    monkeypatch.setattr(run_task, "_train_task", ours)
    assert run(path, tmp_path / "results", retry=frozenset({"bug"})).done == 11
    assert forgotten(tmp_path / "results") == by_hand(tmp_path / "results", 3)


# ---- subclasses ------------------------------------------------------------------------------------------


def test_a_subclass_of_cifar20_is_forgotten_and_judged_by_its_own_test_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.datasets.cifar20 import Cifar20

    counts = (200, 80)
    monkeypatch.setattr(Cifar20, "pool_size", counts[0])
    monkeypatch.setattr(Cifar20, "test_size", counts[1])
    write_batches(tmp_path / "data", "cifar20", monkeypatch, counts=counts)
    gone = [*range(24), "rocket"]
    path = written(
        tmp_path,
        datasets=["cifar20"],
        forget=[{"subclass": {"subclasses": gone}}],
        methods=METHODS[:1],
        audit=None,
    )
    results = tmp_path / "results"
    ended = run_grid(load(str(path)), Options(str(results), str(tmp_path / "data"), address=None))
    assert ended.done == 3 and not ended.failures
    store = Store.open(str(results))
    samples = store.read_table("samples").to_pylist()
    pool = [row for row in samples if row["split"] == "pool"]
    assert all(row["subclass"] // 5 == row["label"] for row in samples)
    (design,) = designs_of(results, "subclass")
    wanted = {*range(24), 69}
    for row, state in zip(pool, design["states"], strict=True):
        assert state == VAL or (state == FORGET) == (row["subclass"] in wanted)
    of_test = sum(row["subclass"] in wanted for row in samples if row["split"] == "test")
    audits = [r for r in store.read_table("audits").to_pylist() if r["attack"] == "population_loss"]
    assert {row["n_negative"] for row in audits} == {of_test}
    assert len(audits) == 3 and 10 <= of_test < counts[1]
