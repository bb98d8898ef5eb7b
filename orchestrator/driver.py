"""Runs a session on Ray: long-lived actors, a bounded window for each, retries by kind of failure.

An actor holds its datasets and hot bases, so unlearn tasks go to the actor that has their base; when another
actor takes one over, the weights reach it through Ray's object store, and so do the bytes of a dataset: once
to a node. Actors appear on nodes that join and vanish with nodes that leave. A task is a pure function of its
id: that a worker is lost, or a task moves, changes nothing but the time.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from orchestrator import cluster, datasets, last_words, loading, window
from orchestrator.actor import Actor, InFlight, Runner, outcomes
from orchestrator.cluster import Resources
from orchestrator.metrics import exported
from orchestrator.plan import Task
from orchestrator.session import Session

WORKER = "workers.worker:Worker"
LOST_RETRIES, OOM_RETRIES, START_RETRIES = 3, 2, 3
POLL_S = 0.2
FEW = 64  # of so many busy actors one is waited for
LOOK_S = 0.5  # how often the first of each queue is looked for, whatever else ends; far below a time limit
SCALE_S = 2.0  # how often the actors are matched to the cluster and to the work
PATIENCE_S = 30.0  # after so long without any worker the user is told what is waited for
REGROW_S = 600.0  # after so long without such a loss there may be one actor more again
IDLE_S = 60.0  # an actor without work for so long goes, and with the last one its node may


def run(session: Session, data: str, resources: Resources, worker: str = WORKER) -> None:
    """Run every task of the session on the actors of the connected cluster. worker: MODULE:CLASS of what the
    actors run tasks with.
    """
    if session.schedule.total:
        driver = _Driver(session, data, resources, worker)
        with exported(session, lambda: driver.share.gpus):
            driver.run()


class _Driver:
    def __init__(self, session: Session, data: str, resources: Resources, worker: str) -> None:
        self.session, self.schedule, self.resources = session, session.schedule, resources
        self.data, self.made = data, 0
        self.folders = datasets.folders(session.plan.grid.datasets)
        self.worker, self.actor_class = worker, ray.remote(Actor)
        self.packs = resources.actors_per_gpu == "auto"  # whether memory shall tell how many share a GPU
        self.share = cluster.share(resources.device, 1 if self.packs else int(resources.actors_per_gpu))
        self.runners: list[Runner] = []
        self.fewer = (
            0  # actors less than there is room for, since some ran out of memory, last at `hungry_at`
        )
        self.unstarted = 0  # times in a row, the last at `failed_to_start`, that actors could not start
        self.scaled = time.monotonic()
        self.looked, self.failed_to_start, self.hungry_at = self.scaled, 0.0, 0.0
        self.waiting_since: float | None = self.scaled  # None: a worker has started, or the user was told
        self.hint = 0  # actors that the autoscaler was asked for
        self.device_mib = self.peak_mib = 0.0  # memory of a GPU, and the largest peak of a task on one
        self.arrays: dict[str, Any] = {}  # dataset -> reference of its bytes in the object store
        self.weights: dict[str, Any] = {}  # base id -> reference of its weights in the object store
        self.alone: set[str] = set()  # tasks that were lost together and are given one by one from then on
        self.lost: dict[str, int] = {}  # task id -> workers it was lost with
        self.oom: dict[str, int] = {}

    def run(self) -> None:
        try:
            self._scale()
            self.arrays = self._load_datasets()
            while self._fill():
                self._collect()
                self._stop_overdue()
                if time.monotonic() - self.scaled > SCALE_S:
                    self._scale()
                self.session.flush_if_due()
                self.session.display(self.session.progress)
        finally:
            self._hint(0)
            for runner in self.runners:
                ray.kill(runner.actor)

    # ---- the datasets -------------------------------------------------------------------------------------

    def _load_datasets(self) -> dict[str, Any]:
        one_node = self.runners and not cluster.several_nodes()
        return loading.load(self.session, self.runners[0].actor if one_node else None, self._new_loader)

    def _new_loader(self) -> Any:
        options = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": cluster.here()}
        return self.actor_class.options(**options).remote(self.worker, self.data, "cpu", folders=self.folders)

    # ---- how many actors ----------------------------------------------------------------------------------

    def _scale(self) -> None:
        """Match the actors to the nodes and to the work: those without a node or with nothing to do go."""
        self.scaled = time.monotonic()
        self._repack()
        room = self.share.room()
        most = min(self.schedule.left, self.resources.max_actors or self.schedule.left)
        self._hint(most if most > room else 0)
        if self.fewer and self.scaled - self.hungry_at > REGROW_S:
            self.fewer, self.hungry_at = self.fewer - 1, self.scaled
        wanted = min(most, max(room - self.fewer, min(room, 1)))
        for runner in [r for r in self.runners if self._superfluous(r)][: max(0, len(self.runners) - wanted)]:
            self._end(runner)
        self.runners += [self._new_runner() for _ in range(wanted - len(self.runners))]
        self._tell_of_waiting()

    def _superfluous(self, runner: Runner) -> bool:
        return runner.starting is not None or (not runner.queue and time.monotonic() - runner.since > IDLE_S)

    def _tell_of_waiting(self) -> None:
        if self.waiting_since is None or any(runner.starting is None for runner in self.runners):
            self.waiting_since = None
        elif time.monotonic() - self.waiting_since > PATIENCE_S:
            self.waiting_since = None
            what = "GPU" if self.share.gpus else "core"
            self.session.progress.notes.append(
                f"No worker has started: waiting for a node with a free {what}."
            )

    def _hint(self, actors: int) -> None:
        if actors != self.hint:
            cluster.ask_for(actors, self.share)
            self.hint = actors

    def _repack(self) -> None:
        """Once tasks have told what a model takes of a GPU, let as many share one as its memory holds. Actors
        with the share of before get no further tasks and are replaced when they are through.
        """
        if self.packs and self.share.gpus and self.peak_mib:
            self.packs = False
            count = cluster.packing(self.peak_mib, self.device_mib, cluster.cores_per_gpu())
            self.share = cluster.Share(0, 1 / count)
            self.session.progress.notes.append(
                f"{count} actors share a GPU: a task took up to {self.peak_mib:,.0f} MiB of its"
                f" {self.device_mib:,.0f}"
            )
        for runner in list(self.runners):
            if runner.share != self.share and not runner.queue:
                self._replace(runner)

    def _new_runner(self) -> Runner:
        self.made += 1
        made = self.actor_class.options(**self.share.options())
        actor = made.remote(self.worker, self.data, folders=self.folders)
        introduced, starting = actor.introduce.remote(), actor.memory_mib.remote()
        return Runner(f"actor-{self.made}", actor, introduced, starting, self.share)

    def _start(self, runner: Runner) -> None:
        """An actor has started, or could not."""
        try:
            self.device_mib = max(self.device_mib, ray.get(runner.starting))
        except RayError as error:
            self._not_started(runner, error)
            return
        runner.starting, runner.since, self.unstarted = None, time.monotonic(), 0
        runner.place = last_words.place_of(runner.introduced)
        self.session.events.actor("actor_started", runner.name, **runner.place)

    def _not_started(self, runner: Runner, error: RayError) -> None:
        """Try again, if others work later; actors that a node took with it count once."""
        if runner.since >= self.failed_to_start:
            self.unstarted, self.failed_to_start = self.unstarted + 1, time.monotonic()
        if self.unstarted <= START_RETRIES:
            self._replace(runner)
        elif any(other.starting is None for other in self.runners):
            self._end(runner)
        else:
            raise cluster.cannot_start(error) from None

    # ---- giving -------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Give tasks to actors with room; False when nothing is left to wait for."""
        able = [runner for runner in self.runners if runner.starting is None and runner.share == self.share]
        starting = sum(runner.starting is not None for runner in self.runners)
        window.fill(self.schedule, able, self._feed, lambda queued: self._more(queued, starting))
        for runner in able:
            runner.send(self.alone)
        self.session.progress.running = busy = sum(bool(runner.queue) for runner in self.runners)
        return busy > 0 or (len(self.schedule) > 0 and not able)

    def _more(self, queued: int, starting: int) -> bool:
        """Whether a task may wait in an actor's queue: not one that an actor about to start could run."""
        return not queued or not starting or len(self.schedule) > starting

    def _feed(self, runner: Runner) -> bool:
        """Give an actor its next task; False if there is none. One whose base is lost waits for that."""
        while (task := self.schedule.take(runner.name)) is not None:
            if (weights := self._weights(task)) is not None or task.base is None:
                self._give(runner, task, weights)
                return True
        return False

    def _give(self, runner: Runner, task: Task, weights: Any) -> None:
        dataset = task.spec["dataset"]["name"]
        if dataset not in runner.datasets:
            runner.datasets.add(dataset)
            runner.actor.receive.remote(dataset, self.arrays[dataset])
        if not runner.queue:
            runner.since = time.monotonic()
        self.session.events.given(task, runner.name)
        runner.queue.append(InFlight(task, self.session.payload(task), weights))

    def _weights(self, task: Task) -> Any:
        """A reference of the weights that a task starts from; None if it needs none or they are lost."""
        if task.base and task.base not in self.weights and (content := self.session.weights(task)):
            self.weights[task.base] = ray.put(content)
        return self.weights.get(task.base or "")

    # ---- taking -------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Take the outcomes that are there and the actors that have started; wait a moment for the first. A
        pass takes time for each actor, so of many a few are waited for, and of a deep queue the middle.
        """
        awaited = {
            runner.middle(): runner for runner in self.runners if runner.queue or runner.starting is not None
        }
        if not awaited:
            time.sleep(POLL_S)
            return
        ready, _ = ray.wait(list(awaited), num_returns=len(awaited), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(awaited), num_returns=1 + len(awaited) // FEW, timeout=POLL_S)
        for reference in ready:
            runner = awaited[reference]
            if runner.starting is None:
                self._take(runner)
            else:
                self._start(runner)
        if not ready or time.monotonic() - self.looked > LOOK_S:
            self._take_first()

    def _take_first(self) -> None:
        """Take the first outcomes of queues whose middle has not ended: a long task may be in between."""
        self.looked = time.monotonic()
        awaited = {runner.queue[0].outcome: runner for runner in self.runners if runner.queue}
        if awaited:
            for reference in ray.wait(list(awaited), num_returns=len(awaited), timeout=0)[0]:
                self._take(awaited[reference])

    def _take(self, runner: Runner) -> None:
        """Take the outcome of an actor's first task, and of those behind it that are there, too."""
        flights = runner.ended()
        try:
            found = outcomes(flights)
        except RayError:
            flights = flights[:1]  # the others are looked at when it is known what became of the first
            found = [None]
        now = time.monotonic()
        runner.task_s = window.paced(runner.task_s, now - runner.since, len(flights))
        hungry = []  # dealt with last: the actor goes, and what waits in its queue runs again
        for flight, there in zip(flights, found, strict=True):
            if (outcome := self._outcome(runner, flight, there)) is None:
                break
            runner.queue.popleft()
            runner.since = now
            if outcome.status == "oom":
                hungry.append((flight, outcome))
            else:
                self._finish(runner, flight, outcome)
        for flight, outcome in hungry:
            if runner not in self.runners:  # it went for another task of the same call
                self._again(flight.task, "oom")
            elif not self._retry_oom(runner, flight.task):
                self._finish(runner, flight, outcome)

    def _outcome(self, runner: Runner, flight: InFlight, outcome: Any) -> Any:
        """The outcome of an actor's first task with the weights it left; None if there is none, which is then
        dealt with. outcome: None if it is still to be fetched.
        """
        try:
            outcome = outcomes([flight])[0] if outcome is None else outcome
            outcome.weights = None if flight.weights is None else ray.get(flight.weights)
            return outcome
        except RayTaskError as error:
            if isinstance(error.cause, RayError):  # what the task needed was lost on its way
                self._lose(runner, "lost_worker", str(error.cause))
                return None
            if self._lost_together(runner, "bug", str(error)):
                return None
            runner.queue.popleft()  # the worker itself failed, which it never should
            runner.since = time.monotonic()
            self._fail(runner, flight.task, "bug", " ".join(str(error).split())[-300:], str(error))
        except RayError as error:  # an actor, a node or an object is lost
            hungry = isinstance(error, OutOfMemoryError) or "OutOfMemory" in str(error)
            self._lose(runner, "oom" if hungry else "lost_worker", str(error))
        return None

    def _finish(self, runner: Runner, flight: InFlight, outcome: Any) -> None:
        task = flight.task
        if outcome.weights is not None:
            self.weights[task.id] = flight.weights
        self.peak_mib = max(self.peak_mib, outcome.row.get("peak_memory_mib") or 0.0)
        self.session.finished(task, outcome, runner.name, self._retries(task))
        self._drop_weights(task)

    def _fail(self, runner: Runner, task: Task, status: str, reason: str, details: str = "") -> None:
        """Record a task whose worker gave no outcome."""
        self.session.failed(task, status, reason, runner.name, self._retries(task), details)
        self._drop_weights(task)

    def _drop_weights(self, task: Task) -> None:
        """Let the weights that a task started from, and its own, go where nobody needs them any more."""
        for model in (task.base, task.id):
            if model is not None and not self.schedule.needs(model):
                self.weights.pop(model, None)

    def _retries(self, task: Task) -> int:
        return self.lost.get(task.id, 0) + self.oom.get(task.id, 0)

    # ---- failures -----------------------------------------------------------------------------------------

    def _lose(self, runner: Runner, kind: str, reason: str) -> None:
        """An actor is gone: its first task counts a retry, the others wait again; a new actor comes."""
        if self._lost_together(runner, kind, reason):
            return
        task = runner.queue.popleft().task
        self.session.events.trouble("lost", task, kind, reason)
        if task.base is not None:  # its weights may have been on the node that is gone; the store has them
            self.weights.pop(task.base, None)
        self._replace(runner, fewer=kind == "oom")
        counts, allowed = (self.oom, OOM_RETRIES) if kind == "oom" else (self.lost, LOST_RETRIES)
        counts[task.id] = counts.get(task.id, 0) + 1
        if counts[task.id] > allowed:
            counts[task.id] = allowed
            text = f"{allowed + 1} workers in a row: {' '.join(reason.split())[:300]}"
            self._fail(runner, task, kind, text, last_words.of(runner.place))
            return
        self._again(task, kind)

    def _lost_together(self, runner: Runner, kind: str, reason: str) -> bool:
        """Whether an actor was lost with several tasks: each runs alone then, and none counts a retry."""
        first = runner.queue[0]
        if first.company == 1:
            return False
        for flight in runner.queue:
            if flight.outcome == first.outcome:
                self.alone.add(flight.task.id)
                self.weights.pop(flight.task.base or "", None)
                self.session.events.trouble("lost", flight.task, kind, reason)
        self._replace(runner, fewer=kind == "oom")
        return True

    def _retry_oom(self, runner: Runner, task: Task) -> bool:
        """Whether a task that ran out of memory was put back: with one actor less on CPUs; where actors share
        GPUs, half as many share one from then on, which counts as no retry, down to a GPU for each.
        """
        count, shared = self.oom.get(task.id, 0), 0 < self.share.gpus < 1
        if len(self.runners) == 1 or (count >= OOM_RETRIES and not shared):
            return False
        if shared and runner.share == self.share:  # else others have seen to it already
            self.share = cluster.Share(0, 1 / max(1, round(1 / self.share.gpus) // 2))
        self.oom[task.id] = count + (not shared)
        self._replace(runner, fewer=not self.share.gpus)
        self._again(task, "oom")
        return True

    def _again(self, task: Task, kind: str) -> None:
        self.session.progress.retries += 1
        self.session.events.trouble("retried", task, kind, "")
        self.schedule.put_back(task)

    def _stop_overdue(self) -> None:
        """Kill the actor of each task that is over its time limit; that task ends as `timeout`. The clock of
        an actor's first task starts with the actor, not while a node is awaited.
        """
        limit = self.resources.time_limit_s
        for runner in list(self.runners):
            if runner.queue and time.monotonic() - runner.since > limit:
                if self._lost_together(runner, "timeout", f"longer than {limit:g} s"):
                    continue
                flight = runner.queue.popleft()
                words = last_words.of(runner.place, hangs=True)
                self._replace(runner)
                self._fail(runner, flight.task, "timeout", f"longer than {limit:g} s", words)

    def _replace(self, runner: Runner, *, fewer: bool = False) -> None:
        """Put a new actor in the place of one, or none if there shall be fewer; its waiting tasks go back."""
        place = self.runners.index(runner)
        self._end(runner)
        if fewer and self.runners:
            self.fewer, self.hungry_at = self.fewer + 1, time.monotonic()
        else:
            self.runners.insert(place, self._new_runner())

    def _end(self, runner: Runner) -> None:
        ray.kill(runner.actor)
        self.session.events.actor("actor_gone", runner.name)
        self.runners.remove(runner)
        self.schedule.forget_runner(runner.name)
        for flight in reversed(runner.queue):
            self.schedule.put_back(flight.task)
        runner.queue.clear()
