"""The attacks beside U-LiRA: each row of audits is what the attack says of the models it must be about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks import (
    attack_p,
    epsilon_bounds,
    klom,
    metrics,
    neurips_score,
    population_matched,
    population_svm,
    rmia,
)
from attacks.scores import confidence_from_phi, loss_from_phi
from orchestrator import audit, report_attacks
from orchestrator.plan import Plan, Task
from orchestrator.store import Store, new_part
from tests.known_answers.simulated_cell import rng_of
from tests.test_audit import (
    LABELS,
    PAIRS,
    POOL,
    TEST,
    code,
    design_of,
    fill,
    forgotten_in,
    member_signal,
    plan_of,
    states_of,
    written,
)
from workers.designs import FORGET, RETAIN

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture
def store(weird_tmp_path: Path) -> Store:
    return Store.create(str(weird_tmp_path / "results"))


def audited(store: Store, plan: Plan, phi: Any = member_signal, **options: Any) -> None:
    fill(store, plan.tasks, phi, **options)
    audit.write(store, plan.cells)


def bases_of(plan: Plan) -> list[Task]:
    return [t for t in plan.tasks if t.kind == "base" and t.spec["members"]["track"] == "audit"]


# ---- on the pairs ------------------------------------------------------------------------------------------


def test_rmia_of_the_base_row_is_rmia_of_the_bases(store: Store) -> None:
    """The models behind a base's forget sets are one model; the library takes it once."""
    plan = plan_of()
    audited(store, plan)
    bases = bases_of(plan)
    phi = np.stack([member_signal(task, states_of(task)) for task in bases])
    member = np.stack([states_of(task) == RETAIN for task in bases])
    used = np.flatnonzero(member.any(axis=0))
    pair = np.arange(len(bases)) // 2
    scores = rmia.leave_pair_out(phi[:, used], member[:, used], pair, phi[:, POOL:])
    (row,) = written(store, attack="rmia", kind="base", comparison="forgotten_vs_never")
    assert row["auc"] == pytest.approx(metrics.auc(scores[member[:, used]], scores[~member[:, used]]), 1e-12)
    assert row["variant"] == "online" and row["auc"] > 0.7
    assert row["n_positive"] == row["n_negative"] == PAIRS * len(used)


def test_rmia_looks_up_the_population_of_the_model_behind_an_entry(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every φ tells its model and its sample: an entry and the row of its population are of one model."""
    attack, seen = rmia.worlds_leave_pair_out, []

    def spy(*given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(given)
        return attack(*given)

    monkeypatch.setattr(rmia, "worlds_leave_pair_out", spy)
    audited(store, plan_of(), code)
    assert len(seen) == 6  # of bases, retrains and the method, against never-in and against retrained
    for high, low, *models, population, pair in seen:
        numbers = population[:, 0] - POOL  # what code() gives the first sample of the model
        assert len(set(zip(numbers, pair, strict=True))) == len(set(numbers))
        for phi, model in zip((high, low), models, strict=True):
            there = ~np.isnan(phi)
            assert there.sum() > 3 * PAIRS and np.array_equal(
                (phi // 200 * 200)[there], numbers[model][there]
            )


def test_attack_p_is_calibrated_on_the_very_model(store: Store) -> None:
    plan = plan_of()
    (cell,) = plan.cells
    audited(store, plan)
    design, _ = design_of(store, cell)
    high, low = [], []
    for base in range(2 * PAIRS):
        of = forgotten_in(plan, base)
        for index in range(2):
            for model, found in ((base, high), (base ^ 1, low)):
                task = plan.by_id[cell.variants[0].tasks["audit", model, index]]
                phi = member_signal(task, states_of(task))
                found.append(attack_p.attack_p(phi[:POOL][of == index], phi[POOL:]))
    (row,) = written(store, attack="attack_p", method="finetune")
    assert row["auc"] == pytest.approx(metrics.auc(np.concatenate(high), np.concatenate(low)), 1e-12)
    assert row["samples"] == len(design.audited)


def test_an_identity_is_to_an_attacker_of_bases_what_the_bases_are(store: Store) -> None:
    """LiRA fitted on bases, on models that forgot nothing: exactly the audit of the bases themselves."""
    plan = plan_of()
    (cell,) = plan.cells
    parent = {task: cell.bases[key] for key, task in cell.variants[0].tasks.items()}

    def unchanged(task: Task, states: np.ndarray) -> np.ndarray:
        task = plan.by_id[parent.get(task.id, task.id)]
        return member_signal(task, states_of(task))

    audited(store, plan, unchanged)
    (base,) = written(store, kind="base", comparison="forgotten_vs_never")
    (row,) = written(store, method="finetune", comparison="forgotten_vs_never")
    (known,) = written(store, method="finetune", attack="lira", variant="base")
    for name in ("auc", "auc_low", "auc_high", "n_positive", "false_positives_at_1pct"):
        assert row[name] == base[name] and known[name] == pytest.approx(base[name], abs=1e-12), name
    assert written(store, kind="base", attack="lira", variant="base") == []
    (both,) = written(store, method="finetune", attack="update_leakage")
    assert both["auc"] == pytest.approx(base["auc"], abs=0.02), "twice the same score says no more than once"


def test_two_models_tell_what_one_does_not(store: Store) -> None:
    """The forgotten part is taken away, the noise of the base stays: the difference shows who forgot."""
    plan = plan_of(audit={"pairs": 8})
    (cell,) = plan.cells
    parent = {task: cell.bases[key] for key, task in cell.variants[0].tasks.items()}

    def lowered(task: Task, states: np.ndarray) -> np.ndarray:
        if task.id not in parent:
            return member_signal(task, states)
        base = plan.by_id[parent[task.id]]
        phi = member_signal(base, states_of(base)).astype(np.float64)
        phi[:POOL] -= np.where(states == FORGET, 2.0, 0.0)
        return (phi + 0.1 * rng_of(task, "own").normal(size=len(phi))).astype(np.float32)

    audited(store, plan, lowered)
    (one,) = written(store, method="finetune", comparison="forgotten_vs_never")
    (two,) = written(store, method="finetune", attack="update_leakage")
    assert one["auc"] == pytest.approx(0.5, abs=0.06) and two["auc"] > 0.95


def test_joint_views_need_four_pairs_a_view(store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def noisier(phi: np.ndarray) -> list[np.ndarray]:
        return [phi + rng.normal(0, 1, len(phi)).astype(np.float32)]

    audited(store, plan_of(audit={"pairs": 8}), further=noisier)
    rows = written(store, attack="lira", variant="joint_views", kind="base")
    (mean,) = written(store, kind="base", comparison="forgotten_vs_never")
    assert {row["comparison"] for row in rows} == {"forgotten_vs_never", "forgotten_vs_retrained"}
    joint = next(row for row in rows if row["comparison"] == "forgotten_vs_never")
    assert joint["auc"] > mean["auc"], "the second view is the first with noise: a joint density sees that"
    few = Store.create(str(tmp_path / "few"))
    audited(few, plan_of(), further=noisier)
    assert written(few, attack="lira", variant="joint_views") == []


def test_a_population_that_is_lost_takes_its_model_only(store: Store) -> None:
    plan = plan_of()
    (cell,) = plan.cells
    lost = plan.by_id[cell.variants[0].tasks["audit", 2, 1]]
    fill(store, [task for task in plan.tasks if task is not lost], member_signal)
    fill(store, [lost], code, status="diverged")
    audit.write(store, plan.cells)
    (row,) = written(store, method="finetune", comparison="forgotten_vs_never")
    for attack in ("rmia", "attack_p", "attack_r"):
        (other,) = written(store, method="finetune", attack=attack, comparison="forgotten_vs_never")
        assert other["n_positive"] > 0 and other["pairs"] == PAIRS, attack
        assert abs(other["n_positive"] - row["n_positive"]) <= POOL, attack


# ---- bounds ------------------------------------------------------------------------------------------------


def far_apart(task: Task, states: np.ndarray) -> np.ndarray:
    """A method that forgets nothing, of bases that everybody recognises."""
    noise = rng_of(task).normal(size=POOL + TEST)
    noise[:POOL] += np.where((states == RETAIN) | ((states == FORGET) & (task.kind != "retrain")), 50.0, 0.0)
    return noise.astype(np.float32)


def test_the_one_run_bound_counts_one_model_of_each_pair(store: Store) -> None:
    plan = plan_of(audit={"pairs": 8})
    audited(store, plan, far_apart)
    (row,) = written(store, method="finetune", comparison="forgotten_vs_never")
    first_sets = [int((forgotten_in(plan, base) == 0).sum()) for base in range(16)]
    sizes = [first_sets[2 * p] + first_sets[2 * p + 1] for p in range(8)]
    guesses = sum(2 * round(0.1 * size / 2) for size in sizes)
    assert (row["one_run_correct"], row["one_run_guesses"]) == (guesses, guesses) and guesses >= 16
    assert row["epsilon_one_run"] == epsilon_bounds.one_run_epsilon(guesses, guesses, sum(sizes)) > 1
    assert row["epsilon_split"] > 1 and row["mu_split"] > 2
    assert row["best_balanced_accuracy"] == 1 and row["held_out_fpr"] == 0 and row["held_out_tpr"] > 0.8
    (retrain,) = written(store, kind="retrain", comparison="forgotten_vs_never")
    assert retrain["epsilon_one_run"] < 0.5 and retrain["epsilon_split"] < 0.5
    assert retrain["held_out_balanced_accuracy"] <= retrain["best_balanced_accuracy"]
    (fingerprint,) = written(store, method="finetune", comparison="fingerprint")
    assert fingerprint["epsilon_split"] is fingerprint["epsilon_one_run"] is None


# ---- on one model ------------------------------------------------------------------------------------------


def with_labels(store: Store) -> None:
    """The table samples: as many test samples of each class."""
    labels = [*LABELS, *(np.arange(TEST) % 4)]
    rows = [
        {"sample_id": i, "split": "pool" if i < POOL else "test", "label": int(label)}
        for i, label in enumerate(labels)
    ]
    store.write_part("samples", rows, new_part(), "dataset=digits")


def test_population_attacks_stand_beside_retraining(store: Store) -> None:
    plan = plan_of(seeds=3)
    with_labels(store)
    main = [task for task in plan.tasks if task.columns()["track"] == "main"]
    fill(store, main, member_signal)
    audit.write(store, plan.cells)
    task = next(t for t in main if t.kind == "unlearn" and t.columns()["seed"] == 1)
    phi, states = member_signal(task, states_of(task)), states_of(task)
    forget, retain, test = phi[:POOL][states == FORGET], phi[:POOL][states == RETAIN], phi[POOL:]
    facts = {"method": "finetune", "seed": 1}
    (loss,) = written(store, attack="loss_threshold", **facts)
    assert loss["auc"] == metrics.auc(forget, test)
    (gap,) = written(store, attack="correctness", **facts)
    assert gap["accuracy"] == pytest.approx(0.5 + ((forget > 0).mean() - (test > 0).mean()) / 2)
    (svm,) = written(store, attack="population_svm", **facts)
    sure = [confidence_from_phi(side) for side in (retain, test, forget)]
    assert svm["nonmember_share"] == population_svm.population_svm(*sure)
    (matched,) = written(store, attack="population_matched", **facts)
    labels, lost = np.array([*LABELS, *(np.arange(TEST) % 4)]), loss_from_phi(phi)
    sides = (lost[:POOL][states == FORGET], LABELS[states == FORGET], lost[POOL:], labels[POOL:])
    assert matched["accuracy"] == population_matched.population_matched(*sides)
    own = [r for r in store.read_table("audits").to_pylist() if r["method"] == "finetune"]
    retrain = [r for r in store.read_table("audits").to_pylist() if r["kind"] == "retrain"]
    apart = report_attacks.against_retrain(own, retrain)
    by_seed = [
        next(r["auc"] for r in rows if r["attack"] == "loss_threshold" and r["seed"] == seed)
        for rows in (own, retrain)
        for seed in range(3)
    ]
    assert apart["loss_threshold_from_retrain"] == pytest.approx(
        np.mean(np.subtract(*np.split(np.array(by_seed), 2)))
    )
    assert apart["loss_threshold_from_retrain"] > 0
    assert set(report_attacks.against_retrain(retrain, retrain).values()) == {0.0}


# ---- many models of one forget set -------------------------------------------------------------------------


def test_klom_and_the_neurips_score_are_of_the_seeds_of_the_main_track(store: Store) -> None:
    plan = plan_of(seeds=8)
    main = [task for task in plan.tasks if task.columns()["track"] == "main"]
    fill(store, main, member_signal)
    audit.write(store, plan.cells)
    phi = {
        kind: np.stack([member_signal(t, states_of(t)) for t in main if t.kind == kind])
        for kind in ("unlearn", "retrain")
    }
    states = states_of(next(t for t in main if t.kind == "unlearn"))
    found = {row["comparison"]: row for row in written(store, attack="klom", method="finetune")}
    assert set(found) == {"forget", "retain", "val"}
    for name, state in (("forget", FORGET), ("retain", RETAIN)):
        ours, theirs = (values[:, :POOL][:, states == state] for values in phi.values())
        by_hand = klom.klom(ours, theirs)
        assert found[name]["klom_forward"] == by_hand.full.forward.mean
        assert found[name]["klom_halved_backward_p95"] == by_hand.halved.backward.percentile_95
        assert found[name]["klom_null_gaussian_forward"] == by_hand.null.gaussian_forward.mean
        assert found[name]["models"] == 8
        if name == "forget":
            (score,) = written(store, attack="neurips_score", method="finetune")
            reference = neurips_score.neurips_score(ours, theirs)
            assert score["neurips_f"] == reference.forgetting and score["neurips_f_null"] == reference.null
            assert score["neurips_final"] is None, "accuracies are not known here"
    (itself,) = written(store, attack="klom", kind="retrain", comparison="forget")
    assert itself["klom_forward"] is itself["klom_halved_forward"] is None, "itself is no floor"
    assert itself["klom_null_forward"] == found["forget"]["klom_null_forward"] > 0


def test_seven_seeds_are_too_few(store: Store) -> None:
    plan = plan_of(seeds=7)
    fill(store, [t for t in plan.tasks if t.columns()["track"] == "main"], member_signal)
    audit.write(store, plan.cells)
    assert written(store, attack="klom") == written(store, attack="neurips_score") == []


def test_stored_entropies_are_attacked_class_by_class(store: Store, tmp_path: Path) -> None:
    """φ says nothing; the entropy is lower where a model was trained on the sample, on a scale per class."""
    plan = plan_of()
    with_labels(store)
    scale = np.concatenate([LABELS, np.arange(TEST) % 4]) * 3.0

    def lower(task: Task) -> dict[str, np.ndarray]:
        known = np.zeros(POOL + TEST)
        known[:POOL] = np.where(states_of(task) == RETAIN, 1.0, 0.0) if task.kind == "base" else 0.0
        return {
            "entropy": (20 + scale - known + 0.3 * rng_of(task).normal(size=len(known))).astype(np.float16)
        }

    fill(store, plan.tasks, member_signal, columns=lower)
    audit.write(store, plan.cells)
    (row,) = written(store, attack="entropy", kind="base")
    assert row["variant"] == "entropy" and row["auc"] > 0.95, "one threshold for all classes would see less"
    (clean,) = written(store, attack="entropy", kind="retrain")
    assert clean["auc"] == pytest.approx(0.5, abs=0.08)
    without = Store.create(str(tmp_path / "without"))
    audited(without, plan)
    assert written(without, attack="entropy") == []
