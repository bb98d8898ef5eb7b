"""Sequential requests: the plan, who goes in which request, what a task sees, and in what order it runs."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import ulira
from methods.base import plugin
from orchestrator import audit, plans
from orchestrator.audit import AuditDesign, Reader
from orchestrator.config import Grid, load
from orchestrator.cost import images, training_images
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.overview import of_plan, plan_text
from orchestrator.plan import Plan, Task, make_plan
from orchestrator.schedule import FAILURES, Schedule
from orchestrator.session import Session
from orchestrator.store import Store
from tests import test_audit, test_session
from tests.conftest import grid_data
from tests.test_schedule import drain
from workers import designs, requests, run_task
from workers.designs import FORGET, RETAIN
from workers.outcome import Outcome
from workers.task_design import Design
from workers.worker import Worker

METHODS = ["finetune", "gradient_ascent"]
CLASSES = {"class": {"classes": [0, 3, 4, 8, 9]}}


def plan_of(count: int = 3, **changes: Any) -> Plan:
    changes = {"methods": METHODS, "audit": None, "requests": count} | changes
    return make_plan(Grid.model_validate(grid_data(**changes)))


# ---- the plan --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", [{"random": {"fraction": 0.2}}, CLASSES])
def test_one_request_is_the_grid_as_it_was(forget: dict[str, Any]) -> None:
    audit = {"pairs": 4, "forget_sets": 2}
    silent = make_plan(Grid.model_validate(grid_data(methods=METHODS, forget=[forget], audit=audit)))
    spoken = plan_of(1, forget=[forget], audit=audit)
    assert spoken.tasks == silent.tasks and spoken.cells == silent.cells
    assert not any("request" in (task.spec.get("forget") or {}) for task in silent.tasks)


def test_counts_by_hand() -> None:
    """Two seeds, two methods, three requests; 4 pairs of 2 forget sets with one retrain."""
    counts = plan_of(audit={"pairs": 4, "forget_sets": 2, "retrains": 1}, tune={"trials": 7}).counts()
    assert (counts["base"], counts["retrain"]) == (2 + 8, 3 * (2 + 8))
    assert counts["unlearn"] == 2 * 3 * (2 + 16)
    chains = 2 * (2 + 16)
    assert counts["unshared_tasks"] == chains * (1 + 3 + 3)  # a base, three retrains and three requests each
    assert counts["tune_trials"] == 2 * 7, "the requests of a forget set are one study"


def test_each_request_starts_from_what_the_one_before_left() -> None:
    plan, once = (
        plan_of(audit={"pairs": 4, "forget_sets": 2}),
        plan_of(1, audit={"pairs": 4, "forget_sets": 2}),
    )
    assert [cell.forget for cell in plan.cells] == [
        f"random(fraction=0.2), request {number} of 3" for number in (1, 2, 3)
    ]
    assert len({cell.id for cell in plan.cells} | {cell.id for cell in once.cells}) == 4
    first, *later = plan.cells
    for cell in plan.cells:
        assert cell.bases == first.bases == once.cells[0].bases
        assert all(variant.tasks.keys() == cell.bases.keys() for variant in cell.variants)
    for variant in first.variants:
        assert {key: plan.by_id[task].base for key, task in variant.tasks.items()} == first.bases
    for before, cell in zip(plan.cells, later, strict=False):
        for old, new in zip(before.variants, cell.variants, strict=True):
            assert old.method == new.method
            assert {key: plan.by_id[task].base for key, task in new.tasks.items()} == old.tasks
    places = {task.id: place for place, task in enumerate(plan.tasks)}
    assert all(task.base is None or places[task.base] < places[task.id] for task in plan.tasks)
    assert [task.leaves_model for task in plan.tasks if task.kind != "base"] == [
        task.kind == "unlearn" and task.spec["forget"]["request"]["index"] < 2
        for task in plan.tasks
        if task.kind != "base"
    ]


def test_after_the_last_request_the_retrains_are_those_of_the_whole_forget_set() -> None:
    """A grid that was run with one request has them already."""
    audit = {"pairs": 4, "forget_sets": 2}
    plan, once = plan_of(audit=audit), plan_of(1, audit=audit)
    assert plan.cells[2].retrains == once.cells[0].retrains
    assert not set(plan.cells[0].retrains.values()) & set(plan.cells[1].retrains.values())


def test_no_two_requests_share_their_random_numbers() -> None:
    seeds = [task.spec["seeds"]["unlearn"] for task in plan_of().tasks if task.kind == "unlearn"]
    assert len(set(seeds)) == len(seeds) == 2 * 2 * 3


def test_a_method_for_one_request_is_skipped_with_the_reason() -> None:
    plan = plan_of(methods=["finetune", "mnemonic_code"], forget=[CLASSES], seeds=1)
    assert {reason for _, reason in plan.impossible} == {
        "mnemonic_code prepares its base for one request, and the grid has requests: 3"
    }
    assert len(plan.impossible) == 3 and not any(cell.changed for cell in plan.cells)
    assert not plan_of(1, methods=["mnemonic_code"], forget=[CLASSES]).impossible


def test_plans_of_requests_are_remembered_beside_those_without(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "r"))
    for plan in (plan_of(methods=METHODS[:1]), plan_of(1), plan_of(2), plan_of(methods=METHODS[1:])):
        plans.remember(store, plan)
    found = {cell.forget: cell for cell in plans.recall(store)}
    whole = "random(fraction=0.2)"
    assert set(found) == {whole} | {f"{whole}, request {i} of {k}" for k in (2, 3) for i in range(1, k + 1)}
    assert [v.method for v in found[f"{whole}, request 2 of 3"].variants] == METHODS
    assert found[f"{whole}, request 2 of 3"] == plan_of().cells[1]


def test_images_by_hand() -> None:
    """Of 1437 · 0.85 members a fifth goes in three requests; gradient ascent reads the newest part only."""
    members = 1437 * 0.85
    plan = plan_of(seeds=1, methods=[{"finetune": {"epochs": 7}}, {"gradient_ascent": {"epochs": 4}}])
    of: dict[str, list[float]] = {}
    for task in plan.tasks:
        of.setdefault(task.columns()["method"] or task.kind, []).append(images(task.spec))
    left = [members * (1 - 0.2 * part / 3) for part in (1, 2, 3)]
    assert of["base"] == pytest.approx([2 * members])
    assert of["retrain"] == pytest.approx([2 * size for size in left])
    assert of["finetune"] == pytest.approx([7 * size for size in left])
    assert of["gradient_ascent"] == pytest.approx([4 * members * 0.2 / 3] * 3)
    unlearn = sum(of["finetune"] + of["gradient_ascent"])
    facts = training_images(plan)
    assert facts["training_images"] == pytest.approx(2 * members + 2 * sum(left) + unlearn)
    assert facts["unshared_training_images"] == pytest.approx(2 * (2 * members + 2 * sum(left)) + unlearn)


def test_images_of_classes_count_the_classes_of_each_request() -> None:
    """Five classes in two requests: three, then two."""
    plan = plan_of(2, seeds=1, methods=[{"gradient_ascent": {"epochs": 4}}], forget=[CLASSES])
    unlearn = [images(task.spec) for task in plan.tasks if task.kind == "unlearn"]
    assert unlearn == pytest.approx([4 * 1437 * 0.85 * share for share in (0.3, 0.2)])
    retrain = [images(task.spec) for task in plan.tasks if task.kind == "retrain"]
    assert retrain == pytest.approx([2 * 1437 * 0.85 * share for share in (0.7, 0.5)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": 0}, "requests: 0 is out of range, at least 1."),
        ({"requests": 2.5}, "requests: "),
        ({"forget": [CLASSES], "requests": 6}, "requests: 6 are too many for forget.class, at most 5, one a"),
        (
            {"requests": 300, "audit": None},
            "requests: 300 are too many for forget.random, at most 244 with a sample each, on digits.",
        ),
        ({"requests": 200}, "at most 7 with 16 samples each in a forget set of the audit, on digits."),
        ({"request": 2}, "request: unknown key. Did you mean 'requests'?"),
    ],
)
def test_bad_requests_get_one_clear_line(
    changes: dict[str, Any], message: str, write_grid: Callable[..., Path]
) -> None:
    with pytest.raises(UserError) as error:
        load(str(write_grid(**changes)))
    (line,) = str(error.value).splitlines()
    assert message in line and "grid.yaml" in line


# ---- who goes in which request ---------------------------------------------------------------------------

LABELS = np.random.default_rng(0).integers(0, 10, 500)
MAIN = {"track": "main", "val_fraction": 0.1}


def half(pair: int, side: int) -> dict[str, Any]:
    return {"track": "audit", "val_fraction": 0.1, "pair": pair, "half": side}


def recipe(name: str = "random", **parameters: Any) -> Any:
    return plugin("workers.forget", name)(**parameters)


@pytest.mark.parametrize("split", [{}, {"split": {"name": "paper", "version": 1}}])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_requests_are_a_stratified_partition_of_the_forget_set(count: int, split: dict[str, Any]) -> None:
    made = ("toy", LABELS, MAIN | split, recipe(fraction=0.3), "key", None)
    gone, fold = designs.build(*made) == FORGET, requests.fold(count, *made)
    assert gone.sum() == 135 and np.array_equal(fold >= 0, gone)
    for group in [gone] + [gone & (c == LABELS) for c in range(10)]:
        sizes = np.bincount(fold[group], minlength=count)
        assert len(sizes) == count and sizes.max() - sizes.min() <= 1
    assert not np.array_equal(fold, requests.fold(count, *made[:-2], "another key", None))


def test_a_sample_has_the_same_request_in_all_bases_of_the_audit() -> None:
    """Whoever is audited after a request is gone from every base trained on it, and from no other."""
    folds = []
    for pair, side, index in [(0, 0, 0), (0, 1, 1), (3, 0, 1), (3, 1, 0)]:
        made = ("toy", LABELS, half(pair, side), recipe(fraction=0.3), "key", {"index": index, "of": 2})
        folds.append(requests.fold(3, *made))
        states = designs.build(*made)
        assert np.all(folds[-1][states == FORGET] >= 0)
        seen = [requests.after(states, folds[-1], i) for i in range(3)]
        assert np.array_equal(seen[2][0], states), "after the last request the whole forget set is gone"
        for i, (now, newest) in enumerate(seen):
            assert np.array_equal(now == FORGET, (states == FORGET) & (folds[-1] <= i))
            assert np.array_equal(newest, (states == FORGET) & (folds[-1] == i)) and newest.any()
            assert np.array_equal(now != FORGET, (now == states) & (now != FORGET) | (now == RETAIN))
    assert all(np.array_equal(fold, folds[0]) for fold in folds)
    sizes = np.bincount(folds[0][folds[0] >= 0])
    assert sizes.sum() == round(0.3 * 2 * 450) and sizes.max() - sizes.min() <= 1


def test_classes_go_one_group_after_the_other() -> None:
    assert requests.groups([9, 0, 4, 3, 8], 2) == [[0, 3, 4], [8, 9]]
    assert requests.groups([1, 2], 2) == [[1], [2]]
    for draw, members in ((None, MAIN), ({"index": 0, "of": 1}, half(1, 0))):
        made = ("toy", LABELS, members, recipe("class", classes=(9, 0, 4)), "key", draw)
        fold, states = requests.fold(2, *made), designs.build(*made)
        assert set(LABELS[(states == FORGET) & (fold == 0)]) == {0, 4}
        assert set(LABELS[(states == FORGET) & (fold == 1)]) == {9}
        assert np.all(fold[~np.isin(LABELS, [0, 4, 9])] == -1)


# ---- what a task sees ------------------------------------------------------------------------------------


@cache
def tasks(method: str = "finetune", forget: str = "random", seed: int = 0) -> list[Task]:
    """A base and three requests of one method, one epoch."""
    chosen = {"random": {"random": {"fraction": 0.2}}, "class": CLASSES}[forget]
    methods = [{name: {"epochs": 1}} for name in dict.fromkeys((method, "gradient_ascent"))]
    changes = {"training": {"all": {"epochs": 1}}, "augment_unlearning": False, "forget": [chosen]}
    plan = plan_of(methods=methods, seeds=seed + 1, **changes)
    own = [variant for cell in plan.cells for variant in cell.variants if variant.method == method]
    key = ("main", seed, 0)
    return [plan.by_id[plan.cells[0].bases[key]], *(plan.by_id[variant.tasks[key]] for variant in own)]


def run(worker: Worker, task: Task, weights: bytes | None = None) -> Outcome:
    outcome = worker.run({"id": task.id, "spec": copy.deepcopy(task.spec)}, weights)
    assert outcome.status == "done", outcome.log
    return outcome


@pytest.fixture
def worker() -> Worker:
    return Worker("unused", device="cpu")


@pytest.mark.parametrize("forget", ["random", "class"])
def test_a_request_shows_its_samples_and_those_that_stay_and_nothing_deleted_before(
    forget: str, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def look(method: Any, base: Any, data: Any, *others: Any) -> Any:
        shown: dict[str, Any] = {"classes": data.forget_classes}
        for name in ("retain", "forget", "union"):
            batches = list(data._views[name].batches(100))
            ids = torch.cat([ids for *_, ids in batches])
            dataset = worker.dataset("digits")
            assert torch.equal(torch.cat([x for x, *_ in batches]), dataset.normalised(dataset.images[ids]))
            shown[name] = set(ids.tolist())
            assert len(shown[name]) == len(ids)
        seen.append(shown)
        return real(method, base, data, *others)

    real = run_task.unlearn
    monkeypatch.setattr(run_task, "unlearn", look)
    base, *chain = tasks(forget=forget)
    run(worker, base)
    outcomes = [run(worker, task) for task in chain]
    members = set(Design(worker.dataset("digits"), base.spec).members.tolist())
    gone: set[int] = set()
    for shown, outcome in zip(seen, outcomes, strict=True):
        gone |= shown["forget"]
        assert shown["retain"] == members - gone
        assert shown["union"] == shown["retain"] | shown["forget"]
        states = designs.unpack(outcome.design["states"], 1437)
        assert set(np.flatnonzero(states == FORGET).tolist()) == gone, "scored with all that is gone by now"
        correct = outcome.scores.correct
        assert outcome.row["fa"] == pytest.approx(correct[sorted(gone)].mean())
        assert outcome.row["fa_new"] == pytest.approx(correct[sorted(shown["forget"])].mean())
        assert outcome.row["ra"] == pytest.approx(correct[sorted(shown["retain"])].mean())
    assert sum(len(shown["forget"]) for shown in seen) == len(gone)
    if forget == "class":
        assert [shown["classes"] for shown in seen] == [(0, 3), (4, 8), (9,)]
        assert outcomes[-1].design["forget_classes"] == [0, 3, 4, 8, 9]
    else:
        assert len(gone) == round(0.2 * len(members))


def test_a_method_that_does_nothing_leaves_the_same_scores_all_along(worker: Worker) -> None:
    base, *chain = tasks()
    first = run(worker, base)
    for task in chain:
        idle = Task(task.id, copy.deepcopy(task.spec))
        idle.spec["method"]["hyperparameters"]["epochs"] = 0
        outcome = run(worker, idle)
        assert np.array_equal(outcome.scores.phi, first.scores.phi)
        assert outcome.row["weights_sha256"] == first.row["weights_sha256"]
        last = task is chain[-1]  # nobody goes on from its model
        assert (outcome.weights is None) == ("left_sha256" not in outcome.row) == last
        assert (task.id in worker.holds()) != last


@pytest.mark.parametrize("method", ["finetune", "prune_reinitialise_match_quantise"])
def test_a_request_from_weights_gives_the_bits_of_one_from_the_device(method: str, worker: Worker) -> None:
    base, one, two, _ = tasks(method)
    first = run(worker, base)
    left = run(worker, one)
    assert left.row["weights_sha256"] == first.row["weights_sha256"] != left.row["left_sha256"]
    here, there = run(worker, two), run(Worker("unused", device="cpu"), two, left.weights)
    assert np.array_equal(here.scores.phi, there.scores.phi)
    for outcome in (here, there):
        assert outcome.row["weights_sha256"] == left.row["left_sha256"] != outcome.row["left_sha256"]


def test_the_model_of_another_request_method_or_base_is_refused(worker: Worker) -> None:
    base, one, two, _ = tasks()
    first, other = run(worker, base), tasks("gradient_ascent")[1]
    assert other.base == base.id
    left = run(worker, other).weights
    wrong = {"trained on other samples": first.weights, f"was made by {other.id}": left}
    for reason, weights in wrong.items():
        outcome = Worker("unused", device="cpu").run({"id": two.id, "spec": two.spec}, weights)
        assert outcome.status == "bug" and reason in outcome.reason and outcome.scores is None
    outcome = Worker("unused", device="cpu").run({"id": one.id, "spec": one.spec}, left)
    assert outcome.status == "bug" and "trained on other samples" in outcome.reason


# ---- the order in which it runs --------------------------------------------------------------------------


def chain(length: int = 3, chains: int = 2) -> tuple[Task, list[list[Task]]]:
    """A base and chains of requests that start from it."""

    def task(name: str, base: str, index: int) -> Task:
        forget = {"request": {"index": index, "of": length}}
        return Task(name, {"kind": "unlearn", "base": base, "forget": forget})

    made = [[task(f"{c}{i}", f"{c}{i - 1}" if i else "b", i) for i in range(length)] for c in "uvw"[:chains]]
    return Task("b", {"kind": "base"}), made


def in_plan_order(base: Task, chains: list[list[Task]]) -> list[Task]:
    return [base, *(task for step in zip(*chains, strict=True) for task in step)]


def test_a_chain_is_run_to_its_end_before_the_next_begins() -> None:
    """So that few models wait to be gone on from; the end of a chain is where its model was."""
    tasks = in_plan_order(*chain())
    assert drain(Schedule(tasks, {})) == ["b", "u0", "u1", "u2", "v0", "v1", "v2"]


def test_a_model_is_needed_until_the_next_request_has_ended() -> None:
    base, chains = chain(chains=1)
    schedule = Schedule(in_plan_order(base, chains), {})
    for task in (base, *chains[0]):
        assert schedule.take("one") is task
        schedule.finish(task, "done", "one")
        assert schedule.needs(task.id) == (task.id != "u2")
        assert task.base is None or not schedule.needs(task.base)


@pytest.mark.parametrize("status", FAILURES[:-1])
def test_what_follows_a_request_that_failed_is_skipped_with_the_reason(status: str) -> None:
    base, chains = chain()
    tasks, (first, second, third) = in_plan_order(base, chains), chains[0]
    schedule = Schedule(tasks, {})
    for task in (base, first):
        assert schedule.take("one") is task
        skipped = schedule.finish(task, status if task is first else "done", "one")
    reason = f"its predecessor u0 is {status}"
    assert skipped == [(second, reason), (third, reason)]
    assert drain(schedule) == ["v0", "v1", "v2"] and schedule.left == 0
    ended = {"b": "done", "u0": status} | {task.id: "done" for task in chains[1]}
    later = Schedule(tasks, ended)  # the driver died before it could record the skips
    assert later.skipped == skipped and drain(later) == []
    ended |= {"u1": "skipped", "u2": "skipped"}
    assert Schedule(tasks, ended).skipped == []
    assert drain(Schedule(tasks, ended, retry={status})) == ["u0", "u1", "u2"]
    failed = Schedule(tasks, {})
    assert failed.take("one") is base
    assert failed.finish(base, "oom", "one") == [
        (task, "its base b is oom") for step in zip(*chains, strict=True) for task in step
    ]


def test_models_that_are_gone_are_made_again_as_far_back_as_needed() -> None:
    tasks = in_plan_order(*chain(4, 1))
    ended = dict.fromkeys(["b", "u0", "u1", "u2"], "done")
    for there, again in (
        ({"u2"}, ["u3"]),
        ({"u1", "b"}, ["u2", "u3"]),
        ({"b"}, ["u0", "u1", "u2", "u3"]),
        (set(), ["b", "u0", "u1", "u2", "u3"]),
    ):
        assert drain(Schedule(tasks, ended, has_model=there.__contains__)) == again
    assert drain(Schedule(tasks, ended | {"u3": "done"}, has_model=lambda _: False)) == []
    assert drain(Schedule(tasks, ended, has_model=lambda _: False, limit=1)) == ["b", "u0", "u1", "u2", "u3"]


def test_a_limit_keeps_the_models_that_later_runs_go_on_from() -> None:
    tasks = in_plan_order(*chain())
    schedule = Schedule(tasks, {}, limit=3)
    assert drain(schedule) == ["b", "u0", "v0"]
    assert [name for name in ("b", "u0", "v0") if schedule.needs(name)] == ["u0", "v0"]


def test_a_long_chain_that_fails_at_its_start_is_skipped_whole() -> None:
    base, chains = chain(3000, 1)
    schedule = Schedule([base, *chains[0]], {})
    schedule.take("one")
    assert len(schedule.finish(base, "bug", "one")) == 3000 and schedule.left == 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    failing=st.sampled_from([0.0, 0.2, 1.0]),
    dying=st.sampled_from([0.0, 0.3]),
    recorded=st.floats(0, 1),
    kept=st.floats(0, 1),
)
def test_every_task_of_every_chain_ends_once(
    seed: int, failing: float, dying: float, recorded: float, kept: float
) -> None:
    """Three runners take, finish, fail and die; nothing starts without the model it goes on from."""
    chance, tasks = random.Random(seed), in_plan_order(*chain(4, 3))
    before: dict[str, str] = {}
    for task in tasks:  # an earlier run got so far
        if chance.random() < recorded and (task.base is None or before.get(task.base) == "done"):
            before[task.id] = chance.choice(["done", "done", "diverged"])
    models = {task.id for task in tasks if before.get(task.id) == "done" and chance.random() < kept}
    schedule = Schedule(tasks, before, has_model=models.__contains__)
    ended, flying = Counter(task.id for task, _ in schedule.skipped), dict[str, list[Task]](a=[], b=[], c=[])
    skipped = {task.id for task, _ in schedule.skipped}
    while True:
        for runner, queue in flying.items():
            if len(queue) < 2 and (task := schedule.take(runner)) is not None:
                assert task.base is None or task.base in models, "no model to start from"
                queue.append(task)
        busy = [runner for runner, queue in flying.items() if queue]
        if not busy:
            break
        runner = chance.choice(busy)
        if chance.random() < dying:
            schedule.forget_runner(runner)
            for task in reversed(flying[runner]):
                schedule.put_back(task)
            flying[runner] = []
            continue
        task = flying[runner].pop(0)
        status = "diverged" if chance.random() < failing else "done"
        models |= {task.id} if status == "done" else set()
        dropped = [child.id for child, _ in schedule.finish(task, status, runner)]
        ended.update([task.id, *dropped])
        skipped.update(dropped)
        if not schedule.needs(task.id):
            models.discard(task.id)
        if task.base is not None and not schedule.needs(task.base):
            models.discard(task.base)
    assert set(ended.values()) <= {1} and schedule.left == len(schedule) == 0
    assert {task.id for task in tasks if task.id not in before} <= set(ended)
    assert not {name for name in skipped if before.get(name) == "diverged"}
    leftover = {task.id for task in tasks if task.id in models and task.id in ended}
    assert not leftover, "a model that nobody needs is kept"


def test_a_model_that_nobody_goes_on_from_is_not_kept(tmp_path: Path) -> None:
    """The second request diverged in an earlier run, of which the first has left no row."""
    plan = plan_of(2, seeds=1, methods=["finetune"])
    store = Store.create(str(tmp_path / "r"))
    (second,) = [task for task in plan.tasks if task.kind == "unlearn" and not task.leaves_model]
    store.write_part("runs", [second.columns() | {"status": "diverged", "attempt": 1}], "p")
    with Lock(store) as lock, Session(plan, store, lock, lambda _: None) as session:
        while (task := session.schedule.take("one")) is not None:
            outcome = test_session.outcome(task)
            outcome.weights = b"weights" if task.leaves_model else None
            session.finished(task, outcome, "one")
            session._saved()
            assert store.has_model(task.id) == task.leaves_model
    assert not store.files("models", "")


# ---- the audit -------------------------------------------------------------------------------------------


def states_of(task: Task) -> np.ndarray:
    """The states of a task's design in the made-up stores of tests/test_audit.py, after its request."""
    forget = task.spec.get("forget")
    states = whole_forget_set(task)
    if forget is None or "request" not in forget:
        return states
    return requests.after(states, fold_of(task), forget["request"]["index"])[0]


whole_forget_set = test_audit.states_of


def fold_of(task: Task) -> np.ndarray:
    forget = task.spec["forget"]
    made = ("digits", test_audit.LABELS, task.spec["members"], recipe(**forget["parameters"]), "key")
    return requests.fold(2, *made, forget["draw"])


def test_each_request_is_audited_over_what_is_gone_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """φ is larger by 2 where a base knows a sample, by 1 where a method forgot it, by 0 after retraining."""
    monkeypatch.setattr(test_audit, "states_of", states_of)
    plan = test_audit.plan_of(requests=2, seeds=1, audit={"pairs": 8})
    store = Store.create(str(tmp_path / "r"))
    audited = [task for task in plan.tasks if task.spec["members"]["track"] == "audit"]
    test_audit.fill(store, audited, test_audit.member_signal)
    fold = fold_of(next(task for task in audited if task.spec.get("forget")))
    assert sorted(np.bincount(fold[fold >= 0]).tolist()) == [34, 34] and (fold < 0).sum() == 12
    reader = Reader(store)
    for index, cell in enumerate(plan.cells):
        design = AuditDesign(reader, cell, cell.retrains)
        assert design.audited.tolist() == np.flatnonzero((fold >= 0) & (fold <= index)).tolist()
        members = (design.forget_set[:, design.audited] >= 0).reshape(8, 2, -1)
        assert np.all(members.sum(axis=1) == 1), "each is gone from one base of each pair"
        auc = {}
        for row in audit.rows_of(cell):
            forgotten, _, retrained = design.worlds(design.cube(reader, row.tasks))
            assert not np.isnan(forgotten).any() and not np.isnan(retrained).any()
            auc[row.kind] = ulira.compare(forgotten, retrained).auc
        assert 0.45 < auc["retrain"] < 0.55 and 0.6 < auc["unlearn"] < auc["base"]


def test_a_plan_tells_of_requests_that_run_again(tmp_path: Path) -> None:
    """The first request is done, its weights are gone, and so are those of its base."""
    plan = plan_of(2, seeds=1, methods=["finetune"])
    store = Store.create(str(tmp_path / "r"))
    done = [task for task in plan.tasks if task.kind == "base" or task.leaves_model]
    store.write_part("runs", [task.columns() | {"status": "done", "attempt": 1} for task in done], "p")
    facts = of_plan(plan, store)
    assert (facts["done"], facts["retrained_bases"], facts["repeated_requests"]) == (2, 1, 1)
    assert "1 earlier requests run again: the weights they left were not kept." in plan_text(facts)
