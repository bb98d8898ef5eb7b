"""A grid becomes tasks: counts by hand, stable ids, sharing, and 100,000 of them in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import plans
from orchestrator.config import Grid
from orchestrator.keys import digest
from orchestrator.plan import Plan, make_plan
from orchestrator.store import Store
from tests.conftest import ROOT, Lethe, grid_data

SIX = [
    *("finetune", "gradient_ascent", "successive_random_labels"),
    *("neggrad_plus", "convolution_transpose", "masked_small_gradients"),
]


def plan_of(**changes: Any) -> Plan:
    return make_plan(Grid.model_validate(grid_data(**changes)))


def ids(plan: Plan, kind: str = "") -> set[str]:
    return {task.id for task in plan.tasks if not kind or task.kind == kind}


# ---- counts ----------------------------------------------------------------------------------------------


def test_counts_of_a_grid_by_hand() -> None:
    """2 datasets, 2 architectures, 2 forget recipes, 3 methods, 5 seeds; 4 pairs, 3 sets, 1 retrain."""
    changes = {"datasets": ["digits", "cifar10"], "architectures": ["cnn_small", "resnet18"], "seeds": 5}
    forget = [{"random": {"fraction": 0.1}}, {"random": {"fraction": 0.3}}]
    audit = {"pairs": 4, "forget_sets": 3, "retrains": 1}
    counts = plan_of(**changes, forget=forget, methods=SIX[:3], audit=audit, tune={"trials": 7}).counts()
    models = 4  # (dataset, architecture)
    base = models * (5 + 8)  # shared by both forget recipes and all methods
    retrain = models * 2 * (5 + 8 * 1)
    unlearn = models * 2 * 3 * (5 + 8 * 3)
    assert counts == {
        "tasks": base + retrain + unlearn,
        "base": base,
        "retrain": retrain,
        "unlearn": unlearn,
        "skipped": 0,
        "tune_trials": models * 2 * 3 * 7,
        "unshared_tasks": 3 * unlearn,  # each unlearned model with a base and a retrain of its own
    }


def test_counts_without_an_audit_and_without_methods() -> None:
    counts = plan_of(seeds=3, audit=None, methods=[]).counts()
    assert (counts["base"], counts["retrain"], counts["unlearn"], counts["tune_trials"]) == (3, 3, 0, 0)


def test_every_base_comes_before_what_starts_from_it_and_ids_are_unique() -> None:
    plan, seen = plan_of(methods=SIX), set()
    for task in plan.tasks:
        assert task.base is None or task.base in seen
        assert task.id not in seen
        assert task.id == digest(task.spec)
        seen.add(task.id)


def test_cells_hold_all_tasks_and_nothing_else() -> None:
    plan = plan_of(methods=SIX[:2], forget=["random", {"random": {"fraction": 0.3}}])
    assert len(plan.cells) == len({cell.id for cell in plan.cells}) == 2
    found = {
        task
        for cell in plan.cells
        for tasks in (cell.bases, cell.retrains, *(variant.tasks for variant in cell.variants))
        for task in tasks.values()
    }
    assert found == ids(plan)
    for cell in plan.cells:
        assert cell.bases.keys() == cell.variants[0].tasks.keys() == cell.variants[1].tasks.keys()
        for key, task in cell.bases.items():
            assert all(plan.by_id[v.tasks[key]].base == task for v in cell.variants)


# ---- what a model is made of -----------------------------------------------------------------------------


def test_a_retrain_starts_from_its_bases_weights_on_the_main_track_only() -> None:
    """Paired by the initial weights as in the paper; in the audit unpaired, else retrains leak the base."""
    plan = plan_of()
    (cell,) = plan.cells
    for key, task in cell.retrains.items():
        base, retrain = plan.by_id[cell.bases[key]].spec, plan.by_id[task].spec
        assert (base["seeds"]["init"] == retrain["seeds"]["init"]) == (key[0] == "main")
        assert base["seeds"]["order"] != retrain["seeds"]["order"]
        assert base["members"] == retrain["members"]


def test_no_two_models_share_their_random_numbers() -> None:
    plan = plan_of(methods=SIX[:2])
    orders = [task.spec["seeds"].get("order", task.spec["seeds"].get("unlearn")) for task in plan.tasks]
    assert len(set(orders)) == len(orders)
    bases = [task.spec["seeds"]["init"] for task in plan.tasks if task.kind == "base"]
    assert len(set(bases)) == len(bases)


def test_the_two_bases_of_a_pair_are_the_two_halves() -> None:
    plan = plan_of()
    members = [task.spec["members"] for task in plan.tasks if task.kind == "base"][2:]
    assert [(m["pair"], m["half"]) for m in members] == [(pair, half) for pair in range(4) for half in (0, 1)]


def test_the_first_forget_sets_of_each_base_are_retrained() -> None:
    (cell,) = plan_of(audit={"pairs": 4, "forget_sets": 5, "retrains": 2}).cells
    audit = [key for key in cell.retrains if key[0] == "audit"]
    assert sorted(audit) == [("audit", base, index) for base in range(8) for index in (0, 1)]


# ---- identity --------------------------------------------------------------------------------------------


def test_golden_ids() -> None:
    """Results are found by id. Whoever changes these numbers orphans all earlier results: raise a version."""
    plan = plan_of(seeds=1, audit={"pairs": 4, "forget_sets": 1})
    found = {task.kind: task.id for task in reversed(plan.tasks) if task.spec["members"]["track"] == "main"}
    found |= {f"audit {t.kind}": t.id for t in reversed(plan.tasks) if t.spec["members"]["track"] == "audit"}
    assert found == {
        "audit base": "94e7af2954c68c7e44f1",
        "audit retrain": "3d1d893352a71fe7fac6",
        "audit unlearn": "f292b43d803f482bdd97",
        "base": "92e5b7ffed48af7e42e8",
        "retrain": "481de535db8517f69ca6",
        "unlearn": "9acaef274beb1bf1a210",
    }


@pytest.mark.parametrize(
    "wider",
    [
        {"methods": ["finetune", "gradient_ascent"]},
        {"methods": ["gradient_ascent", "finetune"]},
        {"seeds": 3},
        {"seeds": [5, 1, 0]},
        {"audit": {"pairs": 5, "forget_sets": 2}},
        {"forget": [{"random": {"fraction": 0.2}}, {"random": {"fraction": 0.3}}]},
        {"datasets": ["cifar10", "digits"]},
        {"architectures": ["resnet18", "cnn_small"]},
        {"tune": {"trials": 5}},
        {"run": {"time_limit_s": 5.0}},
        {"name": "another"},
        {"methods": [{"finetune": {"epochs": 5}}]},  # a default written out
    ],
)
def test_a_wider_grid_keeps_the_ids_of_the_narrower(wider: dict[str, Any]) -> None:
    assert ids(plan_of()) <= ids(plan_of(**wider))


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"methods": [{"finetune": {"epochs": 6}}]}, {"unlearn"}),
        ({"forget": [{"random": {"fraction": 0.25}}]}, {"retrain", "unlearn"}),
        ({"training": {"all": {"epochs": 3}}}, {"base", "retrain", "unlearn"}),
        ({"val_fraction": 0.2}, {"base", "retrain", "unlearn"}),
        ({"seeds": [2, 3], "audit": None}, {"base", "retrain", "unlearn"}),
    ],
)
def test_what_changes_a_result_changes_the_id_and_nothing_else_does(
    change: dict[str, Any], kinds: set[str]
) -> None:
    old, new = plan_of(), plan_of(**change)
    for kind in ("base", "retrain", "unlearn"):
        assert ids(old, kind).isdisjoint(ids(new, kind)) == (kind in kinds), kind


@pytest.mark.parametrize("part", ["dataset", "architecture", "training", "forget", "method"])
def test_the_version_of_every_part_is_in_the_id(part: str) -> None:
    plan = plan_of()
    carriers = [task for task in plan.tasks if part in task.spec]
    assert carriers
    for task in carriers:
        assert isinstance(task.spec[part]["version"], int)


def test_bases_are_shared_by_forget_recipes_and_methods_and_retrains_by_methods() -> None:
    one, many = plan_of(methods=SIX[:1]), plan_of(methods=SIX)
    assert ids(one, "base") == ids(many, "base")
    assert ids(one, "retrain") == ids(many, "retrain")
    both = plan_of(forget=["random", {"random": {"fraction": 0.2}}])
    assert ids(both, "base") == ids(one, "base")
    assert len(ids(both, "retrain")) == 2 * len(ids(one, "retrain"))


# ---- size ------------------------------------------------------------------------------------------------

BIG = """
import json
import resource
import sys
from orchestrator.config import Grid
from orchestrator.plan import make_plan
plan = make_plan(Grid.model_validate(json.loads(sys.argv[1])))
counts = plan.counts()
use = resource.getrusage(resource.RUSAGE_SELF)
with open("/proc/self/status") as status:  # ru_maxrss would count the parent's memory too
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({
    **counts,
    "unique": len({task.id for task in plan.tasks}),
    "cpu_s": use.ru_utime + use.ru_stime,
    "mib": peak_kib / 1024,
    "heavy": sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "ray", "optuna", "sklearn"}),
}))
"""


def test_a_hundred_thousand_tasks_take_under_five_seconds_and_500_mib() -> None:
    """CPU seconds of the whole process, start included, so that a busy machine changes nothing."""
    grid = grid_data(
        datasets=["digits", "cifar10"],
        architectures=["cnn_small", "resnet18"],
        methods=SIX,
        forget=[{"random": {"fraction": fraction}} for fraction in (0.1, 0.15, 0.2)],
        seeds=600,
        audit={"pairs": 64, "forget_sets": 5, "retrains": 2},
    )
    command = [sys.executable, "-c", BIG, json.dumps(grid)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    facts = json.loads(done.stdout)
    base, retrain, unlearn = 4 * (600 + 128), 4 * 3 * (600 + 128 * 2), 4 * 3 * 6 * (600 + 128 * 5)
    assert facts["tasks"] == facts["unique"] == base + retrain + unlearn
    assert facts["unlearn"] == unlearn
    assert facts["tasks"] > 100_000
    assert facts["cpu_s"] < 5.0, facts
    assert facts["mib"] < 500, facts
    assert facts["heavy"] == []


# ---- the command line ------------------------------------------------------------------------------------


def test_plan_json_has_the_keys_scripts_rely_on(lethe: Lethe, write_grid: Callable[..., Path]) -> None:
    grid = write_grid(seeds=1, audit=None, tune={"trials": 3})
    done = lethe("plan", grid, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    expected = {"tasks": 3, "base": 1, "retrain": 1, "unlearn": 1, "tune_trials": 3, "unshared_tasks": 3}
    assert {key: facts[key] for key in expected} == expected
    assert facts["done"] == 0 and facts["gpu_hours"] is None
    text = lethe("plan", grid).stdout
    assert "3 tasks in 1 cell: 1 base, 1 retrain, 1 unlearn." in text
    assert sorted(path.name for path in grid.parent.iterdir()) == ["grid.yaml"]  # a plan writes nothing


def test_more_views_are_of_the_audit_alone() -> None:
    """They change what is scored, not what is trained: other ids on the audit track, the same seeds."""
    plain, strong = plan_of(), plan_of(audit={"pairs": 4, "forget_sets": 2, "views": "strong"})
    same = plain.by_id.keys() & strong.by_id.keys()
    assert {plain.by_id[task].spec["members"]["track"] for task in same} == {"main"}
    others = [task for task in strong.tasks if task.id not in same]
    assert all(task.spec["views"] == "strong" for task in others)
    assert [t.spec["seeds"] for t in others] == [t.spec["seeds"] for t in plain.tasks if t.id not in same]


def test_further_columns_are_of_the_audit_alone_and_their_order_is_no_matter() -> None:
    audit = {"pairs": 4, "forget_sets": 2}
    plain, none = plan_of(), plan_of(audit=audit | {"columns": []})
    assert plain.by_id.keys() == none.by_id.keys()  # the neutral value leaves no trace
    one = plan_of(audit=audit | {"columns": ["entropy", "modified_entropy"]})
    other = plan_of(audit=audit | {"columns": ["modified_entropy", "entropy"]})
    assert one.by_id.keys() == other.by_id.keys()
    new = [task for task in one.tasks if task.id not in plain.by_id]
    assert {task.spec["members"]["track"] for task in new} == {"audit"}
    assert {tuple(task.spec["columns"]) for task in new} == {("entropy", "modified_entropy")}
    assert len(new) == sum(task.spec["members"]["track"] == "audit" for task in plain.tasks)


# ---- plans kept with the results -------------------------------------------------------------------------


def remembered(folder: Path, *grids: dict[str, Any]) -> list[Any]:
    store = Store.create(str(folder))
    for grid in grids:
        plans.remember(store, plan_of(**grid))
    return plans.recall(store)


def test_a_remembered_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    assert remembered(tmp_path / "r", {"methods": SIX}) == plan_of(methods=SIX).cells


def test_remembering_twice_writes_once(tmp_path: Path) -> None:
    remembered(tmp_path / "r", {}, {}, {"name": "the same cells"})
    assert len(list((tmp_path / "r" / "plans").iterdir())) == 1


def test_plans_of_one_cell_are_united(tmp_path: Path) -> None:
    first, second = {"methods": ["finetune"], "seeds": 3}, {"methods": ["gradient_ascent"], "seeds": [7]}
    (cell,) = remembered(tmp_path / "r", first, second)
    assert [variant.method for variant in cell.variants] == ["finetune", "gradient_ascent"]
    assert sorted(key[1] for key in cell.bases if key[0] == "main") == [0, 1, 2, 7]


def test_an_audit_with_another_partition_replaces_the_older(tmp_path: Path) -> None:
    """Forget sets 0 and 1 of 2 and set 2 of 3 overlap: they must not end in one audit."""
    wide, narrow = {"audit": {"pairs": 4, "forget_sets": 3}}, {"audit": {"pairs": 4, "forget_sets": 2}}
    (cell,) = remembered(tmp_path / "r", wide | {"methods": SIX[:2]}, narrow)
    new = plan_of(**narrow).cells[0]
    assert cell.bases == new.bases
    assert cell.retrains == new.retrains
    finetune, ascent = cell.variants
    assert finetune.tasks == new.variants[0].tasks
    assert {key[0] for key in ascent.tasks} == {"main"}


def test_labels_of_forget_recipes_show_all_parameters() -> None:
    from orchestrator.plan import forget_label

    assert forget_label(None) == ""
    assert forget_label({"name": "random", "parameters": {"fraction": 0.1}}) == "random(fraction=0.1)"
    assert plan_of(forget=["random"]).cells[0].forget == "random(fraction=0.1)"


def test_a_task_says_what_it_is_before_it_runs() -> None:
    plan = plan_of()
    unlearn = next(t for t in plan.tasks if t.kind == "unlearn" and t.spec["members"]["track"] == "audit")
    columns = unlearn.columns()
    assert columns["parents"] == [unlearn.base] and columns["method"] == "finetune"
    assert (columns["track"], columns["seed"], columns["forget_index"]) == ("audit", 0, 0)
    base = plan.by_id[str(unlearn.base)].columns()
    assert (base["forget"], base["method"], base["parents"], base["forget_index"]) == ("", "", [], -1)
    assert replace(unlearn, id="x").columns()["task_id"] == "x"
