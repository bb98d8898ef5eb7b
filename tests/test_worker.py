"""A task is a pure function of its specification, whatever ran before it and wherever its base came from."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from methods.base import ENGINE
from orchestrator.config import Grid
from orchestrator.plan import Task, make_plan
from tests.conftest import grid_data
from workers import run_task
from workers.designs import FORGET, RETAIN, unpack
from workers.engine import Stepper
from workers.outcome import Outcome
from workers.run_task import weights_hash
from workers.worker import Worker

METHODS = ["finetune", "gradient_ascent"]


@cache
def tasks() -> dict[tuple[str, str, int, str], Task]:
    """Two seeds and one base of the audit, one epoch, by (kind, track, seed, method), forget set 0."""
    grid = grid_data(
        methods=[{name: {"epochs": 1}} for name in METHODS],
        training={"all": {"epochs": 1}},
        audit={"pairs": 4, "forget_sets": 2},
    )
    found: dict[tuple[str, str, int, str], Task] = {}
    for task in make_plan(Grid.model_validate(grid)).tasks:
        facts = task.columns()
        found.setdefault((facts["kind"], facts["track"], facts["seed"], facts["method"]), task)
    return found


BASE, RETRAIN = ("base", "main", 0, ""), ("retrain", "main", 0, "")
UNLEARN, OTHER = ("unlearn", "main", 0, "finetune"), ("unlearn", "main", 0, "gradient_ascent")


def run(worker: Worker, key: tuple[str, str, int, str], weights: bytes | None = None) -> Outcome:
    task = tasks()[key]
    return worker.run({"id": task.id, "spec": copy.deepcopy(task.spec)}, weights)


def phi(outcome: Outcome) -> np.ndarray:
    assert outcome.status == "done" and outcome.scores is not None, outcome.log
    return outcome.scores.phi


@pytest.fixture
def worker(tmp_path: Any) -> Worker:
    return Worker(str(tmp_path), device="cpu")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int, str], Outcome]:
    """The outcomes of base, retrain and unlearn tasks on a fresh worker."""
    worker = Worker(str(tmp_path_factory.mktemp("data")), device="cpu")
    return {key: run(worker, key) for key in (BASE, RETRAIN, UNLEARN, OTHER)}


# ---- a pure function -------------------------------------------------------------------------------------


def test_the_same_task_gives_the_same_bits_after_other_tasks_and_with_weights_passed(
    first: dict[tuple[str, str, int, str], Outcome], worker: Worker
) -> None:
    torch.manual_seed(123)  # the state of the process must not matter
    base = first[BASE]
    for key in (OTHER, UNLEARN, ("base", "main", 1, ""), RETRAIN, UNLEARN, BASE, UNLEARN):
        again = run(worker, key, None if key[0] != "unlearn" else base.weights)
        if key in first:
            assert np.array_equal(phi(again), phi(first[key])), key
            assert again.row.get("weights_sha256") == first[key].row.get("weights_sha256")


def test_a_task_leaves_the_global_state_alone(worker: Worker) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    run(worker, BASE)
    run(worker, UNLEARN)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before[1:]


def test_unlearning_does_not_change_the_base_others_start_from(
    first: dict[tuple[str, str, int, str], Outcome], worker: Worker
) -> None:
    run(worker, OTHER, first[BASE].weights)
    held = worker.base(tasks()[BASE].id).model.state_dict()
    fresh = Worker("unused", device="cpu")
    run(fresh, BASE)
    for name, tensor in fresh.base(tasks()[BASE].id).model.state_dict().items():
        assert torch.equal(held[name], tensor), name


def test_seeds_change_a_model(first: dict[tuple[str, str, int, str], Outcome], worker: Worker) -> None:
    assert not np.allclose(phi(run(worker, ("base", "main", 1, ""))), phi(first[BASE]))


def test_zero_epochs_of_a_method_leave_the_base_as_it_is(worker: Worker) -> None:
    """Hyper-parameters reach the method, and nothing else touches the weights: the same φ, bit for bit."""
    base = run(worker, BASE)
    task = copy.deepcopy(tasks()[UNLEARN].spec)
    task["method"]["hyperparameters"]["epochs"] = 0
    assert np.array_equal(phi(worker.run({"id": "x", "spec": task})), phi(base))


# ---- what is in a row ------------------------------------------------------------------------------------


def test_rows_hold_measured_numbers_and_the_machine(
    first: dict[tuple[str, str, int, str], Outcome],
) -> None:
    for outcome in first.values():
        row = outcome.row
        assert all(0 <= row[name] <= 1 for name in ("ra", "fa", "va", "ta") if row[name] is not None)
        assert row["wall_s"] > 0 and row["evaluate_s"] > 0 and row["peak_memory_mib"] > 0
        assert row["started_at"] < row["finished_at"]
        assert row["device"].startswith("cpu") and row["host"] and '"torch"' in row["versions"]
        assert len(phi(outcome)) == 1437 + 360 and phi(outcome).dtype == np.float32
    assert first[BASE].row["fa"] is None  # a base has no forget set
    assert first[BASE].row["members_sha256"] == first[UNLEARN].row["members_sha256"]
    assert first[BASE].row["members_sha256"] != first[RETRAIN].row["members_sha256"]
    assert first[BASE].weights and not first[RETRAIN].weights and not first[UNLEARN].weights


def test_designs_say_who_was_trained_on(first: dict[tuple[str, str, int, str], Outcome]) -> None:
    designs = {key[0]: outcome.design for key, outcome in first.items()}
    base, retrain, unlearn = (designs[kind] for kind in ("base", "retrain", "unlearn"))
    assert base is not None and retrain is not None and unlearn == retrain
    states = {row["design"]: unpack(row["states"], row["n_pool"]) for row in (base, retrain)}
    one, other = states[base["design"]], states[retrain["design"]]
    assert np.array_equal(one == RETAIN, (other == RETAIN) | (other == FORGET))
    assert retrain["n_forget"] == round(0.2 * base["n_retain"]) == (other == FORGET).sum()


def test_start_up_costs_are_not_in_the_clock_of_the_first_task(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading and the throw-away step may take as long as they like: wall_s is of the training alone."""
    import time

    warm_up, dataset = Worker.warm_up, Worker.dataset
    slow: list[str] = []

    def slowly(function: Any, name: str) -> Any:
        def call(self: Worker, *arguments: Any) -> Any:
            if name not in slow:
                slow.append(name)
                time.sleep(1.0)
            return function(self, *arguments)

        return call

    monkeypatch.setattr(Worker, "warm_up", slowly(warm_up, "warm_up"))
    monkeypatch.setattr(Worker, "dataset", slowly(dataset, "dataset"))
    row = run(worker, BASE).row
    assert slow == ["warm_up", "dataset"]
    assert row["finished_at"] - row["started_at"] > 2.0
    assert row["wall_s"] + row["evaluate_s"] < row["finished_at"] - row["started_at"] - 2.0


def test_warming_up_changes_no_result(
    first: dict[tuple[str, str, int, str], Outcome], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "warm_up", lambda *_: None)
    assert np.array_equal(phi(run(worker, BASE)), phi(first[BASE]))


def test_recorded_steps_give_the_same_outcomes(
    first: dict[tuple[str, str, int, str], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and retrain share one recording, a method has its own; whatever was held or hot before."""
    recorded, record = [], Stepper._recorded
    monkeypatch.setattr(
        Stepper, "_recorded", lambda self, b: (recorded.append(len(b[0])), record(self, b))[1]
    )
    monkeypatch.setattr("workers.engine.WARM_UP", 1)  # an epoch here has few steps
    worker = Worker("unused", device="cpu", engine="graphs")
    other = ("base", "main", 1, "")
    for key in (BASE, RETRAIN, UNLEARN, OTHER, other, BASE, OTHER, UNLEARN, RETRAIN):
        outcome = run(worker, key)
        if key != other:
            assert np.array_equal(phi(outcome), phi(first[key])), key
            assert outcome.row.get("weights_sha256") == first[key].row.get("weights_sha256")
            assert outcome.row.keys() == first[key].row.keys(), "the ledger has no column for it"
    held = worker._engine.free
    assert len(held) == 3 and Counter(recorded).most_common()[0][1] <= 4, "with that of warming up"
    for key in (BASE, other):
        kept = worker.base(tasks()[key].id)
        assert weights_hash(kept.model, None) == kept.weights_sha256, "a hot base was changed"
    assert ENGINE.get() is None
    with pytest.raises(ValueError, match="engine: 'cuda' is unknown"):
        Worker("unused", device="cpu", engine="cuda")


def test_recordings_are_given_up_before_a_task_is_out_of_memory(
    first: dict[tuple[str, str, int, str], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is there once no recording is held; where it is not, the task is not tried again and again."""
    monkeypatch.setattr("workers.engine.WARM_UP", 1)
    worker, tries = Worker("unused", device="cpu", engine="graphs"), []
    run(worker, BASE)
    room, evaluated = True, run_task._evaluated

    def short_of_memory(*given: Any) -> Outcome:
        tries.append(len(worker._engine.free))
        if tries[-1] or not room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluated(*given)

    monkeypatch.setattr(run_task, "_evaluated", short_of_memory)
    assert worker._engine.free and np.array_equal(phi(run(worker, UNLEARN)), phi(first[UNLEARN]))
    assert np.array_equal(phi(run(worker, RETRAIN)), phi(first[RETRAIN]))
    assert tries == [2, 0, 0], "from then on none are held"
    room = False
    assert run(worker, UNLEARN).status == "oom" and tries == [2, 0, 0, 0]
    plain = Worker("unused", device="cpu")
    assert run(plain, BASE).status == "oom" and len(tries) == 5


# ---- bases -----------------------------------------------------------------------------------------------


def test_a_base_trained_on_others_is_refused(worker: Worker) -> None:
    """The weights of another half of the audit under the name of the base the task asks for."""
    other = run(worker, ("base", "audit", 1, ""))
    assert other.weights is not None
    fresh = Worker("unused", device="cpu")
    refused = run(fresh, ("unlearn", "audit", 0, "finetune"), other.weights)
    assert refused.status == "bug" and "was trained on other samples" in refused.reason
    assert refused.scores is None and "ra" not in refused.row
    assert "Traceback" in refused.log


def test_without_base_and_weights_the_task_is_a_bug_with_its_reason(worker: Worker) -> None:
    outcome = run(worker, UNLEARN)
    assert outcome.status == "bug" and "no weights came with it" in outcome.reason


def test_weights_that_are_none_are_a_bug_not_a_crash(worker: Worker) -> None:
    assert run(worker, UNLEARN, b"not safetensors at all").status == "bug"


def test_the_base_used_longest_ago_is_dropped(
    first: dict[tuple[str, str, int, str], Outcome],
) -> None:
    worker = Worker("unused", device="cpu", hot=2)
    zero, one, audit = (tasks()[key] for key in (BASE, ("base", "main", 1, ""), ("base", "audit", 0, "")))
    run(worker, BASE)
    run(worker, ("base", "main", 1, ""))
    assert worker.holds() == [zero.id, one.id]
    run(worker, UNLEARN)  # uses zero, so one is now the oldest
    run(worker, ("base", "audit", 0, ""))
    assert worker.holds() == [zero.id, audit.id]
    run(worker, ("unlearn", "main", 1, "finetune"), None)
    assert worker.holds() == [zero.id, audit.id]  # asking in vain changes nothing
    assert np.array_equal(phi(run(worker, UNLEARN)), phi(first[UNLEARN]))


# ---- never an exception ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("a fault\nwith more lines"), "bug"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom"),
        (KeyError("x"), "bug"),
    ],
)
def test_every_exception_of_a_task_is_an_outcome(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("workers.run_task.train", fail)
    outcome = run(worker, BASE)
    assert (outcome.status, outcome.scores, outcome.weights) == (status, None, None)
    assert outcome.reason and "\n" not in outcome.reason
    assert type(error).__name__ in outcome.log and "ra" not in outcome.row
    assert worker.holds() == []
    monkeypatch.undo()
    assert run(worker, BASE).status == "done"  # the worker goes on


@pytest.mark.parametrize("part", ["dataset", "architecture", "training", "members", "seeds"])
def test_a_specification_that_makes_no_sense_is_a_bug_not_a_crash(worker: Worker, part: str) -> None:
    spec = copy.deepcopy(tasks()[BASE].spec)
    spec[part] = {"name": "nowhere"}
    assert worker.run({"id": "x", "spec": spec}).status == "bug"


def test_a_loss_that_is_not_finite_is_a_result(worker: Worker) -> None:
    spec = copy.deepcopy(tasks()[BASE].spec)
    spec["training"]["learning_rate"] = 1e20
    outcome = worker.run({"id": "x", "spec": spec})
    assert outcome.status == "diverged" and outcome.scores is None and worker.holds() == []


def test_a_worker_on_a_cpu_uses_one_thread(worker: Worker) -> None:
    assert torch.get_num_threads() == 1
