"""Every score reaches the world it belongs to; nothing is computed twice, and nothing is made up.

The stores here hold φ that tells which model and sample it is from, so a mix-up anywhere is a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks import exposed, ulira
from orchestrator import audit, plans
from orchestrator.audit import AuditDesign, Reader, rows_of
from orchestrator.config import Grid
from orchestrator.plan import Cell, Plan, Task, make_plan
from orchestrator.store import Store, new_part, score_folder, score_rows
from tests.conftest import grid_data
from tests.known_answers.simulated_cell import rng_of
from workers import designs
from workers.designs import FORGET, OUT, RETAIN
from workers.forget.random import Random

pytestmark = pytest.mark.usefixtures("quick_runs")

POOL, TEST, PAIRS, SETS = 80, 40, 4, 2
LABELS = np.arange(POOL) % 4
KINDS = {"base": 1, "retrain": 2, "unlearn": 3}

Phi = Callable[[Task, np.ndarray], np.ndarray]


def plan_of(fraction: float = 0.5, **changes: Any) -> Plan:
    audit = {"pairs": PAIRS, "forget_sets": SETS, "retrains": 2} | changes.pop("audit", {})
    grid = grid_data(forget=[{"random": {"fraction": fraction}}], audit=audit, **changes)
    return make_plan(Grid.model_validate(grid))


def states_of(task: Task) -> np.ndarray:
    """The states (pool,) of a task's design."""
    forget, draw = task.spec.get("forget"), (task.spec.get("forget") or {}).get("draw")
    recipe = Random(**forget["parameters"]) if forget else None
    return designs.build("digits", LABELS, task.spec["members"], recipe, "key", draw)


def code(task: Task, states: np.ndarray) -> np.ndarray:
    """A φ that says where it is from: kind, track, base, forget set, sample; exact in float32."""
    facts = task.columns()
    track = {"main": 0, "audit": 1}[facts["track"]]
    number = (
        (KINDS[task.kind] * 10 + track) * 10_000 + facts["seed"] * 1000 + max(0, facts["forget_index"]) * 200
    )
    return (number + np.arange(POOL + TEST)).astype(np.float32)


def member_signal(task: Task, states: np.ndarray) -> np.ndarray:
    """Random φ, larger by 2 where a model was trained on the sample, by 1 where a method forgot it."""
    rng = rng_of(task)
    easy = designs.rng("easy").normal(size=POOL + TEST)
    gain = np.zeros(POOL + TEST)
    forgotten = {"base": 2.0, "unlearn": 1.0, "retrain": 0.0}[task.kind]
    gain[:POOL] = np.array([0.0, 2.0, forgotten, 0.0])[states]
    return (easy + gain + rng.normal(size=POOL + TEST)).astype(np.float32)


def fill(
    store: Store,
    tasks: list[Task],
    phi: Phi,
    *,
    status: str = "done",
    attempt: int = 1,
    further: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda _: (),
    columns: Callable[[Task], dict[str, np.ndarray]] = lambda _: {},
) -> None:
    """Put finished tasks into a store, as one part. further: φ of further views, made of the first's;
    columns: further columns of the first view.
    """
    part, rows, made = new_part(), [], {}
    scores: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        states, facts = states_of(task), task.columns()
        design = f"{task.spec['members']}{task.spec.get('forget')}"
        made[design] = {"design": design, "n_pool": POOL, "states": designs.pack(states)}
        row = facts | {"status": status, "attempt": attempt, "part": part, "design": design}
        rows.append(row if status == "done" else row | {"design": None})
        folder = score_folder("digits", "cnn_small", task.kind, facts["method"])
        if status == "done":
            values = phi(task, states)
            given = (values, values > 0, further(values), columns(task))
            scores.setdefault(folder, []).extend(score_rows(task.id, *given))
    store.write_part("designs", list(made.values()), part)
    for folder, found in scores.items():
        store.write_part("scores", found, part, folder)
    store.write_part("runs", rows, part)


@pytest.fixture
def store(weird_tmp_path: Path) -> Store:
    return Store.create(str(weird_tmp_path / "results"))


def design_of(store: Store, cell: Cell) -> tuple[AuditDesign, Reader]:
    reader = Reader(store)
    return AuditDesign(reader, cell, cell.retrains), reader


def row_of(cell: Cell, kind: str, method: str = "") -> audit.Row:
    return next(row for row in rows_of(cell) if (row.kind, row.method) == (kind, method))


def written(store: Store, **facts: Any) -> list[dict[str, Any]]:
    """The stored rows of audits with these values, of U-LiRA unless another attack is named."""
    facts = {"attack": "ulira"} | facts
    table = Store.open(store.uri).read_table("audits").to_pylist()
    return [row for row in table if all(row[name] == value for name, value in facts.items())]


# ---- which model gives which entry -----------------------------------------------------------------------


def forgotten_in(plan: Plan, base: int) -> np.ndarray:
    """(pool,): the forget set of a base each sample is in, -1 for none."""
    found = np.full(POOL, -1)
    for key, task in plan.cells[0].variants[0].tasks.items():
        if key[:2] == ("audit", base):
            found[states_of(plan.by_id[task]) == FORGET] = key[2]
    return found


@pytest.mark.parametrize("fraction", [0.5, 0.3])
@pytest.mark.parametrize("kind", ["base", "retrain", "unlearn"])
def test_every_entry_comes_from_the_model_it_must(store: Store, fraction: float, kind: str) -> None:
    plan = plan_of(fraction)
    (cell,) = plan.cells
    fill(store, plan.tasks, code)
    design, reader = design_of(store, cell)
    tasks = row_of(cell, kind, "finetune" if kind == "unlearn" else "").tasks
    worlds = [world[0] for world in design.worlds(design.cube(reader, tasks))]  # of the only view
    value = {key: code(plan.by_id[task], np.empty(0)) for key, task in tasks.items()}
    retrain = {key: code(plan.by_id[task], np.empty(0)) for key, task in cell.retrains.items()}
    share = round(fraction * SETS * POOL * (1 - 0.15))
    assert len(design.audited) == share
    checked = 0
    for pair in range(PAIRS):
        for base in (2 * pair, 2 * pair + 1):
            of, other = forgotten_in(plan, base), base ^ 1
            for column, sample in enumerate(design.audited):
                if (index := of[sample]) < 0:
                    continue
                forgotten, never, retrained = (world[pair, column] for world in worlds)
                assert forgotten == value["audit", base, index][sample]
                assert never == value["audit", other, index][sample]
                assert retrained == retrain["audit", other, 1 - index][sample]
                checked += 1
    assert checked == PAIRS * share  # each pair gives each audited sample exactly one score in each world


def test_a_sample_is_a_member_of_one_half_and_unknown_to_the_other() -> None:
    plan = plan_of()
    for pair in range(PAIRS):
        halves = [t for t in plan.tasks if t.kind == "base" and t.spec["members"].get("pair") == pair]
        one, other = (states_of(task) for task in halves)
        assert np.array_equal(one == RETAIN, other == OUT)
        assert np.array_equal(one == OUT, other == RETAIN)


def test_entries_are_nan_where_a_run_did_not_finish(store: Store) -> None:
    """One diverged run takes away what it would have said, as forgotten and as never, and nothing else."""
    plan = plan_of()
    (cell,) = plan.cells
    lost = plan.by_id[cell.variants[0].tasks["audit", 2, 1]]
    fill(store, [task for task in plan.tasks if task is not lost], code)
    fill(store, [lost], code, status="diverged")
    design, reader = design_of(store, cell)
    worlds = design.worlds(design.cube(reader, cell.variants[0].tasks))
    forgotten, never, retrained = (world[0] for world in worlds)
    own = np.isin(design.audited, np.flatnonzero(forgotten_in(plan, 2) == 1))
    partner = np.isin(design.audited, np.flatnonzero(forgotten_in(plan, 3) == 1))
    expected = np.zeros((PAIRS, len(design.audited)), dtype=bool)
    expected[1] = own
    assert np.array_equal(np.isnan(forgotten), expected)
    expected[1] = partner
    assert np.array_equal(np.isnan(never), expected)
    assert not np.isnan(retrained).any()


def test_a_second_view_sharpens_the_audit(store: Store, tmp_path: Path) -> None:
    """With noise of its own in each view, the mean over two tells more; a row without it uses the first."""
    plan = plan_of()
    rng = np.random.default_rng(0)

    def noisier(phi: np.ndarray) -> list[np.ndarray]:
        return [phi + rng.normal(0, 0.1, len(phi)).astype(np.float32)]

    fill(store, plan.tasks, member_signal, further=noisier)
    audit.write(store, plan.cells)
    single = Store.create(str(tmp_path / "single"))
    fill(single, plan.tasks, member_signal)
    audit.write(single, plan.cells)
    facts = {"attack": "ulira", "comparison": "forgotten_vs_retrained", "kind": "base"}
    (two,), (one,) = written(store, **facts), written(single, **facts)
    assert two["auc"] != one["auc"] and two["auc"] == pytest.approx(one["auc"], abs=0.05)
    assert two["n_positive"] == one["n_positive"] and two["loss_auc"] == one["loss_auc"]
    mixed = Store.create(str(tmp_path / "mixed"))
    fill(mixed, [task for task in plan.tasks if task.kind == "retrain"], member_signal)
    fill(mixed, [task for task in plan.tasks if task.kind != "retrain"], member_signal, further=noisier)
    audit.write(mixed, plan.cells)
    (found,) = written(mixed, **facts)
    assert found["auc"] == one["auc"]


def test_missing_runs_are_counted(store: Store) -> None:
    plan = plan_of()
    (cell,) = plan.cells
    lost = [
        plan.by_id[cell.variants[0].tasks["audit", 2, 1]],
        plan.by_id[cell.variants[0].tasks["audit", 5, 0]],
    ]
    fill(store, [task for task in plan.tasks if task not in lost], member_signal)
    fill(store, lost[:1], member_signal, status="diverged")  # the other one has not even run
    audit.write(store, plan.cells)
    assert {row["missing"] for row in written(store, method="finetune", attack="ulira")} == {2}
    assert {row["missing"] for row in written(store, kind="retrain", attack="ulira")} == {0}
    scored = {
        row["comparison"]: row["n_positive"] for row in written(store, method="finetune", attack="ulira")
    }
    there = PAIRS - sum((states_of(task) == FORGET).astype(int) for task in lost)  # pairs with both worlds
    audited = np.any([states_of(t) == FORGET for t in plan.tasks if t.kind == "unlearn"], axis=0)
    assert scored["forgotten_vs_retrained"] == there[audited & (there >= ulira.MIN_PAIRS)].sum()


# ---- the numbers -----------------------------------------------------------------------------------------


def test_the_base_row_is_plain_lira_on_the_bases(store: Store) -> None:
    """'No unlearning': forgotten vs never of the base row is members vs non-members of the base models."""
    plan = plan_of()
    fill(store, plan.tasks, member_signal)
    audit.write(store, plan.cells)
    bases = [t for t in plan.tasks if t.kind == "base" and t.spec["members"]["track"] == "audit"]
    phi = np.stack([member_signal(task, states_of(task))[:POOL] for task in bases])
    member = np.stack([states_of(task) == RETAIN for task in bases])
    used = member.any(axis=0)
    inside = np.where(member[0::2], phi[0::2], phi[1::2])[:, used]
    outside = np.where(member[0::2], phi[1::2], phi[0::2])[:, used]
    reference = ulira.compare(inside, outside)
    (row,) = written(store, kind="base", comparison="forgotten_vs_never")
    for name in ("auc", "auc_low", "auc_high", "loss_auc", "balanced_accuracy", "pairs", "samples"):
        assert row[name] == getattr(reference, name), name
    assert row["n_positive"] == row["n_negative"] == PAIRS * used.sum()
    assert row["auc"] > 0.7  # members are easier by two standard deviations
    assert (row["tpr_at_1pct"], row["false_positives_at_1pct"] < 10) == (None, True)  # 272 scores: no claim


def test_the_comparisons_are_there_and_half_the_signal_leaks_less(store: Store) -> None:
    plan = plan_of()
    fill(store, plan.tasks, member_signal)
    audit.write(store, plan.cells)
    names = {"forgotten_vs_retrained", "forgotten_vs_never", "fingerprint", "retained_vs_never"}
    for kind in ("base", "retrain", "unlearn"):
        assert {row["comparison"] for row in written(store, kind=kind, attack="ulira")} == names
    (unlearned,) = written(store, method="finetune", comparison="forgotten_vs_never")
    (base,) = written(store, kind="base", comparison="forgotten_vs_never")
    assert 0.5 < unlearned["auc"] < base["auc"]
    (kept,) = written(store, method="finetune", comparison="retained_vs_never")
    assert kept["auc"] > unlearned["auc"] + 0.05, "what stays is remembered as before"
    (same,) = written(store, kind="base", comparison="retained_vs_never")
    assert (same["auc"], same["auc_low"]) == (base["auc"], base["auc_low"]), "a base forgets nothing"


def test_per_sample_figures_stand_with_forgotten_against_retrained(store: Store) -> None:
    plan = plan_of()
    (cell,) = plan.cells
    fill(store, plan.tasks, member_signal)
    audit.write(store, plan.cells)
    design, reader = design_of(store, cell)
    forgotten, _, retrained = (world[0] for world in design.worlds(design.cube(reader, cell.bases)))
    (row,) = written(store, kind="base", comparison="forgotten_vs_retrained")
    spread = exposed.auc_spread(forgotten, retrained)
    assert row["sample_auc_p95"] == spread.quantiles[95] > spread.null_quantiles[50]
    assert row["sample_auc_quantiles"] == spread.curve.astype(np.float32).tolist()
    assert row["sample_auc_null_quantiles"] == spread.null_curve.astype(np.float32).tolist()
    assert row["streisand"] == exposed.streisand(forgotten, retrained).share
    found = exposed.exposed(forgotten, retrained)
    assert row["exposed_ids"] == list(design.audited[found.confirmed]) and len(found.found) == 0
    assert row["exposed_found"] is row["exposed_confirmed"] is None, "four pairs cannot single out a sample"
    others = written(store, kind="base", comparison="fingerprint")
    assert [(r["streisand"], r["exposed_ids"], r["sample_auc_quantiles"]) for r in others] == [(None,) * 3]


def test_no_exposed_sample_is_a_finding_only_where_one_could_be_found() -> None:
    """9 of 18 pairs in order have p = 1/48,620, enough among 2,431 samples at 5 % and not among 2,432."""
    none = np.array([], dtype=np.int64)
    enough, too_many = (exposed.Exposed(none, none, none.astype(float), 0.05, n) for n in (2431, 2432))
    assert audit._can_find(enough, 18) and not audit._can_find(too_many, 18)
    assert not audit._can_find(enough, 17)
    assert audit._can_find(exposed.Exposed(none + 1, none, none.astype(float), 0.05, 1), 18)
    one = np.array([5])
    assert audit._can_find(exposed.Exposed(one, none, np.array([0.9]), 0.05, 10**6), 8)


def test_retained_samples_are_scored_under_models_that_forgot_others(store: Store) -> None:
    plan = plan_of()
    (cell,) = plan.cells
    fill(store, plan.tasks, code)
    design, reader = design_of(store, cell)
    tasks = cell.variants[0].tasks
    retained, never = (world[0] for world in design.stayed(design.cube(reader, tasks)))
    phi = {key[1:]: code(plan.by_id[task], states_of(plan.by_id[task])) for key, task in tasks.items()}
    for column, sample in enumerate(design.audited):
        for pair in range(PAIRS):
            (base,) = [b for b in (2 * pair, 2 * pair + 1) if forgotten_in(plan, b)[sample] >= 0]
            another = (forgotten_in(plan, base)[sample] + 1) % design.sets
            assert states_of(plan.by_id[tasks["audit", base, another]])[sample] == RETAIN
            assert states_of(plan.by_id[tasks["audit", base ^ 1, another]])[sample] == OUT
            assert retained[pair, column] == phi[base, another][sample]
            assert never[pair, column] == phi[base ^ 1, another][sample]


def test_with_one_retrain_per_base_the_retrain_row_has_no_fingerprint(store: Store) -> None:
    """`never` and `retrained` would be the same model: an AUC of exactly .5 that nobody measured."""
    plan = plan_of(audit={"retrains": 1})
    fill(store, plan.tasks, member_signal)
    audit.write(store, plan.cells)
    found = {row["comparison"] for row in written(store, kind="retrain", attack="ulira")}
    assert found == {"forgotten_vs_retrained", "retained_vs_never"}
    assert len(written(store, method="finetune", attack="ulira")) == 4


def test_too_few_pairs_with_scores_give_no_row(store: Store) -> None:
    plan = plan_of()
    kept = [task for task in plan.tasks if task.columns()["track"] == "main" or task.columns()["seed"] < 4]
    fill(store, kept, member_signal)  # two of four pairs
    audit.write(store, plan.cells)
    assert written(store, attack="ulira") == []


# ---- when a row is computed ------------------------------------------------------------------------------


def test_a_row_is_computed_once_and_again_when_its_runs_change(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    (cell,) = plan.cells
    fill(store, plan.tasks, member_signal)
    plans.remember(store, plan)
    calls: list[int] = []
    compare = ulira.compare
    monkeypatch.setattr(audit.ulira, "compare", lambda *arrays: (calls.append(1), compare(*arrays))[1])
    audit.write(store, plan.cells)
    assert len(calls) == 12
    audit.write(store, plan.cells)
    assert len(audit.current(store, plan.cells)) == store.read_table("audits").num_rows
    assert len(calls) == 12

    again = plan.by_id[cell.variants[0].tasks["audit", 0, 0]]
    fill(store, [again], code, attempt=2)
    audit.write(store, plan.cells)
    assert len(calls) == 12 + 4  # finetune's four comparisons, not those of base and retrain
    assert len(written(store, method="finetune", attack="ulira")) == 8
    current = [row for row in audit.current(store, plan.cells) if row["method"] == "finetune"]
    assert len([row for row in current if row["attack"] == "ulira"]) == 4
    assert len(calls) == 16


def test_what_the_table_lacks_is_computed_but_not_written(store: Store) -> None:
    plan = plan_of()
    fill(store, plan.tasks, member_signal)
    assert len(audit.current(store, plan.cells)) > 0
    assert written(store) == []


def test_nothing_comes_of_a_store_without_runs(store: Store) -> None:
    audit.write(store, plan_of().cells)
    assert store.files("audits") == []


# ---- the population attack -------------------------------------------------------------------------------


def population_phi(forget: float) -> Phi:
    def phi(task: Task, states: np.ndarray) -> np.ndarray:
        values = np.where(np.arange(POOL + TEST) < POOL, 1.0, -5.0) + np.linspace(0, 0.1, POOL + TEST)
        values[:POOL][states == FORGET] += forget
        if task.kind == "base":
            values[:POOL] += forget
        return values.astype(np.float32)

    return phi


def test_population_rows_by_hand(store: Store) -> None:
    """Forget losses far below test losses: a threshold tells them apart always, so indiscernibility is 0."""
    plan = plan_of(audit={})
    main = [task for task in plan.tasks if task.columns()["track"] == "main"]
    fill(store, main, population_phi(4.0))
    audit.write(store, plan.cells)
    found = written(store, attack="population_loss")
    size = int((states_of(next(t for t in main if t.kind == "retrain")) == FORGET).sum())
    assert size == round(0.5 * (POOL - round(0.15 * POOL)))
    assert [(row["kind"], row["seed"]) for row in found] == [
        (kind, seed) for kind in ("base", "retrain", "unlearn") for seed in (0, 1)
    ]
    for row in found:
        assert (row["accuracy"], row["indisc"]) == (1.0, 0.0)
        assert (row["n_positive"], row["n_negative"], row["samples"]) == (size, TEST, size + TEST)
        assert row["comparison"] == "forget_vs_test" and row["auc"] is None


def test_a_model_that_treats_forgotten_and_unseen_alike_is_near_one(store: Store) -> None:
    def same(task: Task, states: np.ndarray) -> np.ndarray:
        return rng_of(task).normal(size=POOL + TEST).astype(np.float32)

    plan = plan_of(seeds=8)
    fill(store, [task for task in plan.tasks if task.columns()["track"] == "main"], same)
    audit.write(store, plan.cells)
    assert np.mean([row["accuracy"] for row in written(store, attack="population_loss")]) == pytest.approx(
        0.5, abs=0.08
    )


def test_a_forget_set_too_small_to_attack_gives_no_row(store: Store) -> None:
    plan = plan_of(fraction=0.05)  # 3 of 68 members
    fill(store, [task for task in plan.tasks if task.columns()["track"] == "main"], population_phi(4.0))
    audit.write(store, plan.cells)
    assert written(store) == []


def test_without_its_retrain_nobody_knows_the_bases_forget_set(store: Store) -> None:
    plan = plan_of()
    fill(store, [task for task in plan.tasks if task.kind == "base"], population_phi(4.0))
    audit.write(store, plan.cells)
    assert written(store) == []
