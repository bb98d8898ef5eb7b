"""The audit card: its hashes are those of the tables, its counts those of the runs, its limits told."""

from __future__ import annotations

import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import audit, plans
from orchestrator.keys import digest
from orchestrator.plan import Cell, Variant
from orchestrator.report import render
from orchestrator.report_card import ENOUGH_SAMPLES, _limits, facts
from orchestrator.store import Store, score_folder, score_rows
from tests.test_report import Synthetic, make_cell
from workers.designs import FORGET, OUT, RETAIN

DATASET = "d5" * 32
POOL, TEST, PAIRS = 40, 20, 4


def weights(base: int) -> str:
    return f"{base:064x}"


KEYS = [("audit", base, index) for base in range(2 * PAIRS) for index in (0, 1)]


def audited_cell() -> Cell:
    """Four pairs of bases with two forget sets each, and one method."""
    retrains, unlearns = (
        {key: f"{kind}-{key[1]}-{key[2]}" for key in KEYS} for kind in ("retrain", "unlearn")
    )
    bases = {key: f"base-{key[1]}" for key in KEYS}
    variant = Variant("finetune", 1, {}, unlearns)
    return Cell("a1", "digits", "cnn_small", "random()", 2, bases, retrains, [variant])


def add_runs(made: Synthetic) -> None:
    """The runs of that cell, with hashes; the method lifts φ of what it forgot."""
    generator = np.random.default_rng(0)
    half = np.arange(POOL) % 2 == 0
    for base in range(2 * PAIRS):
        hashes = {"dataset_sha256": DATASET, "weights_sha256": weights(base)}
        made.run(f"base-{base}", "base", phi=noise(generator), track="audit", **hashes)
    for _, base, index in KEYS:
        members = half if base % 2 == 0 else ~half
        gone = members & (np.arange(POOL) // 20 == index)
        states = np.where(gone, FORGET, np.where(members, RETAIN, OUT)).astype(np.uint8)
        made.design(f"d{base}-{index}", states)
        run = {"design": f"d{base}-{index}", "track": "audit", "dataset_sha256": DATASET}
        made.run(f"retrain-{base}-{index}", "retrain", phi=noise(generator), **run)
        lifted = noise(generator) + np.append(40 * gone, np.zeros(TEST)).astype(np.float32)
        run["weights_sha256"] = weights(1000)  # what it started from: no further base
        made.run(f"unlearn-{base}-{index}", "unlearn", method="finetune", phi=lifted, **run)


def noise(generator: np.random.Generator) -> np.ndarray:
    return generator.normal(size=POOL + TEST).astype(np.float32)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with these runs and their audit, made once: the audit takes a second."""
    made = Synthetic(tmp_path_factory.mktemp("card") / "made results")
    made.remember(audited_cell())
    add_runs(made)
    audit.write(made.store, plans.recall(made.store))
    return made.folder


@pytest.fixture
def made(template: Path, tmp_path: Path) -> Synthetic:
    """A copy of that store."""
    shutil.copytree(template, tmp_path / template.name)
    copy = Synthetic(tmp_path / template.name)
    copy.parts = 1000  # names of parts go on behind those of the original
    return copy


def cards(made: Synthetic) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(render(Store.open(str(made.folder)), "card"))
    return found


def words(card: dict[str, Any]) -> dict[str, str]:
    return {name: "; ".join(values) for name, values in facts(card)}


def test_few_audited_samples_are_told(made: Synthetic) -> None:
    (card,) = cards(made)
    samples = min(
        row["comparisons"]["forgotten_vs_retrained"]["samples"] for row in card["rows"] if row["comparisons"]
    )
    told = [line for line in card["not_shown"] if "audited samples are few" in line]
    assert len(told) == (samples < ENOUGH_SAMPLES)
    few = deepcopy(card)
    for row in few["rows"]:
        for of in row["comparisons"].values():
            of["samples"] = 7
    assert any(line.startswith("7 audited samples are few") for line in _limits(few))


# ---- hashes ----------------------------------------------------------------------------------------------


def test_the_hashes_are_those_of_the_tables(made: Synthetic) -> None:
    (card,) = cards(made)
    runs = made.store.runs().to_pylist()
    bases = [run for run in runs if run["kind"] == "base"]
    assert card["dataset_sha256"] == [DATASET] == sorted({run["dataset_sha256"] for run in runs})
    assert card["bases"] == {"trained": 8, "weights_sha256": sorted(run["weights_sha256"] for run in bases)}
    assert card["tasks"]["hash"] == digest(sorted(run["task_id"] for run in runs))
    assert [f"plans/{plan['hash']}.json" for plan in card["plans"]] == made.store.files("plans", ".json")
    assert (card["cell"], card["commits"], card["devices"]) == ("a1", ["abc"], ["cpu"])
    assert card["versions"] == [{"lethe": "0.1.0"}]
    shown = words(card)
    assert DATASET in shown["Dataset"] and card["plans"][0]["hash"] in shown["Hashes"]
    assert shown["Bases"] == "8 trained, 8 distinct weights"


def test_the_inputs_of_each_comparison_are_those_of_its_row_of_audits(made: Synthetic) -> None:
    stored = {
        (row["kind"], row["comparison"]): row
        for row in made.store.read_table("audits").to_pylist()
        if row["attack"] == "ulira"
    }
    (card,) = cards(made)
    found = {(row["kind"], name): of for row in card["rows"] for name, of in row["comparisons"].items()}
    assert found.keys() == stored.keys() and ("unlearn", "forgotten_vs_retrained") in found
    for key, of in found.items():
        assert of["inputs_hash"] == stored[key]["inputs"]
        assert (of["attack"], of["attack_version"]) == ("ulira", stored[key]["attack_version"])
        nu0 = float(of["nu0_positive"])  # 'inf' where all variances are alike
        assert nu0 == stored[key]["nu0_positive"] and of["collapsed"] == stored[key]["collapsed"]


def test_another_task_is_another_hash_and_the_same_results_the_same_text(made: Synthetic) -> None:
    text = render(made.store, "card")
    assert text == render(Store.open(str(made.folder)), "card")
    (card,) = json.loads(text)
    assert list(card) == sorted(card) and list(card["rows"][0]) == sorted(card["rows"][0])
    made.remember(make_cell("finetune", name="c2"))
    first, other = cards(made)
    assert first["tasks"] == card["tasks"] and other["tasks"]["hash"] != card["tasks"]["hash"]
    assert (len(first["plans"]), len(other["plans"])) == (1, 1)
    assert first["plans"][0]["hash"] != other["plans"][0]["hash"]


# ---- counts ----------------------------------------------------------------------------------------------


def test_sizes_by_hand(made: Synthetic) -> None:
    (card,) = cards(made)
    assert card["design"] == {"pairs": 4, "forget_sets": 2, "retrains_per_base": 2, "views": 1}
    assert card["seeds"] == {"main": [], "audit_bases": list(range(8))}
    method = next(row for row in card["rows"] if row["kind"] == "unlearn")
    scored = method["comparisons"]["forgotten_vs_retrained"]
    assert (scored["pairs"], scored["samples"]) == (4, 40)
    assert scored["n_positive"] == scored["n_negative"] == 160 and scored["smallest_fpr"] == 10 / 160
    assert "k = 4 pairs, 40 samples, n₁ = 160 and n₀ = 160 scores" in words(card)["Scores"]


def test_views_are_counted_in_the_scores_of_the_bases(made: Synthetic) -> None:
    phi = np.zeros(POOL + TEST, dtype=np.float32)
    for base in range(8):
        part = made.part()
        made.store.write_part(
            "scores",
            list(score_rows(f"base-{base}", phi, phi > 0, [phi, phi])),
            part,
            score_folder("digits", "cnn_small", "base", ""),
        )
    (card,) = cards(made)
    assert card["design"]["views"] == 3


def test_runs_that_did_not_end_well_are_counted_by_how_they_ended(made: Synthetic) -> None:
    for task, status in (("unlearn-0-0", "diverged"), ("unlearn-0-1", "oom"), ("unlearn-1-0", "oom")):
        made.run(task, "unlearn", method="finetune", status=status, attempt=2)
    cell = audited_cell()
    cell.variants[0].tasks["main", 0, 0] = "not-yet"
    made.remember(cell)
    (card,) = cards(made)
    method = next(row for row in card["rows"] if row["kind"] == "unlearn")
    assert method["statuses"] == {"done": 13, "diverged": 1, "oom": 2, "not run": 1}
    assert card["tasks"]["statuses"] == {"done": 37, "diverged": 1, "oom": 2, "not run": 1}
    assert method["audit_missing"] == 3
    assert words(card)["Not done"] == "FT: 1 diverged, 1 not run, 2 oom"
    assert "3 runs of the audit have no scores." in card["not_shown"]


# ---- what is not shown -----------------------------------------------------------------------------------


def test_the_limits_of_few_pairs_and_scores_are_told(made: Synthetic) -> None:
    (card,) = cards(made)
    told = " ".join(card["not_shown"])
    assert "4 pairs of bases are few" in told and "no proof of deletion" in told
    assert "below 0.062 are not resolved: fewer than 10 of 160" in told
    assert "standard error of 0.217" in told  # √((2·4 + 1) / 12) / 4
    assert "copies" not in told


def test_bases_that_are_copies_are_told(made: Synthetic) -> None:
    made.run("base-1", "base", weights_sha256=weights(0), attempt=2, phi=np.zeros(POOL + TEST, np.float32))
    (card,) = cards(made)
    assert "8 bases share 7 sets of weights: copies are not independent." in card["not_shown"]


def test_without_an_audit_nothing_is_said_of_samples(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "r")
    made.remember(make_cell("finetune"))
    (card,) = cards(made)
    assert card["not_shown"] == [
        "No audit on pairs of bases: only accuracies, attacks with one rule for all samples, and from eight"
        " seeds on KLoM and the NeurIPS score."
    ]
    assert card["design"] == {"pairs": 0, "forget_sets": 0, "retrains_per_base": 0, "views": None}
    assert words(card)["Design"] == "main track alone" and "Scores" not in words(card)
    assert card["seeds"] == {"main": [0, 1], "audit_bases": []}


# ---- in the report ---------------------------------------------------------------------------------------


def test_each_cell_has_its_card_in_html_and_markdown_and_none_elsewhere(made: Synthetic) -> None:
    made.remember(make_cell("finetune", name="c2"))
    assert str(render(made.store, "html")).count("<summary>Audit card</summary>") == 2
    assert str(render(made.store, "md")).count("### Audit card") == 2
    rows = json.loads(render(made.store, "json"))
    assert isinstance(rows, list) and not any("card" in name for name in rows[0])


def test_commands_are_shown_without_keys_and_markup(made: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lethe", "run", "<b>.yaml", "--results", "s3://KEY:secret@bucket/r"])
    made.remember(audited_cell())
    (card,) = cards(made)
    assert card["plans"][-1]["command"] == "lethe run '<b>.yaml' --results s3://bucket/r"
    for form in ("html", "md", "card"):
        assert "secret" not in str(render(made.store, form))
    assert "<b>" not in str(render(made.store, "html"))
