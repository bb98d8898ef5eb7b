"""Studies on made-up tasks whose value is known: the search, its phases, failures, resuming."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator.catalogue import Parameter
from orchestrator.keys import digest
from orchestrator.samplers import make_sampler
from orchestrator.tune import Budget, Search, Subject, Tuner

Row = dict[str, Any]
SPACE = {
    "rate": Parameter("rate", "float", 0.1, 1e-4, 1.0, log=True),
    "epochs": Parameter("epochs", "int", 5, 1, 10),
    "rewind": Parameter("rewind", "bool", True, choices=(True, False)),
}
DEFAULT = {"rate": 0.5, "epochs": 5, "rewind": True, "fixed": 3}


@dataclass(frozen=True)
class Made:
    """A task that tells what it is."""

    id: str
    what: tuple[Any, ...]


def made(*what: Any) -> Made:
    return Made(digest(list(what)), what)


def subject(name: str = "toy", default: Mapping[str, Any] = DEFAULT) -> Subject:
    return Subject(
        name,
        SPACE,
        dict(default),
        lambda values, phase, seed: made(name, values, phase, seed),
        lambda phase, seed: (made("base", phase, seed), made("retrain", phase, seed)),
    )


def loss(values: Mapping[str, Any]) -> float:
    """0 at rate 0.01, 8 epochs, no rewinding; at most 1."""
    off = abs(math.log10(values["rate"]) + 2) / 4 + abs(values["epochs"] - 8) / 20 + 0.1 * values["rewind"]
    return min(1.0, off)


def run_one(job: Made, fails: Callable[[Mapping[str, Any]], str | None] = lambda _: None) -> Row:
    """A row in which every gap to the retrain is the loss of the values."""
    good = {"status": "done", "ra": 1.0, "fa": 1.0, "va": 1.0, "val_auc": 0.5, "val_mia": 0.5, "wall_s": 1.0}
    if job.what[0] in ("base", "retrain"):
        return good
    values = job.what[1]
    if (reason := fails(values)) is not None:
        return {"status": reason, "reason": "on purpose"}
    gap = loss(values)
    worse = dict.fromkeys(("ra", "fa", "va"), 1 - gap) | {"val_auc": 0.5 + gap / 2, "val_mia": 0.5 + gap / 2}
    return good | worse | {"wall_s": float(values["epochs"])}


def by_epoch(job: Made, hint: dict[str, Any] | None) -> Row:
    """As `run_one`, with values after each of four epochs, and stopped above the hint's limits."""
    row = run_one(job)
    if hint is None or job.what[0] != "toy":
        return row
    values = [loss(job.what[1]) * share for share in (2.0, 1.5, 1.2, 1.0)]
    for epoch, (value, limit) in enumerate(zip(values, hint["limits"], strict=False)):
        if value > limit:
            reached = values[: epoch + 1]
            return {"status": "skipped", "reason": f"pruned after epoch {epoch}", "epoch_values": reached}
    return row | {"epoch_values": values}


def drive(tuner: Tuner, ledger: dict[str, Row], limit: int = 10_000, **how: Any) -> list[Made]:
    """Run what a tuner wants, one task after the other; at most `limit` tasks."""
    queue, ran = list(tuner.start(ledger)), []
    while queue and len(ran) < limit:
        job = queue.pop(0)
        ran.append(job)
        ledger[job.id] = run_one(job, **how)
        queue += tuner.finished(job.id, ledger[job.id])
    return ran


def search(budget: Budget, storage: Any = None, of: Subject | None = None) -> Search:
    of = of or subject()
    directions = ["minimize"] * ((4 if budget.objective == "paper" else 1) + budget.time)
    study = optuna.create_study(
        storage=storage or InMemoryStorage(), study_name=of.name, directions=directions, load_if_exists=True
    )
    return Search(of, study, budget)


@pytest.fixture(scope="module")
def finished() -> tuple[Search, list[Made]]:
    one = search(Budget(trials=30, parallel=3))
    return one, drive(Tuner([one]), {})


def test_the_winner_is_near_the_optimum_and_beats_the_default(finished: tuple[Search, list[Made]]) -> None:
    result = finished[0].result
    assert result is not None and result.winner is not None
    assert loss(result.winner) < 0.5 * loss(DEFAULT)
    assert result.winner["fixed"] == 3  # what is not searched stays
    assert result.tuned == pytest.approx([loss(result.winner)] * 5)
    assert result.default == pytest.approx([loss(DEFAULT)] * 5)
    assert result.noise_floor == 0


def test_phases_have_seeds_of_their_own_and_nothing_runs_twice(finished: tuple[Search, list[Made]]) -> None:
    one, ran = finished
    assert Counter(job.id for job in ran).most_common(1)[0][1] == 1
    trials = {digest(job.what[1]) for job in ran if job.what[0] == "toy" and job.what[2] == "search"}
    by_phase = Counter(job.what[2] for job in ran if job.what[0] == "toy")
    assert by_phase == {"search": len(trials), "confirm": 4 * 3, "evaluate": 2 * 5}
    states = Counter(trial.state for trial in one.study.get_trials())
    assert states == {TrialState.COMPLETE: 30}
    assert Counter(job.what[1] for job in ran if job.what[0] == "retrain") == {
        "search": 1,
        "confirm": 3,
        "evaluate": 5,
    }


def test_the_default_is_the_first_trial(finished: tuple[Search, list[Made]]) -> None:
    first = finished[0].study.get_trials()[0]
    assert {**DEFAULT, **first.params} == DEFAULT
    assert first.value == pytest.approx(loss(DEFAULT))


def test_a_default_outside_the_ranges_is_a_candidate_all_the_same() -> None:
    odd = {**DEFAULT, "epochs": 40}
    one = search(Budget(trials=3), of=subject(default=odd))
    drive(Tuner([one]), {})
    assert one.result is not None
    assert all(trial.params["epochs"] <= 10 for trial in one.study.get_trials())
    assert [c.values for c in one.result.candidates if c.origin == "default"] == [odd]


@pytest.mark.parametrize("sampler", ["tpe", "nsga3", "random", "qmc"])
@pytest.mark.parametrize("kind", ["retrain_distance", "paper"])
def test_every_sampler_and_objective(sampler: str, kind: str) -> None:
    one = search(Budget(trials=12, sampler=sampler, objective=kind, time=True))
    drive(Tuner([one]), {})
    assert one.result is not None and one.result.winner is not None
    values = one.study.get_trials()[0].values
    gap = loss(DEFAULT)
    expected = [gap / 3] * 3 + [gap] if kind == "paper" else [gap]
    assert values == pytest.approx([*expected, 5.0])
    assert len(one.study.best_trials) >= 1  # the Pareto set


def test_a_failed_trial_has_a_reason_and_no_number_and_is_not_counted() -> None:
    one = search(Budget(trials=10))
    drive(Tuner([one]), {}, fails=lambda values: "diverged" if values["rate"] > 0.1 else None)
    trials = one.study.get_trials()
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert failed and all(trial.values is None for trial in failed)
    assert {trial.user_attrs["reason"] for trial in failed} == {"diverged: on purpose"}
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 10
    assert one.result is not None and one.result.winner is not None
    assert one.result.default == []  # the default diverges on fresh seeds too: no number for it


def test_a_study_whose_trials_all_fail_ends_with_a_reason() -> None:
    one = search(Budget(trials=5))
    drive(Tuner([one]), {}, fails=lambda _: "bug")
    assert len(one.study.get_trials()) == 20
    assert one.result is not None and one.result.winner is None
    assert one.result.reason == "all 1 candidates failed on fresh seeds"


def test_sets_too_small_to_judge_by_fail_with_that_reason() -> None:
    """A worker gives no AUC of fewer than ten samples."""
    one = search(Budget(trials=2, parallel=1))
    tuner = Tuner([one])
    queue = list(tuner.start({}))
    while queue:
        job = queue.pop(0)
        assert tuner.hint(job.id) is None
        row = {name: value for name, value in run_one(job).items() if name != "val_auc"}
        queue += tuner.finished(job.id, row)
    trials = one.study.get_trials()
    assert {trial.state for trial in trials} == {TrialState.FAIL}
    assert trials[0].user_attrs["reason"].startswith("not judged: fewer than ten samples")
    assert one.result is not None and one.result.winner is None


@pytest.mark.parametrize("sampler", ["tpe", "nsga3", "qmc", "random"])
def test_a_killed_study_goes_on_as_if_it_had_not_been(tmp_path: Path, sampler: str) -> None:
    budget = Budget(trials=15, sampler=sampler, parallel=1)
    whole = search(budget)
    drive(Tuner([whole]), {})
    ledger: dict[str, Row] = {}
    ran: list[Made] = []
    for steps in (1, 4, 7, 10_000):  # each time a new process: new storage object, new sampler
        journal = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
        one = search(budget, journal)
        ran += drive(Tuner([one]), ledger, limit=steps)
    assert Counter(job.id for job in ran).most_common(1)[0][1] == 1
    again = [trial.params for trial in one.study.get_trials()]
    assert again == [trial.params for trial in whole.study.get_trials()]
    assert one.result == whole.result


def test_a_duplicate_is_answered_from_the_ledger() -> None:
    few = {"rewind": SPACE["rewind"]}
    of = subject()
    small = Subject(of.name, few, of.default, of.task, of.references)
    one = search(Budget(trials=6), of=small)
    ran = drive(Tuner([one]), {})
    assert sum(job.what[0] == "toy" and job.what[2] == "search" for job in ran) == 2
    assert sum(trial.state == TrialState.COMPLETE for trial in one.study.get_trials()) == 6


def test_studies_progress_side_by_side_within_their_bound() -> None:
    searches = [search(Budget(trials=4, parallel=2), of=subject(name)) for name in ("a", "b", "c")]
    tuner = Tuner(searches)
    first = tuner.start({})
    assert Counter(job.what[0] for job in first) == {"base": 1, "retrain": 1, "a": 2, "b": 2, "c": 2}
    for one in searches:
        states = [trial.state for trial in one.study.get_trials()]
        assert states.count(TrialState.RUNNING) == 2


def test_the_order_of_results_does_not_matter_to_what_is_counted() -> None:
    """Tasks that end last-come-first-served give as many trials, each with its own value."""
    one = search(Budget(trials=12, parallel=4))
    tuner, ledger = Tuner([one]), {}
    stack = list(tuner.start(ledger))
    while stack:
        job = stack.pop()
        stack += tuner.finished(job.id, run_one(job))
    for trial in one.study.get_trials():
        assert trial.value == pytest.approx(loss({**DEFAULT, **trial.params}))
    assert one.result is not None


def test_seeds_of_samplers_differ_between_studies_and_trials() -> None:
    draws = set()
    for name, number in (("a", 0), ("a", 1), ("b", 0)):
        study = optuna.create_study(sampler=make_sampler("random", name, number))
        draws.add(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}).params["x"])
    assert len(draws) == 3


# ---- pruning ---------------------------------------------------------------------------------------------


def prune(budget: Budget) -> tuple[Search, int]:
    one = search(budget)
    tuner, hints = Tuner([one]), 0
    queue = list(tuner.start({}))
    while queue:
        job = queue.pop(0)
        hint = tuner.hint(job.id)
        hints += hint is not None
        queue += tuner.finished(job.id, by_epoch(job, hint))
    return one, hints


def test_trials_worse_than_the_median_are_stopped_and_count() -> None:
    one, _ = prune(Budget(trials=30, parallel=1, sampler="random"))
    trials = one.study.get_trials()
    states = Counter(trial.state for trial in trials)
    assert sum(states.values()) == 30 and 5 <= states[TrialState.PRUNED] <= 25
    first = next(t.number for t in trials if t.state == TrialState.PRUNED)
    assert first >= 5  # a median of fewer is none
    for trial in trials:
        if trial.state == TrialState.PRUNED:
            before = [
                t.intermediate_values.get(len(trial.intermediate_values) - 1) for t in trials[: trial.number]
            ]
            known = sorted(value for value in before if value is not None)
            assert list(trial.intermediate_values.values())[-1] > known[(len(known) - 1) // 2]
    assert one.result is not None and one.result.winner is not None
    assert loss(one.result.winner) == min(loss({**DEFAULT, **t.params}) for t in trials)


@pytest.mark.parametrize("odd", [{"pruner": "none"}, {"objective": "paper"}, {"time": True}])
def test_nothing_is_pruned_where_it_is_off_or_there_are_several_objectives(odd: dict[str, Any]) -> None:
    one, hints = prune(Budget(trials=12, **odd))
    assert hints == 0
    assert {trial.state for trial in one.study.get_trials()} == {TrialState.COMPLETE}
