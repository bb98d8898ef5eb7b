"""Whole classes forgotten, methods that need other bases, combinations that cannot run: plan to report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from attacks.population_svm import population_svm
from attacks.scores import confidence_from_phi
from orchestrator import plans
from orchestrator.audit import AuditDesign, Reader
from orchestrator.config import Grid, load
from orchestrator.errors import UserError
from orchestrator.plan import PLAIN, Plan, Task, make_plan
from orchestrator.report import render
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store
from tests.conftest import Lethe, grid_data, results_table
from workers import designs

pytestmark = pytest.mark.usefixtures("quick_runs")

CLASS = {"class": {"classes": [3]}}
BOTH = [CLASS, {"random": {"fraction": 0.2}}]
METHODS = ["finetune", "mnemonic_code"]
CODES = "mnemonic(t_mix=0.3)"


def plan_of(**changes: Any) -> Plan:
    return make_plan(Grid.model_validate(grid_data(**({"forget": BOTH, "methods": METHODS} | changes))))


def tasks(plan: Plan, kind: str, training: str, track: str = "main") -> list[Any]:
    return [
        task
        for task in plan.tasks
        if (task.kind, task.columns()["training"], task.columns()["track"]) == (kind, training, track)
    ]


# ---- the plan --------------------------------------------------------------------------------------------


def test_a_method_gets_bases_and_retrains_of_its_own_where_it_can_run() -> None:
    """2 seeds; 4 pairs; 2 random sets per base, one class set. Codes only for the class cell."""
    plan = plan_of()
    assert len(tasks(plan, "base", PLAIN)) == len(tasks(plan, "base", "mnemonic")) == 2
    assert len(tasks(plan, "retrain", PLAIN)) == 2 * 2 and len(tasks(plan, "retrain", "mnemonic")) == 2
    assert len(tasks(plan, "base", "mnemonic", "audit")) == 8
    assert len(tasks(plan, "retrain", PLAIN, "audit")) == 8 * 2 + 8  # two random sets, one class set
    assert len(tasks(plan, "retrain", "mnemonic", "audit")) == 8
    for task in tasks(plan, "unlearn", "mnemonic") + tasks(plan, "unlearn", PLAIN):
        base = plan.by_id[str(task.base)]
        assert ("mnemonic" in base.spec["training"]) == (task.spec["method"]["name"] == "mnemonic_code")
        assert base.spec["members"] == task.spec["members"] and base.spec["seed"] == task.spec["seed"]


def test_a_base_with_codes_differs_from_the_plain_one_in_its_codes_alone() -> None:
    plan = plan_of(seeds=1, audit=None)
    (plain,), (coded,) = tasks(plan, "base", PLAIN), tasks(plan, "base", "mnemonic")
    assert coded.spec["training"] == plain.spec["training"] | {"mnemonic": {"t_mix": 0.3, "version": 1}}
    codes = coded.spec["seeds"].pop("codes")
    assert coded.spec["seeds"] == plain.spec["seeds"]
    (retrain,) = tasks(plan, "retrain", "mnemonic")
    assert retrain.spec["seeds"]["codes"] == codes, "the same codes with and without the class"


def test_a_grid_without_such_a_method_has_the_tasks_it_had() -> None:
    with_codes, without = plan_of(), plan_of(methods=["finetune"])
    assert without.by_id.keys() < with_codes.by_id.keys()
    assert all(task.columns()["training"] == PLAIN for task in without.tasks)
    assert not without.impossible and not any(cell.changed for cell in without.cells)


def test_t_mix_is_part_of_the_id_of_models_with_codes_only() -> None:
    one, other = plan_of(), plan_of(training={"all": {"epochs": 2, "t_mix": 0.5}})
    same = one.by_id.keys() & other.by_id.keys()
    assert {task.columns()["training"] for task in one.tasks if task.id in same} == {PLAIN}
    assert {t.columns()["training"] for t in one.tasks if t.id not in same} == {"mnemonic"}
    assert {cell.id for cell in one.cells} == {cell.id for cell in other.cells}
    assert one.cells[0].variants[1].training != other.cells[0].variants[1].training


def test_bases_of_another_training_on_either_track_are_other_bases() -> None:
    """Else runs of two rates of replacement would meet in one audit."""
    audit = {"pairs": 4, "forget_sets": 1}
    labels = [
        plan_of(training={"all": {"t_mix": 0.5}}, audit=audit | {"training": {"t_mix": t}})
        .cells[0]
        .variants[1]
        .training
        for t in (0.5, 0.0, 1.0)
    ]
    assert labels == [
        "mnemonic(t_mix=0.5)",
        "mnemonic(t_mix=0.5, audit t_mix=0.0)",
        "mnemonic(t_mix=0.5, audit t_mix=1.0)",
    ]


def test_variants_of_other_bases_have_other_labels(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "r"))
    for t_mix in (0.1, 0.9):
        plans.remember(store, plan_of(audit=None, forget=[CLASS], training={"all": {"t_mix": t_mix}}))
    labels = [row["label"] for row in json.loads(render(store, "json"))]
    assert len(set(labels)) == len(labels)
    assert {"MNC, mnemonic(t_mix=0.1)", "MNC, mnemonic(t_mix=0.9)"} <= set(labels)


def test_what_cannot_run_is_no_task_but_has_a_reason() -> None:
    plan = plan_of()
    assert plan.counts()["skipped"] == len(plan.impossible) == 2  # two seeds
    assert {reason for _, reason in plan.impossible} == {
        "mnemonic_code forgets whole classes only, and the forget recipe is random(fraction=0.2)"
    }
    assert not any(task.id in plan.by_id for task, _ in plan.impossible)
    assert plan.counts()["tune_trials"] == 0
    assert plan_of(tune={"trials": 7}).counts()["tune_trials"] == 3 * 7  # of four (method, cell)


def test_augmentation_can_be_turned_off_for_unlearning_alone() -> None:
    default, off = plan_of(audit=None), plan_of(audit=None, augment_unlearning=False)
    assert {t.id for t in off.tasks if t.kind != "unlearn"} == {
        t.id for t in default.tasks if t.kind != "unlearn"
    }
    assert all(task.spec["augment"] is False for task in off.tasks if task.kind == "unlearn")
    assert not {t.id for t in off.tasks if t.kind == "unlearn"} & default.by_id.keys()
    assert off.cells[0].variants[0].hyperparameters["augment"] is False
    assert "augment" not in default.cells[0].variants[0].hyperparameters


def test_plans_with_codes_are_remembered_and_united(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "r"))
    one, other = plan_of(audit=None), plan_of(audit=None, training={"all": {"epochs": 2, "t_mix": 0.5}})
    plans.remember(store, one)
    assert plans.recall(store) == one.cells
    plans.remember(store, other)
    cell = next(cell for cell in plans.recall(store) if cell.forget == "class(classes=[3])")
    assert set(cell.changed) == {CODES, "mnemonic(t_mix=0.5)"}
    assert Counter(v.method for v in cell.variants) == {"finetune": 1, "mnemonic_code": 2}
    assert cell.changed[CODES] == one.cells[0].changed[CODES]


# ---- the grid file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, [3]])
def test_one_class_may_be_written_without_brackets(classes: Any) -> None:
    assert plan_of(forget=[{"class": {"classes": classes}}]).cells[0].forget == "class(classes=[3])"


def test_the_order_of_classes_is_of_no_meaning() -> None:
    one, other = (plan_of(forget=[{"class": {"classes": c}}]) for c in ([7, 1], [1, 7]))
    assert one.by_id.keys() == other.by_id.keys()


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([{"class": {"classes": [10]}}], "forget.class.classes: digits has no class 10, only 0 to 9."),
        ([{"class": {"classes": list(range(10))}}], "forget.class.classes: all 10 classes of digits"),
        ([{"class": {"classes": []}}], "is not a whole number of at least 0, nor a list of them."),
        ([{"class": {"classes": [1.5]}}], "is not a whole number of at least 0, nor a list of them."),
        ([{"class": {"classes": [-1]}}], "is not a whole number of at least 0, nor a list of them."),
        ([{"class": {"classes": [2, 2]}}], "names 2 twice."),
        (
            [{"class": {"classes": [1]}}, {"class": {"classes": 1}}],
            "named twice with the same parameters: class.",
        ),
        ([{"class": [1]}], "write {class: {parameter: value, …}}, not {class: [1]}."),
        ([{"class": {"class": 1}}], "unknown parameter 'class' of class. Did you mean 'classes'?"),
    ],
)
def test_bad_classes_get_one_clear_line(forget: Any, message: str, write_grid: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as caught:
        load(str(write_grid(forget=forget)))
    (line,) = caught.value.problems
    assert message in line and "grid.yaml" in line


# ---- a run -----------------------------------------------------------------------------------------------


GRID = grid_data(
    forget=BOTH,
    methods=[
        {"finetune": {"epochs": 1, "batch_size": 256}},
        {"mnemonic_code": {"lambda_1": 0.001, "lambda_2": 10.0}},
    ],
    audit={"pairs": 4, "forget_sets": 1},
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("class wise") / "results"
    ended = run_grid(Grid.model_validate(GRID), Options(str(folder), "data", address=None))
    assert ended.failures == [] and ended.done == ended.total and len(ended.impossible) == 2
    return folder


def runs(results: Path) -> list[dict[str, Any]]:
    return list(Store.open(str(results)).runs().to_pylist())


def test_every_task_is_done_and_what_cannot_run_has_a_row(results: Path) -> None:
    plan = make_plan(Grid.model_validate(GRID))
    statuses = {row["task_id"]: (row["status"], row["reason"]) for row in runs(results)}
    assert {statuses[task.id] for task in plan.tasks} == {("done", "")}
    assert {statuses[task.id] for task, _ in plan.impossible} == {("skipped", plan.impossible[0][1])}
    assert len(statuses) == len(plan.tasks) + 2


def test_running_again_runs_and_writes_nothing(results: Path) -> None:
    before = results_table(results), Store.open(str(results)).read_table("runs").num_rows
    options = Options(str(results), "data", address=None, retry=frozenset({"skipped"}))
    assert run_grid(Grid.model_validate(GRID), options).ran == 0
    assert (results_table(results), Store.open(str(results)).read_table("runs").num_rows) == before


def test_ef_and_ar_are_those_of_the_test_samples_of_the_class(results: Path) -> None:
    store = Store.open(str(results))
    samples = store.read_table("samples").sort_by("sample_id").to_pydict()
    test = np.array(samples["split"]) == "test"
    gone = np.array(samples["label"])[test] == 3
    assert gone.sum() == 36
    reader, checked = Reader(store), 0
    for row in runs(results):
        if row["kind"] == "base" or not row["forget"].startswith("class") or row["status"] != "done":
            assert row["ef"] is None and row["ar"] is None
            continue
        correct = reader.scores([row["task_id"]], "correct")[row["task_id"]][test]
        assert row["ef"] == pytest.approx(1 - correct[gone].mean())
        assert row["ar"] == pytest.approx(correct[~gone].mean())
        assert 36 * (1 - row["ef"]) + 324 * row["ar"] == pytest.approx(360 * row["ta"])
        if row["kind"] == "retrain":
            assert row["fa"] == 0 and row["ef"] == 1
        checked += 1
    assert checked == 2 * (2 + 2) + 8 * (2 + 2)  # two retrains and two methods per seed and per base


def test_designs_say_which_classes_go_as_a_whole(results: Path) -> None:
    table = Store.open(str(results)).read_table("designs").to_pylist()
    assert {tuple(row["forget_classes"]) for row in table if '"class"' in row["forget"]} == {(3,)}
    assert {tuple(row["forget_classes"]) for row in table if '"class"' not in row["forget"]} == {()}
    labels = np.array(Store.open(str(results)).read_table("samples")["label"])
    for row in (row for row in table if '"class"' in row["forget"]):
        states = designs.unpack(row["states"], row["n_pool"])
        assert set(labels[: row["n_pool"]][states == designs.FORGET]) == {3}
        assert 3 not in labels[: row["n_pool"]][states == designs.RETAIN]


def test_the_audit_forgets_each_sample_of_the_class_once_per_pair(results: Path) -> None:
    """A member of one half is forgotten there; the other half's model forgets the class without it."""
    store = Store.open(str(results))
    cell = next(cell for cell in plans.recall(store) if cell.forget == "class(classes=[3])")
    reader = Reader(store)
    for variant in cell.variants:
        design = AuditDesign(reader, cell, cell.references(variant.training).retrains)
        worlds = design.worlds(design.cube(reader, variant.tasks))
        labels = np.array(store.read_table("samples").sort_by("sample_id")["label"])
        assert set(labels[design.audited]) == {3} and design.sets == 1
        assert all(world.shape == (1, 4, len(design.audited)) for world in worlds)
        assert not any(np.isnan(world).any() for world in worlds)
        forgotten, never, retrained = worlds
        assert not np.array_equal(never, retrained) and not np.array_equal(forgotten, never)


def test_what_was_paid_before_the_request_is_the_training_of_the_base(results: Path) -> None:
    rows = {row["task_id"]: row for row in runs(results)}
    for row in rows.values():
        if row["method"] == "mnemonic_code" and row["status"] == "done":
            assert row["training"] == "mnemonic"
            assert row["prepaid_s"] == rows[row["parents"][0]]["wall_s"] > row["wall_s"]
        else:
            assert row["prepaid_s"] is None


def test_a_warning_of_a_method_is_kept(results: Path) -> None:
    """After two epochs some bases do not know all of their codes."""
    warned = [
        row["warnings"] for row in runs(results) if row["method"] == "mnemonic_code" and row["warnings"]
    ]
    assert warned and all("of 10 codes" in text for text in warned)
    assert not any(row["warnings"] for row in runs(results) if row["method"] != "mnemonic_code")


def test_codes_are_saved_with_the_model(results: Path, tmp_path: Path) -> None:
    """A run cut off after its base goes on from the base's file and ends with the same rows."""
    folder, grid = (
        tmp_path / "results",
        Grid.model_validate(GRID | {"audit": None, "seeds": 1, "forget": [CLASS]}),
    )
    limited = Options(str(folder), "data", address=None, limit=1)
    while "base" in {task.kind for task in missing(folder, grid)}:
        run_grid(grid, limited)
    assert [
        task for task in missing(folder, grid) if task.spec.get("method", {}).get("name") == "mnemonic_code"
    ]
    (one, *_) = [row for row in runs(folder) if row["kind"] == "base" and row["training"] == "mnemonic"]
    from safetensors.numpy import load

    tensors = load(Store.open(str(folder)).read_model(one["task_id"]))
    codes = tensors[".mnemonic_codes"]
    assert codes.shape == (10, 1, 8, 8) and 0 <= codes.min() < 0.01 and 0.99 < codes.max() < 1
    run_grid(grid, Options(str(folder), "data", address=None))
    there = results_table(results)
    assert len(results_table(folder)) == 6 and all(row in there for row in results_table(folder))


def missing(folder: Path, grid: Grid) -> list[Task]:
    store = Store.open_if_any(str(folder))
    done = set(store.runs(["task_id"])["task_id"].to_pylist()) if store else set()
    return [task for task in make_plan(grid).tasks if task.id not in done]


# ---- the report ------------------------------------------------------------------------------------------


def test_the_report_has_two_bases_two_retrains_and_the_price(results: Path) -> None:
    rows = json.loads(render(Store.open(str(results)), "json"))
    cell = {(row["label"]): row for row in rows if row["forget"] == "class(classes=[3])"}
    assert list(cell)[:4] == ["Base", f"Base, {CODES}", "Retrain", f"Retrain, {CODES}"]
    assert cell["Retrain"]["ef"] == 1 and cell["Retrain"]["fa"] == 0
    assert cell["Base"]["ar"] > 0.5 and cell["Base"]["ef"] < 0.5
    bases = [row for row in runs(results) if row["kind"] == "base" and row["track"] == "main"]
    by_seed = {(row["training"], row["seed"]): row["ta"] for row in bases}
    price = np.mean([by_seed["plain", seed] - by_seed["mnemonic", seed] for seed in (0, 1)])
    assert cell[f"Base, {CODES}"]["utility_price"] == pytest.approx(price)
    assert cell["Base"]["utility_price"] is None and cell["MNC"]["utility_price"] is None
    assert cell[f"Retrain, {CODES}"]["ret_dev_own"] == 0 < cell[f"Retrain, {CODES}"]["ret_dev"]
    assert cell["MNC"]["ret_dev_own"] is not None and cell["FT"]["ret_dev_own"] is None
    assert all(row["auc_forgotten_vs_retrained"] is not None for row in cell.values())
    assert cell["Retrain"]["auc_fingerprint"] is None, "one retrain per base: nothing to compare it with"


def test_ret_dev_where_the_retrain_errs_on_all_of_the_forget_set(results: Path) -> None:
    """|RA/RA_R − 1| + FA + |TA/TA_R − 1|, since FA_R = 0."""
    found = json.loads(render(Store.open(str(results)), "json"))
    of = {
        (row["kind"], row["method"], row["seed"]): row
        for row in runs(results)
        if row["track"] == "main" and row["forget"].startswith("class") and row["training"] == PLAIN
    }
    values = []
    for seed in (0, 1):
        mine, retrain = of["unlearn", "finetune", seed], of["retrain", "", seed]
        values.append(abs(mine["ra"] / retrain["ra"] - 1) + mine["fa"] + abs(mine["ta"] / retrain["ta"] - 1))
    (row,) = [r for r in found if r["method"] == "finetune" and r["forget"].startswith("class")]
    assert row["ret_dev"] == pytest.approx(np.mean(values)) and row["rank"] is not None


def test_what_cannot_run_is_in_the_report_with_its_reason(results: Path, lethe: Lethe) -> None:
    text = lethe("report", "--results", results, "--format", "md").stdout
    random = text.partition("random(fraction=0.2)")[2]
    assert "| MNC |  | 2 skipped | 0 |" in random
    assert "MNC: 2 skipped: mnemonic_code forgets whole classes only" in random
    assert "E_F" not in random.partition("## How to read")[0] and "| E_F | A_R |" in text
    assert f"Price of {CODES} training before any deletion: TA of the plain base − TA of" in text
    store = Store.open(str(results))
    for form in ("html", "latex", "csv"):
        assert "mnemonic" in render(store, form)


def test_status_and_plan_speak_of_what_cannot_run(
    results: Path, lethe: Lethe, write_grid: Callable[..., Path]
) -> None:
    planned = lethe("plan", write_grid(**GRID), "--results", results).stdout
    assert "2 skipped: mnemonic_code forgets whole classes only" in planned and "0 are left" in planned
    again = lethe("run", write_grid(**GRID), "--results", results, "--inline")
    assert again.returncode == 0 and "2 skipped: mnemonic_code" in again.stdout


def test_indisc_compares_the_class_with_its_own_test_samples(results: Path) -> None:
    store = Store.open(str(results))
    table = store.read_table("audits")
    chosen = table.filter(pc.field("attack") == "population_loss").to_pylist()
    sizes = {(row["forget"].partition("(")[0], row["n_negative"]) for row in chosen}
    assert sizes == {("class", 36), ("random", 360)}


def test_the_svm_learns_from_test_samples_of_the_classes_that_stay(results: Path) -> None:
    store = Store.open(str(results))
    reader = Reader(store)
    table = store.read_table("audits").filter(pc.field("attack") == "population_svm")
    rows = [row for row in table.to_pylist() if row["forget"].startswith("class") and row["seed"] == 0]
    cell = next(cell for cell in plans.recall(store) if cell.id == rows[0]["cell"])
    states = reader.states(cell.retrains["main", 0, 0])
    assert states is not None
    for kind, tasks_of in (("base", cell.bases), ("retrain", cell.retrains)):
        task = tasks_of["main", 0, 0]
        confidence = confidence_from_phi(reader.scores([task])[task])
        others = confidence[len(states) :][reader.labels(task)[1] != 3]
        sets = [confidence[: len(states)][states == state] for state in (designs.RETAIN, designs.FORGET)]
        found = [row for row in rows if row["kind"] == kind and row["training"] == PLAIN]
        assert [row["nonmember_share"] for row in found] == [population_svm(sets[0], others, sets[1])]
