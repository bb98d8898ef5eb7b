"""The count of a plan, part by part: the paper's sum, grids by hand, and products that give their numbers."""

from __future__ import annotations

import json
import re
from math import prod
from typing import Any

import pytest

from orchestrator.arithmetic import Part, lines, parts, totals
from orchestrator.config import load
from orchestrator.plan import Plan, make_plan
from tests.conftest import ROOT, Lethe
from tests.test_plan import plan_of

PAPER = make_plan(load(str(ROOT / "grids" / "paper.yaml")))


def numbers(plan: Plan) -> dict[tuple[str, str], tuple[int, int, int]]:
    return {(p.track, p.what): (p.alone, p.loops, p.lethe) for p in parts(plan)}


def value(factors: str) -> int:
    """What a text like '2 × 3 seeds + 4 cells' comes to."""
    if not factors:
        return 0
    digits = (
        [re.findall(r"[\d,]+", factor)[0] for factor in factors.split(" × ")] if " + " not in factors else []
    )
    if not digits:
        return sum(value(term) for term in factors.split(" + "))
    return prod(int(number.replace(",", "")) for number in digits)


def test_the_papers_arithmetic() -> None:
    """spec/benchmark.md, §1.4: loops are the paper's, Lethe trains a base of the audit once."""
    assert numbers(PAPER) == {
        ("main", "unlearned"): (1_800, 1_800, 1_800),
        ("main", "base and retrain"): (3_600, 200, 200),
        ("main", "tuning"): (54_000, 54_000, 54_000),
        ("audit", "unlearned"): (3_840, 3_840, 3_840),
        ("audit", "base and retrain"): (7_680, 1_280, 64 + 128),
        ("audit", "tuning"): (38_400, 38_400, 0),
    }
    assert totals(parts(PAPER))["loops"] == 99_520


def test_the_papers_products() -> None:
    assert [part.factors for part in parts(PAPER)] == [
        "18 methods × 5 datasets × 2 architectures × 10 seeds",
        "2 × 5 datasets × 2 architectures × 10 seeds",
        "18 methods × 5 datasets × 2 architectures × 3 seeds × 100 trials",
        "6 methods × 64 bases × 10 forget sets",
        "2 × 64 bases × 10 forget sets",
        "6 methods × 32 bases × 200 trials",
    ]


def test_the_papers_grid_is_the_papers() -> None:
    """What the sum does not show: splits, recipes, and no augmentation in unlearning."""
    assert {t.spec["members"]["split"]["name"] for t in PAPER.tasks} == {"paper"}
    assert not any(t.spec["augment"] for t in PAPER.tasks if t.kind == "unlearn")
    trained = [t for t in PAPER.tasks if t.kind != "unlearn"]
    epochs = {
        (t.spec["dataset"]["name"], t.spec["members"]["track"]): t.spec["training"]["epochs"] for t in trained
    }
    main = {"mnist": 50, "fashion_mnist": 50, "cifar10": 182, "cifar100": 182, "utkface": 50}
    assert epochs == {(name, "main"): count for name, count in main.items()} | {("cifar10", "audit"): 91}
    audited = {(t.spec["dataset"]["name"], t.spec["architecture"]["name"]) for t in PAPER.tasks
               if t.spec["members"]["track"] == "audit"}  # fmt: skip
    assert audited == {("cifar10", "resnet18")}


MIXED: dict[str, Any] = {
    "forget": ["random", {"class": {"classes": [1]}}],
    "methods": ["finetune", "mnemonic_code"],
    "seeds": 3,
    "audit": {"pairs": 4, "forget_sets": 2, "retrains": 1},
    "tune": {"trials": 5, "seeds": 2},
}


def test_a_mixed_grid_by_hand() -> None:
    """mnemonic_code runs on whole classes alone, from bases of its own; a class has one forget set per base.

    Loops: bases and retrains of each training recipe for each forget recipe. Lethe: 3 plain bases serve both
    forget recipes, 3 retrains for each, and 3 bases and retrains with codes; on the audit track 8 of each.
    """
    assert numbers(plan_of(**MIXED)) == {
        ("main", "unlearned"): (9, 9, 9),
        ("main", "base and retrain"): (18, 2 * (3 + 2 * 3), 3 + 2 * 3 + 2 * 3),
        ("main", "tuning"): (30, 30, 30),
        ("audit", "unlearned"): (32, 8 * 2 + 2 * 8, 32),
        ("audit", "base and retrain"): (64, 2 * (16 + 2 * 8), 8 + 2 * 8 + 2 * 8),
    }


CHANGES: list[dict[str, Any]] = [
    MIXED,
    {"architectures": ["cnn_small", "vit_tiny"], "audit": {"pairs": 4, "only": ["vit_tiny"]}},
    {"datasets": ["digits", "mnist"], "audit": None, "tune": {"trials": 2}},
    {"methods": ["finetune", "scrub"], "audit": {"pairs": 5, "methods": ["scrub"]}},
    {"methods": [], "seeds": 1200},
    {"forget": ["memorised"]},  # its bases of the audit track belong to no cell
    {"requests": 2, "audit": None, "tune": {"trials": 3}},
    {"requests": 2, "audit": {"pairs": 4, "forget_sets": 2}, "architectures": ["cnn_small", "vit_tiny"]},
    {"forget": ["random", {"random": {"fraction": 0.2}}], "tune": {"audit": {"bases": 3, "trials": 4}}},
]


@pytest.mark.parametrize("change", CHANGES)
def test_products_and_tasks_agree_with_the_numbers(change: dict[str, Any]) -> None:
    plan = plan_of(**change)
    found = parts(plan)
    assert found and all(value(part.factors) == part.loops for part in found)
    made = [part for part in found if part.what != "tuning"]
    counts = plan.counts()
    assert sum(part.lethe for part in made) == counts["tasks"]
    assert sum(part.alone for part in made) == max(counts["unshared_tasks"], 0)
    assert sum(part.lethe for part in found if part.what == "tuning") == counts["tune_trials"]


def test_what_is_counted_and_not_run_is_no_saving() -> None:
    text = "\n".join(lines(parts(PAPER)))
    assert "Sharing saves 10,376 models against alone, 576 against loops." in text  # 64 bases, not 640
    assert "\n512 retrains of the audit are left out" in text  # 128, not 640
    assert "\n38,400 trials on bases of the audit are left out" in text
    assert re.search(r"total +109,320 +99,520 +60,032$", text, flags=re.MULTILINE)
    assert "left out" not in "\n".join(lines(parts(plan_of(audit={"pairs": 4, "forget_sets": 2}))))
    assert lines([]) == []


def test_the_command_shows_the_parts_as_text_and_as_json(lethe: Lethe) -> None:
    grid = ROOT / "grids" / "digits.yaml"
    text, told = lethe("plan", grid).stdout, json.loads(lethe("plan", grid, "--json").stdout)
    shown = [Part(**part) for part in told["parts"]]
    assert shown == parts(make_plan(load(str(grid))))
    assert all(line in text for line in lines(shown))


def test_readme_shows_what_the_command_prints() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join(lines(parts(PAPER))) in readme
