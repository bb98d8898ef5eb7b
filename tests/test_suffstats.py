"""The table suffstats holds the moments of the scores that the audit compares, world by world."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from attacks.suffstats import Suffstats, kurtosis, merge, of, skewness, variance
from orchestrator import audit, compact, plans, suffstats
from orchestrator.audit import Reader, rows_of
from orchestrator.errors import UserError
from orchestrator.store import Store
from tests.conftest import ROOT, Lethe
from tests.test_audit import PAIRS, POOL, fill, member_signal, plan_of

MOMENTS = ("n", "mean", "m2", "m3", "m4")
WORLDS = ("forgotten", "never", "retrained", "retained")


@pytest.fixture
def store(weird_tmp_path: Path) -> Store:
    """A finished grid of two methods, one task of which was lost, φ in two views."""
    store, plan = (
        Store.create(str(weird_tmp_path / "results")),
        plan_of(methods=["finetune", "salun"], seeds=1),
    )
    lost = next(task for task in plan.tasks if task.kind == "unlearn" and task.columns()["track"] == "audit")
    tasks = [task for task in plan.tasks if task is not lost]
    fill(store, tasks, member_signal, further=lambda phi: [phi / 2])
    plans.remember(store, plan)
    return store


def test_moments_are_those_of_the_scores_of_each_world(store: Store) -> None:
    [(cell_id, count)] = suffstats.write(store).items()
    table = store.read_table("suffstats")
    assert store.files("suffstats") == [f"suffstats/{cell_id}/suffstats.parquet"]
    [cell], reader = plans.recall(store), Reader(store)
    rows = rows_of(cell)
    audited = len(audit.AuditDesign(reader, cell, cell.retrains).audited)
    assert 0 < audited < POOL and table.num_rows == count == len(rows) * len(WORLDS) * 2 * audited
    for row in rows:
        design = audit.AuditDesign(reader, cell, row.references.retrains)
        for world, views in suffstats.worlds(reader, design, row).items():
            assert len(views) == 2
            for view, phi in enumerate(views):
                wanted = row.columns | {"world": world, "view": view}
                found = [r for r in table.to_pylist() if all(r[name] == v for name, v in wanted.items())]
                assert [r["sample_id"] for r in found] == design.audited.tolist()
                for name, values in of(phi)._asdict().items():
                    np.testing.assert_allclose([r[name] for r in found], values, rtol=1e-12)


def test_a_lost_run_is_one_score_less_and_the_next_call_replaces_the_table(store: Store) -> None:
    suffstats.write(store)
    table = store.read_table("suffstats").to_pylist()
    counts = {row["n"] for row in table if row["method"] == "finetune" and row["world"] == "forgotten"}
    assert counts == {PAIRS, PAIRS - 1}
    assert {row["n"] for row in table if row["method"] == "salun"} == {PAIRS}
    suffstats.write(store)
    assert store.read_table("suffstats").to_pylist() == table


def test_compaction_changes_no_statistic(store: Store) -> None:
    suffstats.write(store)
    before = store.read_table("suffstats").to_pylist()
    compact.compact(store)
    suffstats.write(store)
    assert store.read_table("suffstats").to_pylist() == before


def test_scores_that_cannot_be_read_are_named_and_nothing_is_written(store: Store) -> None:
    name = store.files("scores")[-1]
    store.write(name, store.read(name)[:-9])
    with pytest.raises(UserError, match="no statistics were written"):
        suffstats.write(Store.open(store.uri))
    assert store.files("suffstats") == []


def test_the_command_and_the_example_of_the_documentation(
    store: Store, lethe: Lethe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example's per-sample Gaussian AUC and shape are those computed from all scores."""
    done = lethe("store", "suffstats", "--results", store.root)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Wrote suffstats: {store.read_table('suffstats').num_rows:,} rows of 1 cells.\n"
    text = (ROOT / "docs" / "storage.md").read_text(encoding="utf-8")
    [example] = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    monkeypatch.chdir(Path(store.root).parent)
    names: dict[str, np.ndarray] = {}
    exec(example, names)
    [cell], reader = plans.recall(store), Reader(store)
    row = next(row for row in rows_of(cell) if row.method == "finetune")
    phi = suffstats.worlds(reader, audit.AuditDesign(reader, cell, row.references.retrains), row)
    forgotten, retrained = (phi[world][0].astype(float) for world in ("forgotten", "retrained"))
    gap = np.nanmean(forgotten, axis=0) - retrained.mean(axis=0)
    spread = np.sqrt(np.nanvar(forgotten, axis=0, ddof=1) + retrained.var(axis=0, ddof=1))
    expected = [0.5 * (1 + math.erf(z / math.sqrt(2))) for z in gap / spread]
    np.testing.assert_allclose(names["auc"], expected, rtol=1e-9)
    both = merge(of(forgotten), of(retrained))
    np.testing.assert_allclose(names["shape"]["skewness"], skewness(of(retrained)), rtol=1e-9)
    np.testing.assert_allclose(names["shape"]["kurtosis"], kurtosis(of(retrained)), rtol=1e-9)
    np.testing.assert_allclose(names["both"].m4, both.m4, rtol=1e-9)


def test_a_folder_without_an_audit_has_none(tmp_path: Path, lethe: Lethe) -> None:
    Store.create(str(tmp_path / "results"))
    done = lethe("store", "suffstats", "--results", tmp_path / "results")
    assert done.returncode == 0 and done.stdout.startswith("No finished runs of an audit track")


def test_other_tools_read_the_table(store: Store) -> None:
    suffstats.write(store)
    table = pq.read_table(store.path("suffstats"))
    first = Suffstats(*(np.array([table[name][0].as_py()]) for name in MOMENTS))
    assert variance(first)[0] > 0
