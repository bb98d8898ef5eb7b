"""Tuning: one Optuna study per (method, dataset, architecture, forget recipe), asked and told by the driver.

A study goes through three phases, each on seeds and splits of its own, which are neither reported nor
attacked: `search` runs trials; `confirm` runs the best of them again on fresh seeds, since the best of many
noisy trials is partly luck (the winner's curse), and the lowest mean wins; `evaluate` runs the winner and the
default on fresh seeds once more, for the gain that is reported. What a study wants next follows from its
trials and the rows of finished tasks alone: a killed run asks for the same tasks again and loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from orchestrator import objective, torn
from orchestrator.catalogue import Parameter
from orchestrator.keys import canonical
from orchestrator.objective import Row
from orchestrator.samplers import distributions, make_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

SEARCH, CONFIRM, EVALUATE = PHASES = ("search", "confirm", "evaluate")
JUDGED = ("ra", "fa", "va", "val_auc")
PRUNED = "skipped: pruned"  # how the reason of a run begins that a worker ended early
WARM_UP, ENOUGH = 1, 5  # epochs without a limit; trials that a median needs
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
Values = dict[str, Any]


class Job(Protocol):
    """A task to be run (orchestrator/plan.Task)."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True)
class Budget:
    """What a study may spend.

    trials: finished trials. seeds, confirm_seeds, evaluate_seeds: seeds of each phase. finalists: trials that
    are run again. parallel: trials of one study at once. time: the seconds of a method are an objective too.
    pruner: 'median' ends a trial that after an epoch is further from retraining than half of those before it
    were, where a method reports epochs and there is one objective; 'none' never does.
    """

    trials: int = 20
    sampler: str = "tpe"
    objective: str = "retrain_distance"
    time: bool = False
    seeds: int = 1
    finalists: int = 3
    confirm_seeds: int = 3
    evaluate_seeds: int = 5
    parallel: int = 2
    pruner: str = "median"

    def seeds_of(self, phase: str) -> int:
        return {SEARCH: self.seeds, CONFIRM: self.confirm_seeds, EVALUATE: self.evaluate_seeds}[phase]


@dataclass(frozen=True)
class Subject:
    """What is tuned, and how to make its tasks.

    space: the parameters to search; the others stay as in `default`. task: the unlearn task of given values,
    phase and seed. references: ids of its base and retrain.
    """

    name: str
    space: Mapping[str, Parameter]
    default: Values
    task: Callable[[Values, str, int], Job]
    references: Callable[[str, int], tuple[Job, Job]]


@dataclass
class Confirmed:
    """A candidate after the second phase; `value` is the mean objective, None where a run failed."""

    values: Values
    origin: str  # 'trial 7' or 'default'
    search_value: float | None
    value: float | None


@dataclass
class Result:
    """How a study ended. reason: why there is no winner, '' if there is one."""

    name: str
    winner: Values | None = None
    origin: str = ""
    reason: str = ""
    candidates: list[Confirmed] = field(default_factory=list)
    tuned: list[float] = field(default_factory=list)  # objective per seed of the last phase
    default: list[float] = field(default_factory=list)
    noise_floor: float | None = None


class Search:
    """One study and what it wants to run next."""

    def __init__(self, subject: Subject, study: optuna.Study, budget: Budget) -> None:
        self.subject, self.study, self.budget = subject, study, budget
        self.distributions = distributions(subject.space)
        torn.finish(
            study, self.distributions, lambda number: make_sampler(budget.sampler, subject.name, number)
        )
        self.emitted: set[str] = set()
        self.jobs: dict[str, Job] = {}  # all that were ever wanted, finished ones too
        self.over = False  # the first phase: a database is not asked again
        self.result: Result | None = None
        self._trial_of: dict[str, tuple[FrozenTrial, int]] = {}  # id of a task of a trial -> trial, seed

    # ---- what to run --------------------------------------------------------------------------------------

    def advance(self, rows: Mapping[str, Row]) -> list[Job]:
        """Tell what finished, ask what fits into the budget; the tasks that have to run for it and were not
        given out before. rows: every finished task of tuning, by id. `result` is set at the end.
        """
        if self.result is not None:
            return []
        jobs: dict[str, Job] = {}
        if self._searched(rows, jobs):
            self._settle(rows, jobs)
        self.jobs |= jobs
        fresh = [job for name, job in jobs.items() if name not in self.emitted and name not in rows]
        self.emitted |= {job.id for job in fresh}
        return fresh

    def _searched(self, rows: Mapping[str, Row], jobs: dict[str, Job]) -> bool:
        """Whether the first phase is over; else its tasks are added to `jobs`."""
        if self.over:
            return True
        trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for trial in running:
            if not self._tell(trial, rows):
                jobs |= self._jobs_of(trial)
        trials = self.study.get_trials(deepcopy=False)
        if not trials and self._default_fits():
            chosen = {name: self.subject.default[name] for name in self.subject.space}
            self.study.enqueue_trial(chosen, user_attrs={"origin": "default"})
        while self._wanted() > 0:
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = make_sampler(self.budget.sampler, self.subject.name, number)
            asked = self.study.ask(self.distributions)
            trial = self.study.get_trials(deepcopy=False)[asked.number]
            if not self._tell(trial, rows):  # a duplicate is answered from the ledger at once
                jobs |= self._jobs_of(trial)
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        self.over = TrialState.RUNNING not in states
        return self.over

    def _wanted(self) -> int:
        """How many trials to ask for now: as many finished ones as the budget says, a few at once, and not
        for ever where all fail.
        """
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        running, finished = states.count(TrialState.RUNNING), sum(state in FINISHED for state in states)
        tries = len(states) - states.count(TrialState.WAITING)
        left = min(self.budget.trials - finished - running, 2 * self.budget.trials + 10 - tries)
        return min(left, self.budget.parallel - running)

    def _default_fits(self) -> bool:
        """Whether the default lies in the ranges searched, so that it can be the first trial."""

        def fits(value: Any, dist: Any) -> bool:
            if isinstance(dist, CategoricalDistribution):
                return value in dist.choices
            return bool(dist.low <= value <= dist.high)

        return all(fits(self.subject.default[name], dist) for name, dist in self.distributions.items())

    def _values(self, trial: FrozenTrial) -> Values:
        return {**self.subject.default, **trial.params}

    def _jobs_of(self, trial: FrozenTrial) -> dict[str, Job]:
        values = self._values(trial)
        for seed in range(self.budget.seeds):
            self._trial_of[self.subject.task(values, SEARCH, seed).id] = (trial, seed)
        return self._jobs(values, SEARCH)

    def _jobs(self, values: Values, phase: str) -> dict[str, Job]:
        """The tasks of one configuration in a phase, its bases and retrains first."""
        jobs: dict[str, Job] = {}
        for seed in range(self.budget.seeds_of(phase)):
            for job in (*self.subject.references(phase, seed), self.subject.task(values, phase, seed)):
                jobs[job.id] = job
        return jobs

    # ---- what came out ------------------------------------------------------------------------------------

    def _pairs(
        self, values: Values, phase: str, rows: Mapping[str, Row]
    ) -> list[tuple[Row, Row]] | str | None:
        """(row, retrain) per seed; the reason of the first that failed; None while some have not finished."""
        pairs = []
        for seed in range(self.budget.seeds_of(phase)):
            _, retrain = self.subject.references(phase, seed)
            ids = (self.subject.task(values, phase, seed).id, retrain.id)
            found = [rows.get(task) for task in ids]
            for row in found:
                if row is not None and row["status"] != "done":
                    return f"{row['status']}: {row.get('reason') or 'no reason'}"
            if None in found:
                return None
            if any(row.get(name) is None for row in found if row is not None for name in JUDGED):
                return "not judged: fewer than ten samples to forget, or of validation"
            pairs.append((found[0], found[1]))
        return pairs  # type: ignore[return-value]

    def _tell(self, trial: FrozenTrial, rows: Mapping[str, Row]) -> bool:
        """Tell a trial whose tasks have finished; whether they have."""
        values = self._values(trial)
        pairs = self._pairs(values, SEARCH, rows)
        if pairs is None:
            return False
        asked = optuna.trial.Trial(self.study, trial._trial_id)
        self._report(asked, values, rows)
        if isinstance(pairs, str):
            pruned = pairs.startswith(PRUNED)
            asked.set_user_attr("reason", pairs)
            self.study.tell(trial.number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
            return True
        parts = objective.mean_components(self.budget.objective, pairs)
        told = list(parts) if self.budget.objective == "paper" else [objective.scalar("", parts)]
        if self.budget.time:
            told.append(sum(row["wall_s"] for row, _ in pairs) / len(pairs))
        self.study.tell(trial.number, told)
        return True

    def _report(self, asked: optuna.trial.Trial, values: Values, rows: Mapping[str, Row]) -> None:
        """Note the values after each epoch, the mean over the seeds that have them."""
        if not self._prunes:
            return
        found = [
            row["epoch_values"]
            for seed in range(self.budget.seeds)
            if (row := rows.get(self.subject.task(values, SEARCH, seed).id)) and row.get("epoch_values")
        ]
        for epoch in range(min(map(len, found), default=0)):
            asked.report(sum(one[epoch] for one in found) / len(found), epoch)

    @property
    def _prunes(self) -> bool:
        """Optuna has values after epochs, and pruning, only where there is one objective."""
        return self.budget.pruner == "median" and len(self.study.directions) == 1

    def hint(self, task_id: str, rows: Mapping[str, Row]) -> dict[str, Any] | None:
        """What a worker needs to judge a trial after each epoch (workers/pruning.EpochWatch): the retrain's
        values and, for each epoch, the median of the trials that came as far; None where it is not judged.
        """
        trial, seed = self._trial_of.get(task_id, (None, 0))
        if trial is None or not self._prunes:
            return None
        retrain = rows.get(self.subject.references(SEARCH, seed)[1].id)
        if retrain is None or any(retrain.get(name) is None for name in JUDGED):
            return None
        finished = [t for t in self.study.get_trials(deepcopy=False) if t.state in FINISHED]
        limits = [math.inf] * WARM_UP
        while (
            len(reached := [v for t in finished if (v := t.intermediate_values.get(len(limits)))]) >= ENOUGH
        ):
            limits.append(median(reached))
        return {"retrain": {name: retrain[name] for name in JUDGED}, "limits": limits}

    def _value(self, trial: FrozenTrial) -> float:
        """The number by which trials are compared: the distance, without the seconds."""
        if self.budget.objective == "paper":
            return objective.scalar("paper", trial.values[:4])
        return float(trial.values[0])

    def _mean(self, values: Values, phase: str, rows: Mapping[str, Row]) -> float | None:
        pairs = self._pairs(values, phase, rows)
        if not isinstance(pairs, list):
            return None
        return sum(self._per_seed(pairs)) / len(pairs)

    def _per_seed(self, pairs: Sequence[tuple[Row, Row]]) -> list[float]:
        return [objective.distance(self.budget.objective, row, retrain) for row, retrain in pairs]

    # ---- the second and third phase -----------------------------------------------------------------------

    def _finalists(self) -> list[tuple[Values, str, float | None]]:
        """The default and the best different trials: (values, where they are from, value in the search)."""
        chosen: list[tuple[Values, str, float | None]] = [(dict(self.subject.default), "default", None)]
        seen = {canonical(self.subject.default)}
        finished = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        for trial in sorted(finished, key=lambda t: (self._value(t), t.number)):
            values = self._values(trial)
            if canonical(values) not in seen and len(chosen) <= self.budget.finalists:
                seen.add(canonical(values))
                chosen.append((values, f"trial {trial.number}", self._value(trial)))
        return chosen

    def _settle(self, rows: Mapping[str, Row], jobs: dict[str, Job]) -> None:
        """Confirm the finalists, evaluate the winner, and write down the result when all that has run."""
        finalists = self._finalists()
        for values, _, _ in finalists:
            jobs |= self._jobs(values, CONFIRM)
        if any(name not in rows for name in jobs):
            return
        result = Result(self.subject.name)
        result.candidates = [
            Confirmed(values, origin, searched, self._mean(values, CONFIRM, rows))
            for values, origin, searched in finalists
        ]
        alive = [candidate for candidate in result.candidates if candidate.value is not None]
        if not alive:
            result.reason = f"all {len(finalists)} candidates failed on fresh seeds"
            self.result = result
            return
        best = min(alive, key=lambda candidate: candidate.value or 0.0)
        for values in (best.values, dict(self.subject.default)):
            jobs |= self._jobs(values, EVALUATE)
        if any(name not in rows for name in jobs):
            return
        result.winner, result.origin = best.values, best.origin
        tuned, default = (self._pairs(v, EVALUATE, rows) for v in (best.values, dict(self.subject.default)))
        result.tuned = self._per_seed(tuned) if isinstance(tuned, list) else []
        result.default = self._per_seed(default) if isinstance(default, list) else []
        seeds = range(self.budget.evaluate_seeds)
        retrains = [rows[self.subject.references(EVALUATE, seed)[1].id] for seed in seeds]
        alive_retrains = [row for row in retrains if row["status"] == "done"]
        result.noise_floor = objective.noise_floor(self.budget.objective, alive_retrains)
        self.result = result


class Tuner:
    """All studies of a grid: they progress side by side, each with a few trials at once."""

    def __init__(self, searches: Sequence[Search]) -> None:
        self.searches = list(searches)
        self.rows: dict[str, Row] = {}
        self._waiting: dict[str, list[Search]] = {}  # task id -> the studies that asked for it
        self._given: set[str] = set()  # tasks given out: bases and retrains are wanted by many studies

    def start(self, ledger: Mapping[str, Row]) -> list[Job]:
        """The first tasks, given the rows of tuning that the ledger already has, by id."""
        self.rows |= ledger
        return self._advance(self.searches)

    def finished(self, task_id: str, row: Row) -> list[Job]:
        """Note how a task ended; the tasks to run next."""
        self.rows[task_id] = row
        return self._advance(self._waiting.pop(task_id, []))

    def _advance(self, searches: Sequence[Search]) -> list[Job]:
        jobs: dict[str, Job] = {}
        for search in searches:
            for job in search.advance(self.rows):
                self._waiting.setdefault(job.id, []).append(search)
                jobs[job.id] = job
        known = self._given & jobs.keys()
        self._given |= jobs.keys()
        return [job for name, job in jobs.items() if name not in known]

    def hint(self, task_id: str) -> dict[str, Any] | None:
        """What a worker is told beside a task's specification; it never changes a finished row's numbers."""
        for search in self._waiting.get(task_id, []):
            if (found := search.hint(task_id, self.rows)) is not None:
                return found
        return None

    def job(self, task_id: str) -> Job | None:
        """A task that some study wanted, by its id."""
        return next((search.jobs[task_id] for search in self.searches if task_id in search.jobs), None)

    @property
    def jobs(self) -> dict[str, Job]:
        """All tasks that the studies wanted so far, by id, each after its base."""
        return {name: job for search in self.searches for name, job in search.jobs.items()}

    @property
    def done(self) -> bool:
        return all(search.result is not None for search in self.searches)

    @property
    def results(self) -> list[Result]:
        return [search.result for search in self.searches if search.result is not None]
