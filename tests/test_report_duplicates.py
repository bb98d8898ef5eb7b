"""Duplicates in the report and on the card, by values worked out by hand; and older results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator import report_duplicates, schema
from orchestrator.config import Grid
from orchestrator.plan import Cell, Variant
from orchestrator.report import render
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store, new_part
from tests.conftest import grid_data
from tests.test_report import Synthetic
from workers.designs import FORGET, OUT, RETAIN, VAL

POOL, TEST = 12, 4
NEAR = {0: [0, 1, 2], 3: [3, 13], 5: [5, 6], 8: [8, 9, 14]}
EXACT = {0: [0, 1], 8: [8, 14]}


def clusters(members: dict[int, list[int]]) -> list[int]:
    found = np.full(POOL + TEST, -1)
    for cluster, ids in members.items():
        found[ids] = cluster
    return [int(value) for value in found]


def samples(**columns: Any) -> pa.Table:
    labels = [i % 3 for i in range(POOL + TEST)]
    labels[1], labels[14] = labels[0], labels[8]  # the equal ones agree
    facts = {"sample_id": range(POOL + TEST), "split": ["pool"] * POOL + ["test"] * TEST, "label": labels}
    return pa.table(facts | {"sha256": [bytes(32)] * (POOL + TEST)} | columns)


def cast(table: pa.Table) -> pa.Table:
    fields = [field for field in schema.arrow("samples") if field.name in table.column_names]
    return table.cast(pa.schema(fields))


def a_store(folder: Path, table: pa.Table) -> Synthetic:
    """A main design and two of the audit, each with a finished retrain, and the table samples."""
    made = Synthetic(folder)
    states = np.full((3, POOL), RETAIN, np.uint8)
    states[0, [0, 3, 5]] = FORGET  # 0 stays as 1 and 2, 5 as 6; 3 is alike with a test sample alone
    states[0, 11] = VAL
    states[1, [1, 2, 8]] = FORGET  # 1 and 2 stay as 0; 9, alike with 8, is not trained on
    states[1, 9] = VAL
    states[1, [6, 7]] = OUT  # 6 is a member as 5
    states[2, [4, 5, 6]] = FORGET  # 5 and 6 are gone both
    states[2, [0, 1, 2]] = OUT  # gone all
    keys = [("main", 0, 0), ("audit", 0, 0), ("audit", 0, 1)]
    for key, own in zip(keys, states, strict=True):
        made.design(f"d-{key[0]}-{key[2]}", own)
        made.run(f"r-{key[0]}-{key[2]}", "retrain", design=f"d-{key[0]}-{key[2]}", track=key[0])
    made.store.write_part("samples", table, new_part(), "dataset=digits")
    retrains = {key: f"r-{key[0]}-{key[2]}" for key in keys}
    unlearned = {key: f"u-{key[0]}-{key[2]}" for key in keys}
    bases = dict.fromkeys(keys, "b")
    made.remember(
        Cell(
            "c",
            "digits",
            "cnn_small",
            "random()",
            2,
            bases,
            retrains,
            [Variant("finetune", 1, {}, unlearned)],
        )
    )
    return made


def card(made: Synthetic) -> dict[str, Any]:
    (found,) = json.loads(render(Store.open(str(made.folder)), "card"))
    return dict(found)


def test_counts_by_hand(tmp_path: Path) -> None:
    made = a_store(tmp_path / "r", cast(samples(dup_exact=clusters(EXACT), dup_near=clusters(NEAR))))
    found = card(made)["duplicates"]
    assert found["exact"] == {
        "clusters": 2,
        "samples": 4,
        "largest": 2,
        "pool_test_pairs": 1,
        "label_conflicts": 0,
    }
    # 0 and 1 have label 0, 2 has 2; 3 has 0 and 13 has 1; 5 has 2, 6 has 0; 8 and 14 have 2, 9 has 0
    assert found["near"] == {
        "clusters": 4,
        "samples": 10,
        "largest": 3,
        "pool_test_pairs": 3,
        "label_conflicts": 4,
    }
    assert found["main"] == {
        "designs": 1,
        "forgotten": 3.0,
        "forgotten_near": 2.0,
        "forgotten_exact": 1.0,
        "never": 0.0,
        "never_near": 0.0,
        "never_exact": 0.0,
    }
    assert found["audit"] == {
        "designs": 2,
        "forgotten": 3.0,
        "forgotten_near": 1.0,
        "forgotten_exact": 0.5,
        "never": 2.5,
        "never_near": 0.5,
        "never_exact": 0.0,
    }


def test_the_report_and_the_card_tell_them(tmp_path: Path) -> None:
    made = a_store(tmp_path / "r", cast(samples(dup_exact=clusters(EXACT), dup_near=clusters(NEAR))))
    told = (
        "Duplicates in digits, pool and test set: exact 2 clusters of 4 samples (largest 2, pool–test pairs"
        " 1, clusters of several labels 0); near 4 clusters of 10 samples (largest 3, pool–test pairs 3,"
        " clusters of several labels 4).",
        "Duplicates, main track: 2 of 3 forgotten samples have a near-duplicate (1 an exact one) in the"
        " retain set.",
        "Duplicates, audit track, mean over 2 designs: 1 of 3 forgotten samples have a near-duplicate (0.5"
        " an exact one) in the retain set; 0.5 of 2.5 never-seen samples have a near-duplicate (0 an exact"
        " one) among the members.",
    )
    for format in ("md", "html"):
        text = str(render(made.store, format))
        assert all(text.count(line) == 2 for line in told)  # below the table, and on the card


def test_no_duplicates_are_one_line(tmp_path: Path) -> None:
    made = a_store(tmp_path / "r", cast(samples(dup_exact=clusters({}), dup_near=clusters({}))))
    line = "Duplicates in digits, pool and test set: none, exact or near."
    assert str(render(made.store, "md")).count(line) == 2
    assert card(made)["duplicates"]["audit"]["forgotten_near"] == 0


def test_results_of_before_are_reported_without(tmp_path: Path) -> None:
    """A file without the columns, one with nulls, and no table at all."""
    nulls = samples(dup_exact=pa.nulls(POOL + TEST), dup_near=pa.nulls(POOL + TEST))
    for name, table in (("old", samples()), ("null", nulls), ("none", samples().slice(0, 0))):
        made = a_store(tmp_path / name, cast(table))
        assert card(made)["duplicates"] is None
        text = str(render(made.store, "md"))
        assert text.count("Duplicates") == 1 and f"Duplicates: {report_duplicates.UNKNOWN}" in text


def test_a_run_finds_and_reports_them(tmp_path: Path) -> None:
    grid = Grid.model_validate(grid_data(seeds=1, audit=None, training={"all": {"epochs": 1}}))
    folder = tmp_path / "results"
    run_grid(grid, Options(str(folder), "data", address=None, limit=1))
    store = Store.open(str(folder))
    table = store.read_table("samples").to_pydict()
    alike = {i: own for i, own in enumerate(table["dup_near"]) if own != -1}
    assert alike == {887: 887, 929: 887, 1095: 1095, 1576: 1095, 1193: 1193, 1204: 1193}
    assert set(table["dup_exact"]) == {-1} and len(store.files("samples")) == 1
    text = str(render(store, "md"))
    assert "near 3 clusters of 6 samples (largest 2, pool–test pairs 1, clusters of several labels 0)" in text
